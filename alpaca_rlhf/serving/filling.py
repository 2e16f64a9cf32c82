"""Filling the queue: candidate completions of the prompts in a run's rank split.

Prompts that have candidates already are passed over, so it goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.preferences.assignment import MIN_ANSWERS, distinct
from alpaca_rlhf.serving.answerer import Answerer
from alpaca_rlhf.serving.sampling_settings import SamplingSettings

if TYPE_CHECKING:
    from alpaca_rlhf.preferences.store import Store


@dataclass(frozen=True)
class Filled:
    """Progress of the filling."""

    done: int
    """Prompts done, those of earlier times included."""
    total: int
    """Prompts."""
    new: int
    """Sets added this time."""
    alike: int
    """Prompts left out this time because all their answers say the same."""


def fill(
    store: Store,
    policy_server: Answerer,
    rows: Sequence[Instruction],
    policy: str,
    *,
    k: int,
    sampling_settings: SamplingSettings,
    origin: str,
    batch: int,
) -> Iterator[Filled]:
    """Draw K completions of each prompt that has none of this policy yet, and add them as sets.

    Args:
        store: Whose queue is filled.
        policy_server: Answerer.
        rows: The prompts.
        policy: The policy that answers.
        k: Completions a prompt.
        sampling_settings: The sampling settings.
        origin: Noted with each set.
        batch: Prompts at once.

    Yields:
        The progress, at first and after each batch, which is then in the queue.

    Raises:
        UserError: A prompt leaves no room for an answer.
    """
    # 1. Pass over prompts that this policy has answered.
    prompts = list({row.id: row for row in rows}.values())
    known = store.answered([prompt.id for prompt in prompts], policy_server.fingerprint(policy))
    unanswered = [prompt for prompt in prompts if prompt.id not in known]
    done, new, alike = len(prompts) - len(unanswered), 0, 0
    yield Filled(done, len(prompts), new, alike)

    # 2. Batch by batch, sample and save; answers that all say the same are nothing to rank.
    for start in range(0, len(unanswered), batch):
        batch_prompts = unanswered[start : start + batch]
        completions = policy_server.candidates(policy, batch_prompts, sampling_settings, k=k)
        sets = [
            (prompt, distinct(answers, k))
            for prompt, answers in zip(batch_prompts, completions, strict=True)
        ]
        sets = [(prompt, answers) for prompt, answers in sets if len(answers) >= MIN_ANSWERS]
        new += store.add_sets(sets, origin=origin)
        alike += len(batch_prompts) - len(sets)
        done += len(batch_prompts)
        yield Filled(done, len(prompts), new, alike)


def origin_of(run: Path, policy: str) -> str:
    """The origin noted with a set of a run's policy."""
    return f"{run}/{policy}"
