"""Disk space of a run: adapters, checkpoints of the running stage, and text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from alpaca_rlhf.planner.peak_memory import BYTES_OF_MOMENTS
from alpaca_rlhf.planner.shapes import Shape
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.settings.policies import POLICY_STAGES

MASTER = 4
"""Bytes of an adapter weight: float32."""
KEPT_CHECKPOINTS = 2
"""Checkpoints kept (`training.checkpoints`); the one being written comes on top."""
TOKEN_BYTES = 6
"""Bytes of a token in JSON, escapes included; an estimate."""
ROW_BYTES = 600
"""Bytes of a completion beside its text: prompt, ids and settings; an estimate."""
SPARE = 16 * 2**20
"""Bytes for the report, metrics and the like."""


def disk_needs(shape: Shape, settings: Loop, stages: Collection[tuple[str, int]]) -> dict[str, int]:
    """Bytes that must be free before the given stages of a run begin.

    Args:
        shape: Sizes of the base.
        settings: Every number of the run.
        stages: Name and round of each unfinished stage.

    Returns:
        Bytes by purpose. Checkpoints are deleted when their stage ends, so those of the largest
        stage count.
    """
    names = [name for name, _ in stages]
    weights = shape.adapter_weights(settings.lora.r)
    saved = {
        name: 1 + (name in controlled(settings)) + (name == "reward" and settings.second_reward)
        for name in ("sft", "reward", *POLICY_STAGES)
    }
    adapters = sum(weights * MASTER * saved.get(name, 0) for name in names)
    text = sum(_TEXT[name](settings, round_) for name, round_ in stages if name in _TEXT)
    checkpoints = max((_checkpoint_bytes(settings, name) * weights for name in names), default=0)
    return {"adapters": adapters, "checkpoints": int(checkpoints), "text": text, "spare": SPARE}


def controlled(settings: Loop) -> set[str]:
    """Stages that train a control beside, with an adapter of its own."""
    return policy_controls(settings) | ({"reward"} if settings.reward.control else set())


def policy_controls(settings: Loop) -> set[str]:
    """Stages of chosen policies that train a control beside."""
    controls = {"best_of_k": settings.best_of_k.control, "ppo": settings.ppo.control}
    return {stage for stage in settings.policy_stages if controls.get(stage)}


def evaluated_arms(settings: Loop) -> int:
    """Arms of the evaluation: controls, SFT, each round's policies, and those that rerank."""
    policies = len(settings.policy_stages) + len(policy_controls(settings))
    reranking = 1 + settings.all_rounds if settings.evaluate.rerank else 0
    return 3 + policies * settings.all_rounds + reranking


def _checkpoint_bytes(settings: Loop, stage: str) -> float:
    """Bytes that a stage's checkpoints take at most, for each weight of one adapter."""
    watched = 1 if settings.watch.every else 0
    if stage == "ppo":
        learners = 2 if settings.ppo.value.trunk == "separate" else 1
        return (
            (KEPT_CHECKPOINTS + 1 + watched)
            * learners
            * (MASTER + BYTES_OF_MOMENTS[settings.ppo.optimizer])
        )
    if stage == "reward":
        return (KEPT_CHECKPOINTS + 1) * (MASTER + BYTES_OF_MOMENTS[settings.reward.optimizer])
    if stage in ("grpo", "rloo"):
        optimizer = getattr(settings, stage).optimizer
        return (KEPT_CHECKPOINTS + 1 + watched) * (MASTER + BYTES_OF_MOMENTS[optimizer])
    if stage == "dpo":
        best = 1 if settings.dpo.patience else 0
        return (KEPT_CHECKPOINTS + 1 + best) * (MASTER + BYTES_OF_MOMENTS[settings.dpo.optimizer])
    if stage in ("sft", "best_of_k"):
        best = 1 if settings.sft.patience else 0
        return (KEPT_CHECKPOINTS + 1 + best) * (MASTER + BYTES_OF_MOMENTS[settings.sft.optimizer])
    return 0.0


def _completions(count: int, tokens: int) -> int:
    return count * (tokens * TOKEN_BYTES + ROW_BYTES)


_TEXT: Mapping[str, Callable[[Loop, int], int]] = {
    # each reply is kept verbatim, with the rows made of it
    "generate": lambda s, _: 3 * _completions(s.generate.target, s.generate.max_new_tokens),
    "sample": lambda s, _: _completions(s.rank.prompts * s.rank.k, s.sampling.max_new_tokens),
    # in the database, in its journal and in the snapshot, and there in K - 1 pairs each
    "rank": lambda s, _: (
        (s.rank.k + 2) * _completions(s.rank.prompts * s.rank.k, s.sampling.max_new_tokens)
    ),
    # the pool repeats those of earlier rounds; each has its token ids too
    "best_of_k": lambda s, round_: (
        2 * round_ * _completions(s.best_of_k.prompts * s.best_of_k.k, s.sampling.max_new_tokens)
    ),
    # every policy samples and decodes greedily; kept with the token ids, and again with the scores
    "evaluate": lambda s, _: (
        4 * evaluated_arms(s) * _completions(s.evaluate.prompts, s.sampling.max_new_tokens)
    ),
}
