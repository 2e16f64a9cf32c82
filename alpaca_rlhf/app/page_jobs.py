"""The job of each open page: a new one stops the one before, and Stop reaches it at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, TypeVar

import gradio as gr

from alpaca_rlhf.app.jobs import Job, JobUpdate

T = TypeVar("T")


class PageJobs:
    """The job of each page whose updates are being shown, by Gradio's session hash."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job[Any]] = {}
        self._lock = threading.Lock()

    def follow(self, request: gr.Request, job: Job[T]) -> Iterator[JobUpdate[T]]:
        """Make this the page's job, stop its previous one, and yield its updates.

        They end early once the page has left the job: nothing that comes later may be shown on a
        page, or saved for one, that shows something else by then.
        """
        page = str(request.session_hash)
        with self._lock:
            previous, self._jobs[page] = self._jobs.get(page), job
        if previous is not None:
            previous.stop()
        try:
            for update in job.updates():
                if not self.holds(request, job):
                    return
                yield update
        finally:
            with self._lock:
                if self._jobs.get(page) is job:
                    del self._jobs[page]

    def holds(self, request: gr.Request, job: Job[Any]) -> bool:
        """True while this is the page's job."""
        with self._lock:
            return self._jobs.get(str(request.session_hash)) is job

    def under_way(self, request: gr.Request) -> bool:
        """True while the page's job goes on, with the conversation as it was when it began."""
        with self._lock:
            job = self._jobs.get(str(request.session_hash))
        return job is not None and not job.finished

    def leave(self, request: gr.Request) -> None:
        """Stop the page's job, and show nothing more of it."""
        with self._lock:
            job = self._jobs.pop(str(request.session_hash), None)
        if job is not None:
            job.stop()

    def stop(self, request: gr.Request) -> None:
        """Stop the page's job, whose last update is still shown."""
        with self._lock:
            job = self._jobs.get(str(request.session_hash))
        if job is not None:
            job.stop()
