"""A tokenizer as llama.cpp knows it: SentencePiece's kind (`llama`) or byte-level BPE (`gpt2`).

llama.cpp has the splitting of text before BPE in its code, under a name; a vocabulary whose
splitting has none here is refused, because it would be tokenised otherwise than in training.
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
"""Score of what no merge makes."""
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
    """How text is split before it is merged, by llama.cpp's name."""
    tokens: list[str]
    """Text of every token."""
    types: list[int]
    """Kind of every token."""
    scores: list[float] | None
    """Which merge comes first, the highest: of `llama`."""
    merges: list[str] | None
    """Merges in their order: of `gpt2`."""
    space_prefix: bool
    """Whether a blank is put before text."""


def vocabulary(tokenizer: Any, size: int, base: str) -> Vocabulary:
    """The vocabulary of a fast tokenizer.

    Args:
        tokenizer: With the chat template of the export.
        size: Rows of the embedding; what the tokenizer lacks is filled up with unused tokens, and
            added tokens beyond them are left out.
        base: The base's name, for the message.

    Raises:
        UserError: It is neither of the two kinds.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model = state["model"]
    refused = UserError(
        f"--base {base}: its tokenizer is none that --to gguf knows; give --llama-cpp, the folder "
        "of llama.cpp, whose converter knows more"
    )
    if model["type"] != "BPE":
        raise refused
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [UNUSED] * size
    added = [one for one in state["added_tokens"] if one["id"] < size]  # the rest has no row
    known = {**model["vocab"], **{one["content"]: one["id"] for one in added}}
    for token, i in known.items():
        if i >= size:
            raise refused
        tokens[i] = token
        types[i] = BYTE if model["byte_fallback"] and _BYTE_TOKEN.fullmatch(token) else NORMAL
    for one in added:
        types[one["id"]] = CONTROL if one["special"] else USER_DEFINED
    merges = [one if isinstance(one, str) else " ".join(one) for one in model["merges"]]
    if model["byte_fallback"]:
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id != tokenizer.pad_token_id:
            types[tokenizer.unk_token_id] = UNKNOWN
        scores = _scores(tokens, types, merges)
        return Vocabulary("llama", "default", tokens, types, scores, None, _blank(tokenizer))
    pre = _pre(state["pre_tokenizer"])
    if pre is None:
        raise refused
    return Vocabulary("gpt2", pre, tokens, types, None, merges, False)


def _scores(tokens: list[str], types: list[int], merges: list[str]) -> list[float]:
    """Earlier merges score higher; SentencePiece merges the pair whose token scores highest."""
    rank: dict[str, int] = {}
    for number, merge in enumerate(merges):
        rank.setdefault(merge.replace(" ", "", 1), number)
    plain = (NORMAL, USER_DEFINED)
    return [
        float(-rank[token]) if token in rank else _NEVER if kind in plain else 0.0
        for token, kind in zip(tokens, types, strict=True)
    ]


def _blank(tokenizer: Any) -> bool:
    """Whether text after a special token gets a blank before it."""
    special = tokenizer.bos_token or tokenizer.eos_token
    ids = tokenizer(f"{special}x", add_special_tokens=False)["input_ids"]
    return str(tokenizer.convert_ids_to_tokens(ids)[1]).startswith("▁")


def _pre(state: Any) -> str | None:
    """llama.cpp's name of a pre-tokenizer."""
    if state is None:
        return None
    parts = state["pretokenizers"] if state["type"] == "Sequence" else [state]
    kinds = [one["type"] for one in parts]
    if kinds == ["ByteLevel"] and parts[0]["use_regex"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0]["individual_digits"]:
        return "smollm" if parts[1]["use_regex"] else None
    if kinds == ["Split", "ByteLevel"]:
        pattern = parts[0]["pattern"].get("Regex")
        return {_LLAMA3: "llama-bpe", _QWEN2: "qwen2"}.get(pattern)
    return None
