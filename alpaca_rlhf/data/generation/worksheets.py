"""Alpaca's recipe, and the parser of its worksheets, which continue `prompts.worksheet_prompt`.

The original splits at every `###` (tatsu-lab/stanford_alpaca@4187a25 generate_instruction.py:83),
so that a Markdown heading in an answer cuts the row and loses all later ones. Here a block ends
only at a line that is exactly `###` and is followed by the next block's number or by the end.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence

from alpaca_rlhf.core.prompts import worksheet_prompt
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data.generation.filters import Drop, is_no_input
from alpaca_rlhf.data.generation.recipe import SOURCE, GenerationRequest
from alpaca_rlhf.data.generation.teachers import Reply

_HEAD = re.compile(r"^(\d+)\.[ \t]*Instruction:", re.MULTILINE)
_CLOSE = re.compile(r"^###[ \t]*$", re.MULTILINE)
_FIELDS = re.compile(
    r"\s*(\d+)\.[ \t]*Instruction:(.*?)^\1\.[ \t]*Input:(.*?)^\1\.[ \t]*Output:(.*)",
    re.DOTALL | re.MULTILINE,
)
_MAX_QUOTE = 80  # characters of a block that its drop's detail quotes


class AlpacaRecipe:
    """Worksheets of seed tasks, as in Alpaca (stanford_alpaca@761dc5b generate_instruction.py).

    The teacher's own rows are never shown to it, and every request is of the same kind.
    """

    def __init__(
        self, seeds: Sequence[Instruction], *, seed: int, demonstrations: int, batch_size: int
    ) -> None:
        self._seeds = seeds
        self._seed = seed
        self._count = demonstrations
        self._batch_size = batch_size

    def phase(self, first: int) -> list[GenerationRequest]:
        """One batch of requests for worksheets."""
        return [
            GenerationRequest("worksheet", worksheet_prompt(self._demonstrations(number)))
            for number in range(first, first + self._batch_size)
        ]

    def read(self, ask: GenerationRequest, reply: Reply) -> tuple[list[Instruction], list[Drop]]:
        """The tasks on the worksheet."""
        finished = reply.finish_reason == "eos"
        return parse_worksheet(reply.text, self._count + 1, finished=finished)

    def learn(self, ask: GenerationRequest, reply: Reply, accepted: Sequence[Instruction]) -> None:
        """Do nothing: prompts show seed tasks only."""

    def _demonstrations(self, request: int) -> list[Instruction]:
        return demonstrations(self._seeds, self._count, seed=self._seed, request=request)


def demonstrations(
    seeds: Sequence[Instruction], count: int, *, seed: int, request: int
) -> list[Instruction]:
    """The seed tasks that a request shows, a function of seed and request number alone."""
    return random.Random(f"{seed}/{request}").sample(seeds, count)


def parse_worksheet(
    text: str, start_number: int, *, finished: bool = False
) -> tuple[list[Instruction], list[Drop]]:
    """Parse the tasks of a worksheet, in order.

    Args:
        text: The teacher's reply after `{start_number}. Instruction:`, which it may repeat.
        start_number: Number of the first block.
        finished: The teacher ended by itself, so the last block is complete without a `###`.

    Returns:
        Rows, and a `Drop` for each block that is cut, misnumbered, merged with the next, or lacks a
        field.
    """
    text = text.replace("\r\n", "\n")
    if not _HEAD.match(text.lstrip()):
        text = f"{start_number}. Instruction:{text}"
    rows: list[Instruction] = []
    drops: list[Drop] = []
    expected = start_number
    for block, closed in _blocks(text, finished):
        result = (
            _parse(block, expected) if closed else Drop("cut", f"ends without ###: {_quote(block)}")
        )
        if isinstance(result, Drop):
            drops.append(result)
            # Later blocks are numbered after the last number in the broken one.
            heads = _HEAD.findall(block)
            expected = int(heads[-1]) if heads else expected
        else:
            rows.append(result)
        expected += 1
    return rows, drops


def _blocks(text: str, finished: bool) -> Iterator[tuple[str, bool]]:
    """Yield each block, and True if it is closed."""
    start = 0
    for mark in _CLOSE.finditer(text):
        if _at_boundary(text[mark.end() :].lstrip()):
            yield text[start : mark.start()], True
            start = mark.end()
    if text[start:].strip():
        yield text[start:], finished


def _at_boundary(rest: str) -> bool:
    """True if a `###` line is followed by nothing, the head of a block, or a head cut short."""
    if not rest or _HEAD.match(rest):
        return True
    number = re.match(r"\d+", rest)
    return number is not None and f"{number[0]}. Instruction:".startswith(rest)


def _parse(block: str, expected: int) -> Instruction | Drop:
    fields = _FIELDS.match(block)
    if fields is None:
        return Drop(
            "fields", f"needs Instruction, Input and Output under one number: {_quote(block)}"
        )
    number = int(fields[1])
    instruction, input_, output = (fields[group].strip() for group in (2, 3, 4))
    row = Instruction(instruction, "" if is_no_input(input_) else input_, output, SOURCE)
    if number != expected:
        return Drop("number", f"numbered {number} where {expected} comes next", row)
    merged = rf"^(?:{number}\.[ \t]*(?:Instruction|Input|Output)|{number + 1}\.[ \t]*Instruction):"
    for text in (instruction, input_, output):
        if head := re.search(merged, text, re.MULTILINE):
            return Drop("merged", f"another block begins inside: {head[0]!r}", row)
    for name, text in (("instruction", instruction), ("output", output)):
        if not text:
            return Drop("empty", f"the {name} is empty", row)
    return row


def _quote(block: str) -> str:
    text = " ".join(block.split())
    return repr(text if len(text) <= _MAX_QUOTE else text[: _MAX_QUOTE - 3] + "...")
