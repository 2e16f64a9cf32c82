"""Rows of a file, each with its line number.

JSON and JSON lines, plain or gzipped; CSV; Parquet; and datasets of the `datasets` library. A
broken row does not stop the reading: all broken rows are counted, and the error names the first one
with its line.
"""

from __future__ import annotations

import codecs
import difflib
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
from alpaca_rlhf.core.shell_words import quoted
from alpaca_rlhf.data.readers.columns import renamed
from alpaca_rlhf.data.readers.hints import (
    columns_argument,
    columns_of_one_object,
    naming_flag,
    suggested_columns,
    taking_rows_out,
    whole_dialogue,
)
from alpaca_rlhf.data.readers.json_rows import array_rows, line_rows
from alpaca_rlhf.data.readers.message_trees import gathered, numbers_of
from alpaca_rlhf.data.readers.problems import (
    MAX_SHOWN,
    BadRow,
    LeftOut,
    NoColumn,
    Problems,
    Unreadable,
    listed,
    short,
)
from alpaca_rlhf.data.readers.read_limit import ReadLimit
from alpaca_rlhf.data.readers.reading import Reading, reasons_text, refuse_zero_and_one
from alpaca_rlhf.data.readers.tables import (
    HUB,
    csv_rows,
    dataset_of,
    dataset_rows,
    parquet_length,
    parquet_rows,
)
from alpaca_rlhf.data.readers.values import type_name

__all__ = [
    "BadRow",
    "RowFile",
    "Rows",
    "Unreadable",
    "collect",
    "open_rows",
]

T = TypeVar("T")

Container = Literal["JSON", "JSON lines", "CSV", "Parquet", "dataset"]
"""The file format that holds rows."""

_SAVED_DATASET_FILES = ("dataset_info.json", "dataset_dict.json")
_GZIP_MAGIC = b"\x1f\x8b"
_PARQUET_MAGIC = b"PAR1"
_START_BYTES = 2**16
_FEWEST_ZEROS = 2
_BLANKS = b"\xef\xbb\xbf \t\r\n"
# First bytes of formats that are refused by name.
_FOREIGN_MAGIC = {
    b"PK\x03\x04": "a zip archive or a spreadsheet",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ": "compressed with xz",
    b"ARROW1": "an Arrow file",
    b"\xff\xff\xff\xff": "an Arrow shard of a saved dataset (give the folder that holds its "
    "dataset_info.json)",
    b"\x80\x02": "a pickle, which may run code when it is opened",
    b"\x80\x03": "a pickle, which may run code when it is opened",
    b"\x80\x04": "a pickle, which may run code when it is opened",
    b"\x80\x05": "a pickle, which may run code when it is opened",
    b"\x93NUMPY": "an array of NumPy",
    b"\x89HDF": "an HDF5 file",
    b"7z\xbc\xaf": "a 7z archive",
    b"SQLite format 3": "a database",
    b"%PDF": "a PDF",
    b"\xd0\xcf\x11\xe0": "an old spreadsheet or document",
    b"version https://": "a pointer of git-lfs (git lfs pull fetches the file)",
    _PARQUET_MAGIC: "a gzipped Parquet file",
}


class Rows(Protocol):
    """Rows that can be read repeatedly."""

    name: str
    """Name as given by the user."""
    origin: str
    """Default `source` of a row: the name of the file."""
    container: Container
    """The file format that holds them."""

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        """Number (of the line or, without lines, of the row) and value; a `BadRow` if broken."""
        ...

    def place(self, number: int) -> str:
        """The place of a row, for a message."""
        ...

    def done(self) -> float:
        """The fraction read so far, from 0 to 1."""
        ...

    def facts(self) -> dict[str, Any]:
        """The identity of these rows, for a manifest."""
        ...


