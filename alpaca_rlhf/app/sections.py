"""Parts of a tab that are HTML of our own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

_STATIC = Path(__file__).parent / "static"

PLAIN_HTML: dict[str, Any] = {
    "apply_default_css": False,
    "elem_classes": ["alpaca-data"],
    "padding": False,
}
"""Arguments of a `gr.HTML` in the style of the Data tab."""


def scripted_section(elem_id: str, files: str, *, css_class: str) -> gr.HTML:
    """A part of a tab whose script asks for its content; no text of its own is in a template.

    Args:
        elem_id: Its id in the page.
        files: Name of its style and script in `static/`, without their suffixes.
        css_class: Class of the empty element that the script fills.
    """
    return gr.HTML(
        html_template=f'<div class="{css_class}"></div>',
        css_template=(_STATIC / f"{files}.css").read_text(encoding="utf-8"),
        js_on_load=(_STATIC / f"{files}.js").read_text(encoding="utf-8"),
        elem_id=elem_id,
        **PLAIN_HTML,
    )
