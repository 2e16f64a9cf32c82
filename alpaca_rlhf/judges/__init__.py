"""Judges that score completions: functions of the user's, and what the kit brings.

A user's file needs nothing of this; `Scores` gives a score named parts, `batched` takes several
responses at once, and `Instruction` is the type of a prompt.
"""

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.core.scorers import BatchScorer, Response, Scorer, Scores
from alpaca_rlhf.judges.functions import batched, load_function
from alpaca_rlhf.judges.judge import Judge, JudgeFailure
from alpaca_rlhf.judges.score_log import ScoreLog

__all__ = [
    "BatchScorer",
    "Instruction",
    "Judge",
    "JudgeFailure",
    "Response",
    "ScoreLog",
    "Scorer",
    "Scores",
    "batched",
    "load_function",
]
