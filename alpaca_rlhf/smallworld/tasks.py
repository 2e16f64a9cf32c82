"""Tasks of the small world: how they are drawn and phrased, and recognised in any phrasing."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.smallworld import facts
from alpaca_rlhf.smallworld.families import Family, Solution, fill
from alpaca_rlhf.smallworld.forms import REQUESTS, Form, draw_form, split_request
from alpaca_rlhf.smallworld.knowledge import KNOWLEDGE
from alpaca_rlhf.smallworld.lists import LISTS
from alpaca_rlhf.smallworld.numbers import NUMBERS
from alpaca_rlhf.smallworld.relations import RELATIONS
from alpaca_rlhf.smallworld.sentences import SENTENCES
from alpaca_rlhf.smallworld.writing import WRITING

FAMILIES: Mapping[str, Family] = {
    f.name: f for f in (*KNOWLEDGE, *RELATIONS, *NUMBERS, *LISTS, *SENTENCES, *WRITING)
}
"""Every family, by name; tasks are drawn in this order."""

Part = Literal["train", "held_out"]


@dataclass(frozen=True)
class Task:
    """One task in one phrasing."""

    family: str
    """Name of its family."""
    args: tuple[tuple[str, str], ...]
    """Slots and their values, lower-case, sorted."""
    instruction: str
    """Text that asks for it."""
    input: str
    """Material the task is about; may be empty."""
    held_out_fact: bool
    """True if its fact is reserved for the evaluation."""
    held_out_phrasing: bool
    """True if its phrasing is reserved for the evaluation."""
    form: Form | None = None
    """The form of the answer that its request asks for; None without a request."""

    @property
    def key(self) -> str:
        """Family and arguments, the same for every phrasing."""
        args = dict(self.args)
        # "3 plus 4" and "4 plus 3" are one task, so that no split holds one and another its twin.
        pair = FAMILIES[self.family].symmetric
        if pair is not None:
            args |= dict(zip(pair, sorted(args[slot] for slot in pair), strict=True))
        return f"{self.family}:{'|'.join(args.values())}"

    @property
    def solution(self) -> Solution:
        """The right answer."""
        solution = FAMILIES[self.family].solve(dict(self.args))
        assert solution is not None
        return solution

    def record(self) -> Instruction:
        """Return the prompt, without an output."""
        return Instruction(self.instruction, self.input, None, "smallworld")


def sample_task(
    rng: random.Random,
    *,
    phrasing: Part = "train",
    fact: Part = "train",
    requests: float = 0.0,
) -> Task:
    """Draw a task: a family first, so that families are balanced, then arguments and a phrasing.

    Args:
        rng: Source of all draws.
        phrasing: `train` for a phrasing of the training text, `held_out` for one of the evaluation.
        fact: The same for the fact; `held_out` leaves only the families with held-out facts.
        requests: Share of tasks that ask for the form of the answer.
    """
    names = [n for n, f in FAMILIES.items() if fact == "train" or f.fact is not None]
    family = FAMILIES[rng.choice(names)]
    # Arguments are drawn until their fact is of the wanted part; a family that has none is redrawn.
    for _ in range(1000):
        args = family.draw(rng)
        if _fact_held_out(family, args) == (fact == "held_out"):
            break
    else:
        return sample_task(rng, phrasing=phrasing, fact=fact, requests=requests)
    text = rng.choice(family.unseen if phrasing == "held_out" else family.phrasings)
    task = Task(
        family.name,
        _canonical(args),
        fill(text, args),
        fill(family.input, args),
        fact == "held_out",
        phrasing == "held_out",
    )
    if requests == 0 or rng.random() >= requests:
        return task
    form = draw_form(rng, task.solution)
    wordings = REQUESTS[form].held_out if phrasing == "held_out" else REQUESTS[form].trained
    return replace(task, form=form, instruction=f"{task.instruction} {rng.choice(wordings)}")


def recognise(instruction: str, input: str = "") -> Task | None:
    """Recognise the task of a prompt in any known phrasing; None if it has none, or no answer."""
    return _recognise(instruction, input)


@lru_cache(maxsize=100_000)
def _recognise(instruction: str, input_text: str) -> Task | None:
    # 1. Case, spacing and the closing mark do not matter.
    text = re.sub(r"\s+", " ", instruction).strip().lower().rstrip(".?!: ")
    material = re.sub(r"\s+", " ", input_text).strip().lower().rstrip(". ")
    text, form, held_out_wording = split_request(text)
    # 2. The first family wins whose input and phrasing both match with arguments that it solves.
    for family in FAMILIES.values():
        if bool(family.input) != bool(material):
            continue
        inputs = family.input_pattern.fullmatch(material) if material else None
        if material and inputs is None:
            continue
        for pattern, unseen in family.patterns:
            match = pattern.fullmatch(text)
            if match is None:
                continue
            args = match.groupdict() | (inputs.groupdict() if inputs else {})
            if family.solve(args) is None:  # words of the right form, but no task
                continue
            return Task(
                family.name,
                _canonical(args),
                instruction,
                input_text,
                _fact_held_out(family, args),
                unseen or held_out_wording,
                form,
            )
    return None


def _canonical(args: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((slot, value.lower()) for slot, value in args.items()))


def _fact_held_out(family: Family, args: Mapping[str, str]) -> bool:
    if family.fact is None:
        return False
    kind, slot = family.fact
    return facts.held_out(kind, args[slot].lower())
