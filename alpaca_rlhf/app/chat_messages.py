"""Conversations as messages for Gradio's chat component, every text shown literally."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MARK = "\u200b"
"""Zero-width space, inserted so that the character before it cannot begin a tag or an entity.

It exists only on the screen: `static/copying.js` removes it from copied text, and `restored` from
edited text. If a text already has such a space after one of these characters, another is inserted
before it, so that removing one mark restores the original.
"""
_TAG = re.compile(f"<(?=[A-Za-z/!?{MARK}])")
_ENTITY = re.compile(f"&(?=[#A-Za-z{MARK}])")
MARKED = re.compile(f"([<&]){MARK}")


@dataclass(frozen=True)
class Turn:
    """A user's message and the answer to it."""

    user: str
    """The message."""
    reply: str = ""
    """The answer; empty until there is one."""
    attempt: int = 0
    """Number of earlier answers that were replaced; part of the sampling key."""


def inert(text: str) -> str:
    """Mark a text so that Gradio's chat shows it literally, tags and entities included.

    The chat sends every message to the browser as sanitised HTML, even with Markdown switched off,
    so unmarked tags and entities would be interpreted.
    """
    return _ENTITY.sub(f"&{MARK}", _TAG.sub(f"<{MARK}", text))


def restored(text: str) -> str:
    """Undo `inert`: return the original text."""
    return MARKED.sub(r"\1", text)


def messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Messages of a conversation for `gr.Chatbot`, with every text shown literally."""
    return [
        {"role": role, "content": inert(text)}
        for turn in turns
        for role, text in (("user", turn.user), ("assistant", turn.reply))
        if role == "user" or text
    ]


def turn_index(turns: Sequence[Turn], message_index: int) -> int:
    """Index of the turn to which the message at `message_index` of `messages` belongs."""
    last_message = -1
    for index, turn in enumerate(turns):
        last_message += 1 + bool(turn.reply)
        if message_index <= last_message:
            return index
    return len(turns) - 1
