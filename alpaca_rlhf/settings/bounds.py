"""Checks that name a setting as typed."""

from __future__ import annotations


def above(flag: str, value: float, least: float, *, equal_allowed: bool = False) -> None:
    """Raise ValueError unless the value is above (or equal to) the least."""
    if not (value > least or (equal_allowed and value == least)):
        sign = ">=" if equal_allowed else ">"
        raise ValueError(f"{flag} must be {sign} {least:g}, got {value:g}")


def fraction(flag: str, value: float) -> None:
    """Raise ValueError unless the value is at least 0 and below 1."""
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{flag} must be at least 0 and below 1, got {value:g}")
