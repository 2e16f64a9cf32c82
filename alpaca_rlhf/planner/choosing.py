"""The largest settings that fit a GPU.

Micro-batches, batches that are decoded together, and activations kept instead of recomputed. None
of them changes what is learned; lengths do, and change only if the user allows it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.planner.gpu_specs import CONTEXT_GIB, CPU, LIBRARIES_GIB, GpuSpec, reserve
from alpaca_rlhf.planner.layers import Device
from alpaca_rlhf.planner.peak_memory import STAGES, Lengths, PeakMemory, Phase
from alpaca_rlhf.planner.shapes import Shape, shape_of
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.settings.loop import Checkpointing
from alpaca_rlhf.settings.policies import POLICY_STAGES, REWARDED_STAGES

MIN_LENGTH = 64
"""Tokens below which a length is of no use."""
ENOUGH_TOKENS = 8192
"""Tokens in memory at once beyond which a product is no faster; an estimate. The rest of the GPU
stays free, as a margin."""
ENOUGH_TO_KEEP = 1024
"""Tokens in memory at once from which keeping all activations, which spares a third of the work, is
worth more than further tokens; an estimate."""
MAX_DECODED = 128
"""Completions decoded together beyond which little is gained."""


@dataclass(frozen=True)
class Budget:
    """The base, the GPU, and what else bounds a run beside its settings."""

    shape: Shape
    """Sizes of the base."""
    gpu: GpuSpec
    """The GPU, or the CPU."""
    lengths: Lengths = field(default_factory=Lengths)
    """Lengths that no setting bounds."""
    device: Device = field(default_factory=Device)
    """Compute dtype and kind."""

    @property
    def bytes(self) -> int:
        """Memory of the GPU."""
        return int(self.gpu.gib * 2**30)

    def phases(self, settings: Loop) -> dict[str, list[Phase]]:
        """Phases of every stage, each with the reserve that must stay free beside it."""
        plan = self._plan(settings)
        return {stage: self._stage(plan, stage) for stage in STAGES if stage not in plan.spared}

    def fits(self, settings: Loop, stages: tuple[str, ...]) -> bool:
        """True if every phase of the given stages fits."""
        plan = self._plan(settings)
        return all(
            phase.peak <= self.bytes
            for stage in stages
            if stage not in plan.spared
            for phase in self._stage(plan, stage)
        )

    def _plan(self, settings: Loop) -> PeakMemory:
        checkpointing = settings.checkpoints_on(self.device.kind)
        return PeakMemory(
            self.shape, self.device, settings, self.lengths, checkpointing=checkpointing
        )

    def _stage(self, plan: PeakMemory, stage: str) -> list[Phase]:
        """Phases of a stage, each with CUDA's context or the libraries, and the gaps of memory."""
        return [
            replace(phase, items={**phase.items, **reserve(phase.items, layer, self.device.kind)})
            for phase, layer in zip(plan.phases(stage), plan.of_one_layer(stage), strict=True)
        ]


def device_of(gpu: GpuSpec) -> Device:
    """Kind and compute dtype of a GPU; fp32 on the CPU, since not every CPU has bf16."""
    if gpu.name == CPU.name:
        return Device("cpu", 4)
    return Device(capability=gpu.capability)


@dataclass(frozen=True)
class _Knob:
    """A batch size that changes no result."""

    section: str
    """Section of the settings, e.g. `sft`."""
    name: str
    """Field of the section, e.g. `micro_batch_size`."""
    stages: tuple[str, ...]
    """Stages that must fit with it."""
    most: Callable[[Loop], int]
    """The largest size worth having."""
    tokens: Callable[[Loop], int] | None = None
    """Tokens of the longest row that is trained on; None where nothing is trained."""

    def turned(self, settings: Loop, size: int) -> Loop:
        """Settings with the knob at `size`."""
        return _with(settings, self.section, self.name, size)


def _with(settings: Loop, section: str, name: str, number: int) -> Loop:
    changed = replace(getattr(settings, section), **{name: number})
    return replace(settings, **{section: changed})


