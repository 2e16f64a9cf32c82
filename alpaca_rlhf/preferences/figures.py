"""The figures of the Data tab, from running sums and indices: quick at any size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Select, exists, func, literal, or_, select
from sqlalchemy.orm import Session, aliased

from alpaca_rlhf.preferences import chats, claims, demonstrations, schema
from alpaca_rlhf.preferences.agreement import Agreement, agreement
from alpaca_rlhf.preferences.assignment import Rules
from alpaca_rlhf.preferences.reading import standing
from alpaca_rlhf.preferences.schema import (
    Annotator,
    Assignment,
    Audit,
    CandidateSet,
    Ranking,
    Tally,
)
from alpaca_rlhf.preferences.standing import Standing

MAX_OVERLAPS = 500
"""Newest overlapping sets, and newest repeats, that the agreement is computed from."""
MAX_JUDGE_VERDICTS = 10_000
"""Newest verdicts of a judge among which overlaps with people are looked for."""
MAX_DAYS = 30
"""Days of which the pace is shown."""
_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS
_COUNT_OPEN_FLAGS = select(func.count()).select_from(schema.Flag)
_COUNT_OPEN_FLAGS = _COUNT_OPEN_FLAGS.where(schema.condition(schema.WAITING))
_COUNT_SETS_LEFT_OUT = select(func.count()).select_from(CandidateSet)
_COUNT_SETS_LEFT_OUT = _COUNT_SETS_LEFT_OUT.where(schema.condition(schema.LEFT_OUT))


@dataclass(frozen=True)
class Progress:
    """Progress of an annotator and of the queue.

    The annotator's own numbers count gold questions and repeats like any other task: whoever
    watches them does not learn which task was one.
    """

    mine: int
    """Tasks that the annotator has done."""
    mine_today: int
    """Those of today, by UTC."""
    mine_last_hour: int
    """Those of the last hour, the pace."""
    mine_left: int
    """Tasks that the annotator can still get, with the open ones and the repeats to expect."""
    all_rankings: int
    """Rankings of all people that count."""
    sets_ranked: int
    """Candidate sets that need no further annotator: ranked, or claimed."""
    sets: int
    """Candidate sets, without gold questions and those that nobody receives any more."""


@dataclass(frozen=True)
class Person:
    """One annotator's figures."""

    id: int
    """Number."""
    name: str
    """Name, or `judge:<name>`."""
    role: str
    """`annotator`, `admin` or `judge`."""
    active: bool
    """True if they may sign in."""
    has_account: bool
    """True if they have a password; judges and people in the terminal have none."""
    left_out: bool
    """True if nothing that they ranked counts."""
    rankings: int
    """Rankings that count."""
    pairs: int
    """Preference pairs of these rankings."""
    median_s: float | None
    """Median seconds per ranking."""
    first_slot_rate: float | None
    """Share of rankings in which the answer shown first won."""
    first_slot_expected: float | None
    """The same share by chance."""
    gold_asked: int
    """Gold questions answered."""
    gold_rate: float | None
    """Share of them with every pair in the right order."""


@dataclass(frozen=True)
class OpenFlag:
    """One flag that has not been resolved."""

    id: int
    """Number; the next page begins before it."""
    candidate_set: int
    """The set, which an admin may retire."""
    annotator: str
    """Name of the annotator who set it."""
    prompt: str
    """The instruction."""
    answer: str | None
    """Text of the flagged answer; None for the prompt."""
    reason: str
    """The reason, one word."""
    text: str
    """The annotator's remark."""


@dataclass(frozen=True)
class Remark:
    """A comment on a ranking, or the reason for a skip."""

    kind: Literal["comment", "skip"]
    """Which of the two."""
    id: int
    """Number among those of its kind; the next page begins before it."""
    at_ms: int
    """Time, in milliseconds since 1970."""
    candidate_set: int
    """The set."""
    annotator: str
    """Name of the annotator who wrote it."""
    prompt: str
    """The instruction."""
    text: str
    """The annotator's words."""


