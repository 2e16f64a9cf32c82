"""Write files so that nothing is ever half there: whole files, whole folders, and valid JSON."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.locks import Lock, LockHeld

FULL = "free some space and run it again"
"""Advice for a full disk; what was written before is whole."""
_OTHER_OUT = "use another --out"
"""Advice for a place that cannot be written."""
_DISK_FULL_MESSAGES = (
    "no space left on device",
    "disk quota exceeded",
    "database or disk is full",
)


def atomic_write(path: Path, content: str | bytes, *, mode: int | None = None) -> None:
    """Write a whole file so that a reader, a crash or a power cut sees all of it or nothing of it.

    Args:
        path: Where; missing folders are made, an older file is replaced.
        content: Text is written as UTF-8.
        mode: Its permissions, whatever the umask, never wider for a moment; by default those that
            the umask leaves.

    Raises:
        UserError: It cannot be written: no permission, no space.
    """
    flags, created = os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else mode
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # 1. Write beside the place, and flush the bytes to the disk.
            with os.fdopen(os.open(temporary, flags, created), "wb") as stream:
                if mode is not None and hasattr(os, "fchmod"):  # not by name: see `gpu_lock`
                    os.fchmod(stream.fileno(), mode)
                stream.write(content.encode() if isinstance(content, str) else content)
                stream.flush()
                os.fsync(stream.fileno())
            # 2. Put the file in its place in one step.
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        # 3. Flush the folder, or a power cut could lose the name.
        sync_folder(path.parent)


@contextmanager
def new_folder(out: Path, *, flag: str = "--out", remedy: str = _OTHER_OUT) -> Iterator[Path]:
    """Fill a folder that gets the name `out`, whole and on the disk, when the block ends.

    Where the block fails nothing is left; what a killed process left is removed by the next one.

    Args:
        out: The folder.
        flag: Names the folder in messages, as the user typed it.
        remedy: Advice for a place that cannot be written.

    Raises:
        UserError: Something stands at `out` already, another process is making it, or it cannot be
            written.
    """
    typed, out = out, out.absolute()
    temporary = out.with_name(f".{out.name}.making")
    with writing(out, remedy):
        if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
            raise UserError(f"{flag} {typed}: something is there already; give another folder")
    busy = f"{flag} {typed}: another process is making it; wait for it"
    with only_one(temporary, busy, remedy=remedy):
        try:
            # 1. Remove what a killed process left of an earlier try.
            with writing(out, remedy):
                _empty(temporary)
            # 2. Let the caller fill it.
            yield temporary
            # 3. Flush every file, then the names, then give the folder its own name.
            with writing(out, remedy):
                for path in sorted(temporary.rglob("*")):
                    sync_folder(path)  # a file is flushed the same way
                sync_folder(temporary)
                temporary.replace(out)
                sync_folder(out.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextmanager
def only_one(folder: Path, busy: str, *, remedy: str = _OTHER_OUT) -> Iterator[None]:
    """Keep a folder, made if absent, to this process while the block runs.

    Args:
        folder: The folder.
        busy: The message where another process has it.
        remedy: Advice for a place that cannot be written.

    Raises:
        UserError: Another process has it, or it cannot be made.
    """
    with writing(folder, remedy):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = Lock(folder)
        except LockHeld:
            raise UserError(busy) from None
    with lock:
        yield


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def json_text(value: Any, name: str, indent: int | None = None) -> str:
    """A value as JSON in UTF-8. `name` is the file, for the message.

    Raises:
        ValueError: A number in it is NaN or infinite; the message gives its dotted name.
    """
    bad = _not_finite(value)
    if bad is not None:
        raise ValueError(f"{name}: {bad}, which JSON cannot hold")
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    try:
        text.encode()
    except UnicodeEncodeError:
        # Half a surrogate pair has no UTF-8; JSON's own escape keeps it.
        return json.dumps(value, allow_nan=False, indent=indent)
    return text


def _not_finite(value: Any, at: str = "") -> str | None:
    """The first number that is NaN or infinite, with its dotted name."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{at or 'the value'} is {value}"
    if isinstance(value, Mapping):
        inner: Iterable[tuple[Any, Any]] = value.items()
    else:
        inner = enumerate(value) if isinstance(value, (list, tuple)) else ()
    return next(
        (bad for key, part in inner if (bad := _not_finite(part, f"{at}.{key}".lstrip(".")))), None
    )


def sync_folder(folder: Path) -> None:
    """Flush a folder, so that the disk knows which files it holds."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing(path: Path, remedy: str = _OTHER_OUT) -> Iterator[None]:
    """Turn the system's refusals to write into one line that says what to do."""
    try:
        yield
    except Exception as error:
        if is_full(error):
            raise UserError(
                f"{path}: cannot be written (No space left on device); {FULL}"
            ) from None
        if not isinstance(error, OSError):
            raise
        raise UserError(f"{path}: cannot be written ({error.strerror}); {remedy}") from None


def is_full(error: BaseException) -> bool:
    """True for an error that says that the disk, or the user's quota, is full.

    safetensors, SQLite and PostgreSQL hide the system's error in a message of their own.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    message = str(error).lower()
    return any(phrase in message for phrase in _DISK_FULL_MESSAGES)


def at_home(text: str) -> str:
    """A path as it was written, its leading `~` expanded, as no shell does in a file or after `=`.

    That of somebody who is not known here stays.
    """
    try:
        return str(Path(text).expanduser()) if text.startswith("~") else text
    except RuntimeError:
        return text


def nearest_folder(path: Path) -> Path:
    """The deepest existing folder on the way to a path that may not exist yet."""
    folder = path.expanduser().absolute()
    while not folder.exists():
        folder = folder.parent
    return folder
