"""Best-of-K: of K completions, the one with the highest reward becomes training data.

Source: rejection sampling fine-tuning in Llama 2 (arXiv 2307.09288) section 3.2.2; expert iteration
in AlpacaFarm (arXiv 2305.14387).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.models.batches import Example
from alpaca_rlhf.training.candidates import Candidates


@dataclass(frozen=True)
class Winners:
    """The selected completions."""

    examples: list[Example]
    """Selected completions with their prompts, in the order of the prompts."""
    mean_best: float
    """Mean score of the selected completions."""


def choose(
    pool: Sequence[Candidates], *, keep: float = 1.0, threshold: float | None = None
) -> Winners:
    """Keep the completion of each prompt that the reward model scores highest.

    A completion that did not stop never wins. Among equal scores the first sample wins. Of the
    winners, the share `keep` with the highest scores stays. With a threshold, every finished
    completion above it wins instead, any number for a prompt, and equal ones each count: their
    frequencies are those of the policy.

    Args:
        pool: Candidates; a prompt that occurs twice, from two rounds, has one winner.
        keep: Share of the winners that stays.
        threshold: Score to exceed.

    Raises:
        UserError: No completion stopped, or none scores above the threshold.

    Source: the choice over a whole batch is RAFT's (arXiv 2304.06767 algorithm 1).
    """
    # 1. Finished completions of each prompt.
    finished = _finished(pool)
    scores = [score for scored in finished.values() for score, _ in scored]
    if not scores:
        raise UserError(
            f"best-of-k: none of the {sum(len(c.completions) for c in pool)} completions ended "
            "by itself, so none can win; raise --sampling.max-new-tokens or --sft.epochs, with "
            "another --out"
        )
    if threshold is not None:
        # 2a. All above the threshold.
        winners = [
            (score, example)
            for scored in finished.values()
            for score, example in scored
            if score > threshold
        ]
        if not winners:
            raise UserError(
                f"best-of-k: none of the {len(scores)} finished completions scores above "
                f"--best-of-k.threshold {threshold:g}, the highest scores {max(scores):.4g}; "
                "lower it and run the same command again: they are not sampled anew"
            )
    else:
        # 2b. The best of each prompt, of which the best share stays, in the order of the prompts.
        best = [max(scored, key=itemgetter(0)) for scored in finished.values() if scored]
        order = sorted(range(len(best)), key=lambda i: (-best[i][0], i))
        winners = [best[i] for i in sorted(order[: max(1, round(keep * len(best)))])]
    mean_best = sum(score for score, _ in winners) / len(winners)
    return Winners([example for _, example in winners], mean_best)


def choose_at_random(pool: Sequence[Candidates], count: int, *, seed: int) -> Winners:
    """Choose as many finished completions as the winners are, without looking at the scores.

    One of each prompt, of which `count` prompts stay; where that is not enough, any of all. What
    fine-tuning on them gains, no choice has earned.

    Args:
        pool: The candidates that winners were chosen from.
        count: Number of the winners.
        seed: Seed of the draw.
    """
    rng = random.Random(f"{seed}/random of k")
    finished = [scored for scored in _finished(pool).values() if scored]
    if count <= len(finished):
        chosen = [rng.choice(scored) for scored in finished]
    else:
        chosen = [candidate for scored in finished for candidate in scored]
    kept = [chosen[i] for i in sorted(rng.sample(range(len(chosen)), count))]
    return Winners([example for _, example in kept], sum(score for score, _ in kept) / count)


def best_sample(scores: Sequence[float], finished: Sequence[bool]) -> int:
    """Number of the sample with the highest score; one that did not stop wins only if none did.

    Among equal scores the first sample wins.
    """
    order = sorted(range(len(scores)), key=lambda i: (not finished[i], -scores[i], i))
    return order[0]


def _finished(pool: Sequence[Candidates]) -> Mapping[str, list[tuple[float, Example]]]:
    """The finished completions of each prompt with their scores."""
    finished: dict[str, list[tuple[float, Example]]] = {}
    for candidates in pool:
        finished.setdefault(candidates.key, []).extend(
            (score, example)
            for score, completion, example in zip(
                candidates.scores, candidates.completions, candidates.examples, strict=True
            )
            if completion.finished
        )
    return finished
