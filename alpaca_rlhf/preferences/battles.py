"""Two answers side by side: the server draws the sides, and a vote is final."""

from __future__ import annotations

import math
import random
import uuid
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from alpaca_rlhf.preferences import schema
from alpaca_rlhf.preferences.assignment import Refused
from alpaca_rlhf.preferences.audit import note
from alpaca_rlhf.preferences.schema import Battle

Vote = Literal["left", "right", "tie", "both_bad"]
VOTES: tuple[Vote, ...] = ("left", "right", "tie", "both_bad")
_SURE = 1.959963984540054
"""Standard deviations of a 95 % interval."""


@dataclass(frozen=True)
class Pairing:
    """What an annotator sees: nothing says which policy wrote which."""

    round: str
    """Names it in a vote."""
    left: str
    """The text on the left."""
    right: str
    """The text on the right."""


@dataclass(frozen=True)
class Revealed:
    """What is shown after the vote."""

    vote: Vote
    """The vote that was kept: the first."""
    already: bool
    """Whether it had been kept before; then nothing was changed."""
    left: str
    """The policy on the left."""
    right: str
    """The policy on the right."""


@dataclass(frozen=True)
class Score:
    """All votes between two policies."""

    first: str
    """One policy, the earlier by name."""
    second: str
    """The other."""
    wins: int
    """Votes for the first."""
    losses: int
    """Votes for the second."""
    ties: int
    """Ties, and both bad."""

    @property
    def rate(self) -> tuple[float, float, float]:
        """Win rate of the first policy with the ends of its 95 % interval.

        A tie counts one half, which makes the interval wider than it need be, never narrower.
        Source: Wilson, JASA 22 (1927).
        """
        n = self.wins + self.losses + self.ties
        share, z2 = (self.wins + self.ties / 2) / n, _SURE**2
        middle = (share + z2 / (2 * n)) / (1 + z2 / n)
        half = _SURE * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
        return share, max(0.0, middle - half), min(1.0, middle + half)


def begin(
    session: Session,
    annotator_id: int,
    prompt: str,
    answers: tuple[tuple[str, str], tuple[str, str]],
    *,
    now_ms: int,
    rng: random.Random,
) -> Pairing:
    """Put two answers, each (policy, completion id), side by side.

    Raises:
        Refused: `unknown`: the prompt or a completion has not been added.
    """
    number = session.scalar(select(schema.Prompt.id).where(schema.Prompt.key == prompt))
    table = schema.Completion
    sides = rng.sample(answers, 2)
    found = [
        session.execute(
            select(table.id, table.text).where(table.key == key, table.prompt_id == number)
        ).first()
        for _, key in sides
    ]
    left, right = found
    if left is None or right is None:
        raise Refused("unknown", "these answers have not been added")
    row = {
        "round": uuid.uuid4().hex,
        "annotator_id": annotator_id,
        "prompt_id": number,
        "left_id": left.id,
        "right_id": right.id,
        "left_policy": sides[0][0],
        "right_policy": sides[1][0],
        "blind": True,
        "created_ms": now_ms,
    }
    session.execute(insert(Battle).values(row))
    return Pairing(str(row["round"]), left.text, right.text)


def vote(
    session: Session, round_: str, annotator_id: int, given: Vote, *, blind: bool, now_ms: int
) -> Revealed:
    """Keep a vote, unless one was kept before; then tell the policies.

    Raises:
        Refused: `unknown`, `not_yours` or `bad_value`.
    """
    if given not in VOTES:
        raise Refused("bad_value", f"a vote is one of {', '.join(VOTES)}")
    one = session.scalar(select(Battle).where(Battle.round == round_).with_for_update())
    if one is None:
        raise Refused("unknown", "there is no such round")
    if one.annotator_id != annotator_id:
        raise Refused("not_yours", "this round was given to somebody else")
    if one.vote is not None:
        return Revealed(one.vote, True, one.left_policy, one.right_policy)  # type: ignore[arg-type]
    session.execute(
        update(Battle).where(Battle.id == one.id).values(vote=given, blind=blind, voted_ms=now_ms)
    )
    actor, entity = f"annotator:{annotator_id}", f"battle:{one.id}"
    note(session, now_ms, actor, "vote", entity, after={"vote": given, "blind": blind})
    return Revealed(given, False, one.left_policy, one.right_policy)


def scores(session: Session) -> list[Score]:
    """All blind votes, a row for each two policies."""
    found = session.execute(
        select(Battle.left_policy, Battle.right_policy, Battle.vote, func.count())
        .where(Battle.vote.is_not(None), Battle.blind)
        .group_by(Battle.left_policy, Battle.right_policy, Battle.vote)
    )
    sums: dict[tuple[str, str], list[int]] = {}
    for left, right, given, n in found:
        first, second = sorted((left, right))
        own = sums.setdefault((first, second), [0, 0, 0])
        winner = {"left": left, "right": right}.get(str(given))
        own[2 if winner is None else int(winner == second and first != second)] += n
    return [Score(*names, *own) for names, own in sorted(sums.items())]
