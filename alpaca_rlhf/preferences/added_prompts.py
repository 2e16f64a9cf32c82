"""Prompts that an admin has added to those that people rank, beside those that the run dealt."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from sqlalchemy import delete, exists, select
from sqlalchemy.orm import Session

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.preferences.audit import note
from alpaca_rlhf.preferences.queue import add_completions
from alpaca_rlhf.preferences.schema import AddedPrompt, CandidateSet, Prompt
from alpaca_rlhf.preferences.stored_text import clean, restored_history

SOURCE = "upload"
"""`Instruction.source` of an added prompt."""
_UNANSWERED = (~exists().where(CandidateSet.prompt_id == Prompt.id),)
"""The condition on a prompt that it has no candidate set."""


def add(
    session: Session,
    prompts: Sequence[Instruction],
    *,
    actor: str,
    refused: Mapping[str, int],
    now_ms: int,
) -> int:
    """Add the prompts that are not there yet; returns how many are new.

    Args:
        session: A transaction that writes.
        prompts: Their outputs are not kept.
        actor: Who adds them.
        refused: How many others were refused, by reason, for the audit.
        now_ms: The server's clock.
    """
    # 1. The prompts themselves, which may be there without being ranked, e.g. of a thumb.
    rows = [_as_stored(prompt) for prompt in prompts]
    numbers = add_completions(session, [(row, ()) for row in rows], now_ms=now_ms)
    # 2. Their entries, in the order in which they were given.
    there = set(session.scalars(select(AddedPrompt.prompt_id)))
    new = [number for number in dict.fromkeys(numbers[row.id] for row in rows)
           if number not in there]  # fmt: skip
    session.add_all(
        AddedPrompt(prompt_id=number, author=actor, created_ms=now_ms) for number in new
    )
    # 3. One audit row for all of them.
    after = {"added": len(new), "refused": dict(refused)}
    note(session, now_ms, actor, "add_prompts", "added_prompt", after=after)
    return len(new)


def remove(session: Session, keys: Collection[str], *, actor: str, now_ms: int) -> int:
    """Take added prompts back that have no candidate set; returns how many.

    Their texts stay in the database, where nobody is asked to rank them.

    Args:
        session: A transaction that writes.
        keys: Their ids.
        actor: Who takes them back.
        now_ms: The server's clock.
    """
    of_keys = select(Prompt.id).where(Prompt.key.in_(keys), *_UNANSWERED)
    removal = delete(AddedPrompt).where(AddedPrompt.prompt_id.in_(of_keys))
    removed = session.scalars(removal.returning(AddedPrompt.prompt_id)).all()
    if removed:
        after = {"removed": len(removed), "prompts": sorted(removed)}
        note(session, now_ms, actor, "remove_prompts", "added_prompt", after=after)
    return len(removed)


def newest_last(session: Session, *, unanswered: bool = False) -> list[Instruction]:
    """All added prompts, in the order in which they were added.

    Args:
        session: A transaction.
        unanswered: Leave out those that have a candidate set.
    """
    query = select(Prompt).join(AddedPrompt, AddedPrompt.prompt_id == Prompt.id)
    if unanswered:
        query = query.where(*_UNANSWERED)
    return [
        Instruction(row.instruction, row.input, source=SOURCE, **restored_history(row.history))
        for row in session.scalars(query.order_by(AddedPrompt.id))
    ]


def _as_stored(prompt: Instruction) -> Instruction:
    """A prompt with the texts that the database can hold, so that it has the id of its answers."""
    return replace(
        prompt,
        instruction=clean(prompt.instruction),
        input=clean(prompt.input),
        output=None,
        source=SOURCE,
        history=tuple((clean(user), clean(reply)) for user, reply in prompt.history),
        system=clean(prompt.system),
        masked_replies=(),
    )
