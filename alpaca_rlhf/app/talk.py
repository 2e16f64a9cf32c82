"""A conversation in a browser: what it holds, and how its answers come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from threading import Event
from typing import TYPE_CHECKING, Any

import gradio as gr

from alpaca_rlhf.app.language import words
from alpaca_rlhf.app.services import Services
from alpaca_rlhf.app.sessions import Pages
from alpaca_rlhf.app.speech import inert, standing
from alpaca_rlhf.app.worker import Worker
from alpaca_rlhf.core.records import Completion, Instruction
from alpaca_rlhf.preferences.assignment import FEWEST, distinct
from alpaca_rlhf.preferences.database import DiskFull
from alpaca_rlhf.serving.filling import origin_of
from alpaca_rlhf.serving.manner import Manner
from alpaca_rlhf.sources.run_prompts import RunPrompts

if TYPE_CHECKING:
    from alpaca_rlhf.models.streaming import GenerationUpdate
    from alpaca_rlhf.serving.speaker import Speaker

MOST_TEXT = 12_000
"""Characters of a message."""
MOST_TURNS = 50
"""Turns of a conversation."""
TO_RANK = 4
"""Answers that *Make 4 and rank* makes."""


@dataclass(frozen=True)
class Turn:
    """One message of a person and what was answered."""

    user: str
    """What was asked."""
    reply: str = ""
    """What was answered; empty where nothing was (yet)."""
    draws: int = 0
    """How often it was answered before, so that it is answered anew."""


@dataclass(frozen=True)
class Asked:
    """Who shall answer, and how."""

    policy: str
    """Name of the policy."""
    manner: Manner
    """How it draws."""
    remember: bool
    """Whether earlier turns are part of the question."""


@dataclass(frozen=True)
class Shown:
    """What is on the page now."""

    turns: tuple[Turn, ...]
    """The conversation."""
    line: str
    """Where the answer stands."""
    running: bool
    """Whether there is something to stop."""


@dataclass(frozen=True)
class _Made:
    tokens: int
    own: tuple[Completion, ...] = ()


class Talk:
    """Answers people, and makes answers for them to rank.

    Args:
        services: What every tab is given.
        worker: Owns the model.
    """

    def __init__(self, services: Services, worker: Worker) -> None:
        self.services = services
        self.worker = worker
        self.pages = Pages()
        self.prompts = RunPrompts(worker.run, worker.settings)

    def answer(self, turns: Sequence[Turn], asked: Asked, request: gr.Request) -> Iterator[Shown]:
        """Answer the last turn, which is shown as it grows; what it said before is forgotten."""
        language = self.services.language(request)
        self.services.account(request)
        says = words("chat", language)
        *earlier, last = turns
        refused = self._refused(last.user, len(turns), says)
        if refused:
            yield Shown(tuple(earlier), refused, False)
            return
        row = Instruction(last.user, history=_history(earlier, asked), source="chat")
        key = f"chat/{last.draws}/{row.id}"

        def work(speaker: Speaker, stop: Event) -> Iterator[GenerationUpdate]:
            for (one,) in speaker.speak(asked.policy, row, asked.manner, stop, key=key):
                yield one

        job = self.worker.start(work, "chat")
        self.pages.put(request, job)
        last = replace(last, reply="")
        for update in job.updates():
            said = update.value
            last = last if said is None else replace(last, reply=said.text)
            now = standing(update, language)
            if update.phase == "stopped":
                now = says["said.stopped"]
            elif said is not None and update.phase == "done":
                kind = "done" if said.sampled.finished else "cut"
                kind = kind if said.text.strip() else "nothing"
                n = len(said.sampled.ids)
                now = says[f"said.{kind}"].format(policy=asked.policy, n=n)
            now = now or says["said.running"].format(policy=asked.policy)
            over = update.phase in ("done", "stopped", "failed")
            yield Shown((*earlier, last), now, not over)

    def make(
        self, text: str, turns: Sequence[Turn], asked: Asked, request: gr.Request
    ) -> Iterator[Shown]:
        """Make answers to what is typed, or else to the last turn, and queue them to be ranked."""
        language = self.services.language(request)
        account = self.services.account(request)
        says = words("chat", language)
        kept = tuple(turns)
        *earlier, last = [*turns, Turn(text)] if text.strip() else turns or [Turn("")]
        refused = says["make.nothing"] if not last.user.strip() else ""
        refused = refused or self._refused(last.user, len(earlier) + 1, says)
        if asked.manner.system:
            refused = refused or says["make.system"]
        if asked.manner.temperature == 0:
            refused = refused or says["make.greedy"]
        row = Instruction(last.user, history=_history(earlier, asked), source="chat")
        leak = None if refused else self.prompts.leak(row)
        if leak is not None:
            split = {"dev": "eval"}.get(leak.other_split, leak.other_split)
            refused = says[f"refused.{split}"]
        if refused:
            yield Shown(kept, refused, False)
            return
        job = self.worker.start(lambda speaker, stop: _four(speaker, row, asked, stop), "make")
        self.pages.put(request, job)
        for update in job.updates():
            n = 0 if update.value is None else update.value.tokens
            now = standing(update, language) or says["make.running"].format(n=n)
            if update.phase == "stopped":
                now = says["said.stopped"]
            elif update.phase == "done" and update.value is not None:
                try:
                    now = self._queue(account.id, row, update.value.own, asked, says)
                except DiskFull:
                    now = words("shell", language)["full"]
            yield Shown(kept, now, update.phase not in ("done", "stopped", "failed"))

    def _queue(
        self,
        account: int,
        row: Instruction,
        own: Sequence[Completion],
        asked: Asked,
        says: dict[str, str],
    ) -> str:
        if len(own) < FEWEST:
            return says["make.alike"]
        store, origin = self.services.store, origin_of(self.worker.run, asked.policy)
        new = store.add_sets([(row, own)], origin=f"{origin}/chat")
        store.reserve(account, row.id, [one.id for one in own])
        return says["make.done" if new else "make.there"].format(n=len(own))

    def _refused(self, text: str, turns: int, says: dict[str, str]) -> str:
        if not text.strip():
            return says["said.no_text"]
        if len(text) > MOST_TEXT:
            return says["said.too_long"].format(n=MOST_TEXT)
        return says["said.many"].format(n=MOST_TURNS) if turns > MOST_TURNS else ""


def messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """A conversation as Gradio's chat shows it, every text as it is."""
    return [
        {"role": role, "content": inert(text)}
        for turn in turns
        for role, text in (("user", turn.user), ("assistant", turn.reply))
        if role == "user" or text
    ]


