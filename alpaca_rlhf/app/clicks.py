"""Clicks on the buttons of `macros.html`, which `static/clicks.js` sends."""

from __future__ import annotations

import gradio as gr

MAX_NUMBER = 2**53 - 1
"""The highest whole number that a browser writes exactly; far higher ones break a query."""


def clicked(event: gr.EventData) -> tuple[str, int, int]:
    """The action, id and extra id of a button; anything else does nothing."""
    try:
        action, number, extra = str(event.do), int(event.id), int(event.extra)
    except (AttributeError, ValueError, TypeError, OverflowError):
        return "", 0, 0
    if max(abs(number), abs(extra)) > MAX_NUMBER:
        return "", 0, 0
    return action, number, extra
