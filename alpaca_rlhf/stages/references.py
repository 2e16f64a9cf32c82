"""Completions of SFT that a reward is scaled on: there it has mean 0 and standard deviation 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.core.sizes import MIN_PROMPTS
from alpaca_rlhf.models.batches import prompt_ids
from alpaca_rlhf.models.rollout import SampledCompletion, sample
from alpaca_rlhf.stages.context import Context

T = TypeVar("T")

REFERENCES = 256
"""Completions to normalise scores on, where they are sampled for this purpose."""


def sample_references(ctx: Context) -> list[tuple[Instruction, SampledCompletion]]:
    """Sample a completion of SFT to each of the first prompts of the ppo split."""
    rows = ctx.source.prompts("ppo")[:REFERENCES]
    samples = sample(
        ctx.adapters,
        "sft",
        [prompt_ids(ctx.base, ctx.settings.template, row) for row in rows],
        [f"reference/{row.id}" for row in rows],
        sampling=ctx.sampling("sample"),
        seed=ctx.settings.seed,
    )
    return [(row, completion) for row, (completion,) in zip(rows, samples, strict=True)]


def finished_or_all(completions: Sequence[T], finished: Sequence[bool]) -> list[T]:
    """The completions that stopped by themselves, or all of them where too few did.

    Those that were cut are left out because PPO gives them no score of their own.
    """
    stopped = [item for item, stops in zip(completions, finished, strict=True) if stops]
    enough = len(stopped) >= min(MIN_PROMPTS, len(completions))
    return stopped if enough else list(completions)
