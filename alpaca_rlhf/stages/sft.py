"""The sft stage: supervised fine-tuning."""

from __future__ import annotations

from dataclasses import asdict

from alpaca_rlhf.context import Context
from alpaca_rlhf.data import check_disjoint, read_instructions
from alpaca_rlhf.stages.outcome import Outcome
from alpaca_rlhf.training.sft import encode, split_held_out, train_sft


def sft(ctx: Context, round_: int) -> Outcome:
    """Supervised fine-tuning on the seed tasks and the generated ones."""
    if ctx.settings.inputs.data is not None:
        rows = read_instructions(ctx.settings.inputs.data)
    else:
        rows = ctx.source.seeds() + read_instructions(ctx.run.path / "generate" / "rows.jsonl")
    splits = {"sft": rows, **{name: ctx.source.prompts(name) for name in ctx.source.names()}}
    overlap = check_disjoint(splits, ctx.source.key, raise_on_leak=True)
    settings = ctx.settings.sft
    kept, out = split_held_out(rows, settings.held_out)
    examples, too_long = encode(ctx.adapters, kept, settings.max_length)
    held_out, also_too_long = encode(ctx.adapters, out, settings.max_length)
    ctx.adapters.add("sft", seed=ctx.settings.seed)
    result = train_sft(
        ctx.adapters,
        "sft",
        examples,
        held_out,
        settings,
        seed=ctx.settings.seed,
        checkpoints=ctx.checkpoints("sft"),
        log=ctx.log("sft"),
    )
    ctx.adapters.save("sft", ctx.adapter_folder("sft"))
    counts = {"sft": len(rows), "overlap": overlap}
    loss = f"{result.loss_before:.2f} -> {result.loss_after:.2f} nats a token"
    summary = f"held-out loss {loss} on {len(held_out)} rows"
    facts = {**asdict(result), "too_long": too_long + also_too_long, "prompts": counts}
    return Outcome(result.examples, result.tokens, summary, facts)
