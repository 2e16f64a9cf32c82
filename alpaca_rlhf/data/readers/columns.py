"""The meaning of a row's columns: renamed, refused, or named as unread.

A column that changes what a row teaches is honoured or refused. Any other column beside those that
are read changes nothing; it is named and counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.data.readers.json_rows import Decoder, messages_in
from alpaca_rlhf.data.readers.problems import BadRow, MarkedBad, short
from alpaca_rlhf.data.readers.values import is_absent

RowKind = Literal["instructions", "prompts", "rankings"]
"""The reader of a row: rows with answers, prompts alone, or preferences."""

PreferenceShape = Literal["trees", "chosen-rejected", "completion-ab", "ranking-list"]
"""The shape of a row of preferences, by its name among the formats."""

CONVERSATION = ("messages", "conversations")
"""Columns that hold a conversation: OpenAI's (`role`, `content`), ShareGPT's (`from`, `value`)."""
INSTRUCTION = ("instruction", "prompt")
INPUT = ("input", "context")
OUTPUT = ("output", "completion", "response")
MESSAGES_OR_TEXT = ("prompt", "context", *OUTPUT, "chosen", "rejected")
"""Columns that hold a text or a list of messages."""
_JSON_MESSAGES = ("prompt", *CONVERSATION, "conversation_a", "conversation_b")
"""Columns in which messages may be written as JSON, whatever stands beside them."""
_MESSAGES = (*CONVERSATION, *MESSAGES_OR_TEXT, "conversation_a", "conversation_b")
"""Columns that may hold messages."""
ANSWERS = ("responses", "completions")
"""Columns that hold a list of answers."""
SCORES = ("ranks", "scores", "ratings")
"""Columns that order a list of answers."""
RANKED_ANSWERS = "answers"
"""A list of answers too, where its elements hold their rank or another column orders them."""
ANSWER_TEXTS = ("response", "answer", "text", "content", "completion", "output")
"""Keys of an answer that is an object: the first that is there holds its text."""
ANSWER_RATINGS = ("overall_score", "rating", "score", "fine-grained_score")
"""Keys of such an answer: the first that is there is its rating."""
_NESTED = (*_MESSAGES, *ANSWERS, RANKED_ANSWERS, "instances")
"""Columns that may hold objects whose keys are read."""


@dataclass(frozen=True)
class Comparison:
    """Columns of two answers whose names do not say which is better."""

    answers: tuple[str, str]
    """Columns of the first answer and the second: texts, or conversations that end with them."""
    verdict: str
    """Column that says which is better."""
    first: tuple[str, ...]
    """Its values, in lower case, where the first is."""
    second: tuple[str, ...]
    """Its values where the second is."""
    ties: tuple[str, ...] = ()
    """Its values where neither is."""
    prompt: str = ""
    """Column of the prompt, where it is not `instruction` or `prompt`."""
    optional: bool = False
    """Without the verdict the first is better."""
    graded: bool = False
    """The verdict is a number, and says how much better it is too."""

    @property
    def expected(self) -> str:
        """The values of the verdict, for a message."""
        *others, last = (*self.first, *self.second, *self.ties)
        return f"{', '.join(others)} or {last}"


Preference = tuple[str, tuple[str, ...]]
"""A verdict, and the columns of the two answers and of a prompt that is called otherwise."""

# AlpacaFarm's; a tie is 0 or 1.5 (tatsu-lab/alpaca_eval@7d16c26 metrics/winrate.py).
_PREFERENCE = (("1", "a"), ("2", "b"), ("tie", "0", "1.5"))
_ARENA = (("model_a",), ("model_b",), ("tie", "tie (bothbad)", "both_bad"))
_STRENGTH = (("-3", "-2", "-1"), ("1", "2", "3"), ("0",))
COMPARED = (
    # GPT-4-LLM and AlpacaFarm.
    Comparison(("completion_a", "completion_b"), "preference", *_PREFERENCE, "user_input", True),
    Comparison(("output_1", "output_2"), "preference", *_PREFERENCE, "user_input", True),
    # Stanford Human Preferences: two comments on a post.
    Comparison(("human_ref_A", "human_ref_B"), "labels", ("1",), ("0",), prompt="history"),
    # Chatbot Arena.
    Comparison(
        ("conversation_a", "conversation_b"),
        "winner",
        *_ARENA,
    ),
    Comparison(("response_a", "response_b"), "winner", *_ARENA),
    # PKU-SafeRLHF.
    Comparison(("response_0", "response_1"), "better_response_id", ("0",), ("1",)),
    # HelpSteer2's preferences, and HelpSteer3.
    Comparison(("response_1", "response_2"), "preference_strength", *_STRENGTH, graded=True),
    Comparison(
        ("response1", "response2"), "overall_preference", *_STRENGTH, "context", graded=True
    ),
)

ARENA_COLUMNS = ("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b")
"""Columns of a battle in Kaggle's form, beside `winner_tie`."""

