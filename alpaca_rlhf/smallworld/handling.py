"""Families of tasks that handle what they are given, or write a little freely.

Numbers, lists, sentences to rewrite or to read, stories and notes.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence

from alpaca_rlhf.smallworld import facts
from alpaca_rlhf.smallworld.facts import article
from alpaca_rlhf.smallworld.families import NUMBER, WORD, Family, Solution

NOUNS = sorted(
    n
    for kind in ("animal", "fruit", "vegetable", "tool", "garment", "vehicle", "toy")
    for n in facts.CATEGORIES[kind]
)
CHILD = "|".join(name.lower() for name in facts.CHILDREN)
ORDINAL = ("first", "second", "third", "fourth")


def _numbers(low: int, high: int) -> Callable[[random.Random], dict[str, str]]:
    def draw(rng: random.Random) -> dict[str, str]:
        x, y = rng.randint(low, high), rng.randint(low, high)
        while x == y:
            y = rng.randint(low, high)
        return {"x": str(x), "y": str(y)}

    return draw


def _arithmetic(sign: str) -> Callable[[Mapping[str, str]], Solution | None]:
    def solve(args: Mapping[str, str]) -> Solution | None:
        x, y = int(args["x"]), int(args["y"])
        if sign == "plus":
            if max(x, y) > 20:
                return None
            return Solution(
                str(x + y), f"{x} plus {y} is {x + y}.", (f"{y} plus {x} is {x + y} too.",)
            )
        if not 0 <= y <= x <= 20:
            return None
        return Solution(str(x - y), f"{x} minus {y} is {x - y}.", (f"{x - y} plus {y} is {x}.",))

    return solve


def _draw_minus(rng: random.Random) -> dict[str, str]:
    x = rng.randint(1, 15)
    return {"x": str(x), "y": str(rng.randint(1, x))}


def _compare(bigger: bool) -> Callable[[Mapping[str, str]], Solution | None]:
    word, other = ("bigger", "smaller") if bigger else ("smaller", "bigger")

    def solve(args: Mapping[str, str]) -> Solution | None:
        x, y = int(args["x"]), int(args["y"])
        if x == y or max(x, y) > 99:
            return None
        best, rest = (max(x, y), min(x, y)) if bigger else (min(x, y), max(x, y))
        return Solution(
            str(best), f"{best} is {word} than {rest}.", (f"{rest} is {other} than {best}.",)
        )

    return solve


def _solve_is_bigger(args: Mapping[str, str]) -> Solution | None:
    x, y = int(args["x"]), int(args["y"])
    if x == y or max(x, y) > 99:
        return None
    if x > y:
        return Solution("yes", f"Yes, {x} is bigger than {y}.", (f"{y} is smaller than {x}.",))
    return Solution("no", f"No, {x} is not bigger than {y}.", (f"{y} is bigger than {x}.",))


def _solve_next(args: Mapping[str, str]) -> Solution | None:
    x = int(args["x"])
    if x > 98:
        return None
    return Solution(str(x + 1), f"{x + 1} comes after {x}.", (f"{x} comes before {x + 1}.",))


# --- lists ------------------------------------------------------------------------------------------------------------


def _list_family(
    name: str,
    cores: Mapping[str, tuple[str, ...]],
    solve: Callable[[list[str]], Solution | None],
    *,
    size: int,
    draw: Callable[[random.Random], Sequence[str]] | None = None,
    pattern: str = WORD,
) -> Family:
    slots = [f"w{i}" for i in range(size)]

    def drawn(rng: random.Random) -> dict[str, str]:
        words = draw(rng) if draw else rng.sample(NOUNS, size)
        return dict(zip(slots, words, strict=True))

    def solved(args: Mapping[str, str]) -> Solution | None:
        words = [args[s] for s in slots]
        known = (
            set(NOUNS)
            | set(facts.COLOURS)
            | {n for names in facts.CATEGORIES.values() for n in names}
        )
        if pattern == WORD and not set(words) <= known:
            return None
        return solve(words) if len(set(words)) == size else None

    return Family(
        name,
        cores,
        dict.fromkeys(slots, pattern),
        drawn,
        solved,
        input=", ".join(f"{{{s}}}" for s in slots),
    )


def _join(words: Sequence[str]) -> str:
    return ", ".join(words)


def _and(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _item(index: int) -> Callable[[list[str]], Solution | None]:
    word = "last" if index < 0 else ORDINAL[index]

    def solve(words: list[str]) -> Solution | None:
        opposite = ("first", words[0]) if index != 0 else ("last", words[-1])
        return Solution(
            words[index],
            f"The {word} word is {words[index]}.",
            (f"The {opposite[0]} word is {opposite[1]}.",),
        )

    return solve


def _solve_count(words: list[str]) -> Solution | None:
    n = facts.NUMBER_WORDS[len(words)]
    return Solution(
        n,
        f"There are {n} words.",
        (f"The first word is {words[0]}.", f"The last word is {words[-1]}."),
        (str(len(words)),),
    )


def _told(kind: str) -> list[str]:
    """Members of a category that may be named in tasks."""
    return [n for n in facts.CATEGORIES[kind] if not facts.held_out("category", n)]


def _draw_odd(rng: random.Random) -> list[str]:
    a, b = rng.sample(sorted(facts.CATEGORIES), 2)
    words = [*rng.sample(_told(a), 2), rng.choice(_told(b))]
    rng.shuffle(words)
    return words


def _solve_odd(words: list[str]) -> Solution | None:
    kinds = [facts.CATEGORY_OF.get(w, "") for w in words]
    odd = [w for w, k in zip(words, kinds, strict=True) if kinds.count(k) == 1]
    if len(odd) != 1 or "" in kinds or any(facts.held_out("category", w) for w in words):
        return None
    kind = facts.CATEGORY_OF[odd[0]]
    return Solution(
        odd[0],
        f"{odd[0].capitalize()} does not belong.",
        (f"{article(odd[0]).capitalize()} is {article(kind)}.",),
    )


def _solve_sorted_words(words: list[str]) -> Solution | None:
    if len({w[0] for w in words}) < len(words):
        return None
    right = sorted(words)
    return Solution(
        _join(right),
        f"In order, the words are {_and(right)}.",
        (f"The first word is {right[0]}.",),
        (_and(right),),
    )


def _draw_sortable(rng: random.Random) -> list[str]:
    while True:
        words = rng.sample(NOUNS, 3)
        if len({w[0] for w in words}) == 3:
            return words


def _solve_sorted_numbers(words: list[str]) -> Solution | None:
    right = sorted(words, key=int)
    return Solution(
        _join(right),
        f"In order, the numbers are {_and(right)}.",
        (f"The smallest number is {right[0]}.", f"The biggest number is {right[-1]}."),
        (_and(right),),
    )


def _solve_reversed(words: list[str]) -> Solution | None:
    right = words[::-1]
    return Solution(
        _join(right),
        f"Backwards, the words are {_and(right)}.",
        (f"The last word is now {words[0]}.",),
        (_and(right),),
    )


def _solve_joined(words: list[str]) -> Solution | None:
    return Solution(
        _and(words),
        f"The words together are {_and(words)}.",
        (f"There are {facts.NUMBER_WORDS[len(words)]} words.",),
    )


# --- repeating, rewriting, reading ------------------------------------------------------------------------------------


def _draw_repeat(rng: random.Random) -> dict[str, str]:
    return {"x": rng.choice(NOUNS), "n": rng.choice(facts.NUMBER_WORDS[2:5])}


def _solve_repeat(args: Mapping[str, str]) -> Solution | None:
    if args["n"] not in facts.NUMBER_WORDS[2:7] or args["x"] not in NOUNS:
        return None
    n = facts.NUMBER_WORDS.index(args["n"])
    words = " ".join([args["x"]] * n)
    return Solution(words, f"Here you are: {words}.", (f"I wrote it {args['n']} times.",))


VERBS = tuple(
    v for v in ("walk", "run", "go", "come", "swim", "fly", "jump") if not facts.held_out("past", v)
)


def _third(verb: str) -> str:
    return {"go": "goes", "fly": "flies"}.get(verb, verb + "s")


def _draw_rewrite(rng: random.Random) -> dict[str, str]:
    return {
        "c": rng.choice(facts.CHILDREN),
        "v": _third(rng.choice(VERBS)),
        "p": rng.choice(facts.PLACES),
    }


def _solve_rewrite(args: Mapping[str, str]) -> Solution | None:
    verb = next((v for v in VERBS if _third(v) == args["v"]), None)
    if (
        verb is None
        or args["p"] not in facts.PLACES
        or args["c"].capitalize() not in facts.CHILDREN
    ):
        return None
    past = f"{args['c'].capitalize()} {facts.PAST_OF[verb]} to the {args['p']}."
    return Solution(past, past, (f"The past tense of {verb} is {facts.PAST_OF[verb]}.",))


THINGS = sorted(facts.CATEGORIES["toy"] + facts.CATEGORIES["garment"])


def _draw_read(rng: random.Random) -> dict[str, str]:
    c, d = rng.sample(facts.CHILDREN, 2)
    x, y = rng.sample(THINGS, 2)
    h, i = rng.sample(facts.COLOURS, 2)
    return {"c": c, "d": d, "x": x, "y": y, "h": h, "i": i, "q": rng.choice((c, d))}


def _text_args(args: Mapping[str, str]) -> dict[str, tuple[str, str]] | None:
    c, d = args["c"].capitalize(), args["d"].capitalize()
    known = {c, d} <= set(facts.CHILDREN) and {args["x"], args["y"]} <= set(THINGS)
    if (
        not known
        or c == d
        or args["x"] == args["y"]
        or not {args["h"], args["i"]} <= set(facts.COLOURS)
    ):
        return None
    return {c: (args["h"], args["x"]), d: (args["i"], args["y"])}


def _solve_what(args: Mapping[str, str]) -> Solution | None:
    owners = _text_args(args)
    who = args["q"].capitalize()
    if owners is None or who not in owners:
        return None
    colour, thing = owners[who]
    answer = article(f"{colour} {thing}")
    return Solution(
        answer,
        f"{who} has {answer}.",
        (f"The {thing} is {colour}.",),
        (f"{colour} {thing}", article(thing), thing),
    )


def _solve_who(args: Mapping[str, str]) -> Solution | None:
    owners = _text_args(args)
    if owners is None or args["q"] not in (args["x"], args["y"]):
        return None
    who = next(c for c, (_, thing) in owners.items() if thing == args["q"])
    colour = owners[who][0]
    return Solution(who, f"{who} has the {args['q']}.", (f"The {args['q']} is {colour}.",))


def _draw_who(rng: random.Random) -> dict[str, str]:
    args = _draw_read(rng)
    return args | {"q": rng.choice((args["x"], args["y"]))}


_TEXT = "{c} has {a:h} {x}. {d} has {a:i} {y}."
_TEXT_SLOTS = {"c": CHILD, "d": CHILD, "x": WORD, "y": WORD, "h": WORD, "i": WORD, "q": WORD}


# --- free writing -----------------------------------------------------------------------------------------------------


def _solve_list(args: Mapping[str, str]) -> Solution | None:
    kind = next((k for k in facts.CATEGORIES if facts_plural(k) == args["k"]), None)
    if kind is None or args["n"] not in facts.NUMBER_WORDS[2:5]:
        return None
    n, members = facts.NUMBER_WORDS.index(args["n"]), facts.CATEGORIES[kind]

    def grade(text: str) -> float:
        said = re.sub(r"^.*? are ", "", text.lower()).strip(" .")
        words = [
            re.sub(r"^(and |an? |the )+", "", w.strip())
            for w in re.split(r",| and ", said)
            if w.strip()
        ]
        good = {w for w in words if w in members}
        wrong = len(words) - len(good)
        return max(0.0, min(1.0, (len(good) - wrong) / n)) if len(good) <= n else 0.5

    told = _told(kind)
    shown = told[:n]
    extra = f"{article(told[-1]).capitalize()} is {article(kind)} too."
    return Solution(
        _join(shown),
        f"{args['n'].capitalize()} {args['k']} are {_and(shown)}.",
        (extra,),
        grade=grade,
    )


def facts_plural(kind: str) -> str:
    """The plural of a category's name."""
    return kind + "s"


