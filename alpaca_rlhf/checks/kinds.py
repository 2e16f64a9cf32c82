"""A kind of constraint: its phrasings, its checker, and what an answer must have to meet it.

A phrasing is a template. `{n}` takes a number in digits or in words, `{below}` and `{above}` the
number that the count must stay below or above, `{word}`, `{other}` and
`{phrase}` take a text in quotation marks, `{words}` takes several of them, `{bare}` one word without
marks at the end of a clause, `{letter}` a letter.
`sentence[s]` is a plural that follows the number. The last phrasing of each language is held out:
no prompt of a training split is written with it. Templates that are only recognised may have
alternatives: `use (any |)commas`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from alpaca_rlhf.checks.text import Answer

Language = Literal["en", "zh"]
Arguments = Mapping[str, str]
"""Slot to its value as text: numbers in digits, several words joined by `|`."""
Draw = Callable[[random.Random, Language], dict[str, str]]
"""Draws arguments for a language."""

NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_CHINESE_NUMBERS = "零一二三四五六七八九十"
_BELOW_100 = (
    rf"(?:{'|'.join(_TENS)})(?:[-\s](?:{'|'.join(NUMBER_WORDS[1:10])}))?"
    rf"|{'|'.join(reversed(NUMBER_WORDS[:20]))}"
)
NUMBER = (
    r"\d{1,3}(?:,\d{3})+|\d{1,6}"
    rf"|(?:a|{'|'.join(NUMBER_WORDS[1:10])})\s+hundred(?:\s+(?:and\s+)?(?:{_BELOW_100}))?"
    rf"|{_BELOW_100}|两|[{_CHINESE_NUMBERS}]"
)
"""Pattern of a number in digits or in words."""
_MARK = '["“”‘’「」『』]'
_QUOTED = f'{_MARK}[^"“”「」『』\\n]{{1,80}}?{_MARK}'
_SEVERAL = rf"{_QUOTED}(?:(?:,?\s+(?:and|or)\s+|,\s*|、|和|或|以及){_QUOTED})*"
_BARE = (
    r"(?!(?:again|once|twice|thrice|often|too|here|there|anywhere|everywhere|either|alone|itself|only"
    r"|correctly|carefully|sparingly|please|limit|count|you|it|that|this)\b)[a-z][a-z'’-]*"
    r"(?=\s*(?:[.,;:!?)\n]|$|(?:and|but|please|anywhere|at\s+all)\b"
    r"|in\s+(?:your|the)\s+(?:answer|response|reply|text)\b))"
)
"""A word that nothing follows in its clause, and that is no adverb of the order itself."""
NEVER = (
    "(do not|don't|do not ever|don't ever|never|never ever|you must not|you must never|you may not"
    "|you should not|you should never|make sure not to|be sure not to|be careful not to"
    "|take care not to|try not to|make sure you do not|make sure you don't|make sure you never)"
)
"""The beginnings of a ban, for templates that are recognised."""
_SLOT = re.compile(r"(\{\w+\}|\[s\]|\"|\s+)")
_TOKEN = re.compile(r"(\{\w+\}|\[s\]|\([^()]*\)|\"|\s+)")
_TEXT_SLOTS = ("word", "other", "phrase")
_NEXT_ALLOWED = {"below": -1, "above": 1}
"""Slot of a bound that is itself not allowed to the distance of the next number that is."""
ANY_LENGTH = (0, 10_000)
"""Bounds that any answer keeps."""


MOST = ANY_LENGTH[1]
"""A bound that no answer reaches."""


def count_of(arguments: Arguments) -> int:
    """The number N of a constraint."""
    return int(arguments["n"])


def draw_count(low: int, high: int, step: int = 1) -> Draw:
    """Draw the number N of a constraint, from `low` to `high`."""
    return lambda rng, language: {"n": str(rng.randrange(low, high + 1, step))}


@dataclass(frozen=True)
class Demands:
    """Properties that an answer must have to meet a constraint, as far as another may clash."""

    words: tuple[int, int] = ANY_LENGTH
    """Fewest and most words."""
    sentences: tuple[int, int] = ANY_LENGTH
    """Fewest and most sentences."""
    roles: frozenset[str] = frozenset()
    """Places of the answer that one constraint alone may rule: `layout`, `start`, `end`,
    `sentences`, `words`, `case` ..."""
    required: tuple[str, ...] = ()
    """Texts that must occur."""
    forbidden: tuple[str, ...] = ()
    """Regular expressions that no required text may match, in either case."""
    required_words: tuple[str, ...] = ()
    """Words that must occur, whatever other marks there are."""
    caseless: bool = True
    """False if meeting it takes capitals and small letters as they are written."""
    repeats_question: bool = False
    """True if the text of the request must stand in the answer."""


Form = Literal["order", "manner", "letters", "ban"]
"""An order (`End with a question`), an adverbial (`in 3 sentences`), one on the letters of the whole
answer (`in lower case`), or a bare ban (`no commas`)."""


@dataclass(frozen=True)
class Phrasing:
    """A template ready to be found in a text."""

    pattern: re.Pattern[str]
    """Its compiled pattern."""
    rarest: str
    """Its longest word in lower case: a text without it need not be searched."""
    held_out: bool
    """True if it is held out from training."""
    form: Form
    """Its place in a sentence."""
    chinese: bool
    """True if it is Chinese."""

    @classmethod
    def of(cls, template: str, *, held_out: bool = False, form: Form = "order") -> Phrasing:
        """Compile a template."""
        literals = [
            part
            for part in re.split(
                r"\{\w+\}|\[s\]|\([^()]*\)|[\s\"“”'’]+", template.rstrip(".。").lower()
            )
            if part
        ]
        rarest = max(literals, key=len, default="")
        return cls(_compiled(template), rarest, held_out, form, not template.isascii())


@dataclass(frozen=True)
class Kind:
    """A kind of constraint on the surface form of an answer."""

    name: str
    """Its name."""
    summary: str
    """A line for people."""
    english: tuple[str, ...]
    """Templates; the last is held out."""
    degree: Callable[[Answer, Arguments], float]
    """The degree in [0, 1] to which an answer meets it; 1 if it does."""
    chinese: tuple[str, ...] = ()
    """Templates in Chinese; the last is held out. None if the kind makes no sense there."""
    also: tuple[str, ...] = ()
    """Orders that are recognised in people's prompts and never written."""
    manner: tuple[str, ...] = ()
    """Adverbials, and bare bans, that are recognised within a sentence and never written."""
    things: str = ""
    """Things that a ban of it names: another ban may go on with that (`no commas or digits`)."""
    letters: bool = False
    """True if it is about the case of every letter."""
    draw: Draw = lambda rng, language: {}
    """Draws arguments, apart from `word`, `other`, `words`, which belong to the subject."""
    demands: Callable[[Arguments], Demands] = lambda arguments: Demands()
    """Properties of any answer that meets it."""
    held_out: bool = False
    """True if no prompt of a training split has this kind."""
    except_genres: frozenset[str] = frozenset()
    """Genres of requests that it would not suit."""
    weight: float = 1.0
    """Weight in the draw of kinds."""

    def templates(self, language: Language) -> tuple[str, ...]:
        """Its templates in a language."""
        return self.english if language == "en" else self.chinese

    @cached_property
    def phrasings(self) -> tuple[Phrasing, ...]:
        """Every template, those that are only recognised included."""
        written = [
            Phrasing.of(template, held_out=template == templates[-1])
            for templates in (self.english, self.chinese)
            for template in templates
        ]
        orders = [Phrasing.of(template) for template in self.also]
        manners = [Phrasing.of(template, form=self._form(template)) for template in self.manner]
        return (*written, *orders, *manners)

    @cached_property
    def continuation(self) -> Phrasing | None:
        """The words with which another ban goes on to it; None if it bans no things."""
        return Phrasing.of(f"(any |no |){self.things}", form="ban") if self.things else None

    def _form(self, manner: str) -> Form:
        if manner.startswith(("no ", "neither ")) and "{n}" not in manner:
            return "ban"
        return "letters" if self.letters else "manner"


