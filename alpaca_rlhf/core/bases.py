"""Names of bases, and the cache that holds those made on this machine.

A base is `embedded`, `smollm2`, a folder, a GGUF file or a hub id.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.shell_words import quoted

EMBEDDED = "embedded"
"""Name of the small base that ships with the kit, in `data/cria`."""

SMOLLM2 = "smollm2"
"""Name of the real LLaMA that `alpaca-rlhf base get smollm2` puts into the cache."""

GGUF_SUFFIX = ".gguf"

_EXPECTED = "give `embedded`, `smollm2`, a folder, a GGUF file or a hub id such as org/model"


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


def refuse_no_folder(base: str) -> None:
    """Refuse a name that is neither a folder nor a hub id, with what it seems to be.

    Args:
        base: The base as typed; no folder of this name exists.

    Raises:
        UserError: It is a file, an address, a name of Ollama's, a path, or `smollm2` in capitals.
    """
    path = Path(base).expanduser()
    if not base.strip():
        raise UserError(f"--base is empty; {_EXPECTED}")
    if base.lower() in (EMBEDDED, SMOLLM2) and not path.exists():
        raise UserError(f"--base {base}: no such base; did you mean --base {base.lower()}?")
    if path.is_file():
        beside = (path.parent / "config.json").is_file()
        folder = f"give its folder, --base {quoted(path.parent)}" if beside else _EXPECTED
        raise UserError(f"--base {base}: is a file, and a base is a folder; {folder}")
    address = re.match(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)", base)
    if address is not None:
        raise UserError(f"--base {base}: is an address; give the hub id, --base {address[1]}")
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?:[\w.-]+", base):
        raise UserError(
            f"--base {base}: is a name as Ollama writes it, and its files are not read from there; "
            f"{_EXPECTED}"
        )
    if base.startswith((".", "/", "~")) or "\\" in base or ":" in base or base.count("/") > 1:
        raise UserError(f"--base {base}: no such folder; {_EXPECTED}")


def refuse_no_checkpoint(base: str, folder: Path) -> None:
    """Refuse a folder without a config.json, with what it seems to be.

    Args:
        base: The base as typed.
        folder: The folder that it stands for.

    Raises:
        UserError: The folder has no config.json.
    """
    if (folder / "config.json").is_file():
        return
    remedy = "give a folder with a Hugging Face checkpoint"
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        trained_on = _base_of_adapter(adapter)
        remedy = (
            "it holds an adapter, which is no base; give the base that it was trained on"
            f"{f', {trained_on},' if trained_on else ''} and --inputs.sft-adapter {quoted(folder)}"
        )
    elif (folder / "config.yaml").is_file() and (folder / "provenance.json").is_file():
        remedy = (
            f"it holds a run; go on with it by --out {quoted(folder)}, or make a base of one of "
            f"its policies: alpaca-rlhf export {quoted(folder)} --to merged"
        )
    elif any(folder.glob("*.pth")):
        remedy = (
            "it holds LLaMA's original weights (.pth); give the same model in Hugging Face's "
            "form, which the hub has, too"
        )
    else:
        inside = sorted(path.parent for path in folder.glob("snapshots/*/config.json"))
        inside = inside or sorted(path.parent for path in folder.glob("*/config.json"))
        files = sorted(folder.glob("*.gguf"))
        if inside or files:
            remedy = f"did you mean --base {quoted((inside or files)[0])}?"
    raise UserError(f"--base {base}: the folder has no config.json; {remedy}")


def _base_of_adapter(path: Path) -> str:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return str(config.get("base_model_name_or_path") or "")
    except (OSError, ValueError, AttributeError):  # damaged: its base stays unnamed
        return ""


def offline() -> bool:
    """True if HF_HUB_OFFLINE forbids downloads, as the hub's own library reads it."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
