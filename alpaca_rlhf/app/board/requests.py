"""The requests of the board, checked: nothing that a browser sends is trusted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from alpaca_rlhf.preferences.assignment import (
    MAX_ANSWERS,
    MAX_BETTER_CHARS,
    MAX_STARS,
    MAX_TEXT_CHARS,
    METHODS,
    MIN_ANSWERS,
    BetterAnswer,
    Refused,
    Verdict,
)

Action = Literal["next", "renew", "submit", "undo", "skip", "flag", "progress", "mine"]

CRITERIA = ("relevance", "informativeness", "harmlessness")
"""Criteria that stars are given for."""
REASONS = ("harmful", "personal", "nonsense", "language", "duplicate", "other")
"""Reasons to flag a task."""
MAX_REASON_CHARS = 500
"""Characters of the reason for a skip."""
MAX_REQUEST_CHARS = 100_000
MAX_HELD_TASKS = 50
"""Tasks that a page may hold at once."""
_MAX_NUMBER = 2**53 - 1
_MAX_ID_CHARS = 64


@dataclass(frozen=True)
class BoardRequest:
    """One request of the board. Fields that its action does not need are empty."""

    action: Action
    """The action."""
    task: int = 0
    """The task that is meant; 0 is none."""
    revision: int = 0
    """`Task.revision` of the task as it was shown."""
    verdict: Verdict | None = None
    """The verdict of a submit."""
    holding: tuple[int, ...] = ()
    """Tasks that the page has already."""
    on_screen: bool = False
    """True if the task appears on screen just now."""
    reason: str = ""
    """Reason for a skip or a flag."""
    comment: str = ""
    """The annotator's remark on a flag."""
    completion: str = ""
    """The answer that is flagged; empty for the prompt."""
    before: int | None = None
    """Own verdicts before this number; None is the newest."""


def parse_request(message: str) -> BoardRequest:
    """Parse and check a request.

    Raises:
        Refused: `incomplete`: the tiers are not an order; `bad_value`: anything else is wrong.
    """
    # 1. A JSON object with a known action.
    if not isinstance(message, str) or len(message) > MAX_REQUEST_CHARS:
        raise Refused("bad_value", f"a message has at most {MAX_REQUEST_CHARS} characters")
    try:
        fields = json.loads(message)
    except (ValueError, RecursionError):
        raise Refused("bad_value", "the message is not JSON") from None
    if not isinstance(fields, dict) or fields.get("do") not in get_args(Action):
        raise Refused("bad_value", f"`do` must be one of {', '.join(get_args(Action))}")
    action = cast(Action, fields["do"])
    # 2. The fields of that action.
    if action == "next":
        return BoardRequest(action, holding=_held_tasks(fields))
    if action == "mine":
        earlier = fields.get("before") is not None
        return BoardRequest(action, before=_number(fields, "before") if earlier else None)
    if action == "progress":
        return BoardRequest(action)
    task = _number(fields, "task", minimum=0 if action == "undo" else 1)
    if action == "renew":
        on_screen = fields.get("shown") is True
        return BoardRequest(action, task, holding=_held_tasks(fields), on_screen=on_screen)
    if action == "submit":
        return BoardRequest(action, task, _number(fields, "revision"), _verdict(fields))
    if action == "undo":
        return BoardRequest(action, task)
    if action == "skip":
        return BoardRequest(action, task, reason=_text(fields, "reason", MAX_REASON_CHARS))
    if fields.get("reason") not in REASONS:
        raise Refused("bad_value", f"`reason` must be one of {', '.join(REASONS)}")
    return BoardRequest(
        action,
        task,
        reason=fields["reason"],
        comment=_text(fields, "words", MAX_TEXT_CHARS),
        completion=_text(fields, "completion", _MAX_ID_CHARS),
    )


