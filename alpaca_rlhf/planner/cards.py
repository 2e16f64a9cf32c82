"""Graphics cards: their memory, and how fast and hungry they are. All rates are projected.

Rates are those of the makers' data sheets. Which share of them a run reaches is an estimate until
one has been measured on that card; `--tflops` and `--bandwidth` take what was measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from alpaca_rlhf.core.errors import UserError

CONTEXT_GIB = 0.6
"""CUDA context, kernels and cuBLAS' workspace, outside torch's own count; an estimate."""
GAPS = 0.08
"""Of what comes and goes, the share that the allocator loses to gaps; an estimate."""
REACHED_FLOPS, REACHED_BANDWIDTH = 0.35, 0.6
"""Share of the data sheet's rates that small batches and 4-bit weights reach; estimates."""
FIXED = ("weights in 4 bit", "embeddings, head and norms", "adapters", "optimiser", "gradients")
"""Items that lie still: no gaps come of them."""
LARGEST_GIB = 512
"""More is a name that was typed wrongly."""
RESERVE = "CUDA context and gaps"


@dataclass(frozen=True)
class Card:
    """A graphics card."""

    name: str
    """As it is typed after `--card`."""
    gib: float
    """Its memory."""
    tflops: float
    """Dense products in bf16 (fp16 where there is no bf16), summed in fp32, data sheet."""
    bandwidth: float
    """GB a second, data sheet."""
    watts: float
    """Board power."""
    here: bool = False
    """Whether it is this machine's, and `gib` what is free of it."""

    @property
    def asked(self) -> str:
        """How a refusal calls it."""
        if self.here:
            return f"the card, {self.name}, has {self.gib:.4g} GiB free"
        return f"--card {self.gib:g}"


CARDS = (
    Card("rtx-3060", 12, 25.5, 360, 170),
    Card("rtx-3080", 10, 59.5, 760, 320),
    Card("rtx-3090", 24, 71, 936, 350),
    Card("rtx-4060", 8, 30, 272, 115),
    Card("rtx-4060-ti-16gb", 16, 44, 288, 165),
    Card("rtx-4070", 12, 58, 504, 200),
    Card("rtx-4080", 16, 97.5, 717, 320),
    Card("rtx-4090", 24, 165, 1008, 450),
    Card("rtx-5090", 32, 209, 1792, 575),
    Card("rtx-2080-ti", 11, 54, 616, 250),
    Card("t4", 16, 65, 320, 70),
    Card("l4", 24, 60, 300, 72),
    Card("a10g", 24, 70, 600, 300),
    Card("a100-40gb", 40, 312, 1555, 400),
    Card("a100-80gb", 80, 312, 2039, 400),
    Card("h100-80gb", 80, 989, 3350, 700),
)
"""Common cards."""

CPU = Card("cpu", 8, 0.075, 20, 65)
"""No card: a laptop's memory and power, and what two cores reached in fp32 with a small LLaMA
(`benchmarks/smollm2_cpu.py`), of which no share is taken; the bandwidth is an estimate."""


def card_of(asked: str) -> Card:
    """A card by its name, or by its memory in GiB: then with the rates of the slowest that large.

    Raises:
        UserError: Neither a known name nor a size.
    """
    name = asked.lower().removeprefix("nvidia ").removeprefix("geforce ").replace(" ", "-")
    for card in (*CARDS, CPU):
        if card.name == name:
            return card
    try:
        gib = float(name.removesuffix("gib").removesuffix("gb").rstrip("-"))
    except ValueError:
        gib = math.nan
    if not 0 < gib <= LARGEST_GIB:
        names = ", ".join(card.name for card in (*CARDS, CPU))
        raise UserError(f"--card {asked}: give its memory in GiB, or one of {names}")
    near = min(CARDS, key=lambda card: (abs(card.gib - gib), card.tflops))
    return Card(f"{gib:g} GiB, rates of {near.name}", gib, near.tflops, near.bandwidth, near.watts)


def reserve(items: dict[str, int]) -> int:
    """Bytes to keep free beside the tensors."""
    moving = sum(size for item, size in items.items() if item not in FIXED)
    return int(CONTEXT_GIB * 2**30 + GAPS * moving)
