"""Rows of tables: CSV, Parquet, and what the `datasets` library knows. All are streams.

CSV is UTF-8 with a header; the delimiter (comma, semicolon, tab or bar) is the one that finds known
columns. Its cells are text, so columns that hold lists hold them as JSON.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.data.readers.json_rows import ROW_LIMIT, Decoder, lines_of
from alpaca_rlhf.data.readers.problems import BadRow, Unreadable, listed, short

HUB = "hub:"
"""What the name of a dataset on the hub begins with: `hub:owner/name` or `hub:owner/name:split`."""

KNOWN = frozenset(
    "instruction prompt input context output completion response source system history messages "
    "conversations instances chosen rejected margin user_input completion_a completion_b output_1 "
    "output_2 preference responses completions ranks scores ratings annotator label kto_tag".split()
)
"""Columns that the readers look at."""

_LISTS: tuple[str, ...] = ("messages", "conversations", "instances", "history")
_LISTS += ("responses", "completions", "ranks", "scores", "ratings")
_MAYBE = (*_LISTS, "margin", "preference")
_BATCH = 256


def csv_rows(stream: BinaryIO, path: Path) -> Iterator[tuple[int, Any]]:
    """Line number and named cells of every record.

    Raises:
        UserError: The header names a column twice, or the file is not UTF-8.
    """
    csv.field_size_limit(ROW_LIMIT)
    lines = _text_lines(stream, path)
    first = next(((number, line) for number, line in lines if line.strip()), None)
    if first is None:
        return
    number, line = first
    delimiter = max(",;\t|", key=lambda one: len(KNOWN & set(_cells(line, one))))
    names = _cells(line, delimiter)
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{path}:{number}: the header names `{short(twice)}` twice; rename one")
    last = number

    def rest() -> Iterator[str]:
        nonlocal last
        for number, text in lines:
            last = number
            yield text

    reader = csv.reader(rest(), delimiter=delimiter, strict=True)
    decoder = Decoder()
    while True:
        begun = last + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield begun, Unreadable(f"not CSV: {error}; the record begins here, check its quotes")
            return
        if cells is None:
            return
        if cells:
            yield begun, _record(names, cells, decoder)


def parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Row number, from 1, and columns of every row, a few hundred rows at a time.

    Raises:
        UserError: It cannot be read.
    """
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise UserError(f"{path}: two columns have the same name; rename one")
            for batch in file.iter_batches(batch_size=_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        why = short(" ".join(str(error).split()), 160)
        raise UserError(
            f"{path}: cannot be read as Parquet after row {number}: {why}; is it cut or damaged?"
        ) from None


def parquet_length(path: Path) -> int:
    """How many rows its footer promises; 0 if it cannot be read."""
    import pyarrow
    from pyarrow import parquet

    try:
        return int(parquet.read_metadata(path).num_rows)
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, MemoryError):
        return 0


def dataset_of(name: str) -> Any:
    """A `datasets.Dataset`: from the hub or its cache (`hub:...`), or saved in a folder.

    Raises:
        UserError: It cannot be had, or it has several splits and none is named.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        if name.startswith(HUB):
            owner, _, split = name.removeprefix(HUB).partition(":")
            found = datasets.load_dataset(owner, split=split or None)
        else:
            split = ""
            found = datasets.load_from_disk(name)
    except Exception as error:  # the library's own, the hub's and the network's: dozens of kinds
        raise UserError(_not_had(name, error)) from None
    if not isinstance(found, datasets.DatasetDict):
        return found
    if len(found) == 1:
        return next(iter(found.values()))
    if name.startswith(HUB):
        raise UserError(f"{name}: has the splits {', '.join(found)}; name one, as {name}:train")
    raise UserError(f"{name}: has the splits {', '.join(found)}; give the folder of one of them")


def dataset_rows(found: Any, name: str) -> Iterator[tuple[int, Any]]:
    """Row number, from 1, and columns of every row; the library maps the file, nothing is held.

    Pictures and sounds stay undecoded, as `bytes` and `path`.

    Raises:
        UserError: The library cannot read on.
    """
    media = [one for one, kind in found.features.items() if hasattr(kind, "decode_example")]
    for column in media:
        found = found.cast_column(column, type(found.features[column])(decode=False))
    rows = iter(found)
    number = 0
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # whatever a damaged or foreign column raises
            why = short(" ".join(str(error).split()), 160)
            raise UserError(f"{name}: cannot be read after row {number}: {why}") from None
        number += 1
        yield number, row


def _not_had(name: str, error: Exception) -> str:
    why = short(" ".join(str(error).split()), 160) or type(error).__name__
    if not name.startswith(HUB):
        return f"{name}: cannot be read as a saved dataset: {why}"
    offline = os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false", "no")
    mend = "unset HF_HUB_OFFLINE" if offline else "check the name and the network"
    return f"{name}: cannot be had ({why}); {mend}, or download it and give its files"


def _text_lines(stream: BinaryIO, path: Path) -> Iterator[tuple[int, str]]:
    for number, line in lines_of(stream):
        if line is None:
            raise UserError(f"{path}:{number}: the line is longer than {ROW_LIMIT // 2**20} MiB")
        try:
            yield number, line.decode()
        except UnicodeDecodeError as error:
            byte = line[error.start]
            name = path.name
            raise UserError(
                f"{path}:{number}: not UTF-8 (byte 0x{byte:02x}); if it is Latin-1 or from "
                f"Windows: iconv -f WINDOWS-1252 -t UTF-8 {name} > utf8-{name}"
            ) from None


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return [line.strip()]


def _record(names: list[str], cells: list[str], decoder: Decoder) -> Any:
    if len(cells) != len(names):
        what = f"{len(cells)} cells, but the header names {len(names)} columns ({listed(names)})"
        return BadRow(f"{what}; put cells that hold the delimiter into quotes")
    row: dict[str, Any] = dict(zip(names, cells, strict=True))
    for name in _MAYBE:
        if row.get(name) == "":
            row[name] = None
    for name in _LISTS:
        if row.get(name) is not None:
            value = decoder.whole(row[name])
            if isinstance(value, BadRow):
                return BadRow(f"column `{name}` of a CSV must hold a list as JSON")
            row[name] = value
    if row.get("margin") is not None:
        try:
            row["margin"] = json.loads(row["margin"])
        except ValueError:
            return BadRow(f"`margin` must be a number of at least 0, got {row['margin'][:40]}")
    return row
