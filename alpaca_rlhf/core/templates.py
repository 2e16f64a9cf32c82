"""The prompt template of a new run for which none is given."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

from alpaca_rlhf.core.bases import EMBEDDED, SMOLLM2, is_gguf, is_local, offline, smollm2_folder
from alpaca_rlhf.core.quiet import quiet

_JINJA, _CONFIG = "chat_template.jinja", "tokenizer_config.json"
_GGUF_KEY = "tokenizer.chat_template"


def default_template(base: str) -> Literal["alpaca", "chat"]:
    """The template of a base for which none is given: its own chat template, if it brings one."""
    return "chat" if has_chat_template(base) else "alpaca"


def has_chat_template(base: str) -> bool:
    """True if the tokenizer of a base brings a chat template.

    Looks at the tokenizer's files alone: of a folder, of a base in the user's cache, or of a hub id
    in the hub's cache; only what is not there is fetched. Of a GGUF file the header is read.
    """
    if base == EMBEDDED:
        return False
    if is_gguf(base):
        path = Path(base).expanduser()
        try:
            state = path.stat()
        except OSError:  # loading the base says what is wrong
            return False
        return _header_has_chat_template(path, state.st_size, state.st_mtime_ns)
    return any(_is_chat_template(file) for file in _tokenizer_files(base))


@lru_cache(maxsize=8)
def _header_has_chat_template(path: Path, size: int, modified_ns: int) -> bool:
    """True if the header of a GGUF file holds a chat template; its tensors stay on the disk.

    A vocabulary of 128,000 tokens takes seconds to pass over, so a file is read once a process;
    size and time tell a changed one.
    """
    from gguf import GGUFReader

    try:
        field = GGUFReader(path).get_field(_GGUF_KEY)
        return field is not None and bool(field.contents())
    except Exception:  # a cut or foreign file: loading the base says what is wrong
        return False


def _is_chat_template(file: Path) -> bool:
    if file.name == _JINJA:
        return True
    try:
        return bool(json.loads(file.read_text(encoding="utf-8"))["chat_template"])
    except (OSError, ValueError, KeyError, TypeError):  # loading the base says what is wrong
        return False


def _tokenizer_files(base: str) -> Iterator[Path]:
    """The files that may hold a chat template, those that are at hand first."""
    if is_local(base):
        folder = smollm2_folder() if base == SMOLLM2 else Path(base).expanduser()
        yield from (folder / name for name in (_JINJA, _CONFIG) if (folder / name).is_file())
        return
    # 1. The hub's cache. A tokenizer that was fetched whole is not asked for again.
    quiet(base)
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.utils.logging import set_verbosity_error

    set_verbosity_error()  # type: ignore[no-untyped-call]  # it tells of every retry
    cached = [_file(partial(try_to_load_from_cache, base, name)) for name in (_JINJA, _CONFIG)]
    yield from (file for file in cached if file is not None)
    # 2. The hub.
    if not offline():
        for name, file in zip((_JINJA, _CONFIG), cached, strict=True):
            fetched = _file(partial(hf_hub_download, base, name)) if file is None else None
            if fetched is not None:
                yield fetched


def _file(find: Callable[[], object]) -> Path | None:
    """A file of the hub; None where there is none, or it cannot be fetched."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        path = find()
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError):
        return None
    return Path(path) if isinstance(path, str) else None
