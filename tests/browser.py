"""A real browser for the tests: Debian's Chromium, which may reach 127.0.0.1 and nothing else."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

NO_CHROMIUM = "no Chromium here: apt-get install chromium"
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync"
).split()


def chromium() -> str | None:
    """Path of Chromium; None where it is not installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def browser() -> Iterator[Any]:
    """A Playwright browser."""
    from playwright.sync_api import sync_playwright

    os.environ.setdefault("PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD", "1")
    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=chromium(), headless=True, args=FLAGS)
        try:
            yield opened
        finally:
            opened.close()


@contextmanager
def visit(opened: Any, **options: Any) -> Iterator[Any]:
    """A page of a fresh context (`locale`, `viewport`, `has_touch`, `color_scheme` as options).

    In the end no request must have left 127.0.0.1, and the page must have raised no error.
    """
    context = opened.new_context(**options)
    page = context.new_page()
    abroad: list[str] = []
    errors: list[str] = []
    home = ("127.0.0.1", "")

    def sent(request: Any) -> None:
        if urlsplit(request.url).hostname not in (*home, None):
            abroad.append(request.url)

    context.on("request", sent)
    page.on("pageerror", lambda error: errors.append(str(error)))
    try:
        yield page
    finally:
        context.close()
    assert not abroad, f"requests to elsewhere: {abroad}"
    assert not errors, f"errors of the page's scripts: {errors}"
