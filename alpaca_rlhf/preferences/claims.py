"""Handing out tasks: a place is taken by one UPDATE, kept by a lease, and given back.

Lock order on PostgreSQL: the annotator, assignments, then candidate sets by number. What is looked
for in the queue is taken with SKIP LOCKED, so nobody waits for a task that somebody else takes.
"""

from __future__ import annotations

import random
from collections.abc import Collection

from sqlalchemy import ColumnElement, exists, func, insert, select, update
from sqlalchemy.orm import Session

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.preferences import schema
from alpaca_rlhf.preferences.assignment import Kind, Refused, Rules, Shown, Task, as_tiers
from alpaca_rlhf.preferences.audit import note
from alpaca_rlhf.preferences.queue import clean
from alpaca_rlhf.preferences.schema import Annotator, Assignment, CandidateSet, Prompt

WINDOW = 100
"""Sets looked at for a second opinion before a fresh one is given, so that a claim stays quick for
somebody who has seen most of them."""


def claim(
    session: Session,
    annotator_id: int,
    *,
    rules: Rules,
    now_ms: int,
    rng: random.Random,
    holding: Collection[int],
) -> int | None:
    """The next assignment of an annotator: one that is open already, or a new one; None if none.

    Args:
        session: A transaction that writes.
        annotator_id: Whose.
        rules: How tasks are handed out.
        now_ms: The server's clock.
        rng: Draws kinds, sets and orders.
        holding: Assignments that are not asked for: they are before the annotator already.
    """
    who = select(Annotator.active).where(Annotator.id == annotator_id)
    if not session.scalar(who.with_for_update(key_share=True)):
        raise Refused("unknown", "there is no such annotator, or not any more")
    expire(session, now_ms)
    until = now_ms + round(rules.lease_s * 1000)
    mine = [Assignment.annotator_id == annotator_id, schema.condition(schema.OPEN)]
    if holding:
        mine.append(Assignment.id.not_in(list(holding)))
    kept = session.scalar(select(Assignment.id).where(*mine).order_by(Assignment.id).limit(1))
    if kept is not None:
        session.execute(update(Assignment).where(Assignment.id == kept).values(lease_ms=until))
        return kept
    drawn = rng.random()
    if drawn < rules.gold_rate:
        gold = _first_new(session, annotator_id, schema.GOLD)
        if gold is not None:
            return _assign(session, annotator_id, gold, "gold", now_ms, until, rng)
    elif drawn < rules.gold_rate + rules.repeat_rate:
        again = _repeat(session, annotator_id, rules, now_ms, until, rng)
        if again is not None:
            return again
    back = _own_expired(session, annotator_id, now_ms, until)
    if back is not None:
        return back
    taken = _take(session, annotator_id, rng)
    if taken is not None:
        return _assign(session, annotator_id, taken, "task", now_ms, until, rng)
    gold = _first_new(session, annotator_id, schema.GOLD) if rules.gold_rate > 0 else None
    if gold is not None:
        return _assign(session, annotator_id, gold, "gold", now_ms, until, rng)
    return None


def reserve(
    session: Session, annotator_id: int, key: str, *, now_ms: int, until_ms: int, rng: random.Random
) -> bool:
    """Open a set, named by its key, for an annotator who has not seen it; False if it is taken."""
    taken = _take_one(session, annotator_id, [CandidateSet.key == key, ~CandidateSet.retired])
    if taken is not None:
        _assign(session, annotator_id, taken, "task", now_ms, until_ms, rng)
    return taken is not None


def expire(session: Session, now_ms: int) -> int:
    """Give back the places of all leases that ended; returns how many."""
    late = (
        select(Assignment.id)
        .where(schema.condition(schema.OPEN), Assignment.lease_ms < now_ms)
        .with_for_update(skip_locked=True)
    )
    numbers = session.scalars(late).all()
    if not numbers:
        return 0
    ended = session.execute(
        update(Assignment)
        .where(Assignment.id.in_(numbers))
        .values(state="expired")
        .returning(Assignment.id, Assignment.candidate_set_id, Assignment.kind)
    ).all()
    for one in sorted(ended, key=lambda row: row.candidate_set_id):
        if one.kind == "task":
            give_back(session, one.candidate_set_id)
        note(session, now_ms, "system", "expire", f"assignment:{one.id}")
    return len(ended)


def renew(session: Session, assignment: Assignment, *, until_ms: int) -> None:
    """Keep an open task for longer; where its lease had ended, if its place is still free.

    Raises:
        Refused: `done`: it is not open any more.
    """
    if assignment.state == "expired" and _retake(session, assignment):
        assignment.state = "open"
    if assignment.state != "open":
        raise Refused("done", "this task is not open any more")
    assignment.lease_ms = until_ms


