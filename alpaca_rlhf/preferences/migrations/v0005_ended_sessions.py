"""Logins that were ended stay ended after a restart."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table; before it, ended logins were forgotten with the process."""
    whole = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    annotator = sa.ForeignKey("annotator.id", name="fk_ended_session_annotator_id")
    op.create_table(
        "ended_session",
        sa.Column("annotator_id", whole, annotator, primary_key=True),
        sa.Column("began_s", whole, primary_key=True),
        if_not_exists=True,
    )
