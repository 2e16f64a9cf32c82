"""Keeping verdicts: each one is a new revision of its assignment, and nothing is overwritten."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from sqlalchemy import Table, insert, select, update
from sqlalchemy.orm import Session

from alpaca_rlhf import __version__
from alpaca_rlhf.core.records import Ranking as Record
from alpaca_rlhf.preferences import assignment as rules
from alpaca_rlhf.preferences import claims, demonstrations, guidelines
from alpaca_rlhf.preferences.assignment import Refused, Saved, Verdict
from alpaca_rlhf.preferences.audit import note
from alpaca_rlhf.preferences.judges import JUDGE
from alpaca_rlhf.preferences.queue import set_key
from alpaca_rlhf.preferences.schema import Annotator, Assignment, CandidateSet, Ranking, Tally
from alpaca_rlhf.preferences.stored_text import clean
from alpaca_rlhf.preferences.upserts import inserting


@dataclass(frozen=True)
class _Entry:
    """A verdict about to be kept."""

    assignment: Assignment
    verdict: Verdict
    duration_ms: int
    judge_settings: str | None = None


def submit(
    session: Session,
    assignment_id: int,
    annotator_id: int,
    verdict: Verdict,
    *,
    revision: int,
    now_ms: int,
) -> Saved:
    """Keep a verdict. A revision that was kept before is reported so, and changes nothing.

    Raises:
        Refused: `unknown`, `not_yours`, `incomplete`, `bad_value`.
    """
    left_out = {annotator_id} if claims.is_left_out(session, annotator_id) else set[int]()
    assignment = claims.owned(session, assignment_id, annotator_id)
    # 1. A revision that was kept before: its response was lost, so it is given again.
    saved = session.scalar(
        select(Ranking).where(Ranking.assignment_id == assignment.id, Ranking.revision == revision)
    )
    if saved is not None:
        current = session.get(Ranking, assignment.ranking_id) if assignment.ranking_id else None
        counts = current is not None and _same(session, current, verdict)
        return Saved(saved.id, True, saved.duration_ms / 1000, counts=counts)
    if revision != assignment.next_revision:
        raise Refused("unknown", f"revision {revision} comes after {assignment.next_revision}")
    # 2. A verdict that puts each answer in one place, under guidelines that there are.
    rules.check(verdict, assignment.shown_order)
    if verdict.better is not None:
        demonstrations.check(session, verdict.better, assignment.shown_order)
    guidelines.check(session, verdict.guideline)
    # 3. Keep the verdict, with the time since the task was shown.
    duration_ms = max(0, now_ms - assignment.shown_ms)
    entry = _Entry(assignment, verdict, duration_ms)
    (ranking,) = _keep(session, [entry], now_ms, left_out=left_out)
    return Saved(ranking.id, False, duration_ms / 1000)


def _same(session: Session, ranking: Ranking, verdict: Verdict) -> bool:
    """True if a ranking says what a verdict says; how it was entered does not matter."""
    better = demonstrations.of_ranking(session, ranking.id)
    if (better.text if better else "") != (
        clean(verdict.better.text).strip() if verdict.better else ""
    ):
        return False
    kept = (rules.as_tiers(ranking.tiers), ranking.criteria, ranking.all_bad, ranking.comment)
    criteria = {key: dict(stars) for key, stars in verdict.criteria.items()}
    return kept == (verdict.tiers, criteria, verdict.all_bad, clean(verdict.comment))


def undo(
    session: Session, assignment_id: int, annotator_id: int, *, now_ms: int, until_ms: int
) -> None:
    """Withdraw a verdict by a further revision, and open its task again.

    Raises:
        Refused: `unknown`, `not_yours`, or `done` where there is nothing to take back.
    """
    left_out = claims.is_left_out(session, annotator_id)
    assignment = claims.owned(session, assignment_id, annotator_id)
    if assignment.state == "open" and assignment.next_revision > 0:
        return  # a second press of the button
    if assignment.ranking_id is None:
        raise Refused("done", "there is nothing to take back")
    # 1. Take the verdict out of the running sums and of its set's count.
    withdrawn = session.get_one(Ranking, assignment.ranking_id)
    _add_counted_sums(session, [(assignment, withdrawn, -1)])
    if assignment.kind == "task" and left_out:
        claims.take_after_all(session, assignment.candidate_set_id)  # an open task has a place
    elif assignment.kind == "task":
        _count_verdict(session, assignment.candidate_set_id, -1)
    # 2. Add a revision that withdraws it; the verdict itself stays.
    columns = {name: getattr(withdrawn, name) for name in _COLUMNS}
    columns |= {"withdrawn": True, "created_ms": now_ms, "revision": assignment.next_revision}
    session.execute(insert(Ranking).values(columns))
    assignment.next_revision += 1
    # 3. Open the task again.
    assignment.ranking_id = assignment.duration_ms = None
    assignment.state, assignment.lease_ms, assignment.shown_ms = "open", until_ms, now_ms
    _note(session, assignment, "undo", now_ms, {"revision": withdrawn.revision}, None)


def latest(session: Session, annotator_id: int) -> int | None:
    """The assignment that an annotator ranked last, which an undo takes back."""
    return session.scalar(
        select(Assignment.id)
        .where(Assignment.annotator_id == annotator_id, Assignment.state == "done")
        .order_by(Assignment.ranking_id.desc())
        .limit(1)
    )


def add(
    session: Session,
    rankings: Sequence[Record],
    *,
    now_ms: int,
    judge_settings: str | None = None,
) -> int:
    """Keep rankings that were made outside the app: a judge's, or a person's in the terminal.

    With `judge_settings`, a judge that has ranked a set under these settings before is not heard
    on it again, so that a replay adds nothing. Without, a ranking that repeats the annotator's
    current one adds nothing.

    Returns:
        How many rankings were added.

    Raises:
        ValueError: The completions of a ranking are not a candidate set.
    """
    # 1. The candidate set of each ranking, and its annotator.
    keys = [
        set_key(ranking.prompt_id, [key for tier in ranking.tiers for key in tier])
        for ranking in rankings
    ]
    sets = {
        row.key: row
        for row in session.execute(
            select(CandidateSet.key, CandidateSet.id, CandidateSet.completions).where(
                CandidateSet.key.in_(set(keys))
            )
        )
    }
    for key, ranking in zip(keys, rankings, strict=True):
        if key not in sets:
            raise ValueError(f"the completions of {ranking.prompt_id} are no candidate set")
    annotators = _annotator_ids(session, {ranking.annotator for ranking in rankings}, now_ms)
    left_out = {
        number for number in sorted(annotators.values()) if claims.is_left_out(session, number)
    }

    # 2. Its assignment, made where the annotator has never had the set.
    assignments = {
        (assignment.candidate_set_id, assignment.annotator_id): assignment
        for assignment in session.scalars(
            select(Assignment)
            .where(Assignment.candidate_set_id.in_([row.id for row in sets.values()]))
            .where(Assignment.annotator_id.in_(annotators.values()), Assignment.repeat == 0)
            .with_for_update()
        )
    }
    of_ranking = []
    for key, ranking in zip(keys, rankings, strict=True):
        place = sets[key].id, annotators[ranking.annotator]
        if place not in assignments:
            assignments[place] = Assignment(
                candidate_set_id=place[0],
                annotator_id=place[1],
                kind="judge" if ranking.annotator.startswith(JUDGE) else "task",
                repeat=0,
                shown_order=sets[key].completions,
                state="expired",
                lease_ms=now_ms,
                shown_ms=now_ms,
                next_revision=0,
            )
            session.add(assignments[place])
        of_ranking.append(assignments[place])
    session.flush()

    # 3. The rankings that say anything new.
    ids = [assignment.id for assignment in assignments.values()]
    replayed: set[int] = set()
    if judge_settings is not None:
        replayed |= set(
            session.scalars(
                select(Ranking.assignment_id).where(
                    Ranking.assignment_id.in_(ids), Ranking.judge_settings == judge_settings
                )
            )
        )
    current: dict[int, Any] = {
        row.assignment_id: (rules.as_tiers(row.tiers), row.criteria)
        for row in session.execute(
            select(Ranking.assignment_id, Ranking.tiers, Ranking.criteria)
            .join(Assignment, Assignment.ranking_id == Ranking.id)
            .where(Assignment.id.in_(ids))
        )
    }
    entries = []
    for assignment, ranking in zip(of_ranking, rankings, strict=True):
        content = (ranking.tiers, ranking.criteria)
        if judge_settings is None:
            known = current.get(assignment.id) == content
        else:
            known = assignment.id in replayed
        if known:
            continue
        # A later ranking of this call may repeat this one.
        replayed.add(assignment.id)
        current[assignment.id] = content
        verdict = Verdict(ranking.tiers, ranking.criteria)
        duration_ms = round(ranking.duration_s * 1000)
        entries.append(_Entry(assignment, verdict, duration_ms, judge_settings))
    _keep(session, entries, now_ms, left_out=left_out)
    return len(entries)


def skip(session: Session, annotator: str, key: str, *, reason: str, now_ms: int) -> None:
    """Keep that a person skipped a set outside the app, unless they have ranked it.

    Raises:
        ValueError: There is no candidate set of this key.
    """
    candidate_set = session.scalar(select(CandidateSet).where(CandidateSet.key == key))
    if candidate_set is None:
        raise ValueError(f"there is no candidate set {key}")
    annotator_id = _annotator_ids(session, {annotator}, now_ms)[annotator]
    assignment = session.scalar(
        select(Assignment)
        .where(Assignment.candidate_set_id == candidate_set.id, Assignment.repeat == 0)
        .where(Assignment.annotator_id == annotator_id)
        .with_for_update()
    )
    if assignment is None:
        assignment = Assignment(
            candidate_set_id=candidate_set.id,
            annotator_id=annotator_id,
            kind="task",
            repeat=0,
            shown_order=candidate_set.completions,
            state="expired",
            lease_ms=now_ms,
            shown_ms=now_ms,
            next_revision=0,
        )
        session.add(assignment)
        session.flush()
    claims.leave(session, assignment, "skipped")
    _note(session, assignment, "skip", now_ms, None, {"reason": clean(reason)} if reason else None)


def day_of(at_ms: int) -> str:
    """The day of a time, in UTC, as 2026-11-23."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d")


