"""Assigning tasks: a place is taken by one UPDATE, kept by a lease, and given back.

Lock order on PostgreSQL: the annotator, assignments, then candidate sets by number. What is looked
for in the queue is taken with SKIP LOCKED, so nobody waits for a task that somebody else takes.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, exists, func, insert, or_, select, update
from sqlalchemy.orm import Session

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.preferences import demonstrations, schema
from alpaca_rlhf.preferences.assignment import Kind, Refused, Rules, Shown, Task, as_tiers
from alpaca_rlhf.preferences.audit import note
from alpaca_rlhf.preferences.schema import Annotator, Assignment, CandidateSet, Prompt
from alpaca_rlhf.preferences.stored_text import clean, restored_history

WINDOW = 100
"""Sets looked at for a second opinion before a fresh one is given, so that a claim stays quick for
an annotator who has seen most of them."""


@dataclass(frozen=True)
class _Lease:
    """The time for which an annotator holds a task, in milliseconds of the server's clock."""

    annotator_id: int
    now_ms: int
    until_ms: int


def claim(
    session: Session,
    annotator_id: int,
    *,
    rules: Rules,
    now_ms: int,
    rng: random.Random,
    holding: Collection[int],
) -> int | None:
    """Claim the next assignment of an annotator, an open one or a new one; None if there is none.

    Args:
        session: A transaction that writes.
        annotator_id: The annotator.
        rules: How tasks are handed out.
        now_ms: The server's clock.
        rng: Draws kinds, sets and orders.
        holding: Assignments to pass over: they are before the annotator already.
    """
    # 1. Lock the annotator, so that two requests of one person come one after the other.
    columns = select(Annotator.active, Annotator.left_out, Annotator.origins)
    columns = columns.where(Annotator.id == annotator_id)
    annotator = session.execute(columns.with_for_update(key_share=True)).first()
    if annotator is None or not annotator.active:
        raise Refused("unknown", "there is no such annotator, or not any more")
    # Whatever somebody who is left out ranked would count for nothing.
    if annotator.left_out or annotator.origins == []:
        return None
    allowed, allowed_tasks = sets_of(annotator.origins), assignments_of(annotator.origins)

    # 2. Give back the places of leases that ended.
    expire(session, now_ms)
    lease = _Lease(annotator_id, now_ms, now_ms + round(rules.lease_s * 1000))

    # 3. A task that is open already comes first.
    mine = [Assignment.annotator_id == annotator_id, schema.condition(schema.OPEN)]
    if holding:
        mine.append(Assignment.id.not_in(list(holding)))
    query = select(Assignment.id).where(*mine, *allowed_tasks)
    open_id = session.scalar(query.order_by(Assignment.id).limit(1))
    if open_id is not None:
        renewal = update(Assignment).where(Assignment.id == open_id)
        session.execute(renewal.values(lease_ms=lease.until_ms))
        return open_id

    # 4. By chance a gold question, or one of the annotator's own tasks again.
    draw = rng.random()
    if draw < rules.gold_rate:
        gold = _new_gold(session, annotator_id)
        if gold is not None:
            return _assign(session, lease, gold, "gold", rng)
    elif draw < rules.gold_rate + rules.repeat_rate:
        repeat_id = _repeat(session, lease, rules, rng)
        if repeat_id is not None:
            return repeat_id

    # 5. A task whose lease ended, then a new one, then any gold question that is left.
    expired_id = _own_expired(session, lease, allowed_tasks)
    if expired_id is not None:
        return expired_id
    set_id = _take(session, [_new_to(annotator_id), *allowed], rng)
    if set_id is not None:
        return _assign(session, lease, set_id, "task", rng)
    gold = _new_gold(session, annotator_id) if rules.gold_rate > 0 else None
    if gold is not None:
        return _assign(session, lease, gold, "gold", rng)
    return None


