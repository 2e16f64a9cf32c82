"""The disk space of runs: what each takes, and what of it nobody needs any more. No torch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from alpaca_rlhf.core.bases import cached_bases
from alpaca_rlhf.core.files import writing
from alpaca_rlhf.core.locks import Lock, LockHeld, is_locked
from alpaca_rlhf.core.runs import LOCK, finished

CHECKPOINTS, EXPORTS = "checkpoints", "export"
_MAX_DEPTH = 4
_PARITY = "parity.json"


@dataclass(frozen=True)
class Waste:
    """Something that can be removed without losing what anybody made."""

    path: Path
    reason: str
    """Its kind, and the ground for removing it."""
    size: int
    """Bytes."""

    def remove(self) -> None:
        """Remove it; what somebody else has removed in the meantime is as good as removed.

        Raises:
            UserError: It cannot be removed.
        """
        with writing(self.path, "check its permissions"), suppress(FileNotFoundError):
            shutil.rmtree(self.path) if self.path.is_dir() else self.path.unlink()


@dataclass(frozen=True)
class RunSize:
    """One run's disk space."""

    path: Path
    stages: tuple[str, ...]
    """Names of its finished stages, in the order in which they were."""
    running: bool
    """A process has it open: nothing of it may be removed."""
    size: int
    """Bytes of the whole folder."""
    waste: tuple[Waste, ...]
    """Its removable parts, none within another."""

    def prune(self) -> bool:
        """Remove what can be removed, unless a process has opened the run in the meantime.

        Returns:
            False where one has: nothing was removed.

        Raises:
            UserError: Something cannot be removed.
        """
        if not self.waste:
            return True
        with writing(self.path, "check its permissions"):
            try:
                lock = Lock(self.path / LOCK)
            except LockHeld:
                return False
        with lock:
            # Since it was measured the run may have gone on, and need what it did not need then.
            waste = {item.path for item in _waste(self.path, finished(self.path), exports=True)}
            for item in self.waste:
                if item.path in waste:
                    item.remove()
        return True


def runs_in(folder: Path) -> Iterator[Path]:
    """Every run folder in a folder, at most four levels down; a run holds no others."""
    yield from _runs_in(folder, _MAX_DEPTH)


def _runs_in(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / "config.yaml").is_file() and (folder / "provenance.json").is_file():
        yield folder
        return
    if depth == 0:
        return
    try:
        inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    except OSError:
        return
    for path in inner:
        if not path.name.startswith("."):
            yield from _runs_in(path, depth - 1)


def measure_run(run: Path, *, exports: bool = False) -> RunSize:
    """The disk space of a run.

    Args:
        run: The run folder.
        exports: Count exported models as removable: `alpaca-rlhf export` makes them again.
    """
    stages = finished(run)
    running = is_locked(run / LOCK)
    waste = [] if running else _outermost(_waste(run, stages, exports=exports))
    return RunSize(run, stages, running, size_of(run), tuple(waste))


def _outermost(waste: Iterable[Waste]) -> list[Waste]:
    """Parts that lie in no other part: what a killed process left within an export goes with it."""
    by_path = {item.path: item for item in waste}
    return [item for path, item in by_path.items() if by_path.keys().isdisjoint(path.parents)]


def _waste(run: Path, stages: Sequence[str], *, exports: bool) -> Iterator[Waste]:
    # 1. Checkpoints of stages that are finished: their adapters are there.
    for folder in _folders(run / CHECKPOINTS):
        if folder.name in stages:
            yield Waste(folder, "checkpoints of a finished stage", size_of(folder))
    # 2. What a killed process left of a file or an export.
    for path in sorted(run.rglob(".*")):
        if path.name.endswith((".tmp", ".making")) and not is_locked(path):
            yield Waste(path, "left by a killed process", size_of(path))
    # 3. Exports, which hold the base once more.
    for folder in _folders(run / EXPORTS) if exports else ():
        if _is_copy(folder):
            yield Waste(folder, "an export, which can be made again", size_of(folder))


def cached_gguf_bases() -> list[Waste]:
    """GGUF files that were unpacked into the cache; each is unpacked again when it is asked for."""
    folders = [folder for folder in _folders(cached_bases()) if folder.name.startswith("gguf-")]
    return [Waste(folder, f"unpacked from {_file(folder)}", size_of(folder)) for folder in folders]


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links are not followed."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    total = 0
    for inner in path.rglob("*"):
        try:
            total += 0 if inner.is_dir() and not inner.is_symlink() else inner.lstat().st_size
        except OSError:  # removed in the meantime
            continue
    return total


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())


def _is_copy(folder: Path) -> bool:
    """True for an export that holds a whole model; an exported adapter is small, and stays."""
    try:
        return bool(json.loads((folder / _PARITY).read_bytes())["to"] != "adapter")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _file(folder: Path) -> str:
    try:
        return str(json.loads((folder / "source.json").read_bytes())["file"])
    except (OSError, ValueError, KeyError, TypeError):
        return "a GGUF file"
