"""The page: a header and the tabs, each for those who may see it, which the server enforces."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr
from starlette.concurrency import run_in_threadpool

from alpaca_rlhf.app.language import label, words
from alpaca_rlhf.app.services import Services

AT_ONCE = 20
"""Calls of one event that run at once; the store's take milliseconds."""
MOST_WAITING = 2000
"""Calls that wait; more are told that the app is busy."""


@dataclass(frozen=True)
class Tab:
    """One tab."""

    key: str
    """Its name among the words of the shell."""
    fill: Callable[[Services], Any]
    """Builds what is in it, within `gr.Blocks`. Where it returns something callable, that is given
    the `gr.Tab`, to listen for its opening."""
    admin: bool = False
    """Whether only admins may see and use it."""


class House(gr.Blocks):
    """Gradio's `Blocks`, with a guard before every event, however it is called."""

    def __init__(self, services: Services, **given: Any) -> None:
        super().__init__(**given)
        self._services = services
        self._for_admins: set[int] = set()

    def for_admins(self, events: set[int]) -> None:
        """Let only admins use these events."""
        self._for_admins |= events

    async def process_api(
        self,
        block_fn: Any,
        inputs: list[Any],
        state: Any = None,
        request: gr.Request | list[gr.Request] | None = None,
        iterator: AsyncIterator[Any] | None = None,
        *args: Any,
        **given: Any,
    ) -> dict[str, Any]:
        """Run an event, after asking who calls it; raises `gr.Error` where they may not."""
        if iterator is None:  # what streams has been asked when it began
            event = block_fn if isinstance(block_fn, int) else block_fn._id
            asked = request if isinstance(request, list) else [request]
            for one in asked:
                await run_in_threadpool(self._check, event, one)
        return await super().process_api(block_fn, inputs, state, request, iterator, *args, **given)

    def _check(self, event: int, request: gr.Request | None) -> None:
        if request is None:
            raise gr.Error("nobody asks", print_exception=False)
        account = self._services.account(request)
        if event in self._for_admins and account.role != "admin":
            says = words("shell", self._services.language(request))
            raise gr.Error(says["ended.role"], print_exception=False)


def build(services: Services, tabs: Sequence[Tab], *, run: str) -> House:
    """Put the tabs into a page.

    Args:
        services: What every tab is given.
        tabs: In their order.
        run: What the header says of the run; may be empty.
    """
    house = House(services, title="alpaca-rlhf", analytics_enabled=False, fill_width=True)
    with house:
        header = gr.HTML(
            '<div class="alpaca-head"></div>', elem_id="alpaca-header", apply_default_css=False
        )
        hidden: list[gr.Tab] = []
        with gr.Tabs():
            for tab in tabs:
                before = set(house.fns)
                with gr.Tab(label("shell", tab.key), id=tab.key, visible=not tab.admin) as shown:
                    opened = tab.fill(services)
                if callable(opened) and not isinstance(opened, gr.blocks.Block):
                    opened(shown)
                if tab.admin:
                    hidden.append(shown)
                    house.for_admins(set(house.fns) - before)

        def greet(request: gr.Request) -> list[Any]:
            account, language = services.account(request), services.language(request)
            head = _header(
                account.id, account.name, run, language, local=not services.store.any_accounts()
            )
            return [head, *(gr.update(visible=account.role == "admin") for _ in hidden)]

        house.load(greet, None, [header, *hidden], api_visibility="private", show_progress="hidden")
    house.queue(default_concurrency_limit=AT_ONCE, max_size=MOST_WAITING, api_open=False)
    return house


def _header(account: int, name: str, run: str, language: str, *, local: bool) -> str:
    says = {key: escape(text) for key, text in words("shell", language).items()}
    out = (
        ""
        if local
        else (
            f'<span class="user">{escape(name)}</span><form method="post" action="/logout">'
            f"<button>{says['log_out']}</button></form>"
        )
    )
    return (
        f'<header class="alpaca-head" data-account="{account}">'
        f'<span class="product">alpaca-rlhf</span>'
        f'<span class="run">{escape(run) or says["no_run"]}</span>'
        f'<span class="right"><button type="button" class="alpaca-dark"'
        f' title="{says["dark"]}" aria-label="{says["dark"]}">◐</button>{out}</span>'
        f'<span id="alpaca-status" role="status"></span></header>'
    )
