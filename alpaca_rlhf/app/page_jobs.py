"""The job of each open page: a new one stops the one before, and Stop reaches it at once."""

from __future__ import annotations

import threading
from typing import Any

import gradio as gr

from alpaca_rlhf.app.jobs import Job


class PageJobs:
    """The unfinished job of each page, by Gradio's session hash."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job[Any]] = {}
        self._lock = threading.Lock()

    def put(self, request: gr.Request, job: Job[Any]) -> None:
        """Make this the page's job, and stop its previous one."""
        page = str(request.session_hash)
        with self._lock:
            # No event tells that a page was closed: finished jobs are dropped here.
            self._jobs = {
                other_page: other_job
                for other_page, other_job in self._jobs.items()
                if not other_job.finished
            }
            previous, self._jobs[page] = self._jobs.get(page), job
        if previous is not None:
            previous.stop()

    def stop(self, request: gr.Request) -> None:
        """Stop the page's job."""
        with self._lock:
            job = self._jobs.get(str(request.session_hash))
        if job is not None:
            job.stop()
