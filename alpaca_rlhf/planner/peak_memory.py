"""Peak memory of every stage, itemised, phase by phase."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from alpaca_rlhf.core.sizes import LOGPROBS_BATCH_DIVISOR, SCORING_BATCH_FACTOR
from alpaca_rlhf.planner.decoding import DENSE, Decode, decode, make_ready
from alpaca_rlhf.planner.layers import GRADIENTS, Device
from alpaca_rlhf.planner.passes import Pass, Rows, resident
from alpaca_rlhf.planner.shapes import Shape
from alpaca_rlhf.planner.tape import Block, Tape
from alpaca_rlhf.settings import GroupPolicy, Loop, OptimizerName
from alpaca_rlhf.settings.policies import POLICY_STAGES

STAGES = ("generate", "sft", "sample", "reward", *POLICY_STAGES, "evaluate", "chat")
"""Stages with a model, each a method of `PeakMemory`, in the order of the report."""
OPTIMIZER = "optimiser"
BYTES_OF_MOMENTS: dict[OptimizerName, float] = {
    "adamw": 8,
    "adamw8bit": 2 + 8 / 256,
    "paged_adamw8bit": 2 + 8 / 256,
}
"""Bytes of a weight's two moments; bitsandbytes keeps one scale for every 256 numbers."""


@dataclass(frozen=True)
class Lengths:
    """Lengths in tokens that no setting bounds."""

    prompt: int = 256
    """The longest prompt, its template included."""
    worksheet: int = 768
    """A request for new tasks."""
    chat: int = 2048
    """The turns of a conversation so far."""


@dataclass(frozen=True)
class Phase:
    """The moment of highest memory use in one part of a stage."""

    stage: str
    """Name in the report."""
    name: str
    """The part of the stage."""
    items: Mapping[str, int]
    """Bytes by purpose."""
    flag: str
    """The flag to lower where it does not fit."""

    @property
    def peak(self) -> int:
        """Total bytes."""
        return sum(self.items.values())


@dataclass(frozen=True)
class _Residents:
    """The setting of a phase: its place in the report, and what is resident all through it."""

    stage: str
    flag: str
    """The flag to lower where it does not fit."""
    adapters: int
    moments: float = 0.0
    """Bytes of the optimiser's moments."""


@dataclass(frozen=True)
class _Update:
    """An optimiser step over a batch of rows, taken in micro-batches."""

    rows: Rows
    """One micro-batch."""
    loss_tokens: int
    """Tokens of each row that carry loss; 0 for a score at its end."""
    optimizer: OptimizerName
    batch: int
    """Rows of the whole batch."""
    head: bool = False
    """A value head reads the same hidden states beside the policy."""
    logits: bool = True
    """The loss is of log-probabilities; otherwise of the value head alone."""


