r"""Marks of chat templates within texts that the base's own template is still to be put around.

A prompt that was rendered before would be rendered twice, and an answer that ends with an end of
turn would be learned with it as text, the real end after it. Both are refused. A text that only
speaks of marks is a text like any other.
"""

from __future__ import annotations

import re

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data.readers.problems import BadRow

HEADER = re.compile(
    # `Assistant:` after any blank, and `Model:` and the like on a line of their own;
    r"(?:(?:^|\s)(?:assistant|chatgpt|gpt)\s*:|^(?:bot|model|ai)\s*:"
    # `<|im_start|>assistant`, `<start_of_turn>model`, `<|assistant|>` and the like;
    r"|[>|](?:assistant|model|bot)(?:<\|\w+\|>|\|>|>)?|\[/INST\]|### Response:)\Z",
    re.IGNORECASE | re.MULTILINE,
)
"""The end of a prompt that is not the user's: the mark, in some template, before an answer."""

_ANSWER = (
    r"\[/INST\]|<\|im_start\|>assistant|<\|start_header_id\|>assistant<\|end_header_id\|>"
    r"|<start_of_turn>model|<\|assistant\|>|<\|CHATBOT_TOKEN\|>|<\uff5cAssistant\uff5c>"
)
_HEADING = "### (?:Response|Assistant):"
_END_MARKS = (
    "</s>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end|>",
    "<|return|>",
    "<|END_OF_TURN_TOKEN|>",
    "<end_of_turn>",
    "<eos>",
    "<\uff5cend▁of▁sentence\uff5c>",
)
_END = "|".join(map(re.escape, _END_MARKS))
_USER = (
    r"\[INST\]|<\|im_start\|>(?:system|user)\n|<start_of_turn>user\n|<\uff5cUser\uff5c>"
    r"|<\|start_header_id\|>(?:system|user)<\|end_header_id\|>|<\|(?:system|user|prompter)\|>"
    r"|<\|START_OF_TURN_TOKEN\|>"
)
_BEGINS_RENDERED = (
    # It begins with the mark of a turn, after the begin of a text, and a later mark ends that turn.
    re.compile(
        r"(?:<s>|<bos>|<\|begin_of_text\|>|<\|endoftext\|>|<\uff5cbegin▁of▁sentence\uff5c>)?\s*"
        rf"(?:{_USER}).*?({_ANSWER}|{_END})",
        re.DOTALL,
    ),
    re.compile(rf"### (?:Instruction|Human|User):.*?({_HEADING})", re.DOTALL),
)
_ENDS_RENDERED = (
    # A system text comes first, and the mark of an answer ends it: that, and the mark before it.
    (re.compile("<\uff5cAssistant\uff5c>"), re.compile("<\uff5cUser\uff5c>")),
    (re.compile(_HEADING), re.compile(r"\n### (?:Instruction|Human|User):")),
    (re.compile(r"\sASSISTANT:"), re.compile(r"(?:\A|\s)USER:")),
)
_LONGEST_MARK = 32
_DIALOGUE = re.compile(
    rf"{_ANSWER}|{_HEADING}|### (?:Answer|Output):|^(?:Assistant|Bot|Answer|A):|(?:^|\s)ASSISTANT:",
    re.MULTILINE,
)


def holds_answer(text: str) -> bool:
    """True for a text with the mark before an answer, in some template or transcript."""
    return _DIALOGUE.search(text) is not None


def refuse_rendered(text: str, label: str) -> None:
    """Refuse a prompt that a chat template has already been put around.

    Raises:
        BadRow: It is one; the message begins with `label`.
    """
    mark = _rendered_mark(text.strip())
    if mark is not None:
        raise BadRow(
            f"{label} is rendered with a chat template already (`{mark}`), and the base's own "
            "is put around it: give the user's words alone, or all turns as a list of messages "
            "(`role`, `content`) in `prompt`"
        )


def _rendered_mark(text: str) -> str | None:
    """The mark that ends a turn of a rendered text; None for others. Takes linear time."""
    for pattern in _BEGINS_RENDERED:
        if match := pattern.match(text):
            return match[1]
    # Only the end is searched for the last mark: a pattern for both would try all pairs of places.
    start = max(0, len(text) - _LONGEST_MARK)
    for last, first in _ENDS_RENDERED:
        ends = [match for match in last.finditer(text, start) if match.end() == len(text)]
        if ends and first.search(text, 0, ends[0].start()):
            return ends[0][0].strip()
    return None


def refuse_end_marks(prompt: Instruction, *answers: str | None) -> None:
    """Refuse answers, and replies before them, that end with an end of turn as text.

    `</s>` that closes an earlier `<s>` is HTML.

    Raises:
        BadRow: One does.
    """
    for text in (*answers, *(reply for _, reply in prompt.history)):
        mark = _end_mark(text or "")
        if mark is None:
            continue
        command = f"sed -E 's#{re.escape(mark)}( |\\\\n)*\"#\"#g' FILE"
        raise BadRow(
            f"an answer ends with `{mark}`, which would be learned as text, the base's own end "
            f"after it: take it off (JSON lines: {command})"
        )


def without_end_marks(text: str) -> str:
    """The text without the ends of turns that stand at its end."""
    while (mark := _end_mark(text)) is not None:
        text = text.rstrip().removesuffix(mark)
    return text


def _end_mark(text: str) -> str | None:
    """The end of a turn that a text ends with; None without one."""
    ending = text.rstrip()
    mark = next((mark for mark in _END_MARKS if ending.endswith(mark)), None)
    return None if mark == "</s>" and _closes_tags(ending) else mark


def _closes_tags(text: str) -> bool:
    """True if every `</s>` of a text closes a tag, which may have attributes."""
    return len(re.findall(r"<s[\s>]", text)) >= text.count("</s>")
