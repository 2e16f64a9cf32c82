"""Novelty of a text: exact ROUGE-L against all earlier texts, without scoring each of them.

For an m-token text to duplicate an n-token one, their longest common subsequence (LCS) must have a
minimum length. A table of these minimum lengths is computed with the floats of
google-research/rouge_score, so decisions are identical to its own, F1 = 0.7 included. The LCS is
never longer than the number of shared tokens, counted with multiplicity, and a posting list for
each (token, k-th occurrence) counts those. A row that shares at least `min_lcs` of m tokens shares
at least one of any m - min_lcs + 1, so the rarest tokens yield all candidates; the frequent ones
are looked up for these candidates alone. The few rows that remain are verified with a bit-parallel
LCS (Hyyro 2004) on Python's big integers.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Tokenizer = Literal["unicode", "rouge"]
GroupsOf = Callable[[NDArray[np.intp]], NDArray[np.intp]]
"""Row numbers (N,) to the numbers of their groups (N,)."""

_ROUGE_TOKEN = re.compile("[a-z0-9]+")
# Scripts written without spaces; each of their characters is a token: Thai and Lao, Burmese, Khmer,
# kana and the marks among Chinese characters, Chinese characters (NFKC replaces the compatibility
# forms).
_UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3041, 0x30FF),
    (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF),
)  # fmt: skip
_CACHED_QUERY_TOKENS = 2048  # longest query whose table of minimum LCS is cached
_FEW_CANDIDATES = 8  # so few are verified faster than they are counted further


def tokens(text: str, tokenizer: Tokenizer = "unicode") -> list[str]:
    """Split a text into tokens.

    Args:
        text: Any text.
        tokenizer: `rouge` keeps only a-z and 0-9, as rouge_score@0.1.2 tokenize.py does: other
            scripts vanish. `unicode` does the same with ASCII text; other text is normalised
            (NFKC) and split into words of letters, marks and digits, or into single characters
            where the script has no spaces.
    """
    if tokenizer == "rouge" or text.isascii():
        return _ROUGE_TOKEN.findall(text.lower())
    text_tokens: list[str] = []
    previous = ""  # kind of the token that the character before belongs to; "" after a gap
    for char in unicodedata.normalize("NFKC", text).lower():
        kind = _kind(char)
        if kind == "mark" and previous:  # a combining mark belongs to the character before it
            text_tokens[-1] += char
        elif not kind:
            previous = ""
        elif kind == "single":
            text_tokens.append(char)
            previous = "single"
        else:
            if previous == "word":
                text_tokens[-1] += char
            else:
                text_tokens.append(char)
            previous = "word"
    return text_tokens


@cache
def _kind(char: str) -> str:
    """`mark`, `single` (a token by itself), `word` (part of a word), or "" for a separator."""
    category = unicodedata.category(char)[0]
    if category == "M":
        return "mark"
    if category not in "LN":
        return ""
    return "single" if any(low <= ord(char) <= high for low, high in _UNSPACED) else "word"


def _symbols(text: str) -> str:
    """The symbols of a text, without blanks and the marks that choose how an emoji looks."""
    characters = unicodedata.normalize("NFKC", text)
    return "".join(char for char in characters if unicodedata.category(char)[0] not in "MZC")


def rouge_l(lcs: int, m: int, n: int) -> float:
    """ROUGE-L F1, in the float operations of rouge_score@0.1.2 rouge_scorer.py:202, scoring.py:161.

    Args:
        lcs: Length of the longest common subsequence, in tokens.
        m: Tokens of the query.
        n: Tokens of the row.
    """
    precision, recall = lcs / m, lcs / n
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


@dataclass(frozen=True)
class Neighbour:
    """A row and its similarity to a query."""

    score: float
    """ROUGE-L F1 with the text."""
    row: int
    """Its number, as returned by `NoveltyIndex.add`."""


class NoveltyIndex:
    """An index of texts that finds near-duplicates of a query.

    A text of symbols alone (`???`, an emoji) has no tokens: it is near the same symbols only, and
    with the tokenizer `rouge` near nothing, as in rouge_score.

    It takes 8 bytes a token and 12 a row, and about 200 for each distinct (token, occurrence).

    Args:
        threshold: ROUGE-L F1 above which two texts are near-duplicates; above 0.
        tokenizer: See `tokens`.
    """

    def __init__(self, threshold: float = 0.7, tokenizer: Tokenizer = "unicode") -> None:
        if threshold <= 0:
            raise ValueError(f"a threshold of novelty must be above 0, got {threshold:g}")
        self.threshold = threshold
        self.tokenizer = tokenizer
        self._vocabulary: dict[str, int] = {}
        self._ids = array("i")  # token ids of all rows, concatenated
        self._starts = array("q", [0])
        self._lengths = array("i")
        # _postings[token][k]: the rows that hold the token more than k times, ascending.
        self._postings: list[list[array[int]]] = []
        # The rows without tokens, by their symbols.
        self._symbol_rows: dict[str, list[int]] = {}
        self._counts: NDArray[np.intc] = np.zeros(1024, dtype=np.intc)  # scratch; 0 between calls

    def __len__(self) -> int:
        return len(self._lengths)

    def add(self, text: str) -> int:
        """Add a text and return its row number: 0, 1, 2 ..."""
        row = len(self._lengths)
        occurrences: dict[int, int] = {}
        text_tokens = self._tokens(text)
        for token in text_tokens:
            token_id = self._vocabulary.setdefault(token, len(self._postings))
            if token_id == len(self._postings):
                self._postings.append([])
            self._ids.append(token_id)
            nth = occurrences.get(token_id, 0)
            occurrences[token_id] = nth + 1
            # The row enters the list of this occurrence of the token.
            if nth == len(self._postings[token_id]):
                self._postings[token_id].append(array("i"))
            self._postings[token_id][nth].append(row)
        if not text_tokens and self.tokenizer == "unicode":
            self._symbol_rows.setdefault(_symbols(text), []).append(row)
        self._starts.append(len(self._ids))
        self._lengths.append(len(text_tokens))
        if row >= len(self._counts):
            self._counts = np.zeros(2 * row, dtype=np.intc)
        return row

    def duplicates(self, text: str) -> list[Neighbour]:
        """Every row above the threshold: the nearest first, and earlier rows first among equals."""
        query = self._query(text)
        if not query:
            return [Neighbour(1.0, row) for row in self._same_symbols(text)]
        rows = self._candidates(query).tolist()
        query_masks = _Masks(query)
        scored = ((self._score(query_masks, row), row) for row in rows)
        neighbours = [Neighbour(score, row) for score, row in scored if score > self.threshold]
        return sorted(neighbours, key=lambda neighbour: (-neighbour.score, neighbour.row))

    def duplicate(self, text: str) -> Neighbour | None:
        """The nearest row if it is above the threshold; None if the text is new."""
        neighbours = self.duplicates(text)
        return neighbours[0] if neighbours else None

    def by_group(self, text: str, groups_of: GroupsOf) -> dict[int, Neighbour]:
        """For each group with a row above the threshold, the earliest such row.

        Scoring of a group stops at its first such row, so thousands of mutual near-duplicates cost
        little more than one.

        Args:
            text: Any text.
            groups_of: Row numbers (N,) to the numbers of their groups (N,).
        """
        query = self._query(text)
        neighbours: dict[int, Neighbour] = {}
        if not query:
            rows = np.array(self._same_symbols(text), dtype=np.intp)
            for row, group in zip(rows.tolist(), groups_of(rows).tolist(), strict=True):
                neighbours.setdefault(group, Neighbour(1.0, row))
            return neighbours
        query_masks = _Masks(query)
        rows = self._candidates(query)
        groups = groups_of(rows)
        order = groups.argsort(kind="stable")  # stable: rows stay ascending within their group
        names, starts = np.unique(groups[order], return_index=True)
        rows_by_group = np.split(rows[order], starts[1:])
        # Without any candidate there are no names, but np.split still returns one empty part.
        for name, group_rows in zip(names.tolist(), rows_by_group, strict=False):
            for row in map(int, group_rows):
                score = self._score(query_masks, row)
                if score > self.threshold:
                    neighbours[name] = Neighbour(score, row)
                    break
        return neighbours

    def nearest(self, text: str) -> Neighbour | None:
        """The nearest row, the earliest among equals; None if no row shares a token."""
        # 1. Count the tokens that each row shares with the query.
        query = self._query(text)
        shared = np.zeros(len(self), dtype=np.intc)
        for posting in self._posted(query):
            shared[posting] += 1
        rows = np.flatnonzero(shared)
        if not rows.size:
            return None
        lengths = np.frombuffer(self._lengths, dtype=np.intc)[rows]
        # 2. Bound each score from above: its value if all shared tokens stood in the same order.
        bound = _rouge_l(shared[rows], len(query), lengths)
        query_masks = _Masks(query)
        first = int(bound.argmax())
        best = Neighbour(self._score(query_masks, int(rows[first])), int(rows[first]))
        # 3. Score the rows in the order of their bounds, until a bound falls below the best score.
        contenders = np.flatnonzero(bound >= best.score)
        for at in contenders[np.argsort(-bound[contenders], kind="stable")].tolist():
            if bound[at] < best.score:
                break
            row = int(rows[at])
            score = self._score(query_masks, row)
            if (-score, row) < (-best.score, best.row):
                best = Neighbour(score, row)
        return best

    def _same_symbols(self, text: str) -> list[int]:
        """The rows of the same symbols as a text without tokens, ascending; none for a blank."""
        symbols = _symbols(text)
        return self._symbol_rows.get(symbols, []) if symbols else []

    def _query(self, text: str) -> list[int]:
        """Token ids of a query; -1, which matches nothing, for a token that no row holds."""
        return [self._vocabulary.get(token, -1) for token in self._tokens(text)]

    def _tokens(self, text: str) -> list[str]:
        """The tokens of a text; none where they are marks alone, as beside some emoji."""
        text_tokens = tokens(text, self.tokenizer)
        return text_tokens if any(_kind(token[0]) != "mark" for token in text_tokens) else []

    def _posted(self, query: Sequence[int]) -> list[NDArray[np.intc]]:
        """For each query token, the rows that hold it as often as it has occurred so far."""
        postings = []
        occurrences: Counter[int] = Counter()
        for token_id in query:
            nth = occurrences[token_id]
            occurrences[token_id] += 1
            if token_id >= 0 and nth < len(self._postings[token_id]):
                postings.append(np.frombuffer(self._postings[token_id][nth], dtype=np.intc))
        return postings

    def _candidates(self, query: Sequence[int]) -> NDArray[np.intp]:
        """Rows that may be above the threshold, ascending: all that are, and few others."""
        m = len(query)
        table = _cached_min_lcs if m <= _CACHED_QUERY_TOKENS else _min_lcs
        min_lcs = table(self.threshold, m)
        postings = sorted(self._posted(query), key=len)

        # 1. Take all rows from the rarest tokens. A row must share `min_shared` tokens of the
        #    query, so it shares one that is not among the `min_shared` - 1 most frequent.
        min_shared = int(min_lcs.min())
        rarest = len(postings) - min_shared + 1
        if rarest <= 0:
            return np.empty(0, dtype=np.intp)
        counts, touched = self._counts, np.concatenate(postings[:rarest])
        for posting in postings[:rarest]:
            counts[posting] += 1

        # 2. Drop rows that fall short even if they share every token not yet counted.
        uncounted = len(postings) - rarest
        lengths = np.frombuffer(self._lengths, dtype=np.intc)
        needed = min_lcs[np.minimum(lengths[touched], len(min_lcs) - 1)]
        rows = np.unique(touched[counts[touched] + uncounted >= needed])
        shared, needed = counts[rows], min_lcs[np.minimum(lengths[rows], len(min_lcs) - 1)]
        counts[touched] = 0

        # 3. Look the frequent tokens up for the rows that remain, and drop more.
        for posting in postings[rarest:]:
            if len(rows) <= _FEW_CANDIDATES:
                break
            uncounted -= 1
            at = np.minimum(posting.searchsorted(rows), len(posting) - 1)
            shared = shared + (posting[at] == rows)
            possible = shared + uncounted >= needed
            rows, shared, needed = rows[possible], shared[possible], needed[possible]
        return rows.astype(np.intp)

    def _score(self, query: _Masks, row: int) -> float:
        ids = self._ids[self._starts[row] : self._starts[row + 1]]
        m = len(query.tokens)
        lcs = m if query.is_text(ids) else _lcs(query.masks, m, ids)
        return rouge_l(lcs, m, len(ids))


def _rouge_l(lcs: NDArray[np.integer], m: int, n: NDArray[np.integer]) -> NDArray[np.float64]:
    """`rouge_l` of many rows: the same operations in the same order, so the same floats."""
    precision, recall = lcs / m, lcs / n
    score: NDArray[np.float64] = 2 * precision * recall / (precision + recall)
    return score


def _min_lcs(threshold: float, m: int) -> NDArray[np.intc]:
    """The smallest LCS above the threshold, of an m-token text and one of 0, 1, 2 ... tokens.

    Where there is none the entry is m + 1, which no LCS reaches. The last entry stands for all
    longer texts.
    """
    longest = int(m * (2 - threshold) / threshold) + 1 if threshold < 1 else m
    n = np.arange(longest + 2)
    min_lcs = np.full(longest + 2, m + 1, dtype=np.intc)
    # 2 LCS / (m + n) is the score up to rounding, so the smallest LCS above the threshold is within
    # 2 of this estimate. The smaller candidates are written last.
    estimate = np.floor(threshold * (m + n) / 2).astype(np.intc)
    for offset in (2, 1, 0, -1):
        lcs = estimate + offset
        possible = (lcs >= 1) & (lcs <= np.minimum(m, n))
        above = np.zeros(len(n), dtype=bool)
        above[possible] = _rouge_l(lcs[possible], m, n[possible]) > threshold
        min_lcs[above] = lcs[above]
    return min_lcs


_cached_min_lcs = lru_cache(_CACHED_QUERY_TOKENS)(_min_lcs)


@dataclass(frozen=True)
class _Masks:
    """A query, and for each of its tokens the positions in it as the bits of an integer."""

    tokens: Sequence[int]

    def is_text(self, ids: array[int]) -> bool:
        """True for the query itself: a text of megabytes meets itself, and its LCS takes hours."""
        return len(ids) == len(self.tokens) and ids.tolist() == list(self.tokens)

    @cached_property
    def masks(self) -> dict[int, int]:
        masks: dict[int, int] = {}
        for position, token_id in enumerate(self.tokens):
            masks[token_id] = masks.get(token_id, 0) | 1 << position
        return masks


def _lcs(masks: dict[int, int], m: int, row: Sequence[int]) -> int:
    """Length of the longest common subsequence of a row and the m-token query behind `masks`."""
    full = (1 << m) - 1
    free = full  # bit i is 0 where taking query token i makes the LCS longer
    for token_id in row:
        mask = masks.get(token_id)
        if mask:
            match = free & mask
            # Hyyro 2004: in each run of free bits the lowest match becomes 0, and the carry of the
            # sum frees the 0 above the run.
            free = ((free + match) | (free - match)) & full
    return m - free.bit_count()
