"""The reward stage, with its shuffled control."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alpaca_rlhf.config import UserError
from alpaca_rlhf.context import Context, forget, suffixed
from alpaca_rlhf.data import holds_trees, read_pairs, read_ranking_trees
from alpaca_rlhf.evaluation.win_rate import accuracy_interval
from alpaca_rlhf.models.batches import Example, prompt_ids
from alpaca_rlhf.models.rollout import sample, score
from alpaca_rlhf.preferences import read
from alpaca_rlhf.stages.outcome import Outcome
from alpaca_rlhf.stages.rank import sampled
from alpaca_rlhf.training import groups as reward_groups
from alpaca_rlhf.training.reward import Group, train_reward

REFERENCES = 256
"""Completions to normalise scores on, where they have to be drawn for it."""


def reward(ctx: Context, round_: int) -> Outcome:
    """The reward adapter, from SFT, on all rankings so far.

    And a control trained on shuffled verdicts.
    """
    stage, settings = suffixed("reward", round_), ctx.settings.reward
    ctx.load("sft", "sft")
    train, held_out = ranking_groups(ctx, round_)
    seed = ctx.settings.seed
    intervals: dict[str, Any] = {}
    # In the control all verdicts are shuffled, the held-out ones too: whatever it learns, it must
    # sit at one half, unless something other than the verdicts tells the better one.
    control_groups = [reward_groups.shuffled(part, seed) for part in (train, held_out)]
    for name, (learned, asked) in (
        (f"{stage}_shuffled", control_groups),
        (stage, [train, held_out]),
    ):
        done = ctx.run.done(name) if name != stage else None
        if done is None:
            ctx.adapters.add("reward", copy_of="sft", seed=seed)
            head, result = train_reward(
                ctx.adapters,
                "reward",
                learned,
                asked,
                settings,
                seed=seed,
                checkpoints=ctx.checkpoints(name),
                log=ctx.log(name),
            )
            interval = accuracy_interval(
                result.correct, resamples=ctx.settings.evaluate.bootstrap, seed=seed
            )
            done = {"accuracy": result.accuracy, "ci95": interval.ci95}
            if name != stage:
                ctx.finish(name, done)
        intervals[name] = done
    reference = reference_examples(ctx, train)
    head.normalise(
        score(ctx.adapters, "reward", head, reference, batch_size=settings.micro_batch_size * 4)
    )
    ctx.save("reward", stage, head)
    if result.accuracy < settings.gate:
        forget(ctx.run, stage)  # other rankings or settings make another model
        raise UserError(
            f"{stage}: held-out accuracy {result.accuracy:.3f} is below --reward.gate "
            f"{settings.gate:g}: a policy trained on it would learn noise; look at the rankings, "
            "train otherwise (--reward.lr, --reward.epochs) or lower the gate"
        )
    control = intervals[f"{stage}_shuffled"]
    facts = {
        "pairs": result.pairs,
        "too_long": result.too_long,
        "held_out_pairs": sum(map(len, result.correct)),
        "held_out_accuracy": result.accuracy,
        "ci95": intervals[stage]["ci95"],
        "shuffled_label_accuracy": control["accuracy"],
        "shuffled_label_ci95": control["ci95"],
        "calibration_error": result.calibration_error,
        "length_correlation": result.length_correlation,
    }
    summary = (
        f"held-out accuracy {result.accuracy:.3f}, with shuffled labels {control['accuracy']:.3f}"
    )
    if result.too_long:
        summary += f"; {result.too_long} completions beyond --reward.max-length left out"
    tokens = sum(len(e) for g in train for e in g.examples) * settings.epochs
    return Outcome(result.rankings, tokens, summary, facts)


def ranking_groups(ctx: Context, round_: int) -> tuple[list[Group], list[Group]]:
    """All rankings up to a round, as groups to train on and held-out ones."""
    return reward_groups.split_held_out(_groups(ctx, round_), ctx.settings.reward.held_out)


def _groups(ctx: Context, round_: int) -> list[Group]:
    """All rankings so far, of files or of every round up to this one."""
    path = ctx.settings.inputs.rankings
    if path is not None:
        # prompts that lie near those of another split are left out
        apart = {prompt.id for prompt in ctx.source.prompts("rank")}
        return [group for group in _groups_of(ctx, path) if group.prompt_id in apart]
    groups: list[Group] = []
    for earlier in range(1, round_ + 1):
        own_prompts, own = sampled(ctx, earlier)
        rankings = read(ctx.run.path / suffixed("rank", earlier) / "rankings.jsonl", own)
        groups += reward_groups.from_rankings(ctx.adapters, rankings, own_prompts, own)
    return groups


def _groups_of(ctx: Context, path: Path) -> list[Group]:
    """The rankings of a file."""
    if holds_trees(path):
        trees = read_ranking_trees(path)
        prompts = {prompt.id: prompt for prompt, _, _ in trees}
        completions = {one.id: one for _, own, _ in trees for one in own}
        return reward_groups.from_rankings(
            ctx.adapters, [r for _, _, r in trees], prompts, completions
        )
    pairs: dict[str, Any] = {}
    for pair in read_pairs(path):
        pairs.setdefault(pair.group, []).append(pair)
    return reward_groups.from_pairs(ctx.adapters, pairs.values())


def reference_examples(ctx: Context, groups: list[Group]) -> list[Example]:
    """Completions of the SFT adapter, on which scores are normalised.

    Those of the first round; where rankings come from a file, fresh ones to prompts of the ppo
    split; where there is no such split, what the file holds.
    """
    if ctx.settings.inputs.rankings is None:
        prompts, completions = sampled(ctx, 1)
        return [
            reward_groups.completion_example(ctx.adapters, prompts[one.prompt_id], one)
            for one in completions.values()
        ]
    if "ppo" not in ctx.source.names():
        return [e for g in groups for e in g.examples][:REFERENCES]
    rows = ctx.source.prompts("ppo")[:REFERENCES]
    ids = [prompt_ids(ctx.base, ctx.settings.template, row) for row in rows]
    drawn = sample(
        ctx.adapters,
        "sft",
        ids,
        [f"reference/{row.id}" for row in rows],
        sampling=ctx.settings.sampling,
        seed=ctx.settings.seed,
    )
    return [Example(own, one.ids) for own, (one,) in zip(ids, drawn, strict=True)]
