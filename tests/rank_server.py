"""A small server with the Rank tab alone, for the tests: `python -m tests.rank_server DB PORT`."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
import uvicorn
from fastapi import FastAPI

from alpaca_rlhf.app import rank_tab
from alpaca_rlhf.app.services import Services
from alpaca_rlhf.preferences.assignment import Rules
from alpaca_rlhf.preferences.people import Account
from alpaca_rlhf.preferences.store import Store

PLAIN = Rules(gold_rate=0, repeat_rate=0, second_share=0)


def language(request: gr.Request) -> str:
    accepted = request.headers.get("accept-language", "")
    return "zh-CN" if accepted.lower().startswith("zh") else "en"


def app(store: Any, account: Any) -> FastAPI:
    """The tab in an app, as the real server mounts it."""
    with gr.Blocks(analytics_enabled=False, title="Rank") as blocks:
        rank_tab.rank_tab(Services(store, account, language))
    blocks.queue(api_open=False)
    return gr.mount_gradio_app(FastAPI(), blocks, path="/", footer_links=[], run_history=False)


@contextmanager
def serving(fastapi_app: FastAPI, port: int) -> Iterator[str]:
    """The app at work in a thread."""
    server = uvicorn.Server(
        uvicorn.Config(fastapi_app, host="127.0.0.1", port=port, log_level="error", ws="none")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


def main(where: str, port: int) -> None:
    store = Store(where, rules=PLAIN)
    fastapi_app = app(store, lambda request: Account(1, "ann", "annotator", "en"))
    uvicorn.run(fastapi_app, host="127.0.0.1", port=port, log_level="error", ws="none")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
