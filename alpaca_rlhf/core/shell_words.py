"""Words of commands that messages suggest: they work as they are printed, whatever a path holds."""

from __future__ import annotations

import shlex


def quoted(value: object) -> str:
    """A path or another value as one word of a shell command."""
    return shlex.quote(str(value))
