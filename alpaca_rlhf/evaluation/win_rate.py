"""Statistics of an evaluation: means with intervals, paired gains, win rates. Pure numpy.

The prompt is the unit that is resampled everywhere, because what one prompt contributes (its score,
its pairs) is independent of other prompts, but its parts depend on each other. Prompts that are
near-duplicates are not independent either: with `groups` they are resampled together (Field and
Welsh 2007, "Bootstrapping clustered data", the cluster bootstrap). The scores here come
from a held-out scorer, never from the reward model that trained the policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, log
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000
"""Bootstrap resamples; 50 of them lie beyond each end of a 95% interval."""
_PERCENTILES = (2.5, 97.5)
_BATCH_INDICES = 1_000_000  # bounds the memory (8 MB), never changes the result


class Interval(NamedTuple):
    """A mean and its 95% interval."""

    mean: float
    """The estimate on the data itself."""
    low: float
    """The 2.5th percentile of the resamples."""
    high: float
    """The 97.5th percentile of the resamples."""

    @property
    def ci95(self) -> list[float]:
        """`[low, high]`, as `report.json` holds it."""
        return [self.low, self.high]

    def excludes(self, value: float) -> bool:
        """True where `value` lies outside the interval."""
        return value < self.low or value > self.high


def bootstrap_ci(
    values: ArrayLike,
    *,
    groups: Sequence[int] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Mean of `values` (N,), one per prompt, with a 95% percentile bootstrap interval (Efron 1979).

    Args:
        values: A number for each prompt.
        groups: (N,) group of each prompt; whole groups are resampled. None resamples prompts.
        resamples: Bootstrap resamples.
        seed: Seed of the resampling.

    Raises:
        ValueError: `values` is empty, not one-dimensional or not finite, `groups` has another
            length, or `resamples` is below 1.
    """
    data = _vector("values", values)
    if groups is None:
        return _ratio(data, np.ones_like(data), resamples=resamples, seed=seed)
    if len(groups) != data.size:
        raise ValueError(f"groups must name {data.size} groups, got {len(groups)}")
    sums: dict[int, float] = {}
    sizes: dict[int, float] = {}
    for value, group in zip(data.tolist(), groups, strict=True):
        sums[group] = sums.get(group, 0.0) + value
        sizes[group] = sizes.get(group, 0.0) + 1
    numerator, denominator = np.array(list(sums.values())), np.array(list(sizes.values()))
    return _ratio(numerator, denominator, resamples=resamples, seed=seed)


