"""Best-of-K: the reward model's favourite of K completions becomes training data.

Source: rejection sampling fine-tuning in Llama 2 (arXiv 2307.09288) section 3.2.2; expert iteration
in AlpacaFarm (arXiv 2305.14387).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.models.batches import Example
from alpaca_rlhf.training.candidates import Candidates


@dataclass(frozen=True)
class Winners:
    """The chosen completions."""

    examples: list[Example]
    """Prompts with a completion that was chosen, in the order of the prompts."""
    mean_best: float
    """Mean score of the chosen completions."""


def choose(
    pool: Sequence[Candidates], *, keep: float = 1.0, threshold: float | None = None
) -> Winners:
    """Keep the completion of each prompt that the reward model scores highest.

    A completion that did not stop never wins. Among equal scores the first sample wins. Of the
    winners the share `keep` stays, those with the highest scores. With a threshold every finished
    completion above it wins instead, however many of a prompt, and equal ones each count: their
    frequencies are those of the policy.

    Args:
        pool: Candidates; a prompt that stands there twice, from two rounds, has one winner.
        keep: Share of the winners that stays.
        threshold: The score to exceed.

    Raises:
        UserError: No completion stopped, or none scores above the threshold.

    Source: the choice over a whole batch is RAFT's (arXiv 2304.06767 algorithm 1).
    """
    finished: dict[str, list[tuple[float, Example]]] = {}
    for own in pool:
        finished.setdefault(own.key, []).extend(
            (score, example)
            for score, one, example in zip(own.scores, own.completions, own.examples, strict=True)
            if one.finished
        )
    scores = [score for group in finished.values() for score, _ in group]
    if not scores:
        raise UserError(
            f"best-of-k: none of the {sum(len(own.completions) for own in pool)} completions ended "
            "by itself, so none can win; raise --sampling.max-new-tokens or --sft.epochs, with "
            "another --out"
        )
    if threshold is not None:
        won = [one for group in finished.values() for one in group if one[0] > threshold]
        if not won:
            raise UserError(
                f"best-of-k: none of the {len(scores)} finished completions scores above "
                f"--best-of-k.threshold {threshold:g}, the highest scores {max(scores):.4g}; "
                "lower it and run the same command again: they are not sampled anew"
            )
    else:
        best = [max(group, key=lambda one: one[0]) for group in finished.values() if group]
        order = sorted(range(len(best)), key=lambda i: (-best[i][0], i))
        won = [best[i] for i in sorted(order[: max(1, round(keep * len(best)))])]
    return Winners([example for _, example in won], sum(score for score, _ in won) / len(won))
