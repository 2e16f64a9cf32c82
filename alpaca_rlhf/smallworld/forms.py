"""Requests for the form of an answer: only the answer, a sentence, more about it, a friendly line.

A request is a sentence after the task: "What colour is a lemon? Only the answer." It decides which
of several right answers is good, so that no rule of length does: half of the requests want a short
answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from alpaca_rlhf.smallworld.families import Solution

Form = Literal["bare", "sentence", "more", "friendly"]


@dataclass(frozen=True)
class Request:
    """The wordings of a request for one form."""

    trained: tuple[str, ...]
    """Wordings for training."""
    held_out: tuple[str, ...]
    """Wordings for the evaluation, in the words of the others."""


REQUESTS: Mapping[Form, Request] = {
    "bare": Request(
        ("Only the answer.", "Just the answer.", "Say only the answer.", "Write just the answer."),
        ("Please say just the answer.", "Now write only the answer."),
    ),
    "sentence": Request(
        ("In a sentence.", "Use a sentence.", "Answer in a sentence.", "Say it in a sentence."),
        ("Please use a sentence.", "Now say it in a sentence."),
    ),
    "more": Request(
        ("Tell me more.", "Say more.", "Tell me more about it.", "Write more about it."),
        ("Please write more.", "Say more about it."),
    ),
    "friendly": Request(
        ("Be nice.", "Say it in a nice way.", "Be nice to me.", "Please be nice."),
        ("Now be nice.", "Answer in a nice way."),
    ),
}
"""The requests, by form."""


def draw_form(rng: random.Random, solution: Solution) -> Form:
    """Draw the form to ask for; half of the draws ask for a short answer.

    `sentence` is not drawn where the shortest answer is a sentence, `more` not where there is no more
    to say.
    """
    short: tuple[Form, ...] = (
        ("bare",) if shortest_is_a_sentence(solution) else ("bare", "sentence")
    )
    long: tuple[Form, ...] = ("more", "friendly") if solution.extras else ("friendly",)
    return rng.choice(short if rng.random() < 0.5 else long)


def shortest_is_a_sentence(solution: Solution) -> bool:
    """Return True if the shortest right answer is a whole sentence."""
    return solution.terse.endswith(".")


def split_request(instruction: str) -> tuple[str, Form | None, bool]:
    """Part an instruction from the request at its end.

    Args:
        instruction: Text in lower case with single spaces and without a closing mark.

    Returns:
        The task, without a closing mark; the form that is asked for, None without a request; and
        True if the request has a held-out wording.
    """
    for wording, form, is_held_out in _WORDINGS:
        if instruction.endswith(wording):
            return instruction[: -len(wording)].rstrip(".?!: "), form, is_held_out
    return instruction, None, False


def _plain(wording: str) -> str:
    return re.sub(r"[^a-z ]", "", wording.lower())


# The longest first: "only the answer" is the end of "say only the answer".
_WORDINGS = sorted(
    (
        (f" {_plain(wording)}", form, is_held_out)
        for form, request in REQUESTS.items()
        for wordings, is_held_out in ((request.trained, False), (request.held_out, True))
        for wording in wordings
    ),
    key=lambda entry: -len(entry[0]),
)
