"""Families of tasks about numbers: sums, differences, which is bigger, which comes next."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from alpaca_rlhf.smallworld.families import NUMBER, Family, Solution

_PAIR = {"x": NUMBER, "y": NUMBER}


def _two_numbers(low: int, high: int) -> Callable[[random.Random], dict[str, str]]:
    """Make a draw of two different numbers."""

    def draw(rng: random.Random) -> dict[str, str]:
        x, y = rng.randint(low, high), rng.randint(low, high)
        while x == y:
            y = rng.randint(low, high)
        return {"x": str(x), "y": str(y)}

    return draw


def _draw_minus(rng: random.Random) -> dict[str, str]:
    x = rng.randint(1, 15)
    return {"x": str(x), "y": str(rng.randint(1, x))}


def _solve_add(args: Mapping[str, str]) -> Solution | None:
    x, y = int(args["x"]), int(args["y"])
    if max(x, y) > 20:
        return None
    return Solution(str(x + y), f"{x} plus {y} is {x + y}.", (f"{y} plus {x} is {x + y} too.",))


def _solve_subtract(args: Mapping[str, str]) -> Solution | None:
    x, y = int(args["x"]), int(args["y"])
    if not y <= x <= 20:
        return None
    return Solution(str(x - y), f"{x} minus {y} is {x - y}.", (f"{x - y} plus {y} is {x}.",))


def _ordered_pair(args: Mapping[str, str]) -> tuple[int, int] | None:
    """Return the smaller and the bigger number; None if they are equal or too big."""
    small, big = sorted((int(args["x"]), int(args["y"])))
    return None if small == big or big > 99 else (small, big)


def _solve_bigger(args: Mapping[str, str]) -> Solution | None:
    if (pair := _ordered_pair(args)) is None:
        return None
    small, big = pair
    return Solution(
        str(big), f"{big} is bigger than {small}.", (f"{small} is smaller than {big}.",)
    )


def _solve_smaller(args: Mapping[str, str]) -> Solution | None:
    if (pair := _ordered_pair(args)) is None:
        return None
    small, big = pair
    return Solution(
        str(small), f"{small} is smaller than {big}.", (f"{big} is bigger than {small}.",)
    )


def _solve_is_bigger(args: Mapping[str, str]) -> Solution | None:
    if (pair := _ordered_pair(args)) is None:
        return None
    x, y = int(args["x"]), int(args["y"])
    if (y, x) == pair:
        return Solution("yes", f"Yes, {x} is bigger than {y}.", (f"{y} is smaller than {x}.",))
    return Solution("no", f"No, {x} is not bigger than {y}.", (f"{y} is bigger than {x}.",))


def _solve_next(args: Mapping[str, str]) -> Solution | None:
    x = int(args["x"])
    if x > 98:
        return None
    return Solution(str(x + 1), f"{x + 1} comes after {x}.", (f"{x} comes before {x + 1}.",))


NUMBERS: tuple[Family, ...] = (
    Family(
        "add",
        {"thing": ("{x} plus {y}", "the sum of {x} and {y}"), "deed": ("add {x} and {y}",)},
        _PAIR,
        _two_numbers(0, 12),
        _solve_add,
        symmetric=("x", "y"),
    ),
    Family(
        "subtract",
        {"thing": ("{x} minus {y}",), "deed": ("take {y} from {x}", "subtract {y} from {x}")},
        _PAIR,
        _draw_minus,
        _solve_subtract,
    ),
    Family(
        "bigger",
        {
            "thing": ("the bigger number, {x} or {y}",),
            "question": ("which number is bigger, {x} or {y}",),
        },
        _PAIR,
        _two_numbers(1, 40),
        _solve_bigger,
        symmetric=("x", "y"),
    ),
    Family(
        "smaller",
        {
            "thing": ("the smaller number, {x} or {y}",),
            "question": ("which number is smaller, {x} or {y}",),
        },
        _PAIR,
        _two_numbers(1, 40),
        _solve_smaller,
        symmetric=("x", "y"),
    ),
    Family(
        "is_bigger",
        {"question": ("is {x} bigger than {y}", "is the number {x} bigger than {y}")},
        _PAIR,
        _two_numbers(1, 40),
        _solve_is_bigger,
    ),
    Family(
        "next_number",
        {
            "thing": ("the number after {x}", "the next number after {x}"),
            "question": ("which number comes after {x}",),
        },
        {"x": NUMBER},
        lambda rng: {"x": str(rng.randint(0, 60))},
        _solve_next,
    ),
)
"""Families of tasks about numbers."""
