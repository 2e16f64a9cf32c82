"""Conversations of each account, which nobody else reads, and thumbs on replies.

A snapshot has the replies with a thumb, their prompts included, without the names of accounts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from alpaca_rlhf.preferences.assignment import Candidates, Refused
from alpaca_rlhf.preferences.queue import add_completions
from alpaca_rlhf.preferences.schema import Annotator, Completion, Conversation, Prompt, Thumb
from alpaca_rlhf.preferences.stored_text import clean
from alpaca_rlhf.preferences.upserts import say_of_reply

MAX_TITLE_CHARS = 80
"""Characters of a conversation's name."""
MAX_LISTED = 200
"""Conversations in the list of an account, the newest ones."""


@dataclass(frozen=True)
class ListedChat:
    """One conversation in a list."""

    id: int
    """Number."""
    title: str
    """Name, at first the beginning of its first message."""
    updated_ms: int
    """Time of its last change, in milliseconds since 1970."""


def listed(session: Session, annotator_id: int, *, n: int) -> list[ListedChat]:
    """The conversations of an account, the one that changed last first."""
    query = (
        select(Conversation.id, Conversation.title, Conversation.updated_ms)
        .where(Conversation.annotator_id == annotator_id)
        .order_by(Conversation.updated_ms.desc(), Conversation.id.desc())
        .limit(n)
    )
    return [ListedChat(*row) for row in session.execute(query)]


def save(
    session: Session,
    annotator_id: int,
    number: int | None,
    title: str,
    turns: Sequence[Any],
    *,
    before: str | None,
    now_ms: int,
) -> int:
    """Keep a conversation, a new one where no number is given; returns its number.

    A conversation keeps the title that it has.

    Args:
        session: A transaction that writes.
        annotator_id: The account.
        number: Number of the conversation; None is a new one.
        title: Name of a new one.
        turns: All of its turns.
        before: `digest` of the turns that these replace. Where others are kept by now, those stay,
            and these become a conversation of their own under the same name; where these are none,
            nothing is done.
        now_ms: The server's clock.

    Raises:
        Refused: `unknown` or `not_yours`.
    """
    row = None if number is None else _owned(session, annotator_id, number, lock=True)
    if row is not None and before is not None and digest(row.turns) != before:
        if not turns:
            return row.id
        title, row = row.title, None
    if row is None:
        row = Conversation(
            annotator_id=annotator_id, title=_title(title), created_ms=now_ms, turns=[]
        )
        session.add(row)
    row.turns, row.updated_ms = list(turns), now_ms
    session.flush()
    return row.id


def digest(turns: Sequence[Any]) -> str:
    """The sha256 of the turns of a conversation, by which a change by another page shows."""
    return sha256(json.dumps(list(turns), sort_keys=True).encode()).hexdigest()


def opened(session: Session, annotator_id: int, number: int) -> tuple[str, list[Any]]:
    """Title and turns of a conversation.

    Raises:
        Refused: `unknown` or `not_yours`.
    """
    row = _owned(session, annotator_id, number)
    return row.title, row.turns


def rename(session: Session, annotator_id: int, number: int, title: str) -> None:
    """Give a conversation another name.

    Raises:
        Refused: `unknown`, `not_yours`, or `bad_value` where the name is empty.
    """
    row = _owned(session, annotator_id, number)
    if not _title(title):
        raise Refused("bad_value", "a conversation needs a name")
    row.title = _title(title)


def remove(session: Session, annotator_id: int, number: int) -> None:
    """Delete a conversation; thumbs on its replies stay.

    Raises:
        Refused: `unknown` or `not_yours`.
    """
    session.delete(_owned(session, annotator_id, number))


def rate(
    session: Session, annotator_id: int, reply: Candidates, up: bool | None, *, now_ms: int
) -> None:
    """Keep an account's thumb on a reply, or take it away.

    Args:
        session: A transaction that writes.
        annotator_id: The account.
        reply: The prompt, and the reply as its only completion.
        up: True for a thumb up, False for one down, None for none.
        now_ms: The server's clock.
    """
    _, (completion,) = reply
    add_completions(session, [reply], now_ms=now_ms)
    completion_id = session.execute(
        select(Completion.id).where(Completion.key == completion.id)
    ).scalar_one()
    columns = None if up is None else {"up": up, "created_ms": now_ms}
    say_of_reply(session, Thumb, annotator_id, completion_id, columns)


def count_thumbs(session: Session) -> int:
    """The number of thumbs that count."""
    return session.scalar(_counted_thumbs(func.count())) or 0


def thumbs(session: Session) -> Iterator[dict[str, Any]]:
    """The thumbs that count, with prompt and reply, in an order that depends on them alone."""
    columns = (Prompt.instruction, Prompt.input, Prompt.history, Completion.text, Thumb.up)
    query = _counted_thumbs(*columns).order_by(Completion.key, Annotator.name)
    yield from (dict(row._mapping) for row in session.execute(query))


def _counted_thumbs(*columns: Any) -> Any:
    return (
        select(*columns)
        .select_from(Thumb)
        .join(Annotator, Annotator.id == Thumb.annotator_id)
        .join(Completion, Completion.id == Thumb.completion_id)
        .join(Prompt, Prompt.id == Completion.prompt_id)
        .where(~Annotator.left_out)
    )


def _owned(session: Session, annotator_id: int, number: int, *, lock: bool = False) -> Conversation:
    row = session.get(Conversation, number, with_for_update=lock or None)
    if row is None:
        raise Refused("unknown", "there is no such conversation")
    if row.annotator_id != annotator_id:
        raise Refused("not_yours", "this conversation belongs to somebody else")
    return row


def _title(text: str) -> str:
    return " ".join(clean(text).split())[:MAX_TITLE_CHARS]
