"""Hand-written answers that meet the constraints of their requests."""

from __future__ import annotations

import json
from collections.abc import Sequence

from alpaca_rlhf.checks.kinds import Language
from alpaca_rlhf.checks.text import is_chinese
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.core.runs import data_path

_FILE = "verifiable_answers.jsonl"


def demonstrations(languages: Sequence[Language] = ("en",)) -> list[Instruction]:
    """The requests with their answers, of trained kinds and phrasings only, in the file's order."""
    lines = data_path(_FILE).read_text(encoding="utf-8").splitlines()
    rows = [
        Instruction(columns["instruction"], "", columns["output"], "seed")
        for columns in map(json.loads, lines)
    ]
    return [row for row in rows if ("zh" if is_chinese(row.instruction) else "en") in languages]
