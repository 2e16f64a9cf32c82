"""The one thread that owns the model: chat, compare and background sampling queue for it.

The base is loaded when it is first needed, and given back when a training run asks for the GPU
(`alpaca_rlhf/core/gpu_lock.py`); the running job stops there, and background work goes on
afterwards.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from alpaca_rlhf.app.current_prompts import CurrentPrompts
from alpaca_rlhf.app.jobs import Job, Problem, Work, without_folders
from alpaca_rlhf.app.language import translations
from alpaca_rlhf.core import gpu_lock, quiet
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.serving import run_contents
from alpaca_rlhf.sources.run_prompts import RunPrompts

if TYPE_CHECKING:
    from alpaca_rlhf.serving.policy_server import PolicyServer

logger = logging.getLogger(__name__)

T = TypeVar("T")
ModelPhase = Literal["empty", "loading", "ready", "busy", "released", "error"]
"""Not loaded, being loaded, idle, at work, given to a training run, or failed to load."""

BACKGROUND_EVERY_S = 10.0
"""Seconds between two looks for background work."""
CLOSE_TIMEOUT_S = 10.0
"""Seconds that the end of the app waits for the running job."""
MAX_JOBS_OF_OWNER = 2
"""Unfinished jobs of one account, on all of its pages: one to watch and one to try beside it."""


@dataclass(frozen=True)
class ModelState:
    """State of the model."""

    phase: ModelPhase
    """Its phase."""
    detail: str = ""
    """The purpose of the running job, the run that has the GPU, or the error."""
    waiting: int = 0
    """Jobs that wait, background work excluded."""


class Worker:
    """Owns the base and the adapters of a run.

    Args:
        run: The run folder.
        load: Loads them; by default from the run.
        gpu_folder: The folder in which apps and training runs find each other.
        has_gpu: True if this machine has a GPU that a training run could want; by default torch
            is asked, once a training run is there.
    """

    def __init__(
        self,
        run: Path,
        *,
        load: Callable[[], Any] | None = None,
        gpu_folder: Path | None = None,
        has_gpu: Callable[[], bool] | None = None,
    ) -> None:
        self.run = run
        self.settings = run_contents.settings_of(run)
        self._prompts = CurrentPrompts(run, self.settings)
        self._load = load or self._load_run
        self._gpu_folder = gpu_folder or gpu_lock.folder()
        self._has_gpu = has_gpu or self._machine_has_gpu
        self._changed = threading.Condition()
        # Shared between threads: the list is always replaced, never changed.
        self._jobs: list[Job[Any]] = []
        self._running: Job[Any] | None = None
        self._served: dict[int | None, int] = {}  # owner to the number of its last turn
        self._owned: dict[int, list[Job[Any]]] = {}  # owner to its jobs under way
        self._thread: threading.Thread | None = None
        self._closed = False
        self._state: tuple[ModelPhase, str] = ("empty", "")
        # Of the model's thread alone.
        self._policy_server: PolicyServer | None = None
        self._notice: gpu_lock.Notice | None = None
        self._training_runs: list[gpu_lock.ProcessNote] = []
        self._polled_s = 0.0
        self._find_background_work: Callable[[], Work[Any] | None] = lambda: None
        self._background_checked_s = 0.0

    def policies(self) -> list[str]:
        """Names of the policies that exist now, in the order of training."""
        return list(run_contents.policies(self.run))

    @property
    def prompts(self) -> RunPrompts:
        """The prompts of the run as they are now.

        Raises:
            UserError: The settings of the run cannot be read any more.
        """
        return self._prompts.newest()

    def start(
        self, work: Work[T], purpose: str, *, urgent: bool = True, owner: int | None = None
    ) -> Job[T]:
        """Queue a job; it runs when it is its owner's turn.

        Args:
            work: Given the policy server, yields its result so far. Background work may be begun
                again in the middle, and must then come to the same result.
            purpose: `chat`, `compare`, `make` or `sample`, for the status line.
            urgent: True if somebody waits for it. Other jobs give way between two of their steps.
            owner: The account that waits for it. Its third unfinished job fails at once.
        """
        job: Job[T] = Job(work, purpose, urgent=urgent, count_ahead=self._count_ahead, owner=owner)
        with self._changed:
            if self._closed:
                job.fail("closed")
                return job
            if owner is not None and not self._takes(job, owner):
                job.fail("busy")
                return job
            self._jobs = [*self._jobs, job]
            if self._thread is None:
                self._thread = threading.Thread(target=self._main, name="model", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return job

    def when_idle(self, find_work: Callable[[], Work[Any] | None]) -> None:
        """Ask now and then for background work while the model is loaded and nobody needs it."""
        self._find_background_work = find_work

    @property
    def state(self) -> ModelState:
        """State of the model."""
        with self._changed:
            waiting = sum(job.urgent and not job.finished for job in self._jobs)
            if self._running is not None and self._state[0] == "ready":
                return ModelState("busy", self._running.purpose, waiting)
            return ModelState(*self._state, waiting)

    def status(self, language: str) -> str:
        """The state of the model in one line, for people."""
        text, state = translations("chat", language), self.state
        detail = text.get(f"purpose.{state.detail}", state.detail)
        line = text[f"model.{state.phase}"].format(detail=detail)
        return line + (text["model.waiting"].format(n=state.waiting) if state.waiting else "")

    def close(self) -> None:
        """Stop the running job and unload the model."""
        with self._changed:
            self._closed = True
            for job in [*self._jobs, *([self._running] if self._running else [])]:
                job.stop()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(CLOSE_TIMEOUT_S)

    # --- the model's thread -----------------------------------------------------------------------

    def _main(self) -> None:
        try:
            while not self._closed:
                # 1. A training run that asks for the GPU gets it.
                if self._training_wants_gpu():
                    self._release_gpu()
                # 2. The next job, with the model loaded; or else background work, or rest.
                job = self._next_job()
                if job is None:
                    self._start_background_work()
                    with self._changed:
                        self._changed.wait(gpu_lock.POLL_S)
                elif self._ensure_loaded(job):
                    self._run_job(job)
        finally:
            self._unload()
            if self._notice is not None:
                self._notice.withdraw()

    def _start_background_work(self) -> None:
        now_s = time.monotonic()
        if self._policy_server is None or now_s - self._background_checked_s < BACKGROUND_EVERY_S:
            return
        self._background_checked_s = now_s
        try:
            work = self._find_background_work()
        except Exception as error:
            _problem_of(error)
            return
        if work is not None:
            self.start(work, "sample", urgent=False)

    def _next_job(self) -> Job[Any] | None:
        """Take a job from the queue: the next urgent one by turns, or else the first."""
        with self._changed:
            self._jobs = [job for job in self._jobs if not job.finished]
            # Background work waits until training has ended; people are told at once.
            eligible = [job for job in self._jobs if job.urgent or not self._training_runs]
            if not eligible or self._closed:
                return None
            next_job = _by_turns(eligible, self._served)[0]
            if next_job.urgent:
                self._served[next_job.owner] = max(self._served.values(), default=0) + 1
            self._jobs = [job for job in self._jobs if job is not next_job]
            return next_job

    def _count_ahead(self, job: Job[Any]) -> int:
        # Both are replaced or copied whole, so that reading needs no lock.
        queue, served = self._jobs, dict(self._served)
        turns = _by_turns([queued for queued in queue if not queued.finished], served)
        ahead = turns.index(job) if job in turns else 0
        running = self._running
        return ahead + (running is not None and running.urgent)

    def _takes(self, job: Job[Any], owner: int) -> bool:
        """True, and the job is counted, if its owner has fewer under way than one may have."""
        earlier = self._owned.get(owner, [])
        under_way = [other for other in earlier if not (other.finished or other.stopping.is_set())]
        is_taken = len(under_way) < MAX_JOBS_OF_OWNER
        self._owned[owner] = [*under_way, *([job] if is_taken else [])]
        return is_taken

    def _ensure_loaded(self, job: Job[Any]) -> bool:
        """Load the model for a job; returns False, with the job failed, if it cannot be used."""
        # The training run may have ended since the last poll.
        if self._training_runs and self._training_wants_gpu(poll_now=True):
            job.fail("training", Path(self._training_runs[0].run).name)
            return False
        if self._policy_server is not None:
            return True
        if not job.enter("loading"):
            return False
        self._set("loading")
        # Announce first, then look again: a run that asked before it could see the announcement
        # would not wait for us.
        self._announce_model()
        if self._training_wants_gpu(poll_now=True):
            self._release_gpu()
            job.fail("training", Path(self._training_runs[0].run).name)
            return False
        try:
            self._policy_server = self._load()
        except Exception as error:
            problem, message = _problem_of(error), without_folders(str(error))
            if problem == "user":
                logger.warning("the model could not be loaded: %s", error)
        else:
            self._set("ready")
            return True
        self._unload("error", message)  # here no traceback holds what was loaded so far
        job.fail(problem, message)
        return False

    def _run_job(self, job: Job[Any]) -> None:
        if not job.enter("running"):
            return
        with self._changed:
            self._running = job
        problem: Problem = ""
        try:
            # A job that gave way goes on with the steps it has begun.
            if job.steps is None:
                assert self._policy_server is not None
                job.steps = job.work(self._policy_server, job.stopping)
            for value in job.steps:
                job.publish(value)
                if self._training_wants_gpu():
                    if job.urgent:
                        job.stopping.set()
                    else:
                        self._requeue(job)
                        return
                elif not job.urgent and not job.stopping.is_set() and self._urgent_job_waits():
                    self._requeue(job)
                    return
                if job.stopping.is_set() and not job.urgent:
                    break
            job.enter("stopped" if job.stopping.is_set() else "done")
        except Exception as error:
            problem = _problem_of(error)
            job.fail(problem, str(error))
        finally:
            with self._changed:
                self._running = None
            if job.finished:
                job.steps = None
        if problem == "memory":
            self._unload()

    def _requeue(self, job: Job[Any]) -> None:
        job.enter("waiting")
        with self._changed:
            self._jobs = [job, *self._jobs]

    def _urgent_job_waits(self) -> bool:
        with self._changed:
            return any(job.urgent and not job.finished for job in self._jobs)

    # --- the GPU ----------------------------------------------------------------------------------

    def _training_wants_gpu(self, *, poll_now: bool = False) -> bool:
        """True while a training run asks for the GPU; polled at intervals, not at every token."""
        if poll_now or time.monotonic() - self._polled_s >= gpu_lock.POLL_S:
            self._polled_s = time.monotonic()
            training_runs = gpu_lock.live_notes("ask", self._gpu_folder)
            if training_runs and not self._has_gpu():
                training_runs = []  # they train on the CPU, and there is nothing to give back
            with self._changed:
                self._training_runs = training_runs
                if not training_runs and self._state[0] == "released":
                    self._state = ("empty", "")
        return bool(self._training_runs)

    def _announce_model(self) -> None:
        """Tell training runs that a model is about to be on the GPU, if there is one."""
        if not self._has_gpu():
            return
        with contextlib.suppress(UserError):  # then they cannot ask; nothing else is lost
            if self._notice is None:
                self._notice = gpu_lock.Notice("app", self.run, self._gpu_folder)
            self._notice.publish(holds=True)

    def _release_gpu(self) -> None:
        run = Path(self._training_runs[0].run).name  # people need no path of the server
        if self._policy_server is not None or self._state[0] != "released":
            self._unload("released", run)
        else:
            self._set("released", run)

    def _unload(self, phase: ModelPhase = "empty", detail: str = "") -> None:
        for job in self._jobs:
            job.steps = None  # its steps hold the model; the job begins again
        self._policy_server = None
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._set(phase, detail)  # before a run that waits for the GPU can see that it is free
        if self._notice is not None:
            try:
                self._notice.publish(holds=False)
            except UserError:  # a full disk: no run shall wait for a model that is gone
                self._notice.withdraw()
                self._notice = None

    def _set(self, phase: ModelPhase, detail: str = "") -> None:
        with self._changed:
            self._state = (phase, detail)

    def _load_run(self) -> PolicyServer:
        with quiet.loading(self.settings.base):
            from alpaca_rlhf.serving.policy_server import PolicyServer
        return PolicyServer(self.settings, run_contents.RunPolicies(self.run))

    def _machine_has_gpu(self) -> bool:
        """True if torch can use a GPU. Only the model's thread asks, which needs torch anyway."""
        quiet.before_torch(self.settings.base)
        import torch

        return torch.cuda.is_available()


def _by_turns(jobs: Sequence[Job[Any]], served: Mapping[int | None, int]) -> list[Job[Any]]:
    """Jobs in the order in which they run: urgent ones by the turns of their owners, then others.

    The owner whose last turn is longest ago comes first, so that nobody's many jobs keep the others
    waiting; the jobs of one owner run in the order in which they came.

    Args:
        jobs: Jobs as they came.
        served: Number of the last turn of each owner that had one.
    """
    turns, waiting = dict(served), [job for job in jobs if job.urgent]
    last, order = max(turns.values(), default=0), []
    while waiting:
        job = min(waiting, key=lambda waiting_job: turns.get(waiting_job.owner, 0))
        last += 1
        turns[job.owner] = last
        waiting.remove(job)
        order.append(job)
    return [*order, *(job for job in jobs if not job.urgent)]


def _problem_of(error: Exception) -> Problem:
    if isinstance(error, UserError):
        return "user"
    if type(error).__name__ == "OutOfMemoryError":  # torch's, while torch may not be loaded
        return "memory"
    logger.error("the model's thread: %s", error, exc_info=error)
    return "bug"
