"""The guidelines that annotators rank by: versions that are added and never changed."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.preferences.assignment import Refused
from alpaca_rlhf.preferences.audit import note
from alpaca_rlhf.preferences.schema import GuidelineRow
from alpaca_rlhf.preferences.stored_text import clean

MAX_GUIDELINE_CHARS = 50_000
"""Longest guidelines, in characters."""


@dataclass(frozen=True)
class Guidelines:
    """One version of the guidelines."""

    version: int
    """From 1; each verdict notes the one that it was given under."""
    text: str
    """Markdown; empty where they were taken away."""
    author: str
    """The person or program that wrote it, as in the audit."""
    created_ms: int
    """Milliseconds since 1970."""


def newest(session: Session) -> Guidelines | None:
    """The version that holds now; None where there never was one."""
    return next(iter(newest_first(session, n=1)), None)


def newest_first(session: Session, *, n: int | None = None) -> list[Guidelines]:
    """The newest versions; all of them by default."""
    rows = session.scalars(select(GuidelineRow).order_by(GuidelineRow.id.desc()).limit(n))
    return [Guidelines(row.id, row.text, row.author, row.created_ms) for row in rows]


def version(session: Session) -> int | None:
    """The number of the version that holds now."""
    return session.scalar(select(GuidelineRow.id).order_by(GuidelineRow.id.desc()).limit(1))


def check(session: Session, version: int | None) -> None:
    """Refuse a version that there never was.

    Raises:
        Refused: `bad_value`.
    """
    if version is not None and session.get(GuidelineRow, version) is None:
        raise Refused("bad_value", f"there is no version {version} of the guidelines")


def add(session: Session, text: str, *, actor: str, now_ms: int) -> Guidelines | None:
    """Add a version, unless the text is that of the one that holds now; returns the one that does.

    Raises:
        UserError: The text is too long.
    """
    text = clean(text).strip()
    if len(text) > MAX_GUIDELINE_CHARS:
        raise UserError(f"the guidelines have more than {MAX_GUIDELINE_CHARS:,} characters")
    before = newest(session)
    if text == (before.text if before else ""):
        return before
    row = GuidelineRow(text=text, author=actor, created_ms=now_ms)
    session.add(row)
    session.flush()
    note(session, now_ms, actor, "guidelines", f"guideline:{row.id}")
    return Guidelines(row.id, row.text, row.author, row.created_ms)
