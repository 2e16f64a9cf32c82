"""Settings of the admin for handing out tasks: how many people rank a set, and who gets which sets.

Both hold from the transaction on that changes them. A set that more people rank or have ranked than
are wanted now keeps their places, and a task that somebody has open may be submitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.preferences import schema
from alpaca_rlhf.preferences.assignment import MAX_OVERLAP, Overlap, places
from alpaca_rlhf.preferences.audit import note
from alpaca_rlhf.preferences.schema import Annotator, CandidateSet, OverlapRow

BATCH_SETS = 500
"""Sets whose places are changed in one statement."""


@dataclass(frozen=True)
class Origin:
    """Sets that come from one place."""

    name: str
    """As it was noted when they were added, e.g. `runs/mine/ppo`."""
    sets: int
    """Sets of it that people may receive."""


@dataclass(frozen=True)
class Limit:
    """Somebody who does not get tasks of all origins."""

    name: str
    """Name of the annotator."""
    origins: tuple[str, ...]
    """Origins of the sets that they get; none if they get no tasks."""


def overlap(session: Session, default: Overlap) -> Overlap:
    """The overlap that holds now: the newest that was set, or else the default."""
    row = session.scalar(select(OverlapRow).order_by(OverlapRow.id.desc()).limit(1))
    return default if row is None else Overlap(row.share, row.people)


def set_overlap(
    session: Session, wanted: Overlap, *, default: Overlap, actor: str, now_ms: int
) -> int:
    """Let another share of the sets be ranked by several people, or by more or fewer of them.

    Returns:
        How many sets have more or fewer places than before.

    Raises:
        UserError: The share is not within 0 and 1, or the number of people not within 2 and 9.
    """
    if not 0 <= wanted.share <= 1 or not 2 <= wanted.people <= MAX_OVERLAP:
        raise UserError(
            f"the share must lie between 0 and 100%, and 2 to {MAX_OVERLAP} people rank a set"
        )
    before = overlap(session, default)
    if wanted == before:
        return 0
    row = OverlapRow(share=wanted.share, people=wanted.people, author=actor, created_ms=now_ms)
    session.add(row)
    session.flush()
    changed = _change_places(session, wanted)
    note(
        session,
        now_ms,
        actor,
        "overlap",
        f"overlap:{row.id}",
        before={"share": before.share, "people": before.people},
        after={"share": wanted.share, "people": wanted.people, "sets": changed},
    )
    return changed


def origins(session: Session) -> list[Origin]:
    """The origins of the sets that people may receive, the largest first."""
    query = (
        select(CandidateSet.origin, func.count())
        .where(CandidateSet.target > 0, schema.condition(schema.HANDED_OUT))
        .group_by(CandidateSet.origin)
        .order_by(func.count().desc(), CandidateSet.origin)
    )
    return [Origin(name, n) for name, n in session.execute(query)]


def limits(session: Session) -> list[Limit]:
    """Everybody who does not get tasks of all origins, by name."""
    query = select(Annotator.name, Annotator.origins).order_by(Annotator.name)
    return [Limit(name, tuple(names)) for name, names in session.execute(query)
            if names is not None]  # fmt: skip


def set_origins(
    session: Session, name: str, names: Sequence[str] | None, *, actor: str, now_ms: int
) -> None:
    """Let somebody get tasks of some origins alone.

    Args:
        session: A transaction that writes.
        name: Name of the annotator.
        names: The origins; empty for no tasks at all, None for all.
        actor: Who does it, for the audit.
        now_ms: The server's clock.

    Raises:
        UserError: There is no such annotator, or no set of such an origin.
    """
    row = session.scalar(select(Annotator).where(Annotator.name == name).with_for_update())
    if row is None or row.role == "judge":
        raise UserError(f"{name!r}: there is no annotator of this name")
    known = set(session.scalars(select(CandidateSet.origin).distinct()))
    unknown = next((each for each in names or () if each not in known), None)
    if unknown is not None:
        raise UserError(f"{unknown!r}: no set comes from there")
    before, row.origins = row.origins, None if names is None else sorted(set(names))
    if before != row.origins:
        entity, after = f"annotator:{row.id}", {"origins": row.origins}
        note(session, now_ms, actor, "origins", entity, before={"origins": before}, after=after)


def _change_places(session: Session, wanted: Overlap) -> int:
    """Give each set its places under another overlap; returns how many sets changed."""
    # 1. All sets that people rank, locked in the order of all writers.
    rows = session.execute(
        select(CandidateSet.id, CandidateSet.key, CandidateSet.target, CandidateSet.claimed)
        .where(CandidateSet.target > 0)
        .order_by(CandidateSet.id)
        .with_for_update(key_share=True)
    )
    numbers: dict[int, list[int]] = {}
    for number, key, target, claimed in rows:
        # 2. Nobody who ranks a set, or has ranked it, loses a place.
        new_target = max(claimed, places(key, wanted))
        if new_target != target:
            numbers.setdefault(new_target, []).append(number)
    # 3. The sets whose places change.
    for new_target, of_target in numbers.items():
        for start in range(0, len(of_target), BATCH_SETS):
            session.execute(
                update(CandidateSet)
                .where(CandidateSet.id.in_(of_target[start : start + BATCH_SETS]))
                .values(target=new_target)
                .execution_options(synchronize_session=False)
            )
    return sum(map(len, numbers.values()))
