"""Connections that cannot lock others out: time limits for half-sent requests, and counts.

uvicorn waits for ever for the rest of a request, and each connection takes one of the process's
file descriptors: a thousand half-sent requests would keep everybody else out. Here a request has to
arrive in time, and where too many wait the oldest makes room for the newest, first of its own
address, so that one address never spends what others need.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from alpaca_rlhf.app.proxy import LOOPBACK

if sys.platform != "win32":
    import resource

Phase = Literal["head", "body", "complete"]
"""The part of a request that is awaited; `complete`: none, the app is at work or the line idle."""

FILES_RESERVED = 200
"""File descriptors that are not for connections: the database, the model, snapshots."""
_MAX_FILES = 65_536


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of a connection, of an address, and of all of them together."""

    head_s: float = 10.0
    """Seconds from the first byte, or from the connection, to the end of a request's headers."""
    body_s: float = 60.0
    """Seconds from the end of the headers to the end of the body."""
    unfinished_per_address: int = 64
    """Requests of one address that are half sent at the same time."""
    unfinished_total: int = 1024
    """Requests of all addresses that are half sent at the same time."""
    per_address: int = 512
    """Connections of one address; a classroom behind one router has six for each browser."""
    total: int = 4096
    """Connections of all addresses."""


@dataclass
class Connections:
    """The open connections of a server.

    Args:
        limits: Their limits.
        proxy: True if a proxy on this machine holds the connections of everybody, so that those
            from this machine are counted in total only.
    """

    limits: ConnectionLimits = field(default_factory=ConnectionLimits)
    proxy: bool = False
    _open: dict[str, dict[BoundedProtocol, None]] = field(default_factory=dict)

    def add(self, connection: BoundedProtocol) -> bool:
        """Take a new connection in; False if it has to be closed, since all others are at work."""
        neighbours = self._open.setdefault(connection.address, {})
        neighbours[connection] = None
        if not self._is_proxied(connection) and len(neighbours) > self.limits.per_address:
            return self._make_room(neighbours, connection)
        if self._count() > self.limits.total:
            return self._make_room(self._everybody(), connection)
        return True

    def remove(self, connection: BoundedProtocol) -> None:
        """Forget a closed connection."""
        neighbours = self._open.get(connection.address, {})
        neighbours.pop(connection, None)
        if not neighbours:
            self._open.pop(connection.address, None)

    def enforce(self, connection: BoundedProtocol) -> None:
        """Close the oldest half-sent request of an address, or of all, that has too many."""
        if not self._is_proxied(connection):
            neighbours = self._open.get(connection.address, {})
            if _close_oldest(neighbours, self.limits.unfinished_per_address):
                return
        if self._count() > self.limits.unfinished_total:  # else so many cannot be half sent
            _close_oldest(self._everybody(), self.limits.unfinished_total)

    def protocol(self) -> type[BoundedProtocol]:
        """The protocol class of this server, for `uvicorn.Config(http=...)`."""
        return type("Protocol", (BoundedProtocol,), {"registry": self})

    def _is_proxied(self, connection: BoundedProtocol) -> bool:
        """True for a connection that a proxy on this machine may hold for anybody."""
        return self.proxy and connection.address in LOOPBACK

    def _count(self) -> int:
        return sum(map(len, self._open.values()))

    def _everybody(self) -> list[BoundedProtocol]:
        return [other for others in self._open.values() for other in others]

    @staticmethod
    def _make_room(others: Iterable[BoundedProtocol], newest: BoundedProtocol) -> bool:
        """Close the one that has waited longest for a request; False if it is the newest."""
        waiting = [other for other in others if other.phase != "complete" or other.idle]
        oldest = min(waiting, key=lambda other: other.since_s, default=newest)
        if oldest is newest:
            return False
        oldest.abort()
        return True


def _close_oldest(connections: Iterable[BoundedProtocol], limit: int) -> bool:
    """Close the oldest half-sent request if there are more than a limit; False if there are not."""
    unfinished = [other for other in connections if other.phase != "complete"]
    if len(unfinished) <= limit:
        return False
    min(unfinished, key=lambda other: other.since_s).abort()
    return True


class BoundedProtocol(H11Protocol):
    """HTTP on one connection, with time limits for what is half sent."""

    registry: Connections
    """The connections of the server; see `Connections.protocol`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection in; the time for its first request begins."""
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        self.phase: Phase = "head"
        self.since_s = self.loop.time()
        self._deadline: asyncio.TimerHandle | None = None
        if not self.registry.add(self):
            self.abort()
            return
        self._await_part("head")

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_clock()
        self.registry.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, and see which part of the request is awaited now."""
        super().data_received(data)
        self._follow()

    def on_response_complete(self) -> None:
        """End a request; the next one may have begun to arrive."""
        super().on_response_complete()
        self._follow()

    @property
    def idle(self) -> bool:
        """True if no request is under way."""
        return self.cycle is None or self.cycle.response_complete

    def abort(self) -> None:
        """Close the connection at once."""
        self._stop_clock()
        self.transport.abort()

    def _follow(self) -> None:
        state = self.conn.their_state
        if state is h11.SEND_BODY:
            part: Phase = "body"
        elif state is h11.IDLE and self.conn.trailing_data[0]:
            part = "head"
        else:
            part = "complete"  # uvicorn itself closes a line that stays idle after a response
        if part != self.phase:
            self._await_part(part)

    def _await_part(self, part: Phase) -> None:
        self._stop_clock()
        self.phase, self.since_s = part, self.loop.time()
        if part == "complete" or self.transport.is_closing():
            return
        limits = self.registry.limits
        seconds = limits.head_s if part == "head" else limits.body_s
        self._deadline = self.loop.call_later(seconds, self.abort)
        self.registry.enforce(self)

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def limits_of_process() -> ConnectionLimits:
    """The default limits, within the file descriptors that this process may open.

    The soft limit, usually 1,024, is raised as far as the system allows.
    """
    if sys.platform == "win32":  # which has no such limit
        return ConnectionLimits()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (OSError, ValueError):
            pass
    if soft == resource.RLIM_INFINITY:
        return ConnectionLimits()
    total = max(16, min(ConnectionLimits.total, soft - FILES_RESERVED))
    half = max(8, total // 2)
    return ConnectionLimits(
        unfinished_total=min(ConnectionLimits.unfinished_total, half),
        per_address=min(ConnectionLimits.per_address, half),
        total=total,
    )
