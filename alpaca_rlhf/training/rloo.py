"""RLOO: a completion's advantage is its reward against the mean of the others of its prompt.

The reward is the score less the KL to the frozen SFT adapter, k1 summed over the completion: the
whole completion is one action.

Source: arXiv 2402.14740 section 3.
"""

from __future__ import annotations

from torch import Tensor

from alpaca_rlhf.core.records import Rollout
from alpaca_rlhf.settings import RLOO
from alpaca_rlhf.training.group_policy import GroupMethod
from alpaca_rlhf.training.losses import kl_k1, leave_one_out_advantages


def rloo_method(settings: RLOO) -> GroupMethod:
    """The method with its numbers, for `train_in_groups`."""

    def advantages(rollout: Rollout) -> Tensor:
        kl = kl_k1(rollout.logprobs, rollout.ref_logprobs) * rollout.completion_mask
        return leave_one_out_advantages(rollout.scores - settings.kl_coef * kl.sum(1), settings.k)

    return GroupMethod("rloo", settings, advantages)