@dataclass(frozen=True)
class Figures:
    """All figures of the Data tab but its lists; None where there is nothing to divide by."""

    counts: dict[str, int]
    """Rows: prompts, completions, sets, sets left out, open places, rankings (by people), judged,
    pairs, open flags, battles."""
    standing: Standing
    """Standing of all prompts: ranked, skipped, closed or waiting."""
    last_hour: int
    """Rankings and revisions by people in the last hour."""
    by_day: list[tuple[str, int]]
    """Day and number of rankings, for the last days that had any; oldest first."""
    first_slot_rate: float | None
    """Share of rankings in which the answer shown first won; ties count in part, and rankings
    without a decision are left out."""
    first_slot_expected: float | None
    """The same share by chance."""
    gold_asked: int
    """Gold questions answered."""
    gold_rate: float | None
    """Share of them with every pair in the right order."""
    median_s: float | None
    """Median seconds per ranking."""
    agreement: Agreement
    """Agreement between people, over the newest overlapping sets."""
    self_consistency: Agreement
    """Agreement of people with themselves, over the newest repeats."""
    judges: list[tuple[str, Agreement]]
    """Name of each judge, and its agreement with the first person to rank the same set."""
    people: list[Person]
    """People and judges, most rankings first."""


def progress(session: Session, annotator_id: int, now_ms: int, *, rules: Rules) -> Progress:
    """Progress of an annotator and of the queue; `rules` say how tasks are handed out."""
    # 1. All tasks that the annotator has done, whichever kind. An hour or a day begins at a
    #    ranking, and rankings are numbered in their order: the annotator's own index counts from
    #    there.
    done = select(func.count()).select_from(Assignment)
    done = done.where(Assignment.annotator_id == annotator_id, schema.condition(schema.DONE))

    def done_since(start_ms: int) -> int:
        later = select(Ranking.id).where(Ranking.created_ms >= start_ms)
        first_id = session.scalar(later.order_by(Ranking.created_ms).limit(1))
        if first_id is None:
            return 0
        return session.scalar(done.where(Assignment.ranking_id >= first_id)) or 0

    # 2. The queue.
    n_sets = select(func.count()).select_from(CandidateSet)
    n_sets = n_sets.where(CandidateSet.target > 0, schema.condition(schema.HANDED_OUT))
    total, n_open = session.scalar(n_sets) or 0, _open_sets(session)
    n_done = session.scalar(done) or 0
    all_rankings = select(func.coalesce(func.sum(Tally.rankings), 0))
    return Progress(
        mine=n_done,
        mine_today=done_since(now_ms - now_ms % _DAY_MS),
        mine_last_hour=done_since(now_ms - _HOUR_MS + 1),
        mine_left=_left(session, annotator_id, n_open, n_done, rules),
        all_rankings=session.scalar(_by_people(all_rankings)) or 0,
        sets_ranked=total - n_open,
        sets=total,
    )


def _left(session: Session, annotator_id: int, n_open: int, n_done: int, rules: Rules) -> int:
    """Tasks that an annotator can still get, of any kind, and those that are open.

    The sum falls by one with each task that is done, whatever its kind. A repeat comes on top of
    what the queue holds, so the repeats to expect are in the sum from the start.

    Args:
        session: A transaction.
        annotator_id: The annotator.
        n_open: Sets that anybody can still claim.
        n_done: Tasks that the annotator has done, of any kind.
        rules: How tasks are handed out.
    """
    annotator = session.get(Annotator, annotator_id)
    if annotator is None or annotator.left_out or annotator.origins == []:
        return 0
    allowed = claims.sets_of(annotator.origins)
    n_open = _open_sets(session, allowed) if allowed else n_open
    # 1. Sets with a free place that this annotator has not had, or has let expire.
    had = (
        select(func.count())
        .select_from(CandidateSet)
        .join(Assignment, Assignment.candidate_set_id == CandidateSet.id)
        .where(Assignment.annotator_id == annotator_id, Assignment.repeat == 0)
        .where(Assignment.state != "expired")
        .where(or_(schema.condition(schema.FRESH), schema.condition(schema.SHARED)), *allowed)
    )
    # 2. Gold questions that they have not had.
    seen = exists().where(
        Assignment.candidate_set_id == CandidateSet.id, Assignment.annotator_id == annotator_id
    )
    unseen_gold = select(func.count()).select_from(CandidateSet)
    unseen_gold = unseen_gold.where(schema.condition(schema.GOLD), ~seen)
    # 3. What is open, or can be opened again without a place.
    assignments = select(func.count()).select_from(Assignment)
    assignments = assignments.where(Assignment.annotator_id == annotator_id)
    at_hand = assignments.where(*claims.assignments_of(annotator.origins))
    expired_gold = at_hand.where(schema.condition(schema.EXPIRED), Assignment.kind == "gold")
    n_at_hand = session.scalar(expired_gold) or 0
    at_hand = at_hand.where(schema.condition(schema.OPEN))
    n_open_repeats = session.scalar(at_hand.where(Assignment.kind == "repeat")) or 0
    n_at_hand += (session.scalar(at_hand) or 0) - n_open_repeats
    n_gold = (session.scalar(unseen_gold) or 0) if rules.gold_rate > 0 else 0
    n_new = n_open - (session.scalar(had) or 0) + n_gold + n_at_hand
    if not n_new:
        return n_open_repeats
    # 4. The repeats that are still to be expected.
    n_repeated = session.scalar(assignments.where(schema.condition(schema.REPEATED))) or 0
    n_repeats = _repeats_expected(n_done - n_repeated + n_new, rules)
    return n_new + max(n_repeats - n_repeated, n_open_repeats)


