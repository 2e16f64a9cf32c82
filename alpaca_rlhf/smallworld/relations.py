"""Families of tasks that compare two nouns, or a noun and a category."""

from __future__ import annotations

import random
from collections.abc import Mapping

from alpaca_rlhf.smallworld import facts
from alpaca_rlhf.smallworld.facts import article
from alpaca_rlhf.smallworld.families import WORD, Family, Solution
from alpaca_rlhf.smallworld.knowledge import other_member


def _draw_is_a(rng: random.Random) -> dict[str, str]:
    noun = rng.choice(sorted(facts.CATEGORY_OF))
    kind = facts.CATEGORY_OF[noun]
    right = rng.random() < 0.5
    wrong_kind = rng.choice([k for k in facts.CATEGORIES if k != kind])
    return {"x": noun, "y": kind if right else wrong_kind}


def _solve_is_a(args: Mapping[str, str]) -> Solution | None:
    noun, asked_kind = args["x"], args["y"]
    if noun not in facts.CATEGORY_OF or asked_kind not in facts.CATEGORIES:
        return None
    kind = facts.CATEGORY_OF[noun]
    if kind == asked_kind:
        extra = f"{article(other_member(kind, noun)).capitalize()} is {article(kind)} too."
        return Solution("yes", f"Yes, {article(noun)} is {article(kind)}.", (extra,))
    extra = f"{article(noun).capitalize()} is {article(kind)}."
    return Solution("no", f"No, {article(noun)} is not {article(asked_kind)}.", (extra,))


def _draw_classify(rng: random.Random) -> dict[str, str]:
    a, b = rng.sample(sorted(facts.CATEGORIES), 2)
    return {"x": rng.choice(facts.CATEGORIES[rng.choice((a, b))]), "a": a, "b": b}


def _solve_classify(args: Mapping[str, str]) -> Solution | None:
    noun, a, b = args["x"], args["a"], args["b"]
    kind = facts.CATEGORY_OF.get(noun)
    if kind is None or kind not in (a, b) or a == b:
        return None
    wrong_kind = a if kind == b else b
    return Solution(
        kind,
        f"{article(noun).capitalize()} is {article(kind)}.",
        (f"It is not {article(wrong_kind)}.",),
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
    Family(
        "is_a",
        {"question": ("is {a:x} {a:y}",)},
        {"x": WORD, "y": WORD},
        _draw_is_a,
        _solve_is_a,
        fact=("category", "x"),
    ),
    Family(
        "classify",
        {
            "deed": ("say whether this is {a:a} or {a:b}", "sort this word into {a} or {b}"),
            "question": ("is this {a:a} or {a:b}",),
        },
        {"x": WORD, "a": WORD, "b": WORD},
        _draw_classify,
        _solve_classify,
        input="{x}",
        fact=("category", "x"),
        symmetric=("a", "b"),
    ),
    Family(
        "bigger_animal",
        {
            "thing": ("the bigger animal, {a:x} or {a:y}",),
            "question": ("which animal is bigger, {a:x} or {a:y}",),
        },
        {"x": WORD, "y": WORD},
        _draw_bigger,
        _solve_bigger,
        symmetric=("x", "y"),
    ),
)
"""Families of tasks that compare."""