def leave(session: Session, assignment: Assignment, state: str) -> None:
    """End an open assignment without a verdict: `skipped` or `flagged`."""
    if assignment.state == "done":
        raise Refused("done", "this task is ranked already; take that back first")
    if assignment.state == "open" and assignment.kind == "task":
        give_back(session, assignment.candidate_set_id)
    assignment.state = state


def owned(session: Session, assignment_id: int, annotator_id: int) -> Assignment:
    """An assignment, locked till the end of the transaction.

    Raises:
        Refused: `unknown`, or `not_yours`.
    """
    found = session.get(Assignment, assignment_id, with_for_update=True)
    if found is None:
        raise Refused("unknown", "there is no such task")
    if found.annotator_id != annotator_id:
        raise Refused("not_yours", "this task was given to somebody else")
    return found


def task(session: Session, assignment_id: int, *, rules: Rules) -> Task:
    """What an annotator sees of an assignment."""
    one = session.get_one(Assignment, assignment_id)
    own = session.get_one(CandidateSet, one.candidate_set_id)
    prompt = session.get_one(Prompt, own.prompt_id)
    table = schema.Completion
    found = session.execute(
        select(table.key, table.text, table.finish_reason).where(table.key.in_(one.shown_order))
    )
    by_id = {key: Shown(key, words, reason == "length") for key, words, reason in found}
    before = session.scalar(
        select(schema.Ranking)
        .where(schema.Ranking.assignment_id == one.id)
        .order_by(schema.Ranking.revision.desc())
        .limit(1)
    )
    return Task(
        id=one.id,
        revision=one.next_revision,
        kind=one.kind,  # type: ignore[arg-type]
        prompt=Instruction(
            prompt.instruction,
            prompt.input,
            source=prompt.source,
            history=tuple((user, reply) for user, reply in prompt.history),
        ),
        completions=tuple(by_id[key] for key in one.shown_order),
        lease_s=rules.lease_s,
        tiers=as_tiers(before.tiers) if before else (),
        criteria=before.criteria if before else {},
    )


def give_back(session: Session, set_id: int) -> None:
    """One place of a set is free again."""
    session.execute(
        update(CandidateSet)
        .where(CandidateSet.id == set_id)
        .values(claimed=CandidateSet.claimed - 1)
    )


def take_after_all(session: Session, set_id: int) -> None:
    """A place for somebody who ranked a set after the lease had ended: a new one if none is free.

    Work that was done is kept, and no place is counted twice.
    """
    more = CandidateSet.claimed + 1
    wider = func.greatest if session.get_bind().dialect.name == "postgresql" else func.max
    session.execute(
        update(CandidateSet)
        .where(CandidateSet.id == set_id)
        .values(claimed=more, target=wider(CandidateSet.target, more))
    )


def _take(session: Session, annotator_id: int, rng: random.Random) -> int | None:
    """Take a place: of a set that wants a second opinion, then of a fresh one.

    On PostgreSQL all that is left may be locked for a moment by others, hence a few tries.
    """
    last = session.scalar(select(func.max(CandidateSet.id))) or 0
    for _ in range(3):
        near = (
            select(CandidateSet.id)
            .where(schema.condition(schema.SHARED), CandidateSet.id >= rng.randint(0, last))
            .order_by(CandidateSet.id)
            .limit(WINDOW)
        )
        for wanted in (
            [schema.condition(schema.SHARED), CandidateSet.id.in_(near.scalar_subquery())],
            [schema.condition(schema.FRESH)],
            [schema.condition(schema.SHARED)],
        ):
            taken = _take_one(session, annotator_id, wanted)
            if taken is not None:
                return taken
        if session.get_bind().dialect.name != "postgresql":
            return None
    return None


def _take_one(session: Session, annotator_id: int, wanted: list[ColumnElement[bool]]) -> int | None:
    found = (
        select(CandidateSet.id)
        .where(*wanted, _new_to(annotator_id))
        .order_by(CandidateSet.id)
        .limit(1)
        .with_for_update(skip_locked=True, key_share=True)
    )
    return session.scalar(
        update(CandidateSet)
        .where(CandidateSet.id == found.scalar_subquery())
        .where(CandidateSet.claimed < CandidateSet.target)
        .values(claimed=CandidateSet.claimed + 1)
        .returning(CandidateSet.id)
    )


def _new_to(annotator_id: int) -> ColumnElement[bool]:
    return ~exists().where(
        Assignment.candidate_set_id == CandidateSet.id, Assignment.annotator_id == annotator_id
    )


