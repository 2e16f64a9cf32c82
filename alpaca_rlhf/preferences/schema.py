"""The tables of the preference database, as SQLAlchemy models.

Times are whole milliseconds since 1970 by the server's clock. Texts are found by their content
hashes (`Instruction.id`, `Completion.id`), so what is added twice is there once. A change here
needs a migration in `migrations/`; a test compares the two.
"""

from __future__ import annotations

from typing import Any, cast

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    ColumnElement,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Whole = BigInteger().with_variant(Integer, "sqlite")
"""64 bits on both; SQLite numbers rows by itself only where the type is INTEGER."""
Json = JSON(none_as_null=True)

HANDED_OUT = "NOT retired AND NOT left_out"
"""Sets that annotators may receive."""
FRESH = f"claimed = 0 AND target > 0 AND {HANDED_OUT}"
"""Sets that nobody has. The claim and its index say it in the same words, or SQLite's planner does
not use the index."""
SHARED = f"claimed > 0 AND claimed < target AND {HANDED_OUT}"
"""Sets that somebody has and that want another opinion."""
OVERLAPPING = "verdicts >= 2 AND NOT left_out"
"""Sets that two or more people have ranked."""
GOLD = f"gold IS NOT NULL AND {HANDED_OUT}"
"""Sets whose right order is known."""
OPEN = "state = 'open'"
EXPIRED = "state = 'expired'"
DONE = "state = 'done'"
WAITING = "resolved_ms IS NULL"
REPEATED = "kind = 'repeat' AND state = 'done'"
LEFT_OUT = "left_out"
REMARK = "comment <> ''"
"""Revisions with a remark of the annotator's."""
SKIP = "action = 'skip'"
"""Audit rows of skipped tasks, which hold the reasons."""


def condition(words: str) -> ColumnElement[bool]:
    """One of the conditions above, in its very words.

    As a typed expression it would become `(...) = 1` on SQLite, which uses no partial index.
    """
    return cast("ColumnElement[bool]", text(words))


