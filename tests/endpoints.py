"""An OpenAI-compatible endpoint, and a proxy before one that goes wrong on purpose.

    python -m tests.endpoints FOLDER URL TARGET

generates into FOLDER with the endpoint at URL, in a process of its own that can be killed.
"""

import json
import random
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from alpaca_rlhf.data import generate
from alpaca_rlhf.data.generation.endpoint import EndpointTeacher
from alpaca_rlhf.settings import Generate
from alpaca_rlhf.settings.endpoint import Endpoint
from tests.generation import SEEDS, SEGMENT, AnyTeacher
from tests.generation import settings as recipe_settings

KEY = "sk-secret-0123456789"
PROBE = "Ten things"


class Server(ThreadingHTTPServer):
    """Keeps what it was asked: the bodies, in order, and how often each."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, answer: Callable[[Any, dict[str, Any] | None], None]) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()
        self.answer = answer
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def asked(self) -> Counter[str]:
        """The number of times that each body came which is no probe."""
        texts = (json.dumps(body, sort_keys=True) for body in self.bodies)
        return Counter(body for body in texts if PROBE not in body)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up."""


class Handler(BaseHTTPRequestHandler):
    """Gives each request to the server's `answer`."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.answer(self, None)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.headers.append(dict(self.headers))
        self.server.answer(self, body)

    def give(self, status: int, content: bytes | dict[str, Any], **headers: str) -> None:
        """One answer."""
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response_only(status)  # no date but the one that is given
        for name, value in {"Content-Length": str(len(raw)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextmanager
def serving(answer: Callable[[Any, dict[str, Any] | None], None]) -> Iterator[Server]:
    """A server on 127.0.0.1."""
    with Server(answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def writer(seconds: float = 0.0) -> Callable[[Any, dict[str, Any] | None], None]:
    """A model: its reply is a function of prompt and seed."""
    teacher = AnyTeacher()

    def answer(handler: Handler, body: dict[str, Any] | None) -> None:
        if body is None:
            handler.give(200, {"data": [{"id": "writer"}]})
            return
        time.sleep(seconds)
        prompt = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        reply = teacher.reply(prompt, random.Random(f"{body.get('seed')}/{prompt}"))
        text = reply.text.encode("utf-8", "replace").decode()
        for stop in body.get("stop", ()):
            text = text.partition(stop)[0]
        text_field = {"text": text} if "prompt" in body else {"message": {"content": text}}
        finish_reason = "stop" if reply.finish_reason == "eos" else "length"
        usage = {"prompt_tokens": len(prompt) // 4, "completion_tokens": reply.tokens}
        handler.give(
            200, {"choices": [{**text_field, "finish_reason": finish_reason}], "usage": usage}
        )

    return answer


FAULTS: dict[str, Callable[[Handler], None]] = {
    "429": lambda h: h.give(429, {"error": {"message": "slow down"}}),
    "429 after": lambda h: h.give(429, b"slow down", Retry_After="7"),
    "429 date": lambda h: h.give(
        429,
        b"",
        Date="Mon, 23 Nov 2026 10:00:00 GMT",
        Retry_After="Mon, 23 Nov 2026 10:00:11 GMT",
    ),
    "500": lambda h: h.give(500, b"<html>Internal Server Error</html>"),
    "cut": lambda h: _cut(h),
    "json": lambda h: h.give(200, b'{"choices": [{"text": "half a'),
    "no text": lambda h: h.give(200, {"choices": []}),
    "hang": lambda h: time.sleep(4.0),
}
"""By what goes wrong."""

KIND = {"429 after": "429", "429 date": "429", "500": "5xx", "no text": "json", "hang": "timeout"}
"""Its name in the account, where that is another one."""


def _cut(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "500")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"te')
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


@contextmanager
def faulty(
    url: str, choose: Callable[[int, dict[str, Any], int], str | None]
) -> Iterator[tuple[Server, Counter[str]]]:
    """A proxy before `url`, and what it did.

    Args:
        url: The endpoint behind it.
        choose: Of the n-th request that is no probe, its body and how often that body came before:
            the fault to make, or None.
    """
    faults_made: Counter[str] = Counter()
    times_seen: Counter[str] = Counter()
    lock = threading.Lock()
    # a fresh connection each time: servers close those that idle
    fresh = httpx.Limits(max_keepalive_connections=0)
    client = httpx.Client(timeout=120, trust_env=False, limits=fresh)

    def answer(handler: Handler, body: dict[str, Any] | None) -> None:
        path = handler.path.removeprefix("/v1/")
        fault = None
        if body is not None and PROBE not in json.dumps(body):
            text = json.dumps(body, sort_keys=True)
            with lock:
                fault = choose(times_seen.total(), body, times_seen[text])
                times_seen[text] += 1
                faults_made.update([fault] if fault else [])
        if fault is not None:
            FAULTS[fault](handler)
            return
        if body is None:
            response = client.get(f"{url}/{path}")
        else:
            response = client.post(f"{url}/{path}", json=body)
        handler.give(response.status_code, response.content)

    with serving(answer) as server, client:
        yield server, faults_made


def settings(url: str, recipe: str = "alpaca", target: int = 60, **endpoint: Any) -> Generate:
    """Of a small run with an endpoint that goes on with texts."""
    end = {"model": "writer", "api": "completions", "concurrency": 4, "timeout": 30.0, **endpoint}
    return replace(recipe_settings(recipe, target), endpoint=Endpoint(url=url, **end))


def run(folder: Path, run_settings: Generate, **teacher: Any) -> tuple[Any, EndpointTeacher]:
    """A whole run, and its teacher; it never really waits."""
    options = {"sleep": lambda seconds: None, "environ": {}, **teacher}
    with EndpointTeacher(run_settings, folder, **options) as endpoint_teacher:
        rows = generate(
            endpoint_teacher, SEEDS, run_settings, seed=1, folder=folder, segment_bytes=SEGMENT
        )
        return rows, endpoint_teacher


if __name__ == "__main__":
    out, where, target = sys.argv[1:]
    run(Path(out), settings(where, target=int(target)))
