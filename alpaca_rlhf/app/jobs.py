"""Jobs for the one thread that owns the model, and how whoever asked follows their progress."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

if TYPE_CHECKING:
    from alpaca_rlhf.serving.policy_server import PolicyServer

T = TypeVar("T")

Phase = Literal["waiting", "loading", "running", "done", "stopped", "failed"]
Problem = Literal["", "user", "training", "memory", "bug", "closed", "busy"]
"""Why a job failed; `user`: the request cannot be met, as the message says; `busy`: its owner has
as many under way as one account may have."""

FINAL_PHASES: tuple[Phase, ...] = ("done", "stopped", "failed")

Work = Callable[["PolicyServer", threading.Event], Iterator[T]]
"""Yields the result so far; ends soon after the event is set."""


_FOLDERS = re.compile(r"(?<![\w/.:~-])~?/(?:[^\s/:;,'\"]+/)+(?=[^\s/:;,'\"])")


def without_folders(message: str) -> str:
    """A message with absolute paths of the server cut down to their last names."""
    return _FOLDERS.sub("", message)


@dataclass(frozen=True)
class JobUpdate(Generic[T]):
    """Progress of a job."""

    phase: Phase
    """Its phase."""
    value: T | None
    """Its newest result."""
    jobs_ahead: int = 0
    """Jobs before it, while it waits."""
    problem: Problem = ""
    """Why it failed."""
    message: str = ""
    """Details of the failure."""

    @property
    def finished(self) -> bool:
        """True once no further update comes."""
        return self.phase in FINAL_PHASES


class Job(Generic[T]):
    """One job. Only its newest result is kept: a slow reader misses steps.

    Args:
        work: The job itself.
        purpose: Its name in the status line: `chat`, `compare`, `make` or `sample`.
        urgent: True if somebody waits for it; other jobs give way to it.
        count_ahead: Returns the number of jobs before this one.
        owner: The account that waits for it; None for the app itself.
    """

    def __init__(
        self,
        work: Work[T],
        purpose: str,
        *,
        urgent: bool,
        count_ahead: Callable[[Job[T]], int],
        owner: int | None = None,
    ) -> None:
        self.work = work
        self.purpose = purpose
        self.urgent = urgent
        self.owner = owner
        self.stopping = threading.Event()
        self.steps: Iterator[T] | None = None
        self._count_ahead = count_ahead
        self._changed = threading.Condition()
        self._version = 0
        self._phase: Phase = "waiting"
        self._value: T | None = None
        self._problem: Problem = ""
        self._message = ""

    def stop(self) -> None:
        """Stop it between two tokens, or before it begins."""
        with self._changed:
            self.stopping.set()
            if self._phase == "waiting":
                self._set("stopped")

    @property
    def latest(self) -> JobUpdate[T]:
        """Its current state."""
        with self._changed:
            jobs_ahead = self._count_ahead(self) if self._phase == "waiting" else 0
            return JobUpdate(self._phase, self._value, jobs_ahead, self._problem, self._message)

    @property
    def finished(self) -> bool:
        """True once no further update comes."""
        return self._phase in FINAL_PHASES

    def updates(self, every_s: float = 0.25) -> Iterator[JobUpdate[T]]:
        """Yield its state at every change, and every `every_s` seconds, until it has finished.

        Leaving the loop earlier stops the job.
        """
        version_seen = -1
        try:
            while True:
                with self._changed:
                    if self._version == version_seen:
                        self._changed.wait(every_s)
                    version_seen = self._version
                update = self.latest
                yield update
                if update.finished:
                    return
        finally:
            # A closed page ends the generator here.
            if not self.finished:
                self.stop()

    # --- for the thread that runs it --------------------------------------------------------------

    def enter(self, phase: Phase) -> bool:
        """Set the phase; returns False if the job has finished already."""
        with self._changed:
            if self.finished:
                return False
            self._set(phase)
            return True

    def publish(self, value: T) -> None:
        """Replace the newest result."""
        with self._changed:
            self._value = value
            self._set(self._phase)

    def fail(self, problem: Problem, message: str = "") -> None:
        """End it as failed, unless it has finished already.

        People read the message: paths of the server are left out of it.
        """
        with self._changed:
            if not self.finished:
                self._problem, self._message = problem, without_folders(message)
                self._set("failed")

    def _set(self, phase: Phase) -> None:
        self._phase = phase
        self._version += 1
        self._changed.notify_all()
