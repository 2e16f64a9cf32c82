"""The gate before every request: where it comes from, who sends it, how much and how often.

It stands before Gradio and before the app's own pages, since some of Gradio's routes ask for no
login. Every path that is not known to be needed is closed.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alpaca_rlhf.app.login_session import IDLE_S, LoginSession, LoginSessions
from alpaca_rlhf.app.rate_limit import RateLimit
from alpaca_rlhf.app.uploads import MAX_UPLOAD_BYTES
from alpaca_rlhf.preferences.people import Account
from alpaca_rlhf.preferences.store import Store

MAX_REQUEST_BYTES = 4 * 2**20
"""Bytes of a request; a long conversation stays far below."""
_MAX_BYTES_OF = {"/training/upload": MAX_UPLOAD_BYTES, "/prompts": MAX_UPLOAD_BYTES}
"""Other limits, by path."""
RUN_HEADER = "x-alpaca-run"
"""Header by which a page says which run it was opened on: ids of one run mean others in another."""
PUBLIC_PATHS = ("/login",)
"""Paths for those who are not signed in."""
_PATHS = {"/", "/login", "/logout", "/status", "/config", "/theme.css", "/manifest.json"}
_PATHS |= {"/favicon.ico", "/robots.txt", "/training", "/report", "/password"}
_PATHS |= {"/training/new", "/training/upload", "/training/open", "/prompts"}
_PATHS |= {
    f"/gradio_api/{name}"
    for name in ("queue/join", "queue/data", "cancel", "reset", "app_id", "info", "startup-events")
}
_PATHS |= {"/gradio_api/login_check", "/gradio_api/user", "/gradio_api/theme.css"}
_PREFIXES: tuple[str, ...] = ("/assets/", "/static/", "/svelte/", "/snapshots/", "/gradio_api/run/")
_PREFIXES += ("/gradio_api/call/", "/gradio_api/heartbeat/", "/gradio_api/file=")
_ASSETS = ("/assets/", "/static/", "/svelte/")
"""Gradio's own files, the same for everybody: no rate limit counts them."""
_SAFE_METHODS = ("GET", "HEAD")
_HSTS = "max-age=31536000"

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
    # reveals as little.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
"""Sent with every response; Gradio's page needs inline scripts and `eval`."""


@dataclass(frozen=True)
class RateLimits:
    """Rate limits of the app; a person who works fast stays below them."""

    local: bool
    """True if only this machine can reach the app: then only failed sign-ins are counted."""
    requests: RateLimit
    """Requests of one account, or of one address where nobody is signed in."""
    failures: RateLimit
    """Failed sign-ins from one address."""
    guesses: RateLimit
    """Failed sign-ins from one address with one name."""
    names: RateLimit = field(default_factory=lambda: RateLimit(30, 1 / 60))
    """Failed sign-ins with one name from all addresses together, those left out from which that
    name has signed in before: whoever changes addresses, or can forge them on this machine, gets
    no further, and keeps nobody out where they usually are."""

    @classmethod
    def default(cls, *, local: bool) -> RateLimits:
        """20 requests a second; 20 failures an address and 10 a name, refilled by the minute."""
        return cls(local, RateLimit(200, 20), RateLimit(20, 1 / 15), RateLimit(10, 1 / 60))


class Authenticator:
    """Finds the session of a request.

    Args:
        store: The accounts.
        sessions: Reads the cookies.
    """

    def __init__(self, store: Store, sessions: LoginSessions) -> None:
        self._store = store
        self._sessions = sessions
        self._local: Account | None = None
        self._has_accounts = False

    def needs_login(self) -> bool:
        """True once there are accounts, and for good from then on: an admin always remains."""
        self._has_accounts = self._has_accounts or self._store.any_accounts()
        return self._has_accounts

    def session(self, cookie: str | None) -> LoginSession | None:
        """The session of a cookie; without accounts always the local admin's."""
        if self.needs_login():
            return None if cookie is None else self._sessions.read(cookie)
        if self._local is None:
            self._local = self._store.local()
        return LoginSession(self._local, 0, 0)


