"""Novelty decisions are those of rouge_score, at the exact border too; other scripts are seen."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from alpaca_rlhf.data import NoveltyIndex, read_prompts, tokens

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SCORER = RougeScorer(["rougeL"], use_stemmer=False)


def rouge(one: str, other: str) -> float:
    return SCORER.score(one, other)["rougeL"].fmeasure


def edited(rng: random.Random, words: list[str]) -> str:
    words = list(words)
    for _ in range(rng.randint(0, 5)):
        at = rng.randrange(len(words) + 1)
        if rng.random() < 0.4 and len(words) > 1:
            words.pop(min(at, len(words) - 1))
        elif rng.random() < 0.5:
            words.insert(at, f"w{rng.randrange(12)}")
        else:
            rng.shuffle(words)
    return " ".join(words)


def test_decisions_and_scores_are_those_of_rouge_score() -> None:
    rng = random.Random(0)
    pool = [
        " ".join(f"w{rng.randrange(30)}" for _ in range(rng.randint(1, 14))) for _ in range(150)
    ]
    pool += [edited(rng, rng.choice(pool).split()) for _ in range(150)]
    pool += [" ".join(rng.sample(LETTERS, rng.choice([8, 9, 10, 11, 12]))) for _ in range(100)]
    index = NoveltyIndex()
    for text in pool:
        index.add(text)
    duplicates = borders = 0
    for number in range(240):
        query = edited(rng, rng.choice(pool).split())
        if number >= 200:  # 7 of 10 words in common, or of 9 and 11: F1 is 0.7 up to rounding
            known = rng.choice(
                [text for text in pool[-100:] if 9 <= len(text.split()) <= 11]
            ).split()
            query = " ".join(known[:7] + [f"new{i}" for i in range(13 - len(known))])
        true = [rouge(query, text) for text in pool]
        found = index.duplicates(query)
        assert {one.row: one.score for one in found} == {
            row: s for row, s in enumerate(true) if s > 0.7
        }
        best = max(true)
        nearest = index.nearest(query)
        assert nearest is not None and (nearest.score, nearest.row) == (best, true.index(best))
        assert index.duplicate(query) == (nearest if best > 0.7 else None)
        duplicates += bool(found)
        borders += any(abs(score - 0.7) < 1e-9 for score in true)
    assert duplicates > 50 and 240 - duplicates > 50 and borders >= 40  # the test reaches all cases


@pytest.mark.parametrize(
    ("m", "n", "common"), [(9, 11, 7), (10, 10, 7), (12, 8, 7), (16, 4, 4), (20, 20, 14)]
)
def test_f1_of_exactly_seven_tenths_is_decided_by_the_same_floats(
    m: int, n: int, common: int
) -> None:
    first = [f"a{i}" for i in range(m)]
    second = first[:common] + [f"b{i}" for i in range(n - common)]
    index = NoveltyIndex()
    index.add(" ".join(first))
    score = rouge(" ".join(second), " ".join(first))
    assert (index.duplicate(" ".join(second)) is not None) == (score > 0.7)


def test_seven_of_nine_and_eleven_is_dropped_and_seven_of_ten_and_ten_kept() -> None:
    words = "a b c d e f g".split()
    for m, n, dropped in ((9, 11, True), (10, 10, False)):
        index = NoveltyIndex()
        index.add(" ".join(words + [f"x{i}" for i in range(m - 7)]))
        found = index.duplicate(" ".join(words + [f"y{i}" for i in range(n - 7)]))
        assert (found is not None) is dropped


@settings(max_examples=200, deadline=None)
@given(st.text(), st.text("aAbB1_-' é字İK", max_size=30))
def test_rouge_tokens_are_those_of_rouge_score(one: str, other: str) -> None:
    from rouge_score.tokenizers import DefaultTokenizer

    for text in (one, other, one + other):
        assert tokens(text, "rouge") == DefaultTokenizer(use_stemmer=False).tokenize(text)
        if text.isascii():
            assert tokens(text) == tokens(text, "rouge")


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("Résumé of the NASA-plan", ["résumé", "of", "the", "nasa", "plan"]),
        ("re\u0301sume\u0301", ["résumé"]),
        ("把句子翻译成英文。", list("把句子翻译成英文")),
        ("カタカナとGPT-4", ["カ", "タ", "カ", "ナ", "と", "gpt", "4"]),
        ("Назови цвет!", ["назови", "цвет"]),
        ("ما هو اللون؟", ["ما", "هو", "اللون"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("ที่นี่ ok", ["ที่", "นี่", "ok"]),
        ("\uff21\uff11\uff0c\uff42", ["a1", "b"]),  # full-width forms
        ("😀 …", []),
    ],
)
def test_unicode_tokens(text: str, want: list[str]) -> None:
    assert tokens(text) == want


def test_chinese_duplicates_are_seen_by_unicode_and_not_by_rouge() -> None:
    first, second, third = (
        "请把下面的句子翻译成英文。",
        "请把下面这个句子翻译成英文",
        "列出三种常见的水果。",
    )
    for tokenizer, seen in (("unicode", True), ("rouge", False)):
        index = NoveltyIndex(tokenizer=tokenizer)
        assert index.add(first) == 0 and len(index) == 1
        assert (index.duplicate(second) is not None) is seen
        assert index.duplicate(third) is None


def test_empty_texts_are_near_nothing() -> None:
    index = NoveltyIndex()
    assert index.nearest("anything") is None
    index.add("")
    index.add("...")
    assert index.duplicate("") is None and index.nearest("a word") is None
    index.add("A word?")
    assert (
        index.duplicate("a word") == index.nearest("a word") and index.duplicate("a word").row == 2
    )


def test_real_instructions_against_brute_force(shared: Path) -> None:
    rows = [row.instruction for row in read_prompts(shared / "data" / "alpaca_17k.jsonl.gz")]
    index = NoveltyIndex(tokenizer="rouge")
    for text in rows[:400]:
        index.add(text)
    for query in rows[400:430]:
        near = index.nearest(query)
        best = max(rouge(query, text) for text in rows[:400])
        assert (near.score if near else 0.0) == best
