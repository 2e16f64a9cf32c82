"""Half-sent requests lock nobody out: attacks on a server of this machine, bounded in number."""

import os
import socket
import time
from contextlib import ExitStack, contextmanager

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import Request

from alpaca_rlhf.app import connections
from alpaca_rlhf.app.connections import ConnectionLimits, Connections
from tests import apps

HALF = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "
HALF_BODY = b"POST /echo HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\nhalf"
N_HALF_SENT = int(os.environ.get("HALF_SENT", "200"))
"""1,100 in `make prove`."""


@contextmanager
def served(limits, *, behind_proxy=False):
    """The port of a small app behind the product's own server."""
    app = FastAPI()

    @app.get("/")
    def home():
        return "here"

    @app.post("/echo")
    async def echo(request: Request):
        return len(await request.body())

    with apps.served_as_product(app, limits, behind_proxy=behind_proxy) as port:
        yield port


def send(stack, port, data):
    line = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
    if data:
        line.sendall(data)
    return line


def closed_after(line, limit_s):
    """Seconds until the server closes a connection; fails if it does not in time."""
    begin = time.monotonic()
    line.settimeout(limit_s)
    try:
        while line.recv(1000):
            pass
    except ConnectionError:
        pass
    return time.monotonic() - begin


@pytest.mark.parametrize("behind_proxy", [False, True])
def test_many_half_sent_requests_lock_nobody_out(behind_proxy):
    connections.limits_of_process()  # this process holds both ends
    limit = {"unfinished_total" if behind_proxy else "unfinished_per_address": 40}
    limits = ConnectionLimits(head_s=120, body_s=120, **limit)
    with (
        served(limits, behind_proxy=behind_proxy) as port,
        ExitStack() as stack,
    ):
        url = f"http://127.0.0.1:{port}"
        lines = []
        for i in range(N_HALF_SENT):
            try:
                lines.append(send(stack, port, (HALF, HALF_BODY, b"", HALF[:9])[i % 4]))
            except ConnectionError:
                continue
            if i % 50 == 49:
                assert httpx.get(url, timeout=60).json() == "here", f"after {i + 1}"
        assert httpx.get(url, timeout=60).json() == "here"
        assert httpx.post(f"{url}/echo", content=b"x" * 9, timeout=60).json() == 9
        closed_after(lines[0], 60)  # the oldest made room
        lines[-1].settimeout(0.2)
        with pytest.raises(TimeoutError):
            lines[-1].recv(1)


@pytest.mark.parametrize("first", [b"", HALF, HALF_BODY])
def test_a_half_sent_request_is_given_up_in_time(first):
    limits = ConnectionLimits(head_s=0.5, body_s=0.5)
    with served(limits) as port, ExitStack() as stack:
        line = send(stack, port, first)
        closed_after(line, 60)


def test_a_byte_now_and_then_wins_no_time():
    limits = ConnectionLimits(head_s=0.6, body_s=60)
    with served(limits) as port, ExitStack() as stack:
        line = send(stack, port, HALF)
        with pytest.raises(OSError):
            for _ in range(600):
                time.sleep(0.1)
                line.sendall(b"x")


def test_the_second_request_of_a_connection_has_its_time_too():
    """uvicorn itself ends an idle line, but not one on which a request has begun."""
    limits = ConnectionLimits(head_s=0.5, body_s=60)
    with served(limits) as port, ExitStack() as stack:
        line = send(stack, port, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert b"200 OK" in line.recv(1000)
        line.sendall(HALF)
        closed_after(line, 60)


def test_requests_one_after_the_other_and_pipelined_are_answered():
    """Limits shorter than the connection's life do not cut off whole requests."""
    limits = ConnectionLimits(head_s=3, body_s=3)
    whole = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    body = b"POST /echo HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 3\r\n\r\nabc"
    with served(limits) as port, ExitStack() as stack:
        line = send(stack, port, b"")
        for request in (whole, body, whole + body, whole):
            line.sendall(request)
            replies = b""
            while replies.count(b"200 OK") < request.count(b"HTTP/1.1"):
                chunk = line.recv(4000)
                assert chunk, "the server hung up"
                replies += chunk
            time.sleep(3.3)


def test_one_address_does_not_take_all_connections():
    limits = ConnectionLimits(per_address=8, unfinished_per_address=100, head_s=60)
    with served(limits) as port, ExitStack() as stack:
        lines = [send(stack, port, HALF) for _ in range(9)]
        closed_after(lines[0], 60)
        assert httpx.get(f"http://127.0.0.1:{port}", timeout=60).json() == "here"


class Line:
    """A connection with a half-sent request, as far as `Connections` looks at it."""

    phase, idle = "body", False

    def __init__(self, registry, address, since_s):
        self.address, self.since_s, self.aborted = address, since_s, False
        registry.add(self)
        registry.enforce(self)

    def abort(self):
        self.aborted, self.phase = True, "complete"


def aborted(lines):
    return [at for at, line in enumerate(lines) if line.aborted]


def test_slow_uploads_through_a_proxy_are_counted_in_total_only():
    """A proxy holds the connections of everybody: 65 honest people are no attack."""
    limits = ConnectionLimits(unfinished_per_address=64, unfinished_total=100)
    registry = Connections(limits, proxy=True)
    lines = [Line(registry, "127.0.0.1", at) for at in range(100)]
    assert aborted(lines) == []
    lines += [Line(registry, "::1", 100), Line(registry, "127.0.0.1", 101)]
    assert aborted(lines) == [0, 1], "the oldest of all make room"
    registry = Connections(limits, proxy=True)
    others = [Line(registry, "192.0.2.7", at) for at in range(65)]
    assert aborted(others) == [0], "who comes past the proxy has an address of their own"


def test_without_a_proxy_this_machine_is_an_address_like_any_other():
    registry = Connections(ConnectionLimits(unfinished_per_address=3, unfinished_total=8))
    lines = [Line(registry, "127.0.0.1", at) for at in range(5)]
    assert aborted(lines) == [0, 1]
    lines += [Line(registry, f"192.0.2.{at}", at) for at in range(5, 11)]
    assert aborted(lines) == [0, 1, 2], "many addresses with few each count together"


def test_the_limits_leave_files_for_everything_else(monkeypatch):
    """The soft limit of open files is raised where it may be, and kept to where it may not."""
    raised = []
    monkeypatch.setattr(connections.resource, "setrlimit", lambda _, to: raised.append(to))
    monkeypatch.setattr(connections.resource, "getrlimit", lambda _: (1024, 1_000_000))
    assert connections.limits_of_process() == ConnectionLimits()
    assert raised == [(65_536, 1_000_000)]
    monkeypatch.setattr(connections.resource, "getrlimit", lambda _: (1024, 1024))
    limits = connections.limits_of_process()
    assert limits.total == 1024 - connections.FILES_RESERVED and limits.per_address == 412
    assert limits.unfinished_per_address < limits.unfinished_total == 412 < limits.total
    assert limits.unfinished_per_address < limits.per_address < limits.total
