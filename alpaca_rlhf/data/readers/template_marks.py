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
_RENDERED = (
    # It begins with the mark of a turn, after the begin of a text, and a later mark ends that turn.
    re.compile(
        r"\s*(?:<s>|<bos>|<\|begin_of_text\|>|<\|endoftext\|>|<\uff5cbegin▁of▁sentence\uff5c>)?\s*"
        rf"(?:{_USER}).*?({_ANSWER}|{_END})",
        re.DOTALL,
    ),
    re.compile(rf"\s*### (?:Instruction|Human|User):.*?({_HEADING})", re.DOTALL),
    # A system text comes first, and the mark of an answer ends it.
    re.compile(r".*?<\uff5cUser\uff5c>.*(<\uff5cAssistant\uff5c>)\s*\Z", re.DOTALL),
    re.compile(rf".*?\n### (?:Instruction|Human|User):.*({_HEADING})\s*\Z", re.DOTALL),
    re.compile(r"(?:.*?\s)?USER:.*\s(ASSISTANT:)\s*\Z", re.DOTALL),
)
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
    match = next(filter(None, (pattern.match(text) for pattern in _RENDERED)), None)
    if match is not None:
        raise BadRow(
            f"{label} is rendered with a chat template already (`{match[1]}`), and the base's own "
            "is put around it: give the user's words alone, or all turns as a list of messages "
            "(`role`, `content`) in `prompt`"
        )


def refuse_end_marks(prompt: Instruction, *answers: str | None) -> None:
    """Refuse answers, and replies before them, that end with an end of turn as text.

    `</s>` that closes an earlier `<s>` is HTML.

    Raises:
        BadRow: One does.
    """
    for text in (*answers, *(reply for _, reply in prompt.history)):
        ending = (text or "").rstrip()
        mark = next((mark for mark in _END_MARKS if ending.endswith(mark)), None)
        if mark is None or (mark == "</s>" and ending.count("<s>") >= ending.count(mark)):
            continue
        command = f"sed -E 's#{re.escape(mark)}( |\\\\n)*\"#\"#g' FILE"
        raise BadRow(
            f"an answer ends with `{mark}`, which would be learned as text, the base's own end "
            f"after it: take it off (JSON lines: {command})"
        )
