"""The preferences room: who found which completion better.

`store` is the database of the app; take it from there, so that SQLAlchemy is loaded only where a
database is opened.
"""

from alpaca_rlhf.preferences.judges import Judge, Score, ScoreJudge, dispersion, wrong_share
from alpaca_rlhf.preferences.rankings import JUDGE, append, drop_judges, read
from alpaca_rlhf.preferences.snapshot import manifest_of, read_snapshot

DATABASE = "preferences.db"
"""The app's database in a run folder."""

__all__ = [
    "DATABASE",
    "JUDGE",
    "Judge",
    "Score",
    "ScoreJudge",
    "append",
    "dispersion",
    "drop_judges",
    "manifest_of",
    "read",
    "read_snapshot",
    "wrong_share",
]
