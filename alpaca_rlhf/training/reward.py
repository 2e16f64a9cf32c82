"""The reward adapter and its scalar head or heads, trained on all pairs of each ranking.

One ranking is one element of a batch: its prompt and K completions once, all its pairs, weight one
(InstructGPT, arXiv 2203.02155 section 3.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from alpaca_rlhf.core import processes
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.batches import Example, TokenCounts, collate, within_budget
from alpaca_rlhf.models.forward import completion_scores
from alpaca_rlhf.models.heads import CriteriaHead, EnsembleHead, ScalarHead, mean_and_std
from alpaca_rlhf.models.oom_retry import MicroBatch
from alpaca_rlhf.settings import Reward
from alpaca_rlhf.training.bad_batch import readable_examples
from alpaca_rlhf.training.bootstrap import bootstrap_counts, head_seeds
from alpaca_rlhf.training.groups import Group, pair_indices, usable
from alpaca_rlhf.training.held_out import HeldOutEvaluation, evaluate_reward, score_completions
from alpaca_rlhf.training.held_out_split import refuse_empty_side
from alpaca_rlhf.training.loop import (
    Bookkeeping,
    Checkpoints,
    Learner,
    Log,
    batches,
    fit,
)
from alpaca_rlhf.training.loss_scale import LossScale
from alpaca_rlhf.training.losses import ranking_loss


@dataclass(frozen=True)
class RewardResult:
    """Size of the training data, and the held-out evaluation."""

    rankings: int
    """Rankings trained on."""
    pairs: int
    """Pairs trained on, including ties if they are learned from."""
    too_long: int
    """Completions left out for their length, with their pairs; of both sides of the split."""
    left_out: int
    """Rankings left out, of both sides, because no pair of theirs is within the limit."""
    batch_size: int
    """Rankings of an optimiser step."""
    held_out: HeldOutEvaluation
    """Scores and pairs of the held-out rankings."""
    reference_mean: float | None = None
    """Mean score of the references before it was folded in, of several heads their mean; None
    without references."""
    reference_std: float | None = None
    """Standard deviation of the same."""

    @property
    def accuracy(self) -> float:
        """Share of held-out pairs that are ordered as in the ranking."""
        return self.held_out.accuracy


def train_reward(
    adapters: Adapters,
    role: str,
    train: Sequence[Group],
    held_out: Sequence[Group],
    settings: Reward,
    *,
    seed: int,
    checkpoints: Checkpoints,
    log: Log,
    references: Sequence[Example] = (),
    stage: str = "reward",
) -> tuple[ScalarHead, RewardResult]:
    """Train adapter `role`, which the caller has copied from SFT, with a new head or several.

    Several heads need references: until each is normalised, they differ by more than they disagree.

    Args:
        adapters: Adapters on the base.
        role: Adapter to train.
        train: Rankings to train on.
        held_out: Rankings to evaluate on.
        settings: Hyperparameters.
        seed: Seed of the order and of the head.
        checkpoints: Checkpoints to resume from and to save to.
        log: Receives a row of metrics a step.
        references: Completions of SFT that the scores are normalised on, after the training.
        stage: Name in messages.

    Raises:
        UserError: No ranking with a pair is left, or a prompt is on both sides of the split.
    """
    # 1. Leave out completions that are too long, and check the split.
    limit = min(settings.max_length, adapters.base.context)
    rankings = (*train, *held_out)
    too_long = sum(len(example) > limit for group in rankings for example in group.examples)
    train, held_out = usable(train, limit), usable(held_out, limit)
    left_out = len(rankings) - len(train) - len(held_out)
    held_out = [group for group in held_out if group.pairs]  # ties have no right order
    _check_split(train, held_out, settings, stage)
    # 2. A new head, or several with a resample each, and one optimiser for adapter and heads.
    criteria = sorted({name for group in train for name in group.criteria})
    head = _new_head(adapters, settings, criteria, seed)
    draws = None
    if settings.heads > 1:
        draws = bootstrap_counts(len(train), settings.heads, seed).to(adapters.base.device)
    learned_scores = head.all_scores if draws is None else head.members
    batch_size = settings.rankings_per_step(len(train))
    plan = batches(len(train), batch_size, settings.epochs, seed)
    adapters.trainable(role)
    learner = Learner(
        stage,
        "--reward.lr",
        [
            (adapters.parameters(role), settings.lr),
            ({"head.weight": head.weight}, settings.head_lr),
        ],
        steps=len(plan),
        warmup=settings.warmup,
        max_grad_norm=settings.max_grad_norm,
        optimizer=settings.optimizer,
        scale=LossScale(adapters.base.dtype),
    )
    micro = micro_batch(stage, settings)
    largest = TokenCounts.of_largest([group.examples for group in train])

    def backward(indices: list[int]) -> dict[str, float]:
        """Accumulate the gradient of the mean loss of these rankings."""

        def backward_share(size: int) -> tuple[float, float, int]:
            loss_sum, correct, pairs = 0.0, 0.0, 0
            with adapters.using(role), adapters.training():
                local_indices = processes.share(indices)
                completions = [train[i].examples for i in local_indices]
                for places in within_budget(completions, size, largest.times(size)):
                    # 3. One forward for all completions of a micro-batch of rankings.
                    batch_indices = [local_indices[place] for place in places]
                    examples = [example for i in batch_indices for example in train[i].examples]
                    batch = collate(adapters.base, examples)
                    scores = completion_scores(adapters, learned_scores, batch)
                    # 4. The ranking loss of each, with weight 1 / batch size.
                    loss = scores.new_zeros(())
                    sizes = [len(train[i].examples) for i in batch_indices]
                    for i, group_scores in zip(
                        batch_indices, scores.split_with_sizes(sizes), strict=True
                    ):
                        group = train[i]
                        if draws is None:
                            ranking = group_loss(group_scores, group, settings, criteria)
                            overall = group_scores[:, 0]
                        else:
                            ranking = ensemble_loss(group_scores, group, settings, draws[:, i])
                            overall = group_scores.mean(1)
                        loss = loss + ranking / len(indices)
                        better, worse = overall[pair_indices(group.pairs, group_scores)].T
                        correct += float((better > worse).sum())
                        pairs += len(group.pairs)
                    learner.scale.backward(loss)
                    loss_sum += loss.item()
            return loss_sum, correct, pairs

        loss_sum, correct, pairs = micro.run(backward_share, discard=learner.clear_gradients)
        # 5. Metrics over all processes; a batch may hold nothing but ties.
        sums = processes.add({"loss": loss_sum, "correct": correct, "pairs": pairs})
        accuracy = {"accuracy": sums["correct"] / sums["pairs"]} if sums["pairs"] else {}
        return {"loss": sums["loss"], **accuracy}

    def describe(indices: list[int]) -> list[dict[str, object]]:
        return [
            {
                "prompt_id": train[i].prompt_id,
                "pairs": [list(pair) for pair in train[i].pairs],
                "completions": readable_examples(adapters.base, train[i].examples),
            }
            for i in indices
        ]

    # The last step is saved too: the accuracy that follows it may not pass the gate.
    books = Bookkeeping(checkpoints, settings.save_every, log, save_last=True)
    fit(learner, plan, backward, books, micro=micro, describe=describe)
    adapters.trainable()
    # 6. Accuracy on the held-out rankings, of several heads once each is normalised.
    raw = score_completions(adapters, role, head.members, references, micro)
    if draws is not None:
        head.normalise(raw)
    evaluation = evaluate_reward(adapters, role, head, held_out, micro)
    if draws is None and references:
        head.normalise(raw)
    if isinstance(head, EnsembleHead):
        # Its held-out gaps are log-odds; what reads it later expects mean 0 and deviation 1.
        head.rescale((raw - raw.mean(0)) / raw.std(0, correction=0))
    spreads = [mean_and_std(scores) for scores in raw.unbind(-1)] if references else []
    return head, RewardResult(
        rankings=len(train),
        pairs=sum(len(group.pairs) + len(group.ties) for group in train),
        too_long=too_long,
        left_out=left_out,
        batch_size=batch_size,
        held_out=evaluation,
        reference_mean=fmean(mean for mean, _ in spreads) if spreads else None,
        reference_std=fmean(std for _, std in spreads) if spreads else None,
    )


def _check_split(
    train: Sequence[Group], held_out: Sequence[Group], settings: Reward, stage: str
) -> None:
    limit = f"--reward.max-length {settings.max_length}"
    refuse_empty_side(stage, len(train), len(held_out), limit)
    shared = {group.prompt_id for group in train} & {group.prompt_id for group in held_out}
    if shared:
        raise UserError(f"{stage}: prompt {sorted(shared)[0]} is both trained on and held out")


def _new_head(
    adapters: Adapters, settings: Reward, criteria: Sequence[str], seed: int
) -> ScalarHead:
    hidden_size = adapters.base.model.config.hidden_size
    head: ScalarHead
    if settings.heads > 1:
        seeds = head_seeds(settings.heads, seed)
        head = EnsembleHead(hidden_size, seeds, pessimism=settings.pessimism)
    elif settings.criteria_weight > 0 and criteria:
        head = CriteriaHead(hidden_size, criteria, seed=seed)
    else:
        head = ScalarHead(hidden_size, seed=seed)
    return head.to(adapters.base.device)


def micro_batch(stage: str, settings: Reward) -> MicroBatch:
    """Number of rankings in memory at once."""
    return MicroBatch(
        stage,
        "--reward.micro-batch-size",
        settings.micro_batch_size,
        lower="--reward.max-length or --rank.k",
    )


def group_loss(
    all_scores: Tensor, group: Group, settings: Reward, criteria: Sequence[str] = ()
) -> Tensor:
    """Loss of one ranking: of its order and, weighted, of the order of each criterion's stars.

    Args:
        all_scores: (K, 1 + C) float32, the score of each completion, then that of each criterion.
        group: The ranking.
        settings: Margin, and weight of the criteria.
        criteria: Names of the C criteria; skipped where the head has no columns for them.
    """
    margins = None
    if settings.margin > 0 and group.margins:
        margins = all_scores.new_tensor(group.margins) * settings.margin
    ties = pair_indices(group.ties, all_scores) if group.ties else None
    pairs = pair_indices(group.pairs, all_scores)
    loss = ranking_loss(all_scores[:, 0], pairs, margins=margins, ties=ties)
    for scores, name in zip(all_scores.T[1:], criteria, strict=False):
        if name in group.criteria:
            criterion_loss = ranking_loss(scores, pair_indices(group.criteria[name], all_scores))
            loss = loss + settings.criteria_weight * criterion_loss
    return loss


def ensemble_loss(members: Tensor, group: Group, settings: Reward, draws: Tensor) -> Tensor:
    """Mean over the heads of the loss of one ranking, as often as each head has drawn it.

    Args:
        members: (K, N) float32, the score of each completion by each head.
        group: The ranking.
        settings: Margin.
        draws: (N,) float32, how often it is in each head's resample.

    Source: gradients of N heads divided by N in what they share (arXiv 1602.04621 appendix D).
    """
    losses = [group_loss(scores[:, None], group, settings) for scores in members.unbind(1)]
    return (torch.stack(losses) * draws).mean()
