"""The SentencePiece model of a LLaMA-2-like base, which goes beside its tokenizer.json.

Ollama and llama.cpp's converter take the scores of tokens from `tokenizer.model`. Where it is not
there, the one takes the vocabulary for byte-level BPE, the other gives all tokens the same score
(ollama convert/tokenizer.go, gguf 0.19 vocab.py `LlamaHfVocab.get_token_score`); either way text is
cut into other tokens than in training, without a word.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from alpaca_rlhf.models.base import base_source

MODEL, ADDED = "tokenizer.model", "added_tokens.json"


def needed(tokenizer: Any) -> bool:
    """Whether others need it to read this tokenizer."""
    return bool(_state(tokenizer)["model"].get("byte_fallback"))


def copy_model(base: str, tokenizer: Any, folder: Path) -> bool:
    """Copy it into the folder of an export; False where it is needed and the base has none."""
    if not needed(tokenizer):
        return True
    found = cached_file(
        base_source(base),
        MODEL,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if found is None:
        return False
    shutil.copyfile(found, folder / MODEL)
    state = _state(tokenizer)
    own = len(state["model"]["vocab"])
    added = {one["content"]: one["id"] for one in state["added_tokens"] if one["id"] >= own}
    if added:
        (folder / ADDED).write_text(json.dumps(added, ensure_ascii=False), encoding="utf-8")
    return True


def _state(tokenizer: Any) -> Any:
    return json.loads(tokenizer.backend_tokenizer.to_str())
