"""Clicks on the buttons of `macros.html`, which `static/clicks.js` sends."""

from __future__ import annotations

import gradio as gr


def clicked(event: gr.EventData) -> tuple[str, int, int]:
    """The action, id and extra id of a button; anything else does nothing."""
    try:
        return str(event.do), int(event.id), int(event.extra)
    except (AttributeError, ValueError, TypeError, OverflowError):
        return "", 0, 0
