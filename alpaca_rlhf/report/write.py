"""The report of a run: `report.json` for programs and `report.html` for people, from one input."""

from __future__ import annotations

import json
from pathlib import Path

from alpaca_rlhf.core.runs import atomic_write
from alpaca_rlhf.report.page import render_html
from alpaca_rlhf.report.schema import ReportData, validate_report

__all__ = ["ReportData", "render_html", "validate_report", "write_report"]


def write_report(folder: Path, data: ReportData) -> None:
    """Write `report.json` and `report.html` into `folder`, each whole or not at all.

    Both are made before either is written, so that a report that breaks the contract leaves the
    earlier one as it was.

    Raises:
        ValueError: `data.report` breaks the contract; the message names the key.
    """
    validate_report(data.report)
    page = render_html(data)
    text = json.dumps(data.report, indent=2, allow_nan=False) + "\n"
    atomic_write(folder / "report.html", page)
    atomic_write(folder / "report.json", text)
