"""Instructions from files and into files: Alpaca's columns and their relatives.

Reading converts without loss: no text is stripped, joined or changed. Flaws that the original
tools accept (an empty output, a number in place of text) are refused with their line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from alpaca_rlhf.core.files import atomic_write
from alpaca_rlhf.core.prompts import chat_messages
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data.readers.columns import (
    INPUT,
    INSTRUCTION,
    OUTPUT,
    prompt_column,
    refuse_marked_bad,
    refuse_unsupported,
)
from alpaca_rlhf.data.readers.conversations import (
    conversation,
    dialogue,
    dialogue_history,
    holds_conversation,
    masked_replies,
    read_turns,
    refuse_lost_input,
    system_text,
)
from alpaca_rlhf.data.readers.hints import columns_argument, suggested_columns
from alpaca_rlhf.data.readers.problems import BadRow, EmptyRow, MarkedBad
from alpaca_rlhf.data.readers.reading import Reading
from alpaca_rlhf.data.readers.rows import collect
from alpaca_rlhf.data.readers.template_marks import refuse_end_marks, refuse_rendered
from alpaca_rlhf.data.readers.transcripts import transcript_of
from alpaca_rlhf.data.readers.values import checked_text, text_column, type_name


def read_instructions(path: Path, reading: Reading | None = None) -> list[Instruction]:
    """Read tasks with their answers.

    Columns: `instruction` (or `prompt`), `input` (or `context`; may be absent), `output` (or
    `completion`, `response`). Rows with the columns of Self-Instruct's seed tasks (`instruction`,
    `instances`) give one task per instance. Conversations (`messages`, `conversations`; or Alpaca's
    columns with a `history` of pairs; or a `prompt` of messages and its `completion`) give one task
    each: its last reply is the output; so does a `prompt` that is a transcript of `Human:` and
    `Assistant:` turns (see `transcripts`). A row that a KTO `label` or a loss flag marks as bad
    gives none; a row with tools or images is broken. Other columns are named in the account.
    `source` is that of the row, or else the name of the file.

    Args:
        path: A JSON array or JSON lines, plain or gzipped; a CSV by its suffix; a Parquet file.
        reading: Renamed columns, and the treatment of broken rows; its account is filled.

    Raises:
        UserError: `file:line:` of the first broken row (no instruction, an empty output, not text
            ...).
    """
    path = Path(path)
    return collect(path, lambda row: answered_of(row, path.name), reading)


def read_prompts(
    path: Path, reading: Reading | None = None, *, learnt_from: bool = False
) -> list[Instruction]:
    """Read tasks whose answers may be missing: an absent or empty output is None.

    Otherwise like `read_instructions`. A conversation may end with the user's turn. With
    `learnt_from`, for rows that may be learnt from later, those that a label marks as bad are left
    out.
    """
    path = Path(path)

    def convert(row: dict[str, Any]) -> list[Instruction]:
        if learnt_from:
            refuse_marked_bad(row)
        return instructions_of(row, path.name, learnt=learnt_from)

    return collect(path, convert, reading)


def read_own_tasks(path: Path, *, answered: bool) -> list[Instruction]:
    """Read tasks that a run wrote itself, perhaps in an earlier version: every text as it stands.

    Marks of chat templates are not refused: nothing can be done about them in a run's own file.

    Args:
        path: JSON lines of `write_instructions`.
        answered: True if each has an answer.

    Raises:
        UserError: `file:line:` of the first broken row.
    """
    path = Path(path)

    def convert(row: dict[str, Any]) -> list[Instruction]:
        tasks = _tasks({"history": [], **row}, path.name, learnt=answered)
        return _refuse_unanswered(row, tasks) if answered else tasks

    return collect(path, convert, None)


def write_instructions(path: Path, rows: Iterable[Instruction]) -> None:
    """Write JSON lines that `read_own_tasks` reads back unchanged; all or nothing."""
    lines = [json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in rows]
    atomic_write(Path(path), "".join(lines))


def prompt_columns(row: dict[str, Any]) -> tuple[str, str]:
    """The instruction and the input of a row.

    Beside a history, be it empty, an instruction stands as it is.

    Raises:
        BadRow: The instruction is absent or empty, or rendered with a chat template.
    """
    instruction = text_column(row, INSTRUCTION)
    if not instruction.strip():
        raise EmptyRow("the instruction is empty")
    if row.get("history") is None:
        refuse_rendered(instruction, "the prompt")
    return instruction, text_column(row, INPUT, required=False)


def source_of(row: dict[str, Any], default: str) -> str:
    """The column `source` of a row, which may be a list of texts, or else `default`."""
    if isinstance(row.get("source"), list):
        return ", ".join(checked_text(text, "a text in column `source`") for text in row["source"])
    return text_column(row, ("source",), required=False) if "source" in row else default


def answered_of(row: dict[str, Any], file_name: str) -> list[Instruction]:
    """The tasks of one row, as `read_instructions` reads it.

    Raises:
        BadRow: It is broken, or has no answer.
        MarkedBad: Its label says that it is not to be learnt from.
    """
    if prompt_column(row) is None and not holds_conversation(row):
        text_column(row, INSTRUCTION)  # a verdict on a row without a task says nothing of it
    refuse_marked_bad(row)
    return _refuse_unanswered(row, instructions_of(row, file_name, learnt=True))


def instructions_of(
    row: dict[str, Any], file_name: str, *, learnt: bool = False
) -> list[Instruction]:
    """The tasks of one row, as `read_prompts` reads it; `learnt` if they are learnt from.

    An output that is not learnt may end with an end of turn.

    Raises:
        BadRow: It is broken.
    """
    refuse_unsupported(row)
    tasks = _tasks(row, file_name, learnt=learnt)
    for task in tasks:
        refuse_end_marks(task, task.output if learnt else None)
    return tasks


def _tasks(row: dict[str, Any], file_name: str, *, learnt: bool) -> list[Instruction]:
    source = source_of(row, file_name)
    row = _as_conversation(row)
    if holds_conversation(row):
        return [conversation(row, source, learnt=learnt)]
    instances = row.get("instances")
    if instances is not None:
        if not isinstance(instances, list) or not instances:
            raise BadRow(
                f"column `instances` must be a list, not empty, got {type_name(instances)}"
            )
        instruction = text_column(row, ("instruction",))
        system = system_text(row)
        rows = [
            {**_instance(value), "instruction": instruction, "system": system_text(value) or system}
            for value in instances
        ]
        return [_task(instance_row, source) for instance_row in rows]
    return [_task(row, source)]


def _as_conversation(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose `prompt` or `completion` is a list of messages, as one with `messages`."""
    if holds_conversation(row):
        return row
    prompt = row.get("prompt")
    name = next((name for name in OUTPUT if row.get(name) is not None), OUTPUT[0])
    completion = row.get(name)
    if isinstance(prompt, list):
        refuse_lost_input(row, read_turns(prompt, "column `prompt`"))
        answer = [{"role": "assistant", "content": completion}]
        answer = completion if isinstance(completion, list) else answer if completion else []
        return {**row, "messages": [*prompt, *answer]}
    if isinstance(completion, list) and any(isinstance(part, dict) for part in completion):
        transcript = transcript_of(row)
        question = (
            Instruction(*prompt_columns(row)) if transcript is None else dialogue(transcript.turns)
        )
        return {**row, "messages": [*chat_messages(question), *completion]}
    return row


