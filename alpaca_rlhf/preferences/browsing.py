"""Browsing the candidate sets: found by what was said, and one of them with all that was said."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Select,
    Text,
    and_,
    cast,
    exists,
    func,
    or_,
    select,
)
from sqlalchemy.orm import Session

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.preferences import schema
from alpaca_rlhf.preferences.assignment import Refused, Tiers, as_tiers
from alpaca_rlhf.preferences.schema import (
    Annotator,
    Assignment,
    Audit,
    CandidateSet,
    Completion,
    Demonstration,
    Flag,
    Prompt,
    Ranking,
)
from alpaca_rlhf.preferences.stored_text import clean, restored_history

SetState = Literal["any", "ranked", "waiting", "skipped", "flagged", "commented", "left_out"]
"""States by which sets are filtered."""
STATES: tuple[SetState, ...] = get_args(SetState)
MAX_SEARCH_CHARS = 200
"""Characters of a search."""
_JSON_PUNCTUATION = frozenset("[], ")
"""Characters of a stored history that nobody wrote."""


@dataclass(frozen=True)
class SetFilter:
    """Conditions on candidate sets, all of which hold."""

    search: str = ""
    """Part of a prompt or its earlier turns, an answer, a comment, a flag or the reason for a skip;
    case is ignored (on SQLite, and in earlier turns, that of ASCII letters)."""
    state: SetState = "any"
    """State of the set."""
    annotator: str = ""
    """Name of somebody who ranked, skipped or flagged it; empty is anybody."""


@dataclass(frozen=True)
class ListedSet:
    """One candidate set in a list."""

    id: int
    """Number; the next page begins before it."""
    prompt: str
    """The instruction."""
    answers: int
    """Completions of the set."""
    verdicts: int
    """People whose verdict counts."""
    judged: int
    """Judges that have ranked it."""
    comments: int
    """Verdicts with a comment, earlier revisions included."""
    flags: int
    """Flags, resolved ones included."""
    skips: int
    """People who skipped it."""
    left_out: bool
    """True if no verdict on it counts."""
    retired: bool
    """True if nobody receives it any more."""
    gold: bool
    """True if it is a gold question."""


@dataclass(frozen=True)
class Answer:
    """One completion of an open set."""

    id: str
    """`Completion.id`."""
    text: str
    """The text."""
    adapter: str
    """Fingerprint of the adapter that wrote it."""
    cut: bool
    """True if it was cut at the length limit."""


@dataclass(frozen=True)
class Statement:
    """One thing that was said of a set."""

    kind: Literal["verdict", "earlier", "withdrawn", "skip", "flag"]
    """A verdict that stands, an earlier revision, one that was taken back, a skip, or a flag."""
    at_ms: int
    """When, in milliseconds since 1970."""
    annotator: str
    """Name of the person, or `judge:<name>`."""
    task_kind: str = "task"
    """`task`, `gold`, `repeat` or `judge`."""
    tiers: Tiers = ()
    """The order of a verdict, by completion id."""
    all_bad: bool = False
    """True if no answer was acceptable."""
    criteria: Mapping[str, Mapping[str, int]] | None = None
    """Stars by completion id and criterion."""
    text: str = ""
    """Comment, reason of a skip, or remark on a flag."""
    reason: str = ""
    """Reason of a flag, in a word."""
    completion: str = ""
    """Id of the flagged answer; empty for the prompt."""
    duration_s: float = 0.0
    """Seconds that a verdict took."""
    better: str = ""
    """A better answer that the annotator wrote."""
    guideline: int | None = None
    """Version of the guidelines that a person gave the verdict under."""


@dataclass(frozen=True)
class OpenedSet:
    """A candidate set with all that was said of it."""

    listed: ListedSet
    """The set as it stands in the list."""
    prompt: Instruction
    """The prompt, with its earlier turns."""
    origin: str
    """Source of the set, such as a run and its policy."""
    answers: Sequence[Answer]
    """Its completions."""
    gold: Tiers
    """The known order of a gold question; empty otherwise."""
    statements: Sequence[Statement]
    """All statements on it, oldest first."""


def listed(
    session: Session, filter_: SetFilter, *, before: int | None = None, n: int = 20
) -> list[ListedSet]:
    """The newest sets that meet the conditions, or those before a number, for the next page."""
    query = _rows().where(*_conditions(filter_))
    if before is not None:
        query = query.where(CandidateSet.id < before)
    rows = session.execute(query.order_by(CandidateSet.id.desc()).limit(n))
    return [_listed(row) for row in rows]


def opened(session: Session, number: int) -> OpenedSet:
    """One set with all that was said of it.

    Raises:
        Refused: `unknown`: there is no such set.
    """
    row = session.execute(_rows().where(CandidateSet.id == number)).first()
    if row is None:
        raise Refused("unknown", "there is no such set")
    candidate_set = session.get_one(CandidateSet, number)
    prompt = session.get_one(Prompt, candidate_set.prompt_id)
    texts = {
        completion.key: Answer(
            completion.key,
            completion.text,
            completion.adapter,
            completion.finish_reason == "length",
        )
        for completion in session.scalars(
            select(Completion).where(Completion.key.in_(candidate_set.completions))
        )
    }
    return OpenedSet(
        listed=_listed(row),
        prompt=Instruction(
            prompt.instruction,
            prompt.input,
            source=prompt.source,
            **restored_history(prompt.history),
        ),
        origin=candidate_set.origin,
        answers=[texts[key] for key in candidate_set.completions],
        gold=as_tiers(candidate_set.gold or []),
        statements=_statements(session, number),
    )


def _rows() -> Any:
    """A query of the columns of `ListedSet`."""

    def count(table: Any, *conditions: Any) -> Any:
        counted = select(func.count()).select_from(table)
        if table is not Assignment:
            counted = counted.join(Assignment, table.assignment_id == Assignment.id)
        of_set = Assignment.candidate_set_id == CandidateSet.id
        return counted.where(of_set, *conditions).correlate(CandidateSet).scalar_subquery()

    judged = and_(Assignment.kind == "judge", Assignment.ranking_id.is_not(None))
    comments = count(Ranking, Ranking.comment != "", ~Ranking.withdrawn)
    return select(
        CandidateSet,
        Prompt.instruction,
        count(Assignment, judged).label("judged"),
        comments.label("comments"),
        count(Flag).label("flags"),
        count(Assignment, Assignment.state == "skipped").label("skips"),
    ).join(Prompt, Prompt.id == CandidateSet.prompt_id)


def _listed(row: Any) -> ListedSet:
    candidate_set = row.CandidateSet
    return ListedSet(
        id=candidate_set.id,
        prompt=row.instruction,
        answers=len(candidate_set.completions),
        verdicts=candidate_set.verdicts,
        judged=row.judged,
        comments=row.comments,
        flags=row.flags,
        skips=row.skips,
        left_out=candidate_set.left_out,
        retired=candidate_set.retired,
        gold=candidate_set.gold is not None,
    )


def _conditions(filter_: SetFilter) -> list[ColumnElement[bool]]:
    of_set = Assignment.candidate_set_id == CandidateSet.id
    flagged = exists().where(of_set, Flag.assignment_id == Assignment.id)
    commented = exists().where(of_set, Ranking.assignment_id == Assignment.id)
    # 1. The state.
    by_state: dict[SetState, list[ColumnElement[bool]]] = {
        "any": [],
        "ranked": [CandidateSet.verdicts > 0],
        "waiting": [
            CandidateSet.verdicts < CandidateSet.target,
            schema.condition(schema.HANDED_OUT),
        ],
        "skipped": [exists().where(of_set, Assignment.state == "skipped")],
        "flagged": [flagged],
        "commented": [commented.where(Ranking.comment != "")],
        "left_out": [schema.condition(schema.LEFT_OUT)],
    }
    conditions = list(by_state[filter_.state])
    # 2. The person.
    if filter_.annotator:
        answered = or_(
            Assignment.ranking_id.is_not(None), Assignment.state.in_(["skipped", "flagged"])
        )
        by_name = Annotator.name == clean(filter_.annotator)
        person = exists().where(of_set, Annotator.id == Assignment.annotator_id, by_name, answered)
        conditions.append(person)
    # 3. The words.
    words = clean(filter_.search[:MAX_SEARCH_CHARS]).strip()
    if words:

        def contains(column: Any) -> ColumnElement[bool]:
            return column.icontains(words, autoescape=True)  # type: ignore[no-any-return]

        of_prompt = Completion.prompt_id == CandidateSet.prompt_id
        conditions.append(
            or_(
                contains(Prompt.instruction),
                contains(Prompt.input),
                *_in_earlier_turns(words),
                exists().where(of_prompt, contains(Completion.text)),
                commented.where(contains(Ranking.comment)),
                commented.where(
                    Demonstration.ranking_id == Ranking.id, contains(Demonstration.text)
                ),
                flagged.where(contains(Flag.text)),
                CandidateSet.id.in_(_skipped_because(words)),
            )
        )
    return conditions


def _in_earlier_turns(words: str) -> list[ColumnElement[bool]]:
    """The condition that the system text or an earlier turn contains some words.

    The column is JSON as text, so the words are looked for as JSON writes them.
    """
    if _JSON_PUNCTUATION.issuperset(words):
        return []
    escaped = json.dumps(words)[1:-1]
    return [cast(Prompt.history, Text).icontains(escaped, autoescape=True)]


def _skipped_because(words: str) -> Select[int]:
    """A query of the sets that somebody skipped for a reason that contains some words."""
    # The audit names its assignment as `assignment:12`.
    number = cast(func.substr(Audit.entity, len("assignment:") + 1), BigInteger)
    reason = cast(Audit.after["reason"].as_string(), Text)
    return (
        select(Assignment.candidate_set_id)
        .select_from(Audit)
        .join(Assignment, Assignment.id == number)
        .where(schema.condition(schema.SKIP), reason.icontains(words, autoescape=True))
    )


def _statements(session: Session, number: int) -> list[Statement]:
    # 1. Everybody who had the set.
    assignments = {
        row.id: row
        for row in session.execute(
            select(Assignment.id, Assignment.kind, Assignment.ranking_id, Annotator.name)
            .join(Annotator, Annotator.id == Assignment.annotator_id)
            .where(Assignment.candidate_set_id == number)
        )
    }
    statements = []
    # 2. Verdicts, every revision, with the better answers in them.
    rankings = (
        select(Ranking, Demonstration.text)
        .outerjoin(Demonstration, Demonstration.ranking_id == Ranking.id)
        .where(Ranking.assignment_id.in_(assignments))
    )
    for ranking, better in session.execute(rankings):
        assignment = assignments[ranking.assignment_id]
        stands = ranking.id == assignment.ranking_id
        statements.append(
            Statement(
                "verdict" if stands else "withdrawn" if ranking.withdrawn else "earlier",
                ranking.created_ms,
                assignment.name,
                task_kind=assignment.kind,
                tiers=as_tiers(ranking.tiers),
                all_bad=ranking.all_bad,
                criteria=ranking.criteria,
                text=ranking.comment,
                duration_s=ranking.duration_ms / 1000,
                better=better or "",
                guideline=ranking.guideline,
            )
        )
    # 3. Flags.
    for flag in session.scalars(select(Flag).where(Flag.assignment_id.in_(assignments))):
        assignment = assignments[flag.assignment_id]
        statements.append(
            Statement(
                "flag",
                flag.created_ms,
                assignment.name,
                task_kind=assignment.kind,
                text=flag.text,
                reason=flag.reason,
                completion=flag.completion,
            )
        )
    # 4. Skips.
    entities = {f"assignment:{key}": assignment for key, assignment in assignments.items()}
    skips = select(Audit.entity, Audit.at_ms, cast(Audit.after["reason"].as_string(), Text))
    skips = skips.where(schema.condition(schema.SKIP), Audit.entity.in_(entities))
    for entity, at_ms, reason in session.execute(skips):
        assignment = entities[entity]
        statements.append(
            Statement("skip", at_ms, assignment.name, task_kind=assignment.kind, text=reason or "")
        )
    return sorted(statements, key=lambda statement: statement.at_ms)
