"""Human preferences from files: pairs of answers.

A dialogue that precedes ranked answers is a prompt as any other: its last turn is the instruction,
the turns before it are its history, and a system message is its system text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alpaca_rlhf.core.records import Instruction, PreferencePair
from alpaca_rlhf.data.readers.columns import COMPARED, refuse_unsupported
from alpaca_rlhf.data.readers.conversations import (
    dialogue,
    dialogue_history,
    read_message,
    read_turns,
    system_text,
)
from alpaca_rlhf.data.readers.formats import prompt_columns, source_of
from alpaca_rlhf.data.readers.preference_shapes import (
    are_conversations,
    implicit_texts,
    refuse_contradicted,
    whole_conversations,
)
from alpaca_rlhf.data.readers.problems import BadRow, NoColumn, Tie, listed, short
from alpaca_rlhf.data.readers.reading import Reading
from alpaca_rlhf.data.readers.rows import collect
from alpaca_rlhf.data.readers.transcripts import ANSWER, TURN, split_turns, transcript_of
from alpaca_rlhf.data.readers.values import checked_text

# Values of `preference`, in lower case.
_PREFERS_FIRST = ("1", "a", "completion_a", "output_1")
_PREFERS_SECOND = ("2", "b", "completion_b", "output_2")
_TIE = ("0", "tie")


def task(row: dict[str, Any], source: str) -> Instruction:
    """The prompt in Alpaca's columns, with its `history` and `system` where they are there.

    Raises:
        BadRow: A column is broken.
    """
    transcript = transcript_of(row)
    if transcript is not None:
        return dialogue(transcript.turns, source=source, row=row)
    instruction, input_text = prompt_columns(row)
    return Instruction(
        instruction,
        input_text,
        source=source,
        history=dialogue_history(row),
        system=system_text(row),
    )


def answers_of(row: Mapping[str, Any], texts: Sequence[str]) -> Sequence[str]:
    """The answers of a row: those to a transcript without the blanks after its last mark."""
    transcript = transcript_of(row)
    return texts if transcript is None else transcript.answers(texts)


def read_pairs(path: Path, reading: Reading | None = None) -> list[PreferencePair]:
    r"""Read pairs of answers, the better one first.

    Supported formats: Anthropic's HH (`chosen`, `rejected`: whole dialogues of `\n\nHuman:` and
    `\n\nAssistant:` that differ in their last answer), LLaMA-Factory's (`conversations`, `chosen`,
    `rejected`), and `prompt` (or `instruction` and `input`) with `chosen` and `rejected`. These two
    may also be whole conversations, with or without `prompt`, or texts that share their beginning
    (UltraFeedback binarised, TRL: see `preference_shapes`). Messages may be text, `from`/`value` or
    `role`/`content`. One of the two answers may be empty: people sometimes prefer silence. A column
    `margin`, a number of at least 0, says how much better the chosen answer is. GPT-4-LLM's
    `completion_a`, `completion_b` and AlpacaFarm's `output_1`, `output_2` are ordered by
    `preference` (1, 2, a, b, or tie, which gives no pair); without that column the first answer is
    the better one. Scores of `chosen` and `rejected` must agree with them; equal ones are a tie.

    Args:
        path: A JSON array or JSON lines, plain or gzipped.
        reading: Renamed columns, and whether broken rows are left out; its account is filled.

    Raises:
        UserError: `file:line:` of the first broken row; two identical answers count as broken.
    """
    path = Path(path)
    return collect(path, lambda row: pairs_of(row, path.name), reading)


def pairs_of(row: dict[str, Any], source: str) -> list[PreferencePair]:
    """The pair of one row.

    Raises:
        Tie: Its answers tie.
        BadRow: The row is broken.
    """
    refuse_unsupported(row)
    if is_comparison(row):
        return _comparison(row, source_of(row, source))
    pair = replace(_pair(row, source_of(row, source)), margin=_margin(row))
    refuse_contradicted(row)
    return [pair]


def pair_to_json(pair: PreferencePair) -> dict[str, Any]:
    """The columns of a pair for a JSON line, in the form that `read_pairs` reads back."""
    columns: dict[str, Any] = {
        "instruction": pair.prompt.instruction,
        "input": pair.prompt.input,
        "chosen": pair.chosen,
        "rejected": pair.rejected,
        "source": pair.prompt.source,
    }
    optional = {
        "history": pair.prompt.history,
        "system": pair.prompt.system,
        "margin": pair.margin,
    }
    return columns | {name: value for name, value in optional.items() if value}


def is_comparison(row: Mapping[str, Any]) -> bool:
    """True for a row with two answers whose column names do not say which is better."""
    return any(all(row.get(name) is not None for name in names) for names in COMPARED)


def _pair(row: dict[str, Any], source: str) -> PreferencePair:
    for name in ("chosen", "rejected"):
        if row.get(name) is None:
            columns = listed(list(row))
            raise BadRow(f"expected columns `chosen` and `rejected`; columns here: {columns}")
    if row.get("conversations") is not None:
        turns = read_turns(row["conversations"], "column `conversations`")
        prompt = dialogue(turns, source=source, row=row)
    elif are_conversations(row):
        turns, chosen, rejected = whole_conversations(row)
        return _make_pair(dialogue(turns, source=source, row=row), chosen, rejected)
    elif isinstance(row.get("prompt"), list):
        prompt = dialogue(read_turns(row["prompt"], "column `prompt`"), source=source, row=row)
    elif row.get("prompt") is not None or row.get("instruction") is not None:
        prompt = task(row, source)
    else:
        return _hh_pair(
            checked_text(row["chosen"], "`chosen`"),
            checked_text(row["rejected"], "`rejected`"),
            source,
            row,
        )
    answers = [_answer(row[name], f"`{name}`") for name in ("chosen", "rejected")]
    return _make_pair(prompt, *answers_of(row, answers))


def _comparison(row: dict[str, Any], source: str) -> list[PreferencePair]:
    names = next(names for names in COMPARED if all(row.get(name) is not None for name in names))
    first, second = (checked_text(row[name], f"column `{name}`") for name in names)
    value = row.get("preference")
    if value is None and "preference" in row:
        raise BadRow("`preference` is empty: 1, 2, a, b or tie says which answer is the better one")
    # A column of whole numbers with gaps becomes floats in Parquet and CSV, hence the ".0".
    preference = "1" if value is None else str(value).strip().lower().removesuffix(".0")
    if preference not in (*_PREFERS_FIRST, *_PREFERS_SECOND, *_TIE):
        raise BadRow(f"`preference` must be 1, 2, a, b or tie, got {short(str(value))}")
    if "user_input" in row:
        row = {**row, "instruction": row["user_input"]}
    prompt = task(row, source)
    if preference in _TIE:
        raise Tie("its two answers tie")
    first, second = answers_of(row, (first, second))
    chosen, rejected = (first, second) if preference in _PREFERS_FIRST else (second, first)
    return [replace(_make_pair(prompt, chosen, rejected), margin=_margin(row))]


def _margin(row: dict[str, Any]) -> float:
    value = row.get("margin")
    if value is None:
        return 0.0
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise BadRow(f"`margin` must be a number of at least 0, got {str(value)[:40]}")
    return float(value)


def _make_pair(prompt: Instruction, chosen: str, rejected: str) -> PreferencePair:
    if chosen == rejected:
        raise BadRow("`chosen` and `rejected` are the same: there is nothing to prefer")
    return PreferencePair(prompt, chosen, rejected, prompt.id)


def _hh_pair(chosen: str, rejected: str, source: str, row: dict[str, Any]) -> PreferencePair:
    # 1. Find where the two dialogues diverge, and the last answer that begins before that point.
    chars = zip(chosen, rejected, strict=False)
    shorter = min(len(chosen), len(rejected))
    common = next((at for at, (a, b) in enumerate(chars) if a != b), shorter)
    at = chosen[:common].rfind(ANSWER)
    if at < 0:
        implicit = None
        if not any(TURN.search(f"\n\n{text}") for text in (chosen, rejected)):
            implicit = implicit_texts(chosen, rejected)
        if implicit is not None:
            turns, *texts = implicit
            return _make_pair(dialogue(turns, source=source, row=row), *texts)
        raise NoColumn(
            "expected a column `prompt` or `conversations`, or in `chosen` and `rejected` two "
            "dialogues of `Human:` and `Assistant:` turns with the same beginning; columns here: "
            f"{listed(list(row))}"
        )
    # 2. Everything after it is the answer, and must not hold a further turn.
    answers = [text[at + len(ANSWER) :].strip() for text in (chosen, rejected)]
    if any(TURN.search(text[at + 1 :]) for text in (chosen, rejected)):
        raise BadRow(
            "the two dialogues part before their last answer: they do not answer the same prompt"
        )
    # 3. Everything before it is the prompt.
    prompt = dialogue(split_turns(chosen[:at]), source=source, row=row)
    return _make_pair(prompt, *answers)


def _answer(value: object, label: str) -> str:
    if isinstance(value, list):
        if len(value) != 1:
            raise BadRow(f"{label} must be one answer, got {len(value)} messages")
        value = value[0]
    if isinstance(value, dict):
        speaker, text = read_message(value, label)
        if speaker != "Assistant":
            raise BadRow(f"{label} must be the assistant's message")
        return text
    return checked_text(value, label)
