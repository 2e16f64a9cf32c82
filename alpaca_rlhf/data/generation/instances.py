"""Parsers of Self-Instruct's replies: a list of tasks, yes or no, and the instances of a task.

As yizhongw/self-instruct@0b26cca does (bootstrap_instructions.py:42, prepare_for_finetuning.py:72),
with its bugs fixed: case is preserved, marks count only at the start of a line, and of a reply that
was cut short only the cut task or instance is dropped.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data.generation.filters import Drop, is_no_input
from alpaca_rlhf.data.generation.recipe import SOURCE

MAX_INSTANCES = 5
"""Most instances accepted from one task (prepare_for_finetuning.py:225)."""

_ITEM = re.compile(r"^(\d+)\s?\.(?=\s|$)", re.MULTILINE)
_NEXT_TASK = re.compile(r"^Task:", re.MULTILINE)
_LABEL = re.compile(r"^Class label:", re.MULTILINE)
_EXAMPLE = re.compile(r"^Example ?\d*\.?:?[ \t]*$", re.MULTILINE)
_OUTPUT = re.compile(r"^Output ?\d*:", re.MULTILINE)
_INPUT = re.compile(r"^Input ?\d*:[ \t]*", re.MULTILINE)


def parse_tasks(text: str, start: int, *, finished: bool) -> tuple[list[Instruction], list[Drop]]:
    """The tasks of a numbered list that continues after `{start}.`; a blank line ends it.

    Args:
        text: The teacher's reply.
        start: Number of the first task.
        finished: The teacher ended by itself, so the last task is complete.

    Returns:
        Tasks without outputs, and a `Drop` for each that is cut, empty, or numbered wrongly.
    """
    # 1. Restore the number that the prompt already holds.
    body, ended, _ = text.replace("\r\n", "\n").strip("\n").partition("\n\n")
    if not re.match(rf"\s*{start}\s?\.\s", body):
        body = f"{start}. {body.lstrip()}"
    body = body.lstrip()
    # 2. Find the numbers that begin a task.
    heads: list[tuple[int, int, re.Match[str]]] = []
    expected = start
    for head in _ITEM.finditer(body):
        number = int(head[1])
        if number >= expected:  # a smaller number belongs to a list inside the task
            heads.append((number, expected, head))
            expected = number + 1
    # 3. Accept each task up to the next head, unless it is cut, empty or misnumbered.
    rows: list[Instruction] = []
    drops: list[Drop] = []
    ends = [head.start() for _, _, head in heads[1:]] + [len(body)]
    for (number, expected, head), end in zip(heads, ends, strict=False):
        task = " ".join(body[head.end() : end].split())
        row = Instruction(task, "", None, SOURCE)
        if head is heads[-1][2] and not (finished or ended):
            drops.append(Drop("cut", "the reply ends inside this task", row))
        elif not task:
            drops.append(Drop("empty", "the task is empty", row))
        elif number != expected:
            drops.append(Drop("number", f"numbered {number} where {expected} comes next", row))
        else:
            rows.append(row)
    return rows, drops


def is_classification(text: str) -> bool:
    """True if a reply begins with Yes; anything else counts as No (generate_instances.py:99)."""
    return re.match(r"\W*yes\b", text, re.IGNORECASE) is not None


def parse_instances(
    text: str, task: Instruction, *, output_first: bool, finished: bool, draw: str
) -> tuple[list[Instruction], list[Drop]]:
    """The instances of a task in a reply.

    Args:
        text: The teacher's reply after the task.
        task: The task.
        output_first: Labels come before inputs.
        finished: The teacher ended by itself, so the last instance is complete.
        draw: Seeds the choice among more than `MAX_INSTANCES`.

    Returns:
        Rows, and a `Drop` for each instance that is cut, empty, repeated or beyond the maximum; for
        all of them if two have the same input and different outputs.
    """
    # 1. Split the reply, up to a next task, into pairs of input and output.
    body = text.replace("\r\n", "\n")
    next_task = _NEXT_TASK.search(body)
    if next_task is not None:
        body, finished = body[: next_task.start()], True
    pairs = _labelled(body) if output_first else _examples(body)
    rows = [
        Instruction(task.instruction, "" if is_no_input(input_) else input_, output, SOURCE)
        for input_, output in pairs
    ]
    drops: list[Drop] = []
    if not rows:
        mark = "Class label:" if output_first else "Output:"
        return [], [Drop("fields", f"there is no {mark} in the reply", task)]
    if not finished:
        drops.append(Drop("cut", "the reply ends inside this instance", rows.pop()))
    # 2. Drop empty and repeated instances, and all of them if they contradict each other.
    distinct: list[Instruction] = []
    for row in rows:
        if not row.output:
            drops.append(Drop("empty", "the output is empty", row))
        elif row in distinct:
            drops.append(Drop("repeat", "the reply holds it already", row))
        else:
            distinct.append(row)
    outputs = Counter(row.input for row in distinct if row.input)
    if conflicts := [input_ for input_, count in outputs.items() if count > 1]:
        detail = f"the reply gives different outputs for the input {conflicts[0]!r}"
        return [], drops + [Drop("conflict", detail, row) for row in distinct]
    # 3. Draw among too many.
    chosen = _choose(distinct, draw)
    over = [row for row in distinct if row not in chosen]
    drops += [Drop("instances", f"over {MAX_INSTANCES} of one task", row) for row in over]
    return chosen, drops


def _labelled(body: str) -> list[tuple[str, str]]:
    """(input, label) of each block that begins with a class label."""
    pairs = []
    for block in _LABEL.split(body)[1:]:
        label, _, input_ = block.strip().partition("\n")
        pairs.append((input_.strip(), label.strip()))
    return pairs


def _examples(body: str) -> list[tuple[str, str]]:
    """(input, output) of each example; empty if no example has an output."""
    pairs = []
    for example in _EXAMPLE.split(body):
        input_, mark, rest = _split(_OUTPUT, example)
        if mark:
            output, _, _ = _split(_INPUT, rest)  # a second pair without a head: the first counts
            pairs.append((_INPUT.sub("", input_.strip(), count=1).strip(), output.strip()))
        elif example.strip():
            pairs.append((example.strip(), ""))  # counted as a drop, not lost
    return pairs if any(output for _, output in pairs) else []


def _split(pattern: re.Pattern[str], text: str) -> tuple[str, str, str]:
    mark = pattern.search(text)
    if mark is None:
        return text, "", ""
    return text[: mark.start()], mark[0], text[mark.end() :]


def _choose(rows: Sequence[Instruction], draw: str) -> list[Instruction]:
    if len(rows) <= MAX_INSTANCES:
        return list(rows)
    places = random.Random(draw).sample(range(len(rows)), MAX_INSTANCES)
    # In the order of the reply.
    return [rows[place] for place in sorted(places)]
