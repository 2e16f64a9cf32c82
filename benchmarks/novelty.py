"""Is a text new among 50,000? The kit's index against rouge_score and rapidfuzz.

    python benchmarks/novelty.py [--quick] --json benchmarks/results/novelty.json

The pool is made of Alpaca's instructions, of single sentences of its inputs and outputs, and of
Chinese rows of our own. A candidate is a sentence that the pool lacks, a row of it with words
changed, or one whose ROUGE-L with a row is exactly 0.7, where floats decide. Sides, in turn, on the
same candidates, in CPU seconds of one process:

- rouge_score as Stanford Alpaca calls it: rows tokenised before, `_score_lcs` with each, then max;
- rapidfuzz: the same tokens as strings of ids, `Indel.normalized_similarity` with all by `cdist`
  (2 LCS / (m + n), the same number up to rounding), and rouge_score's floats at the border;
- ours: `NoveltyIndex.duplicate`, the candidate's tokenising included, as on the other sides.

Parity: more candidates are decided by the index and by rapidfuzz's exact `LCSseq` with every row in
rouge_score's formula, with both tokenizers; those that are timed by rouge_score itself. End to end:
as many candidates as the pool has rows, one after the other, those that are new being added.
"""

from __future__ import annotations

import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from alpaca_rlhf.data import NoveltyIndex, read_prompts, tokens
from alpaca_rlhf.data.novelty import Tokenizer, rouge_l
from benchmarks import measure

THRESHOLD = 0.7
ROWS, CHINESE, CANDIDATES, TIMED = (
    (5_000, 200, 300, 4) if measure.QUICK else (50_000, 2_000, 1_500, 24)
)
TIMES = 50  # how often ours is timed on a candidate, since one takes less than a millisecond
BORDERS = ((10, 10, 7), (9, 11, 7), (11, 9, 7), (12, 8, 7), (8, 12, 7), (20, 20, 14), (16, 24, 14))
"""Tokens of a row, of a candidate, and in common, so that ROUGE-L is exactly 0.7."""

_DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "alpaca_17k.jsonl.gz"
_SENTENCE = re.compile(r"(?<=[.!?])\s+")

_ASK = (
    *("写一段关于{}", "列出三个与{}有关的词", "用两句话介绍{}", "说明{}的好处", "比较{}"),
    *("把{}讲给孩子听", "为{}起一个标题"),
)
_ABOUT = (
    *("春天", "长江", "算法", "早餐", "太空", "音乐", "医院", "火车", "数学", "邻居", "城市"),
    *("大海", "电影", "猫", "书店", "天气", "足球", "诗歌", "茶叶", "冬天"),
)
_HOW = (
    *("语气要轻松", "不超过五十个字", "请用书面语", "最后提一个问题", "先给出结论", "举一个例子"),
    *("分成三点", "不要用形容词"),
)


def chinese(count: int) -> list[str]:
    """So many different rows in Chinese, many of them near-duplicates."""
    rng = random.Random(0)
    found: dict[str, None] = {}
    while len(found) < count:
        about = rng.choice(_ABOUT) + "和" + rng.choice(_ABOUT)
        how = "\uff0c".join(rng.sample(_HOW, 2))
        found[f"{rng.choice(_ASK).format(about)}\uff0c{how}。"] = None
    return list(found)


def texts(path: Path, count: int) -> list[str]:
    """Alpaca's instructions, then sentences of its inputs and outputs: `count` different texts.

    Texts of 4 to 30 words, as instructions are.
    """
    found: dict[str, None] = {}
    rows = read_prompts(path)
    parts = [row.instruction for row in rows]
    parts += [
        sentence
        for row in rows
        for text in (row.input, row.output or "")
        for sentence in _SENTENCE.split(text)
    ]
    for part in parts:
        if 4 <= len(part.split()) <= 30:
            found.setdefault(part.strip())
        if len(found) == count:
            return list(found)
    raise ValueError(f"{path} has only {len(found)} texts of 4 to 30 words, not {count}")


