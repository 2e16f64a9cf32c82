"""The preferences room: who found which completion better, and the pairs to learn from it."""

from alpaca_rlhf.preferences.judges import Judge, Score, ScoreJudge, dispersion, wrong_share
from alpaca_rlhf.preferences.rankings import (
    JUDGE,
    append,
    group_pairs,
    pairs,
    read,
    split_by_prompt,
)

__all__ = [
    "JUDGE",
    "Judge",
    "Score",
    "ScoreJudge",
    "append",
    "dispersion",
    "group_pairs",
    "pairs",
    "read",
    "split_by_prompt",
    "wrong_share",
]
