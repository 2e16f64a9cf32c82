"""The reward stage, with its shuffled control."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import PreferencePair, content_hash
from alpaca_rlhf.data import holds_rankings, read_pairs, read_rankings
from alpaca_rlhf.evaluation.reward_accuracy import accuracy_of, figures
from alpaca_rlhf.models.batches import Example, prompt_ids
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.models.rollout import sample, score
from alpaca_rlhf.preferences import manifest_of, read_snapshot
from alpaca_rlhf.preferences.snapshot import Ranked
from alpaca_rlhf.stages.context import Context, forget, suffixed
from alpaca_rlhf.stages.outcome import Outcome
from alpaca_rlhf.stages.rank import other_rankings, rankings_of_round, sampled_sets
from alpaca_rlhf.training import groups as reward_groups
from alpaca_rlhf.training.groups import Group
from alpaca_rlhf.training.held_out import scored
from alpaca_rlhf.training.reward import micro_batch, train_reward

REFERENCES = 256
"""Completions to normalise scores on, where they have to be drawn for it."""


class Rankings(NamedTuple):
    """All rankings that a reward model may see."""

    train: list[Group]
    """Those to train on."""
    held_out: list[Group]
    """Those to measure on: no prompt of theirs is among the others."""
    undecided: int
    """Rankings that are neither, because nobody wins in them: all completions tie or are equal."""


def reward(ctx: Context, round_: int) -> Outcome:
    """The reward adapter, from SFT, on all rankings so far.

    And a control trained on shuffled verdicts.
    """
    stage, settings = suffixed("reward", round_), ctx.settings.reward
    ctx.load("sft", "sft")
    train, held_out, undecided = ranking_groups(ctx, round_)
    _check_wishes(ctx, train)
    _begin_anew_on_other_rankings(ctx, stage, [*train, *held_out])
    seed = ctx.settings.seed
    options = {"resamples": ctx.settings.evaluate.bootstrap, "seed": seed}
    control: dict[str, Any] = {}
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
            if name != stage:
                interval = accuracy_of(result.held_out.pairs, **options)
                done = {"accuracy": interval.mean, "ci95": interval.ci95}
                ctx.finish(name, done)
        if done is not None:
            control = done
    reference = reference_examples(ctx, train)
    raw = scored(ctx.adapters, "reward", head, reference, micro_batch(stage, settings))
    head.normalise(raw)
    ctx.save("reward", stage, head)
    check_saved(ctx, stage, head, reference[0])
    if result.accuracy < settings.gate:
        raise UserError(
            f"{stage}: held-out accuracy {result.accuracy:.3f} is below --reward.gate "
            f"{settings.gate:g}: a policy trained on it would learn noise; look at the rankings, "
            "train otherwise (--reward.lr, --reward.epochs) or lower the gate: what is trained is "
            "kept"
        )
    facts = {
        "pairs": result.pairs,
        "too_long": result.too_long,
        "left_out": result.left_out,
        "undecided": undecided,
        **figures(result.held_out, **options),
        "shuffled_label_accuracy": control["accuracy"],
        "shuffled_label_ci95": control["ci95"],
        "reference_mean": float(raw.double().mean()),
        "reference_std": float(raw.double().std(correction=0)),
    }
    summary = (
        f"held-out accuracy {result.accuracy:.3f}, with shuffled labels {control['accuracy']:.3f}"
    )
    if result.too_long:
        summary += f"; {result.too_long} completions beyond --reward.max-length left out"
    if result.left_out:
        summary += f", {result.left_out} rankings with them"
    if undecided:
        summary += f"; {undecided} rankings in which nobody wins left out"
    tokens = sum(len(e) for g in train for e in g.examples) * settings.epochs
    return Outcome(result.rankings, tokens, summary, facts)


def _begin_anew_on_other_rankings(ctx: Context, stage: str, groups: Sequence[Group]) -> None:
    """Forget what an earlier sitting trained, unless it was on these rankings."""
    name = f"{stage}_rankings"
    digest = content_hash(*(repr(group) for group in groups))
    before = ctx.run.done(name)
    if before is not None and before["digest"] != digest:
        forget(ctx.run, stage)
    if before is None or before["digest"] != digest:
        ctx.run.finish(name, {"digest": digest})


def check_saved(ctx: Context, stage: str, head: ScalarHead, one: Example) -> None:
    """Read a stage's adapter and head back from the disk, and compare the score of one example.

    Raises:
        RuntimeError: It is not the same number, bit for bit.
    """
    before = score(ctx.adapters, "reward", head, [one], batch_size=1)
    ctx.load("reward", stage)
    after = score(ctx.adapters, "reward", ctx.load_head(stage), [one], batch_size=1)
    if not torch.equal(before, after):
        raise RuntimeError(
            f"{ctx.adapter_folder(stage)}: reopened, it scores {float(after)} "
            f"where the model in memory scores {float(before)}"
        )


def ranking_groups(ctx: Context, round_: int) -> Rankings:
    """All rankings up to a round, as groups to train on and held-out ones.

    Raises:
        UserError: Nobody wins in any of them.
    """
    path = ctx.settings.inputs.rankings
    if path is not None:
        # prompts that lie near those of another split are left out
        apart = {prompt.id for prompt in ctx.source.prompts("rank")}
        groups, count = _of_file(ctx, path, apart)
    else:
        path = ctx.run.path / suffixed("rank", round_)
        rows = [row for r in range(1, round_ + 1) for row in rankings_of_round(ctx, r)]
        rows += other_rankings(ctx, round_)[0]
        groups, count = _of_ranked(ctx, rows), len(rows)
    if not groups:
        raise UserError(
            f"{path}: in none of the {count} rankings anybody wins: all their completions tie or "
            "have the same text; rank them otherwise, or learn from ties with --reward.ties soft"
        )
    split = reward_groups.split_held_out(groups, ctx.settings.reward.held_out)
    return Rankings(*split, undecided=count - len(groups))


def _of_ranked(ctx: Context, rows: Sequence[Ranked]) -> list[Group]:
    return reward_groups.from_rankings(
        ctx.adapters,
        [ranking for _, _, ranking in rows],
        {prompt.id: prompt for prompt, _, _ in rows},
        {completion.id: completion for _, completions, _ in rows for completion in completions},
        ties=ctx.settings.reward.ties == "soft",
    )


def _of_file(ctx: Context, path: Path, prompts: Collection[str]) -> tuple[list[Group], int]:
    """The rankings of a file that answer some prompts, and how many there are."""
    snapshot = manifest_of(path) is not None
    if snapshot or holds_rankings(path):
        ranked = read_snapshot(path) if snapshot else read_rankings(path)
        trees = [one for one in ranked if one[0].id in prompts]
        return _of_ranked(ctx, trees), len(trees)
    pairs: dict[str, list[PreferencePair]] = {}
    for pair in read_pairs(path):
        if pair.group in prompts:
            pairs.setdefault(pair.group, []).append(pair)
    return reward_groups.from_pairs(ctx.adapters, pairs.values()), len(pairs)


def _check_wishes(ctx: Context, groups: Sequence[Group]) -> None:
    """Refuse settings that ask for what no ranking says."""
    settings = ctx.settings.reward
    if settings.margin > 0 and not any(any(group.margins) for group in groups):
        raise UserError(
            f"--reward.margin {settings.margin:g}: none of the pairs of "
            f"{ctx.settings.inputs.rankings} says how much better the better one is; "
            "add a column `margin`, or leave the flag out"
        )
    if settings.criteria_weight > 0 and not any(group.criteria for group in groups):
        raise UserError(
            f"--reward.criteria-weight {settings.criteria_weight:g}: no ranking gives stars for "
            "criteria that differ; rank with stars, or leave the flag out"
        )


def reference_examples(ctx: Context, groups: list[Group]) -> list[Example]:
    """Completions of the SFT adapter, on which scores are normalised.

    Those of the first round; where rankings come from a file, fresh ones to prompts of the ppo
    split; where there is no such split, what the file holds.
    """
    if ctx.settings.inputs.rankings is None:
        return [
            reward_groups.completion_example(ctx.adapters, prompt, completion)
            for prompt, completions in sampled_sets(ctx, 1)
            for completion in completions
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