OTHER_VERDICTS = tuple(
    dict.fromkeys(
        [
            *(comparison.verdict for comparison in COMPARED if not comparison.optional),
            *("label", "verdict", "choice", "better", "preferred", "human_preference"),
            *("better_completion", "better_output", "preferred_output"),
        ]
    )
)
"""Columns that may say which of two answers is better, where `preference` would."""

PAIR_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"),
    ("rating_chosen", "rating_rejected"),
    ("chosen_reward", "rejected_reward"),
    ("reward_chosen", "reward_rejected"),
)
"""Columns with the scores of `chosen` and `rejected`: UltraFeedback binarised, and its like."""

REJECTED_RESPONSE = "rejected_response"
"""ms-swift's column of the worse answer: the better one ends its `messages`."""

SYSTEM = ("system", "system_prompt", "system_message")
"""Columns that hold a system text."""

LOSS_FLAGS = ("weight", "train", "trainable", "loss")
"""Keys of a message, or of a row, that say if it carries loss: OpenAI's, Axolotl's two and
ms-swift's."""
_MESSAGE = {"from", "role", "value", "content"}
"""Keys of a message that are read."""
_TREE_MESSAGE = {"role", "text", "rank", "deleted", "replies", "message_id", "parent_id"}
"""Keys of a message in a tree that are read, or say no more than its place."""

IGNORED = "-"
"""The new name of a column that is left out on purpose."""

_OTHER_MEDIA = (
    "tools", "tool_calls", "functions", "function_call", "documents",
    "image", "images", "audio", "audios", "video", "videos",
)  # fmt: skip
"""Columns, and keys of a message, of what is not text: without it the answer teaches otherwise."""
_LABELS = ("label", "kto_tag")
"""KTO's verdict on the row's only answer, in TRL's and LLaMA-Factory's name."""
ROW_FLAGS = (*_LABELS, *LOSS_FLAGS)
"""Columns that mark a row with one answer as one not to learn from."""
_FLAG_TEXTS = ("true", "1", "1.0", "false", "0", "0.0")
"""Flags as texts, in lower case, in columns that as often hold something else."""
_GOOD = ("true", "1", "1.0", "yes", "good", "desirable", "chosen")
_BAD = ("false", "0", "0.0", "no", "bad", "undesirable", "rejected")
_PLACE_NAMES = frozenset(
    "id ids model models url source dataset subset split date time timestamp license licence path "
    "file annotator generator language lang category type tag tags version".split()
)
_NOTHING = ("", "[]", "{}", "null", "none")


