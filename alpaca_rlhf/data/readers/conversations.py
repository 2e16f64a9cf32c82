"""Messages in the manners of OpenAI and of ShareGPT: turns, and conversations to learn from.

A conversation is one row: its last reply is the output, the pairs before it are the history. A
system message, or a column `system`, is the first paragraph of the first instruction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data.readers.rows import BadRow, checked_text, text_column, type_name

Turn = tuple[str, str]
"""Who speaks (Human, Assistant or System) and what."""

COLUMNS = ("messages", "conversations")
"""Columns that hold a conversation: OpenAI's (`role`, `content`), ShareGPT's (`from`, `value`)."""

_SPEAKERS = {
    "human": "Human", "user": "Human", "prompter": "Human",
    "gpt": "Assistant", "assistant": "Assistant", "chatgpt": "Assistant",
    "system": "System",
}  # fmt: skip
_NAMES = {"Human": "user", "Assistant": "assistant", "System": "system"}


def read_message(value: object, what: str) -> Turn:
    """One message; `what` names where it stands.

    Raises:
        BadRow: It is no message, its role is unknown, or it says something that is not text.
    """
    if not isinstance(value, dict):
        raise BadRow(f"a message in {what} must be an object, got {type_name(value)}")
    role = _first(value, "from", "role")
    speaker = _SPEAKERS.get(role) if isinstance(role, str) else None
    if speaker is None:
        named = f"; {role[:40]!r} is unknown" if isinstance(role, str) else ""
        raise BadRow(
            f"a message in {what} must say who speaks "
            f"(`from` or `role`: human, gpt, user, assistant, system){named}"
        )
    return speaker, checked_text(_first(value, "value", "content"), f"a message in {what}")


def read_turns(value: object, what: str) -> list[Turn]:
    """A list of messages.

    Raises:
        BadRow: It is none.
    """
    if not isinstance(value, list):
        raise BadRow(f"{what} must be a list of messages, got {type_name(value)}")
    return [read_message(one, what) for one in value]


def holds_conversation(row: Mapping[str, Any]) -> bool:
    """Whether a row is a conversation, whatever other columns it has."""
    return any(row.get(name) is not None for name in COLUMNS)


def conversation(row: Mapping[str, Any], source: str) -> Instruction:
    """A row with `messages` or `conversations` as its last turn, with what came before.

    Without a last reply its output is None. Nothing is stripped or changed.

    Raises:
        BadRow: Turns do not alternate from the user's on, or one of them is empty.
    """
    name = next(name for name in COLUMNS if row.get(name) is not None)
    said = read_turns(row[name], f"column `{name}`")
    system = text_column(row, ("system",), required=False)
    if system.strip():
        said = [("System", system), *said]
    if said and said[0][0] == "System":
        (_, system), *said = said
    _refuse_broken(said)
    if system.strip():
        said[0] = ("Human", f"{system}\n\n{said[0][1]}")
    texts = [text for _, text in said]
    output = texts.pop() if len(texts) % 2 == 0 else None
    history = tuple(zip(texts[:-1:2], texts[1::2], strict=True))
    return Instruction(texts[-1], "", output, source, history)


def dialogue_history(row: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The column `history` of a row in Alpaca's columns: pairs of an instruction and its reply.

    Raises:
        BadRow: It holds something else, or an empty text.
    """
    value = row.get("history")
    if value is None:
        return ()
    pairs = value if isinstance(value, list) else [value]
    if not all(isinstance(one, list) and len(one) == 2 for one in pairs):
        raise BadRow("column `history` must be a list of pairs: an instruction and its reply")
    made = [tuple(checked_text(text, "a text in `history`") for text in one) for one in pairs]
    if not all(text.strip() for one in made for text in one):
        raise BadRow("a text in `history` is empty")
    return tuple((one[0], one[1]) for one in made)


def _first(value: Mapping[str, Any], *names: str) -> Any:
    """The first of the columns that is there; Parquet names all of them, with null for none."""
    return next((value[name] for name in names if value.get(name) is not None), None)


def _refuse_broken(said: Sequence[Turn]) -> None:
    speakers = [speaker for speaker, _ in said]
    if "System" in speakers:
        raise BadRow("the conversation has a second system turn, or one that is not its first")
    if not said:
        raise BadRow("the conversation has no turns")
    if speakers[0] == "Assistant":
        raise BadRow("the conversation starts with the assistant; it must start with the user")
    for one, other in pairwise(speakers):
        if one == other:
            raise BadRow(f"the conversation has two {_NAMES[one]} turns in a row")
    for speaker, text in said:
        if not text.strip():
            what = "reply" if speaker == "Assistant" else "user turn"
            raise BadRow(f"the conversation has an empty {what}")
