"""The numbers of DPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

from alpaca_rlhf.core.sizes import batch_for
from alpaca_rlhf.settings.bounds import (
    Bounded,
    Fraction,
    LearningRate,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from alpaca_rlhf.settings.ppo import OptimizerName

DPOLossName = Literal["sigmoid", "ipo"]
"""Losses of a pair."""

MIN_DPO_BATCH, MAX_DPO_BATCH = 4, 64
"""Bounds of a batch that follows the rankings."""


@dataclass(frozen=True)
class DPO(Bounded, group="--dpo"):
    """Direct preference optimisation on the rankings, without a reward model (arXiv 2305.18290)."""

    loss: DPOLossName = "sigmoid"
    """`sigmoid` drives the completions of a pair ever further apart (arXiv 2305.18290 equation 7);
    `ipo` only to a gap of 1 / (2 beta) (arXiv 2310.12036 equation 17)."""
    beta: PositiveFloat = 0.1
    """Weight of staying near SFT (arXiv 2305.18290 appendix B: 0.1)."""
    label_smoothing: Annotated[float, Interval(ge=0, lt=0.5)] = 0.0
    """Share of the verdicts taken to be wrong: each pair is learned the other way round with this
    weight (eric-mitchell/direct-preference-optimization@8a4023f config/loss/dpo.yaml)."""
    length_normalised: bool = False
    """Compare mean log-ratios of tokens, not those of whole completions, so that long completions
    do not weigh more; beta is then larger, e.g. 5 (Tulu 3, arXiv 2411.15124 section 5)."""
    sft_coef: NonNegativeFloat = 0.0
    """Weight of the SFT loss, a mean over tokens, on completions that nothing of their ranking
    beats (arXiv 2404.19733 equation 1)."""
    lr: LearningRate = 5e-6
    """Peak learning rate, falling linearly to 0 (huggingface/alignment-handbook@4231254
    recipes/zephyr-7b-beta/dpo/config_qlora.yaml)."""
    epochs: PositiveInt = 1
    """Passes over the rankings (likewise)."""
    batch_size: PositiveInt | None = None
    """Prompts (whole rankings) per optimiser step. None follows the rankings as
    --reward.batch-size does."""
    micro_batch_size: PositiveInt = 1
    """Prompts in memory at once, and more short ones as in --reward.micro-batch-size. Never changes
    the result."""
    warmup: Fraction = 0.1
    """Share of the steps over which the learning rate rises (likewise)."""
    max_grad_norm: PositiveFloat = 1.0
    """Clip the gradient of a step to this norm."""
    max_length: PositiveInt = 512
    """Tokens at most; longer completions are left out with their ranking's pairs, and counted."""
    eval_every: NonNegativeInt = 0
    """Optimiser steps between evaluations on the held-out rankings; 0 evaluates after each
    epoch."""
    patience: NonNegativeInt = 0
    """Stop after this many evaluations without a lower held-out loss, and keep the weights of the
    best one; 0 trains to the end and keeps the last weights."""
    save_every: PositiveInt = 20
    """Optimiser steps between checkpoints."""
    optimizer: OptimizerName = "adamw"
    """`adamw`; `adamw8bit` keeps its moments in 8 bit (arXiv 2110.02861), a quarter of the memory;
    `paged_adamw8bit` moves them to the host when the card is full (QLoRA section 3)."""

    def rankings_per_step(self, rankings: int | None = None) -> int:
        """Rankings per optimiser step for so many of them; the most there can be if None."""
        if self.batch_size is not None or rankings is None:
            return self.batch_size or MAX_DPO_BATCH
        return batch_for(rankings, self.epochs, smallest=MIN_DPO_BATCH, largest=MAX_DPO_BATCH)