def _repeats_expected(n_tasks: int, rules: Rules) -> int:
    """The number of repeats to expect on top of so many other tasks.

    It lies two standard deviations above the mean: hardly anybody gets more repeats than that, and
    sees the number of tasks left stand still.
    """
    if not 0 < rules.repeat_rate < 1:
        return 0
    mean = max(0, n_tasks - rules.repeat_after) * rules.repeat_rate / (1 - rules.repeat_rate)
    return min(round(mean + 2 * math.sqrt(mean)), n_tasks)


def figures(session: Session, now_ms: int) -> Figures:
    """All figures of the Data tab but its lists."""
    # 1. Running sums, of people without judges.
    annotators = _annotators(session)
    counted = [annotator for annotator in annotators if not annotator.left_out]
    people = [person for person in counted if person.role != "judge"]
    columns = (Tally.decided, Tally.first_slot, Tally.first_slot_expected, Tally.gold_passed)
    decided, won, expected, passed = session.execute(
        _by_people(select(*(func.coalesce(func.sum(column), 0) for column in columns)))
    ).one()
    gold_asked = sum(person.gold_asked for person in people)
    # 2. The pace.
    days = _by_people(select(Tally.day, func.sum(Tally.rankings)))
    days = days.group_by(Tally.day).having(func.sum(Tally.rankings) > 0)
    recent = select(func.count()).select_from(Ranking)
    recent = recent.join(Assignment, Assignment.id == Ranking.assignment_id)
    recent = recent.where(Assignment.kind != "judge", *_counted())
    # 3. Counts, and agreement over a bounded number of the newest tasks.
    return Figures(
        counts={
            "prompts": _count(session, schema.Prompt),
            "completions": _count(session, schema.Completion),
            "sets": _count(session, CandidateSet),
            "left_out": session.scalar(_COUNT_SETS_LEFT_OUT) or 0,
            "open_places": _open_places(session),
            "rankings": sum(person.rankings for person in people),
            "judged": sum(judge.rankings for judge in counted if judge.role == "judge"),
            "pairs": sum(person.pairs for person in people),
            "flags": session.scalar(_COUNT_OPEN_FLAGS) or 0,
            "battles": _count(session, schema.Battle),
            "demonstrations": demonstrations.count(session),
            "thumbs": chats.count_thumbs(session),
        },
        standing=standing(session, now_ms),
        last_hour=session.scalar(recent.where(Ranking.created_ms > now_ms - _HOUR_MS)) or 0,
        by_day=[
            (day, int(n))
            for day, n in reversed(
                session.execute(days.order_by(Tally.day.desc()).limit(MAX_DAYS)).all()
            )
        ],
        first_slot_rate=_share(won, decided),
        first_slot_expected=_share(expected, decided),
        gold_asked=gold_asked,
        gold_rate=_share(passed, gold_asked),
        median_s=_median(session, None),
        agreement=agreement(_overlapping(session)),
        self_consistency=agreement(_repeated(session)),
        judges=[
            (judge.name, agreement(_judged(session, judge.id)))
            for judge in sorted(counted, key=lambda annotator: annotator.id)
            if judge.role == "judge"
        ],
        people=annotators,
    )


def flagged(session: Session, *, before: int | None = None, n: int = 50) -> list[OpenFlag]:
    """The newest open flags, or those before a number, for the next page."""
    query = (
        select(
            schema.Flag,
            Annotator.name,
            Assignment.candidate_set_id,
            schema.Prompt.instruction,
            schema.Completion.text,
        )
        .join(Assignment, Assignment.id == schema.Flag.assignment_id)
        .join(Annotator, Annotator.id == Assignment.annotator_id)
        .join(CandidateSet, CandidateSet.id == Assignment.candidate_set_id)
        .join(schema.Prompt, schema.Prompt.id == CandidateSet.prompt_id)
        .outerjoin(schema.Completion, schema.Completion.key == schema.Flag.completion)
        .where(schema.condition(f"flag.{schema.WAITING}"))
        .order_by(schema.Flag.id.desc())
        .limit(n)
    )
    if before is not None:
        query = query.where(schema.Flag.id < before)
    return [
        OpenFlag(flag.id, set_id, name, prompt, answer, flag.reason, flag.text)
        for flag, name, set_id, prompt, answer in session.execute(query)
    ]