def column_names(text: str, flag: str) -> dict[str, str]:
    """Read `old=new,old=new`, the new names of columns; `-` is the new name of one left out.

    Raises:
        UserError: A part is not `old=new`, or two columns get the same name.
    """
    names: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        old, _, new = (piece.strip() for piece in part.partition("="))
        if not old or not new:
            raise UserError(
                f"{flag} {short(part)}: expected OLD=NEW, such as question=instruction,"
                "answer=output; OLD=- leaves a column out"
            )
        if old in names or (new != IGNORED and new in names.values()):
            raise UserError(f"{flag} {short(part)}: `{short(old)}` or `{short(new)}` stands twice")
        names[old] = new
    return names


def renamed(row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The row with its columns under their new names.

    A new name wins over a column of that name, unless nothing stands in the column that gets it.
    Columns that become `-` are gone. Messages that a text holds as JSON, as tables often keep them,
    are messages.
    """
    return _with_messages(_renamed(row, names))


def _renamed(row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    if not names:
        return dict(row)
    new = {names[name]: value for name, value in row.items() if names.get(name, IGNORED) != IGNORED}
    kept = {name: value for name, value in row.items() if name not in names}
    return kept | {
        name: value for name, value in new.items() if _is_there(value) or name not in kept
    }


def _with_messages(row: dict[str, Any]) -> dict[str, Any]:
    """The row with lists of messages in the place of texts that hold them as JSON.

    An answer to a prompt of text may be such a text.
    """
    for name in _json_columns(row):
        messages = messages_in(row.get(name))
        if isinstance(messages, list):
            row[name] = messages
    if isinstance(row.get("prompt"), list):
        for name in OUTPUT:
            messages = messages_in(row.get(name))
            if isinstance(messages, list):
                row[name] = messages
    return row


def _json_columns(row: Mapping[str, Any]) -> list[str]:
    """The columns of a row in which messages may be written as JSON.

    Of two answers both are written so, or neither is. A `context` is a prompt in HelpSteer3 alone.
    """
    names = list(_JSON_MESSAGES)
    if all(row.get(name) is not None for name in ("response1", "response2")):
        names.append("context")
    answers = [row.get(name) for name in ("chosen", "rejected")]
    if all(isinstance(text, list) or messages_in(text) is not None for text in answers):
        names += ["chosen", "rejected"]
    return names


def refuse_json_texts(row: Mapping[str, Any]) -> None:
    """Refuse a prompt that is a list as JSON, and messages that are no JSON: both would be asked.

    Raises:
        BadRow: The row holds one.
    """
    for name in _json_columns(row):
        messages = messages_in(row.get(name))
        if isinstance(messages, BadRow):
            raise BadRow(f"column `{name}` looks like a list of messages and is {messages}")
    for name in INSTRUCTION:
        text = row.get(name)
        if row.get("history") is not None or not isinstance(text, str) or text[:1] != "[":
            continue
        value = Decoder().decode(text)
        if isinstance(messages_in(text), list):
            raise BadRow(
                f"column `{name}` holds messages as JSON; they are read in `prompt`: --columns "
                f"{name}=prompt (a run: --inputs.columns)"
            )
        if name == "prompt" and isinstance(value, list) and value:
            if all(isinstance(part, str) for part in value):
                raise BadRow(
                    f"column `{name}` holds a list of texts as JSON, which would be asked as it "
                    "stands: give the text alone, or messages (`role`, `content`)"
                )


def way_out(column: str) -> str:
    """The next steps where a column cannot be read, for the end of a message."""
    return f"leave the rows out, or the column: --columns {column}=- (a run: --inputs.columns)"


def refuse_unsupported(row: Mapping[str, Any]) -> None:
    """Refuse a row that teaches something else when its other media are lost.

    Raises:
        BadRow: It holds tools, images or the like, or a list as JSON where a prompt stands.
    """
    refuse_json_texts(row)
    media = [name for name, value in row.items() if _is_media(value)]
    for name in (*_OTHER_MEDIA, *media):
        if holds_something(row.get(name)):
            raise BadRow(
                f"column `{name}` is not supported: text alone is learnt from; {way_out(name)}"
            )
    for column in _NESTED:
        for value in _objects(row.get(column)):
            lost = next((key for key in _OTHER_MEDIA if holds_something(value.get(key))), None)
            if lost is not None:
                raise BadRow(
                    f"`{lost}` within column `{column}` is not supported: text alone is learnt "
                    "from; leave the row out"
                )


def refuse_marked_bad(row: Mapping[str, Any], flags: Iterable[str] = ROW_FLAGS) -> None:
    """Leave out a row that its label or loss flag marks as one not to learn from.

    Args:
        row: The row.
        flags: The columns that may mark it. Beside two answers a label is a verdict, if anything,
            so that `LOSS_FLAGS` alone mark the row.

    Raises:
        MarkedBad: It is marked so.
        BadRow: The label or flag says neither yes nor no.
    """
    for name in flags:
        value = row.get(name)
        if value is None or value == "" or not _is_flag(name, value):
            continue
        text = str(value).strip().lower() if isinstance(value, (str, int, float)) else ""
        if text in _BAD:
            raise MarkedBad(f"column `{name}` marks the row as one not to learn from")
        if text not in _GOOD:
            expected = "true (learn from the row) or false (do not)"
            if name in LOSS_FLAGS:
                expected = "1 (learn from the row) or 0 (do not)"
            raise BadRow(
                f"column `{name}` must be {expected}, got {short(str(value))}; " + way_out(name)
            )


def _is_flag(name: str, value: Any) -> bool:
    """True unless a column with the name of a flag holds a trainer's loss or the name of a split.

    A `loss` is a flag if it is true or false, 0 or 1, and so is a text in `train`.
    """
    if name == "loss" or (name == "train" and isinstance(value, str)):
        return str(value).strip().lower() in _FLAG_TEXTS
    return True


def _flags(row: Mapping[str, Any], names: tuple[str, ...]) -> list[str]:
    """Those of the columns `names` that are flags in this row."""
    return [name for name in names if _is_flag(name, row.get(name))]


def prompt_column(row: Mapping[str, Any]) -> str | None:
    """The column that holds the prompt, if there is one: messages in `prompt` before any text."""
    if isinstance(row.get("prompt"), list):
        return "prompt"
    return next((name for name in INSTRUCTION if row.get(name) is not None), None)


def messages_column(row: Mapping[str, Any]) -> str | None:
    """The column with the messages that a row's answers answer; None beside a prompt."""
    if prompt_column(row) is not None:
        return None
    return next((name for name in CONVERSATION if isinstance(row.get(name), list)), None)


def are_conversations(row: Mapping[str, Any]) -> bool:
    """True where `chosen` or `rejected` is a list of messages that holds more than the answer.

    Without a column that asks, lists of one message count too.
    """
    answers = [row.get(name) for name in ("chosen", "rejected")]
    if not all(isinstance(answer, list) for answer in answers):
        return False
    has_prompt = any(row.get(name) is not None for name in ("prompt", "instruction", *CONVERSATION))
    return not has_prompt or any(len(answer) > 1 for answer in answers if answer is not None)


def preference_shape(row: Mapping[str, Any]) -> PreferenceShape | None:
    """The shape of a row of preferences, from its columns; None if it is of none.

    Where a row has the columns of several, the first in this order is read.
    """
    if isinstance(row.get("prompt"), dict):
        return "trees"
    rejected = row.get("rejected") is not None
    if rejected and row.get("chosen") is not None:
        return "chosen-rejected"
    if row.get(REJECTED_RESPONSE) is not None and isinstance(row.get("messages"), list):
        return "chosen-rejected"
    if comparison_of(row) is not None or is_arena(row):
        return "completion-ab"
    return "ranking-list" if answers_column(row) is not None else None


def is_arena(row: Mapping[str, Any]) -> bool:
    """True for a battle as lmsys wrote it for Kaggle: lists of texts, and a column a winner."""
    return all(row.get(name) is not None for name in ARENA_COLUMNS)


def preference_of(row: Mapping[str, Any]) -> list[Preference]:
    """The verdict in the column `preference`, and what it compares; empty for other rows."""
    comparison = comparison_of(row)
    if comparison is None or not comparison.optional or row.get(comparison.verdict) is None:
        return []
    prompt = [comparison.prompt] if row.get(comparison.prompt) is not None else []
    return [(verdict_text(row[comparison.verdict]), (*comparison.answers, *prompt))]


def verdict_text(value: object) -> str:
    """A verdict as the table of comparisons writes it.

    A column of whole numbers with gaps becomes floats in Parquet and CSV, hence the ".0".
    """
    return str(value).strip().lower().removesuffix(".0")


def comparison_of(row: Mapping[str, Any]) -> Comparison | None:
    """The comparison that a row's columns are, if they are one and no pair."""
    if row.get("chosen") is not None and row.get("rejected") is not None:
        return None
    for comparison in COMPARED:
        there = all(row.get(name) is not None for name in comparison.answers)
        if there and (comparison.optional or comparison.verdict in row):
            return comparison
    return None


def answers_column(row: Mapping[str, Any]) -> str | None:
    """The column that holds a list of ordered answers, if there is one."""
    name = next((name for name in ANSWERS if row.get(name) is not None), None)
    answers = row.get(RANKED_ANSWERS)
    if name is not None or not isinstance(answers, list):
        return name
    ordered = any(row.get(column) is not None for column in SCORES)
    ordered = ordered or any(isinstance(answer, dict) and "rank" in answer for answer in answers)
    return RANKED_ANSWERS if ordered else None


def is_message(row: Mapping[str, Any]) -> bool:
    """True for one message of a tree as a row: OpenAssistant's form on the hub."""
    return all(row.get(name) is not None for name in ("message_id", "text", "role"))


def names_a_place(name: str) -> bool:
    """True for the name of a column that says where a row is from, or of what kind it is."""
    return re.split(r"[\W_]+", name.casefold())[-1] in _PLACE_NAMES


def system_column(row: Mapping[str, Any]) -> str:
    """The name of the column that holds the system text; `system` where none holds any."""
    return next((name for name in SYSTEM if holds_something(row.get(name))), SYSTEM[0])


def unread_columns(
    row: Mapping[str, Any],
    kind: RowKind,
    names: Mapping[str, str] | None = None,
    shape: PreferenceShape | None = None,
) -> list[str]:
    """The columns of a row that hold something and are not read; `messages[].name` within them.

    Args:
        row: The row as it stands in its file.
        kind: Its reader.
        names: New names of its columns. A column whose name another one gets is not read.
        shape: The shape that preferences are read in, where it is not that of the columns.
    """
    names = names or {}
    given = {names[name] for name, value in row.items() if name in names and _is_there(value)}
    unread = [
        name
        for name, value in row.items()
        if name in given and name not in names and _is_there(value)
    ]
    row = renamed(row, names)
    read = _read(row, kind, shape)
    unread += [name for name, value in row.items() if name not in read and _is_there(value)]
    for column in (name for name in _NESTED if name in read):
        keys = [
            key
            for value in _objects(row.get(column))
            for key in _unread_keys(value, column, row, kind)
        ]
        unread += [f"{column}[].{key}" for key in dict.fromkeys(keys)]
    return unread


def _unread_keys(
    value: Mapping[str, Any], column: str, row: Mapping[str, Any], kind: RowKind
) -> list[str]:
    """The keys of an object within a column that hold something and are not read."""
    if column == "instances":
        read = {*_first(value, INPUT), *_first(value, OUTPUT), "history", "masked_replies"}
        read |= {system_column(value), *_flags(value, ROW_FLAGS)}
    elif column == answers_column(row):
        read = _first(value, ANSWER_TEXTS)
        if not any(row.get(name) is not None for name in SCORES):
            ranked = any(answer.get("rank") is not None for answer in _objects(row[column]))
            read |= {"rank"} if ranked else _first(value, ANSWER_RATINGS) or {"annotations"}
    elif column == "prompt" and isinstance(row[column], dict):
        read = _TREE_MESSAGE
    else:
        read = _MESSAGE if kind == "rankings" else {*_MESSAGE, *LOSS_FLAGS}
    return [key for key, content in value.items() if key not in read and _is_there(content)]


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """The objects of a list, or of a message tree, in order."""
    # A stack of its own: a tree may be deeper than Python's recursion.
    stack = [value]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            yield value
            value = value.get("replies")
        if isinstance(value, list):
            stack.extend(reversed(value))


def _read(row: Mapping[str, Any], kind: RowKind, shape: PreferenceShape | None) -> set[str]:
    if kind == "rankings":
        return _read_rankings(row, shape or preference_shape(row))
    shared = {"source", system_column(row), *_flags(row, ROW_FLAGS)}
    dialogue = {"history", "masked_replies"}
    conversation = _first(row, CONVERSATION)
    if conversation:
        return {*conversation, *dialogue, *shared}
    if row.get("instances") is not None:
        return {"instruction", "instances", *shared}
    answers = set(OUTPUT) if kind == "prompts" else _first(row, OUTPUT)
    return {*_read_prompt(row), *_first(row, INPUT), *answers, *dialogue, *shared}


def _read_rankings(row: Mapping[str, Any], shape: PreferenceShape | None) -> set[str]:
    if is_message(row):
        return {"message_id", "parent_id", "role", "text", "rank", "deleted"}
    shared = {"source", system_column(row), "history", *_flags(row, LOSS_FLAGS)}
    if shape == "trees":
        return {"prompt", *shared} - {"source"}
    prompt = {*_read_prompt(row), *_first(row, INPUT), *shared}
    if shape == "ranking-list":
        return {answers_column(row) or "", *_first(row, SCORES), "annotator", *prompt}
    comparison = comparison_of(row)
    if comparison is None and is_arena(row):
        return {*ARENA_COLUMNS, "winner_tie", *shared}
    if comparison is not None:
        if row.get(comparison.prompt) is not None:
            others = {name: value for name, value in row.items() if name != comparison.prompt}
            prompt = {comparison.prompt, *_first(others, INPUT), *shared}
        return {*comparison.answers, comparison.verdict, "margin", *prompt}
    if row.get("conversations") is not None:
        prompt = {"conversations", *_first(row, INPUT), *shared}
    elif are_conversations(row):
        prompt -= {*CONVERSATION}
    answers = {"chosen", REJECTED_RESPONSE if row.get("chosen") is None else "rejected"}
    scores = {name for names in PAIR_SCORES for name in names}
    return {*answers, "margin", *scores, *prompt}


def _read_prompt(row: Mapping[str, Any]) -> set[str]:
    """The column of the prompt, as a set; empty if there is none."""
    name = prompt_column(row) or messages_column(row)
    return set() if name is None else {name}


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> set[str]:
    """The first of these columns that holds anything: the only one that is read."""
    return set([name for name in names if row.get(name) is not None][:1])


def _is_media(value: Any) -> bool:
    """True for a picture or a sound as the datasets library keeps it in Parquet."""
    return isinstance(value, dict) and set(value) == {"bytes", "path"}


def _is_there(value: Any) -> bool:
    return not is_absent(value) and not (isinstance(value, (str, list, dict)) and not value)


def holds_something(value: Any) -> bool:
    """True unless a value is nothing, also as it is written in a text."""
    if isinstance(value, str):
        return re.sub(r"\s+", "", value).lower() not in _NOTHING
    if isinstance(value, (list, tuple)):
        return any(holds_something(element) for element in value)
    return bool(value) and not is_absent(value)
