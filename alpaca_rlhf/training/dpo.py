"""DPO: the policy learns the order of each ranking itself, without a reward model or sampling.

The reward is implicit: beta times the log-ratio of policy and frozen SFT adapter. As in the reward
model, one ranking is one element of a batch: its prompt and K completions once, all its pairs,
weight one. The SFT adapter's log-probabilities never change, so the caller computes them once
(`reference_logprobs`).

Sources: arXiv 2305.18290; arXiv 2310.12036 for the loss `ipo`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from alpaca_rlhf.core import processes
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.batches import TokenCounts, collate, within_budget
from alpaca_rlhf.models.devices import float64
from alpaca_rlhf.models.forward import token_logprobs
from alpaca_rlhf.models.oom_retry import MicroBatch
from alpaca_rlhf.models.scoring import completion_logprobs
from alpaca_rlhf.settings import DPO
from alpaca_rlhf.training.bad_batch import readable_examples
from alpaca_rlhf.training.groups import Group, pair_indices
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
from alpaca_rlhf.training.losses import dpo_loss
from alpaca_rlhf.training.patience import Patience


@dataclass(frozen=True)
class ReferencedGroup:
    """A ranking, and the log-probabilities of its completions under the frozen SFT adapter."""

    group: Group
    """Its K completions and their pairs."""
    reference: tuple[float, ...]
    """log p_sft of each completion, summed over its tokens."""

    @property
    def tokens(self) -> int:
        """Tokens of its K completions, each with the prompt."""
        return sum(len(example) for example in self.group.examples)

    @property
    def unbeaten(self) -> list[int]:
        """Completions that win a pair and lose none."""
        worse = {j for _, j in self.group.pairs}
        return sorted({i for i, _ in self.group.pairs} - worse)


@dataclass(frozen=True)
class PairStatistics:
    """Means of a set of rankings under the policy."""

    loss: float
    """Mean over rankings of the loss."""
    accuracy: float
    """Share of the pairs whose better completion has the higher implicit reward; equal ones count
    one half."""
    margin: float
    """Mean over pairs of the difference of their implicit rewards."""
    chosen_logprob: float
    """Mean over pairs of log p of the better completion, in nats."""
    rejected_logprob: float
    """The same of the worse one."""


@dataclass(frozen=True)
class DPOResult:
    """Size of the training data, and the statistics of the held-out rankings at the end."""

    rankings: int
    """Rankings trained on."""
    pairs: int
    """Pairs trained on, including ties if they are learned from."""
    tokens: int
    """Tokens of all steps taken, prompts included."""
    batch_size: int
    """Rankings of an optimiser step."""
    steps: int
    """Optimiser steps taken."""
    best_step: int
    """Steps after which the held-out loss was lowest."""
    held_out: PairStatistics
    """Statistics of the weights that are kept."""


def micro_batch(stage: str, settings: DPO) -> MicroBatch:
    """Number of rankings in memory at once."""
    return MicroBatch(
        stage,
        "--dpo.micro-batch-size",
        settings.micro_batch_size,
        lower="--dpo.max-length or --rank.k",
    )


def reference_logprobs(
    adapters: Adapters, groups: Sequence[Group], micro: MicroBatch
) -> list[tuple[float, ...]]:
    """Log-probabilities of each group's completions under the frozen SFT adapter."""
    return _logprobs(adapters, "sft", groups, micro)


