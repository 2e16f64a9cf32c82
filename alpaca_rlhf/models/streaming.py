"""Completions as text while they are sampled.

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
from alpaca_rlhf.models.rollout import SampledCompletion, stream
from alpaca_rlhf.models.turns import decode
from alpaca_rlhf.settings import Sampling

_INCOMPLETE = "\ufffd"
"""Decoded form of a character some of whose bytes are still missing."""


@dataclass(frozen=True)
class GenerationUpdate:
    """One completion as far as it has been sampled."""

    text: str
    """Its text; while it grows, without a last character that is still incomplete."""
    sampled: SampledCompletion
    """Its tokens, and whether it has ended with a stop token."""


class Text:
    """Text of a completion that grows token by token.

    Only a tail is decoded, with the tokens before it back to where the text was last complete, so
    the cost of a token does not grow with the text.

    Args:
        base: Base whose tokens they are.
        template: Template of the prompt; its lead before a completion is left out.
    """

    def __init__(self, base: Base, template: str) -> None:
        self._base = base
        self._lead = lead(template)
        self._text = ""
        self._ids: list[int] = []
        self._tail_start = 0
        self._text_end = 0  # the text holds the ids up to here

    def add(self, token_id: int) -> None:
        """Append one token."""
        self._ids.append(token_id)
        known = decode(self._base, self._ids[self._tail_start : self._text_end])
        tail = decode(self._base, self._ids[self._tail_start :])
        if not tail.endswith(_INCOMPLETE):
            self._text += tail[len(known) :]
            self._tail_start, self._text_end = self._text_end, len(self._ids)

    def __str__(self) -> str:
        return self._text.removeprefix(self._lead)


def stream_text(
    adapters: Adapters,
    role: str | None,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[str],
    *,
    k: int = 1,
    sampling: Sampling,
    seed: int,
    stop: Event,
) -> Iterator[list[GenerationUpdate]]:
    """Sample K completions of each prompt in one batch, and yield their text as it grows.

    Args:
        adapters: Adapters on the base.
        role: Adapter that samples; None is the bare base.
        prompts: Token ids of each prompt.
        keys: Name of each prompt's noise.
        k: Completions a prompt.
        sampling: Temperature, top-p, length.
        seed: Seed of the noise.
        stop: Once it is set, no further token is sampled.

    Yields:
        All rows after each step; the last time with their exact texts.
    """
    rows = len(prompts) * k
    texts = [Text(adapters.base, adapters.template) for _ in range(rows)]
    ids: list[list[int]] = [[] for _ in range(rows)]
    finished = [False] * rows

    def updates(row_texts: Sequence[str]) -> list[GenerationUpdate]:
        return [
            GenerationUpdate(text, SampledCompletion(tuple(row_ids), ended))
            for text, row_ids, ended in zip(row_texts, ids, finished, strict=True)
        ]

    with closing(stream(adapters, role, prompts, keys, k=k, sampling=sampling, seed=seed)) as steps:
        for tokens in steps:
            for token in tokens:
                ids[token.row].append(token.id)
                finished[token.row] = token.ends
                texts[token.row].add(token.id)
            if stop.is_set():
                break
            yield updates([str(text) for text in texts])
    yield updates([answer(adapters.base, adapters.template, row_ids) for row_ids in ids])
