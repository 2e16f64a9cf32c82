"""The loop that all stages share: the order of the data, and steps that can be interrupted.

A stage's data order and noise are functions of (seed, step), so a checkpoint is weights, optimiser
and step, and a killed run resumes exactly where it stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from alpaca_rlhf.core import allocator, processes
from alpaca_rlhf.core.randomness import derived_seed
from alpaca_rlhf.models.oom_retry import MicroBatch
from alpaca_rlhf.training.bad_batch import saving_bad_batch
from alpaca_rlhf.training.checkpoints import Checkpoints
from alpaca_rlhf.training.interrupt import finishing_the_step
from alpaca_rlhf.training.optimizer import Learner
from alpaca_rlhf.training.patience import Stopping

__all__ = [
    "Bookkeeping",
    "Checkpoints",
    "Learner",
    "Log",
    "batches",
    "fit",
    "restore_kept",
    "run_steps",
]

logger = logging.getLogger(__name__)

Log = Callable[[dict[str, Any]], None]
"""Receives one row of metrics."""


class Stateful(Protocol):
    """A part of a stage whose state belongs in its checkpoint: a learner, a KL coefficient ..."""

    def state(self) -> dict[str, Any]:
        """Return the state as tensors, numbers and text."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        ...


@dataclass(frozen=True)
class Bookkeeping:
    """Checkpoints and log of a stage."""

    checkpoints: Checkpoints
    """Checkpoints to resume from and to save to."""
    save_every: int
    """Steps between checkpoints."""
    log: Log
    """Receives one row of metrics per step."""
    patience: Stopping | None = None
    """Tracks the evaluations; the checkpoint of the best is kept where its weights are to stay, and
    the stage ends once it is exhausted."""
    save_last: bool = False
    """Save after the last step too, because the work that follows it may fail and be repeated."""


def batches(n: int, size: int, epochs: int, seed: int) -> list[list[int]]:
    """Example indices of every optimiser step; each epoch is a fresh permutation of range(n).

    The last batch of an epoch may be smaller.
    """
    plan: list[list[int]] = []
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(derived_seed(seed, "epoch", epoch))
        order = torch.randperm(n, generator=generator).tolist()
        plan += [order[start : start + size] for start in range(0, n, size)]
    return plan


def run_steps(
    stage: str,
    steps: int,
    take_step: Callable[[int], Mapping[str, Any]],
    components: Mapping[str, Stateful],
    books: Bookkeeping,
) -> int:
    """Take the remaining steps of a stage, saving checkpoints along the way.

    Ctrl-C finishes the current step and saves.

    Args:
        stage: Name of the stage in messages.
        steps: Total number of steps.
        take_step: Takes a step, counted from 0; returns its metrics, which `patience` observes.
        components: The parts that the steps change and a checkpoint must hold, by name.
        books: Checkpoints and log.

    Returns:
        Number of steps taken, including those before a resumption.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; all steps taken are saved.
    """
    patience = books.patience
    stateful = {**components, **({"patience": patience} if patience is not None else {})}
    # 1. Resume from the latest checkpoint.
    done = _restore(stateful, books.checkpoints)
    if done:
        logger.info("%s resumes at step %d of %d", stage, done, steps)
    growth = allocator.Growth()
    with finishing_the_step() as interrupted:
        while done < steps and not (patience is not None and patience.exhausted):
            # 2. One step and its metrics.
            metrics = take_step(done)
            done += 1
            books.log({"step": done, "steps": steps, **metrics})
            # 3. The step whose weights stay, if it is not the last; its checkpoint is kept.
            if patience is not None:
                patience.observe(done, metrics)
            best_step = None if patience is None else patience.kept_step
            # 4. A checkpoint: when due, after a new best, and before giving in to Ctrl-C.
            stop_requested = processes.any_of(interrupted())
            save_due = books.save_last if done == steps else done % books.save_every == 0
            if stop_requested or done == best_step or save_due:
                state = {name: component.state() for name, component in stateful.items()}
                books.checkpoints.save(done, state, best=best_step)
            if stop_requested:
                raise KeyboardInterrupt
            # 5. What the step has freed goes back to the system, if it is much.
            growth.trim()
    return done


def _restore(stateful: Mapping[str, Stateful], checkpoints: Checkpoints) -> int:
    """Restore the latest checkpoint, if any, and return the number of steps done.

    The loaded state is local to this call, so its memory is freed on return.
    """
    checkpoint = checkpoints.latest()
    if checkpoint is None:
        return 0
    done, state = checkpoint
    for name, component in stateful.items():
        component.load_state(state[name])
    return done


def fit(
    learner: Learner,
    plan: Sequence[list[int]],
    backward: Callable[[list[int]], dict[str, float]],
    books: Bookkeeping,
    *,
    micro: MicroBatch,
    describe: Callable[[list[int]], Sequence[dict[str, Any]]],
    evaluate: Callable[[int], dict[str, float] | None] = lambda step: None,
) -> int:
    """Run (or resume) a stage that takes one optimiser step per batch.

    With early stopping it ends with the weights of the best evaluation.

    Args:
        learner: The trainable parameters and their optimiser.
        plan: Example indices of every step.
        backward: Accumulates the gradient of the batch's mean loss in the parameters and returns
            metrics of the whole batch. Among several processes, each adds the part of its own rows.
        books: Checkpoints and log.
        micro: Number of rows in memory at once, as `backward` uses it.
        describe: Returns a batch in readable form, saved if its loss or gradient is not finite.
        evaluate: Called with the number of steps done; may return metrics.

    Returns:
        Number of steps taken, including those before a resumption.

    Raises:
        UserError: A loss or gradient is not finite; the weights are those from before that step,
            and the batch is saved.
        KeyboardInterrupt: As in `run_steps`.
    """

    def take_step(step: int) -> dict[str, float]:
        indices = plan[step]
        with saving_bad_batch(books.checkpoints, step + 1, lambda: describe(indices)):
            # 1. Gradients of the batch, recomputed at half the loss scale if one overflows.
            metrics = learner.scale.run(
                lambda: backward(indices),
                parameters=learner.parameters.values(),
                discard=learner.clear_gradients,
            )
            # 2. Optimiser step, unless loss or gradient is not finite.
            learner.check_loss(metrics.get("loss", 0.0), name=f"the loss of step {step + 1}")
            metrics |= learner.step()
        # 3. Evaluation, if it is due.
        return metrics | (evaluate(step + 1) or {})

    steps = run_steps(
        learner.stage,
        len(plan),
        take_step,
        {"learner": learner, "micro": micro, "scale": learner.scale},
        books,
    )
    restore_kept(learner, "learner", books, steps)
    return steps


def restore_kept(learner: Learner, name: str, books: Bookkeeping, steps: int) -> None:
    """Load the weights that stay, where they are not those of the last step.

    Args:
        learner: The trained parameters.
        name: Its name among the components of `run_steps`.
        books: Checkpoints, and the step whose weights stay.
        steps: Steps taken.
    """
    kept_step = None if books.patience is None else books.patience.kept_step
    if kept_step is not None and kept_step != steps:
        learner.load_state(books.checkpoints.load(kept_step)[name])
