"""Filters for generated rows: named pure rules on the text, in three sets.

`self-instruct` and `alpaca` are the originals' (yizhongw/self-instruct@10dd06e
bootstrap_instructions.py:42-68 and prepare_for_finetuning.py:127-140;
tatsu-lab/stanford_alpaca@4187a25 generate_instruction.py `post_process_gpt3_response`) with one
repair: an empty output never passes. `strict` is ours. It handles scripts other than Latin, and the
faults that the cleaners of the Alpaca data found (gururise/AlpacaDataCleaned@791174f README). Seed
tasks are never filtered: four of the 175 that Alpaca started from would not survive its filters.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data.novelty import tokens


@dataclass(frozen=True)
class Drop:
    """A dropped row and the reason."""

    rule: str
    """Name of the rule."""
    detail: str
    """The rule's finding in this row."""
    row: Instruction | None = None
    """The row, unless it could not even be parsed."""
    near: str = ""
    """Id of the row that it nearly duplicates; empty otherwise."""
    score: float = 0.0
    """ROUGE-L F1 with that row."""


@dataclass(frozen=True)
class Rule:
    """One reason to drop a row."""

    name: str
    """Name in reports."""
    check: Callable[[Instruction], str | None]
    """Describes the fault it finds in a row, or returns None."""


# Self-Instruct's bounds on the words of an instruction, and its words for things that a language
# model cannot see or do.
_MIN_WORDS, _MAX_WORDS = 4, 150
_SELF_INSTRUCT_WORDS = (
    *("image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps"),
    *("draw", "plot", "go to"),
)
_ALPACA_WORDS = (*_SELF_INSTRUCT_WORDS, "video", "audio", "music", "flowchart", "diagram")
# Ours: an output of at least 16 words repeats itself if less than half of its 4-grams are distinct.
_MIN_REPETITION_WORDS, _MIN_DISTINCT_SHARE, _GRAM = 16, 0.5, 4

_NO_INPUT = re.compile(
    r"[<\[({]?\s*(?:no[\s_-]*inputs?|none|n\s*/\s*a|not[\s_-]applicable)"
    r"(?:\s+(?:is\s+)?(?:required|needed|necessary|provided|given))?\s*[>\])}]?\.?",
    re.IGNORECASE,
)
_NOT_AVAILABLE = re.compile(
    r"[<\[(]?(?:n/?a|none|null|nan|no ?output|not available)[>\])]?\.?", re.IGNORECASE
)
_MERGED = re.compile(
    r"^\s*(?:\d+\.\s*)?(?:###\s*)?(?:Instruction|Input|Output|Response)\s*:", re.MULTILINE
)
_URL = re.compile(r"https?://\S|\bwww\.\w", re.IGNORECASE)
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffd]")
_REFUSAL = re.compile(
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b"
    r"|\bi(?:'|\u2019| a)m sorry, but\b"
    r"|\bi (?:cannot|can(?:'|\u2019)t|am unable to|am not able to) "
    r"(?:assist|help|fulfil|comply|provide)"
    r"|作为(?:一个|一名)?(?:人工智能|AI|语言模型)|抱歉[,\uff0c]\s*我(?:不能|无法)",
    re.IGNORECASE,
)


def is_no_input(text: str) -> bool:
    """True if an input only says that there is none: <noinput>, No input required, N/A ..."""
    return not text.strip() or _NO_INPUT.fullmatch(text.strip()) is not None


def _length(row: Instruction) -> str | None:
    return _bounds(len(row.instruction.split()))


def _length_in_any_script(row: Instruction) -> str | None:
    return _bounds(len(tokens(row.instruction)))


def _bounds(n_words: int) -> str | None:
    return None if _MIN_WORDS <= n_words <= _MAX_WORDS else f"{n_words} words in the instruction"


def _mentions(listed: Sequence[str]) -> Callable[[Instruction], str | None]:
    pattern = re.compile(rf"\b(?:{'|'.join(listed)})\b", re.IGNORECASE)

    def check(row: Instruction) -> str | None:
        match = pattern.search(row.instruction)
        return match and f"says {match[0]!r}"

    return check


def _program(row: Instruction) -> str | None:
    return (
        "starts with 'Write a program'" if row.instruction.startswith("Write a program") else None
    )


