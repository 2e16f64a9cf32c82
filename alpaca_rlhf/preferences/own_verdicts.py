"""An annotator's own verdicts, to be looked at and revised.

Nothing tells which of them answer gold questions or repeats: the list has no kinds, and a verdict
whose set was handed out again is left out while the repeat is open or done, so that no set stands
in it twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from alpaca_rlhf.preferences import schema
from alpaca_rlhf.preferences.schema import Assignment, CandidateSet, Completion, Prompt, Ranking


@dataclass(frozen=True)
class OwnVerdict:
    """One verdict of an annotator that stands."""

    task: int
    """The assignment, by which it is taken back."""
    ranking: int
    """Number; the next page begins before it."""
    prompt: str
    """The instruction."""
    best: Sequence[str]
    """Texts of the answers in the top tier."""
    tiers: Sequence[Sequence[int]]
    """The order, by the places in which the answers were shown, from 0."""
    comment: str
    """The remark with it."""
    all_bad: bool
    """True if no answer was acceptable."""
    at_ms: int
    """When, in milliseconds since 1970."""


def newest(
    session: Session, annotator_id: int, *, before: int | None = None, n: int = 20
) -> list[OwnVerdict]:
    """The newest verdicts of an annotator, or those before a number, for the next page.

    Args:
        session: A transaction.
        annotator_id: The annotator.
        before: Number of a verdict.
        n: Verdicts on a page.
    """
    repeated = select(Assignment.repeat_of).where(
        Assignment.annotator_id == annotator_id,
        Assignment.repeat_of.is_not(None),
        Assignment.state.in_(("open", "done")),
    )
    query = (
        select(Assignment, Ranking, Prompt.instruction)
        .join(Ranking, Ranking.id == Assignment.ranking_id)
        .join(CandidateSet, CandidateSet.id == Assignment.candidate_set_id)
        .join(Prompt, Prompt.id == CandidateSet.prompt_id)
        .where(Assignment.annotator_id == annotator_id, schema.condition(schema.DONE))
        .where(Assignment.id.not_in(repeated))
    )
    if before is not None:
        query = query.where(Assignment.ranking_id < before)
    rows = session.execute(query.order_by(Assignment.ranking_id.desc()).limit(n)).all()
    best_keys = {key for _, ranking, _ in rows for key in ranking.tiers[0]}
    best = select(Completion.key, Completion.text).where(Completion.key.in_(best_keys))
    texts = {key: text for key, text in session.execute(best)}
    verdicts = []
    for assignment, ranking, instruction in rows:
        places = {key: place for place, key in enumerate(assignment.shown_order)}
        verdicts.append(
            OwnVerdict(
                task=assignment.id,
                ranking=ranking.id,
                prompt=instruction,
                best=[texts[key] for key in ranking.tiers[0]],
                tiers=[[places[key] for key in tier] for tier in ranking.tiers],
                comment=ranking.comment,
                all_bad=ranking.all_bad,
                at_ms=ranking.created_ms,
            )
        )
    return verdicts
