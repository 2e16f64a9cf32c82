"""The contract of `duel.json` (schema 1): policies of one SFT adapter and one set of rankings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from alpaca_rlhf.core.sizes import too_few
from alpaca_rlhf.evaluation.duel import Budget
from alpaca_rlhf.report.charts import Mark, Row
from alpaca_rlhf.report.formatting import signed
from alpaca_rlhf.report.policy_names import policy_label, policy_tone
from alpaca_rlhf.report.schema_types import Count, Interval, NonNegative, Number


class _Object(BaseModel):
    """Keys beyond the contract are refused: nobody else writes this file."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Contender(_Object):
    """A policy at the end of its training, and its cost."""

    gold_score: Number
    ci95: Interval
    gain: Number
    """Mean over prompts of its score minus SFT's."""
    gain_ci95: Interval
    gold_parts: dict[str, Number]
    gold_parts_of_sft: dict[str, Number]
    kl_from_sft_nats: Number
    kl_from_sft_k3_nats: Number | None = None
    mean_tokens: NonNegative
    completions: Count
    """Completions that it sampled to learn from; those behind the rankings not counted."""
    looked_at: Count = 0
    """Completions that looks at it sampled."""
    kept_update: Count | None = None
    """The update whose adapter a look has kept; None where the last one stays."""
    seconds: NonNegative
    """Its own stage, without its control."""
    seconds_before: NonNegative
    """Sampling what is ranked, and training the reward model, where it needs them."""
    watt_hours: NonNegative
    """Energy of both, at the power in the settings."""
    peak_memory_gib: NonNegative
    gpu_memory_gib: Number | None = None

    @property
    def part_changes(self) -> dict[str, float]:
        """Change of each part of the score against SFT."""
        before = self.gold_parts_of_sft
        return {part: share - before[part] for part, share in self.gold_parts.items()}


class Difference(_Object):
    """The score of one policy minus that of another, on the same prompts."""

    first: str
    second: str
    gain: Number
    ci95: Interval

    @property
    def excludes_zero(self) -> bool:
        """True where the interval leaves out 0."""
        return self.ci95[0] > 0 or self.ci95[1] < 0


class Reading(_Object):
    """A policy as the last evaluation within a budget found it."""

    update: Count | None
    """The update that a look was taken after; None for the evaluation at the end."""
    completions: Count
    seconds: NonNegative
    total_seconds: NonNegative | None = None
    """With those of what it needs before; None in duels of earlier versions."""
    gain: Number
    """Over SFT: by the judge at the end, by the held-out scorer in a look."""
    ci95: Interval | None
    """None where a look was not kept prompt by prompt, or is on too few prompts."""


class Readings(_Object):
    """Every policy within the same budget."""

    by: Budget
    budget: NonNegative
    """Completions of its own; seconds of its own stage, or of that and what it needs before."""
    policies: dict[str, Reading | None]
    """None where no evaluation lies within the budget."""
    between: list[Difference] = []
    """Differences between looks of two policies, which are at the same prompts."""


class Duel(_Object):
    """The content of `duel.json`."""

    version: Literal[1] = Field(alias="schema")
    seed: int
    judge: str
    prompts: Count
    clusters: Count
    """Clusters of near-duplicates among the prompts, which every interval resamples."""
    rankings: Count | None
    """Rankings behind all policies; None where a judge gave the reward."""
    ranked_completions: Count | None
    """Completions behind them; None where they come from a file."""
    policies: dict[str, Contender]
    between: list[Difference]
    readings: list[Readings]
    notes: list[str] = []
    """Bounds of the comparison, a sentence each."""

    @property
    def too_few(self) -> bool:
        """True where there are too few prompts, or clusters, for an interval."""
        return too_few(self.prompts, self.clusters)

    @property
    def parts(self) -> list[str]:
        """Parts of the score."""
        return list(next(iter(self.policies.values())).gold_parts)

    @property
    def behind(self) -> int:
        """Completions that count for all."""
        return self.ranked_completions or 0

    @property
    def headline(self) -> str:
        """The result in a sentence: a lead is told only where its interval leaves out 0."""
        ahead, *others = sorted(self.policies, key=lambda name: -self.policies[name].gain)
        leads = [policy_label(o) for o in others if self.difference(ahead, o).excludes_zero]
        first = f"{policy_label(ahead)} gains {signed(self.policies[ahead].gain, 3)} over SFT"
        if self.too_few:
            return f"{first} on {self.prompts} prompts, too few to tell the policies apart."
        if not leads:
            return f"{first}, and no policy is measurably behind it."
        return f"{first}, measurably more than {' and '.join(leads)}."

    def difference(self, first: str, second: str) -> Difference:
        """The score of `first` minus that of `second`, whichever way it was computed."""
        for pair in self.between:
            if (pair.first, pair.second) == (first, second):
                return pair
            if (pair.first, pair.second) == (second, first):
                low, high = pair.ci95
                return Difference(first=first, second=second, gain=-pair.gain, ci95=(-high, -low))
        raise KeyError(f"{first} and {second} were not compared")

    def rows(self) -> list[Row]:
        """Every policy's gain over SFT with its interval."""
        return [
            Row(
                policy_label(name),
                policy_tone(name),
                Mark(policy.gain, None if self.too_few else policy.gain_ci95),
            )
            for name, policy in self.policies.items()
        ]


def validate_duel(duel: Mapping[str, Any]) -> Duel:
    """Read `duel` by the contract of `duel.json`.

    Raises:
        ValueError: It breaks the contract; the message names the key.
    """
    try:
        return Duel.model_validate(duel)
    except ValidationError as error:
        problem: Mapping[str, Any] = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise ValueError(f"duel.json: {key}: {problem['msg']}") from None
