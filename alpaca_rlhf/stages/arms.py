"""The arms of the evaluation: every policy under its name in the report, and how it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alpaca_rlhf.settings import Loop
from alpaca_rlhf.settings.steps import suffixed
from alpaca_rlhf.stages.context import control_of

JUDGE = "judge"
"""Reranks the K completions of the upper bound."""


@dataclass(frozen=True)
class Arm:
    """A policy under its name in the report."""

    name: str
    stage: str | None
    """The stage that made its adapter; None for the bare base."""
    reranked_by: str | None = None
    """Reward stage, or `JUDGE`, that chooses among K samples of each prompt; None takes one
    sample."""

    @property
    def role(self) -> str | None:
        """The adapter that answers; None for the bare base."""
        return None if self.stage is None else "sft" if self.stage == "sft" else "policy"

    @property
    def few_shot(self) -> bool:
        """True for the control that sees solved examples."""
        return self.name == "base_few_shot"


def arms(settings: Loop, reward_stages: Sequence[str]) -> list[Arm]:
    """The base with and without examples, SFT, and what each round trained or reranks.

    Args:
        settings: Every number of the run.
        reward_stages: Stages whose reward models rerank samples of SFT, in later rounds `.2` ...
    """
    all_arms = [Arm("base", None), Arm("base_few_shot", None), Arm("sft", "sft")]
    chosen, rerank = settings.policy_stages, settings.evaluate.rerank
    for round_ in range(1, settings.all_rounds + 1):
        best_of_k, ppo = suffixed("best_of_k", round_), suffixed("ppo", round_)
        # 1. The choice among K: by chance, by the reward model, and without fine-tuning on it.
        if "best_of_k" in chosen:
            if settings.best_of_k.control:
                all_arms.append(Arm(control_of(best_of_k), control_of(best_of_k)))
            all_arms.append(Arm(best_of_k, best_of_k))
        if rerank and suffixed("reward", round_) in reward_stages:
            sampler = suffixed("sampler_best_of_k", round_)
            all_arms.append(Arm(sampler, "sft", suffixed("reward", round_)))
        if rerank and round_ == 1:  # the judge chooses among the same samples in every round
            all_arms.append(Arm("oracle_best_of_k", "sft", JUDGE))
        # 2. PPO, and PPO on verdicts that mean nothing.
        if "ppo" in chosen:
            all_arms.append(Arm(ppo, ppo))
            if settings.ppo.control:
                all_arms.append(Arm(control_of(ppo), control_of(ppo)))
        # 3. The other policies.
        others = (stage for stage in chosen if stage not in ("best_of_k", "ppo"))
        all_arms += [Arm(suffixed(stage, round_), suffixed(stage, round_)) for stage in others]
    return all_arms
