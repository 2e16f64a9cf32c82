"""Endless text of the small world for pre-training: documents, questions, numbered worksheets.

The SFT prompt template never occurs. Held-out facts occur in plain documents alone, held-out
phrasings nowhere.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import islice, pairwise

from alpaca_rlhf.core.prompts import worksheet
from alpaca_rlhf.smallworld import facts
from alpaca_rlhf.smallworld.answers import CLOSINGS, sample_answer, solved
from alpaca_rlhf.smallworld.families import FRAMES
from alpaca_rlhf.smallworld.lists import spoken
from alpaca_rlhf.smallworld.tasks import FAMILIES, sample_task

_TEMPLATE = """\
Below is an instruction that describes a task, paired with an input that provides further context. \
Write a response that appropriately completes the request.

### Instruction:

### Input:

### Response:
"""


def documents(seed: int, *, worksheets: float = 0.25, questions: float = 0.20) -> Iterator[str]:
    """Documents without end, the same for the same arguments.

    Args:
        seed: Draws everything.
        worksheets: Share of the documents that are numbered worksheets.
        questions: Share that are questions with answers; the rest are plain documents.
    """
    rng = random.Random(f"corpus/{seed}")
    while True:
        draw = rng.random()
        if draw < worksheets:
            yield _worksheet(rng)
        elif draw < worksheets + questions:
            yield _questions(rng)
        else:
            yield _plain(rng)


def tokenizer_text(seed: int, n: int) -> Iterator[str]:
    """`n` documents, and among them the words of the prompt template and of the held-out frames."""
    frames = [frame.replace("{}", "it") for _, unseen in FRAMES.values() for frame in unseen]
    for i, document in enumerate(islice(documents(seed), n)):
        yield document
        if i % 20 == 0:
            yield _TEMPLATE
            yield "\n".join(frames)


def _worksheet(rng: random.Random) -> str:
    return worksheet([solved(sample_task(rng), rng) for _ in range(rng.randint(3, 5))])


def _questions(rng: random.Random) -> str:
    asker, other = rng.sample(facts.CHILDREN, 2)
    question, reply = rng.choice(
        (
            ("Q: ", "A: "),
            ("Question: ", "Answer: "),
            (f"{asker}: ", f"{other}: "),
            ("Task: ", "Solution: "),
            ("", ""),
        )
    )
    blocks = []
    for _ in range(rng.randint(2, 5)):
        task = sample_task(rng)
        material = f"\n{task.input}" if task.input else ""
        asked = f"{question}{task.instruction}{material}\n"
        blocks.append(f"{asked}{reply}{sample_answer(task, rng)}\n")
    return "".join(blocks)


def _plain(rng: random.Random) -> str:
    return rng.choice(_PLAIN)(rng)


def _about_a_thing(rng: random.Random) -> str:
    """Everything known about one thing; held-out facts are told here."""
    noun = rng.choice(sorted(facts.CATEGORY_OF))
    says = [f"{facts.article(noun).capitalize()} is {facts.article(facts.CATEGORY_OF[noun])}."]
    for name in ("colour", "sound", "home", "food", "legs", "young", "plural", "use"):
        found = FAMILIES[name].solve({"x": noun})
        says += [found.sentence] if found is not None else []
    rng.shuffle(says)
    says = says[: rng.randint(2, 5)]
    says += [rng.choice(CLOSINGS)] if rng.random() < 0.05 else []
    return " ".join(says) + "\n"


def _about_a_kind(rng: random.Random) -> str:
    """Several facts of one kind."""
    family = FAMILIES[rng.choice(_KINDS_OF_FACTS)]
    keys = dict.fromkeys(family.draw(rng)["x"] for _ in range(6))
    return " ".join(s.sentence for x in keys if (s := family.solve({"x": x})) is not None) + "\n"


def _about_time(rng: random.Random) -> str:
    week = (facts.DAYS, "days", "A week has seven days.")
    year = (facts.MONTHS, "months", "A year has twelve months.")
    names, kind, count = rng.choice((week, year))
    start, n = rng.randrange(len(names)), rng.randint(3, len(names))
    run = [names[(start + i) % len(names)] for i in range(n)]
    told = [count, f"The {kind} are {spoken(run)}."]
    told += [f"{b} comes after {a}." for a, b in pairwise(run)][:3]
    return " ".join(told) + "\n"


def _about_numbers(rng: random.Random) -> str:
    if rng.random() < 0.4:
        start = rng.randint(0, 80)
        return ", ".join(str(start + i) for i in range(rng.randint(5, 15))) + "\n"
    x = rng.randint(0, 12)
    rows = [f"{x} plus {y} is {x + y}." for y in range(rng.randint(0, 6), rng.randint(7, 13))]
    if rng.random() < 0.5:
        rows = [f"{x + y} minus {y} is {x}." for y in range(rng.randint(0, 6), rng.randint(7, 13))]
    return " ".join(rows) + "\n"


def _about_a_group(rng: random.Random) -> str:
    kind = rng.choice(sorted(facts.CATEGORIES))
    names = rng.sample(facts.CATEGORIES[kind], rng.randint(3, 6))
    told = [f"Some {kind}s are {spoken(names)}."]
    told += [f"{facts.article(n).capitalize()} is {facts.article(kind)}." for n in names[:2]]
    return " ".join(told) + "\n"


def _tale(rng: random.Random) -> str:
    """A few sentences about children."""
    names = ("story", "read_what", "past_sentence", "thank", "sorry")
    told = []
    for _ in range(rng.randint(1, 3)):
        family = FAMILIES[rng.choice(names)]
        args = family.draw(rng)
        found = family.solve({k: v.lower() for k, v in args.items()})
        assert found is not None
        extra = f" {rng.choice(found.extras)}" if found.extras and rng.random() < 0.5 else ""
        told.append(found.sentence + extra)
    return " ".join(told) + "\n"


_KINDS_OF_FACTS = (
    "colour",
    "sound",
    "home",
    "young",
    "food",
    "legs",
    "opposite",
    "category",
    "use",
    "job",
    "plural",
    "past",
)
_PLAIN: tuple[Callable[[random.Random], str], ...] = (
    _about_a_thing,
    _about_a_thing,
    _about_a_kind,
    _about_a_kind,
    _about_a_group,
    _about_time,
    _about_numbers,
    _tale,
)
