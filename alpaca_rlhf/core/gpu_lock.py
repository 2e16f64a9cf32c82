"""Who has the graphics card: an app that holds a model gives it back while a run trains.

    app-<n>.json   of an app: its process, its run, and whether it holds a model
    ask-<n>.json   of a run that wants the card, for as long as it trains
    *.lock         beside each, locked by its process: the system unlocks it however that ends

They lie in a folder of this user's cache (`ALPACA_RLHF_CARD` names another). What a dead process
left counts for nothing, and is taken away by whoever finds it.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Literal

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import atomic_write, writing

PATIENCE_S = 120.0
"""How long a run waits for an app to give the card back."""
LOOK_S = 0.5
"""Seconds between two looks."""

Kind = Literal["app", "ask"]


def folder() -> Path:
    """Where apps and runs of this user find each other."""
    named = os.environ.get("ALPACA_RLHF_CARD")
    if named:
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "alpaca_rlhf" / "card"


@dataclass(frozen=True)
class Note:
    """What one process tells the others."""

    pid: int
    """The process."""
    run: str
    """Its run folder."""
    holds: bool
    """Whether a model of it is on the card."""


class Sign:
    """A note of this process, there until it is taken down or the process ends.

    Args:
        kind: `app`, or `ask` for a run that wants the card.
        run: The run folder.
        where: The folder of notes.

    Raises:
        UserError: It cannot be written.
    """

    def __init__(self, kind: Kind, run: Path, where: Path) -> None:
        self._path = where / f"{kind}-{os.getpid()}-{uuid.uuid4().hex[:8]}.json"
        self._run = str(run.absolute())
        with writing(where):
            where.mkdir(parents=True, exist_ok=True)
            self._lock: IO[str] = _lock_of(self._path).open("a", encoding="utf-8")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            self.put(holds=False)
        except UserError:
            self.down()
            raise

    def put(self, *, holds: bool) -> None:
        """Say anew whether a model is held."""
        atomic_write(self._path, json.dumps(asdict(Note(os.getpid(), self._run, holds))))

    def down(self) -> None:
        """Take the note down."""
        _remove(self._path)
        self._lock.close()


def notes(kind: Kind, where: Path) -> list[Note]:
    """The notes of one kind whose processes live."""
    found = []
    for path in sorted(where.glob(f"{kind}-*.json")):
        if not _is_held(_lock_of(path)):
            _remove(path)
            continue
        try:
            said: Mapping[str, object] = json.loads(path.read_text(encoding="utf-8"))
            found.append(Note(int(str(said["pid"])), str(said["run"]), bool(said["holds"])))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # taken down just now
    return found


class Loan:
    """The card for a run that trains: asked for once, given back when the block ends.

    Args:
        run: The run folder.
        say: Told what is waited for.
        where: The folder of notes.
        patience_s: How long to wait for an app.
    """

    def __init__(
        self,
        run: Path,
        say: Callable[[str], None],
        *,
        where: Path | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._run = run
        self._say = say
        self._where = where or folder()
        self._patience_s = patience_s
        self._sign: Sign | None = None

    def __enter__(self) -> Loan:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._sign is not None:
            self._sign.down()
            self._sign = None

    def take(self) -> None:
        """Ask every app for the card and wait till none holds a model.

        Raises:
            UserError: One has not given it back in time.
        """
        if self._sign is not None:
            return
        try:
            self._sign = Sign("ask", self._run, self._where)
        except UserError:
            return  # where no note can be written, no app has one up either
        ends, told = time.monotonic() + self._patience_s, False
        while holders := [one for one in notes("app", self._where) if one.holds]:
            who = ", ".join(f"process {one.pid} ({one.run})" for one in holders)
            if not told:
                self._say(f"the app has a model loaded: asking {who} to give the card back")
                told = True
            if time.monotonic() > ends:
                raise UserError(
                    f"the app has not given the card back within {self._patience_s:.0f} s: {who}; "
                    "end it and run the same command again"
                )
            time.sleep(LOOK_S)
        if told:
            self._say("the card is free")


def _lock_of(path: Path) -> Path:
    return path.with_suffix(".lock")


def _is_held(lock: Path) -> bool:
    try:
        with lock.open("r", encoding="utf-8") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    _lock_of(path).unlink(missing_ok=True)
