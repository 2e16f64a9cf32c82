"""Passes without gradients over given completions: log-probabilities, values and scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.batches import Batch, Example, by_prompt, collate
from alpaca_rlhf.models.forward import completion_scores, token_logprobs, token_stats, token_values
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.models.oom_retry import halve_on_oom


@torch.no_grad()
def score(
    adapters: Adapters,
    role: str,
    head: Callable[[Tensor], Tensor],
    examples: Sequence[Example],
    *,
    batch_size: int,
) -> Tensor:
    """(N,) float32 scores of examples, on the CPU; (N, 1 + C) with a head's `all_scores`."""
    scores = torch.empty(len(examples))

    def score_batch(indices: list[int]) -> Tensor:
        batch = collate(adapters.base, [examples[i] for i in indices])
        return completion_scores(adapters, head, batch).float().cpu()

    with adapters.using(role), adapters.decoding():
        batches = by_prompt(examples, batch_size)
        lower = "the length of the completions"
        for indices, batch_scores in halve_on_oom(batches, score_batch, lower=lower):
            if batch_scores.ndim > scores.ndim:
                scores = torch.empty(len(examples), *batch_scores.shape[1:])
            scores[indices] = batch_scores
    return scores


@torch.no_grad()
def completion_logprobs(
    adapters: Adapters, role: str | None, examples: Sequence[Example], *, batch_size: int
) -> Tensor:
    """(N,) float32 log-probabilities of whole completions, on the CPU, by the training forward."""
    logprobs = completion_token_logprobs(adapters, role, examples, batch_size=batch_size)
    return torch.tensor([float(of_completion.sum()) for of_completion in logprobs])


@torch.no_grad()
def completion_token_logprobs(
    adapters: Adapters,
    role: str | None,
    examples: Sequence[Example],
    *,
    batch_size: int,
    temperature: float = 1.0,
) -> list[Tensor]:
    """(C,) float32 log-probabilities of each completion's tokens, on the CPU."""
    logprobs = [torch.empty(0)] * len(examples)

    def batch_logprobs(indices: list[int]) -> Tensor:
        batch = collate(adapters.base, [examples[i] for i in indices])
        return token_logprobs(adapters, batch, temperature=temperature).float().cpu()

    with adapters.using(role), adapters.dequantized():
        batches = by_prompt(examples, batch_size)
        lower = "the length of the completions"
        for indices, of_batch in halve_on_oom(batches, batch_logprobs, lower=lower):
            for index, of_completion in zip(indices, of_batch, strict=True):
                logprobs[index] = of_completion[: len(examples[index].completion)]
    return logprobs


@torch.no_grad()
def logprobs(
    adapters: Adapters,
    role: str | None,
    batch: Batch,
    *,
    micro_batch_size: int,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """(B, C) log-probabilities and (B, C) entropies of the completion tokens."""
    with adapters.using(role), adapters.dequantized():
        stats = [
            token_stats(adapters, micro_batch, temperature=temperature)
            for micro_batch in micro_batches(batch, micro_batch_size)
        ]
    return torch.cat([s.logprobs for s in stats]), torch.cat([s.entropy for s in stats])


@torch.no_grad()
def logprobs_and_values(
    adapters: Adapters,
    role: str,
    head: ScalarHead,
    batch: Batch,
    *,
    micro_batch_size: int,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """(B, C) log-probabilities, entropies and values, all of one forward a row."""
    with adapters.using(role), adapters.dequantized():
        stats = [
            token_stats(adapters, micro_batch, temperature=temperature, head=head)
            for micro_batch in micro_batches(batch, micro_batch_size)
        ]
    logprobs, entropy, values = zip(*stats, strict=True)
    return torch.cat(logprobs), torch.cat(entropy), torch.cat(values)


@torch.no_grad()
def values(
    adapters: Adapters, role: str, head: ScalarHead, batch: Batch, *, micro_batch_size: int
) -> Tensor:
    """(B, C) values of the state before each completion token."""
    with adapters.using(role), adapters.dequantized():
        return torch.cat(
            [token_values(adapters, head, rows) for rows in micro_batches(batch, micro_batch_size)]
        )


@torch.no_grad()
def scores(
    adapters: Adapters, role: str, head: ScalarHead, batch: Batch, *, micro_batch_size: int
) -> Tensor:
    """(B,) scores of the completions."""
    with adapters.using(role), adapters.dequantized():
        return torch.cat(
            [
                completion_scores(adapters, head, rows)
                for rows in micro_batches(batch, micro_batch_size)
            ]
        )


def micro_batches(batch: Batch, size: int) -> list[Batch]:
    """Split the sequences of a batch into batches of at most `size`."""
    return [
        batch.rows(start, min(start + size, len(batch))) for start in range(0, len(batch), size)
    ]