class Base(DeclarativeBase):
    """The base of all tables: naming of constraints, and types of columns."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
        }
    )
    type_annotation_map = {int: Whole, str: Text, dict[str, Any]: Json, list[Any]: Json}  # noqa: RUF012


def _partial(name: str, where: str, *columns: str) -> Index:
    return Index(name, *columns, sqlite_where=text(where), postgresql_where=text(where))


class Prompt(Base):
    """One `Instruction`, without its output."""

    __tablename__ = "prompt"

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(16), unique=True)
    instruction: Mapped[str]
    input: Mapped[str]
    history: Mapped[list[Any]]
    source: Mapped[str]
    created_ms: Mapped[int]


class Completion(Base):
    """One `Completion`: its text, and the adapter, sampling and seed that made it."""

    __tablename__ = "completion"

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(16), unique=True)
    prompt_id: Mapped[int] = mapped_column(ForeignKey("prompt.id"), index=True)
    text: Mapped[str]
    adapter: Mapped[str]
    sampling: Mapped[str]
    seed: Mapped[int]
    sample: Mapped[int]
    finish_reason: Mapped[str]
    n_tokens: Mapped[int]
    created_ms: Mapped[int]


class AddedPrompt(Base):
    """A prompt that an admin has added to those that are ranked; `author` is as in the audit."""

    __tablename__ = "added_prompt"

    id: Mapped[int] = mapped_column(primary_key=True)
    prompt_id: Mapped[int] = mapped_column(ForeignKey("prompt.id"), unique=True)
    author: Mapped[str]
    created_ms: Mapped[int]


class CandidateSet(Base):
    """K completions of one prompt, frozen: completions that come later change no task.

    `target` people shall rank it, `claimed` of these places are taken (being ranked or done), and
    `verdicts` people have ranked it; people who are left out take no place and are not counted. A
    gold question has a known order in `gold` and no places: everybody may get it. Nobody receives a
    set that is `retired`; of one that is `left_out` no verdict counts either.
    """

    __tablename__ = "candidate_set"

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(16), unique=True)
    prompt_id: Mapped[int] = mapped_column(ForeignKey("prompt.id"), index=True)
    completions: Mapped[list[Any]]
    target: Mapped[int]
    claimed: Mapped[int]
    verdicts: Mapped[int]
    gold: Mapped[list[Any] | None] = mapped_column(Json)
    retired: Mapped[bool]
    left_out: Mapped[bool] = mapped_column(server_default=false())
    origin: Mapped[str]
    created_ms: Mapped[int]

    __table_args__ = (
        CheckConstraint("claimed >= 0 AND claimed <= target", name="places"),
        _partial("ix_candidate_set_fresh", FRESH, "id"),
        _partial("ix_candidate_set_shared", SHARED, "id"),
        _partial("ix_candidate_set_overlapping", OVERLAPPING, "id"),
        _partial("ix_candidate_set_gold", GOLD, "id"),
        _partial("ix_candidate_set_left_out", LEFT_OUT, "id"),
    )


class Annotator(Base):
    """An annotator: a person with a password and a role, or a judge (`judge:<name>`).

    Who is not `active` may not sign in, and what they ranked counts. Who is `left_out` is given no
    tasks, and nothing that they ranked counts. Who has `origins` is given sets of these alone.
    """

    __tablename__ = "annotator"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    password_hash: Mapped[str]
    role: Mapped[str] = mapped_column(String(16))
    lang: Mapped[str] = mapped_column(String(16))
    active: Mapped[bool]
    left_out: Mapped[bool] = mapped_column(server_default=false())
    origins: Mapped[list[Any] | None] = mapped_column(Json)
    created_ms: Mapped[int]


class EndedSession(Base):
    """A login of the app that was ended: every cookie of this account and begin is refused."""

    __tablename__ = "ended_session"

    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotator.id"), primary_key=True)
    began_s: Mapped[int] = mapped_column(primary_key=True)


class Assignment(Base):
    """One candidate set before one annotator.

    `repeat` is 0, or 1 where somebody sees a set of theirs again. `ranking_id` and `duration_ms`
    are those of the newest revision; both are empty while there is no verdict.
    """

    __tablename__ = "assignment"

    id: Mapped[int] = mapped_column(primary_key=True)
    candidate_set_id: Mapped[int] = mapped_column(ForeignKey("candidate_set.id"))
    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotator.id"))
    kind: Mapped[str] = mapped_column(String(8))
    repeat: Mapped[int]
    repeat_of: Mapped[int | None] = mapped_column(ForeignKey("assignment.id"))
    shown_order: Mapped[list[Any]]
    state: Mapped[str] = mapped_column(String(8))
    lease_ms: Mapped[int]
    shown_ms: Mapped[int]
    next_revision: Mapped[int]
    ranking_id: Mapped[int | None]
    duration_ms: Mapped[int | None]

    __table_args__ = (
        UniqueConstraint("candidate_set_id", "annotator_id", "repeat"),
        Index(None, "annotator_id", "duration_ms"),
        Index(None, "duration_ms"),
        _partial("ix_assignment_open", OPEN, "lease_ms"),
        _partial("ix_assignment_mine", OPEN, "annotator_id", "id"),
        _partial("ix_assignment_expired", EXPIRED, "annotator_id", "id"),
        _partial("ix_assignment_done", DONE, "annotator_id", "ranking_id"),
        _partial("ix_assignment_repeated", REPEATED, "id"),
    )


class Ranking(Base):
    """One revision of a verdict. Rows are added and never changed; an undo is a revision too.

    `judge_settings` is the hash of the settings that a judge ranked under; empty for people.
    `guideline` is the version of the guidelines that a person ranked under; empty without any.
    """

    __tablename__ = "ranking"

    id: Mapped[int] = mapped_column(primary_key=True)
    assignment_id: Mapped[int] = mapped_column(ForeignKey("assignment.id"))
    revision: Mapped[int]
    withdrawn: Mapped[bool]
    tiers: Mapped[list[Any]]
    criteria: Mapped[dict[str, Any]]
    all_bad: Mapped[bool]
    blind: Mapped[bool]
    comment: Mapped[str]
    input_method: Mapped[str]
    app_version: Mapped[str]
    duration_ms: Mapped[int]
    created_ms: Mapped[int]
    judge_settings: Mapped[str | None] = mapped_column(String(16))
    guideline: Mapped[int | None]

    __table_args__ = (
        UniqueConstraint("assignment_id", "revision"),
        Index(None, "created_ms"),
        _partial("ix_ranking_remark", REMARK, "id"),
    )


class Demonstration(Base):
    """A better answer that a person wrote with one revision of a verdict.

    `edited_from` is the key of the completion that it was made of; empty where it is new.
    """

    __tablename__ = "demonstration"

    id: Mapped[int] = mapped_column(primary_key=True)
    ranking_id: Mapped[int] = mapped_column(ForeignKey("ranking.id"))
    text: Mapped[str]
    edited_from: Mapped[str] = mapped_column(String(16))

    __table_args__ = (Index(None, "ranking_id", unique=True),)


class Conversation(Base):
    """A conversation of one account with the policies; `turns` are those of the Chat tab."""

    __tablename__ = "conversation"

    id: Mapped[int] = mapped_column(primary_key=True)
    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotator.id"))
    title: Mapped[str]
    turns: Mapped[list[Any]]
    created_ms: Mapped[int]
    updated_ms: Mapped[int]

    __table_args__ = (Index(None, "annotator_id", "updated_ms"),)


class Thumb(Base):
    """A thumb up or down on a reply of a chat."""

    __tablename__ = "thumb"

    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotator.id"), primary_key=True)
    completion_id: Mapped[int] = mapped_column(ForeignKey("completion.id"), primary_key=True)
    up: Mapped[bool]
    created_ms: Mapped[int]


class EditedReply(Base):
    """A reply of a chat as a person edited it, kept as a better answer than the completion."""

    __tablename__ = "edited_reply"

    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotator.id"), primary_key=True)
    completion_id: Mapped[int] = mapped_column(ForeignKey("completion.id"), primary_key=True)
    text: Mapped[str]
    created_ms: Mapped[int]


class Tally(Base):
    """Running sums of one annotator and day, kept in the transaction that changes them.

    `decided` are rankings in which anybody wins, `first_slot` those that the answer shown first won
    (ties shared), and `first_slot_expected` how many it would have won by chance.
    """

    __tablename__ = "tally"

    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotator.id"), primary_key=True)
    day: Mapped[str] = mapped_column(String(10), primary_key=True)
    rankings: Mapped[int]
    pairs: Mapped[int]
    decided: Mapped[int]
    first_slot: Mapped[float]
    first_slot_expected: Mapped[float]
    gold_asked: Mapped[int]
    gold_passed: Mapped[int]


class Battle(Base):
    """Two answers side by side. The server draws the sides, and a vote is final."""

    __tablename__ = "battle"

    id: Mapped[int] = mapped_column(primary_key=True)
    round: Mapped[str] = mapped_column(String(32), unique=True)
    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotator.id"))
    prompt_id: Mapped[int] = mapped_column(ForeignKey("prompt.id"))
    left_id: Mapped[int] = mapped_column(ForeignKey("completion.id"))
    right_id: Mapped[int] = mapped_column(ForeignKey("completion.id"))
    left_policy: Mapped[str]
    right_policy: Mapped[str]
    vote: Mapped[str | None] = mapped_column(String(8))
    blind: Mapped[bool]
    created_ms: Mapped[int]
    voted_ms: Mapped[int | None]


class Flag(Base):
    """A problem that an annotator found with a task; it waits until an admin has resolved it."""

    __tablename__ = "flag"

    id: Mapped[int] = mapped_column(primary_key=True)
    assignment_id: Mapped[int] = mapped_column(ForeignKey("assignment.id"))
    completion: Mapped[str]
    reason: Mapped[str] = mapped_column(String(32))
    text: Mapped[str]
    created_ms: Mapped[int]
    resolved_ms: Mapped[int | None]

    __table_args__ = (
        UniqueConstraint("assignment_id", "completion", "reason"),
        _partial("ix_flag_waiting", WAITING, "id"),
    )


class Audit(Base):
    """A change and its author, written in the transaction that made it."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(primary_key=True)
    at_ms: Mapped[int]
    actor: Mapped[str]
    action: Mapped[str] = mapped_column(String(32))
    entity: Mapped[str]
    before: Mapped[dict[str, Any] | None] = mapped_column(Json)
    after: Mapped[dict[str, Any] | None] = mapped_column(Json)

    __table_args__ = (_partial("ix_audit_skip", SKIP, "id"),)


class OverlapRow(Base):
    """A share of the sets, and how many people rank each of them. Rows are added, never changed."""

    __tablename__ = "overlap"

    id: Mapped[int] = mapped_column(primary_key=True)
    share: Mapped[float]
    people: Mapped[int]
    author: Mapped[str]
    created_ms: Mapped[int]


class GuidelineRow(Base):
    """One version of the guidelines. Rows are added and never changed."""

    __tablename__ = "guideline"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]
    author: Mapped[str]
    created_ms: Mapped[int]


class Snapshot(Base):
    """One export that was written."""

    __tablename__ = "snapshot"

    id: Mapped[int] = mapped_column(primary_key=True)
    created_ms: Mapped[int]
    path: Mapped[str]
    max_ranking_id: Mapped[int]
    rankings: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64))
