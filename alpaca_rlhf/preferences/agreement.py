"""How far annotators agree: Krippendorff's alpha for ordinal values, and Kendall's tau-b.

Both are None below `FEWEST` overlaps: a figure from a handful of tasks says nothing and is quoted.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

FEWEST = 30
"""Overlapping tasks below which no figure is shown."""


@dataclass(frozen=True)
class Agreement:
    """Figures over the tasks that two or more have ranked."""

    n: int
    """Overlapping tasks."""
    alpha: float | None
    """Krippendorff's alpha, ordinal; 1 is perfect, 0 is chance. None where hidden or undefined."""
    tau: float | None
    """Mean of Kendall's tau-b over the pairs of orders. None where hidden or undefined."""


def agreement(tasks: Iterable[Sequence[Sequence[Sequence[str]]]]) -> Agreement:
    """Alpha and tau-b of tasks, each given as the orders (tiers) that were made of it.

    A unit of alpha is a completion, its values are the ranks that it got, ties at their middle.
    Tasks with fewer than two orders do not count.
    """
    units: list[list[float]] = []
    taus: list[float] = []
    n = 0
    for orders in tasks:
        if len(orders) < 2:
            continue
        n += 1
        ranks = [middle_ranks(order) for order in orders]
        ids = sorted(ranks[0])
        units += [[own[one] for own in ranks] for one in ids]
        for a, b in combinations(ranks, 2):
            tau = kendall_tau_b([a[one] for one in ids], [b[one] for one in ids])
            if tau is not None:
                taus.append(tau)
    if n < FEWEST:
        return Agreement(n, None, None)
    return Agreement(n, krippendorff_alpha(units), sum(taus) / len(taus) if taus else None)


def middle_ranks(tiers: Sequence[Sequence[str]]) -> Mapping[str, float]:
    """The rank of each completion, 1 the best; ties share the middle of the ranks they take up."""
    ranks: dict[str, float] = {}
    before = 0
    for tier in tiers:
        for one in tier:
            ranks[one] = before + (len(tier) + 1) / 2
        before += len(tier)
    return ranks


def krippendorff_alpha(units: Iterable[Sequence[float]]) -> float | None:
    """Krippendorff's alpha with the ordinal metric.

    1 - D_o / D_e over the coincidences of values, where the distance of two values is the square
    of how many values lie from the one to the other, half of each end counted
    (K. Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011).

    Args:
        units: For each unit the values it was given, gaps left out. Units with fewer than two
            values have nothing to compare.

    Returns:
        At most 1, or None where fewer than two different values were given.
    """
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
    levels = sorted(totals)
    below = 0.0
    middle = {}
    for level in levels:
        middle[level] = below + totals[level] / 2
        below += totals[level]
    observed = sum(w * (middle[a] - middle[b]) ** 2 for (a, b), w in coincidences.items())
    expected = sum(
        2 * totals[a] * totals[b] * (middle[a] - middle[b]) ** 2 for a, b in combinations(levels, 2)
    )
    if expected == 0:
        return None
    return 1 - (below - 1) * observed / expected


def kendall_tau_b(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's tau-b: pairs in the same order less pairs turned round, with ties taken out.

    Divided by the geometric mean of the pairs untied in the one and untied in the other
    (M. G. Kendall, The treatment of ties in ranking problems, Biometrika 33, 1945).

    Args:
        first: Values of some things.
        second: Other values of the same things, in the same order.

    Returns:
        In [-1, 1], or None where all values of one side tie.

    Raises:
        ValueError: The two have different lengths.
    """
    difference = untied_first = untied_second = 0
    things = list(zip(first, second, strict=True))
    for (a, b), (c, d) in combinations(things, 2):
        x, y = (a > c) - (a < c), (b > d) - (b < d)
        difference += x * y
        untied_first += x != 0
        untied_second += y != 0
    if not untied_first or not untied_second:
        return None
    return difference / math.sqrt(untied_first * untied_second)