def comments(session: Session, *, before: int | None = None, n: int = 50) -> list[Remark]:
    """The newest comments on rankings that stand, or those before a number, for the next page."""
    query = (
        select(Ranking, Annotator.name, CandidateSet.id, schema.Prompt.instruction)
        .join(Assignment, Assignment.ranking_id == Ranking.id)
        .join(Annotator, Annotator.id == Assignment.annotator_id)
        .join(CandidateSet, CandidateSet.id == Assignment.candidate_set_id)
        .join(schema.Prompt, schema.Prompt.id == CandidateSet.prompt_id)
        .where(schema.condition(f"ranking.{schema.REMARK}"))
        .order_by(Ranking.id.desc())
        .limit(n)
    )
    if before is not None:
        query = query.where(Ranking.id < before)
    return [
        Remark("comment", row.id, row.created_ms, set_id, name, prompt, row.comment)
        for row, name, set_id, prompt in session.execute(query)
    ]


def skips(session: Session, *, before: int | None = None, n: int = 50) -> list[Remark]:
    """The newest reasons for skips, or those before a number, for the next page."""
    query = select(Audit).where(schema.condition(schema.SKIP), Audit.after.is_not(None))
    if before is not None:
        query = query.where(Audit.id < before)
    rows = session.scalars(query.order_by(Audit.id.desc()).limit(n)).all()
    # The audit names its assignment in words.
    numbers = {row.id: int(row.entity.partition(":")[2]) for row in rows}
    tasks = {
        row.id: row
        for row in session.execute(
            select(
                Assignment.id,
                Assignment.candidate_set_id,
                Annotator.name,
                schema.Prompt.instruction,
            )
            .join(Annotator, Annotator.id == Assignment.annotator_id)
            .join(CandidateSet, CandidateSet.id == Assignment.candidate_set_id)
            .join(schema.Prompt, schema.Prompt.id == CandidateSet.prompt_id)
            .where(Assignment.id.in_(numbers.values()))
        )
    }
    remarks = []
    for row in rows:
        task, reason = tasks[numbers[row.id]], (row.after or {})["reason"]
        set_id, prompt = task.candidate_set_id, task.instruction
        remarks.append(Remark("skip", row.id, row.at_ms, set_id, task.name, prompt, reason))
    return remarks


def _annotators(session: Session) -> list[Person]:
    """People and judges, most rankings first."""
    names = ("rankings", "pairs", "decided", "first_slot", "first_slot_expected")
    columns = [getattr(Tally, name) for name in (*names, "gold_asked", "gold_passed")]
    rows = session.execute(
        select(Annotator, *(func.coalesce(func.sum(column), 0) for column in columns))
        # An outer join: who has ranked nothing yet is listed too.
        .outerjoin(Tally, Tally.annotator_id == Annotator.id)
        .group_by(Annotator.id)
    )
    annotators = [
        Person(
            id=row.id,
            name=row.name,
            role=row.role,
            active=row.active,
            has_account=bool(row.password_hash),
            left_out=row.left_out,
            rankings=int(rankings),
            pairs=int(pairs),
            median_s=_median(session, row.id),
            first_slot_rate=_share(won, decided),
            first_slot_expected=_share(expected, decided),
            gold_asked=int(gold_asked),
            gold_rate=_share(passed, gold_asked),
        )
        for row, rankings, pairs, decided, won, expected, gold_asked, passed in rows
    ]
    return sorted(annotators, key=lambda annotator: (-annotator.rankings, annotator.id))


