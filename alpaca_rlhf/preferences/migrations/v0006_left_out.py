"""Candidate sets and annotators can be left out; remarks are found without a search."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_HANDED_OUT = "NOT retired AND NOT left_out"


def upgrade() -> None:
    """Add the columns (nobody and nothing is left out yet) and the indices that follow them."""
    for table in ("annotator", "candidate_set"):
        column = sa.Column("left_out", sa.Boolean, nullable=False, server_default=sa.false())
        op.add_column(table, column)
    for name, where in (
        ("fresh", f"claimed = 0 AND target > 0 AND {_HANDED_OUT}"),
        ("shared", f"claimed > 0 AND claimed < target AND {_HANDED_OUT}"),
        ("overlapping", "verdicts >= 2 AND NOT left_out"),
        ("gold", f"gold IS NOT NULL AND {_HANDED_OUT}"),
    ):
        op.drop_index(f"ix_candidate_set_{name}", "candidate_set")
        _partial("candidate_set", name, where)
    _partial("candidate_set", "left_out", "left_out")
    _partial("ranking", "remark", "comment <> ''")
    _partial("audit", "skip", "action = 'skip'")


def _partial(table: str, name: str, where: str) -> None:
    only = sa.text(where)
    op.create_index(f"ix_{table}_{name}", table, ["id"], sqlite_where=only, postgresql_where=only)
