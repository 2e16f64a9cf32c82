"""The local base, bare or with an adapter, as a teacher for self-instruct."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import Reply, for_step
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.batches import answer, decode, prompt_ids, text_ids
from alpaca_rlhf.models.rollout import sample
from alpaca_rlhf.settings import Generate, Sampling


class LocalTeacher:
    """Continue prompts with the bare base, or with an adapter on it.

    Args:
        adapters: The adapters of the base.
        settings: Sampling settings.
        role: Adapter that writes; None is the bare base.
        answers: True to answer each prompt in the run's template instead of continuing its text.
    """

    def __init__(
        self,
        adapters: Adapters,
        settings: Generate,
        role: str | None = None,
        *,
        answers: bool = False,
    ) -> None:
        self._answers = answers
        self._adapters = adapters
        self._role = role
        self._settings = settings
        self._sampling = Sampling(
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
        )

    @property
    def name(self) -> str:
        """Name of the base and its adapter, for the data card."""
        adapter = f" with {self._settings.adapter}" if self._role is not None else ""
        return f"{self._adapters.base.name}{adapter}"

    def at(self, step: str) -> LocalTeacher:
        """This teacher for a step of a recipe."""
        settings = self._settings
        temperature, tokens = for_step(step, settings.temperature, settings.max_new_tokens)
        step_settings = replace(settings, temperature=temperature, max_new_tokens=tokens)
        return LocalTeacher(self._adapters, step_settings, self._role, answers=step == "reply")

    def complete(self, prompts: Sequence[str], *, seed: int, first: int) -> list[Reply]:
        """Continue each prompt once; the noise depends on seed and request number alone."""
        completions = sample(
            self._adapters,
            self._role,
            [self._ids(prompt) for prompt in prompts],
            [f"generate/{first + i}" for i in range(len(prompts))],
            sampling=self._sampling,
            seed=seed,
        )
        return [
            Reply(
                self._text(completion.ids),
                "eos" if completion.finished else "length",
                len(completion.ids),
            )
            for (completion,) in completions
        ]

    def _ids(self, prompt: str) -> tuple[int, ...]:
        if not self._answers:
            return text_ids(self._adapters.base, prompt)
        return prompt_ids(self._adapters.base, self._adapters.template, Instruction(prompt))

    def _text(self, ids: Sequence[int]) -> str:
        base = self._adapters.base
        return answer(base, self._adapters.template, ids) if self._answers else decode(base, ids)