def _punctuation(row: Instruction) -> str | None:
    first = row.instruction[:1]
    return f"starts with {first!r}" if first and first in string.punctuation else None


def _not_ascii(row: Instruction) -> str | None:
    first = row.instruction[:1]
    return f"starts with {first!r}" if not first.isascii() else None


def _empty_instruction(row: Instruction) -> str | None:
    return None if row.instruction.strip() else "the instruction is empty"


def _empty_output(row: Instruction) -> str | None:
    return "the output is empty" if row.output is not None and not row.output.strip() else None


def _echo(row: Instruction) -> str | None:
    output = (row.output or "").strip()
    if output and output == row.input.strip():
        return "the output is the input"
    repeats = output and output == row.instruction.strip()
    return "the output is the instruction" if repeats else None


def _echo_of_input(row: Instruction) -> str | None:
    return "the output is the input" if row.input and row.input == row.output else None


def _colon(row: Instruction) -> str | None:
    for name, text in (("input", row.input), ("output", row.output or "")):
        if text.strip().endswith(":"):
            return f"the {name} ends with a colon"
    return None


def _not_available(row: Instruction) -> str | None:
    output = (row.output or "").strip()
    return f"the output is {output!r}" if _NOT_AVAILABLE.fullmatch(output) else None


def _no_input_marker(row: Instruction) -> str | None:
    return f"the input is {row.input.strip()!r}" if row.input and is_no_input(row.input) else None


def _contains(pattern: re.Pattern[str], description: str) -> Callable[[Instruction], str | None]:
    def check(row: Instruction) -> str | None:
        for name, text in (
            ("instruction", row.instruction),
            ("input", row.input),
            ("output", row.output or ""),
        ):
            if match := pattern.search(text):
                return f"{description} in the {name}: {match[0].strip()!r}"
        return None

    return check


def _refusal(row: Instruction) -> str | None:
    match = _REFUSAL.search(row.output or "")
    return match and f"the output refuses: {match[0]!r}"


def _repetition(row: Instruction) -> str | None:
    output_tokens = tokens(row.output or "")
    if len(output_tokens) < _MIN_REPETITION_WORDS:
        return None
    starts = range(len(output_tokens) - _GRAM + 1)
    grams = [tuple(output_tokens[start : start + _GRAM]) for start in starts]
    share = len(set(grams)) / len(grams)
    return (
        f"only {share:.0%} of the output's 4-grams are distinct"
        if share < _MIN_DISTINCT_SHARE
        else None
    )


_EMPTY = (Rule("empty_instruction", _empty_instruction), Rule("empty_output", _empty_output))
_START = (
    Rule("program", _program),
    Rule("punctuation", _punctuation),
    Rule("not_ascii", _not_ascii),
)

RULES: Mapping[str, tuple[Rule, ...]] = {
    "self-instruct": (
        *_EMPTY, Rule("length", _length), Rule("words", _mentions(_SELF_INSTRUCT_WORDS)), *_START,
        Rule("echo", _echo_of_input), Rule("colon", _colon),
    ),
    "alpaca": (*_EMPTY, Rule("length", _length), Rule("words", _mentions(_ALPACA_WORDS)), *_START),
    "strict": (
        *_EMPTY, Rule("length", _length_in_any_script), Rule("words", _mentions(_ALPACA_WORDS)),
        Rule("punctuation", _punctuation), Rule("echo", _echo), Rule("colon", _colon),
        Rule("not_available", _not_available), Rule("no_input_marker", _no_input_marker),
        Rule("merged", _contains(_MERGED, "another task's marker")),
        Rule("url", _contains(_URL, "a link")),
        Rule("control", _contains(_CONTROL, "a control character")),
        Rule("refusal", _refusal), Rule("repetition", _repetition),
    ),
}  # fmt: skip
"""The rules of each set by name, in the order they are checked."""


def rule_set(name: str) -> tuple[Rule, ...]:
    """The rules of a set.

    Raises:
        UserError: There is no set of that name.
    """
    if name not in RULES:
        raise UserError(f"no filter set {name!r}; choose from {', '.join(RULES)}")
    return RULES[name]


def drop_reason(row: Instruction, rules: Sequence[Rule]) -> Drop | None:
    """The first rule that the row breaks, or None if it may stay."""
    for rule in rules:
        detail = rule.check(row)
        if detail is not None:
            return Drop(rule.name, detail, row)
    return None
