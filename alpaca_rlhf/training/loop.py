"""What every stage's loop shares: optimiser and schedule, the order of the data, checkpoints.

A stage's data order and noise are functions of (seed, step), so a checkpoint is weights, optimiser
and step, and a killed run goes on exactly where it stopped.
"""

from __future__ import annotations

import io
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alpaca_rlhf.config import UserError
from alpaca_rlhf.runs import atomic_write

logger = logging.getLogger(__name__)

Log = Callable[[dict[str, Any]], None]
"""Receives one row of metrics."""


def batches(n: int, size: int, epochs: int, seed: int) -> list[list[int]]:
    """Indices of every optimiser step: each epoch a fresh permutation.

    The last batch of an epoch may be smaller.
    """
    plan: list[list[int]] = []
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(seed * 1000 + epoch)
        order = torch.randperm(n, generator=generator).tolist()
        plan += [order[i : i + size] for i in range(0, n, size)]
    return plan


class Learner:
    """AdamW over named parameters, with warm-up, linear decay to 0 and gradient clipping.

    Args:
        stage: For messages, e.g. `sft`.
        flag: Its learning rate's flag, likewise, e.g. `--sft.lr`.
        groups: Parameters by name, and their peak learning rate.
        steps: Optimiser steps in all.
        warmup: Share of the steps over which the learning rate rises.
        max_grad_norm: Norm that the gradient of all groups together is clipped to.
    """

    def __init__(
        self,
        stage: str,
        flag: str,
        groups: Sequence[tuple[Mapping[str, nn.Parameter], float]],
        *,
        steps: int,
        warmup: float,
        max_grad_norm: float,
    ) -> None:
        self.stage = stage
        self.flag = flag
        self.parameters = {name: p for group, _ in groups for name, p in group.items()}
        if len(self.parameters) != sum(len(group) for group, _ in groups):
            raise ValueError("a parameter's name stands in two groups")
        self.max_grad_norm = max_grad_norm
        self.optimizer = torch.optim.AdamW(
            [{"params": list(group.values()), "lr": lr} for group, lr in groups],
            betas=(0.9, 0.95),
            eps=1e-8,
            weight_decay=0.0,
        )
        rise = math.ceil(warmup * steps)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: (
                (step + 1) / (rise + 1)
                if step < rise
                else max(0.0, (steps - step) / max(1, steps - rise))
            ),
        )

    def step(self) -> dict[str, float]:
        """One clipped optimiser step on the gradients that lie there, then none lie there.

        Raises:
            UserError: The gradients are not finite.
        """
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.max_grad_norm)
        if not torch.isfinite(norm):
            raise UserError(
                f"{self.stage}: the gradient is not finite; lower {self.flag} and run it again"
            )
        lr = self.optimizer.param_groups[0]["lr"]
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"lr": lr, "grad_norm": float(norm)}

    def state(self) -> dict[str, Any]:
        """Weights, optimiser and schedule, for a checkpoint."""
        return {
            "weights": {name: p.detach().cpu() for name, p in self.parameters.items()},
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` gave."""
        for name, parameter in self.parameters.items():
            parameter.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])


class Checkpoints:
    """Checkpoints of one stage: each written whole or not at all, the last two kept."""

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the state after `step` steps."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        target = self.folder / f"step-{step:06d}"
        target.mkdir(parents=True, exist_ok=True)
        atomic_write(target / "state.pt", buffer.getvalue())
        for old in self._saved()[: -self.keep]:
            shutil.rmtree(old)

    def step(self) -> int:
        """Steps done by the newest whole checkpoint; 0 where there is none."""
        saved = self._saved()
        return _step_of(saved[-1]) if saved else 0

    def latest(self) -> tuple[int, dict[str, Any]] | None:
        """The newest whole checkpoint: steps done, and the state."""
        saved = self._saved()
        if not saved:
            return None
        state = torch.load(saved[-1] / "state.pt", weights_only=True, map_location="cpu")
        return _step_of(saved[-1]), state

    def clear(self) -> None:
        """Remove them: the stage is done and its result written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _saved(self) -> list[Path]:
        return sorted(f for f in self.folder.glob("step-*") if (f / "state.pt").is_file())


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def fit(
    learner: Learner,
    plan: Sequence[list[int]],
    backward: Callable[[list[int]], dict[str, float]],
    *,
    checkpoints: Checkpoints,
    save_every: int,
    log: Log,
    each_step: Callable[[int], dict[str, float] | None] = lambda step: None,
) -> None:
    """Run (or go on with) a stage that takes one optimiser step a batch.

    Args:
        learner: What learns.
        plan: Indices of the examples of every step.
        backward: Leaves the gradient of the batch's mean loss in the parameters; returns metrics.
        checkpoints: Where to go on from, and to save to.
        save_every: Steps between checkpoints.
        log: Receives a row a step.
        each_step: Called with the number of steps done; may return metrics of an evaluation.
    """
    done = 0
    saved = checkpoints.latest()
    if saved is not None:
        done, state = saved
        learner.load_state(state)
        logger.info("%s goes on at step %d of %d", learner.stage, done, len(plan))
    for step in range(done, len(plan)):
        metrics = backward(plan[step])
        metrics |= learner.step()
        if not math.isfinite(metrics.get("loss", 0.0)):
            raise UserError(
                f"{learner.stage}: the loss of step {step + 1} is {metrics['loss']}; "
                f"lower {learner.flag} and run it again"
            )
        log({"step": step + 1, "steps": len(plan), **metrics, **(each_step(step + 1) or {})})
        if (step + 1) % save_every == 0 and step + 1 < len(plan):
            checkpoints.save(step + 1, learner.state())


def parts(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """A sequence in parts of at most `size`."""
    return [items[i : i + size] for i in range(0, len(items), size)]


def mean(values: Sequence[float] | Tensor) -> float:
    """Arithmetic mean as a float."""
    return float(torch.as_tensor(values, dtype=torch.float64).mean())
