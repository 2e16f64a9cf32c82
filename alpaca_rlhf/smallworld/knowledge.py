"""Families of tasks that ask for a fact of the world."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from alpaca_rlhf.smallworld import facts
from alpaca_rlhf.smallworld.facts import article
from alpaca_rlhf.smallworld.families import WORD, Family, Solution

_WORDS = r"[a-z ]+?"


def other_member(kind: str, noun: str) -> str:
    """Return a member of a category other than `noun` whose category is not held out."""
    return next(name for name in reversed(facts.known_members(kind)) if name != noun)


def _about(noun: str, _: str = "") -> tuple[str, ...]:
    """List true sentences about a noun, none of them held out."""
    sentences = []
    if noun in facts.CATEGORY_OF and not facts.held_out("category", noun):
        sentences.append(f"{article(noun).capitalize()} is {article(facts.CATEGORY_OF[noun])}.")
    if noun in facts.LEGS_OF and not facts.held_out("legs", noun):
        sentences.append(f"{article(noun).capitalize()} has {facts.LEGS_OF[noun]} legs.")
    return tuple(sentences)


def _fact(
    name: str,
    table: Mapping[str, str],
    sentence: str,
    thing_cores: tuple[str, ...],
    question_cores: tuple[str, ...],
    extras: Callable[[str, str], tuple[str, ...]] = _about,
    *,
    pattern: str = WORD,
) -> Family:
    """Make a family that looks `{x}` up in a table.

    Args:
        name: Name of the family, and the kind of fact.
        table: Key to answer.
        sentence: The answer as a sentence, with `{key}`, `{value}`, `{a_key}` and `{a_value}`.
        thing_cores: Cores in the mood `thing`.
        question_cores: Cores in the mood `question`.
        extras: Key and value to true, helpful sentences.
        pattern: Regular expression of the keys.
    """
    names = sorted(table)

    def solve(args: Mapping[str, str]) -> Solution | None:
        key = args["x"]
        if key not in table:
            return None
        value = table[key]
        text = sentence.format(key=key, value=value, a_key=article(key), a_value=article(value))
        return Solution(value, text[0].upper() + text[1:], extras(key, value))

    return Family(
        name,
        {"thing": thing_cores, "question": question_cores},
        {"x": pattern},
        lambda rng: {"x": rng.choice(names)},
        solve,
        fact=(name, "x"),
    )


def _sequence(names: tuple[str, ...], step: int, extra: str) -> Family:
    """Make a family that asks what comes after a name (step 1) or before it (step -1)."""
    kind, where = "day" if len(names) == 7 else "month", "after" if step > 0 else "before"
    table = {name: names[(i + step) % len(names)] for i, name in enumerate(names)}
    keys = sorted(table)

    def solve(args: Mapping[str, str]) -> Solution | None:
        asked_name = args["x"].capitalize()
        if asked_name not in table:
            return None
        return Solution(
            table[asked_name], f"{table[asked_name]} comes {where} {asked_name}.", (extra,)
        )

    return Family(
        f"{kind}_{where}",
        {
            "thing": (f"the {kind} that comes {where} {{x}}", f"the {kind} {where} {{x}}"),
            "question": (f"which {kind} comes {where} {{x}}",),
        },
        {"x": WORD},
        lambda rng: {"x": rng.choice(keys)},
        solve,
    )


KNOWLEDGE: tuple[Family, ...] = (
    _fact(
        "colour",
        facts.COLOUR_OF,
        "{a_key} is {value}.",
        ("the colour of {a:x}",),
        ("what colour is {a:x}", "which colour is {a:x}"),
    ),
    _fact(
        "sound",
        facts.SOUND_OF,
        "{a_key} says {value}.",
        ("the sound of {a:x}", "the sound that {a:x} makes"),
        ("what does {a:x} say",),
    ),
    _fact(
        "home",
        facts.HOME_OF,
        "{a_key} lives in {a_value}.",
        ("the home of {a:x}", "the place where {a:x} lives"),
        ("where does {a:x} live",),
    ),
    _fact(
        "young",
        facts.YOUNG_OF,
        "A young {key} is called {a_value}.",
        ("the name of a young {x}", "the word for a young {x}"),
        ("what is a young {x} called",),
    ),
    _fact(
        "food",
        facts.FOOD_OF,
        "{a_key} eats {value}.",
        ("the food of {a:x}", "what {a:x} eats"),
        ("what does {a:x} eat",),
    ),
    _fact(
        "legs",
        facts.LEGS_OF,
        "{a_key} has {value} legs.",
        ("the number of legs of {a:x}", "how many legs {a:x} has"),
        ("how many legs does {a:x} have",),
        lambda key, value: _about(key)[:1],
    ),
    _fact(
        "opposite",
        facts.OPPOSITE_OF,
        "The opposite of {key} is {value}.",
        ("the opposite of {x}", "a word that means the opposite of {x}"),
        ("which word is the opposite of {x}",),
        lambda key, value: (f"The opposite of {value} is {key}.",),
    ),
    _fact(
        "category",
        facts.CATEGORY_OF,
        "{a_key} is {a_value}.",
        ("the group that {a:x} belongs to",),
        ("what kind of thing is {a:x}", "which group does {a:x} belong to"),
        lambda key, value: (
            f"{article(other_member(value, key)).capitalize()} is {article(value)} too.",
        ),
    ),
    _fact(
        "use",
        facts.USE_OF,
        "{a_key} is for {value}.",
        ("the use of {a:x}", "what {a:x} is used for"),
        ("what is {a:x} for",),
        lambda key, value: (f"You can use {article(key)} for {value}.",),
    ),
    _fact(
        "job",
        facts.JOB_OF,
        "{a_value} {key}.",
        ("the person who {x}", "the name of the person who {x}"),
        ("who {x}",),
        lambda key, value: (f"That is the work of {article(value)}.",),
        pattern=_WORDS,
    ),
    _fact(
        "plural",
        facts.PLURAL_OF,
        "The plural of {key} is {value}.",
        ("the plural of {x}", "the word for two or more of {a:x}"),
        ("what is the plural of {x}",),
        lambda key, value: (f"You say one {key} and two {value}.",),
    ),
    _fact(
        "past",
        facts.PAST_OF,
        "The past tense of {key} is {value}.",
        ("the past tense of {x}", "the past form of {x}"),
        ("what is the past tense of {x}",),
        lambda key, value: (f"Today I {key}, and the day before I {value}.",),
    ),
    _sequence(facts.DAYS, 1, "A week has seven days."),
    _sequence(facts.DAYS, -1, "A week has seven days."),
    _sequence(facts.MONTHS, 1, "A year has twelve months."),
    _sequence(facts.MONTHS, -1, "A year has twelve months."),
)
"""Tasks that ask for a fact."""
