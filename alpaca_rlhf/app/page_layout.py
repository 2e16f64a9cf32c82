"""The page: a header and the tabs, with a guard that keeps admin tabs to admins."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.concurrency import run_in_threadpool

from alpaca_rlhf.app.language import label, translations
from alpaca_rlhf.app.rendering import render
from alpaca_rlhf.app.services import Services
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import is_full
from alpaca_rlhf.preferences.database import DiskFull

logger = logging.getLogger(__name__)

MAX_CONCURRENT_CALLS = 20
"""Calls of one event that run at once; the store's take milliseconds."""
MAX_QUEUED_CALLS = 2000
"""Calls that wait; further ones are told that the app is busy."""


@dataclass(frozen=True)
class Tab:
    """One tab."""

    key: str
    """Key of its title in the shell's translations."""
    build: Callable[[Services], Any]
    """Builds its contents within `gr.Blocks`. If it returns a function, that is called with the
    `gr.Tab`, to listen for its opening."""
    admin: bool = False
    """True if only admins may see and use it."""


class GuardedBlocks(gr.Blocks):
    """Gradio's `Blocks` with a guard before every event, whichever way it is called."""

    def __init__(self, services: Services, **options: Any) -> None:
        super().__init__(**options)
        self._services = services
        self._admin_events: set[int] = set()

    def restrict_to_admins(self, events: set[int]) -> None:
        """Let only admins use these events."""
        self._admin_events |= events

    async def process_api(
        self,
        block_fn: Any,
        inputs: list[Any],
        state: Any = None,
        request: gr.Request | list[gr.Request] | None = None,
        iterator: AsyncIterator[Any] | None = None,
        *args: Any,
        **options: Any,
    ) -> dict[str, Any]:
        """Run an event after checking who calls it.

        Raises:
            gr.Error: They may not, or the disk is full: both are told in their language.
        """
        callers = request if isinstance(request, list) else [request]
        if iterator is None:  # a stream was checked when it began
            event = block_fn if isinstance(block_fn, int) else block_fn._id
            for caller in callers:
                await run_in_threadpool(self._check, event, caller)
        try:
            return await super().process_api(
                block_fn, inputs, state, request, iterator, *args, **options
            )
        except Exception as error:
            is_disk_full = isinstance(error, DiskFull) or is_full(error)
            if callers[0] is None or not (is_disk_full or isinstance(error, UserError)):
                raise
            logger.warning("a change was not saved: %s", error)
            text = translations("shell", self._services.language(callers[0]))
            # What a person may be told of a file is that; its place is in the log.
            message = text["full" if is_disk_full else "unreadable"]
            raise gr.Error(message, print_exception=False) from None

    async def preprocess_data(self, *args: Any, **options: Any) -> list[Any]:
        """Read the values of an event's fields.

        Raises:
            gr.Error: A field cannot have its value, which no page sends.
        """
        try:
            values: list[Any] = await super().preprocess_data(*args, **options)
            return values
        except Exception as error:
            if is_full(error):
                raise
            message = error.message if isinstance(error, gr.Error) else "no field has such a value"
            raise gr.Error(message, print_exception=False) from None

    def _check(self, event: int, request: gr.Request | None) -> None:
        if request is None:
            raise gr.Error("the request is missing", print_exception=False)
        account = self._services.account(request)
        if event in self._admin_events and account.role != "admin":
            text = translations("shell", self._services.language(request))
            raise gr.Error(text["ended.role"], print_exception=False)


def build_page(services: Services, tabs: Sequence[Tab], *, run: str) -> GuardedBlocks:
    """Put the tabs into a page.

    Args:
        services: Store, accounts and language.
        tabs: The tabs in their order.
        run: Name of the run for the header; may be empty.
    """
    page = GuardedBlocks(services, title="alpaca-rlhf", analytics_enabled=False, fill_width=True)
    with page:
        header = gr.HTML(
            '<div class="alpaca-head"></div>', elem_id="alpaca-header", apply_default_css=False
        )
        admin_tabs: list[gr.Tab] = []
        with gr.Tabs():
            for tab in tabs:
                events_before = set(page.fns)
                with gr.Tab(
                    label("shell", tab.key),
                    id=tab.key,
                    elem_id=f"tab-{tab.key}",  # by which the page's script knows the open one
                    visible=not tab.admin,
                ) as gr_tab:
                    on_open = tab.build(services)
                if callable(on_open) and not isinstance(on_open, gr.blocks.Block):
                    on_open(gr_tab)
                # The events that an admin tab has registered are closed to everybody else, since
                # hiding a tab does not keep a browser from calling them.
                if tab.admin:
                    admin_tabs.append(gr_tab)
                    page.restrict_to_admins(set(page.fns) - events_before)

        def show_header(request: gr.Request) -> list[Any]:
            account = services.account(request)
            head = render(
                "header",
                account=account,
                prefix=services.prefix,
                run=run if account.role == "admin" else Path(run).name,
                local=not services.store.any_accounts(),
                text=translations("shell", services.language(request)),
            )
            return [head, *(gr.update(visible=account.role == "admin") for _ in admin_tabs)]

        page.load(
            show_header,
            None,
            [header, *admin_tabs],
            api_visibility="private",
            show_progress="hidden",
        )
    page.queue(
        default_concurrency_limit=MAX_CONCURRENT_CALLS, max_size=MAX_QUEUED_CALLS, api_open=False
    )
    return page
