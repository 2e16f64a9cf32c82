"""A model behind an OpenAI-compatible endpoint that ranks in people's place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from types import TracebackType
from typing import Any

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.prompts import judge_messages
from alpaca_rlhf.core.records import Completion, Instruction, content_hash
from alpaca_rlhf.llm.budget import Account
from alpaca_rlhf.llm.cache import request_key
from alpaca_rlhf.llm.client import Asker, Stopped
from alpaca_rlhf.llm.wire import Answer, Fault, Refusal
from alpaca_rlhf.preferences import JUDGE, JudgeIdentity
from alpaca_rlhf.preferences.pairwise import Order, Question, order_of, questions, verdict_of
from alpaca_rlhf.settings import Judge

Row = tuple[Instruction, Sequence[Completion]]

BATCH_RANKINGS = 32
"""Rankings that are saved in one transaction."""

PATIENCE = 3
"""Sets in a row, refused whole, after which the endpoint is taken to refuse everything."""

_ABOUT_ONE = (400, 413, 422)
"""HTTP statuses of a refusal that may be about one request: too long, or against a policy."""
_LIMITS = ("max_tokens", "max_completion_tokens")
"""How endpoints call the most tokens of a reply."""


def questions_about(rows: Sequence[Row]) -> int:
    """How many requests it takes to rank some sets."""
    return sum(2 for _, own in rows for _ in combinations(own, 2))


def outcomes(pairs: Mapping[str, int]) -> str:
    """What came of all pairs, in words."""
    n = max(1, sum(pairs.values()))
    words = {
        "decided": "decided",
        "tied": "tied",
        "inconsistent": "dropped because the verdict changed with the order",
        "unreadable": "without a readable verdict",
    }
    found = [f"{100 * pairs.get(key, 0) / n:.0f}% {text}" for key, text in words.items()]
    return f"{sum(pairs.values())} pairs: {', '.join(found)}"


class LLMJudge:
    """Compares every two completions in both orders. Use it in a `with` block.

    Args:
        settings: The endpoint, and what it may cost.
        folder: Where `requests.jsonl` lies: what was asked before is not asked again.
        asking: Goes to `Asker`.

    Raises:
        UserError: The key is not in the environment, or the file is damaged.
    """

    def __init__(self, settings: Judge, folder: Path, **asking: Any) -> None:
        self._settings = settings
        self._asker = Asker(settings, folder, **asking)
        self._limit = ""

    def __enter__(self) -> LLMJudge:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._asker.close()

    @property
    def identity(self) -> JudgeIdentity:
        """Its name in rankings, and the hash of the request apart from the two answers."""
        settings = json.dumps(
            {
                "model": self._settings.model,
                "temperature": 0.0,
                "tokens": self._settings.tokens,
                "fields": self._settings.fields(),
                "wording": judge_messages(Instruction(""), "", ""),
            },
            sort_keys=True,
        )
        return JudgeIdentity(f"{JUDGE}llm:{self._settings.model}", content_hash(settings))

    @property
    def account(self) -> Account:
        """What happened on the wire so far."""
        return self._asker.account

    def rank(
        self, rows: Sequence[Row], *, told: Callable[[int], None] = lambda sets: None
    ) -> Iterator[tuple[Instruction, Order]]:
        """The order of each set of completions.

        Args:
            rows: Prompts with their completions.
            told: Told how many sets are done.

        Raises:
            UserError: A budget is spent, or the endpoint refuses or is gone. What it has said is
                kept; the same call goes on.
        """
        done = refused = 0
        for group in _groups(rows, 4 * self._settings.concurrency):
            self._find_limit(rows[done : done + PATIENCE])
            replies = self._replies(group)
            for prompt, own in group:
                asked = [(one, replies.get(self._key(one))) for one in questions(prompt, own)]
                said = {
                    (one.first, one.second): verdict_of(reply)
                    for one, reply in asked
                    if isinstance(reply, str)
                }
                yield prompt, order_of([one.id for one in own], said)
                why = [reply for _, reply in asked if isinstance(reply, Refusal)]
                refused = refused + 1 if len(why) == len(asked) else 0
                if refused == PATIENCE:
                    raise UserError(f"{why[0]}; {PATIENCE} sets in a row were refused whole")
            done += len(group)
            told(done)

    def _replies(self, group: Sequence[Row]) -> dict[str, str | Refusal]:
        """What was said to each question, by its key; one that stands there twice is asked once."""
        asked = {self._key(one): one for row in group for one in questions(*row)}
        jobs = [partial(self._reply, key, one) for key, one in asked.items()]
        try:
            return dict(self._asker.all(jobs))
        except Stopped as stopped:
            if isinstance(stopped.why, UserError):
                raise UserError(str(stopped.why)) from None
            raise stopped.why from None

    def _reply(self, key: str, question: Question) -> tuple[str, str | Refusal] | None:
        try:
            answer = self._ask(question)
        except Refusal as refusal:
            if refusal.status not in _ABOUT_ONE:
                raise
            self._asker.refused(_number(key), refusal)
            return key, refusal
        if not isinstance(answer, Answer):
            return None
        # where the length cut it, the last line is not its last word
        return key, answer.text if answer.whole else ""

    def _ask(self, question: Question) -> Answer | Fault | None:
        key = self._key(question)
        kept = self._asker.cached(key)
        if kept is not None:
            return kept
        return self._asker.answer(_number(key), self._body(question), self._settings.tokens, key)

    def _body(self, question: Question) -> dict[str, Any]:
        return {
            "model": self._settings.model,
            "temperature": 0.0,
            "messages": [dict(one) for one in question.messages],
            self._limit: self._settings.tokens,
            **self._settings.fields(),
        }

    def _key(self, question: Question) -> str:
        return request_key(self._body(question), 0)

    def _find_limit(self, rows: Sequence[Row]) -> None:
        """How this endpoint calls the most tokens: told by a question that is asked anyway.

        By one of those that it does not refuse, the first and the last of some sets, which are
        mostly about other answers: it may be the question's own fault.
        """
        if self._limit:
            return
        tries = [one for row in rows for one in (questions(*row)[0], questions(*row)[-1])]
        for at, question in enumerate(tries, 1):
            for self._limit in _LIMITS:
                try:
                    self._ask(question)
                    return
                except Refusal as refusal:
                    last = at == len(tries) and self._limit == _LIMITS[-1]
                    if last or refusal.status not in _ABOUT_ONE:
                        raise


def _number(key: str) -> int:
    return int(key[:12], 16)


def _groups(rows: Sequence[Row], least: int) -> Iterator[list[Row]]:
    """Rows so many at a time that no request waits for another set's answers."""
    group: list[Row] = []
    for row in rows:
        group.append(row)
        if questions_about(group) >= least:
            yield group
            group = []
    if group:
        yield group