class Gate:
    """ASGI middleware around the whole app.

    Args:
        app: The app behind it.
        authenticator: Finds the session of a request.
        sessions: Renews cookies.
        hosts: Names by which the app may be called, without ports. Addresses are always allowed:
            only a name can be made to point elsewhere (DNS rebinding).
        limits: The rate limits.
        origin: The origin that people type where a proxy stands before the app (`--url`), such as
            https://rank.example.org. Our pages send it even if the proxy passes on neither the
            host nor the scheme.
        prefix: The path before the app's own paths, for cookies and redirects.
        run_token: Names the run that the app is on; requests of a page that was opened on another
            one are refused.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        authenticator: Authenticator,
        sessions: LoginSessions,
        hosts: Collection[str],
        limits: RateLimits,
        origin: str = "",
        prefix: str = "",
        run_token: str = "",
    ) -> None:
        self._app = app
        self._run_token = run_token
        self._origin = origin
        self._prefix = prefix
        self._authenticator = authenticator
        self._sessions = sessions
        self._hosts = {host.lower() for host in hosts}
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, refuse, or pass on a request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # the app has no web sockets
            await send({"type": "websocket.close", "code": 1008})
            return
        request = Request(scope)
        fresh_cookies: list[str] = []
        responded = False

        async def guarded_send(message: Message) -> None:
            nonlocal responded
            if message["type"] == "http.response.start":
                responded = True
                _add_headers(message, request)
                if _sets_cookie(message, self._sessions.cookie_name):
                    fresh_cookies.clear()  # that for a new password, which ends all others
                for cookie in fresh_cookies:
                    _set_cookie(message, request, self._sessions.cookie_name, cookie, self._prefix)
            await send(message)

        # 1. Requests that no page of the app sends.
        refusal = self._refusal(request)
        # 2. The session and its rate limit.
        if refusal is None and not _matches(_path(request), PUBLIC_PATHS):
            cookie = request.cookies.get(self._sessions.cookie_name)
            session = await run_in_threadpool(self._authenticator.session, cookie)
            refusal = self._rate_limited(request, session)
            if session is None:
                refusal = refusal or _signed_out(request, self._prefix)
            else:
                scope.setdefault("state", {})["account"] = session.account
                # 3. A fresh cookie for a session in use.
                if session.began and not _is_asset(_path(request)):
                    renewed = await run_in_threadpool(self._sessions.renewal, session)
                    fresh_cookies += [renewed] if renewed else []
        elif refusal is None:
            refusal = self._rate_limited(request, None)
        if refusal is not None:
            await refusal(scope, receive, guarded_send)
            return
        try:
            await self._app(scope, _LimitedBody(receive, _max_bytes(request)), guarded_send)
        except ClientDisconnect:  # a body that was too long, or never came whole
            if not responded:
                refusal = _problem(413, f"a request has at most {_max_bytes(request)} bytes")
                await refusal(scope, receive, guarded_send)

    def _refusal(self, request: Request) -> Response | None:
        """The response to a request that no page of the app sends; None for all others."""
        headers, method = request.headers, request.method
        if not self._is_our_host(headers.get("host", "")):
            return _problem(421, "the app does not answer to this host name")
        path = _path(request)
        known = _matches(path, _PATHS) or path.startswith(_PREFIXES)
        if not known or "\\" in path or "/../" in path:
            return _problem(404, "there is nothing here")
        if method not in (*_SAFE_METHODS, "POST"):
            return _problem(405, "only GET, HEAD and POST are allowed")
        if method == "POST" and not _same_origin(request, self._origin):
            return _problem(403, "this request was not sent by a page of the app")
        if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            if headers.get("sec-fetch-mode") != "navigate" or method != "GET":
                return _problem(403, "this request was not sent by a page of the app")
        if method == "POST" and headers.get(RUN_HEADER, self._run_token) != self._run_token:
            return _problem(409, "the app has gone on to another run; reload the page")
        length, most = headers.get("content-length", "0"), _max_bytes(request)
        if not length.isdigit() or int(length) > most:
            return _problem(413, f"a request has at most {most} bytes")
        return None

    def _rate_limited(self, request: Request, session: LoginSession | None) -> Response | None:
        if self._limits.local or _is_asset(_path(request)):
            return None
        key: object = session.account.id if session else client_address(request)
        wait_s = self._limits.requests.take(key)
        if not wait_s:
            return None
        # Whoever keeps to no limit does not keep a connection either.
        headers = {**retry_after(wait_s), "connection": "close"}
        return _problem(429, "too many requests; wait a moment", headers)

    def _is_our_host(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            if name not in self._hosts:
                ipaddress.ip_address(name)
        except ValueError:  # neither an address nor, as `[`, any host at all
            return False
        return True


def own_names() -> set[str]:
    """First names of the app's own paths: at none of them may a proxy show the app."""
    return {path.split("/")[1] for path in (*_PATHS, *_PREFIXES)} - {""}


