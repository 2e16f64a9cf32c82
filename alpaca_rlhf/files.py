"""Writing files so that nothing is ever half there: whole files, lines, and what JSON may hold."""

from __future__ import annotations

import errno
import json
import math
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alpaca_rlhf.config import UserError


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a whole file so that a reader, a crash or a power cut sees all of it or nothing of it.

    Args:
        path: Where; missing folders are made, an older file is replaced.
        content: Text is written as UTF-8.

    Raises:
        UserError: It cannot be written: no permission, no space.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as stream:
                stream.write(content.encode() if isinstance(content, str) else content)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def append_lines(path: Path, lines: str, *, sync: bool = False) -> None:
    r"""Append whole lines, each with its newline, after cutting a torn last line.

    When it returns the lines survive the death of this process, and with `sync` a power cut too.

    Raises:
        UserError: The file cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as stream:
            end = stream.tell()
            if end and os.pread(stream.fileno(), 1, end - 1) != b"\n":
                stream.seek(0)
                stream.truncate(stream.read().rfind(b"\n") + 1)
            stream.write(lines.encode())
            if sync:
                stream.flush()
                os.fsync(stream.fileno())


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
        (bad for key, one in inner if (bad := _not_finite(one, f"{at}.{key}".lstrip(".")))), None
    )


def sync_folder(folder: Path) -> None:
    """Return when the disk knows which files a folder holds."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's refusals into one line with a mend."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        mend = "free some space and run it again" if full else "use another --out"
        raise UserError(f"{path}: cannot be written ({error.strerror}); {mend}") from None
