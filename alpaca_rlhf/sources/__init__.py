"""The sources of a run's tasks and verdicts.

The small world with its gold judge, or the user's files and people.
"""

from alpaca_rlhf.sources.checks import ChecksSource
from alpaca_rlhf.sources.choosing import deals_alike, source_of
from alpaca_rlhf.sources.files import Files
from alpaca_rlhf.sources.own_files import input_files, read_rows, reading_of
from alpaca_rlhf.sources.run_prompts import RunPrompts
from alpaca_rlhf.sources.small_world import SmallWorld
from alpaca_rlhf.sources.source import Slice, Source

__all__ = [
    "ChecksSource",
    "Files",
    "RunPrompts",
    "Slice",
    "SmallWorld",
    "Source",
    "deals_alike",
    "input_files",
    "read_rows",
    "reading_of",
    "source_of",
]
