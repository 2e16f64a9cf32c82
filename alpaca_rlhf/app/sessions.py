"""The job of each open page: a new one ends the one before, and Stop reaches it at once."""

from __future__ import annotations

import threading
from typing import Any

import gradio as gr

from alpaca_rlhf.app.jobs import Job


class Pages:
    """Remembers what each page waits for."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job[Any]] = {}
        self._guard = threading.Lock()

    def put(self, request: gr.Request, job: Job[Any]) -> None:
        """This page waits for a job now, and for no other."""
        key = str(request.session_hash)
        with self._guard:
            self._jobs = {name: one for name, one in self._jobs.items() if not one.over}
            before, self._jobs[key] = self._jobs.get(key), job
        if before is not None:
            before.stop()

    def stop(self, request: gr.Request) -> None:
        """Stop what this page waits for."""
        with self._guard:
            job = self._jobs.get(str(request.session_hash))
        if job is not None:
            job.stop()
