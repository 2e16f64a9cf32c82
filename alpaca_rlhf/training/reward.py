"""The reward adapter and its scalar head, trained on all pairs of each ranking.

One ranking is one element of a batch: K forwards, all its pairs, weight one (InstructGPT,
arXiv 2203.02155 section 3.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alpaca_rlhf.core import processes
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.batches import collate
from alpaca_rlhf.models.forward import completion_scores
from alpaca_rlhf.models.heads import CriteriaHead, ScalarHead
from alpaca_rlhf.settings import Reward
from alpaca_rlhf.training.bad_batch import readable
from alpaca_rlhf.training.groups import Group, Pairs, usable
from alpaca_rlhf.training.held_out import HeldOut, evaluate_reward
from alpaca_rlhf.training.loop import Checkpoints, Learner, Log, batches, fit, parts
from alpaca_rlhf.training.loss_scale import LossScale
from alpaca_rlhf.training.losses import ranking_loss
from alpaca_rlhf.training.memory import MicroBatch


@dataclass(frozen=True)
class RewardResult:
    """What came of it."""

    rankings: int
    """Rankings trained on."""
    pairs: int
    """Pairs trained on, ties among them if they are learned from."""
    too_long: int
    """Completions left out, of both sides, with their pairs."""
    left_out: int
    """Rankings left out, of both sides, because no pair of theirs is within the limit."""
    held_out: HeldOut
    """Scores and pairs of the rankings it has not seen."""

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
    stage: str = "reward",
) -> tuple[ScalarHead, RewardResult]:
    """Train adapter `role`, which the caller has copied from SFT, with a new head.

    Raises:
        UserError: No ranking with a pair is left, or a prompt stands on both sides of the split.
    """
    limit = min(settings.max_length, adapters.base.context)
    given = (*train, *held_out)
    too_long = sum(len(e) > limit for g in given for e in g.examples)
    train, held_out = usable(train, limit), usable(held_out, limit)
    left_out = len(given) - len(train) - len(held_out)
    held_out = [group for group in held_out if group.pairs]  # ties have no right order
    if not train or not held_out:
        raise UserError(
            f"{stage}: {len(train)} rankings to train on and {len(held_out)} held out "
            f"(within --reward.max-length {settings.max_length}); needs some of each"
        )
    shared = {g.prompt_id for g in train} & {g.prompt_id for g in held_out}
    if shared:
        raise UserError(f"{stage}: prompt {sorted(shared)[0]} is both trained on and held out")
    width = adapters.base.model.config.hidden_size
    criteria = sorted({name for g in train for name in g.criteria})
    head = ScalarHead(width, seed=seed)
    if settings.criteria_weight > 0 and criteria:
        head = CriteriaHead(width, criteria, seed=seed)
    head = head.to(adapters.base.device)
    plan = batches(len(train), settings.batch_size, settings.epochs, seed)
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

    def backward(indices: list[int]) -> dict[str, float]:
        def of(size: int) -> tuple[float, float, int]:
            total, right, seen = 0.0, 0.0, 0
            with adapters.using(role), adapters.training():
                for part in parts(processes.share(indices), size):
                    groups = [train[i] for i in part]
                    batch = collate(adapters.base, [e for g in groups for e in g.examples])
                    scored = completion_scores(adapters, head.parts, batch)
                    loss = scored.new_zeros(())
                    for group, own in zip(
                        groups,
                        scored.split_with_sizes([len(g.examples) for g in groups]),
                        strict=True,
                    ):
                        loss = loss + group_loss(own, group, settings, criteria) / len(indices)
                        better, worse = own[:, 0][_indices(group.pairs, own)].T
                        right += float((better > worse).sum())
                        seen += len(group.pairs)
                    learner.scale.backward(loss)
                    total += loss.item()
            return total, right, seen

        total, right, seen = micro.run(of, forget=learner.forget_gradients)
        sums = processes.add({"loss": total, "right": right, "seen": seen})
        accuracy = {"accuracy": sums["right"] / sums["seen"]} if sums["seen"] else {}
        return {"loss": sums["loss"], **accuracy}  # a batch may hold nothing but ties

    fit(
        learner,
        plan,
        backward,
        checkpoints=checkpoints,
        save_every=settings.save_every,
        log=log,
        describe=lambda indices: [
            {
                "prompt_id": train[i].prompt_id,
                "pairs": [list(pair) for pair in train[i].pairs],
                "completions": readable(adapters.base, train[i].examples),
            }
            for i in indices
        ],
        micro=micro,
        save_last=True,  # its accuracy may not pass the gate
    )
    adapters.trainable()
    return head, RewardResult(
        rankings=len(train),
        pairs=sum(len(g.pairs) + len(g.ties) for g in train),
        too_long=too_long,
        left_out=left_out,
        held_out=evaluate_reward(adapters, role, head, held_out, micro),
    )


def micro_batch(stage: str, settings: Reward) -> MicroBatch:
    """How many rankings are in memory at once."""
    return MicroBatch(
        stage,
        "--reward.micro-batch-size",
        settings.micro_batch_size,
        lower="--reward.max-length or --rank.k",
    )


def group_loss(
    parts: Tensor, group: Group, settings: Reward, criteria: Sequence[str] = ()
) -> Tensor:
    """The loss of one ranking: of its order and, weighted, of what its stars say of each criterion.

    Args:
        parts: (K, 1 + C) float32, the score of each completion, then its score for each criterion.
        group: The ranking.
        settings: Margin and weight of the criteria.
        criteria: Names of the C criteria; all are passed over where the columns are missing.
    """
    margins = None
    if settings.margin > 0 and group.margins:
        margins = parts.new_tensor(group.margins) * settings.margin
    ties = _indices(group.ties, parts) if group.ties else None
    loss = ranking_loss(parts[:, 0], _indices(group.pairs, parts), margins=margins, ties=ties)
    for scores, name in zip(parts.T[1:], criteria, strict=False):
        if name in group.criteria:
            own = ranking_loss(scores, _indices(group.criteria[name], parts))
            loss = loss + settings.criteria_weight * own
    return loss


def _indices(pairs: Pairs, like: Tensor) -> Tensor:
    return torch.tensor(pairs, dtype=torch.int64, device=like.device).view(-1, 2)
