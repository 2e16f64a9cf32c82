"""The one thread that owns the model: chat, compare and background sampling queue for it.

The base is loaded when it is first asked for, and given back when a training run asks for the card
(`alpaca_rlhf/core/gpu_lock.py`); what is under way stops there, and background work goes on
afterwards.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from alpaca_rlhf.app.jobs import Job, Problem, Work
from alpaca_rlhf.app.language import words
from alpaca_rlhf.core import gpu_lock, quiet
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.serving import folders

if TYPE_CHECKING:
    from alpaca_rlhf.serving.speaker import Speaker

logger = logging.getLogger(__name__)

T = TypeVar("T")
Kind = Literal["empty", "loading", "ready", "busy", "released", "error"]

REST_S = 10.0
"""Seconds between two looks for background work."""
GOODBYE_S = 10.0
"""How long the end of the app waits for what is under way."""


@dataclass(frozen=True)
class State:
    """Where the model stands."""

    kind: Kind
    """Not loaded, being loaded, idle, at work, given to a training run, or failed to load."""
    what: str = ""
    """What it works for, who has the card, or what went wrong."""
    waiting: int = 0
    """Jobs that wait, those in the background left out."""


class Worker:
    """Owns the base and the adapters of a run.

    Args:
        run: The run folder.
        make: Loads them; by default the run's own.
        where: The folder in which apps and training runs find each other.
    """

    def __init__(
        self,
        run: Path,
        *,
        make: Callable[[], Any] | None = None,
        where: Path | None = None,
    ) -> None:
        self.run = run
        self.settings = folders.settings_of(run)
        self._make = make or self._load
        self._where = where or gpu_lock.folder()
        self._changed = threading.Condition()
        self._jobs: list[Job[Any]] = []
        self._running: Job[Any] | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._sign: gpu_lock.Sign | None = None
        self._speaker: Speaker | None = None
        self._looked = 0.0
        self._borrowers: list[gpu_lock.Note] = []
        self._state: tuple[Kind, str] = ("empty", "")
        self._idle: Callable[[], Work[Any] | None] = lambda: None
        self._rested = 0.0

    def policies(self) -> list[str]:
        """Names of the policies that there are now, in the order of training."""
        return list(folders.policies(self.run))

    def start(self, work: Work[T], what: str, *, urgent: bool = True) -> Job[T]:
        """Queue something; it is done when those before it are.

        Args:
            work: Given the speaker, yields what it has made so far. In the background it must
                come to the same when it is begun again in the middle.
            what: Who asks, a word of the status line.
            urgent: Whether somebody waits for it. Others give way between two of their steps.
        """
        job: Job[T] = Job(work, what, urgent=urgent, place=self._ahead)
        with self._changed:
            if self._closed:
                job.fail("closed")
                return job
            self._jobs = [*self._jobs, job]
            if self._thread is None:
                self._thread = threading.Thread(target=self._main, name="model", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return job

    def when_idle(self, find: Callable[[], Work[Any] | None]) -> None:
        """Ask now and then for background work while the model is loaded and nobody needs it."""
        self._idle = find

    @property
    def state(self) -> State:
        """Where the model stands."""
        with self._changed:
            waiting = sum(job.urgent and not job.over for job in self._jobs)
            if self._running is not None and self._state[0] == "ready":
                return State("busy", self._running.what, waiting)
            return State(*self._state, waiting)

    def status(self, language: str) -> str:
        """The same in a line for people."""
        says, now = words("chat", language), self.state
        what = says.get(f"what.{now.what}", now.what)
        line = says[f"model.{now.kind}"].format(what=what)
        return line + (says["model.waiting"].format(n=now.waiting) if now.waiting else "")

    def close(self) -> None:
        """Stop what is under way and let everything go."""
        with self._changed:
            self._closed = True
            for job in [*self._jobs, *([self._running] if self._running else [])]:
                job.stop()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(GOODBYE_S)

    # --- the thread -------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            while not self._closed:
                if self._asked_for():
                    self._release()
                job = self._next()
                if job is None:
                    self._rest()
                    with self._changed:
                        self._changed.wait(gpu_lock.LOOK_S)
                elif self._ready(job):
                    self._work(job)
        finally:
            self._drop()
            if self._sign is not None:
                self._sign.down()

    def _rest(self) -> None:
        now = time.monotonic()
        if self._speaker is None or now - self._rested < REST_S:
            return
        self._rested = now
        try:
            work = self._idle()
        except Exception as error:
            _kind_of(error)
            return
        if work is not None:
            self.start(work, "sample", urgent=False)

    def _next(self) -> Job[Any] | None:
        """Takes a job from the queue: the first urgent one, or else the first."""
        with self._changed:
            self._jobs = [job for job in self._jobs if not job.over]
            able = [job for job in self._jobs if job.urgent or not self._borrowers]
            if not able or self._closed:
                return None
            job = min(able, key=lambda one: not one.urgent)
            self._jobs = [one for one in self._jobs if one is not job]
            return job

    def _ahead(self, job: Job[Any]) -> int:
        jobs = self._jobs  # always replaced, never changed, so that reading needs no lock
        before = jobs[: jobs.index(job)] if job in jobs else []
        first = [one for one in before if (one.urgent or not job.urgent) and not one.over]
        return len(first) + (self._running is not None and self._running.urgent)

    def _ready(self, job: Job[Any]) -> bool:
        """Whether the model is loaded for a job, which is told if it is not."""
        if self._borrowers and self._asked_for(now=True):  # it may have ended since the last look
            job.fail("training", self._borrowers[0].run)
            return False
        if self._speaker is not None:
            return True
        if not job.enter("loading"):
            return False
        self._set("loading")
        self._hold()
        if self._asked_for(now=True):  # whoever asked before it could see that we hold the card
            self._release()
            job.fail("training", self._borrowers[0].run)
            return False
        try:
            self._speaker = self._make()
        except Exception as error:
            kind, why = _kind_of(error), str(error)
        else:
            self._set("ready")
            return True
        self._drop("error", why)  # now that no traceback holds on to what was loaded so far
        job.fail(kind, why)
        return False

    def _work(self, job: Job[Any]) -> None:
        if not job.enter("running"):
            return
        with self._changed:
            self._running = job
        problem: Problem = ""
        try:
            if job.steps is None:
                assert self._speaker is not None
                job.steps = job.work(self._speaker, job.stopping)
            for value in job.steps:
                job.publish(value)
                if self._asked_for():
                    if job.urgent:
                        job.stopping.set()
                    else:
                        self._requeue(job)
                        return
                elif not job.urgent and not job.stopping.is_set() and self._somebody_waits():
                    self._requeue(job)
                    return
                if job.stopping.is_set() and not job.urgent:
                    break
            job.enter("stopped" if job.stopping.is_set() else "done")
        except Exception as error:
            problem = _kind_of(error)
            job.fail(problem, str(error))
        finally:
            with self._changed:
                self._running = None
            if job.over:
                job.steps = None
        if problem == "memory":
            self._drop()

    def _requeue(self, job: Job[Any]) -> None:
        job.enter("waiting")
        with self._changed:
            self._jobs = [job, *self._jobs]

    def _somebody_waits(self) -> bool:
        with self._changed:
            return any(job.urgent and not job.over for job in self._jobs)

    # --- the card ---------------------------------------------------------------------------------

    def _asked_for(self, *, now: bool = False) -> bool:
        """Whether a training run wants the card; looks not at every token."""
        if now or time.monotonic() - self._looked >= gpu_lock.LOOK_S:
            self._looked = time.monotonic()
            found = gpu_lock.notes("ask", self._where)
            with self._changed:
                self._borrowers = found
                if not found and self._state[0] == "released":
                    self._state = ("empty", "")
        return bool(self._borrowers)

    def _hold(self) -> None:
        """Tell training runs that a model is about to be here."""
        with contextlib.suppress(UserError):  # then they cannot ask; nothing else is lost
            if self._sign is None:
                self._sign = gpu_lock.Sign("app", self.run, self._where)
            self._sign.put(holds=True)

    def _release(self) -> None:
        now: tuple[Kind, str] = ("released", self._borrowers[0].run)
        if self._speaker is not None or self._state[0] != "released":
            self._drop(*now)
        else:
            self._set(*now)

    def _drop(self, kind: Kind = "empty", what: str = "") -> None:
        for job in self._jobs:
            job.steps = None  # it would keep the model; it is begun again
        self._speaker = None
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._set(kind, what)  # before anybody who waits for the card can see that it is free
        if self._sign is not None:
            try:
                self._sign.put(holds=False)
            except UserError:  # a full disk: nobody shall wait for what is not held
                self._sign.down()
                self._sign = None

    def _set(self, kind: Kind, what: str = "") -> None:
        with self._changed:
            self._state = (kind, what)

    def _load(self) -> Speaker:
        quiet.quiet(self.settings.base)
        from alpaca_rlhf.serving.speaker import Speaker

        quiet.quiet_transformers(self.settings.base)
        return Speaker(self.settings, folders.policies(self.run))


def _kind_of(error: Exception) -> Problem:
    if isinstance(error, UserError):
        return "user"
    if type(error).__name__ == "OutOfMemoryError":  # torch's; torch may not be loaded
        return "memory"
    logger.error("the model's thread: %s", error, exc_info=error)
    return "bug"
