"""Decontamination: keeping the prompts of an evaluation out of the training data.

A prompt is contaminated if its ROUGE-L F1 with an evaluation prompt is above 0.7, or if both share
13 consecutive tokens (arXiv 2005.14165 appendix C); instruction and input are compared as one text.
The first test finds reworded prompts, the second finds prompts copied into a longer text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data.generation.filters import Drop, Rule
from alpaca_rlhf.data.novelty import NoveltyIndex, tokens
from alpaca_rlhf.data.splits.clusters import NEAR, answered_prompts, prompt_text

NGRAM_TOKENS = 13
"""Consecutive tokens that two prompts may not share (arXiv 2005.14165 appendix C)."""

_RULE = "contaminated"


class EvaluationPrompts:
    """The prompts of evaluation sets, against which training rows are checked.

    Args:
        rows: Prompts of the evaluation; their outputs do not matter.
    """

    def __init__(self, rows: Iterable[Instruction]) -> None:
        self._rows: list[Instruction] = []
        self._index = NoveltyIndex(NEAR)
        self._ngrams: dict[str, int] = {}  # n-gram to the first prompt that holds it
        for row in rows:
            text = prompt_text(row)
            for ngram in _ngrams(tokens(text)):
                self._ngrams.setdefault(ngram, len(self._rows))
            self._index.add(text)
            self._rows.append(row)

    def __len__(self) -> int:
        return len(self._rows)

    def contamination(self, row: Instruction) -> Drop | None:
        """The reason not to train on a row, with the prompt it is near; None if it is clean.

        Every turn of a conversation counts, because SFT learns from all of them.
        """
        for prompt in answered_prompts([row]):
            text = prompt_text(prompt)
            # 1. A reworded evaluation prompt.
            neighbour = self._index.duplicate(text)
            if neighbour is not None:
                evaluation_row = self._rows[neighbour.row]
                detail = f"ROUGE-L {neighbour.score:.2f} with {_quoted(evaluation_row)}"
                return Drop(_RULE, detail, row, evaluation_row.id, neighbour.score)
            # 2. A passage copied from one.
            for ngram in _ngrams(tokens(text)):
                if ngram in self._ngrams:
                    evaluation_row = self._rows[self._ngrams[ngram]]
                    detail = f"shares {ngram!r} with {_quoted(evaluation_row)}"
                    return Drop(_RULE, detail, row, evaluation_row.id)
        return None

    def rule(self) -> Rule:
        """The same check as a filter rule."""

        def check(row: Instruction) -> str | None:
            drop = self.contamination(row)
            return None if drop is None else drop.detail

        return Rule(_RULE, check)


def _ngrams(text_tokens: Sequence[str]) -> list[str]:
    starts = range(len(text_tokens) - NGRAM_TOKENS + 1)
    return [" ".join(text_tokens[start : start + NGRAM_TOKENS]) for start in starts]


def _quoted(row: Instruction) -> str:
    return f"{prompt_text(row)!r} of the evaluation"
