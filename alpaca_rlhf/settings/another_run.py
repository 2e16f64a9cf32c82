"""The command that begins another run with the settings of one."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from alpaca_rlhf.settings.loop import Loop


def command_of_another(
    settings: Loop, flags: Sequence[str], *, suffix: str, command: str = "loop"
) -> str:
    """A command that works as it is printed: settings of a run, other flags, and a new folder.

    Args:
        settings: The settings of the run, whose `out` is its folder.
        flags: Words that stand above the settings.
        suffix: End of the new folder's name.
        command: The command: `loop`, `quickstart`, or that of a stage.
    """
    words = ["alpaca-rlhf", command, "--config", str(settings.out / "config.yaml"), *flags]
    if settings.more_rounds:  # a new run deals prompts to all of its rounds when it begins
        words += ["--rounds", str(settings.all_rounds), "--more-rounds", "0"]
    return shlex.join([*words, "--out", f"{settings.out}-{suffix}"])
