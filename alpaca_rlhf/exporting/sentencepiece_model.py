"""The SentencePiece model of a LLaMA-2-like base, stored beside its tokenizer.json.

Ollama and llama.cpp's converter read token scores from `tokenizer.model`. Without it, Ollama treats
the vocabulary as byte-level BPE, and the converter gives all tokens the same score (ollama
convert/tokenizer.go, gguf 0.19 vocab.py `LlamaHfVocab.get_token_score`). Both then silently cut
text into other tokens than in training.
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
    """True if other programs need the file to read this tokenizer correctly."""
    return bool(_state(tokenizer)["model"].get("byte_fallback"))


def copy_model(base: str, tokenizer: Any, folder: Path) -> bool:
    """Copy the file into an export's folder; False if it is needed and the base has none."""
    if not needed(tokenizer):
        return True
    source = cached_file(
        base_source(base),
        MODEL,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if source is None:
        return False
    shutil.copyfile(source, folder / MODEL)
    # tokens added after training are not in the file: they are listed beside it
    state = _state(tokenizer)
    size = len(state["model"]["vocab"])
    added = {
        token["content"]: token["id"] for token in state["added_tokens"] if token["id"] >= size
    }
    if added:
        (folder / ADDED).write_text(json.dumps(added, ensure_ascii=False), encoding="utf-8")
    return True


def _state(tokenizer: Any) -> Any:
    return json.loads(tokenizer.backend_tokenizer.to_str())
