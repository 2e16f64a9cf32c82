"""Filling the queue: prompts, completions and frozen candidate sets, each there once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, cast

from sqlalchemy import Table, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from alpaca_rlhf.core.records import Completion, Instruction, content_hash
from alpaca_rlhf.preferences import schema
from alpaca_rlhf.preferences.assignment import FEWEST, MOST, Tiers, places

Candidates = tuple[Instruction, Sequence[Completion]]
"""A prompt and the completions to put in order."""


def set_key(prompt_id: str, completion_ids: Iterable[str]) -> str:
    """What a candidate set is known by, whatever the order of its completions."""
    return content_hash(prompt_id, *sorted(completion_ids))


def add_sets(
    session: Session,
    rows: Sequence[Candidates],
    *,
    now_ms: int,
    origin: str,
    second_share: float,
    gold: Mapping[str, Tiers],
    for_people: bool = True,
) -> int:
    """Add what is not there yet; returns how many sets are new.

    Raises:
        ValueError: A set has too few or too many completions, two alike, or one of another prompt.
    """
    numbers = add_completions(session, rows, now_ms=now_ms)
    sets = {}
    for prompt, own in rows:
        ids = [one.id for one in own]
        if not FEWEST <= len(ids) <= MOST or len(set(ids)) != len(ids):
            raise ValueError(
                f"prompt {prompt.id}: a candidate set has {FEWEST} to {MOST} different "
                f"completions, got {len(set(ids))}"
            )
        key = set_key(prompt.id, ids)
        known = gold.get(prompt.id)
        if known is not None and sorted(one for tier in known for one in tier) != sorted(ids):
            raise ValueError(f"prompt {prompt.id}: its known order is of other completions")
        sets[key] = {
            "prompt_id": numbers[prompt.id],
            "completions": ids,
            "target": places(key, second_share) if known is None and for_people else 0,
            "claimed": 0,
            "verdicts": 0,
            "gold": None if known is None else [list(tier) for tier in known],
            "retired": False,
            "origin": origin,
            "created_ms": now_ms,
        }
    return _add(session, schema.CandidateSet, sets)


def add_completions(session: Session, rows: Sequence[Candidates], *, now_ms: int) -> dict[str, int]:
    """Add prompts and completions that are not there yet, for nobody to rank.

    Returns:
        The number of each prompt, by its id.

    Raises:
        ValueError: A completion answers another prompt.
    """
    prompts = {prompt.id: _prompt(prompt, now_ms) for prompt, _ in rows}
    numbers = _numbered(session, schema.Prompt, prompts)
    completions = {}
    for prompt, own in rows:
        for one in own:
            if one.prompt_id != prompt.id:
                raise ValueError(f"completion {one.id} answers {one.prompt_id}, not {prompt.id}")
            completions[one.id] = _completion(one, numbers[prompt.id], now_ms)
    _add(session, schema.Completion, completions)
    return numbers


def answered(session: Session, prompts: Collection[str], adapter: str) -> set[str]:
    """Those of these prompts (by id) that have a candidate set with an answer by this adapter."""
    found: set[str] = set()
    wanted = list(prompts)
    for start in range(0, len(wanted), 500):
        rows = session.execute(
            select(schema.Prompt.key, schema.Completion.key, schema.CandidateSet.completions)
            .join(schema.Completion, schema.Completion.prompt_id == schema.Prompt.id)
            .join(schema.CandidateSet, schema.CandidateSet.prompt_id == schema.Prompt.id)
            .where(schema.Prompt.key.in_(wanted[start : start + 500]))
            .where(schema.Completion.adapter == adapter)
        )
        found |= {prompt for prompt, one, own in rows if one in own}
    return found


def clean(text: str) -> str:
    """A text as any database can hold it: no zero bytes, no half characters."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def _add(session: Session, table: type[schema.Base], rows: Mapping[str, dict[str, Any]]) -> int:
    """Insert rows by their keys, passing over those that are there; returns how many were not."""
    if not rows:
        return 0
    target = cast(Table, table.__table__)
    values = [{"key": key, **rows[key]} for key in sorted(rows)]  # one order: no deadlock
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    adding = dialect.insert(target).on_conflict_do_nothing(index_elements=["key"])
    return len(session.execute(adding.returning(target.c.id), values).all())


def _numbered(
    session: Session, table: type[schema.Prompt], rows: Mapping[str, dict[str, Any]]
) -> dict[str, int]:
    _add(session, table, rows)
    found = session.execute(select(table.key, table.id).where(table.key.in_(list(rows))))
    return {key: number for key, number in found}


def _prompt(prompt: Instruction, now_ms: int) -> dict[str, Any]:
    return {
        "instruction": clean(prompt.instruction),
        "input": clean(prompt.input),
        "history": [[clean(user), clean(reply)] for user, reply in prompt.history],
        "source": clean(prompt.source),
        "created_ms": now_ms,
    }


def _completion(one: Completion, prompt: int, now_ms: int) -> dict[str, Any]:
    return {
        "prompt_id": prompt,
        "text": clean(one.text),
        "adapter": one.adapter,
        "sampling": one.sampling,
        "seed": one.seed,
        "sample": one.sample,
        "finish_reason": one.finish_reason,
        "n_tokens": one.n_tokens,
        "created_ms": now_ms,
    }