_COLUMNS = [column.name for column in cast(Table, Ranking.__table__).columns if column.name != "id"]
_SUMS: Sequence[str] = [column.name for column in cast(Table, Tally.__table__).columns][2:]


def _annotator_ids(session: Session, names: Iterable[str], now_ms: int) -> dict[str, int]:
    """The number of each annotator by name; who is unknown is added, unable to sign in."""
    numbers: dict[str, int] = {}
    for name in sorted(names):
        number = session.scalar(select(Annotator.id).where(Annotator.name == clean(name)))
        if number is None:
            columns = {
                "name": clean(name),
                "password_hash": "",
                "role": "judge" if name.startswith(JUDGE) else "annotator",
                "lang": "en",
                "active": False,
                "created_ms": now_ms,
            }
            adding = insert(Annotator).values(columns).returning(Annotator.id)
            number = session.execute(adding).scalar_one()
        numbers[name] = number
    return numbers


def _keep(
    session: Session, entries: Sequence[_Entry], now_ms: int, *, left_out: Collection[int]
) -> list[Ranking]:
    """Add a revision for each entry, which becomes the current one; returns the new rows.

    Verdicts of annotators who are `left_out` are kept, but take no place in their sets.
    """
    old_ids = {entry.assignment.ranking_id for entry in entries} - {None}
    old_rows = session.scalars(select(Ranking).where(Ranking.id.in_(old_ids))) if old_ids else ()
    current = {ranking.assignment_id: ranking for ranking in old_rows}

    # 1. The revisions.
    changes: list[tuple[Assignment, Ranking | None, Ranking]] = []
    for entry in entries:
        assignment, verdict = entry.assignment, entry.verdict
        ranking = Ranking(
            assignment_id=assignment.id,
            revision=assignment.next_revision,
            withdrawn=False,
            tiers=[list(tier) for tier in verdict.tiers],
            criteria={key: dict(stars) for key, stars in verdict.criteria.items()},
            all_bad=verdict.all_bad,
            blind=verdict.blind,
            comment=clean(verdict.comment),
            input_method=verdict.input_method,
            app_version=__version__,
            duration_ms=entry.duration_ms,
            created_ms=now_ms,
            judge_settings=entry.judge_settings,
            guideline=verdict.guideline,
        )
        changes.append((assignment, current.get(assignment.id), ranking))
        current[assignment.id] = ranking
        assignment.next_revision += 1
    session.add_all(ranking for _, _, ranking in changes)
    session.flush()
    for entry, (_, _, ranking) in zip(entries, changes, strict=True):
        if entry.verdict.better is not None:
            demonstrations.add(session, ranking.id, entry.verdict.better)

    # 2. The running sums: what each annotator said before comes out, the new verdict goes in.
    replaced = [(assignment, old, -1) for assignment, old, _ in changes if old is not None]
    added = [(assignment, new, 1) for assignment, _, new in changes]
    _add_counted_sums(session, [*replaced, *added])

    # 3. The places of people, the current revision, and the audit.
    for assignment, old, ranking in changes:
        if old is None and assignment.kind == "task":
            set_id, is_open = assignment.candidate_set_id, assignment.state == "open"
            if assignment.annotator_id in left_out:
                if is_open:
                    claims.give_back(session, set_id)
            else:
                if not is_open:
                    claims.take_after_all(session, set_id)
                _count_verdict(session, set_id, 1)
        assignment.ranking_id = ranking.id
        assignment.duration_ms = ranking.duration_ms or None  # judges and files report no time
        assignment.state = "done"
        before = None if old is None else {"revision": old.revision}
        after = {"revision": ranking.revision, "ranking": ranking.id}
        _note(session, assignment, "submit", now_ms, before, after)
    session.flush()
    return [ranking for _, _, ranking in changes]


