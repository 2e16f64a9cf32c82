"""The capabilities of an endpoint, found by a few short requests before the first that counts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.prompts import continue_messages
from alpaca_rlhf.llm.wire import Answer, Refusal

Support = Literal["yes", "no", "refused"]
StopSupport = Literal["yes", "left in", "no", "refused"]

SAMPLE = {"generation_config": json.dumps({"do_sample": True})}
"""Makes `transformers serve` sample where the model's own generation_config does not say so;
otherwise it takes the most likely token at any temperature."""

DO_SAMPLE = (
    "transformers serve samples with do_sample true in the model's generation_config.json, or with "
    """--generate.endpoint.params '{"generation_config": "{\\"do_sample\\": true}"}'"""
)
"""Advice on how to make `transformers serve` sample."""

_TEXT = "Ten things that a person may see on a walk:\n1."
_STOP = " "  # occurs in every reply of more than one word
_TOKENS = 32
_MIN_TEMPERATURE = 1.0  # at a low temperature two short replies may well be the same
_REFUSED = (400, 422)  # HTTP statuses for a field that the endpoint does not know
_MAX_MODELS = 5  # names of models that a message lists

Ask = Callable[[Mapping[str, Any]], Answer]
"""Sends a body, retries where that may help, and returns the answer."""


@dataclass(frozen=True)
class Capabilities:
    """Findings of a probe; the fields are columns of the request cache."""

    sampling: Support
    """`yes` if two sampled requests got two different replies."""
    seed: Support
    """`yes` if the same seed gave the same reply."""
    stop: StopSupport
    """`yes` if a reply ends at a stop text; `left in` if the reply still contains it."""
    usage: Support
    """`yes` if the endpoint counts tokens."""
    others: str = ""
    """Models that it lists, if it lists some and the requested one is not among them."""
    limit: str = "max_tokens"
    """Its name for the field that limits the tokens of a reply."""
    sample: bool = False
    """True if it samples only with `SAMPLE`."""

    def line(self, name: str) -> str:
        """The findings as one line for a person."""
        parts = [
            f"sampling {self.sampling}{', if asked with do_sample' if self.sample else ''}",
            f"seed {self.seed}",
            f"stop texts {self.stop}",
            f"token counts {self.usage if self.usage == 'yes' else 'no, estimated here'}",
        ]
        if self.others:
            parts.append(f"it lists other models, but not that one: {self.others}")
        return f"endpoint {name}: {'; '.join(parts)}"

    def fields(self, *, seed: int, tokens: int, stop: Sequence[str]) -> dict[str, Any]:
        """The fields of a request whose form depends on the endpoint."""
        seeded = {} if self.seed == "refused" else {"seed": seed}
        stops = {"stop": list(stop)} if stop and self.stop != "refused" else {}
        return {self.limit: tokens, **seeded, **stops, **(SAMPLE if self.sample else {})}


def prompt_fields(api: str, text: str) -> dict[str, Any]:
    """The field of a request that holds the prompt in this API."""
    return {"messages": continue_messages(text)} if api == "chat" else {"prompt": text}


def probe(ask: Ask, body: Mapping[str, Any], api: str, listed: Sequence[str]) -> Capabilities:
    """Find the capabilities of an endpoint with four to nine short requests.

    Args:
        ask: Sends a body.
        body: The fields of every request of the run: model, temperature and so on.
        api: `chat` or `completions`.
        listed: The models that it lists; empty if it lists none.

    Raises:
        UserError: It refuses even the plainest request, or does not sample at a temperature.
    """
    # 1. The spelling of the limit, and whether a seed is accepted.
    plain = {
        **body,
        **prompt_fields(api, _TEXT),
        "temperature": max(_MIN_TEMPERATURE, body["temperature"]),
    }
    limit, seeded, first = _accepted(ask, plain)
    plain[limit] = _TOKENS

    def draw(seed: int, **fields: Any) -> Answer:
        return ask({**plain, **({"seed": seed} if seeded else {}), **fields})

    # 2. Two seeds must give two replies, if need be with `SAMPLE`; one seed repeats its reply.
    varies = draw(2).text != first.text
    extra: Mapping[str, Any] = {}
    if not varies and body["temperature"] > 0:
        extra = SAMPLE
        first = _sampled(draw)
        varies = True
    same = seeded and varies and draw(1, **extra).text == first.text
    known = not listed or body["model"] in listed
    # 3. Stop texts are tried last, by `_stop_support`.
    return Capabilities(
        sampling="yes" if varies else "no",
        seed="refused" if not seeded else "yes" if same else "no",
        stop=_stop_support(draw),
        usage="no" if first.estimated else "yes",
        others="" if known else ", ".join(listed[:_MAX_MODELS]),
        limit=limit,
        sample=bool(extra),
    )


def _accepted(ask: Ask, body: Mapping[str, Any]) -> tuple[str, bool, Answer]:
    """The name of the limit, whether a seed is accepted, and the answer to seed 1.

    Newer models of OpenAI accept `max_completion_tokens` only; some servers refuse unknown fields.
    """
    first_refusal: Refusal | None = None
    # The commonest form first: the older name of the limit, and a seed.
    for limit in ("max_tokens", "max_completion_tokens"):
        for seed in ({"seed": 1}, {}):
            try:
                return limit, bool(seed), ask({**body, limit: _TOKENS, **seed})
            except Refusal as refusal:
                if refusal.status not in _REFUSED:
                    raise
                first_refusal = first_refusal or refusal
    assert first_refusal is not None
    raise first_refusal


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
        f"run would give the same tasks; switch sampling on in the server ({DO_SAMPLE}; a cache "
        "on the way: off)"
    )


def _stop_support(draw: Callable[..., Answer]) -> StopSupport:
    try:
        text = draw(1, stop=[_STOP]).text
    except Refusal as refusal:
        if refusal.status not in _REFUSED:
            raise
        return "refused"
    if _STOP not in text:
        return "yes"
    # a token may hold more than the stop text, and still end the reply
    return "left in" if len(text.split(_STOP)) <= 3 else "no"
