"""Families of tasks: their phrasings, the draw of their arguments, and their solution.

Every family has cores in up to three moods, and its phrasings are frames around the cores: a thing
("the colour of a lemon"), a deed ("sort the words"), a question ("is a dog an animal").
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from alpaca_rlhf.smallworld import facts

THING = (
    "Name {}.",
    "Tell me {}.",
    "Give {}.",
    "Write {}.",
    "Say {}.",
    "What is {}?",
    "Please name {}.",
    "Can you tell me {}?",
    "I want to know {}.",
    "Write down {}.",
)
THING_UNSEEN = ("Can you write {}?", "Please write down {}.", "Can you name {}?")
DEED = (
    "{}.",
    "Please {}.",
    "Can you {}?",
    "I want you to {}.",
    "Your task is to {}.",
    "Now {}.",
    "{} for me.",
    "Try to {}.",
    "Here is a task: {}.",
)
DEED_UNSEEN = ("Please try to {}.", "Now I want you to {}.", "Your task: {}.")
QUESTION = (
    "{}?",
    "Tell me: {}?",
    "Answer this: {}?",
    "Please answer: {}?",
    "Here is a question: {}?",
    "Question: {}?",
    "I want to know: {}?",
    "Can you say: {}?",
)
QUESTION_UNSEEN = ("Now answer this: {}?", "Can you tell me: {}?", "Please tell me: {}?")
FRAMES = {
    "thing": (THING, THING_UNSEEN),
    "deed": (DEED, DEED_UNSEEN),
    "question": (QUESTION, QUESTION_UNSEEN),
}
"""Mood to its frames for training and its frames for the evaluation."""

WORD = "[a-z]+"
NUMBER = "[0-9]{1,4}"
CHILD = "|".join(name.lower() for name in facts.CHILDREN)
_ARTICLE = "an? "


@dataclass(frozen=True)
class Solution:
    """The right answer to a task, in several forms."""

    terse: str
    """The bare answer, e.g. `yellow`."""
    sentence: str
    """The answer as a sentence."""
    extras: tuple[str, ...]
    """True, helpful sentences about the topic."""
    accepted: tuple[str, ...] = ()
    """Other right answers."""
    grade: Callable[[str], float] | None = None
    """Grades the correctness of a free answer, in [0, 1], where right answers cannot be listed."""


@dataclass(frozen=True)
class Family:
    """A kind of task, such as sorting words or naming a colour."""

    name: str
    """Its name, the first part of every key."""
    cores: Mapping[str, tuple[str, ...]]
    """Mood (`thing`, `deed`, `question`) to texts with slots; `{a:slot}` puts a or an first."""
    slots: Mapping[str, str]
    """Slot to the regular expression of its values."""
    draw: Callable[[random.Random], dict[str, str]]
    """Draws arguments."""
    solve: Callable[[Mapping[str, str]], Solution | None]
    """Returns the right answer, or None if the arguments make no task."""
    input: str = ""
    """Text of the input column, with slots; may be empty."""
    fact: tuple[str, str] | None = None
    """(kind, slot) of the fact that an answer needs, where facts are held out."""
    symmetric: tuple[str, str] | None = None
    """Two slots whose order makes no difference to the task."""
    free: bool = False
    """True if answers are free text, graded instead of compared."""

    @cached_property
    def phrasings(self) -> tuple[str, ...]:
        """Phrasings for training."""
        return self._frame(0)

    @cached_property
    def unseen(self) -> tuple[str, ...]:
        """Phrasings for the evaluation."""
        return self._frame(1)

    def _frame(self, part: int) -> tuple[str, ...]:
        phrasings = []
        for mood, cores in self.cores.items():
            for frame in FRAMES[mood][part]:
                for core in cores:
                    text = frame.replace("{}", core)
                    phrasings.append(text[0].upper() + text[1:])
        return tuple(dict.fromkeys(phrasings))

    @cached_property
    def patterns(self) -> list[tuple[re.Pattern[str], bool]]:
        """Compiled phrasings, each with True if it is an unseen one."""
        texts = [(text, False) for text in self.phrasings] + [(text, True) for text in self.unseen]
        return [(re.compile(self._regex(text.rstrip(".?"))), unseen) for text, unseen in texts]

    @cached_property
    def input_pattern(self) -> re.Pattern[str]:
        """Compiled text of the input column."""
        return re.compile(self._regex(self.input.rstrip(".")))

    def _regex(self, text: str) -> str:
        regex, bound_slots = [], set()
        for part in re.split(r"(\{[a-z:_0-9]+\})", text.lower()):
            if part.startswith("{"):
                slot = part[1:-1].removeprefix("a:")
                value = self.slots[slot].lower()
                regex.append(_ARTICLE if part.startswith("{a:") else "")
                # A slot that comes up again must have the same value.
                regex.append(f"(?P={slot})" if slot in bound_slots else f"(?P<{slot}>{value})")
                bound_slots.add(slot)
            else:
                regex.append(re.escape(part))
        return "".join(regex)


def fill(text: str, args: Mapping[str, str]) -> str:
    """Fill the slots of a phrasing with arguments."""

    def value(match: re.Match[str]) -> str:
        slot = match[1]
        return facts.article(args[slot[2:]]) if slot.startswith("a:") else args[slot]

    return re.sub(r"\{([a-z:_0-9]+)\}", value, text)