def _note(
    session: Session,
    assignment: Assignment,
    action: str,
    now_ms: int,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
) -> None:
    actor, entity = f"annotator:{assignment.annotator_id}", f"assignment:{assignment.id}"
    note(session, now_ms, actor, action, entity, before=before, after=after)


def _count_verdict(session: Session, set_id: int, sign: int) -> None:
    """Count a person's verdict in its candidate set, or take it out again."""
    session.execute(
        update(CandidateSet)
        .where(CandidateSet.id == set_id)
        .values(verdicts=CandidateSet.verdicts + sign)
    )


def _add_counted_sums(session: Session, changes: Sequence[tuple[Assignment, Ranking, int]]) -> None:
    """Add verdicts to the running sums, apart from those on sets that are left out."""
    sets = {assignment.candidate_set_id for assignment, _, _ in changes}
    # Locked, so that a set which is left out just now has all its verdicts taken out.
    query = select(CandidateSet.id, CandidateSet.left_out).where(CandidateSet.id.in_(sets))
    query = query.order_by(CandidateSet.id).with_for_update(read=True, key_share=True)
    left_out = {set_id for set_id, is_left_out in session.execute(query) if is_left_out}
    add_sums(session, [row for row in changes if row[0].candidate_set_id not in left_out])


def add_sums(session: Session, changes: Sequence[tuple[Assignment, Ranking, int]]) -> None:
    """Add verdicts (sign 1) to the running sums of their annotators and days, or take them out."""
    totals: dict[tuple[int, str], Counter[str]] = defaultdict(Counter)
    for assignment, ranking, sign in changes:
        # A repeat measures self-consistency; as a ranking it would count twice.
        if assignment.kind == "repeat":
            continue
        sums = totals[assignment.annotator_id, day_of(ranking.created_ms)]
        for name, count in _sums_of(session, assignment, ranking).items():
            sums[name] += sign * count  # type: ignore[assignment]
    table = cast(Table, Tally.__table__)
    for (annotator_id, day), sums in sorted(totals.items()):
        columns: dict[str, Any] = {name: sums[name] for name in _SUMS}
        session.execute(
            inserting(session, table)
            .values(columns | {"annotator_id": annotator_id, "day": day})
            .on_conflict_do_update(
                index_elements=["annotator_id", "day"],
                set_={name: table.c[name] + count for name, count in columns.items()},
            )
        )


def _sums_of(session: Session, assignment: Assignment, ranking: Ranking) -> dict[str, float]:
    """The part of one verdict in the running sums."""
    if assignment.kind == "gold":
        known = session.scalar(
            select(CandidateSet.gold).where(CandidateSet.id == assignment.candidate_set_id)
        )
        return {"gold_asked": 1, "gold_passed": rules.passes(known or [], ranking.tiers)}
    won, expected = rules.first_slot(assignment.shown_order, ranking.tiers)
    return {
        "rankings": 1,
        "pairs": rules.pairs(ranking.tiers),
        "decided": expected > 0,
        "first_slot": won,
        "first_slot_expected": expected,
    }
