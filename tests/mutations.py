"""Files of every format and container, broken in every way we could think of, through the commands.

Used by tests/test_data_import.py (a few) and by tests/prove.py (2,000, and the memory of a million
rows).
"""

import contextlib
import csv
import gzip
import io
import json
import random
import shutil
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alpaca_rlhf.cli import main as cli

Row = dict[str, Any]
TEXTS = (
    "Name a colour.",
    "你好, 世界",
    'He said "no",\nand left.',
    "a;b\tc|d",
    "Zażółć 🦙",
    "x" * 300,
)
LISTS = ("messages", "conversations", "instances", "responses", "ranks", "scores")


def text(rng: random.Random) -> str:
    return f"{rng.choice(TEXTS)} {rng.randrange(10**6)}"


def tree(rng: random.Random) -> Row:
    replies = [
        {"role": "assistant", "text": text(rng), "rank": rank, "replies": []} for rank in (1, 0, 2)
    ]
    return {"prompt": {"role": "prompter", "text": text(rng), "replies": replies}}


def turns(rng: random.Random, who: str, what: str, names: tuple[str, str]) -> list[Row]:
    return [{who: names[at % 2], what: text(rng)} for at in range(rng.choice((2, 4)))]


MAKERS: dict[str, Callable[[random.Random], Row]] = {
    "trees": tree,
    "chosen-rejected": lambda r: {"prompt": text(r), "chosen": text(r), "rejected": f"{text(r)}!"},
    "completion-ab": lambda r: {
        "user_input": text(r),
        "completion_a": text(r),
        "completion_b": f"{text(r)}!",
        "preference": r.choice((1, 2)),
    },
    "ranking-list": lambda r: {
        "prompt": text(r),
        "responses": [text(r), text(r), text(r)],
        "ranks": [2, 1, 1],
    },
    "openai": lambda r: {"messages": turns(r, "role", "content", ("user", "assistant"))},
    "sharegpt": lambda r: {"conversations": turns(r, "from", "value", ("human", "gpt"))},
    "seed-tasks": lambda r: {
        "instruction": text(r),
        "instances": [{"input": text(r), "output": text(r)}] * r.choice((1, 2)),
    },
    "alpaca": lambda r: {"instruction": text(r), "input": r.choice(("", "4")), "output": text(r)},
    "prompt-completion": lambda r: {"prompt": text(r), "completion": text(r)},
    "prompts": lambda r: {"instruction": text(r)},
}
"""A good row of every format."""

CONTAINERS = ("json", "indented.json", "jsonl", "jsonl.gz", "csv", "csv.gz", "parquet")


def packed(rows: list[Any], container: str) -> bytes:
    """Rows as a file. Trees do not go into a CSV: the caller leaves that out."""
    if container == "parquet":
        import pyarrow
        from pyarrow import parquet

        sink = io.BytesIO()
        parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
        return sink.getvalue()
    if container.startswith("csv"):
        names = list(dict.fromkeys(name for row in rows for name in row))
        plain = io.StringIO()
        writer = csv.DictWriter(plain, names)
        writer.writeheader()
        for row in rows:
            writer.writerow({k: json.dumps(v) if k in LISTS else v for k, v in row.items()})
        data = plain.getvalue().encode()
    elif container.startswith("jsonl"):
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    else:
        data = json.dumps(rows, indent=1 if "indented" in container else None).encode()
    return gzip.compress(data, 1, mtime=0) if container.endswith(".gz") else data


VALUES = (None, 3, 1.5, True, [], {}, "", " \n", ["a"], {"a": 1}, "\ud800", float("nan"), 10**30)


def _drop(rng: random.Random, rows: list[Any], at: int) -> None:
    rows[at].pop(rng.choice(list(rows[at])))


def _rename(rng: random.Random, rows: list[Any], at: int) -> None:
    name = rng.choice(list(rows[at]))
    rows[at][rng.choice(("Instruction", "text", "", "\ud800", "x" * 500))] = rows[at].pop(name)


def _retype(rng: random.Random, rows: list[Any], at: int) -> None:
    rows[at][rng.choice(list(rows[at]))] = rng.choice(VALUES)


def _deep(rng: random.Random, rows: list[Any], at: int) -> None:
    value: Any = "x"
    for _ in range(rng.choice((50, 400))):
        value = [value] if rng.random() < 0.5 else {"replies": [value], "role": "user"}
    rows[at][rng.choice([*rows[at], "extra"])] = value


