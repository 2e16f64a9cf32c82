"""The Chat tab's controller: streams answers, and queues sets of answers to be ranked."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from threading import Event
from typing import TYPE_CHECKING, Any

import gradio as gr

from alpaca_rlhf.app.chat_messages import SampledReply, Turn
from alpaca_rlhf.app.job_status import job_status
from alpaca_rlhf.app.jobs import Job
from alpaca_rlhf.app.language import translations
from alpaca_rlhf.app.page_jobs import PageJobs
from alpaca_rlhf.app.services import Services
from alpaca_rlhf.app.worker import Worker
from alpaca_rlhf.core.records import Completion, Instruction
from alpaca_rlhf.preferences.assignment import MIN_ANSWERS, distinct
from alpaca_rlhf.preferences.database import DiskFull
from alpaca_rlhf.serving.filling import origin_of
from alpaca_rlhf.serving.sampling_settings import SamplingSettings

if TYPE_CHECKING:
    from alpaca_rlhf.models.streaming import GenerationUpdate
    from alpaca_rlhf.serving.policy_server import PolicyServer

MAX_MESSAGE_CHARS = 12_000
MAX_TURNS = 50
"""Turns of a conversation."""
ANSWERS_TO_RANK = 4
"""Answers that *Make 4 and rank* makes."""


@dataclass(frozen=True)
class GenerationRequest:
    """Which policy answers, and how."""

    policy: str
    """Name of the policy."""
    sampling: SamplingSettings
    """Temperature, length, seed and the like."""
    remember: bool
    """True if the prompt includes the earlier turns."""

    def prompt(self, earlier: Sequence[Turn], message: str) -> Instruction:
        """The prompt for a message after earlier turns; those without an answer are left out."""
        turns = earlier if self.remember else ()
        history = tuple((turn.user, turn.reply) for turn in turns if turn.reply.strip())
        return Instruction(message, history=history, source="chat")


@dataclass(frozen=True)
class ChatView:
    """State of the page."""

    turns: tuple[Turn, ...]
    """The conversation."""
    status: str
    """The status line."""
    running: bool
    """True while there is something to stop."""
    keep: bool = False
    """True where the conversation is to be saved."""
    failed: bool = False
    """True where the job has failed: the last reply is a fragment."""
    refused: bool = False
    """True where the message is not answered: `turns` are then what was asked for."""
    job: Job[Any] | None = field(default=None, compare=False, repr=False)
    """The job that answers; what the page has left by now is not to be saved."""


class _Clock:
    """Measures tokens a second, from the first step of an answer to its last."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None
        self._last: tuple[float, int] = (0.0, 0)

    def tick(self, n_tokens: int) -> None:
        """Note that so many tokens are there."""
        self._last = (time.monotonic(), n_tokens)
        self._first = self._first or self._last

    @property
    def rate(self) -> float | None:
        """Tokens a second; None after fewer than two steps."""
        if self._first is None or self._last[0] <= self._first[0]:
            return None
        n_tokens = self._last[1] - self._first[1]
        return n_tokens / (self._last[0] - self._first[0]) if n_tokens else None


@dataclass(frozen=True)
class _Reply:
    update: GenerationUpdate
    sampled: SampledReply | None = None


@dataclass(frozen=True)
class _CandidateProgress:
    n_tokens: int
    completions: tuple[Completion, ...] = ()


