"""Sampling settings of an answer, as a person sets them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SamplingSettings:
    """Settings of one answer."""

    temperature: float = 0.7
    """Divides the logits; 0 is greedy."""
    top_p: float = 1.0
    """Nucleus mass; 1 keeps the whole distribution."""
    max_new_tokens: int | None = None
    """Completion tokens at most; None takes the run's."""
    seed: int = 0
    """Seed of the sampling noise."""
    system: str = ""
    """System prompt; only where the template has a place for one."""
