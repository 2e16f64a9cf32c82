"""The tokenizer of an export: its chat template gives the token ids that training saw.

Text after a special token is where tokenizers differ. Some of LLaMA's put a blank before it, and
training did so after bos but not after the eos of an earlier reply. So the ways to write the same
thing are tried, and the first whose ids are those of training is taken.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import normalizers, pre_tokenizers
from transformers import AutoTokenizer

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.exporting.chat_template import jinja, messages
from alpaca_rlhf.exporting.probes import PROBES, SYSTEM, SYSTEM_PROBE
from alpaca_rlhf.models.base import Base
from alpaca_rlhf.models.batches import prompt_ids

_METASPACE = "▁"


@dataclass(frozen=True)
class Ids:
    """How the chat template's token ids compare with those of training."""

    lone: int
    """Prompts of a lone task."""
    lone_same: int
    """Those with the same ids."""
    conversations: int
    """Prompts with earlier turns."""
    conversations_same: int
    """Those with the same ids."""

    @property
    def good(self) -> bool:
        """Whether lone tasks all have the same ids."""
        return self.lone == self.lone_same

    @property
    def same(self) -> int:
        """Prompts with the same ids."""
        return self.lone_same + self.conversations_same


def exported_tokenizer(base: Base, template: str) -> Any:
    """A copy of the base's tokenizer with the chat template that fits the training best."""
    best: tuple[int, Any] | None = None
    for candidate in _candidates(base, template):
        found = compare(base, template, candidate)
        if best is None or found.same > best[0]:
            best = (found.same, candidate)
        if found.same == found.lone + found.conversations:
            break
    assert best is not None
    return best[1]


def compare(base: Base, template: str, tokenizer: Any) -> Ids:
    """Compare the ids of a tokenizer's chat template with those that training gave the probes."""
    counts = {True: [0, 0], False: [0, 0]}
    for number, row in enumerate(PROBES):
        said = messages(template, row)
        if number == SYSTEM_PROBE and template != "chat":
            task = row.instruction.removeprefix(f"{SYSTEM}\n\n")
            said = [
                {"role": "system", "content": SYSTEM},
                *messages(template, replace(row, instruction=task)),
            ]
        found = _ids(tokenizer, said)
        own = counts[bool(row.history)]
        own[0] += 1
        own[1] += found is not None and found == prompt_ids(base, template, row)
    return Ids(*counts[False], *counts[True])


def ids_of(tokenizer: Any, template: str, row: Instruction) -> tuple[int, ...]:
    """The ids of a prompt in a tokenizer's chat template."""
    found = _ids(tokenizer, messages(template, row))
    assert found is not None
    return found


def puts_bos(tokenizer: Any) -> bool:
    """Whether a conversation begins with bos, which llama.cpp and Ollama put there themselves."""
    ids = _ids(tokenizer, [{"role": "user", "content": "Hi"}])
    return ids is not None and ids[:1] == (tokenizer.bos_token_id,)


def save(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer so that it is read as it is, and not made anew by a class of its own."""
    tokenizer.save_pretrained(str(folder))
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("is_local", "local_files_only", "backend", "name_or_path", "legacy"):
        config.pop(key, None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["add_bos_token"] = puts_bos(tokenizer)  # Ollama and llama.cpp ask for it
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read(folder: Path) -> Any:
    """What anybody else reads there."""
    return AutoTokenizer.from_pretrained(str(folder))


def spare_pad(tokenizer: Any, stop_ids: frozenset[int], rows: int | None = None) -> int | None:
    """A token for padding that no text and no end of a text can be; None if there is none.

    Args:
        tokenizer: Of the export.
        stop_ids: What ends a completion.
        rows: Tokens that have an embedding; None where the embeddings may grow.
    """
    taken = {*stop_ids, tokenizer.bos_token_id, tokenizer.eos_token_id}
    own = tokenizer.pad_token_id
    if own is not None and own not in taken and (rows is None or own < rows):
        return int(own)
    special = {
        i: str(token)
        for i, token in tokenizer.added_tokens_decoder.items()
        if rows is None or i < rows
    }
    free = [
        i for i in sorted(special) if i not in taken and tokenizer.added_tokens_decoder[i].special
    ]
    for word in ("pad", "reserved"):
        for i in free:
            if word in special[i].lower():
                return int(i)
    unknown = tokenizer.unk_token_id
    return None if unknown is None or unknown in taken else int(unknown)


def _ids(tokenizer: Any, said: list[dict[str, Any]]) -> tuple[int, ...] | None:
    try:
        return tuple(
            tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=False)
        )
    except Exception:  # what a foreign template raises, e.g. at a role it does not know
        return None


def _candidates(base: Base, template: str) -> Iterator[Any]:
    own = _copy(base.tokenizer)
    if template == "chat":
        yield own
        return
    bos = own.bos_token is not None
    for tokenizer in (own, _blank_at_start_only(own)):
        for blank in (False, True):
            if tokenizer is not None:
                one = _copy(tokenizer)
                one.chat_template = jinja(template, bos=bos, blank=blank)
                yield one


def _copy(tokenizer: Any) -> Any:
    return copy.deepcopy(tokenizer)


def _blank_at_start_only(tokenizer: Any) -> Any | None:
    """The same tokenizer without a blank put before text after a special token, or None.

    That is LLaMA's `legacy=False`. Text alone is tokenised as before.
    """
    made = _copy(tokenizer)
    backend = made.backend_tokenizer
    state = json.loads(backend.to_str())
    normalizer, before = state["normalizer"], state["pre_tokenizer"]
    prepends = (
        before is None
        and normalizer is not None
        and [one["type"] for one in normalizer.get("normalizers", ())] == ["Prepend", "Replace"]
    )
    always = (before or {}).get("type") == "Metaspace" and before.get("prepend_scheme") == "always"
    if not prepends and not always:
        return None
    split = bool((before or {}).get("split", False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(_METASPACE, "first", split)
    if prepends:
        backend.normalizer = normalizers.Sequence([])
    return made
