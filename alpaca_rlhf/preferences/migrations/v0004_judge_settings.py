"""A judge's verdict names the settings it was made under, so that a replay is recognised."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; earlier verdicts name no settings."""
    op.add_column("ranking", sa.Column("judge_settings", sa.String(16), nullable=True))
