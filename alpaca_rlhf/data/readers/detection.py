"""Which format the rows of a file have: told by their columns, from the first of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.data.readers.comparisons import is_comparison, pair_to_json, pairs_of
from alpaca_rlhf.data.readers.formats import answered_of, instructions_of
from alpaca_rlhf.data.readers.problems import BadRow, listed
from alpaca_rlhf.data.readers.ranked import is_ranking_list, is_tree, ranking_list, trees
from alpaca_rlhf.data.readers.rows import Rows, columns_of

FormatName = Literal[
    "trees",
    "chosen-rejected",
    "completion-ab",
    "ranking-list",
    "openai",
    "sharegpt",
    "seed-tasks",
    "alpaca",
    "prompt-completion",
    "prompts",
]
"""Names for `--format`; in this order the columns of a row are looked at."""

Kind = Literal["instructions", "prompts", "pairs", "rankings"]
"""What becomes of the rows, and the name of the file they are written to."""

Columns = dict[str, Any]
SAMPLE = 200
"""Rows that are looked at to tell the format."""

_OUTPUT = ("output", "completion", "response")
_ANSWERED = ("alpaca", "prompt-completion")


@dataclass(frozen=True)
class Format:
    """How rows look, and what is made of them."""

    name: FormatName
    """What `--format` calls it."""
    kind: Kind
    """What its rows become."""
    columns: str
    """Its columns, for people."""
    fits: Callable[[Mapping[str, Any]], bool]
    """Whether a row that no earlier format fits looks like it."""
    convert: Callable[[Columns, str], list[Columns]]
    """Canonical rows of a row, given the name of its file; raises `BadRow`."""
    without: str = ""
    """Why a row that is not broken may give nothing."""


def _has(row: Mapping[str, Any], *names: str) -> bool:
    return all(row.get(name) is not None for name in names)


def _answered(row: Mapping[str, Any]) -> bool:
    return any(row.get(name) not in (None, "") for name in _OUTPUT)


def _prompts(row: Columns, source: str) -> list[Columns]:
    return [replace(one, output=None).to_json() for one in instructions_of(row, source)]


def _instructions(row: Columns, source: str) -> list[Columns]:
    return [one.to_json() for one in answered_of(row, source)]


def _pairs(row: Columns, source: str) -> list[Columns]:
    return [pair_to_json(one) for one in pairs_of(row, source)]


FORMATS: dict[str, Format] = {
    one.name: one
    for one in (
        Format(
            "trees",
            "rankings",
            "prompt (a message with replies that have a rank)",
            is_tree,
            lambda row, source: [one.to_json() for one in trees(row, source)],
            "no message of the tree has two replies with a rank",
        ),
        Format(
            "chosen-rejected",
            "pairs",
            "chosen, rejected, and prompt, instruction or conversations (HH: these two alone)",
            lambda row: _has(row, "chosen", "rejected"),
            _pairs,
        ),
        Format(
            "completion-ab",
            "pairs",
            "user_input, prompt or instruction, completion_a, completion_b (or output_1, "
            "output_2), preference",
            is_comparison,
            _pairs,
            "its two answers tie",
        ),
        Format(
            "ranking-list",
            "rankings",
            "prompt or instruction, responses, ranks or scores",
            is_ranking_list,
            lambda row, source: [ranking_list(row, source).to_json()],
        ),
        Format(
            "openai",
            "instructions",
            "messages (role, content)",
            lambda row: _has(row, "messages"),
            _instructions,
        ),
        Format(
            "sharegpt",
            "instructions",
            "conversations (from, value)",
            lambda row: _has(row, "conversations"),
            _instructions,
        ),
        Format(
            "seed-tasks",
            "instructions",
            "instruction, instances (input, output)",
            lambda row: _has(row, "instances"),
            _instructions,
        ),
        Format(
            "alpaca",
            "instructions",
            "instruction, input (or context), output (or completion, response)",
            lambda row: _has(row, "instruction") and _answered(row),
            _instructions,
        ),
        Format(
            "prompt-completion",
            "instructions",
            "prompt, completion (or output, response)",
            lambda row: _has(row, "prompt") and _answered(row),
            _instructions,
        ),
        Format(
            "prompts",
            "prompts",
            "instruction or prompt, input",
            lambda row: _has(row, "instruction") or _has(row, "prompt"),
            _prompts,
        ),
    )
}
"""Every format by its name."""


@dataclass(frozen=True)
class DetectedFormat:
    """What the first rows of a file tell."""

    format: Format | None
    """Its format; None if none of the first rows can be read at all."""
    guessed: bool
    """Whether the rows told it, and not the user."""

    def convert(self, row: Any, source: str) -> list[Columns]:
        """Canonical rows of a row; none if there is nothing in it (see `Format.without`).

        Raises:
            BadRow: It is broken, or has another format than the file.
        """
        columns = columns_of(row)
        if self.format is None:  # told only when the first rows are broken, so the file is refused
            raise BadRow(f"no format is known by the columns {listed(list(columns))}")
        other = signature(columns) if self.guessed else None
        # Where a column is missing the format's own reader says which.
        if other in (None, "prompts", self.format.name):
            return self.format.convert(columns, source)
        raise BadRow(
            f"looks like `{other}`, but the file like `{self.format.name}`; split the file, or "
            "give --format"
        )


def signature(row: Mapping[str, Any]) -> str | None:
    """The name of the format that a row's columns look like, if any."""
    return next((name for name, one in FORMATS.items() if one.fits(row)), None)


def detect_format(rows: Rows, asked: str | None = None) -> DetectedFormat:
    """Tell the format of rows by the first 200 of them, or take the one that was asked for.

    The format that most of them have is it. Rows without an answer do not count where others have
    one.

    Raises:
        UserError: No format is known by their columns; `file:line:` of the first row.
    """
    if asked is not None:
        return DetectedFormat(FORMATS[asked], guessed=False)
    sample = [(n, row) for n, row in islice(rows, SAMPLE) if isinstance(row, dict)]
    counts = Counter(name for _, row in sample if (name := signature(row)) is not None)
    if counts["prompts"] and any(counts[name] for name in _ANSWERED):
        del counts["prompts"]
    if counts:
        return DetectedFormat(FORMATS[counts.most_common(1)[0][0]], guessed=True)
    if not sample:
        return DetectedFormat(None, guessed=True)
    number, row = sample[0]
    known = "; ".join(f"{one.name}: {one.columns}" for one in FORMATS.values())
    raise UserError(
        f"{rows.place(number)}: no format is known by the columns {listed(list(row))}; rename "
        f"them, or give --format ({known})"
    )
