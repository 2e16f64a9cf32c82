"""The reward stage: a reward model and, if asked for, its control on shuffled verdicts."""

from __future__ import annotations

import copy
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from alpaca_rlhf.core import processes
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.randomness import derived_seed
from alpaca_rlhf.core.records import PreferencePair, content_hash
from alpaca_rlhf.data import FileAccount, holds_rankings, read_pairs, read_rankings
from alpaca_rlhf.evaluation.accuracy_words import (
    beside_baselines,
    ensemble_in_words,
    judge_beside_baselines,
    judge_in_words,
)
from alpaca_rlhf.evaluation.learning_curve import more_in_words
from alpaca_rlhf.evaluation.reward_accuracy import accuracy_of, facts_of_others, figures
from alpaca_rlhf.models.batches import Example, prompt_ids
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.models.scoring import score
from alpaca_rlhf.preferences import manifest_of, read_snapshot
from alpaca_rlhf.preferences.snapshot import Ranked
from alpaca_rlhf.settings.steps import suffixed
from alpaca_rlhf.sources import reading_of
from alpaca_rlhf.stages.context import Context, control_of, forget, second_of
from alpaca_rlhf.stages.learning_curve import curve_facts, train_on_subsets
from alpaca_rlhf.stages.open_thoughts import tell_unclosed
from alpaca_rlhf.stages.outcome import Outcome
from alpaca_rlhf.stages.rank import (
    other_rankings,
    rankings_of_round,
    renew_snapshots,
    sampled_sets,
)
from alpaca_rlhf.stages.references import REFERENCES, finished_or_all, sample_references
from alpaca_rlhf.training import groups as reward_groups
from alpaca_rlhf.training.groups import Group
from alpaca_rlhf.training.reward import RewardResult, train_reward


class References(NamedTuple):
    """Completions of SFT that scores are normalised on."""

    examples: list[Example]
    """Those that stopped; all of them where too few did."""
    sampled: int
    """Number of all."""
    finished: int
    """Number of those that stopped."""

    def __str__(self) -> str:
        if self.finished == self.sampled:
            return f"scores normalised on {self.sampled:,} completions of SFT"
        if self.finished < len(self.examples):
            return (
                f"scores normalised on all {self.sampled:,} completions of SFT, of which only "
                f"{self.finished:,} stopped by themselves"
            )
        return (
            f"scores normalised on the {self.finished:,} of {self.sampled:,} completions of SFT "
            "that stopped by themselves"
        )


class Rankings(NamedTuple):
    """All rankings that a reward model may see, split by prompt."""

    train: list[Group]
    """Rankings to train on."""
    held_out: list[Group]
    """Rankings to measure on; their prompts are not among those trained on."""
    undecided: int
    """Number of rankings left out because all their completions tie or are equal."""
    account: FileAccount | None = None
    """The rows of the user's file, those that tie counted; None if it is none of theirs."""
    records: Mapping[int, Sequence[int]] = MappingProxyType({})
    """The records of the file that a group was made of, by `id` of the group."""

    def account_within(self, limit: int) -> dict[str, Any]:
        """The account as facts of a stage that leaves out completions beyond a limit in tokens."""
        if self.account is None:
            return {}
        account = copy.deepcopy(self.account)
        for group in (*self.train, *self.held_out):
            account.leave_out("too long", _too_long(group, self.records[id(group)], limit))
        return {"rows": account.to_json()}


def _too_long(group: Group, records: Sequence[int], limit: int) -> list[int]:
    """The records of a group of which nothing is left within a limit of tokens."""
    if len(records) == 1:  # a ranking, or a single pair
        return [] if reward_groups.usable([group], limit) else list(records)
    lengths = [len(example) for example in group.examples]
    pairs = zip(records, group.pairs, strict=True)
    return [record for record, (i, j) in pairs if max(lengths[i], lengths[j]) > limit]


