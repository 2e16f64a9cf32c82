"""Names of bases, and the cache that holds those made on this machine.

A base is `embedded`, `smollm2`, a folder, a GGUF file or a hub id.
"""

from __future__ import annotations

import os
from pathlib import Path

EMBEDDED = "embedded"
"""Name of the small base that ships with the kit, in `data/cria`."""

SMOLLM2 = "smollm2"
"""Name of the real LLaMA that `alpaca-rlhf base get smollm2` puts into the cache."""

GGUF_SUFFIX = ".gguf"


def cache_folder() -> Path:
    """The folder of this user's caches: `$XDG_CACHE_HOME/alpaca_rlhf`, or below `~/.cache`."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "alpaca_rlhf"


def cached_bases() -> Path:
    """The folder of the bases that were converted on this machine."""
    return cache_folder() / "bases"


def smollm2_folder() -> Path:
    """The checkpoint of `smollm2`; absent until `alpaca-rlhf base get smollm2` has made it."""
    return cached_bases() / SMOLLM2


def is_gguf(base: str) -> bool:
    """True if a base is named as a GGUF file, whether or not it exists."""
    return base.lower().endswith(GGUF_SUFFIX) and not Path(base).expanduser().is_dir()


def is_local(base: str) -> bool:
    """True if a base needs no network: it is embedded, cached, a GGUF file or a folder."""
    try:
        return base in (EMBEDDED, SMOLLM2) or is_gguf(base) or Path(base).expanduser().is_dir()
    except (OSError, RuntimeError):  # too long a name, or nobody's home: loading it says so
        return False


def offline() -> bool:
    """True if HF_HUB_OFFLINE forbids downloads, as the hub's own library reads it."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
