"""What the Data tab shows, from running sums and indices: quick whatever there is."""

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

LATEST = 500
"""Overlapping sets, and repeats, that the agreement is taken of: the newest ones."""
JUDGED = 10_000
"""A judge's newest verdicts; those on sets that people have ranked too are looked for here."""
DAYS = 30
"""Days of which the pace is shown."""
_HOUR_MS = 3_600_000
_WAITING = select(func.count()).select_from(schema.Flag)
_WAITING = _WAITING.where(schema.condition(schema.WAITING))


@dataclass(frozen=True)
class Progress:
    """Where an annotator stands."""

    mine: int
    """Rankings that count."""
    mine_today: int
    """Those of today, by UTC."""
    mine_last_hour: int
    """Those of the last hour, the pace."""
    all_rankings: int
    """Rankings of all people."""
    sets_ranked: int
    """Candidate sets that all their people have ranked or have before them."""
    sets: int
    """Candidate sets, retired ones and gold questions left out."""


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
    """Whether they may sign in."""
    rankings: int
    """Rankings that count."""
    pairs: int
    """Pairs that these decide."""
    median_s: float | None
    """Median time of a ranking."""
    first_slot_rate: float | None
    """How often the answer shown first won."""
    first_slot_expected: float | None
    """How often it would by chance."""
    gold_asked: int
    """Gold questions answered."""
    gold_rate: float | None
    """Share of them with every pair right."""


@dataclass(frozen=True)
class Flagged:
    """One flag."""

    id: int
    """Number, for the next page."""
    candidate_set: int
    """The set, which an admin may retire."""
    annotator: str
    """Who flagged it."""
    prompt: str
    """The instruction."""
    completion: str
    """The answer that is meant, by its id, or empty."""
    reason: str
    """In a word."""
    text: str
    """In their words."""


@dataclass(frozen=True)
class Figures:
    """All of the Data tab but the lists. None where there is nothing to divide by."""

    counts: dict[str, int]
    """Rows: prompts, completions, sets, open places, rankings (by people), judged, pairs, flags
    that wait, battles."""
    last_hour: int
    """Rankings and revisions by people in the last hour."""
    by_day: list[tuple[str, int]]
    """Rankings of each of the last days that had any, oldest first."""
    first_slot_rate: float | None
    """How often the answer shown first won, ties shared, all-tied ones left out."""
    first_slot_expected: float | None
    """How often it would by chance."""
    gold_asked: int
    """Gold questions answered."""
    gold_rate: float | None
    """Share of them with every pair right."""
    median_s: float | None
    """Median time of a ranking."""
    agreement: Agreement
    """Between people, over the newest overlapping sets."""
    self_consistency: Agreement
    """Of people with themselves, over the newest repeats."""
    judges: list[tuple[str, Agreement]]
    """Of each judge, by name, with the person who was first to rank the same set."""
    people: list[Person]
    """Everybody, most rankings first."""


def progress(session: Session, annotator_id: int, now_ms: int) -> Progress:
    """Where an annotator stands."""
    sums = select(func.coalesce(func.sum(Tally.rankings), 0))
    own = sums.where(Tally.annotator_id == annotator_id)
    hour = select(Ranking.id).where(Ranking.created_ms > now_ms - _HOUR_MS)
    first = session.scalar(hour.order_by(Ranking.created_ms).limit(1))
    recent = select(func.count()).select_from(Assignment)
    recent = recent.where(Assignment.annotator_id == annotator_id, schema.condition(schema.DONE))
    sets = select(func.count()).select_from(CandidateSet)
    sets = sets.where(CandidateSet.target > 0, ~CandidateSet.retired)
    waiting = _open_sets(session)
    total = session.scalar(sets) or 0
    return Progress(
        mine=session.scalar(own) or 0,
        mine_today=session.scalar(own.where(Tally.day == day_of(now_ms))) or 0,
        mine_last_hour=session.scalar(recent.where(Assignment.ranking_id >= first)) or 0
        if first is not None
        else 0,
        all_rankings=session.scalar(_by_people(sums)) or 0,
        sets_ranked=total - waiting,
        sets=total,
    )


