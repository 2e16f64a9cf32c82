"""The server: the gate, our own pages, and Gradio behind them, in one process."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from alpaca_rlhf.app import theme
from alpaca_rlhf.app.connections import ConnectionLimits, Connections, limits_of_process
from alpaca_rlhf.app.data_view import SNAPSHOT_FILES
from alpaca_rlhf.app.environment import check_environment
from alpaca_rlhf.app.event_requests import EventRequests
from alpaca_rlhf.app.gate import Authenticator, Gate, RateLimits
from alpaca_rlhf.app.language import LANGUAGES, gradio_i18n, preferred_language, translations
from alpaca_rlhf.app.login import Login
from alpaca_rlhf.app.login_session import LoginSessions
from alpaca_rlhf.app.page_layout import Tab, build_page
from alpaca_rlhf.app.proxy import PathPrefix, ProxyHeaders
from alpaca_rlhf.app.refusals import for_admins_only
from alpaca_rlhf.app.rendering import render
from alpaca_rlhf.app.services import Services
from alpaca_rlhf.preferences.people import Account
from alpaca_rlhf.preferences.store import Store

MAX_UPLOAD_BYTES = 2**20
"""Largest upload by Gradio in bytes; no tab uses it, and the gate closes its route."""
SHUTDOWN_GRACE_S = 3
"""Seconds that open pages have left when the server stops."""


@dataclass(frozen=True)
class Deployment:
    """The run of an app, its snapshots, and the hosts that may call it."""

    run: str
    """Name of the run for the header."""
    snapshots: Path
    """Folder of the exported snapshots."""
    hosts: Collection[str]
    """Host names that requests may address the app by."""
    local: bool
    """True if only this machine can reach it."""
    origin: str = ""
    """The public origin, if the app is behind a proxy."""
    prefix: str = ""
    """The path before the app's own paths, such as `/rank`; empty at the root of a host."""

    def run_token(self, store: Store) -> str:
        """Names run and database to the app's own pages without revealing where they lie.

        A relative path means another run where the app is started in another folder.
        """
        database = store.database
        place = str(database.file.resolve()) if database.file else database.shown
        run = str(Path(self.run).resolve()) if self.run else ""
        return sha256(f"{run}\n{place}".encode()).hexdigest()[:8]


def services_of(
    store: Store, authenticator: Authenticator, sessions: LoginSessions, prefix: str = ""
) -> Services:
    """The services of the tabs; the account of a request is looked up anew each time."""

    def language(request: gr.Request) -> str:
        http_request = request.request
        return preferred_language(http_request.headers if http_request is not None else {})

    def account(request: gr.Request) -> Account:
        http_request = request.request
        cookie = (
            http_request.cookies.get(sessions.cookie_name) if http_request is not None else None
        )
        session = authenticator.session(cookie)
        if session is None:
            text = translations("shell", language(request))
            raise gr.Error(text["ended.title"], print_exception=False)
        return session.account

    return Services(store, account, language, prefix)


