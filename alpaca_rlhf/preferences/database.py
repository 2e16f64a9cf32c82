"""Opening the preference database: SQLite in a file, or PostgreSQL by its URL; and migrating it."""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError
from sqlalchemy.orm import Session

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import FULL, at_home, is_full

BUSY_MS = 30_000
"""Milliseconds that a writer waits for another process before SQLite gives up."""
CONNECTIONS = 50
"""Connections open at once; PostgreSQL allows 100 unless told otherwise."""
MAX_ATTEMPTS = 5
"""Attempts at a transaction that PostgreSQL ends to break a deadlock."""

_SECRET_PARAMETER = re.compile("pass|pwd|secret|token|key", re.IGNORECASE)
_RETRYABLE_SQLSTATES = ("40001", "40P01")
_MIGRATION_LOCK = 0x616C7061


class DiskFull(UserError):
    """A change was not saved; earlier ones are untouched."""


class Database:
    """An open, migrated database, for any thread.

    Args:
        where: A file, created if absent, or a URL `postgresql+psycopg://user@host/name`.

    Raises:
        UserError: It could not be opened, holds something else, or was made by a newer version.
    """

    def __init__(self, where: str | Path) -> None:
        self.url = _url(where)
        self.file = _file(self.url)
        # SQLite lets one writer in at a time; the others sleep and retry, some of them for seconds.
        # Threads of this process take turns; BEGIN IMMEDIATE still keeps out other processes.
        self._fair_lock = _FairLock() if self._is_sqlite else None
        self._engine = _engine(self.url)
        try:
            _migrate(self._engine, self.file)
        except DBAPIError as error:
            self.close()
            if is_full(error):
                raise DiskFull(
                    f"--db {self.shown}: cannot be written (No space left on device); {FULL}"
                ) from None
            raise UserError(
                f"--db {self.shown}: could not be opened ({_first_line(error)})"
            ) from None
        except BaseException:
            self.close()
            raise

    @property
    def shown(self) -> str:
        """Its name for messages, without a password."""
        return str(self.file) if self.file else _without_secrets(self.url)

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._engine.dialect.name

    @property
    def _is_sqlite(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A write transaction, on the disk once the block has ended; an error rolls it back.

        Raises:
            DiskFull: None of it was saved.
        """
        try:
            with self._transaction() as session:
                yield session
        except DBAPIError as error:
            if is_full(error):
                raise DiskFull(
                    f"--db {self.shown}: the disk is full, and the last change was not saved; "
                    "free some space and try again"
                ) from None
            raise

    @contextmanager
    def _transaction(self) -> Iterator[Session]:
        if self._fair_lock is None:
            with Session(self._engine, expire_on_commit=False) as session, session.begin():
                yield session
            return
        with self._fair_lock.hold():
            engine = self._engine.execution_options(begin="BEGIN IMMEDIATE")
            with Session(engine, expire_on_commit=False) as session, session.begin():
                yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A read transaction that sees one consistent state; no writer waits for it."""
        engine = self._engine
        if not self._is_sqlite:
            engine = engine.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
        with Session(engine) as session, session.begin():
            yield session

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


def db_flag(where: str | None) -> list[str]:
    """The --db flag as a command for people repeats it, without the passwords of a URL.

    The command still works: PostgreSQL's client reads PGPASSWORD and ~/.pgpass.
    """
    if where is None:
        return []
    return ["--db", where if "://" not in where else _without_secrets(_url(where))]


def _without_secrets(url: URL) -> str:
    # A password may stand before the host or among the parameters.
    secret_names = [name for name in url.query if _SECRET_PARAMETER.search(name)]
    return url.difference_update_query(secret_names)._replace(password=None).render_as_string()


def is_retryable(error: Exception) -> bool:
    """True if PostgreSQL ended a transaction that may simply be repeated."""
    sqlstate = getattr(getattr(error, "orig", None), "sqlstate", None)
    return isinstance(error, OperationalError) and sqlstate in _RETRYABLE_SQLSTATES


class _FairLock:
    """A lock that goes to waiting threads in the order in which they came."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held = False
        self._waiting: deque[threading.Event] = deque()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Wait for the lock and hold it."""
        turn = threading.Event()
        with self._guard:
            if self._held:
                self._waiting.append(turn)
            else:
                self._held = True
                turn.set()
        try:
            turn.wait()
            yield
        finally:
            with self._guard:
                if not turn.is_set():  # interrupted while it waited
                    self._waiting.remove(turn)
                elif self._waiting:
                    self._waiting.popleft().set()
                else:
                    self._held = False


def _url(where: str | Path) -> URL:
    if isinstance(where, Path) or "://" not in where:
        return URL.create("sqlite", database=str(Path(at_home(str(where)))))
    try:
        url = make_url(where)
        if url.get_backend_name() not in ("sqlite", "postgresql"):
            raise UserError(
                f"--db {_without_secrets(url)}: give a file for SQLite, or a URL "
                "postgresql+psycopg://user@host/name"
            )
        url.get_dialect().import_dbapi()
    except (ArgumentError, NoSuchModuleError, ValueError):  # these errors may quote a password
        raise UserError(
            "--db: is not a valid database URL; write postgresql+psycopg://user@host/name"
        ) from None
    except ImportError as error:
        raise UserError(
            f"--db {_without_secrets(url)}: {error}; pip install 'alpaca-rlhf[postgres]', "
            "and write postgresql+psycopg://"
        ) from None
    return url


def _file(url: URL) -> Path | None:
    if url.get_backend_name() != "sqlite":
        return None
    if not url.database or url.database == ":memory:":
        raise UserError("--db: a database in memory would lose all rankings; give a file")
    file = Path(url.database)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--db {file}: could not be created ({error.strerror})") from None
    _make_private(file)
    return file


def _make_private(file: Path) -> None:
    """Let only its owner read a database: it is made so, and an older one is closed to others.

    SQLite gives its journals the same mode. A group that may write, since its members share the
    database, still may.
    """
    # Errors are left to SQLite, which names them when it opens the file.
    with suppress(OSError):
        os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
        mode = file.stat().st_mode
        if mode & 0o007:
            file.chmod(0o660 if mode & 0o020 else 0o600)


def _engine(url: URL) -> Engine:
    pool: dict[str, Any] = {"pool_size": CONNECTIONS, "max_overflow": 0, "pool_timeout": 120}
    if url.get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True, **pool)
    engine = create_engine(url, connect_args={"timeout": BUSY_MS / 1000}, **pool)

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None  # `begin` below starts every transaction
        for name, value in (
            ("busy_timeout", BUSY_MS),
            ("journal_mode", "WAL"),
            ("synchronous", "FULL"),
            ("foreign_keys", "ON"),
        ):
            connection.execute(f"PRAGMA {name} = {value}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # Upgrading a reader to a writer fails at once, whatever the busy timeout, if another wrote
        # in between: a writer says so at the start.
        connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))

    return engine


