"""The completions and the sets of a prompt are found without a look at all others."""

from __future__ import annotations

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add an index to each table; with a million rankings this takes some seconds."""
    op.create_index("ix_completion_prompt_id", "completion", ["prompt_id"])
    op.create_index("ix_candidate_set_prompt_id", "candidate_set", ["prompt_id"])