def figures(session: Session, now_ms: int) -> Figures:
    """All of the Data tab but the lists."""
    everybody = _people(session)
    people = [one for one in everybody if one.role != "judge"]
    sums = (Tally.decided, Tally.first_slot, Tally.first_slot_expected, Tally.gold_passed)
    decided, won, expected, passed = session.execute(
        _by_people(select(*(func.coalesce(func.sum(one), 0) for one in sums)))
    ).one()
    asked = sum(one.gold_asked for one in people)
    days = _by_people(select(Tally.day, func.sum(Tally.rankings)))
    days = days.group_by(Tally.day).having(func.sum(Tally.rankings) > 0)
    recent = select(func.count()).select_from(Ranking)
    recent = recent.join(Assignment, Assignment.id == Ranking.assignment_id)
    recent = recent.where(Assignment.kind != "judge")
    return Figures(
        counts={
            "prompts": _count(session, schema.Prompt),
            "completions": _count(session, schema.Completion),
            "sets": _count(session, CandidateSet),
            "open_places": _open_places(session),
            "rankings": sum(one.rankings for one in people),
            "judged": sum(one.rankings for one in everybody if one.role == "judge"),
            "pairs": sum(one.pairs for one in people),
            "flags": session.scalar(_WAITING) or 0,
            "battles": _count(session, schema.Battle),
        },
        last_hour=session.scalar(recent.where(Ranking.created_ms > now_ms - _HOUR_MS)) or 0,
        by_day=[
            (day, int(n))
            for day, n in reversed(
                session.execute(days.order_by(Tally.day.desc()).limit(DAYS)).all()
            )
        ],
        first_slot_rate=_share(won, decided),
        first_slot_expected=_share(expected, decided),
        gold_asked=asked,
        gold_rate=_share(passed, asked),
        median_s=_median(session, None),
        agreement=agreement(_overlapping(session)),
        self_consistency=agreement(_repeated(session)),
        judges=[
            (one.name, agreement(_judged(session, one.id)))
            for one in sorted(everybody, key=lambda one: one.id)
            if one.role == "judge"
        ],
        people=everybody,
    )


