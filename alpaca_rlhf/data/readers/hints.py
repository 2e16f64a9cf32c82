"""Hints for files with unknown columns: flags and commands that work when they are typed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, BinaryIO

from alpaca_rlhf.core.shell_words import quoted
from alpaca_rlhf.data.readers.columns import (
    CONVERSATION,
    INPUT,
    INSTRUCTION,
    OUTPUT,
    RowKind,
    is_message,
    names_a_place,
    preference_shape,
)
from alpaca_rlhf.data.readers.json_rows import ROW_LIMIT
from alpaca_rlhf.data.readers.problems import short
from alpaca_rlhf.data.readers.tables import KNOWN_COLUMNS
from alpaca_rlhf.data.readers.template_marks import holds_answer
from alpaca_rlhf.data.readers.values import is_prose

_QUESTION = ("question", "query", "problem", "user_input")
_ANSWER = ("answer", "answers", "reply", "solution", "assistant")
_INSTRUCTION = ("instruction", INSTRUCTION, (*INSTRUCTION, *_QUESTION, "task", "user", "text"))
_INPUT = ("input", INPUT, INPUT)
_OUTPUT = ("output", OUTPUT, (*OUTPUT, *_ANSWER, "text"))
_PROMPT = (
    "prompt",
    (*INSTRUCTION, *CONVERSATION),
    ("prompt", "instruction", *_QUESTION, "input"),
)
# `response_j` and `response_k` are those of stack-exchange-paired, whose j has the more votes.
_CHOSEN = (
    "chosen",
    ("chosen",),
    (
        *("chosen", "chosen_response", "response_chosen", "chosen_answer", "response_j"),
        *("preferred", "preferred_response", "better_response", "accepted", "positive"),
    ),
)
_REJECTED = (
    "rejected",
    ("rejected",),
    (
        *("rejected", "rejected_response", "response_rejected", "rejected_answer", "response_k"),
        *("dispreferred", "dispreferred_response", "worse_response", "negative"),
    ),
)
_DIALOGUE = ("conversation", "dialog", "dialogue", "dialogs", "dialogues", "turns", "chat")
"""Names of columns of messages in other kits."""
_NAMES: dict[RowKind, tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...]] = {
    "instructions": (_INSTRUCTION, _INPUT, _OUTPUT),
    "prompts": (_INSTRUCTION, _INPUT),
    "rankings": (_PROMPT, _CHOSEN, _REJECTED),
}
"""For every column of a kind: its name, the names that are read, and what else it is called."""
_ANSWER_NAME = re.compile(
    "(?:answer|response|completion|output|reply|replies|solution|choice|chosen|rejected|preferred)",
    re.IGNORECASE,
)
_LARGEST_OBJECT = 2**28
"""Bytes of a file that is looked at as a whole."""
_SAMPLE_ROWS = 20


def suggested_columns(row: Mapping[str, Any], kind: RowKind) -> dict[str, str]:
    """New names of text columns that are likely to be what a kind of row needs.

    They differ from a name that is read by their case alone, or are a common synonym of it. Columns
    that are there already are not suggested, and no text that is a whole dialogue in marks: its
    answers would be part of a prompt. A column of messages is suggested before any text.
    """
    suggested: dict[str, str] = {}
    has_prompt = any(row.get(name) is not None for name in (*INSTRUCTION, *CONVERSATION))
    messages = next((name for name in row if _is_dialogue(name, row[name])), None)
    if messages is not None and not has_prompt:
        suggested[messages] = "conversations"
    for new, read, synonyms in _NAMES[kind]:
        if any(row.get(name) is not None for name in read):
            continue
        if "conversations" in suggested.values() and new not in ("chosen", "rejected"):
            continue
        for synonym in synonyms:
            name = next((name for name in row if _is_named(name, synonym)), None)
            if name is None or name in suggested or not isinstance(row[name], str):
                continue
            if synonym == "input" and new == "prompt" and not _asks_alone(row, name):
                continue
            if new in ("chosen", "rejected") or not holds_answer(row[name]):
                suggested[name] = new
                break
    return suggested


def further_texts(row: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    """Columns that make a row more than a prompt, beside those with new names: prose or answers."""
    unread = {name: value for name, value in row.items() if name not in (*names, *INPUT)}
    return [
        name
        for name, value in unread.items()
        if value
        and not names_a_place(name)
        and (_ANSWER_NAME.match(name) or (isinstance(value, str) and is_prose(value)))
    ]


def columns_argument(names: Mapping[str, str], given: Mapping[str, str] | None = None) -> str:
    """The value of `--columns` for new names of columns, as it is typed in a shell.

    Args:
        names: New names of columns as they are called after `given`.
        given: New names that were typed already, which the value repeats: it takes their place.
    """
    return quoted(_columns_text(names, given or {}))


def naming_flag(
    row: Mapping[str, Any], kind: RowKind, flag: str, given: Mapping[str, str] | None = None
) -> str:
    """The flag that gives the columns of a row the names of a kind, or how it looks.

    Args:
        row: A row, its columns renamed as `given` says.
        kind: The kind of row that it is to be read as.
        flag: The flag, as it is typed.
        given: New names that were typed already, which the flag repeats.
    """
    suggested = suggested_columns(row, kind)
    names = {*suggested.values()} - {"input"}
    if "conversations" in names:
        names |= {"instruction", "output", "prompt"}
    if preference_shape(row) is not None:
        names |= {"chosen", "rejected"}
    missing = [
        new
        for new, read, _ in _NAMES[kind]
        if new not in {*names, "input"} and all(row.get(name) is None for name in read)
    ]
    parts = [_columns_text(suggested, given or {}), *(f"OLD={new}" for new in missing)]
    return f"{flag} {quoted(','.join(filter(None, parts)))}"


def whole_dialogue(row: Mapping[str, Any]) -> str:
    """The way out for a row whose text is a whole dialogue in marks; "" for any other row."""
    texts = {name: value for name, value in row.items() if isinstance(value, str)}
    name = next((name for name in texts if holds_answer(texts[name])), None)
    if name is None:
        return ""
    return (
        f"column `{short(name)}` holds questions and answers, told apart by marks: write each as a "
        "list of messages (`role`, `content`) in a column `messages`"
    )


def _columns_text(names: Mapping[str, str], given: Mapping[str, str]) -> str:
    renamed_again = {old: names.get(new, new) for old, new in given.items()}
    added = {old: new for old, new in names.items() if old not in given.values()}
    return ",".join(f"{old}={new}" for old, new in (renamed_again | added).items())


def columns_of_one_object(stream: BinaryIO) -> list[str]:
    """The columns of a file's only object that hold lists of rows; none if it is another file.

    Leaves the stream somewhere.
    """
    first = stream.readline(ROW_LIMIT + 1)
    if not first.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return []
    rest = stream.readline(ROW_LIMIT + 1)
    if rest.strip() and _json(first) is not None:  # JSON lines
        return []
    rest += stream.read(_LARGEST_OBJECT)
    value = _json(first + rest) if len(rest) < _LARGEST_OBJECT else None
    if not isinstance(value, dict) or is_message(value) or KNOWN_COLUMNS & set(value):
        return []
    if any(_is_named(name, synonym) for name in value for synonym in (*_QUESTION, *_DIALOGUE)):
        return []
    return [name for name, rows in value.items() if isinstance(rows, list) and _are_rows(rows)]


def taking_rows_out(path: object, name: str, *, gzipped: bool) -> str:
    """The command that writes the rows of one column of an object to a file of their own."""
    column = f"json.loads(sys.stdin.buffer.read())[{json.dumps(name)}]"
    code = f"import json, sys; [print(json.dumps(row)) for row in {column}]"
    rows = f"{name}.jsonl" if re.fullmatch(r"[\w-]+", name, re.ASCII) else "rows.jsonl"
    file = quoted(path)
    source = (f"gzip -dc {file} | ", "") if gzipped else ("", f" < {file}")
    return f"{source[0]}python3 -c {quoted(code)}{source[1]} > {rows}"


def _is_named(name: str, synonym: str) -> bool:
    plain = re.sub(r"[\s_-]+", "_", name.strip()).casefold()
    return plain == synonym and not {*name} & {",", "="} and name == name.strip()


def _asks_alone(row: Mapping[str, Any], name: str) -> bool:
    """True for an input beside two answers that do not both hold it."""
    text = row[name].strip()
    answers = [row.get(side) for side in ("chosen", "rejected")]
    if not text or any(answer is None for answer in answers):
        return False
    return not all(isinstance(answer, str) and text in answer for answer in answers)


def _is_dialogue(name: str, value: object) -> bool:
    """True for a list of messages in a column that is not called as those that are read."""
    named = any(_is_named(name, synonym) for synonym in (*_DIALOGUE, *CONVERSATION))
    return named and isinstance(value, list) and bool(value) and all(map(_is_turn, value))


def _is_turn(value: object) -> bool:
    return isinstance(value, dict) and bool({"role", "from"} & {*value})


def _are_rows(values: Iterable[object]) -> bool:
    sample = list(islice(values, _SAMPLE_ROWS))
    are_objects = bool(sample) and all(isinstance(value, dict) for value in sample)
    return are_objects and not all(map(_is_turn, sample))


def _json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
