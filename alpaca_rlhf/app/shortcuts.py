"""Keyboard shortcuts that press buttons, while the tab that holds them is on screen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gradio as gr

_SCRIPT = (Path(__file__).parent / "static" / "shortcuts.js").read_text(encoding="utf-8")


def keyboard_shortcuts(buttons: Mapping[str, str]) -> None:
    """Let keys press buttons.

    Args:
        buttons: A key (`Escape`, `Ctrl+Enter`, `Alt+KeyR`, `1`) to the `elem_id` of a button,
            which shows it where there is a keyboard. Keys that write a character, without Alt or
            Ctrl, do nothing in a text field.
    """
    gr.HTML(
        html_template="<span hidden></span>",
        js_on_load=_SCRIPT,
        apply_default_css=False,
        container=False,
        padding=False,
        keys=dict(buttons),
    )
