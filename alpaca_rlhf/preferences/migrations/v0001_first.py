"""Prompts, candidate sets, annotators, assignments, rankings, battles, flags, audit, snapshots."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision: str | None = None
branch_labels = None
depends_on = None

_WHOLE = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "prompt",
        _id(),
        sa.Column("key", sa.String(16), nullable=False),
        *_texts("instruction", "input"),
        sa.Column("history", sa.JSON, nullable=False),
        *_texts("source"),
        *_wholes("created_ms"),
        sa.UniqueConstraint("key", name="uq_prompt_key"),
    )
    op.create_table(
        "completion",
        _id(),
        sa.Column("key", sa.String(16), nullable=False),
        _reference("completion", "prompt_id", "prompt"),
        *_texts("text", "adapter", "sampling"),
        *_wholes("seed", "sample"),
        *_texts("finish_reason"),
        *_wholes("n_tokens", "created_ms"),
        sa.UniqueConstraint("key", name="uq_completion_key"),
    )
    op.create_table(
        "candidate_set",
        _id(),
        sa.Column("key", sa.String(16), nullable=False),
        _reference("candidate_set", "prompt_id", "prompt"),
        sa.Column("completions", sa.JSON, nullable=False),
        *_wholes("target", "claimed", "verdicts"),
        sa.Column("gold", sa.JSON),
        sa.Column("retired", sa.Boolean, nullable=False),
        *_texts("origin"),
        *_wholes("created_ms"),
        sa.UniqueConstraint("key", name="uq_candidate_set_key"),
        sa.CheckConstraint(
            "claimed >= 0 AND claimed <= target", name=op.f("ck_candidate_set_places")
        ),
    )
    _partial("candidate_set", "fresh", "claimed = 0 AND target > 0 AND NOT retired", "id")
    _partial("candidate_set", "shared", "claimed > 0 AND claimed < target AND NOT retired", "id")
    _partial("candidate_set", "overlapping", "verdicts >= 2", "id")
    _partial("candidate_set", "gold", "gold IS NOT NULL AND NOT retired", "id")
    op.create_table(
        "annotator",
        _id(),
        *_texts("name", "password_hash"),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("lang", sa.String(16), nullable=False),
        sa.Column("active", sa.Boolean, nullable=False),
        *_wholes("created_ms"),
        sa.UniqueConstraint("name", name="uq_annotator_name"),
    )
    op.create_table(
        "assignment",
        _id(),
        _reference("assignment", "candidate_set_id", "candidate_set"),
        _reference("assignment", "annotator_id", "annotator"),
        sa.Column("kind", sa.String(8), nullable=False),
        *_wholes("repeat"),
        _reference("assignment", "repeat_of", "assignment", nullable=True),
        sa.Column("shown_order", sa.JSON, nullable=False),
        sa.Column("state", sa.String(8), nullable=False),
        *_wholes("lease_ms", "shown_ms", "next_revision"),
        sa.Column("ranking_id", _WHOLE),
        sa.Column("duration_ms", _WHOLE),
        sa.UniqueConstraint(
            "candidate_set_id",
            "annotator_id",
            "repeat",
            name="uq_assignment_candidate_set_id_annotator_id_repeat",
        ),
    )
    op.create_index(
        "ix_assignment_annotator_id_duration_ms", "assignment", ["annotator_id", "duration_ms"]
    )
    op.create_index("ix_assignment_duration_ms", "assignment", ["duration_ms"])
    _partial("assignment", "open", "state = 'open'", "lease_ms")
    _partial("assignment", "mine", "state = 'open'", "annotator_id", "id")
    _partial("assignment", "expired", "state = 'expired'", "annotator_id", "id")
    _partial("assignment", "done", "state = 'done'", "annotator_id", "ranking_id")
    _partial("assignment", "repeated", "kind = 'repeat' AND state = 'done'", "id")
    op.create_table(
        "ranking",
        _id(),
        _reference("ranking", "assignment_id", "assignment"),
        *_wholes("revision"),
        sa.Column("withdrawn", sa.Boolean, nullable=False),
        sa.Column("tiers", sa.JSON, nullable=False),
        sa.Column("criteria", sa.JSON, nullable=False),
        sa.Column("all_bad", sa.Boolean, nullable=False),
        sa.Column("blind", sa.Boolean, nullable=False),
        *_texts("comment", "input_method", "app_version"),
        *_wholes("duration_ms", "created_ms"),
        sa.UniqueConstraint("assignment_id", "revision", name="uq_ranking_assignment_id_revision"),
    )
    op.create_index("ix_ranking_created_ms", "ranking", ["created_ms"])
    op.create_table(
        "battle",
        _id(),
        sa.Column("round", sa.String(32), nullable=False),
        _reference("battle", "annotator_id", "annotator"),
        _reference("battle", "prompt_id", "prompt"),
        _reference("battle", "left_id", "completion"),
        _reference("battle", "right_id", "completion"),
        *_texts("left_policy", "right_policy"),
        sa.Column("vote", sa.String(8)),
        sa.Column("blind", sa.Boolean, nullable=False),
        *_wholes("created_ms"),
        sa.Column("voted_ms", _WHOLE),
        sa.UniqueConstraint("round", name="uq_battle_round"),
    )
    op.create_table(
        "flag",
        _id(),
        _reference("flag", "assignment_id", "assignment"),
        *_texts("completion"),
        sa.Column("reason", sa.String(32), nullable=False),
        *_texts("text"),
        *_wholes("created_ms"),
        sa.UniqueConstraint(
            "assignment_id", "completion", "reason", name="uq_flag_assignment_id_completion_reason"
        ),
    )
    op.create_table(
        "audit",
        _id(),
        *_wholes("at_ms"),
        *_texts("actor"),
        sa.Column("action", sa.String(32), nullable=False),
        *_texts("entity"),
        sa.Column("before", sa.JSON),
        sa.Column("after", sa.JSON),
    )
    op.create_table(
        "snapshot",
        _id(),
        *_wholes("created_ms"),
        *_texts("path"),
        *_wholes("max_ranking_id", "rankings"),
        sa.Column("sha256", sa.String(64), nullable=False),
    )


def _id() -> sa.Column[int]:
    return sa.Column("id", _WHOLE, primary_key=True)


def _texts(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, nullable=False) for name in names]


def _wholes(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, _WHOLE, nullable=False) for name in names]


def _reference(table: str, name: str, target: str, *, nullable: bool = False) -> sa.Column[int]:
    key = sa.ForeignKey(f"{target}.id", name=f"fk_{table}_{name}")
    return sa.Column(name, _WHOLE, key, nullable=nullable)


def _partial(table: str, name: str, where: str, *columns: str) -> None:
    only = sa.text(where)
    op.create_index(
        f"ix_{table}_{name}", table, [*columns], sqlite_where=only, postgresql_where=only
    )
