"""Losses, KL estimates and advantages of every stage, as pure functions of tensors.

Losses are sums over tokens or groups, not means: the caller divides by the count of the whole
optimiser batch, so that splitting a batch into micro-batches never changes a gradient.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


class Advantages(NamedTuple):
    """Advantages of a rollout, and the returns that its values should have had."""

    advantages: Tensor
    """(B, C) float32, not whitened; 0 where masked."""
    returns: Tensor
    """(B, C) float32, advantages + values; 0 where masked."""


class PolicyLoss(NamedTuple):
    """PPO's loss and its diagnostics, as sums over the unmasked tokens."""

    loss: Tensor
    """Clipped surrogate, to be minimised."""
    clipped: Tensor
    """Number of tokens whose ratio was clipped to the surrogate's disadvantage."""
    kl: Tensor
    """k3 estimate of KL(old, new)."""


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of the unmasked entries."""
    return (x * mask).sum() / mask.sum()


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Estimate log p - log q of tokens sampled from p: unbiased for KL(p, q) in nats, any sign.

    Source: k1 in J. Schulman, "Approximating KL divergence" (2020).
    """
    return logprobs - ref_logprobs


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Estimate q/p - 1 - log(q/p) of tokens sampled from p: unbiased for KL(p, q), never negative.

    Less noisy than k1; for reports, and for GRPO's loss.

    Source: k3 in J. Schulman, "Approximating KL divergence" (2020).
    """
    log_ratio = ref_logprobs - logprobs
    return torch.expm1(log_ratio) - log_ratio


def ranking_loss(
    scores: Tensor, pairs: Tensor, *, margins: Tensor | None = None, ties: Tensor | None = None
) -> Tensor:
    """Mean over all pairs of one ranking of -log sigmoid(score of the better - score of the worse).

    Args:
        scores: (K,) float32, one forward each.
        pairs: (M, 2) int64 indices (better, worse).
        margins: (M,) float32, required lead of the better score: subtracted from the gap.
        ties: (N, 2) int64 indices of pairs without a winner. Each counts as half a win for either,
            so its gradient by the gap is sigmoid(gap) - 1/2: zero where the scores are equal.

    Source: InstructGPT (arXiv 2203.02155) equation 1, with its weight 1 / C(K, 2); the margin is
    Llama 2's (arXiv 2307.09288 equation 2).
    """
    gaps = scores[pairs[:, 0]] - scores[pairs[:, 1]]
    losses = -logsigmoid(gaps if margins is None else gaps - margins)
    if ties is not None:
        tie_gaps = scores[ties[:, 0]] - scores[ties[:, 1]]
        losses = torch.cat([losses, -(logsigmoid(tie_gaps) + logsigmoid(-tie_gaps)) / 2])
    return losses.mean()


def dpo_loss(
    log_ratios: Tensor,
    pairs: Tensor,
    *,
    beta: float,
    kind: Literal["sigmoid", "ipo"] = "sigmoid",
    label_smoothing: float = 0.0,
    ties: Tensor | None = None,
) -> Tensor:
    """Mean over all pairs of one ranking of DPO's loss, or of IPO's.

    Args:
        log_ratios: (K,) float32, log p(completion) - log p_sft(completion).
        pairs: (M, 2) int64 indices (better, worse).
        beta: Weight of staying near SFT.
        kind: Of the gap h of two log-ratios, `sigmoid` is -log sigmoid(beta h), and `ipo` is
            (h - 1 / (2 beta))^2.
        label_smoothing: Weight of the loss of -h, as if the verdict were the other way round.
        ties: (N, 2) int64 indices of pairs without a winner, for which that weight is one half.

    Source: arXiv 2305.18290 equation 7; arXiv 2310.12036 equation 17.
    """

    def loss_of(gaps: Tensor) -> Tensor:
        return -logsigmoid(beta * gaps) if kind == "sigmoid" else (gaps - 1 / (2 * beta)) ** 2

    reversed_weights = log_ratios.new_full((len(pairs),), label_smoothing)
    if ties is not None:
        pairs = torch.cat([pairs, ties])
        halves = log_ratios.new_full((len(ties),), 0.5)
        reversed_weights = torch.cat([reversed_weights, halves])
    gaps = log_ratios[pairs[:, 0]] - log_ratios[pairs[:, 1]]
    losses = (1 - reversed_weights) * loss_of(gaps) + reversed_weights * loss_of(-gaps)
    return losses.mean()


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, *, kl_coef: float) -> Tensor:
    """(B, C) rewards: -kl_coef * kl at each token, plus the score at the last one.

    Args:
        scores: (B,) float32.
        kl: (B, C) float32 k1 to the reference.
        mask: (B, C) bool, at least one True a row.
        kl_coef: Weight of the KL term.

    Source: openai/lm-human-preferences@cbfd210 train_policy.py:149-154.
    """
    rewards = -kl_coef * kl * mask
    last = mask.sum(1, keepdim=True) - 1
    return rewards.scatter_add(1, last, scores[:, None])


_TIED = 1e-5
"""Spread of float32 scores of order 1 up to which they count as equal: some eighty roundings."""


def group_advantages(scores: Tensor, k: int, *, divide_by_std: bool) -> Tensor:
    """(B,) score of each completion less the mean of its group, perhaps by its deviation.

    Args:
        scores: (B,) float32, groups of K after each other.
        k: Size of a group.
        divide_by_std: Divide by the standard deviation of the group's scores plus 1e-4; a group
            whose scores differ by rounding alone has advantages of 0.

    Source: arXiv 2402.03300 section 4.1.2; without the division arXiv 2503.20783 section 3.2. The
    deviation is that of a sample, and 1e-4 keeps it from 0, as in huggingface/trl@006d32c
    trl/trainer/grpo_trainer.py.
    """
    groups = scores.view(-1, k)
    advantages = groups - groups.mean(1, keepdim=True)
    if divide_by_std:
        # Answers that do not stop all have one score. The rounding of their mean, divided by 1e-4,
        # would be an advantage, and another one wherever the scores are rounded differently.
        spread = groups.amax(1, keepdim=True) - groups.amin(1, keepdim=True)
        advantages = advantages / (groups.std(1, keepdim=True) + 1e-4)
        advantages = advantages.masked_fill(spread <= _TIED, 0.0)
    return advantages.flatten()


def leave_one_out_advantages(rewards: Tensor, k: int) -> Tensor:
    """(B,) reward of each completion less the mean of the others of its group.

    Args:
        rewards: (B,) float32, groups of K after each other.
        k: Size of a group.

    Source: arXiv 2402.14740 equation 8.
    """
    groups = rewards.view(-1, k)
    others = (groups.sum(1, keepdim=True) - groups) / (k - 1)
    return (groups - others).flatten()


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> Advantages:
    """Generalised advantage estimates, from the last token back; the value after it is 0.

    Args:
        rewards: (B, C) float32, 0 where masked.
        values: (B, C) float32, value of the state before each token.
        mask: (B, C) bool, True from the first token through the last.
        gamma: Discount per token.
        lam: 0 is one-step TD, 1 is Monte Carlo.

    Source: arXiv 1506.02438 equations 11 and 16; recursion as in
    openai/lm-human-preferences@cbfd210 train_policy.py.
    """
    if not (rewards.shape == values.shape == mask.shape):
        raise ValueError(
            f"shapes differ: {tuple(rewards.shape)}, {tuple(values.shape)}, {tuple(mask.shape)}"
        )
    values = values * mask
    advantages = torch.zeros_like(rewards)
    next_advantage = torch.zeros_like(rewards[:, 0])
    next_value = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = (delta + gamma * lam * next_advantage) * mask[:, t]
        advantages[:, t] = next_advantage
        next_value = values[:, t]
    return Advantages(advantages, advantages + values)


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """Shift and scale the unmasked entries to mean 0 and (population) variance 1; 0 where masked.

    Source: openai/lm-human-preferences@cbfd210 utils/core.py, with a mask.
    """
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    return (x - mean) * torch.rsqrt(variance + 1e-8) * mask


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, *, clip: float
) -> PolicyLoss:
    """The clipped surrogate of PPO, summed over tokens.

    Source: arXiv 1707.06347 equation 7.
    """
    log_ratio = (logprobs - old_logprobs) * mask
    log_ratio = log_ratio.clamp(-20, 20)  # keeps the exponential finite
    ratio = log_ratio.exp()
    unclipped_loss = -advantages * ratio
    clipped_loss = -advantages * ratio.clamp(1 - clip, 1 + clip)
    loss = (torch.maximum(unclipped_loss, clipped_loss) * mask).sum()
    with torch.no_grad():
        clipped = ((clipped_loss > unclipped_loss) & mask).sum()
        kl = ((torch.expm1(log_ratio) - log_ratio) * mask).sum()
    return PolicyLoss(loss, clipped, kl)


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, clip: float
) -> Tensor:
    """Half the squared error of value or clipped value, whichever is larger, summed over tokens.

    With clip 0 nothing is clipped.

    Source: openai/lm-human-preferences@cbfd210 train_policy.py:343-348.
    """
    error = (values - returns) ** 2
    if clip > 0:
        clipped_values = old_values + (values - old_values).clamp(-clip, clip)
        error = torch.maximum(error, (clipped_values - returns) ** 2)
    return 0.5 * (error * mask).sum()
