"""The app's HTML: templates in `templates/`, every value escaped unless a template made it."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from alpaca_rlhf.core import html
from alpaca_rlhf.core.durations import duration

_FOLDER = Path(__file__).parent / "templates"


@cache
def _environment() -> Any:
    environment = html.environment(_FOLDER)
    environment.filters["count"] = "{:,}".format
    environment.filters["percent"] = "{:.1%}".format
    environment.filters["clock"] = duration
    environment.filters["minute"] = _minute
    return environment


def _minute(at_ms: int) -> str:
    """A time in milliseconds since 1970, as 2026-11-28 21:04 UTC."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def render(template: str, **values: object) -> str:
    """HTML of a template.

    Args:
        template: Name of a file of `templates/`, without its suffix.
        values: Its variables; one that the template uses and that is missing is an error.
    """
    return str(_environment().get_template(f"{template}.html").render(**values)).strip()
