"""Attention over sequences packed without padding: each sees itself and nothing else.

The rows of a batch lie end to end in one row of N tokens, so that every linear layer works on real
tokens only. For the attention alone they are laid out as rows again, where the causal order hides
what fills them up. It is one path for CPU and GPU, on torch's own scaled-dot-product attention, and
needs neither flash-attn nor a mask of N x N. Nothing is dropped out of it, whatever the base's
configuration says: PPO's ratio and the reward model's scores must not be noise.

Registered with transformers under `NAME`. Where no packing is given, as in the decode loop or in a
forward of somebody else's, it is transformers' own `sdpa`, masks and all.
"""

from __future__ import annotations

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


@dataclass(frozen=True)
class Packing:
    """Where each of B sequences lies among N tokens."""

    offsets: Tensor
    """(B,) int64, where each begins."""
    positions: Tensor
    """(N,) int64, place of each token in its sequence, from 0."""
    cells: Tensor
    """(N,) int64, place of each token in a table of B rows and `width` columns."""
    width: int
    """Tokens of the longest."""

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Packing:
        """The packing of sequences of these lengths, one after the other."""
        size = torch.tensor(list(lengths), dtype=torch.int64)
        offsets = size.cumsum(0) - size
        positions = torch.arange(int(size.sum())) - offsets.repeat_interleave(size)
        width = int(size.max())
        cells = (torch.arange(len(size)) * width).repeat_interleave(size) + positions
        return cls(offsets, positions, cells, width).to(device)

    def to(self, device: torch.device) -> Packing:
        """The same on a device."""
        offsets, positions, cells = (
            one.to(device) for one in (self.offsets, self.positions, self.cells)
        )
        return Packing(offsets, positions, cells, self.width)

    def __len__(self) -> int:
        return len(self.offsets)

    def spread(self, packed: Tensor) -> Tensor:
        """(1, heads, N, D) to (B, heads, width, D), 0 where there is no token."""
        heads, _, size = packed.shape[1:]
        table = packed.new_zeros(len(self) * self.width, heads, size)
        table = table.index_copy(0, self.cells, packed[0].transpose(0, 1))
        return table.view(len(self), self.width, heads, size).transpose(1, 2)

    def collect(self, table: Tensor) -> Tensor:
        """(B, width, heads, D) to (1, N, heads, D)."""
        return table.flatten(0, 1).index_select(0, self.cells)[None]


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
    query, key, value = (packing.spread(one.to(exact)) for one in (query, key, value))
    options["is_causal"] = True
    with torch.autocast(device, enabled=False):
        out, _ = sdpa_attention_forward(module, query, key, value, None, **options)
    return packing.collect(out.to(dtype)), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
