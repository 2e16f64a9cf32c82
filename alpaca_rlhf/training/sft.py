"""Supervised fine-tuning of an adapter: loss on completion tokens, eos included, nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from alpaca_rlhf.core import processes
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction, content_hash
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.batches import Example, by_length, collate, example
from alpaca_rlhf.models.forward import loss_logprobs
from alpaca_rlhf.settings import SFT
from alpaca_rlhf.training.bad_batch import readable
from alpaca_rlhf.training.loop import Checkpoints, Learner, Log, batches, fit
from alpaca_rlhf.training.loss_scale import LossScale
from alpaca_rlhf.training.memory import MicroBatch
from alpaca_rlhf.training.patience import Patience


@dataclass(frozen=True)
class SFTResult:
    """What came of it."""

    examples: int
    """Rows trained on."""
    held_out: int
    """Rows kept for the evaluation loss."""
    tokens: int
    """Completion tokens of all steps taken."""
    loss_before: float
    """Held-out loss before the first step, in nats a completion token."""
    loss_after: float
    """The same of the weights that stay."""
    steps: int
    """Optimiser steps taken."""
    best_step: int
    """Steps after which the held-out loss was lowest; 0 if it was never looked at."""


def encode(
    adapters: Adapters, rows: Sequence[Instruction], max_length: int
) -> tuple[list[Example], int]:
    """Rows with an output as examples, and how many are too long. Nothing is ever cut."""
    examples = [example(adapters.base, adapters.template, row, row.output or "") for row in rows]
    fitting = [one for one in examples if len(one) <= min(max_length, adapters.base.context)]
    return fitting, len(examples) - len(fitting)


def previewed(examples: Sequence[Example]) -> list[int]:
    """Indices of the examples to show before training: the first, and the first conversation."""
    conversations = (number for number, one in enumerate(examples) if one.earlier)
    return sorted({*range(min(1, len(examples))), *islice(conversations, 1)})


def split_held_out(
    rows: Sequence[Instruction], share: float
) -> tuple[list[Instruction], list[Instruction]]:
    """Training rows and held-out rows; a row's side depends on its prompt alone.

    That of a conversation depends on its first turn, which may stand at the start of others too.
    """
    bound = int(share * 2**32)
    opening = [Instruction(row.history[0][0]) if row.history else row for row in rows]
    side = [int(content_hash("held-out", one.id)[:8], 16) < bound for one in opening]
    return [r for r, out in zip(rows, side, strict=True) if not out], [
        r for r, out in zip(rows, side, strict=True) if out
    ]


@torch.no_grad()
def held_out_loss(
    adapters: Adapters, role: str | None, examples: Sequence[Example], micro_batch_size: int
) -> float:
    """Mean loss a completion token, in nats; NaN-free: 0.0 without examples."""
    total, count = 0.0, 0
    own = processes.share(examples)
    with adapters.using(role):
        for group in by_length([len(one) for one in own], micro_batch_size):
            batch = collate(adapters.base, [own[i] for i in group])
            total -= float(loss_logprobs(adapters, batch).double().sum())
            count += len(batch.learned)
    sums = processes.add({"loss": total, "tokens": count})
    return sums["loss"] / max(1, sums["tokens"])


def train_sft(
    adapters: Adapters,
    role: str,
    examples: Sequence[Example],
    held_out: Sequence[Example],
    settings: SFT,
    *,
    seed: int,
    checkpoints: Checkpoints,
    log: Log,
    stage: str = "sft",
) -> SFTResult:
    """Train adapter `role`; the loss of a step is a mean over all completion tokens of its batch.

    Raises:
        UserError: There is nothing to train on.
    """
    if not examples:
        raise UserError(
            f"{stage}: no rows to train on that fit into "
            f"--sft.max-length {settings.max_length} tokens"
        )
    plan = batches(len(examples), settings.batch_size, settings.epochs, seed)
    adapters.trainable(role)
    learner = Learner(
        stage,
        f"--{stage.partition('.')[0].replace('_', '-')}.lr",
        [(adapters.parameters(role), settings.lr)],
        steps=len(plan),
        warmup=settings.warmup,
        max_grad_norm=settings.max_grad_norm,
        optimizer=settings.optimizer,
        scale=LossScale(adapters.base.dtype),
    )
    micro = MicroBatch(
        stage, "--sft.micro-batch-size", settings.micro_batch_size, lower="--sft.max-length"
    )

    def backward(indices: list[int]) -> dict[str, float]:
        chosen = [examples[i] for i in indices]
        tokens = sum(one.learned for one in chosen)
        own = processes.share(chosen)

        def of(size: int) -> float:
            total = 0.0
            with adapters.using(role), adapters.training():
                for group in by_length([len(one) for one in own], size):
                    batch = collate(adapters.base, [own[i] for i in group])
                    loss = -loss_logprobs(adapters, batch).sum() / tokens
                    learner.scale.backward(loss)
                    total += loss.item()
            return total

        loss = micro.run(of, forget=learner.forget_gradients)
        return {**processes.add({"loss": loss}), "tokens": tokens}

    def evaluated() -> float:
        return micro.run(lambda size: held_out_loss(adapters, role, held_out, size))

    every = settings.eval_every or -(-len(examples) // settings.batch_size)

    def evaluate(step: int) -> dict[str, float] | None:
        due = step % every == 0 or step == len(plan)
        return {"eval_loss": evaluated()} if held_out and due else None

    patience = Patience(settings.patience)
    before = evaluated()
    taken = fit(
        learner,
        plan,
        backward,
        checkpoints=checkpoints,
        save_every=settings.save_every,
        log=log,
        each_step=evaluate,
        micro=micro,
        describe=lambda indices: readable(adapters.base, [examples[i] for i in indices]),
        patience=patience,
    )
    if settings.patience and patience.best_step not in (None, taken):
        assert patience.best_step is not None
        learner.load_state(checkpoints.load(patience.best_step)["learner"])
    adapters.trainable()
    return SFTResult(
        examples=len(examples),
        held_out=len(held_out),
        tokens=sum(examples[i].learned for step in plan[:taken] for i in step),
        loss_before=before,
        loss_after=evaluated(),
        steps=taken,
        best_step=patience.best_step or 0,
    )