def edited(rng: random.Random, text: str) -> str:
    """A row with a few words taken out, put in or moved; of one without spaces, characters."""
    space = " " if " " in text else ""
    words = text.split() if space else list(text)
    for _ in range(rng.randint(1, max(2, len(words) // 2))):
        at = rng.randrange(len(words))
        how = rng.random()
        if how < 0.4 and len(words) > 2:
            words.pop(at)
        elif how < 0.8:
            words.insert(at, rng.choice(("very", "please", "old", "twelve")) if space else "很")
        else:
            words.insert(rng.randrange(len(words)), words.pop(at))
    return space.join(words)


def at_border(rng: random.Random, pool: Sequence[Sequence[str]], count: int) -> list[str]:
    """Candidates that have a ROUGE-L of exactly 0.7 with a row, given as its tokens."""
    by_length: dict[int, list[Sequence[str]]] = {}
    for row in pool:
        by_length.setdefault(len(row), []).append(row)
    found = []
    for number in range(count):
        m, n, common = BORDERS[number % len(BORDERS)]
        row = rng.choice(by_length[m])
        kept = sorted(rng.sample(range(m), common))
        found.append(" ".join([*(row[at] for at in kept), *(f"zq{i}" for i in range(n - common))]))
    return found


def candidates(
    rng: random.Random, pool: Sequence[str], unseen: Sequence[str], count: int
) -> list[str]:
    """A third each: unseen sentences, edited rows (a tenth of them Chinese), and border cases."""
    third = count // 3
    made = list(unseen[:third])
    made += [edited(rng, rng.choice(pool)) for _ in range(third - third // 10)]
    made += [edited(rng, rng.choice(pool[-CHINESE:])) for _ in range(third // 10)]
    tokenised = [tokens(text, "rouge") for text in pool]
    made += at_border(rng, tokenised, count - len(made))
    rng.shuffle(made)
    return made


class Original:
    """rouge_score as stanford_alpaca@4187a25 generate_instruction.py calls it, in one process."""

    def __init__(self, pool: Sequence[str]) -> None:
        from rouge_score import rouge_scorer

        self._score = rouge_scorer._score_lcs
        self._tokenize = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)._tokenizer.tokenize
        self._rows = [self._tokenize(text) for text in pool]

    def duplicate(self, text: str) -> bool:
        """Whether a row is above the threshold."""
        wanted = self._tokenize(text)
        scores = [self._score(wanted, row).fmeasure for row in self._rows]
        return max(scores) > THRESHOLD


class Packed:
    """Rows as strings in which a character is a token, for rapidfuzz."""

    def __init__(self, pool: Sequence[str], tokenizer: Tokenizer) -> None:
        self._tokenizer: Tokenizer = tokenizer
        self._ids: dict[str, str] = {}
        self._rows = [self._pack(text) for text in pool]

    def _pack(self, text: str) -> str:
        # Code points from 0xE000 on, past the surrogates; 1.1 million fit.
        found = tokens(text, self._tokenizer)
        return "".join(self._ids.setdefault(one, chr(0xE000 + len(self._ids))) for one in found)

    def duplicate(self, text: str) -> bool:
        """By `Indel`; what lies at the border is decided by rouge_score's floats."""
        from rapidfuzz import process
        from rapidfuzz.distance import Indel, LCSseq

        query = self._pack(text)
        if not query:
            return False
        near = process.cdist(
            [query], self._rows, scorer=Indel.normalized_similarity, score_cutoff=THRESHOLD - 1e-6
        )[0]
        for at in near.nonzero()[0]:
            row = self._rows[at]
            if row and rouge_l(LCSseq.similarity(query, row), len(query), len(row)) > THRESHOLD:
                return True
        return False

    def exact(self, text: str) -> tuple[bool, bool]:
        """Whether a row is above the threshold, and whether one is at 7/10 exactly."""
        import numpy as np
        from rapidfuzz import process
        from rapidfuzz.distance import LCSseq

        query = self._pack(text)
        lcs = process.cdist([query], self._rows, scorer=LCSseq.similarity, dtype=np.int32)[0]
        above = border = False
        for at in lcs.nonzero()[0]:
            common, m, n = int(lcs[at]), len(query), len(self._rows[at])
            if 80 * common >= 27 * (m + n):  # below 0.675 nothing is near the border
                above |= rouge_l(common, m, n) > THRESHOLD
                border |= 20 * common == 7 * (m + n)
        return above, border


def indexed(pool: Sequence[str], tokenizer: Tokenizer) -> NoveltyIndex:
    """Our index of the pool."""
    index = NoveltyIndex(THRESHOLD, tokenizer)
    for text in pool:
        index.add(text)
    return index


def cpu(work: Callable[[], Any], times: int = 1) -> float:
    """CPU milliseconds of one call."""
    began = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - began) / times * 1e3


def end_to_end(pool: Sequence[str], tokenizer: Tokenizer) -> tuple[float, int]:
    """CPU seconds for all rows as candidates of a growing pool, and how many were new."""
    index = NoveltyIndex(THRESHOLD, tokenizer)
    began = time.process_time()
    for text in pool:
        if index.duplicate(text) is None:
            index.add(text)
    return time.process_time() - began, len(index)


def main() -> None:
    """All sides in turn; print a table, write the file."""
    given = measure.arguments(__doc__, repeats=TIMED, quick=TIMED)
    measure.need("rouge_score", "0.1.2")
    measure.need("rapidfuzz", "3.14.6")
    if not _DATA.is_file():
        sys.stderr.write(f"this comparison needs {_DATA}, which is not here\n")
        raise SystemExit(2)
    made_on = measure.machine()
    rng = random.Random(0)
    english = ROWS - CHINESE
    found = texts(_DATA, english + CANDIDATES)
    rng.shuffle(found)
    pool, unseen = found[:english] + chinese(CHINESE), found[english:]
    asked = candidates(rng, pool, unseen, CANDIDATES)

    original, packed = Original(pool), Packed(pool, "rouge")
    ours = {name: indexed(pool, name) for name in ("rouge", "unicode")}
    sides: dict[str, tuple[Callable[[str], bool], int]] = {
        "rouge_score, as Alpaca calls it": (original.duplicate, 1),
        "rapidfuzz Indel, cdist": (packed.duplicate, 1),
        "ours, rouge tokens": (lambda text: ours["rouge"].duplicate(text) is not None, TIMES),
        "ours, unicode tokens": (lambda text: ours["unicode"].duplicate(text) is not None, TIMES),
    }
    rows: list[dict[str, Any]] = [{"name": name} for name in sides]
    timed: dict[str, list[float]] = {name: [] for name in sides}
    differ = 0
    for decide, _ in sides.values():
        decide(unseen[-1])  # warm up
    for number, text in enumerate(asked[: given.repeats], 1):
        for name, (decide, times) in sides.items():
            timed[name].append(cpu(lambda: decide(text), times))  # noqa: B023
        said = [decide(text) for name, (decide, _) in sides.items() if "unicode" not in name]
        differ += len(set(said)) > 1
        sys.stderr.write(f"{number}/{given.repeats}\n")
    parity: dict[str, dict[str, int]] = {}
    for name, index in ours.items():
        truth = Packed(pool, name)
        counts = {"candidates": len(asked), "duplicates": 0, "exactly_0.7": 0, "differ": 0}
        for text in asked:
            above, border = truth.exact(text)
            counts["duplicates"] += above
            counts["exactly_0.7"] += border
            counts["differ"] += above != (index.duplicate(text) is not None)
        parity[name] = counts
        differ += counts["differ"]
    ended = {name: end_to_end(rng.sample(pool, len(pool)), name) for name in ours}

    for row in rows:
        row["milliseconds"] = measure.spread_of(timed[row["name"]])
        row["milliseconds"]["mean"] = statistics.mean(timed[row["name"]])
    mean = [row["milliseconds"]["mean"] for row in rows]
    sys.stdout.write(
        measure.table(
            [
                {
                    "": row["name"],
                    "ms a candidate": f"{row['milliseconds']['mean']:.3f}",
                    "median (range)": "{median:.3f} ({min:.3f}-{max:.3f})".format(
                        **row["milliseconds"]
                    ),
                }
                for row in rows
            ]
        )
        + "\n"
    )
    for name, counts in parity.items():
        sys.stdout.write(f"{name} tokens: {counts}; end to end {ended[name][0]:.1f} s\n")
    summary = {
        "speedup_vs_rouge_score": mean[0] / mean[2],
        "speedup_vs_rapidfuzz": mean[1] / mean[2],
        "decisions_differ": differ,
        "end_to_end_seconds": ended["unicode"][0],
    }
    for key, value in summary.items():
        sys.stdout.write(f"{key}: {value:.3f}\n")
    if given.json:
        measure.write(
            given.json,
            "novelty",
            made_on,
            rows,
            summary,
            pool={"rows": len(pool), "chinese": CHINESE},
            parity=parity,
            libraries={"rouge_score": "0.1.2", "rapidfuzz": "3.14.6"},
            checked_by_rouge_score=min(given.repeats, len(asked)),
            end_to_end={
                name: {"cpu_seconds": seconds, "candidates": len(pool), "new": kept}
                for name, (seconds, kept) in ended.items()
            },
        )


if __name__ == "__main__":
    main()
