"""Traits of a tokenizer's chat template, and the templates that cannot be trained with.

The end of a reply, the place of a system text, the header of a reply: they are read off small
conversations that the template renders, whatever the special tokens of the tokenizer are called.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Any

from alpaca_rlhf.core.errors import UserError

_USER, _REPLY, _SYSTEM = "Name a colour.", "Cobalt-blue-7", "Speak-in-rhymes-3"
THOUGHT, THOUGHT_END = "<think>", "</think>"
"""The marks around a thought, before an answer."""
_CLOCK = re.compile(r"""strftime_now\s*\(\s*(?P<mark>['"])(?P<format>.*?)(?P=mark)\s*\)""")
_HAS_CLOCK = re.compile(r"strftime_now\s+is\s+(?P<negated>not\s+)?defined")

Messages = Sequence[dict[str, str]]


@dataclass(frozen=True)
class TemplateTraits:
    """The traits of a chat template that training and sampling depend on."""

    end_id: int | None
    """The token after a rendered reply; None if plain text or nothing follows it."""
    gap: str
    """White space between a prompt and its rendered reply, e.g. a blank in Llama-2's."""
    takes_system: bool
    """True if a system message is shown."""
    has_generation_prompt: bool
    """False if a prompt stops before the header of the reply."""
    opens_thought: bool
    """True if a prompt ends within a thought (`<think>`) that the reply has to close."""


def template_traits(tokenizer: Any) -> TemplateTraits | None:
    """The traits of a tokenizer's chat template as it is now; None if it has none."""
    template = template_text(tokenizer)
    return None if template is None else _probed_traits(tokenizer, template)


def template_text(tokenizer: Any) -> str | None:
    """The chat template in use; where a tokenizer has several by name, its default."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default")
    return template


def end_id(tokenizer: Any, template: str) -> int:
    """The token that ends a reply: of `chat` the template's own end, else the tokenizer's eos."""
    chat = template_traits(tokenizer) if template == "chat" else None
    if chat is None or chat.end_id is None:
        return int(tokenizer.eos_token_id)
    return chat.end_id


def check_chat(tokenizer: Any, *, name: str, rows: int) -> None:
    """Refuse a tokenizer whose chat template cannot be trained with.

    Args:
        tokenizer: The base's tokenizer.
        name: The base, as typed.
        rows: Rows of the base's embeddings.

    Raises:
        UserError: It has no chat template, or one without a generation prompt, or one with tokens
            that have no embedding.
    """
    other = "use --template alpaca or --template brief"
    chat = template_traits(tokenizer)
    if chat is None:
        raise UserError(f"--template chat: the tokenizer of {name} has no chat template; {other}")
    if not chat.has_generation_prompt:
        raise UserError(
            f"--template chat: the chat template of {name} ignores add_generation_prompt, so a "
            "prompt would end before the header of its reply; add a generation prompt to the "
            f"template, or {other}"
        )
    frozen_clock(template_text(tokenizer) or "", date.min, name=name)  # may refuse it
    for token_id in _ids_in_use(tokenizer):
        if token_id >= rows:
            token = tokenizer.convert_ids_to_tokens(token_id)
            raise UserError(
                f"--template chat: the chat template of {name} writes {token} (token {token_id}), "
                f"and the base has {rows} embeddings; take the base's chat-tuned version, resize "
                f"its embeddings and save it, or {other}"
            )


def frozen_clock(template: str, day: date, *, name: str) -> str:
    """A chat template in which the date is that of one day, whenever it is rendered.

    Args:
        template: The template; one that reads no clock comes back as it is.
        day: The day.
        name: The base, as typed.

    Raises:
        UserError: It reads the clock in a form that is computed.
    """
    frozen = _CLOCK.sub(lambda call: f"'{day.strftime(call['format'])}'", template)
    frozen = _HAS_CLOCK.sub(lambda test: "false" if test["negated"] else "true", frozen)
    if "strftime_now" in frozen:
        raise UserError(
            f"--template chat: the chat template of {name} computes how it prints today's date, "
            "so that the tokens of a prompt would change from day to day; write the date into the "
            "template, or use --template alpaca or --template brief"
        )
    return frozen


@lru_cache(maxsize=32)
def _probed_traits(tokenizer: Any, template: str) -> TemplateTraits:
    user = {"role": "user", "content": _USER}
    reply = {"role": "assistant", "content": _REPLY}
    whole = _rendered(tokenizer, [user, reply], generation_prompt=False)
    prompt = _rendered(tokenizer, [user], generation_prompt=True)
    waiting = _rendered(tokenizer, [user], generation_prompt=False)
    with_system = _rendered(
        tokenizer, [{"role": "system", "content": _SYSTEM}, user], generation_prompt=True
    )
    takes_system = with_system is not None and _SYSTEM in with_system
    _, thought, rest = (prompt or "").rpartition(_USER)[2].rpartition(THOUGHT)
    opens_thought = bool(thought) and THOUGHT_END not in rest
    if whole is None or prompt is None or whole.count(_REPLY) != 1:
        return TemplateTraits(None, "", takes_system, True, opens_thought)
    before, _, after = whole.partition(_REPLY)
    # 1. White space between prompt and reply belongs to the reply, as where a prompt ends in
    #    `[/INST]`; anything else is a header, or a thought that the template writes for the model.
    rest = before[len(prompt) :] if before.startswith(prompt) else ""
    gap = rest if not rest.strip() else ""
    # 2. A prompt that is the same without being asked for a reply lacks what stands before one.
    has_generation_prompt = not (
        rest.strip() and waiting is not None and waiting.startswith(prompt)
    )
    end = _first_token(tokenizer, after)
    return TemplateTraits(end, gap, takes_system, has_generation_prompt, opens_thought)


def _first_token(tokenizer: Any, text: str) -> int | None:
    """The special or added token that a text begins with, after white space; None without one."""
    tokens = {str(token): token_id for token_id, token in tokenizer.added_tokens_decoder.items()}
    text = text.lstrip()
    leading = (token for token in tokens if token and text.startswith(token))
    longest = max(leading, key=len, default="")
    return int(tokens[longest]) if longest else None


def _ids_in_use(tokenizer: Any) -> list[int]:
    """Ids of a conversation of two turns, with and without a system message."""
    user, reply = {"role": "user", "content": _USER}, {"role": "assistant", "content": _REPLY}
    system = {"role": "system", "content": _SYSTEM}
    ids: set[int] = set()
    for messages in ([user, reply, user], [system, user, reply, user]):
        try:
            ids |= set(
                tokenizer.apply_chat_template(
                    messages, add_generation_prompt=True, return_dict=False
                )
            )
        except Exception:  # a template may refuse a role with an error of its own
            continue
    return sorted(ids)


def _rendered(tokenizer: Any, messages: Messages, *, generation_prompt: bool) -> str | None:
    try:
        return str(
            tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=generation_prompt
            )
        )
    except Exception:  # a template may refuse a role with an error of its own
        return None
