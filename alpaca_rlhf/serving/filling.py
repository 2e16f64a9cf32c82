"""Filling the queue: candidates of the prompts that a run holds ready for ranking.

What is there already is passed over, so it goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from alpaca_rlhf.core.records import Completion, Instruction
from alpaca_rlhf.preferences.assignment import FEWEST, distinct
from alpaca_rlhf.preferences.store import Store
from alpaca_rlhf.serving.manner import Manner


class Draws(Protocol):
    """What answers: a policy of the run, or a model behind HTTP."""

    def fingerprint(self, policy: str) -> str:
        """What tells its answers from those of others."""
        ...

    def candidates(
        self, policy: str, rows: Sequence[Instruction], manner: Manner, *, k: int
    ) -> list[list[Completion]]:
        """K completions of each prompt."""
        ...


@dataclass(frozen=True)
class Filled:
    """How far the filling is."""

    done: int
    """Prompts dealt with, those of earlier times included."""
    total: int
    """Prompts."""
    new: int
    """Sets added this time."""
    alike: int
    """Prompts left out this time because all their answers say the same."""


def fill(
    store: Store,
    speaker: Draws,
    rows: Sequence[Instruction],
    policy: str,
    *,
    k: int,
    manner: Manner,
    origin: str,
    batch: int,
) -> Iterator[Filled]:
    """Draw K completions of each prompt that has none of this policy yet, and add them as sets.

    Args:
        store: Whose queue is filled.
        speaker: Draws.
        rows: The prompts.
        policy: Who answers.
        k: Completions a prompt.
        manner: How they are drawn.
        origin: Noted with each set.
        batch: Prompts at once.

    Yields:
        How far it is, at first and after each batch, which is then in the queue.

    Raises:
        UserError: A prompt leaves no room for an answer.
    """
    once = list({row.id: row for row in rows}.values())
    known = store.answered([row.id for row in once], speaker.fingerprint(policy))
    left = [row for row in once if row.id not in known]
    done, new, alike = len(once) - len(left), 0, 0
    yield Filled(done, len(once), new, alike)
    for start in range(0, len(left), batch):
        some = left[start : start + batch]
        drawn = speaker.candidates(policy, some, manner, k=k)
        kept = [(row, distinct(own, k)) for row, own in zip(some, drawn, strict=True)]
        good = [(row, own) for row, own in kept if len(own) >= FEWEST]
        new += store.add_sets(good, origin=origin)
        alike += len(some) - len(good)
        done += len(some)
        yield Filled(done, len(once), new, alike)


def origin_of(run: Path, policy: str) -> str:
    """What is noted with a set of a run's policy."""
    return f"{run}/{policy}"
