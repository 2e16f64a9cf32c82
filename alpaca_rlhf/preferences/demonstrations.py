"""Better answers that people wrote: a top tier of their rankings, or replies edited in a chat.

An answer of a ranking belongs to one revision of a verdict, and counts while that revision does;
an edited reply counts until its author takes it back. Both are counted apart. No ranking that
a reward model is trained on has it: people's own words beside a model's would be told apart by
their style. A snapshot has them as instructions for a new run, and as pairs in a file of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from alpaca_rlhf.preferences import schema
from alpaca_rlhf.preferences.assignment import (
    MAX_BETTER_CHARS,
    BetterAnswer,
    Candidates,
    Refused,
)
from alpaca_rlhf.preferences.queue import add_completions
from alpaca_rlhf.preferences.schema import (
    Annotator,
    Assignment,
    CandidateSet,
    Completion,
    Demonstration,
    EditedReply,
    Prompt,
    Ranking,
)
from alpaca_rlhf.preferences.stored_text import clean
from alpaca_rlhf.preferences.upserts import say_of_reply


def check(session: Session, better: BetterAnswer, completions: Collection[str]) -> None:
    """Refuse a better answer that is one of the answers already.

    Raises:
        Refused: `same_answer`.
    """
    texts = select(Completion.text).where(Completion.key.in_(completions))
    if clean(better.text).strip() in {text.strip() for text in session.scalars(texts)}:
        raise Refused("same_answer", "the better answer is one of the answers, word for word")


def add(session: Session, ranking_id: int, better: BetterAnswer) -> None:
    """Keep the better answer of a verdict."""
    row = Demonstration(
        ranking_id=ranking_id, text=clean(better.text).strip(), edited_from=better.edited_from
    )
    session.add(row)


def of_ranking(session: Session, ranking_id: int) -> BetterAnswer | None:
    """The better answer of a verdict; None without one."""
    row = session.scalar(select(Demonstration).where(Demonstration.ranking_id == ranking_id))
    return None if row is None else BetterAnswer(row.text, row.edited_from)


def to_open_again(session: Session, assignment_id: int) -> BetterAnswer | None:
    """The better answer of the newest verdict on a task that was not an undo."""
    newest = (
        select(Ranking.id)
        .where(Ranking.assignment_id == assignment_id, ~Ranking.withdrawn)
        .order_by(Ranking.revision.desc())
        .limit(1)
    )
    ranking_id = session.scalar(newest)
    return None if ranking_id is None else of_ranking(session, ranking_id)


def count(session: Session) -> int:
    """The number of better answers that count."""
    edited = session.scalar(_counted_edited(func.count())) or 0
    return edited + (session.scalar(_counted(func.count())) or 0)


def counted(session: Session) -> Iterator[dict[str, Any]]:
    """The better answers that count, with their prompts and the answers that they surpass.

    Those of repeats and gold questions are left out, as their rankings are. The order is that of
    the sets' keys and the annotators' names, so that it depends on what was said alone; edited
    replies come last.
    """
    columns = (
        Demonstration.text,
        Prompt.instruction,
        Prompt.input,
        Prompt.history,
        CandidateSet.completions,
    )
    query = _counted(*columns).order_by(CandidateSet.key, Annotator.name)
    for row in session.execute(query):
        of_set = Completion.key.in_(row.completions)
        answers = select(Completion.key, Completion.text).where(of_set)
        texts = {key: text for key, text in session.execute(answers)}
        surpassed = [texts[key] for key in sorted(row.completions)]
        yield {**row._mapping, "surpassed": surpassed}
    query = _counted_edited(
        EditedReply.text,
        Prompt.instruction,
        Prompt.input,
        Prompt.history,
        Completion.text.label("original"),
    ).order_by(Completion.key, Annotator.name)
    for row in session.execute(query):
        yield {**row._mapping, "surpassed": [row.original]}


def keep_edited(
    session: Session, annotator_id: int, reply: Candidates, text: str | None, *, now_ms: int
) -> None:
    """Keep a reply of a chat as somebody edited it, in place of an earlier edit of theirs.

    Args:
        session: A transaction that writes.
        annotator_id: The account.
        reply: The prompt, and the reply before it was edited as its only completion.
        text: The edited text; None takes back what was kept.
        now_ms: The server's clock.

    Raises:
        Refused: `bad_value`: the text is empty or too long; `same_answer`: nothing was edited.
    """
    _, (completion,) = reply
    # 1. The text.
    if text is not None and not 0 < len(text.strip()) <= MAX_BETTER_CHARS:
        raise Refused("bad_value", f"a better answer has 1 to {MAX_BETTER_CHARS} characters")
    if text is not None and clean(text).strip() == clean(completion.text).strip():
        raise Refused("same_answer", "the better answer is the reply, word for word")
    # 2. The reply that it was made of.
    add_completions(session, [reply], now_ms=now_ms)
    completion_id = session.execute(
        select(Completion.id).where(Completion.key == completion.id)
    ).scalar_one()
    columns = None if text is None else {"text": clean(text).strip(), "created_ms": now_ms}
    say_of_reply(session, EditedReply, annotator_id, completion_id, columns)


def _counted_edited(*columns: Any) -> Any:
    """A query over the edited replies of those who are not left out."""
    return (
        select(*columns)
        .select_from(EditedReply)
        .join(Annotator, Annotator.id == EditedReply.annotator_id)
        .join(Completion, Completion.id == EditedReply.completion_id)
        .join(Prompt, Prompt.id == Completion.prompt_id)
        .where(~Annotator.left_out)
    )


def _counted(*columns: Any) -> Any:
    """A query over the better answers of the verdicts that count."""
    return (
        select(*columns)
        .select_from(Demonstration)
        .join(Assignment, Assignment.ranking_id == Demonstration.ranking_id)
        .join(Annotator, Annotator.id == Assignment.annotator_id)
        .join(CandidateSet, CandidateSet.id == Assignment.candidate_set_id)
        .join(Prompt, Prompt.id == CandidateSet.prompt_id)
        .where(Assignment.kind == "task", ~Annotator.left_out)
        .where(~schema.CandidateSet.left_out)
    )
