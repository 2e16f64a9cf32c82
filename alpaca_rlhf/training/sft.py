"""Supervised fine-tuning of an adapter: loss on completion tokens, eos included, nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from alpaca_rlhf.core import processes
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.batches import (
    Example,
    TokenCounts,
    chars_of,
    collate,
    longest_first,
    max_chars,
    sft_example,
)
from alpaca_rlhf.models.devices import float64
from alpaca_rlhf.models.forward import loss_logprobs
from alpaca_rlhf.models.oom_retry import MicroBatch
from alpaca_rlhf.models.text_base import TextBase
from alpaca_rlhf.models.turns import LostReply
from alpaca_rlhf.settings import SFT
from alpaca_rlhf.training.bad_batch import readable_examples
from alpaca_rlhf.training.held_out_split import split_by_hash
from alpaca_rlhf.training.loop import Bookkeeping, Checkpoints, Learner, Log, batches, fit
from alpaca_rlhf.training.loss_scale import LossScale
from alpaca_rlhf.training.patience import Patience


@dataclass(frozen=True)
class SFTResult:
    """Size of the training data, and the held-out loss before and after."""

    examples: int
    """Rows trained on."""
    held_out: int
    """Rows kept for the evaluation loss."""
    tokens: int
    """Completion tokens of all steps taken."""
    loss_before: float
    """Held-out loss before the first step, in nats per completion token."""
    loss_after: float
    """Held-out loss of the weights that are kept."""
    batch_size: int
    """Rows of an optimiser step."""
    steps: int
    """Optimiser steps taken."""
    best_step: int
    """Steps after which the held-out loss was lowest; 0 if it was never evaluated."""


@dataclass(frozen=True)
class EncodedRows:
    """Tokenised rows to learn from, and those that are left out."""

    examples: list[Example]
    """The rows that fit; nothing is ever truncated."""
    too_long: list[Instruction]
    """Rows that are too long."""
    lost: list[Instruction]
    """Conversations of which the chat template alters an earlier reply."""


class RowEncoder:
    """Tokenises rows with an output, one by one.

    Args:
        base: The base.
        template: The prompt template.
        max_length: Tokens of a row at most.
    """

    def __init__(self, base: TextBase, template: str, max_length: int) -> None:
        self._base, self._template = base, template
        self._limit = min(max_length, base.context)
        # A tokenizer takes a minute for some megabytes, which are too long whatever they say.
        self._most_chars = max_chars(base, self._limit)

    def encode(self, row: Instruction) -> Example | None:
        """The row as an example; None if it is too long.

        Raises:
            LostReply: The chat template alters an earlier reply of the conversation.
        """
        if chars_of(row) > self._most_chars:
            return None
        encoded = sft_example(self._base, self._template, row)
        return encoded if len(encoded) <= self._limit else None


def encode(adapters: Adapters, rows: Sequence[Instruction], max_length: int) -> EncodedRows:
    """Tokenise rows with an output: those that fit, and those that are left out."""
    encoder = RowEncoder(adapters.base, adapters.template, max_length)
    examples: list[Example] = []
    too_long: list[Instruction] = []
    lost: list[Instruction] = []
    for row in rows:
        try:
            encoded = encoder.encode(row)
        except LostReply:
            lost.append(row)
        else:
            if encoded is None:
                too_long.append(row)
            else:
                examples.append(encoded)
    return EncodedRows(examples, too_long, lost)


def preview_indices(examples: Sequence[Example]) -> list[int]:
    """Indices of the examples to show before training: the first, and the first conversation."""
    conversations = (number for number, example in enumerate(examples) if example.earlier)
    return sorted({*range(min(1, len(examples))), *islice(conversations, 1)})


def split_held_out(
    rows: Sequence[Instruction], share: float
) -> tuple[list[Instruction], list[Instruction]]:
    """Training rows and held-out rows; a row's side depends on its prompt alone.

    That of a conversation depends on its first turn, which other conversations may share.
    """
    openings = [
        Instruction(row.history[0][0], system=row.system) if row.history else row for row in rows
    ]
    return split_by_hash(rows, [opening.id for opening in openings], share, salt="held-out")


@torch.no_grad()
def held_out_loss(
    adapters: Adapters,
    role: str | None,
    examples: Sequence[Example],
    micro_batch_size: int,
    largest: TokenCounts,
) -> float:
    """Mean loss in nats per completion token; 0.0 without examples.

    Args:
        adapters: Adapters on the base.
        role: Adapter to evaluate; None for the bare base.
        examples: Rows held out.
        micro_batch_size: Rows at once, each the largest there may be.
        largest: Tokens of the largest row.
    """
    loss_sum, tokens = 0.0, 0
    local_examples = processes.share(examples)
    with adapters.using(role), adapters.dequantized():
        budget = largest.times(micro_batch_size)
        for indices in longest_first(local_examples, micro_batch_size, budget):
            batch = collate(adapters.base, [local_examples[i] for i in indices])
            loss_sum -= float(float64(loss_logprobs(adapters, batch)).sum())
            tokens += len(batch.loss_positions)
    sums = processes.add({"loss": loss_sum, "tokens": tokens})
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
    largest: TokenCounts | None = None,
) -> SFTResult:
    """Train adapter `role`; the loss of a step is a mean over all completion tokens of its batch.

    Args:
        adapters: Adapters on the base.
        role: Adapter to train.
        examples: Examples to train on.
        held_out: Examples to evaluate on; may be empty.
        settings: Hyperparameters.
        seed: Seed of the order.
        checkpoints: Checkpoints to resume from and to save to.
        log: Receives a row of metrics a step.
        stage: Name in messages.
        largest: Tokens of the largest row, of which `micro_batch_size` fill a micro-batch; None
            for a row of `max_length`.

    Raises:
        UserError: There is nothing to train on.
    """
    if not examples:
        raise UserError(
            f"{stage}: no rows to train on that fit into "
            f"--sft.max-length {settings.max_length} tokens"
        )
    # 1. Batches of every step, and one optimiser for the adapter.
    batch_size = settings.examples_per_step(len(examples))
    plan = batches(len(examples), batch_size, settings.epochs, seed)
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
    largest = largest or TokenCounts.of_longest(min(settings.max_length, adapters.base.context))
    micro = MicroBatch(
        stage, "--sft.micro-batch-size", settings.micro_batch_size, lower="--sft.max-length"
    )

    def backward(indices: list[int]) -> dict[str, float]:
        """Accumulate the gradient of the mean loss of these examples."""
        batch_examples = [examples[i] for i in indices]
        tokens = sum(example.loss_tokens for example in batch_examples)
        local_examples = processes.share(batch_examples)

        def backward_share(size: int) -> float:
            loss_sum = 0.0
            with adapters.using(role), adapters.training():
                for rows in longest_first(local_examples, size, largest.times(size)):
                    # 2. Sum over the micro-batch's tokens / tokens of the whole batch.
                    batch = collate(adapters.base, [local_examples[i] for i in rows])
                    loss = -loss_logprobs(adapters, batch).sum() / tokens
                    learner.scale.backward(loss)
                    loss_sum += loss.item()
            return loss_sum

        loss = micro.run(backward_share, discard=learner.clear_gradients)
        return {**processes.add({"loss": loss}), "tokens": tokens}

    def eval_loss() -> float:
        return micro.run(lambda size: held_out_loss(adapters, role, held_out, size, largest))

    eval_every = settings.eval_every or -(-len(examples) // batch_size)

    def evaluate(step: int) -> dict[str, float] | None:
        """Held-out loss, by default after every epoch."""
        due = step % eval_every == 0 or step == len(plan)
        return {"eval_loss": eval_loss()} if held_out and due else None

    # 3. Held-out loss before, then the optimiser steps with evaluations between them.
    patience = Patience(settings.patience)
    loss_before = eval_loss()
    steps = fit(
        learner,
        plan,
        backward,
        Bookkeeping(checkpoints, settings.save_every, log, patience=patience),
        micro=micro,
        describe=lambda indices: readable_examples(adapters.base, [examples[i] for i in indices]),
        evaluate=evaluate,
    )
    adapters.trainable()
    return SFTResult(
        examples=len(examples),
        held_out=len(held_out),
        tokens=sum(examples[i].loss_tokens for batch in plan[:steps] for i in batch),
        loss_before=loss_before,
        loss_after=eval_loss(),
        batch_size=batch_size,
        steps=steps,
        best_step=patience.best_step or 0,
    )
