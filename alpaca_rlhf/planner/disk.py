"""What a run writes, in bytes: adapters, checkpoints of the stage under way, and text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from alpaca_rlhf.planner.memory import BYTES_OF_MOMENTS
from alpaca_rlhf.planner.shapes import Shape
from alpaca_rlhf.settings import Loop

MASTER = 4
"""Bytes of an adapter's weight: float32."""
KEPT = 2
"""Newest checkpoints that stay (`training.checkpoints`); while one is written it comes on top."""
TOKEN = 6
"""Bytes of a token in JSON, escapes included: an estimate."""
ROW = 600
"""Bytes of a completion beside its text: its prompt, ids and settings; an estimate."""
SPARE = 16 * 2**20
"""Bytes for the report, metrics and the like."""


def written(shape: Shape, settings: Loop, stages: Collection[tuple[str, int]]) -> dict[str, int]:
    """Bytes that must be free before some stages of a run begin.

    Args:
        shape: The base.
        settings: Every number of the run.
        stages: Name and round of each that is left.

    Returns:
        Bytes by what they are for. Checkpoints go when their stage is done, so they are those of
        the largest stage.
    """
    names = [name for name, _ in stages]
    weights = shape.adapter_weights(settings.lora.r)
    adapters = sum(weights * MASTER for name in names if name in ("sft", "reward", *_POLICIES))
    text = sum(_TEXT[name](settings, round_) for name, round_ in stages if name in _TEXT)
    held = max((_held(settings, name) * weights for name in names), default=0)
    return {"adapters": adapters, "checkpoints": int(held), "text": text, "spare": SPARE}


_POLICIES = ("ppo", "best_of_k")


def _held(settings: Loop, stage: str) -> float:
    """Bytes a weight of an adapter that a stage's checkpoints have at most."""
    if stage == "ppo":
        learners = 2 if settings.ppo.value.trunk == "separate" else 1
        return (KEPT + 1) * learners * (MASTER + BYTES_OF_MOMENTS[settings.ppo.optimizer])
    if stage == "reward":
        return (KEPT + 1) * (MASTER + BYTES_OF_MOMENTS[settings.reward.optimizer])
    if stage in ("sft", "best_of_k"):
        best = 1 if settings.sft.patience else 0
        return (KEPT + 1 + best) * (MASTER + BYTES_OF_MOMENTS[settings.sft.optimizer])
    return 0.0


def _completions(count: int, tokens: int) -> int:
    return count * (tokens * TOKEN + ROW)


_TEXT: Mapping[str, Callable[[Loop, int], int]] = {
    # each request's reply is kept as it came, with the rows made of it
    "generate": lambda s, _: 3 * _completions(s.generate.target, s.generate.max_new_tokens),
    "sample": lambda s, _: _completions(s.rank.prompts * s.rank.k, s.sampling.max_new_tokens),
    # in the database, in its journal and in the snapshot, and there in K - 1 pairs each
    "rank": lambda s, _: (
        (s.rank.k + 2) * _completions(s.rank.prompts * s.rank.k, s.sampling.max_new_tokens)
    ),
    # those of earlier rounds again, each with its token ids
    "best_of_k": lambda s, round_: (
        2 * round_ * _completions(s.best_of_k.prompts * s.best_of_k.k, s.sampling.max_new_tokens)
    ),
    # of every policy, drawn and greedy
    "evaluate": lambda s, _: (
        2 * (3 + 2 * s.rounds) * _completions(s.evaluate.prompts, s.sampling.max_new_tokens)
    ),
}
