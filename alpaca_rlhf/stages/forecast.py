"""Planned and measured memory of a stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from alpaca_rlhf.core import processes
from alpaca_rlhf.models.attention import compute_capability
from alpaca_rlhf.models.batches import prompt_ids
from alpaca_rlhf.models.devices import default_device
from alpaca_rlhf.planner import LIBRARIES_GIB, Device, Lengths, PeakMemory, shape_from_config
from alpaca_rlhf.settings.policies import REWARDED_STAGES
from alpaca_rlhf.settings.steps import suffixed
from alpaca_rlhf.stages.context import Context

_SPLIT = {
    **dict.fromkeys(("sample", "reward", "dpo"), "rank"),
    **dict.fromkeys(REWARDED_STAGES, "ppo"),
    "evaluate": "eval",
}
"""Split that a stage's prompts come from."""


def planned_gib(ctx: Context, stage: str, round_: int) -> float:
    """Peak memory of a stage's tensors in GiB if every row had its maximum length.

    The stage's real prompts are measured; requests for new tasks have the length in `Lengths`.
    0 for a stage without a model.
    """
    base = ctx.base
    device = Device(
        "cuda" if base.device.type == "cuda" else "cpu",
        base.dtype.itemsize,
        compute_capability(base.device),
    )
    plan = PeakMemory(
        shape_from_config(base.name, base.model.config.to_dict()),
        device,
        ctx.settings,
        Lengths(prompt=_longest_prompt(ctx, stage, round_)),
        checkpointing=ctx.settings.checkpoints_on(device.kind),
    )
    return plan.peak(stage) / 2**30 if stage in plan.all() else 0.0


def _longest_prompt(ctx: Context, stage: str, round_: int) -> int:
    split = _SPLIT.get(stage)
    if split is None:
        return Lengths.prompt
    name = ctx.settings.evaluate.split if split == "eval" else suffixed(split, round_)
    if name not in ctx.source.names():
        return Lengths.prompt
    rows = ctx.source.prompts(name)
    template = ctx.settings.template
    return max((len(prompt_ids(ctx.base, template, row)) for row in rows), default=1)


def begin_measuring() -> None:
    """Reset the peak memory of the GPU that a base is loaded on."""
    device = default_device()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def measured_gib(device: torch.device) -> float | None:
    """Peak memory of a GPU's tensors since the reset, in GiB; None of another device."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    return torch.cuda.max_memory_allocated(device) / 2**30


def in_words(row: Mapping[str, Any]) -> str:
    """Describe the memory of a stage, e.g. `; 5.10 GiB of the card, planned 5.40`."""
    planned, measured = row.get("planned_memory_gib"), row.get("gpu_memory_gib")
    if not planned or not processes.main():
        return ""
    if measured is not None:
        return f"; {measured:.2f} GiB of the card, planned {planned:.2f}"
    process_gib = row["peak_memory_gib"]
    return (
        f"; planned {planned:.2f} GiB of tensors and {LIBRARIES_GIB:g} of libraries, the process "
        f"took {process_gib:.2f}"
    )
