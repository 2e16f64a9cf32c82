"""The steps of a run: its stages in order, round by round, with their names in the ledger."""

from __future__ import annotations

from typing import NamedTuple

from alpaca_rlhf.settings.loop import Loop


def suffixed(name: str, round_: int) -> str:
    """Name of a stage in a round: `ppo`, in later rounds `ppo.2` ..."""
    return name if round_ == 1 else f"{name}.{round_}"


class Step(NamedTuple):
    """One stage of one round."""

    stage: str
    """Its name in `pipeline.STAGES`."""
    round: int
    """From 1; that of `evaluate` is the last."""

    @property
    def entry(self) -> str:
        """Its name in the ledger: `ppo`, in later rounds `ppo.2` ...; `evaluate` comes once."""
        return suffixed(self.stage, 1 if self.stage == "evaluate" else self.round)


def order(settings: Loop) -> list[Step]:
    """The steps of a whole run."""
    inputs = settings.inputs
    first = ["generate", "sft"] if inputs.makes_rows else ["sft"]
    ranked = ["sample", "rank"] if inputs.rankings is None else []
    by_judge = settings.reward.source == "judge"
    reward_model = ["reward"] if settings.rewarded else []
    learned = [] if by_judge else [*ranked, *reward_model]
    per_round = [*learned, *settings.policy_stages]
    rounds = [Step(name, r) for r in range(1, settings.all_rounds + 1) for name in per_round]
    return [*(Step(name, 1) for name in first), *rounds, Step("evaluate", settings.all_rounds)]
