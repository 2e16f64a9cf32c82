"""Human preferences from files: pairs of answers.

A dialogue that precedes ranked answers is a prompt as any other: its last turn is the instruction,
the turns before it are its history, and a system message is its system text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alpaca_rlhf.core.prompts import user_text
from alpaca_rlhf.core.records import Instruction, PreferencePair
from alpaca_rlhf.data.readers.columns import (
    INPUT,
    INSTRUCTION,
    LOSS_FLAGS,
    OTHER_VERDICTS,
    REJECTED_RESPONSE,
    Comparison,
    are_conversations,
    comparison_of,
    messages_column,
    refuse_marked_bad,
    refuse_unsupported,
    verdict_text,
)
from alpaca_rlhf.data.readers.conversations import (
    dialogue,
    dialogue_history,
    read_message,
    read_turns,
    system_text,
)
from alpaca_rlhf.data.readers.formats import prompt_columns, source_of
from alpaca_rlhf.data.readers.hints import suggested_columns
from alpaca_rlhf.data.readers.preference_shapes import (
    arena_conversations,
    implicit_texts,
    refuse_contradicted,
    refuse_unread_prompt,
    whole_conversations,
)
from alpaca_rlhf.data.readers.problems import (
    BadRow,
    DifferentPrompts,
    LeftOut,
    NoColumn,
    Tie,
    listed,
    short,
)
from alpaca_rlhf.data.readers.reading import Reading
from alpaca_rlhf.data.readers.rows import collect
from alpaca_rlhf.data.readers.template_marks import refuse_end_marks
from alpaca_rlhf.data.readers.transcripts import (
    ANSWER,
    TURN,
    split_turns,
    transcript_of,
    with_plain_lines,
)
from alpaca_rlhf.data.readers.values import checked_text, finite_number

_PAIR = ("chosen", "rejected")


def prompt_of(row: dict[str, Any], source: str) -> Instruction:
    """The prompt of a row: messages, a transcript, or Alpaca's columns with `history` and `system`.

    Messages stand in `prompt`, or in `messages` or `conversations` where nothing else asks.

    Raises:
        BadRow: A column is broken.
    """
    if isinstance(row.get("prompt"), list):
        return dialogue(read_turns(row["prompt"], "column `prompt`"), source=source, row=row)
    transcript = transcript_of(row)
    if transcript is not None:
        return dialogue(transcript.turns, source=source, row=row)
    messages = messages_column(row)
    if messages is not None:
        turns = read_turns(row[messages], f"column `{messages}`")
        return dialogue(turns, source=source, row=row)
    instruction, input_text = prompt_columns(row)
    return Instruction(
        instruction,
        input_text,
        source=source,
        history=dialogue_history(row),
        system=system_text(row),
    )


def answers_of(row: Mapping[str, Any], texts: Sequence[str]) -> Sequence[str]:
    """The answers of a row: those to a transcript without the blanks after its last mark."""
    transcript = transcript_of(row)
    return texts if transcript is None else transcript.answers(texts)


def read_pairs(path: Path, reading: Reading | None = None) -> list[PreferencePair]:
    r"""Read pairs of answers, the better one first.

    Supported formats: Anthropic's HH (`chosen`, `rejected`: whole dialogues of `\n\nHuman:` and
    `\n\nAssistant:` that differ in their last answer), LLaMA-Factory's (`conversations`, `chosen`,
    `rejected`), and `prompt` (or `instruction` and `input`) with `chosen` and `rejected`. These two
    may also be whole conversations, with or without `prompt`, or texts that share their beginning
    (UltraFeedback binarised, TRL: see `preference_shapes`). `messages` that end with the better
    answer may stand beside a `rejected_response` (ms-swift). Messages may be text, `from`/`value`
    or `role`/`content`. One of the two answers may be empty: people sometimes prefer silence. A
    column `margin`, a number of at least 0, says how much better the chosen answer is. Two answers
    in other columns (`columns.COMPARED`: GPT-4-LLM, AlpacaFarm, SHP, Chatbot Arena, PKU-SafeRLHF,
    HelpSteer, Kaggle's arena) are ordered by their verdict; ties give no pair, and without
    `preference` the first answer is the better one. Scores of `chosen` and `rejected` must agree
    with them; equal ones are a tie.

    Args:
        path: A JSON array or JSON lines, plain or gzipped.
        reading: Renamed columns, and whether broken rows are left out; its account is filled.

    Raises:
        UserError: `file:line:` of the first broken row; two identical answers count as broken.
    """
    path = Path(path)
    return collect(path, lambda row: pairs_of(row, path.name), reading)


def pairs_of(row: dict[str, Any], source: str) -> list[PreferencePair]:
    """The pair of one row.

    Raises:
        MarkedBad: Its loss flag says that it is not to be learnt from.
        Tie: Its answers tie.
        BadRow: The row is broken.
    """
    row = arena_conversations(row)
    refuse_unsupported(row)
    refuse_marked_bad(row, LOSS_FLAGS)
    comparison = comparison_of(row)
    if comparison is not None:
        pair = _comparison(row, comparison, source_of(row, source))
    else:
        pair = replace(_pair(row, source_of(row, source)), margin=_margin(row))
        refuse_contradicted(row)
    refuse_end_marks(pair.prompt, pair.chosen, pair.rejected)
    return [pair]


def pair_to_json(pair: PreferencePair) -> dict[str, Any]:
    """The columns of a pair for a JSON line, in the form that `read_pairs` reads back."""
    columns: dict[str, Any] = {
        "instruction": pair.prompt.instruction,
        "input": pair.prompt.input,
        "chosen": pair.chosen,
        "rejected": pair.rejected,
        "source": pair.prompt.source,
    }
    margin = {"margin": pair.margin} if pair.margin else {}
    return columns | pair.prompt.dialogue_columns() | margin


def _pair(row: dict[str, Any], source: str) -> PreferencePair:
    row = _with_chosen(row)
    for name in _PAIR:
        if row.get(name) is None:
            columns = listed(list(row))
            raise BadRow(f"expected columns `chosen` and `rejected`; columns here: {columns}")
    if row.get("conversations") is not None:
        turns = read_turns(row["conversations"], "column `conversations`")
        prompt = dialogue(turns, source=source, row=row)
    elif are_conversations(row):
        turns, chosen, rejected = whole_conversations(row)
        return _make_pair(dialogue(turns, source=source, row=row), chosen, rejected)
    elif row.get("prompt") is not None or row.get("instruction") is not None:
        prompt = prompt_of(row, source)
        if _holds_prompt(row, prompt):
            asks = (*INSTRUCTION, *INPUT)
            others = {name: value for name, value in row.items() if name not in asks}
            return _hh_pair(row["chosen"], row["rejected"], source, others)
    elif messages_column(row) is not None and not _are_transcripts(row):
        prompt = prompt_of(_without_chosen(row), source)
    else:
        return _hh_pair(
            checked_text(row["chosen"], "`chosen`"),
            checked_text(row["rejected"], "`rejected`"),
            source,
            row,
        )
    answers = [_answer(row[name], f"`{name}`") for name in _PAIR]
    return _make_pair(prompt, *answers_of(row, answers))


def _with_chosen(row: dict[str, Any]) -> dict[str, Any]:
    """A row of ms-swift's, whose messages end with the better answer, as `chosen` and `rejected`.

    Raises:
        BadRow: Its messages do not end with an answer.
    """
    messages = row.get("messages")
    if row.get(REJECTED_RESPONSE) is None or row.get("chosen") is not None:
        return row
    if not isinstance(messages, list):
        return row
    turns = read_turns(messages, "column `messages`")
    if not turns or turns[-1][0] != "Assistant":
        raise BadRow(
            f"`messages` must end with the better answer beside `{REJECTED_RESPONSE}`; if it stands"
            f" in a column of its own, --columns NAME=chosen,{REJECTED_RESPONSE}=rejected (a run: "
            "--inputs.columns)"
        )
    others = {name: value for name, value in row.items() if name not in ("prompt", "instruction")}
    return {**others, "chosen": turns[-1][1], "rejected": row[REJECTED_RESPONSE]}


def _without_chosen(row: dict[str, Any]) -> dict[str, Any]:
    """The row without the chosen answer at the end of its messages, if it stands there too."""
    name = messages_column(row) or ""
    turns = read_turns(row[name], f"column `{name}`")
    if turns and turns[-1] == ("Assistant", _answer(row["chosen"], "`chosen`")):
        return {**row, name: row[name][:-1]}
    return row


def _are_transcripts(row: Mapping[str, Any]) -> bool:
    """True where both answers are whole dialogues in Anthropic's marks."""
    texts = [row[name] for name in _PAIR]
    return all(
        isinstance(text, str)
        and text.lstrip().startswith("Human:")
        and ANSWER in with_plain_lines(text)
        for text in texts
    )


def _holds_prompt(row: Mapping[str, Any], prompt: Instruction) -> bool:
    """True where both answers are whole dialogues that ask the prompt once more."""
    if prompt.history or not _are_transcripts(row):
        return False
    texts = {prompt.instruction.strip(), user_text(prompt).strip()}
    dialogues = [split_turns(_with_first_mark(with_plain_lines(row[name]))) for name in _PAIR]
    return all(
        texts & {text for speaker, text in turns if speaker == "Human"} for turns in dialogues
    )


def _with_first_mark(text: str) -> str:
    """A dialogue with the blank line before its first mark, which stripping takes away."""
    stripped = text.lstrip()
    is_dialogue = stripped.startswith("Human:") and ANSWER in stripped
    return f"\n\n{stripped}" if is_dialogue else text


def _comparison(row: dict[str, Any], comparison: Comparison, source: str) -> PreferencePair:
    # 1. Which answer is the better one.
    verdict = _verdict(row, comparison)
    if comparison.graded and row.get("margin") is None:
        row = {**row, "margin": abs(float(verdict))}
    # 2. The prompt and the two answers.
    if row.get(comparison.prompt) is not None:
        prompt_value = row[comparison.prompt]
        name = "prompt" if isinstance(prompt_value, list) else "instruction"
        others = (comparison.prompt, *INSTRUCTION)
        row = {key: value for key, value in row.items() if key not in others} | {name: prompt_value}
    first, second = (row[name] for name in comparison.answers)
    if isinstance(first, list):
        prompt, answers = _compared_conversations(row, comparison, source)
    else:
        labels = (f"column `{name}`" for name in comparison.answers)
        prompt, answers = prompt_of(row, source), list(map(checked_text, (first, second), labels))
    # 3. The better one first.
    if verdict in comparison.ties:
        raise Tie("its two answers tie")
    answers = answers if verdict in comparison.first else answers[::-1]
    pair = _make_pair(prompt, *answers_of(row, answers))
    return replace(pair, margin=_margin(row))


def _verdict(row: Mapping[str, Any], comparison: Comparison) -> str:
    """The verdict of a row, as it is written in the table of comparisons."""
    name, value = comparison.verdict, row.get(comparison.verdict)
    if value is None and name not in row:
        other = next((other for other in OTHER_VERDICTS if row.get(other) is not None), None)
        if other is not None:
            raise BadRow(
                f"column `{other}` may say which answer is the better one, and `{name}` alone is "
                f"read ({comparison.expected}): --columns {other}={name}, or {other}=- where the "
                "first is better in every row (a run: --inputs.columns)"
            )
        return comparison.first[0]
    if value is None:
        raise BadRow(
            f"`{name}` is empty: {comparison.expected} says which answer is the better one"
        )
    # A verdict may also be the name of its answer's column.
    verdict = verdict_text(value)
    names = dict(zip(comparison.answers, (comparison.first[0], comparison.second[0]), strict=True))
    verdict = names.get(verdict, verdict)
    if verdict not in (*comparison.first, *comparison.second, *comparison.ties):
        raise BadRow(f"`{name}` must be {comparison.expected}, got {short(str(value))}")
    return verdict


def _compared_conversations(
    row: dict[str, Any], comparison: Comparison, source: str
) -> tuple[Instruction, list[str]]:
    """The prompt and the last answers of two conversations.

    Raises:
        LeftOut: Their earlier answers differ, as they do where each went on with its own model.
    """
    try:
        turns, *answers = whole_conversations(row, comparison.answers)
    except DifferentPrompts as problem:
        raise LeftOut(str(problem)) from None
    return dialogue(turns, source=source, row=row), answers


def _margin(row: dict[str, Any]) -> float:
    value = row.get("margin")
    if value is None:
        return 0.0
    number = finite_number(value)
    if number is None or number < 0:
        raise BadRow(f"`margin` must be a number of at least 0, got {str(value)[:40]}")
    return number


def _make_pair(prompt: Instruction, chosen: str, rejected: str) -> PreferencePair:
    if chosen == rejected:
        raise BadRow("`chosen` and `rejected` are the same: there is nothing to prefer")
    return PreferencePair(prompt, chosen, rejected, prompt.id)


def _hh_pair(chosen: str, rejected: str, source: str, row: dict[str, Any]) -> PreferencePair:
    # 1. Find where the two dialogues diverge, and the last answer that begins before that point.
    plain = [with_plain_lines(text) for text in (chosen, rejected)]
    if all(ANSWER in text for text in plain):
        chosen, rejected = plain
    chosen, rejected = (_with_first_mark(text) for text in (chosen, rejected))
    chars = zip(chosen, rejected, strict=False)
    shorter = min(len(chosen), len(rejected))
    common = next((at for at, (a, b) in enumerate(chars) if a != b), shorter)
    at = chosen[:common].rfind(ANSWER)
    if at < 0:
        in_turns = any(TURN.search(f"\n\n{text}") for text in (chosen, rejected))
        suggested = suggested_columns(row, "rankings")
        has_synonym = any(new == "prompt" and old not in INPUT for old, new in suggested.items())
        implicit = None if in_turns or has_synonym else implicit_texts(chosen, rejected)
        # Where another column asks, what the answers share at their beginning is no prompt.
        if not in_turns and not has_synonym:
            refuse_unread_prompt(row, implicit[0][0][1] if implicit else "")
        if implicit is not None:
            turns, *texts = implicit
            return _make_pair(dialogue(turns, source=source, row=row), *texts)
        raise NoColumn(
            "expected a column `prompt` or `conversations`, or in `chosen` and `rejected` two "
            "dialogues of `Human:` and `Assistant:` turns with the same beginning; columns here: "
            f"{listed(list(row))} (NAME=- leaves out one that is no prompt)"
        )
    # 2. Everything after it is the answer, and must not hold a further turn.
    answers = [text[at + len(ANSWER) :].strip() for text in (chosen, rejected)]
    if any(TURN.search(text[at + 1 :]) for text in (chosen, rejected)):
        raise BadRow(
            "the two dialogues part before their last answer: they do not answer the same prompt"
        )
    # 3. Everything before it is the prompt.
    prompt = dialogue(split_turns(chosen[:at]), source=source, row=row)
    return _make_pair(prompt, *answers)


def _answer(value: object, label: str) -> str:
    if isinstance(value, list):
        if len(value) != 1:
            raise BadRow(f"{label} must be one answer, got {len(value)} messages")
        value = value[0]
    if isinstance(value, dict):
        speaker, text = read_message(value, label)
        if speaker != "Assistant":
            raise BadRow(f"{label} must be the assistant's message")
        return text
    return checked_text(value, label)
