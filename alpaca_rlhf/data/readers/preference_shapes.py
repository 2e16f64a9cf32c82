"""Preferences as whole conversations: the shared beginning is the prompt, the last turn the answer.

UltraFeedback binarised and TRL write `chosen` and `rejected` as lists of messages, with the prompt
as text, as messages, or nowhere but at their shared beginning. TRL's implicit prompts may also be
plain text. Raw UltraFeedback and Nectar hold objects with a text and its ratings or its rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alpaca_rlhf.core.prompts import user_text
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data.readers.columns import (
    ANSWER_RATINGS,
    ANSWER_TEXTS,
    ARENA_COLUMNS,
    CONVERSATION,
    IGNORED,
    INPUT,
    LOSS_FLAGS,
    PAIR_SCORES,
    SYSTEM,
    comparison_of,
    holds_something,
    is_arena,
    names_a_place,
    prompt_column,
    verdict_text,
)
from alpaca_rlhf.data.readers.conversations import Turn, read_turns
from alpaca_rlhf.data.readers.hints import columns_argument, suggested_columns
from alpaca_rlhf.data.readers.json_rows import Decoder
from alpaca_rlhf.data.readers.problems import BadRow, DifferentPrompts, NoColumn, Tie, listed, short
from alpaca_rlhf.data.readers.template_marks import HEADER
from alpaca_rlhf.data.readers.transcripts import transcript_of
from alpaca_rlhf.data.readers.values import (
    checked_text,
    finite_number,
    is_prose,
    text_column,
    type_name,
)

Dialogues = tuple[list[Turn], str, str]
"""The turns before the answers, the chosen answer and the rejected one."""

_ASKING = frozenset(
    {"post", "text", "user", "title", "body", "task", "human", "inputs", "prompt_text", "turns"}
    | {"conversation", "dialog", "dialogue", "history", *SYSTEM, *CONVERSATION}
)
"""Columns of what comes before an answer, by names that none of the readers takes for a prompt's
beside two answers that begin alike."""
_BEFORE = frozenset({"history", *SYSTEM})
"""Those of them that hold what comes before a prompt, and no prompt."""
_READ_OTHERWISE = frozenset(
    {
        "chosen",
        "rejected",
        "margin",
        *INPUT,
        *LOSS_FLAGS,
        *(name for pair in PAIR_SCORES for name in pair),
    }
)
"""Columns that have a meaning of their own; `conversations.refuse_lost_input` sees to an input."""


def whole_conversations(
    row: Mapping[str, Any], names: tuple[str, str] = ("chosen", "rejected")
) -> Dialogues:
    """Split two conversations into their shared beginning and the last answer of each.

    A `prompt` of messages, or one that is a transcript, comes before the answers or is their
    beginning; any other `prompt` of text must be one of the user's turns there.

    Raises:
        DifferentPrompts: They part before their last answer.
        BadRow: They share no beginning, or do not begin with the prompt.
    """
    better, worse = names
    chosen, rejected = (read_turns(row[name], f"`{name}`") for name in names)
    prompt = row.get(prompt_column(row) or "")
    # 1. A prompt of several turns: without it at their beginning, the answers go on from it.
    transcript = transcript_of(row)
    if isinstance(prompt, list) or transcript is not None:
        turns = transcript.turns if transcript else read_turns(prompt, "column `prompt`")
        chosen, rejected = (
            side if side[: len(turns)] == turns else [*turns, *side] for side in (chosen, rejected)
        )
    # 2. The shared beginning; the rest of each must be one answer.
    for name, side in zip(names, (chosen, rejected), strict=True):
        if not side or side[-1][0] != "Assistant":
            raise BadRow(f"`{name}` must end with the assistant's message")
    if chosen[:-1] != rejected[:-1]:
        raise DifferentPrompts(
            f"`{better}` and `{worse}` part before their last answer: they do not answer the same "
            "prompt"
        )
    before = chosen[:-1]
    if not before:
        if names == ("chosen", "rejected"):
            refuse_unread_prompt(row)
        raise NoColumn(
            f"`{better}` and `{worse}` hold one answer each, and no column a `prompt`; columns "
            f"here: {listed(list(row))}"
        )
    # 3. A prompt of text is one of the turns.
    if isinstance(prompt, str) and transcript is None:
        users = [text.strip() for speaker, text in before if speaker == "Human"]
        task = user_text(Instruction(prompt, text_column(row, INPUT, required=False)))
        if not {prompt.strip(), task.strip()} & {*users}:
            raise BadRow(
                f"`prompt` is none of the user's turns of `{better}`; take one of them out"
            )
    return before, chosen[-1][1], rejected[-1][1]


def arena_conversations(row: dict[str, Any]) -> dict[str, Any]:
    """A battle in Kaggle's form as two conversations and a winner; any other row as it is.

    Prompt and answers are lists of texts, turn by turn, or their JSON.

    Raises:
        BadRow: They are of different lengths, or not just one column names a winner.
    """
    if not is_arena(row) or comparison_of(row) is not None:
        return row
    # 1. The one column that is 1 says who won.
    flags = {
        winner: verdict_text(row.get(name))
        for name, winner in (("winner_model_a", "model_a"), ("winner_model_b", "model_b"))
    }
    flags["tie"] = verdict_text(row.get("winner_tie") or 0)
    winners = [name for name, flag in flags.items() if flag in ("1", "true")]
    if len(winners) != 1 or {*flags.values()} - {"0", "1", "true", "false"}:
        raise BadRow(
            "of `winner_model_a`, `winner_model_b` and `winner_tie` one must be 1, the others 0"
        )
    # 2. The turns of both, each with its own answers.
    questions, *sides = (_turn_texts(row, name) for name in ARENA_COLUMNS[:3])
    if any(len(side) != len(questions) for side in sides):
        raise BadRow("`response_a` and `response_b` must hold one answer for each text of `prompt`")
    conversations = [
        [
            {"role": role, "content": text}
            for turn in zip(questions, side, strict=True)
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        for side in sides
    ]
    columns = dict(zip(("conversation_a", "conversation_b"), conversations, strict=True))
    others = {name: value for name, value in row.items() if name not in ARENA_COLUMNS}
    return {**others, **columns, "winner": winners[0]}


def _turn_texts(row: Mapping[str, Any], name: str) -> list[Any]:
    value = row[name]
    if not isinstance(value, str):
        return value if isinstance(value, list) else [value]
    decoded = Decoder().decode(value) if value.startswith("[") else value
    return decoded if isinstance(decoded, list) else [value]


def implicit_texts(chosen: str, rejected: str) -> Dialogues | None:
    """Split two texts at the end of the last word they share, as TRL's implicit prompts; or None.

    Source: huggingface/trl trl/data_utils.py `extract_prompt`.
    """
    shorter = min(len(chosen), len(rejected))
    shared = next((at for at in range(shorter) if chosen[at] != rejected[at]), shorter)
    # A text that is the whole beginning of the other shares its last word if a blank follows.
    longer = max(chosen, rejected, key=len)
    if shared < len(longer) and shared == shorter and longer[shared].isspace():
        end = shared
    else:
        end = max((at for at in range(shared) if chosen[at].isspace()), default=0)
    prompt = chosen[:end].strip()
    if not prompt:
        return None
    mark = HEADER.search(prompt)
    if mark is not None:
        raise BadRow(
            f"`chosen` and `rejected` are alike up to {short(mark[0].strip())!r}, as dialogues in "
            "marks that are not read: write them as lists of messages (`role`, `content`), or with "
            "the marks `\\n\\nHuman:` and `\\n\\nAssistant:`"
        )
    return [("Human", prompt)], chosen[end:].strip(), rejected[end:].strip()


def refuse_unread_prompt(row: Mapping[str, Any], shared: str = "") -> None:
    """Check that no column asks beside two answers without a prompt.

    Their shared beginning, if they have one, would be taken for it.

    A column asks if it has a name for what comes before an answer, or holds a text as people write
    it, and neither answer holds that text. Names of models, places and kinds do not ask.

    Raises:
        BadRow: One does.
    """
    suggested = {new: old for old, new in suggested_columns(row, "rankings").items()}
    likely = suggested.get("prompt")
    if likely in INPUT and shared:
        raise BadRow(
            f"column `{likely}` stands beside a dialogue, as `chosen` and `rejected` begin alike "
            f"with {short(shared)!r}: if `{likely}` is the prompt, --columns {likely}=prompt; if "
            f"their beginning is, --columns {likely}={IGNORED} (a run: --inputs.columns)"
        )
    if likely is not None:
        return
    answers = [text for name in ("chosen", "rejected") for text in _texts_of(row[name])]
    askers = {}
    for name, value in row.items():
        texts = [text for text in _texts_of(value) if text.strip()]
        if name in _READ_OTHERWISE or names_a_place(name):
            continue
        in_prose = any(map(is_prose, texts))
        asks = holds_something(value) if name.casefold() in _ASKING else in_prose
        held = all(any(text.strip() in answer for answer in answers) for text in texts)
        if texts and asks and not held:
            askers[name] = in_prose
    if askers:
        ways = _ways_out(row, askers, begin_alike=bool(shared))
        alike = f", which begin alike with {short(shared)!r}" if shared else ""
        raise BadRow(
            f"no column is the prompt of `chosen` and `rejected`{alike}: if {ways} (a run: "
            "--inputs.columns)"
        )


def _ways_out(row: Mapping[str, Any], askers: Mapping[str, bool], *, begin_alike: bool) -> str:
    """The ways to say what the prompt is, the likeliest column first.

    Where several may be it, no command is named: it would leave out the others.

    Args:
        row: The row.
        askers: Columns that may hold the prompt, or come before it; true for those in prose.
        begin_alike: The shared beginning of the answers may be the prompt too.
    """
    ordered = sorted(
        askers,
        key=lambda name: (
            name in _BEFORE,
            not askers[name],
            name.casefold() not in _ASKING,
            -len(str(row[name])),
        ),
    )
    prompts = [name for name in ordered if name not in _BEFORE]
    names = ", ".join(f"`{short(name)}`" for name in prompts or ordered)
    if len(prompts) > 1:
        way = f"one of {names} is the prompt, --columns OLD=prompt"
    elif prompts:
        way = f"{names} is the prompt, --columns {columns_argument({prompts[0]: 'prompt'})}"
    else:
        way = f"{names} comes before the prompt, put that into a column `prompt`"
    if not begin_alike:
        return way
    left_out = "OLD=- for each"
    if len(prompts) <= 1:
        left_out = columns_argument(dict.fromkeys(ordered, IGNORED))
    return f"{way}; if their beginning is, --columns {left_out}"


def _texts_of(value: Any) -> list[str]:
    """The texts of a text, of messages, or of lists of them."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [text for part in value for text in _texts_of(part)]
    if isinstance(value, dict) and {"role", "from"} & set(value):
        return [text for key in ("content", "value") for text in _texts_of(value.get(key))]
    return []


