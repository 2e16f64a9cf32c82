"""Names, colours and order of the policies in reports."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple


class _Arm(NamedTuple):
    """Look of a policy in reports, and its kind."""

    label: str
    tone: str
    """The colour class that it has in every picture."""
    trained: bool = False
    """True if it was trained on preferences, so that a gain is expected of it."""
    reranks: bool = False
    """True if it chooses among samples of SFT and is no policy of its own."""


POLICIES = {
    "base": _Arm("Base", "tone-base"),
    "base_few_shot": _Arm("Base, few-shot", "tone-few"),
    "sft": _Arm("SFT", "tone-sft"),
    "random_of_k": _Arm("Random of K", "tone-control"),
    "best_of_k": _Arm("Best-of-K", "tone-bok", trained=True),
    "sampler_best_of_k": _Arm("SFT, best of K by reward", "tone-rerank", reranks=True),
    "oracle_best_of_k": _Arm("SFT, best of K by judge", "tone-bound", reranks=True),
    "ppo": _Arm("PPO", "tone-ppo", trained=True),
    "ppo_shuffled": _Arm("PPO, shuffled verdicts", "tone-control"),
    "dpo": _Arm("DPO", "tone-dpo", trained=True),
    "grpo": _Arm("GRPO", "tone-grpo", trained=True),
    "rloo": _Arm("RLOO", "tone-rloo", trained=True),
}
"""Policies without their rounds, in the order of the loop."""
POLICY_NAME = re.compile(
    rf"(?:{'|'.join(POLICIES)})"
    rf"|(?:{'|'.join(list(POLICIES)[3:])})\.(?:[2-9]|[1-9]\d+)"
)
"""The name of a policy: round 1 has no suffix, later rounds end in `.2`, `.3` ..."""


def policy_label(name: str) -> str:
    """The name people call a policy by: `ppo.2` is `PPO, round 2`."""
    stem, _, round_ = name.partition(".")
    label = POLICIES[stem].label
    return f"{label}, round {round_}" if round_ else label


def policy_tone(name: str) -> str:
    """The CSS class that colours a policy, the same in every picture."""
    return POLICIES[name.partition(".")[0]].tone


def policy_reranks(name: str) -> bool:
    """True if a policy chooses among samples of SFT."""
    return POLICIES[name.partition(".")[0]].reranks


def policy_order(policies: Iterable[str]) -> list[str]:
    """Names in the order of the loop: base, SFT, then round after round."""
    stems = list(POLICIES)

    def position(name: str) -> tuple[int, int]:
        stem, _, round_ = name.partition(".")
        return int(round_ or 1), stems.index(stem)

    return sorted(policies, key=position)
