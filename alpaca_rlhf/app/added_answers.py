"""Answers to the prompts that admins have added, made by the last policy of the run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from threading import Event
from typing import TYPE_CHECKING

from alpaca_rlhf.app.job_status import job_status
from alpaca_rlhf.app.jobs import Job
from alpaca_rlhf.app.prefetch import fill_by_last_policy
from alpaca_rlhf.app.worker import Worker
from alpaca_rlhf.preferences.store import Store
from alpaca_rlhf.serving.filling import Filled

if TYPE_CHECKING:
    from alpaca_rlhf.serving.policy_server import PolicyServer


class AddedAnswers:
    """Fills the queue with answers to added prompts, unlike the topping up at once and with all.

    People who wait for the model go first, and a training run that asks for the GPU gets it.

    Args:
        store: The added prompts and the queue.
        worker: Owns the model.
    """

    def __init__(self, store: Store, worker: Worker) -> None:
        self._store = store
        self._worker = worker
        self._lock = threading.Lock()
        self._job: Job[Filled] | None = None

    def start(self) -> None:
        """Begin if prompts wait for answers, and a policy is there that was trained."""
        with self._lock:
            if self.running or not self.ready or not self._store.added_prompts(unanswered=True):
                return
            self._job = self._worker.start(self._work, "sample", urgent=False)

    @property
    def ready(self) -> bool:
        """True once the run has a policy; the base alone gives no answers worth ranking."""
        return len(self._worker.policies()) > 1

    @property
    def running(self) -> bool:
        """True while answers are being made."""
        return self._job is not None and not self._job.finished

    def status(self, language: str) -> str:
        """The problem of the last attempt, or what it waits for, in one line; else empty."""
        return "" if self._job is None else job_status(self._job.latest, language) or ""

    def _work(self, policy_server: PolicyServer, stop: Event) -> Iterator[Filled]:
        tried: set[str] = set()
        while True:
            # Prompts may be added or taken back meanwhile, so they are read anew for each of them;
            # answers that are all alike leave one without a set.
            rows = self._store.added_prompts(unanswered=True)
            row = next((row for row in rows if row.id not in tried), None)
            if row is None:
                return
            tried.add(row.id)
            filling = fill_by_last_policy(self._store, self._worker, policy_server, [row])
            for progress in filling:
                yield progress
                if stop.is_set():
                    return
