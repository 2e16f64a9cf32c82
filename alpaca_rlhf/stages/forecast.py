"""Planned against measured memory of a stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from alpaca_rlhf.core import processes
from alpaca_rlhf.models.batches import prompt_ids
from alpaca_rlhf.planner import Device, Lengths, PeakMemory, shape_from_config
from alpaca_rlhf.stages.context import Context, suffixed

_SPLIT = {"sample": "rank", "reward": "rank", "ppo": "ppo", "best_of_k": "ppo", "evaluate": "eval"}
"""Where the prompts of a stage come from."""


def planned_gib(ctx: Context, stage: str, round_: int) -> float:
    """What the tensors of a stage take, in GiB, were every row as long as it may be.

    Its prompts are counted; requests for new tasks are taken to be as long as `Lengths` says. 0
    for a stage without a model.
    """
    base = ctx.base
    device = Device("cuda" if base.device.type == "cuda" else "cpu", base.dtype.itemsize)
    memory = PeakMemory(
        shape_from_config(base.name, base.model.config.to_dict()),
        device,
        ctx.settings,
        Lengths(prompt=_longest_prompt(ctx, stage, round_)),
        checkpointing=device.kind == "cuda",
    )
    return memory.peak(stage) / 2**30 if stage in memory.all() else 0.0


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
    """Let the card's peak start anew."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def measured_gib() -> float | None:
    """Peak of the card's tensors since then, in GiB; None without a card."""
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None


def in_words(row: Mapping[str, Any]) -> str:
    """`; 5.1 GiB of the card, planned 5.4`, empty where nothing was planned."""
    planned, measured = row.get("planned_memory_gib"), row.get("gpu_memory_gib")
    if not planned or not processes.main():
        return ""
    if measured is not None:
        return f"; {measured:.2f} GiB of the card, planned {planned:.2f}"
    whole = row["peak_memory_gib"]
    return f"; planned {planned:.2f} GiB of tensors, the process took {whole:.2f} in all"
