"""Responses of routes to those who may not use them."""

from __future__ import annotations

from starlette.responses import JSONResponse, Response


def for_admins_only() -> Response:
    """The refusal of a route that serves admins alone."""
    return JSONResponse({"detail": "for admins only"}, 403)
