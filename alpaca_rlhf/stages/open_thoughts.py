"""Replies that are learned inside a thought, because the chat template opens one before each.

The template of DeepSeek's distillations ends a prompt in `<think>`. An output that goes on from
there without `</think>` teaches a thought that never ends, so every stage that learns says so.
"""

from __future__ import annotations

from collections.abc import Sequence

from alpaca_rlhf.models.batches import Example, decode
from alpaca_rlhf.models.template_traits import THOUGHT, THOUGHT_END, template_traits
from alpaca_rlhf.stages.context import Context


def opens_thought(ctx: Context) -> bool:
    """True if a prompt of the run ends within a thought."""
    traits = template_traits(ctx.base.tokenizer) if ctx.settings.template == "chat" else None
    return traits is not None and traits.opens_thought


def tell_unclosed(ctx: Context, stage: str, examples: Sequence[Example], kind: str) -> None:
    """Say how many completions close no thought; nothing where the template opens none.

    Args:
        ctx: The run.
        stage: Name of the stage that learns from them.
        examples: The completions with their prompts.
        kind: Their name in the plural: `rows`, `answers`.
    """
    if not opens_thought(ctx):
        return
    unclosed = sum(THOUGHT_END not in decode(ctx.base, row.completion) for row in examples)
    if unclosed:
        ctx.reporter.say(
            f"{stage}: {unclosed:,} of {len(examples):,} {kind} hold no {THOUGHT_END}, and the "
            f"chat template of {ctx.base.name} opens a thought ({THOUGHT}) before each reply: they "
            f"are learned as thoughts that never end; begin each with a thought and {THOUGHT_END}, "
            "or begin a run with --template alpaca"
        )


def tell_sampled(ctx: Context, stage: str) -> None:
    """Say that completions begin within a thought; nothing where the template opens none."""
    if opens_thought(ctx):
        ctx.reporter.say(
            f"{stage}: the chat template of {ctx.base.name} opens a thought ({THOUGHT}) before "
            f"each reply: a completion that ends before {THOUGHT_END} is scored as an answer all "
            "the same; give it room for both with --sampling.max-new-tokens"
        )
