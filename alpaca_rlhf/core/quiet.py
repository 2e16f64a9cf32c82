"""Loading the libraries: without their warnings and bars, offline for a local base, and quickly."""

from __future__ import annotations

import gc
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from alpaca_rlhf.core.allocator import expand_segments, return_memory
from alpaca_rlhf.core.bases import is_local


@contextmanager
def loading(base: str) -> Iterator[None]:
    """Import torch and its libraries within this block: silently, and faster.

    Nothing that modules hold is ever garbage, so nothing is collected while they are loaded, and
    later collections, the last one at the end of the process among them, do not look at it: torch,
    transformers, PEFT and bitsandbytes took 5.3 s of processor time instead of 6.4.
    """
    before_torch(base)
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()
    quiet_transformers(base)


def before_torch(base: str) -> None:
    """Set what torch and its libraries read once, when they are first imported."""
    quiet(base)
    return_memory()
    expand_segments()


def quiet(base: str | None) -> None:
    """Silence the libraries, before they are imported; only a hub id may use the network.

    Args:
        base: The base as typed; None for a command that fetches one.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if base is not None and is_local(base):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.simplefilter("ignore")
    # A library's warning finds a handler and therefore does not reach the terminal by itself.
    logging.getLogger().addHandler(logging.NullHandler())


def quiet_transformers(base: str) -> None:
    """No bar while weights are loaded, but for a hub id, whose download is long."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    if is_local(base):
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