def _draw_list(rng: random.Random) -> dict[str, str]:
    return {
        "k": facts_plural(rng.choice(sorted(facts.CATEGORIES))),
        "n": rng.choice(facts.NUMBER_WORDS[2:5]),
    }


def _known_word(word: str) -> bool:
    return word in KNOWN


KNOWN = (
    frozenset(
        "the a an to and was has had saw it they in on near with of her his he she very at for is then one day day found big small "
        "happy sad new old liked likes took played plays went home park garden school forest beach farm market river gave "
        "friend day it's you i am so sorry that we can will come please thank thanks dear much lovely kind me my your lost "
        "broke red blue green yellow orange purple brown black white grey pink nice good every".split()
    )
    | {n for names in facts.CATEGORIES.values() for n in names}
    | {c.lower() for c in facts.CHILDREN}
)


def _grade_story(child: str, thing: str) -> Callable[[str], float]:
    def grade(text: str) -> float:
        low = text.lower()
        words = re.findall(r"[a-z']+", low)
        sentences = [s for s in re.split(r"[.!?]\s*", text) if s.strip()]
        others = {c.lower() for c in facts.CHILDREN} - {child.lower()}
        named = 0.4 * (child.lower() in words) + 0.4 * (thing in words)
        long = 0.2 * (len(words) >= 6 and 1 <= len(sentences) <= 4)
        wrong = 0.4 * bool(others & set(words[:3])) + 0.5 * (
            sum(w not in KNOWN for w in words) > 0.35 * len(words)
        )
        if (
            len(words) < 5
            or len(set(words)) < 0.6 * len(words)
            or {"story", "tell", "write"} & set(words)
        ):
            return 0.0  # too little, a babble, or the task said back
        return max(0.0, named + long - wrong)

    return grade


