"""Prompts and judges of the stages whose policy learns from a reward of its own completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from alpaca_rlhf.checks import Checks
from alpaca_rlhf.core import processes
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.core.scorers import Response
from alpaca_rlhf.data import cluster_numbers
from alpaca_rlhf.judges import Judge
from alpaca_rlhf.models.batches import Example, answer, prompt_ids
from alpaca_rlhf.models.devices import float64
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.models.rollout import SampledCompletion
from alpaca_rlhf.models.scoring import score
from alpaca_rlhf.settings.steps import suffixed
from alpaca_rlhf.stages.context import Context, second_of
from alpaca_rlhf.stages.judge_reward import JudgeReward, judge_reward
from alpaca_rlhf.stages.open_thoughts import tell_sampled
from alpaca_rlhf.stages.outcome import Outcome
from alpaca_rlhf.stages.watch_words import look_rows, watch_facts
from alpaca_rlhf.training.rollouts import RewardScores, RolloutPrompt
from alpaca_rlhf.training.watching import Watch

SECOND = "second"
"""Role of the second reward model, beside those of the policies."""


@dataclass(frozen=True)
class RolloutSource:
    """The prompts of a stage that samples from its policy, and the judges of its completions."""

    ctx: Context
    stage: str
    """Name of the stage, with its round."""
    round: int
    """The round, from 1."""
    rows: Sequence[Instruction]
    """Its prompts."""
    by_judge: JudgeReward | None
    """A judge that gives the reward in a reward model's place."""
    watched: Sequence[Instruction] = ()
    """Prompts of `dev` that looks at the policy sample on."""

    @property
    def prompts(self) -> list[RolloutPrompt]:
        """The prompts as token ids."""
        return self._tokenized(self.rows)

    def watch(self) -> Watch | None:
        """The looks at the policy that the settings ask for."""
        settings = self.ctx.settings.watch
        if not settings.every:
            return None
        scorer: RewardScores = self._held_out_scores
        if self.ctx.settings.second_reward:
            second = second_of(suffixed("reward", self.round))
            facts = self.ctx.run.done(second) or {}
            if not facts.get("used"):
                self.ctx.reporter.say(
                    f"{self.stage}: nothing looks at the policy, and its last adapter is kept: the "
                    f"second reward model is right on {facts.get('accuracy', 0.0):.3f} of its "
                    "pairs, below --reward.gate"
                )
                return None
            self.ctx.load(SECOND, second)
            scorer = self._second_scores(self.ctx.load_head(second))
        prompts = self._tokenized(self.watched)
        return Watch(prompts, scorer, every=settings.every, patience=settings.patience)

    def _tokenized(self, rows: Sequence[Instruction]) -> list[RolloutPrompt]:
        base, template = self.ctx.base, self.ctx.settings.template
        return [RolloutPrompt(row.id, prompt_ids(base, template, row)) for row in rows]

    def reward(self, reward_stage: str) -> ScalarHead | RewardScores:
        """Load the reward adapter of a stage, and return its head; or the judge in its place."""
        if self.by_judge is not None:
            return self._reward_scores
        self.ctx.load("reward", reward_stage)
        return self.ctx.load_head(reward_stage)

    def completion_metrics(
        self, prompts: Sequence[RolloutPrompt], completions: Sequence[SampledCompletion]
    ) -> dict[str, float]:
        """Scores by the judge of the evaluation, which watches where it is a rule of the kit's."""
        if self._watching is None:
            return {}
        verdicts = self._watching.scores(self._responses(prompts, completions), stage=self.stage)
        metrics = {"gold_score": sum(verdict.score for verdict in verdicts) / len(verdicts)}
        if "correct" in verdicts[0].parts:
            correct = sum(verdict.parts["correct"] for verdict in verdicts)
            metrics["gold_correct"] = correct / len(verdicts)
        return metrics

    @cached_property
    def _watching(self) -> Judge | None:
        """The evaluation's judge, where it is a rule of the kit's that knows all of the prompts."""
        judge = self.ctx.judges.watches
        if judge is not None and isinstance(judge.source, Checks):
            return judge if all(map(Checks.can_judge, self.rows)) else None
        return judge

    def _reward_scores(
        self, prompts: Sequence[RolloutPrompt], completions: Sequence[SampledCompletion]
    ) -> list[float]:
        assert self.by_judge is not None
        return self.by_judge.scores(self._responses(prompts, completions), stage=self.stage)

    def _held_out_scores(
        self, prompts: Sequence[RolloutPrompt], completions: Sequence[SampledCompletion]
    ) -> list[float]:
        """Score in the main process, for all."""
        judge = self.ctx.judges.held_out
        assert judge is not None
        responses = self._responses(prompts, completions)
        ratings = processes.from_main(lambda: judge.scores(responses, stage=self.stage))
        return [rating.score for rating in ratings]

    def _second_scores(self, head: ScalarHead) -> RewardScores:
        """Scores by the second reward model, in the main process for all.

        Each is the chance that the completion is preferred to an average one of SFT.
        """
        adapters, size = self.ctx.adapters, self.ctx.settings.sampling.batch_size

        def scores(
            prompts: Sequence[RolloutPrompt], completions: Sequence[SampledCompletion]
        ) -> list[float]:
            examples = [
                Example(prompt.ids, completion.ids)
                for prompt, completion in zip(prompts, completions, strict=True)
            ]

            def chances() -> list[float]:
                rewards = score(adapters, SECOND, head, examples, batch_size=size)
                return [float(chance) for chance in torch.sigmoid(float64(rewards))]

            return processes.from_main(chances)

        return scores

    def _responses(
        self, prompts: Sequence[RolloutPrompt], completions: Sequence[SampledCompletion]
    ) -> list[Response]:
        base, template = self.ctx.base, self.ctx.settings.template
        by_key = {row.id: row for row in (*self.rows, *self.watched)}
        return [
            Response(
                by_key[prompt.key], answer(base, template, completion.ids), completion.finished
            )
            for prompt, completion in zip(prompts, completions, strict=True)
        ]


