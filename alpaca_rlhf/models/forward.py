"""What one forward with the active adapter gives: log-probabilities, values, scores.

With or without gradients. Only the states that predict a completion token reach the output head, so
no (B, T, V) tensor is ever made, and scores and values never touch it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

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
    values: Tensor | None
    """(B, C) float32 value of the state before it, if a head was given; 0 where masked."""


def token_stats(
    adapters: Adapters, batch: Batch, *, temperature: float = 1.0, head: ScalarHead | None = None
) -> TokenStats:
    """Log-probability and entropy of the completion tokens at a temperature, in fp32.

    With a head, the values it reads from the same states.
    """
    places = batch.completion
    states = adapters.hidden(batch)[places - 1]
    found = adapters.chosen(states, batch.ids[places], temperature=temperature, entropy=True)
    assert found.entropy is not None
    values = None if head is None else batch.spread(head(states))
    return TokenStats(batch.spread(found.logprobs), batch.spread(found.entropy), values)


def token_logprobs(adapters: Adapters, batch: Batch) -> Tensor:
    """(B, C) float32 log-probabilities of the completion tokens; 0 where masked."""
    places = batch.completion
    hidden = adapters.hidden(batch)
    return batch.spread(adapters.chosen(hidden[places - 1], batch.ids[places]).logprobs)


def token_logprobs_and_values(
    adapters: Adapters, head: ScalarHead, batch: Batch, *, share: float
) -> tuple[Tensor, Tensor]:
    """(B, C) log-probabilities and (B, C) values of one forward, on the same hidden states.

    Of the values' gradient into those states, `share` goes on into the adapter; the head's own is
    whole.
    """
    places = batch.completion
    states = adapters.hidden(batch)[places - 1]
    logprobs = adapters.chosen(states, batch.ids[places]).logprobs
    apart = states.detach()
    values = head(apart + share * (states - apart) if share else apart)
    return batch.spread(logprobs), batch.spread(values)


def learned_logprobs(adapters: Adapters, batch: Batch) -> Tensor:
    """(M,) float32 log-probabilities of all tokens that carry loss in SFT."""
    places = batch.learned
    hidden = adapters.hidden(batch)
    return adapters.chosen(hidden[places - 1], batch.ids[places]).logprobs


def token_values(adapters: Adapters, head: ScalarHead, batch: Batch) -> Tensor:
    """(B, C) float32 value of the state before each completion token; 0 where masked."""
    return batch.spread(head(value_states(adapters, batch)))


def value_states(adapters: Adapters, batch: Batch) -> Tensor:
    """(M, H) hidden states before each completion token, which a value is read from."""
    return adapters.hidden(batch)[batch.completion - 1]


def completion_scores(adapters: Adapters, head: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
    """(B,) float32 score, read at the last token: the eos where there is one.

    With a head's `parts` it is (B, 1 + C), the score and that of each criterion.
    """
    return head(adapters.hidden(batch)[batch.last])
