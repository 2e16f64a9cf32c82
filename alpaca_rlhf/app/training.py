"""Training from the page: the command `loop` in a process of its own, which outlives the app.

    train.log    output of that process, in the run folder; locked for as long as the process lives

A restarted app finds the process by the locks of the log and of the run folder, as it finds a run
that was started in a terminal. Nothing that a browser sends becomes part of the command.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from alpaca_rlhf.core import gpu_lock, interrupts
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.locks import Lock, LockHeld, inheriting, is_locked
from alpaca_rlhf.core.runs import LEDGER, LOCK, TRAINING_LOG
from alpaca_rlhf.preferences.database import DiskFull
from alpaca_rlhf.preferences.store import Store
from alpaca_rlhf.sources.sampled import queue_sampled

_LOG_BYTES = 20_000
"""Bytes at the end of the log that are read."""
WATCH_EVERY_S = 2.0
"""Seconds between two looks for completions that the run has sampled."""

Activity = Literal["idle", "starting", "training", "stopping"]
Refusal = Literal["not_allowed", "running", "elsewhere", "idle", "starting", "unfinished", "failed"]


Closed = Literal["flag", "database"]
"""Reasons why no browser may start a training: nobody has allowed it, or the rankings are not in
the run's own database, which is the one that `loop` reads."""


@dataclass(frozen=True)
class TrainingCommand:
    """The command that goes on with the run, in a process and for people."""

    words: Sequence[str]
    """The command line of the process."""
    shown: str
    """The command as a person types it."""
    closed: Closed | None = None
    """The reason why no browser may start and stop it; None if it may."""


