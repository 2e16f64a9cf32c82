"""Attention over sequences packed without padding: each attends to itself and nothing else.

The sequences of a batch lie end to end in one row of N tokens, so that every linear layer works on
real tokens only. For the attention alone they are laid out as rows again, those of similar length
in one padded table, where the causal order hides the padding on the right. Only in rows longer than
a layer's sliding window is a mask needed, of one row's length squared. It is one path for CPU
and GPU, on torch's own scaled-dot-product attention, and needs neither flash-attn nor an N x N
mask. There is no attention dropout, whatever the base's configuration says: it would add noise to
PPO's ratio and to the reward model's scores.

Registered with transformers under `NAME`. Without a packing, as in the decode loop or in the base's
own forward, it is transformers' own `sdpa`, masks and all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
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
    """(n,) int64, positions of their tokens among the packed ones."""
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
        token_values = packed[0].transpose(0, 1).index_select(0, self.tokens)
        table = table.index_copy(0, self.cells, token_values)
        return table.view(self.rows, self.width, heads, head_dim).transpose(1, 2)

    def collect(self, table: Tensor) -> Tensor:
        """Gather (rows, width, heads, D) into (n, heads, D), in the order of `tokens`."""
        return table.flatten(0, 1).index_select(0, self.cells)


@dataclass(frozen=True)
class Packing:
    """Positions of B sequences among N packed tokens."""

    offsets: Tensor
    """(B,) int64, index of each sequence's first token."""
    positions: Tensor
    """(N,) int64, position of each token in its sequence, from 0."""
    tables: tuple[Table, ...]
    """All sequences, those of similar length together."""
    order: Tensor
    """(N,) int64, index of each packed token in the tables' tokens, one table after the other."""

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Packing:
        """Packing of sequences of these lengths, one after the other."""
        sizes = torch.tensor(list(lengths), dtype=torch.int64)
        offsets = sizes.cumsum(0) - sizes
        positions = torch.arange(int(sizes.sum())) - offsets.repeat_interleave(sizes)
        # 1. Group the sequences by similar length.
        rows_by_class: dict[int, list[int]] = {}
        for row, length in enumerate(lengths):
            rows_by_class.setdefault(_size_class(length), []).append(row)
        # 2. Lay each group out as a table.
        tables = []
        for rows in rows_by_class.values():
            row_sizes, width = sizes[rows], int(sizes[rows].max())
            columns = torch.cat([torch.arange(n) for n in row_sizes.tolist()])
            tables.append(
                Table(
                    offsets[rows].repeat_interleave(row_sizes) + columns,
                    (torch.arange(len(rows)) * width).repeat_interleave(row_sizes) + columns,
                    len(rows),
                    width,
                )
            )
        # 3. The way back from the tables to the packed order.
        order = torch.cat([table.tokens for table in tables]).argsort()
        return cls(offsets, positions, tuple(tables), order).to(device)

    def to(self, device: torch.device) -> Packing:
        """Copy to a device."""
        tables = tuple(
            Table(table.tokens.to(device), table.cells.to(device), table.rows, table.width)
            for table in self.tables
        )
        return Packing(
            self.offsets.to(device), self.positions.to(device), tables, self.order.to(device)
        )

    def __len__(self) -> int:
        return len(self.offsets)


def _size_class(length: int) -> int:
    """Class of similar lengths: all short ones, then steps of a factor of about 1.4."""
    return math.ceil(2 * math.log2(max(length, _SHORT)))


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