def build_app(
    store: Store,
    secret: bytes,
    tabs: Sequence[Tab],
    deployment: Deployment,
    *,
    status: Callable[[str], str] = lambda language: "",
    own_routes: Sequence[BaseRoute] = (),
    limits: RateLimits | None = None,
) -> FastAPI:
    """Build the app, ready to be served.

    Args:
        store: The store of verdicts and accounts.
        secret: The key that signs cookies.
        tabs: The tabs, in order.
        deployment: The run, its snapshots, and the hosts that may call the app.
        status: Returns a line about the model for the header, in the given language.
        own_routes: Routes that tabs bring, behind the gate; their paths stand in `gate`.
        limits: Rate limits; by default those of `RateLimits.default`.

    Raises:
        UserError: The environment switches on a feature that lets a browser edit code.
    """
    check_environment(os.environ)
    # 1. Our own routes.
    sessions = LoginSessions(store, secret)
    authenticator = Authenticator(store, sessions)
    limits = limits or RateLimits.default(local=deployment.local)
    prefix, run_token = deployment.prefix, deployment.run_token(store)

    def model_status(request: Request) -> Response:
        status_lines = {language: status(language) for language in LANGUAGES}
        return JSONResponse(
            {
                "account": request.state.account.id,
                "run": run_token,
                "status": status_lines,
            }
        )

    def snapshot_file(request: Request) -> Response:
        name, file = request.path_params["name"], request.path_params["file"]
        path = deployment.snapshots / name / file
        if request.state.account.role != "admin":
            return for_admins_only()
        is_snapshot_file = file in SNAPSHOT_FILES and path.parent.parent == deployment.snapshots
        if not is_snapshot_file or name.startswith(".") or not path.is_file():
            return JSONResponse({"detail": "there is no such file"}, 404)
        return FileResponse(path, filename=f"{name}-{file}")

    routes: list[BaseRoute] = [
        *Login(store, sessions, authenticator, limits, prefix).routes(),
        Route("/status", model_status),
        Route("/snapshots/{name}/{file}", snapshot_file),
        *own_routes,
    ]
    app = FastAPI(routes=routes, openapi_url=None, docs_url=None, redoc_url=None)
    # 2. Gradio behind them.
    texts = {language: translations("shell", language) for language in LANGUAGES}
    services = services_of(store, authenticator, sessions, prefix)
    page = build_page(services, tabs, run=deployment.run)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        # The address that people type: a proxy may pass on neither host nor path.
        root_path=f"{deployment.origin}{prefix}" or None,
        server_name="127.0.0.1",
        footer_links=[],
        run_history=False,
        mcp_server=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        show_error=False,
        max_file_size=MAX_UPLOAD_BYTES,
        i18n=gradio_i18n(),
        theme=theme.theme(),
        css=theme.CSS,
        head=render(
            "page_head",
            texts=texts,
            prefix=prefix,
            run_token=run_token,
            script=theme.SCRIPT,
        ),
    )
    # 3. The gate before everything; behind it, a check that refuses events no page of ours sends.
    app.add_middleware(EventRequests, page=page)
    app.add_middleware(
        Gate,
        authenticator=authenticator,
        sessions=sessions,
        hosts=deployment.hosts,
        limits=limits,
        origin=deployment.origin,
        prefix=prefix,
        run_token=run_token,
    )
    if prefix:
        app.add_middleware(PathPrefix, prefix=prefix)
    return app


def serve(
    app: FastAPI,
    listener: socket.socket,
    *,
    behind_proxy: bool,
    on_ready: Callable[[], None],
    limits: ConnectionLimits | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Serve until Ctrl-C, or SIGTERM, which raises SystemExit(143); call it in the main thread.

    Args:
        app: The app of `build_app`.
        listener: The bound socket. It stays open: what comes in afterwards waits for the next
            call.
        behind_proxy: True if a proxy on this machine forwards the scheme and the address of each
            request.
        on_ready: Called once the server accepts requests.
        limits: Connection limits; by default those of `limits_of_process`.
        stop: Ends it too, once it is set.
    """
    connections = Connections(limits or limits_of_process(), proxy=behind_proxy)
    config = uvicorn.Config(
        ProxyHeaders(app) if behind_proxy else app,
        http=connections.protocol(),
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_GRACE_S,
        ws="none",
    )
    server = _Server(config)
    server.on_ready = on_ready
    server.stop = stop or threading.Event()
    # uvicorn raises the signal again once it has stopped; the default handler would then kill the
    # process at once.
    signal.signal(signal.SIGTERM, lambda signal_number, frame: sys.exit(128 + signal_number))
    logging.getLogger("uvicorn.error").disabled = False  # by the server before this one
    server.run(sockets=[listener.dup()])


class _Server(uvicorn.Server):
    on_ready: Callable[[], None]
    stop: threading.Event

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self.stop.is_set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Every open page holds a stream that never ends by itself; cutting it off is not an error.
        logging.getLogger("uvicorn.error").disabled = True
        await super().shutdown(sockets)
