"""What a family of tasks is: its phrasings, how its arguments are drawn, and how it is solved.

Every family has cores in up to three moods, and its phrasings are frames around them: a thing
asked for ("the colour of a lemon"), something to do ("sort the words"), a question ("is a dog an
animal").
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
"""Mood to the frames that are trained on, and those kept for the evaluation."""

WORD = "[a-z]+"
NUMBER = "[0-9]{1,4}"
CHILD = "|".join(name.lower() for name in facts.CHILDREN)
_ARTICLE = "an? "


@dataclass(frozen=True)
class Solution:
    """What a right answer is."""

    terse: str
    """The bare answer, e.g. `yellow`."""
    sentence: str
    """The same as a sentence."""
    extras: tuple[str, ...]
    """True sentences that help, about the topic."""
    accepted: tuple[str, ...] = ()
    """Other right answers."""
    grade: Callable[[str], float] | None = None
    """Correctness in [0, 1] of a free answer, where no list of right answers exists."""


@dataclass(frozen=True)
class Family:
    """A kind of task."""

    name: str
    """Its name, the first part of every key."""
    cores: Mapping[str, tuple[str, ...]]
    """Mood (`thing`, `deed`, `question`) to texts with slots; `{a:slot}` puts a or an first."""
    slots: Mapping[str, str]
    """Slot to the regular expression of its values."""
    draw: Callable[[random.Random], dict[str, str]]
    """Draws arguments."""
    solve: Callable[[Mapping[str, str]], Solution | None]
    """The right answer, or None if the arguments make no task."""
    input: str = ""
    """The input column, with slots."""
    fact: tuple[str, str] | None = None
    """(kind, slot) of the fact that an answer needs, where facts are held out."""
    symmetric: tuple[str, str] | None = None
    """Two slots whose order makes no other task."""
    free: bool = False
    """Whether answers are free text, graded instead of compared."""

    @cached_property
    def phrasings(self) -> tuple[str, ...]:
        """Phrasings that are trained on."""
        return self._frame(0)

    @cached_property
    def unseen(self) -> tuple[str, ...]:
        """Phrasings that are kept for the evaluation."""
        return self._frame(1)

    def _frame(self, which: int) -> tuple[str, ...]:
        out = []
        for mood, cores in self.cores.items():
            for frame in FRAMES[mood][which]:
                for core in cores:
                    text = frame.replace("{}", core)
                    out.append(text[0].upper() + text[1:])
        return tuple(dict.fromkeys(out))

    @cached_property
    def patterns(self) -> list[tuple[re.Pattern[str], bool]]:
        """Compiled phrasings, and whether each is an unseen one."""
        groups = [(p, False) for p in self.phrasings] + [(p, True) for p in self.unseen]
        return [(re.compile(self._regex(text.rstrip(".?"))), unseen) for text, unseen in groups]

    @cached_property
    def input_pattern(self) -> re.Pattern[str]:
        """The compiled input column."""
        return re.compile(self._regex(self.input.rstrip(".")))

    def _regex(self, text: str) -> str:
        out, seen = [], set()
        for part in re.split(r"(\{[a-z:_0-9]+\})", text.lower()):
            if part.startswith("{"):
                slot = part[1:-1].removeprefix("a:")
                value = self.slots[slot].lower()
                out.append(_ARTICLE if part.startswith("{a:") else "")
                out.append(f"(?P={slot})" if slot in seen else f"(?P<{slot}>{value})")
                seen.add(slot)
            else:
                out.append(re.escape(part))
        return "".join(out)


def fill(text: str, args: Mapping[str, str]) -> str:
    """A phrasing with its arguments."""

    def value(match: re.Match[str]) -> str:
        slot = match[1]
        return facts.article(args[slot[2:]]) if slot.startswith("a:") else args[slot]

    return re.sub(r"\{([a-z:_0-9]+)\}", value, text)
