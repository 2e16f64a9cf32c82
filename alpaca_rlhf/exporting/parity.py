"""Parity of an export with the trained model, measured in plain transformers and peft.

The reference is the run's own base with its adapter, computed in float32 with exactly the weights
of training. In 32 bit an export must continue prompts with the same tokens, greedily. In 16 bit and
below rounding may decide a close call, so agreement and perplexity are compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alpaca_rlhf.exporting import placing
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.batches import Example, collate
from alpaca_rlhf.models.devices import float64
from alpaca_rlhf.models.rollout import sample
from alpaca_rlhf.settings import Sampling

NEW_TOKENS = 32
"""Maximum tokens that each prompt is continued by."""
TIE = 1e-3
"""Two tokens whose logits are closer than this tie, and either is right in 32 bit."""
AGREEMENT = 0.9
"""Minimum share of equal next tokens in 16 and 8 bit."""
PERPLEXITY = 0.05
"""Maximum relative change of perplexity in 16 and 8 bit."""
SCORE_TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.25, torch.float16: 0.05}
"""Maximum difference of a score, in standard deviations of SFT completions' scores."""


@dataclass(frozen=True)
class Parity:
    """The result of a check."""

    passed: bool
    """True if the export does what was trained."""
    line: str
    """The result in one line."""
    facts: dict[str, Any]
    """The numbers, for `parity.json`."""


@dataclass(frozen=True)
class Limits:
    """The difference that an export may have where the same tokens cannot be required."""

    agreement: float
    """Minimum share of equal next tokens."""
    perplexity: float
    """Maximum relative change of perplexity."""


SIXTEEN_BIT = Limits(AGREEMENT, PERPLEXITY)
LIMITS = {
    "q6_k": SIXTEEN_BIT,
    "q5_k_m": Limits(0.85, 0.08),
    "q4_k_m": Limits(0.8, 0.12),
    "q4_k_s": Limits(0.8, 0.12),
    "q3_k_m": Limits(0.7, 0.25),
}
"""Limits of the K-quants; estimates, at several times the loss that llama.cpp reports for 7B models
(tools/quantize/README.md: 1% of perplexity at Q4_K_M, 5% at Q3_K_M), since small ones lose more."""


NOT_COMPARED = Parity(
    True,
    "NOT COMPARED: transformers reads a GGUF file in one piece, and neither the GPU nor main "
    "memory has room for it; try it in llama.cpp before you rely on it",
    {"compared": False},
)
"""The result for a GGUF file that is too large to be read again on this machine."""


@dataclass(frozen=True)
class Reference:
    """The trained policy's output for one prompt."""

    prompt: tuple[int, ...]
    """Token ids of the prompt."""
    completion: tuple[int, ...]
    """Token ids of the greedy completion."""
    gaps: tuple[float, ...]
    """Lead of each completion token over the runner-up, in logits."""
    logprobs: Tensor
    """(T - 1,) log-probability of every token but the first, prompt included."""
    best: Tensor
    """(T - 1,) likeliest token at each of these positions."""

    @property
    def ids(self) -> list[int]:
        """Token ids of prompt and completion."""
        return [*self.prompt, *self.completion]


@torch.no_grad()
def references(
    adapters: Adapters,
    role: str | None,
    prompts: Sequence[tuple[int, ...]],
    *,
    progress: Callable[[int, int], None],
) -> list[Reference]:
    """Record a trained policy's outputs; prompts that leave no room for one are left out."""
    recorded = []
    completions = _greedy_completions(adapters, role, prompts)
    for number, (prompt, completion_ids) in enumerate(completions):
        progress(number + 1, len(completions))
        # Logits of prompt and completion, in one forward.
        with adapters.using(role):
            batch = collate(adapters.base, [Example(prompt, completion_ids)])
            logits = adapters.logits(adapters.hidden(batch))[:-1]
        top = logits.topk(2).values
        # Logits at a position are of the token after it, hence from the prompt's last one on.
        gaps = (top[:, 0] - top[:, 1])[len(prompt) - 1 :]
        logprobs, best = _figures(logits, batch.ids)
        recorded.append(Reference(prompt, completion_ids, tuple(gaps.tolist()), logprobs, best))
    return recorded


