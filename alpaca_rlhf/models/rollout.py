"""Every run without gradients: sampling with our own decode loop, log-probs, values and scores.

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
from alpaca_rlhf.models.batches import Batch, Example, by_length, collate, left_pad
from alpaca_rlhf.models.forward import completion_scores, token_stats, token_values
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.models.memory import halving
from alpaca_rlhf.settings import Sampling


@dataclass(frozen=True)
class Sampled:
    """One sampled completion."""

    ids: tuple[int, ...]
    """Completion tokens, the stop token included."""
    finished: bool
    """Whether it ended with a stop token."""


@dataclass(frozen=True)
class Token:
    """One token of a completion, as it comes."""

    row: int
    """Which completion of the batch."""
    id: int
    """The token."""
    ends: bool
    """Whether it is a stop token; then it is the row's last."""


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
) -> list[list[Sampled]]:
    """Draw K completions of each prompt.

    Args:
        adapters: The adapters of the base.
        role: Which adapter samples; None is the bare base.
        prompts: Token ids of each prompt.
        keys: Name of each prompt, for its noise: the same key draws the same noise.
        k: Completions a prompt.
        sampling: Temperature, top-p, length, batch size.
        seed: Seed of the noise.
        on_batch: Told the number of completions that each batch finished.

    Returns:
        For each prompt, its K completions.
    """
    _refuse_training(adapters)
    results: list[list[Sampled]] = [[] for _ in prompts]

    def draw(group: list[int]) -> list[Sampled]:
        noise = _noises(seed, [keys[i] for i in group], k, sampling.max_new_tokens)
        return _decode(adapters, [prompts[i] for i in group], k, sampling, noise)

    with adapters.using(role), adapters.decoding():
        groups = by_length([len(p) for p in prompts], max(1, sampling.batch_size // k))
        for group, drawn in halving(groups, draw, lower="the number of completions or tokens"):
            for n, i in enumerate(group):
                results[i] = drawn[n * k : (n + 1) * k]
            if on_batch is not None:
                on_batch(len(drawn))
    return results


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
    """The same draws as `sample`, token by token, all rows in one batch.

    Leave the loop, or close the iterator, to stop between two tokens. Until it has ended the
    adapters are in use: nothing else may be asked of them.

    Yields:
        The next token of each row that has not ended; rows are numbered prompt by prompt, sample
        by sample.
    """
    _refuse_training(adapters)
    noise = _noises(seed, keys, k, sampling.max_new_tokens)
    with adapters.using(role), adapters.decoding():
        yield from _steps(adapters, prompts, k, sampling, noise)


def _refuse_training(adapters: Adapters) -> None:
    if adapters.base.model.training:
        raise RuntimeError(
            "generation in train mode gives garbage under checkpointing; leave training() first"
        )


def _noises(seed: int, keys: Sequence[str], k: int, length: int) -> Tensor:
    rows = [_noise(seed, key, j, length) for key in keys for j in range(k)]
    return torch.from_numpy(np.stack(rows, axis=0))


def _noise(
    seed: int, key: str, sample_index: int, length: int
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    digest = hashlib.blake2b(f"{seed}/{key}/{sample_index}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little"))).random(
        length
    )


def _decode(
    adapters: Adapters, prompts: Sequence[Sequence[int]], k: int, sampling: Sampling, noise: Tensor
) -> list[Sampled]:
    tokens: list[list[int]] = [[] for _ in range(len(prompts) * k)]
    finished = [False] * len(tokens)
    for step in _steps(adapters, prompts, k, sampling, noise):
        for one in step:
            tokens[one.row].append(one.id)
            finished[one.row] = one.ends
    return [Sampled(tuple(ids), end) for ids, end in zip(tokens, finished, strict=True)]


@torch.no_grad()
def _steps(
    adapters: Adapters, prompts: Sequence[Sequence[int]], k: int, sampling: Sampling, noise: Tensor
) -> Iterator[list[Token]]:
    base = adapters.base
    ids, mask = left_pad(base, prompts)
    positions = (mask.long().cumsum(1) - 1).clamp_min(0)
    cache = DynamicCache(config=base.model.config)
    state = adapters.decode(ids, mask, positions, cache)[:, -1]
    if k > 1:
        cache.batch_repeat_interleave(k)
        state, mask, positions = (t.repeat_interleave(k, 0) for t in (state, mask, positions))
    position = positions[:, -1:]
    stops = torch.tensor(sorted(base.stop_ids), device=base.device)
    noise = noise.to(base.device)
    rows = torch.arange(len(state), device=base.device)  # which completion each row of the batch is
    done = torch.zeros_like(rows, dtype=torch.bool)
    for step in range(sampling.max_new_tokens):
        chosen = _pick(adapters.logits(state), sampling, noise[rows, step])
        ended = torch.isin(chosen, stops)
        columns = (rows.tolist(), chosen.tolist(), ended.tolist(), done.tolist())
        yield [
            Token(row, token, ends)
            for row, token, ends, was_done in zip(*columns, strict=True)
            if not was_done
        ]
        done = done | ended
        if bool(done.all()) or step == sampling.max_new_tokens - 1:
            break
        if int(done.sum()) * 8 >= len(
            done
        ):  # dropping rows costs a copy of the cache, so not one by one
            keep = (~done).nonzero()[:, 0]
            cache.batch_select_indices(keep)
            rows, done, chosen = rows[keep], done[keep], chosen[keep]
            mask, position = mask[keep], position[keep]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
        position = position + 1
        state = adapters.decode(chosen[:, None], mask, position, cache)[:, -1]


def _pick(logits: Tensor, sampling: Sampling, uniform: Tensor) -> Tensor:
    """(B,) tokens of (B, V) logits: the distribution function inverted at (B,) uniform numbers."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits / sampling.temperature, -1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(-1, descending=True)
        outside = ordered.cumsum(-1) - ordered >= sampling.top_p
        probabilities = probabilities.scatter(-1, order, ordered.masked_fill(outside, 0))
    cumulative = probabilities.double().cumsum(-1)
    target = uniform[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_max(logits.shape[-1] - 1)


@torch.no_grad()
def score(
    adapters: Adapters,
    role: str,
    head: Callable[[Tensor], Tensor],
    examples: Sequence[Example],
    *,
    batch_size: int,
) -> Tensor:
    """(N,) float32 scores of examples, on the CPU; (N, 1 + C) with a head's `parts`."""
    out = torch.empty(len(examples))

    def scored(group: list[int]) -> Tensor:
        batch = collate(adapters.base, [examples[i] for i in group])
        return completion_scores(adapters, head, batch).float().cpu()

    with adapters.using(role), adapters.decoding():
        groups = by_length([len(one) for one in examples], batch_size)
        for group, found in halving(groups, scored, lower="the length of the completions"):
            if found.ndim > out.ndim:
                out = torch.empty(len(examples), *found.shape[1:])
            out[group] = found
    return out


@torch.no_grad()
def logprobs(
    adapters: Adapters,
    role: str | None,
    batch: Batch,
    *,
    micro_batch_size: int,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """(B, C) log-probabilities and entropies of the completion tokens."""
    with adapters.using(role):
        parts = [
            token_stats(adapters, part, temperature=temperature)
            for part in micro_batches(batch, micro_batch_size)
        ]
    return torch.cat([p.logprobs for p in parts]), torch.cat([p.entropy for p in parts])


@torch.no_grad()
def logprobs_and_values(
    adapters: Adapters, role: str, head: ScalarHead, batch: Batch, *, micro_batch_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(B, C) log-probabilities, entropies and values, each row of one forward."""
    with adapters.using(role):
        parts = [
            token_stats(adapters, part, head=head)
            for part in micro_batches(batch, micro_batch_size)
        ]
    logprobs, entropy, values = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropy), torch.cat(values)


@torch.no_grad()
def values(
    adapters: Adapters, role: str, head: ScalarHead, batch: Batch, *, micro_batch_size: int
) -> Tensor:
    """(B, C) values of the state before each completion token."""
    with adapters.using(role):
        return torch.cat(
            [token_values(adapters, head, part) for part in micro_batches(batch, micro_batch_size)]
        )


@torch.no_grad()
def scores(
    adapters: Adapters, role: str, head: ScalarHead, batch: Batch, *, micro_batch_size: int
) -> Tensor:
    """(B,) scores of the completions."""
    with adapters.using(role):
        return torch.cat(
            [
                completion_scores(adapters, head, part)
                for part in micro_batches(batch, micro_batch_size)
            ]
        )


def micro_batches(batch: Batch, size: int) -> list[Batch]:
    """The sequences of a batch in parts of at most `size`."""
    return [
        batch.part(start, min(start + size, len(batch))) for start in range(0, len(batch), size)
    ]
