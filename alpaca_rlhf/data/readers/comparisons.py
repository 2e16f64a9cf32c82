"""Human preferences from files: pairs of answers.

A dialogue before ranked answers is rendered into the text of one instruction. A single question
stands as it is. Several turns become a transcript of paragraphs, `Human: ...` and `Assistant: ...`,
that ends with the human's last turn; a system message is the first paragraph, `System: ...`. The
prompt template is put around that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alpaca_rlhf.core.records import Instruction, PreferencePair
from alpaca_rlhf.data.readers.conversations import Turn, read_message, read_turns
from alpaca_rlhf.data.readers.formats import prompt_columns, source_of
from alpaca_rlhf.data.readers.problems import BadRow, listed, short
from alpaca_rlhf.data.readers.rows import checked_text, collect

_HH_ANSWER = "\n\nAssistant:"
_TWO = (("completion_a", "completion_b"), ("output_1", "output_2"))
_FIRST, _SECOND = ("1", "a", "completion_a", "output_1"), ("2", "b", "completion_b", "output_2")
_TIE = ("0", "tie")
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")


def dialogue(turns: Sequence[Turn], *, source: str = "") -> Instruction:
    """A dialogue that waits for the assistant's answer, as one instruction (see the top)."""
    if not turns or turns[-1][0] != "Human":
        raise BadRow("the dialogue before the answer must end with the human's turn")
    if not turns[-1][1].strip():
        raise BadRow("the human's last turn is empty")
    if len(turns) == 1:
        return Instruction(turns[0][1].strip(), source=source)
    text = "\n\n".join(f"{speaker}: {said.strip()}" for speaker, said in turns)
    return Instruction(text, source=source)


def read_pairs(path: Path) -> list[PreferencePair]:
    r"""Pairs of answers, the better one first.

    Understood: Anthropic's HH (`chosen`, `rejected`: whole dialogues of `\n\nHuman:` and
    `\n\nAssistant:` that part at their last answer), LLaMA-Factory's (`conversations`, `chosen`,
    `rejected`), and `prompt` (or `instruction` and `input`) with `chosen` and `rejected`. Messages
    may be text, `from`/`value` or `role`/`content`. One of two answers may be empty: people do
    prefer silence at times. A column `margin`, a number of at least 0, says how much better the
    better one is. GPT-4-LLM's `completion_a`, `completion_b` and AlpacaFarm's `output_1`,
    `output_2` are ordered by `preference` (1, 2, a, b, or tie, which gives no pair); without that
    column the first is the better one.

    Args:
        path: A JSON array or JSON lines, plain or gzipped.

    Raises:
        UserError: `file:line:` of the first broken row; two answers that are the same count as
            broken.
    """
    path = Path(path)
    return collect(path, lambda row: pairs_of(row, path.name))


def pairs_of(row: dict[str, Any], source: str) -> list[PreferencePair]:
    """The pair of one row, or none if its two answers tie.

    Raises:
        BadRow: It is broken.
    """
    if is_comparison(row):
        return _comparison(row, source_of(row, source))
    return [replace(_pair(row, source_of(row, source)), margin=_margin(row))]


def pair_to_json(pair: PreferencePair) -> dict[str, Any]:
    """The columns of a pair that `read_pairs` reads back, for a JSON line."""
    columns: dict[str, Any] = {
        "instruction": pair.prompt.instruction,
        "input": pair.prompt.input,
        "chosen": pair.chosen,
        "rejected": pair.rejected,
        "source": pair.prompt.source,
    }
    return columns | ({"margin": pair.margin} if pair.margin else {})


def is_comparison(row: Mapping[str, Any]) -> bool:
    """Whether a row holds two answers without saying by their names which is better."""
    return any(all(row.get(name) is not None for name in two) for two in _TWO)


def _pair(row: dict[str, Any], source: str) -> PreferencePair:
    for name in ("chosen", "rejected"):
        if row.get(name) is None:
            here = listed(list(row))
            raise BadRow(f"expected columns `chosen` and `rejected`; columns here: {here}")
    if "conversations" in row:
        prompt = dialogue(read_turns(row["conversations"], "column `conversations`"), source=source)
    elif isinstance(row.get("prompt"), list):
        prompt = dialogue(read_turns(row["prompt"], "column `prompt`"), source=source)
    elif "prompt" in row or "instruction" in row:
        instruction, given = prompt_columns(row)
        prompt = Instruction(instruction, given, source=source)
    else:
        return _hh_pair(
            checked_text(row["chosen"], "`chosen`"),
            checked_text(row["rejected"], "`rejected`"),
            source,
        )
    return _made(prompt, _answer(row["chosen"], "`chosen`"), _answer(row["rejected"], "`rejected`"))


def _comparison(row: dict[str, Any], source: str) -> list[PreferencePair]:
    names = next(two for two in _TWO if all(row.get(name) is not None for name in two))
    first, second = (checked_text(row[name], f"column `{name}`") for name in names)
    value = row.get("preference")
    wish = "1" if value is None else str(value).strip().lower().removesuffix(".0")
    if wish not in (*_FIRST, *_SECOND, *_TIE):
        raise BadRow(f"`preference` must be 1, 2, a, b or tie, got {short(str(value))}")
    if "user_input" in row:
        row = {"instruction": row["user_input"], "input": row.get("input")}
    prompt = Instruction(*prompt_columns(row), source=source)
    if wish in _TIE:
        return []
    better, worse = (first, second) if wish in _FIRST else (second, first)
    return [replace(_made(prompt, better, worse), margin=_margin(row))]


def _margin(row: dict[str, Any]) -> float:
    value = row.get("margin")
    if value is None:
        return 0.0
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise BadRow(f"`margin` must be a number of at least 0, got {str(value)[:40]}")
    return float(value)


def _made(prompt: Instruction, chosen: str, rejected: str) -> PreferencePair:
    if chosen == rejected:
        raise BadRow("`chosen` and `rejected` are the same: there is nothing to prefer")
    return PreferencePair(prompt, chosen, rejected, prompt.id)


def _hh_pair(chosen: str, rejected: str, source: str) -> PreferencePair:
    both = zip(chosen, rejected, strict=False)
    shorter = min(len(chosen), len(rejected))
    same = next((at for at, (one, other) in enumerate(both) if one != other), shorter)
    at = chosen[:same].rfind(_HH_ANSWER)
    if at < 0:
        raise BadRow(
            "expected a column `prompt` or `conversations`, or in `chosen` and `rejected` two "
            "dialogues of `Human:` and `Assistant:` turns with the same beginning"
        )
    answers = [text[at + len(_HH_ANSWER) :].strip() for text in (chosen, rejected)]
    if any(_HH_TURN.search(text[at + 1 :]) for text in (chosen, rejected)):
        raise BadRow(
            "the two dialogues part before their last answer: they do not answer the same prompt"
        )
    parts = _HH_TURN.split(chosen[:at])
    if parts[0].strip():
        raise BadRow("text stands before the first `Human:` turn")
    turns = [(parts[i], parts[i + 1]) for i in range(1, len(parts), 2)]
    return _made(dialogue(turns, source=source), *answers)


def _answer(value: object, what: str) -> str:
    if isinstance(value, list):
        if len(value) != 1:
            raise BadRow(f"{what} must be one answer, got {len(value)} messages")
        value = value[0]
    if isinstance(value, dict):
        speaker, text = read_message(value, what)
        if speaker != "Assistant":
            raise BadRow(f"{what} must be the assistant's message")
        return text
    return checked_text(value, what)
