"""What every stage's loop shares: the order of the data, and steps that can be interrupted.

A stage's data order and noise are functions of (seed, step), so a checkpoint is weights, optimiser
and step, and a killed run goes on exactly where it stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from alpaca_rlhf.core import processes
from alpaca_rlhf.core.randomness import derived_seed
from alpaca_rlhf.training.bad_batch import keeping_the_batch
from alpaca_rlhf.training.checkpoints import Checkpoints
from alpaca_rlhf.training.interrupt import finishing_the_step
from alpaca_rlhf.training.memory import MicroBatch
from alpaca_rlhf.training.optimizer import Learner
from alpaca_rlhf.training.patience import Patience

__all__ = ["Checkpoints", "Learner", "Log", "batches", "fit", "parts", "run_steps"]

logger = logging.getLogger(__name__)

Log = Callable[[dict[str, Any]], None]
"""Receives one row of metrics."""


class Stateful(Protocol):
    """What a checkpoint holds the state of: learners, a KL coefficient ..."""

    def state(self) -> dict[str, Any]:
        """Tensors, numbers and text."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` gave."""
        ...


def batches(n: int, size: int, epochs: int, seed: int) -> list[list[int]]:
    """Indices of every optimiser step: each epoch a fresh permutation.

    The last batch of an epoch may be smaller.
    """
    plan: list[list[int]] = []
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(derived_seed(seed, "epoch", epoch))
        order = torch.randperm(n, generator=generator).tolist()
        plan += [order[i : i + size] for i in range(0, n, size)]
    return plan


def run_steps(
    stage: str,
    steps: int,
    take: Callable[[int], Mapping[str, Any]],
    learning: Mapping[str, Stateful],
    *,
    checkpoints: Checkpoints,
    save_every: int,
    log: Log,
    patience: Patience | None = None,
    save_last: bool = False,
) -> int:
    """Take the steps of a stage, or those that are left, with checkpoints between them.

    Ctrl-C finishes the step under way and saves.

    Args:
        stage: For messages.
        steps: Steps in all.
        take: Takes a step, counted from 0; returns its metrics. Where they hold `eval_loss`,
            `patience` sees it.
        learning: By name, what the steps change and a checkpoint must hold.
        checkpoints: Where to go on from, and to save to.
        save_every: Steps between checkpoints.
        log: Receives a row a step.
        patience: Keeps the checkpoint of its best evaluation, and ends the stage when exhausted.
        save_last: Save after the last step too: what comes after it may fail and be done again.

    Returns:
        Steps taken, earlier sittings included.

    Raises:
        KeyboardInterrupt: It was interrupted; all steps taken are saved.
    """
    held = {**learning, **({"patience": patience} if patience is not None else {})}
    done = _restore(held, checkpoints)
    if done:
        logger.info("%s goes on at step %d of %d", stage, done, steps)
    with finishing_the_step() as asked_to_stop:
        while done < steps and not (patience is not None and patience.exhausted):
            row = take(done)
            done += 1
            log({"step": done, "steps": steps, **row})
            if patience is not None and "eval_loss" in row:
                patience.see(done, row["eval_loss"])
            best = None if patience is None else patience.best_step
            stop = processes.any_of(asked_to_stop())
            due = save_last if done == steps else done % save_every == 0
            if stop or done == best or due:
                state = {name: one.state() for name, one in held.items()}
                checkpoints.save(done, state, best=best)
            if stop:
                raise KeyboardInterrupt
    return done


def _restore(held: Mapping[str, Stateful], checkpoints: Checkpoints) -> int:
    """Restore the latest checkpoint, which does not outlive this call; returns the steps done."""
    saved = checkpoints.latest()
    if saved is None:
        return 0
    done, state = saved
    for name, one in held.items():
        one.load_state(state[name])
    return done


def fit(
    learner: Learner,
    plan: Sequence[list[int]],
    backward: Callable[[list[int]], dict[str, float]],
    *,
    checkpoints: Checkpoints,
    save_every: int,
    log: Log,
    each_step: Callable[[int], dict[str, float] | None] = lambda step: None,
    describe: Callable[[list[int]], Sequence[dict[str, Any]]],
    micro: MicroBatch,
    patience: Patience | None = None,
    save_last: bool = False,
) -> int:
    """Run (or go on with) a stage that takes one optimiser step a batch.

    Args:
        learner: What learns.
        plan: Indices of the examples of every step.
        backward: Leaves the gradient of the batch's mean loss in the parameters, of several
            processes each its share's part of the sum; returns metrics of the whole batch.
        checkpoints: Where to go on from, and to save to.
        save_every: Steps between checkpoints.
        log: Receives a row a step.
        each_step: Called with the number of steps done; may return metrics of an evaluation.
        describe: A batch for a person to read, should its loss or gradient not be finite.
        micro: Rows in memory at once, as `backward` uses it.
        patience: As in `run_steps`.
        save_last: As in `run_steps`.

    Returns:
        Steps taken, earlier sittings included.

    Raises:
        UserError: A loss or gradient is not finite; the weights are those before that step, and
            the batch is written.
        KeyboardInterrupt: As in `run_steps`.
    """

    def take(step: int) -> dict[str, float]:
        indices = plan[step]
        with keeping_the_batch(checkpoints, step + 1, lambda: describe(indices)):
            metrics = learner.scale.run(
                lambda: backward(indices),
                parameters=learner.parameters.values(),
                forget=learner.forget_gradients,
            )
            learner.check_loss(metrics.get("loss", 0.0), of=f"the loss of step {step + 1}")
            metrics |= learner.step()
        return metrics | (each_step(step + 1) or {})

    return run_steps(
        learner.stage,
        len(plan),
        take,
        {"learner": learner, "micro": micro, "scale": learner.scale},
        checkpoints=checkpoints,
        save_every=save_every,
        log=log,
        patience=patience,
        save_last=save_last,
    )


def parts(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """A sequence in parts of at most `size`."""
    return [items[i : i + size] for i in range(0, len(items), size)]
