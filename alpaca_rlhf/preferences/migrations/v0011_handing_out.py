"""The overlap of sets by version, and the origins of each annotator's sets."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table, which is empty, and the column, which is null: everybody gets all sets."""
    whole = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "overlap",
        sa.Column("id", whole, primary_key=True),
        sa.Column("share", sa.Double, nullable=False),
        sa.Column("people", whole, nullable=False),
        sa.Column("author", sa.Text, nullable=False),
        sa.Column("created_ms", whole, nullable=False),
    )
    op.add_column("annotator", sa.Column("origins", sa.JSON(none_as_null=True), nullable=True))
