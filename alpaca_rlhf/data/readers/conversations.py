"""Messages in OpenAI's and ShareGPT's columns: turns, and conversations to learn from.

A conversation is one row: its last reply is the output, the pairs before it are the history (after
those of a column `history`), and a system message, or a column `system`, is its system text. A
reply with `weight` 0 carries no loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data.readers.columns import (
    CONVERSATION,
    INPUT,
    LOSS_FLAGS,
    holds_something,
    system_column,
    way_out,
)
from alpaca_rlhf.data.readers.json_rows import SPEAKERS
from alpaca_rlhf.data.readers.problems import BadRow, EmptyRow
from alpaca_rlhf.data.readers.values import checked_text, text_column, type_name

Turn = tuple[str, str]
"""The speaker (Human, Assistant or System) and the text."""

_NAMES = {"Human": "user", "Assistant": "assistant", "System": "system"}


def read_message(value: object, label: str) -> Turn:
    """Convert one message; `label` names its place in error messages.

    Raises:
        BadRow: It is not a message, its role is unknown, or its content is not text.
    """
    if not isinstance(value, dict):
        raise BadRow(f"a message in {label} must be an object, got {type_name(value)}")
    role = _first_value(value, "from", "role")
    speaker = SPEAKERS.get(role) if isinstance(role, str) else None
    if speaker is None:
        unknown = f"; {role[:40]!r} is unknown" if isinstance(role, str) else ""
        raise BadRow(
            f"a message in {label} must say who speaks "
            f"(`from` or `role`: human, gpt, user, assistant, system){unknown}"
        )
    content = _text_of_parts(_first_value(value, "value", "content"), label)
    return speaker, checked_text(content, f"a message in {label}")


def read_turns(value: object, label: str) -> list[Turn]:
    """Convert a list of messages.

    Raises:
        BadRow: It is not a list, or one of its messages is broken.
    """
    if not isinstance(value, list):
        raise BadRow(f"{label} must be a list of messages, got {type_name(value)}")
    return [read_message(message, label) for message in value]


def holds_conversation(row: Mapping[str, Any]) -> bool:
    """True for a row with a conversation, whatever other columns it has."""
    return any(row.get(name) is not None for name in CONVERSATION)


def conversation(row: Mapping[str, Any], source: str, *, learnt: bool) -> Instruction:
    """The last user turn of a conversation, with its reply and the turns before it.

    If no reply follows the last user turn, the output is None. Texts are kept unchanged. Replies
    that carry no loss are `masked_replies`. Where the row is learnt from, those after the last one
    that carries loss are left out, with what they answer, because nothing would be learned from
    them.

    Raises:
        BadRow: The turns do not alternate, starting with the user, or one of them is empty; or a
            loss flag is broken, or no reply of a row that is learnt from carries loss.
    """
    name = next(name for name in CONVERSATION if row.get(name) is not None)
    label = f"column `{name}`"
    system, turns = split_system(row, read_turns(row[name], label))
    refuse_broken(turns)
    # 1. The turns alternate, so an even number of them ends with a reply.
    texts = [text for _, text in turns]
    has_loss = [_carries_loss(message, label) for message in row[name][-len(turns) :]][1::2]
    if learnt and len(texts) % 2 == 0:
        # 2. End with the last reply that carries loss.
        if not any(has_loss):
            raise BadRow("no reply of the conversation carries loss: every `weight` is 0")
        while not has_loss[-1]:
            has_loss.pop()
        texts = texts[: 2 * len(has_loss)]
    output = texts.pop() if len(texts) % 2 == 0 else None
    turns_here = tuple(zip(texts[:-1:2], texts[1::2], strict=True))
    # 3. The turns of the column `history` come before them.
    history = _after_history(row, turns_here)
    masked = masked_replies(row, len(dialogue_history(row)))
    first = len(history) - len(turns_here)
    masked_here = (first + at for at, flag in enumerate(has_loss[: len(turns_here)]) if not flag)
    masked = tuple(sorted({*masked, *masked_here}))
    return Instruction(texts[-1], "", output, source, history, system, masked)


def dialogue(
    turns: Sequence[Turn], *, source: str = "", row: Mapping[str, Any] | None = None
) -> Instruction:
    """Turn a dialogue that awaits the assistant's answer into a prompt: its last turn is asked.

    Args:
        turns: The dialogue. Turns without text are left out, and those of the same speaker in a row
            are joined, as people's dialogues need it. The texts are kept as they are, as in SFT.
        source: Where it is from.
        row: The row that holds it, for its system text and its history in columns.

    Raises:
        BadRow: It does not start with the human, or does not end with a non-empty turn of theirs;
            or the row has an input that none of their turns holds.
    """
    row = row or {}
    refuse_lost_input(row, turns)
    system, turns = split_system(row, turns)
    if not turns or turns[-1][0] != "Human":
        raise BadRow("the dialogue before the answer must end with the human's turn")
    if not turns[-1][1].strip():
        raise BadRow("the human's last turn is empty")
    joined: list[Turn] = []
    for speaker, text in turns:
        if text.strip() and joined and joined[-1][0] == speaker:
            joined[-1] = (speaker, f"{joined[-1][1]}\n\n{text}")
        elif text.strip():
            joined.append((speaker, text))
    refuse_broken(joined)
    *earlier_texts, question = (text for _, text in joined)
    turns_here = tuple(zip(earlier_texts[::2], earlier_texts[1::2], strict=True))
    history = _after_history(row, turns_here)
    return Instruction(question, source=source, history=history, system=system)


def refuse_lost_input(row: Mapping[str, Any], turns: Sequence[Turn]) -> None:
    """Refuse an input beside a dialogue that no turn of the user holds: it would be lost.

    Raises:
        BadRow: There is one.
    """
    name = next((name for name in INPUT if row.get(name) is not None), INPUT[0])
    value = row.get(name)
    if not holds_something(value):
        return
    user_texts = [text for speaker, text in turns if speaker == "Human"]
    if not isinstance(value, str) or not any(value.strip() in text for text in user_texts):
        raise BadRow(
            f"column `{name}` stands beside a dialogue, and no turn of its user holds it: put it "
            f"there, {way_out(name)}"
        )


def _after_history(
    row: Mapping[str, Any], turns: tuple[tuple[str, str], ...]
) -> tuple[tuple[str, str], ...]:
    """Pairs of turns with those of the column `history` before them, if they do not begin so."""
    earlier = dialogue_history(row)
    return turns if turns[: len(earlier)] == earlier else (*earlier, *turns)


def split_system(row: Mapping[str, Any], turns: Sequence[Turn]) -> tuple[str, list[Turn]]:
    """The system text, from its column or the first turn, and the turns after it.

    If both are there and differ, the turn stays in place, to be refused as a second one. A blank
    text is none.
    """
    turns = list(turns)
    system = system_text(row)
    if system and turns and turns[0][0] == "System" and turns[0][1].strip() == system.strip():
        turns = turns[1:]
    if not system and turns and turns[0][0] == "System":
        (_, system), *turns = turns
    return (system if system.strip() else ""), turns


def system_text(row: Mapping[str, Any]) -> str:
    """The text of the first system column that holds any (see `columns.SYSTEM`), or ""."""
    system = text_column(row, (system_column(row),), required=False)
    return system if system.strip() else ""


def masked_replies(row: Mapping[str, Any], turns: int) -> tuple[int, ...]:
    """The column `masked_replies` of a row with so many earlier turns.

    Raises:
        BadRow: It is not a list of their positions.
    """
    value = row.get("masked_replies")
    if value is None:
        return ()
    known = range(turns)
    if not isinstance(value, list) or not all(type(at) is int and at in known for at in value):
        raise BadRow("column `masked_replies` must be a list of positions in `history`")
    return tuple(sorted(set(value)))


def _carries_loss(message: Mapping[str, Any], label: str) -> bool:
    """True unless a flag of the message says that it carries no loss."""
    for name in LOSS_FLAGS:
        flag = message.get(name)
        if flag is None:
            continue
        if not isinstance(flag, bool | int | float) or flag not in (0, 1):
            raise BadRow(f"`{name}` of a message in {label} must be 0 or 1, got {str(flag)[:40]!r}")
        if not flag:
            return False
    return True


def dialogue_history(row: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The column `history` of a row in Alpaca's columns: pairs of an instruction and its reply.

    Raises:
        BadRow: The column is not a list of pairs, or a text in it is empty.
    """
    value = row.get("history")
    if value is None:
        return ()
    pairs = value if isinstance(value, list) else [value]
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise BadRow(
            "column `history` must be a list of pairs: an instruction and its reply; mend them, "
            + way_out("history")
        )
    texts = [tuple(checked_text(text, "a text in `history`") for text in pair) for pair in pairs]
    if not all(text.strip() for pair in texts for text in pair):
        raise EmptyRow("a text in `history` is empty")
    return tuple((pair[0], pair[1]) for pair in texts)


