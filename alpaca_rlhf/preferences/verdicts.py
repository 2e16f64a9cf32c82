"""Keeping verdicts: every one is a new revision, and the newest counts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, cast

from sqlalchemy import Table, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from alpaca_rlhf import __version__
from alpaca_rlhf.core.records import Ranking as Record
from alpaca_rlhf.preferences import assignment as rules
from alpaca_rlhf.preferences import claims
from alpaca_rlhf.preferences.assignment import Refused, Saved, Verdict
from alpaca_rlhf.preferences.audit import note
from alpaca_rlhf.preferences.queue import clean, set_key
from alpaca_rlhf.preferences.rankings import JUDGE
from alpaca_rlhf.preferences.schema import Annotator, Assignment, CandidateSet, Ranking, Tally


def submit(
    session: Session,
    assignment_id: int,
    annotator_id: int,
    verdict: Verdict,
    *,
    revision: int,
    now_ms: int,
) -> Saved:
    """Keep a verdict. What was kept before is answered so, and changes nothing.

    Raises:
        Refused: `unknown`, `not_yours`, `incomplete`, `bad_value`.
    """
    one = claims.owned(session, assignment_id, annotator_id)
    before = session.scalar(
        select(Ranking).where(Ranking.assignment_id == one.id, Ranking.revision == revision)
    )
    if before is not None:
        return Saved(before.id, True, before.duration_ms / 1000)
    if revision != one.next_revision:
        raise Refused("unknown", f"revision {revision} comes after {one.next_revision}")
    rules.check(verdict, one.shown_order)
    taken = max(0, now_ms - one.shown_ms)
    return Saved(_keep(session, one, verdict, taken, now_ms), False, taken / 1000)


def undo(
    session: Session, assignment_id: int, annotator_id: int, *, now_ms: int, until_ms: int
) -> None:
    """Take a verdict back, by a revision that says so, and open its task again.

    Raises:
        Refused: `unknown`, `not_yours`, or `done` where there is nothing to take back.
    """
    one = claims.owned(session, assignment_id, annotator_id)
    if one.state == "open" and one.next_revision > 0:
        return  # a second press of the button
    if one.ranking_id is None:
        raise Refused("done", "there is nothing to take back")
    old = session.get_one(Ranking, one.ranking_id)
    _count(session, one, old, -1)
    row = {name: getattr(old, name) for name in _COLUMNS}
    row |= {"withdrawn": True, "created_ms": now_ms, "revision": one.next_revision}
    session.execute(insert(Ranking).values(row))
    one.next_revision += 1
    one.ranking_id = one.duration_ms = None
    one.state, one.lease_ms, one.shown_ms = "open", until_ms, now_ms
    _note(session, one, "undo", now_ms, {"revision": old.revision}, None)


def latest(session: Session, annotator_id: int) -> int | None:
    """The assignment whose verdict an undo takes back: the one that was given last."""
    return session.scalar(
        select(Assignment.id)
        .where(Assignment.annotator_id == annotator_id, Assignment.state == "done")
        .order_by(Assignment.ranking_id.desc())
        .limit(1)
    )


def add(session: Session, ranking: Record, *, now_ms: int) -> bool:
    """Keep a ranking that was made elsewhere: a judge's, or a person's from a file.

    Returns whether it says anything new.

    Raises:
        ValueError: Its completions are no candidate set.
    """
    ids = [one for tier in ranking.tiers for one in tier]
    own = session.scalar(
        select(CandidateSet).where(CandidateSet.key == set_key(ranking.prompt_id, ids))
    )
    if own is None:
        raise ValueError(f"the completions of {ranking.prompt_id} are no candidate set")
    by_judge = ranking.annotator.startswith(JUDGE)
    who = session.scalar(select(Annotator.id).where(Annotator.name == clean(ranking.annotator)))
    if who is None:
        row = {
            "name": clean(ranking.annotator),
            "password_hash": "",
            "role": "judge" if by_judge else "annotator",
            "lang": "en",
            "active": False,
            "created_ms": now_ms,
        }
        who = session.execute(insert(Annotator).values(row).returning(Annotator.id)).scalar_one()
    one = session.scalar(
        select(Assignment)
        .where(Assignment.candidate_set_id == own.id, Assignment.annotator_id == who)
        .where(Assignment.repeat == 0)
        .with_for_update()
    )
    verdict = Verdict(ranking.tiers, ranking.criteria)
    if one is None:
        one = Assignment(
            candidate_set_id=own.id,
            annotator_id=who,
            kind="judge" if by_judge else "task",
            repeat=0,
            shown_order=own.completions,
            state="expired",
            lease_ms=now_ms,
            shown_ms=now_ms,
            next_revision=0,
        )
        session.add(one)
        session.flush()
    elif one.ranking_id is not None:
        kept = session.get_one(Ranking, one.ranking_id)
        if rules.as_tiers(kept.tiers) == ranking.tiers and kept.criteria == ranking.criteria:
            return False
    _keep(session, one, verdict, round(ranking.duration_s * 1000), now_ms)
    return True


_COLUMNS = [column.name for column in cast(Table, Ranking.__table__).columns if column.name != "id"]


def _keep(
    session: Session, one: Assignment, verdict: Verdict, duration_ms: int, now_ms: int
) -> int:
    old = session.get_one(Ranking, one.ranking_id) if one.ranking_id is not None else None
    if old is not None:
        _count(session, one, old, -1)
    elif one.kind == "task" and one.state != "open":
        claims.take_after_all(session, one.candidate_set_id)
    new = Ranking(
        assignment_id=one.id,
        revision=one.next_revision,
        withdrawn=False,
        tiers=[list(tier) for tier in verdict.tiers],
        criteria={key: dict(stars) for key, stars in verdict.criteria.items()},
        all_bad=verdict.all_bad,
        blind=verdict.blind,
        comment=clean(verdict.comment),
        input_method=verdict.input_method,
        app_version=__version__,
        duration_ms=duration_ms,
        created_ms=now_ms,
    )
    session.add(new)
    session.flush()
    one.ranking_id, one.duration_ms = new.id, duration_ms or None  # files and judges say none
    one.state, one.next_revision = "done", one.next_revision + 1
    _count(session, one, new, 1)
    before = {"revision": old.revision} if old is not None else None
    _note(session, one, "submit", now_ms, before, {"revision": new.revision, "ranking": new.id})
    return new.id


def _note(
    session: Session, one: Assignment, action: str, now_ms: int, before: Any, after: Any
) -> None:
    session.flush()
    actor, entity = f"annotator:{one.annotator_id}", f"assignment:{one.id}"
    note(session, now_ms, actor, action, entity, before=before, after=after)


def _count(session: Session, one: Assignment, ranking: Ranking, sign: int) -> None:
    """Add a verdict to the running sums, or take it out again."""
    if one.kind == "repeat":
        return
    sums: dict[str, float] = dict.fromkeys(_SUMS, 0)
    if one.kind == "gold":
        known = session.scalar(
            select(CandidateSet.gold).where(CandidateSet.id == one.candidate_set_id)
        )
        sums |= {"gold_asked": sign, "gold_passed": sign * rules.passes(known or [], ranking.tiers)}
    else:
        won, expected = rules.first_slot(one.shown_order, ranking.tiers)
        sums |= {"rankings": sign, "pairs": sign * rules.pairs(ranking.tiers)}
        sums |= {"decided": sign * (expected > 0)}
        sums |= {"first_slot": sign * won, "first_slot_expected": sign * expected}
    if one.kind == "task":
        session.execute(
            update(CandidateSet)
            .where(CandidateSet.id == one.candidate_set_id)
            .values(verdicts=CandidateSet.verdicts + sign)
        )
    table = cast(Table, Tally.__table__)
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    row = {"annotator_id": one.annotator_id, "day": day_of(ranking.created_ms), **sums}
    session.execute(
        dialect.insert(table)
        .values(row)
        .on_conflict_do_update(
            index_elements=["annotator_id", "day"],
            set_={name: table.c[name] + value for name, value in sums.items()},
        )
    )


def day_of(at_ms: int) -> str:
    """The day of a time, in UTC, as 2026-11-23."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d")


_SUMS: Sequence[str] = [column.name for column in cast(Table, Tally.__table__).columns][2:]
