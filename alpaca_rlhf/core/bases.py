"""Names of bases: the embedded one, a folder, or a hub id."""

from __future__ import annotations

from pathlib import Path

EMBEDDED = "embedded"
"""Name of the small base that ships with the kit, in `data/cria`."""


def is_local(base: str) -> bool:
    """True if a base lies on this disk: it is the embedded one, or a folder."""
    try:
        return base == EMBEDDED or Path(base).expanduser().is_dir()
    except (OSError, RuntimeError):  # too long a name, or nobody's home: loading it says so
        return False
