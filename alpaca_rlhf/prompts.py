"""The one place that renders prompt text.

Three templates for instructions, and the numbered worksheet that shows a base model solved tasks
and lets it go on. The texts are exact: a changed blank is another prompt. The chat template belongs
to the tokenizer, so it is filled in where there is one; `chat_messages` says with what.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from alpaca_rlhf.records import Instruction

TEMPLATES = ("brief", "alpaca", "chat")
"""Names of the prompt templates."""

NO_INPUT = "<noinput>"
"""What a worksheet writes for an empty input (stanford_alpaca@761dc5b generate_instruction.py)."""

Segment = tuple[str, bool]
"""Text, and whether it carries loss in SFT."""

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

_CONTINUE = (
    "The user's text breaks off. Go on with it exactly where it ends, in the same form. Write "
    "nothing but what comes next: no greeting, no remark, no code fence. If it is a numbered list "
    "or a worksheet, go on with as many further items as fit, each in the form of those before."
)


def render(template: str, instruction: Instruction) -> str:
    """The prompt of a lone task, up to where the completion starts; a conversation has `blocks`.

    Args:
        template: `brief` (headings only, for small contexts) or `alpaca` (Stanford's preambles).
        instruction: The task; its Input section is left out when its input is empty. Its history
            is not looked at.

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


def blocks(template: str, instruction: Instruction) -> tuple[str, ...]:
    """The text before each reply of a conversation, the one to come included; one of a lone task.

    Between two of them stand a reply (after `lead`) and the eos token, which is no text. The first
    block is the prompt of a lone task. Later ones have a blank line and the headings: a preamble
    stands once, and an Input section where the last turn has an input.

    Raises:
        ValueError: As in `render`.
    """
    tasks = [*(Instruction(user) for user, _ in instruction.history), instruction]
    later = [f"\n\n{render(template, one).removeprefix(_preamble(one, template))}" for one in tasks]
    return (render(template, tasks[0]), *later[1:])


def _preamble(instruction: Instruction, template: str) -> str:
    if template != "alpaca":
        return ""
    text = _ALPACA_INPUT if instruction.input else _ALPACA_NO_INPUT
    return text.partition("### ")[0]


def lead(template: str) -> str:
    """What stands between a prompt and its completion and belongs to neither.

    A blank in `brief`, so that an answer begins with the tokens that it has within a line, which
    are those that a base knows it by.
    """
    return _LEADS.get(template, "")


def user_text(instruction: Instruction) -> str:
    """The last turn in one piece, as a chat has it: the input below the instruction."""
    if not instruction.input:
        return instruction.instruction
    return f"{instruction.instruction}\n\n{instruction.input}"


def chat_messages(instruction: Instruction) -> list[dict[str, str]]:
    """What fills a tokenizer's chat template: every turn, the last one the user's."""
    earlier = [
        {"role": role, "content": said}
        for turn in instruction.history
        for role, said in zip(("user", "assistant"), turn, strict=True)
    ]
    return [*earlier, {"role": "user", "content": user_text(instruction)}]


def continue_messages(prompt: str) -> list[dict[str, str]]:
    """A text that breaks off, as a chat: for a model that follows instructions, to go on with it.

    A base model is given the text itself.
    """
    return [{"role": "system", "content": _CONTINUE}, {"role": "user", "content": prompt}]


def marked(segments: Iterable[Segment]) -> str:
    """Segments as plain text, with [[...]] around what carries loss."""
    return "".join(f"[[{text}]]" if learned else text for text, learned in segments)


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
