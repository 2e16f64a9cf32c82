"""Databases for the tests: SQLite files, and a PostgreSQL server of the tests' own."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from alpaca_rlhf.core.records import Completion, Instruction

if TYPE_CHECKING:
    from sqlalchemy import Engine

NO_POSTGRES = "no PostgreSQL server here: apt-get install postgresql"


def candidates(n: int, k: int = 4, tag: str = "") -> list[tuple[Instruction, list[Completion]]]:
    """`n` prompts with `k` completions each."""
    rows = []
    for i in range(n):
        prompt = Instruction(f"{tag}What is {i} plus {i}?", source="test")
        own = [Completion(prompt.id, f"{tag}answer {i}.{j}", "ab12", sample=j) for j in range(k)]
        rows.append((prompt, own))
    return rows


def copy_what_was_migrated() -> None:
    """Make every empty SQLite file a copy of one that was migrated, once for this process.

    To migrate it takes 0.09 s, and a thousand tests open one. A file that is not empty is migrated
    as ever, and so is one that cannot be written.
    """
    from alpaca_rlhf.preferences import database

    migrate, guard = database._migrate, threading.Lock()

    @cache
    def migrated() -> Path:
        file = Path(tempfile.mkdtemp(prefix="migrated-")) / "preferences.db"
        engine = database._engine(database._url(file))
        migrate(engine, file)
        engine.dispose()
        return file

    def copied(engine: Engine, file: Path | None) -> None:
        with guard, suppress(sqlite3.Error):
            if file is not None and file.is_file() and file.stat().st_size == 0:
                with (
                    closing(sqlite3.connect(migrated())) as source,
                    closing(sqlite3.connect(file)) as target,
                ):
                    target.execute("PRAGMA synchronous = OFF")
                    source.backup(target)
        migrate(engine, file)

    database._migrate = copied


def binary(name: str) -> str | None:
    """Path of a program of PostgreSQL's; Debian keeps them out of the search path."""
    found = shutil.which(name)
    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(Path(found).resolve()) if found else str(debian[-1]) if debian else None


@contextmanager
def postgres() -> Iterator[str | None]:
    """The URL of an empty server, stopped in the end; None where PostgreSQL is not installed.

    It refuses to run as root, so root starts it as `nobody`. Clients are killed, the server is
    not, so it need not wait for the disk.
    """
    initdb, server = binary("initdb"), binary("postgres")
    if initdb is None or server is None:
        yield None
        return
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    user = {"user": "nobody", "extra_groups": []} if os.getuid() == 0 else {}
    if user:
        shutil.chown(folder, "nobody")
    data = folder / "data"
    quiet = {"stdout": subprocess.DEVNULL, "cwd": folder, **user}
    subprocess.run(
        [initdb, "-D", data, "-U", "kit", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"],
        check=True,
        **quiet,
    )
    words = [
        server,
        "-D",
        data,
        "-k",
        folder,
        "-c",
        "listen_addresses=",
        "-c",
        "max_connections=150",
        *("-c", "fsync=off", "-c", "full_page_writes=off", "-c", "autovacuum=off"),
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(words, stderr=log, **quiet)
    try:
        for _ in range(600):
            if (folder / ".s.PGSQL.5432").exists() and "ready to accept" in _log(folder):
                break
            if process.poll() is not None:
                raise RuntimeError(_log(folder))
            time.sleep(0.1)
        yield f"postgresql+psycopg://kit@/postgres?host={folder}"
    finally:
        process.send_signal(signal.SIGINT)  # ends open connections too
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def _log(folder: Path) -> str:
    return (folder / "log").read_text()


def annotate(where: str, acknowledged: Path) -> None:
    """50 annotators at work in this process, till it is killed or nothing is left.

    Each acknowledged ranking is a line of a file: task, revision, annotator, the best completion.
    """
    from alpaca_rlhf.preferences.assignment import Rules, Verdict
    from alpaca_rlhf.preferences.store import Store

    store = Store(where, rules=Rules(gold_rate=0, repeat_rate=0))
    people = [store.account(i) for i in range(1, 51)]
    out = os.open(acknowledged, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def work(who: int) -> None:
        while (task := store.claim(who)) is not None:
            order = tuple((one.id,) for one in task.completions)
            saved = store.submit(who, task.id, Verdict(order), revision=task.revision)
            line = f"{task.id} {task.revision} {who} {order[0][0]} {saved.ranking_id}\n"
            os.write(out, line.encode())

    threads = [threading.Thread(target=work, args=(one.id,)) for one in people if one]
    for one in threads:
        one.start()
    for one in threads:
        one.join()


if __name__ == "__main__":
    annotate(sys.argv[1], Path(sys.argv[2]))
