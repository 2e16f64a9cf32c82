"""Conversations as messages for Gradio's chat component, every text shown literally."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from alpaca_rlhf.core.records import Completion, FinishReason, Instruction

MARK = "\u200b"
"""Zero-width space, inserted so that the character before it cannot begin a tag or an entity.

It exists only on the screen: `static/copying.js` removes it from copied text, and `restored` from
edited text. If a text already has such a space after one of these characters, another is inserted
before it, so that removing one mark restores the original.
"""
_TAG = re.compile(f"<(?=[A-Za-z/!?{MARK}])")
_ENTITY = re.compile(f"&(?=[#A-Za-z{MARK}])")
MARKED = re.compile(f"([<&]){MARK}")


@dataclass(frozen=True)
class SampledReply:
    """The policy, the settings and the part of the conversation that a reply was sampled with."""

    adapter: str
    """Fingerprint of the policy."""
    sampling: str
    """The sampling settings, as `Completion.sampling`."""
    seed: int
    """Seed of the noise."""
    finish_reason: FinishReason
    """`eos`, or `length` where it was cut or stopped."""
    n_tokens: int
    """Tokens of the reply."""
    remember: bool
    """True if the prompt included the earlier turns."""
    system: str
    """System prompt; empty without one."""

    @classmethod
    def of(cls, completion: Completion, *, remember: bool, system: str) -> SampledReply:
        """All of a completion but its texts."""
        return cls(
            completion.adapter,
            completion.sampling,
            completion.seed,
            completion.finish_reason,
            completion.n_tokens,
            remember,
            system,
        )

    def completion(self, prompt: Instruction, text: str) -> Completion:
        """The record of the reply."""
        return Completion(
            prompt.id,
            text,
            self.adapter,
            self.sampling,
            self.seed,
            finish_reason=self.finish_reason,
            n_tokens=self.n_tokens,
        )


@dataclass(frozen=True)
class EditedFrom:
    """A reply before a person edited it."""

    sampled: SampledReply
    """Its origin."""
    text: str
    """Its text."""


@dataclass(frozen=True)
class Turn:
    """A user's message and the answer to it."""

    user: str
    """The message."""
    reply: str = ""
    """The answer; empty until there is one."""
    attempt: int = 0
    """Number of earlier answers that were replaced; part of the sampling key."""
    thumb: bool | None = None
    """True for a thumb up, False for one down. Up on an edited reply keeps it as a better answer.
    """
    sampled: SampledReply | None = None
    """The reply's origin; None while it grows, and where no single policy wrote all of it."""
    edited: EditedFrom | None = None
    """The reply of one policy that a person has made this reply of."""

    def to_json(self) -> dict[str, Any]:
        """Its fields, for the database."""
        return asdict(self)


def turn_from_json(columns: Mapping[str, Any]) -> Turn:
    """A turn as `Turn.to_json` gave it."""
    sampled, edited = columns.get("sampled"), columns.get("edited")
    origins = {
        "sampled": SampledReply(**sampled) if sampled else None,
        "edited": EditedFrom(SampledReply(**edited["sampled"]), edited["text"]) if edited else None,
    }
    return Turn(**{**columns, **origins})


def edited_turn(turn: Turn, text: str) -> Turn:
    """A turn whose reply a person has edited; it remembers the reply that a policy wrote."""
    edited = turn.edited
    if turn.sampled is not None:
        edited = EditedFrom(turn.sampled, turn.reply)
    return replace(turn, reply=text, thumb=None, sampled=None, edited=edited)


def feedback(turns: Sequence[Turn]) -> list[str | None]:
    """The thumb on each reply of `messages`, in Gradio's words."""
    words = {True: "Like", False: "Dislike", None: None}
    return [words[turn.thumb] for turn in turns if turn.reply]


def inert(text: str) -> str:
    """Mark a text so that Gradio's chat shows it literally, tags and entities included.

    The chat sends every message to the browser as sanitised HTML, even with Markdown switched off,
    so unmarked tags and entities would be interpreted.
    """
    return _ENTITY.sub(f"&{MARK}", _TAG.sub(f"<{MARK}", text))


def restored(text: str) -> str:
    """Undo `inert`: return the original text."""
    return MARKED.sub(r"\1", text)


def messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Messages of a conversation for `gr.Chatbot`, with every text shown literally."""
    return [
        {"role": role, "content": inert(text)}
        for turn in turns
        for role, text in (("user", turn.user), ("assistant", turn.reply))
        if role == "user" or text
    ]


def is_reply(turns: Sequence[Turn], message_index: int) -> bool:
    """True if the message at `message_index` of `messages` is a reply."""
    listed = messages(turns)
    return 0 <= message_index < len(listed) and listed[message_index]["role"] == "assistant"


def turn_index(turns: Sequence[Turn], message_index: int) -> int:
    """Index of the turn to which the message at `message_index` of `messages` belongs."""
    last_message = -1
    for index, turn in enumerate(turns):
        last_message += 1 + bool(turn.reply)
        if message_index <= last_message:
            return index
    return len(turns) - 1