def paired_gain(
    a: ArrayLike,
    b: ArrayLike,
    *,
    groups: Sequence[int] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Mean of `a - b` over prompts, both (N,) in the same order of prompts.

    Pairing takes the difficulty of the prompts out of the interval.

    Raises:
        ValueError: the lengths differ, or as `bootstrap_ci`.
    """
    first, second = _pair(a, b)
    return bootstrap_ci(first - second, groups=groups, resamples=resamples, seed=seed)


def win_rate(
    a: ArrayLike,
    b: ArrayLike,
    *,
    groups: Sequence[int] | None = None,
    tie: float = 1e-9,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Share of prompts on which `a` beats `b`, both (N,): a win counts 1, a tie one half.

    Scores within `tie` of each other tie.

    Raises:
        ValueError: the lengths differ, `tie` is negative, or as `bootstrap_ci`.
    """
    if tie < 0:
        raise ValueError(f"tie must be at least 0, got {tie:g}")
    first, second = _pair(a, b)
    gain = first - second
    points = np.where(np.abs(gain) <= tie, 0.5, np.where(gain > 0, 1.0, 0.0))
    return bootstrap_ci(points, groups=groups, resamples=resamples, seed=seed)


def accuracy_interval(
    correct_by_group: Sequence[Sequence[float]], *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Accuracy over all pairs, with a bootstrap over the prompts (groups) that the pairs belong to.

    Args:
        correct_by_group: For each prompt, 1 (or True) for each pair in the right order, 0 for each
            in the wrong order, one half for equal scores. A prompt without pairs does not count.
        resamples: Bootstrap resamples.
        seed: Seed of the resampling.

    Raises:
        ValueError: there is no pair at all, or a value lies outside [0, 1].
    """
    groups = [np.asarray(group, dtype=np.float64) for group in correct_by_group if len(group)]
    if not groups:
        raise ValueError("correct_by_group holds no pair: there is no accuracy to measure")
    flat = _vector("correct_by_group", np.concatenate(groups))
    if flat.min() < 0 or flat.max() > 1:
        raise ValueError("correct_by_group must hold values from 0 to 1")
    # Whole prompts are resampled: pairs of one prompt share completions, so they are not
    # independent.
    correct = np.array([group.sum() for group in groups])
    pairs = np.array([float(group.size) for group in groups])
    return _ratio(correct, pairs, resamples=resamples, seed=seed)


def accuracy_lead(
    correct_by_group: Sequence[Sequence[float]],
    other_by_group: Sequence[Sequence[float]],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Accuracy minus another one on the same pairs, resampled together over prompts.

    Args:
        correct_by_group: As in `accuracy_interval`.
        other_by_group: The same pairs, judged otherwise.
        resamples: Bootstrap resamples.
        seed: Seed of the resampling.

    Raises:
        ValueError: the sizes differ, or as `accuracy_interval`.
    """
    halves = [
        [(1 + a - b) / 2 for a, b in zip(group, other, strict=True)]
        for group, other in zip(correct_by_group, other_by_group, strict=True)
    ]
    return Interval(
        *(2 * share - 1 for share in accuracy_interval(halves, resamples=resamples, seed=seed))
    )


def expected_max(scores: ArrayLike, n: int) -> float:
    """Unbiased estimate of the expected best of `n` scores, from N >= n samples `scores` (N,).

    The mean of the maximum over all subsets of size n: the sum over i of C(i-1, n-1) / C(N, n)
    times the i-th smallest, the counting that pass@k uses (arXiv 2107.03374 section 2.1).

    Raises:
        ValueError: `n` is not in 1..N, or `scores` is not finite.
    """
    ordered = np.sort(_vector("scores", scores))
    total = ordered.size
    if not 1 <= n <= total:
        raise ValueError(f"n must be in 1..{total} (the number of scores), got {n}")
    subsets = comb(total, n)
    return float(sum(comb(i, n - 1) / subsets * score for i, score in enumerate(ordered)))


def expected_best(scores: Sequence[Sequence[float]]) -> list[float]:
    """For n = 1 .. K, the mean over prompts of `expected_max` of n of a prompt's K `scores`.

    Raises:
        ValueError: there is no prompt, or as `expected_max`.
    """
    if not scores:
        raise ValueError("scores must hold at least one prompt")
    # Every prompt must enter each mean, so the shortest list bounds n.
    k = min(len(prompt_scores) for prompt_scores in scores)
    return [
        sum(expected_max(prompt_scores, n) for prompt_scores in scores) / len(scores)
        for n in range(1, k + 1)
    ]


def best_of_n_kl(n: int) -> float:
    """KL of best-of-`n` sampling from its policy, in nats a completion: log n - (n - 1) / n.

    Exact where two completions never tie, an upper bound otherwise (arXiv 2009.01325 appendix G.3,
    arXiv 2401.01879).

    Raises:
        ValueError: `n` is below 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return log(n) - (n - 1) / n


def _ratio(
    numerator: NDArray[np.float64], denominator: NDArray[np.float64], *, resamples: int, seed: int
) -> Interval:
    """sum(numerator) / sum(denominator), both (N,), with the rows resampled together."""
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    rng = np.random.default_rng(seed)
    size = numerator.size
    rows = max(1, _BATCH_INDICES // size)
    ratios = []
    # Draw in batches of resamples: the generator's stream, and so the result, does not depend on
    # their size.
    for start in range(0, resamples, rows):
        index = rng.integers(0, size, size=(min(rows, resamples - start), size))
        ratios.append(numerator[index].sum(axis=1) / denominator[index].sum(axis=1))
    low, high = np.percentile(np.concatenate(ratios), _PERCENTILES)
    return Interval(float(numerator.sum() / denominator.sum()), float(low), float(high))


def _vector(name: str, values: ArrayLike) -> NDArray[np.float64]:
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or data.size == 0:
        raise ValueError(f"{name} must be a list of at least one number, got shape {data.shape}")
    if not np.isfinite(data).all():
        position = int(np.argmin(np.isfinite(data)))
        raise ValueError(f"{name} must be finite; number {position} is not")
    return data


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = _vector("a", a), _vector("b", b)
    if first.size != second.size:
        sizes = f"{first.size} and {second.size}"
        raise ValueError(f"a and b must hold the same prompts, got {sizes} scores")
    return first, second
