"""Self-instruct: a teacher writes new tasks on the pattern of a few seed tasks (arXiv 2212.10560).

Each answered request becomes one event, with its reply and all accepted and dropped rows, before
anything else happens. Everything else is derived from the events: a resumed run repeats their
decisions one by one, checks that they are the same, and continues with the next request.
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
    GenerationRequest,
    Recipe,
    Schedule,
    StepName,
    StepTeacher,
    failed,
    rows_of,
    runs_of_steps,
)
from alpaca_rlhf.data.generation.teachers import Reply, Teacher
from alpaca_rlhf.settings import Generate


@dataclass(frozen=True)
class GenerationProgress:
    """Progress of a run of `generate`."""

    requests: int
    """Requests answered so far."""
    kept: int
    """Rows accepted so far."""
    target: int
    """Rows to accept."""
    tokens: int
    """Tokens the teacher has written."""
    dropped: Mapping[str, int]
    """Number of dropped rows by rule."""
    replayed: int
    """Requests whose reply an earlier run had left."""
    failed: int = 0
    """Requests that the teacher gave up."""
    usd: float | None = None
    """Cost of the teacher, where it is known."""


@dataclass(frozen=True)
class Drops:
    """The dropped rows of a run, read from its events on iteration."""

    folder: Path
    """Folder of the events."""
    counts: Mapping[str, int]
    """Number of dropped rows by rule."""

    def __len__(self) -> int:
        return sum(self.counts.values())

    def __iter__(self) -> Iterator[Drop]:
        for _, event in read_events(self.folder):
            yield from map(drop_from_json, event["dropped"])


@dataclass(frozen=True)
class GenerationResult:
    """The result of `generate`."""

    rows: list[Instruction]
    """Accepted rows, in the order they came."""
    drops: Drops
    """All other rows, with rule and detail."""
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
) -> GenerationResult:
    """Ask the teacher until `target` rows are accepted or `max_requests` requests are answered.

    A row passes the rules, then `accept`, then `novel`. Killed anywhere and called again with the
    same arguments, it repeats no request whose event is written, and with a deterministic teacher
    it ends with the same files.

    Args:
        teacher: Continues the prompts. If it cannot go on, its error may carry the `replies` to the
            first prompts, which are then kept. Its `name` and `licence`, if any, are recorded; a
            `StepTeacher` learns the purpose of each request.
        seeds: Seed tasks with outputs, never filtered.
        settings: Settings of the run, its recipe and its filters.
        seed: Seed of the demonstrations and of the teacher's sampling.
        folder: Folder of the events and their manifest.
        rules: Filters in place of the set that `settings.filters` names; () for none.
        accept: The caller's own check. It may see rows that `novel` drops afterwards; a
            `BatchCheck` sees the rows of each batch of replies together first.
        novel: Replaces ROUGE-L novelty of the instruction against seeds and accepted rows. It is
            the last check: a row that passes is accepted, so it may remember the row. A resumed run
            calls it again from the first row on, so it must start empty.
        progress: Called after every chunk of requests, including those of an earlier run.
        segment_bytes: Size at which a file of events is closed.

    Raises:
        UserError: There are too few seeds; no row was accepted; the folder holds the events of
            another run, or damaged ones.
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
    schedule = Schedule(recipe, size=settings.batch_size, max_requests=settings.max_requests)
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
        # 1. Refuse the events of another run, and repeat the decisions of an earlier start.
        facts = run_facts(folder, store.manifest, settings, seeds, seed, teacher)
        if "recipe" not in store.manifest:
            store.describe(**facts)
        for where, event in store.replay():
            run.replay(event, where)
            report(schedule.requests)
        store.describe(**facts)  # only now is it certain that the run is the same
        replayed = schedule.requests
        # 2. Ask the teacher chunk by chunk; the requests of one step go out together.
        while chunk := run.next_chunk():
            for step, asks in runs_of_steps(chunk):
                try:
                    replies = _replies(teacher, step, asks, seed=seed, first=schedule.requests)
                except BaseException as stop:
                    # Whatever stops the teacher, the replies that were paid for are kept.
                    paid = zip(asks, getattr(stop, "replies", ()), strict=False)
                    store.append([run.take(ask, _encodable(reply)) for ask, reply in paid])
                    raise
                # 3. Decide on the rows; the events are on the disk before the next request.
                pairs = list(zip(asks, replies, strict=True))
                run.prepare(pairs)
                store.append([run.take(ask, reply) for ask, reply in pairs])
            report(replayed)
        if not run.rows:
            raise UserError(run.nothing_accepted(folder))
        store.describe(counts=run.counts())
    drops = Drops(folder, dict(run.dropped))
    return GenerationResult(run.rows, drops, schedule.requests, run.tokens)


def _replies(
    teacher: Teacher, step: StepName, asks: Sequence[GenerationRequest], *, seed: int, first: int
) -> list[Reply]:
    step_teacher = teacher.at(step) if isinstance(teacher, StepTeacher) else teacher
    replies = step_teacher.complete([ask.prompt for ask in asks], seed=seed, first=first)
    if len(replies) != len(asks):
        raise ValueError(f"{len(replies)} replies to {len(asks)} prompts")
    return [_encodable(reply) for reply in replies]


def _encodable(reply: Reply) -> Reply:
    """The reply without half surrogate pairs, which UTF-8 cannot encode."""
    return replace(reply, text=reply.text.encode("utf-8", "replace").decode())


@dataclass
class _Run:
    """State of a run; its decisions are made strictly in the order of the requests."""

    recipe: Recipe
    decisions: Decisions
    schedule: Schedule
    target: int
    rows: list[Instruction] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    failed: int = 0
    usd: float | None = None

    def next_chunk(self) -> list[GenerationRequest]:
        """The requests to send next; empty when the run is complete."""
        done = len(self.rows) >= self.target and self.schedule.between
        return [] if done else self.schedule.chunk()

    def prepare(self, pairs: Sequence[tuple[GenerationRequest, Reply]]) -> None:
        """Show the rows of a batch of replies to the checks, before each is decided on."""
        rows = [
            row
            for ask, reply in pairs
            if not ask.drafts
            for row in rows_of(self.recipe, ask, reply)[0]
        ]
        self.decisions.prepare(rows)

    def take(self, ask: GenerationRequest, reply: Reply) -> Event:
        """Decide on all rows of a reply and return its event."""
        number = self.schedule.requests
        accepted, dropped = self.decisions.decide(ask, *rows_of(self.recipe, ask, reply))
        self.recipe.learn(ask, reply, accepted)
        self.schedule.advance()
        # Drafts become rows only with their outputs.
        if not ask.drafts:
            self.rows.extend(accepted)
        self.dropped.update(drop.rule for drop in dropped)
        self.tokens += reply.tokens
        self.failed += failed(reply)
        if reply.usd is not None:
            self.usd = (self.usd or 0.0) + reply.usd
        return event_of(number, ask, reply, accepted, dropped)

    def replay(self, event: Event, where: str) -> None:
        """Take the reply of an earlier start, which must lead to the same decisions."""
        chunk = self.schedule.chunk()
        try:
            # Deciding again must lead to the very event that was written.
            same = bool(chunk) and self.take(chunk[0], reply_of(event)) == event
        except (KeyError, AttributeError, TypeError):
            same = False
        if not same:
            raise UserError(
                f"{where}: made with other seed tasks, another seed, other settings or another "
                "version; choose a new folder, or go back to what it was made with"
            )

    def counts(self) -> dict[str, Any]:
        """Final counts for the manifest."""
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
