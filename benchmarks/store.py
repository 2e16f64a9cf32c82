"""The preference store with a million rankings: claims, exports, the Data tab.

    python benchmarks/store.py --json benchmarks/results/store.json
    python benchmarks/store.py --db postgresql+psycopg://USER@HOST/EMPTY --json FILE

A SQLite file, or an empty PostgreSQL database, is filled with rankings (one in five sets ranked by
two of 51 people, four completions each, texts of about 150 characters; one prompt in ten has an
earlier turn) under three versions of the guidelines, and with 2,000 fresh sets. One ranking in 50
has a better answer that its author wrote; one person and one set in 1,000 are left out. Then:
claims and submits by one annotator while nobody else writes; the same by 50 threads at once; the
figures of the Data tab; a search through everything that was said; somebody left out and taken in
again; a snapshot, with the resident memory that it takes, while one annotator goes on. What is
written is on the disk (`synchronous=FULL`) before a claim or a submit returns. `--quick` takes
20,000 rankings.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import random
import resource
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from alpaca_rlhf.preferences.assignment import BetterAnswer, Rules, Verdict, first_slot, pairs
from alpaca_rlhf.preferences.browsing import SetFilter
from alpaca_rlhf.preferences.store import Store
from benchmarks import measure

RANKINGS = 20_000 if measure.QUICK else 1_000_000
FRESH = 2_000
PEOPLE = 51
WORDS = ("the lemon is yellow and the dog says woof while it rains in the town " * 3)[:150]
START_MS = 1_790_000_000_000
DAYS = 30
BETTER_EVERY = 50
"""Rankings of which one has a better answer."""
LEFT_OUT_EVERY = 1_000
"""Sets of which one is left out."""
LEFT_OUT_PERSON = PEOPLE
"""The annotator who is left out, by number."""
GUIDELINES = ("The correct answer first.", "Then the shorter one.", "Then the kinder one.")
_BATCH_ROWS = 100_000

Row = tuple[Any, ...]


class BulkWriter:
    """Writes rows past the store, and without waiting for the disk.

    Args:
        where: A file of SQLite's, or the address of a PostgreSQL database.
    """

    def __init__(self, where: str) -> None:
        self._is_postgresql = where.startswith("postgresql")
        if self._is_postgresql:
            import psycopg

            self._connection: Any = psycopg.connect(where.replace("+psycopg", ""))
        else:
            self._connection = sqlite3.connect(where)
            self._connection.execute("PRAGMA synchronous = OFF")
            self._connection.execute("PRAGMA cache_size = -1000000")

    def put(self, table: str, columns: Sequence[str], rows: Iterable[Row]) -> None:
        """Insert rows, whose tuples have the values of these columns."""
        names = ", ".join(columns)
        if self._is_postgresql:
            command = f"COPY {table} ({names}) FROM STDIN"
            with self._connection.cursor() as cursor, cursor.copy(command) as copying:
                for row in rows:
                    copying.write_row(row)
        else:
            marks = ", ".join("?" * len(columns))
            command = f"INSERT INTO {table} ({names}) VALUES ({marks})"
            self._connection.executemany(command, rows)
        self._connection.commit()

    def close(self) -> None:
        """Let PostgreSQL number on from the rows that were put, and close."""
        if self._is_postgresql:
            for table in ("prompt", "completion", "candidate_set", "assignment", "ranking"):
                sequence = f"pg_get_serial_sequence('{table}', 'id')"
                newest = f"(SELECT max(id) FROM {table})"
                self._connection.execute(f"SELECT setval({sequence}, {newest})")
            self._connection.commit()
            self._connection.autocommit = True
            self._connection.execute("ANALYZE")
        self._connection.close()


def fill(where: str, rankings: int = RANKINGS, fresh: int = FRESH) -> None:
    """Fill an empty database with rows as the store would have written them.

    Columns that are not named have the defaults of the schema.
    """
    # 1. People and guidelines, by the store; every verdict notes one of its versions.
    with Store(where) as store:
        for i in range(PEOPLE):
            store.add_annotator(f"person {i}", "long enough")
        for text in GUIDELINES:
            store.set_guidelines(text, actor="annotator:1")
    ranked = round(rankings / 1.2)
    with closing(BulkWriter(where)) as writer:
        _put_sets(writer, ranked, fresh)
        _put_verdicts(writer, ranked)
    # 2. One person left out, by the store, which corrects what others count by.
    with Store(where) as store:
        name = f"person {LEFT_OUT_PERSON - 1}"
        store.leave_out_person(name, actor="annotator:1", reason="bench")


def _target(set_id: int) -> int:
    return 2 if set_id % 5 == 0 else 1


def _is_left_out(set_id: int) -> bool:
    return set_id % LEFT_OUT_EVERY == 1


def _keys(set_id: int) -> list[str]:
    return [f"c{4 * set_id + j:015d}" for j in range(4)]


def _put_sets(writer: BulkWriter, ranked: int, fresh: int) -> None:
    """Prompts with completions: the first `ranked` sets are full, the others fresh."""
    sets = range(1, ranked + fresh + 1)
    earlier = json.dumps([[f"Before: {WORDS}", f"Well: {WORDS}"]])
    writer.put(
        "prompt",
        ("id", "key", "instruction", "input", "history", "source", "created_ms"),
        (
            (i, f"p{i:015d}", f"{i}: {WORDS}", "", "[]" if i % 10 else earlier, "bench", START_MS)
            for i in sets
        ),
    )
    completion = ("id", "key", "prompt_id", "text", "adapter", "sampling", "seed", "sample")
    writer.put(
        "completion",
        (*completion, "finish_reason", "n_tokens", "created_ms"),
        (
            (4 * i + j, f"c{4 * i + j:015d}", i, f"{j} of {i}: {WORDS}", "ab12cd34",
             "temperature=1 top_p=1", 0, j, "eos", 40, START_MS)
            for i in sets
            for j in range(4)
        ),
    )  # fmt: skip
    candidate_set = ("id", "key", "prompt_id", "completions", "target", "claimed", "verdicts")
    writer.put(
        "candidate_set",
        (*candidate_set, "retired", "left_out", "origin", "created_ms"),
        (
            (i, f"s{i:015d}", i, json.dumps(_keys(i)), _target(i),
             *((_target(i),) * 2 if i <= ranked else (0, 0)), False, _is_left_out(i), "bench",
             START_MS)
            for i in sets
        ),
    )  # fmt: skip


def _put_verdicts(writer: BulkWriter, ranked: int) -> None:
    """Assignments, rankings, better answers, audit rows and running sums of the full sets."""
    rng = random.Random(0)
    n_rankings = sum(_target(i) for i in range(1, ranked + 1))
    sums: defaultdict[tuple[int, str], Counter[str]] = defaultdict(Counter)

    def verdicts() -> Iterator[tuple[int, int, int, list[str], list[str], int, int]]:
        number = 0
        for i in range(1, ranked + 1):
            for k in range(_target(i)):
                number += 1
                person = (i * 7 + k) % PEOPLE + 1
                order = _keys(i)
                rng.shuffle(order)
                at_ms = START_MS + number * DAYS * 86_400_000 // n_rankings
                yield number, i, person, _keys(i), order, rng.randint(5_000, 90_000), at_ms

    remaining = verdicts()
    while batch := list(itertools.islice(remaining, _BATCH_ROWS)):
        assignment = ("id", "candidate_set_id", "annotator_id", "kind", "repeat", "shown_order")
        writer.put(
            "assignment",
            (*assignment, "state", "lease_ms", "shown_ms", "next_revision", "ranking_id",
             "duration_ms"),
            (
                (n, i, person, "task", 0, json.dumps(shown), "done", 0, 0, 1, n, took_ms)
                for n, i, person, shown, _, took_ms, _ in batch
            ),
        )  # fmt: skip
        ranking = ("id", "assignment_id", "revision", "withdrawn", "tiers", "criteria", "all_bad")
        writer.put(
            "ranking",
            (*ranking, "blind", "comment", "input_method", "app_version", "duration_ms",
             "created_ms", "guideline"),
            (
                (n, n, 0, False, json.dumps([[key] for key in order]), "{}", False, True,
                 "" if n % 100 else f"remark {n}", "mouse", "0", took_ms, at_ms,
                 1 + n * len(GUIDELINES) // (n_rankings + 1))
                for n, _, _, _, order, took_ms, at_ms in batch
            ),
        )  # fmt: skip
        writer.put(
            "demonstration",
            ("ranking_id", "text", "edited_from"),
            (
                (n, f"better than {n}: {WORDS}", order[0])
                for n, _, _, _, order, _, _ in batch
                if n % BETTER_EVERY == 0
            ),
        )
        writer.put(
            "audit",
            ("at_ms", "actor", "action", "entity", "after"),
            (
                (at_ms, f"annotator:{person}", "submit", f"assignment:{n}", "{}")
                for n, _, person, _, _, _, at_ms in batch
            ),
        )
        for _, i, person, shown, order, _, at_ms in batch:
            if _is_left_out(i):
                continue
            tiers = [[key] for key in order]
            won, expected = first_slot(shown, tiers)
            day = time.strftime("%Y-%m-%d", time.gmtime(at_ms / 1000))
            sums[person, day].update(
                rankings=1,
                pairs=pairs(tiers),
                decided=1,
                first_slot=won,  # type: ignore[arg-type]
                first_slot_expected=expected,  # type: ignore[arg-type]
            )
    columns = ("rankings", "pairs", "decided", "first_slot", "first_slot_expected")
    writer.put(
        "tally",
        ("annotator_id", "day", *columns, "gold_asked", "gold_passed"),
        (
            (person, day, *(of_day[name] for name in columns), 0, 0)
            for (person, day), of_day in sums.items()
        ),
    )


def work(store: Store, person: int, tasks: int, claims: list[float], submits: list[float]) -> None:
    """Claim and submit so many tasks, one in ten with a better answer; adds the seconds of each."""
    for number in range(tasks):
        began = time.perf_counter()
        task = store.claim(person)
        claims.append(time.perf_counter() - began)
        if task is None:
            return
        better = BetterAnswer(f"better than these: {WORDS}", "") if number % 10 == 0 else None
        tiers = tuple((completion.id,) for completion in task.completions)
        verdict = Verdict(tiers, better=better, guideline=store.guideline_version())
        began = time.perf_counter()
        store.submit(person, task.id, verdict, revision=task.revision)
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


def measured(
    where: str, scratch: Path, *, repeats: int, rankings: int, tasks: int = 200
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows and summary of everything that is measured on a filled database.

    Args:
        where: The database.
        scratch: A folder for the snapshot.
        repeats: Timed calls of what only reads.
        rankings: Rankings in the database.
        tasks: Tasks of the annotator who works alone; each of the crowd has a twentieth of them.
    """
    rows: list[dict[str, Any]] = []
    with Store(where, rules=Rules(), seed=0) as store:
        work(store, 1, 10, [], [])

        # 1. Claims and submits: one annotator alone, then all at once.
        alone: tuple[list[float], list[float]] = ([], [])
        work(store, 1, tasks, *alone)
        crowd: tuple[list[float], list[float]] = ([], [])
        threads = [
            threading.Thread(target=work, args=(store, person, max(1, tasks // 20), *crowd))
            for person in range(1, PEOPLE)  # the last one is left out
        ]
        wall = timed(
            lambda: [
                *(thread.start() for thread in threads),
                *(thread.join() for thread in threads),
            ]
        )
        for name, (claims, submits) in (("alone", alone), (f"{len(threads)} writers", crowd)):
            rows.append({"name": f"claim, {name}", "ms": milliseconds(claims)})
            rows.append({"name": f"submit, {name}", "ms": milliseconds(submits)})

        # 2. What the pages read.
        person = f"person {LEFT_OUT_PERSON - 1}"
        rare, common = SetFilter(search="better than 50:"), SetFilter(search="lemon")
        reads: dict[str, tuple[Callable[[], Any], int]] = {
            "Data tab": (store.figures, repeats),
            "progress": (partial(store.progress, 1), repeats),
            "search, words of most sets": (partial(store.sets, common), repeats),
            # It looks through all texts, which takes long; once is enough.
            "search, words of one set": (partial(store.sets, rare), 1),
            "list of sets left out": (partial(store.sets, SetFilter(state="left_out")), repeats),
        }
        for name, (read, times) in reads.items():
            seconds = [timed(read) for _ in range(times)]
            rows.append({"name": name, "seconds": measure.spread_of(seconds)})

        # 3. Leaving out: somebody with a fiftieth of all rankings, and a set.
        decisions: dict[str, Callable[..., Any]] = {
            "a person": partial(store.leave_out_person, person, actor="bench"),
            "a set": partial(store.leave_out_set, 1, actor="bench"),
        }
        for name, leave_out in decisions.items():
            seconds = [timed(partial(leave_out, undo=True)), timed(leave_out)]
            rows.append({"name": f"take in {name}", "seconds": measure.spread_of(seconds[:1])})
            rows.append({"name": f"leave out {name}", "seconds": measure.spread_of(seconds[1:])})

        # 4. A snapshot, while one annotator goes on.
        during: tuple[list[float], list[float]] = ([], [])
        ended = threading.Event()

        def go_on() -> None:
            while not ended.is_set():
                work(store, 2, 1, *during)
                ended.wait(0.2)

        other = threading.Thread(target=go_on)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        other.start()
        folder = scratch / "snapshot"
        export = timed(lambda: store.export(folder))
        ended.set()
        other.join()
        grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        size = sum(file.stat().st_size for file in folder.iterdir())
        rows.append(
            {
                "name": "export",
                "seconds": measure.spread_of([export]),
                "bytes": size,
                "peak_memory_grew_mib": grown_mib,
                "rankings_meanwhile": len(during[1]),
                "claims_meanwhile_ms": milliseconds(during[0]) if len(during[0]) > 1 else None,
            }
        )
    by_name = {row["name"]: row for row in rows}
    for row in rows:
        row["rankings"] = rankings
    summary = {
        "claim_ms_p99": rows[0]["ms"]["p99"],
        "claim_ms_p99_50_writers": rows[2]["ms"]["p99"],
        "submit_ms_p99_50_writers": rows[3]["ms"]["p99"],
        "rankings_per_second_50_writers": len(crowd[1]) / wall,
        "data_tab_seconds": by_name["Data tab"]["seconds"]["median"],
        "search_seconds": by_name["search, words of one set"]["seconds"]["median"],
        "leave_out_seconds": by_name["leave out a person"]["seconds"]["median"],
        "export_seconds": export,
        "export_memory_mib": grown_mib,
        "rankings": rankings,
    }
    return rows, summary


def table_of(rows: Sequence[dict[str, Any]]) -> str:
    """The rows for the terminal."""
    return measure.table(
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


def main() -> None:
    """Fill, measure, print a table, write the file."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--db", help="an empty PostgreSQL database; by default a SQLite file")
    database, sys.argv[1:] = parser.parse_known_args()
    given = measure.arguments(__doc__, repeats=5, quick=3)
    made_on = measure.machine()
    with tempfile.TemporaryDirectory() as scratch:
        where = database.db or str(Path(scratch) / "preferences.db")
        # In a process of its own: the peak of resident memory is that of a process's whole life.
        filling = multiprocessing.get_context("spawn").Process(target=fill, args=(where,))
        seconds = timed(lambda: [filling.start(), filling.join()])
        if filling.exitcode:
            raise SystemExit(f"the database could not be filled (exit code {filling.exitcode})")
        sys.stderr.write(f"filled in {seconds:.0f} s\n")
        rows, summary = measured(where, Path(scratch), repeats=given.repeats, rankings=RANKINGS)
    export = rows[-1]
    sys.stdout.write(
        f"{table_of(rows)}\n"
        f"{summary['rankings_per_second_50_writers']:.0f} rankings a second by many writers; "
        f"export: {export['bytes'] / 2**20:.0f} MiB, {export['peak_memory_grew_mib']:.0f} MiB more "
        f"memory, {export['rankings_meanwhile']} rankings meanwhile\n"
    )
    if given.json:
        more = {
            "command": "python benchmarks/store.py" + " --quick" * measure.QUICK,
            "database": "postgresql" if database.db else "sqlite",
            "filled_in_seconds": seconds,
        }
        measure.write(given.json, "store", made_on, rows, summary, **more)


if __name__ == "__main__":
    main()
