"""Rows of tables: CSV, Parquet, and datasets of the `datasets` library, all streamed.

CSV is UTF-8 with a header; the delimiter (comma, semicolon, tab or bar) is the one that yields the
most known columns. Its cells are text, so lists are JSON within a cell. A cell that may hold a text
or messages holds messages if it is a JSON list of them.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.shell_words import quoted
from alpaca_rlhf.data.readers.columns import OUTPUT, RANKED_ANSWERS
from alpaca_rlhf.data.readers.json_rows import ROW_LIMIT, Decoder, lines_of, messages_in
from alpaca_rlhf.data.readers.problems import BadRow, Unreadable, listed, short
from alpaca_rlhf.data.readers.read_limit import ReadLimit

HUB = "hub:"
"""Prefix of a dataset on the hub: `hub:owner/name` or `hub:owner/name:split`."""

KNOWN_COLUMNS = frozenset(
    "instruction prompt input context output completion response source system history messages "
    "conversations instances chosen rejected margin user_input completion_a completion_b output_1 "
    "output_2 preference responses completions ranks scores ratings annotator label kto_tag "
    "human_ref_A human_ref_B labels conversation_a conversation_b winner response_0 response_1 "
    "better_response_id response_2 preference_strength context masked_replies "
    "response_a response_b winner_model_a winner_model_b winner_tie".split()
)
"""Columns that the readers use."""

_LIST_COLUMNS: tuple[str, ...] = ("messages", "conversations", "instances", "history")
_LIST_COLUMNS += ("masked_replies", "conversation_a", "conversation_b")
_LIST_COLUMNS += ("responses", "completions", "ranks", "scores", "ratings")
_NULLABLE_COLUMNS = (*_LIST_COLUMNS, "margin", "preference")
_BATCH_ROWS = 256
_DELIMITER_LINE = re.compile(r"\s*\"?sep=(.)\"?\s*", re.IGNORECASE)


def csv_rows(
    stream: BinaryIO,
    path: Path,
    columns: Mapping[str, str] | None = None,
    *,
    gzipped: bool = False,
) -> Iterator[tuple[int, Any]]:
    """Line number and named cells of every record.

    Args:
        stream: The file, unpacked.
        path: Its path, for messages.
        columns: New names of columns, which say what their cells hold.
        gzipped: True if it is packed on the disk.

    Raises:
        UserError: The header names a column twice, or the file is not UTF-8.
    """
    # 1. Read the header, with the delimiter that yields the most known columns.
    csv.field_size_limit(ROW_LIMIT)
    lines = _text_lines(stream, path, gzipped=gzipped)
    first = next(((number, line) for number, line in lines if line.strip()), None)
    if first is None:
        return
    number, line = first
    known = KNOWN_COLUMNS | set(columns or {})
    delimiter = max(",;\t|", key=lambda char: len(known & set(_cells(line, char))))
    # Excel takes, and some programs write, a first line that names the delimiter.
    if (naming := _DELIMITER_LINE.fullmatch(line)) is not None:
        delimiter = naming[1]
        number, line = next(((at, text) for at, text in lines if text.strip()), (number, ""))
        if not line:
            return
    names = _cells(line, delimiter)
    repeated = next((name for name in names if name and names.count(name) > 1), None)
    if repeated is not None:
        raise UserError(f"{path}:{number}: the header names `{short(repeated)}` twice; rename one")

    # 2. Read the records. A record may span lines, so its first line is the one after the last that
    #    the CSV reader took.
    last_line = number

    def remaining_lines() -> Iterator[str]:
        nonlocal last_line
        for number, text in lines:
            last_line = number
            yield text

    read_names = [(columns or {}).get(name, name) for name in names]
    reader = csv.reader(remaining_lines(), delimiter=delimiter, strict=True)
    decoder = Decoder()
    while True:
        first_line = last_line + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            flaw = f"not CSV: {error}; the record begins here, check its quotes"
            yield first_line, Unreadable(flaw)
            return
        if cells is None:
            return
        if cells:
            yield first_line, _record(names, read_names, cells, decoder)


def parquet_rows(path: Path, limit: ReadLimit | None = None) -> Iterator[tuple[int, Any]]:
    """Row number, from 1, and columns of every row, a few hundred rows at a time.

    Args:
        path: The file.
        limit: The most bytes that are unpacked.

    Raises:
        UserError: It cannot be read, or unpacks to more than the limit.
    """
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        # A text that stands in many rows is packed once; as a dictionary it stays so until its
        # rows are made, which are counted.
        texts = _text_columns(path) if limit else None
        with parquet.ParquetFile(path, read_dictionary=texts) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise UserError(f"{path}: two columns have the same name; rename one")
            groups = (file.metadata.row_group(i) for i in range(file.metadata.num_row_groups))
            if limit and sum(group.total_byte_size for group in groups) > limit.unpacked_bytes:
                raise UserError(limit.bytes_message(path))
            n_bytes = 0
            # Within a group: Arrow cannot join dictionaries within lists across groups.
            batches = (
                batch
                for group in range(file.metadata.num_row_groups)
                for batch in file.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group])
            )
            for batch in batches:
                for row in _rows_of(batch, at_once=limit is None):
                    n_bytes += _size(row) if limit else 0
                    if limit and n_bytes > limit.unpacked_bytes:
                        raise UserError(limit.bytes_message(path))
                    number += 1
                    yield number, row
    except UserError:  # a ValueError
        raise
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        reason = short(" ".join(str(error).split()), 160)
        raise UserError(
            f"{path}: cannot be read as Parquet after row {number}: {reason}; is it truncated or "
            "damaged?"
        ) from None


def _text_columns(path: Path) -> list[str]:
    """Paths of the columns that hold texts."""
    from pyarrow import parquet

    schema = parquet.read_metadata(path).schema
    columns = (schema.column(i) for i in range(len(schema)))
    return [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]


def _rows_of(batch: Any, *, at_once: bool) -> Iterator[dict[str, Any]]:
    """The rows of a batch, all made at once or one after the other."""
    if at_once:
        yield from batch.to_pylist()
        return
    for i in range(batch.num_rows):
        yield from batch.slice(i, 1).to_pylist()


def _size(value: Any) -> int:
    """The number of characters and bytes in a value, and eight for each of its parts."""
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    if isinstance(value, (list, tuple)):
        return 8 + sum(map(_size, value))
    return 8 + (len(value) if isinstance(value, (str, bytes)) else 0)


def parquet_length(path: Path) -> int:
    """Number of rows according to the footer; 0 if it cannot be read."""
    import pyarrow
    from pyarrow import parquet

    try:
        return int(parquet.read_metadata(path).num_rows)
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, MemoryError):
        return 0


def dataset_of(name: str) -> Any:
    """Load a `datasets.Dataset` from the hub or its cache (`hub:...`), or from a folder.

    Raises:
        UserError: It could not be loaded, or it has several splits and none is named.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        if name.startswith(HUB):
            owner, _, split = name.removeprefix(HUB).partition(":")
            dataset = datasets.load_dataset(owner, split=split or None)
        else:
            split = ""
            dataset = datasets.load_from_disk(name)
    except Exception as error:  # the library, the hub and the network raise dozens of types
        raise UserError(_load_failure(name, error)) from None
    if not isinstance(dataset, datasets.DatasetDict):
        return dataset
    if len(dataset) == 1:
        return next(iter(dataset.values()))
    splits = ", ".join(dataset)
    if name.startswith(HUB):
        raise UserError(f"{name}: has the splits {splits}; name one, as {name}:train")
    raise UserError(f"{name}: has the splits {splits}; give the folder of one of them")


