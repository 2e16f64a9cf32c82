"""Peak memory of every stage, itemised, phase by phase."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from alpaca_rlhf.core.sizes import LOGPROBS_BATCH_DIVISOR, SCORING_BATCH_FACTOR
from alpaca_rlhf.planner.decoding import Decode, decoded, ready
from alpaca_rlhf.planner.layers import GRADIENTS, Device
from alpaca_rlhf.planner.passes import Pass, Rows, resident
from alpaca_rlhf.planner.shapes import Shape
from alpaca_rlhf.planner.tape import Block, Tape
from alpaca_rlhf.settings import Loop, OptimizerName

OPTIMIZER = "optimiser"
BYTES_OF_MOMENTS: dict[OptimizerName, float] = {
    "adamw": 8,
    "adamw8bit": 2 + 8 / 256,
    "paged_adamw8bit": 2 + 8 / 256,
}
"""Bytes of the two moments of a weight; bitsandbytes keeps a scale for 256 numbers."""


@dataclass(frozen=True)
class Lengths:
    """Tokens that no setting bounds."""

    prompt: int = 256
    """Of the longest prompt, its template included."""
    worksheet: int = 768
    """Of a request for new tasks."""
    chat: int = 2048
    """Of a conversation's turns so far."""


@dataclass(frozen=True)
class Phase:
    """The worst moment of a part of a stage."""

    stage: str
    """Name in the report."""
    name: str
    """What is done."""
    items: Mapping[str, int]
    """Bytes by what they are for."""
    flag: str
    """What to lower if it does not fit."""

    @property
    def peak(self) -> int:
        """Bytes in all."""
        return sum(self.items.values())


