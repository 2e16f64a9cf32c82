"""Every word of the app in English and in Chinese, a file a tab."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr

LANGUAGES = ("en", "zh-CN")
"""The languages of the app; the first is taken where another is asked for."""
_FOLDER = Path(__file__).parent / "words"


@cache
def words(tab: str, language: str) -> dict[str, str]:
    """The words of a tab in a language: what Python says, and what the page's own scripts show.

    Args:
        tab: Name of a file of `words/`.
        language: One of `LANGUAGES`.
    """
    table = json.loads((_FOLDER / f"{tab}.json").read_text(encoding="utf-8"))
    return {key: both[language] for key, both in table.items()}


@cache
def translations() -> gr.I18n:
    """The words of all tabs for Gradio's own labels, which follow the browser's language."""
    tabs = sorted(path.stem for path in _FOLDER.glob("*.json"))
    return gr.I18n(
        **{
            language: {
                f"{tab}.{key}": text for tab in tabs for key, text in words(tab, language).items()
            }
            for language in LANGUAGES
        }
    )


def label(tab: str, key: str) -> Any:
    """A label, button or placeholder of Gradio in the browser's language.

    Raises:
        KeyError: The tab has no such word.
    """
    words(tab, LANGUAGES[0])[key]
    return translations()(f"{tab}.{key}")


def preferred(headers: Mapping[str, str]) -> str:
    """The language to answer in, from what a browser says it prefers."""
    best, found = 0.0, LANGUAGES[0]
    for part in headers.get("accept-language", "").split(","):
        tag, _, weight = part.strip().partition(";q=")
        own = "zh-CN" if tag.lower().split("-")[0] == "zh" else "en" if tag[:2] == "en" else ""
        try:
            q = float(weight) if weight else 1.0
        except ValueError:
            continue
        if own and q > best:
            best, found = q, own
    return found
