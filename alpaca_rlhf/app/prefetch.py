"""Answers made ahead for the Rank tab, while the model is loaded and nobody needs it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from threading import Event
from typing import TYPE_CHECKING, Any, NamedTuple

from alpaca_rlhf.app.jobs import Work
from alpaca_rlhf.app.worker import Worker
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.preferences.store import Store
from alpaca_rlhf.serving.filling import Filled, fill, origin_of
from alpaca_rlhf.serving.sampling_settings import SamplingSettings

if TYPE_CHECKING:
    from alpaca_rlhf.serving.policy_server import PolicyServer

LOW_WATER_SETS = 10
"""Unranked candidate sets below which more are made."""
HIGH_WATER_SETS = 30
"""Unranked candidate sets at which filling pauses."""
ANSWERS_PER_SET = 4


class _QueueState(NamedTuple):
    """Whatever decides which prompts need answers: until it changes, those that have them do."""

    prompt_ids: frozenset[str]
    """Ids of the run's prompts to rank."""
    n_added: int
    """Prompts that admins have added."""
    policy: str
    """The policy that has answered."""


def keep_filled(store: Store, worker: Worker) -> None:
    """Let a worker top up the queue with answers of its last policy to the prompts to rank.

    These are those of the rank split and those that admins have added. It never loads the model by
    itself: somebody must have used it first.
    """
    exhausted_at: _QueueState | None = None

    def queue_state() -> _QueueState:
        ids = frozenset(row.id for row in worker.prompts.to_rank())
        return _QueueState(ids, len(store.added_prompts()), worker.policies()[-1])

    def unranked_sets() -> int:
        progress = store.progress(0)
        return progress.sets - progress.sets_ranked

    def work(policy_server: PolicyServer, stop: Event) -> Iterator[Filled]:
        nonlocal exhausted_at
        state, added = queue_state(), store.added_prompts()
        rows = [*worker.prompts.to_rank(), *added]
        for progress in fill_by_last_policy(store, worker, policy_server, rows):
            if progress.done == progress.total:
                exhausted_at = state
            yield progress
            if stop.is_set() or unranked_sets() >= HIGH_WATER_SETS:
                return

    def next_work() -> Work[Any] | None:
        if unranked_sets() >= LOW_WATER_SETS or exhausted_at == queue_state():
            return None
        return work

    worker.when_idle(next_work)


def fill_by_last_policy(
    store: Store, worker: Worker, policy_server: PolicyServer, rows: Sequence[Instruction]
) -> Iterator[Filled]:
    """Add sets of answers by a worker's last policy, sampled as in the run, a prompt at a time."""
    policy = worker.policies()[-1]
    return fill(
        store,
        policy_server,
        rows,
        policy,
        k=ANSWERS_PER_SET,
        sampling_settings=SamplingSettings.of_stage(worker.settings, "sample"),
        origin=origin_of(worker.run, policy),
        batch=1,
    )
