"""The sft stage: supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.prompts import marked
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import answered_prompts, check_disjoint
from alpaca_rlhf.models.batches import Example, prompt_ids, segments
from alpaca_rlhf.models.foreign import adopt
from alpaca_rlhf.stages.context import Context
from alpaca_rlhf.stages.outcome import Outcome
from alpaca_rlhf.training.sft import encode, preview_indices, split_held_out, train_sft


def sft(ctx: Context, round_: int) -> Outcome:
    """Supervised fine-tuning on the seed tasks and the generated ones, or the adapter given."""
    splits = ctx.splits()
    rows = splits["sft"]
    answered = {**splits, "sft": answered_prompts(rows)}
    overlap = check_disjoint(answered, ctx.source.key, raise_on_leak=True)
    _refuse_too_long(ctx, splits)
    counts = {"sft": len(rows), "overlap": overlap}
    if ctx.settings.inputs.sft_adapter is not None:
        return _adopted(ctx, ctx.settings.inputs.sft_adapter, counts)
    settings = ctx.settings.sft
    kept, out = split_held_out(rows, settings.held_out)
    examples, too_long = encode(ctx.adapters, kept, settings.max_length)
    held_out, also_too_long = encode(ctx.adapters, out, settings.max_length)
    if settings.patience and not held_out:
        raise UserError(
            f"--sft.patience {settings.patience}: none of {len(rows)} rows is held out; "
            f"raise --sft.held-out {settings.held_out:g}"
        )
    checkpoints = ctx.checkpoints("sft")
    _preview(ctx, examples, show=checkpoints.step() == 0)
    ctx.adapters.add("sft", seed=ctx.settings.seed)
    result = train_sft(
        ctx.adapters,
        "sft",
        examples,
        held_out,
        settings,
        seed=ctx.settings.seed,
        checkpoints=checkpoints,
        log=ctx.log("sft"),
    )
    ctx.save("sft", "sft")
    loss = f"{result.loss_before:.2f} -> {result.loss_after:.2f} nats a token"
    summary = f"held-out loss {loss} on {len(held_out)} rows"
    if settings.patience:
        summary += f"; the weights of step {result.best_step}, the best of {result.steps}"
    conversations = sum(bool(row.history) for row in rows)
    facts = {
        **asdict(result),
        "too_long": too_long + also_too_long,
        "conversations": conversations,
        "prompts": counts,
    }
    return Outcome(result.examples, result.tokens, summary, facts)


def _adopted(ctx: Context, folder: Path, counts: Mapping[str, int]) -> Outcome:
    """Somebody else's adapter in place of training."""
    layers = adopt(ctx.adapters, "sft", folder, seed=ctx.settings.seed)
    ctx.save("sft", "sft")
    facts = {"adapter": str(folder), "layers": layers, "prompts": counts}
    return Outcome(0, 0, f"{folder} taken as it is, on {layers} layers", facts)


def _preview(ctx: Context, examples: Sequence[Example], *, show: bool) -> None:
    """Write what carries loss in a row or two; show it too where training has yet to begin."""
    text = ""
    for number in preview_indices(examples):
        one = examples[number]
        what = f"example {number + 1}: {one.loss_tokens} of {len(one)} tokens carry loss"
        pieces = segments(ctx.base, one)
        text += f"{what}\n{marked(pieces)}\n\n"
        if show:
            ctx.reporter.preview("sft", what, pieces)
    if text:
        ctx.run.write_text("sft/preview.txt", text)


def _refuse_too_long(ctx: Context, splits: Mapping[str, Sequence[Instruction]]) -> None:
    """Refuse prompts that leave no room for a completion, before any time is spent on training."""
    for name, rows in splits.items():
        ranked_already = name == "rank" and ctx.settings.inputs.rankings is not None
        if name == "sft" or ranked_already:  # nothing is sampled; what is too long is counted
            continue
        flag, new = (
            ("--ppo.max-new-tokens", ctx.settings.ppo.max_new_tokens)
            if name.partition(".")[0] == "ppo"
            else ("--sampling.max-new-tokens", ctx.settings.sampling.max_new_tokens)
        )
        for row in rows:
            length = len(prompt_ids(ctx.base, ctx.settings.template, row))
            if length + new > ctx.base.context:
                raise UserError(
                    f"a prompt of the {name} split has {length} tokens, with {flag} {new} more "
                    f"than the {ctx.base.context} of the base: {row.instruction[:60]!r}; leave it "
                    f"out or lower {flag}"
                )
