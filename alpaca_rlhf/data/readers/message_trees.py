"""OpenAssistant's flat messages, gathered into message trees.

Its datasets on the hub have one message a row, with its `message_id` and its `parent_id` (none for
the first message of a tree); the rows of a tree may stand anywhere in a file, so all of them are in
memory before the first tree is complete. The rows of a tree share its fate.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from alpaca_rlhf.data.readers.columns import (
    is_message,
    refuse_unsupported,
    renamed,
    unread_columns,
)
from alpaca_rlhf.data.readers.problems import BadRow, LeftOut, short
from alpaca_rlhf.data.readers.values import checked_text, is_rank

LINE = "line number"
"""Key of a gathered message that says in which line it stands."""

_SAMPLE_ROWS = 200
_LOST = "a message before it is not in the file, or is broken"
_ROLES = ("prompter", "user", "assistant")


class GatheredRow(dict[str, Any]):
    """A message tree in its column `prompt`, and the rows that it was gathered from."""

    def __init__(self, tree: dict[str, Any], numbers: Sequence[int]) -> None:
        super().__init__(prompt=tree)
        self.numbers = numbers
        """Numbers of its rows, the first message's first."""
        self.unread: Counter[str] = Counter()
        """Columns of its messages that are not read, and in how many rows each stands."""
        self.names: set[str] = set()
        """Columns of its messages, as they are named in the file."""


@dataclass
class _Message:
    number: int
    parent: str | None
    node: dict[str, Any]
    names: tuple[str, ...]
    unread: tuple[str, ...]
    replies: list[_Message] = field(default_factory=list)


def numbers_of(number: int, row: Any) -> Sequence[int]:
    """The numbers of the rows that a row was gathered from: its own where it was not."""
    return row.numbers if isinstance(row, GatheredRow) else (number,)


def gathered(
    rows: Iterable[tuple[int, Any]], columns: Mapping[str, str]
) -> Iterator[tuple[int, Any]]:
    """The trees of flat messages as `GatheredRow`; all other rows as they are.

    Messages whose parent is nowhere in the file are `LeftOut`.
    """
    rows = iter(rows)
    sample = list(islice(rows, _SAMPLE_ROWS))
    rows = chain(sample, rows)
    if any(isinstance(row, dict) and is_message(renamed(row, columns)) for _, row in sample):
        return iter(_trees(rows, columns))
    return rows


def rank_of(message: Mapping[str, Any]) -> int | None:
    """The rank of a reply; None where it has none. Tables write it as a float, or as text.

    Raises:
        BadRow: It is no whole number.
    """
    rank = message.get("rank")
    if rank is None or rank == "" or (isinstance(rank, float) and math.isnan(rank)):
        return None
    try:
        number = float(rank) if isinstance(rank, (str, int, float)) else math.inf
    except (ValueError, OverflowError):
        number = math.inf
    if isinstance(rank, bool) or not number.is_integer() or not is_rank(int(number)):
        raise BadRow(f"`rank` must be a whole number, got {short(str(rank))}")
    return int(number)


def _trees(
    rows: Iterable[tuple[int, Any]], columns: Mapping[str, str]
) -> list[tuple[int, GatheredRow | BadRow | LeftOut]]:
    # 1. Read every message; a broken one keeps its line.
    messages: dict[str, _Message] = {}
    outcomes: list[tuple[int, GatheredRow | BadRow | LeftOut]] = []
    for number, row in rows:
        try:
            name, message = _message(number, row, columns)
            if name in messages:
                raise BadRow("`message_id` is that of an earlier message; keep one of them")
        except BadRow as problem:
            outcomes.append((number, problem))
        else:
            messages[name] = message
    # 2. Hang each below its parent.
    for message in messages.values():
        parent = messages.get(message.parent) if message.parent is not None else None
        if parent is not None:
            parent.replies.append(message)
    # 3. Walk every tree from its first message; what is not reached has lost a message before it.
    reached: set[int] = set()
    for first in messages.values():
        if first.parent is None:
            tree = _tree(first)
            reached.update(tree.numbers)
            outcomes.append((first.number, tree))
    lost = [message.number for message in messages.values() if message.number not in reached]
    outcomes += [(number, LeftOut(_LOST)) for number in lost]
    return sorted(outcomes, key=lambda outcome: outcome[0])


def _message(number: int, row: Any, columns: Mapping[str, str]) -> tuple[str, _Message]:
    """The id of a row's message, and the message."""
    if isinstance(row, BadRow):
        raise row
    if not isinstance(row, dict):
        raise BadRow("expected a message: an object with `message_id`, `parent_id`, `role`, `text`")
    message = renamed(row, columns)
    refuse_unsupported(message)
    for name in ("message_id", "text"):
        checked_text(message.get(name), f"column `{name}` of a message")
    role, parent = message.get("role"), message.get("parent_id")
    if role not in _ROLES:
        raise BadRow(f"column `role` of a message must be prompter or assistant, got {_told(role)}")
    if parent == "" or (isinstance(parent, float) and math.isnan(parent)):
        parent = None
    if parent is not None and not isinstance(parent, str):
        raise BadRow("column `parent_id` of a message must be text, or null for a tree's first one")
    node = {"role": role, "text": message["text"], "rank": rank_of(message), LINE: number}
    node["deleted"] = _is_deleted(message.get("deleted"))
    unread = tuple(short(name) for name in unread_columns(row, "rankings", columns))
    return message["message_id"], _Message(number, parent, node, tuple(row), unread)


def _is_deleted(value: Any) -> bool:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return False
    flag = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
    if str(value).lower() not in flag:
        raise BadRow(f"column `deleted` of a message must be true or false, got {_told(value)}")
    return flag[str(value).lower()]


def _tree(first: _Message) -> GatheredRow:
    """The tree below a first message, without recursion: it may be deep."""
    row = GatheredRow(first.node, numbers := [])
    stack = [first]
    while stack:
        message = stack.pop()
        numbers.append(message.number)
        row.unread.update(message.unread)
        row.names.update(message.names)
        message.node["replies"] = [reply.node for reply in message.replies]
        stack.extend(reversed(message.replies))
    return row


def _told(value: Any) -> str:
    return short(str(value))
