"""Families of tasks that are answered freely, and graded instead of compared.

Lists, stories, and notes of thanks or regret.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping

from alpaca_rlhf.smallworld import facts
from alpaca_rlhf.smallworld.facts import article
from alpaca_rlhf.smallworld.families import CHILD, WORD, Family, Solution
from alpaca_rlhf.smallworld.lists import commas, spoken

_KINDS = {f"{kind}s": kind for kind in facts.CATEGORIES}
_NAMES = frozenset(name.lower() for name in facts.CHILDREN)
_STORY_WORDS = frozenset(
    """
    the a an to and was has had saw it they in on near with of her his he she very at for is then
    one day found big small happy sad new old liked likes took played plays went home park garden
    school forest beach farm market river gave friend it's you i am so sorry that we can will come
    please thank thanks dear much lovely kind me my your lost broke red blue green yellow orange
    purple brown black white grey pink nice good every
    """.split()
).union(_NAMES, facts.CATEGORY_OF)


def _solve_list(args: Mapping[str, str]) -> Solution | None:
    kind = _KINDS.get(args["k"])
    if kind is None or args["n"] not in facts.NUMBER_WORDS[2:5]:
        return None
    n, told = facts.NUMBER_WORDS.index(args["n"]), facts.told(kind)
    return Solution(
        commas(told[:n]),
        f"{args['n'].capitalize()} {args['k']} are {spoken(told[:n])}.",
        (f"{article(told[-1]).capitalize()} is {article(kind)} too.",),
        grade=_grade_list(kind, n),
    )


def _grade_list(kind: str, n: int) -> Callable[[str], float]:
    """Members named, less what is none, of the `n` asked for; half for too many."""

    def grade(text: str) -> float:
        items = re.split(r",| and ", re.sub(r"^.*? are ", "", text.lower()).strip(" ."))
        words = [re.sub(r"^(and |an? |the )+", "", item.strip()) for item in items if item.strip()]
        good = {w for w in words if w in facts.CATEGORIES[kind]}
        wrong = len(words) - len(good)
        return max(0.0, (len(good) - wrong) / n) if len(good) <= n else 0.5

    return grade


def _draw_list(rng: random.Random) -> dict[str, str]:
    kind = rng.choice(sorted(facts.CATEGORIES))
    return {"k": f"{kind}s", "n": rng.choice(facts.NUMBER_WORDS[2:5])}


def _is_babble(words: list[str], fewest: int, echo: set[str]) -> bool:
    """Whether words are too few, mostly said again, or the task said back."""
    return len(words) < fewest or len(set(words)) < 0.6 * len(words) or not echo.isdisjoint(words)


def _draw_story(rng: random.Random) -> dict[str, str]:
    return {"c": rng.choice(facts.CHILDREN), "x": rng.choice(facts.NOUNS)}


def _solve_story(args: Mapping[str, str]) -> Solution | None:
    child, thing = args["c"].capitalize(), args["x"]
    if child not in facts.CHILDREN or thing not in facts.PLURAL_OF:
        return None
    pick = random.Random(f"{child}/{thing}")
    place, colour = pick.choice(facts.PLACES), pick.choice(facts.COLOURS)
    first = f"{child} saw {article(thing)} near the {place}."
    return Solution(
        first,
        f"{first} It was {colour}, and {child} liked it.",
        (f"Then {child} went home.", f"{child} was very happy.", f"They played near the {place}."),
        grade=_grade_story(child.lower(), thing),
    )


def _grade_story(child: str, thing: str) -> Callable[[str], float]:
    """Names the child and the thing, in a few sentences of words that the world has."""

    def grade(text: str) -> float:
        words = re.findall(r"[a-z']+", text.lower())
        if _is_babble(words, 5, {"story", "tell", "write"}):
            return 0.0
        sentences = [s for s in re.split(r"[.!?]\s*", text) if s.strip()]
        strange = sum(w not in _STORY_WORDS for w in words) > 0.35 * len(words)
        of_another = not (_NAMES - {child}).isdisjoint(words[:3])
        named = 0.4 * (child in words) + 0.4 * (thing in words)
        long = 0.2 * (len(words) >= 6 and 1 <= len(sentences) <= 4)
        return max(0.0, named + long - (0.4 * of_another + 0.5 * strange))

    return grade


def _draw_note(rng: random.Random) -> dict[str, str]:
    return {"c": rng.choice(facts.CHILDREN), "x": rng.choice(facts.THINGS)}


def _solve_note(
    short: str, long: str, extra: str, need: str
) -> Callable[[Mapping[str, str]], Solution | None]:
    """Solves for a note, short or long, about the thing `{x}` to the child `{c}`."""

    def solve(args: Mapping[str, str]) -> Solution | None:
        child, thing = args["c"].capitalize(), args["x"]
        if child not in facts.CHILDREN or thing not in facts.THINGS:
            return None
        return Solution(
            short.format(c=child, x=thing),
            long.format(c=child, x=thing),
            (extra,),
            grade=_grade_note(child.lower(), thing, re.compile(need)),
        )

    return solve


def _grade_note(child: str, thing: str, need: re.Pattern[str]) -> Callable[[str], float]:
    """A third each for the child, the thing and the thanks or regret; less for another's."""

    def grade(text: str) -> float:
        words = re.findall(r"[a-z]+", text.lower())
        if _is_babble(words, 4, {"note", "write", "say"}):
            return 0.0
        good = (child in words) + (thing in words) + (need.search(text.lower()) is not None)
        another_child = not (_NAMES - {child}).isdisjoint(words)
        another_thing = not (set(facts.THINGS) - {thing}).isdisjoint(words)
        return max(0.0, (good - another_child - another_thing) / 3)

    return grade


WRITING: tuple[Family, ...] = (
    Family(
        "list_members",
        {"thing": ("{n} {k}", "the names of {n} {k}"), "deed": ("make a list of {n} {k}",)},
        {"n": WORD, "k": WORD},
        _draw_list,
        _solve_list,
        free=True,
    ),
    Family(
        "story",
        {
            "thing": ("a short story about {c} and {a:x}",),
            "deed": ("tell a story about {c} and {a:x}", "make up a story about {c} and {a:x}"),
        },
        {"c": CHILD, "x": WORD},
        _draw_story,
        _solve_story,
        free=True,
    ),
    Family(
        "thank",
        {"deed": ("thank {c} for the {x}", "write a note to thank {c} for the {x}")},
        {"c": CHILD, "x": WORD},
        _draw_note,
        _solve_note(
            "Thank you for the {x}, {c}.",
            "Dear {c}, thank you for the {x}.",
            "It was very nice.",
            "thank you for|thanks for",
        ),
        free=True,
    ),
    Family(
        "sorry",
        {"deed": ("say sorry to {c} for the lost {x}", "write a note to {c} about the lost {x}")},
        {"c": CHILD, "x": WORD},
        _draw_note,
        _solve_note(
            "Sorry for the {x}, {c}.",
            "Dear {c}, I am sorry that I lost the {x}.",
            "I will find it.",
            "i am sorry|^sorry",
        ),
        free=True,
    ),
)
"""Tasks that are answered freely."""