def _solve_story(args: Mapping[str, str]) -> Solution | None:
    child, thing = args["c"].capitalize(), args["x"]
    if child not in facts.CHILDREN or thing not in NOUNS:
        return None
    pick = random.Random(f"{child}/{thing}")
    place, colour = pick.choice(facts.PLACES), pick.choice(facts.COLOURS)
    first = f"{child} saw {article(thing)} near the {place}."
    return Solution(
        first,
        f"{first} It was {colour}, and {child} liked it.",
        (f"Then {child} went home.", f"{child} was very happy.", f"They played near the {place}."),
        grade=_grade_story(child, thing),
    )


def _solve_note(kind: str) -> Callable[[Mapping[str, str]], Solution | None]:
    def solve(args: Mapping[str, str]) -> Solution | None:
        child, thing = args["c"].capitalize(), args["x"]
        if child not in facts.CHILDREN or thing not in THINGS:
            return None
        text = (
            f"Dear {child}, thank you for the {thing}."
            if kind == "thank"
            else f"Dear {child}, I am sorry that I lost the {thing}."
        )
        short = (
            f"Thank you for the {thing}, {child}."
            if kind == "thank"
            else f"Sorry for the {thing}, {child}."
        )
        need = "thank you for|thanks for" if kind == "thank" else "i am sorry|^sorry"

        def grade(said: str) -> float:
            words = re.findall(r"[a-z]+", said.lower())
            others = {c.lower() for c in facts.CHILDREN} - {child.lower()}
            good = (
                (child.lower() in words)
                + (thing in words)
                + (re.search(need, said.lower()) is not None)
            )
            bad = bool(others & set(words)) + bool((set(THINGS) - {thing}) & set(words))
            if (
                len(words) < 4
                or len(set(words)) < 0.6 * len(words)
                or {"note", "write", "say"} & set(words)
            ):
                return 0.0
            return max(0.0, (good - bad) / 3)

        return Solution(
            short,
            text,
            ("It was very nice.",) if kind == "thank" else ("I will find it.",),
            grade=grade,
        )

    return solve


