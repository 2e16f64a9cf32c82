"""What an endpoint can do, found out with a few short requests before the first that counts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from alpaca_rlhf.config import UserError
from alpaca_rlhf.data.wire import Answer, Refusal
from alpaca_rlhf.prompts import continue_messages

Can = Literal["yes", "no", "refused"]

SAMPLE = {"generation_config": json.dumps({"do_sample": True})}
"""Makes `transformers serve` sample where the model's own generation_config does not say so; else
it takes the most likely token whatever the temperature."""

_TEXT = "Ten things that a person may see on a walk:\n1."
_TOKENS = 32
_HOT = 1.0  # at a low temperature two short replies may well be the same
_REFUSED = (400, 422)

Ask = Callable[[Mapping[str, Any]], Answer]
"""Sends a body, tries again where that may help, and returns the answer."""


@dataclass(frozen=True)
class Capabilities:
    """What a probe found."""

    sampling: Can
    """Whether two sampled requests got two replies."""
    seed: Can
    """Whether the same seed gave the same reply."""
    n: Can
    """Whether several replies to one request can be had. The kit does without."""
    response_format: Can
    """Whether it can be held to JSON. The kit does without."""
    usage: Can
    """Whether it counts tokens."""
    limit: str = "max_tokens"
    """How it calls the most tokens of a reply."""
    sample: bool = False
    """Whether it samples only with `SAMPLE`."""

    def line(self, name: str) -> str:
        """As a person reads it."""
        sampling = f"{self.sampling}, with do_sample in its requests" if self.sample else None
        return (
            f"endpoint {name}: sampling {sampling or self.sampling}; seed {self.seed}; "
            f"n {self.n}; response_format {self.response_format}; token counts "
            f"{self.usage if self.usage == 'yes' else 'no, estimated here'}"
        )

    def fields(self, *, seed: int, tokens: int) -> dict[str, Any]:
        """The fields of a request that depend on the endpoint."""
        seeded = {} if self.seed == "refused" else {"seed": seed}
        return {self.limit: tokens, **seeded, **(SAMPLE if self.sample else {})}


def probe_body(api: str, text: str) -> dict[str, Any]:
    """What a request of this API has as its prompt."""
    return {"messages": continue_messages(text)} if api == "chat" else {"prompt": text}


def probe(ask: Ask, body: Mapping[str, Any], api: str) -> Capabilities:
    """Find out what an endpoint can do: four to ten short requests.

    Args:
        ask: Sends a body.
        body: The fields of every request of the run: model, temperature and so on.
        api: `chat` or `completions`.

    Raises:
        UserError: It refuses even the plainest request, or it does not sample though it is asked.
    """
    sampled = body.get("temperature", 1.0) > 0
    hot = {"temperature": max(_HOT, body["temperature"])} if "temperature" in body else {}
    plain = {**body, **probe_body(api, _TEXT), **hot}
    limit, seeded, first = _accepted(ask, plain)
    plain[limit] = _TOKENS

    def draw(seed: int, **more: Any) -> Answer:
        return ask({**plain, **({"seed": seed} if seeded else {}), **more})

    try:
        several: Can = "yes" if draw(1, n=2).choices == 2 else "no"
    except Refusal as refusal:
        several = _if_refused(refusal)
    try:
        words = draw(1, response_format={"type": "json_object"}).text
        as_json: Can = "yes" if _is_json(words) else "no"
    except Refusal as refusal:
        as_json = _if_refused(refusal)
    differs = draw(2).text != first.text
    sample = False
    if sampled and not differs:
        sample = _samples(draw)
        if not sample:
            raise UserError(
                "--generate.endpoint: gives the same reply to two sampled requests, so every "
                "request of a run would bring the same tasks; switch sampling on in the server "
                "(transformers serve: do_sample true in generation_config.json; others: no cache "
                "of replies), or name what it needs with --generate.endpoint.params"
            )
        first = draw(1, **SAMPLE)
    more = SAMPLE if sample else {}
    same = seeded and draw(1, **more).text == first.text and (differs or sample)
    return Capabilities(
        sampling="yes" if differs or sample else "no",
        seed="refused" if not seeded else "yes" if same else "no",
        n=several,
        response_format=as_json,
        usage="no" if first.estimated else "yes",
        limit=limit,
        sample=sample,
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


def _samples(draw: Callable[..., Answer]) -> bool:
    try:
        return draw(1, **SAMPLE).text != draw(2, **SAMPLE).text
    except Refusal as refusal:
        _if_refused(refusal)
        return False


def _if_refused(refusal: Refusal) -> Can:
    if refusal.status not in _REFUSED:
        raise refusal
    return "refused"


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
