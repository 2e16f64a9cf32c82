"""Sampling of completions with our own decode loop.

The prompt is read once for all K samples, finished rows leave the batch, and no logits are kept.
The noise of a token is a function of (seed, prompt, sample, position) alone, so neither batching
nor finished rows change a completion.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.batches import by_length, left_pad
from alpaca_rlhf.models.oom_retry import halve_on_oom
from alpaca_rlhf.settings import Sampling


@dataclass(frozen=True)
class SampledCompletion:
    """One sampled completion."""

    ids: tuple[int, ...]
    """Completion tokens, the stop token included."""
    finished: bool
    """True if it ended with a stop token."""


@dataclass(frozen=True)
class Token:
    """One token of a completion, as soon as it is drawn."""

    row: int
    """Index of the completion."""
    id: int
    """Token id."""
    ends: bool
    """True for a stop token, which is the last of its row."""


@torch.no_grad()
def sample(
    adapters: Adapters,
    role: str | None,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[str],
    *,
    k: int = 1,
    sampling: Sampling,
    seed: int,
    on_batch: Callable[[int], None] | None = None,
) -> list[list[SampledCompletion]]:
    """Sample K completions of each prompt.

    Args:
        adapters: Adapters on the base.
        role: Adapter that samples; None is the bare base.
        prompts: Token ids of each prompt.
        keys: Name of each prompt's noise: the same key draws the same noise.
        k: Completions a prompt.
        sampling: Temperature, top-p, length, batch size.
        seed: Seed of the noise.
        on_batch: Called with the number of completions that each batch finished.

    Returns:
        K completions of each prompt, in the order of the prompts.
    """
    _refuse_train_mode(adapters)
    completions: list[list[SampledCompletion]] = [[] for _ in prompts]

    def decode(indices: list[int]) -> list[SampledCompletion]:
        noise = _noises(seed, [keys[i] for i in indices], k, sampling.max_new_tokens)
        return _decode(adapters, [prompts[i] for i in indices], k, sampling, noise)

    with adapters.using(role), adapters.decoding():
        batches = by_length([len(prompt) for prompt in prompts], max(1, sampling.batch_size // k))
        lower = "the number of completions or tokens"
        for indices, batch_completions in halve_on_oom(batches, decode, lower=lower):
            for n, i in enumerate(indices):
                completions[i] = batch_completions[n * k : (n + 1) * k]
            if on_batch is not None:
                on_batch(len(batch_completions))
    return completions


@torch.no_grad()
def stream(
    adapters: Adapters,
    role: str | None,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[str],
    *,
    k: int = 1,
    sampling: Sampling,
    seed: int,
) -> Generator[list[Token], None, None]:
    """Sample as `sample` does, but yield token by token, all rows in one batch.

    Leave the loop, or close the iterator, to stop between two tokens. Until it has ended the
    adapters are in use and cannot be switched.

    Yields:
        The next token of each row that has not ended; rows are numbered prompt by prompt, sample
        by sample.
    """
    _refuse_train_mode(adapters)
    noise = _noises(seed, keys, k, sampling.max_new_tokens)
    with adapters.using(role), adapters.decoding():
        yield from _decode_steps(adapters, prompts, k, sampling, noise)


def _refuse_train_mode(adapters: Adapters) -> None:
    if adapters.base.model.training:
        raise RuntimeError(
            "generation in train mode gives garbage under checkpointing; leave training() first"
        )


def _noises(seed: int, keys: Sequence[str], k: int, length: int) -> Tensor:
    """(B * K, length) float64 uniform numbers, prompt by prompt, sample by sample."""
    rows = [_noise(seed, key, j, length) for key in keys for j in range(k)]
    return torch.from_numpy(np.stack(rows, axis=0))


def _noise(
    seed: int, key: str, sample_index: int, length: int
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    # Philox is counter-based: its stream depends on the key alone, on every machine.
    digest = hashlib.blake2b(f"{seed}/{key}/{sample_index}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little"))).random(
        length
    )


def _decode(
    adapters: Adapters, prompts: Sequence[Sequence[int]], k: int, sampling: Sampling, noise: Tensor
) -> list[SampledCompletion]:
    ids: list[list[int]] = [[] for _ in range(len(prompts) * k)]
    finished = [False] * len(ids)
    for tokens in _decode_steps(adapters, prompts, k, sampling, noise):
        for token in tokens:
            ids[token.row].append(token.id)
            finished[token.row] = token.ends
    return [SampledCompletion(tuple(row), ends) for row, ends in zip(ids, finished, strict=True)]


@torch.no_grad()
def _decode_steps(
    adapters: Adapters, prompts: Sequence[Sequence[int]], k: int, sampling: Sampling, noise: Tensor
) -> Iterator[list[Token]]:
    """Run the decode loop; yields the tokens of each step.

    Args:
        adapters: Within `using` and `decoding`.
        prompts: Token ids of each prompt.
        k: Completions a prompt.
        sampling: Temperature, top-p and length.
        noise: (B * K, max_new_tokens) uniform numbers in [0, 1).
    """
    base = adapters.base
    # 1. Prefill: read every prompt once, padded on the left, into the key-value cache.
    ids, mask = left_pad(base, prompts)
    positions = (mask.long().cumsum(1) - 1).clamp_min(0)
    cache = DynamicCache(config=base.model.config)
    hidden = adapters.decode(ids, mask, positions, cache)[:, -1]
    # 2. Repeat each row K times, the cache with it.
    if k > 1:
        cache.batch_repeat_interleave(k)
        hidden, mask, positions = (t.repeat_interleave(k, 0) for t in (hidden, mask, positions))
    position = positions[:, -1:]
    stop_ids = torch.tensor(sorted(base.stop_ids), device=base.device)
    noise = noise.to(base.device)
    rows = torch.arange(len(hidden), device=base.device)  # completion index of each batch row
    done = torch.zeros_like(rows, dtype=torch.bool)
    for step in range(sampling.max_new_tokens):
        # 3. Draw the next token of every row from its own noise.
        token_ids = _pick(adapters.logits(hidden), sampling, noise[rows, step])
        ended = torch.isin(token_ids, stop_ids)
        columns = (rows.tolist(), token_ids.tolist(), ended.tolist(), done.tolist())
        yield [
            Token(row, token_id, ends)
            for row, token_id, ends, was_done in zip(*columns, strict=True)
            if not was_done
        ]
        done = done | ended
        if bool(done.all()) or step == sampling.max_new_tokens - 1:
            break
        # 4. Drop finished rows, an eighth of the batch at once: it costs a copy of the cache.
        if int(done.sum()) * 8 >= len(done):
            keep = (~done).nonzero()[:, 0]
            cache.batch_select_indices(keep)
            rows, done, token_ids = rows[keep], done[keep], token_ids[keep]
            mask, position = mask[keep], position[keep]
        # 5. Feed the new tokens back.
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
        position = position + 1
        hidden = adapters.decode(token_ids[:, None], mask, position, cache)[:, -1]


def _pick(logits: Tensor, sampling: Sampling, uniform: Tensor) -> Tensor:
    """Sample (B,) token ids from (B, V) logits by inverting their CDF at (B,) uniform numbers."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits / sampling.temperature, -1)
    if sampling.top_p < 1:
        # Nucleus: the most likely tokens until their sum reaches top-p; never none.
        descending, order = probabilities.sort(-1, descending=True)
        outside = descending.cumsum(-1) - descending >= sampling.top_p
        probabilities = probabilities.scatter(-1, order, descending.masked_fill(outside, 0))
    cumulative = probabilities.double().cumsum(-1)
    target = uniform[:, None] * cumulative[:, -1:]  # not normalised: scale the number instead
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_max(logits.shape[-1] - 1)
