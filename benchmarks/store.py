"""The preference store with a million rankings: claims, exports, the Data tab.

    python benchmarks/store.py --json benchmarks/results/store.json

A SQLite file is filled with rankings (one in five sets ranked by two of 50 people, four completions
each, texts of about 150 characters) and with 2,000 fresh sets. Then: claims and submits by one
annotator while nobody else writes; the same by 50 threads at once; the figures of the Data tab; a
snapshot, with the resident memory that it takes, while one annotator goes on. What is written is on
the disk (`synchronous=FULL`) before a claim or a submit returns. `--quick` takes 20,000 rankings.
"""

from __future__ import annotations

import multiprocessing
import random
import resource
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from alpaca_rlhf.preferences.assignment import Rules, Verdict
from alpaca_rlhf.preferences.store import Store
from benchmarks import measure

RANKINGS = 20_000 if measure.QUICK else 1_000_000
FRESH = 2_000
PEOPLE = 50
WORDS = ("the lemon is yellow and the dog says woof while it rains in the town " * 3)[:150]
START_MS = 1_790_000_000_000


def fill(file: Path) -> None:
    """Rows as the store would have written them, in bulk and without waiting for the disk."""
    with Store(file) as store:
        for i in range(PEOPLE):
            store.add_annotator(f"person {i}", "long enough")
    ranked = round(RANKINGS / 1.2)
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA cache_size = -1000000")

    def put(table: str, columns: int, rows: Iterator[tuple[Any, ...]]) -> None:
        marks = ",".join("?" * columns)
        connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
        connection.commit()

    sets = ranked + FRESH
    put(
        "prompt",
        7,
        (
            (i, f"p{i:015d}", f"{i}: {WORDS}", "", "[]", "bench", START_MS)
            for i in range(1, sets + 1)
        ),
    )
    put(
        "completion",
        11,
        (
            (
                4 * i + j,
                f"c{4 * i + j:015d}",
                i,
                f"{j} of {i}: {WORDS}",
                "ab12cd34",
                "temperature=1 top_p=1",
                0,
                j,
                "eos",
                40,
                START_MS,
            )
            for i in range(1, sets + 1)
            for j in range(4)
        ),
    )

    def keys(i: int) -> list[str]:
        return [f"c{4 * i + j:015d}" for j in range(4)]

    def target(i: int) -> int:
        return 2 if i % 5 == 0 else 1

    def quoted(ids: list[str]) -> str:
        return "[" + ",".join(f'"{one}"' for one in ids) + "]"

    put(
        "candidate_set",
        11,
        (
            (
                i,
                f"s{i:015d}",
                i,
                quoted(keys(i)),
                target(i),
                *((target(i),) * 2 if i <= ranked else (0, 0)),
                None,
                0,
                "bench",
                START_MS,
            )
            for i in range(1, sets + 1)
        ),
    )
    rng = random.Random(0)

    def verdicts() -> Iterator[tuple[int, int, int, list[str], list[str], int]]:
        number = 0
        for i in range(1, ranked + 1):
            for k in range(target(i)):
                number += 1
                who = (i * 7 + k) % PEOPLE + 1
                order = keys(i)
                rng.shuffle(order)
                yield number, i, who, keys(i), order, rng.randint(5_000, 90_000)

    made = list(verdicts())
    put(
        "assignment",
        13,
        (
            (n, i, who, "task", 0, None, quoted(shown), "done", 0, 0, 1, n, took)
            for n, i, who, shown, _, took in made
        ),
    )
    put(
        "ranking",
        13,
        (
            (
                n,
                n,
                0,
                0,
                "[" + ",".join(quoted([one]) for one in order) + "]",
                "{}",
                0,
                1,
                "",
                "mouse",
                "0",
                took,
                START_MS + n * 100,
            )
            for n, _, _, _, order, took in made
        ),
    )
    put(
        "audit",
        7,
        (
            (None, START_MS, f"annotator:{who}", "submit", f"assignment:{n}", None, "{}")
            for n, _, who, _, _, _ in made
        ),
    )
    # the running sums come by the migration that made their table, as they do for an old database
    connection.execute("DROP TABLE tally")
    connection.execute("DROP INDEX ix_flag_waiting")
    connection.execute("ALTER TABLE flag DROP COLUMN resolved_ms")
    connection.execute("UPDATE alembic_version SET version_num = '0001'")
    connection.commit()
    connection.close()


def work(store: Store, who: int, tasks: int, claims: list[float], submits: list[float]) -> None:
    """Claim and submit so many tasks; adds the seconds of each."""
    for _ in range(tasks):
        began = time.perf_counter()
        task = store.claim(who)
        claims.append(time.perf_counter() - began)
        if task is None:
            return
        verdict = Verdict(tuple((one.id,) for one in task.completions))
        began = time.perf_counter()
        store.submit(who, task.id, verdict, revision=task.revision)
        submits.append(time.perf_counter() - began)


