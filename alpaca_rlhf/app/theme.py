"""The look of the app: the system's fonts, indigo, the contrast of WCAG AA, light and dark.

Colours are Tailwind's; the ratios were computed by WCAG 2's formula (`tests/test_app_data.py` lets
axe check the pages).
"""

from __future__ import annotations

from pathlib import Path

import gradio as gr

FONTS = ["system-ui", "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", "sans-serif"]
MONOSPACE_FONTS = ["ui-monospace", "Consolas", "Noto Sans Mono CJK SC", "monospace"]
_FOLDER = Path(__file__).parent / "static"
CSS = (_FOLDER / "page.css").read_text(encoding="utf-8")
"""Style of the app's page."""
SCRIPT = (_FOLDER / "page.js").read_text(encoding="utf-8")
"""Script of the app's page: light and dark, the status line, the dialog to sign in again."""
LOGIN_STYLE = (_FOLDER / "login.css").read_text(encoding="utf-8")
"""Style of the login page."""


def theme() -> gr.themes.Base:
    """Gradio's plain theme in our colours: indigo-600 on white is 6.3:1, white on it too."""
    base = gr.themes.Base(
        primary_hue=gr.themes.colors.indigo,
        secondary_hue=gr.themes.colors.indigo,
        neutral_hue=gr.themes.colors.slate,
        font=FONTS,
        font_mono=MONOSPACE_FONTS,
        radius_size=gr.themes.sizes.radius_md,
    )
    return base.set(
        color_accent="*primary_600",
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_700",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        link_text_color="*primary_700",
        link_text_color_dark="*primary_300",
    )
