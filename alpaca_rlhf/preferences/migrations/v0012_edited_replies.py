"""Replies of chats that people edited and kept as better answers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table, which is empty."""
    whole = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "edited_reply",
        sa.Column("annotator_id", whole, sa.ForeignKey("annotator.id"), primary_key=True),
        sa.Column("completion_id", whole, sa.ForeignKey("completion.id"), primary_key=True),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("created_ms", whole, nullable=False),
    )
