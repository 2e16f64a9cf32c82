"""The continuation of a prompt, extracted from an endpoint's answer.

Some endpoints leave the stop text in; models that follow instructions greet, think aloud, repeat
the line that they continue, and put fences and stars around it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from alpaca_rlhf.core.records import FinishReason
from alpaca_rlhf.data.readers.template_marks import without_end_marks
from alpaca_rlhf.llm.wire import Answer

_MAX_PREFACE = 400  # characters of greeting before the prompt's last line is repeated
_MARKS = r"[ \t>*_`#]*"
_FENCE = re.compile(r"^[ \t]*```", re.MULTILINE)
_STARRED = re.compile(r"^[ \t]*[*_]{1,3}(\d+\.[ \t]*\w+:)[*_]{1,3}", re.MULTILINE)


def trimmed(answer: Answer, stop: Sequence[str]) -> tuple[str, FinishReason]:
    """The text before the first stop text or its own end of turn, and the reason why it ended.

    `eos` only where the teacher certainly ended by itself: with stop texts, most endpoints report
    `stop` for both, and a row that a stop text cut must not pass for a complete one.
    """
    text = without_end_marks(answer.text)
    cuts = [offset for stop_text in stop if (offset := text.find(stop_text)) >= 0]
    if cuts:
        return without_end_marks(text[: min(cuts)]), "length"
    return text, "eos" if answer.whole and not answer.stopped and not stop else "length"


def continuation(prompt: str, text: str) -> str:
    """A chat model's reply, reduced to the continuation of a prompt.

    Removed are the text before the prompt's last line, where the reply repeats that line, a thought
    in `<think>`, a code fence around the whole, and stars around headings.
    """
    if text.lstrip().startswith("<think>"):
        text = text.partition("</think>")[2]
    # The cue is the prompt's last line; the continuation starts behind its repetition.
    cue = prompt.rstrip().rpartition("\n")[2].strip()
    cue_pattern = r"[ \t]+".join(re.escape(word) for word in cue.split())
    pattern = rf"^{_MARKS}{cue_pattern}[*_`]*"
    repetition = re.search(pattern, text[:_MAX_PREFACE], re.MULTILINE) if cue else None
    start = repetition.end() if repetition else 0
    # An odd number of fences before it means that the fence around the whole is open.
    preface = text[:start] if repetition else text[: text.find("\n") + 1]
    opened = len(_FENCE.findall(preface)) % 2
    if opened and not repetition:
        start = text.find("\n") + 1
    text = text[start:]
    if opened and (closed := list(_FENCE.finditer(text))):
        text = text[: closed[-1].start()]
    return _STARRED.sub(r"\1", text)