def _migrate(engine: Engine, file: Path | None) -> None:
    script = ScriptDirectory(
        str(Path(__file__).parent), version_locations=[str(Path(__file__).parent / "migrations")]
    )
    newest = script.get_current_head()
    begin = "BEGIN IMMEDIATE" if file else ""
    with engine.execution_options(begin=begin).begin() as connection:
        # 1. One process migrates; the others wait and find it done.
        if file is None:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        current = MigrationContext.configure(connection).get_current_revision()
        if current == newest:
            return
        # 2. Refuse a database of a newer version, or of something else.
        name = file or _without_secrets(engine.url)
        known_revisions = {revision.revision for revision in script.walk_revisions()}
        if current is not None and current not in known_revisions:
            raise UserError(
                f"--db {name}: was made by a newer version of alpaca-rlhf (schema {current}, this "
                f"one knows up to {newest}); update alpaca-rlhf, or use another file"
            )
        if current is None and engine.dialect.get_table_names(connection):
            raise UserError(f"--db {name}: holds something else; use another file or database")
        # 3. Back up, then upgrade.
        if file is not None and current is not None:
            _back_up(file, file.with_name(f"{file.name}.schema-{current}-{time.time_ns()}.bak"))

        def upgrade(revision: Any, context: Any) -> Any:
            return script._upgrade_revs("head", revision)

        with EnvironmentContext(Config(), script, fn=upgrade) as environment:
            environment.configure(connection=connection)
            environment.run_migrations()


def _back_up(file: Path, copy: Path) -> None:
    """Copy a database that our open transaction keeps unchanged, and wait for the disk."""
    _make_private(copy)
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(copy)) as target:
        target.execute("PRAGMA synchronous = FULL")
        source.backup(target)


def _first_line(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0]
