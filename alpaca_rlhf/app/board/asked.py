"""What the board asks the server for, checked: nothing that a browser sends is trusted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from alpaca_rlhf.preferences.assignment import (
    FEWEST,
    METHODS,
    MOST,
    MOST_STARS,
    MOST_TEXT,
    Refused,
    Verdict,
)

Do = Literal["next", "renew", "submit", "undo", "skip", "flag", "progress"]
"""What can be asked for."""

CRITERIA = ("relevance", "informativeness", "harmlessness")
"""What stars are given for."""
REASONS = ("harmful", "personal", "nonsense", "language", "duplicate", "other")
"""Why a task is flagged."""
MOST_REASON = 500
"""Characters of the reason for a skip."""
MOST_SENT = 100_000
"""Characters of a message."""
MOST_HELD = 50
"""Tasks that a page has before it at once."""
_MOST_NUMBER = 2**53 - 1
_MOST_ID = 64


@dataclass(frozen=True)
class Asked:
    """One message of the board. What its `do` does not need is empty."""

    do: Do
    """What to do."""
    task: int = 0
    """The task that is meant; 0 is none."""
    revision: int = 0
    """`Task.revision` of the task as it was shown."""
    verdict: Verdict | None = None
    """What is submitted."""
    holding: tuple[int, ...] = ()
    """Tasks that the page has already."""
    shown: bool = False
    """Whether the task comes before the annotator just now."""
    reason: str = ""
    """Why it is skipped or flagged."""
    words: str = ""
    """What the annotator says of a flag."""
    completion: str = ""
    """The answer that is flagged; empty is the prompt."""


def read(sent: str) -> Asked:
    """Read a message.

    Raises:
        Refused: `incomplete`: the order is none; `bad_value`: anything else is wrong.
    """
    if not isinstance(sent, str) or len(sent) > MOST_SENT:
        raise Refused("bad_value", f"a message has at most {MOST_SENT} characters")
    try:
        got = json.loads(sent)
    except (ValueError, RecursionError):
        raise Refused("bad_value", "the message is no JSON") from None
    if not isinstance(got, dict) or got.get("do") not in get_args(Do):
        raise Refused("bad_value", f"`do` is one of {', '.join(get_args(Do))}")
    do = cast(Do, got["do"])
    if do == "next":
        return Asked(do, holding=_held(got))
    if do == "progress":
        return Asked(do)
    task = _number(got, "task", fewest=0 if do == "undo" else 1)
    if do == "renew":
        return Asked(do, task, holding=_held(got), shown=got.get("shown") is True)
    if do == "submit":
        return Asked(do, task, _number(got, "revision"), _verdict(got))
    if do == "undo":
        return Asked(do, task)
    if do == "skip":
        return Asked(do, task, reason=_text(got, "reason", MOST_REASON))
    if got.get("reason") not in REASONS:
        raise Refused("bad_value", f"`reason` is one of {', '.join(REASONS)}")
    words, completion = _text(got, "words", MOST_TEXT), _text(got, "completion", _MOST_ID)
    return Asked(do, task, reason=got["reason"], words=words, completion=completion)


def _verdict(got: Mapping[str, Any]) -> Verdict:
    tiers = got.get("tiers")
    if not isinstance(tiers, list) or not all(isinstance(tier, list) for tier in tiers):
        raise Refused("incomplete", "`tiers` is a list of lists")
    if not all(tiers):
        raise Refused("incomplete", "a tier is empty")
    ids = [one for tier in tiers for one in tier]
    if not all(isinstance(one, str) and 0 < len(one) <= _MOST_ID for one in ids):
        raise Refused("incomplete", "an answer is named by its id")
    if not FEWEST <= len(ids) <= MOST or len(set(ids)) != len(ids):
        raise Refused("incomplete", f"{FEWEST} to {MOST} answers, each in one place")
    method = got.get("method")
    if method not in METHODS or not method:
        raise Refused("bad_value", "an order is moved, or confirmed as it was shown")
    if not isinstance(got.get("all_bad", False), bool):
        raise Refused("bad_value", "`all_bad` is true or false")
    return Verdict(
        tuple(tuple(tier) for tier in tiers),
        _criteria(got.get("criteria", {}), set(ids)),
        all_bad=got.get("all_bad", False),
        comment=_text(got, "comment", MOST_TEXT),
        input_method=method,
    )


def _criteria(given: Any, ids: set[str]) -> dict[str, dict[str, int]]:
    if not isinstance(given, dict) or not all(isinstance(one, dict) for one in given.values()):
        raise Refused("bad_value", "`criteria` maps answers to criteria to stars")
    for one, stars in given.items():
        if one not in ids:
            raise Refused("bad_value", "stars for something that is not an answer")
        for name, value in stars.items():
            if name not in CRITERIA:
                raise Refused("bad_value", f"a criterion is one of {', '.join(CRITERIA)}")
            if type(value) is not int or not 1 <= value <= MOST_STARS:
                raise Refused("bad_value", f"{name}: 1 to {MOST_STARS} stars")
    return {one: dict(stars) for one, stars in given.items() if stars}


def _held(got: Mapping[str, Any]) -> tuple[int, ...]:
    given = got.get("holding", [])
    if not isinstance(given, list) or len(given) > MOST_HELD:
        raise Refused("bad_value", f"`holding` is a list of at most {MOST_HELD} tasks")
    return tuple(_number({"holding": one}, "holding", fewest=1) for one in given)


def _number(got: Mapping[str, Any], name: str, *, fewest: int = 0) -> int:
    value = got.get(name)
    if type(value) is not int or not fewest <= value <= _MOST_NUMBER:
        raise Refused("bad_value", f"`{name}` is a number from {fewest}")
    return value


def _text(got: Mapping[str, Any], name: str, most: int) -> str:
    value = got.get(name, "")
    if not isinstance(value, str) or len(value) > most:
        raise Refused("bad_value", f"`{name}` has at most {most} characters")
    return value
