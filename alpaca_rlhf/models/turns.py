"""Token ids of the turns of a prompt, and where its earlier replies lie.

A reply's tokens are the same wherever it stands: as the last completion, or as an earlier reply of
a conversation. In the plain templates they are put together here, block by block, each reply closed
by eos. A chat template is the tokenizer's own, so there the replies are looked for in what it
rendered, and what cannot be proven is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.prompts import blocks, chat_messages, lead
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.models.base import Base

Spans = tuple[tuple[int, int], ...]
"""(start, end) positions in a prompt, one for each earlier reply, its eos included."""

_ANCHOR = "."
"""Stands before a text, where LLaMA-2's tokenizers would add a blank, or drop one."""
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def text_ids(base: Base, text: str) -> tuple[int, ...]:
    """Token ids of plain text after bos. Text never becomes a special token, whatever it says."""
    ids = _encode(base, text)
    bos = base.tokenizer.bos_token_id
    return (bos, *ids) if bos is not None else tuple(ids)


def decode(base: Base, ids: Sequence[int]) -> str:
    """The text of ids as they go on after other text, special tokens left out."""
    anchor = _encode(base, _ANCHOR)
    before, whole = (
        str(base.tokenizer.decode(one, skip_special_tokens=True))
        for one in (anchor, [*anchor, *ids])
    )
    return whole[len(before) :]


def prompt_turns(base: Base, template: str, row: Instruction) -> tuple[tuple[int, ...], Spans]:
    """A prompt from bos to where the completion starts, and where its earlier replies lie.

    Raises:
        UserError: The template is `chat`, and the tokenizer has none, or one in which an earlier
            reply cannot be told from what is around it.
    """
    if template == "chat":
        ids = chat_ids(base, row)
        return ids, _chat_spans(base, row, ids)
    texts = blocks(template, row)
    made: list[int] = []
    spans: list[tuple[int, int]] = []
    for number, (_, reply) in enumerate(row.history):
        made += _block(base, texts[number], first=not number)
        start = len(made)
        made += reply_ids(base, texts[number], lead(template) + reply, first=not number)
        made.append(base.eos_id)
        spans.append((start, len(made)))
    made += _block(base, texts[-1], first=not row.history)
    return tuple(made), tuple(spans)


def chat_ids(base: Base, row: Instruction, system: str = "") -> tuple[int, ...]:
    """A prompt in the tokenizer's own chat template, from its bos to where the completion starts.

    With a system prompt, if one is given: `takes_system` knows whether the template shows it.

    Raises:
        UserError: The tokenizer has no chat template.
    """
    if base.tokenizer.chat_template is None:
        raise UserError(
            f"--template chat: the tokenizer of {base.name} has no chat template; "
            "use --template alpaca or --template brief"
        )
    ids = base.tokenizer.apply_chat_template(
        chat_messages(row, system),
        add_generation_prompt=True,
        return_dict=False,
        sanitize_control_tokens=True,
    )
    return tuple(ids)


def takes_system(base: Base, template: str) -> bool:
    """Whether a prompt of this template has a place for a system prompt."""
    if template != "chat" or base.tokenizer.chat_template is None:
        return False
    marker = "a rule to follow"
    try:
        return marker in decode(base, chat_ids(base, Instruction("Hi."), marker))
    except Exception:  # some templates refuse the role by raising an error of their own
        return False


def last_reply_ids(base: Base, template: str, row: Instruction, completion: str) -> list[int]:
    """Token ids of the completion of a prompt, without eos."""
    said = lead(template) + completion
    if template == "chat":
        return _following(base, said)
    return reply_ids(base, blocks(template, row)[-1], said, first=not row.history)


def reply_ids(base: Base, block: str, said: str, *, first: bool) -> list[int]:
    """Token ids of what is said after a block.

    They are those of the rendered whole wherever the block's own tokens are a prefix of the
    whole's, as they are when the policy generates.
    """
    before, whole = (_block(base, text, first=first) for text in (block, block + said))
    if whole[: len(before)] == before:
        return whole[len(before) :]
    return _following(base, said)


def _block(base: Base, text: str, *, first: bool) -> list[int]:
    return list(text_ids(base, text)) if first else _following(base, text)


def _following(base: Base, text: str) -> list[int]:
    """Token ids of text as they go on after other text."""
    anchor, whole = _encode(base, _ANCHOR), _encode(base, _ANCHOR + text)
    fits = whole[: len(anchor)] == anchor
    return whole[len(anchor) :] if fits else _encode(base, text)


def _encode(base: Base, text: str) -> list[int]:
    encoding = base.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
    return list(encoding["input_ids"])


def _chat_spans(base: Base, row: Instruction, ids: Sequence[int]) -> Spans:
    for find in (_starts_by_prefix, _starts_by_mask):
        spans = _proven(base, row, ids, find(base, row, ids)) if row.history else ()
        if spans is not None:
            return spans
    raise UserError(
        f"--template chat: in the chat template of {base.name} an earlier reply of a conversation "
        "cannot be found again as it is, with a token that ends it, in the conversation that "
        f"starts with {row.history[0][0][:60]!r}; use --template alpaca or --template brief"
    )


def _starts_by_prefix(base: Base, row: Instruction, ids: Sequence[int]) -> list[int]:
    """Where the prompt that each reply answers ends in `ids`.

    That may be a token early, where a blank melts into the reply.
    """
    starts = []
    for number, (user, _) in enumerate(row.history):
        before = chat_ids(base, Instruction(user, history=row.history[:number]))
        pairs = enumerate(zip(before, ids, strict=False))
        parted = (at for at, (one, other) in pairs if one != other)
        starts.append(next(parted, min(len(before), len(ids))))
    return starts


def _starts_by_mask(base: Base, row: Instruction, ids: Sequence[int]) -> list[int]:
    """Where each reply starts by the template's own mark of what the assistant says."""
    if not _GENERATION.search(base.tokenizer.chat_template):
        return []
    found = base.tokenizer.apply_chat_template(
        chat_messages(row),
        add_generation_prompt=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    # It cannot be had together with special tokens kept out of the text: where those matter, no.
    if list(found["input_ids"]) != list(ids):
        return []
    mask = [0, *found["assistant_masks"]]
    return [at for at in range(len(ids)) if mask[at + 1] and not mask[at]]


def _proven(base: Base, row: Instruction, ids: Sequence[int], starts: list[int]) -> Spans | None:
    """The replies from these starts to their first stop token, if each says what it should."""
    if len(starts) != len(row.history):
        return None
    special = set(base.tokenizer.all_special_ids)
    spans = []
    for start, (_, reply) in zip(starts, row.history, strict=True):
        end = next((at for at in range(start, len(ids)) if ids[at] in base.stop_ids), None)
        if end is None:
            return None
        wanted, found = (
            decode(base, one).strip()  # templates trim
            for one in (_following(base, reply), ids[start:end])
        )
        if found != wanted or special.intersection(ids[start:end]):
            return None
        spans.append((start, end + 1))
    return tuple(spans)
