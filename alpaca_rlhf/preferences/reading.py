"""The verdicts that count, read in order and in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import func, insert, or_, select
from sqlalchemy.orm import Session

from alpaca_rlhf.core.records import Completion as Record
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.preferences.audit import note
from alpaca_rlhf.preferences.queue import clean
from alpaca_rlhf.preferences.schema import (
    Annotator,
    Assignment,
    CandidateSet,
    Completion,
    Prompt,
    Ranking,
    Snapshot,
)

AT_ONCE = 1000
"""Rankings in memory at once."""


def verdicts(session: Session) -> Iterator[dict[str, Any]]:
    """The newest revision of every assignment, with its prompt and completions, oldest first.

    Repeats, gold questions and what was taken back are left out, and so are judges where a person
    has ranked the same set.
    """
    after = 0
    query = (
        select(
            Assignment.id,
            Annotator.name.label("annotator"),
            Prompt.instruction,
            Prompt.input,
            Prompt.history,
            Prompt.source,
            CandidateSet.completions,
            Ranking.revision,
            Ranking.tiers,
            Ranking.criteria,
            Ranking.all_bad,
            Ranking.comment,
            Ranking.input_method,
            Ranking.duration_ms,
            Ranking.created_ms,
        )
        .join(Ranking, Ranking.id == Assignment.ranking_id)
        .join(Annotator, Annotator.id == Assignment.annotator_id)
        .join(CandidateSet, CandidateSet.id == Assignment.candidate_set_id)
        .join(Prompt, Prompt.id == CandidateSet.prompt_id)
        .where(Assignment.kind.in_(["task", "judge"]))
        .where(or_(Assignment.kind == "task", CandidateSet.verdicts == 0))
        .order_by(Assignment.id)
        .limit(AT_ONCE)
    )
    while rows := session.execute(query.where(Assignment.id > after)).all():
        texts = _completions(session, {key for row in rows for key in row.completions})
        for row in rows:
            yield {**row._mapping, "completions": [texts[key] for key in row.completions]}
        after = rows[-1].id


def unjudged(
    session: Session, annotator: str, after: int
) -> list[tuple[int, Instruction, list[Record]]]:
    """The next sets, by number, that no person has ranked, nor this judge.

    Gold questions and what was taken out are left out.
    """
    own = (
        select(Assignment.candidate_set_id)
        .join(Annotator, Annotator.id == Assignment.annotator_id)
        .where(Annotator.name == clean(annotator), Assignment.ranking_id.is_not(None))
    )
    rows = session.execute(
        select(CandidateSet, Prompt)
        .join(Prompt, Prompt.id == CandidateSet.prompt_id)
        .where(CandidateSet.id > after, CandidateSet.verdicts == 0, ~CandidateSet.retired)
        .where(CandidateSet.gold.is_(None), CandidateSet.id.not_in(own))
        .order_by(CandidateSet.id)
        .limit(AT_ONCE)
    ).all()
    texts = _completions(session, {key for one, _ in rows for key in one.completions})
    found = []
    for one, asked in rows:
        prompt = Instruction(
            asked.instruction,
            asked.input,
            source=asked.source,
            history=tuple((user, reply) for user, reply in asked.history),
        )
        answers = [{**texts[key], "prompt_id": prompt.id} for key in one.completions]
        for answer in answers:
            answer.pop("id")
        found.append((one.id, prompt, [Record(**answer) for answer in answers]))
    return found


def settled(session: Session, prompts: list[str]) -> set[str]:
    """Those prompts, by key, of which a set has a verdict or was retired."""
    found: set[str] = set()
    query = (
        select(Prompt.key)
        .join(CandidateSet, CandidateSet.prompt_id == Prompt.id)
        .where(or_(CandidateSet.verdicts > 0, CandidateSet.retired))
    )
    for start in range(0, len(prompts), AT_ONCE):
        part = prompts[start : start + AT_ONCE]
        found.update(session.scalars(query.where(Prompt.key.in_(part))))
    return found


def newest(session: Session) -> int:
    """The highest number of a ranking."""
    return session.scalar(select(func.max(Ranking.id))) or 0


def note_snapshot(
    session: Session, path: str, max_ranking: int, rankings: int, sha256: str, now_ms: int
) -> None:
    """Enter an export that was written."""
    row = {"path": path, "max_ranking_id": max_ranking, "rankings": rankings, "sha256": sha256}
    session.execute(insert(Snapshot).values(row | {"created_ms": now_ms}))
    note(session, now_ms, "system", "export", f"snapshot:{sha256[:16]}", after=row)


def _completions(session: Session, keys: set[str]) -> dict[str, dict[str, Any]]:
    table = Completion
    names = ("text", "adapter", "sampling", "seed", "sample", "finish_reason", "n_tokens")
    columns = [getattr(table, name) for name in names]
    found = session.execute(select(table.key, *columns).where(table.key.in_(sorted(keys))))
    return {key: {"id": key, **dict(zip(names, own, strict=True))} for key, *own in found}
