"""Answers to rank from a model behind an OpenAI-compatible endpoint, e.g. an export under vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.prompts import chat_messages
from alpaca_rlhf.core.records import Completion, Instruction
from alpaca_rlhf.llm.budget import Account
from alpaca_rlhf.llm.cache import request_key
from alpaca_rlhf.llm.client import Asker, Stopped
from alpaca_rlhf.llm.wire import Answer
from alpaca_rlhf.serving.manner import Manner
from alpaca_rlhf.settings import Sampler


class Served:
    """Answers as `Speaker.candidates` does, over HTTP. Use it in a `with` block.

    Args:
        settings: The endpoint, and what it may cost.
        folder: Where `requests.jsonl` lies: what was asked before is not asked again.
        most: Tokens of an answer, where the manner does not say.
        asking: Goes to `Asker`.

    Raises:
        UserError: The key is not in the environment, or the file is damaged.
    """

    def __init__(self, settings: Sampler, folder: Path, *, most: int, **asking: Any) -> None:
        self._settings = settings
        self._most = most
        self._asker = Asker(settings, folder, **asking)

    def __enter__(self) -> Served:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._asker.close()

    @property
    def account(self) -> Account:
        """What happened on the wire so far."""
        return self._asker.account

    def fingerprint(self, policy: str) -> str:
        """What tells its answers from those of all others in records."""
        return f"http:{self._settings.model}"

    def candidates(
        self, policy: str, rows: Sequence[Instruction], manner: Manner, *, k: int
    ) -> list[list[Completion]]:
        """K completions of each prompt; fewer where a request was given up.

        Raises:
            UserError: A budget is spent, or the endpoint refuses or is gone. What it has written
                is kept; the same call goes on.
        """
        jobs = [
            partial(self._one, at, row, j, manner) for at, row in enumerate(rows) for j in range(k)
        ]
        try:
            found = self._asker.all(jobs)
        except Stopped as stopped:
            if isinstance(stopped.why, UserError):
                raise UserError(str(stopped.why)) from None
            raise stopped.why from None
        own: list[list[Completion]] = [[] for _ in rows]
        for at, one in found:
            own[at].append(one)
        return own

    def _one(
        self, at: int, row: Instruction, number: int, manner: Manner
    ) -> tuple[int, Completion] | None:
        tokens = manner.max_new_tokens or self._most
        digest = blake2b(f"{manner.seed}/{row.id}/{number}".encode(), digest_size=4).digest()
        body = {
            "model": self._settings.model,
            "messages": chat_messages(row),
            "temperature": manner.temperature,
            "top_p": manner.top_p,
            "max_tokens": tokens,
            "seed": int.from_bytes(digest, "big") >> 1,
            **self._settings.fields(),
        }
        key = request_key(body, number)
        answer = self._asker.cached(key)
        if answer is None:
            asked = self._asker.answer(int(key[:12], 16), body, tokens, key)
            if not isinstance(asked, Answer):
                return None
            answer = asked
        return at, Completion(
            prompt_id=row.id,
            text=answer.text.strip(),
            adapter=self.fingerprint(""),
            sampling=f"temperature={manner.temperature:g} top_p={manner.top_p:g} "
            f"max_new_tokens={tokens}",
            seed=manner.seed,
            sample=number,
            finish_reason="eos" if answer.whole else "length",
            n_tokens=answer.tokens_out,
        )