def timed(call: Callable[[], Any]) -> float:
    """Seconds of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def milliseconds(values: list[float]) -> dict[str, float]:
    """Median, 99th percentile and maximum, in milliseconds."""
    return {
        "median": 1000 * statistics.median(values),
        "p99": 1000 * statistics.quantiles(values, n=100)[98],
        "max": 1000 * max(values),
        "n": len(values),
    }


def main() -> None:
    """Fill, measure, print a table, write the file."""
    given = measure.arguments(__doc__, repeats=5, quick=3)
    made_on = measure.machine()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "preferences.db"
        # in a process of its own: the peak of resident memory is that of a process's whole life
        filling = multiprocessing.get_context("spawn").Process(target=fill, args=(file,))
        seconds = timed(lambda: [filling.start(), filling.join()])
        sys.stderr.write(f"filled in {seconds:.0f} s, {file.stat().st_size / 2**20:.0f} MiB\n")
        began = time.perf_counter()
        store = Store(file, rules=Rules(), seed=0)
        sys.stderr.write(f"migrated from version 1 in {time.perf_counter() - began:.0f} s\n")
        for copy in file.parent.glob("*.bak"):
            copy.unlink()
        work(store, 1, 10, [], [])

        alone: tuple[list[float], list[float]] = ([], [])
        work(store, 1, 200, *alone)
        crowd: tuple[list[float], list[float]] = ([], [])
        threads = [
            threading.Thread(target=work, args=(store, who, 10, *crowd))
            for who in range(1, PEOPLE + 1)
        ]
        wall = timed(lambda: [*(one.start() for one in threads), *(one.join() for one in threads)])
        for name, (claims, submits) in (("alone", alone), (f"{PEOPLE} writers", crowd)):
            rows.append({"name": f"claim, {name}", "ms": milliseconds(claims)})
            rows.append({"name": f"submit, {name}", "ms": milliseconds(submits)})

        tab = [timed(store.figures) for _ in range(given.repeats)]
        progress = [timed(lambda: store.progress(1)) for _ in range(given.repeats)]
        rows.append({"name": "Data tab", "seconds": measure.spread_of(tab)})
        rows.append({"name": "progress", "seconds": measure.spread_of(progress)})

        during: tuple[list[float], list[float]] = ([], [])
        ended = threading.Event()

        def go_on() -> None:
            while not ended.is_set():
                work(store, 2, 1, *during)
                ended.wait(0.2)

        other = threading.Thread(target=go_on)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        other.start()
        folder = Path(scratch) / "snapshot"
        export = timed(lambda: store.export(folder))
        ended.set()
        other.join()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        size = sum(one.stat().st_size for one in folder.iterdir())
        rows.append(
            {
                "name": "export",
                "seconds": measure.spread_of([export]),
                "bytes": size,
                "peak_memory_grew_mib": grown / 1024,
                "claims_meanwhile_ms": milliseconds(during[0]) if len(during[0]) > 1 else None,
            }
        )
        store.close()
    for row in rows:
        row["rankings"] = RANKINGS
    sys.stdout.write(
        measure.table(
            [
                {
                    "what": row["name"],
                    "median": (
                        f"{row['ms']['median']:.1f} ms"
                        if "ms" in row
                        else f"{row['seconds']['median']:.2f} s"
                    ),
                    "p99": f"{row['ms']['p99']:.1f} ms" if "ms" in row else "",
                    "worst": (
                        f"{row['ms']['max']:.1f} ms"
                        if "ms" in row
                        else f"{row['seconds']['max']:.2f} s"
                    ),
                }
                for row in rows
            ]
        )
        + f"\n{PEOPLE} writers: {len(crowd[1]) / wall:.0f} rankings a second; export: "
        f"{size / 2**20:.0f} MiB, {grown / 1024:.0f} MiB more memory, "
        f"{len(during[1])} rankings meanwhile\n"
    )
    if given.json:
        summary = {
            "claim_ms_p99": rows[0]["ms"]["p99"],
            "claim_ms_p99_50_writers": rows[2]["ms"]["p99"],
            "submit_ms_p99_50_writers": rows[3]["ms"]["p99"],
            "rankings_per_second_50_writers": len(crowd[1]) / wall,
            "data_tab_seconds": statistics.median(tab),
            "export_seconds": export,
            "export_memory_mib": grown / 1024,
            "rankings": RANKINGS,
        }
        measure.write(given.json, "store", made_on, rows, summary)


if __name__ == "__main__":
    main()
