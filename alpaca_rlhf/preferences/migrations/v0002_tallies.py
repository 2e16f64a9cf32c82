"""Running sums of each annotator and day, so that the Data tab reads a few rows."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_WHOLE = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_AT_ONCE = 1000


def upgrade() -> None:
    """Make the table, and fill it from the verdicts that are there."""
    tally = op.create_table(
        "tally",
        sa.Column(
            "annotator_id",
            _WHOLE,
            sa.ForeignKey("annotator.id", name="fk_tally_annotator_id"),
            primary_key=True,
        ),
        sa.Column("day", sa.String(10), primary_key=True),
        *(sa.Column(name, _WHOLE, nullable=False) for name in ("rankings", "pairs", "decided")),
        *(
            sa.Column(name, sa.Double, nullable=False)
            for name in ("first_slot", "first_slot_expected")
        ),
        *(sa.Column(name, _WHOLE, nullable=False) for name in ("gold_asked", "gold_passed")),
    )
    sums: dict[tuple[int, str], dict[str, float]] = {}
    for row in _verdicts(op.get_bind()):
        day = datetime.fromtimestamp(row.created_ms / 1000, UTC).strftime("%Y-%m-%d")
        names = [column.name for column in tally.columns][2:]
        tally_row = sums.setdefault((row.annotator_id, day), dict.fromkeys(names, 0))
        for name, value in _facts(row).items():
            tally_row[name] += value
    if sums:
        rows = [
            {"annotator_id": annotator_id, "day": day, **columns}
            for (annotator_id, day), columns in sums.items()
        ]
        op.bulk_insert(tally, rows)


def _verdicts(connection: sa.Connection) -> Iterator[Any]:
    after = 0
    query = sa.text(
        "SELECT a.id, a.annotator_id, a.kind, a.shown_order, r.tiers, r.created_ms, s.gold "
        "FROM assignment a JOIN ranking r ON r.id = a.ranking_id "
        "JOIN candidate_set s ON s.id = a.candidate_set_id "
        "WHERE a.id > :after AND a.kind IN ('task', 'gold', 'judge') ORDER BY a.id LIMIT :n"
    ).columns(shown_order=sa.JSON, tiers=sa.JSON, gold=sa.JSON)
    while rows := connection.execute(query, {"after": after, "n": _AT_ONCE}).all():
        yield from rows
        after = rows[-1].id


def _facts(row: Any) -> dict[str, float]:
    place = {key: rank for rank, tier in enumerate(row.tiers) for key in tier}
    if row.kind == "gold":
        wrong = sum(
            place[a] >= place[b]
            for rank, tier in enumerate(row.gold)
            for later in row.gold[rank + 1 :]
            for a in tier
            for b in later
        )
        return {"gold_asked": 1, "gold_passed": int(not wrong)}
    k, best = len(place), row.tiers[0]
    tied = sum(len(tier) * (len(tier) - 1) // 2 for tier in row.tiers)
    facts: dict[str, float] = {"rankings": 1, "pairs": k * (k - 1) // 2 - tied}
    if len(row.tiers) > 1:
        facts["decided"] = 1
        facts["first_slot"] = (row.shown_order[0] in best) / len(best)
        facts["first_slot_expected"] = 1 / k
    return facts