def reward(ctx: Context, round_: int) -> Outcome:
    """Train the reward adapter from SFT on all rankings so far, and models that are asked for.

    With `--reward.control` that is a control on shuffled verdicts, and with `--watch.every` without
    `--watch.scorer` a second reward model on the rankings that the first has not seen.

    Raises:
        UserError: There is nothing to learn from, or the accuracy is below `--reward.gate`.
    """
    stage, settings = suffixed("reward", round_), ctx.settings.reward
    ctx.load("sft", "sft")

    # 1. Read the rankings and split them by prompt.
    if ctx.settings.inputs.rankings is None:
        processes.by_main(lambda: renew_snapshots(ctx, round_))
    rankings = ranking_groups(ctx, round_)
    train, held_out, undecided = rankings.train, rankings.held_out, rankings.undecided
    _check_criteria(ctx, train)
    _forget_other_rankings(ctx, stage, [*train, *held_out])
    _tell_too_long(ctx, [*train, *held_out])
    tell_unclosed(ctx, stage, [row for group in train for row in group.examples], "answers")

    # 2. Train the control, the second reward model and those on subsets, if they are asked for.
    references = reference_examples(ctx, train)
    started = time.perf_counter()
    control = _control(ctx, stage, rankings, references.examples)
    control_seconds = time.perf_counter() - started
    started = time.perf_counter()
    second = _second(ctx, stage, rankings, references.examples)
    second_seconds = time.perf_counter() - started
    started = time.perf_counter()
    curve = train_on_subsets(ctx, stage, train, held_out, references.examples)
    curve_seconds = time.perf_counter() - started

    # 3. Train the reward model, measure it on held-out rankings and normalise its scores.
    head, result = _train(ctx, stage, train, held_out, references.examples)

    # 4. Save, reopen, and compare.
    ctx.save("reward", stage, head)
    check_saved(ctx, stage, head, references.examples[0])
    if result.accuracy < settings.gate:
        raise UserError(
            f"{stage}: held-out accuracy {result.accuracy:.3f} is below --reward.gate "
            f"{settings.gate:g}: a policy trained on it would learn noise; look at the rankings, "
            "train otherwise (--reward.lr, --reward.epochs) or lower the gate: what is trained is "
            "kept"
        )

    # 5. Report.
    measured = figures(result.held_out, **_resampling(ctx))
    learned = curve_facts(curve, result.rankings, result.held_out, **_resampling(ctx))
    facts = {
        "pairs": result.pairs,
        "batch_size": result.batch_size,
        "too_long": result.too_long,
        "left_out": result.left_out,
        "undecided": undecided,
        **rankings.account_within(min(settings.max_length, ctx.base.context)),
        **measured,
        "shuffled_label_accuracy": control.get("accuracy"),
        "shuffled_label_ci95": control.get("ci95"),
        **({"control_seconds": control_seconds} if ctx.settings.reward.control else {}),
        **({**learned, "curve_seconds": curve_seconds} if learned else {}),
        **({"second": second, "second_seconds": second_seconds} if second else {}),
        **_of_heads(ctx, result),
        "reference_mean": result.reference_mean,
        "reference_std": result.reference_std,
        "reference_completions": references.sampled,
        "reference_finished": references.finished,
    }
    summary = f"held-out accuracy {result.accuracy:.3f}"
    if settings.heads > 1:
        summary += f" ({ensemble_in_words(facts)})"
    if control:
        summary += f", with shuffled labels {control['accuracy']:.3f}"
    beside = beside_baselines(
        measured["baselines"], measured["held_out_pairs"], measured["held_out_prompts"]
    )
    summary += f"; {beside}; {references}"
    if second:
        others = judge_beside_baselines(second)
        summary += f"; {judge_in_words(second)}" + (f" ({others})" if others else "")
    if learned:
        summary += f"; {more_in_words(learned['more_rankings'])}"
    if settings.batch_size is None:
        trained_on = f"{result.rankings:,} rankings"
        summary += f"; {ctx.note_batch_size(stage, result.batch_size, trained_on)}"
    if result.too_long:
        summary += f"; {result.too_long} completions beyond --reward.max-length left out"
    if result.left_out:
        summary += f", {result.left_out} rankings with them"
    if undecided:
        summary += f"; {undecided} rankings without a winner left out"
    tokens = sum(len(example) for group in train for example in group.examples) * settings.epochs
    return Outcome(result.rankings, tokens, summary, facts)


def _of_heads(ctx: Context, result: RewardResult) -> dict[str, Any]:
    """Facts of an ensemble: its size, its pessimism, and what its mean is worth; else nothing."""
    settings, held_out = ctx.settings.reward, result.held_out
    if settings.heads == 1:
        return {}
    return {
        "heads": settings.heads,
        "pessimism": settings.pessimism,
        "mean_accuracy": held_out.mean_accuracy,
        "disagreement": held_out.disagreement,
    }


def _control(
    ctx: Context, stage: str, rankings: Rankings, references: Sequence[Example]
) -> Mapping[str, Any]:
    """Train a control on shuffled verdicts, the held-out ones too, unless it is done.

    Whatever it learns, its accuracy must be one half, unless something other than the verdicts
    gives the better one away. It is normalised and saved as the reward model is.

    Returns:
        Its `accuracy`, and `ci95`; empty without `--reward.control`.
    """
    name, settings = control_of(stage), ctx.settings
    if not settings.reward.control:
        return {}
    done = ctx.run.done(name)
    if done is not None:
        return done
    train, held_out = (
        reward_groups.shuffled(groups, settings.seed)
        for groups in (rankings.train, rankings.held_out)
    )
    head, result = _train(ctx, name, train, held_out, references)
    ctx.save("reward", name, head)
    interval = accuracy_of(result.held_out.pairs, **_resampling(ctx))
    control = {"accuracy": interval.mean, "ci95": interval.ci95}
    ctx.finish(name, control)
    return control


