"""Answers made ahead for the Rank tab, while the model is loaded and nobody needs it."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event
from typing import TYPE_CHECKING, Any

from alpaca_rlhf.app.jobs import Work
from alpaca_rlhf.app.worker import Worker
from alpaca_rlhf.preferences.store import Store
from alpaca_rlhf.serving.filling import Filled, fill, origin_of
from alpaca_rlhf.serving.manner import Manner
from alpaca_rlhf.sources.run_prompts import RunPrompts

if TYPE_CHECKING:
    from alpaca_rlhf.serving.speaker import Speaker

FEW = 10
"""Sets that nobody has ranked; below that more are made."""
MANY = 30
"""Where it stops."""
K = 4
"""Answers of a set."""


def keep_filled(store: Store, worker: Worker) -> None:
    """Let a worker top the queue up with answers of its last policy, from the rank split.

    It never loads the model by itself: somebody must have talked to it.
    """
    prompts = RunPrompts(worker.run, worker.settings)
    through = False

    def left() -> int:
        now = store.progress(0)
        return now.sets - now.sets_ranked

    def work(speaker: Speaker, stop: Event) -> Iterator[Filled]:
        nonlocal through
        policy = worker.policies()[-1]
        for now in fill(
            store,
            speaker,
            prompts.to_rank(),
            policy,
            k=K,
            manner=Manner(temperature=1.0),
            origin=origin_of(worker.run, policy),
            batch=1,
        ):
            through = now.done == now.total
            yield now
            if stop.is_set() or left() >= MANY:
                return

    def find() -> Work[Any] | None:
        return None if through or left() >= FEW else work

    worker.when_idle(find)
