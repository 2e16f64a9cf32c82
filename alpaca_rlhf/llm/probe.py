"""What an endpoint can do, found out with a few short requests before the first that counts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.prompts import continue_messages
from alpaca_rlhf.llm.wire import Answer, Refusal

Can = Literal["yes", "no", "refused"]
CanStop = Literal["yes", "left in", "no", "refused"]

SAMPLE = {"generation_config": json.dumps({"do_sample": True})}
"""Makes `transformers serve` sample where the model's own generation_config does not say so; else
it takes the most likely token whatever the temperature."""

DO_SAMPLE = (
    "transformers serve samples with do_sample true in the model's generation_config.json, or with "
    """--generate.endpoint.params '{"generation_config": "{\\"do_sample\\": true}"}'"""
)
"""Advice."""

_TEXT = "Ten things that a person may see on a walk:\n1."
_STOP = " "  # stands in every reply of more than a word
_TOKENS = 32
_HOT = 1.0  # at a low temperature two short replies may well be the same
_REFUSED = (400, 422)
_SHOWN = 5  # names of models

Ask = Callable[[Mapping[str, Any]], Answer]
"""Sends a body, tries again where that may help, and returns the answer."""


@dataclass(frozen=True)
class Capabilities:
    """What a probe found."""

    sampling: Can
    """Whether two sampled requests got two replies."""
    seed: Can
    """Whether the same seed gave the same reply."""
    stop: CanStop
    """Whether it ends at a stop text, and whether it leaves it in."""
    usage: Can
    """Whether it counts tokens."""
    others: str = ""
    """Models that it lists, if it lists some and the one asked is not among them."""
    limit: str = "max_tokens"
    """How it calls the most tokens of a reply."""
    sample: bool = False
    """Whether it samples only with `SAMPLE`."""

    def line(self, name: str) -> str:
        """As a person reads it."""
        parts = [
            f"sampling {self.sampling}{', if asked with do_sample' if self.sample else ''}",
            f"seed {self.seed}",
            f"stop texts {self.stop}",
            f"token counts {self.usage if self.usage == 'yes' else 'no, estimated here'}",
        ]
        if self.others:
            parts.append(f"it does not list that model but {self.others}")
        return f"endpoint {name}: {'; '.join(parts)}"

    def fields(self, *, seed: int, tokens: int, stop: Sequence[str]) -> dict[str, Any]:
        """The fields of a request that depend on the endpoint."""
        seeded = {} if self.seed == "refused" else {"seed": seed}
        stops = {"stop": list(stop)} if stop and self.stop != "refused" else {}
        return {self.limit: tokens, **seeded, **stops, **(SAMPLE if self.sample else {})}


def prompt_fields(api: str, text: str) -> dict[str, Any]:
    """What a request of this API has as its prompt."""
    return {"messages": continue_messages(text)} if api == "chat" else {"prompt": text}


def probe(ask: Ask, body: Mapping[str, Any], api: str, listed: Sequence[str]) -> Capabilities:
    """Find out what an endpoint can do: four to nine short requests.

    Args:
        ask: Sends a body.
        body: The fields of every request of the run: model, temperature and so on.
        api: `chat` or `completions`.
        listed: The models that it says it has, if it says so.

    Raises:
        UserError: It refuses even the plainest request, or it does not sample though it is asked.
    """
    plain = {**body, **prompt_fields(api, _TEXT), "temperature": max(_HOT, body["temperature"])}
    limit, seeded, first = _accepted(ask, plain)
    plain[limit] = _TOKENS

    def draw(seed: int, **more: Any) -> Answer:
        return ask({**plain, **({"seed": seed} if seeded else {}), **more})

    varies = draw(2).text != first.text
    more: Mapping[str, Any] = {}
    if not varies and body["temperature"] > 0:
        more = SAMPLE
        first = _sampled(draw)
        varies = True
    same = seeded and varies and draw(1, **more).text == first.text
    known = not listed or body["model"] in listed
    return Capabilities(
        sampling="yes" if varies else "no",
        seed="refused" if not seeded else "yes" if same else "no",
        stop=_stops(draw),
        usage="no" if first.estimated else "yes",
        others="" if known else ", ".join(listed[:_SHOWN]),
        limit=limit,
        sample=bool(more),
    )


def _accepted(ask: Ask, body: Mapping[str, Any]) -> tuple[str, bool, Answer]:
    """How it calls the limit, whether it takes a seed, and its answer to seed 1.

    Newer models of OpenAI take `max_completion_tokens` only; some servers refuse unknown fields.
    """
    told: Refusal | None = None
    for limit in ("max_tokens", "max_completion_tokens"):
        for seed in ({"seed": 1}, {}):
            try:
                return limit, bool(seed), ask({**body, limit: _TOKENS, **seed})
            except Refusal as refusal:
                if refusal.status not in _REFUSED:
                    raise
                told = told or refusal
    assert told is not None
    raise told


def _sampled(draw: Callable[..., Answer]) -> Answer:
    """The answer to seed 1 of an endpoint that samples only with `SAMPLE`."""
    try:
        first = draw(1, **SAMPLE)
        if draw(2, **SAMPLE).text != first.text:
            return first
    except Refusal as refusal:
        if refusal.status not in _REFUSED:
            raise
    raise UserError(
        "--generate.endpoint: gives the same reply to two sampled requests, so every request of a "
        f"run would bring the same tasks; switch sampling on in the server ({DO_SAMPLE}; a cache "
        "on the way: off)"
    )


def _stops(draw: Callable[..., Answer]) -> CanStop:
    try:
        text = draw(1, stop=[_STOP]).text
    except Refusal as refusal:
        if refusal.status not in _REFUSED:
            raise
        return "refused"
    if _STOP not in text:
        return "yes"
    # a token may hold more than the stop text, which ends it all the same
    return "left in" if len(text.split(_STOP)) <= 3 else "no"
