"""The graphics card, shared: an app that holds a model gives it back while a run trains.

    app-<n>.json   notice of an app: its process, its run, its cards, and whether it holds a model
    ask-<n>.json   notice of a run that wants its cards, for as long as it trains
    *.lock         beside each notice, locked by its process: released however that ends

They lie in one folder of the machine, for all its users (`ALPACA_RLHF_CARD` names another). Only
notices that share a card concern each other; without a card all do, since they share the processor.
Notices of dead processes count for nothing and are removed by the next reader that may.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import stat
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import atomic_write, writing
from alpaca_rlhf.core.locks import Lock, is_locked

PATIENCE_S = 120.0
"""Seconds that a run waits for an app to give the card back."""
POLL_S = 0.5
"""Seconds between two checks."""
_MAX_BYTES = 1 << 16
"""Bytes of a notice that are read."""

Kind = Literal["app", "ask"]


_OVERRIDE = "ALPACA_RLHF_CARD"
_ELSEWHERE = f"remove it, or let {_OVERRIDE} name a folder that all users of this card can write to"

if sys.platform == "win32":
    _MACHINE_FOLDER = Path(os.environ.get("PROGRAMDATA") or tempfile.gettempdir())
else:
    # `TMPDIR` is each user's own on macOS and on many clusters.
    _MACHINE_FOLDER = Path("/tmp" if Path("/tmp").is_dir() else tempfile.gettempdir())


def folder() -> Path:
    """The folder in which the apps and runs of all users of this machine find each other."""
    override = os.environ.get(_OVERRIDE)
    return Path(override) if override else _MACHINE_FOLDER / "alpaca_rlhf-card"


def visible_cards() -> tuple[str, ...]:
    """Identities of the cards that this process uses, one for each process that was launched here.

    The first of those that CUDA shows it, which heeds `CUDA_VISIBLE_DEVICES` and parts of a card
    (MIG), or the one that `ALPACA_RLHF_DEVICE` names. The driver is asked, so torch need not be
    loaded; where it is no NVIDIA driver, torch is asked if it is loaded.

    Returns:
        UUIDs in hexadecimal; none where there is no card, or where its identity is unknown.
    """
    used = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or 1)
    kind, _, number = os.environ.get("ALPACA_RLHF_DEVICE", "").partition(":")
    if kind not in ("", "cuda"):
        return ()  # no card of its own: it shares the processor with everybody
    first = int(number) if number.isdecimal() else 0
    return (_driver_uuids() or _torch_uuids())[first : first + used]


def _driver_uuids() -> tuple[str, ...]:
    """UUIDs of the visible cards by NVIDIA's driver, in CUDA's order; none without it."""
    driver = _cuda_driver()
    count = ctypes.c_int()
    if driver is None or driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return ()
    uuids = []
    for number in range(count.value):
        device, raw = ctypes.c_int(), (ctypes.c_ubyte * 16)()
        if driver.cuDeviceGet(ctypes.byref(device), number):
            return ()
        if driver.cuDeviceGetUuid_v2(ctypes.byref(raw), device):
            return ()
        uuids.append(bytes(raw).hex())
    return tuple(uuids)


@cache
def _cuda_driver() -> Any:
    """NVIDIA's driver library, new enough to tell parts of a card apart; None without it."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    return driver if hasattr(driver, "cuDeviceGetUuid_v2") else None