def _rows(batch: int, length: int) -> int:
    """Rows of a batch that make up `ENOUGH_TOKENS` tokens."""
    return max(1, min(batch, ENOUGH_TOKENS // length))


def _sft_tokens(settings: Loop) -> int:
    return settings.sft.max_length


def _reward_tokens(settings: Loop) -> int:
    return settings.reward.max_length * settings.rank.k


def _ppo_tokens(settings: Loop) -> int:
    return settings.ppo.max_new_tokens + Lengths.prompt


def _dpo_tokens(settings: Loop) -> int:
    return settings.dpo.max_length * settings.rank.k


def _grpo_tokens(settings: Loop) -> int:
    return settings.grpo.max_new_tokens + Lengths.prompt


def _rloo_tokens(settings: Loop) -> int:
    return settings.rloo.max_new_tokens + Lengths.prompt


def _sft_rows(settings: Loop) -> int:
    return _rows(settings.sft.examples_per_step(), _sft_tokens(settings))


def _reward_rows(settings: Loop) -> int:
    return _rows(settings.reward.rankings_per_step(), _reward_tokens(settings))


def _dpo_rows(settings: Loop) -> int:
    return _rows(settings.dpo.rankings_per_step(), _dpo_tokens(settings))


def _grpo_rows(settings: Loop) -> int:
    return _rows(settings.grpo.minibatch_size, _grpo_tokens(settings))


def _rloo_rows(settings: Loop) -> int:
    return _rows(settings.rloo.minibatch_size, _rloo_tokens(settings))


def _ppo_rows(settings: Loop) -> int:
    return _rows(settings.ppo.minibatch_size, _ppo_tokens(settings))


KNOBS = (
    _Knob("sft", "micro_batch_size", ("sft", "best_of_k"), _sft_rows, _sft_tokens),
    _Knob("reward", "micro_batch_size", ("reward",), _reward_rows, _reward_tokens),
    _Knob("ppo", "micro_batch_size", ("ppo",), _ppo_rows, _ppo_tokens),
    _Knob("dpo", "micro_batch_size", ("dpo",), _dpo_rows, _dpo_tokens),
    _Knob("grpo", "micro_batch_size", ("grpo",), _grpo_rows, _grpo_tokens),
    _Knob("rloo", "micro_batch_size", ("rloo",), _rloo_rows, _rloo_tokens),
    _Knob(
        "sampling",
        "batch_size",
        ("sample", *REWARDED_STAGES, "evaluate"),
        lambda settings: MAX_DECODED,
    ),
    # Requests sent together see fewer earlier tasks, so the teacher's tasks differ. This one is
    # lowered where it must be, and never raised.
    _Knob("generate", "batch_size", ("generate",), lambda settings: settings.generate.batch_size),
)
"""The sizes that are chosen, in this order."""


def largest_fitting(budget: Budget, settings: Loop, *, lengths: bool = False) -> Loop:
    """Choose the largest batches in memory that fit the GPU.

    Args:
        budget: The GPU and the base.
        settings: Every number; those that change a result stay.
        lengths: Rows and completions may be shortened where nothing else helps.

    Raises:
        UserError: A stage does not fit with one row at a time.
    """
    # 1. Start with one row at a time, without what only saves time.
    limits = [knob.most(settings) for knob in _knobs(settings)]
    settings = _one_row_each(settings)
    settings = _without_copy(budget, settings)
    if lengths:
        settings = _shortened(budget, settings)
    refuse_too_small(budget, settings)

    # 2. Recompute as few layers as leave room for enough tokens. Fewer need more memory, so that
    #    the choices are halved between the last that fits and the first that does not.
    if settings.checkpointing == "auto" and settings.checkpoints_on(budget.device.kind):
        choices = less_recomputing(budget.shape.layers)
        fitting: Loop | None = None
        low, high = 0, len(choices)
        while low < high:
            middle = (low + high) // 2
            raised = _raised(budget, replace(settings, checkpointing=choices[middle]), limits)
            if _trains_enough_tokens(budget, raised, limits):
                fitting, high = raised, middle
            else:
                low = middle + 1
        if fitting is not None:
            return fitting
    # 3. Otherwise raise each size as far as it fits while they are recomputed.
    return _raised(budget, settings, limits)


def fitted(settings: Loop, gpu: GpuSpec) -> Loop:
    """The largest batches that fit a GPU; the settings as they are where the plan cannot tell.

    It cannot tell where the base's sizes are unknown or a stage does not fit with one row at a
    time; the run itself then says what is wrong.
    """
    try:
        budget = Budget(shape_of(settings.base), gpu, device=device_of(gpu))
        return largest_fitting(budget, settings)
    except UserError:
        return settings


def less_recomputing(layers: int) -> list[Checkpointing]:
    """Settings that recompute fewer than all layers, the least work first.

    Of numbers by which as many layers are recomputed the smallest, whose layers lie most evenly.
    """
    numbers = {-(-layers // every): every for every in range(layers, 1, -1)}
    return ["off", *(numbers[recomputed] for recomputed in sorted(numbers))]


def _raised(budget: Budget, settings: Loop, limits: Sequence[int]) -> Loop:
    """Each size as large as it fits, from one row at a time."""
    for knob, limit in zip(_knobs(settings), limits, strict=True):
        settings = _largest(budget, settings, knob, limit)
    return settings


def _trains_enough_tokens(budget: Budget, settings: Loop, limits: Sequence[int]) -> bool:
    """True if each training stage fits with `ENOUGH_TO_KEEP` tokens, or a whole batch, at once."""
    for knob, limit in zip(_knobs(settings), limits, strict=True):
        if knob.tokens is None:
            continue
        rows = getattr(getattr(settings, knob.section), knob.name)
        enough = rows == limit or rows * knob.tokens(settings) >= ENOUGH_TO_KEEP
        if not enough or not budget.fits(settings, knob.stages):
            return False
    return True


def _knobs(settings: Loop) -> list[_Knob]:
    """The sizes of a run: those of policies that were not chosen stay as they are."""
    left_out = {*POLICY_STAGES} - {*settings.policy_stages}
    return [knob for knob in KNOBS if knob.section not in left_out]


def _one_row_each(settings: Loop) -> Loop:
    for knob in _knobs(settings):
        settings = knob.turned(settings, 1)
    return settings


def refuse_too_small(budget: Budget, settings: Loop, stages: Collection[str] | None = None) -> None:
    """Refuse a GPU on which a stage does not fit even with one row at a time.

    Args:
        budget: The GPU and the base.
        settings: Every number; those that change a result stay.
        stages: Names of the stages that are to run; None for all.

    Raises:
        UserError: Names the stage, its need, and the flag to lower.
    """
    settings = _one_row_each(settings)
    # The smallest need: one row at a time, and no 16-bit copy of the base.
    without_copy = replace(settings, sampling=replace(settings.sampling, dense_gib=0.0))
    for stage, phases in budget.phases(without_copy).items():
        for phase in phases:
            if phase.peak <= budget.bytes or stage == "chat":
                continue
            if stages is not None and stage not in stages:
                continue
            need = phase.peak / 2**30
            advice = f"lower {_LOWER.get(stage, '--sampling.max-new-tokens')}"
            # Shorter rows cannot help where the weights alone do not fit, or the need is far above.
            resident = sum(phase.items.values()) - phase.items.get("activations", 0)
            if resident > budget.bytes or phase.peak > 4 * budget.bytes:
                advice = "lower --lora.r or take a smaller base"
            elif settings.checkpointing not in ("auto", "on"):
                advice = "give --checkpointing on"
            cuda = budget.device.kind == "cuda"
            others = f"{CONTEXT_GIB:g} GiB of it for CUDA"
            others = others if cuda else f"{LIBRARIES_GIB:g} GiB of it for the libraries"
            raise UserError(
                f"{budget.gpu.described}: {stage} of --base {budget.shape.name} needs "
                f"{need:.1f} GiB with one row at a time ({others}); {advice}, or use a "
                f"larger {'card' if cuda else 'machine'}"
            )


_LOWER = {
    "generate": "--generate.max-new-tokens",
    "sft": "--sft.max-length",
    "reward": "--reward.max-length or --rank.k",
    "ppo": "--ppo.max-new-tokens",
    "best_of_k": "--best-of-k.k or --sampling.max-new-tokens",
    "dpo": "--dpo.max-length or --rank.k",
    "grpo": "--grpo.max-new-tokens",
    "rloo": "--rloo.max-new-tokens",
}
"""The flag to lower where one row at a time does not fit."""


def _largest(budget: Budget, settings: Loop, knob: _Knob, limit: int) -> Loop:
    best = settings
    for size in _sizes(limit):
        candidate = knob.turned(settings, size)
        # Memory grows with the size, so no larger one fits either.
        if not budget.fits(candidate, knob.stages):
            break
        best = candidate
    return best


def _sizes(limit: int) -> Iterator[int]:
    """Yield powers of two below the limit, then the limit itself."""
    size = 1
    while size < limit:
        yield size
        size *= 2
    yield limit


def _without_copy(budget: Budget, settings: Loop) -> Loop:
    """Drop the 16-bit copy of the base while sampling if a stage does not fit with it."""
    stages = ("generate", "sample", "reward", *REWARDED_STAGES, "evaluate")
    if budget.fits(settings, stages):
        return settings
    return replace(settings, sampling=replace(settings.sampling, dense_gib=0.0))


def _shortened(budget: Budget, settings: Loop) -> Loop:
    """Halve lengths until one row fits, or further halving makes no sense."""
    for stages, section, name in (
        (("sft",), "sft", "max_length"),
        (("reward",), "reward", "max_length"),
        (("ppo",), "ppo", "max_new_tokens"),
        (("dpo",), "dpo", "max_length"),
        (("grpo",), "grpo", "max_new_tokens"),
        (("rloo",), "rloo", "max_new_tokens"),
        (("sample", "best_of_k", "evaluate"), "sampling", "max_new_tokens"),
    ):
        while not budget.fits(settings, stages):
            length = getattr(getattr(settings, section), name) // 2
            if length < MIN_LENGTH:
                break
            settings = _with(settings, section, name, length)
    return settings


def changed_flags(before: Loop, after: Loop) -> dict[str, tuple[object, object]]:
    """Flags whose values differ, with their value before and after."""
    changes: dict[str, tuple[object, object]] = {}
    if before.checkpointing != after.checkpointing:
        changes["--checkpointing"] = (before.checkpointing, after.checkpointing)
    for section in dict.fromkeys(knob.section for knob in KNOBS):
        old, new = getattr(before, section), getattr(after, section)
        for name in ("micro_batch_size", "batch_size", "max_length", "max_new_tokens", "dense_gib"):
            value = getattr(old, name, None)
            if value is not None and value != getattr(new, name):
                flag = f"--{section}.{name.replace('_', '-')}"
                changes[flag] = (value, getattr(new, name))
    return changes
