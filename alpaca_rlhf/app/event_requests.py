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
_EVENT_FIELDS = {
    "edit": ("index", "previous_value", "value"),
    "like": ("index", "value", "liked"),
}
"""Fields that Gradio reads from `event_data` of these events, whether they are there or not."""


class EventRequests:
    """ASGI middleware that checks the event, the number of its inputs, and its `event_data`.

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
        # 4. What it tells of the click.
        if event.collects_event_data and not _tells_of_click(event, fields.get("event_data")):
            return _problem(422, "`event_data` is not that of this event")
        return None

    def _event(self, path: str, fields: Mapping[str, Any]) -> Any:
        number = fields.get("fn_index")
        if number is not None:
            return self._page.fns.get(number) if type(number) is int else None
        name = path.rpartition("/")[2]
        named = (event for event in self._page.fns.values() if event.api_name == name)
        return None if path == _JOIN else next(named, None)


def _tells_of_click(event: Any, event_data: Any) -> bool:
    """True if `event_data` has the fields that the event is read by, a message's index included."""
    if not isinstance(event_data, dict):
        return False
    needed = [_EVENT_FIELDS[name] for _, name in event.targets if name in _EVENT_FIELDS]
    if not all(field in event_data for names in needed for field in names):
        return False
    index = event_data.get("index")
    numbers = index if isinstance(index, list) and index else [index]
    return not needed or all(type(number) is int for number in numbers)


def _problem(status: int, message: str) -> JSONResponse:
    return JSONResponse({"detail": message}, status)
