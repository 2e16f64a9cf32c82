"""GRPO: a completion's advantage is its score against the mean of its group.

The KL to the frozen SFT adapter stands in the loss, by the estimator k3. Without the division by
the standard deviation and with `--grpo.mean fixed` it is Dr. GRPO.

Sources: arXiv 2402.03300 section 4.1, arXiv 2503.20783 section 3.
"""

from __future__ import annotations

from alpaca_rlhf.settings import GRPO
from alpaca_rlhf.training.group_policy import GroupMethod
from alpaca_rlhf.training.losses import group_advantages


def grpo_method(settings: GRPO) -> GroupMethod:
    """The method with its numbers, for `train_in_groups`."""
    return GroupMethod(
        "grpo",
        settings,
        lambda rollout: group_advantages(
            rollout.scores, settings.k, divide_by_std=settings.divide_by_std
        ),
        kl_in_loss=settings.kl_coef,
    )
