"""The policies of a run, ready to answer: one base, an adapter each, loaded when first asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from alpaca_rlhf.config import UserError
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.base import load_base
from alpaca_rlhf.models.batches import answer, prompt_ids
from alpaca_rlhf.models.rollout import sample
from alpaca_rlhf.records import Instruction
from alpaca_rlhf.settings import Loop, Sampling


class Speaker:
    """Answers for every policy of a run.

    Args:
        settings: The run's settings.
        policies: Name and adapter folder of each policy; None is the bare base.
        temperature: Divides the logits; 0 is greedy.
        max_new_tokens: Completion tokens at most; None takes the run's.
        seed: Seed of the sampling noise.

    Raises:
        UserError: The run's base cannot be loaded.
    """

    def __init__(
        self,
        settings: Loop,
        policies: Mapping[str, Path | None],
        *,
        temperature: float,
        max_new_tokens: int | None,
        seed: int,
    ) -> None:
        self._base = load_base(settings.base)
        self._adapters = Adapters(
            self._base,
            settings.lora,
            template=settings.template,
            dense_gib=settings.sampling.dense_gib,
        )
        self._template = settings.template
        self._policies = policies
        self._roles: dict[str, str | None] = {}
        self._temperature = temperature
        self._most = max_new_tokens or settings.sampling.max_new_tokens
        self._seed = seed

    def answer(self, policy: str, row: Instruction, turn: int) -> str:
        """The policy's answer to an instruction, after the turns before it.

        The oldest of those are left out where they leave no room for a whole answer.

        Raises:
            UserError: The instruction fills the base's context, or the adapter does not fit.
        """
        ids = prompt_ids(self._base, self._template, row)
        while row.history and self._base.context - len(ids) < self._most:
            row = replace(row, history=row.history[1:])
            ids = prompt_ids(self._base, self._template, row)
        room = self._base.context - len(ids)
        if room < 1:
            raise UserError(
                f"the instruction is too long: {len(ids)} tokens with its template, "
                f"and the base reads {self._base.context}"
            )
        sampling = Sampling(
            temperature=self._temperature, max_new_tokens=min(self._most, room), batch_size=1
        )
        key = f"chat/{turn}/{row.id}"
        role = self._role(policy)
        ((one,),) = sample(self._adapters, role, [ids], [key], sampling=sampling, seed=self._seed)
        text = answer(self._base, self._template, one.ids).strip()
        return text if one.finished else f"{text} ..."

    def _role(self, policy: str) -> str | None:
        if policy not in self._roles:
            folder = self._policies[policy]
            # PEFT keeps adapters as modules, and a module's name holds no dot.
            role = None if folder is None else policy.replace(".", "_")
            if role is not None and folder is not None:
                self._adapters.load(role, folder)
            self._roles[policy] = role
        return self._roles[policy]
