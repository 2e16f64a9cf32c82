"""One forward with the active adapter: log-probabilities, values and scores.

With or without gradients. Only the hidden states that predict a completion token reach the output
head, so no (B, T, V) tensor ever exists; scores and values never touch that head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.batches import Batch
from alpaca_rlhf.models.heads import ScalarHead


class TokenStats(NamedTuple):
    """Log-probability, entropy and value of each completion token."""

    logprobs: Tensor
    """(B, C) float32; 0 where masked."""
    entropy: Tensor
    """(B, C) float32 entropy of the whole distribution in nats, no gradient; 0 where masked."""
    values: Tensor | None
    """(B, C) float32 value of the state before each, if there is a value head; 0 where masked."""


def token_stats(
    adapters: Adapters, batch: Batch, *, temperature: float = 1.0, head: ScalarHead | None = None
) -> TokenStats:
    """Log-probability and entropy of the completion tokens at a temperature, in fp32.

    With a value head, also the values it reads from the same hidden states.
    """
    positions = batch.completion_positions
    # The state before a token predicts it.
    hidden = adapters.hidden(batch)[batch.before(positions)]
    logprobs, entropy = adapters.target_logprobs(
        hidden, batch.ids[positions], temperature=temperature, entropy=True
    )
    assert entropy is not None
    values = None if head is None else batch.spread(head(hidden))
    return TokenStats(batch.spread(logprobs), batch.spread(entropy), values)


def token_logprobs(adapters: Adapters, batch: Batch, *, temperature: float = 1.0) -> Tensor:
    """(B, C) float32 log-probabilities of the completion tokens; 0 where masked."""
    positions = batch.completion_positions
    hidden = adapters.hidden(batch)[batch.before(positions)]
    logprobs = adapters.target_logprobs(hidden, batch.ids[positions], temperature=temperature)
    return batch.spread(logprobs.logprobs)


def token_logprobs_and_values(
    adapters: Adapters, head: ScalarHead, batch: Batch, *, share: float, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """(B, C) log-probabilities and (B, C) values of one forward, on the same hidden states.

    The fraction `share` of the values' gradient into those states reaches the adapter; the head's
    own gradient is always whole.
    """
    positions = batch.completion_positions
    hidden = adapters.hidden(batch)[batch.before(positions)]
    logprobs, _ = adapters.target_logprobs(hidden, batch.ids[positions], temperature=temperature)
    detached = hidden.detach()
    values = head(detached + share * (hidden - detached) if share else detached)
    return batch.spread(logprobs), batch.spread(values)


def loss_logprobs(adapters: Adapters, batch: Batch) -> Tensor:
    """(M + E,) float32 log-probabilities of all tokens that carry loss in SFT."""
    positions = batch.loss_positions
    hidden = adapters.hidden(batch)[batch.before(positions)]
    return adapters.target_logprobs(hidden, batch.ids[positions]).logprobs


def token_values(adapters: Adapters, head: ScalarHead, batch: Batch) -> Tensor:
    """(B, C) float32 value of the state before each completion token; 0 where masked."""
    return batch.spread(head(value_states(adapters, batch)))


def value_states(adapters: Adapters, batch: Batch) -> Tensor:
    """(M, H) hidden states before each completion token, from which a head reads the values."""
    return adapters.hidden(batch)[batch.before(batch.completion_positions)]


def completion_scores(adapters: Adapters, head: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
    """(B,) float32 score, read at the last token: the eos where there is one.

    With a head's `all_scores` it is (B, 1 + C): the score, then that of each criterion.
    """
    return head(adapters.hidden(batch)[batch.last_positions])
