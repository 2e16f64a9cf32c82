"""Completions as text while they are sampled.

The tokens come from `rollout.stream`, which draws what `rollout.sample` does.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from threading import Event

from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.base import Base
from alpaca_rlhf.models.batches import answer
from alpaca_rlhf.models.rollout import SampledCompletion, Token
from alpaca_rlhf.models.turns import decode, reply_lead

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
        self._lead = reply_lead(base, template)
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


def before_stop(text: str, stop_texts: Sequence[str], *, n_begun: int = 0) -> str:
    """A text up to the first of some texts that comes up in it.

    One that lies wholly in the first `n_begun` characters, which were there before, does not count.
    """
    starts = [max(0, n_begun - len(stop_text) + 1) for stop_text in stop_texts]
    places = [text.find(*stop) for stop in zip(stop_texts, starts, strict=True)]
    return text[: min((place for place in places if place >= 0), default=len(text))]


def stream_text(
    adapters: Adapters,
    token_stream: Generator[list[Token], None, None],
    *,
    rows: int,
    stop: Event,
    stop_texts: Sequence[str] = (),
    begun: Sequence[int] = (),
) -> Iterator[list[GenerationUpdate]]:
    """Yield the text of completions as their tokens are sampled.

    Args:
        adapters: Adapters on the base.
        token_stream: Result of `rollout.stream`; closed at the end.
        rows: Completions that it samples.
        stop: Once it is set, no further token is sampled.
        stop_texts: A completion ends before the first of these that comes up in it.
        begun: Ids of the beginning of the completion, which stand in the prompt: the texts have it,
            the sampled tokens have not.

    Yields:
        All rows after each step; the last time with their exact texts.
    """
    texts = [Text(adapters.base, adapters.template) for _ in range(rows)]
    for text_of_row in texts:
        for token_id in begun:
            text_of_row.add(token_id)
    n_begun = len(str(texts[0])) if begun else 0
    ids: list[list[int]] = [[] for _ in range(rows)]
    finished = [False] * rows

    stopped = [False] * rows

    def updates(row_texts: Sequence[str]) -> list[GenerationUpdate]:
        return [
            GenerationUpdate(
                before_stop(text, stop_texts, n_begun=n_begun),
                SampledCompletion(tuple(row_ids), ended),
            )
            for text, row_ids, ended in zip(row_texts, ids, finished, strict=True)
        ]

    with closing(token_stream):
        for tokens in token_stream:
            for token in tokens:
                if stopped[token.row]:
                    continue
                ids[token.row].append(token.id)
                finished[token.row] = token.ends
                texts[token.row].add(token.id)
                text = str(texts[token.row])
                if before_stop(text, stop_texts, n_begun=n_begun) != text:
                    stopped[token.row] = finished[token.row] = True
            if all(finished) and any(stopped):
                break
            if stop.is_set():
                break
            yield updates([str(text) for text in texts])
    yield updates([answer(adapters.base, adapters.template, [*begun, *row_ids]) for row_ids in ids])
