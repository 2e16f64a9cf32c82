"""Answers of an arm of the evaluation: sampled and greedy, and their KL from SFT.

All arms answer the same prompts with the same noise, so that differences are paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from alpaca_rlhf.core.prompts import worksheet_question
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.core.sizes import LOGPROBS_BATCH_DIVISOR
from alpaca_rlhf.models.batches import Example, answer, decode, prompt_ids, text_ids
from alpaca_rlhf.models.devices import float64
from alpaca_rlhf.models.rollout import SampledCompletion, sample
from alpaca_rlhf.models.scoring import completion_token_logprobs
from alpaca_rlhf.settings import Sampling
from alpaca_rlhf.stages.arms import Arm
from alpaca_rlhf.stages.context import Context
from alpaca_rlhf.training.losses import kl_k1, kl_k3

DEMONSTRATIONS = 3
"""Solved examples in the prompts of the few-shot control."""
Decoding = Literal["sampled", "greedy"]
DECODINGS: tuple[Decoding, ...] = ("sampled", "greedy")
"""Ways in which every arm answers."""
_KL = {"kl_from_sft_nats": kl_k1, "kl_from_sft_k3_nats": kl_k3}


@dataclass(frozen=True)
class Completion:
    """A completion of an arm."""

    text: str
    """Its text."""
    finished: bool
    """True if it ended by itself."""
    ids: tuple[int, ...]
    """Its tokens."""


@dataclass(frozen=True)
class Answers:
    """Answers of an arm, one for each prompt."""

    sampled: Sequence[Completion]
    """At the temperature of the evaluation."""
    greedy: Sequence[Completion]
    """Greedy ones."""
    kl: Mapping[str, Sequence[float]]
    """Estimates of the KL from SFT on the sampled ones, in nats a completion."""

    def of(self, decoding: Decoding) -> Sequence[Completion]:
        """Those of one decoding."""
        return self.sampled if decoding == "sampled" else self.greedy


def answers_of(
    ctx: Context, arm: Arm, rows: Sequence[Instruction], k: int
) -> tuple[Answers, list[list[Completion]]]:
    """Answer every prompt with an arm's adapter, which is loaded, `k` times where it samples.

    Returns:
        Its answers, the first sample of each prompt, and all samples of each.
    """
    pool = _complete(ctx, arm, rows, "sampled", k=k)
    greedy = [completion for (completion,) in _complete(ctx, arm, rows, "greedy")]
    sampled = [samples[0] for samples in pool]
    if arm.role == "sft":
        return Answers(sampled, greedy, dict.fromkeys(_KL, [0.0] * len(rows))), pool
    kl = kl_estimates(ctx, arm.role, rows, sampled, few_shot=arm.few_shot)
    return Answers(sampled, greedy, kl), pool


def arm_prompt(ctx: Context, row: Instruction, *, few_shot: bool) -> tuple[int, ...]:
    """Ids of a prompt as an arm sees it: in the run's template, or on a worksheet."""
    if not few_shot:
        return prompt_ids(ctx.base, ctx.settings.template, row)
    demonstrations = [seed for seed in ctx.source.seeds() if not seed.history][:DEMONSTRATIONS]
    return text_ids(ctx.base, worksheet_question(demonstrations, row))


def evaluation_sampling(ctx: Context, arm: Arm, decoding: Decoding) -> Sampling:
    """Sampling settings of an arm."""
    return ctx.sampling(
        "evaluate",
        **({"temperature": 0.0} if decoding == "greedy" else {}),
        top_p=1.0,
        batch_size=_batch_rows(ctx, few_shot=arm.few_shot),
    )


def _complete(
    ctx: Context, arm: Arm, rows: Sequence[Instruction], decoding: Decoding, *, k: int = 1
) -> list[list[Completion]]:
    """`k` completions of each prompt."""
    samples = sample(
        ctx.adapters,
        arm.role,
        [arm_prompt(ctx, row, few_shot=arm.few_shot) for row in rows],
        [f"evaluate/{row.id}" for row in rows],
        k=k,
        sampling=evaluation_sampling(ctx, arm, decoding),
        seed=ctx.settings.seed,
    )
    read = _on_worksheet if arm.few_shot else _in_words
    return [[read(ctx, completion) for completion in of_prompt] for of_prompt in samples]


def _in_words(ctx: Context, completion: SampledCompletion) -> Completion:
    text = answer(ctx.base, ctx.settings.template, completion.ids)
    return Completion(text, completion.finished, completion.ids)


def _on_worksheet(ctx: Context, completion: SampledCompletion) -> Completion:
    """An answer on a worksheet, which ends with its line."""
    ids, finished = completion.ids, completion.finished
    text, newline, _ = decode(ctx.base, ids).strip(" ").partition("\n")
    ids, finished = _first_line(ctx, ids) if newline else ids, bool(newline) or finished
    return Completion(text, finished, ids)


def _first_line(ctx: Context, ids: tuple[int, ...]) -> tuple[int, ...]:
    """The ids up to and with their first newline: the rest is not part of the answer."""
    ends = (length for length in range(1, len(ids)) if "\n" in decode(ctx.base, ids[:length]))
    return ids[: next(ends, len(ids))]


def _batch_rows(ctx: Context, *, few_shot: bool) -> int:
    """Completions per batch; fewer for the control, whose prompts hold the demonstrations too."""
    return max(1, ctx.settings.sampling.batch_size // (1 + DEMONSTRATIONS if few_shot else 1))


def kl_estimates(
    ctx: Context,
    role: str | None,
    rows: Sequence[Instruction],
    completions: Sequence[Completion],
    *,
    few_shot: bool,
) -> dict[str, list[float]]:
    """k1 and k3 of each completion, summed over its tokens, in nats.

    k1 is log p(completion) - log p_sft(completion), both at the temperature of the samples. Each
    policy sees its own prompt.
    """
    size = max(1, _batch_rows(ctx, few_shot=few_shot) // LOGPROBS_BATCH_DIVISOR)
    ids = [answer.ids for answer in completions]
    policy, sft = (
        completion_token_logprobs(
            ctx.adapters,
            of_role,
            [
                Example(arm_prompt(ctx, row, few_shot=shots), answer_ids)
                for row, answer_ids in zip(rows, ids, strict=True)
            ],
            batch_size=size,
            temperature=ctx.settings.temperature_of("evaluate"),
        )
        for of_role, shots in ((role, few_shot), ("sft", False))
    )
    return {
        name: [
            float(estimate(float64(ours), float64(theirs)).sum())
            for ours, theirs in zip(policy, sft, strict=True)
        ]
        for name, estimate in _KL.items()
    }
