"""Is this text new? ROUGE-L against everything seen so far, exact, without scoring everything.

A duplicate of an m-token text with an n-token one needs a longest common subsequence (LCS) of some
least length, which a table gives that is made with the floats of google-research/rouge_score. So
decisions are the same, F1 = 0.7 included. The LCS is never longer than the number of tokens both
share, counted with multiplicity, and a posting list for each (token, k-th occurrence) counts those.
A row that needs `least` of m tokens has one at least of any m - least + 1, so the rarest ones name
the candidates; the frequent ones are only looked up for these. The few rows left are verified with
a bit-parallel LCS (Hyyro 2004) on Python's big integers.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Tokenizer = Literal["unicode", "rouge"]
GroupsOf = Callable[[NDArray[np.intp]], NDArray[np.intp]]
"""Row numbers (N,) to the numbers of their groups (N,)."""

_ROUGE_TOKEN = re.compile("[a-z0-9]+")
# Scripts written without spaces, whose characters are tokens of their own: Thai and Lao, Burmese,
# Khmer, kana and the marks among Chinese characters, Chinese characters (the compatibility ones are
# normalised away).
_UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3041, 0x30FF),
    (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF),
)  # fmt: skip
_TABLE_KEPT = 2048  # tokens of the longest query whose table of least LCS is kept
_FEW = 8  # candidates that are verified sooner than counted further


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
        kind = _kind(char)
        if kind == "mark" and before:
            found[-1] += char
        elif not kind:
            before = ""
        elif kind == "single":
            found.append(char)
            before = "single"
        else:
            if before == "word":
                found[-1] += char
            else:
                found.append(char)
            before = "word"
    return found


@cache
def _kind(char: str) -> str:
    """`mark`, `single` (a token by itself), `word` (part of one), or "" for what parts words."""
    category = unicodedata.category(char)[0]
    if category == "M":
        return "mark"
    if category not in "LN":
        return ""
    return "single" if any(low <= ord(char) <= high for low, high in _UNSPACED) else "word"


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

    It holds 8 bytes a token and 12 a row, and about 200 for each distinct (token, occurrence).

    Args:
        threshold: Two texts whose ROUGE-L F1 is above this are near-duplicates; above 0.
        tokenizer: See `tokens`.
    """

    def __init__(self, threshold: float = 0.7, tokenizer: Tokenizer = "unicode") -> None:
        if threshold <= 0:
            raise ValueError(f"a threshold of novelty must be above 0, got {threshold:g}")
        self.threshold = threshold
        self.tokenizer = tokenizer
        self._vocabulary: dict[str, int] = {}
        self._ids = array("i")  # of all rows, one after the other
        self._starts = array("q", [0])
        self._lengths = array("i")
        # For each token, for its k-th occurrence in a row: the rows that have so many, ascending.
        self._postings: list[list[array[int]]] = []
        self._counts: NDArray[np.intc] = np.zeros(1024, dtype=np.intc)  # of each row; 0 at rest

    def __len__(self) -> int:
        return len(self._lengths)

    def add(self, text: str) -> int:
        """Remember a text and return its row number: 0, 1, 2 ..."""
        row = len(self._lengths)
        seen: dict[int, int] = {}
        found = tokens(text, self.tokenizer)
        for token in found:
            one = self._vocabulary.setdefault(token, len(self._postings))
            if one == len(self._postings):
                self._postings.append([])
            self._ids.append(one)
            nth = seen.get(one, 0)
            seen[one] = nth + 1
            if nth == len(self._postings[one]):
                self._postings[one].append(array("i"))
            self._postings[one][nth].append(row)
        self._starts.append(len(self._ids))
        self._lengths.append(len(found))
        if row >= len(self._counts):
            self._counts = np.zeros(2 * row, dtype=np.intc)
        return row

    def duplicates(self, text: str) -> list[Neighbour]:
        """Every row above the threshold, the nearest first, earlier rows first among equals."""
        query = self._query(text)
        if not query:
            return []
        rows = self._candidates(query).tolist()
        masks = _masks(query)
        scored = ((self._score(masks, len(query), row), row) for row in rows)
        found = [Neighbour(score, row) for score, row in scored if score > self.threshold]
        return sorted(found, key=lambda one: (-one.score, one.row))

    def duplicate(self, text: str) -> Neighbour | None:
        """The nearest row if it is above the threshold; None if the text is new."""
        found = self.duplicates(text)
        return found[0] if found else None

    def by_group(self, text: str, groups_of: GroupsOf) -> dict[int, Neighbour]:
        """For each group with a row above the threshold, the earliest such row.

        No row of a group is scored once one is found, so thousands of near-duplicates of each other
        cost little more than one.

        Args:
            text: Any text.
            groups_of: Row numbers (N,) to the numbers of their groups (N,).
        """
        query = self._query(text)
        found: dict[int, Neighbour] = {}
        if not query:
            return found
        masks = _masks(query)
        rows = self._candidates(query)
        groups = groups_of(rows)
        order = groups.argsort(kind="stable")
        names, starts = np.unique(groups[order], return_index=True)
        for name, own in zip(names.tolist(), np.split(rows[order], starts[1:]), strict=False):
            for row in map(int, own):
                score = self._score(masks, len(query), row)
                if score > self.threshold:
                    found[name] = Neighbour(score, row)
                    break
        return found

    def nearest(self, text: str) -> Neighbour | None:
        """The nearest row whatever its score, earlier ones first; None if none has a token."""
        query = self._query(text)
        shared = np.zeros(len(self), dtype=np.intc)
        for posting in self._posted(query):
            shared[posting] += 1
        rows = np.flatnonzero(shared)
        if not rows.size:
            return None
        lengths = np.frombuffer(self._lengths, dtype=np.intc)[rows]
        # The score if all shared tokens stood in the same order: never below the true one.
        bound = _rouge_l(shared[rows], len(query), lengths)
        masks = _masks(query)
        first = int(bound.argmax())
        best = Neighbour(self._score(masks, len(query), int(rows[first])), int(rows[first]))
        hopeful = np.flatnonzero(bound >= best.score)
        for at in hopeful[np.argsort(-bound[hopeful], kind="stable")].tolist():
            if bound[at] < best.score:
                break
            row = int(rows[at])
            score = self._score(masks, len(query), row)
            if (-score, row) < (-best.score, best.row):
                best = Neighbour(score, row)
        return best

    def _query(self, text: str) -> list[int]:
        """Token ids of a query; a token that no row holds gets an id that matches nothing."""
        return [self._vocabulary.get(token, -1) for token in tokens(text, self.tokenizer)]

    def _posted(self, query: Sequence[int]) -> list[NDArray[np.intc]]:
        """The rows that hold each token of a query so often as it has come up there by then."""
        found = []
        seen: Counter[int] = Counter()
        for one in query:
            nth = seen[one]
            seen[one] += 1
            if one >= 0 and nth < len(self._postings[one]):
                found.append(np.frombuffer(self._postings[one][nth], dtype=np.intc))
        return found

    def _candidates(self, query: Sequence[int]) -> NDArray[np.intp]:
        """Rows that may lie above the threshold, ascending: all that do, and few others."""
        m = len(query)
        least = _least_lcs(self.threshold, m) if m <= _TABLE_KEPT else _made(self.threshold, m)
        postings = sorted(self._posted(query), key=len)
        # A row must hold `fewest` tokens of the query, so it holds one that is not among the
        # `fewest` - 1 in the longest posting lists.
        fewest = int(least.min())
        rarest = len(postings) - fewest + 1
        if rarest <= 0:
            return np.empty(0, dtype=np.intp)
        counts, touched = self._counts, np.concatenate(postings[:rarest])
        for posting in postings[:rarest]:
            counts[posting] += 1
        left = len(postings) - rarest
        lengths = np.frombuffer(self._lengths, dtype=np.intc)
        needed = least[np.minimum(lengths[touched], len(least) - 1)]
        rows = np.unique(touched[counts[touched] + left >= needed])
        shared, needed = counts[rows], least[np.minimum(lengths[rows], len(least) - 1)]
        counts[touched] = 0
        for posting in postings[rarest:]:
            if len(rows) <= _FEW:
                break
            left -= 1
            at = np.minimum(posting.searchsorted(rows), len(posting) - 1)
            shared = shared + (posting[at] == rows)
            kept = shared + left >= needed
            rows, shared, needed = rows[kept], shared[kept], needed[kept]
        return rows.astype(np.intp)

    def _score(self, masks: dict[int, int], m: int, row: int) -> float:
        ids = self._ids[self._starts[row] : self._starts[row + 1]]
        return rouge_l(_lcs(masks, m, ids), m, len(ids))


