"""Rows of a JSON array or of JSON lines, plain or gzipped, each with the line it stands on.

A broken row does not end the reading: all of them are counted, and the error names the first one
with its line.
"""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from alpaca_rlhf.config import UserError

T = TypeVar("T")
_DECODER = json.JSONDecoder()
_GZIP_MAGIC = b"\x1f\x8b"
_NOT_UTF8 = "not UTF-8 text; save the file as UTF-8"


class BadRow(Exception):
    """One row cannot be used; the message says what is wrong and what was expected."""


def collect(path: Path, convert: Callable[[dict[str, Any]], list[T]]) -> list[T]:
    """What `convert` makes of every row of a file.

    Args:
        path: A JSON array of objects, or one JSON object a line; either may be gzipped.
        convert: Turns a row into records, or raises `BadRow`.

    Raises:
        UserError: The file cannot be read, is empty, or has broken rows. The message starts with
            `file:line:` of the first broken row and counts each kind of problem.
    """
    made: list[T] = []
    problems: Counter[str] = Counter()
    first: tuple[int, str] | None = None
    total = 0
    for line, row in _rows(path):
        total += 1
        try:
            if isinstance(row, BadRow):
                raise row
            if not isinstance(row, dict):
                raise BadRow(f"expected an object with named columns, got {type_name(row)}")
            made.extend(convert(row))
        except BadRow as problem:
            problems[str(problem)] += 1
            first = first or (line, str(problem))
    if first is not None:
        line, message = first
        broken = sum(problems.values())
        raise UserError(
            f"{path}:{line}: {message} ({broken} of {total} rows broken{_kinds(problems)})"
        )
    if not total:
        raise UserError(f"{path}: no rows in it; expected a JSON array or one JSON object a line")
    return made


def text_column(row: Mapping[str, Any], names: tuple[str, ...], *, required: bool = True) -> str:
    """The text of the first of the columns `names` that is there; "" if none is and none must."""
    for name in names:
        if row.get(name) is not None:
            return checked_text(row[name], f"column `{name}`")
    if required:
        wanted = " or ".join(f"`{name}`" for name in names)
        columns = ", ".join(sorted(row)) or "none"
        raise BadRow(f"expected a column {wanted}; columns here: {columns}")
    return ""


def checked_text(value: object, what: str) -> str:
    """`value` if it is text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise BadRow(f"{what} must be text, got {type_name(value)}")
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise BadRow(f"{what} holds half of a surrogate pair (a broken \\u escape)")
    return value


def type_name(value: object) -> str:
    """The JSON name of a value's type."""
    names = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "true or false",
        type(None): "null",
    }
    return names.get(type(value), "a number")


def _kinds(problems: Counter[str]) -> str:
    if len(problems) == 1:
        return ""
    listed = [f"{count} x {message}" for message, count in problems.most_common(5)]
    return ": " + "; ".join(listed + (["..."] if len(problems) > 5 else []))


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Line number and value of every row; a row that is not JSON is a `BadRow`."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == _GZIP_MAGIC
        with gzip.open(path) if packed else path.open("rb") as stream:
            yield from _parsed(stream)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def _parsed(stream: Iterable[bytes]) -> Iterator[tuple[int, Any]]:
    lines = enumerate(stream, 1)
    started = False
    for number, line in lines:
        line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if not line.strip():
            continue
        if not started:
            started = True
            if line.lstrip().startswith(b"["):
                yield from _array_bytes(b"".join([line, *(rest for _, rest in lines)]), number)
                return
        yield number, _loads(line)


def _loads(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError:
        return BadRow(_NOT_UTF8)
    except (ValueError, RecursionError) as error:
        return BadRow(f"not JSON: {_reason(error)}; expected one JSON object a line")


def _array_bytes(data: bytes, line: int) -> Iterator[tuple[int, Any]]:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        yield line + data.count(b"\n", 0, error.start), BadRow(_NOT_UTF8)
        return
    yield from _array(text, line)


def _array(text: str, line: int) -> Iterator[tuple[int, Any]]:
    """Elements of a JSON array, each with its line, up to the first that is not JSON."""
    at = _skip(text, 0) + 1
    seen = 0
    comma = False
    while True:
        at = _skip(text, at)
        line, seen = line + text.count("\n", seen, at), at
        if text.startswith("]", at):
            if text[at + 1 :].strip():
                yield line, BadRow("not JSON: something follows the closing bracket of the array")
            return
        if comma:
            if not text.startswith(",", at):
                yield line, BadRow("not JSON: expected a comma or the closing bracket of the array")
                return
            at = _skip(text, at + 1)
            line, seen = line + text.count("\n", seen, at), at
        try:
            value, at = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            within = error.pos if isinstance(error, json.JSONDecodeError) else at
            yield line + text.count("\n", seen, within), BadRow(f"not JSON: {_reason(error)}")
            return
        yield line, value
        comma = True


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} in column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)
