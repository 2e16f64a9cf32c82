"""The audit: a row for every change, written in the transaction that makes the change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from alpaca_rlhf.preferences.schema import Audit


def note(
    session: Session,
    at_ms: int,
    actor: str,
    action: str,
    entity: str,
    *,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Add a row: who (`annotator:7`, `system`) did what to what (`assignment:12`)."""
    session.add(
        Audit(
            at_ms=at_ms,
            actor=actor,
            action=action,
            entity=entity,
            before=dict(before) if before else None,
            after=dict(after) if after else None,
        )
    )
