"""`alpaca-rlhf judge`: a judge ranks what waits in the app's queue; people's word stands above."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from alpaca_rlhf.cli.terminal import PROGRAM, Terminal, next_lines
from alpaca_rlhf.core import gpu_lock, quiet
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import only_one
from alpaca_rlhf.core.records import Completion, Instruction, Ranking
from alpaca_rlhf.preferences import DATABASE, JUDGE, ScoreJudge, read
from alpaca_rlhf.preferences.queue import Candidates
from alpaca_rlhf.preferences.store import Store
from alpaca_rlhf.serving import folders
from alpaca_rlhf.serving.queueing import queue_sampled
from alpaca_rlhf.settings import Judge, Loop
from alpaca_rlhf.settings.bounds import Bounded, PositiveInt
from alpaca_rlhf.sources import Gold, source_of

_STAGE = "judge"
_Gold = Callable[[Instruction, str, bool], Gold]
_AT_ONCE = 64


@dataclass(frozen=True)
class Judging(Bounded):
    """Flags of `alpaca-rlhf judge`."""

    run: Path = Path("runs/quickstart")
    """Run folder: whose queue, and whose reward model."""
    db: str | None = None
    """Where the queue is: a file, or postgresql+psycopg://user@host/name; by default
    preferences.db in the run folder."""
    by: Literal["llm", "reward", "gold"] = "llm"
    """Who: the model at --judge.url, the run's last reward model, or the small world's judge."""
    n: PositiveInt | None = None
    """Sets at most; by default all that wait."""
    judge: Judge = field(default_factory=Judge)
    """The model behind HTTP."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.by == "llm") != (self.judge.url is not None):
            raise ValueError("--by llm and --judge.url URL belong together: give both")


def run(asked: Judging, terminal: Terminal) -> int:
    """Rank what waits; run again it goes on where it stopped.

    Returns:
        The exit code, 0.

    Raises:
        UserError: There is no such run, reward model or endpoint, or a budget is spent; what was
            ranked is kept.
    """
    settings = folders.settings_of(asked.run)
    with Store(asked.db or asked.run / DATABASE) as store:
        queue_sampled(asked.run, store)
        work = {"llm": _by_llm, "reward": _by_reward, "gold": _by_gold}[asked.by]
        told = work(store, asked, settings, terminal)
        terminal.say(f"judge: {told}; a person who ranks the same answers overrules it")
    words = [PROGRAM, "app", "--run", str(asked.run), *(["--db", asked.db] if asked.db else [])]
    for line in next_lines([(shlex.join(words), "see them on the Data tab, export, train")]):
        terminal.say(line)
    return 0


def _waiting(store: Store, asked: Judging, annotator: str) -> list[Candidates]:
    """The sets that no person has ranked, in the app or in the terminal, nor this judge."""
    ranked = _ranked_in_the_terminal(asked.run)
    rows: list[Candidates] = []
    for row in store.unjudged(annotator):
        if asked.n is not None and len(rows) == asked.n:
            break
        if not ranked >= {one.id for one in row[1]}:
            rows.append(row)
    return rows


def _ranked_in_the_terminal(run: Path) -> set[str]:
    """Completions that people put in order there, by id."""
    said = [one for path in sorted(run.glob("rank*/rankings.jsonl")) for one in read(path)]
    people = [one for one in said if not one.annotator.startswith(JUDGE)]
    return {key for one in people for tier in one.tiers for key in tier}


def _by_llm(store: Store, asked: Judging, settings: Loop, terminal: Terminal) -> str:
    from alpaca_rlhf.stages.llm_judge import LLMJudge, outcomes, questions_about

    folder = asked.run / "judge"
    pairs: Counter[str] = Counter()
    kept = 0
    busy = f"--run {asked.run}: another `{PROGRAM} judge` is at work there; wait for it"
    with only_one(folder, busy), LLMJudge(asked.judge, folder) as judge:
        rows = _waiting(store, asked, judge.annotator)
        terminal.start(
            _STAGE,
            f"{asked.judge.model} ranks {len(rows)} sets of {asked.run}, in "
            f"{questions_about(rows)} requests: every two answers, in both orders",
        )
        for done, (prompt, order) in enumerate(judge.rank(rows), 1):
            pairs.update(order.pairs)
            if order.tiers is not None:
                kept += store.add_rankings([Ranking(prompt.id, order.tiers, judge.annotator)])
            terminal.step(_STAGE, done, len(rows), {})
        terminal.finish(_STAGE, judge.account.line())
    return (
        f"{kept} rankings by {judge.annotator}; {outcomes(pairs)}; {len(rows) - kept} sets left to "
        "people, because nothing was decided"
    )


def _by_reward(store: Store, asked: Judging, settings: Loop, terminal: Terminal) -> str:
    found = folders.rewards(asked.run)
    if not found:
        raise UserError(f"--by reward: {asked.run} has no reward model yet; train it first")
    name, folder = list(found.items())[-1]
    quiet.quiet(settings.base)
    with gpu_lock.Loan(asked.run, terminal.say) as loan:
        loan.take()
        from alpaca_rlhf.serving.scoring import Scorer

        quiet.quiet_transformers(settings.base)
        scorer = Scorer(settings, folder)
        judge = ScoreJudge(f"{name}:{scorer.fingerprint}", lambda prompt, one: scores[one.id])
        rows = _waiting(store, asked, f"{JUDGE}{judge.name}")
        terminal.start(_STAGE, f"{name} of {asked.run} ranks {len(rows)} sets")
        for start in range(0, len(rows), _AT_ONCE):
            part = rows[start : start + _AT_ONCE]
            scores = scorer.scores([(prompt, one) for prompt, own in part for one in own])
            store.add_rankings(judge.rank(prompt, own) for prompt, own in part)
            terminal.step(_STAGE, start + len(part), len(rows), {})
        terminal.finish(_STAGE, "every completion scored once")
    return f"{len(rows)} rankings by {JUDGE}{judge.name}"


def _by_gold(store: Store, asked: Judging, settings: Loop, terminal: Terminal) -> str:
    gold = source_of(settings).gold
    if gold is None:
        raise UserError(
            f"--by gold: {asked.run} has files of its own, and only the small world has known "
            "answers; take --by reward, or --by llm"
        )
    scores: dict[str, float] = {}
    judge = ScoreJudge("gold", lambda prompt, one: scores[one.id])
    rows = _waiting(store, asked, f"{JUDGE}{judge.name}")
    terminal.start(_STAGE, f"the gold judge ranks {len(rows)} sets of {asked.run}")
    good = list(_scored(rows, gold, scores))
    store.add_rankings(judge.rank(prompt, own) for prompt, own in good)
    terminal.finish(_STAGE, f"{len(good)} sets of the small world")
    others = len(rows) - len(good)
    return f"{len(good)} rankings by {JUDGE}gold; {others} sets have no known answer"


def _scored(
    rows: Sequence[Candidates], gold: _Gold, scores: dict[str, float]
) -> Iterator[tuple[Instruction, Sequence[Completion]]]:
    for prompt, own in rows:
        try:
            found = {one.id: gold(prompt, one.text, one.finish_reason == "eos") for one in own}
        except UserError:
            continue  # typed by somebody: no task of the small world
        scores.update({key: one.score for key, one in found.items()})
        yield prompt, own
