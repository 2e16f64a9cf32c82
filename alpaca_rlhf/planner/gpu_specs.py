"""Specifications of GPUs: memory, speed and power. All rates are projected.

Rates are those of the makers' data sheets. The share of them that a run reaches is an estimate
until it has been measured on that GPU; `--tflops` and `--bandwidth` take measured rates.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.kernels import FLASH_FROM, Capability

CONTEXT_GIB = 0.6
"""CUDA context, kernels and cuBLAS' workspace, which torch does not count; an estimate."""
LIBRARIES_GIB = 0.5
"""Python with torch, transformers and the rest on a CPU: resident before the base is loaded, 0.4 to
0.55 measured (`benchmarks/process_memory.py`)."""
GAPS = 0.08
"""Share of short-lived memory that a CPU's allocator loses to fragmentation; an estimate."""
LAYER_GAPS, PAGE_BYTES, PAGES = 0.5, 20 * 2**20, 4
"""Memory that torch's allocator on a card reserves beside its blocks, with segments that expand: a
share of what one layer takes and gives back, and so many pages. The least that covers a model of
the allocator (`tests/cuda_sim/caching_allocator.py`) on the plans of nine bases; on a card nothing
is measured. Blocks are rounded to 512 bytes, segments to pages of 2 MiB for small blocks and of 20
for large ones (c10/cuda/CUDACachingAllocator.cpp). Kept activations come and go in one order, so
they leave no more gaps than those of one layer."""
REACHED_FLOPS, REACHED_BANDWIDTH = 0.35, 0.6
"""Share of the data sheet's rates that small batches and 4-bit weights reach; estimates."""
FIXED = (
    "weights in 4 bit",
    "16-bit copy of the base",
    "embeddings, head and norms",
    "adapters",
    "optimiser",
    "gradients",
)
"""Items that stay allocated and cause no fragmentation."""
LARGEST_GIB = 512
"""Upper bound on a size in GiB; a larger number is a mistyped name."""
RESERVE = "CUDA context and gaps"
PROCESS = "libraries and gaps"
"""The reserve of a run on a CPU."""


@dataclass(frozen=True)
class GpuSpec:
    """Memory, speed and power of a GPU."""

    name: str
    """As typed after `--card`."""
    gib: float
    """Memory in GiB."""
    tflops: float
    """Dense bf16 products (fp16 without bf16) accumulated in fp32, from the data sheet."""
    bandwidth: float
    """GB a second, from the data sheet."""
    watts: float
    """Board power."""
    capability: Capability | None = FLASH_FROM
    """Compute capability of an NVIDIA card; None where it has none (ROCm)."""
    local: bool = False
    """This machine's GPU, with `gib` the memory that is free now."""

    @property
    def described(self) -> str:
        """The GPU as a refusal names it."""
        if self.local:
            return f"the card, {self.name}, has {self.gib:.4g} GiB free"
        return f"--card {self.gib:g}"


GPU_SPECS = (
    GpuSpec("rtx-3060", 12, 25.5, 360, 170, (8, 6)),
    GpuSpec("rtx-3080", 10, 59.5, 760, 320, (8, 6)),
    GpuSpec("rtx-3090", 24, 71, 936, 350, (8, 6)),
    GpuSpec("rtx-4060", 8, 30, 272, 115, (8, 9)),
    GpuSpec("rtx-4060-ti-16gb", 16, 44, 288, 165, (8, 9)),
    GpuSpec("rtx-4070", 12, 58, 504, 200, (8, 9)),
    GpuSpec("rtx-4080", 16, 97.5, 717, 320, (8, 9)),
    GpuSpec("rtx-4090", 24, 165, 1008, 450, (8, 9)),
    GpuSpec("rtx-5090", 32, 209, 1792, 575, (12, 0)),
    GpuSpec("rtx-2080-ti", 11, 54, 616, 250, (7, 5)),
    GpuSpec("t4", 16, 65, 320, 70, (7, 5)),
    GpuSpec("l4", 24, 60, 300, 72, (8, 9)),
    GpuSpec("a10g", 24, 70, 600, 300, (8, 6)),
    GpuSpec("a100-40gb", 40, 312, 1555, 400, (8, 0)),
    GpuSpec("a100-80gb", 80, 312, 2039, 400, (8, 0)),
    GpuSpec("h100-80gb", 80, 989, 3350, 700, (9, 0)),
)
"""Common GPUs."""

CPU = GpuSpec("cpu", 8, 0.075, 20, 65)
"""No GPU: a laptop's memory and power, and the rate that two cores reached in fp32 with a small
LLaMA (`benchmarks/smollm2_cpu.py`), used as it is; the bandwidth is an estimate."""


def find_gpu(text: str) -> GpuSpec:
    """Find a GPU by name, or by memory in GiB, with the rates of the slowest one of that size.

    Raises:
        UserError: The text is neither a known name nor a size.
    """
    name = text.lower().removeprefix("nvidia ").removeprefix("geforce ").replace(" ", "-")
    # 1. A known name.
    for gpu in (*GPU_SPECS, CPU):
        if gpu.name == name:
            return gpu
    try:
        # 2. Otherwise a size: `24`, `24gb` or `24 GiB`.
        gib = float(name.removesuffix("gib").removesuffix("gb").rstrip("-"))
    except ValueError:
        gib = math.nan
    if not 0 < gib <= LARGEST_GIB:
        names = [gpu.name for gpu in (*GPU_SPECS, CPU)]
        near = [known for known in names if name.replace("-", "") in known.replace("-", "")]
        near = near if name else []
        meant = " or ".join(near or difflib.get_close_matches(name, names, n=1))
        hint = f"did you mean {meant}? Else give" if meant else "give"
        raise UserError(f"--card {text}: {hint} its memory in GiB, or one of {', '.join(names)}")
    # 3. Rates of the slowest GPU of the nearest size, so that no time is promised too short.
    nearest = min(GPU_SPECS, key=lambda gpu: (abs(gpu.gib - gib), gpu.tflops))
    return GpuSpec(
        f"{gib:g} GiB, rates of {nearest.name}",
        gib,
        nearest.tflops,
        nearest.bandwidth,
        nearest.watts,
        nearest.capability,
    )


def reserve(
    items: Mapping[str, int], layer_items: Mapping[str, int], kind: Literal["cuda", "cpu"]
) -> dict[str, int]:
    """Bytes to keep free beside the tensors: CUDA context or libraries, and fragmentation.

    Args:
        items: Bytes of a phase by purpose.
        layer_items: The same of a base with a single layer, none of it recomputed.
        kind: Kind of the device.
    """
    if kind == "cpu":
        return {PROCESS: int(LIBRARIES_GIB * 2**30 + GAPS * _short_lived(items))}
    return {RESERVE: int(CONTEXT_GIB * 2**30) + allocator_gaps(layer_items)}


def allocator_gaps(layer_items: Mapping[str, int]) -> int:
    """Bytes that torch's allocator on a card reserves beside its blocks; simulated, not measured.

    Args:
        layer_items: Bytes by purpose in the same phase of a base with a single layer.
    """
    return PAGES * PAGE_BYTES + int(LAYER_GAPS * _short_lived(layer_items))


def _short_lived(items: Mapping[str, int]) -> int:
    """Bytes that are taken and given back again and again."""
    return sum(size for item, size in items.items() if item not in FIXED)