def flagged(session: Session, *, before: int | None = None, n: int = 50) -> list[Flagged]:
    """The newest flags that wait, or those before a number, for the next page."""
    found = (
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
        found = found.where(schema.Flag.id < before)
    return [
        Flagged(flag.id, own, name, prompt, flag.completion, flag.reason, flag.text)
        for flag, name, own, prompt in session.execute(found)
    ]


def _people(session: Session) -> list[Person]:
    names = ("rankings", "pairs", "decided", "first_slot", "first_slot_expected")
    sums = [getattr(Tally, name) for name in (*names, "gold_asked", "gold_passed")]
    found = session.execute(
        select(Annotator, *(func.coalesce(func.sum(one), 0) for one in sums))
        .outerjoin(Tally, Tally.annotator_id == Annotator.id)
        .group_by(Annotator.id)
    )
    people = [
        Person(
            id=who.id,
            name=who.name,
            role=who.role,
            active=who.active,
            rankings=int(rankings),
            pairs=int(pairs),
            median_s=_median(session, who.id),
            first_slot_rate=_share(won, decided),
            first_slot_expected=_share(expected, decided),
            gold_asked=int(asked),
            gold_rate=_share(passed, asked),
        )
        for who, rankings, pairs, decided, won, expected, asked, passed in found
    ]
    return sorted(people, key=lambda one: (-one.rankings, one.id))


def _by_people(query: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
    """The sums of people, not of judges."""
    return query.join(Annotator, Annotator.id == Tally.annotator_id).where(
        Annotator.role != "judge"
    )


def _median(session: Session, annotator_id: int | None) -> float | None:
    """The lower median of the times, of one annotator or of all, by walking half an index."""
    timed: list[ColumnElement[bool]] = [Assignment.duration_ms.is_not(None)]
    if annotator_id is not None:
        timed.append(Assignment.annotator_id == annotator_id)
    n = session.scalar(select(func.count()).select_from(Assignment).where(*timed)) or 0
    if not n:
        return None
    times = select(Assignment.duration_ms).where(*timed).order_by(Assignment.duration_ms)
    return (session.scalar(times.offset((n - 1) // 2).limit(1)) or 0) / 1000


def _overlapping(session: Session) -> Iterator[list[Any]]:
    """The orders that people made of each of the newest sets that several have ranked."""
    newest = (
        select(CandidateSet.id)
        .where(schema.condition(schema.OVERLAPPING))
        .order_by(CandidateSet.id.desc())
        .limit(LATEST)
    )
    found = session.execute(
        select(Assignment.candidate_set_id, Ranking.tiers)
        .join(Ranking, Ranking.id == Assignment.ranking_id)
        .where(Assignment.candidate_set_id.in_(newest.scalar_subquery()))
        .where(Assignment.kind == "task")
        .order_by(Assignment.id)
    )
    orders: dict[int, list[Any]] = {}
    for own, tiers in found:
        orders.setdefault(own, []).append(tiers)
    yield from orders.values()


def _repeated(session: Session) -> Iterator[list[Any]]:
    """The first and the second order of each of the newest repeats."""
    first, before, after = aliased(Assignment), aliased(Ranking), aliased(Ranking)
    found = session.execute(
        select(before.tiers, after.tiers)
        .select_from(Assignment)
        .join(after, after.id == Assignment.ranking_id)
        .join(first, first.id == Assignment.repeat_of)
        .join(before, before.id == first.ranking_id)
        .where(
            Assignment.kind == literal("repeat", literal_execute=True),
            Assignment.state == literal("done", literal_execute=True),
        )
        .order_by(Assignment.id.desc())
        .limit(LATEST)
    )
    yield from ([one, again] for one, again in found)


def _judged(session: Session, judge_id: int) -> list[list[Any]]:
    """A judge's order and the first person's of each of the newest sets that have both."""
    newest = (
        select(Assignment.candidate_set_id, Assignment.ranking_id)
        .where(Assignment.annotator_id == judge_id, schema.condition(schema.DONE))
        .order_by(Assignment.ranking_id.desc())
        .limit(JUDGED)
        .subquery()
    )
    judged, said = aliased(Ranking), aliased(Ranking)
    found = session.execute(
        select(Assignment.candidate_set_id, judged.tiers, said.tiers)
        .select_from(newest)
        .join(Assignment, Assignment.candidate_set_id == newest.c.candidate_set_id)
        .join(judged, judged.id == newest.c.ranking_id)
        .join(said, said.id == Assignment.ranking_id)
        .where(Assignment.kind == "task")
        .order_by(newest.c.ranking_id.desc(), Assignment.id)
    )
    orders: dict[int, list[Any]] = {}
    for own, by_judge, by_person in found:
        if own not in orders and len(orders) == LATEST:
            break
        orders.setdefault(own, [by_judge, by_person])
    return list(orders.values())


def _open_sets(session: Session) -> int:
    sets = select(func.count()).select_from(CandidateSet)
    return sum(
        session.scalar(sets.where(schema.condition(where))) or 0
        for where in (schema.FRESH, schema.SHARED)
    )


def _open_places(session: Session) -> int:
    places = select(func.sum(CandidateSet.target - CandidateSet.claimed))
    return sum(
        int(session.scalar(places.where(schema.condition(where))) or 0)
        for where in (schema.FRESH, schema.SHARED)
    )


def _count(session: Session, table: type[schema.Base]) -> int:
    return session.scalar(select(func.count()).select_from(table)) or 0


def _share(part: float | None, whole: float) -> float | None:
    return float(part or 0) / float(whole) if whole else None
