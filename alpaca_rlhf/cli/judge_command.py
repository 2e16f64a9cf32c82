"""`alpaca-rlhf judge`: a judge ranks the app's queue. People's verdicts outrank a judge's."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from alpaca_rlhf.cli.terminal import PROGRAM, Terminal, next_lines
from alpaca_rlhf.core import gpu_lock, quiet
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import only_one
from alpaca_rlhf.core.records import Instruction, Ranking
from alpaca_rlhf.core.scorers import Scores
from alpaca_rlhf.preferences import JudgeIdentity, ScoreJudge
from alpaca_rlhf.preferences.assignment import Candidates
from alpaca_rlhf.serving import folders
from alpaca_rlhf.settings import Judge, Loop
from alpaca_rlhf.settings.bounds import Bounded, PositiveInt
from alpaca_rlhf.sources import source_of
from alpaca_rlhf.sources.sampled import queue_sampled
from alpaca_rlhf.sources.verdicts import has_verdicts, open_store

if TYPE_CHECKING:
    from alpaca_rlhf.preferences.store import Store

ABOUT = "let a model behind HTTP, the reward model or the gold judge rank what waits in the queue"
_STAGE = "judge"
_GoldScore = Callable[[Instruction, str, bool], Scores]
_BATCH_SETS = 64
"""Candidate sets that the reward model scores at once and one transaction saves."""


@dataclass(frozen=True)
class Judging(Bounded):
    """Flags of `alpaca-rlhf judge`."""

    run: Path = Path("runs/quickstart")
    """Run folder with the queue and the reward model."""
    db: str | None = None
    """Database of the queue: a file, or postgresql+psycopg://user@host/name; by default
    preferences.db in the run folder."""
    by: Literal["llm", "reward", "gold"] = "llm"
    """The judge: the model at --judge.url, the run's last reward model, or the small world's
    judge."""
    n: PositiveInt | None = None
    """Maximum number of sets to rank; by default all that wait."""
    judge: Judge = field(default_factory=Judge)
    """The model behind HTTP."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.by == "llm") != (self.judge.url is not None):
            raise ValueError("--by llm and --judge.url URL belong together: give both")


def run(flags: Judging, terminal: Terminal) -> int:
    """Rank the sets that wait; run again, it resumes where it stopped.

    Returns:
        The exit code, 0.

    Raises:
        UserError: There is no such run, reward model or endpoint, or a budget is spent;
            rankings made before are kept.
    """
    settings = folders.settings_of(flags.run)
    with open_store(flags.run, flags.db, say=terminal.say) as store:
        queue_sampled(flags.run, store)
        rank_sets = {"llm": _by_llm, "reward": _by_reward, "gold": _by_gold}[flags.by]
        summary = rank_sets(store, flags, settings, terminal)
        terminal.say(f"judge: {summary}; a person who ranks the same answers overrules it")
    from alpaca_rlhf.preferences.database import db_flag  # loads SQLAlchemy

    app_command = [PROGRAM, "app", "--run", str(flags.run), *db_flag(flags.db)]
    for line in next_lines(
        [(shlex.join(app_command), "see the rankings on the Data tab, export them, train on them")]
    ):
        terminal.say(line)
    return 0


def _waiting(store: Store, flags: Judging, judge: JudgeIdentity) -> list[Candidates]:
    """The sets that neither a person nor this judge has ranked, at most `flags.n`.

    With --db, people may also have ranked sets in the terminal, into the run's own database.
    """
    sets = store.unjudged(judge)
    if flags.db is not None and has_verdicts(flags.run):
        sets = _not_ranked_in_run(flags.run, sets)
    return list(islice(sets, flags.n))


def _not_ranked_in_run(run: Path, sets: Iterable[Candidates]) -> Iterator[Candidates]:
    with open_store(run) as store:
        for candidates in sets:
            if not store.ranked([candidates]):
                yield candidates


