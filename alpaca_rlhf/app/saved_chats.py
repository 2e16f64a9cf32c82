"""Conversations kept per account, and thumbs on replies: the Chat tab's part of the store."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

import gradio as gr

from alpaca_rlhf.app.chat_messages import SampledReply, Turn, turn_from_json
from alpaca_rlhf.app.clicks import MAX_NUMBER
from alpaca_rlhf.app.language import translations
from alpaca_rlhf.app.services import Services
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.preferences.assignment import Candidates, Refused
from alpaca_rlhf.preferences.chats import digest

MAX_PAGES = 10_000
"""Open pages whose conversations are remembered."""


class SavedChats:
    """The conversations of whoever sends a request.

    Args:
        services: Store, accounts and language.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._store = services.store
        self._known: dict[str, tuple[int, str]] = {}
        self._lock = threading.Lock()
        self._pages: WeakValueDictionary[str, threading.RLock] = WeakValueDictionary()

    def page(self, request: gr.Request) -> threading.RLock:
        """The lock of a page, under which its conversation is opened, kept and deleted.

        Whoever holds it can look whether the page still shows something, and keep that.
        """
        with self._lock:
            return self._pages.setdefault(str(request.session_hash), threading.RLock())

    def choices(self, request: gr.Request) -> list[tuple[str, int]]:
        """Names and numbers of the account's conversations."""
        return [(chat.title, chat.id) for chat in self._store.chats(self._account(request))]

    def save(self, number: int | None, turns: Sequence[Turn], request: gr.Request) -> int | None:
        """Keep a conversation; returns its number.

        A new one without turns is not kept. One that another page has deleted or changed since this
        page last opened or kept it becomes a new one.
        """
        with self.page(request):
            return self._save(number, turns, request)

    def _save(self, number: int | None, turns: Sequence[Turn], request: gr.Request) -> int | None:
        account, rows = self._account(request), [turn.to_json() for turn in turns]
        title = turns[0].user if turns else ""
        saved_number = None
        if number is not None:
            try:
                # What this page does not know counts as changed: no digest is empty.
                before = self._digest_known(number, request) or ""
                saved_number = self._store.save_chat(account, number, title, rows, before=before)
            except Refused:
                pass
        if saved_number is None and turns:
            saved_number = self._store.save_chat(account, None, title, rows)
        if saved_number is not None:
            self._note(saved_number, rows, request)
        return saved_number

    def open(self, number: object, request: gr.Request) -> tuple[str, tuple[Turn, ...]]:
        """Title and turns of a conversation.

        Raises:
            Refused: It is not there, or belongs to somebody else.
        """
        opened = _number(number)
        with self.page(request):
            title, rows = self._store.chat(self._account(request), opened)
            self._note(opened, rows, request)
        return title, tuple(turn_from_json(row) for row in rows)

    def rename(self, number: object, title: object, request: gr.Request) -> None:
        """Give a conversation another name.

        Raises:
            Refused: It is not there, belongs to somebody else, or the name is empty.
        """
        self._store.rename_chat(self._account(request), _number(number), str(title or ""))

    def delete(self, number: object, request: gr.Request) -> None:
        """Delete a conversation.

        Raises:
            Refused: It is not there, or belongs to somebody else.
        """
        with self.page(request):
            self._store.delete_chat(self._account(request), _number(number))

    def exported(self, number: object, request: gr.Request) -> str:
        """A conversation as one JSON line, which SFT reads as a row.

        Raises:
            Refused: It is not there, belongs to somebody else, or has no reply.
        """
        # The page goes on showing what it has opened, so nothing is noted.
        title, rows = self._store.chat(self._account(request), _number(number))
        turns = tuple(turn_from_json(row) for row in rows)
        # A row for SFT alternates: messages without a reply are left out, as in a prompt.
        answered = [turn for turn in turns if turn.reply.strip()]
        if not answered:
            raise Refused("incomplete", "this conversation has no reply")
        messages = [
            {"role": role, "content": content}
            for turn in answered
            for role, content in (("user", turn.user), ("assistant", turn.reply))
        ]
        systems = {turn.sampled.system if turn.sampled else "" for turn in answered}
        if len(systems) == 1 and (system := systems.pop()):
            messages.insert(0, {"role": "system", "content": system})
        return json.dumps({"title": title, "messages": messages}, ensure_ascii=False) + "\n"

    def rate(self, reply: Candidates, up: bool | None, request: gr.Request) -> None:
        """Keep a thumb on a reply of `sampled_reply`, or take it back."""
        self._store.rate_reply(self._account(request), reply, up)

    def keep_edited(self, reply: Candidates, text: str | None, request: gr.Request) -> None:
        """Keep an edited reply as a better answer than that of `edited_reply`, or take it back.

        Raises:
            Refused: The text is empty, too long, or the reply itself.
        """
        self._store.keep_edited_reply(self._account(request), reply, text)

    def problem(self, refused: Refused, request: gr.Request) -> str:
        """The sentence for a refusal, in the language of the request."""
        text = translations("chat", self._services.language(request))
        sentences = {"bad_value": "unnamed", "incomplete": "none"}
        return text[f"chats.{sentences.get(refused.problem, 'gone')}"]

    def _note(self, number: int, rows: Sequence[Any], request: gr.Request) -> None:
        """Remember the conversation of a page as it is kept now."""
        page = str(request.session_hash)
        with self._lock:
            self._known.pop(page, None)
            self._known[page] = (number, digest(rows))
            while len(self._known) > MAX_PAGES:
                del self._known[next(iter(self._known))]

    def _digest_known(self, number: int, request: gr.Request) -> str | None:
        """The digest of a conversation as the page knows it; None where it has opened another."""
        with self._lock:
            known = self._known.get(str(request.session_hash))
        return known[1] if known is not None and known[0] == number else None

    def _account(self, request: gr.Request) -> int:
        return self._services.account(request).id


def sampled_reply(turns: Sequence[Turn], index: int) -> Candidates | None:
    """Prompt and reply of a turn; None where no single policy is known to have written it."""
    turn = turns[index]
    if turn.sampled is None or not turn.reply:
        return None
    return _candidates(turns, index, turn.sampled, turn.reply)


def edited_reply(turns: Sequence[Turn], index: int) -> Candidates | None:
    """Prompt and reply of a turn before a person edited it; None where nobody has."""
    edited = turns[index].edited
    if edited is None or turns[index].reply.strip() in ("", edited.text.strip()):
        return None
    return _candidates(turns, index, edited.sampled, edited.text)


def _candidates(turns: Sequence[Turn], index: int, sampled: SampledReply, text: str) -> Candidates:
    """The prompt that a reply was sampled for, and the reply."""
    earlier = turns[:index] if sampled.remember else ()
    history = tuple((past.user, past.reply) for past in earlier if past.reply.strip())
    prompt = Instruction(turns[index].user, history=history, source="chat", system=sampled.system)
    return prompt, [sampled.completion(prompt, text)]


def _number(value: object) -> int:
    """The number of a conversation that a browser named."""
    if value is None:
        raise Refused("incomplete", "nothing was said yet")
    if type(value) is not int or not 0 < value <= MAX_NUMBER:
        raise Refused("unknown", "there is no such conversation")
    return value