def reserve(
    session: Session, annotator_id: int, key: str, *, now_ms: int, until_ms: int, rng: random.Random
) -> bool:
    """Open a set, named by its key, for an annotator who has not seen it; False if it is full."""
    origins = session.scalar(select(Annotator.origins).where(Annotator.id == annotator_id))
    if is_left_out(session, annotator_id) or origins == []:
        return False
    named = [CandidateSet.key == key, schema.condition(schema.HANDED_OUT)]
    set_id = _take_one(session, [_new_to(annotator_id), *sets_of(origins)], named)
    if set_id is not None:
        lease = _Lease(annotator_id, now_ms, until_ms)
        _assign(session, lease, set_id, "task", rng)
    return set_id is not None


def expire(session: Session, now_ms: int) -> int:
    """Give back the places of all leases that ended; returns how many."""
    # Rows that another writer has locked are skipped: it renews or ends them itself.
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
    # In the order of the sets: the lock order of all writers.
    for row in sorted(ended, key=lambda row: row.candidate_set_id):
        if row.kind == "task":
            give_back(session, row.candidate_set_id)
        note(session, now_ms, "system", "expire", f"assignment:{row.id}")
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
    assignment = session.get(Assignment, assignment_id, with_for_update=True)
    if assignment is None:
        raise Refused("unknown", "there is no such task")
    if assignment.annotator_id != annotator_id:
        raise Refused("not_yours", "this task was given to somebody else")
    return assignment


def task(session: Session, assignment_id: int, *, rules: Rules) -> Task:
    """The task that an annotator sees of an assignment: the texts, but not who wrote them."""
    assignment = session.get_one(Assignment, assignment_id)
    candidate_set = session.get_one(CandidateSet, assignment.candidate_set_id)
    prompt = session.get_one(Prompt, candidate_set.prompt_id)
    table = schema.Completion
    order = assignment.shown_order
    rows = session.execute(
        select(table.key, table.text, table.finish_reason).where(table.key.in_(order))
    )
    by_id = {key: Shown(key, text, reason == "length") for key, text, reason in rows}
    # The newest revision, a withdrawn one too: after an undo the order is shown again.
    previous = session.scalar(
        select(schema.Ranking)
        .where(schema.Ranking.assignment_id == assignment.id)
        .order_by(schema.Ranking.revision.desc())
        .limit(1)
    )
    return Task(
        id=assignment.id,
        revision=assignment.next_revision,
        kind=assignment.kind,  # type: ignore[arg-type]
        prompt=Instruction(
            prompt.instruction,
            prompt.input,
            source=prompt.source,
            **restored_history(prompt.history),
        ),
        completions=tuple(by_id[key] for key in order),
        lease_s=rules.lease_s,
        tiers=as_tiers(previous.tiers) if previous else (),
        criteria=previous.criteria if previous else {},
        better=demonstrations.to_open_again(session, assignment.id) if previous else None,
    )


def give_back(session: Session, set_id: int) -> None:
    """Free one place of a set."""
    session.execute(
        update(CandidateSet)
        .where(CandidateSet.id == set_id)
        .values(claimed=CandidateSet.claimed - 1)
    )


def take_after_all(session: Session, set_id: int) -> None:
    """Take a place for somebody whose lease had ended: a further one if none is free.

    Work that was done is kept, and no place is counted twice.
    """
    claimed = CandidateSet.claimed + 1
    target = greatest(session, CandidateSet.target, claimed)
    session.execute(
        update(CandidateSet).where(CandidateSet.id == set_id).values(claimed=claimed, target=target)
    )


def greatest(session: Session, *columns: Any) -> ColumnElement[int]:
    """The greatest of some columns: `max` on SQLite, `greatest` on PostgreSQL."""
    name = "greatest" if session.get_bind().dialect.name == "postgresql" else "max"
    return getattr(func, name)(*columns)  # type: ignore[no-any-return]


def is_left_out(session: Session, annotator_id: int) -> bool:
    """True if nothing of an annotator counts; it stays so till the end of the transaction."""
    query = select(Annotator.left_out).where(Annotator.id == annotator_id)
    return bool(session.scalar(query.with_for_update(read=True, key_share=True)))


def sets_of(origins: Collection[str] | None) -> list[ColumnElement[bool]]:
    """The condition on a set that it has one of these origins; none where all will do."""
    return [] if origins is None else [CandidateSet.origin.in_(list(origins))]