def _by_llm(store: Store, flags: Judging, settings: Loop, terminal: Terminal) -> str:
    from alpaca_rlhf.stages.llm_judge import BATCH_RANKINGS, LLMJudge, outcomes, questions_about

    folder = flags.run / "judge"
    outcome_counts: Counter[str] = Counter()
    busy_message = f"--run {flags.run}: another `{PROGRAM} judge` is at work there; wait for it"
    with only_one(folder, busy_message), LLMJudge(flags.judge, folder) as judge:
        sets = _waiting(store, flags, judge.identity)
        terminal.start(
            _STAGE,
            f"{flags.judge.model} ranks {len(sets)} sets of {flags.run}, in "
            f"{questions_about(sets)} requests: every pair of answers, in both orders",
        )

        def decided_rankings() -> Iterator[Ranking]:
            for sets_done, (prompt, order) in enumerate(judge.rank(sets), 1):
                outcome_counts.update(order.pairs)
                if order.tiers is not None:
                    yield Ranking(prompt.id, order.tiers, judge.identity.annotator)
                terminal.step(_STAGE, sets_done, len(sets), {})

        added = store.add_rankings(decided_rankings(), judge=judge.identity, batch=BATCH_RANKINGS)
        terminal.finish(_STAGE, judge.account.line())
    return (
        f"{added} rankings by {judge.identity.annotator}; {outcomes(outcome_counts)}; "
        f"{len(sets) - added} sets left to people, because nothing was decided"
    )


def _by_reward(store: Store, flags: Judging, settings: Loop, terminal: Terminal) -> str:
    reward_models = folders.rewards(flags.run)
    if not reward_models:
        raise UserError(f"--by reward: {flags.run} has no reward model yet; train it first")
    name, folder = list(reward_models.items())[-1]
    with gpu_lock.Loan(flags.run, terminal.say) as loan:
        loan.take()
        with quiet.loading(settings.base):
            from alpaca_rlhf.serving.scoring import Scorer
        scorer = Scorer(settings, folder)
        judge = ScoreJudge(
            f"{name}:{scorer.fingerprint}", lambda prompt, completion: scores[completion.id]
        )
        sets = _waiting(store, flags, judge.identity)
        terminal.start(_STAGE, f"{name} of {flags.run} ranks {len(sets)} sets")
        for start in range(0, len(sets), _BATCH_SETS):
            batch = sets[start : start + _BATCH_SETS]
            pairs = [
                (prompt, completion) for prompt, completions in batch for completion in completions
            ]
            scores = scorer.scores(pairs)
            rankings = [judge.rank(prompt, completions) for prompt, completions in batch]
            store.add_rankings(rankings, judge=judge.identity)
            terminal.step(_STAGE, start + len(batch), len(sets), {})
        terminal.finish(_STAGE, "every completion scored once")
    return f"{len(sets)} rankings by {judge.identity.annotator}"


def _by_gold(store: Store, flags: Judging, settings: Loop, terminal: Terminal) -> str:
    gold = source_of(settings).gold
    if gold is None:
        raise UserError(
            f"--by gold: {flags.run} uses files of your own, and only the small world has "
            "known answers; use --by reward or --by llm"
        )
    scores: dict[str, float] = {}
    judge = ScoreJudge("gold", lambda prompt, completion: scores[completion.id])
    sets = _waiting(store, flags, judge.identity)
    terminal.start(_STAGE, f"the gold judge ranks {len(sets)} sets of {flags.run}")
    scored_sets = list(_scored(sets, gold, scores))
    rankings = [judge.rank(prompt, completions) for prompt, completions in scored_sets]
    store.add_rankings(rankings, judge=judge.identity)
    terminal.finish(_STAGE, f"{len(scored_sets)} sets of the small world")
    unknown_count = len(sets) - len(scored_sets)
    return (
        f"{len(scored_sets)} rankings by {judge.identity.annotator}; "
        f"{unknown_count} sets have no known answer"
    )


def _scored(
    sets: Sequence[Candidates], gold: _GoldScore, scores: dict[str, float]
) -> Iterator[Candidates]:
    """Yield the sets of the small world; add the gold score of each completion to `scores`."""
    for prompt, completions in sets:
        try:
            scores_of_set = {
                completion.id: gold(
                    prompt, completion.text, completion.finish_reason == "eos"
                ).score
                for completion in completions
            }
        except UserError:
            continue  # a prompt that somebody typed, not a task of the small world
        scores.update(scores_of_set)
        yield prompt, completions
