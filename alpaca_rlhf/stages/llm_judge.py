"""The LLM judge: a model behind an OpenAI-compatible endpoint that ranks in place of people."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.prompts import judge_messages
from alpaca_rlhf.core.records import Completion, Instruction, content_hash
from alpaca_rlhf.llm.client import EndpointRequest, EndpointUser, Outcome
from alpaca_rlhf.llm.wire import Answer, Refusal
from alpaca_rlhf.preferences import JUDGE, JudgeIdentity
from alpaca_rlhf.preferences.pairwise import Order, Question, order_of, questions, verdict_of
from alpaca_rlhf.settings import Judge

Row = tuple[Instruction, Sequence[Completion]]
"""A set to rank: a prompt and its completions."""

BATCH_RANKINGS = 32
"""Rankings that are saved in one transaction."""

PATIENCE = 3
"""Sets in a row, refused whole, after which the endpoint is taken to refuse everything."""

_ABOUT_ONE_REQUEST = (400, 413, 422)
"""HTTP statuses of a refusal that may concern one request: too long, or against a policy."""
_LIMITS = ("max_tokens", "max_completion_tokens")
"""Names that endpoints use for the limit on the tokens of a reply."""


def questions_about(rows: Sequence[Row]) -> int:
    """Number of requests that it takes to rank some sets."""
    return sum(2 for _, completions in rows for _ in combinations(completions, 2))


def outcomes(pairs: Mapping[str, int]) -> str:
    """The outcomes of all pairs, as percentages in a sentence."""
    n = max(1, sum(pairs.values()))
    descriptions = {
        "decided": "decided",
        "tied": "tied",
        "inconsistent": "dropped because the verdict changed with the order",
        "unreadable": "without a readable verdict",
    }
    shares = [
        f"{100 * pairs.get(outcome, 0) / n:.0f}% {text}" for outcome, text in descriptions.items()
    ]
    return f"{sum(pairs.values())} pairs: {', '.join(shares)}"


class LLMJudge(EndpointUser):
    """Judge that compares every two completions in both orders. Use it in a `with` block.

    Args:
        settings: The endpoint, and what it may cost.
        folder: Folder of the request cache: no question is asked twice.
        client_options: Further arguments of `EndpointClient`.

    Raises:
        UserError: The key is not in the environment, or the cache is damaged.
    """

    def __init__(self, settings: Judge, folder: Path, **client_options: Any) -> None:
        super().__init__(settings, folder, **client_options)
        self._settings = settings
        self._limit = ""

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

    def rank(
        self, rows: Sequence[Row], *, on_progress: Callable[[int], None] = lambda sets: None
    ) -> Iterator[tuple[Instruction, Order]]:
        """Yield each prompt with the order of its completions.

        Args:
            rows: Prompts with their completions.
            on_progress: Called with the number of sets that are ranked.

        Raises:
            UserError: A budget is spent, or the endpoint refuses or is gone. Its replies are kept;
                the same call goes on.
        """
        done = refused_in_row = 0
        for batch in _batches(rows, 4 * self._settings.concurrency):
            # 1. Ask everything about these sets, both orders of every pair.
            self._find_limit(rows[done : done + PATIENCE])
            replies = self._replies(batch)
            for prompt, completions in batch:
                asked_questions = questions(prompt, completions)
                answers = [replies[self._request(question).key] for question in asked_questions]
                # 2. Read the verdicts. A reply that was cut off has not come to its last word.
                verdicts = {
                    (question.first, question.second): verdict_of(
                        answer.text if answer.whole else ""
                    )
                    for question, answer in zip(asked_questions, answers, strict=True)
                    if isinstance(answer, Answer)
                }
                yield prompt, order_of([completion.id for completion in completions], verdicts)
                # 3. A refusal may concern one set; several sets in a row mean all of them.
                refusals = [answer for answer in answers if isinstance(answer, Refusal)]
                refused_whole = len(refusals) == len(answers)
                refused_in_row = refused_in_row + 1 if refused_whole else 0
                if refused_in_row == PATIENCE:
                    raise UserError(
                        f"{refusals[0]}; all questions about {PATIENCE} sets in a row were refused"
                    )
            done += len(batch)
            on_progress(done)

    def _replies(self, batch: Sequence[Row]) -> dict[str, Outcome]:
        """The outcome of each question by its key; a question that occurs twice is asked once."""
        requests = {
            request.key: request
            for row in batch
            for question in questions(*row)
            for request in (self._request(question),)
        }
        answers = self._client.ask_all(requests.values(), tolerated=_ABOUT_ONE_REQUEST)
        return dict(zip(requests, answers, strict=True))

    def _request(self, question: Question) -> EndpointRequest:
        fields = {
            "temperature": 0.0,
            "messages": [dict(message) for message in question.messages],
            self._limit: self._settings.tokens,
        }
        return self._client.request(fields, self._settings.tokens)

    def _find_limit(self, rows: Sequence[Row]) -> None:
        """Find this endpoint's name for the token limit with a question that is asked anyway.

        A refusal may be due to the question itself. So the first and the last question of some
        sets are tried, which are mostly about different completions.
        """
        if self._limit:
            return
        trials = [
            question for row in rows for question in (questions(*row)[0], questions(*row)[-1])
        ]
        for number, question in enumerate(trials, 1):
            for self._limit in _LIMITS:
                try:
                    self._client.ask(self._request(question))
                    return
                except Refusal as refusal:
                    last = number == len(trials) and self._limit == _LIMITS[-1]
                    if last or refusal.status not in _ABOUT_ONE_REQUEST:
                        raise


def _batches(rows: Sequence[Row], min_questions: int) -> Iterator[list[Row]]:
    """Sets in batches with enough questions to keep all workers busy."""
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if questions_about(batch) >= min_questions:
            yield batch
            batch = []
    if batch:
        yield batch