def assignments_of(origins: Collection[str] | None) -> list[ColumnElement[bool]]:
    """The condition on an assignment that its set has one of these origins; none where all will do.

    Gold questions meet it whatever their origin: they test everybody, and no list of origins has
    them.
    """
    if origins is None:
        return []
    sets = select(CandidateSet.id).where(*sets_of(origins))
    return [or_(Assignment.kind == "gold", Assignment.candidate_set_id.in_(sets))]


def _take(session: Session, new: list[ColumnElement[bool]], rng: random.Random) -> int | None:
    """Take a place of a new set: of one that wants another opinion, then of a fresh one.

    On PostgreSQL all that is left may be locked for a moment by others, hence a few tries.
    """
    last = session.scalar(select(func.max(CandidateSet.id))) or 0
    for _ in range(3):
        # A random start spreads the annotators over the shared sets.
        near = (
            select(CandidateSet.id)
            .where(schema.condition(schema.SHARED), CandidateSet.id >= rng.randint(0, last))
            .order_by(CandidateSet.id)
            .limit(WINDOW)
        )
        # Second opinions near the start, then fresh sets, then second opinions anywhere.
        for conditions in (
            [schema.condition(schema.SHARED), CandidateSet.id.in_(near.scalar_subquery())],
            [schema.condition(schema.FRESH)],
            [schema.condition(schema.SHARED)],
        ):
            set_id = _take_one(session, new, conditions)
            if set_id is not None:
                return set_id
        # SQLite has one writer at a time, so no row was locked and a further try finds no more.
        if session.get_bind().dialect.name != "postgresql":
            return None
    return None


def _take_one(
    session: Session, new: list[ColumnElement[bool]], conditions: list[ColumnElement[bool]]
) -> int | None:
    """Take a place of the first new set that meets some conditions."""
    first = (
        select(CandidateSet.id)
        .where(*conditions, *new)
        .order_by(CandidateSet.id)
        .limit(1)
        .with_for_update(skip_locked=True, key_share=True)
    )
    return session.scalar(
        update(CandidateSet)
        .where(CandidateSet.id == first.scalar_subquery())
        # `reserve` names a set by its key, and that set may be full.
        .where(CandidateSet.claimed < CandidateSet.target)
        .values(claimed=CandidateSet.claimed + 1)
        .returning(CandidateSet.id)
    )


def _new_to(annotator_id: int) -> ColumnElement[bool]:
    return ~exists().where(
        Assignment.candidate_set_id == CandidateSet.id, Assignment.annotator_id == annotator_id
    )


def _new_gold(session: Session, annotator_id: int) -> int | None:
    """The first gold question that an annotator has not had, whatever origins they may have."""
    return session.scalar(
        select(CandidateSet.id)
        .where(schema.condition(schema.GOLD), _new_to(annotator_id))
        .order_by(CandidateSet.id)
        .limit(1)
    )


def _repeat(session: Session, lease: _Lease, rules: Rules, rng: random.Random) -> int | None:
    """One of the annotator's own tasks again: ranked some tasks ago and not repeated yet."""
    # 1. The ranking that lies `repeat_after` tasks back; a repeat must be older.
    annotator_id = lease.annotator_id
    done = [Assignment.annotator_id == annotator_id, schema.condition(schema.DONE)]
    newest = select(Assignment.id, Assignment.ranking_id).where(*done)
    newest = newest.order_by(Assignment.ranking_id.desc())
    recent = session.execute(newest.offset(rules.repeat_after - 1).limit(1)).first()
    first = session.scalar(
        select(Assignment.ranking_id).where(*done).order_by(Assignment.ranking_id).limit(1)
    )
    if recent is None or first is None:
        return None
    # 2. Older tasks that have not been repeated.
    repeats = Assignment.__table__.alias("again")
    origins = session.scalar(select(Annotator.origins).where(Annotator.id == annotator_id))
    old = (
        select(Assignment)
        .join(CandidateSet, CandidateSet.id == Assignment.candidate_set_id)
        .where(*sets_of(origins))
        .where(*done, Assignment.kind == "task", Assignment.ranking_id < recent.ranking_id)
        .where(~CandidateSet.left_out)
        .where(
            ~exists()
            .where(repeats.c.candidate_set_id == Assignment.candidate_set_id)
            .where(repeats.c.annotator_id == annotator_id, repeats.c.repeat > 0)
        )
        .order_by(Assignment.ranking_id)
        .limit(1)
    )
    # 3. The next from a random place on, so that repeats are spread over all that was ranked.
    start = rng.randint(first, recent.ranking_id)
    original = session.scalar(old.where(Assignment.ranking_id >= start)) or session.scalar(old)
    if original is None:
        return None
    set_id = original.candidate_set_id
    return _assign(session, lease, set_id, "repeat", rng, repeat_of=original.id)