@dataclass(frozen=True)
class Constraint:
    """One constraint of a prompt."""

    kind: Kind
    """Its kind."""
    arguments: Mapping[str, str] = field(default_factory=dict)
    """Its arguments."""
    text: str = ""
    """Its words in the prompt."""
    held_out_phrasing: bool = False
    """True if its phrasing is held out from training."""

    @property
    def demands(self) -> Demands:
        """Properties of any answer that meets it."""
        return self.kind.demands(self.arguments)

    def degree(self, answer: Answer) -> float:
        """The degree in [0, 1] to which an answer meets it."""
        if not answer.words:
            return 0.0
        return min(1.0, max(0.0, self.kind.degree(answer, self.arguments)))


def write_template(template: str, arguments: Arguments, *, in_words: bool) -> str:
    """Fill a template.

    Args:
        template: A phrasing.
        arguments: The values of its slots.
        in_words: Write numbers up to ten as words.
    """
    chinese = not template.isascii()

    def filled(match: re.Match[str]) -> str:
        token = match[0]
        if token == "[s]":
            return "" if arguments.get("n") == "1" else "s"
        if not token.startswith("{"):
            return token
        slot = token[1:-1]
        value = arguments.get(slot, "")
        if slot in _NEXT_ALLOWED:
            value = str(int(arguments["n"]) - _NEXT_ALLOWED[slot])
        if slot == "words":
            quoted = [f"“{word}”" if chinese else f'"{word}"' for word in value.split("|")]
            joined = "、".join(quoted[:-1]) if chinese else ", ".join(quoted[:-1])
            last = "和" if chinese else " and "
            return f"{joined}{last}{quoted[-1]}" if joined else quoted[-1]
        if value.isdigit() and in_words and int(value) <= 10:
            if chinese:
                return "两" if value == "2" else _CHINESE_NUMBERS[int(value)]
            return NUMBER_WORDS[int(value)]
        return value

    text = _SLOT.sub(filled, template)
    return text[0].upper() + text[1:]


