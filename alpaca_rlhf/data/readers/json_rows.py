"""Rows of JSON lines and of a JSON array, as a stream: at most one row is in memory at a time.

JSON is read strictly: NaN and Infinity are refused, and so is an object that names a column twice,
because one of the two values would be lost. A row may be at most `ROW_LIMIT` bytes long.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from alpaca_rlhf.data.readers.problems import BadRow, Unreadable, short

ROW_LIMIT = 16 * 2**20
"""Maximum length of a row, in bytes of a line or characters of an array element."""

NOT_UTF8 = "not UTF-8 text; save the file as UTF-8"
"""Message about bytes that are not UTF-8."""

SPEAKERS = {
    "human": "Human", "user": "Human", "prompter": "Human",
    "gpt": "Assistant", "assistant": "Assistant", "chatgpt": "Assistant", "model": "Assistant",
    "bot": "Assistant", "system": "System", "developer": "System",
}  # fmt: skip
"""The speaker, by the `role` or `from` of a message."""

_LIST_OF_OBJECTS = re.compile(r"\[\s*\{")
_ROLE = re.compile(rf"""["'](?:role|from)["']\s*:\s*["'](?:{"|".join(SPEAKERS)})["']""")
_CONTENT = re.compile(r"""["'](?:content|value)["']\s*:""")
_CHUNK = 2**18
# An error this near the end of the window, in characters, may be a literal, number or escape that
# continues beyond it.
_NEAR_END = 16


class Decoder:
    """A JSON decoder that also refuses flaws which the standard library accepts."""

    def __init__(self) -> None:
        self._flaws: list[str] = []
        self._json = json.JSONDecoder(object_pairs_hook=self._object, parse_constant=self._constant)

    def decode(self, text: str) -> Any:
        """The value of a complete text, or the `BadRow` that describes its flaw."""
        self._flaws.clear()
        try:
            value = self._json.decode(text)
        except (ValueError, RecursionError) as error:
            return BadRow(f"not JSON: {reason(error)}; expected one JSON object a line")
        return self._checked(value)

    def decode_at(self, text: str, at: int) -> tuple[Any, int]:
        """The value that begins at `at`, or its `BadRow`, and its end.

        Raises:
            ValueError: There is no value, or it continues beyond the text.
            RecursionError: It is nested too deeply.
        """
        self._flaws.clear()
        value, end = self._json.raw_decode(text, at)
        return self._checked(value), end

    def _checked(self, value: Any) -> Any:
        return BadRow(self._flaws[0]) if self._flaws else value

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        columns = dict(pairs)
        if len(columns) < len(pairs):
            names = [name for name, _ in pairs]
            repeated = next(name for name in names if names.count(name) > 1)
            self._flaws.append(f"`{short(repeated)}` stands twice in one object; keep one of them")
        return columns

    def _constant(self, name: str) -> None:
        self._flaws.append(f"not JSON: {name}; write null where there is no value")


def messages_in(text: object) -> Any:
    """The messages that a whole text holds as JSON; None for any other text or value.

    Messages say who speaks, the first of them in a known name, and what. A text that looks like
    messages from its begin to its end and is no JSON is a `BadRow`.
    """
    if not isinstance(text, str) or not text.lstrip().startswith("["):
        return None
    value = Decoder().decode(text)
    if isinstance(value, BadRow):
        looks_so = _looks_like_messages(text.strip())
        return BadRow("not JSON; write it with json.dumps") if looks_so else None
    are_messages = bool(value) and all(
        isinstance(part, dict) and {"role", "from"} & set(part) and {"content", "value"} & set(part)
        for part in value
    )
    return value if are_messages and _speaks(value[0]) else None


def _looks_like_messages(text: str) -> bool:
    is_list = _LIST_OF_OBJECTS.match(text) is not None and re.search(r"\}\s*\]\Z", text[-64:])
    return bool(is_list and _ROLE.search(text) and _CONTENT.search(text))


def _speaks(message: Mapping[str, Any]) -> bool:
    roles = (message.get("from"), message.get("role"))
    return any(isinstance(role, str) and role in SPEAKERS for role in roles)


