"""Families of tasks about a short list: its items, its size, its order, the odd one out."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from alpaca_rlhf.smallworld import facts
from alpaca_rlhf.smallworld.facts import article
from alpaca_rlhf.smallworld.families import NUMBER, WORD, Family, Solution

_KNOWN = frozenset((*facts.COLOURS, *facts.CATEGORY_OF))
_ORDINALS = ("first", "second", "third", "fourth")


def commas(words: Sequence[str]) -> str:
    """The words with commas between them."""
    return ", ".join(words)


def spoken(words: Sequence[str]) -> str:
    """The words with commas, and an `and` before the last one."""
    return f"{commas(words[:-1])} and {words[-1]}"


def _family(
    name: str,
    cores: Mapping[str, tuple[str, ...]],
    solve: Callable[[list[str]], Solution | None],
    *,
    size: int = 3,
    draw: Callable[[random.Random], Sequence[str]] | None = None,
    pattern: str = WORD,
) -> Family:
    """A family whose input is a list of `size` different words, drawn from the nouns by default."""
    slots = [f"w{i}" for i in range(size)]

    def drawn(rng: random.Random) -> dict[str, str]:
        words = draw(rng) if draw else rng.sample(facts.NOUNS, size)
        return dict(zip(slots, words, strict=True))

    def solved(args: Mapping[str, str]) -> Solution | None:
        words = [args[slot] for slot in slots]
        if len(set(words)) < size or (pattern == WORD and not set(words) <= _KNOWN):
            return None
        return solve(words)

    return Family(
        name,
        cores,
        dict.fromkeys(slots, pattern),
        drawn,
        solved,
        input=commas([f"{{{slot}}}" for slot in slots]),
    )


def _item(index: int) -> Callable[[list[str]], Solution | None]:
    """Solves for the item at a place, -1 being the last."""
    place = "last" if index < 0 else _ORDINALS[index]

    def solve(words: list[str]) -> Solution | None:
        extra = f"The first word is {words[0]}." if index else f"The last word is {words[-1]}."
        return Solution(words[index], f"The {place} word is {words[index]}.", (extra,))

    return solve


def _solve_count(words: list[str]) -> Solution | None:
    n = facts.NUMBER_WORDS[len(words)]
    return Solution(
        n,
        f"There are {n} words.",
        (f"The first word is {words[0]}.", f"The last word is {words[-1]}."),
        (str(len(words)),),
    )


def _draw_odd(rng: random.Random) -> list[str]:
    a, b = rng.sample(sorted(facts.CATEGORIES), 2)
    words = [*rng.sample(facts.told(a), 2), rng.choice(facts.told(b))]
    rng.shuffle(words)
    return words


def _solve_odd(words: list[str]) -> Solution | None:
    if any(w not in facts.CATEGORY_OF or facts.held_out("category", w) for w in words):
        return None
    kinds = [facts.CATEGORY_OF[w] for w in words]
    odd = [w for w, kind in zip(words, kinds, strict=True) if kinds.count(kind) == 1]
    if len(odd) != 1:
        return None
    return Solution(
        odd[0],
        f"{odd[0].capitalize()} does not belong.",
        (f"{article(odd[0]).capitalize()} is {article(facts.CATEGORY_OF[odd[0]])}.",),
    )


def _draw_sortable(rng: random.Random) -> list[str]:
    while True:
        words = rng.sample(facts.NOUNS, 3)
        if len({w[0] for w in words}) == 3:
            return words


def _solve_sorted_words(words: list[str]) -> Solution | None:
    if len({w[0] for w in words}) < len(words):
        return None
    right = sorted(words)
    return Solution(
        commas(right),
        f"In order, the words are {spoken(right)}.",
        (f"The first word is {right[0]}.",),
        (spoken(right),),
    )


def _draw_numbers(rng: random.Random) -> list[str]:
    return [str(n) for n in rng.sample(range(1, 21), 3)]


def _solve_sorted_numbers(words: list[str]) -> Solution | None:
    right = sorted(words, key=int)
    return Solution(
        commas(right),
        f"In order, the numbers are {spoken(right)}.",
        (f"The smallest number is {right[0]}.", f"The biggest number is {right[-1]}."),
        (spoken(right),),
    )


def _solve_reversed(words: list[str]) -> Solution | None:
    right = words[::-1]
    return Solution(
        commas(right),
        f"Backwards, the words are {spoken(right)}.",
        (f"The last word is now {words[0]}.",),
        (spoken(right),),
    )


def _solve_joined(words: list[str]) -> Solution | None:
    return Solution(
        spoken(words),
        f"The words together are {spoken(words)}.",
        (f"There are {facts.NUMBER_WORDS[len(words)]} words.",),
    )


_COUNT = {"thing": ("the number of words in this list",), "deed": ("count the words in the list",)}

LISTS: tuple[Family, ...] = (
    _family(
        "first_word",
        {"thing": ("the first word of this list", "the word that comes first in the list")},
        _item(0),
    ),
    _family(
        "second_word",
        {"thing": ("the second word of this list", "the word that comes second in the list")},
        _item(1),
    ),
    _family(
        "last_word",
        {"thing": ("the last word of this list", "the word that comes last in the list")},
        _item(-1),
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
"""Tasks about a list."""
