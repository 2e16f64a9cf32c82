"""Opening and migrating databases, and revisions and undos whatever their order."""

import os
import sqlite3

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import delete, select, text

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.preferences import database, passwords
from alpaca_rlhf.preferences.assignment import Refused, Rules, Verdict
from alpaca_rlhf.preferences.database import Database
from alpaca_rlhf.preferences.schema import Base, CandidateSet, Ranking, Tally
from alpaca_rlhf.preferences.store import Store
from tests.databases import candidates


def test_the_migrations_make_the_tables_of_the_models(store):
    with store.database.reading() as session:
        context = MigrationContext.configure(session.connection(), opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


OLD_INDICES = {
    "ix_candidate_set_fresh": "claimed = 0 AND target > 0 AND NOT retired",
    "ix_candidate_set_shared": "claimed > 0 AND claimed < target AND NOT retired",
    "ix_candidate_set_gold": "gold IS NOT NULL AND NOT retired",
    "ix_candidate_set_overlapping": "verdicts >= 2",
}
"""Indices of the first version, before sets could be left out."""


def test_a_database_of_version_1_is_migrated_with_what_it_holds(where, tmp_path, clock):
    """Its running sums are those that the store would have kept; SQLite is backed up first."""
    with Store(where, rules=Rules(gold_rate=0.3, repeat_rate=0.1), seed=3, clock=clock) as store:
        store.add_sets(candidates(40), origin="test")
        gold = candidates(5, tag="gold ")
        store.add_sets(
            gold,
            origin="gold",
            gold={
                prompt.id: tuple((completion.id,) for completion in completions)
                for prompt, completions in gold
            },
        )
        annotators = [store.add_annotator(f"person {i}", "long enough") for i in range(2)]
        for at in range(30):
            task = store.claim(annotators[at % 2])
            ids = [completion.id for completion in task.completions]
            tiers = (tuple(ids),) if at % 7 == 0 else ((ids[0], ids[1]), *((x,) for x in ids[2:]))
            store.submit(annotators[at % 2], task.id, Verdict(tiers), revision=task.revision)
            if at % 5 == 0:
                store.undo(annotators[at % 2])
            clock.now += 20_000
        before = sums(store)
        assert len(before) > 4
        with store.database.writing() as session:
            for name in ("fresh", "shared", "gold", "overlapping", "left_out"):
                session.execute(text(f"DROP INDEX ix_candidate_set_{name}"))
            for name, words in OLD_INDICES.items():
                session.execute(text(f"CREATE INDEX {name} ON candidate_set (id) WHERE {words}"))
            for table in ("completion", "candidate_set"):
                session.execute(text(f"DROP INDEX ix_{table}_prompt_id"))
            session.execute(text("DROP INDEX ix_ranking_remark"))
            session.execute(text("DROP INDEX ix_audit_skip"))
            session.execute(text("ALTER TABLE annotator DROP COLUMN left_out"))
            session.execute(text("ALTER TABLE annotator DROP COLUMN origins"))
            session.execute(text("ALTER TABLE candidate_set DROP COLUMN left_out"))
            session.execute(text("ALTER TABLE ranking DROP COLUMN guideline"))
            session.execute(text("DROP TABLE guideline"))
            for table in (
                "demonstration",
                "conversation",
                "thumb",
                "added_prompt",
                "overlap",
                "edited_reply",
            ):
                session.execute(text(f"DROP TABLE {table}"))
            session.execute(text("DROP TABLE tally"))
            session.execute(text("DROP TABLE ended_session"))
            session.execute(text("DROP INDEX ix_flag_waiting"))
            session.execute(text("ALTER TABLE flag DROP COLUMN resolved_ms"))
            session.execute(text("ALTER TABLE ranking DROP COLUMN judge_settings"))
            session.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    with Store(where) as store:
        assert counted(sums(store)) == counted(before)
        assert store.figures().counts["rankings"] > 0
    copies = list(tmp_path.glob("*.bak"))
    if "postgresql" not in where:
        (copy,) = copies
        with sqlite3.connect(copy) as backup:
            assert backup.execute("SELECT version_num FROM alembic_version").fetchall() == [
                ("0001",)
            ]
            assert backup.execute("SELECT count(*) FROM ranking").fetchone()[0] >= 30
        backup.close()


def counted(tallies):
    """Those with a ranking or a gold question."""
    return {key: columns for key, columns in tallies.items() if columns[0] or columns[5]}


def sums(store):
    with store.database.reading() as session:
        return {
            (tally.annotator_id, tally.day): (
                tally.rankings,
                tally.pairs,
                tally.decided,
                pytest.approx(tally.first_slot),
                pytest.approx(tally.first_slot_expected),
                tally.gold_asked,
                tally.gold_passed,
            )
            for tally in session.scalars(select(Tally))
        }


def test_a_newer_database_is_refused_and_left_alone(where):
    with Store(where) as store, store.database.writing() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(UserError, match="schema 9999") as refused:
        Store(where)
    assert "\n" not in str(refused.value)


def test_what_is_no_database_of_ours_is_refused(tmp_path):
    file = tmp_path / "notes.db"
    file.write_text("these are my notes, not a database " * 100)
    with pytest.raises(UserError, match="notes"):
        Database(file)
    other_file = tmp_path / "other.db"
    with sqlite3.connect(other_file) as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()
    with pytest.raises(UserError, match="holds something else"):
        Database(other_file)
    for url in ("mysql://x/y", "postgresql+psycopg://:x:/", "sqlite://"):
        with pytest.raises(UserError, match="--db"):
            Database(url)


def test_a_password_in_the_url_is_not_shown():
    with pytest.raises(UserError) as refused:
        Database("postgresql+psycopg://me:secret@127.0.0.1:1/x")
    assert "secret" not in str(refused.value)


def test_sqlite_is_set_to_lose_nothing(tmp_path):
    opened = Database(tmp_path / "x.db")
    with opened.writing() as session:
        connection = session.connection()
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
        assert pragmas == {
            "journal_mode": "wal",
            "synchronous": 2,
            "foreign_keys": 1,
            "busy_timeout": database.BUSY_MS,
        }
        with opened.reading() as reader:  # a reader waits for no writer
            assert reader.scalar(select(CandidateSet.id)) is None
    opened.close()


def test_a_reader_sees_one_state(store):
    store.add_sets(candidates(1), origin="test")
    with store.database.reading() as session:
        before = len(session.scalars(select(CandidateSet.id)).all())
        store.add_sets(candidates(3, tag="later "), origin="test")
        assert len(session.scalars(select(CandidateSet.id)).all()) == before == 1


class Revisions(RuleBasedStateMachine):
    """One annotator submits, resubmits, undoes and retries; a list of verdicts is the model."""

    @initialize()
    def begin(self):
        self.keep = passwords.LOG_N
        passwords.LOG_N = 4
        if not hasattr(Revisions, "shared"):
            Revisions.shared = Store(Revisions.folder / "machine.db", rules=PLAIN, seed=0)
            Revisions.count = 0
        self.store = Revisions.shared
        Revisions.count += 1
        self.store.add_sets(candidates(1, k=3, tag=f"{Revisions.count} "), origin="machine")
        self.annotator = self.store.add_annotator(f"machine {Revisions.count}", "long enough")
        with self.store.database.writing() as session:
            for candidate_set in session.scalars(select(CandidateSet)):
                candidate_set.retired = candidate_set.id != Revisions.count
        self.task = self.store.claim(self.annotator)
        self.ids = [completion.id for completion in self.task.completions]
        self.revisions = []  # what each revision says; None is withdrawn

    @rule(order=st.permutations(range(3)), tie=st.booleans())
    def submit(self, order, tie):
        tiers = [(self.ids[at],) for at in order]
        tiers = [tiers[0] + tiers[1], tiers[2]] if tie else tiers
        revision = len(self.revisions)
        saved = self.store.submit(
            self.annotator, self.task.id, Verdict(tuple(tiers)), revision=revision
        )
        assert not saved.already
        self.revisions.append([list(tier) for tier in tiers])

    @precondition(lambda self: self.revisions)
    @rule(data=st.data())
    def retry(self, data):
        revision = data.draw(st.integers(0, len(self.revisions) - 1))
        verdict = Verdict(tuple((answer_id,) for answer_id in self.ids))
        assert self.store.submit(self.annotator, self.task.id, verdict, revision=revision).already

    @rule()
    def undo(self):
        if self.revisions and self.revisions[-1] is not None:
            task = self.store.undo(self.annotator, self.task.id)
            assert [list(tier) for tier in task.tiers] == self.revisions[-1]
            self.revisions.append(None)
            assert task.revision == len(self.revisions)
        elif self.revisions:
            assert self.store.undo(self.annotator, self.task.id).revision == len(self.revisions)
        else:
            with pytest.raises(Refused):
                self.store.undo(self.annotator, self.task.id)

    @invariant()
    def the_last_word_counts(self):
        if not hasattr(self, "revisions"):
            return
        last = self.revisions[-1] if self.revisions else None
        with self.store.database.reading() as session:
            rankings = session.scalars(
                select(Ranking)
                .where(Ranking.assignment_id == self.task.id)
                .order_by(Ranking.revision)
            ).all()
            candidate_set = session.get(CandidateSet, Revisions.count)
            tiers = [None if ranking.withdrawn else ranking.tiers for ranking in rankings]
            assert tiers == self.revisions
            assert [ranking.revision for ranking in rankings] == list(range(len(rankings)))
            assert candidate_set.verdicts == (last is not None)
            assert 1 == candidate_set.claimed <= candidate_set.target
            rankings, pairs = session.execute(
                select(Tally.rankings, Tally.pairs).where(Tally.annotator_id == self.annotator)
            ).first() or (0, 0)
        assert rankings == (last is not None)
        assert pairs == (0 if last is None else 3 if len(last) == 3 else 2)

    def teardown(self):
        if hasattr(self, "keep"):
            passwords.LOG_N = self.keep


PLAIN = Rules(gold_rate=0, repeat_rate=0)


def test_revisions_in_any_order(tmp_path):
    Revisions.folder = tmp_path
    run = Revisions.TestCase()
    run.settings = settings(
        max_examples=25,
        stateful_step_count=12,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    try:
        run.runTest()
    finally:
        if hasattr(Revisions, "shared"):
            Revisions.shared.close()
            del Revisions.shared


def test_a_ranking_is_never_deleted(store):
    """The database itself refuses to part a ranking from its assignment."""
    from sqlalchemy.exc import IntegrityError

    from alpaca_rlhf.preferences.schema import Assignment

    store.add_sets(candidates(1), origin="test")
    annotator = store.add_annotator("Ann", "long enough")
    task = store.claim(annotator)
    tiers = tuple((completion.id,) for completion in task.completions)
    store.submit(annotator, task.id, Verdict(tiers))
    with pytest.raises(IntegrityError), store.database.writing() as session:
        session.execute(delete(Assignment))


def test_a_database_is_its_owners_alone(tmp_path):
    """The journals and the copy before a migration too; an older database is closed to others."""
    old_mask = os.umask(0)
    try:
        path = tmp_path / "preferences.db"
        with Store(path) as store:
            store.add_sets(candidates(1), origin="test")
            modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
            assert set(modes.values()) == {0o600} and len(modes) == 3, modes
        for mode, kept in ((0o644, 0o600), (0o664, 0o660), (0o660, 0o660), (0o600, 0o600)):
            path.chmod(mode)
            Store(path).close()
            assert path.stat().st_mode & 0o777 == kept
        database._back_up(path, tmp_path / "copy.bak")
        assert (tmp_path / "copy.bak").stat().st_mode & 0o777 == 0o600
        with Store(tmp_path / "copy.bak") as copy:
            assert copy.figures().counts["sets"] == 1
    finally:
        os.umask(old_mask)
