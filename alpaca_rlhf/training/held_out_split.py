"""Held-out rows, chosen by a hash: a row's side depends on its key alone, never on other rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import content_hash

T = TypeVar("T")


def split_by_hash(
    rows: Sequence[T], keys: Sequence[str], share: float, *, salt: str
) -> tuple[list[T], list[T]]:
    """Training rows and held-out rows, each in the order given.

    Args:
        rows: Rows to split.
        keys: Key of each row; rows with the same key are on the same side.
        share: Expected share of the keys that is held out.
        salt: Separates the splits of different stages.
    """
    bound = int(share * 2**32)
    train: list[T] = []
    held_out: list[T] = []
    for row, key in zip(rows, keys, strict=True):
        side = held_out if int(content_hash(salt, key)[:8], 16) < bound else train
        side.append(row)
    return train, held_out


def refuse_empty_side(stage: str, train: int, held_out: int, limit: str) -> None:
    """Refuse a split without rankings to train on, or without any to measure on.

    Args:
        stage: Name in messages.
        train: Rankings to train on.
        held_out: Rankings held out.
        limit: The flag of the longest completion and its value, as typed.

    Raises:
        UserError: One side is empty; the message names the next step.
    """
    if train and held_out:
        return
    step = f"rank more prompts, or {'raise' if train else 'lower'} --reward.held-out"
    if not train and not held_out:
        step = f"all are longer, so raise {limit.partition(' ')[0]}"
    raise UserError(
        f"{stage}: {train} rankings to train on and {held_out} held out (within {limit}), and some "
        f"of each are needed; {step}, and run the same command again: every verdict is kept"
    )
