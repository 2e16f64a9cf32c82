"""The stages GRPO and RLOO: the completions of a prompt are each other's baseline."""

from __future__ import annotations

from dataclasses import replace

from alpaca_rlhf.core.randomness import derived_seed
from alpaca_rlhf.settings.steps import suffixed
from alpaca_rlhf.stages.context import Context
from alpaca_rlhf.stages.outcome import Outcome
from alpaca_rlhf.stages.rollouts import outcome_of_updates, rollout_source
from alpaca_rlhf.training.group_policy import GroupMethod, train_in_groups
from alpaca_rlhf.training.grpo import grpo_method
from alpaca_rlhf.training.rloo import rloo_method


def grpo(ctx: Context, round_: int) -> Outcome:
    """Run GRPO from SFT or, in later rounds, from its last policy; SFT stays the reference."""
    settings = replace(ctx.settings.grpo, temperature=ctx.settings.temperature_of("grpo"))
    return _train(ctx, round_, grpo_method(settings))


def rloo(ctx: Context, round_: int) -> Outcome:
    """Run RLOO from SFT or, in later rounds, from its last policy; SFT stays the reference."""
    settings = replace(ctx.settings.rloo, temperature=ctx.settings.temperature_of("rloo"))
    return _train(ctx, round_, rloo_method(settings))


def _train(ctx: Context, round_: int, method: GroupMethod) -> Outcome:
    stage = suffixed(method.name, round_)
    # 1. The reference, the reward, and the policy to start from.
    source = rollout_source(ctx, stage, round_)
    reward = source.reward(suffixed("reward", round_))
    ctx.load("policy", "sft" if round_ == 1 else suffixed(method.name, round_ - 1))
    watch = source.watch()
    # 2. Train, from the last checkpoint, and save.
    train_in_groups(
        ctx.adapters,
        reward,
        source.prompts,
        method,
        seed=derived_seed(ctx.settings.seed, "round", round_),
        rollout_batch_size=ctx.settings.sampling.batch_size,
        checkpoints=ctx.checkpoints(stage),
        log=ctx.log(stage),
        completion_metrics=source.completion_metrics,
        watch=watch,
    )
    ctx.save("policy", stage)
    return outcome_of_updates(ctx, stage, method.settings.completions, watch)
