"""Rows of the shapes that real files have, mutated, through the readers of a run.

Used by tests/test_columns.py (300) and by tests/prove.py (3,000).
"""

import copy
import json
import random
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.data import FileAccount, Reading, RowKind, ranked_prompts, read_instructions
from alpaca_rlhf.data.readers.columns import COMPARED
from tests.mutations import VALUES, text

Row = dict[str, Any]


def said(role: str, rng: random.Random) -> Row:
    content: Any = text(rng)
    if rng.random() < 0.2:
        content = [{"type": "text", "text": content}]
    return {"role": role, "content": content}


def whole(rng: random.Random) -> tuple[list[Row], list[Row]]:
    start = [said("user", rng)]
    if rng.random() < 0.3:
        start = [said("developer", rng), *start, said("assistant", rng), said("user", rng)]
    return [*start, said("assistant", rng)], [*start, said("model", rng)]


def binarised(rng: random.Random) -> Row:
    chosen, rejected = whole(rng)
    prompt = next(turn["content"] for turn in chosen if turn["role"] == "user")
    row = {"prompt_id": "x", "chosen": chosen, "rejected": rejected, "score_chosen": 8.0}
    return row if isinstance(prompt, list) else {"prompt": prompt, **row}


def explicit(rng: random.Random) -> Row:
    sides = ([said("assistant", rng)], [said("assistant", rng)])
    return {"prompt": [said("user", rng)], "chosen": sides[0], "rejected": sides[1]}


def implicit(rng: random.Random) -> Row:
    start = text(rng)
    return {"chosen": f"{start} it is blue.", "rejected": f"{start} it is green."}


def rated(rng: random.Random) -> Row:
    completions = [
        {"response": text(rng), "overall_score": rng.choice((1.0, 8.5, "7"))} for _ in range(3)
    ]
    return {"instruction": text(rng), "completions": completions, "models": ["a", "b", "c"]}


def aspects(rng: random.Random) -> Row:
    completions = [
        {"response": text(rng), "annotations": {"honesty": {"Rating": rng.choice("12345")}}}
        for _ in range(2)
    ]
    return {"source": "x", "instruction": text(rng), "completions": completions}


def scored(rng: random.Random) -> Row:
    scores = {"score_chosen": rng.choice((8.0, 5, None)), "score_rejected": rng.choice((5.0, "7"))}
    return {"prompt": transcript(rng), "chosen": text(rng), "rejected": f"{text(rng)}!", **scores}


def transcript(rng: random.Random) -> str:
    return f"\n\nHuman: {text(rng)}\n\nAssistant: Yes.\n\nHuman: {text(rng)}\n\nAssistant:"


def compared(rng: random.Random) -> Row:
    comparison = rng.choice(COMPARED)
    sides: list[Any] = [text(rng), f"{text(rng)}!"]
    if comparison.answers[0].startswith("conversation"):
        sides = list(whole(rng))
    values = (*comparison.first, *comparison.second, *comparison.ties)
    row = {comparison.prompt or "prompt": rng.choice((text, transcript))(rng)}
    row |= dict(zip(comparison.answers, sides, strict=True))
    return {**row, comparison.verdict: rng.choice(values), "id": 3}


def ranked(rng: random.Random) -> Row:
    answers = [
        {"answer": text(rng), "model": "m", "rank": rng.choice((1.0, 2, 3, None))} for _ in range(4)
    ]
    return {"prompt": transcript(rng), "answers": answers, "source": ["a", "b"]}


PREFERENCES: tuple[Callable[[random.Random], Row], ...]
PREFERENCES = (binarised, explicit, implicit, rated, aspects, scored, compared, ranked)


def kto(rng: random.Random) -> Row:
    return {"prompt": text(rng), "completion": text(rng), "label": rng.random() < 0.5}


def kto_messages(rng: random.Random) -> Row:
    row = {"prompt": [said("user", rng)], "completion": [said("assistant", rng)]}
    return {**row, "label": rng.random() < 0.5}


def with_tools(rng: random.Random) -> Row:
    return {"instruction": text(rng), "output": text(rng), "tools": rng.choice(([], "[]", ["f"]))}


