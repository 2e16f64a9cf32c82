"""Log-probabilities of chosen tokens, fused with the output head.

The head is frozen, so the gradient of a token's log-probability with respect to its hidden state,

    d log p(y) / d h = (W[y] - p W) / temperature,

can be made in the forward, chunk by chunk, from the same probabilities. The backward only scales
it, row by row. No tensor of tokens x vocabulary outlives its chunk, nothing is computed twice, and
it serves any loss that is a function of log-probabilities: SFT's and PPO's alike.

The idea of making the gradient in the forward is Liger Kernel's (arXiv 2410.10989 section 3.2).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK = 2**24
"""Logits in memory at once, at most: 64 MiB in float32."""


class Chosen(NamedTuple):
    """Of each of N tokens."""

    logprobs: Tensor
    """(N,) float32 (float64 for float64 states)."""
    entropy: Tensor | None
    """(N,) entropy of the whole distribution in nats, without a gradient; None if not asked for."""


def chosen_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
) -> Chosen:
    """Log-probabilities of `targets` under softmax(hidden @ weight.T / temperature).

    Args:
        hidden: (N, H), of the precision that the head is to be computed in.
        weight: (V, H) frozen output head.
        targets: (N,) int64.
        temperature: Divides the logits.
        entropy: Whether to give the entropies too.
    """
    logprobs, entropies = _Chosen.apply(hidden, weight, targets, temperature, entropy)  # type: ignore[no-untyped-call]
    return Chosen(logprobs, entropies)


class _Chosen(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        exact = torch.promote_types(hidden.dtype, torch.float32)
        learns = ctx.needs_input_grad[0]
        weight = weight.to(hidden.dtype)
        logprobs = torch.empty(len(hidden), dtype=exact, device=hidden.device)
        entropies = torch.empty_like(logprobs) if entropy else None
        slopes = torch.empty_like(hidden) if learns else None
        rows = max(1, CHUNK // len(weight))
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), rows):
                part = slice(start, start + rows)
                logits = (hidden[part] @ weight.T).to(exact)
                if temperature != 1.0:
                    logits /= temperature
                logits -= logits.logsumexp(-1, keepdim=True)
                logprobs[part] = logits.gather(-1, targets[part, None])[:, 0]
                if entropies is None and slopes is None:
                    continue
                probabilities = logits.exp()
                if entropies is not None:
                    # 0 log 0 is 0, also where a token has been ruled out
                    entropies[part] = torch.special.entr(probabilities).sum(-1)
                if slopes is not None:
                    # 1 - p of the target before anything is rounded: where p is near 1, the
                    # difference of two rounded products would be noise
                    excess = probabilities.scatter_(
                        1, targets[part, None], logprobs[part, None].expm1()
                    )
                    slope = -(excess.to(weight.dtype) @ weight).to(exact) / temperature
                    slopes[part] = slope.to(slopes.dtype)
        if slopes is not None:
            ctx.save_for_backward(slopes)
        if entropies is not None:
            ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor, None, None, None, None]:
        (slopes,) = ctx.saved_tensors
        return (slopes.to(grad.dtype) * grad[:, None]).to(slopes.dtype), None, None, None, None
