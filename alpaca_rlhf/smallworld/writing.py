"""Families of tasks with free answers, which are graded instead of compared.

Lists, stories, and notes of thanks or regret.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping

from alpaca_rlhf.smallworld import facts
from alpaca_rlhf.smallworld.facts import article
from alpaca_rlhf.smallworld.families import CHILD, WORD, Family, Solution
from alpaca_rlhf.smallworld.lists import commas, with_and

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
    n, members = facts.NUMBER_WORDS.index(args["n"]), facts.known_members(kind)
    return Solution(
        commas(members[:n]),
        f"{args['n'].capitalize()} {args['k']} are {with_and(members[:n])}.",
        (f"{article(members[-1]).capitalize()} is {article(kind)} too.",),
        grade=_grade_list(kind, n),
    )


def _grade_list(kind: str, n: int) -> Callable[[str], float]:
    """Make a grade: members named minus wrong nouns, out of `n`; one half if there are too many."""

    def grade(text: str) -> float:
        # The list may stand in a sentence ("Two tools are a saw and an axe.").
        items = re.split(r",| and ", re.sub(r"^.*? are ", "", text.lower()).strip(" ."))
        nouns = [re.sub(r"^(and |an? |the )+", "", item.strip()) for item in items if item.strip()]
        right = {noun for noun in nouns if noun in facts.CATEGORIES[kind]}
        wrong = len(nouns) - len(right)
        return max(0.0, (len(right) - wrong) / n) if len(right) <= n else 0.5

    return grade


def _draw_list(rng: random.Random) -> dict[str, str]:
    kind = rng.choice(sorted(facts.CATEGORIES))
    return {"k": f"{kind}s", "n": rng.choice(facts.NUMBER_WORDS[2:5])}


def _is_babble(text_words: list[str], min_words: int, echo: set[str]) -> bool:
    """True if words are too few, mostly repetitions, or echo the task."""
    return (
        len(text_words) < min_words
        or len(set(text_words)) < 0.6 * len(text_words)
        or not echo.isdisjoint(text_words)
    )


def _draw_story(rng: random.Random) -> dict[str, str]:
    return {"c": rng.choice(facts.CHILDREN), "x": rng.choice(facts.NOUNS)}


def _solve_story(args: Mapping[str, str]) -> Solution | None:
    child, noun = args["c"].capitalize(), args["x"]
    if child not in facts.CHILDREN or noun not in facts.PLURAL_OF:
        return None
    # The story is a function of the task, so that its right answer is always the same.
    pick = random.Random(f"{child}/{noun}")
    place, colour = pick.choice(facts.PLACES), pick.choice(facts.COLOURS)
    first = f"{child} saw {article(noun)} near the {place}."
    return Solution(
        first,
        f"{first} It was {colour}, and {child} liked it.",
        (f"Then {child} went home.", f"{child} was very happy.", f"They played near the {place}."),
        grade=_grade_story(child.lower(), noun),
    )


def _grade_story(child: str, noun: str) -> Callable[[str], float]:
    """Make a grade: names the child and the noun, in a few sentences of the world's words."""

    def grade(text: str) -> float:
        text_words = re.findall(r"[a-z']+", text.lower())
        if _is_babble(text_words, 5, {"story", "tell", "write"}):
            return 0.0
        sentences = [s for s in re.split(r"[.!?]\s*", text) if s.strip()]
        mostly_unknown = sum(w not in _STORY_WORDS for w in text_words) > 0.35 * len(text_words)
        names_other_child = not (_NAMES - {child}).isdisjoint(text_words[:3])
        names_both = 0.4 * (child in text_words) + 0.4 * (noun in text_words)
        full_length = 0.2 * (len(text_words) >= 6 and 1 <= len(sentences) <= 4)
        return max(0.0, names_both + full_length - (0.4 * names_other_child + 0.5 * mostly_unknown))

    return grade


def _draw_note(rng: random.Random) -> dict[str, str]:
    return {"c": rng.choice(facts.CHILDREN), "x": rng.choice(facts.THINGS)}


def _solve_note(
    short: str, long: str, extra: str, need: str
) -> Callable[[Mapping[str, str]], Solution | None]:
    """Make the solver for a note, short or long, to the child `{c}` about the noun `{x}`."""

    def solve(args: Mapping[str, str]) -> Solution | None:
        child, noun = args["c"].capitalize(), args["x"]
        if child not in facts.CHILDREN or noun not in facts.THINGS:
            return None
        return Solution(
            short.format(c=child, x=noun),
            long.format(c=child, x=noun),
            (extra,),
            grade=_grade_note(child.lower(), noun, re.compile(need)),
        )

    return solve


def _grade_note(child: str, noun: str, message: re.Pattern[str]) -> Callable[[str], float]:
    """Make a grade: a third each for child, noun and message; less for another child or noun."""

    def grade(text: str) -> float:
        text_words = re.findall(r"[a-z]+", text.lower())
        if _is_babble(text_words, 4, {"note", "write", "say"}):
            return 0.0
        parts = (
            (child in text_words)
            + (noun in text_words)
            + (message.search(text.lower()) is not None)
        )
        names_other_child = not (_NAMES - {child}).isdisjoint(text_words)
        names_other_noun = not (set(facts.THINGS) - {noun}).isdisjoint(text_words)
        return max(0.0, (parts - names_other_child - names_other_noun) / 3)

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
"""Families of tasks with free answers."""
