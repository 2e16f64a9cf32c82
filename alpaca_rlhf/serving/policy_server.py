"""The policies of a run, ready to answer: one base, an adapter each, loaded when first asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Completion, Instruction
from alpaca_rlhf.core.runs import day_of
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.base import load_base
from alpaca_rlhf.models.batches import answer, prompt_ids
from alpaca_rlhf.models.logit_shaping import LogitShaping
from alpaca_rlhf.models.rollout import SampledCompletion, sample, stream
from alpaca_rlhf.models.streaming import GenerationUpdate, stream_text
from alpaca_rlhf.models.turns import last_reply_ids, takes_system
from alpaca_rlhf.serving.sampling_settings import SamplingSettings
from alpaca_rlhf.settings import Loop, Sampling

Ids = tuple[int, ...]


class PolicyServer:
    """Answers for every policy of a run.

    Args:
        settings: The run's settings.
        policies: Name and adapter folder of each policy; None is the bare base.
        sampling_settings: Sampling settings of `answer`.

    Raises:
        UserError: The run's base cannot be loaded.
    """

    def __init__(
        self,
        settings: Loop,
        policies: Mapping[str, Path | None],
        sampling_settings: SamplingSettings | None = None,
    ) -> None:
        self._base = load_base(settings.base, day=day_of(settings.out))
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
        self._sampling_settings = sampling_settings or SamplingSettings()
        self.takes_system = takes_system(self._base, self._template)

    def answer(self, policy: str, row: Instruction, turn: int) -> str:
        """The policy's answer to an instruction, after the turns before it.

        The oldest turns are left out where they leave no room for a whole answer.

        Raises:
            UserError: The instruction fills the base's context, or the adapter does not fit.
            ValueError: The sampling settings have what only `generate` follows.
        """
        _check_whole_samples(self._sampling_settings)
        ids, sampling = self._request(row, self._sampling_settings)
        role, key = self._role(policy), f"chat/{turn}/{row.id}"
        seed = self._sampling_settings.seed
        ((sampled,),) = sample(self._adapters, role, [ids], [key], sampling=sampling, seed=seed)
        text = answer(self._base, self._template, sampled.ids).strip()
        return text if sampled.finished else f"{text} ..."

    def generate(
        self,
        policy: str,
        row: Instruction,
        sampling_settings: SamplingSettings,
        stop: Event,
        *,
        key: str,
        k: int = 1,
        whole: bool = False,
        begun: str = "",
    ) -> Iterator[list[GenerationUpdate]]:
        """Stream K answers to an instruction; `key` names their noise.

        Args:
            policy: The policy that answers.
            row: The instruction, with its earlier turns.
            sampling_settings: The sampling settings.
            stop: Once it is set, no further token is sampled.
            key: Name of the noise.
            k: Answers.
            whole: True where no earlier turn may be left out.
            begun: Beginning of the answer, which is gone on with and not repeated.

        Raises:
            UserError: As in `answer`; also where the prompt must be read `whole` and leaves no room
                for a whole answer.
        """
        begun_ids = self._begun_ids(row, begun)
        ids, sampling = self._request(row, sampling_settings, whole=whole, begun=begun_ids)
        tokens = stream(
            self._adapters,
            self._role(policy),
            [ids],
            [key],
            k=k,
            sampling=sampling,
            seed=sampling_settings.seed,
            shaping=LogitShaping(
                sampling_settings.top_k,
                sampling_settings.min_p,
                sampling_settings.repetition_penalty,
            ),
        )
        return stream_text(
            self._adapters,
            tokens,
            rows=k,
            stop=stop,
            stop_texts=sampling_settings.stop,
            begun=begun_ids,
        )

    def candidates(
        self,
        policy: str,
        rows: Sequence[Instruction],
        sampling_settings: SamplingSettings,
        *,
        k: int,
    ) -> list[list[Completion]]:
        """Sample K completions of each prompt, whole, in one batch.

        Raises:
            UserError: As in `answer`.
            ValueError: As in `answer`.
        """
        _check_whole_samples(sampling_settings)
        requests = [self._request(row, sampling_settings, whole=True) for row in rows]
        sampling = replace(requests[0][1], batch_size=len(rows) * k)
        samples_of_rows = sample(
            self._adapters,
            self._role(policy),
            [ids for ids, _ in requests],
            [row.id for row in rows],
            k=k,
            sampling=sampling,
            seed=sampling_settings.seed,
        )
        return [
            [
                self.completion(
                    policy,
                    row,
                    sampling_settings,
                    answer(self._base, self._template, sampled.ids),
                    sampled,
                    number,
                )
                for number, sampled in enumerate(samples)
            ]
            for row, samples in zip(rows, samples_of_rows, strict=True)
        ]

    def completion(
        self,
        policy: str,
        row: Instruction,
        sampling_settings: SamplingSettings,
        text: str,
        sampled: SampledCompletion,
        number: int = 0,
    ) -> Completion:
        """The record of an answer: its text, and how it was sampled."""
        return Completion(
            prompt_id=row.id,
            text=text,
            adapter=self.fingerprint(policy),
            sampling=sampling_settings.describe(self._max_new_tokens(sampling_settings)),
            seed=sampling_settings.seed,
            sample=number,
            finish_reason="eos" if sampled.finished else "length",
            n_tokens=len(sampled.ids),
        )

    def fingerprint(self, policy: str) -> str:
        """Name of a policy's weights in records, unlike that of any other policy."""
        if policy not in self._fingerprints:
            role = self._role(policy)
            self._fingerprints[policy] = (
                f"base:{self._base.fingerprint}" if role is None else self._adapters.digest(role)
            )
        return self._fingerprints[policy]

    def _max_new_tokens(self, sampling_settings: SamplingSettings) -> int:
        return sampling_settings.max_new_tokens or self._settings.sampling.max_new_tokens

    def _request(
        self,
        row: Instruction,
        sampling_settings: SamplingSettings,
        *,
        whole: bool = False,
        begun: Ids = (),
    ) -> tuple[Ids, Sampling]:
        """Token ids of the prompt, and sampling settings that fit into the context.

        Unless the prompt must stay `whole`, its oldest turns are left out to make room.
        """
        max_new_tokens = self._max_new_tokens(sampling_settings)
        ids = self._ids(row, sampling_settings) + begun
        while not whole and row.history and self._base.context - len(ids) < max_new_tokens:
            row = replace(row, history=row.history[1:])
            ids = self._ids(row, sampling_settings) + begun
        room = self._base.context - len(ids)
        if room < 1 or (whole and room < max_new_tokens):
            of_answer = f", and an answer {max_new_tokens}" if whole and room >= 1 else ""
            raise UserError(
                f"the instruction is too long: {len(ids)} tokens with its template{of_answer}, "
                f"and the base reads {self._base.context}"
            )
        sampling = Sampling(
            temperature=sampling_settings.temperature,
            top_p=sampling_settings.top_p,
            max_new_tokens=min(max_new_tokens, room),
            batch_size=1,
        )
        return ids, sampling

    def _ids(self, row: Instruction, sampling_settings: SamplingSettings) -> Ids:
        if sampling_settings.system:
            row = replace(row, system=sampling_settings.system)
        return prompt_ids(self._base, self._template, row)

    def _begun_ids(self, row: Instruction, begun: str) -> Ids:
        """Token ids of the beginning of an answer."""
        return tuple(last_reply_ids(self._base, self._template, row, begun)) if begun else ()

    def _role(self, policy: str) -> str | None:
        if policy not in self._roles:
            folder = self._policies[policy]
            # PEFT keeps adapters as modules, and a module's name holds no dot.
            role = None if folder is None else policy.replace(".", "_")
            if role is not None and folder is not None:
                self._adapters.load(role, folder)
            self._roles[policy] = role
        return self._roles[policy]


def _check_whole_samples(sampling_settings: SamplingSettings) -> None:
    """Refuse settings that shape a chat's answer; records would name them although none held."""
    shaping = ("top_k", "min_p", "repetition_penalty", "stop")
    changed = [
        name
        for name in shaping
        if getattr(sampling_settings, name) != getattr(SamplingSettings, name)
    ]
    if changed:
        raise ValueError(f"only streamed answers follow {', '.join(changed)}")
