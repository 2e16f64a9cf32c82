"""What every stage's loop shares: optimiser and schedule, the order of the data, checkpoints.

A stage's data order and noise are functions of (seed, step), so a checkpoint is weights, optimiser
and step, and a killed run goes on exactly where it stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from alpaca_rlhf.training.checkpoints import Checkpoints
from alpaca_rlhf.training.optimizer import Learner

__all__ = ["Checkpoints", "Learner", "Log", "batches", "fit", "mean", "parts"]

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
        learner.check_loss(metrics.get("loss", 0.0), of=f"the loss of step {step + 1}")
        metrics |= learner.step()
        log({"step": step + 1, "steps": len(plan), **metrics, **(each_step(step + 1) or {})})
        if (step + 1) % save_every == 0 and step + 1 < len(plan):
            checkpoints.save(step + 1, learner.state())


def parts(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """A sequence in parts of at most `size`."""
    return [items[i : i + size] for i in range(0, len(items), size)]


def mean(values: Sequence[float] | Tensor) -> float:
    """Arithmetic mean as a float."""
    return float(torch.as_tensor(values, dtype=torch.float64).mean())