def _first_new(session: Session, annotator_id: int, where: str) -> int | None:
    return session.scalar(
        select(CandidateSet.id)
        .where(schema.condition(where), _new_to(annotator_id))
        .order_by(CandidateSet.id)
        .limit(1)
    )


def _repeat(
    session: Session,
    annotator_id: int,
    rules: Rules,
    now_ms: int,
    until_ms: int,
    rng: random.Random,
) -> int | None:
    """Somebody's own task again: one that was ranked some tasks ago and not repeated yet."""
    done = [Assignment.annotator_id == annotator_id, schema.condition(schema.DONE)]
    newest = select(Assignment.id, Assignment.ranking_id).where(*done)
    newest = newest.order_by(Assignment.ranking_id.desc())
    recent = session.execute(newest.offset(rules.repeat_after - 1).limit(1)).first()
    first = session.scalar(
        select(Assignment.ranking_id).where(*done).order_by(Assignment.ranking_id).limit(1)
    )
    if recent is None or first is None:
        return None
    again = Assignment.__table__.alias("again")
    old = (
        select(Assignment)
        .where(*done, Assignment.kind == "task", Assignment.ranking_id < recent.ranking_id)
        .where(
            ~exists()
            .where(again.c.candidate_set_id == Assignment.candidate_set_id)
            .where(again.c.annotator_id == annotator_id, again.c.repeat > 0)
        )
        .order_by(Assignment.ranking_id)
        .limit(1)
    )
    start = rng.randint(first, recent.ranking_id)
    found = session.scalar(old.where(Assignment.ranking_id >= start)) or session.scalar(old)
    if found is None:
        return None
    return _assign(
        session,
        annotator_id,
        found.candidate_set_id,
        "repeat",
        now_ms,
        until_ms,
        rng,
        repeat_of=found.id,
    )


def _own_expired(session: Session, annotator_id: int, now_ms: int, until_ms: int) -> int | None:
    """A task that the annotator had and let lie, if nobody else has taken its place."""
    old = session.scalars(
        select(Assignment)
        .where(Assignment.annotator_id == annotator_id, schema.condition(schema.EXPIRED))
        .order_by(Assignment.id)
        .limit(WINDOW)
        .with_for_update()
    )
    for one in old:
        if _retake(session, one):
            one.state, one.lease_ms, one.shown_ms = "open", until_ms, now_ms
            session.flush()
            return one.id
    return None


def _retake(session: Session, assignment: Assignment) -> bool:
    if assignment.kind != "task":
        return True
    free = update(CandidateSet).where(
        CandidateSet.id == assignment.candidate_set_id,
        CandidateSet.claimed < CandidateSet.target,
        ~CandidateSet.retired,
    )
    taken = free.values(claimed=CandidateSet.claimed + 1).returning(CandidateSet.id)
    return session.scalar(taken) is not None


def _assign(
    session: Session,
    annotator_id: int,
    set_id: int,
    kind: Kind,
    now_ms: int,
    until_ms: int,
    rng: random.Random,
    *,
    repeat_of: int | None = None,
) -> int:
    order = list(session.scalars(select(CandidateSet.completions).where(CandidateSet.id == set_id)))
    shown = rng.sample(order[0], len(order[0]))
    row = {
        "candidate_set_id": set_id,
        "annotator_id": annotator_id,
        "kind": kind,
        "repeat": int(repeat_of is not None),
        "repeat_of": repeat_of,
        "shown_order": shown,
        "state": "open",
        "lease_ms": until_ms,
        "shown_ms": now_ms,
        "next_revision": 0,
    }
    number = session.execute(insert(Assignment).values(row).returning(Assignment.id)).scalar_one()
    note(
        session,
        now_ms,
        f"annotator:{annotator_id}",
        "claim",
        f"assignment:{number}",
        after={"candidate_set": set_id, "kind": kind},
    )
    return number


def add_flag(
    session: Session, assignment: Assignment, completion: str, reason: str, words: str, now_ms: int
) -> None:
    """Note what is wrong with a task, once.

    Raises:
        Refused: `bad_value`: no reason, or a completion that the task does not have.
    """
    if not 0 < len(reason) <= 32:
        raise Refused("bad_value", "give a reason of at most 32 characters")
    if completion and completion not in assignment.shown_order:
        raise Refused("bad_value", "this answer is not one of the task")
    table = schema.Flag
    again = select(table.id).where(
        table.assignment_id == assignment.id,
        table.completion == completion,
        table.reason == clean(reason),
    )
    if session.scalar(again) is None:
        row = {"completion": completion, "reason": clean(reason), "text": clean(words)}
        session.execute(
            insert(table).values(row | {"assignment_id": assignment.id, "created_ms": now_ms})
        )
