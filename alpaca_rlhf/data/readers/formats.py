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
from alpaca_rlhf.data.readers.conversations import (
    conversation,
    dialogue_history,
    holds_conversation,
    masked_replies,
    system_text,
)
from alpaca_rlhf.data.readers.rows import BadRow, collect, text_column, type_name

_INSTRUCTION = ("instruction", "prompt")
_INPUT = ("input", "context")
_OUTPUT = ("output", "completion", "response")


def read_instructions(path: Path) -> list[Instruction]:
    """Tasks with their answers.

    Columns: `instruction` (or `prompt`), `input` (or `context`; may be absent), `output` (or
    `completion`, `response`). Rows in the manner of Self-Instruct's seed tasks (`instruction`,
    `instances`) give one task an instance. Conversations (`messages`, `conversations`; or Alpaca's
    columns with a `history` of pairs) give one row each: its last reply is the output. Other
    columns are ignored. `source` is the row's own, or the name of the file.

    Args:
        path: A JSON array or JSON lines, plain or gzipped; a CSV by its name; a Parquet file.

    Raises:
        UserError: `file:line:` of the first broken row (no instruction, an empty output, not text
            ...).
    """
    path = Path(path)
    return collect(path, lambda row: answered_of(row, path.name))


def read_prompts(path: Path) -> list[Instruction]:
    """Like `read_instructions`, but an absent or empty output is None: only prompts are needed.

    A conversation may end with the user's turn.
    """
    path = Path(path)
    return collect(path, lambda row: instructions_of(row, path.name))


def write_instructions(path: Path, rows: Iterable[Instruction]) -> None:
    """Write JSON lines that `read_instructions` reads back as they were; all or nothing."""
    lines = [json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in rows]
    atomic_write(Path(path), "".join(lines))


def prompt_columns(row: dict[str, Any]) -> tuple[str, str]:
    """Instruction and input of a row, the instruction not empty."""
    instruction = text_column(row, _INSTRUCTION)
    if not instruction.strip():
        raise BadRow("the instruction is empty")
    return instruction, text_column(row, _INPUT, required=False)


def source_of(row: dict[str, Any], default: str) -> str:
    """The row's own `source`, else `default`."""
    return text_column(row, ("source",), required=False) if "source" in row else default


def answered_of(row: dict[str, Any], file_name: str) -> list[Instruction]:
    """The tasks of one row, as `read_instructions` reads it.

    Raises:
        BadRow: It is broken, or has no answer.
    """
    return _answered(row, instructions_of(row, file_name))


def instructions_of(row: dict[str, Any], file_name: str) -> list[Instruction]:
    """The tasks of one row, as `read_prompts` reads it.

    Raises:
        BadRow: It is broken.
    """
    source = source_of(row, file_name)
    if holds_conversation(row):
        return [conversation(row, source)]
    if "instances" in row:
        instances = row["instances"]
        if not isinstance(instances, list) or not instances:
            raise BadRow(
                f"column `instances` must be a list, not empty, got {type_name(instances)}"
            )
        instruction = text_column(row, ("instruction",))
        shared = {"instruction": instruction, "system": system_text(row)}
        columns = [{**_instance(one), **shared} for one in instances]
        return [_one(one, source) for one in columns]
    return [_one(row, source)]


def _instance(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRow(
            f"an instance must be an object with `input` and `output`, got {type_name(value)}"
        )
    return value


def _one(row: dict[str, Any], source: str) -> Instruction:
    instruction, given = prompt_columns(row)
    output = text_column(row, _OUTPUT, required=False)
    answered = output if output.strip() else None
    history = dialogue_history(row)
    masked = masked_replies(row, len(history))
    return Instruction(instruction, given, answered, source, history, system_text(row), masked)


def _answered(row: dict[str, Any], made: list[Instruction]) -> list[Instruction]:
    if all(one.output is not None for one in made):
        return made
    if not holds_conversation(row):
        names = " or ".join(f"`{name}`" for name in _OUTPUT)
        raise BadRow(
            f"the output is empty or absent; expected the answer in {names}, or take the row out"
        )
    what = "ends with the user's turn" if made[0].history else "has no assistant turn"
    raise BadRow(f"the conversation {what}: there is no reply to learn from")
