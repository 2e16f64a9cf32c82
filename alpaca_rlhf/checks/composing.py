"""Prompts composed of an instruction and one to three constraints."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from alpaca_rlhf.checks.catalogue import KINDS, compatible
from alpaca_rlhf.checks.instructions import Core
from alpaca_rlhf.checks.kinds import Constraint, Kind, Language, write_template
from alpaca_rlhf.checks.text import phrase_pattern
from alpaca_rlhf.core.records import Instruction

SOURCE = "checks"
"""The origin that composed prompts bear."""

Part = Literal["trained", "held_out_kinds", "held_out_phrasings"]
"""Kinds and phrasings that a prompt may have."""

_TRIES = 60  # draws of a constraint before a prompt does with fewer
_COMMON = ("very", "really", "people", "good", "because", "thing", "important", "always", "many")
_COMMON_CHINESE = ("非常", "因为", "大家", "重要", "总是", "很多")
_LATER_WORDS = 12  # words of an answer beside a request that it repeats


@dataclass(frozen=True)
class Mixture:
    """Shares of the numbers of constraints and of the ways to lay a prompt out."""

    counts: tuple[float, float, float] = (0.5, 0.4, 0.1)
    """Shares of prompts with one, two and three constraints."""
    before: float = 0.12
    """Share whose constraints come first."""
    lines: float = 0.2
    """Share with each constraint on a line of its own."""


def compose(
    core: Core, rng: random.Random, part: Part = "trained", mixture: Mixture | None = None
) -> Instruction:
    """Compose a prompt.

    Args:
        core: The instruction.
        rng: Source of all draws.
        part: `trained` for kinds and phrasings of the training splits, `held_out_kinds` for other
            kinds, `held_out_phrasings` for the held-out phrasings of trained kinds.
        mixture: Shares.
    """
    mixture = mixture or Mixture()
    (wanted,) = rng.choices((1, 2, 3), weights=mixture.counts)
    pool = [
        kind
        for kind in KINDS.values()
        if kind.held_out == (part == "held_out_kinds")
        and kind.templates(core.language)
        and core.genre not in kind.except_genres
    ]
    constraints: list[Constraint] = []
    for _ in range(_TRIES):
        if len(constraints) == wanted:
            break
        constraint = _drawn(core, pool, rng, part)
        if compatible([*constraints, constraint]) and suits(core, [*constraints, constraint]):
            constraints.append(constraint)
    return Instruction(_laid_out(core, constraints, rng, mixture), "", None, SOURCE)


def example_of(kind: Kind, language: Language = "en") -> str:
    """A constraint of a kind, in its first phrasing."""
    rng = random.Random(kind.name)
    words = ("rain", "sun") if language == "en" else ("雨", "阳光")
    arguments = {"word": words[0], "words": "|".join(words), **kind.draw(rng, language)}
    return write_template(kind.templates(language)[0], arguments, in_words=False)


def suits(core: Core, constraints: Sequence[Constraint]) -> bool:
    """True if an answer to an instruction can meet constraints: its own words are not forbidden."""
    for constraint in constraints:
        arguments, name = constraint.arguments, constraint.kind.name
        if name == "leaves_out" and any(
            phrase_pattern(word).search(core.text) for word in arguments["words"].split("|")
        ):
            return False
        if name == "letter_absent" and arguments["letter"].lower() in core.subject.lower():
            return False
        if name == "word_exactly" and phrase_pattern(arguments["word"]).search(core.text):
            return False
    repeats = any(constraint.demands.repeats_question for constraint in constraints)
    most_words = min(constraint.demands.words[1] for constraint in constraints)
    return not repeats or most_words >= len(core.text.split()) + _LATER_WORDS


def _drawn(core: Core, pool: Sequence[Kind], rng: random.Random, part: Part) -> Constraint:
    """One constraint, with its text."""
    (kind,) = rng.choices(pool, weights=[kind.weight for kind in pool])
    templates = kind.templates(core.language)
    trained, held_out = templates[:-1], templates[-1]
    template = held_out if part == "held_out_phrasings" else rng.choice(trained)
    arguments = kind.draw(rng, core.language)
    if "{below}" in template:  # the round number is the bound that is not allowed
        arguments["n"] = str(int(arguments["n"]) - 1)
    if "{word}" in template:
        arguments["word"] = rng.choice(core.related)
    if "{words}" in template and "words" not in arguments:
        arguments["words"] = "|".join(_words(core, kind, rng))
    text = write_template(template, arguments, in_words=rng.random() < 0.5)
    return Constraint(kind, arguments, text, template == held_out)


def _words(core: Core, kind: Kind, rng: random.Random) -> list[str]:
    words = list(core.related)
    if kind.name == "leaves_out":
        words += _COMMON if core.language == "en" else _COMMON_CHINESE
    return rng.sample(words, rng.choice((2, 2, 3)))


def _laid_out(
    core: Core, constraints: Sequence[Constraint], rng: random.Random, mixture: Mixture
) -> str:
    """The text of a prompt: the instruction with its constraints after or before it."""
    texts = [constraint.text for constraint in constraints]
    repeats = any(constraint.demands.repeats_question for constraint in constraints)
    gap = " " if core.language == "en" else ""
    draw = rng.random()
    if draw < mixture.before and not repeats:
        return gap.join([*texts, core.text])
    if draw < mixture.before + mixture.lines:
        return "\n".join([core.text, *texts])
    return gap.join([core.text, *texts])
