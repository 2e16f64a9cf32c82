"""Reading Self-Instruct's replies: a list of tasks, yes or no, and the instances of one task.

As yizhongw/self-instruct@0b26cca does (bootstrap_instructions.py:42, prepare_for_finetuning.py:72),
with its bugs mended: case is kept, marks count only at the start of a line, and what a reply cut
short leaves is dropped alone and not the whole reply.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data.generation.filters import Drop, is_no_input
from alpaca_rlhf.data.generation.recipe import SOURCE

MOST_INSTANCES = 5
"""Instances of a task that are kept (prepare_for_finetuning.py:225)."""

_ITEM = re.compile(r"^(\d+)\s?\.(?=\s|$)", re.MULTILINE)
_NEXT_TASK = re.compile(r"^Task:", re.MULTILINE)
_LABEL = re.compile(r"^Class label:", re.MULTILINE)
_EXAMPLE = re.compile(r"^Example ?\d*\.?:?[ \t]*$", re.MULTILINE)
_OUTPUT = re.compile(r"^Output ?\d*:", re.MULTILINE)
_INPUT = re.compile(r"^Input ?\d*:[ \t]*", re.MULTILINE)


def parse_tasks(text: str, start: int, *, finished: bool) -> tuple[list[Instruction], list[Drop]]:
    """The tasks of a numbered list that goes on after `{start}.`; a blank line ends it.

    Args:
        text: What the teacher wrote.
        start: Number of the first task.
        finished: The teacher ended by itself, so the last task is whole.

    Returns:
        Tasks without outputs, and a `Drop` for each that is cut, empty, or numbered wrongly.
    """
    body, ended, _ = text.replace("\r\n", "\n").strip("\n").partition("\n\n")
    if not re.match(rf"\s*{start}\s?\.\s", body):
        body = f"{start}. {body.lstrip()}"
    body = body.lstrip()
    heads = [(int(one[1]), one) for one in _ITEM.finditer(body)]
    items: list[tuple[int, int, str]] = []
    expected = start
    marks = []
    for number, mark in heads:
        if number >= expected:  # a smaller one belongs to a list inside the task
            marks.append((number, expected, mark))
            expected = number + 1
    for at, (number, wanted, mark) in enumerate(marks):
        end = marks[at + 1][2].start() if at + 1 < len(marks) else len(body)
        items.append((number, wanted, " ".join(body[mark.end() : end].split())))
    rows: list[Instruction] = []
    drops: list[Drop] = []
    for at, (number, wanted, said) in enumerate(items):
        row = Instruction(said, "", None, SOURCE)
        if at == len(items) - 1 and not (finished or ended):
            drops.append(Drop("cut", "the reply ends inside this task", row))
        elif not said:
            drops.append(Drop("empty", "the task is empty", row))
        elif number != wanted:
            drops.append(Drop("number", f"numbered {number} where {wanted} comes next", row))
        else:
            rows.append(row)
    return rows, drops


def is_classification(text: str) -> bool:
    """Whether a reply begins with Yes; all else is No (generate_instances.py:99)."""
    return re.match(r"\W*yes\b", text, re.IGNORECASE) is not None


def parse_instances(
    text: str, task: Instruction, *, output_first: bool, finished: bool, draw: str
) -> tuple[list[Instruction], list[Drop]]:
    """The instances of a task in a reply.

    Args:
        text: What the teacher wrote after the task.
        task: The task.
        output_first: Labels come before inputs.
        finished: The teacher ended by itself, so the last instance is whole.
        draw: Seeds the choice among more than `MOST_INSTANCES`.

    Returns:
        Rows, and a `Drop` for each instance that is cut, empty, a repetition, or over the most; if
        two have one input and different outputs, for all.
    """
    body = text.replace("\r\n", "\n")
    after = _NEXT_TASK.search(body)
    if after is not None:
        body, finished = body[: after.start()], True
    found = _labelled(body) if output_first else _examples(body)
    rows = [
        Instruction(task.instruction, "" if is_no_input(given) else given, output, SOURCE)
        for given, output in found
    ]
    drops: list[Drop] = []
    if not rows:
        mark = "Class label:" if output_first else "Output:"
        return [], [Drop("fields", f"there is no {mark} in the reply", task)]
    if not finished:
        drops.append(Drop("cut", "the reply ends inside this instance", rows.pop()))
    kept: list[Instruction] = []
    for row in rows:
        if not row.output:
            drops.append(Drop("empty", "the output is empty", row))
        elif row in kept:
            drops.append(Drop("repeat", "the reply holds it already", row))
        else:
            kept.append(row)
    outputs = Counter(row.input for row in kept if row.input)
    if any(count > 1 for count in outputs.values()):
        given = next(one for one, count in outputs.items() if count > 1)
        detail = f"the reply gives different outputs for the input {given!r}"
        return [], drops + [Drop("conflict", detail, row) for row in kept]
    chosen = _choose(kept, draw)
    over = [row for row in kept if row not in chosen]
    drops += [Drop("instances", f"over {MOST_INSTANCES} of one task", row) for row in over]
    return chosen, drops


def _labelled(body: str) -> list[tuple[str, str]]:
    found = []
    for one in _LABEL.split(body)[1:]:
        label, _, given = one.strip().partition("\n")
        found.append((given.strip(), label.strip()))
    return found


def _examples(body: str) -> list[tuple[str, str]]:
    found = []
    for one in _EXAMPLE.split(body):
        given, mark, rest = _split(_OUTPUT, one)
        if mark:
            output, _, _ = _split(_INPUT, rest)  # another pair without a head: the first counts
            found.append((_INPUT.sub("", given.strip(), count=1).strip(), output.strip()))
        elif one.strip():
            found.append((one.strip(), ""))  # an example without an output is told, not lost
    return found if any(output for _, output in found) else []


def _split(pattern: re.Pattern[str], text: str) -> tuple[str, str, str]:
    mark = pattern.search(text)
    if mark is None:
        return text, "", ""
    return text[: mark.start()], mark[0], text[mark.end() :]


def _choose(rows: Sequence[Instruction], draw: str) -> list[Instruction]:
    if len(rows) <= MOST_INSTANCES:
        return list(rows)
    places = random.Random(draw).sample(range(len(rows)), MOST_INSTANCES)
    return [rows[place] for place in sorted(places)]
