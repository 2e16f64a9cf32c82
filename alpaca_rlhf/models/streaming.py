"""Completions as text while they are drawn.

The tokens are those of `rollout.sample` for the same key, sample and seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from threading import Event

from alpaca_rlhf.core.prompts import lead
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.base import Base
from alpaca_rlhf.models.batches import answer
from alpaca_rlhf.models.rollout import Sampled, stream
from alpaca_rlhf.models.turns import decode
from alpaca_rlhf.settings import Sampling

_BROKEN = "\ufffd"
"""How a character looks of which some bytes have yet to come."""


@dataclass(frozen=True)
class Spoken:
    """One completion so far."""

    text: str
    """What it says; while it goes on, without a character that has yet to be completed."""
    sampled: Sampled
    """Its tokens, and whether it has ended with a stop token."""


class Text:
    """The text of a completion that grows token by token.

    A tail is decoded with the tokens before it, back to where the text was whole last, so the cost
    of a token does not grow with the text.

    Args:
        base: Whose tokens they are.
        template: Of the prompt; what it puts before a completion is left out.
    """

    def __init__(self, base: Base, template: str) -> None:
        self._base = base
        self._lead = lead(template)
        self._whole = ""
        self._ids: list[int] = []
        self._before, self._shown = 0, 0  # the tail starts here; up to here it is in the text

    def add(self, token: int) -> None:
        """One more token."""
        self._ids.append(token)
        known = decode(self._base, self._ids[self._before : self._shown])
        tail = decode(self._base, self._ids[self._before :])
        if not tail.endswith(_BROKEN):
            self._whole += tail[len(known) :]
            self._before, self._shown = self._shown, len(self._ids)

    def __str__(self) -> str:
        return self._whole.removeprefix(self._lead)


def spoken(
    adapters: Adapters,
    role: str | None,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[str],
    *,
    k: int = 1,
    sampling: Sampling,
    seed: int,
    stop: Event,
) -> Iterator[list[Spoken]]:
    """Draw K completions of each prompt in one batch, as far as they have come.

    Args:
        adapters: The adapters of the base.
        role: Which adapter speaks; None is the bare base.
        prompts: Token ids of each prompt.
        keys: Name of each prompt, for its noise.
        k: Completions a prompt.
        sampling: Temperature, top-p, length.
        seed: Seed of the noise.
        stop: Once it is set, no further token is drawn.

    Yields:
        All rows after each step; the last time with their exact texts.
    """
    rows = len(prompts) * k
    texts = [Text(adapters.base, adapters.template) for _ in range(rows)]
    ids: list[list[int]] = [[] for _ in range(rows)]
    ended = [False] * rows

    def so_far(said: Sequence[str]) -> list[Spoken]:
        return [
            Spoken(one, Sampled(tuple(own), end))
            for one, own, end in zip(said, ids, ended, strict=True)
        ]

    with closing(stream(adapters, role, prompts, keys, k=k, sampling=sampling, seed=seed)) as steps:
        for step in steps:
            for one in step:
                ids[one.row].append(one.id)
                ended[one.row] = one.ends
                texts[one.row].add(one.id)
            if stop.is_set():
                break
            yield so_far([str(text) for text in texts])
    yield so_far([answer(adapters.base, adapters.template, own) for own in ids])
