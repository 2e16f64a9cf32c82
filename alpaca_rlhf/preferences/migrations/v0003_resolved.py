"""Flags that an admin has looked at wait no longer."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; all flags that are there wait."""
    big_integer = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.add_column("flag", sa.Column("resolved_ms", big_integer, nullable=True))
    waiting = sa.text("resolved_ms IS NULL")
    op.create_index(
        "ix_flag_waiting", "flag", ["id"], sqlite_where=waiting, postgresql_where=waiting
    )