@dataclass(frozen=True)
class PeakMemory:
    """Peak memory of a loop's stages on a device.

    Args:
        shape: Sizes of the base.
        device: Compute dtype and kind.
        settings: Every number of the loop.
        lengths: Lengths that no setting bounds.
        checkpointing: Each n-th layer is recomputed in the backward pass, none for 0, as
            `Loop.checkpoints_on` says.
        padded: Prompts differ in length.
    """

    shape: Shape
    device: Device
    settings: Loop
    lengths: Lengths = field(default_factory=Lengths)
    checkpointing: int = 1
    padded: bool = True

    def all(self) -> dict[str, list[Phase]]:
        """Phases of every stage that is run, in the order of the report."""
        return {name: self.phases(name) for name in STAGES if name not in self.spared}

    def phases(self, stage: str) -> list[Phase]:
        """Phases of a stage."""
        return list(getattr(self, stage)())

    def of_one_layer(self, stage: str) -> list[Mapping[str, int]]:
        """Bytes by purpose of each phase of a stage on a base with a single layer, all kept."""
        shape = replace(self.shape, layers=1, windowed=min(1, self.shape.windowed))
        plan = replace(self, shape=shape, checkpointing=0)
        return [phase.items for phase in plan.phases(stage)]

    @property
    def spared(self) -> set[str]:
        """Names of the stages that own files or a judge replace, and of policies left out."""
        inputs = self.settings.inputs
        spared = {*POLICY_STAGES} - {*self.settings.policy_stages}
        if not inputs.makes_rows:
            spared.add("generate")
        if not self.settings.rewarded:
            spared.add("reward")
        if self.settings.reward.source == "judge":
            spared |= {"sample", "reward"}
        return spared | ({"sample"} if inputs.rankings is not None else set())

    def peak(self, stage: str) -> int:
        """Bytes of a stage's largest phase."""
        return max(phase.peak for phase in self.all()[stage])

    # --- stages -----------------------------------------------------------------------------------

    def generate(self) -> Iterator[Phase]:
        """Yield the phase in which the bare base continues worksheets."""
        settings = self.settings.generate
        worksheets = Decode(
            settings.batch_size,
            1,
            self.lengths.worksheet,
            settings.max_new_tokens,
            self.padded,
            settings.top_p < 1,
        )
        residents = _Residents("generate", "--generate.batch-size", adapters=0)
        yield self._decoding(residents, "sampling", worksheets)

    def sft(self) -> Iterator[Phase]:
        """Yield the phases of training one adapter with loss on every completion token."""
        settings = self.settings.sft
        length = min(settings.max_length, self.shape.context)
        prompt = min(self.lengths.prompt, length // 2)
        micro = min(settings.micro_batch_size, settings.examples_per_step())
        rows = Rows(micro, prompt, length - prompt)
        update = _Update(rows, rows.completion, settings.optimizer, settings.examples_per_step())
        yield from self._training(self._trained_by("sft", update, 1), update)

    def sample(self) -> Iterator[Phase]:
        """Yield the phases of sampling K completions of each prompt, and of scoring for a queue."""
        yield self._sampling("sample", self.settings.rank.k, 1)
        if self.settings.queues_uncertain and self.settings.all_rounds > 1:
            sampling = self.settings.sampling
            k = self.settings.rank.k
            rows = Rows(sampling.batch_size, self.lengths.prompt, sampling.max_new_tokens, k)
            residents = _Residents("sample", "--sampling.batch-size", self._trained_adapters)
            yield self._scoring(residents, rows)

    def reward(self) -> Iterator[Phase]:
        """Yield the phases of training on K scored completions a ranking, and of scoring."""
        settings, k = self.settings.reward, self.settings.rank.k
        micro = min(settings.micro_batch_size, settings.rankings_per_step())
        rows = self._ranked(micro, settings.max_length)
        update = _Update(rows, 0, settings.optimizer, settings.rankings_per_step() * k)
        # 1. Training, with the SFT adapter still loaded. A head more than one is weights of its
        #    own, with gradients and moments.
        residents = self._trained_by("reward", update, 2)
        bytes_of_weight = 4 + 4 + BYTES_OF_MOMENTS[settings.optimizer]
        more_heads = (settings.heads - 1) * self.shape.hidden * bytes_of_weight
        residents = replace(residents, moments=residents.moments + more_heads)
        yield from self._training(residents, update)
        # 2. Scoring of held-out rankings, which keeps no activations, so in larger batches.
        yield self._scoring(
            residents, replace(rows, count=settings.micro_batch_size * SCORING_BATCH_FACTOR)
        )

    def ppo(self) -> Iterator[Phase]:
        """Yield the phases of rollout, scoring by every adapter, and the updates."""
        settings, flag = self.settings.ppo, "--ppo.micro-batch-size"
        separate = settings.value.trunk == "separate"
        moments = self._moments(settings.optimizer) * (2 if separate else 1)
        residents = _Residents("ppo", flag, self._trained_adapters, moments)

        # 1. Rollout: sample completions from the policy.
        rollout_rows = min(self.settings.sampling.batch_size, settings.batch_size)
        rollout = self._decode(rollout_rows, 1, settings.max_new_tokens)
        yield self._decoding(replace(residents, flag="--sampling.batch-size"), "rollout", rollout)

        # 2. Scoring: log-probabilities, values and rewards, without gradients.
        micro = min(settings.micro_batch_size, settings.minibatch_size)
        rows = Rows(micro, self.lengths.prompt, settings.max_new_tokens)
        scoring = self._pass(Tape(), trainable=True)
        held = self._resident(scoring, residents)
        held += self._dequantized(scoring)
        scoring.scored(rows, rows.completion, values=not separate)
        yield self._phase(residents, "scoring", scoring, held)

        # 3. Updates: policy and value share a forward unless the value has a trunk of its own.
        policy = _Update(
            rows, rows.completion, settings.optimizer, settings.minibatch_size, head=not separate
        )
        yield from self._training(residents, policy)
        if separate:
            yield from self._training(residents, replace(policy, head=False, logits=False))

    def best_of_k(self) -> Iterator[Phase]:
        """Yield the phases of sampling K completions, scoring them, and training on the winners."""
        settings, sampling = self.settings.best_of_k, self.settings.sampling
        # 1. Sample K completions of each prompt.
        yield self._sampling("best_of_k", settings.k, self._trained_adapters)
        # 2. Score them with the reward model.
        if self.settings.reward.source == "rankings":
            rows = Rows(
                sampling.batch_size, self.lengths.prompt, sampling.max_new_tokens, settings.k
            )
            yield self._scoring(
                _Residents("best_of_k", "--sampling.batch-size", self._trained_adapters), rows
            )
        # 3. Train on the winners as SFT does.
        sft = self.settings.sft
        micro = min(sft.micro_batch_size, sft.examples_per_step())
        winners = Rows(micro, self.lengths.prompt, sampling.max_new_tokens)
        update = _Update(winners, winners.completion, sft.optimizer, sft.examples_per_step())
        residents = self._trained_by("best_of_k", update, self._trained_adapters)
        yield from self._training(replace(residents, flag="--sft.micro-batch-size"), update)

    def dpo(self) -> Iterator[Phase]:
        """Yield the phases of the reference's log-probabilities, and of training on rankings."""
        settings, k = self.settings.dpo, self.settings.rank.k
        micro = min(settings.micro_batch_size, settings.rankings_per_step())
        rows = self._ranked(micro, settings.max_length)
        batch = settings.rankings_per_step() * k
        update = _Update(rows, rows.completion, settings.optimizer, batch)
        residents = self._trained_by("dpo", update, self._trained_adapters)
        # 1. Log-probabilities of SFT, without gradients.
        scoring = self._pass(Tape())
        held = self._resident(scoring, replace(residents, moments=0.0))
        held += self._dequantized(scoring)
        scoring.scored(rows, rows.completion)
        yield self._phase(residents, "reference", scoring, held)
        # 2. Training.
        yield from self._training(residents, update)

    def grpo(self) -> Iterator[Phase]:
        """Yield the phases of rollout, scoring by every adapter, and the updates."""
        yield from self._in_groups("grpo", self.settings.grpo)

    def rloo(self) -> Iterator[Phase]:
        """Yield the same phases as GRPO's."""
        yield from self._in_groups("rloo", self.settings.rloo)

    def _in_groups(self, stage: str, settings: GroupPolicy) -> Iterator[Phase]:
        """Phases of a policy that learns from groups of completions, without a value function."""
        micro = min(settings.micro_batch_size, settings.minibatch_size)
        rows = Rows(
            micro,
            self.lengths.prompt,
            settings.max_new_tokens,
            settings.k,
            cut=settings.minibatch_size,
        )
        update = _Update(rows, rows.completion, settings.optimizer, settings.minibatch_size)
        residents = self._trained_by(stage, update, self._trained_adapters)
        # 1. Rollout: sample K completions of each prompt from the policy.
        rollout_rows = min(self.settings.sampling.batch_size, settings.completions)
        rollout = self._decode(rollout_rows, settings.k, settings.max_new_tokens)
        yield self._decoding(replace(residents, flag="--sampling.batch-size"), "rollout", rollout)
        # 2. Scoring: log-probabilities and rewards, without gradients.
        scoring = self._pass(Tape(), trainable=True)
        held = self._resident(scoring, residents)
        held += self._dequantized(scoring)
        scoring.scored(rows, rows.completion)
        yield self._phase(residents, "scoring", scoring, held)
        # 3. Updates.
        yield from self._training(residents, update)

    def evaluate(self) -> Iterator[Phase]:
        """Yield the phases of sampling from every policy and of its log-probabilities."""
        sampling = self.settings.sampling
        # 1. Sample from every policy, and the samples to rerank; score them.
        yield self._sampling("evaluate", 1, self._trained_adapters)
        if self.settings.evaluate.rerank:
            yield self._sampling("evaluate", self.settings.best_of_k.k, self._trained_adapters)
        scored = Rows(sampling.batch_size, self.lengths.prompt, sampling.max_new_tokens)
        residents = _Residents("evaluate", "--sampling.batch-size", self._trained_adapters)
        yield self._scoring(residents, scored)
        # 2. Log-probabilities, in smaller batches because of the logits of all tokens.
        size = max(1, sampling.batch_size // LOGPROBS_BATCH_DIVISOR)
        rows = Rows(size, self.lengths.prompt, sampling.max_new_tokens)
        scoring = self._pass(Tape())
        held = self._resident(scoring, residents)
        held += self._dequantized(scoring)
        scoring.scored(rows, rows.completion)
        yield self._phase(residents, "log-probabilities", scoring, held)

    def chat(self) -> Iterator[Phase]:
        """Yield the phase of one answer after a long conversation."""
        new_tokens = self.settings.sampling.max_new_tokens
        longest = min(self.lengths.chat, self.shape.context - new_tokens)
        answer = Decode(1, 1, longest, new_tokens, padded=False)
        yield self._decoding(_Residents("chat", "--max-new-tokens", 1), "an answer", answer)

    def _ranked(self, rankings: int, max_length: int) -> Rows:
        """K completions of each ranking at their longest, which share its prompt."""
        length = min(max_length, self.shape.context)
        if self.settings.inputs.rankings is None:  # completions come from the sample stage
            longest = self.lengths.prompt + self.settings.sampling.max_new_tokens
            length = min(length, longest)
        prompt = min(self.lengths.prompt, length // 2)
        k = self.settings.rank.k
        return Rows(rankings * k, prompt, length - prompt, k)

    # --- phases -----------------------------------------------------------------------------------

    @property
    def _trained_adapters(self) -> int:
        """Adapters once a policy is trained: sft, policy, and perhaps reward, second and value."""
        settings = self.settings
        reward = settings.rewarded and settings.reward.source == "rankings"
        value = "ppo" in settings.policy_stages and settings.ppo.value.trunk == "separate"
        return 2 + reward + settings.second_reward + value

    def _pass(self, tape: Tape, *, trainable: bool = False, adapted: bool = True) -> Pass:
        rank = self.settings.lora.r if adapted else 0
        return Pass(tape, self.shape, self.device, rank, self.checkpointing, trainable)

    def _moments(self, optimizer: OptimizerName) -> float:
        weights = self.shape.adapter_weights(self.settings.lora.r)
        return BYTES_OF_MOMENTS[optimizer] * weights

    def _trained_by(self, stage: str, update: _Update, adapters: int) -> _Residents:
        """Residents of a stage whose optimiser holds one adapter."""
        flag = f"--{stage}.micro-batch-size"
        return _Residents(stage, flag, adapters, self._moments(update.optimizer))

    def _resident(self, run: Pass, residents: _Residents) -> list[Block]:
        held = resident(run, rank=self.settings.lora.r, adapters=residents.adapters)
        return [*held, run.tape.new(residents.moments, OPTIMIZER)]

    def _phase(self, residents: _Residents, name: str, run: Pass, held: list[Block]) -> Phase:
        assert held, "what is resident must live until the pass is over"
        items = {item: size for item, size in run.tape.at_peak.items() if size}
        return Phase(residents.stage, name, items, residents.flag)

    def _is_dense(self) -> bool:
        """True if a 16-bit copy of the 4-bit weights fits."""
        size = self.shape.layers * self.shape.layer_weights * self.device.width
        return size <= int(self.settings.sampling.dense_gib * 2**30)

    def _dequantized(self, run: Pass) -> list[Block]:
        """The copy of the 4-bit weights that batches share on a CPU."""
        if self.device.kind != "cpu" or not self._is_dense():
            return []
        weights = self.shape.layers * self.shape.layer_weights
        return [run.tape.new(weights * self.device.width, DENSE)]

    def _decode(self, rows: int, k: int, new_tokens: int) -> Decode:
        top_p = self.settings.sampling.top_p < 1
        prompts = max(1, rows // k)
        return Decode(prompts, k, self.lengths.prompt, new_tokens, self.padded, top_p)

    def _sampling(self, stage: str, k: int, adapters: int) -> Phase:
        sampling = self.settings.sampling
        completions = self._decode(sampling.batch_size, k, sampling.max_new_tokens)
        residents = _Residents(stage, "--sampling.batch-size", adapters)
        return self._decoding(residents, "sampling", completions)

    def _decoding(self, residents: _Residents, name: str, completions: Decode) -> Phase:
        run = self._pass(Tape(), adapted=residents.adapters > 0)
        held = self._resident(run, residents)
        decode(run, replace(completions, dense=self._is_dense()))
        return self._phase(residents, name, run, held)

    def _scoring(self, residents: _Residents, rows: Rows) -> Phase:
        run = self._pass(Tape())
        held = self._resident(run, residents)
        held += make_ready(run, self._is_dense())
        run.scored(rows, 0, decoding=True, dense=self._is_dense())
        return self._phase(residents, "scoring", run, held)

    def _training(self, residents: _Residents, update: _Update) -> Iterator[Phase]:
        weights = self.shape.adapter_weights(self.settings.lora.r)

        # 1. Forward and backward of a micro-batch, on gradients that earlier ones left.
        run = self._pass(Tape(), trainable=True)
        held = self._resident(run, residents)
        held += self._dequantized(run)
        accumulates = update.batch > update.rows.count
        if accumulates:
            held.append(run.tape.new(4 * weights, GRADIENTS))
        run.trained(
            update.rows,
            update.loss_tokens,
            logits=update.logits and update.loss_tokens > 0,
            head=update.head,
            accumulates=accumulates,
        )
        name = "training" if update.logits else "value"
        yield self._phase(residents, name, run, held)

        # 2. The optimiser step.
        step = self._pass(Tape())
        held = self._resident(step, residents)
        held.append(step.tape.new(4 * weights, GRADIENTS))
        if self.device.kind == "cuda":  # torch takes the square roots of all moments at once
            step.tape.new(4 * weights if update.optimizer == "adamw" else 0, OPTIMIZER)
        yield self._phase(replace(residents, flag="--lora.r"), "optimiser step", step, held)
