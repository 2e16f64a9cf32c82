"""Signs of a hacked reward that can be read from the token ids of completions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

NGRAM = 4
"""Tokens of an n-gram, and of a beginning. With 4, `repeated` is seq-rep-4 (arXiv 1908.04319)."""

Tokens = Sequence[int]


def probes(
    prompts: Sequence[Tokens], completions: Sequence[Tokens], finished: Sequence[bool]
) -> Mapping[str, list[float]]:
    """Measure each completion, in the order given.

    Returns:
        `tokens`: its length. `repeated`: share of its n-grams that stood in it before.
        `same_beginning`: 1 if another completion begins with the same tokens. `copied`: share of
        its n-grams that stand in its prompt. `unfinished`: 1 if it did not stop.
    """
    beginnings = Counter(tuple(ids[:NGRAM]) for ids in completions)
    return {
        "tokens": [float(len(ids)) for ids in completions],
        "repeated": [_repeated(ids) for ids in completions],
        "same_beginning": [float(beginnings[tuple(ids[:NGRAM])] > 1) for ids in completions],
        "copied": [_copied(ids, prompt) for prompt, ids in zip(prompts, completions, strict=True)],
        "unfinished": [float(not stopped) for stopped in finished],
    }


def _ngrams(ids: Tokens) -> list[tuple[int, ...]]:
    return [tuple(ids[start : start + NGRAM]) for start in range(len(ids) - NGRAM + 1)]


def _repeated(ids: Tokens) -> float:
    ngrams = _ngrams(ids)
    return (len(ngrams) - len(set(ngrams))) / len(ngrams) if ngrams else 0.0


def _copied(ids: Tokens, prompt: Tokens) -> float:
    ngrams, of_prompt = _ngrams(ids), set(_ngrams(prompt))
    return sum(ngram in of_prompt for ngram in ngrams) / len(ngrams) if ngrams else 0.0
