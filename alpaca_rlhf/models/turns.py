"""Token ids of the turns of a prompt, and the spans of its earlier replies.

A reply has the same tokens as the last completion and as an earlier reply of a conversation. In the
plain templates they are assembled here, block by block, each reply closed by eos. A chat template
is the tokenizer's own, so the replies are searched for in what it rendered, and a span that cannot
be proven is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.prompts import blocks, chat_messages, lead, system_folded
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.models.template_traits import template_text, template_traits
from alpaca_rlhf.models.text_base import TextBase

Spans = tuple[tuple[int, int], ...]
"""(start, end) positions in a prompt, one for each earlier reply, its end token included."""

_ANCHOR = "."
"""Encoded before a text, at whose start LLaMA-2's tokenizers would add or drop a blank."""
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class LostReply(UserError):
    """A chat template alters an earlier reply of a conversation, or closes it with no token."""


def text_ids(base: TextBase, text: str) -> tuple[int, ...]:
    """Token ids of plain text after bos. Text never becomes a special token, whatever it says."""
    ids = _encode(base, text)
    bos = base.tokenizer.bos_token_id
    return (bos, *ids) if bos is not None else tuple(ids)


def decode(base: TextBase, ids: Sequence[int]) -> str:
    """Text of ids that continue other text, without special tokens."""
    anchor = _encode(base, _ANCHOR)
    prefix, text = (
        str(base.tokenizer.decode(tokens, skip_special_tokens=True))
        for tokens in (anchor, [*anchor, *ids])
    )
    return text[len(prefix) :]


def prompt_turns(base: TextBase, template: str, row: Instruction) -> tuple[tuple[int, ...], Spans]:
    """Ids of a prompt from bos to where the completion starts, and the spans of earlier replies.

    Raises:
        LostReply: An earlier reply cannot be told from its surroundings in the chat template.
        UserError: The template is `chat`, and the tokenizer has none.
    """
    if template == "chat":
        ids = chat_ids(base, row)
        return ids, _chat_spans(base, row, ids)
    texts = blocks(template, row)
    prompt: list[int] = []
    spans: list[tuple[int, int]] = []
    for number, (_, reply) in enumerate(row.history):
        prompt += _block(base, texts[number], first=not number)
        start = len(prompt)
        prompt += reply_ids(base, texts[number], lead(template) + reply, first=not number)
        prompt.append(base.eos_id)
        spans.append((start, len(prompt)))
    prompt += _block(base, texts[-1], first=not row.history)
    return tuple(prompt), tuple(spans)


def chat_ids(base: TextBase, row: Instruction) -> tuple[int, ...]:
    """Ids of a prompt in the tokenizer's chat template, from bos to where the completion starts.

    A system text is a message of its own where the template shows it; elsewhere it is the first
    paragraph of the first user turn.

    Raises:
        UserError: The tokenizer has no chat template, or one that refuses the conversation.
    """
    if template_text(base.tokenizer) is None:
        raise UserError(
            f"--template chat: the tokenizer of {base.name} has no chat template; "
            "use --template alpaca or --template brief"
        )
    try:
        ids = base.tokenizer.apply_chat_template(
            chat_messages(_placed(base, row)),
            add_generation_prompt=True,
            return_dict=False,
            sanitize_control_tokens=True,
        )
    except Exception as error:  # a foreign template raises errors of its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"--template chat: the chat template of {base.name} refuses the conversation that ends "
            f"with {row.instruction[:60]!r} ({reason}); use --template alpaca or --template brief"
        ) from error
    return tuple(ids)


def takes_system(base: TextBase, template: str) -> bool:
    """True if a prompt of this template has a place of its own for a system text."""
    chat = template_traits(base.tokenizer) if template == "chat" else None
    return chat is not None and chat.takes_system


def reply_lead(base: TextBase, template: str) -> str:
    """The text between a prompt and its completion, which belongs to neither."""
    chat = template_traits(base.tokenizer) if template == "chat" else None
    return lead(template) if chat is None else chat.gap


def _placed(base: TextBase, row: Instruction) -> Instruction:
    """A row for the chat template: its system text folded where the template has no place."""
    return row if takes_system(base, "chat") else system_folded(row)


