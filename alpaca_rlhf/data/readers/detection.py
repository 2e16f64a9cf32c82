"""Detection of a file's format from the columns of its first rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.data.readers.columns import (
    OUTPUT,
    PreferenceShape,
    RowKind,
    preference_shape,
    renamed,
)
from alpaca_rlhf.data.readers.comparisons import pair_to_json, pairs_of
from alpaca_rlhf.data.readers.formats import answered_of, instructions_of
from alpaca_rlhf.data.readers.hints import (
    columns_argument,
    further_texts,
    suggested_columns,
    whole_dialogue,
)
from alpaca_rlhf.data.readers.problems import BadRow, LeftOut, Omitted, listed
from alpaca_rlhf.data.readers.ranked import ranked_answers
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
"""Values of `--format`, in the order in which a row's columns are tested."""

Kind = Literal["instructions", "prompts", "pairs", "rankings"]
"""The kind of the canonical records, and the name of the file they are written to."""

Columns = dict[str, Any]
SAMPLE_ROWS = 200
"""Rows from which the format is detected."""

_ANSWERED_FORMATS = ("alpaca", "prompt-completion")


@dataclass(frozen=True)
class Converted:
    """The records of one row, and its answers that stand in none."""

    records: list[Columns]
    """Its canonical records; none if it holds nothing (see `Format.empty_reason`)."""
    omitted: Counter[Omitted] = field(default_factory=Counter)
    """Those answers, by reason."""


@dataclass(frozen=True)
class Format:
    """The columns of a format, and its conversion to canonical records."""

    name: FormatName
    """Value of `--format`."""
    kind: Kind
    """Kind of its records."""
    columns: str
    """Its columns, as shown to the user."""
    matches: Callable[[Mapping[str, Any]], bool]
    """Tests a row that no earlier format matches."""
    convert: Callable[[Columns, str], Converted]
    """The canonical records of a row, given the name of its file; raises `BadRow`."""
    empty_reason: str = ""
    """The reason why a valid row may give no records."""


def _has(row: Mapping[str, Any], *names: str) -> bool:
    return all(row.get(name) is not None for name in names)


def _has_shape(shape: PreferenceShape) -> Callable[[Mapping[str, Any]], bool]:
    return lambda row: preference_shape(row) == shape


def _answered(row: Mapping[str, Any]) -> bool:
    return any(row.get(name) not in (None, "") for name in OUTPUT)


def _prompts(row: Columns, source: str) -> Converted:
    tasks = instructions_of(row, source)
    return Converted([replace(task, output=None).to_json() for task in tasks])


def _instructions(row: Columns, source: str) -> Converted:
    return Converted([task.to_json() for task in answered_of(row, source)])


def _pairs(row: Columns, source: str) -> Converted:
    return Converted([pair_to_json(pair) for pair in pairs_of(row, source)])


def _rankings(row: Columns, source: str) -> Converted:
    ranked = ranked_answers(row, source)
    return Converted([ranking.to_json() for ranking in ranked.rankings], ranked.omitted)


