"""Prompts in the order of the reward model's uncertainty about their completions.

The measure of one head is the entropy of the order of two completions, by Bradley and Terry,
averaged over all pairs of a prompt: log 2 where every pair is a coin toss, 0 where all are certain.
Several heads are uncertain where they disagree: the measure is the standard deviation over heads of
the chance that one completion is better than another, averaged over the same pairs.

Sources: uncertainty sampling by entropy (Settles 2009, Active Learning Literature Survey, section
3.1); pairs by the disagreement of an ensemble (Christiano et al. 2017, arXiv 1706.03741 section
2.2.4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.models.batches import Example, prompt_ids
from alpaca_rlhf.models.devices import float64
from alpaca_rlhf.models.heads import EnsembleHead
from alpaca_rlhf.models.rollout import SampledCompletion
from alpaca_rlhf.models.scoring import score
from alpaca_rlhf.settings.steps import suffixed
from alpaca_rlhf.sources.sampled import UNCERTAINTY
from alpaca_rlhf.stages.context import Context


def order_entropy(scores: Sequence[float]) -> float:
    """Mean entropy of the order of two of a prompt's completions, in nats.

    Args:
        scores: Rewards of its K completions in log-odds, at least two.
    """
    entropies = [_entropy(abs(a - b)) for a, b in combinations(scores, 2)]
    return math.fsum(entropies) / len(entropies)


def order_disagreement(members: Tensor) -> float:
    """Mean over the pairs of a prompt's completions of the heads' disagreement on their order.

    Args:
        members: (K, N) score in log-odds of each of its K completions, at least two, by each of N
            heads.
    """
    deviations = [
        float(torch.sigmoid(a - b).std(correction=0)) for a, b in combinations(float64(members), 2)
    ]
    return math.fsum(deviations) / len(deviations)


def _entropy(gap: float) -> float:
    """Entropy of a coin that falls on one side with the chance sigmoid(gap); gap is at least 0."""
    other = math.exp(-gap)
    # With p = sigmoid(gap): -log p = log(1 + e^-gap), and -log(1 - p) is larger by gap.
    return math.log1p(other) + gap * other / (1 + other)


def order_by_uncertainty(
    ctx: Context,
    round_: int,
    prompts: Sequence[Instruction],
    samples_by_prompt: Sequence[Sequence[SampledCompletion]],
) -> list[Instruction]:
    """The prompts from the least certain one on, by the reward model of the round before.

    Their uncertainties are kept beside the completions. Without a reward model the order stays, and
    a line says so.
    """
    stage = suffixed("sample", round_)
    reward = suffixed("reward", round_ - 1)
    if round_ == 1 or not ctx.settings.queues_uncertain or ctx.run.done(reward) is None:
        none = "there is no reward model yet" if round_ == 1 else "this run has no reward model"
        ctx.reporter.say(
            f"{stage}: --rank.queue uncertain: {none}, so the prompts stay in random order"
        )
        return list(prompts)
    # 1. Scores of all completions, by each head.
    ctx.load("reward", reward)
    examples = [
        Example(prompt_ids(ctx.base, ctx.settings.template, prompt), completion.ids)
        for prompt, completions in zip(prompts, samples_by_prompt, strict=True)
        for completion in completions
    ]
    size = ctx.settings.sampling.batch_size
    head = ctx.load_head(reward)
    members = score(ctx.adapters, "reward", head.members, examples, batch_size=size)
    members = members * head.log_odds  # as learned, before the scores were normalised
    # 2. The uncertainty about each prompt's order; of equals the earlier one comes first.
    sizes = [len(completions) for completions in samples_by_prompt]
    several = isinstance(head, EnsembleHead)
    uncertainties = [
        order_disagreement(of_prompt) if several else order_entropy(of_prompt[:, 0].tolist())
        for of_prompt in float64(members).split_with_sizes(sizes)
    ]
    ordered = sorted(zip(prompts, uncertainties, strict=True), key=lambda row: -row[1])
    measure = "disagreement" if several else "entropy"
    ctx.run.write_jsonl(
        f"{stage}/{UNCERTAINTY}",
        [{"prompt_id": prompt.id, measure: uncertainty} for prompt, uncertainty in ordered],
    )
    return [prompt for prompt, _ in ordered]