def _by_people(query: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
    """Restrict sums of `Tally` to people who are not left out, without judges."""
    return query.join(Annotator, Annotator.id == Tally.annotator_id).where(
        Annotator.role != "judge", ~Annotator.left_out
    )


def _counted() -> list[ColumnElement[bool]]:
    """Conditions on an assignment: neither its annotator nor its set is left out."""
    return [
        Assignment.annotator_id.not_in(select(Annotator.id).where(Annotator.left_out)),
        Assignment.candidate_set_id.not_in(
            select(CandidateSet.id).where(schema.condition(schema.LEFT_OUT))
        ),
    ]


def _median(session: Session, annotator_id: int | None) -> float | None:
    """The lower median of seconds per ranking, of one annotator or of all.

    Walks half an index instead of sorting.
    """
    timed: list[ColumnElement[bool]] = [Assignment.duration_ms.is_not(None)]
    if annotator_id is None:
        timed += _counted()
    else:
        timed.append(Assignment.annotator_id == annotator_id)
    n = session.scalar(select(func.count()).select_from(Assignment).where(*timed)) or 0
    if not n:
        return None
    times = select(Assignment.duration_ms).where(*timed).order_by(Assignment.duration_ms)
    return (session.scalar(times.offset((n - 1) // 2).limit(1)) or 0) / 1000


def _overlapping(session: Session) -> Iterator[list[Any]]:
    """The orders that people gave each of the newest sets that several have ranked."""
    newest = (
        select(CandidateSet.id)
        .where(schema.condition(schema.OVERLAPPING))
        .order_by(CandidateSet.id.desc())
        .limit(MAX_OVERLAPS)
    )
    rows = session.execute(
        select(Assignment.candidate_set_id, Ranking.tiers)
        .join(Ranking, Ranking.id == Assignment.ranking_id)
        .where(Assignment.candidate_set_id.in_(newest.scalar_subquery()))
        .where(Assignment.kind == "task", *_counted())
        .order_by(Assignment.id)
    )
    orders: dict[int, list[Any]] = {}
    for set_id, tiers in rows:
        orders.setdefault(set_id, []).append(tiers)
    yield from orders.values()


def _repeated(session: Session) -> Iterator[list[Any]]:
    """The first and the second order of each of the newest repeats."""
    original, original_ranking = aliased(Assignment), aliased(Ranking)
    repeat_ranking = aliased(Ranking)
    rows = session.execute(
        select(original_ranking.tiers, repeat_ranking.tiers)
        .select_from(Assignment)
        .join(repeat_ranking, repeat_ranking.id == Assignment.ranking_id)
        .join(original, original.id == Assignment.repeat_of)
        .join(original_ranking, original_ranking.id == original.ranking_id)
        .where(
            # Values in the statement itself: with parameters SQLite would not use the partial
            # index.
            Assignment.kind == literal("repeat", literal_execute=True),
            Assignment.state == literal("done", literal_execute=True),
            *_counted(),
        )
        .order_by(Assignment.id.desc())
        .limit(MAX_OVERLAPS)
    )
    yield from ([tiers, repeated_tiers] for tiers, repeated_tiers in rows)


def _judged(session: Session, judge_id: int) -> list[list[Any]]:
    """The orders of a judge and of the first person, for the newest sets that have both."""
    newest = (
        select(Assignment.candidate_set_id, Assignment.ranking_id)
        .where(Assignment.annotator_id == judge_id, schema.condition(schema.DONE))
        .order_by(Assignment.ranking_id.desc())
        .limit(MAX_JUDGE_VERDICTS)
        .subquery()
    )
    by_judge, by_person = aliased(Ranking), aliased(Ranking)
    rows = session.execute(
        select(Assignment.candidate_set_id, by_judge.tiers, by_person.tiers)
        .select_from(newest)
        .join(Assignment, Assignment.candidate_set_id == newest.c.candidate_set_id)
        .join(by_judge, by_judge.id == newest.c.ranking_id)
        .join(by_person, by_person.id == Assignment.ranking_id)
        .where(Assignment.kind == "task", *_counted())
        .order_by(newest.c.ranking_id.desc(), Assignment.id)
    )
    orders: dict[int, list[Any]] = {}
    # Of the people who ranked a set only the first counts; their rows come in order.
    for set_id, judge_tiers, person_tiers in rows:
        if set_id not in orders and len(orders) == MAX_OVERLAPS:
            break
        orders.setdefault(set_id, [judge_tiers, person_tiers])
    return list(orders.values())


def _open_sets(session: Session, allowed: Sequence[ColumnElement[bool]] = ()) -> int:
    """Sets that can still be claimed, among those that are allowed."""
    sets = select(func.count()).select_from(CandidateSet)
    return sum(
        session.scalar(sets.where(schema.condition(state), *allowed)) or 0
        for state in (schema.FRESH, schema.SHARED)
    )


def _open_places(session: Session) -> int:
    """Rankings that the sets still need."""
    places = select(func.sum(CandidateSet.target - CandidateSet.claimed))
    return sum(
        int(session.scalar(places.where(schema.condition(state))) or 0)
        for state in (schema.FRESH, schema.SHARED)
    )


def _count(session: Session, table: type[schema.Base]) -> int:
    return session.scalar(select(func.count()).select_from(table)) or 0


def _share(part: float | None, total: float) -> float | None:
    return float(part or 0) / float(total) if total else None
