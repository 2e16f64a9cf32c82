"""Bootstrap resamples of the rankings, one for each head of an ensemble.

Source: one resample of the data for each of several heads on a shared network (Osband et al. 2016,
arXiv 1602.04621 section 3).
"""

from __future__ import annotations

import torch
from torch import Tensor

from alpaca_rlhf.core.randomness import derived_seed


def bootstrap_counts(rankings: int, heads: int, seed: int) -> Tensor:
    """(N, G) float32, how often each of N heads draws each of G rankings, of G with replacement."""
    counts = []
    for head in range(heads):
        generator = torch.Generator().manual_seed(derived_seed(seed, "bootstrap", head))
        drawn = torch.randint(rankings, (rankings,), generator=generator)
        counts.append(drawn.bincount(minlength=rankings))
    return torch.stack(counts).float()


def head_seeds(heads: int, seed: int) -> list[int]:
    """Seeds that the weights of N heads are drawn from."""
    return [derived_seed(seed, "head", head) for head in range(heads)]
