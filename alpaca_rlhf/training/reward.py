"""The reward adapter and its scalar head, trained on all pairs of each ranking.

One ranking is one element of a batch: K forwards, all its pairs, weight one (InstructGPT,
arXiv 2203.02155 section 3.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from alpaca_rlhf import processes
from alpaca_rlhf.config import UserError
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.batches import Example, collate
from alpaca_rlhf.models.forward import completion_scores
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.models.rollout import score
from alpaca_rlhf.settings import Reward
from alpaca_rlhf.training.bad_batch import readable
from alpaca_rlhf.training.loop import Checkpoints, Learner, Log, batches, fit, parts
from alpaca_rlhf.training.losses import ranking_loss
from alpaca_rlhf.training.memory import MicroBatch


@dataclass(frozen=True)
class Group:
    """One ranking, ready for training."""

    prompt_id: str
    """No split ever parts a group."""
    examples: tuple[Example, ...]
    """Its K completions."""
    pairs: tuple[tuple[int, int], ...]
    """(better, worse) indices of all untied pairs."""


@dataclass(frozen=True)
class RewardResult:
    """What came of it."""

    rankings: int
    """Rankings trained on."""
    pairs: int
    """Pairs trained on."""
    too_long: int
    """Completions left out, of both sides, with their pairs."""
    correct: list[list[float]]
    """For each held-out ranking, 1 or 0 (a tie of scores one half) for each of its pairs."""
    gaps: list[list[float]]
    """Likewise, score of the chosen minus score of the rejected completion."""
    length_correlation: float
    """Pearson correlation of score and length of the held-out completions; 0 if one is constant."""
    calibration_error: float
    """Expected calibration error of sigmoid(gap) over ten bins, each pair seen from both sides."""

    @property
    def accuracy(self) -> float:
        """Share of held-out pairs that are ordered as in the ranking."""
        flat = [c for group in self.correct for c in group]
        return sum(flat) / max(1, len(flat))


def usable(groups: Sequence[Group], max_length: int) -> list[Group]:
    """Groups without completions longer than the limit, and without those left with no pair."""
    out = []
    for group in groups:
        keep = [i for i, one in enumerate(group.examples) if len(one) <= max_length]
        place = {i: n for n, i in enumerate(keep)}
        pairs = tuple((place[a], place[b]) for a, b in group.pairs if a in place and b in place)
        if pairs:
            out.append(Group(group.prompt_id, tuple(group.examples[i] for i in keep), pairs))
    return out


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
    too_long = sum(len(e) > limit for g in (*train, *held_out) for e in g.examples)
    train, held_out = usable(train, limit), usable(held_out, limit)
    if not train or not held_out:
        raise UserError(
            f"{stage}: {len(train)} rankings to train on and {len(held_out)} held out "
            f"(within --reward.max-length {settings.max_length}); needs some of each"
        )
    shared = {g.prompt_id for g in train} & {g.prompt_id for g in held_out}
    if shared:
        raise UserError(f"{stage}: prompt {sorted(shared)[0]} is both trained on and held out")
    head = ScalarHead(adapters.base.model.config.hidden_size, seed=seed).to(adapters.base.device)
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
    )

    micro = MicroBatch(
        stage,
        "--reward.micro-batch-size",
        settings.micro_batch_size,
        lower="--reward.max-length or --rank.k",
    )

    def backward(indices: list[int]) -> dict[str, float]:
        def of(size: int) -> tuple[float, float, int]:
            total, right, seen = 0.0, 0.0, 0
            with adapters.using(role), adapters.training():
                for part in parts(processes.share(indices), size):
                    groups = [train[i] for i in part]
                    batch = collate(adapters.base, [e for g in groups for e in g.examples])
                    scores = completion_scores(adapters, head, batch)
                    loss = scores.new_zeros(())
                    for group, own in zip(
                        groups,
                        scores.split_with_sizes([len(g.examples) for g in groups]),
                        strict=True,
                    ):
                        pairs = torch.tensor(group.pairs, device=own.device)
                        loss = loss + ranking_loss(own, pairs) / len(indices)
                        right += float((own[pairs[:, 0]] > own[pairs[:, 1]]).sum())
                        seen += len(pairs)
                    loss.backward()  # type: ignore[no-untyped-call]
                    total += loss.item()
            return total, right, seen

        total, right, seen = micro.run(of, forget=learner.forget_gradients)
        sums = processes.add({"loss": total, "right": right, "seen": seen})
        return {"loss": sums["loss"], "accuracy": sums["right"] / sums["seen"]}

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
    )
    adapters.trainable()
    pairs = sum(len(g.pairs) for g in train)
    result = evaluate_reward(adapters, role, head, held_out, len(train), pairs, settings)
    return head, replace(result, too_long=too_long)


def evaluate_reward(
    adapters: Adapters,
    role: str,
    head: ScalarHead,
    held_out: Sequence[Group],
    rankings: int,
    pairs: int,
    settings: Reward,
) -> RewardResult:
    """Accuracy, calibration and length correlation on rankings the model has not seen."""
    examples = [e for g in held_out for e in g.examples]
    share = processes.share(examples)
    found = score(adapters, role, head, share, batch_size=settings.micro_batch_size * 4)
    scores = torch.tensor(processes.gather(found.tolist()))
    gaps: list[list[float]] = []
    for group, own in zip(
        held_out, scores.split_with_sizes([len(g.examples) for g in held_out]), strict=True
    ):
        gaps.append([float(own[a] - own[b]) for a, b in group.pairs])
    return RewardResult(
        rankings=rankings,
        pairs=pairs,
        too_long=0,
        correct=[[1.0 if gap > 0 else 0.5 if gap == 0 else 0.0 for gap in group] for group in gaps],
        gaps=gaps,
        length_correlation=_correlation(
            scores, torch.tensor([float(len(e.completion)) for e in examples])
        ),
        calibration_error=calibration_error(torch.tensor([gap for group in gaps for gap in group])),
    )


def calibration_error(gaps: Tensor, bins: int = 10) -> float:
    """Expected calibration error of sigmoid(gap) as the probability that the first one is better.

    Each pair is seen from both sides: sigmoid(gap) is right, sigmoid(-gap) is wrong.

    Source: Guo et al. 2017 (arXiv 1706.04599) section 3.
    """
    probability = torch.sigmoid(torch.cat([gaps, -gaps]).double())
    truth = torch.cat([torch.ones(len(gaps)), torch.zeros(len(gaps))]).double()
    which = (probability * bins).long().clamp_max(bins - 1)
    error = 0.0
    for one in range(bins):
        inside = which == one
        if inside.any():
            error += float(
                inside.double().mean() * (probability[inside].mean() - truth[inside].mean()).abs()
            )
    return error


def _correlation(x: Tensor, y: Tensor) -> float:
    x, y = x.double() - x.double().mean(), y.double() - y.double().mean()
    scale = float(x.norm() * y.norm())
    return float(x @ y) / scale if scale > 0 else 0.0
