"""Families of tasks about a word or a text: repeat it, put it into the past, answer from it."""

from __future__ import annotations

import random
from collections.abc import Mapping

from alpaca_rlhf.smallworld import facts
from alpaca_rlhf.smallworld.facts import article
from alpaca_rlhf.smallworld.families import CHILD, WORD, Family, Solution

_VERBS = {
    third: verb
    for third, verb in (
        ("walks", "walk"),
        ("runs", "run"),
        ("goes", "go"),
        ("comes", "come"),
        ("swims", "swim"),
        ("flies", "fly"),
        ("jumps", "jump"),
    )
    # A sentence to rewrite would give a held-out form away.
    if not facts.held_out("past", verb)
}
_TEXT = "{c} has {a:h} {x}. {d} has {a:i} {y}."
_TEXT_SLOTS = {"c": CHILD, "d": CHILD, "x": WORD, "y": WORD, "h": WORD, "i": WORD, "q": WORD}


def _draw_repeat(rng: random.Random) -> dict[str, str]:
    return {"x": rng.choice(facts.NOUNS), "n": rng.choice(facts.NUMBER_WORDS[2:5])}


def _solve_repeat(args: Mapping[str, str]) -> Solution | None:
    word, times = args["x"], args["n"]
    if times not in facts.NUMBER_WORDS[2:7] or word not in facts.PLURAL_OF:
        return None
    repeated = " ".join([word] * facts.NUMBER_WORDS.index(times))
    return Solution(repeated, f"Here you are: {repeated}.", (f"I wrote it {times} times.",))


def _draw_past(rng: random.Random) -> dict[str, str]:
    return {
        "c": rng.choice(facts.CHILDREN),
        "v": rng.choice(list(_VERBS)),
        "p": rng.choice(facts.PLACES),
    }


def _solve_past(args: Mapping[str, str]) -> Solution | None:
    child, verb, place = args["c"].capitalize(), _VERBS.get(args["v"]), args["p"]
    if verb is None or place not in facts.PLACES or child not in facts.CHILDREN:
        return None
    past = f"{child} {facts.PAST_OF[verb]} to the {place}."
    return Solution(past, past, (f"The past tense of {verb} is {facts.PAST_OF[verb]}.",))


def _draw_what(rng: random.Random) -> dict[str, str]:
    c, d = rng.sample(facts.CHILDREN, 2)
    x, y = rng.sample(facts.THINGS, 2)
    h, i = rng.sample(facts.COLOURS, 2)
    return {"c": c, "d": d, "x": x, "y": y, "h": h, "i": i, "q": rng.choice((c, d))}


def _draw_who(rng: random.Random) -> dict[str, str]:
    args = _draw_what(rng)
    return args | {"q": rng.choice((args["x"], args["y"]))}


def _possessions(args: Mapping[str, str]) -> dict[str, tuple[str, str]] | None:
    """Map each child to the colour and noun it has; None if the text makes no sense."""
    children = args["c"].capitalize(), args["d"].capitalize()
    possessions = (args["h"], args["x"]), (args["i"], args["y"])
    colours, names = zip(*possessions, strict=True)
    if not set(children) <= set(facts.CHILDREN) or not set(names) <= set(facts.THINGS):
        return None
    if len(set(children)) < 2 or len(set(names)) < 2 or not set(colours) <= set(facts.COLOURS):
        return None
    return dict(zip(children, possessions, strict=True))


def _solve_what(args: Mapping[str, str]) -> Solution | None:
    possessions, child = _possessions(args), args["q"].capitalize()
    if possessions is None or child not in possessions:
        return None
    colour, noun = possessions[child]
    answer = article(f"{colour} {noun}")
    return Solution(
        answer,
        f"{child} has {answer}.",
        (f"The {noun} is {colour}.",),
        (f"{colour} {noun}", article(noun), noun),
    )


def _solve_who(args: Mapping[str, str]) -> Solution | None:
    possessions = _possessions(args) or {}
    for child, (colour, noun) in possessions.items():
        if noun == args["q"]:
            return Solution(child, f"{child} has the {noun}.", (f"The {noun} is {colour}.",))
    return None


SENTENCES: tuple[Family, ...] = (
    Family(
        "repeat",
        {"deed": ("repeat the word {x} {n} times", "say the word {x} {n} times")},
        {"x": WORD, "n": WORD},
        _draw_repeat,
        _solve_repeat,
    ),
    Family(
        "past_sentence",
        {
            "deed": (
                "put this sentence into the past",
                "write the sentence in the past tense",
                "rewrite this in the past tense",
            )
        },
        {"c": CHILD, "v": WORD, "p": WORD},
        _draw_past,
        _solve_past,
        input="{c} {v} to the {p}.",
    ),
    Family(
        "read_what",
        {"question": ("what does {q} have", "which thing does {q} have")},
        _TEXT_SLOTS,
        _draw_what,
        _solve_what,
        input=_TEXT,
    ),
    Family(
        "read_who",
        {"question": ("who has the {q}", "which child has the {q}")},
        _TEXT_SLOTS,
        _draw_who,
        _solve_who,
        input=_TEXT,
    ),
)
"""Families of tasks about a word or a text."""