class RowFile:
    """The rows of one file; flat messages gathered into trees (see `message_trees`).

    Args:
        path: The file.
        columns: New names of columns, for telling what is a message.
        limit: The most that is read.

    Raises:
        UserError: It does not exist, is not a plain file, or has an unsupported format.
    """

    def __init__(
        self,
        path: Path,
        columns: Mapping[str, str] | None = None,
        limit: ReadLimit | None = None,
    ) -> None:
        self.path = path
        self._columns = columns or {}
        self._limit = limit
        self.name = str(path)
        self.origin = path.name
        with _reading(path):
            mode = path.stat().st_mode
            if stat.S_ISDIR(mode):
                raise UserError(f"{path}: is a folder; give one of the files in it")
            if not stat.S_ISREG(mode):  # a pipe can be read only once
                raise UserError(f"{path}: cannot be read: not a plain file")
            with path.open("rb") as raw:
                head = raw.read(16)
        self._gzipped = head.startswith(_GZIP_MAGIC)
        if self._gzipped:
            with _reading(path), gzip.open(path) as unpacked:
                head = unpacked.read(16)
        suffix = "".join(path.suffixes[-2:]).lower().removesuffix(".gz")
        self.container: Container = _container(path, head, suffix, gzipped=self._gzipped)
        self._raw: BinaryIO | None = None
        self._length = 0  # bytes; rows of Parquet
        self._position = 0

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        """Line (of Parquet: row) number and value of every row; a broken one is a `BadRow`.

        Raises:
            UserError: The file cannot be read to its end, or holds more than the limit.
        """
        yield from gathered(self._limited_rows(), self._columns)

    def _limited_rows(self) -> Iterator[tuple[int, Any]]:
        limit = self._limit
        for n_rows, row in enumerate(self._rows(), start=1):
            if limit is not None and n_rows > limit.rows:
                raise UserError(limit.rows_message(self.path))
            yield row

    def _rows(self) -> Iterator[tuple[int, Any]]:
        if self.container == "Parquet":
            self._length = parquet_length(self.path)
            for number, row in parquet_rows(self.path, self._limit):
                self._position = number
                yield number, row
            return
        with _reading(self.path), self.path.open("rb") as raw:
            self._raw, self._length = raw, self.path.stat().st_size
            with cast(BinaryIO, gzip.open(raw)) if self._gzipped else raw as unpacked:
                stream = unpacked
                if self._limit is not None:
                    stream = cast(BinaryIO, _LimitedStream(unpacked, self.path, self._limit))
                self._refuse_foreign_text(stream)
                if self.container == "CSV":
                    yield from csv_rows(stream, self.path, self._columns, gzipped=self._gzipped)
                elif _begins_array(stream):
                    self.container = "JSON"
                    yield from array_rows(stream)
                else:
                    self._refuse_one_object(stream)
                    yield from line_rows(stream)
            self._raw = None

    def _refuse_foreign_text(self, stream: BinaryIO) -> None:
        """Refuse text that is no rows, with the command that makes them; leaves the stream at 0."""
        start = stream.read(_START_BYTES)
        stream.seek(0)
        source = f"gzip -dc {quoted(self.path)} |" if self._gzipped else ""
        name = self.path.name.removesuffix(".gz") if self._gzipped else self.path.name
        target = quoted(self.path.with_name(f"lines-{name}"))
        file = "" if self._gzipped else f" < {quoted(self.path)}"
        # 1. Lines of old Macs, which end with a carriage return alone. In JSON it is a blank.
        is_table = self.container == "CSV" or start.lstrip(_BLANKS).startswith(b"{")
        if is_table and b"\r" in start.strip() and b"\n" not in start:
            command = f"{source} tr '\\r' '\\n'{file} > {target}".strip()
            raise UserError(f"{self.path}: its lines end with carriage returns alone: {command}")
        # 2. Lines of plain text.
        plain = self.path.name.lower().removesuffix(".gz").endswith((".txt", ".text", ".md"))
        if plain and start.strip() and not start.lstrip(_BLANKS).startswith((b"{", b"[")):
            code = 'import json, sys; [print(json.dumps({"prompt": line.strip()})) for line in '
            code += "sys.stdin.buffer.read().decode().splitlines() if line.strip()]"
            target = quoted(self.path.with_name(name).with_suffix(".jsonl"))
            command = f"{source} python3 -c {quoted(code)}{file} > {target}".strip()
            raise UserError(f"{self.path}: is plain text; if each line is a prompt: {command}")

    def _refuse_one_object(self, stream: BinaryIO) -> None:
        """Refuse a file whose rows lie within one object; leaves the stream at its start."""
        names = columns_of_one_object(stream)
        stream.seek(0)
        if names:
            command = taking_rows_out(self.path, names[0], gzipped=self._gzipped)
            others = f" (others in {listed(names[1:])})" if len(names) > 1 else ""
            raise UserError(
                f"{self.path}: is one object, and its rows lie in `{short(names[0])}`{others}; "
                f"take them out: {command}"
            )

    def place(self, number: int) -> str:
        """`file:line`, or `file: row 7`."""
        if self.container == "Parquet":
            return f"{self.path}: row {number}"
        return f"{self.path}:{number}"

    def done(self) -> float:
        """The fraction read so far, from 0 to 1."""
        if self._raw is not None and not self._raw.closed:
            self._position = self._raw.tell()
        return self._position / self._length if self._length else 0.0

    def facts(self) -> dict[str, Any]:
        """Its size and sha256.

        Raises:
            UserError: It cannot be read.
        """
        return {"bytes": self.path.stat().st_size, "sha256": sha256_of(self.path)}