def _inside(rng: random.Random, rows: list[Any], at: int) -> None:
    """Something within a list or an object changes."""
    inner = [value for value in rows[at].values() if isinstance(value, (list, dict)) and value]
    if not inner:
        _retype(rng, rows, at)
        return
    nested = rng.choice(inner)
    if isinstance(nested, list):
        nested[rng.randrange(len(nested))] = rng.choice(VALUES)
    else:
        nested[rng.choice(list(nested))] = rng.choice(VALUES)


def _mixed(rng: random.Random, rows: list[Any], at: int) -> None:
    rows[at] = MAKERS[rng.choice(list(MAKERS))](rng)


def _foreign(rng: random.Random, rows: list[Any], at: int) -> None:
    rows[at] = rng.choice((None, 3, "text", [], [1], {}, True))


ROW_CHANGES = (_drop, _rename, _retype, _deep, _inside, _mixed, _foreign)


def _truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _flip(rng: random.Random, data: bytes) -> bytes:
    flipped = bytearray(data)
    for _ in range(rng.choice((1, 3, 20))):
        flipped[rng.randrange(len(flipped))] = rng.randrange(256)
    return bytes(flipped)


PIECES: tuple[bytes, ...] = (
    b"\0",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\n\n",
    b"\r",
    b'"',
    b"]",
    b"NaN",
)
PIECES += (b"-Infinity", b",", b"[" * 5000, b'{"a":' * 3000, b"\\ud800", b"\xe9", b"9" * 5000)
PIECES += (b"x" * 100_000,)


def _insert(rng: random.Random, data: bytes) -> bytes:
    what = rng.choice(PIECES)
    at = rng.choice((0, rng.randrange(len(data) + 1), len(data)))
    return data[:at] + what + data[at:]


def _twice(rng: random.Random, data: bytes) -> bytes:
    return data.replace(b'{"', b'{"prompt": "a", "prompt": "b", "', rng.choice((1, -1)))


def _cut_out(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at + rng.choice((1, 7, 200)) :]


def _recoded(rng: random.Random, data: bytes) -> bytes:
    codec = rng.choice(("latin-1", "utf-16", "utf-8-sig", "gbk"))
    return data.decode("utf-8", "replace").encode(codec, "replace")


def _doubled(rng: random.Random, data: bytes) -> bytes:
    return data + rng.choice((b"", b"\n", b",")) + data


BYTE_CHANGES = (_truncate, _flip, _insert, _twice, _cut_out, _recoded, _doubled)


def mutated(rng: random.Random, folder: Path) -> tuple[Path, str]:
    """A broken file (rarely a good one), and what was done to it."""
    name = rng.choice(list(MAKERS))
    container = rng.choice(
        [candidate for candidate in CONTAINERS if not (name == "trees" and "csv" in candidate)]
    )
    rows: list[Any] = [MAKERS[name](rng) for _ in range(rng.choice((1, 3, 30, 250)))]
    done = []
    for _ in range(rng.choice((0, 1, 1, 5))):
        change = rng.choice(ROW_CHANGES)
        at = rng.randrange(len(rows))
        if isinstance(rows[at], dict) and rows[at]:
            change(rng, rows, at)
            done.append(change.__name__)
    if rng.random() < 0.01:
        rows.append(MAKERS["alpaca"](rng) | {"output": "y" * (17 * 2**20)})
        done.append("huge")
    try:
        data = packed(rows, container)
    except Exception:  # it does not fit into that container
        container = "jsonl"
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    packed_again = container.endswith(".gz") and rng.random() < 0.7
    if packed_again:  # break what is inside, not the archive
        data = gzip.decompress(data)
    for _ in range(rng.choice((0, 1, 1, 2))):
        change_bytes = rng.choice(BYTE_CHANGES)
        data = change_bytes(rng, data) if data else data
        done.append(change_bytes.__name__)
    if packed_again:
        data = gzip.compress(data, 1)
    wrong_name = rng.random() < 0.05
    path = folder / f"rows.{rng.choice(CONTAINERS) if wrong_name else container}"
    path.write_bytes(data)
    return path, f"{name} {container}{' misnamed' if wrong_name else ''} {' '.join(done)}"


