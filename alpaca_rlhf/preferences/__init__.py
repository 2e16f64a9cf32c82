"""The preferences room: who found which completion better."""

from alpaca_rlhf.preferences.judges import Judge, Score, ScoreJudge, dispersion, wrong_share
from alpaca_rlhf.preferences.rankings import JUDGE, append, read

__all__ = [
    "JUDGE",
    "Judge",
    "Score",
    "ScoreJudge",
    "append",
    "dispersion",
    "read",
    "wrong_share",
]