class _LimitedStream:
    """A stream that refuses to be read beyond a limit.

    Args:
        stream: The unpacked file, at its start.
        path: Its name, for the message.
        limit: The limit.
    """

    def __init__(self, stream: BinaryIO, path: Path, limit: ReadLimit) -> None:
        self._stream = stream
        self._path = path
        self._limit = limit
        self._n_bytes = 0

    def read(self, size: int) -> bytes:
        """At most so many bytes."""
        return self._counted(self._stream.read(size))

    def readline(self, size: int) -> bytes:
        """A line, or so many bytes of it."""
        return self._counted(self._stream.readline(size))

    def seek(self, position: int) -> int:
        """Go to a position."""
        self._n_bytes = position
        return self._stream.seek(position)

    def _counted(self, data: bytes) -> bytes:
        self._n_bytes += len(data)
        if self._n_bytes > self._limit.unpacked_bytes:
            raise UserError(self._limit.bytes_message(self._path))
        return data


class RowDataset:
    """The rows of a dataset on the hub, or of one saved in a folder; else as `RowFile`.

    Raises:
        UserError: It could not be loaded.
    """

    container: Container = "dataset"

    def __init__(self, name: str, columns: Mapping[str, str] | None = None) -> None:
        self._columns = columns or {}
        self.name = self.origin = name
        self.dataset = dataset_of(name)
        self._position = 0

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        """Row number and columns."""
        yield from gathered(self._rows(), self._columns)

    def _rows(self) -> Iterator[tuple[int, Any]]:
        for number, row in dataset_rows(self.dataset, self.name):
            self._position = number
            yield number, row

    def place(self, number: int) -> str:
        """`name: row 7`."""
        return f"{self.name}: row {number}"

    def done(self) -> float:
        """The fraction read so far, from 0 to 1."""
        return self._position / max(1, len(self.dataset))

    def facts(self) -> dict[str, Any]:
        """Its fingerprint and, if it names one, its licence."""
        licence = self.dataset.info.license
        facts = {"fingerprint": self.dataset._fingerprint}
        return facts | ({"licence": licence} if licence else {})


def open_rows(name: str, columns: Mapping[str, str] | None = None) -> RowFile | RowDataset:
    """The rows of a file, of a dataset on the hub (`hub:owner/name[:split]`) or of a saved one.

    `columns` are new names of columns (see `columns.column_names`).

    Raises:
        UserError: They could not be opened.
    """
    if name.startswith(HUB) or any((Path(name) / f).is_file() for f in _SAVED_DATASET_FILES):
        return RowDataset(name, columns)
    return RowFile(Path(name), columns)


