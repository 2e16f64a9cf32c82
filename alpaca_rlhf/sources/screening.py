"""Screening of prompts that are to be ranked beside those that a run has dealt.

They may be ranked and nothing else: one that is, or lies near, a prompt that the run trains or
evaluates on is refused. Nothing that the run has dealt moves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import Leak
from alpaca_rlhf.sources.run_prompts import RunPrompts

REASONS = ("too_long", "unusable", "repeated", "there")
"""Reasons to refuse a prompt whatever the splits of the run hold."""
SPLITS = ("sft", "ppo", "eval")
"""Splits whose prompts may not be ranked; `dev` counts as `eval`."""
MAX_EXAMPLES = 3
"""Refused prompts that are kept for each reason, to be shown."""


@dataclass(frozen=True)
class Example:
    """A refused prompt."""

    prompt: str
    """Its instruction."""
    near: str = ""
    """The instruction that it lies near; empty for other reasons."""


@dataclass
class Screening:
    """The verdict on each of some prompts."""

    taken: list[Instruction] = field(default_factory=list)
    """Those that may be ranked, in their order."""
    refused: dict[str, int] = field(default_factory=dict)
    """Reason to the number of prompts: one of `REASONS`, or `same.SPLIT` or `near.SPLIT`."""
    examples: dict[str, list[Example]] = field(default_factory=dict)
    """The first prompts that were refused for each reason."""

    def refuse(self, reason: str, prompt: Instruction, near: str = "") -> None:
        """Count a refused prompt, and keep it if it is one of the first."""
        self.refused[reason] = self.refused.get(reason, 0) + 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < MAX_EXAMPLES:
            examples.append(Example(prompt.instruction, near))


def screen(
    rows: Sequence[Instruction],
    prompts: RunPrompts,
    *,
    known: Collection[str],
    fits: Callable[[Instruction], bool],
) -> Screening:
    """Screen prompts against the splits of a run.

    Args:
        rows: The prompts.
        prompts: The splits of the run.
        known: Ids of prompts that are to be ranked anyway, beside those of the rank split.
        fits: True if the base has room for a prompt and its answer.

    Raises:
        UserError: A file of the run cannot be read any more.
    """
    screening = Screening()
    there = {*known, *(row.id for row in prompts.to_rank())}
    seen: set[str] = set()
    for row in rows:
        # 1. The prompt alone: one that is far too long would take minutes to compare.
        if row.id in seen:
            screening.refuse("repeated", row)
            continue
        seen.add(row.id)
        problem = _problem(row, fits)
        if problem:
            screening.refuse(problem, row)
        # 2. The prompts that are ranked already.
        elif row.id in there:
            screening.refuse("there", row)
        # 3. The firewall. Near-duplicates among the new ones are allowed: all are ranked.
        elif (leak := prompts.leak(row)) is not None:
            screening.refuse(_reason(leak), row, leak.other.instruction)
        else:
            screening.taken.append(row)
    return screening


def _problem(row: Instruction, fits: Callable[[Instruction], bool]) -> str:
    """The key of what is wrong with a prompt by itself; empty if nothing is."""
    try:
        return "" if fits(row) else "too_long"
    except UserError:  # a conversation that the chat template cannot show
        return "unusable"


def _reason(leak: Leak) -> str:
    split = {"dev": "eval"}.get(leak.other_split, leak.other_split)
    return f"{'same' if leak.other.id == leak.row.id else 'near'}.{split}"