def lines_of(stream: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines, from 1, without a byte order mark; None for a line beyond `ROW_LIMIT`."""
    number = 0
    while line := stream.readline(ROW_LIMIT + 1):
        number += 1
        if len(line) > ROW_LIMIT:
            while line and not line.endswith(b"\n"):  # skip the rest of it
                line = stream.readline(_CHUNK)
            yield number, None
        else:
            yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def line_rows(stream: BinaryIO) -> Iterator[tuple[int, Any]]:
    """Number and value of every line that is not blank; a broken one is a `BadRow`."""
    decoder = Decoder()
    first = True
    for number, line in lines_of(stream):
        if line is None:
            yield number, BadRow(f"the line is longer than {ROW_LIMIT // 2**20} MiB; split it")
        elif line.strip():
            if first and line.strip() == b"{":
                flaw = "not JSON lines: one object over several lines; expected an array of objects"
                yield number, Unreadable(f"{flaw}, or one object a line")
                return
            yield number, _value(line, decoder)
        else:
            continue
        first = False


def array_rows(stream: BinaryIO) -> Iterator[tuple[int, Any]]:
    """Line number and value of every element of an array, up to the first that is not JSON."""
    text = _TextWindow(stream)
    text.skip()
    text.take()  # the opening bracket
    comma = False
    while True:
        char = text.skip()
        if char == "]":
            text.take()
            if text.skip() or text.broken:
                flaw = "not JSON: something follows the closing bracket of the array"
                yield text.line, Unreadable(flaw)
            return
        if comma:
            if char != ",":
                flaw = "not JSON: expected a comma or the closing bracket of the array"
                yield text.line, Unreadable(NOT_UTF8 if text.broken and not char else flaw)
                return
            text.take()
            text.skip()
        line, value = text.value()
        yield line, value
        if isinstance(value, Unreadable):
            return
        comma = True


class _TextWindow:
    """A sliding window on the decoded text of a stream."""

    def __init__(self, stream: BinaryIO) -> None:
        self.line = 1
        self.broken = False
        """True if the bytes after the window are not UTF-8."""
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = Decoder()
        self._text = ""
        self._at = 0
        self._ended = False
        self._cut = False  # True if the window begins in the middle of a line

    def skip(self) -> str:
        """Pass white space and return the next character, "" at the end."""
        while True:
            at = self._at
            while at < len(self._text) and self._text[at] in " \t\r\n":
                at += 1
            self._pass(at)
            if at < len(self._text):
                return self._text[at]
            if self._ended:
                return ""
            self._read_more(_CHUNK)

    def take(self) -> None:
        """Pass one character."""
        self._pass(self._at + 1)

    def value(self) -> tuple[int, Any]:
        """Read the JSON value at this position; returns its line (of an error, the error's)."""
        while True:
            held_chars = len(self._text) - self._at
            try:
                value, end = self._json.decode_at(self._text, self._at)
            except RecursionError as error:
                return self.line, Unreadable(f"not JSON: {reason(error)}")
            except ValueError as error:
                at = error.pos if isinstance(error, json.JSONDecodeError) else self._at
                # The value may only be cut by the window's end: read on before refusing it.
                maybe_cut = at >= len(self._text) - _NEAR_END or "Unterminated" in str(error)
                if self._ended or not maybe_cut:
                    end = len(self._text) if self.broken and maybe_cut else at
                    return self._refusal(error, end)
            else:
                # A number at the end of the window may continue.
                if end < len(self._text) or self._ended:
                    line = self.line
                    self._pass(end)
                    return line, value
            if held_chars > ROW_LIMIT:
                flaw = f"the row that begins here does not end within {ROW_LIMIT:,} characters"
                return self.line, Unreadable(flaw)
            # Twice the window each time, so that a long row is decoded few times over.
            self._read_more(max(_CHUNK, held_chars))

    def _refusal(self, error: ValueError, at: int) -> tuple[int, Unreadable]:
        line = self.line + self._text.count("\n", self._at, at)
        if self.broken and at == len(self._text):
            return line, Unreadable(NOT_UTF8)
        column_known = not self._cut or "\n" in self._text[:at]
        return line, Unreadable(f"not JSON: {reason(error, column=column_known)}")

    def _pass(self, at: int) -> None:
        self.line += self._text.count("\n", self._at, at)
        self._at = at

    def _read_more(self, size: int) -> None:
        """Discard the text before this position and read `size` more bytes."""
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
    """A short reason why a text is not JSON."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} in column {error.colno}" if column else error.msg
    return "nested too deeply" if isinstance(error, RecursionError) else short(str(error), 80)


def _value(line: bytes, decoder: Decoder) -> Any:
    try:
        return decoder.decode(line.decode())
    except UnicodeDecodeError:
        return BadRow(NOT_UTF8)