def _instance(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRow(
            f"an instance must be an object with `input` and `output`, got {type_name(value)}"
        )
    try:
        refuse_marked_bad(value)
    except MarkedBad as mark:
        raise BadRow(f"an instance must be one to learn from: its {mark}; take it out") from None
    return value


def _task(row: dict[str, Any], source: str) -> Instruction:
    text = text_column(row, OUTPUT, required=False)
    output = text if text.strip() else None
    masked = masked_replies(row, len(dialogue_history(row)))
    transcript = transcript_of(row)
    if transcript is not None:
        (answer,) = transcript.answers([text])
        prompt = dialogue(transcript.turns, source=source, row=row)
        return replace(prompt, output=answer or None)
    instruction, input_text = prompt_columns(row)
    history, system = dialogue_history(row), system_text(row)
    return Instruction(instruction, input_text, output, source, history, system, masked)


def _refuse_unanswered(row: dict[str, Any], tasks: list[Instruction]) -> list[Instruction]:
    if all(task.output is not None for task in tasks):
        return tasks
    if not holds_conversation(row):
        names = " or ".join(f"`{name}`" for name in OUTPUT)
        if "chosen" in row and "rejected" in row:
            raise BadRow(
                "the row is a pair of `chosen` and `rejected`, which --inputs.rankings takes; "
                f"expected the answer in {names}"
            )
        flaw = f"the output is empty or absent; expected the answer in {names}, or take the row out"
        outputs = {
            old: new for old, new in suggested_columns(row, "instructions").items() if new in OUTPUT
        }
        if outputs:
            flaw += f"; or is it --columns {columns_argument(outputs)} (a run: --inputs.columns)?"
        raise EmptyRow(flaw)
    flaw = "ends with the user's turn" if tasks[0].history else "has no assistant turn"
    raise EmptyRow(f"the conversation {flaw}: there is no reply to learn from")