def client_address(request: Request) -> str:
    """The address that a request comes from."""
    return request.client.host if request.client else ""


def retry_after(wait_s: float) -> dict[str, str]:
    """The header that says when to try again."""
    return {"retry-after": str(int(wait_s) + 1)}


def accepts_json(headers: Headers) -> bool:
    """True if a script sends the request, which can do nothing with a page."""
    return "application/json" in headers.get("accept", "")


def set_session_cookie(
    response: Response, request: Request, name: str, value: str, prefix: str
) -> None:
    """Set the session's cookie for the app's paths; an empty value deletes it."""
    response.set_cookie(
        name,
        value,
        max_age=IDLE_S if value else 0,
        path=prefix or "/",
        secure=request.scope["scheme"] == "https",
        httponly=True,
        samesite="strict",
    )


def _same_origin(request: Request, public: str) -> bool:
    """True if a POST comes from our own page; every browser sends its origin."""
    try:
        origin = urlsplit(request.headers.get("origin", ""))
    except ValueError:
        return False
    called = (request.scope["scheme"], request.headers.get("host", "").lower())
    typed = urlsplit(public)
    sent = (origin.scheme, origin.netloc.lower())
    return bool(origin.netloc) and sent in (called, (typed.scheme, typed.netloc.lower()))


def _signed_out(request: Request, prefix: str) -> Response:
    if _path(request) == "/" and request.method in _SAFE_METHODS:
        return RedirectResponse(f"{prefix}/login", 303, {"cache-control": "no-store"})
    return _problem(401, "nobody is signed in", {"cache-control": "no-store"})


def _problem(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"detail": message}, status, headers)


def _matches(path: str, paths: Collection[str]) -> bool:
    return path in paths or (path != "/" and path.removesuffix("/") in paths)


def _path(request: Request) -> str:
    """The path by which the app behind the gate finds its route.

    `request.url` is put together with the host and parsed again, which drops tabs and line breaks:
    by it the gate would judge another path than the one that is served.
    """
    return str(request.scope["path"])


def _max_bytes(request: Request) -> int:
    return _MAX_BYTES_OF.get(_path(request), MAX_REQUEST_BYTES)


def _is_asset(path: str) -> bool:
    return path.startswith(_ASSETS)


def _add_headers(message: Message, request: Request) -> None:
    headers = MutableHeaders(scope=message)
    for name, value in HEADERS.items():
        if name not in headers:
            headers[name] = value
    if request.scope["scheme"] == "https":
        headers["strict-transport-security"] = _HSTS
    # nginx would keep the pieces of a stream back until there are enough of them.
    if headers.get("content-type", "").startswith("text/event-stream"):
        headers["x-accel-buffering"] = "no"
    if "cache-control" not in headers and not _is_asset(_path(request)):
        headers["cache-control"] = "no-store"


def _sets_cookie(message: MutableMapping[str, Any], name: str) -> bool:
    """True if a response sets this cookie already."""
    return any(
        header == b"set-cookie" and value.startswith(f"{name}=".encode())
        for header, value in message.get("headers", [])
    )


def _set_cookie(
    message: MutableMapping[str, Any], request: Request, name: str, value: str, prefix: str
) -> None:
    response = Response()
    set_session_cookie(response, request, name, value, prefix)
    for header, header_value in response.raw_headers:
        if header == b"set-cookie":
            message.setdefault("headers", []).append((header, header_value))


class _LimitedBody:
    """Cuts off a body of unknown length once it is too long."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive = receive
        self._most = most
        self._n_bytes = 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._n_bytes += len(message.get("body", b""))
        if self._n_bytes > self._most:
            return {"type": "http.disconnect"}
        return message
