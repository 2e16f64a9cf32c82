"""Numbers of the reports' contracts, checked where they are read."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field


def _ordered(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError("must hold the lower end first")
    return ends


# Strict: a text is no number, and a truth value is neither a number nor a count.
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
NonNegative = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
Count = Annotated[int, Field(strict=True, ge=0)]
Round = Annotated[int, Field(strict=True, ge=1)]
Interval = Annotated[tuple[Number, Number], AfterValidator(_ordered)]
