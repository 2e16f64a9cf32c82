"""Whether what was exported does what was trained, seen through plain transformers and peft.

The reference is the run's own base with its adapter, computed in float32 with the very weights that
it was trained with. In 32 bit an export must go on with the same tokens, greedily. In 16 bit and
below rounding may turn a close call, so agreement and perplexity are compared.
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
from alpaca_rlhf.models.rollout import sample
from alpaca_rlhf.settings import Sampling

NEW_TOKENS = 32
"""Tokens that each prompt is gone on with, at most."""
TIE = 1e-3
"""Two tokens whose logits lie closer than this are a tie, and either is right in 32 bit."""
AGREEMENT = 0.9
"""Least share of next tokens that must be the same in 16 bit and below."""
PERPLEXITY = 0.05
"""Most that the perplexity may change there."""
SCORE_TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.25, torch.float16: 0.05}
"""Most that a score may differ, where the scores of SFT completions have standard deviation 1."""


@dataclass(frozen=True)
class Parity:
    """What a check found."""

    passed: bool
    """Whether the export does what was trained."""
    line: str
    """One line for a person."""
    facts: dict[str, Any]
    """Its numbers, for `parity.json`."""


NOT_COMPARED = Parity(
    True,
    "NOT COMPARED: transformers reads a GGUF file whole, and neither the card nor the processor "
    "has the memory for it; try it in llama.cpp before you rely on it",
    {"compared": False},
)
"""What is said of a file that is too large to be read again here."""


@dataclass(frozen=True)
class Reference:
    """What the trained policy does with one prompt."""

    prompt: tuple[int, ...]
    """Its ids."""
    completion: tuple[int, ...]
    """What the policy says, greedily."""
    gaps: tuple[float, ...]
    """How far each of these tokens was ahead of the second one, in logits."""
    logprobs: Tensor
    """(T - 1,) log-probability of each token of the whole but the first."""
    best: Tensor
    """(T - 1,) likeliest token at each of these places."""

    @property
    def whole(self) -> list[int]:
        """Ids of prompt and completion."""
        return [*self.prompt, *self.completion]


@torch.no_grad()
def references(
    adapters: Adapters,
    role: str | None,
    prompts: Sequence[tuple[int, ...]],
    *,
    progress: Callable[[int, int], None],
) -> list[Reference]:
    """What a trained policy does with prompts; those that leave no room are left out."""
    out = []
    for number, prompt in enumerate(prompts):
        progress(number + 1, len(prompts))
        most = min(NEW_TOKENS, adapters.base.context - len(prompt))
        if most < 1:
            continue
        greedy = Sampling(temperature=0.0, max_new_tokens=most, batch_size=1)
        ((one,),) = sample(adapters, role, [prompt], [str(number)], sampling=greedy, seed=0)
        with adapters.using(role):
            batch = collate(adapters.base, [Example(prompt, one.ids)])
            logits = adapters.logits(adapters.hidden(batch))[:-1]
        top = logits.topk(2).values
        gaps = (top[:, 0] - top[:, 1])[len(prompt) - 1 :]
        logprobs, best = _figures(logits, batch.ids)
        out.append(Reference(prompt, one.ids, tuple(gaps.tolist()), logprobs, best))
    return out


@torch.no_grad()
def compare(
    model: Any,
    found: Sequence[Reference],
    *,
    exact: bool,
    stop_ids: Sequence[int],
    progress: Callable[[int, int], None],
) -> Parity:
    """Compare a plain model with the trained policy.

    Args:
        model: A causal language model of transformers, or a `PeftModel`.
        found: What the trained policy does.
        exact: Whether the same tokens are asked for.
        stop_ids: What ends a completion.
        progress: Told how many prompts are done.
    """
    same = ties = agreed = tokens = 0
    ours = theirs = 0.0
    differing = []
    for number, one in enumerate(found):
        said = _greedy(model, one, stop_ids)
        ids = torch.tensor([one.whole], device=placing.entry(model))
        logits = model(input_ids=ids).logits[0, :-1].float()
        logprobs, best = _figures(logits, ids[0])
        ours -= float(one.logprobs.double().sum())
        theirs -= float(logprobs.double().sum())
        agreed += int((best == one.best).sum())
        tokens += len(best)
        if said == one.completion:
            same += 1
        elif _is_tie(one, said):
            ties += 1
        else:
            differing.append(number)
        progress(number + 1, len(found))
    change = _exp((theirs - ours) / tokens) - 1
    agreement = agreed / tokens
    passed = not differing if exact else agreement >= AGREEMENT and abs(change) <= PERPLEXITY
    tied = f" ({ties} more part at a tie)" if ties else ""
    return Parity(
        passed and tokens > 0 and math.isfinite(change),
        f"{same} of {len(found)} prompts gone on with alike{tied}, {agreement:.1%} of next tokens "
        f"alike, perplexity {change:+.2%}",
        {
            "prompts": len(found),
            "same_greedy": same,
            "ties": ties,
            "differing": differing,
            "new_tokens": NEW_TOKENS,
            "tokens": tokens,
            "agreement": agreement,
            "perplexity": _number(_exp(theirs / tokens)),
            "perplexity_trained": _exp(ours / tokens),
            "perplexity_change": _number(change),
            "asked": "the same tokens"
            if exact
            else f"agreement {AGREEMENT:g}, change of perplexity at most {PERPLEXITY:g}",
        },
    )


@torch.no_grad()
def compare_scores(
    model: Any, bias: float, examples: Sequence[Example], scores: Tensor, dtype: torch.dtype
) -> Parity:
    """Compare a plain sequence classifier with the trained reward model.

    Args:
        model: Of transformers, with one label.
        bias: What stands beside it, to be added to its logit.
        examples: Prompts with completions.
        scores: (N,) what the trained reward model gives them.
        dtype: What the export is stored in.
    """
    pad, device = int(model.config.pad_token_id), placing.entry(model)
    found = []
    for start in range(0, len(examples), 4):  # several at once, so that padding shows
        rows = [[*one.prompt, *one.completion] for one in examples[start : start + 4]]
        width = max(map(len, rows))
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        out = model(input_ids=ids.to(device), attention_mask=mask.to(device))
        found.append(out.logits[:, 0].float().cpu() + bias)
    own = torch.cat(found)
    difference = float((own - scores).abs().max())
    allowed = SCORE_TOLERANCE[dtype]
    return Parity(
        difference <= allowed,
        f"{len(examples)} scores differ by at most {difference:.2g} (allowed: {allowed:g})",
        {
            "scores": len(examples),
            "largest_difference": _number(difference),
            "allowed": allowed,
            "trained": scores.tolist(),
            "exported": [_number(one) for one in own.tolist()],
        },
    )


def _greedy(model: Any, one: Reference, stop_ids: Sequence[int]) -> tuple[int, ...]:
    ids = torch.tensor([one.prompt], device=placing.entry(model))
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=min(NEW_TOKENS, len(one.completion)),
        eos_token_id=list(stop_ids),
        pad_token_id=int(stop_ids[0]),
    )
    return tuple(out[0, len(one.prompt) :].tolist())


def _exp(nats: float) -> float:
    return math.exp(min(nats, 700.0))  # more is too large for a float


def _number(value: float) -> float | None:
    """As JSON has it: a model that overflows in 16 bit gives none."""
    return value if math.isfinite(value) else None


def _is_tie(one: Reference, said: Sequence[int]) -> bool:
    pairs = enumerate(zip(one.completion, said, strict=False))
    parted = next((at for at, (a, b) in pairs if a != b), None)
    return parted is not None and one.gaps[parted] < TIE


def _figures(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Of (T - 1, V) logits before the (T,) ids: log-probabilities of the ids, likeliest tokens."""
    logprobs = logits.log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
    return logprobs.cpu(), logits.argmax(-1).cpu()
