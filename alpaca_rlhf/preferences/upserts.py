"""Rows that are added, or changed where they are there, by several writers at once.

SQLAlchemy has upserts only in its dialects; those of SQLite and PostgreSQL are alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from sqlalchemy import Table, delete
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from alpaca_rlhf.preferences.schema import EditedReply, Thumb


def inserting(session: Session, table: Table) -> postgresql.Insert | sqlite.Insert:
    """An INSERT that can say what is done where the row is there already."""
    if session.get_bind().dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)


def say_of_reply(
    session: Session,
    kind: type[Thumb] | type[EditedReply],
    annotator_id: int,
    completion_id: int,
    columns: Mapping[str, Any] | None,
) -> None:
    """Keep the one thing of a kind that an account says of a reply; None takes it back.

    Two pages of an account may do so at once.
    """
    names = {"annotator_id": annotator_id, "completion_id": completion_id}
    if columns is None:
        session.execute(
            delete(kind).where(
                kind.annotator_id == annotator_id, kind.completion_id == completion_id
            )
        )
        return
    session.execute(
        inserting(session, cast(Table, kind.__table__))
        .values({**names, **columns})
        .on_conflict_do_update(index_elements=list(names), set_=dict(columns))
    )
