r"""Dialogues as one text, with Anthropic's marks: `\n\nHuman:` and `\n\nAssistant:`.

Anthropic's HH writes `chosen` and `rejected` so; its relatives (full-hh-rlhf, Nectar) write the
prompt so, up to the mark after which the answer begins. HelpSteer2 writes a prompt of several turns
with NeMo's marks, `<extra_id_1>User` and `<extra_id_1>Assistant` on lines of their own, up to the
user's last turn.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alpaca_rlhf.data.readers.columns import INPUT, prompt_column
from alpaca_rlhf.data.readers.conversations import Turn
from alpaca_rlhf.data.readers.problems import BadRow, short
from alpaca_rlhf.data.readers.values import is_absent

ANSWER = "\n\nAssistant:"
"""The mark after which an answer begins."""
TURN = re.compile(r"\n\n(Human|Assistant):")
"""The mark before a turn."""

_NEMO_TURN = re.compile(r"(?<!\n)\n*<extra_id_1>(User|Assistant)[ \t]*\n")
_PROMPT = re.compile(r"\s*(Human:.*?)(\n\n?)Assistant:\s*", re.DOTALL)


@dataclass(frozen=True)
class Transcript:
    """A prompt that is a whole dialogue, up to the place where the answer begins."""

    text: str
    """As it stands in its column."""
    turns: list[Turn]
    """The dialogue; its last turn is the human's, as a rule."""

    def answers(self, texts: Sequence[str]) -> list[str]:
        """Answers without the blanks around them, and without the dialogue if all repeat it."""
        if all(text.startswith(self.text.rstrip()) for text in texts):
            texts = [text.removeprefix(self.text.rstrip()) for text in texts]
        return [text.strip() for text in texts]


def transcript_of(row: Mapping[str, Any]) -> Transcript | None:
    """The prompt of a row if it is a transcript, else None.

    It is one if it begins with `Human:` and ends with `Assistant:`, or with the human's turn after
    one of the assistant's; or if it has NeMo's marks and ends with the user's turn. Beside an input
    or a history, be it empty, an instruction stands as it is.

    Raises:
        BadRow: It is a dialogue of several questions that ends with a begun answer.
    """
    text = row.get(prompt_column(row) or "")
    if not isinstance(text, str) or row.get("history") is not None:
        return None
    if any(row.get(name) != "" and not is_absent(row.get(name)) for name in INPUT):
        return None
    if _NEMO_TURN.search(text):
        return _nemo_transcript(text)
    match = _PROMPT.fullmatch(text)
    if match is not None:
        dialogue, mark = match.groups()
        return Transcript(text, split_turns(f"{mark}{dialogue}", mark))
    return _open_transcript(text)


def with_plain_lines(text: str) -> str:
    """A transcript whose lines end as those of Unix: its marks stand between blank lines."""
    return text.replace("\r\n", "\n")


def split_turns(text: str, mark: str = "\n\n") -> list[Turn]:
    """The turns of a transcript that begins with a mark.

    Raises:
        BadRow: There is text before the first mark.
    """
    pattern = TURN if mark == "\n\n" else re.compile(rf"{mark}(Human|Assistant):")
    # Speakers and texts alternate after the first part.
    before, *parts = pattern.split(text)
    if before.strip():
        raise BadRow("there is text before the first `Human:` turn")
    return [(parts[at], parts[at + 1].strip()) for at in range(0, len(parts), 2)]


def _open_transcript(text: str) -> Transcript | None:
    """A dialogue of several turns without the mark of the answer to come; None for other texts."""
    lines = f"\n\n{with_plain_lines(text).strip()}"
    if not lines.startswith("\n\nHuman:") or ANSWER not in lines:
        return None
    turns = split_turns(lines)
    _refuse_begun_answer(turns)
    return Transcript(text, turns) if turns[-1][0] == "Human" and turns[-1][1] else None


def _refuse_begun_answer(turns: Sequence[Turn]) -> None:
    """Refuse a dialogue that ends within an answer; a single question with one is a text.

    Raises:
        BadRow: It has several questions, and ends so.
    """
    questions = sum(speaker == "Human" for speaker, _ in turns)
    if questions > 1 and turns[-1][0] == "Assistant" and turns[-1][1]:
        raise BadRow(
            f"the prompt is a dialogue that ends with a begun answer ({short(turns[-1][1])!r}): "
            "end it with `Assistant:`, and put what was begun before the answer (of a pair before "
            "both answers)"
        )


def _nemo_transcript(text: str) -> Transcript | None:
    """A prompt with NeMo's marks; None if it does not end with a turn of the user.

    Source: HelpSteer2's dataset card (nvidia/HelpSteer2@8aeb07c), arXiv 2406.08673.
    """
    # The first turn is the user's and has no mark, as a rule.
    first, *parts = _NEMO_TURN.split(text)
    turns = [("Human", first)] if first.strip() else []
    for speaker, words in zip(parts[::2], parts[1::2], strict=True):
        turns.append(("Human" if speaker == "User" else "Assistant", words.strip()))
    _refuse_begun_answer(turns)
    return Transcript(text, turns) if turns[-1][0] == "Human" else None
