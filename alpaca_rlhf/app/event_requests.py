"""Calls of events that no page sends: refused in one line, before Gradio fails on them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import gradio as gr
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_RUN, _CALL, _JOIN = "/gradio_api/run/", "/gradio_api/call/", "/gradio_api/queue/join"


class EventRequests:
    """ASGI middleware that checks the event and the number of its inputs.

    Args:
        app: The app behind it, which holds the page.
        page: The page whose events are called.
    """

    def __init__(self, app: ASGIApp, *, page: gr.Blocks) -> None:
        self._app = app
        self._page = page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on with its body."""
        path = scope.get("path", "").removesuffix("/")
        if scope.get("method") != "POST" or not path.startswith((_RUN, _CALL, _JOIN)):
            await self._app(scope, receive, send)
            return
        body = await Request(scope, receive).body()
        refusal = self._refusal(path, body)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        read = False

        async def replay() -> Message:
            nonlocal read
            if read:
                return await receive()
            read = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    def _refusal(self, path: str, body: bytes) -> Response | None:
        # 1. The body: an object with a list of inputs.
        try:
            fields = json.loads(body)
        except (ValueError, RecursionError):
            return _problem(422, "the body must be JSON")
        if not isinstance(fields, dict) or not isinstance(fields.get("data"), list):
            return _problem(422, "the body must be an object with a list `data`")
        # 2. The event.
        called_by_name = path.startswith(_CALL)
        event = self._event(path, {} if called_by_name else fields)
        if event is None:
            return _problem(404, "there is no such event")
        # 3. Its inputs; a call by name leaves out those that the server itself holds.
        inputs = [
            block for block in event.inputs if not (called_by_name and isinstance(block, gr.State))
        ]
        if len(fields["data"]) < len(inputs) and not event.cancels:
            return _problem(422, f"`data` must have {len(inputs)} elements for this event")
        return None

    def _event(self, path: str, fields: Mapping[str, Any]) -> Any:
        number = fields.get("fn_index")
        if number is not None:
            return self._page.fns.get(number) if type(number) is int else None
        name = path.rpartition("/")[2]
        named = (event for event in self._page.fns.values() if event.api_name == name)
        return None if path == _JOIN else next(named, None)


def _problem(status: int, message: str) -> JSONResponse:
    return JSONResponse({"detail": message}, status)