def refuse_contradicted(row: Mapping[str, Any]) -> None:
    """Check that the scores of `chosen` and `rejected`, where both have one, say the same.

    Raises:
        Tie: They are equal.
        BadRow: The rejected answer has the higher one, or a score is no number.
    """
    for better, worse in PAIR_SCORES:
        values = [row.get(name) for name in (better, worse)]
        if any(value is None for value in values):
            continue
        names = (f"column `{better}`", f"column `{worse}`")
        chosen, rejected = map(_number, values, names)
        if chosen is None or rejected is None:
            continue
        if chosen == rejected:
            raise Tie(f"`{better}` and `{worse}` are equal: its two answers tie")
        if chosen < rejected:
            raise BadRow(
                f"`{better}` is below `{worse}`: they contradict `chosen`; leave the row out, or "
                f"the scores: --columns {better}=-,{worse}=- (a run: --inputs.columns)"
            )


def rated_answers(
    answers: Sequence[Any], column: str, *, rate: bool
) -> tuple[list[str], list[float] | None]:
    """Texts of a list of answers, and their ratings where they are objects that hold them.

    A `rank`, of which the least is the best, becomes its negative. Without `rate` another column
    orders them. An answer without a rating is left out where another has one, as it cannot be
    placed; the caller counts it.

    Raises:
        BadRow: An answer holds no text, or a rating is no number.
    """
    label = f"an answer in `{column}`"
    if not any(isinstance(answer, dict) for answer in answers):
        return [checked_text(answer, label) for answer in answers], None
    rating_of = _negative_rank if hold_ranks(answers) else _rating
    texts, ratings = [], []
    for answer in answers:
        if not isinstance(answer, dict):
            raise BadRow(f"{label} must be an object like the others, got {type_name(answer)}")
        there = [name for name in ANSWER_TEXTS if answer.get(name) is not None]
        name = (there or ANSWER_TEXTS)[0]
        texts.append(checked_text(answer.get(name), f"`{name}` of {label}"))
        ratings.append(rating_of(answer, label) if rate else None)
    if all(rating is None for rating in ratings):
        return texts, None
    pairs = zip(texts, ratings, strict=True)
    rated = [(text, rating) for text, rating in pairs if rating is not None]
    if len(rated) < 2:
        kind = "rank" if hold_ranks(answers) else "rating"
        raise BadRow(f"column `{column}` needs at least two answers with a {kind}")
    return [text for text, _ in rated], [rating for _, rating in rated]