class TrainingRefused(Exception):
    """The page asked for what cannot be done now.

    Args:
        reason: Key of the reason.
        detail: Name of the other run, or the message of the system.
    """

    def __init__(self, reason: Refusal, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class TrainingState:
    """The process that trains a run."""

    activity: Activity
    """Its activity: none, about to begin, at work, or about to end."""
    log: str
    """The end of its output, or of that of the last one started from a page."""
    from_page: bool
    """True if the process was started from a page, so that the log is its own."""
    outdated: bool = False
    """True if the run has gone further than that log tells."""
    exit_code: int | None = None
    """Exit code of the last process if this app has seen its end; minus the signal if killed."""


class Training:
    """Starts, stops and observes the training of one run.

    Args:
        run: The run folder.
        store: Receives the completions that the run samples.
        command: The command that goes on with the run.
        allowed: False if no browser may start or stop it.
        gpu_folder: The folder in which apps and training runs find each other.
    """

    def __init__(
        self,
        run: Path,
        store: Store,
        command: Sequence[str],
        *,
        allowed: bool,
        gpu_folder: Path | None = None,
    ) -> None:
        self.run = run
        self.allowed = allowed
        self._store = store
        self._command = list(command)
        self._gpu_folder = gpu_folder or gpu_lock.folder()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._interrupted: int | None = None
        self._exit_code: int | None = None
        self._closed = threading.Event()
        self._ledger_seen = 0
        self._watcher: threading.Thread | None = None

    # --- for the page -----------------------------------------------------------------------------

    def start(self, *, actor: str, words: Sequence[str] = ()) -> None:
        """Start the process.

        Args:
            actor: Who does it, for the audit.
            words: Further words of the command, made by the app.

        Raises:
            TrainingRefused: It may not be started from here, one runs already, or the system
                refuses.
            DiskFull: The audit could not be written; nothing was started.
        """
        if not self.allowed:
            raise TrainingRefused("not_allowed")
        with self._lock:
            if self._pid() is not None or is_locked(self.run / TRAINING_LOG):
                raise TrainingRefused("running")
            other = training_elsewhere(self.run, self._gpu_folder)
            if other is not None:
                raise TrainingRefused("elsewhere", other)
            try:
                with Lock(self.run / TRAINING_LOG) as log:
                    # The process inherits the lock with its output, and keeps it until it ends.
                    log.write_owner("")
                    # The audit first: a start that cannot be noted must not have happened.
                    self._note("start", actor)
                    self._process = subprocess.Popen(
                        [*self._command, *words],
                        stdin=subprocess.DEVNULL,
                        stdout=log.fileno(),
                        stderr=subprocess.STDOUT,
                        env={**os.environ, **inheriting(self.run / TRAINING_LOG)},
                        **interrupts.apart(),  # Ctrl-C at the app's terminal is not meant for it
                    )
            except LockHeld:
                raise TrainingRefused("running") from None
            except OSError as error:
                with contextlib.suppress(DiskFull):
                    self._note("start_failed", actor)
                raise TrainingRefused("failed", str(error)) from None
            self._interrupted = self._exit_code = None

    def stop(self, *, actor: str) -> None:
        """Interrupt the process as Ctrl-C does: it finishes the step under way and saves it.

        Raises:
            TrainingRefused: It may not be stopped from here, or none runs.
        """
        if not self.allowed:
            raise TrainingRefused("not_allowed")
        with self._lock:
            pid = self._pid()
            if pid is None:
                starts = is_locked(self.run / TRAINING_LOG)
                raise TrainingRefused("starting" if starts else "idle")
            if pid == self._interrupted:
                return
            try:
                interrupts.interrupt(pid)
            except ProcessLookupError:
                raise TrainingRefused("idle") from None
            except OSError as error:  # another user's process, on Windows another console's
                raise TrainingRefused("failed", str(error)) from None
            self._interrupted = pid
        # A full disk must not keep anybody from stopping, nor call a stop refused that was not.
        with contextlib.suppress(DiskFull):
            self._note("stop", actor)

    @property
    def state(self) -> TrainingState:
        """The process that trains the run now, whoever has started it."""
        with self._lock:  # a probe must not get in the way of a start
            from_page, pid = is_locked(self.run / TRAINING_LOG), self._pid()
            activity: Activity = "idle"
            if pid is not None and pid == self._interrupted:
                activity = "stopping"
            elif pid is not None or from_page:
                activity = "starting" if _holder(self.run) is None else "training"
        outdated = changed_ns(self.run / LEDGER) > changed_ns(self.run / TRAINING_LOG)
        return TrainingState(activity, self._end_of_log(), from_page, outdated, self._exit_code)

    # --- for the app ------------------------------------------------------------------------------

    def watch(self) -> None:
        """Put completions into the queue as soon as the run has sampled them, in a thread."""
        self._watcher = threading.Thread(target=self._watch, name="training", daemon=True)
        self._watcher.start()

    def close(self) -> None:
        """Stop watching. The process goes on."""
        self._closed.set()
        if self._watcher is not None:
            self._watcher.join()

    def _watch(self) -> None:
        while not self._closed.wait(WATCH_EVERY_S):
            with self._lock:
                self._reap()
            with contextlib.suppress(UserError):  # a full disk, or a file that is being replaced
                self.queue_new()

    def queue_new(self) -> None:
        """Put what the run has sampled into the queue, if a stage has ended since the last call."""
        changed = changed_ns(self.run / LEDGER)
        if changed != self._ledger_seen:
            queue_sampled(self.run, self._store)
            self._ledger_seen = changed

    def _note(self, action: str, actor: str) -> None:
        self._store.note_training(action, self.run.name, actor=actor)

    def _pid(self) -> int | None:
        """The process that trains the run; None if none does."""
        holder = _holder(self.run)
        if holder is not None:
            return holder
        self._reap()
        return None if self._process is None else self._process.pid

    def _reap(self) -> None:
        """Take the exit code of the process, if it has ended."""
        if self._process is not None and self._process.poll() is not None:
            self._exit_code, self._process = self._process.returncode, None

    def _end_of_log(self) -> str:
        try:
            with (self.run / TRAINING_LOG).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_BYTES))
                return file.read().decode(errors="replace")
        except OSError:
            return ""


def training_elsewhere(run: Path, gpu_folder: Path | None = None) -> str | None:
    """Name of another run that trains on this app's card now; None without one.

    A run beside this one counts from the moment a page has started it until it asks for another
    card, any other from when it asks for this one.
    """
    where = gpu_folder or gpu_lock.folder()
    others = gpu_lock.live_notes("ask", where)
    if others:
        return Path(others[0].run).name
    apart = {run.absolute(), *map(Path, gpu_lock.runs_on_other_cards(where))}
    logs = sorted(run.absolute().parent.glob(f"*/{TRAINING_LOG}"))
    return next(
        (log.parent.name for log in logs if log.parent not in apart and is_locked(log)), None
    )


def changed_ns(path: Path) -> int:
    """The time of the last change of a file; 0 without one."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _holder(run: Path) -> int | None:
    """The living process that has the run folder open; None without one.

    The lock is probed only if that process lives: a probe could else get in the way of a run that
    is about to take it.
    """
    path = run / LOCK
    try:
        pid = int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return pid if psutil.pid_exists(pid) and is_locked(path) else None
