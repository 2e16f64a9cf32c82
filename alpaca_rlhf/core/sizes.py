"""Sizes that the engine computes with and the planner predicts memory from; and of samples.

They lie below both, so that the planner and the terminal can read them without loading torch.
"""

from __future__ import annotations

import math

LOGITS_PER_CHUNK = 2**24
"""Most logits in memory at once while log-probabilities are computed: 64 MiB in float32."""

SCORING_BATCH_FACTOR = 4
"""Completions scored at once, without gradients, for each ranking that is trained on at once."""

LOGPROBS_BATCH_DIVISOR = 4
"""Completions decoded at once for each whose log-probabilities are evaluated at once: those need
the logits of every token, decoding those of one."""


def most_prompts(rows: int, k: int, minibatch: int) -> int:
    """Most prompts among `rows` neighbours, of minibatches that are cut into parts of that size.

    Args:
        rows: Neighbouring rows of one part.
        k: Completions of each prompt, which lie side by side.
        minibatch: Rows of a minibatch; 0 where all rows are one.
    """
    # The part that begins latest in its first prompt has the fewest completions of it.
    latest = k - math.gcd(rows, k, minibatch)
    return -(-(latest + rows) // k)


MIN_STEPS = 100
"""Optimiser steps that training on few rows should have: in 27 steps of 128 rows a learning rate
that suits batches of 16 hardly moves an adapter."""
MAX_CLUSTER_SHARE = 0.05
"""Share of an evaluation set that one cluster of near-duplicate prompts may be: one of 83 among 304
would rule it."""
MIN_PROMPTS = 20
"""Prompts and pairs below which no 95% interval is shown and nothing is said to hold: resampling a
handful gives whatever the handful happened to be."""


def too_few(*counts: int | None) -> bool:
    """True where prompts, pairs or clusters are fewer than `MIN_PROMPTS`, whichever are counted.

    None stands for a number that nobody has counted.
    """
    return any(count is not None and count < MIN_PROMPTS for count in counts)


def batch_for(rows: int, epochs: int, *, smallest: int, largest: int) -> int:
    """The largest power of two times `smallest`, up to `largest`, that leaves `MIN_STEPS` steps.

    `smallest` where no size does.
    """
    size = smallest
    while 2 * size <= largest and epochs * -(-rows // (2 * size)) >= MIN_STEPS:
        size *= 2
    return size
