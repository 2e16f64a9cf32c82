"""What a stage is, and what it tells when it is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from alpaca_rlhf.stages.context import Context


@dataclass(frozen=True)
class Outcome:
    """What a stage did."""

    examples: int
    """Rows, prompts or rankings it worked through."""
    tokens: int
    """Tokens it generated or trained on."""
    summary: str
    """One line for the person who watches."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Numbers for the report."""


Stage = Callable[[Context, int], Outcome]
"""A stage: the run and the round to what it did."""
