"""Is this text new? ROUGE-L against everything seen so far, exact, without scoring everything.

A duplicate of an m-token text with an n-token one needs a longest common subsequence (LCS) of some
least length. The LCS is never longer than the number of tokens both share, counted with
multiplicity. One posting list for each (token, k-th occurrence) gives that number for every row at
once; the few rows that reach the least length are verified with a bit-parallel LCS (Hyyro 2004) on
Python's big integers. Every comparison is done in the floats of google-research/rouge_score, so
decisions are the same, F1 = 0.7 included.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Tokenizer = Literal["unicode", "rouge"]

_SLACK = 1e-6  # bounds are rounded in another order than scores
_ROUGE_TOKEN = re.compile("[a-z0-9]+")
# Scripts written without spaces, whose characters are tokens of their own: Thai and Lao, Burmese,
# Khmer, kana and the marks among Chinese characters, Chinese characters (the compatibility ones are
# normalised away).
_UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3041, 0x30FF),
    (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF),
)  # fmt: skip


def tokens(text: str, tokenizer: Tokenizer = "unicode") -> list[str]:
    """The tokens of a text.

    Args:
        text: Any text.
        tokenizer: `rouge` keeps only a-z and 0-9, as rouge_score@0.1.2 tokenize.py does: other
            scripts vanish. `unicode` does the same to ASCII text, and elsewhere keeps words of
            letters, marks and digits after NFKC, and single characters of the scripts that have no
            spaces.
    """
    if tokenizer == "rouge" or text.isascii():
        return _ROUGE_TOKEN.findall(text.lower())
    found: list[str] = []
    before = ""  # what stands before this character: "word", "single", or "" for a gap
    for char in unicodedata.normalize("NFKC", text).lower():
        kind = unicodedata.category(char)[0]
        if kind == "M" and before:
            found[-1] += char
        elif kind not in "LNM":
            before = ""
        elif any(low <= ord(char) <= high for low, high in _UNSPACED):
            found.append(char)
            before = "single"
        else:
            if before == "word":
                found[-1] += char
            else:
                found.append(char)
            before = "word"
    return found


def rouge_l(lcs: int, m: int, n: int) -> float:
    """ROUGE-L F1 in the floats of rouge_score@0.1.2 rouge_scorer.py:202 and scoring.py:161."""
    precision, recall = lcs / m, lcs / n
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


@dataclass(frozen=True)
class Neighbour:
    """A row that lies near a text."""

    score: float
    """ROUGE-L F1 with the text."""
    row: int
    """Its number, as `NoveltyIndex.add` gave it."""


class NoveltyIndex:
    """All texts seen so far, to be asked which lie near another. One without tokens is near none.

    Args:
        threshold: Two texts whose ROUGE-L F1 is above this are near-duplicates.
        tokenizer: See `tokens`.
    """

    def __init__(self, threshold: float = 0.7, tokenizer: Tokenizer = "unicode") -> None:
        self.threshold = threshold
        self.tokenizer = tokenizer
        self._vocabulary: dict[str, int] = {}
        self._rows: list[array[int]] = []
        self._lengths = array("i")
        self._postings: dict[tuple[int, int], array[int]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, text: str) -> int:
        """Remember a text and return its row number: 0, 1, 2 ..."""
        row = len(self._rows)
        ids = array("i")
        seen: Counter[int] = Counter()
        for token in tokens(text, self.tokenizer):
            one = self._vocabulary.setdefault(token, len(self._vocabulary))
            ids.append(one)
            self._postings.setdefault((one, seen[one]), array("i")).append(row)
            seen[one] += 1
        self._rows.append(ids)
        self._lengths.append(len(ids))
        return row

    def duplicates(self, text: str) -> list[Neighbour]:
        """Every row above the threshold, the nearest first, earlier rows first among equals."""
        query = self._ids(text)
        if not query:
            return []
        shared, lengths = self._shared(query)
        # F1 = 2 LCS / (m + n) up to rounding, so no row below this can be a duplicate; the rest are
        # verified.
        least = self.threshold * (len(query) + lengths) / 2 - _SLACK
        found = []
        masks = _masks(query)
        for row in np.flatnonzero((shared >= least) & (shared > 0)).tolist():
            score = self._score(masks, len(query), row)
            if score > self.threshold:
                found.append(Neighbour(score, row))
        return sorted(found, key=lambda one: (-one.score, one.row))

    def duplicate(self, text: str) -> Neighbour | None:
        """The nearest row if it is above the threshold; None if the text is new."""
        found = self.duplicates(text)
        return found[0] if found else None

    def nearest(self, text: str) -> Neighbour | None:
        """The nearest row whatever its score, earlier ones first; None if none has a token."""
        query = self._ids(text)
        if not query or not self._rows:
            return None
        shared, lengths = self._shared(query)
        rows = np.flatnonzero(shared)
        # The score if all shared tokens stood in the same order: never below the true one.
        bound = 2 * shared[rows] / (len(query) + lengths[rows])
        masks = _masks(query)
        best: Neighbour | None = None
        for at in np.argsort(-bound, kind="stable").tolist():
            if best is not None and bound[at] < best.score - _SLACK:
                break
            row = int(rows[at])
            score = self._score(masks, len(query), row)
            if best is None or (-score, row) < (-best.score, best.row):
                best = Neighbour(score, row)
        return best

    def _ids(self, text: str) -> list[int]:
        """Token ids of a query; a token that no row holds gets an id that matches nothing."""
        return [self._vocabulary.get(token, -1) for token in tokens(text, self.tokenizer)]

    def _shared(self, query: Sequence[int]) -> tuple[NDArray[np.int32], NDArray[np.intc]]:
        """For every row: tokens it shares with the query, and its length."""
        shared = np.zeros(len(self._rows), dtype=np.int32)
        seen: Counter[int] = Counter()
        for one in query:
            posting = self._postings.get((one, seen[one]))
            seen[one] += 1
            if posting is not None:
                shared[np.frombuffer(posting, dtype=np.intc)] += 1
        return shared, np.array(self._lengths, dtype=np.intc)

    def _score(self, masks: dict[int, int], m: int, row: int) -> float:
        ids = self._rows[row]
        return rouge_l(_lcs(masks, m, ids), m, len(ids))


def _masks(query: Sequence[int]) -> dict[int, int]:
    """For each token, the places where it stands in the query, as the bits of an integer."""
    masks: dict[int, int] = {}
    for place, one in enumerate(query):
        masks[one] = masks.get(one, 0) | 1 << place
    return masks


def _lcs(masks: dict[int, int], m: int, row: Sequence[int]) -> int:
    """Length of the longest common subsequence of the m-token query behind `masks` and a row."""
    full = (1 << m) - 1
    free = full  # bit i is 0 where taking query token i makes the LCS longer
    for one in row:
        mask = masks.get(one)
        if mask:
            match = free & mask
            free = ((free + match) | (free - match)) & full
    return m - free.bit_count()
