"""What one forward with the active adapter gives: log-probabilities, values, scores.

With or without gradients. Only the states that predict a completion token reach the output head, so
no (B, T, V) tensor is ever made, and scores and values never touch it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.batches import Batch
from alpaca_rlhf.models.heads import ScalarHead


class TokenStats(NamedTuple):
    """Of each completion token."""

    logprobs: Tensor
    """(B, C) float32; 0 where masked."""
    entropy: Tensor
    """(B, C) float32 entropy of the whole distribution in nats, no gradient; 0 where masked."""


def token_stats(adapters: Adapters, batch: Batch, *, temperature: float = 1.0) -> TokenStats:
    """Log-probability and entropy of the completion tokens at a temperature, in fp32."""
    hidden = adapters.hidden(batch.ids)
    logits = adapters.logits(batch.states(hidden))
    if temperature != 1.0:
        logits = logits / temperature
    logprobs = torch.log_softmax(logits, -1)
    chosen = logprobs.gather(-1, batch.completion_ids[batch.completion_mask][:, None])[:, 0]
    with torch.no_grad():
        entropy = -(logprobs.exp() * logprobs).sum(-1)
    return TokenStats(batch.spread(chosen), batch.spread(entropy))


def token_values(adapters: Adapters, head: ScalarHead, batch: Batch) -> Tensor:
    """(B, C) float32 value of the state before each completion token; 0 where masked."""
    return batch.spread(head(batch.states(adapters.hidden(batch.ids))))


def completion_scores(adapters: Adapters, head: ScalarHead, batch: Batch) -> Tensor:
    """(B,) float32 score, read at the last token: the eos where there is one."""
    hidden = adapters.hidden(batch.ids)
    rows = torch.arange(len(batch.ids), device=hidden.device)
    return head(hidden[rows, batch.last])  # type: ignore[no-any-return]