@dataclass(frozen=True)
class Memory:
    """Peak memory of a loop's stages on a device.

    Args:
        shape: The base.
        device: How it computes.
        settings: Every number of the loop.
        lengths: Tokens that no setting bounds.
        checkpointing: Whether activations are made anew in the backward: the loop does on CUDA.
        padded: Whether prompts differ in length.
    """

    shape: Shape
    device: Device
    settings: Loop
    lengths: Lengths = field(default_factory=Lengths)
    checkpointing: bool = True
    padded: bool = True

    def all(self) -> dict[str, list[Phase]]:
        """Phases of every stage that is run, in the order of the report."""
        stages: dict[str, Callable[[], Iterator[Phase]]] = {
            "generate": self.generate,
            "sft": self.sft,
            "sample": self.sample,
            "reward": self.reward,
            "ppo": self.ppo,
            "best_of_k": self.best_of_k,
            "evaluate": self.evaluate,
            "chat": self.chat,
        }
        return {name: list(phases()) for name, phases in stages.items() if name not in self.spared}

    @property
    def spared(self) -> set[str]:
        """Stages whose place the user's own files take."""
        own = self.settings.inputs
        given = own.rows is not None or own.sft_adapter is not None
        spared = {"generate"} if given else set()
        return spared | ({"sample"} if own.rankings is not None else set())

    def peak(self, stage: str) -> int:
        """Bytes of a stage at its worst."""
        return max(one.peak for one in self.all()[stage])

    # --- stages -----------------------------------------------------------------------------------

    def generate(self) -> Iterator[Phase]:
        """The bare base goes on with worksheets."""
        own = self.settings.generate
        decode = Decode(
            own.batch_size,
            1,
            self.lengths.worksheet,
            own.max_new_tokens,
            self.padded,
            own.top_p < 1,
        )
        yield self._decoding("generate", "sampling", 0, decode, "--generate.batch-size")

    def sft(self) -> Iterator[Phase]:
        """One adapter, loss on every token."""
        own = self.settings.sft
        length = min(own.max_length, self.shape.context)
        prompt = min(self.lengths.prompt, length // 2)
        rows = Rows(min(own.micro_batch_size, own.batch_size), prompt, length - prompt)
        yield from self._training(
            "sft", rows, rows.completion, 1, own.optimizer, own.batch_size, "--sft.micro-batch-size"
        )

    def sample(self) -> Iterator[Phase]:
        """K completions of each prompt to rank."""
        yield self._sampling("sample", self.settings.rank.k, 1)

    def reward(self) -> Iterator[Phase]:
        """K completions of each ranking, a score each."""
        own, k = self.settings.reward, self.settings.rank.k
        length = min(own.max_length, self.shape.context)
        if self.settings.inputs.rankings is None:  # what the sample stage draws
            drawn = self.lengths.prompt + self.settings.sampling.max_new_tokens
            length = min(length, drawn)
        prompt = min(self.lengths.prompt, length // 2)
        micro = min(own.micro_batch_size, own.batch_size)
        rows = Rows(micro * k, prompt, length - prompt)
        batch, flag = own.batch_size * k, "--reward.micro-batch-size"
        yield from self._training("reward", rows, 0, 2, own.optimizer, batch, flag)
        more = Rows(own.micro_batch_size * SCORING_BATCH_FACTOR, prompt, length - prompt)
        yield self._scoring("reward", more, 2, flag, moments=self._moments(own.optimizer))

    def ppo(self) -> Iterator[Phase]:
        """Rollout, scoring by every adapter, and the update of policy and value."""
        own, flag = self.settings.ppo, "--ppo.micro-batch-size"
        apart, adapters = own.value.trunk == "separate", self._trained
        held = self._moments(own.optimizer) * (2 if apart else 1)
        rows_at_once = min(self.settings.sampling.batch_size, own.batch_size)
        rollout = self._decode(rows_at_once, 1, own.max_new_tokens)
        yield self._decoding(
            "ppo", "rollout", adapters, rollout, "--sampling.batch-size", moments=held
        )
        rows = Rows(
            min(own.micro_batch_size, own.minibatch_size), self.lengths.prompt, own.max_new_tokens
        )
        scoring = self._run(Tape(), trainable=True)
        with_base = self._resident(scoring, adapters, held)
        scoring.scored(rows, rows.completion, values=not apart)
        yield self._phase("ppo", "scoring", scoring, with_base, flag)
        yield from self._training(
            "ppo",
            rows,
            rows.completion,
            adapters,
            own.optimizer,
            own.minibatch_size,
            flag,
            moments=held,
            head=not apart,
        )
        if apart:
            yield from self._training(
                "ppo",
                rows,
                rows.completion,
                adapters,
                own.optimizer,
                own.minibatch_size,
                flag,
                moments=held,
                logits=False,
            )

    def best_of_k(self) -> Iterator[Phase]:
        """K completions of each prompt, their scores, and fine-tuning on the winners."""
        own, sampling = self.settings.best_of_k, self.settings.sampling
        yield self._sampling("best_of_k", own.k, self._trained)
        rows = Rows(sampling.batch_size, self.lengths.prompt, sampling.max_new_tokens)
        yield self._scoring("best_of_k", rows, self._trained, "--sampling.batch-size")
        sft = self.settings.sft
        micro = min(sft.micro_batch_size, sft.batch_size)
        winners = Rows(micro, self.lengths.prompt, sampling.max_new_tokens)
        yield from self._training(
            "best_of_k",
            winners,
            winners.completion,
            self._trained,
            sft.optimizer,
            sft.batch_size,
            "--sft.micro-batch-size",
        )

    def evaluate(self) -> Iterator[Phase]:
        """Completions of every policy, and their log-probabilities."""
        sampling = self.settings.sampling
        yield self._sampling("evaluate", 1, self._trained)
        size = max(1, sampling.batch_size // LOGPROBS_BATCH_DIVISOR)
        rows = Rows(size, self.lengths.prompt, sampling.max_new_tokens)
        run = self._run(Tape())
        held = self._resident(run, self._trained, 0)
        run.scored(rows, rows.completion)
        yield self._phase("evaluate", "log-probabilities", run, held, "--sampling.batch-size")

    def chat(self) -> Iterator[Phase]:
        """One answer after a long conversation."""
        new = self.settings.sampling.max_new_tokens
        longest = min(self.lengths.chat, self.shape.context - new)
        decode = Decode(1, 1, longest, new, padded=False)
        yield self._decoding("chat", "an answer", 1, decode, "--max-new-tokens")

    # --- phases -----------------------------------------------------------------------------------

    @property
    def _trained(self) -> int:
        """Adapters once a policy is trained: sft, reward and policy, and a value of its own."""
        return 4 if self.settings.ppo.value.trunk == "separate" else 3

    def _run(self, tape: Tape, *, trainable: bool = False, rank: int | None = None) -> Pass:
        own = self.settings.lora.r if rank is None else rank
        return Pass(tape, self.shape, self.device, own, self.checkpointing, trainable)

    def _moments(self, optimizer: OptimizerName) -> float:
        weights = self.shape.adapter_weights(self.settings.lora.r)
        return BYTES_OF_MOMENTS[optimizer] * weights

    def _resident(self, run: Pass, adapters: int, moments: float) -> list[Block]:
        held = resident(
            run.tape, self.shape, self.device, rank=self.settings.lora.r, adapters=adapters
        )
        return [*held, run.tape.new(moments, OPTIMIZER)]

    def _phase(self, stage: str, name: str, run: Pass, held: list[Block], flag: str) -> Phase:
        assert held, "what is resident must live until the pass is over"
        items = {item: size for item, size in run.tape.at_peak.items() if size}
        return Phase(stage, name, items, flag)

    def _is_dense(self) -> bool:
        size = self.shape.layers * self.shape.layer_weights * self.device.width
        return size <= int(self.settings.sampling.dense_gib * 2**30)

    def _decode(self, rows: int, k: int, new: int) -> Decode:
        top_p = self.settings.sampling.top_p < 1
        return Decode(max(1, rows // k), k, self.lengths.prompt, new, self.padded, top_p)

    def _sampling(self, stage: str, k: int, adapters: int) -> Phase:
        own = self.settings.sampling
        decode = self._decode(own.batch_size, k, own.max_new_tokens)
        return self._decoding(stage, "sampling", adapters, decode, "--sampling.batch-size")

    def _decoding(
        self,
        stage: str,
        name: str,
        adapters: int,
        decode: Decode,
        flag: str,
        *,
        moments: float = 0,
    ) -> Phase:
        run = self._run(Tape(), rank=None if adapters else 0)
        held = self._resident(run, adapters, moments)
        decoded(run, decode, dense=self._is_dense())
        return self._phase(stage, name, run, held, flag)

    def _scoring(
        self, stage: str, rows: Rows, adapters: int, flag: str, *, moments: float = 0
    ) -> Phase:
        run = self._run(Tape())
        held = self._resident(run, adapters, moments)
        copies = ready(run, self._is_dense())
        run.scored(rows, 0, decoding=True, dense=self._is_dense())
        return self._phase(stage, "scoring", run, [*held, *copies], flag)

    def _training(
        self,
        stage: str,
        rows: Rows,
        chosen: int,
        adapters: int,
        optimizer: OptimizerName,
        batch: int,
        flag: str,
        *,
        moments: float | None = None,
        head: bool = False,
        logits: bool = True,
    ) -> Iterator[Phase]:
        run = self._run(Tape(), trainable=True)
        moments = self._moments(optimizer) if moments is None else moments
        held = self._resident(run, adapters, moments)
        weights = self.shape.adapter_weights(self.settings.lora.r)
        several = batch > rows.count
        if several:
            held.append(run.tape.new(4 * weights, GRADIENTS))
        run.trained(rows, chosen, logits=logits and chosen > 0, head=head, accumulates=several)
        name = "training" if logits else "value"
        yield self._phase(stage, name, run, held, flag)
        step = self._run(Tape())
        held = self._resident(step, adapters, moments)
        held.append(step.tape.new(4 * weights, GRADIENTS))
        if self.device.kind == "cuda":  # torch takes all roots at once
            step.tape.new(4 * weights if optimizer == "adamw" else 0, OPTIMIZER)
        yield self._phase(stage, "optimiser step", step, held, "--lora.r")