class ChatController:
    """Answers people, and makes answers for them to rank.

    Args:
        services: Store, accounts and language.
        worker: Owns the model.
    """

    def __init__(self, services: Services, worker: Worker) -> None:
        self.services = services
        self.worker = worker
        self.page_jobs = PageJobs()

    def answer(
        self,
        turns: Sequence[Turn],
        generation: GenerationRequest,
        request: gr.Request,
        *,
        go_on: bool = False,
    ) -> Iterator[ChatView]:
        """Answer the last turn, which is shown as it grows and replaces any earlier answer.

        Args:
            turns: The conversation.
            generation: Which policy answers, and how.
            request: The request of the page.
            go_on: True where the answer of the last turn is a beginning, which is gone on with.
        """
        language = self.services.language(request)
        account = self.services.account(request)
        text = translations("chat", language)
        *earlier, last = turns
        refusal = _refusal(last.user, len(turns), text)
        if refusal:
            yield ChatView(tuple(turns), refusal, False, refused=True)
            return
        prompt = generation.prompt(earlier, last.user)
        begun, begun_tokens = last.reply if go_on else "", 0
        key = f"chat/{last.attempt}/{prompt.id}"
        if begun:
            key += f"/{len(begun)}"
            begun_tokens = last.sampled.n_tokens if last.sampled is not None else 0
        beginning = last.sampled
        clock = _Clock()

        def work(policy_server: PolicyServer, stop: Event) -> Iterator[_Reply]:
            policy, sampling = generation.policy, generation.sampling
            update = None
            updates = policy_server.generate(policy, prompt, sampling, stop, key=key, begun=begun)
            for (update,) in updates:
                clock.tick(len(update.sampled.ids))
                yield _Reply(update)
            if update is not None:
                completion = policy_server.completion(
                    policy, prompt, sampling, update.text, update.sampled
                )
                completion = replace(completion, n_tokens=begun_tokens + completion.n_tokens)
                # A beginning by somebody else: the whole is no sample of this policy.
                alone = not begun or (
                    beginning is not None and beginning.adapter == completion.adapter
                )
                sampled = SampledReply.of(
                    completion, remember=generation.remember, system=sampling.system
                )
                yield _Reply(update, sampled if alone else None)

        self.page_jobs.leave(request)  # it is no longer waited for, and counts as one of two
        job = self.worker.start(work, "chat", owner=account.id)
        if not begun:
            last = replace(last, reply="", thumb=None, sampled=None, edited=None)
        for update in self.page_jobs.follow(request, job):
            if update.value is not None:
                reply = update.value
                last = replace(
                    last,
                    reply=reply.update.text,
                    thumb=None,
                    sampled=reply.sampled,
                    edited=None,
                )
            status = job_status(update, language)
            if update.phase == "done" and update.value is not None:
                status = _outcome(update.value.update, generation.policy, text, clock.rate)
            status = status or text["status.running"].format(policy=generation.policy)
            answered = bool(last.reply) or last.sampled is not None
            keep = update.finished and answered
            failed = update.phase == "failed"
            yield ChatView((*earlier, last), status, not update.finished, keep, failed, job=job)

    def make_candidates(
        self,
        draft: str,
        turns: Sequence[Turn],
        generation: GenerationRequest,
        request: gr.Request,
    ) -> Iterator[ChatView]:
        """Make answers to the draft, or else to the last turn, and queue them to be ranked."""
        language = self.services.language(request)
        account = self.services.account(request)
        text = translations("chat", language)
        conversation = tuple(turns)
        *earlier, last = [*turns, Turn(draft)] if draft.strip() else turns or [Turn("")]
        prompt = generation.prompt(earlier, last.user)
        refusal = self._candidate_refusal(prompt, len(earlier) + 1, generation.sampling, text)
        if refusal:
            yield ChatView(conversation, refusal, False)
            return
        self.page_jobs.leave(request)
        job = self.worker.start(
            lambda policy_server, stop: _distinct_answers(policy_server, prompt, generation, stop),
            "make",
            owner=account.id,
        )
        for update in self.page_jobs.follow(request, job):
            n_tokens = 0 if update.value is None else update.value.n_tokens
            status = job_status(update, language) or text["make.running"].format(n=n_tokens)
            if update.phase == "done" and update.value is not None:
                try:
                    completions = update.value.completions
                    status = self._queue(account.id, prompt, completions, generation.policy, text)
                except DiskFull:
                    status = translations("shell", language)["full"]
            yield ChatView(conversation, status, not update.finished)

    def _candidate_refusal(
        self, prompt: Instruction, n_turns: int, sampling: SamplingSettings, text: dict[str, str]
    ) -> str:
        """The reason why no answers to a prompt are made to be ranked; empty if there is none."""
        if not prompt.instruction.strip():
            return text["make.nothing"]
        refusal = _refusal(prompt.instruction, n_turns, text)
        if refusal:
            return refusal
        if sampling.system:
            return text["make.system"]
        if sampling.temperature == 0:
            return text["make.greedy"]
        # A prompt near one of another split must not reach the reward model.
        return self.leak_refusal(prompt, "refused", text)

    def leak_refusal(self, prompt: Instruction, prefix: str, text: dict[str, str]) -> str:
        """The sentence `<prefix>.<split>` where a prompt lies near one of another split."""
        leak = self.worker.prompts.leak(prompt)
        if leak is None:
            return ""
        split = {"dev": "eval"}.get(leak.other_split, leak.other_split)
        return text[f"{prefix}.{split}"]

    def _queue(
        self,
        account: int,
        prompt: Instruction,
        completions: Sequence[Completion],
        policy: str,
        text: dict[str, str],
    ) -> str:
        """Add a candidate set, reserved for the account; returns the status."""
        if len(completions) < MIN_ANSWERS:
            return text["make.alike"]
        store = self.services.store
        origin = f"{origin_of(self.worker.run, policy)}/chat"
        n_added = store.add_sets([(prompt, completions)], origin=origin)
        reserved = store.reserve(account, prompt.id, [completion.id for completion in completions])
        outcome = "make.done" if reserved else "make.others"
        return text[outcome if n_added else "make.there"].format(n=len(completions))


