"""The one place that renders prompt text.

Three templates for instructions, and the numbered worksheet that shows a base model solved tasks
and lets it go on. The texts are exact: a changed blank is another prompt. The chat template belongs
to the tokenizer, so it is filled in where there is one; `chat_messages` says with what.
"""

from __future__ import annotations

from collections.abc import Sequence

from alpaca_rlhf.records import Instruction

TEMPLATES = ("brief", "alpaca", "chat")
"""Names of the prompt templates."""

NO_INPUT = "<noinput>"
"""What a worksheet writes for an empty input (stanford_alpaca@761dc5b generate_instruction.py)."""

_ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides "
    "further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
_ALPACA_NO_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
_BRIEF_INPUT = "### Instruction: {instruction}\n\n### Input: {input}\n\n### Response:"
_BRIEF_NO_INPUT = "### Instruction: {instruction}\n\n### Response:"

_LEADS = {"brief": " "}


def render(template: str, instruction: Instruction) -> str:
    """The prompt, up to where the completion starts.

    Args:
        template: `brief` (headings only, for small contexts) or `alpaca` (Stanford's preambles).
        instruction: The task; its Input section is left out when its input is empty.

    Raises:
        ValueError: The template is `chat`, which only a tokenizer can render, or unknown.

    Source: tatsu-lab/stanford_alpaca@761dc5b train.py, PROMPT_DICT. `brief` is ours: values stand
    on the lines of their headings.
    """
    if template == "alpaca":
        text = _ALPACA_INPUT if instruction.input else _ALPACA_NO_INPUT
    elif template == "brief":
        text = _BRIEF_INPUT if instruction.input else _BRIEF_NO_INPUT
    elif template == "chat":
        raise ValueError("the chat template is the tokenizer's: give it chat_messages(instruction)")
    else:
        raise ValueError(f"no template {template!r}; there are {', '.join(TEMPLATES)}")
    return text.format(instruction=instruction.instruction, input=instruction.input)


def lead(template: str) -> str:
    """What stands between a prompt and its completion and belongs to neither.

    A blank in `brief`, so that an answer begins with the tokens that it has within a line, which
    are those that a base knows it by.
    """
    return _LEADS.get(template, "")


def chat_messages(instruction: Instruction) -> list[dict[str, str]]:
    """What fills a tokenizer's chat template: one user turn, the input below the instruction."""
    text = (
        f"{instruction.instruction}\n\n{instruction.input}"
        if instruction.input
        else instruction.instruction
    )
    return [{"role": "user", "content": text}]


def worksheet(demos: Sequence[Instruction], *, next_number: int | None = None) -> str:
    r"""Solved tasks as numbered blocks, each closed by a line of `###`.

    Args:
        demos: Tasks with their outputs. An instruction is put on one line, its white space blanks.
        next_number: Number of a block to open after them, up to its `Instruction:`; or None.

    Raises:
        ValueError: A demo has no output.

    Source: tatsu-lab/stanford_alpaca@761dc5b generate_instruction.py `encode_prompt`; ours has the
    values on the lines of their headings, and `###` after a block instead of before it.
    """
    blocks = []
    for number, demo in enumerate(demos, 1):
        if demo.output is None:
            raise ValueError(f"worksheet: task {demo.instruction!r} has no output to show")
        blocks.append(f"{_question(number, demo)} {demo.output}\n###\n")
    if next_number is not None:
        blocks.append(f"{next_number}. Instruction:")
    return "".join(blocks)


def worksheet_prompt(demos: Sequence[Instruction]) -> str:
    """A worksheet that breaks off at the next task: a base model goes on with one of its own."""
    return worksheet(demos, next_number=len(demos) + 1)


def worksheet_question(demos: Sequence[Instruction], task: Instruction) -> str:
    """A worksheet whose last block asks `task`, up to `Output:`: a base's few-shot control."""
    return worksheet(demos) + _question(len(demos) + 1, task)


def _question(number: int, task: Instruction) -> str:
    instruction = " ".join(task.instruction.split())
    given = task.input or NO_INPUT
    return f"{number}. Instruction: {instruction}\n{number}. Input: {given}\n{number}. Output:"