def _rouge_l(lcs: NDArray[np.integer], m: int, n: NDArray[np.integer]) -> NDArray[np.float64]:
    """`rouge_l` of many rows at once: the same operations, so the same floats."""
    precision, recall = lcs / m, lcs / n
    score: NDArray[np.float64] = 2 * precision * recall / (precision + recall)
    return score


def _made(threshold: float, m: int) -> NDArray[np.intc]:
    """The least LCS of an m-token text with one of 0, 1, 2 ... tokens that is above the threshold.

    m + 1, which no LCS reaches, where there is none; the last entry stands for all longer texts.
    """
    longest = int(m * (2 - threshold) / threshold) + 1 if threshold < 1 else m
    n = np.arange(longest + 2)
    least = np.full(longest + 2, m + 1, dtype=np.intc)
    # 2 LCS / (m + n) is the score up to rounding, so the first LCS above the threshold is one of
    # these, the smaller ones written last.
    middle = np.floor(threshold * (m + n) / 2).astype(np.intc)
    for more in (2, 1, 0, -1):
        lcs = middle + more
        possible = (lcs >= 1) & (lcs <= np.minimum(m, n))
        above = np.zeros(len(n), dtype=bool)
        above[possible] = _rouge_l(lcs[possible], m, n[possible]) > threshold
        least[above] = lcs[above]
    return least


_least_lcs = lru_cache(_TABLE_KEPT)(_made)


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