def _draw_child_thing(rng: random.Random) -> dict[str, str]:
    return {"c": rng.choice(facts.CHILDREN), "x": rng.choice(THINGS)}


def _draw_story(rng: random.Random) -> dict[str, str]:
    return {"c": rng.choice(facts.CHILDREN), "x": rng.choice(NOUNS)}


def _three_numbers(rng: random.Random) -> list[str]:
    return [str(n) for n in rng.sample(range(1, 21), 3)]


_PAIR = {"x": NUMBER, "y": NUMBER}
NUMBERS: tuple[Family, ...] = (
    Family(
        "add",
        {"thing": ("{x} plus {y}", "the sum of {x} and {y}"), "deed": ("add {x} and {y}",)},
        _PAIR,
        _numbers(0, 12),
        _arithmetic("plus"),
        symmetric=("x", "y"),
    ),
    Family(
        "subtract",
        {"thing": ("{x} minus {y}",), "deed": ("take {y} from {x}", "subtract {y} from {x}")},
        _PAIR,
        _draw_minus,
        _arithmetic("minus"),
    ),
    Family(
        "bigger",
        {
            "thing": ("the bigger number, {x} or {y}",),
            "question": ("which number is bigger, {x} or {y}",),
        },
        _PAIR,
        _numbers(1, 40),
        _compare(True),
        symmetric=("x", "y"),
    ),
    Family(
        "smaller",
        {
            "thing": ("the smaller number, {x} or {y}",),
            "question": ("which number is smaller, {x} or {y}",),
        },
        _PAIR,
        _numbers(1, 40),
        _compare(False),
        symmetric=("x", "y"),
    ),
    Family(
        "is_bigger",
        {"question": ("is {x} bigger than {y}", "is the number {x} bigger than {y}")},
        _PAIR,
        _numbers(1, 40),
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
LISTS: tuple[Family, ...] = (
    _list_family(
        "first_word",
        {"thing": ("the first word of this list", "the word that comes first in the list")},
        _item(0),
        size=3,
    ),
    _list_family(
        "second_word",
        {"thing": ("the second word of this list", "the word that comes second in the list")},
        _item(1),
        size=3,
    ),
    _list_family(
        "last_word",
        {"thing": ("the last word of this list", "the word that comes last in the list")},
        _item(-1),
        size=3,
    ),
    _list_family(
        "count_two",
        {"thing": ("the number of words in this list",), "deed": ("count the words in the list",)},
        _solve_count,
        size=2,
    ),
    _list_family(
        "count_three",
        {"thing": ("the number of words in this list",), "deed": ("count the words in the list",)},
        _solve_count,
        size=3,
    ),
    _list_family(
        "count_four",
        {"thing": ("the number of words in this list",), "deed": ("count the words in the list",)},
        _solve_count,
        size=4,
    ),
    _list_family(
        "odd_one_out",
        {
            "thing": ("the word that does not belong",),
            "deed": ("find the odd one out", "find the word that does not belong"),
        },
        _solve_odd,
        size=3,
        draw=_draw_odd,
    ),
    _list_family(
        "sort_words",
        {
            "deed": (
                "sort the words by the alphabet",
                "put these words in the order of the alphabet",
            )
        },
        _solve_sorted_words,
        size=3,
        draw=_draw_sortable,
    ),
    _list_family(
        "sort_numbers",
        {"deed": ("sort the numbers from small to big", "put these numbers in order")},
        _solve_sorted_numbers,
        size=3,
        draw=_three_numbers,
        pattern=NUMBER,
    ),
    _list_family(
        "reverse",
        {"deed": ("write the list backwards", "turn the list around")},
        _solve_reversed,
        size=3,
    ),
    _list_family(
        "join",
        {"deed": ("join the words with and", "put and before the last word")},
        _solve_joined,
        size=3,
    ),
)
TEXTS: tuple[Family, ...] = (
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
        _draw_rewrite,
        _solve_rewrite,
        input="{c} {v} to the {p}.",
    ),
    Family(
        "read_what",
        {"question": ("what does {q} have", "which thing does {q} have")},
        _TEXT_SLOTS,
        _draw_read,
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
        _draw_child_thing,
        _solve_note("thank"),
        free=True,
    ),
    Family(
        "sorry",
        {"deed": ("say sorry to {c} for the lost {x}", "write a note to {c} about the lost {x}")},
        {"c": CHILD, "x": WORD},
        _draw_child_thing,
        _solve_note("sorry"),
        free=True,
    ),
)
