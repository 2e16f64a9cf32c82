"""The sft stage: supervised fine-tuning."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.prompts import marked
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import FileAccount, Reason, answered_prompts, check_disjoint, reasons_text
from alpaca_rlhf.models.batches import Example, segments
from alpaca_rlhf.models.foreign import adopt
from alpaca_rlhf.stages.context import Context
from alpaca_rlhf.stages.lengths import no_row_left, refuse_long_prompts
from alpaca_rlhf.stages.lost_replies import refuse_lost_replies
from alpaca_rlhf.stages.open_thoughts import tell_unclosed
from alpaca_rlhf.stages.outcome import Outcome
from alpaca_rlhf.stages.preflight import leak_way_out
from alpaca_rlhf.training.sft import SFTResult, encode, preview_indices, split_held_out, train_sft

BATCH_FLAG = "; --sft.batch-size sets another"
"""The way to another batch size."""


def sft(ctx: Context, round_: int) -> Outcome:
    """Fine-tune on the seed tasks and the generated ones, or take the adapter that is given."""
    # 1. Refuse prompts shared between splits, and prompts without room for a completion.
    splits = ctx.splits()
    rows = splits["sft"]
    answered = {**splits, "sft": answered_prompts(rows)}
    overlap = check_disjoint(answered, ctx.source.key, way_out=leak_way_out(ctx.settings.inputs))
    refuse_long_prompts(ctx.base, ctx.settings, splits)
    counts = {"sft": len(rows), "overlap": overlap}
    if ctx.settings.inputs.sft_adapter is not None:
        return _adopted(ctx, ctx.settings.inputs.sft_adapter, counts)
    if ctx.settings.inputs.untrained:
        return _untrained(ctx, counts)

    # 2. Encode the rows, with some held out by prompt.
    settings = ctx.settings.sft
    training_rows, held_out_rows = split_held_out(rows, settings.held_out)
    encoded = encode(ctx.adapters, training_rows, settings.max_length)
    encoded_held_out = encode(ctx.adapters, held_out_rows, settings.max_length)
    examples, held_out = encoded.examples, encoded_held_out.examples
    too_long = encoded.too_long + encoded_held_out.too_long
    lost = encoded.lost + encoded_held_out.lost
    if lost:
        refuse_lost_replies(ctx.base, ctx.settings)  # of a hub's base it is known only now
    if rows and not examples and ctx.settings.inputs.rows is not None:
        all_lost = 0 < len(encoded.lost) == len(training_rows)
        raise no_row_left(ctx.base, ctx.settings, all_lost=all_lost)
    account = _account(ctx, rows, {"too long": too_long, "unusable": lost})
    if settings.patience and not held_out:
        raise UserError(
            f"--sft.patience {settings.patience}: none of {len(rows)} rows is held out; "
            f"raise --sft.held-out {settings.held_out:g}"
        )

    # 3. Train from the last checkpoint, and save.
    checkpoints = ctx.checkpoints("sft")
    if too_long:
        ctx.reporter.say(
            f"{len(too_long):,} of {len(rows):,} rows are longer than --sft.max-length "
            f"{settings.max_length} tokens and left out; raise it to train on them"
        )
    if lost:
        ctx.reporter.say(
            f"{len(lost):,} of {len(rows):,} rows are conversations of which the chat template "
            "alters an earlier reply and left out; --template alpaca would take them"
        )
    tell_unclosed(ctx, "sft", [*examples, *held_out], "rows")
    _preview(ctx, examples, show=checkpoints.step() == 0)
    if settings.batch_size is None:
        size = settings.examples_per_step(len(examples))
        ctx.reporter.say(ctx.note_batch_size("sft", size, f"{len(examples):,} rows") + BATCH_FLAG)
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

    # 4. Report.
    summary = held_out_summary(result, len(held_out))
    left_out = reasons_text(account["left_out"])
    if left_out:
        summary += f"; rows left out: {left_out}"
    if settings.patience:
        summary += f"; the weights of step {result.best_step}, the best of {result.steps}"
    conversations = sum(bool(row.history) for row in rows)
    facts = {
        **asdict(result),
        "too_long": len(too_long),
        "conversations": conversations,
        "prompts": counts,
        "rows": account,
    }
    return Outcome(result.examples, result.tokens, summary, facts)


def _account(
    ctx: Context,
    rows: Sequence[Instruction],
    dropped: Mapping[Reason, Sequence[Instruction]],
) -> dict[str, Any]:
    """The rows of the user's file, or those that were generated: used or left out, by reason.

    A row of several instances gives several examples, and is left out once all are dropped.
    """
    path = ctx.settings.inputs.rows
    account = next((each for each in ctx.source.accounts if each.name == str(path)), None)
    # The source keeps the account of what was read.
    account = copy.deepcopy(account) if account is not None else _of_generated(len(rows))
    for reason, dropped_rows in dropped.items():
        gone = {*dropped_rows}
        account.leave_out(reason, (at for at, row in enumerate(rows) if row in gone))
    return {**account.to_json(), "examples": len(rows) - sum(map(len, dropped.values()))}


def _of_generated(rows: int) -> FileAccount:
    """The account of rows that were generated, each of them used."""
    account = FileAccount("generate/rows.jsonl", rows=rows)
    for _ in range(rows):
        account.note_records(1)
    return account


def held_out_summary(result: SFTResult, rows: int) -> str:
    """The held-out loss before and after, or that there is none."""
    if not rows:
        return "no row is held out, so there is no held-out loss"
    loss = f"{result.loss_before:.2f} -> {result.loss_after:.2f} nats a token"
    return f"held-out loss {loss} on {rows} rows"


def _adopted(ctx: Context, folder: Path, counts: Mapping[str, int]) -> Outcome:
    """Take an adapter that was trained elsewhere instead of training one."""
    layers = adopt(ctx.adapters, "sft", folder, seed=ctx.settings.seed)
    ctx.save("sft", "sft")
    facts = {"adapter": str(folder), "layers": layers, "prompts": counts}
    return Outcome(0, 0, f"{folder} taken as it is, on {layers} layers", facts)


def _untrained(ctx: Context, counts: Mapping[str, int]) -> Outcome:
    """Save an adapter that changes nothing: the base is the reference as it is."""
    ctx.adapters.add("sft", seed=ctx.settings.seed)
    ctx.save("sft", "sft", trained=False)
    summary = "no rows to fine-tune on: the base is taken as it is"
    return Outcome(0, 0, summary, {"untrained": True, "prompts": counts})


def _preview(ctx: Context, examples: Sequence[Example], *, show: bool) -> None:
    """Write which text of a row or two carries loss; also show it before training begins."""
    text = ""
    for index in preview_indices(examples):
        example = examples[index]
        title = f"example {index + 1}: {example.loss_tokens} of {len(example)} tokens carry loss"
        segments_of_row = segments(ctx.base, example)
        text += f"{title}\n{marked(segments_of_row)}\n\n"
        if show:
            ctx.reporter.preview("sft", title, segments_of_row)
    if text:
        ctx.run.write_text("sft/preview.txt", text)