def _greedy_completions(
    adapters: Adapters, role: str | None, prompts: Sequence[tuple[int, ...]]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Prompts with their greedy completions; those with room for as many tokens go together."""
    rooms: dict[int, list[tuple[int, ...]]] = {}
    for prompt in prompts:
        room = min(NEW_TOKENS, adapters.base.context - len(prompt))
        if room >= 1:
            rooms.setdefault(room, []).append(prompt)
    completed = []
    for room, group in rooms.items():
        greedy = Sampling(temperature=0.0, max_new_tokens=room, batch_size=len(group))
        keys = [str(number) for number in range(len(group))]
        samples = sample(adapters, role, group, keys, sampling=greedy, seed=0)
        completed += [
            (prompt, completion.ids) for prompt, (completion,) in zip(group, samples, strict=True)
        ]
    return completed


@torch.no_grad()
def compare(
    model: Any,
    references: Sequence[Reference],
    stop_ids: Sequence[int],
    progress: Callable[[int, int], None],
    *,
    exact: bool,
    limits: Limits = SIXTEEN_BIT,
) -> Parity:
    """Compare a plain model with the trained policy.

    Args:
        model: A causal language model of transformers, or a `PeftModel`.
        references: The trained policy's outputs.
        stop_ids: Ids that end a completion.
        progress: Receives the number of finished prompts and the total.
        exact: The same tokens are required.
        limits: The difference that is allowed otherwise.
    """
    same = ties = agreed = tokens = 0
    trained_nats = exported_nats = 0.0
    differing = []
    for number, reference in enumerate(references):
        # 1. Next tokens and their log-probabilities, given the reference's tokens.
        ids = torch.tensor([reference.ids], device=placing.entry(model))
        logits = model(input_ids=ids).logits[0, :-1].float()
        logprobs, best = _figures(logits, ids[0])
        trained_nats -= float(float64(reference.logprobs).sum())
        exported_nats -= float(float64(logprobs).sum())
        agreed += int((best == reference.best).sum())
        tokens += len(best)
        # 2. The greedy completion.
        completion = _greedy(model, reference, stop_ids)
        if completion == reference.completion:
            same += 1
        elif _is_tie(reference, completion):
            ties += 1
        else:
            differing.append(number)
        progress(number + 1, len(references))
    # 3. Perplexity relative to the trained policy's, over the same tokens.
    change = _exp((exported_nats - trained_nats) / tokens) - 1
    agreement = agreed / tokens
    # 4. Exact exports may differ at ties alone; others within the two limits.
    within = agreement >= limits.agreement and abs(change) <= limits.perplexity
    passed = not differing if exact else within
    tied = f" ({ties} more differ at a tie)" if ties else ""
    return Parity(
        passed and tokens > 0 and math.isfinite(change),
        f"{same} of {len(references)} prompts continued alike{tied}, {agreement:.1%} of next "
        f"tokens alike, perplexity {change:+.2%}",
        {
            "prompts": len(references),
            "same_greedy": same,
            "ties": ties,
            "differing": differing,
            "new_tokens": NEW_TOKENS,
            "tokens": tokens,
            "agreement": agreement,
            "perplexity": _number(_exp(exported_nats / tokens)),
            "perplexity_trained": _exp(trained_nats / tokens),
            "perplexity_change": _number(change),
            "asked": "the same tokens"
            if exact
            else f"agreement {limits.agreement:g}, change of perplexity at most "
            f"{limits.perplexity:g}",
        },
    )


@torch.no_grad()
def compare_scores(
    model: Any, bias: float, examples: Sequence[Example], scores: Tensor, dtype: torch.dtype
) -> Parity:
    """Compare a plain sequence classifier with the trained reward model.

    Args:
        model: A sequence classifier of transformers with one label.
        bias: The `score_bias` to add to its logit.
        examples: Prompts with completions.
        scores: (N,) scores by the trained reward model.
        dtype: Dtype of the stored weights.
    """
    pad, device = int(model.config.pad_token_id), placing.entry(model)
    batches = []
    for start in range(0, len(examples), 4):  # batches of four, so that padding matters
        rows = [[*example.prompt, *example.completion] for example in examples[start : start + 4]]
        width = max(map(len, rows))
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        out = model(input_ids=ids.to(device), attention_mask=mask.to(device))
        batches.append(out.logits[:, 0].float().cpu() + bias)
    exported = torch.cat(batches)
    difference = float((exported - scores).abs().max())
    allowed = SCORE_TOLERANCE[dtype]
    return Parity(
        difference <= allowed,
        f"{len(examples)} scores differ by at most {difference:.2g} (allowed: {allowed:g})",
        {
            "scores": len(examples),
            "largest_difference": _number(difference),
            "allowed": allowed,
            "trained": scores.tolist(),
            "exported": [_number(value) for value in exported.tolist()],
        },
    )


def _greedy(model: Any, reference: Reference, stop_ids: Sequence[int]) -> tuple[int, ...]:
    """Continue a reference's prompt greedily, by as many tokens as the reference has."""
    ids = torch.tensor([reference.prompt], device=placing.entry(model))
    ids_out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=min(NEW_TOKENS, len(reference.completion)),
        eos_token_id=list(stop_ids),
        pad_token_id=int(stop_ids[0]),
    )
    return tuple(ids_out[0, len(reference.prompt) :].tolist())


def _exp(nats: float) -> float:
    return math.exp(min(nats, 700.0))  # exp of more overflows a float


def _number(value: float) -> float | None:
    """A number as JSON can hold it; None where the model overflowed in 16 bit."""
    return value if math.isfinite(value) else None


def _is_tie(reference: Reference, completion: Sequence[int]) -> bool:
    """True if the first different token was a tie in the reference."""
    pairs = enumerate(zip(reference.completion, completion, strict=False))
    first_difference = next((index for index, (a, b) in pairs if a != b), None)
    return first_difference is not None and reference.gaps[first_difference] < TIE


def _figures(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of (T,) ids but the first, and likeliest tokens, from (T - 1, V) logits."""
    logprobs = logits.log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
    return logprobs.cpu(), logits.argmax(-1).cpu()