def read_arguments(match: re.Match[str]) -> dict[str, str]:
    """The values of the slots of a template that a pattern has matched."""
    arguments = {}
    for slot, text in match.groupdict().items():
        if slot == "words":
            marks = '"“”‘’「」『』'
            quoted = re.findall(_QUOTED, text) or [text]
            arguments[slot] = "|".join(part.strip(marks) for part in quoted)
        elif slot in _TEXT_SLOTS or slot == "letter":
            arguments[slot] = " ".join(text.split())
        elif slot in _NEXT_ALLOWED:
            arguments["n"] = str(_number(text) + _NEXT_ALLOWED[slot])
        else:
            arguments[slot] = str(_number(text))
    return arguments


def is_possible(arguments: Arguments) -> bool:
    """True if an answer can have the numbers that arguments ask for: none is 0, bounds in order."""
    numbers = [int(arguments[slot]) for slot in ("n", "m") if slot in arguments]
    return all(number > 0 for number in numbers) and numbers == sorted(numbers)


def _number(text: str) -> int:
    lowered = text.lower().replace(",", "")
    if lowered.isdigit() and lowered.isascii():
        return int(lowered)
    if lowered == "两":
        return 2
    if lowered in _CHINESE_NUMBERS:
        return _CHINESE_NUMBERS.index(lowered)
    total = 0
    for word in re.split(r"[-\s]+", lowered):
        if word == "hundred":
            total *= 100
        elif word in _TENS:
            total += 20 + 10 * _TENS.index(word)
        elif word != "and":
            total += 1 if word == "a" else NUMBER_WORDS.index(word)
    return total


def _compiled(template: str) -> re.Pattern[str]:
    """The pattern of a template, in either case, with any white space and quotation marks."""
    parts = []
    for token in _TOKEN.split(template.rstrip(".。")):
        if not token:
            continue
        if token.isspace():
            parts.append(r"\s+")
        elif token.startswith("("):
            parts.append(f"(?:{'|'.join(map(_literal, token[1:-1].split('|')))})")
        elif token == "[s]":
            parts.append("s?")
        elif token == '"':
            parts.append(_MARK)
        elif token == "{words}":
            parts.append(f"(?P<words>{_SEVERAL})")
        elif token == "{bare}":
            parts.append(f"(?P<words>{_BARE})")
        elif token == "{letter}":
            parts.append("(?P<letter>[A-Za-z])")
        elif token[1:-1] in _TEXT_SLOTS and token.startswith("{"):
            parts.append(f'(?P<{token[1:-1]}>[^"“”「」『』\\n]{{1,80}}?)')
        elif token.startswith("{"):
            parts.append(f"(?P<{token[1:-1]}>{NUMBER})")
        else:
            parts.append(_literal(token))
    body = "".join(parts)
    head = r"(?<![^\W_])" if template.isascii() else ""
    tail = r"(?![^\W_])" if template.rstrip(".。")[-1].isascii() else ""
    return re.compile(f"{head}{body}{tail}[.。]?", re.IGNORECASE)


def _literal(text: str) -> str:
    """The pattern of a text with any white space, quotation marks and apostrophes."""
    pattern = re.sub("[“”]", lambda mark: _MARK, re.escape(text))
    pattern = re.sub(r"(?:\\ )+", lambda gap: r"\s+", pattern)
    return pattern.replace("'", "['’]?")
