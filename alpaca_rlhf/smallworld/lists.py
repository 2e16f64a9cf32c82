"""Families of tasks about a short list: its items, its size, its order, the odd one out."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from alpaca_rlhf.smallworld import facts
from alpaca_rlhf.smallworld.facts import article
from alpaca_rlhf.smallworld.families import NUMBER, WORD, Family, Solution

_KNOWN = frozenset((*facts.COLOURS, *facts.CATEGORY_OF))
_ORDINALS = ("first", "second", "third", "fourth")


def commas(nouns: Sequence[str]) -> str:
    """Join nouns with commas."""
    return ", ".join(nouns)


def with_and(nouns: Sequence[str]) -> str:
    """Join nouns with commas, and with `and` before the last."""
    return f"{commas(nouns[:-1])} and {nouns[-1]}"


def _family(
    name: str,
    cores: Mapping[str, tuple[str, ...]],
    solve: Callable[[list[str]], Solution | None],
    *,
    size: int = 3,
    draw: Callable[[random.Random], Sequence[str]] | None = None,
    pattern: str = WORD,
) -> Family:
    """Make a family whose input is a list of `size` different words, by default nouns."""
    slots = [f"w{i}" for i in range(size)]

    def drawn(rng: random.Random) -> dict[str, str]:
        items = draw(rng) if draw else rng.sample(facts.NOUNS, size)
        return dict(zip(slots, items, strict=True))

    def solved(args: Mapping[str, str]) -> Solution | None:
        items = [args[slot] for slot in slots]
        # Numbers are sorted by another pattern; nouns must be known ones.
        if len(set(items)) < size or (pattern == WORD and not set(items) <= _KNOWN):
            return None
        return solve(items)

    return Family(
        name,
        cores,
        dict.fromkeys(slots, pattern),
        drawn,
        solved,
        input=commas([f"{{{slot}}}" for slot in slots]),
    )


def _item_at(index: int) -> Callable[[list[str]], Solution | None]:
    """Make the solver for the item at an index; -1 is the last."""
    place = "last" if index < 0 else _ORDINALS[index]

    def solve(items: list[str]) -> Solution | None:
        extra = f"The first word is {items[0]}." if index else f"The last word is {items[-1]}."
        return Solution(items[index], f"The {place} word is {items[index]}.", (extra,))

    return solve


def _solve_count(items: list[str]) -> Solution | None:
    n = facts.NUMBER_WORDS[len(items)]
    return Solution(
        n,
        f"There are {n} words.",
        (f"The first word is {items[0]}.", f"The last word is {items[-1]}."),
        (str(len(items)),),
    )


def _draw_odd(rng: random.Random) -> list[str]:
    a, b = rng.sample(sorted(facts.CATEGORIES), 2)
    items = [*rng.sample(facts.known_members(a), 2), rng.choice(facts.known_members(b))]
    rng.shuffle(items)
    return items


def _solve_odd(items: list[str]) -> Solution | None:
    if any(item not in facts.CATEGORY_OF or facts.held_out("category", item) for item in items):
        return None
    kinds = [facts.CATEGORY_OF[item] for item in items]
    odd_items = [item for item, kind in zip(items, kinds, strict=True) if kinds.count(kind) == 1]
    if len(odd_items) != 1:
        return None
    return Solution(
        odd_items[0],
        f"{odd_items[0].capitalize()} does not belong.",
        (f"{article(odd_items[0]).capitalize()} is {article(facts.CATEGORY_OF[odd_items[0]])}.",),
    )


def _draw_sortable(rng: random.Random) -> list[str]:
    while True:
        items = rng.sample(facts.NOUNS, 3)
        # Different first letters, so that the order needs no second look.
        if len({item[0] for item in items}) == 3:
            return items


def _solve_sorted_words(items: list[str]) -> Solution | None:
    if len({item[0] for item in items}) < len(items):
        return None
    ordered = sorted(items)
    return Solution(
        commas(ordered),
        f"In order, the words are {with_and(ordered)}.",
        (f"The first word is {ordered[0]}.",),
        (with_and(ordered),),
    )


def _draw_numbers(rng: random.Random) -> list[str]:
    return [str(n) for n in rng.sample(range(1, 21), 3)]


def _solve_sorted_numbers(items: list[str]) -> Solution | None:
    ordered = sorted(items, key=int)
    return Solution(
        commas(ordered),
        f"In order, the numbers are {with_and(ordered)}.",
        (f"The smallest number is {ordered[0]}.", f"The biggest number is {ordered[-1]}."),
        (with_and(ordered),),
    )


def _solve_reversed(items: list[str]) -> Solution | None:
    ordered = items[::-1]
    return Solution(
        commas(ordered),
        f"Backwards, the words are {with_and(ordered)}.",
        (f"The last word is now {items[0]}.",),
        (with_and(ordered),),
    )


def _solve_joined(items: list[str]) -> Solution | None:
    return Solution(
        with_and(items),
        f"The words together are {with_and(items)}.",
        (f"There are {facts.NUMBER_WORDS[len(items)]} words.",),
    )


_COUNT = {"thing": ("the number of words in this list",), "deed": ("count the words in the list",)}

LISTS: tuple[Family, ...] = (
    _family(
        "first_word",
        {"thing": ("the first word of this list", "the word that comes first in the list")},
        _item_at(0),
    ),
    _family(
        "second_word",
        {"thing": ("the second word of this list", "the word that comes second in the list")},
        _item_at(1),
    ),
    _family(
        "last_word",
        {"thing": ("the last word of this list", "the word that comes last in the list")},
        _item_at(-1),
    ),
    _family("count_two", _COUNT, _solve_count, size=2),
    _family("count_three", _COUNT, _solve_count, size=3),
    _family("count_four", _COUNT, _solve_count, size=4),
    _family(
        "odd_one_out",
        {
            "thing": ("the word that does not belong",),
            "deed": ("find the odd one out", "find the word that does not belong"),
        },
        _solve_odd,
        draw=_draw_odd,
    ),
    _family(
        "sort_words",
        {
            "deed": (
                "sort the words by the alphabet",
                "put these words in the order of the alphabet",
            )
        },
        _solve_sorted_words,
        draw=_draw_sortable,
    ),
    _family(
        "sort_numbers",
        {"deed": ("sort the numbers from small to big", "put these numbers in order")},
        _solve_sorted_numbers,
        draw=_draw_numbers,
        pattern=NUMBER,
    ),
    _family(
        "reverse", {"deed": ("write the list backwards", "turn the list around")}, _solve_reversed
    ),
    _family(
        "join", {"deed": ("join the words with and", "put and before the last word")}, _solve_joined
    ),
)
"""Families of tasks about a list."""