def _refusal(message: str, n_turns: int, text: dict[str, str]) -> str:
    """The reason why a message is not answered; empty if there is none."""
    if not message.strip():
        return text["status.no_text"]
    if len(message) > MAX_MESSAGE_CHARS:
        return text["status.too_long"].format(n=MAX_MESSAGE_CHARS)
    return text["status.many"].format(n=MAX_TURNS) if n_turns > MAX_TURNS else ""


def _outcome(
    completion: GenerationUpdate, policy: str, text: dict[str, str], rate: float | None
) -> str:
    outcome = "done" if completion.sampled.finished else "cut"
    outcome = outcome if completion.text.strip() else "nothing"
    status = text[f"status.{outcome}"].format(policy=policy, n=len(completion.sampled.ids))
    return status + (text["status.rate"].format(n=f"{rate:.1f}") if rate is not None else "")


def _distinct_answers(
    policy_server: PolicyServer, prompt: Instruction, generation: GenerationRequest, stop: Event
) -> Iterator[_CandidateProgress]:
    """Answers that differ; if too many are alike, twice as many are sampled once."""
    policy, sampling = generation.policy, generation.sampling
    completions: list[Completion] = []
    samples: list[GenerationUpdate] = []
    for k in (ANSWERS_TO_RANK, 2 * ANSWERS_TO_RANK):
        # 1. Sample K answers, streamed for the token count.
        for samples in policy_server.generate(
            policy, prompt, sampling, stop, key=prompt.id, k=k, whole=True
        ):
            yield _CandidateProgress(_count_tokens(samples))
        if stop.is_set():
            return
        # 2. Keep the first that say different things.
        completions = distinct(
            [
                policy_server.completion(
                    policy, prompt, sampling, sample.text, sample.sampled, index
                )
                for index, sample in enumerate(samples)
            ],
            ANSWERS_TO_RANK,
        )
        if len(completions) == ANSWERS_TO_RANK:
            break
    yield _CandidateProgress(_count_tokens(samples), tuple(completions))


def _count_tokens(samples: Sequence[GenerationUpdate]) -> int:
    return sum(len(sample.sampled.ids) for sample in samples)