def _text_of_parts(content: Any, label: str) -> Any:
    """The text of a content of parts (`type` and `text`), joined; any other content unchanged."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        if not isinstance(part, dict):
            raise BadRow(
                f"a message in {label} has a part that is {type_name(part)}; give an object with "
                "`type` and `text`, or the whole content as one text"
            )
        kind = part.get("type", "text")
        if kind not in ("text", "input_text", "output_text"):
            raise BadRow(
                f"a message in {label} has a part of type {str(kind)[:40]!r}: text alone is learnt "
                "from; leave the row out"
            )
        texts.append(checked_text(part.get("text"), f"a part of a message in {label}"))
    return "".join(texts)


def _first_value(value: Mapping[str, Any], *names: str) -> Any:
    """The first of these columns that is not null: Parquet names all of them, absent ones null."""
    return next((value[name] for name in names if value.get(name) is not None), None)


def refuse_broken(turns: Sequence[Turn]) -> None:
    """Check that turns, without their system text, alternate and that none is empty.

    Raises:
        BadRow: They do not start with the user, or do not alternate, or one is empty.
    """
    speakers = [speaker for speaker, _ in turns]
    if "System" in speakers:
        raise BadRow("the conversation has a second system turn, or one that is not its first")
    if not turns:
        raise EmptyRow("the conversation has no turns")
    if speakers[0] == "Assistant":
        raise BadRow("the conversation starts with the assistant; it must start with the user")
    for speaker, next_speaker in pairwise(speakers):
        if speaker == next_speaker:
            raise BadRow(f"the conversation has two {_NAMES[speaker]} turns in a row")
    for speaker, text in turns:
        if not text.strip():
            turn_name = "reply" if speaker == "Assistant" else "user turn"
            raise EmptyRow(f"the conversation has an empty {turn_name}")
