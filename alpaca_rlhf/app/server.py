"""The server: the gate, our own pages, and Gradio behind them, in one process."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from alpaca_rlhf.app import theme
from alpaca_rlhf.app.build import Tab, build
from alpaca_rlhf.app.environment import check_environment
from alpaca_rlhf.app.guards import Gate, Rates, Who, as_json
from alpaca_rlhf.app.language import LANGUAGES, preferred, translations, words
from alpaca_rlhf.app.login import Login
from alpaca_rlhf.app.services import Services
from alpaca_rlhf.app.session import Sessions
from alpaca_rlhf.preferences.people import Account
from alpaca_rlhf.preferences.store import Store

FILE_BYTES = 2**20
"""Bytes of an uploaded file; no tab of ours takes one, and the gate has the route closed."""
GOODBYE_S = 3
"""Seconds that open pages get when the server stops."""
_SNAPSHOT_FILES = ("manifest.json", "rankings.jsonl", "pairs.jsonl", "rankings.csv")


@dataclass(frozen=True)
class Place:
    """Where an app is and what it is about."""

    run: str
    """What the header says of the run."""
    snapshots: Path
    """Folder of the snapshots that were exported."""
    hosts: Collection[str]
    """Names by which it may be called."""
    local: bool
    """Whether only this machine can reach it."""


def services_of(store: Store, who: Who, sessions: Sessions) -> Services:
    """What the tabs are given: whoever sends a request is looked up anew each time."""

    def language(request: gr.Request) -> str:
        inner = request.request
        return preferred(inner.headers if inner is not None else {})

    def account(request: gr.Request) -> Account:
        inner = request.request
        cookie = inner.cookies.get(sessions.name) if inner is not None else None
        session = who.session(cookie)
        if session is None:
            says = words("shell", language(request))
            raise gr.Error(says["ended.title"], print_exception=False)
        return session.account

    return Services(store, account, language)


def make(
    store: Store,
    secret: bytes,
    tabs: Sequence[Tab],
    place: Place,
    *,
    status: Callable[[str], str] = lambda language: "",
    rates: Rates | None = None,
) -> FastAPI:
    """The app, ready to be served.

    Args:
        store: The preferences.
        secret: What cookies are signed with.
        tabs: In their order.
        place: Where it is.
        status: A line about the model in a language, for the header.
        rates: How often anybody may ask.

    Raises:
        UserError: The environment switches on what lets a browser edit code.
    """
    check_environment(os.environ)
    sessions = Sessions(store, secret)
    who = Who(store, sessions)
    rates = rates or Rates.usual(local=place.local)
    login = Login(store, sessions, who, rates)

    def state(request: Request) -> Response:
        lines = {language: status(language) for language in LANGUAGES}
        return JSONResponse({"account": request.state.account.id, "status": lines})

    def snapshot(request: Request) -> Response:
        name, file = request.path_params["name"], request.path_params["file"]
        path = place.snapshots / name / file
        if request.state.account.role != "admin":
            return JSONResponse({"detail": "for admins only"}, 403)
        if file not in _SNAPSHOT_FILES or path.parent.parent != place.snapshots:
            return JSONResponse({"detail": "there is no such file"}, 404)
        if name.startswith(".") or not path.is_file():
            return JSONResponse({"detail": "there is no such file"}, 404)
        return FileResponse(path, filename=f"{name}-{file}")

    routes: list[BaseRoute] = [
        *login.routes(),
        Route("/status", state),
        Route("/snapshots/{name}/{file}", snapshot),
    ]
    app = FastAPI(routes=routes, openapi_url=None, docs_url=None, redoc_url=None)
    shown = {one: words("shell", one) for one in LANGUAGES}
    page = build(services_of(store, who, sessions), tabs, run=place.run)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        server_name="127.0.0.1",
        footer_links=[],
        run_history=False,
        mcp_server=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        show_error=False,
        max_file_size=FILE_BYTES,
        i18n=translations(),
        theme=theme.theme(),
        css=theme.CSS,
        head=f"<script>window.alpacaWords={as_json(shown)};{theme.SCRIPT}</script>",
    )
    app.add_middleware(Gate, who=who, sessions=sessions, hosts=place.hosts, rates=rates)
    return app


def serve(
    app: FastAPI, where: socket.socket, *, behind_proxy: bool, ready: Callable[[], None]
) -> None:
    """Serve until Ctrl-C or SIGTERM, which raises SystemExit(143) then; in the main thread.

    Args:
        app: What `make` made.
        where: The socket.
        behind_proxy: Whether a proxy on this machine says by which scheme and from where it was
            asked.
        ready: Called when the first request can come.
    """
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        proxy_headers=behind_proxy,
        forwarded_allow_ips="127.0.0.1",
        server_header=False,
        timeout_graceful_shutdown=GOODBYE_S,
        ws="none",
    )
    server = _Server(config)
    server.ready = ready
    # uvicorn sends itself the signal again at the end, and by default that would end us at once
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    server.run(sockets=[where])


class _Server(uvicorn.Server):
    ready: Callable[[], None]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Every open page holds a stream that never ends by itself; cutting it off is no error.
        logging.getLogger("uvicorn.error").disabled = True
        await super().shutdown(sockets)
