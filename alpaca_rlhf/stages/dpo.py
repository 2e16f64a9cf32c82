"""The DPO stage: the policy learns the rankings themselves.

Log-probabilities of the frozen SFT adapter are computed once and kept in `dpo/reference.jsonl`; the
ledger holds the file's sha256 and a digest of everything that determines them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict

from alpaca_rlhf.core import processes
from alpaca_rlhf.core.provenance import sha256_of
from alpaca_rlhf.core.records import content_hash
from alpaca_rlhf.settings.steps import suffixed
from alpaca_rlhf.stages.context import Context, forget
from alpaca_rlhf.stages.open_thoughts import tell_unclosed
from alpaca_rlhf.stages.outcome import Outcome
from alpaca_rlhf.stages.rank import renew_snapshots
from alpaca_rlhf.stages.reward import digest_of, ranking_groups
from alpaca_rlhf.training.dpo import ReferencedGroup, micro_batch, reference_logprobs, train_dpo
from alpaca_rlhf.training.groups import Group, usable

logger = logging.getLogger(__name__)


def dpo(ctx: Context, round_: int) -> Outcome:
    """Train the policy from SFT on all rankings so far; SFT is the reference.

    The rankings held out are those that the reward model does not see either.

    Raises:
        UserError: There is nothing to learn from.
    """
    stage, settings = suffixed("dpo", round_), ctx.settings.dpo
    ctx.load("sft", "sft")

    # 1. Read the rankings, and leave out completions that are too long.
    if ctx.settings.inputs.rankings is None:
        processes.by_main(lambda: renew_snapshots(ctx, round_))
    rankings = ranking_groups(ctx, round_)
    every = [*rankings.train, *rankings.held_out]
    limit = min(settings.max_length, ctx.base.context)
    too_long = sum(len(example) > limit for group in every for example in group.examples)
    train, held_out = usable(rankings.train, limit), usable(rankings.held_out, limit)

    tell_unclosed(ctx, stage, [row for group in train for row in group.examples], "answers")

    # 2. Log-probabilities under SFT, unless an earlier sitting has them.
    reference = _reference(ctx, round_, [*train, *held_out])
    referenced = [
        ReferencedGroup(group, logprobs)
        for group, logprobs in zip([*train, *held_out], reference, strict=True)
    ]

    # 3. Train from SFT, and save.
    ctx.adapters.add("policy", copy_of="sft", seed=ctx.settings.seed)
    result = train_dpo(
        ctx.adapters,
        "policy",
        referenced[: len(train)],
        referenced[len(train) :],
        settings,
        seed=ctx.settings.seed,
        checkpoints=ctx.checkpoints(stage),
        log=ctx.log(stage),
        stage=stage,
    )
    ctx.save("policy", stage)

    # 4. Report.
    left_out = len(every) - len(train) - len(held_out)
    facts = {
        "pairs": result.pairs,
        "batch_size": result.batch_size,
        "steps": result.steps,
        "best_step": result.best_step,
        "too_long": too_long,
        "left_out": left_out,
        "undecided": rankings.undecided,
        **rankings.account_within(limit),
        "rankings_digest": digest_of(every),
        "held_out_pairs": sum(len(group.pairs) for group in held_out),
        "held_out_prompts": len(held_out),
        **{f"held_out_{name}": value for name, value in asdict(result.held_out).items()},
    }
    held_out_words = f"held-out accuracy {result.held_out.accuracy:.3f}"
    summary = f"{held_out_words} of the implicit reward, margin {result.held_out.margin:+.2f}"
    if settings.batch_size is None:
        words = f"{result.rankings:,} rankings"
        summary += f"; {ctx.note_batch_size(stage, result.batch_size, words)}"
    if too_long:
        summary += f"; {too_long} completions beyond --dpo.max-length left out"
    if left_out:
        summary += f", {left_out} rankings with them"
    if rankings.undecided:
        summary += f"; {rankings.undecided} rankings without a winner left out"
    return Outcome(result.rankings, result.tokens, summary, facts)


def _reference(ctx: Context, round_: int, groups: Sequence[Group]) -> list[tuple[float, ...]]:
    """Log-probabilities of the completions under SFT, from the run folder where they are there.

    Checkpoints of a sitting that learned from others are deleted.
    """
    stage = suffixed("dpo", round_)
    name, file = f"{stage}_reference", f"{stage}/reference.jsonl"
    sft = sha256_of(ctx.adapter_folder("sft") / "adapter_model.safetensors")
    made_of = content_hash(sft, *(repr(group) for group in groups))
    entry = ctx.run.done(name) or {}
    # 1. Those of an earlier sitting.
    if entry.get("made_of") == made_of:
        path = ctx.run.path / file
        if path.is_file() and sha256_of(path) == entry["sha256"]:
            return [tuple(row["logprobs"]) for row in ctx.run.read_jsonl(file)]
        logger.warning("%s was changed after it was written; computing it again", path)
    elif entry and processes.main():
        forget(ctx.run, stage)
    processes.wait()
    # 2. Or new ones.
    logprobs = reference_logprobs(ctx.adapters, groups, micro_batch(stage, ctx.settings.dpo))
    if processes.main():
        ctx.run.write_jsonl(
            file,
            [
                {"prompt_id": group.prompt_id, "logprobs": list(values)}
                for group, values in zip(groups, logprobs, strict=True)
            ],
        )
        digest = sha256_of(ctx.run.path / file)
        ctx.run.finish(name, {"sha256": digest, "made_of": made_of})
    processes.wait()
    return logprobs
