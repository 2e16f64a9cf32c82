"""The tokenizer of an export, with a chat template that gives the token ids of training.

Tokenizers differ in text after a special token. Some of LLaMA's put a blank before it, and training
did so after bos but not after the eos of an earlier reply. Several ways to write the same template
are therefore tried, and the first whose ids are those of training is used.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import normalizers, pre_tokenizers
from transformers import AutoTokenizer

from alpaca_rlhf.core.prompts import system_folded
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.exporting.chat_template import Messages, jinja, messages
from alpaca_rlhf.exporting.probes import PROBES
from alpaca_rlhf.models.base import Base
from alpaca_rlhf.models.batches import prompt_ids
from alpaca_rlhf.models.template_traits import template_traits

_METASPACE = "▁"


@dataclass(frozen=True)
class Ids:
    """Agreement of the chat template's token ids with those of training."""

    lone: int
    """Prompts of a single turn."""
    lone_same: int
    """Single-turn prompts with the same ids."""
    conversations: int
    """Prompts with earlier turns."""
    conversations_same: int
    """Multi-turn prompts with the same ids."""

    @property
    def good(self) -> bool:
        """True if all single-turn prompts have the same ids."""
        return self.lone == self.lone_same

    @property
    def same(self) -> int:
        """All prompts with the same ids."""
        return self.lone_same + self.conversations_same


def exported_tokenizer(base: Base, template: str) -> Any:
    """Copy the base's tokenizer, with the chat template whose ids agree best with training."""
    best: tuple[int, Any] | None = None
    for candidate in _candidates(base, template):
        ids = compare(base, template, candidate)
        if best is None or ids.same > best[0]:
            best = (ids.same, candidate)
        if ids.same == ids.lone + ids.conversations:
            break
    assert best is not None
    return best[1]


def compare(base: Base, template: str, tokenizer: Any) -> Ids:
    """Compare the ids of a tokenizer's chat template with those of training, on the probes."""
    counts = {True: [0, 0], False: [0, 0]}
    for row in PROBES:
        ids = _ids(tokenizer, conversation(tokenizer, template, row))
        count = counts[bool(row.history)]
        count[0] += 1
        count[1] += ids is not None and ids == prompt_ids(base, template, row)
    return Ids(*counts[False], *counts[True])


def ids_of(tokenizer: Any, template: str, row: Instruction) -> tuple[int, ...]:
    """Render a prompt by a tokenizer's chat template, as token ids."""
    ids = _ids(tokenizer, conversation(tokenizer, template, row))
    assert ids is not None
    return ids


def conversation(tokenizer: Any, template: str, row: Instruction) -> Messages:
    """Messages of a prompt; its system text is folded where the tokenizer's own has no place."""
    chat = template_traits(tokenizer) if template == "chat" else None
    folds = chat is not None and not chat.takes_system
    return messages(template, system_folded(row) if folds else row)


def puts_bos(tokenizer: Any) -> bool:
    """True if a conversation begins with bos, which llama.cpp and Ollama add themselves."""
    ids = _ids(tokenizer, [{"role": "user", "content": "Hi"}])
    return ids is not None and ids[:1] == (tokenizer.bos_token_id,)


def save(tokenizer: Any, folder: Path) -> None:
    """Save a tokenizer so that it is loaded as it is, not rebuilt by a model's own class."""
    tokenizer.save_pretrained(str(folder))
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("is_local", "local_files_only", "backend", "name_or_path", "legacy"):
        config.pop(key, None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["add_bos_token"] = puts_bos(tokenizer)  # Ollama and llama.cpp read it
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read(folder: Path) -> Any:
    """Load a tokenizer as anybody else would."""
    return AutoTokenizer.from_pretrained(str(folder))


def spare_pad(tokenizer: Any, stop_ids: frozenset[int], rows: int | None = None) -> int | None:
    """Find a padding token that neither occurs in text nor ends one; None if there is none.

    Args:
        tokenizer: The exported tokenizer.
        stop_ids: Ids that end a completion.
        rows: Number of embeddings; None where they may grow.
    """
    # 1. The tokenizer's own.
    excluded = {*stop_ids, tokenizer.bos_token_id, tokenizer.eos_token_id}
    pad = tokenizer.pad_token_id
    if pad is not None and pad not in excluded and (rows is None or pad < rows):
        return int(pad)
    # 2. A special token named for it, or reserved.
    special = {
        token_id: str(token)
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if rows is None or token_id < rows
    }
    free = [
        token_id
        for token_id in sorted(special)
        if token_id not in excluded and tokenizer.added_tokens_decoder[token_id].special
    ]
    for word in ("pad", "reserved"):
        for token_id in free:
            if word in special[token_id].lower():
                return int(token_id)
    # 3. The unknown token.
    unknown = tokenizer.unk_token_id
    return None if unknown is None or unknown in excluded else int(unknown)


def _ids(tokenizer: Any, turns: list[dict[str, Any]]) -> tuple[int, ...] | None:
    try:
        return tuple(
            tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        )
    except Exception:  # a foreign template may raise anything, e.g. at an unknown role
        return None


def _candidates(base: Base, template: str) -> Iterator[Any]:
    """Yield tokenizers with equivalent ways to write the template."""
    copied = _copy(base.tokenizer)
    if template == "chat":
        yield copied
        return
    bos = copied.bos_token is not None
    for tokenizer in (copied, _blank_at_start_only(copied)):
        for blank in (False, True):
            if tokenizer is not None:
                candidate = _copy(tokenizer)
                candidate.chat_template = jinja(template, bos=bos, blank=blank)
                yield candidate


def _copy(tokenizer: Any) -> Any:
    return copy.deepcopy(tokenizer)


def _blank_at_start_only(tokenizer: Any) -> Any | None:
    """Copy a tokenizer so that no blank is put before text after a special token.

    This is LLaMA's `legacy=False`; text by itself is tokenised as before. None if the tokenizer
    puts no blank there.
    """
    copied = _copy(tokenizer)
    backend = copied.backend_tokenizer
    state = json.loads(backend.to_str())
    normalizer, pre_tokenizer = state["normalizer"], state["pre_tokenizer"]
    prepends = (
        pre_tokenizer is None
        and normalizer is not None
        and [step["type"] for step in normalizer.get("normalizers", ())] == ["Prepend", "Replace"]
    )
    always = (pre_tokenizer or {}).get("type") == "Metaspace" and pre_tokenizer.get(
        "prepend_scheme"
    ) == "always"
    if not prepends and not always:
        return None
    split = bool((pre_tokenizer or {}).get("split", False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(_METASPACE, "first", split)
    if prepends:
        backend.normalizer = normalizers.Sequence([])
    return copied