def _own_expired(
    session: Session, lease: _Lease, allowed_tasks: list[ColumnElement[bool]]
) -> int | None:
    """A task whose lease the annotator let end, if nobody else has taken its place."""
    mine = [Assignment.annotator_id == lease.annotator_id, schema.condition(schema.EXPIRED)]
    mine += allowed_tasks
    expired = session.scalars(
        select(Assignment).where(*mine).order_by(Assignment.id).limit(WINDOW).with_for_update()
    )
    for assignment in expired:
        if _retake(session, assignment):
            assignment.state = "open"
            assignment.lease_ms, assignment.shown_ms = lease.until_ms, lease.now_ms
            session.flush()
            return assignment.id
    return None


def _retake(session: Session, assignment: Assignment) -> bool:
    """Take the place of an expired assignment again; False if it is gone."""
    # Repeats and gold questions take no place in their set.
    if assignment.kind != "task":
        return True
    free = update(CandidateSet).where(
        CandidateSet.id == assignment.candidate_set_id,
        CandidateSet.claimed < CandidateSet.target,
        schema.condition(schema.HANDED_OUT),
    )
    retaking = free.values(claimed=CandidateSet.claimed + 1).returning(CandidateSet.id)
    return session.scalar(retaking) is not None


def _assign(
    session: Session,
    lease: _Lease,
    set_id: int,
    kind: Kind,
    rng: random.Random,
    *,
    repeat_of: int | None = None,
) -> int:
    """Open an assignment of a set, in a shuffled order; returns its number."""
    query = select(CandidateSet.completions).where(CandidateSet.id == set_id)
    completions = session.scalars(query).one()
    columns = {
        "candidate_set_id": set_id,
        "annotator_id": lease.annotator_id,
        "kind": kind,
        "repeat": int(repeat_of is not None),
        "repeat_of": repeat_of,
        "shown_order": rng.sample(completions, len(completions)),
        "state": "open",
        "lease_ms": lease.until_ms,
        "shown_ms": lease.now_ms,
        "next_revision": 0,
    }
    adding = insert(Assignment).values(columns).returning(Assignment.id)
    number = session.execute(adding).scalar_one()
    note(
        session,
        lease.now_ms,
        f"annotator:{lease.annotator_id}",
        "claim",
        f"assignment:{number}",
        after={"candidate_set": set_id, "kind": kind},
    )
    return number


def add_flag(
    session: Session, assignment: Assignment, completion: str, reason: str, text: str, now_ms: int
) -> None:
    """Note a problem with a task, once.

    Raises:
        Refused: `bad_value`: no reason, or a completion that the task does not have.
    """
    if not 0 < len(reason) <= 32:
        raise Refused("bad_value", "give a reason of at most 32 characters")
    if completion and completion not in assignment.shown_order:
        raise Refused("bad_value", "this answer is not one of the task")
    table = schema.Flag
    # A second press of the button adds no second flag.
    same_flag = select(table.id).where(
        table.assignment_id == assignment.id,
        table.completion == completion,
        table.reason == clean(reason),
    )
    if session.scalar(same_flag) is None:
        columns = {"completion": completion, "reason": clean(reason), "text": clean(text)}
        session.execute(
            insert(table).values(columns | {"assignment_id": assignment.id, "created_ms": now_ms})
        )
