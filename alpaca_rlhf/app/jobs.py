"""What the model's one thread is asked to do, and how whoever asked learns what becomes of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

if TYPE_CHECKING:
    from alpaca_rlhf.serving.speaker import Speaker

T = TypeVar("T")

Phase = Literal["waiting", "loading", "running", "done", "stopped", "failed"]
Problem = Literal["", "user", "training", "memory", "bug", "closed"]
"""Why a job failed; `user`: what was asked cannot be, as the words say."""

OVER: tuple[Phase, ...] = ("done", "stopped", "failed")

Work = Callable[["Speaker", threading.Event], Iterator[T]]
"""Yields what has been made so far; ends soon after the event is set."""


@dataclass(frozen=True)
class Update(Generic[T]):
    """Where a job stands."""

    phase: Phase
    """How far it is."""
    value: T | None
    """The newest thing it has made."""
    ahead: int = 0
    """Jobs before it, while it waits."""
    problem: Problem = ""
    """Why it failed."""
    words: str = ""
    """What there is to say of that."""


class Job(Generic[T]):
    """One thing to do. Only the newest of what it makes is kept: a slow reader misses steps.

    Args:
        work: What to do.
        what: Who asks: `chat`, `compare` or `sample`.
        urgent: Whether somebody waits for it; others give way to it.
        place: How many jobs are before this one.
    """

    def __init__(
        self, work: Work[T], what: str, *, urgent: bool, place: Callable[[Job[T]], int]
    ) -> None:
        self.work = work
        self.what = what
        self.urgent = urgent
        self.stopping = threading.Event()
        self.steps: Iterator[T] | None = None
        self._place = place
        self._changed = threading.Condition()
        self._number = 0
        self._phase: Phase = "waiting"
        self._value: T | None = None
        self._problem: Problem = ""
        self._words = ""

    def stop(self) -> None:
        """Stop it between two tokens, or before it begins."""
        with self._changed:
            self.stopping.set()
            if self._phase == "waiting":
                self._set("stopped")

    @property
    def now(self) -> Update[T]:
        """Where it stands."""
        with self._changed:
            ahead = self._place(self) if self._phase == "waiting" else 0
            return Update(self._phase, self._value, ahead, self._problem, self._words)

    @property
    def over(self) -> bool:
        """Whether nothing more comes."""
        return self._phase in OVER

    def updates(self, every_s: float = 0.25) -> Iterator[Update[T]]:
        """Where it stands, at every change and every so many seconds, till it is over.

        Whoever leaves the loop before that stops the job.
        """
        seen = -1
        try:
            while True:
                with self._changed:
                    if self._number == seen:
                        self._changed.wait(every_s)
                    seen = self._number
                now = self.now
                yield now
                if now.phase in OVER:
                    return
        finally:
            if not self.over:
                self.stop()

    # --- for the thread that does it --------------------------------------------------------------

    def enter(self, phase: Phase) -> bool:
        """It is in this phase now; False if it is over already."""
        with self._changed:
            if self._phase in OVER:
                return False
            self._set(phase)
            return True

    def publish(self, value: T) -> None:
        """It has made something new."""
        with self._changed:
            self._value = value
            self._set(self._phase)

    def fail(self, problem: Problem, words: str = "") -> None:
        """It cannot be done."""
        with self._changed:
            if self._phase not in OVER:
                self._problem, self._words = problem, words
                self._set("failed")

    def _set(self, phase: Phase) -> None:
        self._phase = phase
        self._number += 1
        self._changed.notify_all()
