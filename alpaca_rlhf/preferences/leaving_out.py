"""Leaving out an annotator or a candidate set, and taking it in again; nothing is deleted.

What is left out counts in no figure, snapshot or training from the transaction on that says so.
Columns that others count by are kept right: the places and verdicts of a set are those of people
who are not left out, and the running sums are those of sets that are not left out.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.preferences import claims, schema, verdicts
from alpaca_rlhf.preferences.audit import note
from alpaca_rlhf.preferences.judges import JUDGE
from alpaca_rlhf.preferences.schema import Annotator, Assignment, CandidateSet, Ranking, Tally
from alpaca_rlhf.preferences.stored_text import clean


@dataclass(frozen=True)
class Change:
    """One annotator or set that was left out or taken in again."""

    name: str
    """Name of the annotator, or number of the set."""
    rankings: int
    """Rankings of it, which count no more, or count again."""
    changed: bool
    """False if it was so before; then nothing was done."""


@dataclass(frozen=True)
class Decision:
    """An order to leave somebody or something out, or to take it in again."""

    left_out: bool
    """True leaves out."""
    actor: str
    """Name of whoever gives it, for the audit."""
    reason: str
    """Reason, for the audit."""
    now_ms: int
    """The server's clock."""


def change_person(session: Session, name: str, decision: Decision) -> Change:
    """Leave an annotator (a person or a judge) out, or take them in again.

    Raises:
        UserError: There is no annotator of this name.
    """
    # 1. The annotator, locked: a submit under way is counted by the rule that it ends under.
    row = session.scalar(select(Annotator).where(Annotator.name == clean(name)).with_for_update())
    if row is None:
        raise UserError(_unknown(name, session.scalars(select(Annotator.name)).all()))
    done = (
        select(Assignment.candidate_set_id)
        .where(Assignment.annotator_id == row.id, Assignment.kind == "task")
        .where(Assignment.ranking_id.is_not(None))
    )
    total = select(func.coalesce(func.sum(Tally.rankings), 0)).where(Tally.annotator_id == row.id)
    rankings = int(session.scalar(total) or 0)
    if row.left_out == decision.left_out:
        return Change(row.name, rankings, False)

    # 2. Their places and verdicts in the sets that they ranked, in the order of all writers.
    ordered = select(CandidateSet.id).where(CandidateSet.id.in_(done)).order_by(CandidateSet.id)
    session.scalars(ordered.with_for_update(key_share=True)).all()
    sign = -1 if decision.left_out else 1
    claimed = CandidateSet.claimed + sign
    session.execute(
        update(CandidateSet)
        .where(CandidateSet.id.in_(done))
        .values(
            claimed=claimed,
            target=claims.greatest(session, CandidateSet.target, claimed),
            verdicts=CandidateSet.verdicts + sign,
        )
        .execution_options(synchronize_session=False)
    )

    # 3. The mark, and its audit row.
    row.left_out = decision.left_out
    _note(session, f"annotator:{row.id}", decision, rankings)
    return Change(row.name, rankings, True)


def change_set(session: Session, number: int, decision: Decision) -> Change:
    """Leave a candidate set out, or take it in again.

    Raises:
        UserError: There is no set of this number.
    """
    # 1. The set, locked: no verdict on it is being kept meanwhile.
    row = session.get(CandidateSet, number, with_for_update=True)
    if row is None:
        raise UserError(f"there is no candidate set {number}; flags and remarks name theirs")
    ranked = session.execute(
        select(Assignment, Ranking)
        .join(Ranking, Ranking.id == Assignment.ranking_id)
        .where(Assignment.candidate_set_id == number)
    ).all()
    rankings = sum(assignment.kind in ("task", "judge") for assignment, _ in ranked)
    if row.left_out == decision.left_out:
        return Change(str(number), rankings, False)

    # 2. Its part in the running sums.
    sign = -1 if decision.left_out else 1
    verdicts.add_sums(session, [(assignment, ranking, sign) for assignment, ranking in ranked])

    # 3. The mark, and its audit row.
    row.left_out = decision.left_out
    _note(session, f"candidate_set:{number}", decision, rankings)
    return Change(str(number), rankings, True)


def left_out(session: Session) -> list[str]:
    """Names of the annotators, and keys of the sets after `set:`, that are left out."""
    names = session.scalars(select(Annotator.name).where(Annotator.left_out))
    sets = select(CandidateSet.key).where(schema.condition(schema.LEFT_OUT))
    return [*sorted(names), *(f"set:{key}" for key in sorted(session.scalars(sets)))]


def below_gold_rate(session: Session, rate: float, min_asked: int) -> list[str]:
    """Names of the people who passed less than a share of the gold questions they were asked.

    Args:
        session: A transaction.
        rate: The share.
        min_asked: Gold questions that somebody must have been asked to be judged by them.
    """
    n_asked, n_passed = func.sum(Tally.gold_asked), func.sum(Tally.gold_passed)
    fewest = rate * n_asked - 1e-9  # 14 of 25 are 56%, and .56 * 25 is a little above 14
    return list(
        session.scalars(
            select(Annotator.name)
            .join(Tally, Tally.annotator_id == Annotator.id)
            .where(Annotator.role != "judge")
            .group_by(Annotator.id)
            .having(n_asked >= max(1, min_asked), n_passed < fewest)
            .order_by(Annotator.name)
        )
    )


def _note(session: Session, entity: str, decision: Decision, rankings: int) -> None:
    left_out = decision.left_out
    after = {"left_out": left_out, "rankings": rankings, "reason": clean(decision.reason)}
    before = {"left_out": not left_out}
    action = "leave_out" if left_out else "take_in"
    note(session, decision.now_ms, decision.actor, action, entity, before=before, after=after)


def _unknown(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    people = sorted(each for each in known if not each.startswith(JUDGE))
    names = close or people[:10] or sorted(known)[:10]
    hint = f"; there are {', '.join(names)}" if names else "; nobody has ranked yet"
    return f"{name!r}: there is no annotator of this name{hint}"
