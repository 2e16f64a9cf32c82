"""A tokenizer in llama.cpp's terms: SentencePiece's kind (`llama`) or byte-level BPE (`gpt2`).

llama.cpp has the pre-tokenizers of BPE in its code, each under a name. A vocabulary whose
pre-tokenizer has no name here is refused: its text would be cut into other tokens than in training.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from alpaca_rlhf.core.errors import UserError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Kinds of tokens (`gguf.TokenType`)."""

_NEVER = -1e6
"""Score of a token that no merge produces."""
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's vocabulary."""

    model: str
    """`llama` or `gpt2`."""
    pre: str
    """llama.cpp's name for the pre-tokenizer."""
    tokens: list[str]
    """Text of every token."""
    types: list[int]
    """Kind of every token."""
    scores: list[float] | None
    """Priority of every token as a merge, the highest first; of `llama` alone."""
    merges: list[str] | None
    """Merges in order; of `gpt2` alone."""
    space_prefix: bool
    """A blank is put before text."""


def vocabulary(tokenizer: Any, size: int, base: str) -> Vocabulary:
    """Read the vocabulary of a fast tokenizer.

    Args:
        tokenizer: The exported tokenizer.
        size: Rows of the embedding; missing tokens are filled up with unused ones, and added
            tokens beyond the last row are left out.
        base: Name of the base, for the message.

    Raises:
        UserError: The tokenizer is of neither kind.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model = state["model"]
    refusal = UserError(
        f"--base {base}: --to gguf does not know its kind of tokenizer; give --llama-cpp, the "
        "folder of llama.cpp, whose converter knows more"
    )
    if model["type"] != "BPE":
        raise refusal
    # 1. Every token with its kind; added tokens override the model's.
    tokens = [f"[PAD{index}]" for index in range(size)]
    types = [UNUSED] * size
    added = [entry for entry in state["added_tokens"] if entry["id"] < size]  # with an embedding
    ids = {**model["vocab"], **{entry["content"]: entry["id"] for entry in added}}
    for token, index in ids.items():
        if index >= size:
            raise refusal
        tokens[index] = token
        types[index] = BYTE if model["byte_fallback"] and _BYTE_TOKEN.fullmatch(token) else NORMAL
    for entry in added:
        types[entry["id"]] = CONTROL if entry["special"] else USER_DEFINED
    # 2. SentencePiece orders merges by score, byte-level BPE by their list.
    merges = [entry if isinstance(entry, str) else " ".join(entry) for entry in model["merges"]]
    if model["byte_fallback"]:
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id != tokenizer.pad_token_id:
            types[tokenizer.unk_token_id] = UNKNOWN
        scores = _scores(tokens, types, merges)
        return Vocabulary("llama", "default", tokens, types, scores, None, _blank(tokenizer))
    pre = _pre(state["pre_tokenizer"])
    if pre is None:
        raise refusal
    return Vocabulary("gpt2", pre, tokens, types, None, merges, False)


def _scores(tokens: list[str], types: list[int], merges: list[str]) -> list[float]:
    """Score tokens so that earlier merges are higher: SentencePiece merges the highest first."""
    rank: dict[str, int] = {}
    for number, merge in enumerate(merges):
        # A token that several merges produce has the rank of the first.
        rank.setdefault(merge.replace(" ", "", 1), number)
    plain = (NORMAL, USER_DEFINED)
    return [
        float(-rank[token]) if token in rank else _NEVER if kind in plain else 0.0
        for token, kind in zip(tokens, types, strict=True)
    ]


def _blank(tokenizer: Any) -> bool:
    """True if text after a special token gets a blank before it."""
    special = tokenizer.bos_token or tokenizer.eos_token
    ids = tokenizer(f"{special}x", add_special_tokens=False)["input_ids"]
    # Index 0 is the special token.
    return str(tokenizer.convert_ids_to_tokens(ids)[1]).startswith("▁")


def _pre(state: Any) -> str | None:
    """llama.cpp's name for a pre-tokenizer; None if it has none."""
    if state is None:
        return None
    steps = state["pretokenizers"] if state["type"] == "Sequence" else [state]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"] and steps[0]["use_regex"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"]:
        return "smollm" if steps[1]["use_regex"] else None
    if kinds == ["Split", "ByteLevel"]:
        # Only the very pattern that llama.cpp has in its code under that name will do.
        pattern = steps[0]["pattern"].get("Regex")
        return {_LLAMA3: "llama-bpe", _QWEN2: "qwen2"}.get(pattern)
    return None
