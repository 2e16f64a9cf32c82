"""Queries over the verdicts that count, in bounded memory and in an order that is always the same.

The rule that people outrank judges stands here and nowhere else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import Select, and_, case, exists, func, insert, not_, or_, select
from sqlalchemy.orm import Session, aliased

from alpaca_rlhf.core.records import Completion as Record
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.preferences.assignment import Candidates, distinct_keys
from alpaca_rlhf.preferences.audit import note
from alpaca_rlhf.preferences.judges import JudgeIdentity
from alpaca_rlhf.preferences.queue import set_key
from alpaca_rlhf.preferences.schema import (
    Annotator,
    Assignment,
    CandidateSet,
    Completion,
    Prompt,
    Ranking,
    Snapshot,
)
from alpaca_rlhf.preferences.standing import Standing, Status
from alpaca_rlhf.preferences.stored_text import clean, restored_history

BATCH_SETS = 1000
"""Candidate sets in memory at once."""


def verdicts(session: Session, judge: JudgeIdentity | None = None) -> Iterator[dict[str, Any]]:
    """The newest revision of every assignment with its prompt and completions.

    They come in the order of the candidate sets' keys, which are hashes of what was ranked, and
    within a set of the annotators' names: the same verdicts give the same rows in the same order,
    whenever and in whatever order they arrived. Repeats, gold questions and withdrawn verdicts are
    left out, and so are annotators and sets that an admin has left out, and judges where a person
    has ranked the same answers.

    Args:
        session: A transaction that reads.
        judge: Of this judge the revision made under these settings is taken, if there is one.
    """
    # Only assignments with a current verdict, of people and of judges.
    annotators_left_out = select(Annotator.id).where(Annotator.left_out)
    counts = and_(
        Assignment.ranking_id.is_not(None),
        Assignment.kind.in_(["task", "judge"]),
        Assignment.annotator_id.not_in(annotators_left_out),
    )
    page = (
        select(CandidateSet.key)
        .where(exists().where(Assignment.candidate_set_id == CandidateSet.id, counts))
        .where(~CandidateSet.left_out)
        .order_by(CandidateSet.key)
        .limit(BATCH_SETS)
    )
    query = (
        select(
            Assignment.id,
            Assignment.kind,
            Annotator.name.label("annotator"),
            Prompt.key.label("prompt"),
            Prompt.instruction,
            Prompt.input,
            Prompt.history,
            Prompt.source,
            CandidateSet.key.label("set"),
            CandidateSet.completions,
            CandidateSet.verdicts,
            Ranking.revision,
            Ranking.tiers,
            Ranking.criteria,
            Ranking.all_bad,
            Ranking.comment,
            Ranking.input_method,
            Ranking.duration_ms,
            Ranking.created_ms,
            Ranking.guideline,
        )
        .select_from(Assignment)
        .join(Annotator, Annotator.id == Assignment.annotator_id)
        .join(Ranking, Ranking.id == _ranking_of(judge))
        .join(CandidateSet, CandidateSet.id == Assignment.candidate_set_id)
        .join(Prompt, Prompt.id == CandidateSet.prompt_id)
        .where(counts)
    )
    after = ""
    # One page of sets at a time, by their keys: other sets may be added meanwhile.
    while keys := session.scalars(page.where(CandidateSet.key > after)).all():
        rows = session.execute(query.where(CandidateSet.key.in_(keys))).all()
        completions = _completions(session, {key for row in rows for key in row.completions})
        outranked = _outranked(session, rows, completions)
        for row in sorted(rows, key=lambda row: (row.set, row.annotator)):
            if row.kind == "task" or row.set not in outranked:
                columns = dict(row._mapping)
                columns["completions"] = [completions[key] for key in row.completions]
                yield columns
        after = keys[-1]


def _ranking_of(judge: JudgeIdentity | None) -> Any:
    """The number of the revision that counts of an assignment."""
    if judge is None:
        return Assignment.ranking_id
    revision = aliased(Ranking)
    under_settings = (
        select(func.max(revision.id))
        .where(revision.assignment_id == Assignment.id)
        .where(revision.judge_settings == judge.settings)
        .where(Annotator.name == clean(judge.annotator))
        .scalar_subquery()
        .correlate(Assignment, Annotator)
    )
    # Other annotators, and a judge without a verdict under these settings: the current revision.
    return func.coalesce(under_settings, Assignment.ranking_id)


def _outranked(
    session: Session, rows: Sequence[Any], completions: dict[str, dict[str, Any]]
) -> set[str]:
    """Keys of the sets on which judges do not count, because a person ranked the same answers.

    People see every answer once. So where two completions of a set have the same text, a person has
    ranked the same answers in the set of the distinct ones.
    """
    outranked = {row.set for row in rows if row.verdicts > 0}
    # For a judged set with repeated texts, the key of the set that people are shown instead.
    distinct_set = {}
    for row in rows:
        if row.kind == "judge" and row.set not in outranked:
            texts = [completions[key]["text"] for key in row.completions]
            distinct = distinct_keys(row.completions, texts)
            if len(distinct) < len(row.completions):
                distinct_set[row.set] = set_key(row.prompt, distinct)
    ranked = ranked_sets(session, distinct_set.values())
    return outranked | {key for key, shown_key in distinct_set.items() if shown_key in ranked}


def ranked_sets(session: Session, keys: Iterable[str]) -> set[str]:
    """Those of these candidate sets, by key, that a person has ranked."""
    sorted_keys = sorted(set(keys))
    ranked: set[str] = set()
    # In parts, since a database limits the parameters of one statement.
    for start in range(0, len(sorted_keys), BATCH_SETS):
        part = sorted_keys[start : start + BATCH_SETS]
        ranked.update(
            session.scalars(
                select(CandidateSet.key).where(
                    CandidateSet.key.in_(part), CandidateSet.verdicts > 0
                )
            )
        )
    return ranked


def unjudged(session: Session, judge: JudgeIdentity, after: int) -> list[tuple[int, Candidates]]:
    """The next sets, by number, that no person has ranked, nor this judge under these settings.

    Gold questions, closed sets, and sets that nobody is asked about are left out. Verdicts of
    earlier versions name no settings and count as made under any.
    """
    judged = (
        select(Assignment.candidate_set_id)
        .join(Annotator, Annotator.id == Assignment.annotator_id)
        .join(Ranking, Ranking.assignment_id == Assignment.id)
        .where(Annotator.name == clean(judge.annotator))
        .where(or_(Ranking.judge_settings == judge.settings, Ranking.judge_settings.is_(None)))
    )
    rows = session.execute(
        select(CandidateSet, Prompt)
        .join(Prompt, Prompt.id == CandidateSet.prompt_id)
        .where(CandidateSet.id > after, CandidateSet.verdicts == 0)
        .where(~CandidateSet.retired, ~CandidateSet.left_out)
        .where(CandidateSet.target > 0, CandidateSet.id.not_in(judged))
        .order_by(CandidateSet.id)
        .limit(BATCH_SETS)
    ).all()
    completions = _completions(
        session, {key for candidate_set, _ in rows for key in candidate_set.completions}
    )
    sets: list[tuple[int, Candidates]] = []
    for candidate_set, row in rows:
        prompt = Instruction(
            row.instruction,
            row.input,
            source=row.source,
            **restored_history(row.history),
        )
        records = []
        for key in candidate_set.completions:
            columns = {name: value for name, value in completions[key].items() if name != "id"}
            records.append(Record(prompt_id=prompt.id, **columns))
        sets.append((candidate_set.id, (prompt, records)))
    return sets


def ranked_by(session: Session, annotator: str, keys: Sequence[str]) -> list[str]:
    """Those of these candidate sets, by key, that an annotator has ranked, the last one last."""
    query = (
        select(CandidateSet.key, Assignment.ranking_id)
        .join(Assignment, Assignment.candidate_set_id == CandidateSet.id)
        .join(Annotator, Annotator.id == Assignment.annotator_id)
        .where(Annotator.name == clean(annotator), Assignment.repeat == 0)
        .where(Assignment.ranking_id.is_not(None))
    )
    rows: list[tuple[int, str]] = []
    for start in range(0, len(keys), BATCH_SETS):
        part = keys[start : start + BATCH_SETS]
        rows += [
            (ranking_id or 0, key)
            for key, ranking_id in session.execute(query.where(CandidateSet.key.in_(part)))
        ]
    # Rankings are numbered in the order in which they were made.
    return [key for _, key in sorted(rows)]


def statuses(session: Session, prompts: Sequence[str], now_ms: int) -> dict[str, Status]:
    """The status of each prompt, by id; one without a candidate set waits."""
    query = _by_prompt(now_ms).add_columns(func.max(Prompt.key).label("key"))
    query = query.join(Prompt, Prompt.id == CandidateSet.prompt_id)
    by_prompt: dict[str, Status] = dict.fromkeys(prompts, "waiting")
    for start in range(0, len(prompts), BATCH_SETS):
        part = prompts[start : start + BATCH_SETS]
        for row in session.execute(query.where(Prompt.key.in_(part))):
            by_prompt[row.key] = _status(row)
    return by_prompt


def standing(session: Session, now_ms: int) -> Standing:
    """The standing of all prompts of the database that are there for people to rank."""
    by_prompt = _by_prompt(now_ms).subquery()
    columns = (by_prompt.c.ranked, by_prompt.c.waiting, by_prompt.c.skipped)
    counts: Counter[str] = Counter()
    for row in session.execute(select(*columns, func.count().label("prompts")).group_by(*columns)):
        counts[_status(row)] += row.prompts
    return Standing(**counts)


def newest(session: Session) -> int:
    """The highest number of a ranking."""
    return session.scalar(select(func.max(Ranking.id))) or 0


def note_snapshot(
    session: Session, path: str, max_ranking: int, rankings: int, sha256: str, now_ms: int
) -> None:
    """Enter an export that was written."""
    columns = {"path": path, "max_ranking_id": max_ranking, "rankings": rankings, "sha256": sha256}
    session.execute(insert(Snapshot).values(columns | {"created_ms": now_ms}))
    note(session, now_ms, "system", "export", f"snapshot:{sha256[:16]}", after=columns)


def _completions(session: Session, keys: set[str]) -> dict[str, dict[str, Any]]:
    names = ("text", "adapter", "sampling", "seed", "sample", "finish_reason", "n_tokens")
    columns = [getattr(Completion, name) for name in names]
    rows = session.execute(select(Completion.key, *columns).where(Completion.key.in_(sorted(keys))))
    return {key: {"id": key, **dict(zip(names, fields, strict=True))} for key, *fields in rows}


def _by_prompt(now_ms: int) -> Select[Any]:
    """For each prompt: is a set of it ranked, does one wait, was one skipped?"""
    of_set = and_(Assignment.candidate_set_id == CandidateSet.id, Assignment.kind == "task")
    skipped = exists().where(of_set, Assignment.state.in_(["skipped", "flagged"]))
    held = exists().where(of_set, Assignment.state == "open", Assignment.lease_ms >= now_ms)
    given_up = and_(skipped, not_(held))
    ranked = and_(CandidateSet.verdicts > 0, not_(CandidateSet.left_out))
    # Of a ranked prompt nothing else is asked, so its assignments need not be looked at.
    open_ = and_(not_(ranked), not_(CandidateSet.retired), not_(CandidateSet.left_out))

    def any_set(condition: Any) -> Any:
        return func.max(case((condition, 1), else_=0))

    return (
        select(
            any_set(ranked).label("ranked"),
            any_set(and_(open_, not_(given_up))).label("waiting"),
            any_set(and_(open_, given_up)).label("skipped"),
        )
        .where(CandidateSet.gold.is_(None))
        # Sets without places are ranked by judges alone.
        .where(or_(CandidateSet.target > 0, CandidateSet.verdicts > 0))
        .group_by(CandidateSet.prompt_id)
    )


def _status(row: Any) -> Status:
    if row.ranked:
        return "ranked"
    if row.waiting:
        return "waiting"
    return "skipped" if row.skipped else "closed"