def dataset_rows(dataset: Any, name: str) -> Iterator[tuple[int, Any]]:
    """Row number, from 1, and columns of every row; the library maps the file into memory.

    Images and audio stay undecoded, as `bytes` and `path`: decoding would need further libraries.

    Raises:
        UserError: The library cannot read further.
    """
    media = [column for column, kind in dataset.features.items() if hasattr(kind, "decode_example")]
    for column in media:
        dataset = dataset.cast_column(column, type(dataset.features[column])(decode=False))
    rows = iter(dataset)
    number = 0
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # whatever a damaged or foreign column raises
            reason = short(" ".join(str(error).split()), 160)
            raise UserError(f"{name}: cannot be read after row {number}: {reason}") from None
        number += 1
        yield number, row


def _load_failure(name: str, error: Exception) -> str:
    reason = short(" ".join(str(error).split()), 160) or type(error).__name__
    if not name.startswith(HUB):
        return f"{name}: cannot be read as a saved dataset: {reason}"
    offline = os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false", "no")
    remedy = "unset HF_HUB_OFFLINE" if offline else "check the name and the network"
    return f"{name}: could not be loaded ({reason}); {remedy}, or download it and give its files"


def _text_lines(stream: BinaryIO, path: Path, *, gzipped: bool) -> Iterator[tuple[int, str]]:
    for number, line in lines_of(stream):
        if line is None:
            raise UserError(f"{path}:{number}: the line is longer than {ROW_LIMIT // 2**20} MiB")
        try:
            yield number, line.decode()
        except UnicodeDecodeError as error:
            byte = line[error.start]
            name = path.name.removesuffix(".gz") if gzipped else path.name
            target = quoted(path.with_name(f"utf8-{name}"))
            iconv = "iconv -f WINDOWS-1252 -t UTF-8"
            command = (
                f"gzip -dc {quoted(path)} | {iconv} > {target}"
                if gzipped
                else f"{iconv} {quoted(path)} > {target}"
            )
            raise UserError(
                f"{path}:{number}: not UTF-8 (byte 0x{byte:02x}); if it is Latin-1 or from "
                f"Windows: {command}"
            ) from None


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return [line.strip()]


