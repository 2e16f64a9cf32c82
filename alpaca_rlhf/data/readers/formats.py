"""Instructions from files and into files: Alpaca's columns and their relatives.

Reading converts without loss: no text is stripped, joined or changed. What the originals let slip
through (an empty output, a number where text belongs) is refused with its line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alpaca_rlhf.core.files import atomic_write
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data.readers.columns import (
    INPUT,
    INSTRUCTION,
    OUTPUT,
    refuse_marked_bad,
    refuse_unsupported,
    with_system,
)
from alpaca_rlhf.data.readers.conversations import (
    conversation,
    dialogue_history,
    holds_conversation,
)
from alpaca_rlhf.data.readers.problems import EmptyRow
from alpaca_rlhf.data.readers.reading import Reading
from alpaca_rlhf.data.readers.rows import BadRow, collect, text_column, type_name


def read_instructions(path: Path, reading: Reading | None = None) -> list[Instruction]:
    """Tasks with their answers.

    Columns: `instruction` (or `prompt`), `input` (or `context`; may be absent), `output` (or
    `completion`, `response`). Rows in the manner of Self-Instruct's seed tasks (`instruction`,
    `instances`) give one task an instance. Conversations (`messages`, `conversations`; or Alpaca's
    columns with a `history` of pairs; or a `prompt` of messages and its `completion`) give one row
    each: its last reply is the output. A row that a KTO `label` or a `weight` of 0 marks as bad
    gives none; one with tools, images or a system text that has no place is broken. Other columns
    are named in the account. `source` is the row's own, or the name of the file.

    Args:
        path: A JSON array or JSON lines, plain or gzipped; a CSV by its name; a Parquet file.
        reading: Renamed columns, and whether broken rows are left out; its account is filled.

    Raises:
        UserError: `file:line:` of the first broken row (no instruction, an empty output, not text
            ...).
    """
    path = Path(path)
    return collect(path, lambda row: answered_of(row, path.name), reading)


def read_prompts(
    path: Path, reading: Reading | None = None, *, learnt_from: bool = False
) -> list[Instruction]:
    """Like `read_instructions`, but an absent or empty output is None: only prompts are needed.

    A conversation may end with the user's turn. Where the rows may be learnt from later, those
    that their own label marks as bad are left out.
    """
    path = Path(path)

    def convert(row: dict[str, Any]) -> list[Instruction]:
        if learnt_from:
            refuse_marked_bad(row)
        return instructions_of(row, path.name)

    return collect(path, convert, reading)


def write_instructions(path: Path, rows: Iterable[Instruction]) -> None:
    """Write JSON lines that `read_instructions` reads back as they were; all or nothing."""
    lines = [json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in rows]
    atomic_write(Path(path), "".join(lines))


def prompt_columns(row: dict[str, Any]) -> tuple[str, str]:
    """Instruction and input of a row, the instruction not empty."""
    instruction = text_column(row, INSTRUCTION)
    if not instruction.strip():
        raise EmptyRow("the instruction is empty")
    return instruction, text_column(row, INPUT, required=False)


def source_of(row: dict[str, Any], default: str) -> str:
    """The row's own `source`, else `default`."""
    return text_column(row, ("source",), required=False) if "source" in row else default


def answered_of(row: dict[str, Any], file_name: str) -> list[Instruction]:
    """The tasks of one row, as `read_instructions` reads it.

    Raises:
        BadRow: It is broken, or has no answer.
        MarkedBad: Its own label says that it is not to be learnt from.
    """
    refuse_marked_bad(row)
    return _answered(row, instructions_of(row, file_name))


def instructions_of(row: dict[str, Any], file_name: str) -> list[Instruction]:
    """The tasks of one row, as `read_prompts` reads it.

    Raises:
        BadRow: It is broken.
    """
    refuse_unsupported(row)
    source = source_of(row, file_name)
    row = _as_conversation(row)
    if holds_conversation(row):
        return [conversation(with_system(row), source)]
    if "instances" in row:
        instances = row["instances"]
        if not isinstance(instances, list) or not instances:
            raise BadRow(
                f"column `instances` must be a list, not empty, got {type_name(instances)}"
            )
        instruction = text_column(row, ("instruction",))
        columns = [{**_instance(one), "instruction": instruction} for one in instances]
        return [_one(one, source) for one in columns]
    return [_one(row, source)]


def _as_conversation(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose `prompt` or `completion` is a list of messages, as one with `messages`."""
    if holds_conversation(row):
        return row
    prompt = row.get("prompt")
    name = next((name for name in OUTPUT if row.get(name) is not None), OUTPUT[0])
    completion = row.get(name)
    if isinstance(prompt, list):
        answer = [{"role": "assistant", "content": completion}]
        answer = completion if isinstance(completion, list) else answer if completion else []
        return {"messages": [*prompt, *answer]}
    if isinstance(completion, list) and any(isinstance(part, dict) for part in completion):
        instruction, input_text = prompt_columns(row)
        question = f"{instruction}\n\n{input_text}" if input_text else instruction
        return {"messages": [{"role": "user", "content": question}, *completion]}
    return row


def _instance(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRow(
            f"an instance must be an object with `input` and `output`, got {type_name(value)}"
        )
    return value


def _one(row: dict[str, Any], source: str) -> Instruction:
    instruction, given = prompt_columns(row)
    output = text_column(row, OUTPUT, required=False)
    answered = output if output.strip() else None
    return Instruction(instruction, given, answered, source, dialogue_history(row))


def _answered(row: dict[str, Any], made: list[Instruction]) -> list[Instruction]:
    if all(one.output is not None for one in made):
        return made
    if not holds_conversation(row):
        names = " or ".join(f"`{name}`" for name in OUTPUT)
        raise EmptyRow(
            f"the output is empty or absent; expected the answer in {names}, or take the row out"
        )
    what = "ends with the user's turn" if made[0].history else "has no assistant turn"
    raise EmptyRow(f"the conversation {what}: there is no reply to learn from")
