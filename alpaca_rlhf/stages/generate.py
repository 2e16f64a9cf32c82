"""The generate stage: a teacher writes instruction data by self-instruct."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.core.scorers import Response
from alpaca_rlhf.data import Drop, GenerationProgress, kept_by_rouge, write_instructions
from alpaca_rlhf.data import generate as self_instruct
from alpaca_rlhf.judges import Judge
from alpaca_rlhf.stages.context import Context
from alpaca_rlhf.stages.outcome import Outcome
from alpaca_rlhf.stages.teachers import teacher_of


def generate(ctx: Context, round_: int) -> Outcome:
    """Let the teacher write new tasks on the pattern of the seed tasks, and save the rows."""
    # An interrupted stage replays its events, so its metrics are logged again from the start.
    log = ctx.log("generate")
    ctx.run.truncate_metrics(lambda row: row["stage"] != "generate")

    def log_progress(progress: GenerationProgress) -> None:
        counts = {f"rejected_{rule.replace(' ', '_')}": n for rule, n in progress.dropped.items()}
        log(
            {
                "step": progress.kept,
                "steps": progress.target,
                "requests": progress.requests,
                "accepted": progress.kept,
                "tokens": progress.tokens,
                "failed": progress.failed,
                **({} if progress.usd is None else {"cost_usd": progress.usd}),
                **counts,
            }
        )

    settings = ctx.settings.generate
    answers = settings.recipe == "answers"
    facts: dict[str, Any] = {}
    with teacher_of(ctx, facts) as teacher:
        result = self_instruct(
            teacher,
            ctx.source.unanswered() if answers else ctx.source.seeds(),
            settings,
            seed=ctx.settings.seed,
            folder=ctx.run.folder("generate"),
            rules=() if answers else ctx.source.rules,
            accept=_judge_check(ctx) if answers else ctx.source.accept,
            novel=None if answers else ctx.source.novelty(),
            progress=log_progress,
        )
    write_instructions(ctx.run.folder("generate") / "rows.jsonl", result.rows)
    # Surplus rows came after the target was reached; nothing is wrong with them.
    n_rejected = len(result.drops) - result.drops.counts.get("surplus", 0)
    n_new_by_rouge, n_checked = kept_by_rouge(ctx.run.folder("generate"))
    facts |= {
        "requests": result.requests,
        "dropped": len(result.drops),
        "accepted_share": len(result.rows) / (len(result.rows) + n_rejected),
        "rouge_alone": {"kept": n_new_by_rouge, "of": n_checked},
    }
    gold = ctx.source.gold
    if gold is not None:
        parts = [gold(row, row.output or "", True).parts for row in result.rows]
        if "correct" in parts[0]:  # of the small world; there is always a row
            facts["correct"] = sum(part["correct"] for part in parts) / len(parts)
    if answers:
        # Prompts that share a draft make more answers than requests.
        judge = ctx.settings.inputs.judge
        summary = f"{len(result.rows)} answers kept by {judge}, from {result.requests} requests"
        return Outcome(len(result.rows), result.tokens, summary, facts)
    summary = f"{len(result.rows)} new tasks, {len(result.drops)} dropped"
    if ctx.source.novelty() is not None:
        summary += f" (ROUGE-L alone would have kept {n_new_by_rouge} of {n_checked})"
    return Outcome(len(result.rows), result.tokens, summary, facts)


@dataclass
class JudgeCheck:
    """A check of answers by a judge's score; the rows of a batch are scored together."""

    judge: Judge
    """Scores the answers."""
    min_score: float
    """Score from which on an answer is kept."""
    _scores: dict[Instruction, float] = field(default_factory=dict, init=False)

    def prepare(self, rows: Sequence[Instruction]) -> None:
        """Score rows together.

        Raises:
            JudgeFailure: A row has no score.
        """
        responses = [Response(row, row.output or "", True) for row in rows]
        scores = self.judge.scores(responses, stage="generate")
        self._scores = {row: score.score for row, score in zip(rows, scores, strict=True)}

    def __call__(self, row: Instruction) -> Drop | None:
        """Drop a row whose score is too low; see `BatchCheck`."""
        if row not in self._scores:
            self.prepare([row])
        score = self._scores[row]
        if score >= self.min_score:
            return None
        detail = f"its score {score:.2f} is below --generate.min-score {self.min_score:g}"
        return Drop("judge", detail, row)


def _judge_check(ctx: Context) -> JudgeCheck:
    """The check of answers by the run's judge; the prompts are the source's own."""
    if ctx.judges.ranks is None:
        raise ValueError("the recipe `answers` needs a judge that scores")
    return JudgeCheck(ctx.judges.ranks, ctx.settings.generate.min_score)
