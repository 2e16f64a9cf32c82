"""`alpaca-rlhf judge`: a judge ranks the app's queue. People's verdicts outrank a judge's."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from alpaca_rlhf.cli.terminal import PROGRAM, Terminal, next_lines
from alpaca_rlhf.core import gpu_lock, quiet
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import only_one
from alpaca_rlhf.core.records import Ranking
from alpaca_rlhf.core.scorers import Response, UnknownPrompt
from alpaca_rlhf.core.shell_words import quoted
from alpaca_rlhf.judges import Judge
from alpaca_rlhf.judges.score_log import LOG
from alpaca_rlhf.preferences import JudgeIdentity, ScoreJudge
from alpaca_rlhf.preferences.assignment import Candidates, pairs
from alpaca_rlhf.preferences.judges import tied_pairs
from alpaca_rlhf.serving import run_contents
from alpaca_rlhf.settings import Judge as JudgeEndpoint
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.settings.bounds import Bounded, NonNegativeFloat, PositiveInt
from alpaca_rlhf.settings.judge_names import SCORERS, JudgeName, parse_judge
from alpaca_rlhf.sources import source_of
from alpaca_rlhf.sources.sampled import queue_sampled
from alpaca_rlhf.sources.verdicts import has_verdicts, open_store

if TYPE_CHECKING:
    from alpaca_rlhf.preferences.store import Store

_STAGE = "judge"
_LAST_REWARD = "reward"
"""`--by reward` without a folder: the run's last reward model."""
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
    by: str = "llm"
    """The judge: `llm` (the model at --judge.url), `reward` (the run's last reward model),
    `reward:FOLDER`, `gold` (the small world's), `checks`, or a function of your own as
    `FILE.py:function` or `package.module:function`."""
    n: PositiveInt | None = None
    """Maximum number of sets to rank; by default all that wait."""
    tie_below: NonNegativeFloat | None = None
    """Answers whose scores are closer than this share a tier; by default the run's
    --rank.tie-below."""
    judge: JudgeEndpoint = field(default_factory=JudgeEndpoint)
    """The model behind HTTP."""

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            judge = parse_judge(self.by) if self.by != _LAST_REWARD else None
        except ValueError as error:
            raise ValueError(f"--by {error}") from None
        if judge is not None and judge.kind == "human":
            raise ValueError(
                f"--by {self.by}: people rank in the app, or with `{PROGRAM} rank`; give llm, "
                f"reward, {SCORERS}"
            )
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
    settings = run_contents.settings_of(flags.run)
    with open_store(flags.run, flags.db, say=terminal.say) as store:
        queue_sampled(flags.run, store)
        summary = (_by_llm if flags.by == "llm" else _by_scorer)(store, flags, settings, terminal)
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


def _by_scorer(store: Store, flags: Judging, settings: Loop, terminal: Terminal) -> str:
    with quiet.loading(settings.base):
        from alpaca_rlhf.serving.scoring import adapters_of
        from alpaca_rlhf.stages.judging import Judges, open_judge
    name, folder = _judge_of(flags), flags.run / "judge"
    busy_message = f"--run {flags.run}: another `{PROGRAM} judge` is at work there; wait for it"
    with only_one(folder, busy_message), gpu_lock.Loan(flags.run, terminal.say) as loan:
        size = settings.sampling.batch_size
        source = partial(source_of, settings)
        judge = open_judge(name, "--by", source, folder / LOG, batch_size=size)
        if name.kind == "reward":
            loan.take()
        Judges(judge).lend(cache(lambda: adapters_of(settings)))
        scores: dict[str, float] = {}
        ranker = ScoreJudge(
            judge.title,
            lambda prompt, completion: scores[completion.id],
            tie_below=settings.rank.tie_below if flags.tie_below is None else flags.tie_below,
            seed=settings.seed,
        )
        sets = _waiting(store, flags, ranker.identity)
        terminal.start(_STAGE, f"{judge.title} ranks {len(sets)} sets of {flags.run}")
        ranked = verdicts = tied = 0
        # A reward model scores many sets at once; what any other judge said is saved set by set.
        at_once = _BATCH_SETS if name.kind == "reward" else 1
        for start in range(0, len(sets), at_once):
            batch = sets[start : start + at_once]
            try:
                scores = _scores(judge, batch)
            except UnknownPrompt:  # somebody typed it
                pass
            else:
                rankings = [ranker.rank(prompt, completions) for prompt, completions in batch]
                store.add_rankings(rankings, judge=ranker.identity)
                ranked += len(rankings)
                verdicts += sum(pairs(ranking.tiers) for ranking in rankings)
                tied += tied_pairs(rankings, scores)
            terminal.step(_STAGE, start + len(batch), len(sets), {})
        terminal.finish(_STAGE, f"{ranked} sets ranked")
    summary = f"{ranked} rankings by {ranker.identity.annotator}"
    if tied:
        every = "" if verdicts else ", so that every ranking is a tie"
        summary += f"; {tied} pairs tied below --tie-below {ranker.tie_below:g}{every}"
    unknown_count = len(sets) - ranked
    unknown = "no constraint to check" if name.kind == "checks" else "no known answer"
    return summary + (f"; {unknown_count} sets have {unknown}" if unknown_count else "")


def _judge_of(flags: Judging) -> JudgeName:
    """The judge of `--by`; `reward` alone is the run's last reward model.

    Raises:
        UserError: The run has none.
    """
    if flags.by != _LAST_REWARD:
        return parse_judge(flags.by)
    reward_models = run_contents.rewards(flags.run)
    if not reward_models:
        raise UserError(
            f"--by reward: {flags.run} has no reward model yet; train it: "
            f"{PROGRAM} reward --out {quoted(flags.run)}"
        )
    return parse_judge(f"reward:{[*reward_models.values()][-1]}")


def _scores(judge: Judge, sets: Sequence[Candidates]) -> dict[str, float]:
    """The score of each completion by its id."""
    responses = [
        (completion.id, Response(prompt, completion.text, completion.finish_reason == "eos"))
        for prompt, completions in sets
        for completion in completions
    ]
    judged = judge.scores([response for _, response in responses], stage=_STAGE)
    return {
        completion_id: rating.score
        for (completion_id, _), rating in zip(responses, judged, strict=True)
    }
