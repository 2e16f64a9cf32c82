"""What every tab of the app is given."""

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
    """Prompts, candidates, rankings and people."""
    account: Callable[[gr.Request], Account]
    """Who sends a request; `gr.Error` where nobody is signed in any more."""
    language: Callable[[gr.Request], str]
    """The language to answer a request in, `en` or `zh-CN`."""
