"""A conversation as Gradio's chat component takes it; the text of a model is only ever text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MARK = "\u200b"
"""Zero-width space: keeps the character before it from beginning a tag or an entity.

It is on the screen only: `static/copying.js` takes it out of what is copied, and `restored` out of
what is edited. A space of this kind that a text has itself after such a character is kept: it gets
a mark before it.
"""
_TAG = re.compile(f"<(?=[A-Za-z/!?{MARK}])")
_ENTITY = re.compile(f"&(?=[#A-Za-z{MARK}])")
MARKED = re.compile(f"([<&]){MARK}")


@dataclass(frozen=True)
class Turn:
    """One message of a person and the answer to it."""

    user: str
    """The message."""
    reply: str = ""
    """The answer; empty while there is none."""
    attempt: int = 0
    """Number of answers that were made before and replaced; part of the sampling key."""


def inert(text: str) -> str:
    """A text that Gradio's chat shows literally, tags and entities included.

    The chat gives every message to the browser as HTML, sanitised but not literal, even where
    Markdown is switched off.
    """
    return _ENTITY.sub(f"&{MARK}", _TAG.sub(f"<{MARK}", text))


def restored(text: str) -> str:
    """The text that `inert` was given."""
    return MARKED.sub(r"\1", text)


def messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """The messages of a conversation for `gr.Chatbot`, every text shown literally."""
    return [
        {"role": role, "content": inert(text)}
        for turn in turns
        for role, text in (("user", turn.user), ("assistant", turn.reply))
        if role == "user" or text
    ]


def turn_index(turns: Sequence[Turn], message_index: int) -> int:
    """The index of the turn that a message of `messages` belongs to."""
    last_message = -1
    for index, turn in enumerate(turns):
        last_message += 1 + bool(turn.reply)
        if message_index <= last_message:
            return index
    return len(turns) - 1
