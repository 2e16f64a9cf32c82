"""Seed tasks: this project's own, which ship with the package, or those of a user's file.

They stand outside the filters and the novelty check: generated rows are measured against them.
"""

from __future__ import annotations

from pathlib import Path

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.core.runs import data_path
from alpaca_rlhf.data.readers.formats import read_instructions
from alpaca_rlhf.data.readers.rows import collect, text_column

SHIPPED = {"shipped": None, "shipped-en": "en", "shipped-zh": "zh"}
"""Words that stand for this project's own seed tasks, and the language that each keeps."""


def seed_file(given: Path) -> Path:
    """The file that `--inputs.seeds` means: our own for a word of `SHIPPED`, else the one given."""
    return data_path("seed_tasks.jsonl") if str(given) in SHIPPED else given


def read_seeds(given: Path) -> list[Instruction]:
    """Seed tasks with their outputs, in the order of the file, none of them filtered.

    Args:
        given: A word of `SHIPPED`, or a file that `read_instructions` reads: Alpaca's columns, or
            Self-Instruct's `instances` (one row each).

    Raises:
        UserError: `file:line:` of the first broken row; or there are conversations among them.
    """
    path = seed_file(given)
    rows = read_instructions(path)
    talks = sum(bool(row.history) for row in rows)
    if talks:
        raise UserError(
            f"--inputs.seeds {given}: {talks} of {len(rows)} rows are conversations of several "
            "turns, and a seed task is one instruction with its output; take them out, or train on "
            "them with --inputs.data"
        )
    language = SHIPPED.get(str(given))
    if language is None:
        return rows
    languages = collect(path, lambda row: [text_column(row, ("language",))])
    return [row for row, its in zip(rows, languages, strict=True) if its == language]