def hold_ranks(answers: Sequence[Any]) -> bool:
    """True for answers that are ordered by a rank of their own, as Nectar's."""
    return any(isinstance(answer, dict) and answer.get("rank") is not None for answer in answers)


def _negative_rank(answer: Mapping[str, Any], label: str) -> float | None:
    if answer.get("rank") is None:
        return None
    rank = _number(answer["rank"], f"`rank` of {label}")
    return None if rank is None else -rank


def _rating(answer: Mapping[str, Any], label: str) -> float | None:
    """The rating of one answer; of several aspects, their mean; None if it has none."""
    for name in ANSWER_RATINGS:
        if answer.get(name) is not None:
            return _number(answer[name], f"`{name}` of {label}")
    annotations = answer.get("annotations")
    if not isinstance(annotations, dict):
        return None
    marks = [aspect.get("Rating") for aspect in annotations.values() if isinstance(aspect, dict)]
    numbers = [_number(mark, f"`Rating` of {label}") for mark in marks if mark is not None]
    given = [number for number in numbers if number is not None]
    return sum(given) / len(given) if given else None


def _number(value: Any, label: str) -> float | None:
    if isinstance(value, str):
        if value.strip().upper() in ("N/A", "NA", ""):
            return None
        try:
            value = float(value)
        except ValueError:
            raise BadRow(f"{label} must be a number, got text") from None
    number = finite_number(value)
    if number is None:
        raise BadRow(f"{label} must be a finite number, got {short(str(value))}")
    return number
