"""Self-instruct: a teacher writes new tasks after the pattern of a few (arXiv 2212.10560).

Every answered request becomes one event, with the reply and all rows kept and dropped, before
anything else happens. Everything else is derived from the events: running again decides on them
anew, one at a time, checks that it comes to the same, and goes on with the next request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data.generation.decisions import Check, Decisions
from alpaca_rlhf.data.generation.events import SEGMENT_BYTES, Event, EventStore, read_events
from alpaca_rlhf.data.generation.filters import Drop, Rule, rule_set
from alpaca_rlhf.data.generation.history import (
    drop_from_json,
    event_of,
    recipe_of,
    reply_of,
    run_facts,
)
from alpaca_rlhf.data.generation.recipe import (
    Ask,
    Recipe,
    Schedule,
    StepTeacher,
    failed,
    parts,
    rows_of,
)
from alpaca_rlhf.data.generation.teachers import Reply, Teacher
from alpaca_rlhf.settings import Generate


@dataclass(frozen=True)
class GenerationProgress:
    """Where a run of `generate` stands."""

    requests: int
    """Requests answered so far."""
    kept: int
    """Rows accepted so far."""
    target: int
    """Rows wanted."""
    tokens: int
    """Tokens the teacher has written."""
    dropped: Mapping[str, int]
    """Rule to rows it dropped."""
    replayed: int
    """Requests that were taken from an earlier run instead of asked."""
    failed: int = 0
    """Requests that the teacher gave up."""
    usd: float | None = None
    """What the teacher cost, where it tells."""


@dataclass(frozen=True)
class Drops:
    """The dropped rows of a run, read from its events when they are looked at."""

    folder: Path
    """Where the events lie."""
    counts: Mapping[str, int]
    """Rule to rows it dropped."""

    def __len__(self) -> int:
        return sum(self.counts.values())

    def __iter__(self) -> Iterator[Drop]:
        for _, event in read_events(self.folder):
            yield from map(drop_from_json, event["dropped"])


@dataclass(frozen=True)
class Generated:
    """What `generate` made."""

    rows: list[Instruction]
    """Accepted rows, in the order they came."""
    drops: Drops
    """All others, with rule and detail."""
    requests: int
    """Requests answered."""
    tokens: int
    """Tokens the teacher wrote."""


def generate(
    teacher: Teacher,
    seeds: Sequence[Instruction],
    settings: Generate,
    *,
    seed: int,
    folder: Path,
    rules: Sequence[Rule] | None = None,
    accept: Check | None = None,
    novel: Check | None = None,
    progress: Callable[[GenerationProgress], None] | None = None,
    segment_bytes: int = SEGMENT_BYTES,
) -> Generated:
    """Ask the teacher until the target of rows is accepted or the most requests are answered.

    A row goes through the rules, then `accept`, then `novel`. Killed anywhere and called again with
    the same arguments it asks nothing twice that is written, and with a deterministic teacher ends
    with the same files.

    Args:
        teacher: Continues the prompts. If it cannot go on, its error may carry the `replies` that
            it has: those of the first prompts, which are then kept. Its `name` and `licence`, if it
            has them, are noted; a `StepTeacher` is told what each request is for.
        seeds: Seed tasks with outputs. They are never filtered.
        settings: Numbers of the run, its recipe and its filters.
        seed: Draws demonstrations, and seeds the teacher's sampling.
        folder: Where the events and their manifest lie.
        rules: Filters instead of those that `settings.filters` names; () for none.
        accept: The caller's own check. It may be asked about rows that `novel` drops afterwards.
        novel: Replaces ROUGE-L novelty of the instruction against seeds and accepted rows. It is
            asked last: a row that it lets through is kept, so it may remember it. On a second run
            it is asked again from the first row on, so it must start empty.
        progress: Called after every chunk of requests, those that an earlier run left included.
        segment_bytes: Size at which a file of events is closed.

    Raises:
        UserError: Too few seeds; not one row was accepted; the folder holds the events of another
            run, or damaged ones.
    """
    recipe = recipe_of(settings, seeds, seed)
    decisions = Decisions(
        seeds,
        target=settings.target,
        rules=rule_set(settings.filters) if rules is None else rules,
        accept=accept,
        novel=novel,
        threshold=settings.novelty,
    )
    schedule = Schedule(recipe, size=settings.batch_size, most=settings.max_requests)
    run = _Run(recipe, decisions, schedule, settings.target)

    def report(replayed: int) -> None:
        if progress is not None and schedule.between:
            progress(
                GenerationProgress(
                    requests=schedule.requests,
                    kept=len(run.rows),
                    target=settings.target,
                    tokens=run.tokens,
                    dropped=dict(run.dropped),
                    replayed=replayed,
                    failed=run.failed,
                    usd=run.usd,
                )
            )

    with EventStore(folder, segment_bytes=segment_bytes) as store:
        facts = run_facts(folder, store.manifest, settings, seeds, seed, teacher)
        if "recipe" not in store.manifest:
            store.describe(**facts)
        for where, event in store.replay():
            run.replay(event, where)
            report(schedule.requests)
        store.describe(**facts)  # now it is known that this run is the same
        replayed = schedule.requests
        while chunk := run.next_chunk():
            for step, asks in parts(chunk):
                try:
                    replies = _asked(teacher, step, asks, seed=seed, first=schedule.requests)
                except BaseException as stop:
                    paid = zip(asks, getattr(stop, "replies", ()), strict=False)
                    store.append([run.take(ask, _whole(reply)) for ask, reply in paid])
                    raise
                store.append([run.take(*one) for one in zip(asks, replies, strict=True)])
            report(replayed)
        if not run.rows:
            raise UserError(run.nothing_accepted(folder))
        store.describe(counts=run.counts())
    return Generated(run.rows, Drops(folder, dict(run.dropped)), schedule.requests, run.tokens)


def _asked(
    teacher: Teacher, step: Any, asks: Sequence[Ask], *, seed: int, first: int
) -> list[Reply]:
    asked = teacher.at(step) if isinstance(teacher, StepTeacher) else teacher
    replies = asked.complete([ask.prompt for ask in asks], seed=seed, first=first)
    if len(replies) != len(asks):
        raise ValueError(f"{len(replies)} replies to {len(asks)} prompts")
    return [_whole(reply) for reply in replies]


def _whole(reply: Reply) -> Reply:
    """Without halves of surrogate pairs, which UTF-8 does not have."""
    return replace(reply, text=reply.text.encode("utf-8", "replace").decode())


@dataclass
class _Run:
    """The decisions of a run, made strictly in the order of the requests."""

    recipe: Recipe
    decisions: Decisions
    schedule: Schedule
    target: int
    rows: list[Instruction] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    failed: int = 0
    usd: float | None = None

    def next_chunk(self) -> list[Ask]:
        """The requests to make next; none when all is done."""
        done = len(self.rows) >= self.target and self.schedule.between
        return [] if done else self.schedule.chunk()

    def take(self, ask: Ask, reply: Reply) -> Event:
        """Decide on all rows of a reply. Returns its event."""
        number = self.schedule.requests
        kept, dropped = self.decisions.decide(ask, *rows_of(self.recipe, ask, reply))
        self.recipe.learn(ask, reply, kept)
        self.schedule.taken()
        if not ask.drafts:
            self.rows.extend(kept)
        self.dropped.update(drop.rule for drop in dropped)
        self.tokens += reply.tokens
        self.failed += failed(reply)
        if reply.usd is not None:
            self.usd = (self.usd or 0.0) + reply.usd
        return event_of(number, ask, reply, kept, dropped)

    def replay(self, event: Event, where: str) -> None:
        """Take the reply of an earlier run, which must lead to the decisions it led to then."""
        chunk = self.schedule.chunk()
        try:
            same = bool(chunk) and self.take(chunk[0], reply_of(event)) == event
        except (KeyError, AttributeError, TypeError):
            same = False
        if not same:
            raise UserError(
                f"{where}: made with other seed tasks, another seed, other settings or another "
                "version; choose a new folder, or go back to what it was made with"
            )

    def counts(self) -> dict[str, Any]:
        """What the manifest says at the end."""
        return {
            "requests": self.schedule.requests,
            "kept": len(self.rows),
            "failed": self.failed,
            "tokens": self.tokens,
            "dropped": dict(sorted(self.dropped.items())),
        }

    def nothing_accepted(self, folder: Path) -> str:
        reasons = self.dropped.most_common(3)
        listed = (
            ", ".join(f"{rule} {count}" for rule, count in reasons)
            or "the replies hold no task at all"
        )
        return (
            f"generate: 0 of {sum(self.dropped.values())} rows accepted in "
            f"{self.schedule.requests} requests (dropped by: {listed}); read the replies in "
            f"{folder / 'events-00000.jsonl'}, then change the teacher, the seed tasks or the "
            "filters"
        )