def train_dpo(
    adapters: Adapters,
    role: str,
    train: Sequence[ReferencedGroup],
    held_out: Sequence[ReferencedGroup],
    settings: DPO,
    *,
    seed: int,
    checkpoints: Checkpoints,
    log: Log,
    stage: str = "dpo",
) -> DPOResult:
    """Train adapter `role`, which the caller has copied from SFT.

    Args:
        adapters: Adapters on the base.
        role: Adapter to train.
        train: Rankings to train on.
        held_out: Rankings to evaluate on; their prompts are not among those trained on.
        settings: Hyperparameters.
        seed: Seed of the order.
        checkpoints: Checkpoints to resume from and to save to.
        log: Receives a row of metrics a step.
        stage: Name in messages.

    Raises:
        UserError: No ranking is left on one side of the split.
    """
    held_out = [row for row in held_out if row.group.pairs]  # ties have no right order
    limit = f"--dpo.max-length {settings.max_length}"
    refuse_empty_side(stage, len(train), len(held_out), limit)
    # 1. Batches of every step, and one optimiser for the adapter.
    batch_size = settings.rankings_per_step(len(train))
    plan = batches(len(train), batch_size, settings.epochs, seed)
    adapters.trainable(role)
    learner = Learner(
        stage,
        "--dpo.lr",
        [(adapters.parameters(role), settings.lr)],
        steps=len(plan),
        warmup=settings.warmup,
        max_grad_norm=settings.max_grad_norm,
        optimizer=settings.optimizer,
        scale=LossScale(adapters.base.dtype),
    )
    micro = micro_batch(stage, settings)
    largest = TokenCounts.of_largest([row.group.examples for row in train])

    def backward(indices: list[int]) -> dict[str, float]:
        """Accumulate the gradient of the mean loss of these rankings."""

        def backward_share(size: int) -> dict[str, float]:
            sums = _PairSums()
            with adapters.using(role), adapters.training():
                local_rows = [train[i] for i in processes.share(indices)]
                completions = [row.group.examples for row in local_rows]
                for places in within_budget(completions, size, largest.times(size)):
                    # 2. One forward for all completions of a micro-batch of rankings.
                    rows = [local_rows[place] for place in places]
                    examples = [example for row in rows for example in row.group.examples]
                    batch = collate(adapters.base, examples)
                    logprobs = token_logprobs(adapters, batch).sum(1)
                    # 3. The loss of each ranking, with weight 1 / batch size.
                    loss = logprobs.new_zeros(())
                    sizes = [len(row.reference) for row in rows]
                    for row, of_row in zip(rows, logprobs.split_with_sizes(sizes), strict=True):
                        ranking = ranking_terms(of_row, row, settings)
                        loss = loss + ranking.loss / len(indices)
                        sums.add(row, of_row, ranking)
                    learner.scale.backward(loss)
            return sums.values

        sums = processes.add(micro.run(backward_share, discard=learner.clear_gradients))
        return _means(sums, len(indices))

    eval_every = settings.eval_every or -(-len(train) // batch_size)

    def evaluate(step: int) -> dict[str, float] | None:
        """Statistics of the held-out rankings, by default after every epoch."""
        if step % eval_every and step != len(plan):
            return None
        statistics = asdict(evaluate_dpo(adapters, role, held_out, settings, micro))
        return {f"eval_{name}": value for name, value in statistics.items()}

    # 4. The optimiser steps, with evaluations between them.
    patience = Patience(settings.patience)
    steps = fit(
        learner,
        plan,
        backward,
        Bookkeeping(checkpoints, settings.save_every, log, patience=patience),
        micro=micro,
        describe=lambda indices: [_readable(adapters, train[i]) for i in indices],
        evaluate=evaluate,
    )
    adapters.trainable()
    return DPOResult(
        rankings=len(train),
        pairs=sum(len(row.group.pairs) + len(row.group.ties) for row in train),
        tokens=sum(train[i].tokens for batch in plan[:steps] for i in batch),
        batch_size=batch_size,
        steps=steps,
        best_step=patience.best_step or 0,
        held_out=evaluate_dpo(adapters, role, held_out, settings, micro),
    )


@dataclass(frozen=True)
class RankingTerms:
    """Loss of one ranking, and the implicit rewards that it is made of."""

    loss: Tensor
    """Scalar: the pairs' loss, and the weighted SFT loss."""
    rewards: Tensor
    """(K,) implicit reward of each completion, without a gradient."""


def ranking_terms(logprobs: Tensor, row: ReferencedGroup, settings: DPO) -> RankingTerms:
    """Loss of one ranking from the policy's log-probabilities of its completions.

    Args:
        logprobs: (K,) float32, sums over the tokens of each completion.
        row: The ranking, with the same under SFT.
        settings: Loss, its options, and the weight of the SFT loss.
    """
    group = row.group
    log_ratios = logprobs - logprobs.new_tensor(row.reference)
    lengths = logprobs.new_tensor([max(1, len(example.completion)) for example in group.examples])
    if settings.length_normalised:
        log_ratios = log_ratios / lengths
    loss = dpo_loss(
        log_ratios,
        pair_indices(group.pairs, logprobs),
        beta=settings.beta,
        kind=settings.loss,
        label_smoothing=settings.label_smoothing,
        ties=pair_indices(group.ties, logprobs),
    )
    if settings.sft_coef and row.unbeaten:
        token_losses = -logprobs / lengths
        loss = loss + settings.sft_coef * token_losses[row.unbeaten].mean()
    return RankingTerms(loss, settings.beta * log_ratios.detach())


def evaluate_dpo(
    adapters: Adapters,
    role: str,
    rows: Sequence[ReferencedGroup],
    settings: DPO,
    micro: MicroBatch,
) -> PairStatistics:
    """Statistics of rankings under a policy, without gradients."""
    sums = _PairSums()
    logprobs = _logprobs(adapters, role, [row.group for row in rows], micro)
    for row, of_row in zip(rows, map(torch.tensor, logprobs), strict=True):
        sums.add(row, of_row, ranking_terms(of_row, row, settings))
    return PairStatistics(**_means(sums.values, len(rows)))


_OF_PAIRS = ("accuracy", "margin", "chosen_logprob", "rejected_logprob")


class _PairSums:
    """Sums over rankings and over their pairs."""

    def __init__(self) -> None:
        self.values = dict.fromkeys(("loss", "pairs", *_OF_PAIRS), 0.0)

    def add(self, row: ReferencedGroup, logprobs: Tensor, terms: RankingTerms) -> None:
        """Add a ranking with its loss, and its pairs."""
        better, worse = pair_indices(row.group.pairs, logprobs).T
        gaps = float64(terms.rewards[better] - terms.rewards[worse])
        logprobs = float64(logprobs.detach())
        self.values["loss"] += terms.loss.item()
        self.values["pairs"] += len(gaps)
        self.values["accuracy"] += float((gaps > 0).sum() + (gaps == 0).sum() / 2)
        self.values["margin"] += float(gaps.sum())
        self.values["chosen_logprob"] += float(logprobs[better].sum())
        self.values["rejected_logprob"] += float(logprobs[worse].sum())


def _means(sums: dict[str, float], rankings: int) -> dict[str, float]:
    """Means over rankings and pairs; the loss alone where all rankings are ties."""
    means = {"loss": sums["loss"] / rankings}
    if sums["pairs"]:
        means |= {name: sums[name] / sums["pairs"] for name in _OF_PAIRS}
    return means


def _logprobs(
    adapters: Adapters, role: str, groups: Sequence[Group], micro: MicroBatch
) -> list[tuple[float, ...]]:
    """Log-probabilities of each group's completions, sums over tokens; processes share the work."""
    local_groups = processes.share(groups)
    examples = [example for group in local_groups for example in group.examples]
    most = max((len(group.examples) for group in groups), default=1)
    logprobs = micro.run(
        lambda size: completion_logprobs(adapters, role, examples, batch_size=size * most)
    )
    sizes = [len(group.examples) for group in local_groups]
    return processes.gather([tuple(part.tolist()) for part in logprobs.split_with_sizes(sizes)])


def _readable(adapters: Adapters, row: ReferencedGroup) -> dict[str, object]:
    return {
        "prompt_id": row.group.prompt_id,
        "pairs": [list(pair) for pair in row.group.pairs],
        "completions": readable_examples(adapters.base, row.group.examples),
    }
