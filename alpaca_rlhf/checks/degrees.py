"""Measures of the degree to which an answer meets a constraint, in [0, 1]."""

from __future__ import annotations


def within(count: float, low: float, high: float) -> float:
    """1 for a count within bounds, else its ratio to the bound that it misses."""
    if count < low:
        return count / low
    return 1.0 if count <= high else high / count


def exactly(count: int, wanted: int) -> float:
    """1 for the count that was wanted, else the ratio of the smaller to the larger."""
    return within(count, wanted, wanted)


def without(violations: int) -> float:
    """1 without violations, then 1/2, 1/3 ..."""
    return 1 / (1 + violations)


def most(parts: int, whole: int) -> float:
    """The share of parts that are right; 0 of nothing."""
    return parts / whole if whole else 0.0