def collect(
    path: Path, convert: Callable[[dict[str, Any]], list[T]], reading: Reading | None = None
) -> list[T]:
    """Convert every row of a file.

    Args:
        path: A JSON array of objects or one JSON object a line, either may be gzipped; a CSV with
            its suffix; a Parquet file.
        convert: Turns a row into records, or raises `BadRow` or `LeftOut`.
        reading: Renames columns, may leave broken rows out, limits what is read, and takes the
            account of the rows.

    Raises:
        UserError: The file cannot be read, is empty, too large or has broken rows, or nothing is
            left of it. The message starts with `file:line:` of the first broken row and counts
            each kind of problem.
    """
    records: list[T] = []
    problems = Problems()
    reading = reading if reading is not None else Reading("instructions")
    account = reading.account
    account.name = account.name or str(path)
    without_column = valid_left_out = 0
    foreign_row: dict[str, Any] = {}
    rows = RowFile(path, reading.columns, reading.limit)
    for number, row in rows:
        n_rows = len(numbers_of(number, row))
        account.rows += n_rows
        try:
            row_records = convert(reading.prepared(columns_of(row)))
            for record in row_records:
                reading.refuse(record)
        except (BadRow, LeftOut) as problem:
            account.left_out[problem.reason] += n_rows
            place = rows.place(number)
            if isinstance(problem, BadRow):
                place = rows.place(problem.number or number)
                problems.note(place, str(problem), n_rows)
                if isinstance(problem, NoColumn):
                    without_column += 1
                    foreign_row = foreign_row or renamed(row, reading.columns)
            else:
                valid_left_out += n_rows
            if isinstance(problem, Unreadable):
                raise UserError(
                    f"{problems.summary(account.rows)}; what follows cannot be read"
                ) from None
            if len(account.places) < MAX_SHOWN:
                account.places.append(f"{place}: {problem}")
            continue
        account.note_records(len(row_records), n_rows)
        records.extend(row_records)
    if problems.total and not reading.drop_broken:
        foreign = foreign_row if without_column == account.rows else None
        raise UserError(problems.summary(account.rows) + _next_step(path, reading, foreign))
    if not account.rows:
        raise UserError(no_rows(str(path)))
    refuse_zero_and_one(str(path), account.preferences, reading.columns)
    if not account.used and (valid_left_out or problems.total):
        left_out = reasons_text(account.left_out)
        raise UserError(f"{path}: nothing is left of its {account.rows} rows: {left_out}")
    return records


def _next_step(path: Path, reading: Reading, foreign_row: dict[str, Any] | None) -> str:
    """The next steps after broken rows, for the end of the message that refuses them.

    Args:
        path: The file.
        reading: The flags of the command, and the account of all rows.
        foreign_row: The first row, if none has the columns that are read.
    """
    if reading.way_out:
        return reading.way_out
    columns = f" --columns {columns_argument(reading.columns)}" if reading.columns else ""
    check = f"alpaca-rlhf data check {quoted(path)}{columns}"
    if foreign_row is not None and reading.columns_flag:
        dialogue = whole_dialogue(foreign_row)
        if dialogue and not suggested_columns(foreign_row, reading.kind):
            return f"; {dialogue}"
        naming = naming_flag(foreign_row, reading.kind, reading.columns_flag, reading.columns)
        return f"; if they hold the texts under other names, say which: {naming}, or see: {check}"
    if not reading.drop_flag:
        return ""
    # Where no row is good, leaving out the broken ones would leave nothing.
    leave_out = f" leave them out with {reading.drop_flag}," if reading.account.used else ""
    return f"; mend them,{leave_out} or see all of them with: {check}"


def no_rows(name: str) -> str:
    """The message about a file without rows."""
    return f"{name}: no rows in it; expected a JSON array or one JSON object a line"


