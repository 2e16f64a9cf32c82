"""Shaping of logits before a token is drawn: for chats, and for no stage of the loop.

Samples of a stage must come from the policy's own distribution, or importance ratios and KL would
be those of another one. So these settings are no part of `Sampling`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LogitShaping:
    """Settings that change the distribution beside temperature and top-p."""

    top_k: int = 0
    """Tokens to draw from, the most likely ones; 0 keeps all."""
    min_p: float = 0.0
    """Share of the best token's probability below which none is drawn; 0 keeps all."""
    repetition_penalty: float = 1.0
    """Divides positive logits of tokens that came up before, the prompt's included, and multiplies
    negative ones (CTRL, arXiv:1909.05858); 1 changes nothing."""

    def penalised(self, logits: Tensor, history: Tensor | None) -> Tensor:
        """Logits (B, V) after the penalty on the tokens of `history` (B, T)."""
        if self.repetition_penalty == 1 or history is None:
            return logits
        scores = logits.gather(1, history)
        weaker = torch.where(
            scores < 0, scores * self.repetition_penalty, scores / self.repetition_penalty
        )
        return logits.scatter(1, history, weaker)

    def likeliest(self, logits: Tensor) -> Tensor:
        """Logits (B, V) with all but the top-k at minus infinity."""
        if not 0 < self.top_k < logits.shape[-1]:
            return logits
        values, token_ids = logits.topk(self.top_k)  # so many of equal ones too
        return torch.full_like(logits, -torch.inf).scatter(1, token_ids, values)

    def without_unlikely(self, probabilities: Tensor) -> Tensor:
        """Probabilities (B, V), not normalised, without those below the share of the best."""
        if self.min_p == 0:
            return probabilities
        least = self.min_p * probabilities.amax(-1, keepdim=True)
        return probabilities.masked_fill(probabilities < least, 0)


UNSHAPED = LogitShaping()
"""The policy's own distribution."""
