"""The services that every tab of the app uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import gradio as gr

from alpaca_rlhf.preferences.people import Account
from alpaca_rlhf.preferences.store import Store


@dataclass(frozen=True)
class Services:
    """A tab is a function of this, called within `gr.Blocks`."""

    store: Store
    """Prompts, candidate sets, rankings and people."""
    account: Callable[[gr.Request], Account]
    """The account that sends a request; raises `gr.Error` once nobody is signed in."""
    language: Callable[[gr.Request], str]
    """The language to answer a request in, `en` or `zh-CN`."""
    prefix: str = ""
    """The path before the app's own paths, such as `/rank`; empty at the root of a host."""
