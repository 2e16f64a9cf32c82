"""Filling the queue: prompts, completions and frozen candidate sets, each there once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, cast

from sqlalchemy import Table, select
from sqlalchemy.orm import Session

from alpaca_rlhf.core.records import Completion, Instruction, content_hash
from alpaca_rlhf.preferences import schema
from alpaca_rlhf.preferences.assignment import (
    MAX_ANSWERS,
    MIN_ANSWERS,
    Candidates,
    Overlap,
    Tiers,
    distinct,
    places,
)
from alpaca_rlhf.preferences.stored_text import clean, stored_history
from alpaca_rlhf.preferences.upserts import inserting

_BATCH_PROMPTS = 500


def set_key(prompt_id: str, completion_ids: Iterable[str]) -> str:
    """The key of a candidate set, whatever the order of its completions."""
    return content_hash(prompt_id, *sorted(completion_ids))


def add_sets(
    session: Session,
    sets: Sequence[Candidates],
    *,
    now_ms: int,
    origin: str,
    overlap: Overlap,
    gold: Mapping[str, Tiers],
) -> int:
    """Add the candidate sets that are not there yet; returns how many are new.

    A set in which two completions have the same text has no places: people are shown each text
    once, and only judges rank it.

    Raises:
        ValueError: A set has too few or too many completions, two alike, or one of another prompt.
    """
    numbers = add_completions(session, sets, now_ms=now_ms)
    rows = {}
    for prompt, completions in sets:
        ids = [completion.id for completion in completions]
        if not MIN_ANSWERS <= len(ids) <= MAX_ANSWERS or len(set(ids)) != len(ids):
            raise ValueError(
                f"prompt {prompt.id}: a candidate set has {MIN_ANSWERS} to {MAX_ANSWERS} different "
                f"completions, got {len(set(ids))}"
            )
        key = set_key(prompt.id, ids)
        # A gold question's known order must be of exactly these completions.
        known = gold.get(prompt.id)
        if known is not None and sorted(key for tier in known for key in tier) != sorted(ids):
            raise ValueError(f"prompt {prompt.id}: its known order is of other completions")
        for_people = known is None and len(distinct(completions)) == len(completions)
        rows[key] = {
            "prompt_id": numbers[prompt.id],
            "completions": ids,
            "target": places(key, overlap) if for_people else 0,
            "claimed": 0,
            "verdicts": 0,
            "gold": None if known is None else [list(tier) for tier in known],
            "retired": False,
            "origin": origin,
            "created_ms": now_ms,
        }
    return _add(session, schema.CandidateSet, rows)


def add_completions(session: Session, sets: Sequence[Candidates], *, now_ms: int) -> dict[str, int]:
    """Add prompts and completions that are not there yet, for nobody to rank.

    Returns:
        The number of each prompt, by its id.

    Raises:
        ValueError: A completion answers another prompt.
    """
    prompts = {prompt.id: _prompt_columns(prompt, now_ms) for prompt, _ in sets}
    # Prompts first: completions refer to their numbers.
    numbers = _add_prompts(session, prompts)
    rows = {}
    for prompt, completions in sets:
        for completion in completions:
            if completion.prompt_id != prompt.id:
                raise ValueError(
                    f"completion {completion.id} answers {completion.prompt_id}, not {prompt.id}"
                )
            rows[completion.id] = _completion_columns(completion, numbers[prompt.id], now_ms)
    _add(session, schema.Completion, rows)
    return numbers


def answered(session: Session, prompts: Collection[str], adapter: str) -> set[str]:
    """Those of these prompts (by id) that have a candidate set with an answer by this adapter."""
    keys: set[str] = set()
    prompt_ids = list(prompts)
    for start in range(0, len(prompt_ids), _BATCH_PROMPTS):
        rows = session.execute(
            select(schema.Prompt.key, schema.Completion.key, schema.CandidateSet.completions)
            .join(schema.Completion, schema.Completion.prompt_id == schema.Prompt.id)
            .join(schema.CandidateSet, schema.CandidateSet.prompt_id == schema.Prompt.id)
            .where(schema.Prompt.key.in_(prompt_ids[start : start + _BATCH_PROMPTS]))
            .where(schema.Completion.adapter == adapter)
        )
        # Completions outside the set were added for nobody to rank, and do not count.
        keys |= {prompt for prompt, completion, of_set in rows if completion in of_set}
    return keys


def _add(session: Session, table: type[schema.Base], rows: Mapping[str, dict[str, Any]]) -> int:
    """Insert rows by their keys, passing over those that are there; returns how many were not."""
    if not rows:
        return 0
    target = cast(Table, table.__table__)
    # Always in the same order, so that two writers on PostgreSQL never wait for each other.
    values = [{"key": key, **rows[key]} for key in sorted(rows)]
    adding = inserting(session, target).on_conflict_do_nothing(index_elements=["key"])
    return len(session.execute(adding.returning(target.c.id), values).all())


def _add_prompts(session: Session, rows: Mapping[str, dict[str, Any]]) -> dict[str, int]:
    """Insert prompts that are not there yet; returns the number of each by its key."""
    _add(session, schema.Prompt, rows)
    numbers = select(schema.Prompt.key, schema.Prompt.id).where(schema.Prompt.key.in_(list(rows)))
    return {key: number for key, number in session.execute(numbers)}


def _prompt_columns(prompt: Instruction, now_ms: int) -> dict[str, Any]:
    return {
        "instruction": clean(prompt.instruction),
        "input": clean(prompt.input),
        "history": stored_history(prompt),
        "source": clean(prompt.source),
        "created_ms": now_ms,
    }


def _completion_columns(completion: Completion, prompt_number: int, now_ms: int) -> dict[str, Any]:
    return {
        "prompt_id": prompt_number,
        "text": clean(completion.text),
        "adapter": completion.adapter,
        "sampling": completion.sampling,
        "seed": completion.seed,
        "sample": completion.sample,
        "finish_reason": completion.finish_reason,
        "n_tokens": completion.n_tokens,
        "created_ms": now_ms,
    }
