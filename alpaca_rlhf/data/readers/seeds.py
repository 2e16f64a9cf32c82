"""Seed tasks: the shipped ones, or those of a user's file.

They pass neither the filters nor the novelty check; generated rows are compared with them.
"""

from __future__ import annotations

from pathlib import Path

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.core.runs import data_path
from alpaca_rlhf.data.readers.formats import read_instructions
from alpaca_rlhf.data.readers.reading import Reading
from alpaca_rlhf.data.readers.rows import collect
from alpaca_rlhf.data.readers.values import text_column

SHIPPED = {"shipped": None, "shipped-en": "en", "shipped-zh": "zh"}
"""Names of the shipped seed tasks, and the language that each selects (None: all)."""


def seed_file(seeds: Path) -> Path:
    """The file behind `--inputs.seeds`: the shipped one for a name in `SHIPPED`, else the path."""
    return data_path("seed_tasks.jsonl") if str(seeds) in SHIPPED else seeds


def read_seeds(seeds: Path, reading: Reading | None = None) -> list[Instruction]:
    """Read seed tasks with their outputs, unfiltered, in the order of the file.

    Args:
        seeds: A name in `SHIPPED`, or a file that `read_instructions` reads: Alpaca's columns, or
            Self-Instruct's `instances` (one row each).
        reading: Renamed columns, and the treatment of broken rows, of a file; its account is
            filled. The shipped tasks are read as they are.

    Raises:
        UserError: `file:line:` of the first broken row; or some rows are conversations.
    """
    path = seed_file(seeds)
    rows = read_instructions(path, None if str(seeds) in SHIPPED else reading)
    conversations = sum(bool(row.history) for row in rows)
    if conversations:
        raise UserError(
            f"--inputs.seeds {seeds}: {conversations} of {len(rows)} rows are conversations of "
            "several turns, and a seed task is one instruction with its output; take them out, or "
            "train on them with --inputs.data"
        )
    language = SHIPPED.get(str(seeds))
    if language is None:
        return rows
    row_languages = collect(path, lambda row: [text_column(row, ("language",))])
    return [
        row
        for row, row_language in zip(rows, row_languages, strict=True)
        if row_language == language
    ]
