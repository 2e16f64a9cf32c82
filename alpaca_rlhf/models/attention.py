"""Attention over sequences packed without padding: each attends to itself and nothing else.

The sequences of a batch lie end to end in one row of N tokens, so that every linear layer works on
real tokens only. There is no attention dropout, whatever the base's configuration says: it would
add noise to PPO's ratio and to the reward model's scores. One of two layouts carries them through
torch's own attention, which needs neither flash-attn nor an N x N mask; `packed_kernel` chooses.

`Table`: the sequences are laid out as rows again, those of similar length in one padded table,
where the causal order hides the padding on the right. Only in rows longer than a layer's sliding
window is a mask needed, of one row's length squared. It works everywhere.

`Segments`: FlashAttention for variable lengths reads the packed tokens where they lie. It needs a
card of sm80 or newer, 16 bits and heads of a usual size.

Sequences that begin with the same prompt can hold its tokens once. In tables its queries, keys and
values are gathered into the row of each, where the causal order is all that a completion needs to
attend to its prompt and to itself. In segments the queries stay where they are, and only keys and
values are gathered: the kernel's causal mask ends at the last key, so that a completion's queries
attend to the whole prompt before it. Gradients add up on the way back. Repeating the prompt in the
kernel costs little: every linear layer has seen it once.

Registered with transformers under `NAME`. Without a packing, as in the decode loop or in the base's
own forward, it is transformers' own `sdpa`, masks and all.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from alpaca_rlhf.core.kernels import Capability, Kernel, attention_kernel

NAME = "packed"
"""Name of this implementation for `set_attn_implementation`."""
_SHORT = 32
"""Tokens; padding shorter sequences to this length costs less than a kernel call of their own."""


@dataclass(frozen=True)
class Table:
    """Sequences of similar length as rows, padded on the right to the longest."""

    tokens: Tensor
    """(n,) int64, positions of their tokens among the packed ones. Those of a shared prompt come
    once for each row that begins with it."""
    cells: Tensor
    """(n,) int64, flat index of each token in a table of `rows` rows and `width` columns."""
    rows: int
    """Number of sequences."""
    width: int
    """Tokens of the longest sequence."""

    def spread(self, packed: Tensor) -> Tensor:
        """Lay out (1, heads, N, D) as (rows, heads, width, D), 0 where there is no token."""
        _, heads, _, head_dim = packed.shape
        table = packed.new_zeros(self.rows * self.width, heads, head_dim)
        # In place, so that autograd keeps no copy of the gathered tokens, as `index_copy` would.
        table[self.cells] = packed[0].transpose(0, 1).index_select(0, self.tokens)
        return table.view(self.rows, self.width, heads, head_dim).transpose(1, 2)

    def collect(self, table: Tensor) -> Tensor:
        """Gather (rows, width, heads, D) into (n, heads, D), in the order of `tokens`."""
        return table.flatten(0, 1).index_select(0, self.cells)

    def to(self, device: torch.device) -> Table:
        """Copy to a device."""
        return replace(self, tokens=self.tokens.to(device), cells=self.cells.to(device))


@dataclass(frozen=True)
class Segments:
    """Sequences as a kernel for variable lengths reads them; the packed tokens stay in place.

    The queries of a sequence are the tokens that it does not share with the one before it, its keys
    all of its tokens.
    """

    query_bounds: Tensor
    """(S + 1,) int32, where the queries of each sequence with any begin among the packed tokens,
    and N."""
    key_bounds: Tensor
    """(S + 1,) int32, the same of its keys among all keys."""
    keys: Tensor | None
    """(n,) int64, packed token of each key; None where no prompt is shared and they are the packed
    tokens."""
    longest_query: int
    """Most queries of a sequence."""
    longest_key: int
    """Most keys of a sequence."""

    def to(self, device: torch.device) -> Segments:
        """Copy to a device."""
        query_bounds, key_bounds = (
            torch.stack([self.query_bounds, self.key_bounds]).to(device).unbind()
        )
        keys = None if self.keys is None else self.keys.to(device)
        return Segments(query_bounds, key_bounds, keys, self.longest_query, self.longest_key)


@dataclass(frozen=True)
class Packing:
    """Positions of B sequences among N packed tokens."""

    lengths: tuple[int, ...]
    """Tokens of each sequence."""
    offsets: Tensor
    """(B,) int64, index of each sequence's first token; the same for those that share a prompt."""
    prefixes: Tensor
    """(B,) int64, leading tokens that each shares with the sequence before it."""
    shifts: Tensor
    """(B,) int64, index less position of each sequence's tokens after those that it shares."""
    positions: Tensor
    """(N,) int64, position of each token in its sequence, from 0."""
    before: Tensor
    """(N,) int64, index of the token before each in its sequence, whose state predicts it; the
    index of a first token itself."""
    on_host: Packing | None = None
    """The same on the CPU, where layouts are made; None if this is it."""

    @classmethod
    def of(
        cls, lengths: Sequence[int], device: torch.device, prefixes: Sequence[int] | None = None
    ) -> Packing:
        """Packing of sequences of these lengths, one after the other.

        Args:
            lengths: Tokens of each sequence.
            device: Device of the packing.
            prefixes: Leading tokens that each shares with the sequence before it, 0 for none, which
                are packed once. Of sequences in a row that share any, all share the same.
        """
        shared = [0] * len(lengths) if prefixes is None else list(prefixes)
        offsets: list[int] = []
        tails: list[int] = []
        packed_tokens = 0
        for length, prefix in zip(lengths, shared, strict=True):
            offsets.append(offsets[-1] if prefix else packed_tokens)
            tails.append(packed_tokens)
            packed_tokens += length - prefix
        positions = torch.cat(
            [torch.arange(prefix, length) for length, prefix in zip(lengths, shared, strict=True)]
        )
        before = (torch.arange(packed_tokens) - 1).clamp_min(0)
        for tail, prefix, offset, length in zip(tails, shared, offsets, lengths, strict=True):
            if length > prefix:
                before[tail] = offset + max(0, prefix - 1)
        packing = cls(
            tuple(lengths),
            torch.tensor(offsets),
            torch.tensor(shared),
            torch.tensor(tails) - torch.tensor(shared),
            positions,
            before,
        )
        return packing.to(device)

    @cached_property
    def tables(self) -> tuple[Table, ...]:
        """All sequences, those of similar length together."""
        if self.on_host is not None:
            return tuple(table.to(self.offsets.device) for table in self.on_host.tables)
        rows_by_class: dict[int, list[int]] = {}
        for row, length in enumerate(self.lengths):
            rows_by_class.setdefault(_size_class(length), []).append(row)
        return tuple(self._table(rows) for rows in rows_by_class.values())

    def _table(self, rows: list[int]) -> Table:
        """Lay out some rows as a table."""
        width = max(self.lengths[row] for row in rows)
        row_of_token, columns = self._all_tokens(rows)
        sizes = torch.tensor([self.lengths[row] for row in rows])
        cells = (torch.arange(len(rows)) * width).repeat_interleave(sizes) + columns
        return Table(self.index(row_of_token, columns), cells, len(rows), width)

    @cached_property
    def order(self) -> Tensor:
        """(N,) int64, index of each packed token in the tables' tokens, one table after the other.

        The way back from the tables: the first place of each token.
        """
        if self.on_host is not None:
            return self.on_host.order.to(self.offsets.device)
        tokens, order = torch.cat([table.tokens for table in self.tables]).sort(stable=True)
        is_first = torch.cat([torch.tensor([True]), tokens[1:] != tokens[:-1]])
        return order[is_first]

    @cached_property
    def segments(self) -> Segments:
        """All sequences that have tokens of their own, one after the other."""
        if self.on_host is not None:
            return self.on_host.segments.to(self.offsets.device)
        shared = self.prefixes.tolist()
        rows = [row for row, length in enumerate(self.lengths) if length > shared[row]]
        queries = [self.lengths[row] - shared[row] for row in rows]
        keys = [self.lengths[row] for row in rows]
        query_bounds, key_bounds = (
            torch.tensor([0, *accumulate(sizes)], dtype=torch.int32) for sizes in (queries, keys)
        )
        gathered = None if queries == keys else self.index(*self._all_tokens(rows))
        return Segments(
            query_bounds, key_bounds, gathered, max(queries, default=0), max(keys, default=0)
        )

    def _all_tokens(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """(n,) row and (n,) position of every token of some rows, those of shared prompts too."""
        lengths = [self.lengths[row] for row in rows]
        positions = torch.cat([torch.arange(length) for length in lengths])
        return torch.tensor(rows).repeat_interleave(torch.tensor(lengths)), positions

    def index(self, rows: Tensor | slice, positions: Tensor) -> Tensor:
        """(n,) int64, packed tokens at positions of sequences."""
        is_shared = positions < self.prefixes[rows]
        return torch.where(is_shared, self.offsets[rows], self.shifts[rows]) + positions

    def to(self, device: torch.device) -> Packing:
        """Copy to a device. The layouts follow when one is first asked for."""
        if device == self.offsets.device:
            return self
        # Few copies: each makes a GPU wait.
        of_sequences = torch.stack([self.offsets, self.prefixes, self.shifts]).to(device)
        offsets, prefixes, shifts = of_sequences.unbind()
        positions, before = torch.stack([self.positions, self.before]).to(device).unbind()
        on_host = self if self.on_host is None else self.on_host
        return Packing(self.lengths, offsets, prefixes, shifts, positions, before, on_host)

    def __len__(self) -> int:
        return len(self.offsets)


def _size_class(length: int) -> int:
    """Class of similar lengths: all short ones, then steps of a factor of about 1.4."""
    return math.ceil(2 * math.log2(max(length, _SHORT)))


def table_cells(lengths: Sequence[int]) -> int:
    """Cells of the tables that sequences of these lengths are laid out in, padding included."""
    lengths_by_class: dict[int, list[int]] = {}
    for length in lengths:
        lengths_by_class.setdefault(_size_class(length), []).append(length)
    return sum(len(alike) * max(alike) for alike in lengths_by_class.values())


def no_mask(device: torch.device) -> Tensor:
    """Empty four-dimensional mask, which transformers takes as prepared and leaves alone.

    Without it, transformers would build an N x N mask or, with its cache left on, let the sequences
    attend to each other.
    """
    return torch.empty(1, 1, 0, 0, device=device)


def _window_mask(width: int, window: int, device: torch.device) -> Tensor:
    """(1, 1, width, width) bool: a token attends to itself and to the `window` - 1 before it."""
    indices = torch.arange(width, device=device)
    distance = indices[:, None] - indices[None]
    return ((distance >= 0) & (distance < window))[None, None]


def packed_kernel(device: torch.device, dtype: torch.dtype, config: Any) -> Kernel:
    """The kernel for the packed sequences of a forward.

    Args:
        device: Device of the base.
        dtype: Compute dtype.
        config: Configuration of the base.
    """
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    kernel = attention_kernel(
        device.type,
        compute_capability(device),
        dtype.itemsize,
        head_size,
        grouped=config.num_key_value_heads != heads,
    )
    return "flash" if kernel == "varlen" and varlen_attn is None else kernel


def compute_capability(device: torch.device) -> Capability | None:
    """Compute capability of an NVIDIA card as torch uses it; None on any other device.

    (0, 0) where this build of torch has no FlashAttention for any card.
    """
    if device.type != "cuda" or torch.version.hip is not None:
        return None
    if not torch.backends.cuda.is_flash_attention_available():
        return (0, 0)
    return torch.cuda.get_device_capability(device)


def _imported_varlen() -> Callable[..., Any] | None:
    """Torch's `varlen_attn`; None where it is absent or has no windows and no grouped heads yet."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    arguments = inspect.signature(varlen_attn).parameters
    return varlen_attn if {"window_size", "enable_gqa"} <= arguments.keys() else None


varlen_attn = _imported_varlen()


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | None = None,
    kernel: Kernel | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    options["dropout"] = 0.0
    if packing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if kernel == "varlen":
        return _attention_of_segments(query, key, value, packing.segments, **options), None
    return _attention_of_tables(module, query, key, value, packing, **options), None


def _attention_of_segments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> Tensor:
    """(1, N, heads, D) outputs of (1, heads, N, D) queries and (1, kv_heads, N, D) keys, values."""
    assert varlen_attn is not None
    q, k, v = (packed[0].transpose(0, 1) for packed in (query, key, value))
    if segments.keys is not None:
        k, v = (tokens.index_select(0, segments.keys) for tokens in (k, v))
    # A token attends to so many before it, beside itself.
    is_cut = sliding_window is not None and segments.longest_key > sliding_window
    before = sliding_window - 1 if is_cut and sliding_window is not None else -1
    output: Tensor = varlen_attn(
        q,
        k,
        v,
        segments.query_bounds,
        segments.key_bounds,
        segments.longest_query,
        segments.longest_key,
        scale=scaling,
        window_size=(before, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return output[None]


def _attention_of_tables(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, packing: Packing, **options: Any
) -> Tensor:
    """(1, N, heads, D) outputs of (1, heads, N, D) queries and (1, kv_heads, N, D) keys, values."""
    # On a CPU the backward of torch's kernel takes three times as long in bf16 as in fp32, and
    # autocast would cast back.
    device, dtype = query.device.type, query.dtype
    kernel_dtype = torch.float32 if device == "cpu" and dtype == torch.bfloat16 else dtype
    query, key, value = (packed.to(kernel_dtype) for packed in (query, key, value))
    window = options.get("sliding_window")
    outputs = []
    with torch.autocast(device, enabled=False):
        for table in packing.tables:
            q, k, v = (table.spread(packed) for packed in (query, key, value))
            mask = None
            if window is not None and table.width > window:
                mask = _window_mask(table.width, window, query.device)
            options["is_causal"] = mask is None
            output, _ = sdpa_attention_forward(module, q, k, v, mask, **options)
            outputs.append(table.collect(output))
    return torch.cat(outputs).index_select(0, packing.order)[None].to(dtype)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
