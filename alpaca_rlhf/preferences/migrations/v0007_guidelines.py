"""Guidelines of the admins by version, and the version that each verdict was given under."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table, which is empty, and the column, which is null for all verdicts so far."""
    whole = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "guideline",
        sa.Column("id", whole, primary_key=True),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("author", sa.Text, nullable=False),
        sa.Column("created_ms", whole, nullable=False),
    )
    op.add_column("ranking", sa.Column("guideline", whole, nullable=True))