def rollout_source(ctx: Context, stage: str, round_: int) -> RolloutSource:
    """Load the reference, and collect the prompts and judges of a stage.

    Raises:
        UserError: The judge that gives the reward gives all completions of SFT the same score.
    """
    ctx.load("sft", "sft")
    tell_sampled(ctx, stage)
    by_judge = judge_reward(ctx, round_) if ctx.settings.reward.source == "judge" else None
    watch = ctx.settings.watch
    watched = ctx.source.prompts("dev")[: watch.prompts] if watch.every else []
    rows = ctx.source.prompts(suffixed("ppo", round_))
    return RolloutSource(ctx, stage, round_, rows, by_judge, watched)


def outcome_of_updates(
    ctx: Context, stage: str, completions: int, watch: Watch | None = None
) -> Outcome:
    """Report a stage from the metrics of all sittings.

    Args:
        ctx: The run.
        stage: Name of the stage, with its round.
        completions: Completions of an update.
        watch: The looks at its policy.
    """
    rows = [row for row in ctx.run.metrics() if row["stage"] == stage]
    first, last = rows[0], rows[-1]
    tokens = round(sum(row["mean_tokens"] for row in rows) * completions)
    scores = f"score {first['score']:+.2f} -> {last['score']:+.2f}"
    summary = f"{scores}, KL {last['kl']:.2f} nats a completion"
    facts: dict[str, Any] = {"kl_at_start": first["kl"]}
    if watch is not None:
        facts["watch"] = facts_of_looks(ctx, stage, watch)
        tokens += watch.sampled_tokens
    return Outcome(len(rows) * completions, tokens, summary, facts)


def facts_of_looks(ctx: Context, stage: str, watch: Watch) -> dict[str, Any]:
    """The looks at a trained policy: kept prompt by prompt, told, and as the ledger holds them."""
    watched = ctx.source.prompts("dev")[: len(watch.prompts)]
    facts = watch_facts(watch, cluster_numbers(watched, ctx.source.key))
    ctx.run.write_jsonl(f"{stage}/looks.jsonl", look_rows(watch))
    for sentence in facts["words"]:
        ctx.reporter.say(f"{stage}: {sentence}")
    return facts
