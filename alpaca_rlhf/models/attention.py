"""Attention over sequences packed without padding: each sees itself and nothing else.

The rows of a batch lie end to end in one row of N tokens, so that every linear layer works on real
tokens only. For the attention alone they are laid out as rows again, those of about the same length
in one table, where the causal order hides what fills them up. It is one path for CPU and GPU, on
torch's own scaled-dot-product attention, and needs neither flash-attn nor a mask of N x N. Nothing
is dropped out of it, whatever the base's configuration says: PPO's ratio and the reward model's
scores must not be noise.

Registered with transformers under `NAME`. Where no packing is given, as in the decode loop or in a
forward of somebody else's, it is transformers' own `sdpa`, masks and all.
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
"""What `set_attn_implementation` is given."""
_SHORT = 32  # tokens; filling up what is shorter costs less than a call of its own


@dataclass(frozen=True)
class Table:
    """Sequences of about the same length, as rows that are filled up to the longest."""

    tokens: Tensor
    """(n,) int64, their tokens' places among the packed ones."""
    cells: Tensor
    """(n,) int64, the place of each in a table of `rows` rows and `width` columns."""
    rows: int
    """Sequences."""
    width: int
    """Tokens of the longest."""

    def spread(self, packed: Tensor) -> Tensor:
        """(1, heads, N, D) to (rows, heads, width, D), 0 where there is no token."""
        _, heads, _, size = packed.shape
        table = packed.new_zeros(self.rows * self.width, heads, size)
        own = packed[0].transpose(0, 1).index_select(0, self.tokens)
        table = table.index_copy(0, self.cells, own)
        return table.view(self.rows, self.width, heads, size).transpose(1, 2)

    def collect(self, table: Tensor) -> Tensor:
        """(rows, width, heads, D) to (n, heads, D), in the order of `tokens`."""
        return table.flatten(0, 1).index_select(0, self.cells)


@dataclass(frozen=True)
class Packing:
    """Where each of B sequences lies among N tokens."""

    offsets: Tensor
    """(B,) int64, where each begins."""
    positions: Tensor
    """(N,) int64, place of each token in its sequence, from 0."""
    tables: tuple[Table, ...]
    """All sequences, those of about the same length together."""
    order: Tensor
    """(N,) int64, place of each packed token in the tables' tokens, one table after the other."""

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Packing:
        """The packing of sequences of these lengths, one after the other."""
        size = torch.tensor(list(lengths), dtype=torch.int64)
        offsets = size.cumsum(0) - size
        positions = torch.arange(int(size.sum())) - offsets.repeat_interleave(size)
        alike: dict[int, list[int]] = {}
        for row, length in enumerate(lengths):
            alike.setdefault(_size_class(length), []).append(row)
        tables = []
        for rows in alike.values():
            own, width = size[rows], int(size[rows].max())
            columns = torch.cat([torch.arange(n) for n in own.tolist()])
            tables.append(
                Table(
                    offsets[rows].repeat_interleave(own) + columns,
                    (torch.arange(len(rows)) * width).repeat_interleave(own) + columns,
                    len(rows),
                    width,
                )
            )
        order = torch.cat([table.tokens for table in tables]).argsort()
        return cls(offsets, positions, tuple(tables), order).to(device)

    def to(self, device: torch.device) -> Packing:
        """The same on a device."""
        tables = tuple(
            Table(one.tokens.to(device), one.cells.to(device), one.rows, one.width)
            for one in self.tables
        )
        return Packing(
            self.offsets.to(device), self.positions.to(device), tables, self.order.to(device)
        )

    def __len__(self) -> int:
        return len(self.offsets)


def _size_class(length: int) -> int:
    """The same for all short ones, and for two if one is at most about 1.4 times the other."""
    return math.ceil(2 * math.log2(max(length, _SHORT)))


def no_mask(device: torch.device) -> Tensor:
    """An empty mask in four dimensions: transformers takes it as made already and builds none.

    Without it, transformers would build one of N x N, or, with its cache left on, let the
    sequences see each other.
    """
    return torch.empty(1, 1, 0, 0, device=device)


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
    exact = torch.float32 if device == "cpu" and dtype == torch.bfloat16 else dtype
    query, key, value = (one.to(exact) for one in (query, key, value))
    options["is_causal"] = True
    found = []
    with torch.autocast(device, enabled=False):
        for table in packing.tables:
            q, k, v = (table.spread(one) for one in (query, key, value))
            out, _ = sdpa_attention_forward(module, q, k, v, None, **options)
            found.append(table.collect(out))
    return torch.cat(found).index_select(0, packing.order)[None].to(dtype), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
