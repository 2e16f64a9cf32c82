"""The permanent record of each prompt's split, so that rows can be added later.

`deal` assigns; the record is a file of JSON lines. What was assigned stays: a new prompt near an
earlier one joins its split, and a prompt that lies between two splits enters neither.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from alpaca_rlhf.core import jsonl
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import atomic_write, json_text
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data.generation.filters import Drop

_MEND = "restore the file, or split into a new folder"


@dataclass(frozen=True)
class SplitAssignment:
    """A prompt and its split."""

    id: str
    """`Instruction.id` of the prompt."""
    split: str
    """`sft`, `rank`, `ppo`, `dev` or `eval`."""
    texts: tuple[str, ...]
    """The user's text; for a conversation, one for each turn, with all user turns up to it."""


def files_of(
    rows: Iterable[Instruction], assigned: Iterable[SplitAssignment], names: Iterable[str]
) -> tuple[dict[str, list[Instruction]], list[Drop]]:
    """The rows of each split's file, in the order of `rows`, and the rows that do not fit there.

    `sft` gets every row that has an output, the other splits every prompt once. Rows without a
    split are omitted.
    """
    split_of = {assignment.id: assignment.split for assignment in assigned}
    files: dict[str, list[Instruction]] = {name: [] for name in names}
    drops: list[Drop] = []
    written: set[tuple[str, str | None]] = set()
    for row in rows:
        split = split_of.get(row.id)
        if split is None:
            continue
        # SFT learns from each answer, so only the same prompt with the same output is a repeat.
        identity = (row.id, row.output if split == "sft" else None)
        if split == "sft" and row.output is None:
            drops.append(Drop("no output", "its prompt is one of sft, and it has no output", row))
        elif identity in written:
            drops.append(Drop("repeated", f"stands in {split} already", row))
        else:
            written.add(identity)
            files[split].append(row)
    return files, drops


def read_assignments(path: Path) -> list[SplitAssignment]:
    """Read the file of `write_assignments`; an absent file holds none.

    Raises:
        UserError: It cannot be read, or a line is not an assignment.
    """
    if not path.exists():
        return []
    lines = jsonl.lines(path, expected="an assignment", mend=_MEND, whole=True)
    return [_parse(line, path) for line in lines]


def write_assignments(path: Path, assigned: Iterable[SplitAssignment]) -> None:
    """Write assignments, one a line, all or nothing."""
    lines = [json_text(asdict(assignment), path.name) + "\n" for assignment in assigned]
    atomic_write(path, "".join(lines))


def _parse(line: jsonl.Line, path: Path) -> SplitAssignment:
    try:
        assignment = SplitAssignment(**{**line.value, "texts": tuple(line.value["texts"])})
        fields = (assignment.id, assignment.split, *assignment.texts)
        if not all(isinstance(text, str) for text in fields):
            raise TypeError
    except (TypeError, KeyError):
        raise UserError(f"{path}:{line.number}: is not an assignment; {_MEND}") from None
    return assignment
