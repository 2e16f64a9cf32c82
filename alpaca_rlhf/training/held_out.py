"""What a reward model says of rankings that it has not learned from, pair by pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alpaca_rlhf.core import processes
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.batches import Example
from alpaca_rlhf.models.heads import CriteriaHead, ScalarHead
from alpaca_rlhf.models.scoring import score
from alpaca_rlhf.training.groups import Group
from alpaca_rlhf.training.memory import MicroBatch

AT_ONCE = 4
"""Completions scored at once for each ranking that is trained on at once."""


@dataclass(frozen=True)
class HeldOutPair:
    """Two completions of a prompt, one of them preferred, and their scores."""

    prompt_id: str
    """The prompt."""
    completions: int
    """K of the ranking that the pair is part of."""
    apart: int
    """Tiers between the two, at least 1; 0 where nobody put them in tiers."""
    tokens: tuple[int, int]
    """Completion tokens of the better and of the worse one."""
    gap: float
    """Score of the better minus score of the worse one."""

    @property
    def correct(self) -> float:
        """1 where the better one has the higher score, one half where the scores are equal."""
        return 1.0 if self.gap > 0 else 0.5 if self.gap == 0 else 0.0


@dataclass(frozen=True)
class HeldOut:
    """Scores of the completions of held-out rankings, and what they say of each pair."""

    pairs: tuple[HeldOutPair, ...]
    """All pairs that the rankings order, ranking by ranking."""
    criteria: Mapping[str, tuple[HeldOutPair, ...]]
    """For each criterion that the head knows, the pairs that its stars order, scored by it."""
    scores: tuple[float, ...]
    """Score of each completion."""
    lengths: tuple[int, ...]
    """Tokens of each completion, in the same order."""

    @property
    def accuracy(self) -> float:
        """Share of the pairs that are ordered as in the ranking; 0 if there are none."""
        return sum(pair.correct for pair in self.pairs) / max(1, len(self.pairs))


def scored(
    adapters: Adapters,
    role: str,
    head: Callable[[Tensor], Tensor],
    examples: Sequence[Example],
    micro: MicroBatch,
) -> Tensor:
    """Scores of completions, without gradients: more of them fit into memory than of rankings."""
    return micro.run(lambda size: score(adapters, role, head, examples, batch_size=size * AT_ONCE))


def evaluate_reward(
    adapters: Adapters, role: str, head: ScalarHead, groups: Sequence[Group], micro: MicroBatch
) -> HeldOut:
    """Score rankings that the model has not seen."""
    examples = [e for g in groups for e in g.examples]
    share = processes.share(examples)
    found = scored(adapters, role, head.parts, share, micro)
    parts = torch.tensor(processes.gather(found.tolist()))
    names = head.criteria if isinstance(head, CriteriaHead) else ()
    pairs: list[HeldOutPair] = []
    criteria: dict[str, list[HeldOutPair]] = {name: [] for name in names}
    sizes = [len(g.examples) for g in groups]
    for group, own in zip(groups, parts.split_with_sizes(sizes), strict=True):
        apart = group.apart or (0,) * len(group.pairs)
        for two, tiers in zip(group.pairs, apart, strict=True):
            pairs.append(_pair(group, two, tiers, own[:, 0]))
        for column, name in enumerate(names, 1):
            for two in group.criteria.get(name, ()):
                criteria[name].append(_pair(group, two, 0, own[:, column]))
    return HeldOut(
        pairs=tuple(pairs),
        criteria={name: tuple(own) for name, own in criteria.items()},
        scores=tuple(parts[:, 0].tolist()),
        lengths=tuple(len(e.completion) for e in examples),
    )


def _pair(group: Group, two: tuple[int, int], apart: int, scores: Tensor) -> HeldOutPair:
    better, worse = two
    return HeldOutPair(
        group.prompt_id,
        len(group.examples),
        apart,
        (len(group.examples[better].completion), len(group.examples[worse].completion)),
        float(scores[better] - scores[worse]),
    )
