"""Opening the preference database: SQLite in a file, or PostgreSQL by its URL; and migrating it."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager
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
from alpaca_rlhf.core.files import FULL, is_full

BUSY_MS = 30_000
"""How long a writer waits for another process before SQLite gives up."""
CONNECTIONS = 50
"""Connections open at once; PostgreSQL allows 100 unless told otherwise."""
TRIES = 5
"""How often PostgreSQL is asked again where it broke off a transaction to end a deadlock."""

_ASK_AGAIN = ("40001", "40P01")
_MIGRATION_LOCK = 0x616C7061


class DiskFull(UserError):
    """A change was not saved; what was saved before is untouched."""


class Database:
    """A database that has been opened and migrated. Use it from any thread.

    Args:
        where: A file, made if absent, or a URL `postgresql+psycopg://user@host/name`.

    Raises:
        UserError: It cannot be opened, is no such database, or was made by a newer version.
    """

    def __init__(self, where: str | Path) -> None:
        self.url = _url(where)
        self.file = _file(self.url)
        # SQLite lets one writer in at a time, and those that wait sleep and try: some for seconds.
        # Threads of this process take turns; BEGIN IMMEDIATE still keeps out other processes.
        self._turns = _Turns() if self._is_sqlite else None
        self._engine = _engine(self.url)
        try:
            _migrate(self._engine, self.file)
        except DBAPIError as error:
            self.close()
            if is_full(error):
                raise DiskFull(
                    f"--db {self.shown}: cannot be written (No space left on device); {FULL}"
                ) from None
            raise UserError(f"--db {self.shown}: cannot be opened ({_first_line(error)})") from None
        except BaseException:
            self.close()
            raise

    @property
    def shown(self) -> str:
        """Its name, without a password."""
        return str(self.file) if self.file else self.url.render_as_string(hide_password=True)

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._engine.dialect.name

    @property
    def _is_sqlite(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A transaction that writes, on the disk once the block has ended; an error undoes it.

        Raises:
            DiskFull: Nothing of it was saved.
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
        if self._turns is None:
            with Session(self._engine, expire_on_commit=False) as session, session.begin():
                yield session
            return
        with self._turns.next():
            engine = self._engine.execution_options(begin="BEGIN IMMEDIATE")
            with Session(engine, expire_on_commit=False) as session, session.begin():
                yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A transaction that sees one state of everything, and that no writer waits for."""
        engine = self._engine
        if not self._is_sqlite:
            engine = engine.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
        with Session(engine) as session, session.begin():
            yield session

    def close(self) -> None:
        """Let go of all connections."""
        self._engine.dispose()


def broken_off(error: Exception) -> bool:
    """Whether PostgreSQL ended a transaction that may simply be done again."""
    return (
        isinstance(error, OperationalError) and getattr(error.orig, "sqlstate", None) in _ASK_AGAIN
    )


class _Turns:
    """A lock that is given to those who wait in the order in which they came."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._taken = False
        self._waiting: deque[threading.Event] = deque()

    @contextmanager
    def next(self) -> Iterator[None]:
        """Wait for one's turn."""
        mine = threading.Event()
        with self._guard:
            if self._taken:
                self._waiting.append(mine)
            else:
                self._taken = True
                mine.set()
        try:
            mine.wait()
            yield
        finally:
            with self._guard:
                if not mine.is_set():  # interrupted while it waited
                    self._waiting.remove(mine)
                elif self._waiting:
                    self._waiting.popleft().set()
                else:
                    self._taken = False


def _url(where: str | Path) -> URL:
    if isinstance(where, Path) or "://" not in where:
        return URL.create("sqlite", database=str(Path(where)))
    try:
        url = make_url(where)
        if url.get_backend_name() not in ("sqlite", "postgresql"):
            raise UserError(
                f"--db {url.render_as_string()}: give a file for SQLite, or a URL "
                "postgresql+psycopg://user@host/name"
            )
        url.get_dialect().import_dbapi()
    except (ArgumentError, NoSuchModuleError, ValueError):  # their words may hold a password
        raise UserError(
            "--db: is not a URL that can be read; write postgresql+psycopg://user@host/name"
        ) from None
    except ImportError as error:
        raise UserError(
            f"--db {url.render_as_string()}: {error}; pip install 'alpaca-rlhf[postgres]', "
            "and write postgresql+psycopg://"
        ) from None
    return url


def _file(url: URL) -> Path | None:
    if url.get_backend_name() != "sqlite":
        return None
    if not url.database or url.database == ":memory:":
        raise UserError("--db: a database in memory would lose rankings; give a file")
    file = Path(url.database)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--db {file}: cannot be made ({error.strerror})") from None
    return file


def _engine(url: URL) -> Engine:
    pool: dict[str, Any] = {"pool_size": CONNECTIONS, "max_overflow": 0, "pool_timeout": 120}
    if url.get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True, **pool)
    engine = create_engine(url, connect_args={"timeout": BUSY_MS / 1000}, **pool)

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None  # transactions begin where `begin` below says so
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
        # in between: who will write says so at the start.
        connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))

    return engine


def _migrate(engine: Engine, file: Path | None) -> None:
    script = ScriptDirectory(
        str(Path(__file__).parent), version_locations=[str(Path(__file__).parent / "migrations")]
    )
    newest = script.get_current_head()
    begin = "BEGIN IMMEDIATE" if file else ""
    with engine.execution_options(begin=begin).begin() as connection:
        if file is None:  # one process migrates, the others wait and find it done
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        current = MigrationContext.configure(connection).get_current_revision()
        if current == newest:
            return
        name = file or engine.url.render_as_string()
        known = {one.revision for one in script.walk_revisions()}
        if current is not None and current not in known:
            raise UserError(
                f"--db {name}: was made by a newer version of alpaca-rlhf (schema {current}, this "
                f"one knows up to {newest}); update alpaca-rlhf, or use another file"
            )
        if current is None and engine.dialect.get_table_names(connection):
            raise UserError(f"--db {name}: holds something else; use another file or database")
        if file is not None and current is not None:
            _back_up(file, file.with_name(f"{file.name}.schema-{current}-{time.time_ns()}.bak"))

        def upgrade(revision: Any, context: Any) -> Any:
            return script._upgrade_revs("head", revision)

        with EnvironmentContext(Config(), script, fn=upgrade) as environment:
            environment.configure(connection=connection)
            environment.run_migrations()


def _back_up(file: Path, copy: Path) -> None:
    """Copy a database that a transaction of ours keeps still, and wait until the disk has it."""
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(copy)) as target:
        target.execute("PRAGMA synchronous = FULL")
        source.backup(target)


def _first_line(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0]
