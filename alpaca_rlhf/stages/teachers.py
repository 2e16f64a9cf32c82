"""The teacher of a run: an endpoint, an adapter on the base, or the bare base."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alpaca_rlhf.data import Teacher
from alpaca_rlhf.data.generation.endpoint import EndpointTeacher
from alpaca_rlhf.models.teacher import LocalTeacher
from alpaca_rlhf.stages.context import Context

ROLE = "teacher"
"""Name of the teacher's adapter."""


@contextmanager
def teacher_of(ctx: Context, facts: dict[str, Any]) -> Iterator[Teacher]:
    """The teacher that the settings name; the base is loaded only if it is the base.

    Args:
        ctx: The run.
        facts: Receives the account of an endpoint when the block ends.

    Raises:
        UserError: The endpoint cannot be used, or the adapter does not fit.
    """
    settings = ctx.settings.generate
    if settings.endpoint.url is not None:
        with EndpointTeacher(settings, ctx.run.folder("generate")) as teacher:
            ctx.reporter.say(f"  {teacher.probe().line(teacher.name)}")
            try:
                yield teacher
            finally:
                ctx.reporter.say(f"  {teacher.account.line()}")
                facts["endpoint"] = teacher.account.facts()
        return
    if settings.adapter is not None:
        ctx.adapters.load(ROLE, Path(settings.adapter))
    yield LocalTeacher(ctx.adapters, settings, None if settings.adapter is None else ROLE)
