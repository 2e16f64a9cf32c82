"""Rows of a file, each with the line it stands on.

JSON and JSON lines, plain or gzipped; CSV; Parquet; and datasets that the `datasets` library knows.
A broken row does not end the reading: all of them are counted, and the error names the first one
with its line.
"""

from __future__ import annotations

import gzip
import re
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, TypeVar, cast

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.provenance import sha256_of
from alpaca_rlhf.data.readers.json_rows import array_rows, line_rows
from alpaca_rlhf.data.readers.problems import (
    SHOWN,
    BadRow,
    MarkedBad,
    Problems,
    Unreadable,
    listed,
    short,
)
from alpaca_rlhf.data.readers.reading import Reading, reasons_text
from alpaca_rlhf.data.readers.tables import (
    HUB,
    csv_rows,
    dataset_of,
    dataset_rows,
    parquet_length,
    parquet_rows,
)

__all__ = [
    "BadRow",
    "RowFile",
    "Rows",
    "Unreadable",
    "checked_text",
    "collect",
    "open_rows",
    "text_column",
    "type_name",
]

T = TypeVar("T")

Container = Literal["JSON", "JSON lines", "CSV", "Parquet", "dataset"]
"""How rows are packed."""

_SAVED = ("dataset_info.json", "dataset_dict.json")
_GZIP = b"\x1f\x8b"
_PARQUET = b"PAR1"
_FOREIGN = {
    b"PK\x03\x04": "a zip archive or a spreadsheet",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ": "compressed with xz",
    b"ARROW1": "an Arrow file",
    b"SQLite format 3": "a database",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    _PARQUET: "a gzipped Parquet file",
}


class Rows(Protocol):
    """Rows that can be read again and again."""

    name: str
    """What the user calls them."""
    origin: str
    """Their `source`, where a row has none of its own: the name of the file."""
    container: Container
    """How they are packed."""

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        """Number (of the line; where there are none, of the row) and value; `BadRow` if broken."""
        ...

    def place(self, number: int) -> str:
        """Where a row stands, for a message."""
        ...

    def done(self) -> float:
        """The share of it that has been read, from 0 to 1."""
        ...

    def facts(self) -> dict[str, Any]:
        """What tells these rows from others, for a manifest."""
        ...


