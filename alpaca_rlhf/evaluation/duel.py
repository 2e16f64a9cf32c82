"""Policies against each other: paired differences, and reading them within one budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from alpaca_rlhf.evaluation.win_rate import Interval, paired_gain

Budget = Literal["completions", "seconds", "total_seconds"]
"""Means that policies may be read at equal amounts of. Earlier versions read by `seconds`, which
leaves out what a policy needs before its training."""


@dataclass(frozen=True)
class TrainingPoint:
    """A policy as it was evaluated after some of its training."""

    completions: int
    """Completions that it had sampled to learn from."""
    seconds: float
    """Seconds that its training had taken."""
    total_seconds: float
    """Those and the seconds of what it needs before: completions to rank, the reward model."""
    update: int | None
    """Updates done at a look; None for the evaluation at the end."""
    gain: float
    """Its score minus that of SFT, a mean over prompts."""
    ci95: list[float] | None = None
    """Interval of the gain, where the scores were kept prompt by prompt."""
    scores: Sequence[float] = ()
    """The scores of a look by prompt, where they were kept; looks share their prompts."""


def read_within(points: Sequence[TrainingPoint], budget: float, by: Budget) -> TrainingPoint | None:
    """The last of a policy's evaluations whose cost is at most the budget, if there is one."""
    affordable = [point for point in points if getattr(point, by) <= budget]
    # An end counts as later than a look at the same cost: its adapter is the one that is kept.
    return max(
        affordable, key=lambda point: (getattr(point, by), point.update is None), default=None
    )


def differences(
    scores: Mapping[str, Sequence[float]],
    *,
    groups: Sequence[int] | None,
    resamples: int,
    seed: int,
) -> list[tuple[str, str, Interval]]:
    """Paired mean of the first minus the second for each two of the policies.

    Args:
        scores: Scores by policy, each in the same order of prompts.
        groups: Cluster of each prompt; whole clusters are resampled. None resamples prompts.
        resamples: Bootstrap resamples.
        seed: Seed of the resampling, the same for all, so that they are resampled together.

    Raises:
        ValueError: As `paired_gain`.
    """
    return [
        (
            first,
            second,
            paired_gain(
                scores[first], scores[second], groups=groups, resamples=resamples, seed=seed
            ),
        )
        for first, second in combinations(scores, 2)
    ]
