"""Gradio's environment variables: none of them may open a door."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Mapping

from alpaca_rlhf.core.errors import UserError


def check_environment(environment: Mapping[str, str]) -> None:
    """Refuse a switch that would let a browser change the code that runs here.

    Raises:
        UserError: `GRADIO_VIBE_MODE` is set.
    """
    if environment.get("GRADIO_VIBE_MODE"):
        raise UserError("GRADIO_VIBE_MODE lets a browser change this program; unset it")


def isolate_environment() -> None:
    """Remove every switch of Gradio's; call this before Gradio is imported."""
    check_environment(os.environ)
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # Uploaded files go to a folder that ends with the process.
    folder = tempfile.mkdtemp(prefix="alpaca-rlhf-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = folder