def _torch_uuids() -> tuple[str, ...]:
    """UUIDs of the visible cards by torch, as of AMD's; none where torch is not loaded."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return ()
    properties = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    uuids = [str(getattr(card, "uuid", "")).replace("-", "").lower() for card in properties]
    return tuple(uuids) if all(uuids) else ()


@dataclass(frozen=True)
class ProcessNote:
    """The content of a notice."""

    pid: int
    """The process."""
    run: str
    """Its run folder."""
    holds: bool
    """True while a model of it is on the card."""
    cards: tuple[str, ...] = ()
    """Identities of its cards; none where there is no card or they are unknown."""
    foreign: bool = False
    """True where it is another user's, by the owner of the file."""

    def concerns(self, cards: Sequence[str]) -> bool:
        """True if a process with these cards shares one with it, or if either's are unknown."""
        return not self.cards or not cards or not set(self.cards).isdisjoint(cards)


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
        self._cards = visible_cards()
        _open_to_all(where)
        lock = _lock_of(self._path)
        with writing(where, _ELSEWHERE):
            self._lock = Lock(lock, wait=True)
            if hasattr(os, "fchmod"):
                # Whatever the umask: readers of other users probe it. Not by name, under which the
                # folder's owner could put a link to another file of this user's.
                os.fchmod(self._lock.fileno(), 0o644)
        try:
            self.publish(holds=False)
        except UserError:
            self.withdraw()
            raise

    def publish(self, *, holds: bool) -> None:
        """Write whether a model is held now."""
        note = asdict(ProcessNote(os.getpid(), self._run, holds, self._cards))
        del note["foreign"]  # seen by each reader
        atomic_write(self._path, json.dumps(note), mode=0o644)

    def withdraw(self) -> None:
        """Remove the notice."""
        with contextlib.suppress(PermissionError):
            self._path.unlink(missing_ok=True)
        self._lock.close()  # Windows removes no file that is open
        _remove(self._path)


def live_notes(kind: Kind, where: Path, *, cards: Sequence[str] | None = None) -> list[ProcessNote]:
    """The notices of one kind whose processes are alive and share a card with this process.

    Args:
        kind: The kind.
        where: The folder of notices.
        cards: Identities of this process's cards; by default `visible_cards`. With none every
            notice counts.
    """
    cards = visible_cards() if cards is None else cards
    return [note for note in _living(kind, where) if note.concerns(cards)]


def runs_on_other_cards(where: Path) -> set[str]:
    """Folders of the living runs that train on none of this process's cards."""
    cards = visible_cards()
    return {note.run for note in _living("ask", where) if not note.concerns(cards)}


def _living(kind: Kind, where: Path) -> list[ProcessNote]:
    notes = []
    for path in sorted(where.glob(f"{kind}-*.json")):
        # Anybody may write here: what is no plain file, a pipe say, is not opened.
        if not (_is_plain(path) and _is_plain(_lock_of(path))):
            continue
        if not is_locked(_lock_of(path)):
            _remove(path)
            continue
        try:
            notes.append(_read(path))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # withdrawn a moment ago, or no notice
        except (OverflowError, RecursionError):
            continue  # an infinite number, or lists in lists in lists
    return notes


def _read(path: Path) -> ProcessNote:
    """The content of a notice, which may be anybody's file: a pipe or a link is not followed."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
    with os.fdopen(os.open(path, flags), "rb") as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path}: is no plain file")
        content: Mapping[str, Any] = json.loads(stream.read(_MAX_BYTES))
    return ProcessNote(
        int(content["pid"]),
        str(content["run"]),
        bool(content["holds"]),
        tuple(map(str, content.get("cards", ()))),
        foreign=hasattr(os, "getuid") and status.st_uid != os.getuid(),
    )


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
        except UserError as error:
            self._say(f"no app is asked for the card: {error}")
            return
        deadline, announced = time.monotonic() + self._patience_s, False
        while holders := [note for note in live_notes("app", self._where) if note.holds]:
            apps = ", ".join(f"process {note.pid} ({note.run})" for note in holders)
            if not announced:
                self._say(f"the app has a model loaded: asking {apps} to give the card back")
                announced = True
            if time.monotonic() > deadline:
                if all(note.foreign for note in holders):
                    self._say(f"{apps} of another user keeps the card; going on with what is free")
                    return
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
    with contextlib.suppress(PermissionError):  # another user's, which that user removes
        path.unlink(missing_ok=True)
        _lock_of(path).unlink(missing_ok=True)


def _is_plain(path: Path) -> bool:
    """True for a regular file, not for a link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _open_to_all(where: Path) -> None:
    """Make the folder of notices, in which each user may write and remove only his own.

    Raises:
        UserError: It cannot be made, or something else has its name.
    """
    with writing(where, _ELSEWHERE):
        where.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            where.mkdir()
            where.chmod(0o1777)
        if not stat.S_ISDIR(where.lstat().st_mode):
            raise UserError(f"{where}: is not a folder; {_ELSEWHERE}")