def place(turns: Sequence[Turn], index: int) -> int:
    """The turn that a message of `messages` belongs to."""
    at = -1
    for number, turn in enumerate(turns):
        at += 1 + bool(turn.reply)
        if index <= at:
            return number
    return len(turns) - 1


def _history(turns: Sequence[Turn], asked: Asked) -> tuple[tuple[str, str], ...]:
    if not asked.remember:
        return ()
    return tuple((one.user, one.reply) for one in turns if one.reply.strip())


def _four(speaker: Speaker, row: Instruction, asked: Asked, stop: Event) -> Iterator[_Made]:
    """Answers that differ; where too many are alike, as many again are drawn once."""
    own: list[Completion] = []
    said: list[GenerationUpdate] = []
    for k in (TO_RANK, 2 * TO_RANK):
        for said in speaker.speak(
            asked.policy, row, asked.manner, stop, key=row.id, k=k, whole=True
        ):
            yield _Made(sum(len(one.sampled.ids) for one in said))
        if stop.is_set():
            return
        drawn = [
            speaker.completion(asked.policy, row, asked.manner, one.text, one.sampled, j)
            for j, one in enumerate(said)
        ]
        own = distinct(drawn, TO_RANK)
        if len(own) == TO_RANK:
            break
    yield _Made(sum(len(one.sampled.ids) for one in said), tuple(own))
