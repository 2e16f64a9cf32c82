"""The line of a tab that says how its job is getting on."""

from __future__ import annotations

from typing import Any

from alpaca_rlhf.app.jobs import JobUpdate
from alpaca_rlhf.app.language import translations
from alpaca_rlhf.app.rendering import render


def status_line(text: str) -> str:
    """HTML of a status line, which a screen reader reads out."""
    return render("status_line", text=text)


def job_status(update: JobUpdate[Any], language: str) -> str | None:
    """Status of a job that waits, loads, failed or was stopped; None while it runs or is done."""
    text = translations("chat", language)
    if update.phase == "waiting":
        return text["status.waiting"].format(n=update.jobs_ahead)
    if update.phase == "failed":
        return text[f"problem.{update.problem}"].format(message=update.message)
    if update.phase in ("loading", "stopped"):
        return text[f"status.{update.phase}"]
    return None
