"""The type of a stage, and of its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from alpaca_rlhf.stages.context import Context


@dataclass(frozen=True)
class Outcome:
    """The result of a stage."""

    examples: int
    """Rows, prompts or rankings processed."""
    tokens: int
    """Tokens generated or trained on."""
    summary: str
    """The result in one line."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Numbers for the report."""


Stage = Callable[[Context, int], Outcome]
"""A function of the run and the round."""