FORMATS: dict[str, Format] = {
    row_format.name: row_format
    for row_format in (
        Format(
            "trees",
            "rankings",
            "prompt (a message with replies that have a rank)",
            _has_shape("trees"),
            _rankings,
            "no message of the tree has two replies with a rank",
        ),
        Format(
            "chosen-rejected",
            "pairs",
            "chosen, rejected, and prompt, instruction, conversations or messages (or none: their "
            "shared beginning is the prompt); messages, rejected_response",
            _has_shape("chosen-rejected"),
            _pairs,
        ),
        Format(
            "completion-ab",
            "pairs",
            "user_input, prompt or instruction, and two answers with a verdict: completion_a, "
            "completion_b (or output_1, output_2), preference; history, human_ref_A, human_ref_B, "
            "labels; conversation_a, conversation_b, winner; response_0, response_1, "
            "better_response_id; response_1, response_2, preference_strength; response_a, "
            "response_b, winner",
            _has_shape("completion-ab"),
            _pairs,
        ),
        Format(
            "ranking-list",
            "rankings",
            "prompt or instruction, responses or completions, ranks, scores or ratings (or in the "
            "answers: a rating each, or in answers a rank)",
            _has_shape("ranking-list"),
            _rankings,
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
"""Every format by its name, in the order in which they are tested."""


@dataclass(frozen=True)
class DetectedFormat:
    """The format of a file, detected or given by the user."""

    format: Format | None
    """The format; None if none of the first rows can be read."""
    guessed: bool
    """True if it was detected from the rows."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """New names of columns, `-` for one that is left out."""

    def convert(self, row: Any, source: str) -> Converted:
        """The canonical records of a row.

        Raises:
            LeftOut: It gives none: its label marks it as bad, or its two answers tie.
            BadRow: It is broken, or its format is not that of the file.
        """
        columns = renamed(columns_of(row), self.columns)
        if self.format is None:  # all of the first rows are broken, so the file will be refused
            raise BadRow(f"no format is known by the columns {listed(list(columns))}")
        row_format = signature(columns) if self.guessed else None
        # A row that looks like no format, or only like a prompt, may lack a column: the converter
        # says which.
        if row_format in (None, "prompts", self.format.name):
            return self.format.convert(columns, source)
        raise BadRow(
            f"looks like `{row_format}`, but the file like `{self.format.name}`; split the file, "
            "or give --format"
        )


def signature(row: Mapping[str, Any]) -> str | None:
    """The name of the first format that matches a row's columns, if any."""
    return next((name for name, candidate in FORMATS.items() if candidate.matches(row)), None)


def detect_format(
    rows: Rows, format_name: str | None = None, columns: Mapping[str, str] | None = None
) -> DetectedFormat:
    """Detect the format of rows from the first 200 of them, or take the one that is named.

    The most frequent format wins. Rows without an answer do not count where others have one.
    `columns` gives columns new names before anything else (see `columns.column_names`).

    Raises:
        UserError: No format matches their columns; `file:line:` of the first row.
    """
    if format_name is not None:
        return DetectedFormat(FORMATS[format_name], guessed=False, columns=columns or {})
    # 1. Count the formats of the rows that can be read.
    columns = columns or {}
    sample = [
        (number, renamed(row, columns))
        for number, row in islice(rows, SAMPLE_ROWS)
        if isinstance(row, dict)
    ]
    counts = Counter(name for _, row in sample if (name := signature(row)) is not None)
    # 2. An answer that is missing here and there must not make prompts of a file of answers.
    if counts["prompts"] and any(counts[name] for name in _ANSWERED_FORMATS):
        del counts["prompts"]
    if counts:
        return DetectedFormat(FORMATS[counts.most_common(1)[0][0]], guessed=True, columns=columns)
    if not sample:
        return DetectedFormat(None, guessed=True, columns=columns)
    number, row = sample[0]
    names = _suggested(row)
    unknown = f"{rows.place(number)}: no format is known by the columns {listed(list(row))}"
    if not names and (dialogue := whole_dialogue(row)):
        raise UserError(f"{unknown}; {dialogue}")
    naming = f": --columns {columns_argument(names, columns)}"
    if not names:
        likely = suggested_columns(row, "instructions")
        naming = ", such as --columns OLD=instruction,OLD=output"
        if {"instruction", "output"} <= {*likely.values()}:
            naming = f", such as --columns {columns_argument(likely, columns)}"
    raise UserError(f"{unknown}; map them{naming}, or give --format ({', '.join(FORMATS)})")


def _suggested(row: Columns) -> dict[str, str]:
    """New names of columns with which the row can be read; none if none are likely."""
    kinds: dict[RowKind, tuple[Kind, ...]] = {
        "rankings": ("pairs", "rankings"),
        "instructions": ("instructions",),
        "prompts": ("prompts",),
    }
    for kind, record_kinds in kinds.items():
        names = suggested_columns(row, kind)
        columns = renamed(row, names)
        name = signature(columns)
        if not names or name is None or FORMATS[name].kind not in record_kinds:
            continue
        if kind == "prompts" and further_texts(row, names):
            continue
        try:
            if FORMATS[name].convert(columns, "").records:
                return names
        except (BadRow, LeftOut):
            continue
    return {}