def _second(
    ctx: Context, stage: str, rankings: Rankings, references: Sequence[Example]
) -> Mapping[str, Any]:
    """Train the second reward model on the held-out rankings, unless it is done.

    It looks at the policies while they train. Where its accuracy on the rankings of the first is
    below `--reward.gate` it is not used: the adapter of its best look would be one of chance.

    Returns:
        `trained_pairs`, the `pairs` and `prompts` it was measured on, `accuracy`, `ci95`,
        `baselines`, and `used`; empty where it is not asked for.
    """
    name, settings = second_of(stage), ctx.settings
    if not settings.second_reward:
        return {}
    done = ctx.run.done(name)
    if done is not None:
        return done
    # The two sets change places.
    seed = derived_seed(settings.seed, "second")
    head, result = _train(ctx, name, rankings.held_out, rankings.train, references, seed=seed)
    ctx.save("reward", name, head)
    measured = facts_of_others(result.pairs, result.held_out.pairs, **_resampling(ctx))
    second = {**measured, "used": measured["accuracy"] >= settings.reward.gate}
    ctx.finish(name, second)
    return second


def _account(ctx: Context, path: Path) -> FileAccount | None:
    """The account of the user's rankings as they were read; None in a run that has none."""
    accounts = ctx.source.accounts
    account = next((each for each in accounts if each.name == str(path)), None)
    return copy.deepcopy(account)


def _train(
    ctx: Context,
    name: str,
    train: Sequence[Group],
    held_out: Sequence[Group],
    references: Sequence[Example],
    *,
    seed: int | None = None,
) -> tuple[ScalarHead, RewardResult]:
    """Train a new reward adapter, a copy of SFT, from the last checkpoint under `name`.

    Its scores are normalised on the references. Order and head are drawn from the run's seed unless
    another is given.
    """
    ctx.adapters.add("reward", copy_of="sft", seed=ctx.settings.seed)
    return train_reward(
        ctx.adapters,
        "reward",
        train,
        held_out,
        ctx.settings.reward,
        seed=ctx.settings.seed if seed is None else seed,
        checkpoints=ctx.checkpoints(name),
        log=ctx.log(name),
        references=references,
    )


def _resampling(ctx: Context) -> dict[str, int]:
    """Options of a bootstrap interval."""
    return {"resamples": ctx.settings.evaluate.bootstrap, "seed": ctx.settings.seed}


def _tell_too_long(ctx: Context, groups: Sequence[Group]) -> None:
    """Say before the training, which may take hours, how much --reward.max-length leaves out."""
    limit = ctx.settings.reward.max_length
    lengths = [len(example) for group in groups for example in group.examples]
    too_long = sum(length > limit for length in lengths)
    if too_long:
        left_out = len(groups) - len(reward_groups.usable(groups, limit))
        ctx.reporter.say(
            f"{too_long:,} of {len(lengths):,} completions are longer than --reward.max-length "
            f"{limit} tokens and left out, and with them {left_out:,} of {len(groups):,} rankings; "
            "raise it to train on them"
        )


def _forget_other_rankings(ctx: Context, stage: str, groups: Sequence[Group]) -> None:
    """Delete what an earlier sitting trained if it was on other rankings."""
    name = f"{stage}_rankings"
    digest = digest_of(groups)
    before = ctx.run.done(name)
    if before is not None and before["digest"] != digest:
        forget(ctx.run, stage)
    if before is None or before["digest"] != digest:
        ctx.run.finish(name, {"digest": digest})


def digest_of(groups: Sequence[Group]) -> str:
    """Digest of rankings; those that the reward model and DPO learn from have the same one."""
    return content_hash(*(repr(group) for group in groups))


def check_saved(ctx: Context, stage: str, head: ScalarHead, example: Example) -> None:
    """Reload a stage's adapter and head from the disk, and compare the score of one example.

    Raises:
        RuntimeError: The scores differ in any bit.
    """
    before = score(ctx.adapters, "reward", head, [example], batch_size=1)
    ctx.load("reward", stage)
    after = score(ctx.adapters, "reward", ctx.load_head(stage), [example], batch_size=1)
    if not torch.equal(before, after):
        raise RuntimeError(
            f"{ctx.adapter_folder(stage)}: reopened, it scores {float(after)} "
            f"where the model in memory scores {float(before)}"
        )


