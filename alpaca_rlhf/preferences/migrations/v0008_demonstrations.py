"""Better answers that people wrote."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table, which is empty, and the index by which a verdict finds its answer."""
    whole = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "demonstration",
        sa.Column("id", whole, primary_key=True),
        sa.Column("ranking_id", whole, sa.ForeignKey("ranking.id"), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("edited_from", sa.String(16), nullable=False),
    )
    op.create_index("ix_demonstration_ranking_id", "demonstration", ["ranking_id"], unique=True)
