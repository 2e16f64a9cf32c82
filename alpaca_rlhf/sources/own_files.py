"""The user's own files as a run reads them, each with the account of its rows."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import (
    FileAccount,
    Reading,
    RowKind,
    column_names,
    read_instructions,
    refuse_absent_columns,
    seed_file,
)
from alpaca_rlhf.preferences import manifest_of
from alpaca_rlhf.settings.inputs import Inputs

_FLAG = "--inputs.columns"


def reading_of(inputs: Inputs, kind: RowKind, path: Path) -> Reading:
    """Options for reading one of the user's files, with an empty account.

    Raises:
        UserError: --inputs.columns is not `OLD=NEW,OLD=NEW`.
    """
    return Reading(
        kind,
        columns=column_names(inputs.columns, _FLAG),
        drop_broken=inputs.broken == "drop",
        drop_flag="--inputs.broken drop",
        columns_flag=_FLAG,
        account=FileAccount(str(path)),
    )


def input_files(inputs: Inputs) -> dict[str, Path]:
    """The files that a run reads, under the names that its provenance has for them."""
    files = inputs.files()
    if inputs.seeds is not None:
        files["seeds"] = seed_file(inputs.seeds)
    if inputs.rankings is not None:
        files["rankings"] = manifest_of(inputs.rankings) or inputs.rankings
    return files


def read_rows(inputs: Inputs) -> tuple[list[Instruction], FileAccount]:
    """The user's rows to train on (`Inputs.rows`), and their account.

    Raises:
        UserError: The file cannot be read.
    """
    assert inputs.rows is not None
    try:
        status = inputs.rows.stat()
        state = (status.st_ino, status.st_size, status.st_mtime_ns)
    except OSError:  # reading it says so
        state = None
    rows, account = _rows_as_of(inputs, state)
    return list(rows), copy.deepcopy(account)


@lru_cache(maxsize=1)
def _rows_as_of(
    inputs: Inputs, state: tuple[int, int, int] | None
) -> tuple[tuple[Instruction, ...], FileAccount]:
    """The rows of a file in this state: a run asks for them three times before its first step."""
    assert inputs.rows is not None
    reading = reading_of(inputs, "instructions", inputs.rows)
    return tuple(read_instructions(inputs.rows, reading)), reading.account


def refuse_unknown_columns(inputs: Inputs, accounts: Sequence[FileAccount]) -> None:
    """Refuse a renaming of a column that no file has.

    Raises:
        UserError: There is such a column.
    """
    refuse_absent_columns(column_names(inputs.columns, _FLAG), _FLAG, accounts)
