"""The judge of the evaluation: the run's own, or a reward model trained on held-out rankings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.core.scorers import Response, Scores
from alpaca_rlhf.evaluation.reward_accuracy import facts_of_others
from alpaca_rlhf.models.batches import example
from alpaca_rlhf.models.devices import float64
from alpaca_rlhf.models.scoring import score
from alpaca_rlhf.stages.arm_answers import Completion
from alpaca_rlhf.stages.context import Context
from alpaca_rlhf.stages.reward import ranking_groups, reference_examples
from alpaca_rlhf.training.reward import train_reward

EvaluationJudge = Callable[[Sequence[Instruction], Sequence[Completion]], list[Scores]]
"""Scores a completion of each prompt."""


def bootstrap_options(ctx: Context) -> dict[str, int]:
    """Options of a bootstrap interval."""
    return {"resamples": ctx.settings.evaluate.bootstrap, "seed": ctx.settings.seed}


def evaluation_judge(ctx: Context) -> EvaluationJudge:
    """The run's judge, or a reward model trained on nothing but the held-out rankings."""
    judge_of_run = ctx.judges.evaluates
    if judge_of_run is None:
        return _held_out_judge(ctx)
    return lambda rows, answers: judge_of_run.scores(
        [
            Response(row, answer.text, answer.finished)
            for row, answer in zip(rows, answers, strict=True)
        ],
        stage="evaluate",
    )


def _held_out_judge(ctx: Context) -> EvaluationJudge:
    """Train a reward model of one head on the rankings that the run's own has not seen.

    It measures, and does not reward: there is nothing that pessimism would keep it from.
    """
    # 1. The two sets change places: this model learns from what the reward model has not seen.
    groups = ranking_groups(ctx, ctx.settings.all_rounds)
    ctx.adapters.add("reward", copy_of="sft", seed=ctx.settings.seed + 1)
    head, result = train_reward(
        ctx.adapters,
        "reward",
        groups.held_out,
        groups.train,
        replace(ctx.settings.reward, heads=1, pessimism=0.0),
        seed=ctx.settings.seed + 1,
        checkpoints=ctx.checkpoints("judge"),
        log=ctx.log("judge"),
        stage="judge",
    )
    # 2. The loss does not depend on an offset of the scores, but the sigmoid below does.
    reference = reference_examples(ctx, groups.train).examples
    size = ctx.settings.sampling.batch_size
    head.normalise(score(ctx.adapters, "reward", head, reference, batch_size=size))
    # 3. Its accuracy on the others.
    others = result.held_out.pairs
    ctx.finish("judge", facts_of_others(result.pairs, others, **bootstrap_options(ctx)))

    def judge(rows: Sequence[Instruction], answers: Sequence[Completion]) -> list[Scores]:
        examples = [
            example(ctx.base, ctx.settings.template, row, answer.text, finished=answer.finished)
            for row, answer in zip(rows, answers, strict=True)
        ]
        scores = score(ctx.adapters, "reward", head, examples, batch_size=size)
        return [Scores(value, {}) for value in torch.sigmoid(float64(scores)).tolist()]

    return judge
