"""Evaluation of a reward model on held-out rankings, pair by pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from alpaca_rlhf.core import processes
from alpaca_rlhf.core.sizes import SCORING_BATCH_FACTOR
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.batches import Example
from alpaca_rlhf.models.heads import CriteriaHead, EnsembleHead, ScalarHead
from alpaca_rlhf.models.oom_retry import MicroBatch
from alpaca_rlhf.models.scoring import score
from alpaca_rlhf.training.groups import Group


@dataclass(frozen=True)
class HeldOutPair:
    """Two completions of a prompt, one of them preferred, and their scores."""

    prompt_id: str
    """Id of the prompt."""
    completions: int
    """K of the ranking that the pair belongs to."""
    tier_gap: int
    """Tiers between the two, at least 1; 0 where they were never ranked in tiers."""
    tokens: tuple[int, int]
    """Completion tokens of the better and of the worse one."""
    gap: float
    """Score of the better minus score of the worse one."""
    samples: tuple[int, int] | None = None
    """Numbers of the better and of the worse one among the samples of their prompt, from 0; None
    where they were not sampled in this order, or nobody knows."""

    @property
    def correct(self) -> float:
        """1 where the better one has the higher score, one half where the scores are equal."""
        return 1.0 if self.gap > 0 else 0.5 if self.gap == 0 else 0.0


@dataclass(frozen=True)
class HeldOutEvaluation:
    """Scores of the completions of held-out rankings, and of each of their pairs."""

    pairs: tuple[HeldOutPair, ...]
    """All pairs that the rankings order, ranking by ranking."""
    criteria: Mapping[str, tuple[HeldOutPair, ...]]
    """For each criterion of the head, the pairs that its stars order, scored by it."""
    scores: tuple[float, ...]
    """Score of each completion."""
    lengths: tuple[int, ...]
    """Tokens of each completion, in the same order."""
    mean_accuracy: float | None = None
    """Accuracy of the mean of several heads, whatever the pessimism; None of one head."""
    disagreement: float | None = None
    """Standard deviation of the heads' normalised scores of a completion, averaged over all; None
    of one head."""

    @property
    def accuracy(self) -> float:
        """Share of the pairs that are ordered as in the ranking; 0 if there are none."""
        return sum(pair.correct for pair in self.pairs) / max(1, len(self.pairs))


def score_completions(
    adapters: Adapters,
    role: str,
    head: Callable[[Tensor], Tensor],
    examples: Sequence[Example],
    micro: MicroBatch,
) -> Tensor:
    """(N,) scores without gradients, in larger batches than training has; or (N, 1 + C)."""
    return micro.run(
        lambda rankings: score(
            adapters, role, head, examples, batch_size=rankings * SCORING_BATCH_FACTOR
        )
    )


def evaluate_reward(
    adapters: Adapters, role: str, head: ScalarHead, groups: Sequence[Group], micro: MicroBatch
) -> HeldOutEvaluation:
    """Score rankings that the reward model was not trained on.

    Gaps and scores are in log-odds, as the head had learned them before it was normalised.
    """
    # 1. Scores of all completions, by criterion or head too; every process scores its share.
    examples = [example for group in groups for example in group.examples]
    local_groups = processes.share(groups)
    local_examples = [example for group in local_groups for example in group.examples]
    local_scores = score_completions(adapters, role, head.all_scores, local_examples, micro)
    local_scores = local_scores * head.log_odds
    scores_of_groups = local_scores.split_with_sizes(
        [len(group.examples) for group in local_groups]
    )
    gathered = processes.gather([scores.tolist() for scores in scores_of_groups])
    all_scores = torch.tensor([row for rows in gathered for row in rows])
    # 2. Score gaps of all pairs, overall and by criterion.
    names = head.criteria if isinstance(head, CriteriaHead) else ()
    pairs: list[HeldOutPair] = []
    criteria: dict[str, list[HeldOutPair]] = {name: [] for name in names}
    sizes = [len(group.examples) for group in groups]
    for group, group_scores in zip(groups, all_scores.split_with_sizes(sizes), strict=True):
        tier_gaps = group.tier_gaps or (0,) * len(group.pairs)
        for pair, tier_gap in zip(group.pairs, tier_gaps, strict=True):
            pairs.append(_pair(group, pair, tier_gap, group_scores[:, 0]))
        for column, name in enumerate(names, 1):
            for pair in group.criteria.get(name, ()):
                criteria[name].append(_pair(group, pair, 0, group_scores[:, column]))
    # 3. Of several heads, what their mean alone is worth, and how far they disagree.
    of_heads: dict[str, float] = {}
    if isinstance(head, EnsembleHead):
        members = all_scores[:, 1:]
        correct = [
            _pair(group, pair, 0, group_means).correct
            for group, group_means in zip(
                groups, members.mean(1).split_with_sizes(sizes), strict=True
            )
            for pair in group.pairs
        ]
        of_heads = {
            "mean_accuracy": fmean(correct) if correct else 0.0,
            "disagreement": float(members.std(1, correction=0).mean()) / head.log_odds,
        }
    return HeldOutEvaluation(
        **of_heads,
        pairs=tuple(pairs),
        criteria={name: tuple(criterion_pairs) for name, criterion_pairs in criteria.items()},
        scores=tuple(all_scores[:, 0].tolist()),
        lengths=tuple(len(example.completion) for example in examples),
    )


def _pair(group: Group, pair: tuple[int, int], tier_gap: int, scores: Tensor) -> HeldOutPair:
    better, worse = pair
    return HeldOutPair(
        group.prompt_id,
        len(group.examples),
        tier_gap,
        (len(group.examples[better].completion), len(group.examples[worse].completion)),
        float(scores[better] - scores[worse]),
        (group.samples[better], group.samples[worse]) if group.samples else None,
    )