class RowFile:
    """The rows of one file.

    Raises:
        UserError: It is not there, is no file, or is packed in a way that is not read here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)
        self.origin = path.name
        with _told(path):
            if not stat.S_ISREG(path.stat().st_mode):  # a pipe could be read only once
                raise UserError(f"{path}: cannot be read: not a plain file")
            with path.open("rb") as raw:
                head = raw.read(16)
        self._packed = head.startswith(_GZIP)
        if self._packed:
            with _told(path), gzip.open(path) as unpacked:
                head = unpacked.read(16)
        suffix = "".join(path.suffixes[-2:]).lower().removesuffix(".gz")
        self.container: Container = _container(path, head, suffix, packed=self._packed)
        self._raw: BinaryIO | None = None
        self._length = 0
        self._seen = 0

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        """Line (of Parquet: row) number and value of every row; a broken one is a `BadRow`.

        Raises:
            UserError: The file cannot be read to its end.
        """
        if self.container == "Parquet":
            self._length = parquet_length(self.path)
            for number, row in parquet_rows(self.path):
                self._seen = number
                yield number, row
            return
        with _told(self.path), self.path.open("rb") as raw:
            self._raw, self._length = raw, self.path.stat().st_size
            with cast(BinaryIO, gzip.open(raw)) if self._packed else raw as stream:
                if self.container == "CSV":
                    yield from csv_rows(stream, self.path)
                elif _begins_array(stream):
                    self.container = "JSON"
                    yield from array_rows(stream)
                else:
                    yield from line_rows(stream)
            self._raw = None

    def place(self, number: int) -> str:
        """`file:line`, or `file: row 7`."""
        if self.container == "Parquet":
            return f"{self.path}: row {number}"
        return f"{self.path}:{number}"

    def done(self) -> float:
        """The share of it that has been read."""
        if self._raw is not None and not self._raw.closed:
            self._seen = self._raw.tell()
        return self._seen / self._length if self._length else 0.0

    def facts(self) -> dict[str, Any]:
        """Its size and sha256.

        Raises:
            UserError: It cannot be read.
        """
        return {"bytes": self.path.stat().st_size, "sha256": sha256_of(self.path)}


class RowDataset:
    """The rows of a dataset on the hub, or of one that was saved in a folder.

    Raises:
        UserError: It cannot be had.
    """

    container: Container = "dataset"

    def __init__(self, name: str) -> None:
        self.name = self.origin = name
        self.dataset = dataset_of(name)
        self._seen = 0

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        """Row number and columns."""
        for number, row in dataset_rows(self.dataset, self.name):
            self._seen = number
            yield number, row

    def place(self, number: int) -> str:
        """`name: row 7`."""
        return f"{self.name}: row {number}"

    def done(self) -> float:
        """The share of it that has been read."""
        return self._seen / max(1, len(self.dataset))

    def facts(self) -> dict[str, Any]:
        """Its fingerprint, and the licence that it names."""
        named = self.dataset.info.license
        return {"fingerprint": self.dataset._fingerprint} | ({"licence": named} if named else {})


def open_rows(name: str) -> RowFile | RowDataset:
    """The rows of a file, of a dataset on the hub (`hub:owner/name[:split]`) or of a saved one.

    Raises:
        UserError: They cannot be had.
    """
    if name.startswith(HUB) or any((Path(name) / one).is_file() for one in _SAVED):
        return RowDataset(name)
    return RowFile(Path(name))


def collect(
    path: Path, convert: Callable[[dict[str, Any]], list[T]], reading: Reading | None = None
) -> list[T]:
    """What `convert` makes of every row of a file.

    Args:
        path: A JSON array of objects or one JSON object a line, either may be gzipped; a CSV whose
            name says so; a Parquet file.
        convert: Turns a row into records, or raises `BadRow` or `MarkedBad`.
        reading: Renames columns, may leave broken rows out, and takes the account of the rows.

    Raises:
        UserError: The file cannot be read, is empty, has broken rows, or nothing is left of it. The
            message starts with
            `file:line:` of the first broken row and counts each kind of problem.
    """
    made: list[T] = []
    problems = Problems()
    reading = reading if reading is not None else Reading("instructions")
    account = reading.account
    account.name = account.name or str(path)
    rows = RowFile(path)
    for number, row in rows:
        account.rows += 1
        try:
            records = convert(reading.prepared(columns_of(row)))
        except (BadRow, MarkedBad) as problem:
            account.left_out[problem.reason] += 1
            place = rows.place(number)
            if isinstance(problem, BadRow):
                problems.note(place, str(problem))
            if isinstance(problem, Unreadable):
                raise UserError(
                    f"{problems.summary(account.rows)}; what follows cannot be read"
                ) from None
            if len(account.places) < SHOWN:
                account.places.append(f"{place}: {problem}")
            continue
        if not records:
            account.left_out["unusable"] += 1
        made.extend(records)
    if problems.total and not reading.drop_broken:
        raise UserError(problems.summary(account.rows) + reading.way_out)
    if not account.rows:
        raise UserError(no_rows(str(path)))
    if not account.used and (account.left_out["bad label"] or problems.total):
        left_out = reasons_text(account.left_out)
        raise UserError(f"{path}: nothing is left of its {account.rows} rows: {left_out}")
    return made


def no_rows(name: str) -> str:
    """What to say of a file without rows."""
    return f"{name}: no rows in it; expected a JSON array or one JSON object a line"


def columns_of(row: Any) -> dict[str, Any]:
    """A row as it was read, if it is one.

    Raises:
        BadRow: It is broken, or something else than named columns.
    """
    if isinstance(row, BadRow):
        raise row
    if not isinstance(row, dict):
        raise BadRow(f"expected an object with named columns, got {type_name(row)}")
    return row


def text_column(row: Mapping[str, Any], names: tuple[str, ...], *, required: bool = True) -> str:
    """The text of the first of the columns `names` that is there; "" if none is and none must."""
    for name in names:
        if row.get(name) is not None:
            return checked_text(row[name], f"column `{name}`")
    if required:
        wanted = " or ".join(f"`{name}`" for name in names)
        raise BadRow(f"expected a column {wanted}; columns here: {listed(list(row))}")
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
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return names.get(type(value), f"a value of type {type(value).__name__}")


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn what the system and gzip refuse into one line."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: no such file{_hub_hint(path)}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {short(str(error), 120)}") from None


def _hub_hint(path: Path) -> str:
    """The commands for a dataset on the hub, if the path looks like the name of one."""
    name = str(path)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) or path.parent.exists():
        return ""
    if path.suffix.lower() in (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".gz"):
        return ""
    return f"; a dataset on the hub is read by: alpaca-rlhf import {HUB}{name} --out FOLDER"


def _container(path: Path, head: bytes, suffix: str, *, packed: bool) -> Container:
    if head.startswith(_PARQUET) and not packed:
        return "Parquet"
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            raise UserError(
                f"{path}: is {what}; expected JSON, JSON lines (both also gzipped), CSV or "
                "Parquet: unpack or convert it"
            )
    if suffix.endswith(".parquet"):
        raise UserError(f"{path}: is no Parquet file, in spite of its name; is it cut or damaged?")
    return "CSV" if suffix.endswith((".csv", ".tsv")) else "JSON lines"


def _begins_array(stream: BinaryIO) -> bool:
    """Whether the first character is an opening bracket; the stream stands at its begin again."""
    head = stream.read(1024)
    while head and not head.strip(b"\xef\xbb\xbf \t\r\n"):
        head = stream.read(1024)
    stream.seek(0)
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
