"""Agreement of annotators: Krippendorff's alpha for ordinal values, and Kendall's tau-b.

Both are None below `MIN_OVERLAPS` overlaps: a figure from a handful of tasks means nothing, and
would be quoted all the same.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

MIN_OVERLAPS = 30
"""Overlapping tasks below which no figure is shown."""


@dataclass(frozen=True)
class Agreement:
    """Agreement over the tasks that two or more annotators have ranked."""

    n: int
    """Overlapping tasks."""
    alpha: float | None
    """Krippendorff's alpha, ordinal; 1 is perfect, 0 is chance. None where hidden or undefined."""
    tau: float | None
    """Mean of Kendall's tau-b over the pairs of orders. None where hidden or undefined."""


def agreement(tasks: Iterable[Sequence[Sequence[Sequence[str]]]]) -> Agreement:
    """Alpha and tau-b of tasks, each given as the orders (tiers) that annotators gave it.

    A unit of alpha is a completion; its values are the ranks it got, ties at their midrank.
    Tasks with fewer than two orders do not count.
    """
    units: list[list[float]] = []
    taus: list[float] = []
    n = 0
    for orders in tasks:
        if len(orders) < 2:
            continue
        n += 1
        # 1. The ranks of a completion in all orders are one unit of alpha.
        ranks_by_order = [midranks(order) for order in orders]
        ids = sorted(ranks_by_order[0])
        units += [[ranks[completion_id] for ranks in ranks_by_order] for completion_id in ids]
        # 2. Tau-b of each two orders.
        for first, second in combinations(ranks_by_order, 2):
            tau = kendall_tau_b(
                [first[completion_id] for completion_id in ids],
                [second[completion_id] for completion_id in ids],
            )
            if tau is not None:
                taus.append(tau)
    # Over few tasks the figures would be mostly chance.
    if n < MIN_OVERLAPS:
        return Agreement(n, None, None)
    return Agreement(n, krippendorff_alpha(units), sum(taus) / len(taus) if taus else None)


def midranks(tiers: Sequence[Sequence[str]]) -> Mapping[str, float]:
    """The rank of each completion, 1 the best; ties share the mean of the ranks they take up."""
    ranks: dict[str, float] = {}
    n_better = 0
    for tier in tiers:
        for completion_id in tier:
            # The mean of the ranks from n_better + 1 to n_better + len(tier).
            ranks[completion_id] = n_better + (len(tier) + 1) / 2
        n_better += len(tier)
    return ranks


def krippendorff_alpha(units: Iterable[Sequence[float]]) -> float | None:
    """Krippendorff's alpha with the ordinal metric.

    1 - D_o / D_e over the coincidences of values, where the distance of two values is the squared
    number of values from one to the other, with half of each end counted
    (K. Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011).

    Args:
        units: The values of each unit, gaps left out. Units with fewer than two values do not
            count.

    Returns:
        At most 1, or None where fewer than two different values were given.
    """
    # 1. Coincidences: the pairs of values within a unit, each unit weighted by its values.
    coincidences: dict[tuple[float, float], float] = defaultdict(float)
    for values in units:
        if len(values) < 2:
            continue
        counts = Counter(values)
        for a, n_a in counts.items():
            for b, n_b in counts.items():
                coincidences[a, b] += n_a * (n_b - (a == b)) / (len(values) - 1)
    totals: dict[float, float] = defaultdict(float)
    for (a, _), weight in coincidences.items():
        totals[a] += weight
    # 2. Each level's place on the ordinal scale: the middle of its values.
    levels = sorted(totals)
    below = 0.0
    middle = {}
    for level in levels:
        middle[level] = below + totals[level] / 2
        below += totals[level]
    # 3. Observed and expected disagreement.
    observed = sum(w * (middle[a] - middle[b]) ** 2 for (a, b), w in coincidences.items())
    expected = sum(
        2 * totals[a] * totals[b] * (middle[a] - middle[b]) ** 2 for a, b in combinations(levels, 2)
    )
    if expected == 0:
        return None
    # After the last level `below` is n, the number of all values.
    return 1 - (below - 1) * observed / expected


def kendall_tau_b(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's tau-b: concordant minus discordant pairs, corrected for ties.

    Divided by the geometric mean of the numbers of pairs untied in either sequence
    (M. G. Kendall, The treatment of ties in ranking problems, Biometrika 33, 1945).

    Args:
        first: Values of some objects.
        second: Other values of the same objects, in the same order.

    Returns:
        In [-1, 1], or None if all values of one sequence tie.

    Raises:
        ValueError: The two have different lengths.
    """
    difference = untied_first = untied_second = 0
    pairs = list(zip(first, second, strict=True))
    for (a, b), (c, d) in combinations(pairs, 2):
        # The sign of each difference; 0 for a tie.
        x, y = (a > c) - (a < c), (b > d) - (b < d)
        difference += x * y
        untied_first += x != 0
        untied_second += y != 0
    if not untied_first or not untied_second:
        return None
    return difference / math.sqrt(untied_first * untied_second)
