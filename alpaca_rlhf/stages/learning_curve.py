"""The learning curve of a reward model: the same training on nested subsets of its rankings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alpaca_rlhf.core.records import content_hash
from alpaca_rlhf.evaluation.learning_curve import CorrectByPrompt, curve_point, more_rankings
from alpaca_rlhf.evaluation.reward_accuracy import correct_by_prompt
from alpaca_rlhf.models.batches import Example
from alpaca_rlhf.stages.context import Context, subset_of
from alpaca_rlhf.training.groups import Group, usable
from alpaca_rlhf.training.held_out import HeldOutEvaluation
from alpaca_rlhf.training.reward import train_reward

MIN_RANKINGS = 8
"""Rankings of the smallest subset: two steps of the smallest batch."""


def nested_subset(groups: Sequence[Group], halvings: int) -> list[Group]:
    """The share 1 / 2^halvings of rankings, in their order; each subset holds the smaller ones.

    Which they are depends on their prompts alone.
    """
    size = len(groups) >> halvings
    by_hash = sorted(groups, key=lambda group: content_hash("learning curve", group.prompt_id))
    chosen = {id(group) for group in by_hash[:size]}
    return [group for group in groups if id(group) in chosen]


def train_on_subsets(
    ctx: Context,
    stage: str,
    train: Sequence[Group],
    held_out: Sequence[Group],
    references: Sequence[Example],
) -> list[tuple[int, CorrectByPrompt]]:
    """Train a reward model on each subset that is not done, the smallest first, and measure it.

    The adapters are not kept. Only several heads are normalised on the references.

    Returns:
        Rankings of each subset, and which held-out pairs its model ordered rightly.
    """
    # Those that are too long are left out before the rankings are counted.
    limit = min(ctx.settings.reward.max_length, ctx.adapters.base.context)
    train = usable(train, limit)
    curve = []
    for halvings in range(ctx.settings.curve_subsets, 0, -1):
        subset = nested_subset(train, halvings)
        if len(subset) < MIN_RANKINGS:
            continue
        name = subset_of(stage, halvings)
        if ctx.run.done(name) is None:
            ctx.adapters.add("reward", copy_of="sft", seed=ctx.settings.seed)
            _, result = train_reward(
                ctx.adapters,
                "reward",
                subset,
                held_out,
                ctx.settings.reward,
                seed=ctx.settings.seed,
                checkpoints=ctx.checkpoints(name),
                log=ctx.log(name),
                references=references if ctx.settings.reward.heads > 1 else (),
            )
            correct = correct_by_prompt(result.held_out.pairs)
            ctx.finish(name, {"rankings": result.rankings, "correct": correct})
        entry = ctx.run.done(name)
        assert entry is not None
        curve.append((entry["rankings"], entry["correct"]))
    return curve


def curve_facts(
    curve: Sequence[tuple[int, CorrectByPrompt]],
    rankings: int,
    held_out: HeldOutEvaluation,
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """`learning_curve`, a point for each subset and for all, and `more_rankings`; else nothing."""
    if not curve:
        return {}
    whole = correct_by_prompt(held_out.pairs)
    options = {"resamples": resamples, "seed": seed}
    points = [curve_point(n, correct, **options) for n, correct in (*curve, (rankings, whole))]
    more = more_rankings(rankings, curve[-1][1], whole, **options)
    return {"learning_curve": points, "more_rankings": more}
