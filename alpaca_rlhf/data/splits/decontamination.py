"""Keeping the prompts of an evaluation out of what is trained on.

A prompt counts as seen if its ROUGE-L F1 with one of the evaluation is above 0.7, or if both share
13 tokens in a row (arXiv 2005.14165 appendix C), each taken as instruction and input together. The
first finds what was reworded, the second what was copied into a longer text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data.generation.filters import Drop, Rule
from alpaca_rlhf.data.splits.clusters import NEAR, answered_prompts, prompt_text
from alpaca_rlhf.data.splits.novelty import NoveltyIndex, tokens

GRAM = 13
"""Tokens in a row that two prompts may not share (arXiv 2005.14165 appendix C)."""

_RULE = "contaminated"


class EvaluationPrompts:
    """The prompts of evaluation sets, to be asked whether a row gives one away.

    Args:
        rows: Prompts of the evaluation; their outputs do not matter.
    """

    def __init__(self, rows: Iterable[Instruction]) -> None:
        self._rows: list[Instruction] = []
        self._index = NoveltyIndex(NEAR)
        self._grams: dict[str, int] = {}
        for row in rows:
            text = prompt_text(row)
            for gram in _grams(tokens(text)):
                self._grams.setdefault(gram, len(self._rows))
            self._index.add(text)
            self._rows.append(row)

    def __len__(self) -> int:
        return len(self._rows)

    def contamination(self, row: Instruction) -> Drop | None:
        """Why a row must not be trained on, with the prompt it lies near; None if it may be.

        Every turn of a conversation counts, because SFT learns from all of them.
        """
        for prompt in answered_prompts([row]):
            text = prompt_text(prompt)
            near = self._index.duplicate(text)
            if near is not None:
                other = self._rows[near.row]
                return Drop(
                    _RULE,
                    f"ROUGE-L {near.score:.2f} with {_shown(other)}",
                    row,
                    other.id,
                    near.score,
                )
            for gram in _grams(tokens(text)):
                if gram in self._grams:
                    other = self._rows[self._grams[gram]]
                    return Drop(_RULE, f"shares {gram!r} with {_shown(other)}", row, other.id)
        return None

    def rule(self) -> Rule:
        """The same as a rule for filters."""

        def check(row: Instruction) -> str | None:
            drop = self.contamination(row)
            return None if drop is None else drop.detail

        return Rule(_RULE, check)


def _grams(words: Sequence[str]) -> list[str]:
    return [" ".join(words[at : at + GRAM]) for at in range(len(words) - GRAM + 1)]


def _shown(row: Instruction) -> str:
    return f"{prompt_text(row)!r} of the evaluation"
