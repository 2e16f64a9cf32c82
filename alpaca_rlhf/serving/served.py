"""The sampler behind HTTP: completions to rank from an endpoint, such as an export under vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alpaca_rlhf.core.prompts import chat_messages
from alpaca_rlhf.core.records import Completion, Instruction
from alpaca_rlhf.llm.client import EndpointUser, request_seed
from alpaca_rlhf.llm.wire import Answer
from alpaca_rlhf.serving.sampling_settings import SamplingSettings
from alpaca_rlhf.settings import Sampler


class EndpointModel(EndpointUser):
    """Model behind an endpoint that answers as `PolicyServer` does. Use it in a `with` block.

    Args:
        settings: The endpoint, and what it may cost.
        folder: Folder of the request cache: no prompt is asked twice.
        max_tokens: Tokens of a completion at most, where the caller sets no limit.
        client_options: Further arguments of `EndpointClient`.

    Raises:
        UserError: The key is not in the environment, or the cache is damaged.
    """

    def __init__(
        self, settings: Sampler, folder: Path, *, max_tokens: int, **client_options: Any
    ) -> None:
        super().__init__(settings, folder, **client_options)
        self._settings = settings
        self._max_tokens = max_tokens

    def fingerprint(self, policy: str) -> str:
        """Name of the model in the records of its completions."""
        return f"http:{self._settings.model}"

    def candidates(
        self,
        policy: str,
        rows: Sequence[Instruction],
        sampling_settings: SamplingSettings,
        *,
        k: int,
    ) -> list[list[Completion]]:
        """K completions of each prompt; fewer where a request was given up.

        Raises:
            UserError: A budget is spent, or the endpoint refuses or is gone. Its replies are kept;
                the same call goes on.
        """
        max_tokens = sampling_settings.max_new_tokens or self._max_tokens
        draws = [(place, row, sample) for place, row in enumerate(rows) for sample in range(k)]
        outcomes = self._client.ask_all(
            self._client.request(
                {
                    "messages": chat_messages(row),
                    "temperature": sampling_settings.temperature,
                    "top_p": sampling_settings.top_p,
                    "max_tokens": max_tokens,
                    "seed": request_seed(sampling_settings.seed, row.id, sample),
                },
                max_tokens,
                draw=sample,
            )
            for _, row, sample in draws
        )
        completions: list[list[Completion]] = [[] for _ in rows]
        for (place, row, sample), answer in zip(draws, outcomes, strict=True):
            if isinstance(answer, Answer):
                completions[place].append(
                    Completion(
                        prompt_id=row.id,
                        text=answer.text.strip(),
                        adapter=self.fingerprint(policy),
                        sampling=f"temperature={sampling_settings.temperature:g} "
                        f"top_p={sampling_settings.top_p:g} "
                        f"max_new_tokens={max_tokens}",
                        seed=sampling_settings.seed,
                        sample=sample,
                        finish_reason="eos" if answer.whole else "length",
                        n_tokens=answer.tokens_out,
                    )
                )
        return completions
