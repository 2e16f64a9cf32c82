"""Log-probabilities of given tokens, fused with the output head.

The head is frozen, so the gradient of a token's log-probability with respect to its hidden state,

    d log p(y) / d h = (W[y] - p W) / temperature,

can be computed in the forward, chunk by chunk, from the same probabilities. The backward only
scales it, row by row. No tensor of tokens x vocabulary outlives its chunk, nothing is computed
twice, and it serves any loss that is a function of log-probabilities: SFT's and PPO's alike.

Computing the gradient in the forward is Liger Kernel's idea (arXiv 2410.10989 section 3.2).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from alpaca_rlhf.core.sizes import LOGITS_PER_CHUNK


class TokenLogprobs(NamedTuple):
    """Log-probability of each of N tokens, and the entropy of its distribution."""

    logprobs: Tensor
    """(N,) float32; float64 for float64 hidden states."""
    entropy: Tensor | None
    """(N,) entropy of the whole distribution in nats, without a gradient; None unless requested."""


def target_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
) -> TokenLogprobs:
    """Log-probabilities of `targets` under softmax(hidden @ weight.T / temperature).

    Args:
        hidden: (N, H) hidden states, in the precision that the head is computed in.
        weight: (V, H) frozen output head.
        targets: (N,) int64 token ids.
        temperature: Divides the logits.
        entropy: Also return the entropies.
    """
    logprobs, entropies = _TargetLogprobs.apply(hidden, weight, targets, temperature, entropy)  # type: ignore[no-untyped-call]
    return TokenLogprobs(logprobs, entropies)


def accumulates_exactly(device: torch.device, dtype: torch.dtype) -> bool:
    """True where a product of two matrices can come out in float32, not rounded to their dtype.

    cuBLAS sums in float32 in any case; only the result was rounded. PyTorch offers this for bf16
    and fp16 on NVIDIA cards.
    """
    is_nvidia = device.type == "cuda" and torch.version.hip is None
    return is_nvidia and dtype in (torch.bfloat16, torch.float16)


def exact_product(a: Tensor, b: Tensor) -> Tensor:
    """Multiply two matrices into at least float32, rounded on the way where the device must.

    Logits around 20 in bf16 are off by up to 0.06: an unchanged policy would show probability
    ratios some percent from 1.
    """
    if accumulates_exactly(a.device, a.dtype):
        return torch.mm(a, b, out_dtype=torch.float32)
    return (a @ b).to(torch.promote_types(a.dtype, torch.float32))


class _TargetLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        exact_dtype = torch.promote_types(hidden.dtype, torch.float32)
        needs_grad = ctx.needs_input_grad[0]
        weight = weight.to(hidden.dtype)
        logprobs = torch.empty(len(hidden), dtype=exact_dtype, device=hidden.device)
        entropies = torch.empty_like(logprobs) if entropy else None
        slopes = torch.empty_like(hidden) if needs_grad else None
        chunk_rows = max(1, LOGITS_PER_CHUNK // len(weight))
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), chunk_rows):
                chunk = slice(start, start + chunk_rows)
                # 1. Log-probabilities of this chunk, in at least float32.
                logits = exact_product(hidden[chunk], weight.T)
                if temperature != 1.0:
                    logits /= temperature
                logits -= logits.logsumexp(-1, keepdim=True)
                logprobs[chunk] = logits.gather(-1, targets[chunk, None])[:, 0]
                if entropies is None and slopes is None:
                    continue
                # 2. Entropy of the whole distribution. entr(0) is 0, also for a masked token.
                probabilities = logits.exp()
                if entropies is not None:
                    entropies[chunk] = torch.special.entr(probabilities).sum(-1)
                if slopes is not None:
                    # 3. Gradient d log p / d h. The target's entry is p - 1 before anything is
                    # rounded: near p = 1 the difference of two rounded products would be noise.
                    excess = probabilities.scatter_(
                        1, targets[chunk, None], logprobs[chunk, None].expm1()
                    )
                    slope = -(excess.to(weight.dtype) @ weight).to(exact_dtype) / temperature
                    slopes[chunk] = slope.to(slopes.dtype)
        if slopes is not None:
            ctx.save_for_backward(slopes)
        if entropies is not None:
            ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor, None, None, None, None]:
        (slopes,) = ctx.saved_tensors
        return (slopes.to(grad.dtype) * grad[:, None]).to(slopes.dtype), None, None, None, None
