"""The interface of whatever answers prompts: the policies of a run, or a model behind HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from alpaca_rlhf.core.records import Completion, Instruction
from alpaca_rlhf.serving.sampling_settings import SamplingSettings


class Answerer(Protocol):
    """A source of answers."""

    def fingerprint(self, policy: str) -> str:
        """Name of a policy's weights, which its answers carry."""
        ...

    def candidates(
        self,
        policy: str,
        rows: Sequence[Instruction],
        sampling_settings: SamplingSettings,
        *,
        k: int,
    ) -> list[list[Completion]]:
        """K completions of each prompt."""
        ...
