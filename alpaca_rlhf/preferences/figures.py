"""The figures of the Data tab, from running sums and indices: quick at any size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, func, literal, select
from sqlalchemy.orm import Session, aliased

from alpaca_rlhf.preferences import schema
from alpaca_rlhf.preferences.agreement import Agreement, agreement
from alpaca_rlhf.preferences.schema import Annotator, Assignment, CandidateSet, Ranking, Tally
from alpaca_rlhf.preferences.verdicts import day_of

MAX_OVERLAPS = 500
"""Newest overlapping sets, and newest repeats, that the agreement is computed from."""
MAX_JUDGE_VERDICTS = 10_000
"""Newest verdicts of a judge among which overlaps with people are looked for."""
MAX_DAYS = 30
"""Days of which the pace is shown."""
_HOUR_MS = 3_600_000
_COUNT_OPEN_FLAGS = select(func.count()).select_from(schema.Flag)
_COUNT_OPEN_FLAGS = _COUNT_OPEN_FLAGS.where(schema.condition(schema.WAITING))


@dataclass(frozen=True)
class Progress:
    """Progress of an annotator and of the queue."""

    mine: int
    """The annotator's rankings that count."""
    mine_today: int
    """Those of today, by UTC."""
    mine_last_hour: int
    """Those of the last hour, the pace."""
    all_rankings: int
    """Rankings of all people."""
    sets_ranked: int
    """Candidate sets that need no further annotator: ranked, or claimed."""
    sets: int
    """Candidate sets, without retired ones and gold questions."""


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
    completion: str
    """Id of the flagged answer; empty for the prompt."""
    reason: str
    """The reason, one word."""
    text: str
    """The annotator's remark."""


@dataclass(frozen=True)
class Figures:
    """All figures of the Data tab but its lists; None where there is nothing to divide by."""

    counts: dict[str, int]
    """Rows: prompts, completions, sets, open places, rankings (by people), judged, pairs, open
    flags, battles."""
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


def progress(session: Session, annotator_id: int, now_ms: int) -> Progress:
    """Progress of an annotator and of the queue."""
    n_rankings = select(func.coalesce(func.sum(Tally.rankings), 0))
    n_mine = n_rankings.where(Tally.annotator_id == annotator_id)
    # The last hour begins at a ranking, and rankings are numbered in their order: the annotator's
    # own index counts from there.
    last_hour = select(Ranking.id).where(Ranking.created_ms > now_ms - _HOUR_MS)
    first_id = session.scalar(last_hour.order_by(Ranking.created_ms).limit(1))
    n_done = select(func.count()).select_from(Assignment)
    n_done = n_done.where(Assignment.annotator_id == annotator_id, schema.condition(schema.DONE))
    n_sets = select(func.count()).select_from(CandidateSet)
    n_sets = n_sets.where(CandidateSet.target > 0, ~CandidateSet.retired)
    n_open = _open_sets(session)
    total = session.scalar(n_sets) or 0
    return Progress(
        mine=session.scalar(n_mine) or 0,
        mine_today=session.scalar(n_mine.where(Tally.day == day_of(now_ms))) or 0,
        mine_last_hour=session.scalar(n_done.where(Assignment.ranking_id >= first_id)) or 0
        if first_id is not None
        else 0,
        all_rankings=session.scalar(_by_people(n_rankings)) or 0,
        sets_ranked=total - n_open,
        sets=total,
    )


def figures(session: Session, now_ms: int) -> Figures:
    """All figures of the Data tab but its lists."""
    # 1. Running sums, of people without judges.
    annotators = _annotators(session)
    people = [person for person in annotators if person.role != "judge"]
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
    recent = recent.where(Assignment.kind != "judge")
    # 3. Counts, and agreement over a bounded number of the newest tasks.
    return Figures(
        counts={
            "prompts": _count(session, schema.Prompt),
            "completions": _count(session, schema.Completion),
            "sets": _count(session, CandidateSet),
            "open_places": _open_places(session),
            "rankings": sum(person.rankings for person in people),
            "judged": sum(judge.rankings for judge in annotators if judge.role == "judge"),
            "pairs": sum(person.pairs for person in people),
            "flags": session.scalar(_COUNT_OPEN_FLAGS) or 0,
            "battles": _count(session, schema.Battle),
        },
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
            for judge in sorted(annotators, key=lambda annotator: annotator.id)
            if judge.role == "judge"
        ],
        people=annotators,
    )


def flagged(session: Session, *, before: int | None = None, n: int = 50) -> list[OpenFlag]:
    """The newest open flags, or those before a number, for the next page."""
    query = (
        select(schema.Flag, Annotator.name, Assignment.candidate_set_id, schema.Prompt.instruction)
        .join(Assignment, Assignment.id == schema.Flag.assignment_id)
        .join(Annotator, Annotator.id == Assignment.annotator_id)
        .join(CandidateSet, CandidateSet.id == Assignment.candidate_set_id)
        .join(schema.Prompt, schema.Prompt.id == CandidateSet.prompt_id)
        .where(schema.condition(f"flag.{schema.WAITING}"))
        .order_by(schema.Flag.id.desc())
        .limit(n)
    )
    if before is not None:
        query = query.where(schema.Flag.id < before)
    return [
        OpenFlag(flag.id, set_id, name, prompt, flag.completion, flag.reason, flag.text)
        for flag, name, set_id, prompt in session.execute(query)
    ]


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
    """Restrict sums of `Tally` to people, without judges."""
    return query.join(Annotator, Annotator.id == Tally.annotator_id).where(
        Annotator.role != "judge"
    )


def _median(session: Session, annotator_id: int | None) -> float | None:
    """The lower median of seconds per ranking, of one annotator or of all.

    Walks half an index instead of sorting.
    """
    timed: list[ColumnElement[bool]] = [Assignment.duration_ms.is_not(None)]
    if annotator_id is not None:
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
        .where(Assignment.kind == "task")
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
        .where(Assignment.kind == "task")
        .order_by(newest.c.ranking_id.desc(), Assignment.id)
    )
    orders: dict[int, list[Any]] = {}
    # Of the people who ranked a set only the first counts; their rows come in order.
    for set_id, judge_tiers, person_tiers in rows:
        if set_id not in orders and len(orders) == MAX_OVERLAPS:
            break
        orders.setdefault(set_id, [judge_tiers, person_tiers])
    return list(orders.values())


def _open_sets(session: Session) -> int:
    """Sets that can still be claimed."""
    sets = select(func.count()).select_from(CandidateSet)
    return sum(
        session.scalar(sets.where(schema.condition(state))) or 0
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
