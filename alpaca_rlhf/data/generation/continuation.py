"""From what an endpoint wrote to the continuation of a prompt.

Some endpoints leave the stop text in; models that follow instructions greet, think aloud, repeat
the line they go on from, and put fences and stars around it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from alpaca_rlhf.core.records import FinishReason
from alpaca_rlhf.llm.wire import Answer

_PREFACE = 400  # characters of greeting before the prompt's last line is repeated
_MARKS = r"[ \t>*_`#]*"
_FENCE = re.compile(r"^[ \t]*```", re.MULTILINE)
_STARRED = re.compile(r"^[ \t]*[*_]{1,3}(\d+\.[ \t]*\w+:)[*_]{1,3}", re.MULTILINE)


def trimmed(answer: Answer, stop: Sequence[str]) -> tuple[str, FinishReason]:
    """The text before the first stop text, and how it ended.

    `eos` only where it is certain that the teacher ended by itself: with stop texts, most endpoints
    say `stop` for both, and a row that a stop text has cut must not pass for a whole one.
    """
    text = answer.text
    cuts = [at for one in stop if (at := text.find(one)) >= 0]
    if cuts:
        return text[: min(cuts)], "length"
    return text, "eos" if answer.whole and not answer.stopped and not stop else "length"


def continuation(prompt: str, text: str) -> str:
    """A chat model's reply as the continuation of a prompt.

    What comes before the prompt's last line, where the reply repeats it, is no part of it, nor is
    a thought in `<think>`, nor a code fence around it all. Stars around headings are taken off.
    """
    if text.lstrip().startswith("<think>"):
        text = text.partition("</think>")[2]
    cue = prompt.rstrip().rpartition("\n")[2].strip()
    words = r"[ \t]+".join(re.escape(word) for word in cue.split())
    found = re.search(rf"^{_MARKS}{words}[*_`]*", text[:_PREFACE], re.MULTILINE) if cue else None
    start = found.end() if found else 0
    opened = len(_FENCE.findall(text[:start] if found else text[: text.find("\n") + 1])) % 2
    if opened and not found:
        start = text.find("\n") + 1
    text = text[start:]
    if opened and (closed := list(_FENCE.finditer(text))):
        text = text[: closed[-1].start()]
    return _STARRED.sub(r"\1", text)
