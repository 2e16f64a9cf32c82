"""Messages in OpenAI's and ShareGPT's columns: turns, and conversations to learn from.

A conversation is one row: its last reply is the output, the pairs before it are the history. A
system message, or a column `system`, becomes the first paragraph of the first instruction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data.readers.columns import CONVERSATION
from alpaca_rlhf.data.readers.problems import EmptyRow
from alpaca_rlhf.data.readers.rows import BadRow, checked_text, text_column, type_name

Turn = tuple[str, str]
"""The speaker (Human, Assistant or System) and the text."""

_SPEAKERS = {
    "human": "Human", "user": "Human", "prompter": "Human",
    "gpt": "Assistant", "assistant": "Assistant", "chatgpt": "Assistant", "model": "Assistant",
    "bot": "Assistant", "system": "System", "developer": "System",
}  # fmt: skip
_NAMES = {"Human": "user", "Assistant": "assistant", "System": "system"}


def read_message(value: object, label: str) -> Turn:
    """Convert one message; `label` names its place in error messages.

    Raises:
        BadRow: It is not a message, its role is unknown, or its content is not text.
    """
    if not isinstance(value, dict):
        raise BadRow(f"a message in {label} must be an object, got {type_name(value)}")
    role = _first_value(value, "from", "role")
    speaker = _SPEAKERS.get(role) if isinstance(role, str) else None
    if speaker is None:
        unknown = f"; {role[:40]!r} is unknown" if isinstance(role, str) else ""
        raise BadRow(
            f"a message in {label} must say who speaks "
            f"(`from` or `role`: human, gpt, user, assistant, system){unknown}"
        )
    content = _text_of_parts(_first_value(value, "value", "content"), label)
    return speaker, checked_text(content, f"a message in {label}")


def read_turns(value: object, label: str) -> list[Turn]:
    """Convert a list of messages.

    Raises:
        BadRow: It is not a list, or one of its messages is broken.
    """
    if not isinstance(value, list):
        raise BadRow(f"{label} must be a list of messages, got {type_name(value)}")
    return [read_message(message, label) for message in value]


def holds_conversation(row: Mapping[str, Any]) -> bool:
    """True for a row with a conversation, whatever other columns it has."""
    return any(row.get(name) is not None for name in CONVERSATION)


def conversation(row: Mapping[str, Any], source: str) -> Instruction:
    """The last user turn of a conversation, with its reply and the turns before it.

    If no reply follows the last user turn, the output is None. Texts are kept unchanged.

    Raises:
        BadRow: The turns do not alternate, starting with the user, or one of them is empty.
    """
    name = next(name for name in CONVERSATION if row.get(name) is not None)
    turns = read_turns(row[name], f"column `{name}`")
    # 1. Take the system text, from its column or from the first turn. If both are there, the turn
    #    stays in place and is refused as a second one.
    system = text_column(row, ("system",), required=False)
    if system.strip():
        turns = [("System", system), *turns]
    if turns and turns[0][0] == "System":
        (_, system), *turns = turns
    _refuse_broken(turns)
    if system.strip():
        turns[0] = ("Human", f"{system}\n\n{turns[0][1]}")
    # 2. The turns alternate, so an even number of them ends with a reply.
    texts = [text for _, text in turns]
    output = texts.pop() if len(texts) % 2 == 0 else None
    history = tuple(zip(texts[:-1:2], texts[1::2], strict=True))
    return Instruction(texts[-1], "", output, source, history)


def dialogue_history(row: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The column `history` of a row in Alpaca's columns: pairs of an instruction and its reply.

    Raises:
        BadRow: The column is not a list of pairs, or a text in it is empty.
    """
    value = row.get("history")
    if value is None:
        return ()
    pairs = value if isinstance(value, list) else [value]
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise BadRow("column `history` must be a list of pairs: an instruction and its reply")
    texts = [tuple(checked_text(text, "a text in `history`") for text in pair) for pair in pairs]
    if not all(text.strip() for pair in texts for text in pair):
        raise EmptyRow("a text in `history` is empty")
    return tuple((pair[0], pair[1]) for pair in texts)


def _text_of_parts(content: Any, label: str) -> Any:
    """The text of a content of parts (`type` and `text`), joined; any other content unchanged."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else type_name(part)
        if kind not in ("text", "input_text", "output_text"):
            raise BadRow(
                f"a message in {label} has a part of type {str(kind)[:40]!r}: text alone is learnt "
                "from; leave the row out"
            )
        texts.append(checked_text(part.get("text"), f"a part of a message in {label}"))
    return "".join(texts)


def _first_value(value: Mapping[str, Any], *names: str) -> Any:
    """The first of these columns that is not null: Parquet names all of them, absent ones null."""
    return next((value[name] for name in names if value.get(name) is not None), None)


def _refuse_broken(turns: Sequence[Turn]) -> None:
    speakers = [speaker for speaker, _ in turns]
    if "System" in speakers:
        raise BadRow("the conversation has a second system turn, or one that is not its first")
    if not turns:
        raise EmptyRow("the conversation has no turns")
    if speakers[0] == "Assistant":
        raise BadRow("the conversation starts with the assistant; it must start with the user")
    for speaker, next_speaker in pairwise(speakers):
        if speaker == next_speaker:
            raise BadRow(f"the conversation has two {_NAMES[speaker]} turns in a row")
    for speaker, text in turns:
        if not text.strip():
            turn_name = "reply" if speaker == "Assistant" else "user turn"
            raise EmptyRow(f"the conversation has an empty {turn_name}")
