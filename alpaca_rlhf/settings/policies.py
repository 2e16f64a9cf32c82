"""Names of the policies that a run may train on preferences, as typed and as stages."""

from __future__ import annotations

from typing import Literal, get_args

PolicyName = Literal["ppo", "best-of-k", "dpo", "grpo", "rloo"]
"""Policies as they are typed, in the order in which a run trains them."""

POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)


def stage_of(policy: str) -> str:
    """The stage that trains a policy: `best_of_k` for `best-of-k`."""
    return policy.replace("-", "_")


POLICY_STAGES = tuple(map(stage_of, POLICIES))
"""Every stage that trains a policy on preferences, in the order of a round."""

REWARDED_STAGES = ("ppo", "best_of_k", "grpo", "rloo")
"""Those that learn from a reward, which a reward model or a judge gives."""
