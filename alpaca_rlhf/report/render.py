"""The reports as HTML pages that need nothing from elsewhere: no script, font, image or link."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpaca_rlhf.core.files import atomic_write
from alpaca_rlhf.core.html import environment
from alpaca_rlhf.core.sizes import MIN_PROMPTS
from alpaca_rlhf.report import charts, curves, figures, formatting, policy_names, schema
from alpaca_rlhf.report.duel import validate_duel
from alpaca_rlhf.report.generation_figures import figures_of
from alpaca_rlhf.report.schema import ReportData, validate_report

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).parent / "templates"


@cache
def templates() -> jinja2.Environment:
    """The environment of the report's templates, with numbers for people as filters."""
    env = environment(TEMPLATES)
    for filter_ in (
        *(formatting.count, formatting.duration, formatting.interval, formatting.large),
        *(formatting.money, formatting.number, formatting.percent, formatting.place),
        *(formatting.shortened, formatting.signed, figures.part_label),
        *(policy_names.policy_label, policy_names.policy_order),
        *(policy_names.policy_reranks, policy_names.policy_tone),
    ):
        env.filters[filter_.__name__] = filter_
    env.tests["policy_reranks"] = policy_names.policy_reranks
    env.globals.update(charts=charts, curves=curves, figures=figures, slices=schema.SLICES)
    env.globals["MIN_PROMPTS"] = MIN_PROMPTS
    return env


def render_html(data: ReportData) -> str:
    """The page of a run; the same for the same input.

    Raises:
        ValueError: `data.report` breaks the contract; the message names the key.
    """
    template = templates().get_template("report.html")
    return template.render(data=data, report=validate_report(data.report))


def write_report(folder: Path, data: ReportData) -> None:
    """Write `report.json` and `report.html` into `folder`, each whole or not at all.

    Both are made before either is written, so that a report that breaks the contract leaves the
    earlier one as it was.

    Raises:
        ValueError: `data.report` breaks the contract; the message names the key.
    """
    page = render_html(data)
    text = json.dumps(data.report, indent=2, allow_nan=False) + "\n"
    atomic_write(folder / "report.html", page)
    atomic_write(folder / "report.json", text)


def write_duel(folder: Path, duel: Mapping[str, Any]) -> None:
    """Write `duel.json` and its page `duel.html` into `folder`, each whole or not at all.

    Raises:
        ValueError: `duel` breaks the contract; the message names the key.
    """
    page = templates().get_template("duel.html").render(duel=validate_duel(duel))
    text = json.dumps(duel, indent=2, allow_nan=False) + "\n"
    atomic_write(folder / "duel.html", page)
    atomic_write(folder / "duel.json", text)


def write_generation_report(
    folder: Path,
    out: Path,
    *,
    seconds: float | None = None,
    usd_per_million_tokens: float = 0.0,
) -> str:
    """Read the events of a generation and write its page, whole or not at all.

    Args:
        folder: The folder of the events.
        out: The page.
        seconds: How long it took, where that is known.
        usd_per_million_tokens: Price of the teacher's tokens, unless its replies tell their cost.

    Returns:
        The headline, for a terminal.

    Raises:
        UserError: Files are missing or damaged, or the page cannot be written.
    """
    generation = figures_of(folder)
    usd = generation.usd
    if usd is None:
        usd = generation.tokens * usd_per_million_tokens / 1e6
    template = templates().get_template("generation.html")
    atomic_write(out, template.render(generation=generation, seconds=seconds, usd=usd))
    return generation.headline
