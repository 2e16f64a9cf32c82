"""Conversations of each account, and thumbs on replies."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add both tables, which are empty."""
    whole = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "conversation",
        sa.Column("id", whole, primary_key=True),
        sa.Column("annotator_id", whole, sa.ForeignKey("annotator.id"), nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("turns", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("created_ms", whole, nullable=False),
        sa.Column("updated_ms", whole, nullable=False),
    )
    op.create_index(
        "ix_conversation_annotator_id_updated_ms", "conversation", ["annotator_id", "updated_ms"]
    )
    op.create_table(
        "thumb",
        sa.Column("annotator_id", whole, sa.ForeignKey("annotator.id"), primary_key=True),
        sa.Column("completion_id", whole, sa.ForeignKey("completion.id"), primary_key=True),
        sa.Column("up", sa.Boolean, nullable=False),
        sa.Column("created_ms", whole, nullable=False),
    )
