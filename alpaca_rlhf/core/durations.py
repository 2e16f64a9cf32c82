"""Durations as people read them on a clock."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """A duration as `0:07`, `12:30` or `1:02:03`."""
    minutes, seconds_rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{seconds_rest:02}"
    return f"{minutes}:{seconds_rest:02}"