def with_system(rng: random.Random) -> Row:
    return {"instruction": text(rng), "output": text(rng), "system": rng.choice(("", text(rng)))}


def alpaca(rng: random.Random) -> Row:
    return {"instruction": text(rng), "output": text(rng), "category": "qa", "id": 3}


def tree_messages(rng: random.Random) -> list[Row]:
    """The messages of one tree, in any order."""
    first = f"m{rng.randrange(10**9)}"
    rows = [{"message_id": first, "parent_id": None, "role": "prompter", "text": text(rng)}]
    for number in range(3):
        reply = {"role": "assistant", "text": text(rng), "rank": rng.choice((number, 1.0, None))}
        rows.append({"message_id": f"{first}.{number}", "parent_id": first, **reply, "lang": "en"})
    rng.shuffle(rows)
    return rows


def from_transcript(rng: random.Random) -> Row:
    return {"prompt": transcript(rng), "completion": rng.choice((" ", "")) + text(rng)}


DEMONSTRATIONS: tuple[Callable[[random.Random], Row], ...]
DEMONSTRATIONS = (kto, kto_messages, with_tools, with_system, alpaca, from_transcript)


def changed(value: Any, rng: random.Random) -> Any:
    """A value with one thing in it dropped, renamed, doubled or of another type."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.7:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = rng.choice(keys)
        way = rng.randrange(4)
        if way == 0:
            value.pop(key)
        elif way == 1 and isinstance(value, dict):
            value[rng.choice(("text", "label", "role", ""))] = value.pop(key)
        elif way == 2 and isinstance(value, list):
            value.insert(key, value[key])
        else:
            value[key] = changed(value[key], rng)
        return value
    other = ([{"role": "tool", "content": "x"}], "N/A", {"bytes": 1, "path": 2})
    return copy.deepcopy(rng.choice((*VALUES, *other)))


def wrong_with(
    rows: list[Row], kind: RowKind, folder: Path, *, drop: bool
) -> tuple[str, Counter[str]]:
    """The fault ("" if all is well), and how the rows ended."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    account = FileAccount(str(path))
    reading = Reading(kind, drop_broken=drop, account=account)
    records: list[Any] = []
    try:
        records = (
            ranked_prompts(path, reading)
            if kind == "rankings"
            else list(read_instructions(path, reading))
        )
    except UserError as error:
        if "\n" in str(error):
            return f"not one line: {error}", Counter()
        if not drop:
            return "", Counter({"refused": len(rows)})
    except Exception:
        return traceback.format_exc()[-2000:], Counter()
    ends = Counter({"used": account.used}) + Counter(dict(account.left_out))
    # A tree is several rows, and gives a ranking for each of its questions.
    one_each = len(records) == account.used or any("message_id" in row for row in rows)
    if account.rows != len(rows) or not one_each or ends.total() != len(rows):
        return f"{len(rows)} rows, {len(records)} records: {account.to_json()}", ends
    return "", ends


def fuzz(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Read so many mutated rows, a few a file; how they ended, and each failure with its seed."""
    ends: Counter[str] = Counter()
    failures = []
    rows_read = 0
    number = 0
    while rows_read < count:
        rng = random.Random(f"{seed}/{number}")
        kind: RowKind = rng.choice(("instructions", "rankings"))
        maker = rng.choice(DEMONSTRATIONS if kind == "instructions" else PREFERENCES)
        rows = [maker(rng) for _ in range(min(rng.choice((3, 10)), count - rows_read))]
        if kind == "rankings" and rng.random() < 0.2:
            rows = [row for _ in range(3) for row in tree_messages(rng)][: count - rows_read]
        for row in rows:
            for _ in range(rng.choice((0, 1, 1, 2))):
                changed(row, rng)
        rows_read += len(rows)
        wrong, ended = wrong_with(rows, kind, folder, drop=rng.random() < 0.9)
        ends += ended
        if wrong:
            failures.append({"seed": f"{seed}/{number}", "shape": maker.__name__, "wrong": wrong})
        number += 1
    return {"rows": rows_read, "ends": dict(ends.most_common()), "failures": failures}
