"""Every text of the app in English and in Chinese, one file per tab."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr

LANGUAGES = ("en", "zh-CN")
"""The languages of the app; the first is the fallback."""
_FOLDER = Path(__file__).parent / "translations"


@cache
def translations(tab: str, language: str) -> dict[str, str]:
    """The texts of a tab in one language, for Python and for the page's own scripts.

    Args:
        tab: Name of a file of `translations/`.
        language: One of `LANGUAGES`.
    """
    table = json.loads((_FOLDER / f"{tab}.json").read_text(encoding="utf-8"))
    return {key: by_language[language] for key, by_language in table.items()}


@cache
def gradio_i18n() -> gr.I18n:
    """The texts of all tabs for Gradio's own labels, which follow the browser's language."""
    tabs = sorted(path.stem for path in _FOLDER.glob("*.json"))
    return gr.I18n(
        **{
            language: {
                f"{tab}.{key}": text
                for tab in tabs
                for key, text in translations(tab, language).items()
            }
            for language in LANGUAGES
        }
    )


def label(tab: str, key: str) -> Any:
    """A label, button or placeholder of Gradio in the browser's language.

    Raises:
        KeyError: The tab has no text of this key.
    """
    translations(tab, LANGUAGES[0])[key]
    return gradio_i18n()(f"{tab}.{key}")


def preferred_language(headers: Mapping[str, str]) -> str:
    """The language to answer in, from the `Accept-Language` header of a request."""
    best_weight, preferred = 0.0, LANGUAGES[0]
    for part in headers.get("accept-language", "").split(","):
        tag, _, quality = part.strip().partition(";q=")
        language = "zh-CN" if tag.lower().split("-")[0] == "zh" else "en" if tag[:2] == "en" else ""
        try:
            weight = float(quality) if quality else 1.0
        except ValueError:
            continue
        if language and weight > best_weight:
            best_weight, preferred = weight, language
    return preferred
