"""The numbers of watching a policy for over-optimisation."""

from __future__ import annotations

from dataclasses import dataclass

from alpaca_rlhf.settings.bounds import Bounded, NonNegativeInt, PositiveInt
from alpaca_rlhf.settings.judge_names import SCORERS, parse_judge


@dataclass(frozen=True)
class Watch(Bounded, group="--watch"):
    """Looks at PPO, GRPO and RLOO by a scorer that does not give the reward.

    Past some distance from SFT a policy's reward goes on rising while its answers get worse (arXiv
    2210.10760 section 3).
    """

    every: NonNegativeInt = 0
    """Updates between looks; the last update has one too. The adapter that is kept is the one of
    the best look. 0 never looks, and keeps the last."""
    scorer: str | None = None
    """The judge that scores a look: gold, checks, reward:FOLDER, FILE.py:function or
    package.module:function. It must not be the one that gives the reward. None trains a second
    reward model, on the rankings held out from the first."""
    prompts: PositiveInt = 64
    """Prompts of `dev` that each look samples a completion of, the first of the split. The mean
    of 64 scores in [0, 1] has a 95% interval of at most 0.12 to each side."""
    patience: NonNegativeInt = 0
    """End a stage after this many looks in a row whose score lies below the best one while their
    reward lies above that of the best one; 0 never does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.every and self.patience:
            raise ValueError(
                f"--watch.patience {self.patience} counts looks; give --watch.every above 0"
            )
        if self.scorer is None:
            return
        try:
            judge = parse_judge(self.scorer)
        except ValueError as error:
            raise ValueError(f"--watch.scorer {error}") from None
        if not judge.is_scorer:
            raise ValueError(
                f"--watch.scorer {self.scorer}: compares completions and gives no scores; give "
                f"{SCORERS}"
            )
