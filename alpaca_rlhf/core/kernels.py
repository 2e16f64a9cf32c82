"""Which attention kernel of torch runs over packed sequences.

One rule for the engine, which takes the kernel, the planner, which counts its memory, and the
doctor, which names it. It lies below all three and loads no torch.
"""

from __future__ import annotations

from typing import Literal

Kernel = Literal["varlen", "flash", "memory-efficient", "math", "cpu"]
"""`varlen` reads the packed tokens where they lie; the others read tables of rows. `math` alone
keeps the scores of every pair of tokens."""
Capability = tuple[int, int]
"""Compute capability of an NVIDIA card: (8, 6) is sm86."""

FLASH_FROM: Capability = (8, 0)
"""The first card that torch has FlashAttention for
(aten/src/ATen/native/transformers/cuda/sdp_utils.cpp)."""
MAX_FLASH_HEAD = 256
"""Largest head of FlashAttention."""
MAX_VARLEN_HEAD, VARLEN_HEAD_STEP = 192, 8
"""Largest head, and its divisor, that `varlen_attn` takes forward and backward on every card. Heads
above it have no backward on some; torch decides that for tables."""
WORDS: dict[Kernel, str] = {
    "varlen": "FlashAttention on packed tokens",
    "flash": "FlashAttention on tables of rows",
    "memory-efficient": "tiles on tables of rows",
    "math": "plain products that keep the score of every pair of tokens",
    "cpu": "the processor's attention on tables of rows",
}
"""The kernels as people read them."""


def attention_kernel(
    kind: str,
    capability: Capability | None,
    width: int,
    head_size: int,
    *,
    grouped: bool,
) -> Kernel:
    """The kernel that torch runs over the packed sequences of a base.

    Args:
        kind: Kind of the device, `cuda` or another.
        capability: Compute capability of the card; None where it has none that says so (ROCm).
        width: Bytes of a number in the compute dtype.
        head_size: Numbers of a head.
        grouped: Several query heads share one of keys and values.
    """
    if kind != "cuda":
        return "cpu"
    if capability is None:
        return "flash"
    if capability < FLASH_FROM or width != 2 or head_size > MAX_FLASH_HEAD:
        # The memory-efficient kernel knows no shared heads, and transformers repeats them only
        # beside a mask (`use_gqa_in_sdpa`), so that torch is left with plain products.
        return "math" if grouped and head_size <= MAX_FLASH_HEAD else "memory-efficient"
    fits = head_size <= MAX_VARLEN_HEAD and head_size % VARLEN_HEAD_STEP == 0
    return "varlen" if fits else "flash"
