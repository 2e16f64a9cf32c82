"""Before every request: where it comes from, who sends it, how much and how often.

One gate stands before Gradio and before the app's own pages, since some of Gradio's routes ask for
no login. What is not known to be needed is closed.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Collection, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alpaca_rlhf.app.limits import Limit
from alpaca_rlhf.app.session import IDLE_S, Session, Sessions
from alpaca_rlhf.preferences.people import Account
from alpaca_rlhf.preferences.store import Store

LARGEST = 4 * 2**20
"""Bytes of a request; a long conversation stays far below."""
OPEN = ("/login",)
"""Paths for those who are not signed in."""
_EXACT = {"/", "/login", "/logout", "/status", "/config", "/theme.css", "/manifest.json"}
_EXACT |= {"/favicon.ico", "/robots.txt"}
_EXACT |= {
    f"/gradio_api/{one}"
    for one in ("queue/join", "queue/data", "cancel", "reset", "app_id", "info", "startup-events")
}
_EXACT |= {"/gradio_api/login_check", "/gradio_api/user", "/gradio_api/theme.css"}
_BELOW: tuple[str, ...] = ("/assets/", "/static/", "/svelte/", "/snapshots/", "/gradio_api/run/")
_BELOW += ("/gradio_api/call/", "/gradio_api/heartbeat/", "/gradio_api/file=")
_FILES = ("/assets/", "/static/", "/svelte/")
"""Gradio's own files, which are the same everywhere: they count for no rate."""
_SAFE = ("GET", "HEAD")

HEADERS = {
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
        "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
        "media-src 'self' blob:; worker-src 'self' blob:; connect-src 'self'; object-src 'none'; "
        "base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # `no-referrer` would make browsers send `Origin: null` with our own forms; to other sites this
    # tells as little.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
"""Sent with every answer; Gradio's page needs inline scripts and `eval`."""


@dataclass(frozen=True)
class Rates:
    """How often; the numbers leave a person who works fast alone."""

    local: bool
    """Whether only this machine can ask: then nothing but failed sign-ins is counted."""
    requests: Limit
    """Requests of one account, or of one address where nobody is signed in."""
    failures: Limit
    """Failed sign-ins of one address."""
    guesses: Limit
    """Failed sign-ins of one name."""

    @classmethod
    def usual(cls, *, local: bool) -> Rates:
        """20 requests a second; 20 failures an address and 10 a name, and one more a minute."""
        return cls(local, Limit(200, 20), Limit(20, 1 / 15), Limit(10, 1 / 60))


class Who:
    """Whom a request belongs to.

    Args:
        store: Knows the accounts.
        sessions: Reads the cookies.
    """

    def __init__(self, store: Store, sessions: Sessions) -> None:
        self._store = store
        self._sessions = sessions
        self._local: Account | None = None
        self._accounts = False

    def needs_login(self) -> bool:
        """Whether there are accounts. Once there are, there always will be: an admin stays."""
        self._accounts = self._accounts or self._store.any_accounts()
        return self._accounts

    def session(self, cookie: str | None) -> Session | None:
        """Who sends this cookie; without accounts always the local admin."""
        if self.needs_login():
            return None if cookie is None else self._sessions.read(cookie)
        if self._local is None:
            self._local = self._store.local()
        return Session(self._local, 0, 0)


class Gate:
    """ASGI middleware round the whole app.

    Args:
        app: What lies behind it.
        who: Whom a request belongs to.
        sessions: Makes cookies anew.
        hosts: Names by which the app may be called, without ports. Addresses are always good: only
            a name can be made to point elsewhere (DNS rebinding).
        rates: How often.
    """

    def __init__(
        self, app: ASGIApp, *, who: Who, sessions: Sessions, hosts: Collection[str], rates: Rates
    ) -> None:
        self._app = app
        self._who = who
        self._sessions = sessions
        self._hosts = {one.lower() for one in hosts}
        self._rates = rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, refuse, or hand on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # the app has no web sockets
            await send({"type": "websocket.close", "code": 1008})
            return
        request = Request(scope)
        fresh: list[str] = []

        async def guarded_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                _add_headers(message, request)
                for cookie in fresh:
                    _set_cookie(message, request, self._sessions.name, cookie)
            await send(message)

        refused = self._refused(request)
        if refused is None and not _is(request.url.path, OPEN):
            cookie = request.cookies.get(self._sessions.name)
            session = await run_in_threadpool(self._who.session, cookie)
            refused = self._too_often(request, session)
            if session is None:
                refused = refused or _signed_out(request)
            else:
                scope.setdefault("state", {})["account"] = session.account
                if session.began and not _is_file(request.url.path):
                    renewed = await run_in_threadpool(self._sessions.renewal, session)
                    fresh += [renewed] if renewed else []
        elif refused is None:
            refused = self._too_often(request, None)
        if refused is not None:
            await refused(scope, receive, guarded_send)
            return
        await self._app(scope, _Limited(receive), guarded_send)

    def _refused(self, request: Request) -> Response | None:
        """What no page of ours sends."""
        headers, method = request.headers, request.method
        if not self._is_ours(headers.get("host", "")):
            return _problem(421, "this is not the name of this app")
        path = request.url.path
        if not (_is(path, _EXACT) or path.startswith(_BELOW)) or "\\" in path or "/../" in path:
            return _problem(404, "there is nothing here")
        if method not in (*_SAFE, "POST"):
            return _problem(405, "only GET, HEAD and POST")
        if method == "POST" and not _same_origin(request):
            return _problem(403, "this was not sent by a page of the app")
        if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            if headers.get("sec-fetch-mode") != "navigate" or method != "GET":
                return _problem(403, "this was not sent by a page of the app")
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > LARGEST:
            return _problem(413, f"at most {LARGEST} bytes")
        return None

    def _too_often(self, request: Request, session: Session | None) -> Response | None:
        if self._rates.local or _is_file(request.url.path):
            return None
        key: object = session.account.id if session else address(request)
        wait = self._rates.requests.take(key)
        if not wait:
            return None
        headers = {"retry-after": str(int(wait) + 1)}
        return _problem(429, "too many requests; wait a little", headers)

    def _is_ours(self, host: str) -> bool:
        name = urlsplit(f"//{host}").hostname or ""
        if name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def address(request: Request) -> str:
    """Where a request comes from."""
    return request.client.host if request.client else ""


def _same_origin(request: Request) -> bool:
    """Every browser says where a POST comes from; who does not say it is no page of ours."""
    origin = urlsplit(request.headers.get("origin", ""))
    return bool(origin.netloc) and (origin.scheme, origin.netloc.lower()) == (
        request.url.scheme,
        request.headers.get("host", "").lower(),
    )


def _signed_out(request: Request) -> Response:
    if request.url.path == "/" and request.method in _SAFE:
        return RedirectResponse("/login", 303, {"cache-control": "no-store"})
    return _problem(401, "nobody is signed in", {"cache-control": "no-store"})


def _problem(status: int, words: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"detail": words}, status, headers)


