"""Which tabs the app has. This is the one place where they are listed."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from alpaca_rlhf.ui.app.build import Tab
from alpaca_rlhf.ui.app.data import Exports, data_tab

_HOME = "alpaca_rlhf.ui.app."


def tabs(run: Path | None, exports: Exports) -> tuple[Any, list[Tab]]:
    """The worker that owns the model, or None without a run; and the tabs in their order."""
    worker = _part("worker", "Worker")(run) if run is not None and _there("worker") else None
    found = [Tab("rank", _part("rank", "rank_tab"))] if _there("rank") else []
    for key in ("chat", "compare"):
        if worker is not None and _there(key):
            found.append(Tab(key, partial(_part(key, f"{key}_tab"), worker=worker)))
    return worker, [*found, Tab("data", partial(data_tab, exports=exports), admin=True)]


def _there(module: str) -> bool:
    return find_spec(_HOME + module) is not None


def _part(module: str, name: str) -> Any:
    return getattr(import_module(_HOME + module), name)
