"""Seeds derived from a run's seed, one for each named purpose, so that none collide."""

from __future__ import annotations

import hashlib


def derived_seed(seed: int, *purpose: int | str) -> int:
    """Derive a seed of 63 bits for a purpose, such as ("update", 3), from a run's seed.

    Sums such as seed + update collide: update 10 of seed 1 would be update 0 of seed 11.
    """
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
