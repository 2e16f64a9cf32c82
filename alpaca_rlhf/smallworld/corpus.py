"""Endless text of the small world for pre-training: documents, questions, numbered worksheets.

The SFT prompt template never occurs. Held-out facts occur in plain documents only, held-out
phrasings nowhere.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import islice, pairwise

from alpaca_rlhf.core.prompts import worksheet
from alpaca_rlhf.smallworld import facts
from alpaca_rlhf.smallworld.answers import CLOSINGS, answered_task, sample_answer
from alpaca_rlhf.smallworld.families import FRAMES
from alpaca_rlhf.smallworld.lists import with_and
from alpaca_rlhf.smallworld.tasks import FAMILIES, sample_task

_TEMPLATE = """\
Below is an instruction that describes a task, paired with an input that provides further context. \
Write a response that appropriately completes the request.

### Instruction:

### Input:

### Response:
"""


def documents(
    seed: int, *, worksheets: float = 0.25, questions: float = 0.20, requests: float = 0.0
) -> Iterator[str]:
    """Yield documents without end, the same ones for the same arguments.

    Args:
        seed: Seed of all draws.
        worksheets: Share of documents that are numbered worksheets.
        questions: Share of documents that are questions with answers; the rest are plain.
        requests: Share of questions and of worksheets' tasks that ask for the form of the answer.
    """
    rng = random.Random(f"corpus/{seed}")
    while True:
        draw = rng.random()
        if draw < worksheets:
            yield _worksheet(rng, requests)
        elif draw < worksheets + questions:
            yield _questions(rng, requests)
        else:
            yield _plain(rng)


def tokenizer_text(seed: int, n: int) -> Iterator[str]:
    """Yield `n` documents, mixed with the words of the prompt template and of held-out frames.

    The tokenizer needs tokens for these words too, although the model never trains on them.
    """
    frames = [frame.replace("{}", "it") for _, unseen in FRAMES.values() for frame in unseen]
    for i, document in enumerate(islice(documents(seed), n)):
        yield document
        if i % 20 == 0:
            yield _TEMPLATE
            yield "\n".join(frames)


def _worksheet(rng: random.Random, requests: float) -> str:
    tasks = (sample_task(rng, requests=requests) for _ in range(rng.randint(3, 5)))
    return worksheet([answered_task(task, rng) for task in tasks])


def _questions(rng: random.Random, requests: float) -> str:
    asker, answerer = rng.sample(facts.CHILDREN, 2)
    question, reply = rng.choice(
        (
            ("Q: ", "A: "),
            ("Question: ", "Answer: "),
            (f"{asker}: ", f"{answerer}: "),
            ("Task: ", "Solution: "),
            ("", ""),
        )
    )
    blocks = []
    for _ in range(rng.randint(2, 5)):
        task = sample_task(rng, requests=requests)
        material = f"\n{task.input}" if task.input else ""
        question_lines = f"{question}{task.instruction}{material}\n"
        blocks.append(f"{question_lines}{reply}{sample_answer(task, rng)}\n")
    return "".join(blocks)


def _plain(rng: random.Random) -> str:
    return rng.choice(_PLAIN)(rng)


def _about_a_noun(rng: random.Random) -> str:
    """Write a few facts about one noun, held-out facts included."""
    noun = rng.choice(sorted(facts.CATEGORY_OF))
    sentences = [f"{facts.article(noun).capitalize()} is {facts.article(facts.CATEGORY_OF[noun])}."]
    for name in ("colour", "sound", "home", "food", "legs", "young", "plural", "use"):
        solution = FAMILIES[name].solve({"x": noun})
        sentences += [solution.sentence] if solution is not None else []
    rng.shuffle(sentences)
    sentences = sentences[: rng.randint(2, 5)]
    sentences += [rng.choice(CLOSINGS)] if rng.random() < 0.05 else []
    return " ".join(sentences) + "\n"


def _about_a_kind(rng: random.Random) -> str:
    """Write several facts of one kind."""
    family = FAMILIES[rng.choice(_KINDS_OF_FACTS)]
    keys = dict.fromkeys(family.draw(rng)["x"] for _ in range(6))
    return " ".join(s.sentence for x in keys if (s := family.solve({"x": x})) is not None) + "\n"


def _about_time(rng: random.Random) -> str:
    week = (facts.DAYS, "days", "A week has seven days.")
    year = (facts.MONTHS, "months", "A year has twelve months.")
    names, kind, count = rng.choice((week, year))
    start, n = rng.randrange(len(names)), rng.randint(3, len(names))
    run = [names[(start + i) % len(names)] for i in range(n)]
    sentences = [count, f"The {kind} are {with_and(run)}."]
    sentences += [f"{b} comes after {a}." for a, b in pairwise(run)][:3]
    return " ".join(sentences) + "\n"


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
    sentences = [f"Some {kind}s are {with_and(names)}."]
    sentences += [f"{facts.article(n).capitalize()} is {facts.article(kind)}." for n in names[:2]]
    return " ".join(sentences) + "\n"


def _tale(rng: random.Random) -> str:
    """Write a few sentences about children."""
    names = ("story", "read_what", "past_sentence", "thank", "sorry")
    sentences = []
    for _ in range(rng.randint(1, 3)):
        family = FAMILIES[rng.choice(names)]
        args = family.draw(rng)
        solution = family.solve({k: v.lower() for k, v in args.items()})
        assert solution is not None
        extra = f" {rng.choice(solution.extras)}" if solution.extras and rng.random() < 0.5 else ""
        sentences.append(solution.sentence + extra)
    return " ".join(sentences) + "\n"


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
    _about_a_noun,
    _about_a_noun,
    _about_a_kind,
    _about_a_kind,
    _about_a_group,
    _about_time,
    _about_numbers,
    _tale,
)
