"""Self-instruct: a base model writes new tasks after the pattern of a few (arXiv 2212.10560).

As in Alpaca (tatsu-lab/stanford_alpaca@4187a25 generate_instruction.py) each request shows seed
tasks on a numbered worksheet and lets the teacher go on with it. Every answered request becomes one
line of `events.jsonl`, with the reply and all rows kept and dropped, before anything else happens.
Everything else is derived from those lines: running again decides on them anew, checks that it
comes to the same, and goes on with the next request.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from alpaca_rlhf.config import UserError
from alpaca_rlhf.data.events import EventLog
from alpaca_rlhf.data.filters import Drop, Rule, drop_reason, rule_set
from alpaca_rlhf.data.novelty import NoveltyIndex
from alpaca_rlhf.data.teachers import Reply, Teacher
from alpaca_rlhf.data.worksheets import parse_worksheet
from alpaca_rlhf.prompts import worksheet_prompt
from alpaca_rlhf.records import Instruction, content_hash
from alpaca_rlhf.settings import Generate

Check = Callable[[Instruction], Drop | None]
"""Looks at a row: a `Drop` if it may not stay, else None."""


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


@dataclass(frozen=True)
class Generated:
    """What `generate` made."""

    rows: list[Instruction]
    """Accepted rows, in the order they came."""
    drops: list[Drop]
    """All others, with rule and detail."""
    requests: int
    """Requests answered."""
    tokens: int
    """Tokens the teacher wrote."""


def demonstrations(
    seeds: Sequence[Instruction], count: int, *, seed: int, request: int
) -> list[Instruction]:
    """The seed tasks that a request shows: a function of seed and request number alone."""
    return random.Random(f"{seed}/{request}").sample(seeds, count)


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
) -> Generated:
    """Ask the teacher until the target of rows is accepted or the most requests are answered.

    A row goes through `rules`, then `accept`, then `novel`. Killed anywhere and called again with
    the same arguments it asks nothing twice that is written, and with a deterministic teacher ends
    with the same file.

    Args:
        teacher: Writes the worksheets.
        seeds: Seed tasks with outputs, at least `settings.demonstrations` of them. They are never
            filtered.
        settings: Numbers of the run.
        seed: Draws demonstrations, and seeds the teacher's sampling.
        folder: Where `events.jsonl` lies.
        rules: Filters on the row's text; the set `alpaca` if None, and () for none.
        accept: The caller's own check. It may be asked about rows that `novel` drops afterwards.
        novel: Replaces ROUGE-L novelty of the instruction against seeds and accepted rows. It is
            asked last: a row that it lets through is kept, so it may remember it. On a second run
            it is asked again from the first row on, so it must start empty.
        progress: Called after every batch, those that an earlier run left included.

    Raises:
        UserError: Too few seeds; not one row was accepted; the folder holds the events of another
            run.
    """
    if len(seeds) < settings.demonstrations:
        raise UserError(
            f"--generate.demonstrations {settings.demonstrations} needs as many seed tasks, "
            f"got {len(seeds)}"
        )
    filters = rule_set("alpaca") if rules is None else rules
    checks = [
        lambda row: drop_reason(row, filters),
        accept or (lambda row: None),
        novel or _RougeNovelty(seeds, settings.novelty),
    ]
    run = _Run(seeds, settings, seed, checks)

    def report(replayed: int) -> None:
        if progress is not None:
            dropped = Counter(drop.rule for drop in run.drops)
            progress(
                GenerationProgress(
                    run.requests, len(run.rows), settings.target, run.tokens, dropped, replayed
                )
            )

    with EventLog(folder / "events.jsonl") as log:
        for number, event in enumerate(log.events):
            run.replay(number, event, f"{log.path}:{number + 1}")
            if run.requests % settings.batch_size == 0 or run.requests == settings.max_requests:
                report(run.requests)
        replayed = run.requests
        while batch := run.next_batch():
            prompts = [run.prompt(number) for number in batch]
            try:
                replies = teacher.complete(prompts, seed=seed, first=batch.start)
            except BaseException as stop:
                paid = zip(batch, getattr(stop, "replies", ()), strict=False)
                log.append([run.take(*one) for one in paid])
                raise
            if len(replies) != len(prompts):
                raise ValueError(f"{len(replies)} replies to {len(prompts)} prompts")
            log.append([run.take(*one) for one in zip(batch, replies, strict=True)])
            report(replayed)
        if not run.rows:
            raise UserError(run.nothing_accepted(log.path))
    return Generated(run.rows, run.drops, run.requests, run.tokens)


@dataclass
class _Run:
    """The decisions of a run, made strictly in the order of the requests."""

    seeds: Sequence[Instruction]
    settings: Generate
    seed: int
    checks: Sequence[Check]
    rows: list[Instruction] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)
    requests: int = 0
    tokens: int = 0

    def prompt(self, number: int) -> str:
        return worksheet_prompt(
            demonstrations(self.seeds, self.settings.demonstrations, seed=self.seed, request=number)
        )

    def next_batch(self) -> range:
        """Numbers of the requests to make next; none when all is done.

        Batches start at multiples of the batch size and are always finished, so that a run killed
        while it wrote one falls back into step.
        """
        size, most = self.settings.batch_size, self.settings.max_requests
        done = len(self.rows) >= self.settings.target and self.requests % size == 0
        end = self.requests if done else (self.requests // size + 1) * size
        return range(self.requests, min(end, most))

    def take(self, number: int, reply: Reply) -> dict[str, Any]:
        """Decide on all rows of a reply. Returns its event."""
        text = reply.text.encode("utf-8", "replace").decode()
        start = self.settings.demonstrations + 1
        finished = reply.finish_reason == "eos"
        parsed, dropped = (
            ([], []) if reply.error else parse_worksheet(text, start, finished=finished)
        )
        kept = []
        for row in parsed:
            drop = self._decide(row)
            if drop is None:
                kept.append(row)
                self.rows.append(row)
            else:
                dropped.append(replace(drop, row=row))
        self.drops.extend(dropped)
        self.requests += 1
        self.tokens += reply.tokens
        return {
            "request": number,
            "prompt": content_hash(self.prompt(number)),
            "finish_reason": reply.finish_reason,
            "tokens": reply.tokens,
            "text": text,
            **({"error": reply.error} if reply.error else {}),
            "kept": [row.to_json() for row in kept],
            "dropped": [_drop_json(drop) for drop in dropped],
        }

    def replay(self, number: int, event: dict[str, Any], where: str) -> None:
        """Take the reply of an earlier run, which must lead to the decisions it led to then."""
        try:
            reply = Reply(
                event["text"], event["finish_reason"], event["tokens"], error=event.get("error")
            )
            same = self.take(number, reply) == event
        except (KeyError, AttributeError, TypeError):
            same = False
        if not same:
            raise UserError(
                f"{where}: made with other seed tasks, another seed, other settings or another "
                "version; choose a new folder, or go back to what it was made with"
            )

    def nothing_accepted(self, path: Path) -> str:
        reasons = Counter(drop.rule for drop in self.drops).most_common(3)
        listed = (
            ", ".join(f"{rule} {count}" for rule, count in reasons)
            or "the replies hold no task at all"
        )
        return (
            f"generate: 0 of {len(self.drops)} rows accepted in {self.requests} requests "
            f"(dropped by: {listed}); read the replies in {path}, then change the teacher, "
            "the seed tasks or the filters"
        )

    def _decide(self, row: Instruction) -> Drop | None:
        if len(self.rows) >= self.settings.target:
            return Drop("surplus", f"the target of {self.settings.target} rows was reached")
        for check in self.checks:
            if (drop := check(row)) is not None:
                return drop
        return None


class _RougeNovelty:
    """Drops a row whose instruction lies near a seed's or near an earlier row's."""

    def __init__(self, seeds: Sequence[Instruction], threshold: float) -> None:
        self._index = NoveltyIndex(threshold)
        self._known = list(seeds)
        for row in seeds:
            self._index.add(row.instruction)

    def __call__(self, row: Instruction) -> Drop | None:
        near = self._index.duplicate(row.instruction)
        if near is not None:
            other = self._known[near.row]
            return Drop(
                "duplicate", f"too near to {other.instruction!r}", near=other.id, score=near.score
            )
        self._index.add(row.instruction)
        self._known.append(row)
        return None


def _drop_json(drop: Drop) -> dict[str, Any]:
    row = drop.row.to_json() if drop.row else None
    return {
        "rule": drop.rule,
        "detail": drop.detail,
        "near": drop.near,
        "score": drop.score,
        "row": row,
    }