def tried(arguments: list[str]) -> tuple[int, str, str]:
    """Exit code (1 for an exception), stdout and stderr of a command line, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main(arguments)
        except Exception:
            code = 1
            err.write(traceback.format_exc())
    return code, out.getvalue(), err.getvalue()


def wrong_with(path: Path, arguments: list[str], out: Path) -> tuple[int, str]:
    """Import a file; the exit code, and what must not be: "" if all is well."""
    shutil.rmtree(out, ignore_errors=True)
    code, _, err = tried(["import", str(path), "--out", str(out), *arguments])
    if code not in (0, 2):
        return code, f"exit {code}: {err[-2000:]}"
    if [leftover for leftover in out.parent.iterdir() if leftover.name.startswith(f".{out.name}")]:
        return code, "an unfinished folder is left"
    if code == 2:
        if out.exists():
            return code, "refused, but the folder is there"
        one_line = err.startswith("error: ") and err.count("\n") == 1 and len(err) < 4000
        return code, "" if one_line else f"not one line: {err[:500]!r}"
    manifest = json.loads((out / "manifest.json").read_text())
    listed = out / "dropped.jsonl"
    dropped = len(listed.read_text().splitlines()) if listed.exists() else 0
    if manifest["rows"] != manifest["rows_kept"] + sum(manifest["rows_dropped"].values()):
        return code, f"the account does not add up: {manifest}"
    if dropped != sum(manifest["rows_dropped"].values()):
        return code, f"{dropped} rows are listed as dropped: {manifest}"
    records = (out / manifest["file"]).read_bytes().count(b"\n")
    if records != manifest["records"] or not records:
        return code, f"{records} records: {manifest}"
    checked, _, problem = tried(["data", "check", str(out / manifest["file"])])
    return code, "" if checked == 0 else f"what was written does not read back: {problem}"


def fuzz(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """So many mutated files; how they ended, and each failure with the seed that makes it again."""
    ends: Counter[str] = Counter()
    failures = []
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        path, what = mutated(rng, folder)
        arguments = rng.choice(([], ["--broken", "drop"], ["--format", rng.choice(list(MAKERS))]))
        code, wrong = wrong_with(path, arguments, folder / "out")
        ends[f"exit {code}"] += 1
        if wrong:
            failures.append({"seed": f"{seed}/{number}", "file": what, "wrong": wrong})
            shutil.copy(path, folder / f"failed-{number}-{path.name}")
        path.unlink()
    return {"files": count, "ends": dict(sorted(ends.items())), "failures": failures}


MEMORY = """
import re, sys
from alpaca_rlhf.cli.main import main
code = main(sys.argv[1:])
peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]
print(code, peak, file=sys.stderr)
"""


def big_file(path: Path, rows: int, *, broken: bool = False) -> None:
    """A file of many rows, made without holding them; `broken` ones each in a way of its own."""
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        names = ("instruction", "input", "output")
        schema = pyarrow.schema([(name, pyarrow.string()) for name in names])
        with parquet.ParquetWriter(path, schema) as writer:
            for first in range(0, rows, 50_000):
                part = [big_row(n) for n in range(first, min(rows, first + 50_000))]
                writer.write_table(pyarrow.Table.from_pylist(part, schema=schema))
        return
    opened: Any = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8") as stream:
        if path.name.endswith(".csv"):
            writer = csv.DictWriter(stream, ("instruction", "input", "output"))
            writer.writeheader()
            writer.writerows(big_row(n) for n in range(rows))
            return
        array = path.suffix == ".json"
        stream.write("[" if array else "")
        for n in range(rows):
            row = {f"column-{n}": "?"} if broken and n else big_row(n)
            comma = "," if array and n else ""
            stream.write(comma + json.dumps(row) + ("" if array else "\n"))
        stream.write("]" if array else "")


def big_row(n: int) -> Row:
    return {
        "instruction": f"Say in one sentence what the number {n} is good for.",
        "input": "" if n % 2 else f"The numbers around it are {n - 1} and {n + 1}.",
        "output": f"The number {n} is good for counting {n} things, one after the other.",
    }


def memory_of(path: Path, out: Path) -> dict[str, Any]:
    """Import a file in a process of its own: how it ended, and its peak of resident memory."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, "import", str(path), "--out", str(out)],
        capture_output=True,
        text=True,
        check=True,
    )
    code, peak = done.stderr.split()[-2:]
    outcome: dict[str, Any] = {"exit": int(code), "peak_mib": round(int(peak) / 1024, 1)}
    if code == "0":
        manifest = json.loads((out / "manifest.json").read_text())
        outcome |= {"rows": manifest["rows"], "records": manifest["records"]}
        outcome["sha256"] = manifest["sha256"]
    return outcome
