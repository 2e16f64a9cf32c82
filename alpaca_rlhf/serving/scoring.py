"""The reward model of a run, ready to score completions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alpaca_rlhf.core.records import Completion, Instruction
from alpaca_rlhf.core.runs import day_of
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.base import load_base
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.models.scoring import score
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.training.groups import completion_example

_ROLE = "reward"


def adapters_of(settings: Loop) -> Adapters:
    """Load a run's base, with no adapter on it yet.

    Raises:
        UserError: It cannot be loaded.
    """
    base = load_base(settings.base, day=day_of(settings.out))
    return Adapters(base, settings.lora, template=settings.template)


class RewardModel:
    """A run's reward model, which scores completions.

    Args:
        settings: The run's settings.
        folder: Adapter folder of the reward model.

    Raises:
        UserError: The run's base cannot be loaded, or the adapter does not fit.
    """

    def __init__(self, settings: Loop, folder: Path) -> None:
        self._adapters = adapters_of(settings)
        self._adapters.load(_ROLE, folder)
        base = self._adapters.base
        head = ScalarHead.load(folder, int(base.model.config.hidden_size))
        self._head = head.to(base.device)
        self._batch_size = settings.sampling.batch_size
        self.fingerprint = self._adapters.digest(_ROLE)[:8]

    def scores(self, rows: Sequence[tuple[Instruction, Completion]]) -> dict[str, float]:
        """Score completions of prompts; returns completion id to score."""
        examples = [
            completion_example(self._adapters, prompt, completion) for prompt, completion in rows
        ]
        scores = score(self._adapters, _ROLE, self._head, examples, batch_size=self._batch_size)
        return {
            completion.id: float(value) for (_, completion), value in zip(rows, scores, strict=True)
        }