def ranking_groups(ctx: Context, round_: int) -> Rankings:
    """Collect all rankings up to a round, as groups to train on and held-out groups.

    Raises:
        UserError: Every ranking is a tie.
    """
    path = ctx.settings.inputs.rankings
    if path is not None:
        # the split leaves out prompts that are near-duplicates of another split's
        prompts_of_split = {prompt.id for prompt in ctx.source.prompts("rank")}
        of_file = _of_file(ctx, path, prompts_of_split)
        groups, count = of_file.groups, of_file.rankings
    else:
        of_file = None
        path = ctx.run.path / suffixed("rank", round_)
        ranked = [row for r in range(1, round_ + 1) for row in rankings_of_round(ctx, r)]
        ranked += other_rankings(ctx, round_)[0]
        groups, count = _of_ranked(ctx, ranked), len(ranked)
    if not groups:
        raise UserError(
            f"{path}: none of the {count} rankings has a winner: all their completions tie or have "
            "the same text; change the rankings, or learn from ties with --reward.ties soft"
        )
    train, held_out = reward_groups.split_held_out(groups, ctx.settings.reward.held_out)
    undecided = count - len(groups)
    if of_file is None:
        return Rankings(train, held_out, undecided)
    account = _account(ctx, path)
    if account is not None:
        account.leave_out("tie", of_file.undecided)
    by_group = {id(group): records for group, records in zip(groups, of_file.records, strict=True)}
    return Rankings(train, held_out, undecided, account, by_group)


def _of_ranked(ctx: Context, ranked: Sequence[Ranked]) -> list[Group]:
    return reward_groups.from_rankings(
        ctx.adapters,
        [ranking for _, _, ranking in ranked],
        {prompt.id: prompt for prompt, _, _ in ranked},
        {completion.id: completion for _, completions, _ in ranked for completion in completions},
        ties=ctx.settings.reward.ties == "soft",
    )


class _OfFile(NamedTuple):
    """The groups of a file of rankings."""

    groups: list[Group]
    """Those that have a pair."""
    records: list[list[int]]
    """For each group, the records of the file that it was made of; one for each of its pairs where
    the file holds pairs."""
    undecided: list[int]
    """Records of rankings that give no group."""
    rankings: int
    """Number of rankings, or of prompts with pairs."""


def _of_file(ctx: Context, path: Path, prompts: Collection[str]) -> _OfFile:
    """Read the rankings of a file for the given prompts, as groups, and count them."""
    snapshot = manifest_of(path) is not None
    reading = reading_of(ctx.settings.inputs, "rankings", path)
    if snapshot or holds_rankings(path, reading):
        ranked = read_snapshot(path) if snapshot else read_rankings(path, reading)
        groups: list[Group] = []
        records: list[list[int]] = []
        undecided: list[int] = []
        for number, row in enumerate(ranked):
            if row[0].id in prompts:
                row_groups = _of_ranked(ctx, [row])
                groups += row_groups
                records += [[number] for _ in row_groups]
                undecided += [] if row_groups else [number]
        return _OfFile(groups, records, undecided, len(groups) + len(undecided))
    pairs: dict[str, list[PreferencePair]] = {}
    numbers: dict[str, list[int]] = {}
    for number, pair in enumerate(read_pairs(path, reading)):
        if pair.group in prompts:
            pairs.setdefault(pair.group, []).append(pair)
            numbers.setdefault(pair.group, []).append(number)
    groups = reward_groups.from_pairs(ctx.adapters, pairs.values())
    return _OfFile(groups, list(numbers.values()), [], len(pairs))


def _check_criteria(ctx: Context, groups: Sequence[Group]) -> None:
    """Refuse settings that need margins or stars which no ranking gives."""
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


def reference_examples(ctx: Context, groups: Sequence[Group]) -> References:
    """Collect completions of the SFT adapter to normalise scores on.

    They are those of the first round. If rankings come from a file, new ones are sampled to prompts
    of the ppo split; without such a split, the file's own completions serve. Those that were cut
    are left out, unless hardly any stopped.
    """
    return _finished_ones(_references(ctx, groups), ctx.base.stop_ids)


def _finished_ones(examples: Sequence[Example], stop_ids: Collection[int]) -> References:
    """The examples that end with a stop token, if there are enough of them."""
    finished = [
        bool(example.completion) and example.completion[-1] in stop_ids for example in examples
    ]
    return References(finished_or_all(examples, finished), len(examples), sum(finished))


def _references(ctx: Context, groups: Sequence[Group]) -> list[Example]:
    if ctx.settings.inputs.rankings is None:
        return [
            reward_groups.completion_example(ctx.adapters, prompt, completion)
            for prompt, completions in sampled_sets(ctx, 1)
            for completion in completions
        ]
    if "ppo" not in ctx.source.names():
        return [example for group in groups for example in group.examples][:REFERENCES]
    return [
        Example(prompt_ids(ctx.base, ctx.settings.template, row), completion.ids)
        for row, completion in sample_references(ctx)
    ]
