"""Best-of-K: the reward model's favourite of K completions becomes training data.

Source: rejection sampling fine-tuning in Llama 2 (arXiv 2307.09288) section 3.2.2; expert iteration
in AlpacaFarm (arXiv 2305.14387).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alpaca_rlhf import processes
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.batches import Example
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.models.rollout import Sampled, sample, score
from alpaca_rlhf.settings import Sampling


@dataclass(frozen=True)
class Winners:
    """The chosen completions."""

    examples: list[Example]
    """Prompts with a finished completion, each with its best one, as far as they were kept."""
    scores: Tensor
    """(prompts, K) float32 scores of all candidates."""
    mean_best: float
    """Mean score of the winners."""


def choose(
    adapters: Adapters,
    sampler: str,
    reward_head: ScalarHead,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[str],
    *,
    k: int,
    keep: float,
    sampling: Sampling,
    seed: int,
    score_batch_size: int,
) -> Winners:
    """Sample K completions of each prompt, and keep the one the reward adapter scores highest.

    A completion that did not stop never wins. Among equal scores the first sample wins. Of the
    winners the share `keep` stays, those with the highest scores, in the order of the prompts.

    Source: the choice over a whole batch is RAFT's (arXiv 2304.06767 algorithm 1).
    """
    share = processes.share(range(len(prompts)))
    drawn: list[list[Sampled]] = processes.gather(
        sample(
            adapters,
            sampler,
            [prompts[i] for i in share],
            [keys[i] for i in share],
            k=k,
            sampling=sampling,
            seed=seed,
        )
    )
    candidates = [
        Example(tuple(p), s.ids) for p, own in zip(prompts, drawn, strict=True) for s in own
    ]
    found = score(
        adapters,
        "reward",
        reward_head,
        processes.share(candidates),
        batch_size=score_batch_size,
    )
    scores = torch.tensor(processes.gather(found.tolist())).view(len(prompts), k)
    winners: list[Example] = []
    best: list[float] = []
    for i, own in enumerate(drawn):
        finished = [j for j in range(k) if own[j].finished]
        if finished:
            j = max(finished, key=lambda j: (float(scores[i, j]), -j))
            winners.append(candidates[i * k + j])
            best.append(float(scores[i, j]))
    most = max(1, round(keep * len(winners)))
    kept = sorted(sorted(range(len(winners)), key=lambda i: (-best[i], i))[:most])
    mean = sum(best[i] for i in kept) / max(1, len(kept))
    return Winners([winners[i] for i in kept], scores, mean)
