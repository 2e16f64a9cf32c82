"""The policies of a run, ready to answer: one base, an adapter each, loaded when first asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Completion, Instruction
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.base import load_base
from alpaca_rlhf.models.batches import answer, prompt_ids
from alpaca_rlhf.models.rollout import SampledCompletion, sample, stream
from alpaca_rlhf.models.streaming import GenerationUpdate, stream_text
from alpaca_rlhf.models.turns import chat_ids, takes_system
from alpaca_rlhf.serving.manner import Manner
from alpaca_rlhf.settings import Loop, Sampling

Ids = tuple[int, ...]


class Speaker:
    """Answers for every policy of a run.

    Args:
        settings: The run's settings.
        policies: Name and adapter folder of each policy; None is the bare base.
        manner: How `answer` draws.

    Raises:
        UserError: The run's base cannot be loaded.
    """

    def __init__(
        self, settings: Loop, policies: Mapping[str, Path | None], manner: Manner | None = None
    ) -> None:
        self._base = load_base(settings.base)
        self._adapters = Adapters(
            self._base,
            settings.lora,
            template=settings.template,
            dense_gib=settings.sampling.dense_gib,
        )
        self._settings = settings
        self._template = settings.template
        self._policies = policies
        self._roles: dict[str, str | None] = {}
        self._fingerprints: dict[str, str] = {}
        self._manner = manner or Manner()
        self.takes_system = takes_system(self._base, self._template)

    def answer(self, policy: str, row: Instruction, turn: int) -> str:
        """The policy's answer to an instruction, after the turns before it.

        The oldest of those are left out where they leave no room for a whole answer.

        Raises:
            UserError: The instruction fills the base's context, or the adapter does not fit.
        """
        ids, sampling = self._asked(row, self._manner)
        role, key = self._role(policy), f"chat/{turn}/{row.id}"
        seed = self._manner.seed
        ((one,),) = sample(self._adapters, role, [ids], [key], sampling=sampling, seed=seed)
        text = answer(self._base, self._template, one.ids).strip()
        return text if one.finished else f"{text} ..."

    def speak(
        self,
        policy: str,
        row: Instruction,
        manner: Manner,
        stop: Event,
        *,
        key: str,
        k: int = 1,
        whole: bool = False,
    ) -> Iterator[list[GenerationUpdate]]:
        """K answers to an instruction as they come; `key` names their noise.

        Raises:
            UserError: As in `answer`; also where the prompt must be read `whole` and leaves no room
                for a whole answer.
        """
        ids, sampling = self._asked(row, manner, whole=whole)
        role = self._role(policy)
        tokens = stream(
            self._adapters, role, [ids], [key], k=k, sampling=sampling, seed=manner.seed
        )
        return stream_text(self._adapters, tokens, rows=k, stop=stop)

    def candidates(
        self, policy: str, rows: Sequence[Instruction], manner: Manner, *, k: int
    ) -> list[list[Completion]]:
        """K completions of each prompt, whole, in one batch.

        Raises:
            UserError: As in `answer`.
        """
        asked = [self._asked(row, manner, whole=True) for row in rows]
        sampling = replace(asked[0][1], batch_size=len(rows) * k)
        drawn = sample(
            self._adapters,
            self._role(policy),
            [ids for ids, _ in asked],
            [row.id for row in rows],
            k=k,
            sampling=sampling,
            seed=manner.seed,
        )
        return [
            [
                self.completion(
                    policy, row, manner, answer(self._base, self._template, s.ids), s, j
                )
                for j, s in enumerate(own)
            ]
            for row, own in zip(rows, drawn, strict=True)
        ]

    def completion(
        self,
        policy: str,
        row: Instruction,
        manner: Manner,
        text: str,
        sampled: SampledCompletion,
        number: int = 0,
    ) -> Completion:
        """What was drawn, with how it was."""
        return Completion(
            prompt_id=row.id,
            text=text,
            adapter=self.fingerprint(policy),
            sampling=f"temperature={manner.temperature:g} top_p={manner.top_p:g} "
            f"max_new_tokens={self._most(manner)}",
            seed=manner.seed,
            sample=number,
            finish_reason="eos" if sampled.finished else "length",
            n_tokens=len(sampled.ids),
        )

    def fingerprint(self, policy: str) -> str:
        """What tells a policy from all others in records."""
        if policy not in self._fingerprints:
            role = self._role(policy)
            self._fingerprints[policy] = (
                f"base:{self._base.fingerprint}" if role is None else self._adapters.digest(role)
            )
        return self._fingerprints[policy]

    def _most(self, manner: Manner) -> int:
        return manner.max_new_tokens or self._settings.sampling.max_new_tokens

    def _asked(
        self, row: Instruction, manner: Manner, *, whole: bool = False
    ) -> tuple[Ids, Sampling]:
        """The prompt's ids and how to draw; unless it must stay `whole`, old turns may go."""
        most, ids = self._most(manner), self._ids(row, manner)
        while not whole and row.history and self._base.context - len(ids) < most:
            row = replace(row, history=row.history[1:])
            ids = self._ids(row, manner)
        room = self._base.context - len(ids)
        if room < 1 or (whole and room < most):
            answered = f", and an answer {most}" if whole and room >= 1 else ""
            raise UserError(
                f"the instruction is too long: {len(ids)} tokens with its template{answered}, "
                f"and the base reads {self._base.context}"
            )
        sampling = Sampling(
            temperature=manner.temperature,
            top_p=manner.top_p,
            max_new_tokens=min(most, room),
            batch_size=1,
        )
        return ids, sampling

    def _ids(self, row: Instruction, manner: Manner) -> Ids:
        if manner.system and self.takes_system:
            return chat_ids(self._base, row, manner.system)
        return prompt_ids(self._base, self._template, row)

    def _role(self, policy: str) -> str | None:
        if policy not in self._roles:
            folder = self._policies[policy]
            # PEFT keeps adapters as modules, and a module's name holds no dot.
            role = None if folder is None else policy.replace(".", "_")
            if role is not None and folder is not None:
                self._adapters.load(role, folder)
            self._roles[policy] = role
        return self._roles[policy]