def _is(path: str, known: Collection[str]) -> bool:
    return path in known or (path != "/" and path.removesuffix("/") in known)


def _is_file(path: str) -> bool:
    return path.startswith(_FILES)


def _add_headers(message: Message, request: Request) -> None:
    headers = MutableHeaders(scope=message)
    for name, value in HEADERS.items():
        if name not in headers:
            headers[name] = value
    if request.url.scheme == "https":
        headers["strict-transport-security"] = "max-age=31536000"
    if "cache-control" not in headers and not _is_file(request.url.path):
        headers["cache-control"] = "no-store"


def _set_cookie(message: MutableMapping[str, Any], request: Request, name: str, value: str) -> None:
    response = Response()
    give_cookie(response, request, name, value)
    for key, one in response.raw_headers:
        if key == b"set-cookie":
            message.setdefault("headers", []).append((key, one))


def give_cookie(response: Response, request: Request, name: str, value: str) -> None:
    """Set the session's cookie; an empty value takes it away."""
    response.set_cookie(
        name,
        value,
        max_age=IDLE_S if value else 0,
        path="/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )


class _Limited:
    """A body of unknown length is cut off where it gets too long."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._seen = 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._seen += len(message.get("body", b""))
        if self._seen > LARGEST:
            return {"type": "http.disconnect"}
        return message


def asks_for_json(headers: Headers) -> bool:
    """Whether a script asks, which can do nothing with a page."""
    return "application/json" in headers.get("accept", "")


def as_json(value: Any) -> str:
    """A value that may stand within a script of a page."""
    return json.dumps(value).replace("<", "\\u003c").replace("\u2028", "\\u2028")