def _record(
    names: Sequence[str], read_names: Sequence[str], cells: Sequence[str], decoder: Decoder
) -> Any:
    """The row of a record: its cells under their names, or what is wrong with them.

    Args:
        names: The columns.
        read_names: The names under which they are read.
        cells: The cells.
        decoder: Decodes JSON.
    """
    if len(cells) != len(names):
        flaw = f"{len(cells)} cells, but the header names {len(names)} columns ({listed(names)})"
        return BadRow(f"{flaw}; put cells that hold the delimiter into quotes")
    is_post = "human_ref_A" in read_names  # SHP's history is the text of a post
    row: dict[str, Any] = {}
    for name, read_name, cell in zip(names, read_names, cells, strict=True):
        value: Any = cell
        # 1. An empty cell of a column that is not text means that the value is absent.
        if not cell and read_name in _NULLABLE_COLUMNS:
            value = None
        # 2. Lists are JSON within a cell, and a margin is a number.
        elif read_name in _LIST_COLUMNS and not (read_name == "history" and is_post):
            value = decoder.decode(cell)
            if isinstance(value, BadRow):
                return BadRow(f"column `{name}` of a CSV must hold a list as JSON")
        elif read_name in ("prompt", *OUTPUT, RANKED_ANSWERS):
            is_answers = read_name == RANKED_ANSWERS
            value = _messages_or_text(cell, name, decoder, any_list=is_answers)
            if isinstance(value, BadRow):
                return value
        elif read_name == "margin":
            try:
                value = json.loads(cell)
            except ValueError:
                return BadRow(f"`margin` must be a number of at least 0, got {cell[:40]}")
        row[name] = value
    return row


def _messages_or_text(cell: str, name: str, decoder: Decoder, *, any_list: bool) -> Any:
    """The messages of a cell, or its text; the flaw of one that looks like messages and is no JSON.

    Args:
        cell: The cell.
        name: Its column.
        decoder: Decodes JSON.
        any_list: Take every list, as one of answers.
    """
    messages = messages_in(cell)
    if isinstance(messages, BadRow):
        return BadRow(f"column `{name}` of a CSV looks like a list of messages and is {messages}")
    if messages is None and any_list and cell.lstrip().startswith("["):
        value = decoder.decode(cell)
        return cell if isinstance(value, BadRow) else value or cell
    return cell if messages is None else messages
