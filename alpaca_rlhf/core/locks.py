"""Kernel locks on files and folders: released however a process ends, on POSIX and on Windows.

No lock is the mere presence of a file, so what a killed process leaves behind never blocks anybody.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import TracebackType

_FOLDER_LOCK = ".lock"
"""File that stands for a folder where the system cannot lock a folder itself (Windows)."""

_WINDOWS_OFFSET = 2**30
"""Byte that is locked on Windows: locks are mandatory there, and far from the text they leave it
readable."""


class LockHeld(OSError):
    """Another process, or another `Lock` of this one, holds the lock."""


class Lock:
    """An exclusive lock on a file (made if absent) or on a folder, until it is closed.

    Args:
        path: The file or folder.
        wait: Wait until it is free instead of raising.

    Raises:
        LockHeld: Another holder has it, and `wait` is False.
        OSError: The path cannot be opened.
    """

    def __init__(self, path: Path, *, wait: bool = False) -> None:
        self._descriptor = _open(path)
        try:
            _lock(self._descriptor, wait=wait, shared=False)
        except BaseException:
            os.close(self._descriptor)
            raise

    def write_owner(self, text: str) -> None:
        """Replace what the locked file says about its holder."""
        os.truncate(self._descriptor, 0)
        os.write(self._descriptor, text.encode())

    def fileno(self) -> int:
        """The locked file, for a process that inherits it and thereby the lock (POSIX)."""
        return self._descriptor

    def close(self) -> None:
        """Release the lock. Closing again does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def is_locked(path: Path) -> bool:
    """True while a living process holds a `Lock` on this file; False where there is none.

    The probe takes a shared lock for a moment, so that two probes do not see each other.
    """
    try:
        # A pipe that somebody has put in its place is not waited for.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return False
    try:
        _lock(descriptor, wait=False, shared=True)
    except LockHeld:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


_INHERITED = "ALPACA_RLHF_LOCKED"
"""Names the file whose lock a child takes over on Windows, where it inherits none."""
_taken_over: list[Lock] = []


def inheriting(path: Path) -> dict[str, str]:
    """Variables of a child process that inherits the lock on a file; none on POSIX.

    There the lock is that of the open file, which the child has with its output.
    """
    return {_INHERITED: str(path)} if sys.platform == "win32" else {}


def take_over() -> None:
    """Hold the lock that this process inherits until it ends; the parent gives it up meanwhile."""
    path = os.environ.pop(_INHERITED, None)
    if path is not None:
        _taken_over.append(Lock(Path(path), wait=True))


def _open(path: Path) -> int:
    if path.is_dir():
        if sys.platform != "win32":
            return os.open(path, os.O_RDONLY)
        path = path / _FOLDER_LOCK
    # Appending: opening the file must not wipe what its holder wrote into it.
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int, *, wait: bool, shared: bool) -> None:
        os.lseek(descriptor, _WINDOWS_OFFSET, os.SEEK_SET)
        try:
            # LK_LOCK gives up after ten seconds, and is then asked again.
            msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if wait:
                return _lock(descriptor, wait=wait, shared=shared)
            raise LockHeld(error.errno, "another process holds the lock") from None
        if shared:
            os.lseek(descriptor, _WINDOWS_OFFSET, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int, *, wait: bool, shared: bool) -> None:
        mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(descriptor, mode if wait else mode | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LockHeld(error.errno, "another process holds the lock") from None