def _verdict(fields: Mapping[str, Any]) -> Verdict:
    # 1. The order: every answer once, by its id.
    tiers = fields.get("tiers")
    if not isinstance(tiers, list) or not all(isinstance(tier, list) for tier in tiers):
        raise Refused("incomplete", "`tiers` must be a list of lists")
    if not all(tiers):
        raise Refused("incomplete", "a tier is empty")
    ids = [answer_id for tier in tiers for answer_id in tier]
    if not all(
        isinstance(answer_id, str) and 0 < len(answer_id) <= _MAX_ID_CHARS for answer_id in ids
    ):
        raise Refused("incomplete", "an answer must be named by its id")
    if not MIN_ANSWERS <= len(ids) <= MAX_ANSWERS or len(set(ids)) != len(ids):
        raise Refused(
            "incomplete", f"give {MIN_ANSWERS} to {MAX_ANSWERS} answers, each in one place"
        )
    # 2. Everything beside the order.
    method = fields.get("method")
    if method not in METHODS or not method:
        raise Refused("bad_value", f"`method` must be one of {', '.join(filter(None, METHODS))}")
    if not isinstance(fields.get("all_bad", False), bool):
        raise Refused("bad_value", "`all_bad` must be true or false")
    return Verdict(
        tuple(tuple(tier) for tier in tiers),
        _criteria(fields.get("criteria", {}), set(ids)),
        all_bad=fields.get("all_bad", False),
        comment=_text(fields, "comment", MAX_TEXT_CHARS),
        input_method=method,
        better=_better(fields, set(ids)),
        guideline=_guideline(fields),
    )


def _guideline(fields: Mapping[str, Any]) -> int | None:
    # A verdict that was sent off by a page of an earlier version names none; 0 is none yet.
    return None if fields.get("guideline") is None else _number(fields, "guideline") or None


def _better(fields: Mapping[str, Any], ids: set[str]) -> BetterAnswer | None:
    text = _text(fields, "better", MAX_BETTER_CHARS)
    edited_from = _text(fields, "better_from", _MAX_ID_CHARS)
    if edited_from and edited_from not in ids:
        raise Refused("bad_value", "`better_from` names something that is not an answer")
    return BetterAnswer(text.strip(), edited_from) if text.strip() else None


def _criteria(criteria: Any, ids: set[str]) -> dict[str, dict[str, int]]:
    if not isinstance(criteria, dict) or not all(
        isinstance(stars, dict) for stars in criteria.values()
    ):
        raise Refused("bad_value", "`criteria` must map answers to criteria to stars")
    for answer_id, stars in criteria.items():
        if answer_id not in ids:
            raise Refused("bad_value", "`criteria` names something that is not an answer")
        for criterion, n_stars in stars.items():
            if criterion not in CRITERIA:
                raise Refused("bad_value", f"a criterion must be one of {', '.join(CRITERIA)}")
            if type(n_stars) is not int or not 1 <= n_stars <= MAX_STARS:
                raise Refused("bad_value", f"{criterion}: give 1 to {MAX_STARS} stars")
    return {answer_id: dict(stars) for answer_id, stars in criteria.items() if stars}


def _held_tasks(fields: Mapping[str, Any]) -> tuple[int, ...]:
    tasks = fields.get("holding", [])
    if not isinstance(tasks, list) or len(tasks) > MAX_HELD_TASKS:
        raise Refused("bad_value", f"`holding` must be a list of at most {MAX_HELD_TASKS} tasks")
    return tuple(_number({"holding": task}, "holding", minimum=1) for task in tasks)


def _number(fields: Mapping[str, Any], name: str, *, minimum: int = 0) -> int:
    number = fields.get(name)
    if type(number) is not int or not minimum <= number <= _MAX_NUMBER:
        raise Refused("bad_value", f"`{name}` must be an integer of at least {minimum}")
    return number


def _text(fields: Mapping[str, Any], name: str, max_chars: int) -> str:
    text = fields.get(name, "")
    if not isinstance(text, str) or len(text) > max_chars:
        raise Refused("bad_value", f"`{name}` must be text of at most {max_chars} characters")
    return text
