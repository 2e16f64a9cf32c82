"""Prompts that admins have added to those that are ranked."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table, which is empty."""
    whole = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "added_prompt",
        sa.Column("id", whole, primary_key=True),
        sa.Column("prompt_id", whole, sa.ForeignKey("prompt.id"), nullable=False),
        sa.Column("author", sa.Text, nullable=False),
        sa.Column("created_ms", whole, nullable=False),
        sa.UniqueConstraint("prompt_id", name="uq_added_prompt_prompt_id"),
    )
