"""Attention over sequences packed without padding: each attends to itself and nothing else.

The sequences of a batch lie end to end in one row of N tokens, so that every linear layer works on
real tokens only. For the attention alone they are laid out as rows again, those of similar length
in one padded table, where the causal order hides the padding on the right. Only in rows longer than
a layer's sliding window is a mask needed, of one row's length squared. It is one path for CPU
and GPU, on torch's own scaled-dot-product attention, and needs neither flash-attn nor an N x N
mask. There is no attention dropout, whatever the base's configuration says: it would add noise to
PPO's ratio and to the reward model's scores.

Sequences that begin with the same prompt can hold its tokens once. Its queries, keys and values are
then gathered into the row of each, where the causal order is all that a completion needs to attend
to its prompt and to itself; their gradients add up on the way back. Repeating the prompt in the
kernel costs little: every linear layer has seen it once.

Registered with transformers under `NAME`. Without a packing, as in the decode loop or in the base's
own forward, it is transformers' own `sdpa`, masks and all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

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


@dataclass(frozen=True)
class Packing:
    """Positions of B sequences among N packed tokens."""

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
    tables: tuple[Table, ...]
    """All sequences, those of similar length together."""
    order: Tensor
    """(N,) int64, index of each packed token in the tables' tokens, one table after the other."""

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
        # 1. Packed tokens of each sequence: those shared are where the first of its group has them.
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
        # 2. Group the sequences by similar length, and lay each group out as a table.
        rows_by_class: dict[int, list[int]] = {}
        for row, length in enumerate(lengths):
            rows_by_class.setdefault(_size_class(length), []).append(row)
        of_sequences = [torch.tensor(numbers) for numbers in (offsets, shared, tails)]
        of_sequences[2] -= of_sequences[1]
        packed = cls(
            of_sequences[0], of_sequences[1], of_sequences[2], positions, before, (), positions
        )
        tables = tuple(
            packed._table(rows, [lengths[row] for row in rows]) for rows in rows_by_class.values()
        )
        # 3. The way back from the tables to the packed order: the first place of each token.
        tokens, order = torch.cat([table.tokens for table in tables]).sort(stable=True)
        is_first = torch.cat([torch.tensor([True]), tokens[1:] != tokens[:-1]])
        return replace(packed, tables=tables, order=order[is_first]).to(device)

    def _table(self, rows: list[int], lengths: list[int]) -> Table:
        """Lay out some rows as a table."""
        width = max(lengths)
        columns = torch.cat([torch.arange(n) for n in lengths])
        sizes = torch.tensor(lengths)
        cells = (torch.arange(len(rows)) * width).repeat_interleave(sizes) + columns
        row_of_token = torch.tensor(rows).repeat_interleave(sizes)
        return Table(self.index(row_of_token, columns), cells, len(rows), width)

    def index(self, rows: Tensor | slice, positions: Tensor) -> Tensor:
        """(n,) int64, packed tokens at positions of sequences."""
        is_shared = positions < self.prefixes[rows]
        return torch.where(is_shared, self.offsets[rows], self.shifts[rows]) + positions

    def to(self, device: torch.device) -> Packing:
        """Copy to a device."""
        tables = tuple(
            replace(table, tokens=table.tokens.to(device), cells=table.cells.to(device))
            for table in self.tables
        )
        # Few copies: each makes a GPU wait.
        of_sequences = torch.stack([self.offsets, self.prefixes, self.shifts]).to(device)
        offsets, prefixes, shifts = of_sequences.unbind()
        positions, before = torch.stack([self.positions, self.before]).to(device).unbind()
        return Packing(offsets, prefixes, shifts, positions, before, tables, self.order.to(device))

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


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    options["dropout"] = 0.0
    if packing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
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
    return torch.cat(outputs).index_select(0, packing.order)[None].to(dtype), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
