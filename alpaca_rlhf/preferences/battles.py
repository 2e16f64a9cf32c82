"""Battles: two answers side by side on random sides, and a vote that is final."""

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
from alpaca_rlhf.preferences.schema import Annotator, Battle

Vote = Literal["left", "right", "tie", "both_bad"]
VOTES: tuple[Vote, ...] = ("left", "right", "tie", "both_bad")
_Z95 = 1.959963984540054
"""Standard deviations of a 95% interval."""


@dataclass(frozen=True)
class Pairing:
    """The answers as an annotator sees them: nothing tells which policy wrote which."""

    round: str
    """Id of the round, which a vote names."""
    left: str
    """The text on the left."""
    right: str
    """The text on the right."""


@dataclass(frozen=True)
class Revealed:
    """The policies behind a round, shown after the vote."""

    vote: Vote
    """The vote that counts: the first one."""
    already: bool
    """True if a vote had been saved before; then nothing was changed."""
    left: str
    """The policy on the left."""
    right: str
    """The policy on the right."""


@dataclass(frozen=True)
class VoteCounts:
    """Blind votes between two policies."""

    first: str
    """The policy that is first by name."""
    second: str
    """The other policy."""
    wins: int
    """Votes for the first."""
    losses: int
    """Votes for the second."""
    ties: int
    """Ties and votes for "both bad"."""

    @property
    def rate(self) -> tuple[float, float, float]:
        """Win rate of the first policy, with both ends of its 95% interval.

        A tie counts one half, which can only make the interval too wide, never too narrow.
        Source: Wilson, JASA 22 (1927).
        """
        n = self.wins + self.losses + self.ties
        share, z2 = (self.wins + self.ties / 2) / n, _Z95**2
        middle = (share + z2 / (2 * n)) / (1 + z2 / n)
        half = _Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
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
    prompt_id = session.scalar(select(schema.Prompt.id).where(schema.Prompt.key == prompt))
    table = schema.Completion
    sides = rng.sample(answers, 2)
    left_row, right_row = (
        session.execute(
            select(table.id, table.text).where(table.key == key, table.prompt_id == prompt_id)
        ).first()
        for _, key in sides
    )
    if left_row is None or right_row is None:
        raise Refused("unknown", "these answers have not been added")
    row = {
        "round": uuid.uuid4().hex,
        "annotator_id": annotator_id,
        "prompt_id": prompt_id,
        "left_id": left_row.id,
        "right_id": right_row.id,
        "left_policy": sides[0][0],
        "right_policy": sides[1][0],
        "blind": True,
        "created_ms": now_ms,
    }
    session.execute(insert(Battle).values(row))
    return Pairing(str(row["round"]), left_row.text, right_row.text)


def vote(
    session: Session, round_: str, annotator_id: int, vote: Vote, *, blind: bool, now_ms: int
) -> Revealed:
    """Save a vote, unless one was saved before, and reveal the policies.

    Raises:
        Refused: `unknown`, `not_yours` or `bad_value`.
    """
    if vote not in VOTES:
        raise Refused("bad_value", f"a vote must be one of {', '.join(VOTES)}")
    battle = session.scalar(select(Battle).where(Battle.round == round_).with_for_update())
    if battle is None:
        raise Refused("unknown", "there is no such round")
    if battle.annotator_id != annotator_id:
        raise Refused("not_yours", "this round belongs to somebody else")
    if battle.vote is not None:
        return Revealed(battle.vote, True, battle.left_policy, battle.right_policy)  # type: ignore[arg-type]
    session.execute(
        update(Battle).where(Battle.id == battle.id).values(vote=vote, blind=blind, voted_ms=now_ms)
    )
    actor, entity = f"annotator:{annotator_id}", f"battle:{battle.id}"
    note(session, now_ms, actor, "vote", entity, after={"vote": vote, "blind": blind})
    return Revealed(vote, False, battle.left_policy, battle.right_policy)


def scores(session: Session) -> list[VoteCounts]:
    """The blind votes of each pair of policies, by annotators who are not left out."""
    rows = session.execute(
        select(Battle.left_policy, Battle.right_policy, Battle.vote, func.count())
        .join(Annotator, Annotator.id == Battle.annotator_id)
        .where(Battle.vote.is_not(None), Battle.blind, ~Annotator.left_out)
        .group_by(Battle.left_policy, Battle.right_policy, Battle.vote)
    )
    # Both ways round go into one row: wins of the first by name, its losses, ties.
    counts_by_pair: dict[tuple[str, str], list[int]] = {}
    for left_policy, right_policy, side, n in rows:
        first, second = sorted((left_policy, right_policy))
        counts = counts_by_pair.setdefault((first, second), [0, 0, 0])
        winner = {"left": left_policy, "right": right_policy}.get(str(side))
        counts[2 if winner is None else int(winner == second and first != second)] += n
    return [VoteCounts(*policies, *counts) for policies, counts in sorted(counts_by_pair.items())]