def columns_of(row: Any) -> dict[str, Any]:
    """The columns of a row as it was read.

    Raises:
        LeftOut: It is a message that belongs to no tree.
        BadRow: It is broken, or is not an object with named columns.
    """
    if isinstance(row, (BadRow, LeftOut)):
        raise row
    if not isinstance(row, dict):
        raise BadRow(f"expected an object with named columns, got {type_name(row)}")
    return row


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn errors of the operating system and of gzip into a `UserError` of one line."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: no such file{_hub_hint(path) or _near_hint(path)}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{path}: cannot be unpacked ({short(str(error), 120)}); it is cut short or damaged: "
            "copy or download it again"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {short(str(error), 120)}") from None


def _hub_hint(path: Path) -> str:
    """The command for a dataset on the hub, if the path looks like the name of one."""
    name = str(path)
    address = re.match(r"https?:/+(?:www\.)?huggingface\.co/datasets/([\w.-]+/[\w.-]+)", name)
    if address is not None or name.startswith(HUB):
        name = address[1] if address is not None else name.removeprefix(HUB)
        return (
            f"; write it to a file first: alpaca-rlhf import {quoted(HUB + name)} --out FOLDER, "
            "then give the file of FOLDER"
        )
    if re.match("https?:", name):
        return "; an address is not read: download the file first"
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) or path.parent.exists():
        return ""
    if path.suffix.lower() in (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".gz"):
        return ""
    return f"; a dataset on the hub is read by: alpaca-rlhf import {HUB}{name} --out FOLDER"


def _near_hint(path: Path) -> str:
    """The file that was meant, if there is one of a similar name, or how one file is made."""
    text = str(path)
    if "*" in text or "," in text:
        return "; one file is read: put several together with cat, or see alpaca-rlhf import --help"
    try:
        names = [neighbour.name for neighbour in path.parent.iterdir() if neighbour.is_file()]
    except OSError:  # no such folder
        return f"; there is no folder {path.parent} either"
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def _container(path: Path, head: bytes, suffix: str, *, gzipped: bool) -> Container:
    if head.startswith(_PARQUET_MAGIC) and not gzipped:
        return "Parquet"
    for magic, description in _FOREIGN_MAGIC.items():
        if head.startswith(magic):
            raise UserError(
                f"{path}: is {description}; expected JSON, JSON lines (both also gzipped), CSV or "
                "Parquet: unpack or convert it"
            )
    if suffix.endswith(".parquet"):
        raise UserError(
            f"{path}: is not a Parquet file, in spite of its name; is it truncated or damaged?"
        )
    encoding = _wide_encoding(head)
    if encoding is not None:
        name = path.name.removesuffix(".gz") if gzipped else path.name
        source = f"gzip -dc {quoted(path)} | " if gzipped else ""
        command = f"{source}iconv -f {encoding} -t UTF-8{'' if gzipped else f' {quoted(path)}'}"
        target = quoted(path.with_name(f"utf8-{name}"))
        raise UserError(f"{path}: is UTF-16 text; convert it: {command} > {target}")
    if b"\x00" in head:
        raise UserError(
            f"{path}: is not text; expected JSON, JSON lines (both also gzipped), CSV or Parquet"
        )
    return "CSV" if suffix.endswith((".csv", ".tsv")) else "JSON lines"


def _wide_encoding(head: bytes) -> str | None:
    """The encoding of text in UTF-16, with or without a byte order mark; None for other bytes."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    pairs = [(not first, not second) for first, second in zip(head[::2], head[1::2], strict=False)]
    zeros = [pair for pair in pairs if any(pair)]
    if len(zeros) < _FEWEST_ZEROS or len(set(zeros)) > 1 or all(zeros[0]):
        return None
    return "UTF-16BE" if zeros[0][0] else "UTF-16LE"


def _begins_array(stream: BinaryIO) -> bool:
    """True if the first character is an opening bracket; leaves the stream at its start."""
    head = stream.read(1024)
    while head and not head.strip(_BLANKS):
        head = stream.read(1024)
    stream.seek(0)
    return head.lstrip(_BLANKS).startswith(b"[")
