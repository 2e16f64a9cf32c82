"""Answers of a policy to the prompts of a file, for other people's benchmarks.

While they are written the answers lie in a log beside the file, whose first line says what they
were asked for: a killed run goes on after the last whole line, and the file itself appears whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alpaca_rlhf.core import jsonl
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import atomic_write, only_one
from alpaca_rlhf.core.prompts import user_text
from alpaca_rlhf.core.records import Completion, Instruction, content_hash
from alpaca_rlhf.data.readers.formats import instructions_of
from alpaca_rlhf.data.readers.problems import BadRow, LeftOut
from alpaca_rlhf.data.readers.rows import columns_of, no_rows, open_rows
from alpaca_rlhf.serving.answerer import Answerer
from alpaca_rlhf.serving.sampling_settings import SamplingSettings

DETAILS = "alpaca_rlhf"
"""Column with the policy, the sampling settings and how each answer ended."""


_LATER_SETTINGS = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "stop": []}
"""Sampling settings that earlier versions did not have, and what they answered by."""


@dataclass(frozen=True)
class Prompt:
    """One row of the user's file."""

    columns: Mapping[str, Any]
    """The row as it was read."""
    instruction: Instruction
    place: str
    """Its place, for messages: `file:line`."""


@dataclass(frozen=True)
class AnswerFile:
    """The request for a file of answers."""

    out: Path
    """The file to write."""
    policy: str
    """The policy that answers."""
    sampling_settings: SamplingSettings
    """The sampling settings."""
    column: str = "response"
    """Column of the answer."""

    @property
    def log(self) -> Path:
        """The log of a file that is not finished."""
        return self.out.with_name(f".{self.out.name}.part")

    def refuse_existing(self) -> None:
        """Refuse a file that is there.

        Raises:
            UserError: It is there.
        """
        if self.out.exists():
            raise UserError(f"--out {self.out}: is there already; give another file, or remove it")

    def write(
        self, answerer: Answerer, prompts: Sequence[Prompt], *, batch: int
    ) -> Iterator[tuple[int, int]]:
        """Answer every prompt, in the order of the file.

        Args:
            answerer: Answers.
            prompts: The rows.
            batch: Prompts at once; it changes no answer.

        Yields:
            Prompts answered so far and their number, at first and after each batch.

        Raises:
            UserError: A prompt leaves no room for an answer, the file exists or cannot be written.
        """
        self.refuse_existing()
        busy = f"--out {self.out}: another process is writing it; wait for it"
        with only_one(self.out.parent, busy):
            # 1. What an interrupted run of the same request has written.
            header = {"request": self._request(answerer, prompts)}
            done = self._done(header)
            yield done, len(prompts)
            # 2. The others, batch by batch.
            while done < len(prompts):
                rows = self._answered(answerer, prompts[done : done + batch])
                jsonl.append(self.log, rows, sync=True)
                done += len(rows)
                yield done, len(prompts)
            # 3. The file, without the header.
            _, _, content = self.log.read_bytes().partition(b"\n")
            atomic_write(self.out, content)
            self.log.unlink()

    def _request(self, answerer: Answerer, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """All that the answers depend on, as it is read back from JSON."""
        sampling = {**asdict(self.sampling_settings), "stop": [*self.sampling_settings.stop]}
        for name, default in _LATER_SETTINGS.items():  # logs of earlier versions lack them
            if sampling[name] == default:
                del sampling[name]
        return {
            "policy": self.policy,
            "fingerprint": answerer.fingerprint(self.policy),
            "manner": sampling,  # its name in the logs that exist
            "column": self.column,
            "prompts": content_hash(
                *(json.dumps(prompt.columns, sort_keys=True, default=str) for prompt in prompts)
            ),
        }

    def _done(self, header: Mapping[str, Any]) -> int:
        """Number of answers in the log; one of another request is begun anew."""
        if self.log.is_file():
            lines = jsonl.lines(self.log, expected="an answer", mend="remove it")
            first = next(lines, None)
            if first is not None and first.value == header:
                return sum(1 for _ in lines)
            self.log.unlink()
        jsonl.append(self.log, [header])
        return 0

    def _answered(self, answerer: Answerer, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
        instructions = [prompt.instruction for prompt in prompts]
        try:
            completions = answerer.candidates(
                self.policy, instructions, self.sampling_settings, k=1
            )
        except UserError as error:
            if len(prompts) > 1:  # find the one that is too long
                return [row for prompt in prompts for row in self._answered(answerer, [prompt])]
            raise UserError(f"{prompts[0].place}: {error}") from None
        return [
            self._row(prompt, completion)
            for prompt, (completion,) in zip(prompts, completions, strict=True)
        ]

    def _row(self, prompt: Prompt, completion: Completion) -> dict[str, Any]:
        details = {
            "policy": self.policy,
            "sampling": completion.sampling,
            "seed": completion.seed,
            "finish_reason": completion.finish_reason,
            "tokens": completion.n_tokens,
        }
        prompt_column = {"prompt": user_text(prompt.instruction)}
        return (
            prompt_column
            | dict(prompt.columns)
            | {self.column: completion.text.strip()}
            | {DETAILS: details}
        )


def read_rows(path: Path) -> list[Prompt]:
    """The prompts of a file, each with all columns of its row.

    Raises:
        UserError: It cannot be read, or a row of it has no prompt or several.
    """
    rows = open_rows(str(path))
    prompts = []
    for number, row in rows:
        place = rows.place(number)
        try:
            columns = columns_of(row)
            instructions = instructions_of(columns, rows.origin)
        except (BadRow, LeftOut) as problem:
            raise UserError(f"{place}: {problem}") from None
        if len(instructions) != 1:
            raise UserError(f"{place}: holds {len(instructions)} prompts; give one a row")
        prompts.append(Prompt(columns, instructions[0], place))
    if not prompts:
        raise UserError(no_rows(str(path)))
    return prompts
