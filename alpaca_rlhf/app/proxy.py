"""A proxy before the app: the headers that tell of a request, and a path in front of the app's."""

from __future__ import annotations

import ipaddress

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "::1")
"""Addresses from which a proxy on this machine connects."""


class ProxyHeaders:
    """ASGI middleware that takes the right-most hop, which the proxy itself has added.

    Everything left of it was sent by the client, who may write there what they like: it counts for
    nothing, not even where the right-most hop is this machine.

    Args:
        app: The app behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with the address and the scheme that the proxy has seen."""
        client = scope.get("client")
        if scope["type"] == "http" and client and client[0] in LOOPBACK:
            hop = address_of(_last(scope, b"x-forwarded-for"))
            if hop:
                scope["client"] = (hop, 0)
            scheme = _last(scope, b"x-forwarded-proto").lower()
            if scheme in ("http", "https"):
                scope["scheme"] = scheme
        await self._app(scope, receive, send)


class PathPrefix:
    """ASGI middleware for an app at a path of a host, such as https://example.org/rank.

    A proxy may pass a request on with the prefix or without it: both reach the same page.

    Args:
        app: The app behind it.
        prefix: The path, with a slash before it and none after it.
    """

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on without the prefix; without its last slash it is sent there."""
        if scope["type"] == "http":
            path, prefix = scope["path"], self._prefix
            if path == prefix and scope["method"] in ("GET", "HEAD"):
                # The addresses of the page are relative to the slash.
                headers = {"cache-control": "no-store"}
                await RedirectResponse(f"{prefix}/", 307, headers)(scope, receive, send)
                return
            if path.startswith(f"{prefix}/"):
                raw_path = scope.get("raw_path", path.encode()).removeprefix(prefix.encode())
                scope = {**scope, "path": path.removeprefix(prefix), "raw_path": raw_path}
        await self._app(scope, receive, send)


def address_of(hop: str) -> str:
    """The IP address of a hop, without port and brackets; empty if it is none."""
    hop = hop.strip()
    if hop.startswith("["):
        hop = hop[1:].partition("]")[0]
    elif hop.count(":") == 1:
        hop = hop.partition(":")[0]
    try:
        return str(ipaddress.ip_address(hop))
    except ValueError:
        return ""


def _last(scope: Scope, header: bytes) -> str:
    """The last element of a header that may be a list, and may be there several times."""
    values = [value for name, value in scope["headers"] if name.lower() == header]
    return values[-1].decode("latin-1").rpartition(",")[2].strip() if values else ""
