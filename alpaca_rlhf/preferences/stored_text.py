"""Texts as the database and snapshots hold them. No SQL: reading a snapshot must stay light."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from alpaca_rlhf.core.records import Instruction


def clean(text: str) -> str:
    """A text as any database can hold it: no zero bytes, no half characters."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def stored_history(prompt: Instruction) -> list[list[str]]:
    """The column `history` of a prompt: [user, reply] each turn, after [system] if there is one."""
    system = [[clean(prompt.system)]] if prompt.system else []
    return [*system, *([clean(user), clean(reply)] for user, reply in prompt.history)]


class Context(TypedDict):
    """The fields of an `Instruction` that the column `history` holds."""

    system: str
    history: tuple[tuple[str, str], ...]


def restored_history(column: Sequence[Sequence[str]]) -> Context:
    """The history and system text that `stored_history` was given."""
    system = "".join(turn[0] for turn in column[:1] if len(turn) == 1)
    turns = column[1:] if system else column
    return {"system": system, "history": tuple((user, reply) for user, reply in turns)}
