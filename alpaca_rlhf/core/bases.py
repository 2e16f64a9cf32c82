"""Names of bases, and the cache that holds those made on this machine.

A base is `embedded`, `smollm2`, a folder, a GGUF file or a hub id.
"""

from __future__ import annotations

import json
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


def has_chat_template(base: str) -> bool:
    """True if the tokenizer of a base brings a chat template.

    Looks at the tokenizer's files alone: of a folder, of a base in the user's cache, or of a hub id
    as far as they are in the hub's cache or can be fetched. GGUF files are not looked into.
    """
    config = _tokenizer_file(base, "tokenizer_config.json")
    if _tokenizer_file(base, "chat_template.jinja") is not None:
        return True
    try:
        return config is not None and bool(json.loads(config.read_text())["chat_template"])
    except (OSError, ValueError, KeyError, TypeError):  # loading the base says what is wrong
        return False


def _tokenizer_file(base: str, name: str) -> Path | None:
    """A file of a base's tokenizer; None if there is none, or it cannot be had."""
    if base == EMBEDDED or is_gguf(base):
        return None
    if is_local(base):
        folder = smollm2_folder() if base == SMOLLM2 else Path(base).expanduser()
        return folder / name if (folder / name).is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(base, name, local_files_only=offline()))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError):
        return None


def offline() -> bool:
    """True if HF_HUB_OFFLINE forbids downloads, as the hub's own library reads it."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
