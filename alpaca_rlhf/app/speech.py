"""Model text on a page, and where a job stands in words. What a model wrote is only ever text."""

from __future__ import annotations

import re
from html import escape
from typing import Any

from alpaca_rlhf.app.jobs import Update
from alpaca_rlhf.app.language import words

_MARK = "\u200b"
"""Takes no room, and keeps what stands before it from beginning a tag or an entity."""
_TAG, _ENTITY = re.compile(r"<(?=[A-Za-z/!?])"), re.compile(r"&(?=[#A-Za-z])")
_MARKED = re.compile(f"([<&]){_MARK}")


def inert(text: str) -> str:
    """A text that Gradio's chat shows as it is, tags and entities too.

    The chat gives every message to the browser as HTML, cleaned but not literal, even where
    Markdown is switched off.
    """
    return _ENTITY.sub(f"&{_MARK}", _TAG.sub(f"<{_MARK}", text))


def restored(text: str) -> str:
    """What `inert` was given."""
    return _MARKED.sub(r"\1", text)


def line(text: str) -> str:
    """A line of our own below what it is about, which a screen reader reads out."""
    return f'<p class="alpaca-line" role="status">{escape(text)}</p>'


def standing(update: Update[Any], language: str) -> str | None:
    """A job that waits, loads or failed, in words; None while it runs and when it is done."""
    says = words("chat", language)
    if update.phase == "waiting":
        return says["said.waiting"].format(n=update.ahead)
    if update.phase == "loading":
        return says["said.loading"]
    if update.phase == "failed":
        return says[f"problem.{update.problem}"].format(words=update.words)
    return None
