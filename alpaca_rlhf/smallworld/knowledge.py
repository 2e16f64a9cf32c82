"""Families of tasks that ask for a fact."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from alpaca_rlhf.smallworld import facts
from alpaca_rlhf.smallworld.facts import article
from alpaca_rlhf.smallworld.families import WORD, Family, Solution

ANY = r"[a-z ]+?"


def about(noun: str) -> tuple[str, ...]:
    """True sentences about a thing."""
    out = []
    if noun in facts.CATEGORY_OF and not facts.held_out("category", noun):
        out.append(f"{article(noun).capitalize()} is {article(facts.CATEGORY_OF[noun])}.")
    if noun in facts.LEGS_OF and not facts.held_out("legs", noun):
        out.append(f"{article(noun).capitalize()} has {facts.LEGS_OF[noun]} legs.")
    return tuple(out)


def another(kind: str, noun: str) -> str:
    """A member of a category other than `noun`, and none whose category is held out."""
    return next(
        n
        for n in reversed(facts.CATEGORIES[kind])
        if n != noun and not facts.held_out("category", n)
    )


def _draws(table: Mapping[str, str], slot: str) -> Callable[[random.Random], dict[str, str]]:
    names = sorted(table)
    return lambda rng: {slot: rng.choice(names)}


def _solves(
    table: Mapping[str, str],
    slot: str,
    sentence: str,
    extras: Callable[[str, str], tuple[str, ...]],
) -> Callable[[Mapping[str, str]], Solution | None]:
    def solve(args: Mapping[str, str]) -> Solution | None:
        key = args[slot]
        if key not in table:
            return None
        value = table[key]
        text = sentence.format(key=key, value=value, a_key=article(key), a_value=article(value))
        return Solution(value, text[0].upper() + text[1:], extras(key, value))

    return solve


def _fact(
    name: str,
    table: Mapping[str, str],
    cores: Mapping[str, tuple[str, ...]],
    sentence: str,
    extras: Callable[[str, str], tuple[str, ...]],
    *,
    pattern: str = WORD,
) -> Family:
    return Family(
        name,
        cores,
        {"x": pattern},
        _draws(table, "x"),
        _solves(table, "x", sentence, extras),
        fact=(name, "x"),
    )


def _day(step: int) -> dict[str, str]:
    days = [d.lower() for d in facts.DAYS]
    return {d: facts.DAYS[(i + step) % 7] for i, d in enumerate(days)}


def _month(step: int) -> dict[str, str]:
    return {m.lower(): facts.MONTHS[(i + step) % 12] for i, m in enumerate(facts.MONTHS)}


def _sequence(name: str, table: Mapping[str, str], word: str, extra: str) -> Family:
    kind = "day" if len(table) == 7 else "month"

    def solve(args: Mapping[str, str]) -> Solution | None:
        asked = args["x"].lower()
        if asked not in table:
            return None
        return Solution(
            table[asked], f"{table[asked]} comes {word} {asked.capitalize()}.", (extra,)
        )

    return Family(
        name,
        {
            "thing": (f"the {kind} that comes {word} {{x}}", f"the {kind} {word} {{x}}"),
            "question": (f"which {kind} comes {word} {{x}}",),
        },
        {"x": WORD},
        lambda rng: {"x": rng.choice(sorted(table)).capitalize()},
        solve,
    )


_QUESTION_OF_CATEGORY = ("what kind of thing is {a:x}", "which group does {a:x} belong to")

KNOWLEDGE: tuple[Family, ...] = (
    _fact(
        "colour", facts.COLOUR_OF,
        {"thing": ("the colour of {a:x}",), "question": ("what colour is {a:x}", "which colour is {a:x}")},
        "{a_key} is {value}.", lambda key, value: about(key),
    ),
    _fact(
        "sound", facts.SOUND_OF,
        {"thing": ("the sound of {a:x}", "the sound that {a:x} makes"), "question": ("what does {a:x} say",)},
        "{a_key} says {value}.", lambda key, value: about(key),
    ),
    _fact(
        "home", facts.HOME_OF,
        {"thing": ("the home of {a:x}", "the place where {a:x} lives"), "question": ("where does {a:x} live",)},
        "{a_key} lives in {a_value}.", lambda key, value: about(key),
    ),
    _fact(
        "young", facts.YOUNG_OF,
        {"thing": ("the name of a young {x}", "the word for a young {x}"), "question": ("what is a young {x} called",)},
        "A young {key} is called {a_value}.", lambda key, value: about(key),
    ),
    _fact(
        "food", facts.FOOD_OF,
        {"thing": ("the food of {a:x}", "what {a:x} eats"), "question": ("what does {a:x} eat",)},
        "{a_key} eats {value}.", lambda key, value: about(key),
    ),
    _fact(
        "legs", facts.LEGS_OF,
        {"thing": ("the number of legs of {a:x}", "how many legs {a:x} has"),
         "question": ("how many legs does {a:x} have",)},
        "{a_key} has {value} legs.", lambda key, value: about(key)[:1],
    ),
    _fact(
        "opposite", facts.OPPOSITE_OF,
        {"thing": ("the opposite of {x}", "a word that means the opposite of {x}"),
         "question": ("which word is the opposite of {x}",)},
        "The opposite of {key} is {value}.",
        lambda key, value: (f"The opposite of {value} is {key}.",) if value in facts.OPPOSITE_OF else (),
    ),
    _fact(
        "category", facts.CATEGORY_OF,
        {"thing": ("the group that {a:x} belongs to",), "question": _QUESTION_OF_CATEGORY},
        "{a_key} is {a_value}.",
        lambda key, value: (f"{article(another(value, key)).capitalize()} is {article(value)} too.",),
    ),
    _fact(
        "use", facts.USE_OF,
        {"thing": ("the use of {a:x}", "what {a:x} is used for"), "question": ("what is {a:x} for",)},
        "{a_key} is for {value}.", lambda key, value: (f"You can use {article(key)} for {value}.",),
    ),
    _fact(
        "job", facts.JOB_OF,
        {"thing": ("the person who {x}", "the name of the person who {x}"), "question": ("who {x}",)},
        "{a_value} {key}.", lambda key, value: (f"That is the work of {article(value)}.",), pattern=ANY,
    ),
    _fact(
        "plural", facts.PLURAL_OF,
        {"thing": ("the plural of {x}", "the word for two or more of {a:x}"),
         "question": ("what is the plural of {x}",)},
        "The plural of {key} is {value}.", lambda key, value: (f"You say one {key} and two {value}.",),
    ),
    _fact(
        "past", facts.PAST_OF,
        {"thing": ("the past tense of {x}", "the past form of {x}"), "question": ("what is the past tense of {x}",)},
        "The past tense of {key} is {value}.", lambda key, value: (f"Today I {key}, and the day before I {value}.",),
    ),
    _sequence("day_after", _day(1), "after", "A week has seven days."),
    _sequence("day_before", _day(-1), "before", "A week has seven days."),
    _sequence("month_after", _month(1), "after", "A year has twelve months."),
    _sequence("month_before", _month(-1), "before", "A year has twelve months."),
)  # fmt: skip


def _draw_yes_no(rng: random.Random) -> dict[str, str]:
    noun = rng.choice(sorted(facts.CATEGORY_OF))
    right = rng.random() < 0.5
    other = rng.choice([k for k in facts.CATEGORIES if k != facts.CATEGORY_OF[noun]])
    return {"x": noun, "y": facts.CATEGORY_OF[noun] if right else other}


def _solve_yes_no(args: Mapping[str, str]) -> Solution | None:
    x, y = args["x"], args["y"]
    if x not in facts.CATEGORY_OF or y not in facts.CATEGORIES:
        return None
    kind = facts.CATEGORY_OF[x]
    if kind == y:
        return Solution(
            "yes",
            f"Yes, {article(x)} is {article(y)}.",
            (f"{article(another(y, x)).capitalize()} is {article(y)} too.",),
        )
    return Solution(
        "no",
        f"No, {article(x)} is not {article(y)}.",
        (f"{article(x).capitalize()} is {article(kind)}.",),
    )


def _draw_classify(rng: random.Random) -> dict[str, str]:
    a, b = rng.sample(sorted(facts.CATEGORIES), 2)
    return {"x": rng.choice(facts.CATEGORIES[rng.choice((a, b))]), "a": a, "b": b}


def _solve_classify(args: Mapping[str, str]) -> Solution | None:
    x, kind = args["x"], facts.CATEGORY_OF.get(args["x"])
    if kind is None or kind not in (args["a"], args["b"]) or args["a"] == args["b"]:
        return None
    return Solution(
        kind,
        f"{article(x).capitalize()} is {article(kind)}.",
        (f"It is not {article(args['a'] if kind == args['b'] else args['b'])}.",),
    )


def _draw_bigger(rng: random.Random) -> dict[str, str]:
    i, j = rng.sample(range(len(facts.SIZE_ORDER)), 2)
    return {"x": facts.SIZE_ORDER[i], "y": facts.SIZE_ORDER[j]}


def _solve_bigger(args: Mapping[str, str]) -> Solution | None:
    if args["x"] == args["y"] or not {args["x"], args["y"]} <= set(facts.SIZE_ORDER):
        return None
    small, big = sorted((args["x"], args["y"]), key=facts.SIZE_ORDER.index)
    return Solution(
        big,
        f"{article(big).capitalize()} is bigger than {article(small)}.",
        (f"{article(small).capitalize()} is smaller than {article(big)}.",),
    )


RELATIONS: tuple[Family, ...] = (
    Family("is_a", {"question": ("is {a:x} {a:y}",)}, {"x": WORD, "y": WORD}, _draw_yes_no, _solve_yes_no,
           fact=("category", "x")),
    Family(
        "classify",
        {"deed": ("say whether this is {a:a} or {a:b}", "sort this word into {a} or {b}"),
         "question": ("is this {a:a} or {a:b}",)},
        {"x": WORD, "a": WORD, "b": WORD}, _draw_classify, _solve_classify, input="{x}",
        fact=("category", "x"), symmetric=("a", "b"),
    ),
    Family(
        "bigger_animal",
        {"thing": ("the bigger animal, {a:x} or {a:y}",), "question": ("which animal is bigger, {a:x} or {a:y}",)},
        {"x": WORD, "y": WORD}, _draw_bigger, _solve_bigger, symmetric=("x", "y"),
    ),
)  # fmt: skip
