"""How long Alpaca's prompts and completions are: 128 pairs that stand for 17,332 rows.

The rows of Stanford Alpaca (`alpaca_17k.jsonl.gz`, 17,387 unique rows), rendered with the kit's
`alpaca` template, in tokens of a byte-level BPE of 8,192 pieces trained on those texts: 4.0
characters a token, about what a LLaMA tokenizer makes of English. Bos and eos are counted. Rows
above 512 tokens are left out, as the kit leaves them out. The rest, in the order of their total
length, is cut into 128 equal parts, and the middle row of each is listed. Numbers, not texts: the
data set is not ours to ship.

    python benchmarks/lengths.py ../shared/data/alpaca_17k.jsonl.gz    # computes the list anew
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from alpaca_rlhf.core.prompts import lead, render
from alpaca_rlhf.core.records import Instruction

VOCABULARY = 8192
LONGEST = 512

_PAIRS = """
50+3 52+4 54+4 51+9 44+18 49+14 51+13 54+11 58+8 48+20 51+18 53+17 54+17 52+20 53+20 52+22 53+22
53+23 51+26 51+27 47+32 73+6 73+7 71+10 55+27 50+33 79+4 75+9 72+13 57+29 84+2 78+9 72+16 52+37
83+6 78+12 72+19 50+42 87+5 82+11 78+16 74+21 53+43 51+46 49+49 47+52 90+9 88+12 89+12 87+15 97+6
49+56 56+50 82+25 91+17 97+12 49+62 53+59 76+37 94+20 54+62 87+30 48+71 54+66 82+39 51+72 96+28
53+73 82+45 51+78 70+60 47+85 51+82 83+51 51+85 76+61 52+87 48+93 83+59 51+93 74+71 52+95 46+103
72+78 51+101 93+60 53+102 49+108 57+101 51+109 110+51 79+84 81+84 57+110 54+115 53+118 49+124
48+127 47+130 51+128 52+129 54+129 87+98 88+99 73+117 50+143 61+134 56+142 55+146 78+126 138+69
50+161 76+138 48+171 72+151 81+146 82+150 58+179 63+181 54+199 57+205 47+226 58+228 59+242 49+271
61+282 54+325 54+389
"""

ALPACA: tuple[tuple[int, int], ...] = tuple(
    (int(p), int(c)) for p, c in (pair.split("+") for pair in _PAIRS.split())
)
"""(prompt tokens, completion tokens), shortest first."""


def spread(count: int) -> list[tuple[int, int]]:
    """`count` pairs that stand evenly for the whole list, short ones and long ones alike."""
    return [ALPACA[int((i + 0.5) * len(ALPACA) / count)] for i in range(count)]


def compute(path: Path) -> list[tuple[int, int]]:
    """The list, from the data set."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    with gzip.open(path, "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)

    def texts() -> Iterator[str]:
        for row in rows:
            yield from (row["instruction"], row["input"], row["output"])

    tokenizer.train_from_iterator(
        texts(),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    pairs, characters, tokens = [], 0, 0
    for row in rows:
        prompt = render("alpaca", Instruction(row["instruction"], row["input"]))
        completion = lead("alpaca") + row["output"]
        pair = [1 + len(tokenizer.encode(text).ids) for text in (prompt, completion)]
        characters += len(prompt) + len(completion)
        tokens += sum(pair) - 2
        if sum(pair) <= LONGEST:
            pairs.append((pair[0], pair[1]))
    pairs.sort(key=lambda pair: (sum(pair), pair))
    sys.stderr.write(
        f"{len(pairs)} of {len(rows)} rows, {characters / tokens:.2f} characters a token\n"
    )
    return [pairs[int((i + 0.5) * len(pairs) / 128)] for i in range(128)]


if __name__ == "__main__":
    sys.stdout.write(" ".join(f"{p}+{c}" for p, c in compute(Path(sys.argv[1]))) + "\n")
