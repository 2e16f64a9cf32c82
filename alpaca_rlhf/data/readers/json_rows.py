"""Rows of JSON lines and of a JSON array, as a stream: at most one row is held at a time.

JSON is taken at its word: NaN and Infinity are no JSON, and an object that names a column twice is
refused, because one of the two values would be lost. A row may have `ROW_LIMIT` bytes.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from alpaca_rlhf.data.readers.problems import BadRow, Unreadable, short

ROW_LIMIT = 16 * 2**20
"""Longest row, in bytes of a line or characters of an element."""

NOT_UTF8 = "not UTF-8 text; save the file as UTF-8"
"""Said of bytes that are no UTF-8."""

_CHUNK = 2**18
_NEAR_END = 16  # characters: a cut literal, number or escape lies so near to the end of a buffer


class Decoder:
    """JSON to values, with what the standard library lets pass."""

    def __init__(self) -> None:
        self._flaws: list[str] = []
        self._json = json.JSONDecoder(object_pairs_hook=self._object, parse_constant=self._constant)

    def whole(self, text: str) -> Any:
        """The value of a whole text, or the `BadRow` that says what is wrong with it."""
        self._flaws.clear()
        try:
            value = self._json.decode(text)
        except (ValueError, RecursionError) as error:
            return BadRow(f"not JSON: {reason(error)}; expected one JSON object a line")
        return self._checked(value)

    def part(self, text: str, at: int) -> tuple[Any, int]:
        """The value that begins at `at`, or its `BadRow`, and where it ends.

        Raises:
            ValueError: There is none, or it goes on beyond the text.
            RecursionError: It is nested too deeply.
        """
        self._flaws.clear()
        value, end = self._json.raw_decode(text, at)
        return self._checked(value), end

    def _checked(self, value: Any) -> Any:
        return BadRow(self._flaws[0]) if self._flaws else value

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            self._flaws.append(f"`{short(twice)}` stands twice in one object; keep one of them")
        return made

    def _constant(self, name: str) -> None:
        self._flaws.append(f"not JSON: {name}; write null where there is no value")


def lines_of(stream: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Lines with their numbers, from 1, without the byte order mark; None for one too long."""
    number = 0
    while line := stream.readline(ROW_LIMIT + 1):
        number += 1
        if len(line) > ROW_LIMIT:
            while line and not line.endswith(b"\n"):
                line = stream.readline(_CHUNK)
            yield number, None
        else:
            yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def line_rows(stream: BinaryIO) -> Iterator[tuple[int, Any]]:
    """Line number and value of every line that is not blank; a broken one is a `BadRow`."""
    decoder = Decoder()
    first = True
    for number, line in lines_of(stream):
        if line is None:
            yield number, BadRow(f"the line is longer than {ROW_LIMIT // 2**20} MiB; split it")
        elif line.strip():
            if first and line.strip() == b"{":
                what = "not JSON lines: one object over several lines; expected an array of objects"
                yield number, Unreadable(f"{what}, or one object a line")
                return
            yield number, _value(line, decoder)
        else:
            continue
        first = False


def array_rows(stream: BinaryIO) -> Iterator[tuple[int, Any]]:
    """Elements of an array, each with its line, up to the first that is not JSON."""
    text = _Text(stream)
    text.skip()
    text.take()  # the opening bracket
    comma = False
    while True:
        char = text.skip()
        if char == "]":
            text.take()
            if text.skip() or text.broken:
                what = "not JSON: something follows the closing bracket of the array"
                yield text.line, Unreadable(what)
            return
        if comma:
            if char != ",":
                what = "not JSON: expected a comma or the closing bracket of the array"
                yield text.line, Unreadable(NOT_UTF8 if text.broken and not char else what)
                return
            text.take()
            text.skip()
        line, value = text.value()
        yield line, value
        if isinstance(value, Unreadable):
            return
        comma = True


class _Text:
    """A window on the text of a stream."""

    def __init__(self, stream: BinaryIO) -> None:
        self.line = 1
        self.broken = False
        """Whether the next bytes are not UTF-8."""
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = Decoder()
        self._text = ""
        self._at = 0
        self._ended = False
        self._cut = False  # whether the window begins within a line

    def skip(self) -> str:
        """Pass white space; the character after it, "" at the end."""
        while True:
            at = self._at
            while at < len(self._text) and self._text[at] in " \t\r\n":
                at += 1
            self._pass(at)
            if at < len(self._text):
                return self._text[at]
            if self._ended:
                return ""
            self._more(_CHUNK)

    def take(self) -> None:
        """Pass one character."""
        self._pass(self._at + 1)

    def value(self) -> tuple[int, Any]:
        """The JSON value that stands here, with its line (of an error, the error's own line)."""
        while True:
            held = len(self._text) - self._at
            try:
                value, end = self._json.part(self._text, self._at)
            except RecursionError as error:
                return self.line, Unreadable(f"not JSON: {reason(error)}")
            except ValueError as error:
                at = error.pos if isinstance(error, json.JSONDecodeError) else self._at
                torn = at >= len(self._text) - _NEAR_END or "Unterminated" in str(error)
                if self._ended or not torn:
                    return self._refusal(error, len(self._text) if self.broken and torn else at)
            else:
                # A number at the end of the window may go on.
                if end < len(self._text) or self._ended:
                    line = self.line
                    self._pass(end)
                    return line, value
            if held > ROW_LIMIT:
                what = f"the row that begins here does not end within {ROW_LIMIT:,} characters"
                return self.line, Unreadable(what)
            self._more(max(_CHUNK, held))

    def _refusal(self, error: ValueError, at: int) -> tuple[int, Unreadable]:
        line = self.line + self._text.count("\n", self._at, at)
        if self.broken and at == len(self._text):
            return line, Unreadable(NOT_UTF8)
        known = not self._cut or "\n" in self._text[:at]
        return line, Unreadable(f"not JSON: {reason(error, column=known)}")

    def _pass(self, at: int) -> None:
        self.line += self._text.count("\n", self._at, at)
        self._at = at

    def _more(self, size: int) -> None:
        """Forget what is passed and read on."""
        if self._at:
            self._cut = self._text[self._at - 1] != "\n"
            self._text = self._text[self._at :]
            self._at = 0
        data = self._stream.read(size)
        try:
            self._text += self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            self._text += error.object[: error.start].decode()
            self.broken = self._ended = True
        self._ended = self._ended or not data


def reason(error: Exception, *, column: bool = True) -> str:
    """Why a text is not JSON, in a few words."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} in column {error.colno}" if column else error.msg
    return "nested too deeply" if isinstance(error, RecursionError) else short(str(error), 80)


def _value(line: bytes, decoder: Decoder) -> Any:
    try:
        return decoder.whole(line.decode())
    except UnicodeDecodeError:
        return BadRow(NOT_UTF8)
