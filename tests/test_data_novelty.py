"""Novelty decisions are those of rouge_score, at the exact border too; other scripts are seen."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpaca_rlhf.data import NoveltyIndex, novelty, read_prompts, tokens

try:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer
except ImportError:
    RougeScorer = None

SCORER = RougeScorer(["rougeL"], use_stemmer=False) if RougeScorer else None
LETTERS = "abcdefghijklmnopqrstuvwxyz"
needs_rouge_score = pytest.mark.skipif(
    RougeScorer is None, reason="compares with rouge_score, which is not installed"
)


def rouge(text_a: str, text_b: str) -> float:
    return SCORER.score(text_a, text_b)["rougeL"].fmeasure


def lcs(tokens_a: list[str], tokens_b: list[str]) -> int:
    """The table that every textbook has."""
    above = [0] * (len(tokens_b) + 1)
    for word in tokens_a:
        line = [0]
        for at, second in enumerate(tokens_b):
            line.append(above[at] + 1 if word == second else max(above[at + 1], line[at]))
        above = line
    return above[-1]


def f1(tokens_a: list[str], tokens_b: list[str]) -> float:
    """ROUGE-L in the order of operations that rouge_score has."""
    common = lcs(tokens_a, tokens_b)
    if not common:
        return 0.0
    precision, recall = common / len(tokens_a), common / len(tokens_b)
    return 2 * precision * recall / (precision + recall)


def edited(rng: random.Random, tokens_of_text: list[str]) -> str:
    tokens_of_text = list(tokens_of_text)
    for _ in range(rng.randint(0, 5)):
        at = rng.randrange(len(tokens_of_text) + 1)
        if rng.random() < 0.4 and len(tokens_of_text) > 1:
            tokens_of_text.pop(min(at, len(tokens_of_text) - 1))
        elif rng.random() < 0.5:
            tokens_of_text.insert(at, f"w{rng.randrange(12)}")
        else:
            rng.shuffle(tokens_of_text)
    return " ".join(tokens_of_text)


@needs_rouge_score
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
        neighbours = index.duplicates(query)
        assert {neighbour.row: neighbour.score for neighbour in neighbours} == {
            row: s for row, s in enumerate(true) if s > 0.7
        }
        best = max(true)
        nearest = index.nearest(query)
        assert nearest is not None and (nearest.score, nearest.row) == (best, true.index(best))
        assert index.duplicate(query) == (nearest if best > 0.7 else None)
        duplicates += bool(neighbours)
        borders += any(abs(score - 0.7) < 1e-9 for score in true)
    assert duplicates > 50 and 240 - duplicates > 50 and borders >= 40  # the test reaches all cases


@needs_rouge_score
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
    shared_words = "a b c d e f g".split()
    for m, n, dropped in ((9, 11, True), (10, 10, False)):
        index = NoveltyIndex()
        index.add(" ".join(shared_words + [f"x{i}" for i in range(m - 7)]))
        neighbour = index.duplicate(" ".join(shared_words + [f"y{i}" for i in range(n - 7)]))
        assert (neighbour is not None) is dropped


@needs_rouge_score
@settings(max_examples=200, deadline=None)
@given(st.text(), st.text("aAbB1_-' é字İK", max_size=30))
def test_rouge_tokens_are_those_of_rouge_score(any_text: str, hard_text: str) -> None:
    for text in (any_text, hard_text, any_text + hard_text):
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
    for tokenizer, detected in (("unicode", True), ("rouge", False)):
        index = NoveltyIndex(tokenizer=tokenizer)
        assert index.add(first) == 0 and len(index) == 1
        assert (index.duplicate(second) is not None) is detected
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


few_letters = st.lists(st.sampled_from("abcde"), max_size=12)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(few_letters, max_size=12), few_letters, st.sampled_from([0.1, 0.5, 0.7, 0.9, 1.0, 1.5])
)
def test_every_answer_is_that_of_brute_force(rows, query, threshold) -> None:
    """Few letters, so that they come up often and stand in every order."""
    index = NoveltyIndex(threshold)
    for row in rows:
        index.add(" ".join(row))
    true = {row: f1(query, row_tokens) for row, row_tokens in enumerate(rows)}
    above = sorted((-score, row) for row, score in true.items() if score > threshold)
    text = " ".join(query)
    assert [(-neighbour.score, neighbour.row) for neighbour in index.duplicates(text)] == above
    near = index.nearest(text)
    best = max(true.values(), default=0.0)
    assert (near.score if near else 0.0) == best
    if near:
        assert near.row == min(row for row, score in true.items() if score == best)
    groups = index.by_group(text, lambda rows: rows % 3)
    assert {group: neighbour.row for group, neighbour in groups.items()} == {
        group: min(row for _, row in above if row % 3 == group)
        for group in {row % 3 for _, row in above}
    }


def test_the_least_lcs_of_every_pair_of_lengths_is_the_first_above_the_threshold() -> None:
    """Lengths up to 60: rows that share so many words that they just are, or just are not, near."""
    names = [f"w{i}" for i in range(60)]
    for m in range(1, 61, 3):
        for n in range(1, 61):
            most = min(m, n)
            scores = [
                2 * (k / m) * (k / n) / (k / m + k / n) if k else 0.0 for k in range(most + 1)
            ]
            first = next((k for k, score in enumerate(scores) if score > 0.7), None)
            if first is None:
                first = most + 1
            for common in (first - 1, first):
                if not 0 <= common <= most:
                    continue
                index = NoveltyIndex()
                index.add(" ".join(names[:common] + [f"row{i}" for i in range(n - common)]))
                query = " ".join(names[:common] + [f"ask{i}" for i in range(m - common)])
                assert (index.duplicate(query) is not None) is (common == first)


def test_few_rows_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of common words in every order: most are ruled out before any subsequence is sought."""
    rng = random.Random(0)
    texts = [" ".join(rng.choices(LETTERS, k=rng.randint(8, 14))) for _ in range(2000)]
    index = NoveltyIndex()
    for text in texts:
        index.add(text)
    scored = []
    inner = novelty._lcs
    monkeypatch.setattr(novelty, "_lcs", lambda *arguments: scored.append(1) or inner(*arguments))
    for text in texts[:300]:
        assert index.duplicates(text)
    assert len(scored) < 10 * 300
    index = NoveltyIndex()
    for number in range(400):  # a template: all are near each other
        index.add(f"please tell me what is {number} and nothing else")
    scored.clear()
    near = index.by_group("please tell me what is love and nothing else", lambda rows: 0 * rows)
    assert near.keys() == {0} and len(scored) == 1


def test_an_index_only_grows_and_answers_in_between() -> None:
    index = NoveltyIndex()
    for row in range(3000):  # past every doubling of what it keeps
        assert index.duplicate(f"a{row} b{row} c{row} d{row} e e e") is None
        assert index.add(f"a{row} b{row} c{row} d{row} e e e") == row
        near = index.duplicate(f"a{row // 2} b{row // 2} c{row // 2} d{row // 2} e e")
        assert near is not None and near.row == row // 2
    assert len(index) == 3000
    with pytest.raises(ValueError, match="above 0"):
        NoveltyIndex(0.0)


@needs_rouge_score
def test_real_instructions_against_brute_force(shared: Path) -> None:
    rows = [row.instruction for row in read_prompts(shared / "data" / "alpaca_17k.jsonl.gz")]
    index = NoveltyIndex(tokenizer="rouge")
    for text in rows[:400]:
        index.add(text)
    for query in rows[400:430]:
        near = index.nearest(query)
        best = max(rouge(query, text) for text in rows[:400])
        assert (near.score if near else 0.0) == best
