"""Prompts that an export is checked with."""

from __future__ import annotations

from collections.abc import Sequence

from alpaca_rlhf.core.records import Instruction

SYSTEM = "Answer in one short sentence."
"""A system message."""

PROBES = (
    Instruction("Name three colours of the rainbow."),
    Instruction("Sort the words by the alphabet.", "pear, apple, fig"),
    Instruction("Translate into French:\n\n  “The café opens at 8:30.”", "línea 1\nline 2"),
    Instruction("请用一句话介绍长城。"),
    Instruction("And twice that?", history=(("What is 12 + 3?", "15."),)),
    Instruction(
        "Put them in order.",
        "9, 4",
        history=(("Hello!", "Hello. What can I do?"), ("Give me two numbers.", " 9 and 4")),
    ),
    Instruction("Why is the sky blue?", system=SYSTEM),
    Instruction("And why is it red?", history=(("Why is it blue?", "Air."),), system=SYSTEM),
)
"""Lone tasks with and without input, conversations, system messages, several scripts."""

_CODE = 'def f(x):\n\treturn {"a": x}  # {{ x }} {% raw %} \\n'

EDGES = (
    Instruction(" \n\tWhy?\u3000\n"),
    Instruction(f"\n\n{_CODE}\n", system=f" {_CODE}\n"),
    Instruction(
        " 然后呢\n",
        history=((" 你好。\n", "\n 你好。\n\n请说。 "), (_CODE, _CODE), ('"""', "`'\"")),
    ),
    Instruction("\nd ", history=(("\ta ", " b\n"), (" c", "C\u00a0")), system="\n\nS:\n 1. x \n"),
)
"""Conversations with white space at the ends of turns, code, quotes and braces."""

UNUSUAL = {
    "an empty question": Instruction("", history=(("", "Yes?"),), system=SYSTEM),
    "an empty reply": Instruction("Hello?", history=(("Hi.", ""),)),
    "a system text of blanks": Instruction("Hi.", system=" \n"),
    "a thought, up to </think>, in an earlier reply": Instruction(
        "And 3 + 3?", history=(("What is 2 + 2?", "<think>\nTwo twos.\n</think>\n\n4."),)
    ),
}
"""Conversations that some chat templates change, by kind."""


def prompts_of_run(answers: Sequence[dict[str, object]], limit: int = 8) -> list[Instruction]:
    """Read the first prompts that a run was evaluated on, from its `answers.jsonl`."""
    rows = []
    for answer in answers[:limit]:
        history = answer.get("history") or ()
        assert isinstance(history, list | tuple)
        turns = tuple((str(user), str(reply)) for user, reply in history)
        system = str(answer.get("system", ""))
        rows.append(
            Instruction(
                str(answer["instruction"]), str(answer["input"]), history=turns, system=system
            )
        )
    return rows
