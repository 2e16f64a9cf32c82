"""TensorBoard or Weights & Biases beside `metrics.jsonl`, through accelerate; off by default.

A tracker keeps every row that it received: steps that were lost when a run was killed stay there
and are logged again. `metrics.jsonl` holds each step once.
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
"""Project at Weights & Biases; the run there is named after its folder."""


def tracker(kind: TrackerName, out: Path) -> Callable[[Mapping[str, Any]], None]:
    """Function that logs a row of metrics, which holds `stage` and `step`.

    Each number is logged as `stage/name` at its step: TensorBoard reads them from
    `<out>/tensorboard`; Weights & Biases gets them over the network, unless WANDB_MODE=offline.

    Raises:
        UserError: The package is not installed.
    """
    if kind == "none":
        return lambda row: None
    if not any(importlib.util.find_spec(package) for package in _PACKAGES[kind]):
        raise UserError(f"--track {kind}: {kind} is not installed; pip install {kind}")
    from accelerate import tracking

    if kind == "tensorboard":
        tensorboard = tracking.TensorBoardTracker("tensorboard", logging_dir=out)
        tensorboard.start()
        return lambda row: tensorboard.log(_numbers(row), step=row["step"])
    wandb = tracking.WandBTracker(
        PROJECT,
        name=out.name,
        id=content_hash("wandb", str(out.resolve()))[:16],
        resume="allow",
        dir=str(out),
    )
    wandb.start()
    # Every stage counts its steps from 1, and wandb's own step may never decrease.
    stages: set[str] = set()

    def log(row: Mapping[str, Any]) -> None:
        stage = row["stage"]
        if stage not in stages:
            wandb.tracker.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            stages.add(stage)
        wandb.log({**_numbers(row), f"{stage}/step": row["step"]})

    return log


_PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}
"""Packages of each tracker, any of which suffices."""


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {
        f"{row['stage']}/{name}": value
        for name, value in row.items()
        if isinstance(value, int | float) and name not in ("step", "steps")
    }