def last_reply_ids(base: TextBase, template: str, row: Instruction, completion: str) -> list[int]:
    """Token ids of the completion of a prompt, without the token that ends it."""
    reply = reply_lead(base, template) + completion
    if template == "chat":
        return _continuation(base, reply)
    return reply_ids(base, blocks(template, row)[-1], reply, first=not row.history)


def reply_ids(base: TextBase, block: str, reply: str, *, first: bool) -> list[int]:
    """Token ids of a reply after a block.

    They are those of the rendered whole wherever the block's own tokens are a prefix of the
    whole's, as they are when the policy generates.
    """
    block_tokens, tokens = (_block(base, text, first=first) for text in (block, block + reply))
    if tokens[: len(block_tokens)] == block_tokens:
        return tokens[len(block_tokens) :]
    return _continuation(base, reply)


def _block(base: TextBase, text: str, *, first: bool) -> list[int]:
    return list(text_ids(base, text)) if first else _continuation(base, text)


def _continuation(base: TextBase, text: str) -> list[int]:
    """Token ids of text that continues other text."""
    anchor, anchored = _encode(base, _ANCHOR), _encode(base, _ANCHOR + text)
    is_prefix = anchored[: len(anchor)] == anchor
    return anchored[len(anchor) :] if is_prefix else _encode(base, text)


def _encode(base: TextBase, text: str) -> list[int]:
    encoding = base.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
    return list(encoding["input_ids"])


def _chat_spans(base: TextBase, row: Instruction, ids: Sequence[int]) -> Spans:
    for find_starts in (_starts_by_prefix, _starts_by_mask):
        spans = _proven_spans(base, row, ids, find_starts(base, row, ids)) if row.history else ()
        if spans is not None:
            return spans
    raise LostReply(
        f"--template chat: the chat template of {base.name} alters an earlier reply, or closes it "
        f"with no token, in the conversation that starts with {row.history[0][0][:60]!r}; use "
        "--template alpaca or --template brief"
    )


def _starts_by_prefix(base: TextBase, row: Instruction, ids: Sequence[int]) -> list[int]:
    """Start of each reply in `ids`: the end of the prompt that it answers.

    That may be one token early, where a blank merges into the reply.
    """
    starts = []
    for number, (user, _) in enumerate(row.history):
        prompt = chat_ids(base, Instruction(user, history=row.history[:number], system=row.system))
        pairs = enumerate(zip(prompt, ids, strict=False))
        differing = (position for position, (expected, actual) in pairs if expected != actual)
        starts.append(next(differing, min(len(prompt), len(ids))))
    return starts


def _starts_by_mask(base: TextBase, row: Instruction, ids: Sequence[int]) -> list[int]:
    """Start of each reply in `ids` by the template's own `generation` marks; empty without them."""
    if not _GENERATION.search(template_text(base.tokenizer) or ""):
        return []
    marked = base.tokenizer.apply_chat_template(
        chat_messages(_placed(base, row)),
        add_generation_prompt=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    # The mask cannot be requested together with sanitised control tokens: if those changed the ids,
    # it belongs to another text.
    if list(marked["input_ids"]) != list(ids):
        return []
    mask = [0, *marked["assistant_masks"]]
    return [start for start in range(len(ids)) if mask[start + 1] and not mask[start]]


def _proven_spans(
    base: TextBase, row: Instruction, ids: Sequence[int], starts: list[int]
) -> Spans | None:
    """Spans from these starts to the template's end, or None if one is not its reply's text."""
    if len(starts) != len(row.history):
        return None
    chat = template_traits(base.tokenizer)
    ends = base.stop_ids if chat is None or chat.end_id is None else {chat.end_id}
    special = set(base.tokenizer.all_special_ids)
    spans = []
    for start, (_, reply) in zip(starts, row.history, strict=True):
        end = next((i for i in range(start, len(ids)) if ids[i] in ends), None)
        if end is None:
            return None
        expected, text = (
            decode(base, tokens).strip()  # templates trim
            for tokens in (_continuation(base, reply), ids[start:end])
        )
        if text != expected or special.intersection(ids[start:end]):
            return None
        spans.append((start, end + 1))
    return tuple(spans)
