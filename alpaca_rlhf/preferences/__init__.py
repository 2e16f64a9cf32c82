"""The preferences room: candidate sets, verdicts on them by people and judges, and snapshots.

`store` is the database that keeps every verdict. It is imported from its own module, so that
SQLAlchemy is loaded only where a database is opened.
"""

from alpaca_rlhf.preferences.judges import (
    JUDGE,
    Judge,
    JudgeIdentity,
    Score,
    ScoreJudge,
    dispersion,
    wrong_share,
)
from alpaca_rlhf.preferences.snapshot import manifest_of, read_snapshot

DATABASE = "preferences.db"
"""The database of a run, in its folder."""

__all__ = [
    "DATABASE",
    "JUDGE",
    "Judge",
    "JudgeIdentity",
    "Score",
    "ScoreJudge",
    "dispersion",
    "manifest_of",
    "read_snapshot",
    "wrong_share",
]
