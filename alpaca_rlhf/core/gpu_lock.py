"""The graphics card, shared: an app that holds a model gives it back while a run trains.

    app-<n>.json   notice of an app: its process, its run, and whether it holds a model
    ask-<n>.json   notice of a run that wants the card, for as long as it trains
    *.lock         beside each notice, locked by its process: released however that ends

They lie in a folder of this user's cache (`ALPACA_RLHF_CARD` names another). Notices of dead
processes count for nothing and are removed by the next reader.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

from alpaca_rlhf.core.bases import cache_folder
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import atomic_write, writing
from alpaca_rlhf.core.locks import Lock, is_locked

PATIENCE_S = 120.0
"""Seconds that a run waits for an app to give the card back."""
POLL_S = 0.5
"""Seconds between two checks."""

Kind = Literal["app", "ask"]


def folder() -> Path:
    """The folder in which apps and runs of this user find each other's notices."""
    override = os.environ.get("ALPACA_RLHF_CARD")
    if override:
        return Path(override)
    return cache_folder() / "card"


@dataclass(frozen=True)
class ProcessNote:
    """The content of a notice."""

    pid: int
    """The process."""
    run: str
    """Its run folder."""
    holds: bool
    """True while a model of it is on the card."""


class Notice:
    """A notice of this process, there until it is withdrawn or the process ends.

    Args:
        kind: `app`, or `ask` for a run that wants the card.
        run: The run folder.
        where: The folder of notices.

    Raises:
        UserError: It cannot be written.
    """

    def __init__(self, kind: Kind, run: Path, where: Path) -> None:
        self._path = where / f"{kind}-{os.getpid()}-{uuid.uuid4().hex[:8]}.json"
        self._run = str(run.absolute())
        with writing(where):
            where.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(_lock_of(self._path), wait=True)
        try:
            self.publish(holds=False)
        except UserError:
            self.withdraw()
            raise

    def publish(self, *, holds: bool) -> None:
        """Write whether a model is held now."""
        atomic_write(self._path, json.dumps(asdict(ProcessNote(os.getpid(), self._run, holds))))

    def withdraw(self) -> None:
        """Remove the notice."""
        _remove(self._path)
        self._lock.close()


def live_notes(kind: Kind, where: Path) -> list[ProcessNote]:
    """The notices of one kind whose processes are alive."""
    notes = []
    for path in sorted(where.glob(f"{kind}-*.json")):
        if not is_locked(_lock_of(path)):
            _remove(path)
            continue
        try:
            content: Mapping[str, object] = json.loads(path.read_text(encoding="utf-8"))
            note = ProcessNote(
                int(str(content["pid"])), str(content["run"]), bool(content["holds"])
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue  # withdrawn a moment ago
        notes.append(note)
    return notes


class Loan:
    """The card for a run that trains: asked for once, given back when the block ends.

    Args:
        run: The run folder.
        say: Receives a line about what is waited for.
        where: The folder of notices.
        patience_s: Seconds to wait for an app.
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
        self._notice: Notice | None = None

    def __enter__(self) -> Loan:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._notice is not None:
            self._notice.withdraw()
            self._notice = None

    def take(self) -> None:
        """Ask every app for the card and wait until none holds a model.

        Raises:
            UserError: An app has not given it back in time.
        """
        if self._notice is not None:
            return
        try:
            self._notice = Notice("ask", self._run, self._where)
        except UserError:
            return  # where no notice can be written, no app has published one either
        deadline, announced = time.monotonic() + self._patience_s, False
        while holders := [note for note in live_notes("app", self._where) if note.holds]:
            apps = ", ".join(f"process {note.pid} ({note.run})" for note in holders)
            if not announced:
                self._say(f"the app has a model loaded: asking {apps} to give the card back")
                announced = True
            if time.monotonic() > deadline:
                raise UserError(
                    f"the app has not given the card back within {self._patience_s:.0f} s: {apps}; "
                    "end it and run the same command again"
                )
            time.sleep(POLL_S)
        if announced:
            self._say("the card is free")


def _lock_of(path: Path) -> Path:
    return path.with_suffix(".lock")


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    _lock_of(path).unlink(missing_ok=True)
