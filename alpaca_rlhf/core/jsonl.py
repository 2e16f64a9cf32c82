r"""A log of JSON lines whose writer may be killed anywhere.

A line counts once its newline is on the disk. What a killed writer left of a line (a torn tail) is
passed over by readers and cut by the next writer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import json_text, writing


class Line(NamedTuple):
    """One whole line of a log."""

    number: int
    """Counted from 1."""
    start: int
    """Byte at which it begins."""
    value: dict[str, Any]
    """The JSON object."""


def encode(rows: Iterable[Mapping[str, Any]], name: str) -> bytes:
    """Rows as lines, each with its newline.

    Args:
        rows: What to write.
        name: The file, for messages.

    Raises:
        ValueError: A number is NaN or infinite; the message gives its dotted name.
    """
    return "".join(json_text(dict(row), name) + "\n" for row in rows).encode()


def append(path: Path, rows: Iterable[Mapping[str, Any]], *, sync: bool = False) -> int:
    """Append rows after cutting a torn tail; returns the byte at which the first of them begins.

    When it returns the rows survive the death of this process, and with `sync` a power cut too.

    Raises:
        UserError: The file cannot be written.
        ValueError: A number is NaN or infinite; nothing was written.
    """
    text = encode(rows, path.name)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as stream:
            end = stream.tell()
            if end:
                stream.seek(end - 1)
                if stream.read(1) != b"\n":
                    end = cut_torn_tail(stream)
            stream.write(text)
            stream.flush()
            if sync:
                os.fsync(stream.fileno())
    return end


def cut_torn_tail(stream: BinaryIO) -> int:
    """Truncate a file, open to read and write, after its last newline; returns its length."""
    stream.seek(0)
    length = 0
    for raw in stream:
        if raw.endswith(b"\n"):
            length += len(raw)
    stream.truncate(length)
    stream.seek(length)
    return length


def lines(path: Path, *, expected: str, mend: str, whole: bool = False) -> Iterator[Line]:
    """Every whole line, one at a time; a torn tail is passed over.

    Args:
        path: The log.
        expected: What a line should be, for messages: `not {expected}`.
        mend: What the user can do about a damaged or unreadable log.
        whole: The file was written at once, so that its last line counts too; a torn one is damage.

    Raises:
        UserError: The file cannot be read, or one of its lines is not a JSON object.
    """
    try:
        stream = path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {mend}") from None
    start = 0
    with stream:
        for number, raw in enumerate(stream, 1):
            if not raw.endswith(b"\n") and not whole:
                return
            try:
                value = json.loads(raw)
            except (ValueError, RecursionError):
                value = None
            if not isinstance(value, dict):
                raise UserError(f"{path}:{number}: is not {expected}; {mend}")
            yield Line(number, start, value)
            start += len(raw)
