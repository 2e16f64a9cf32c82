"""TensorBoard or Weights & Biases beside `metrics.jsonl`, through accelerate; off by default.

A tracker keeps what a sitting told it: rows of steps that were lost when a run was killed stay
there and come again. `metrics.jsonl` holds each step once.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import content_hash
from alpaca_rlhf.settings import TrackerName

PROJECT = "alpaca-rlhf"
"""Project of a run at Weights & Biases; the run itself has its folder's name."""


def tracker(kind: TrackerName, out: Path) -> Callable[[Mapping[str, Any]], None]:
    """Where a run's rows of metrics go, `stage` and `step` among them.

    Each number is logged as `stage/name` at its step: TensorBoard reads them from
    `<out>/tensorboard`; Weights & Biases gets them over the network, unless WANDB_MODE=offline.

    Raises:
        UserError: The package is not installed.
    """
    if kind == "none":
        return lambda row: None
    if not any(importlib.util.find_spec(one) for one in _PACKAGES[kind]):
        raise UserError(f"--track {kind}: {kind} is not installed; pip install {kind}")
    from accelerate import tracking

    if kind == "tensorboard":
        board = tracking.TensorBoardTracker("tensorboard", logging_dir=out)
        board.start()
        return lambda row: board.log(_numbers(row), step=row["step"])
    runs = tracking.WandBTracker(
        PROJECT,
        name=out.name,
        id=content_hash("wandb", str(out.resolve()))[:16],
        resume="allow",
        dir=str(out),
    )
    runs.start()
    # every stage counts its steps from 1, and wandb's own step may never fall
    stages: set[str] = set()

    def log(row: Mapping[str, Any]) -> None:
        stage = row["stage"]
        if stage not in stages:
            runs.tracker.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            stages.add(stage)
        runs.log({**_numbers(row), f"{stage}/step": row["step"]})

    return log


_PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {
        f"{row['stage']}/{name}": value
        for name, value in row.items()
        if isinstance(value, int | float) and name not in ("step", "steps")
    }
