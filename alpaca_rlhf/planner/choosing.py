"""The largest settings that fit a card: micro-batches and batches that are decoded together.

None of them changes what is learned; lengths do, and are touched only if the user allows it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.planner.cards import CONTEXT_GIB, CPU, RESERVE, Card, reserve
from alpaca_rlhf.planner.layers import Device
from alpaca_rlhf.planner.memory import Lengths, Memory, Phase
from alpaca_rlhf.planner.shapes import Shape
from alpaca_rlhf.settings import Loop

SHORTEST = 64
"""Tokens below which a length is not worth having."""
ENOUGH = 8192
"""Tokens in memory at once beyond which a product is no faster; an estimate. What is left of the
card stays free, as a margin."""
MOST_DECODED = 128
"""Completions decoded together beyond which little is won."""


@dataclass(frozen=True)
class Budget:
    """What a run has, and what no setting says."""

    shape: Shape
    """The base."""
    card: Card
    """Its card."""
    lengths: Lengths = field(default_factory=Lengths)
    """Tokens that no setting bounds."""
    device: Device = field(default_factory=Device)
    """How it computes."""

    @property
    def bytes(self) -> int:
        """Memory of the card."""
        return int(self.card.gib * 2**30)

    def phases(self, settings: Loop) -> dict[str, list[Phase]]:
        """Every phase with what must stay free beside it."""
        cuda = self.device.kind == "cuda"
        plan = Memory(self.shape, self.device, settings, self.lengths, checkpointing=cuda)
        return {name: [self._kept_free(one) for one in all_] for name, all_ in plan.all().items()}

    def _kept_free(self, phase: Phase) -> Phase:
        if self.device.kind == "cpu":
            return phase
        return replace(phase, items={**phase.items, RESERVE: reserve(dict(phase.items))})

    def fits(self, settings: Loop, stages: tuple[str, ...]) -> bool:
        """Whether every phase of some stages fits."""
        cuda = self.device.kind == "cuda"
        plan = Memory(self.shape, self.device, settings, self.lengths, checkpointing=cuda)
        return all(
            self._kept_free(one).peak <= self.bytes
            for name in stages
            if name not in plan.spared
            for one in getattr(plan, name)()
        )


def device_of(card: Card) -> Device:
    """How a card computes; the CPU in fp32, since not every CPU has bf16."""
    return Device("cpu", 4) if card.name == CPU.name else Device()


@dataclass(frozen=True)
class _Knob:
    flag: str
    stages: tuple[str, ...]
    most: Callable[[Loop], int]
    put: Callable[[Loop, int], Loop]


def _micro(stage: str, stages: tuple[str, ...], most: Callable[[Loop], int]) -> _Knob:
    def put(settings: Loop, size: int) -> Loop:
        own = replace(getattr(settings, stage), micro_batch_size=size)
        return replace(settings, **{stage: own})

    return _Knob(
        f"--{stage}.micro-batch-size",
        stages,
        most,
        put,
    )


def _sampling(settings: Loop, size: int) -> Loop:
    return replace(settings, sampling=replace(settings.sampling, batch_size=size))


def _generate(settings: Loop, size: int) -> Loop:
    return replace(settings, generate=replace(settings.generate, batch_size=size))


def _rows(batch: int, length: int) -> int:
    """Rows of a batch that make up `ENOUGH` tokens."""
    return max(1, min(batch, ENOUGH // length))


def _sft_rows(settings: Loop) -> int:
    return _rows(settings.sft.batch_size, settings.sft.max_length)


def _reward_rows(settings: Loop) -> int:
    return _rows(settings.reward.batch_size, settings.reward.max_length * settings.rank.k)


def _ppo_rows(settings: Loop) -> int:
    return _rows(settings.ppo.minibatch_size, settings.ppo.max_new_tokens + Lengths.prompt)


KNOBS = (
    _micro("sft", ("sft", "best_of_k"), _sft_rows),
    _micro("reward", ("reward",), _reward_rows),
    _micro("ppo", ("ppo",), _ppo_rows),
    _Knob(
        "--sampling.batch-size",
        ("sample", "ppo", "best_of_k", "evaluate"),
        lambda settings: MOST_DECODED,
        _sampling,
    ),
    # Asked together, requests know less of each other: the teacher's tasks are others. So it is
    # lowered where it must be, and never raised.
    _Knob(
        "--generate.batch-size",
        ("generate",),
        lambda settings: settings.generate.batch_size,
        _generate,
    ),
)
"""What is chosen, and which stages must fit with it."""


def chosen(budget: Budget, settings: Loop, *, lengths: bool = False) -> Loop:
    """The settings with the largest batches in memory that fit the card.

    Args:
        budget: The card and the base.
        settings: Every number; what changes a result stays.
        lengths: Whether rows and completions may be made shorter where nothing else helps.

    Raises:
        UserError: Something does not fit with one row at a time.
    """
    most = [knob.most(settings) for knob in KNOBS]
    settings = _one_by_one(settings)
    settings = _copied(budget, settings)
    if lengths:
        settings = _shortened(budget, settings)
    refuse_too_small(budget, settings)
    for knob, size in zip(KNOBS, most, strict=True):
        settings = _largest(budget, settings, knob, size)
    return settings


def _one_by_one(settings: Loop) -> Loop:
    for knob in KNOBS:
        settings = knob.put(settings, 1)
    return settings


def refuse_too_small(budget: Budget, settings: Loop, stages: Collection[str] | None = None) -> None:
    """Refuse a card on which a stage does not fit even with one row at a time.

    Args:
        budget: The card and the base.
        settings: Every number; what changes a result stays.
        stages: Names of those that are to run; None for all.

    Raises:
        UserError: What does not fit, and what to lower.
    """
    settings = _one_by_one(settings)
    dense = replace(settings, sampling=replace(settings.sampling, dense_gib=0.0))
    for stage, phases in budget.phases(dense).items():
        for phase in phases:
            if phase.peak <= budget.bytes or stage == "chat":
                continue
            if stages is not None and stage not in stages:
                continue
            need = phase.peak / 2**30
            lower = _LOWER.get(stage, "--sampling.max-new-tokens")
            still = sum(phase.items.values()) - phase.items.get("activations", 0)
            if still > budget.bytes or phase.peak > 4 * budget.bytes:
                lower = "--lora.r or take a smaller base"
            raise UserError(
                f"{budget.card.asked}: {stage} of --base {budget.shape.name} needs "
                f"{need:.1f} GiB with one row at a time ({CONTEXT_GIB:g} GiB of it for CUDA); "
                f"lower {lower}, or use a larger card"
            )


_LOWER = {
    "generate": "--generate.max-new-tokens",
    "sft": "--sft.max-length",
    "reward": "--reward.max-length or --rank.k",
    "ppo": "--ppo.max-new-tokens",
    "best_of_k": "--best-of-k.k or --sampling.max-new-tokens",
}
"""What to lower where one row at a time does not fit."""


def _largest(budget: Budget, settings: Loop, knob: _Knob, most: int) -> Loop:
    best = settings
    for size in _sizes(most):
        tried = knob.put(settings, size)
        if not budget.fits(tried, knob.stages):
            break
        best = tried
    return best


def _sizes(most: int) -> Iterator[int]:
    """Powers of two up to the most, and the most itself."""
    size = 1
    while size < most:
        yield size
        size *= 2
    yield most


def _copied(budget: Budget, settings: Loop) -> Loop:
    """Without a 16-bit copy of the base while sampling, if that is what does not fit."""
    stages = ("sample", "reward", "ppo", "best_of_k", "evaluate")
    if budget.fits(settings, stages):
        return settings
    return replace(settings, sampling=replace(settings.sampling, dense_gib=0.0))


def _shortened(budget: Budget, settings: Loop) -> Loop:
    """Halve what is too long until one row fits, or it is as short as makes sense."""

    def shorter(stage: str, name: str) -> bool:
        nonlocal settings
        own = getattr(settings, stage)
        length = getattr(own, name)
        if length // 2 < SHORTEST:
            return False
        settings = replace(settings, **{stage: replace(own, **{name: length // 2})})
        return True

    for stages, group, name in (
        (("sft",), "sft", "max_length"),
        (("reward",), "reward", "max_length"),
        (("ppo",), "ppo", "max_new_tokens"),
        (("sample", "best_of_k", "evaluate"), "sampling", "max_new_tokens"),
    ):
        while not budget.fits(settings, stages):
            if not shorter(group, name):
                break
    return settings


def changes(before: Loop, after: Loop) -> dict[str, tuple[object, object]]:
    """Flags that were chosen otherwise, with their value before and after."""
    found: dict[str, tuple[object, object]] = {}
    for stage in ("sft", "reward", "ppo", "sampling", "generate"):
        for name in ("micro_batch_size", "batch_size", "max_length", "max_new_tokens", "dense_gib"):
            own, new = getattr(before, stage), getattr(after, stage)
            one = getattr(own, name, None)
            if one is not None and one != getattr(new, name):
                found[f"--{stage}.{name.replace('_', '-')}"] = (one, getattr(new, name))
    return found
