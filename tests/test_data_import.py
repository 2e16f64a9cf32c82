"""`import`, `data check` and `data export`: every format, every container, and what is refused."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import (
    FORMATS,
    detect_format,
    holds_rankings,
    open_rows,
    read_instructions,
    read_pairs,
    read_prompts,
    read_rankings,
    write_instructions,
)
from alpaca_rlhf.data.readers import json_rows
from tests.mutations import CONTAINERS, MAKERS, fuzz, packed, tried

GOOD = {"instruction": "Name a colour.", "input": "", "output": "Blue."}


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def imported(path: Path, *flags: str, out: Path | None = None) -> tuple[list[dict], dict]:
    """Records and manifest of an import that succeeds."""
    out = out or path.parent / f"{path.name}-out"
    code, output, err = tried(["import", str(path), "--out", str(out), *flags])
    assert code == 0, err
    assert "example 1" in output and "next:" in output
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["rows"] == manifest["rows_kept"] + sum(manifest["rows_dropped"].values())
    records = [json.loads(line) for line in (out / manifest["file"]).read_text().splitlines()]
    assert len(records) == manifest["records"]
    return records, manifest


def refusal(path: Path, *flags: str) -> str:
    """The one line of an import and of a check that are refused; both say the same."""
    out = path.parent / "refused"
    code, _, err = tried(["import", str(path), "--out", str(out), *flags])
    assert code == 2 and err.count("\n") == 1 and not out.exists(), err
    if "--broken" not in flags:
        code, _, same = tried(["data", "check", str(path), *flags])
        assert (code, same) == (2, err)
    return err.removeprefix("error: ").removeprefix(str(path)).rstrip("\n")


TABLES = [
    (name, box) for name in MAKERS for box in CONTAINERS if not (name == "trees" and "csv" in box)
]


@pytest.mark.parametrize(("name", "container"), TABLES)
def test_every_format_in_every_container(tmp_path, name, container):
    """The same rows give the same records, whatever they are packed in."""
    rng = random.Random(0)
    rows = [MAKERS[name](rng) for _ in range(7)]
    plain = tmp_path / "rows.x"
    plain.write_text("".join(json.dumps(row) + "\n" for row in rows))
    want, _ = imported(plain)
    path = tmp_path / f"rows.{container}"
    path.write_bytes(packed(rows, container))
    records, manifest = imported(path)
    for record in [*want, *records]:
        del record["source"]
    assert records == want
    assert manifest["sources"][0]["format"] == name
    assert manifest["kind"] == FORMATS[name].kind


def test_canonical_rows_by_hand(tmp_path):
    """The records that each format becomes, written out."""
    messages = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    cases = [
        (
            {"user_input": "Q", "completion_a": "x", "completion_b": "y", "preference": 2},
            {"instruction": "Q", "input": "", "chosen": "y", "rejected": "x"},
        ),
        (
            {"instruction": "Q", "input": "i", "output_1": "x", "output_2": "y", "preference": 1},
            {"instruction": "Q", "input": "i", "chosen": "x", "rejected": "y"},
        ),
        (
            {"user_input": "Q", "completion_a": "x", "completion_b": "y"},  # GPT-4-LLM: a is better
            {"instruction": "Q", "input": "", "chosen": "x", "rejected": "y"},
        ),
        (
            {"prompt": "Q", "responses": ["x", "y", "z"], "scores": [1.5, 7, 1.5]},
            {"instruction": "Q", "input": "", "responses": ["x", "y", "z"], "ranks": [1, 0, 1]}
            | {"annotator": "file"},
        ),
        (
            {"messages": [*messages, *messages]},
            {"instruction": "Hi.", "input": "", "output": "Hello.", "history": [["Hi.", "Hello."]]},
        ),
        ({"prompt": "Q"}, {"instruction": "Q", "input": "", "output": None}),
    ]
    for number, (row, want) in enumerate(cases):
        path = lines(tmp_path / f"{number}.jsonl", row)
        (record,), _ = imported(path)
        assert record == want | {"source": path.name}


def test_ties_are_counted_as_dropped(tmp_path):
    two = {"user_input": "Q", "completion_a": "x", "completion_b": "y"}
    path = lines(tmp_path / "a.jsonl", two | {"preference": "tie"}, two | {"preference": "B"})
    (record,), manifest = imported(path)
    assert record["chosen"] == "y"
    assert manifest["rows_dropped"] == {"its two answers tie": 1}
    (drop,) = (tmp_path / "a.jsonl-out" / "dropped.jsonl").read_text().splitlines()
    assert json.loads(drop)["place"] == f"{path}:1"


def test_imported_rankings_are_ranked_as_before(tmp_path, shared):
    """Trees become lists; the reward stage gets the same rankings from both, apart from names."""
    path = shared / "data" / "oasst_en_100_tree.jsonl.gz"
    records, manifest = imported(path, out=tmp_path / "out")
    lists = tmp_path / "out" / "rankings.jsonl"
    assert holds_rankings(path) and holds_rankings(lists)
    assert (len(records), manifest["rows_kept"]) == (212, 100)
    assert read_rankings(lists) == read_rankings(path)


REAL = {
    "alpaca_en_999.json": ("alpaca", "instructions", 999, 999),
    "dolly_2000.json": ("alpaca", "instructions", 2000, 2000),
    "dpo_en_300.json": ("chosen-rejected", "pairs", 300, 300),
    "hh_harmless_pairs_1156.jsonl.gz": ("chosen-rejected", "pairs", 1156, 1156),
    "oasst_en_100_tree.jsonl.gz": ("trees", "rankings", 100, 212),
    "self_instruct_seed_tasks_175.jsonl": ("seed-tasks", "instructions", 175, 175),
    "selfinstruct_user_oriented_252.jsonl": ("seed-tasks", "instructions", 252, 252),
}
READERS = {"instructions": read_instructions, "pairs": read_pairs, "rankings": read_rankings}


@pytest.mark.parametrize("name", REAL)
def test_real_files_are_imported_and_exported(tmp_path, shared, name):
    """Import, export in all three forms, import again: the same bytes, and the readers agree."""
    format_, kind, rows, records = REAL[name]
    path, out = shared / "data" / name, tmp_path / "first"
    _, manifest = imported(path, "--licence", "Apache-2.0", out=out)
    (source,) = manifest["sources"]
    assert (source["format"], manifest["kind"]) == (format_, kind)
    assert (source["rows"], source["rows_kept"], manifest["records"]) == (rows, rows, records)
    assert READERS[kind](out / f"{kind}.jsonl") == READERS[kind](path)
    for to in ("jsonl", "parquet", "datasets"):
        exported = tmp_path / to
        code, _, err = tried(["data", "export", str(out), "--to", to, "--out", str(exported)])
        assert code == 0, err
        card = (exported / "README.md").read_text()
        assert "license: apache-2.0" in card and f"| train | {records:,} |" in card
        assert f"| {name} | {format_} | {rows:,} | {rows:,} |" in card
        reimported = exported if to == "datasets" else exported / "data" / f"train.{to}"
        _, second = imported(reimported, out=tmp_path / f"again-{to}")
        assert second["sha256"] == manifest["sha256"]


def test_empty_answers_of_alpaca_are_refused_or_dropped(tmp_path, shared):
    path = shared / "data" / "alpaca_17k.jsonl.gz"
    out = tmp_path / "out"
    code, output, err = tried(["import", str(path), "--out", str(out)])
    assert code == 2 and not out.exists()
    assert err.startswith(f"error: {path}:2591: the output is empty") and "(9 of 17387 rows" in err
    assert output.count(": the output is empty") == 5 and "... and 4 more" in output
    records, manifest = imported(path, "--broken", "drop", out=out)
    assert (len(records), sum(manifest["rows_dropped"].values())) == (17378, 9)
    assert len((out / "dropped.jsonl").read_text().splitlines()) == 9


def test_any_two_formats_in_one_file_are_refused(tmp_path):
    """The rare row is named by its line. A row without an answer is told as such."""
    rng = random.Random(1)
    for first, second in combinations(MAKERS, 2):
        for common, rare in ((first, second), (second, first)):
            rows = [MAKERS[common](rng) for _ in range(3)]
            rows.insert(1, MAKERS[rare](rng))
            message = refusal(lines(tmp_path / "a.jsonl", *rows))
            if "prompts" in (common, rare) and {common, rare} & {"alpaca", "prompt-completion"}:
                assert "the output is empty or absent" in message
            elif rare == "prompts":
                assert message.startswith(":2: ")
            else:
                assert message.startswith(f":2: looks like `{rare}`, but the file like `{common}`")


def test_format_overrides_the_guess(tmp_path):
    path = lines(tmp_path / "a.jsonl", GOOD)
    (record,), manifest = imported(path, "--format", "prompts")
    assert record["output"] is None and manifest["kind"] == "prompts"
    assert "expected columns `chosen`" in refusal(path, "--format", "chosen-rejected")


def test_unknown_columns_are_refused_with_those_that_are_known(tmp_path):
    message = refusal(lines(tmp_path / "a.jsonl", {"question": "Why?", "answer": "So."}))
    assert message.startswith(":1: no format is known by the columns answer, question; ")
    assert all(name in message for name in FORMATS)


def test_several_files_become_one_and_kinds_do_not_mix(tmp_path):
    json_file, csv_file = lines(tmp_path / "a.jsonl", GOOD), tmp_path / "b.csv"
    csv_file.write_text("prompt,completion\nGo.,Went.\n")
    pairs = lines(tmp_path / "c.jsonl", {"prompt": "a", "chosen": "b", "rejected": "c"})
    out = tmp_path / "out"
    code, _, err = tried(["import", str(json_file), str(csv_file), "--out", str(out)])
    assert code == 0, err
    tasks = read_instructions(out / "instructions.jsonl")
    assert [row.source for row in tasks] == ["a.jsonl", "b.csv"]
    code, _, err = tried(["import", str(json_file), str(pairs), "--out", str(tmp_path / "no")])
    assert code == 2 and "a.jsonl holds instructions" in err and "c.jsonl holds pairs" in err
    code, _, err = tried(["import", str(json_file), str(json_file), "--out", str(tmp_path / "no")])
    assert code == 2 and "given twice" in err


def test_an_import_again_does_nothing_and_another_is_refused(tmp_path):
    path, out = lines(tmp_path / "a.jsonl", GOOD), tmp_path / "out"
    imported(path, out=out)
    before = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    code, output, _ = tried(["import", str(path), "--out", str(out)])
    assert code == 0 and "already" in output
    assert {file.name: file.stat().st_mtime_ns for file in out.iterdir()} == before
    lines(path, GOOD, GOOD)
    code, _, err = tried(["import", str(path), "--out", str(out)])
    assert code == 2 and "something is there already" in err


def test_a_killed_import_leaves_nothing_and_the_next_succeeds(tmp_path):
    path, out = tmp_path / "a.jsonl", tmp_path / "out"
    lines(path, *[GOOD | {"output": f"{n}"} for n in range(30_000)])
    command = [sys.executable, "-m", "alpaca_rlhf", "import", str(path), "--out", str(out)]
    root = Path(__file__).parent.parent
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=root)
    while not list(tmp_path.glob(".out.making/instructions.jsonl")) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    assert len(imported(path, out=out)[0]) == 30_000
    assert {file.name for file in tmp_path.iterdir()} == {"a.jsonl", "out"}


CSVS = [
    (b"instruction,output\nGo.,Went.\n", [("Go.", "Went.")]),
    (b"\xef\xbb\xbfinstruction;output\nGo, now.;Went.\n", [("Go, now.", "Went.")]),
    (b"instruction\toutput\r\nGo.\tWent.\r\n", [("Go.", "Went.")]),
    (b'instruction,output\n"Go,\nnow.","He said ""no""."\n', [("Go,\nnow.", 'He said "no".')]),
    (b"\n,instruction, output \n0,Go.,Went.\n\n", [("Go.", "Went.")]),
    ("instruction,output\nGehe.,Läuft.\n".encode("latin-1"), ":2: not UTF-8 (byte 0xe4); if it is"),
    ("instruction,output\nGo.,Went.\n".encode("utf-16"), ": is UTF-16 text"),
    ("instruction,output\nGo.,Went.\n".encode("utf-16-le"), ": is UTF-16 text; convert it: iconv"),
    ("instruction,output\nGo.,Went.\n".encode("utf-16-be"), ": is UTF-16 text; convert it: iconv"),
    (b"instruction,output\rGo.,Went.\r", ": its lines end with carriage returns alone: tr "),
    (b"sep=;\r\ninstruction;output\r\nGo, now.;Went.\r\n", [("Go, now.", "Went.")]),
    (b'\xef\xbb\xbf"sep=|"\ninstruction|output\nGo, now.|Went.\n', [("Go, now.", "Went.")]),
    (b"sep=;\n", ": no rows in it"),
    (b"instruction,output\nGo.,Went, far.\n", ":2: 3 cells, but the header names 2 columns"),
    (b"instruction,output\nGo.\n", ":2: 1 cells"),
    (b'instruction,output\nGo.,Went.\n"Go.,Went.\nGo.,Went.\n', ":3: not CSV"),
    (b"output,instruction,output\nGo.,Went.,a\n", ":1: the header names `output` twice"),
    (b"messages\nhello\n", ":2: column `messages` of a CSV must hold a list as JSON"),
    (b"instruction,output\n", ": no rows in it"),
    (b"", ": no rows in it"),
]


@pytest.mark.parametrize(("data", "want"), CSVS)
def test_csv(tmp_path, data, want):
    path = tmp_path / "a.csv"
    path.write_bytes(data)
    if isinstance(want, str):
        message = refusal(path)
        assert message.startswith(want) and "\n" not in message
    else:
        assert [(r["instruction"], r["output"]) for r in imported(path)[0]] == want


FILES = {
    "a.xlsx": (b"PK\x03\x04rest", "is a zip archive or a spreadsheet"),
    "a.parquet": (b"not parquet", "is not a Parquet file, in spite of its name"),
    "b.parquet": (b"PAR1 and then nothing", "cannot be read as Parquet"),
    "data.arrow": (b"\xff\xff\xff\xff\x10\x00\x00\x00", "is an Arrow shard of a saved dataset"),
    "a.pkl": (b"\x80\x04\x95rest", "is a pickle"),
    "a.npy": (b"\x93NUMPY\x01\x00", "is an array of NumPy"),
    "a.bin": (b"\x00\x01\x02\x00\x00\x00", "is not text"),
    "j.jsonl": (b'{"prompt": "a"}\r{"prompt": "b"}\r', "carriage returns alone: tr "),
    "a.jsonl.zst": (b"\x28\xb5\x2f\xfdrest", "compressed with zstd"),
    "a.json": (b'{\n "data": [\n  {"prompt": "a"}\n ]\n}\n', "its rows lie in `data`; take them"),
    "b.json": (b'[{"prompt": "a", "prompt": "b"}]', ":1: `prompt` stands twice"),
    "c.json": (b'[{"prompt": "a"},\n{"prompt": "b", "n": NaN}]', ":2: not JSON: NaN"),
    "d.json": (b'[{"prompt": "a"},\n{"prompt": "b"}', ":2: not JSON"),
    "h.json": (b"[" * 100_000, ":1: not JSON: nested too deeply"),
    "i.jsonl": (b'{"a":' * 100_000, ":1: not JSON: nested too deeply"),
    "e.jsonl": (b'{"prompt": "a"}\n{"prompt": "\\ud800"}\n', ":2: column `prompt` holds half"),
    "f.jsonl": (b'{"prompt": "a"}\n{"prompt": "b"\n', ":2: not JSON"),
    "g.jsonl.gz": (gzip.compress(b'{"prompt": "a"}\n' * 9)[:-9], "cannot be unpacked"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_cannot_be_rows(tmp_path, name):
    data, fragment = FILES[name]
    path = tmp_path / name
    path.write_bytes(data)
    assert fragment in refusal(path)


def test_what_follows_a_break_cannot_be_dropped(tmp_path):
    """`--broken drop` would lose rows without a word where they cannot be told apart any more."""
    path = tmp_path / "a.json"
    path.write_text('[{"prompt": "a"},\n{"prompt" "b"},\n{"prompt": "c"}]')
    assert "what follows cannot be read" in refusal(path, "--broken", "drop")


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_an_array_is_read_alike_in_chunks_of_any_size(tmp_path, monkeypatch, chunk):
    """Cut in the middle of anything, escapes, numbers and characters among them."""
    rows = [
        123456789,
        {"prompt": '日本\n🦙 \\u00e9 "x"', "n": [1.5e-7, -12345, True, None, {"a": []}]},
        {"prompt": "b" * 200, "completion": ""},
        {"prompt": "c"},
    ]
    path = tmp_path / "a.json"
    for text in (json.dumps(rows, indent=2), json.dumps(rows, ensure_ascii=False)):
        path.write_text(text, encoding="utf-8-sig")
        monkeypatch.setattr(json_rows, "_CHUNK", 2**18)
        want = list(open_rows(str(path)))
        monkeypatch.setattr(json_rows, "_CHUNK", chunk)
        assert list(open_rows(str(path))) == want
        assert [row for _, row in want] == rows
    assert {number for number, _ in open_rows(str(path))} == {1}


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_row_beyond_the_limit_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr(json_rows, "ROW_LIMIT", 1000)
    monkeypatch.setattr("alpaca_rlhf.data.readers.tables.ROW_LIMIT", 1000)
    monkeypatch.setattr(json_rows, "_CHUNK", 100)
    rows = [GOOD, GOOD | {"output": "x" * 2000}, GOOD]
    path = tmp_path / name
    path.write_bytes(packed(rows, name.removeprefix("a.")))
    message = refusal(path)
    assert "longer than" in message or "does not end within 1,000 characters" in message


def test_a_parquet_row_is_named_by_its_number(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(packed([GOOD, GOOD | {"output": None}], "parquet"))
    assert refusal(path).startswith(": row 2: the output is empty")


def test_a_name_on_the_hub_is_refused_offline(tmp_path):
    code, _, err = tried(["import", "hub:nobody/nothing", "--out", str(tmp_path / "out")])
    assert code == 2 and err.count("\n") == 1
    assert "error: hub:nobody/nothing: could not be loaded" in err and "HF_HUB_OFFLINE" in err


def test_a_dataset_by_name_is_read_split_by_split(tmp_path):
    """The library takes a folder of that name for the hub's: the same code, without a network."""
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    lines(folder / "train.jsonl", GOOD)
    lines(folder / "test.jsonl", GOOD, GOOD)
    program = "import sys; from alpaca_rlhf.cli.main import main; sys.exit(main(sys.argv[1:]))"

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-c", program, "import", *arguments],
            cwd=tmp_path,
            env={**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
            | {"PYTHONPATH": str(Path(__file__).parent.parent)},
            capture_output=True,
            text=True,
        )

    several = run("hub:owner/name", "--out", "no")
    assert several.returncode == 2 and "has the splits" in several.stderr
    done = run("hub:owner/name:test", "--out", "out")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["records"] == 2 and manifest["sources"][0]["fingerprint"]


def test_splits_are_exported_apart(tmp_path):
    """Rows with and without answers; an empty split is left out."""
    folder, out = tmp_path / "splits", tmp_path / "out"
    folder.mkdir()
    sft = [Instruction("Go.", "", "Went.", "a"), Instruction("Run.", "", "Ran.", "a")]
    rank = [Instruction("Why?", "", None, "a"), Instruction("How?", "", "So.", "a")]
    for name, rows in {"sft": sft, "rank": rank, "ppo": []}.items():
        write_instructions(folder / f"{name}.jsonl", rows)
    code, _, err = tried(["data", "export", str(folder), "--to", "parquet", "--out", str(out)])
    assert code == 0, err
    assert read_prompts(out / "data" / "rank.parquet") == rank
    assert read_instructions(out / "data" / "sft.parquet") == sft
    card = (out / "README.md").read_text()
    assert "| sft | 2 |\n| rank | 2 |" in card and "data/rank.parquet" in card
    assert "ppo" not in card and "Licence: unknown" in card


def test_a_saved_dataset_with_media_and_splits(tmp_path):
    """Pictures are refused unless their column is left out; of several splits one is named."""
    import datasets

    features = datasets.Features(
        {"prompt": datasets.Value("string"), "completion": datasets.Value("string")}
        | {"photo": datasets.Image()}
    )
    rows = [{"prompt": "Go.", "completion": "Went.", "photo": {"bytes": b"none", "path": None}}]
    dataset = datasets.Dataset.from_list(rows, features=features)
    dataset.save_to_disk(str(tmp_path / "one"))
    assert "column `photo` is not supported" in refusal(tmp_path / "one")
    (record,), _ = imported(tmp_path / "one", "--columns", "photo=-")
    assert (record["instruction"], record["output"]) == ("Go.", "Went.")
    two_splits = tmp_path / "two"
    datasets.DatasetDict(a=dataset, b=dataset).save_to_disk(str(two_splits))
    assert "has the splits a, b; give the folder of one of them" in refusal(two_splits)
    assert len(imported(two_splits / "a", "--columns", "photo=-")[0]) == 1
    (two_splits / "a" / "state.json").write_text("{")
    assert "cannot be read as a saved dataset" in refusal(two_splits / "a")


def test_files_come_before_the_flags(tmp_path):
    path = lines(tmp_path / "a.jsonl", GOOD)
    for command in (["import"], ["data", "check"], ["data", "export"]):
        code, _, err = tried([*command, "--out", str(tmp_path / "out"), str(path)])
        assert code == 2 and err.count("\n") == 1 and "flags after it" in err


def test_a_generation_is_exported_with_its_teacher_and_filters(tmp_path):
    from tests.generation import AnyTeacher, run

    generated = run(tmp_path / "run" / "generate", "alpaca", AnyTeacher())
    write_instructions(tmp_path / "run" / "generate" / "rows.jsonl", generated.rows)
    manifest = json.loads((tmp_path / "run" / "generate" / "manifest.json").read_text())
    command = ["data", "export", str(tmp_path / "run"), "--to", "jsonl"]
    code, _, err = tried([*command, "--out", str(tmp_path / "out")])
    assert code == 0, err
    card = (tmp_path / "out" / "README.md").read_text()
    assert manifest["teachers"][0]["name"] in card
    assert f"- Filters: {manifest['settings']['filters']}" in card
    for rule, count in manifest["counts"]["dropped"].items():
        assert f"| {rule} | {count:,} |" in card


def test_an_export_refuses_what_is_not_what_it_was(tmp_path):
    out = tmp_path / "in"
    imported(lines(tmp_path / "a.jsonl", GOOD), out=out)
    command = ["data", "export", str(out), "--to", "jsonl", "--out", str(tmp_path / "out")]
    with (out / "instructions.jsonl").open("a") as stream:
        stream.write(json.dumps(GOOD) + "\n")
    code, _, err = tried(command)
    assert code == 2 and "is not the file that" in err and not (tmp_path / "out").exists()
    (out / "manifest.json").write_text("{")
    assert tried(command)[0] == 2
    code, _, err = tried(["data", "export", str(tmp_path / "x"), *command[3:]])
    assert code == 2 and "holds nothing to export" in err


def test_the_guess_needs_no_more_than_the_first_rows(tmp_path):
    path = lines(tmp_path / "a.jsonl", *[GOOD] * 300)
    rows = open_rows(str(path))
    assert detect_format(rows).format is FORMATS["alpaca"]
    path.write_text(path.read_text().replace('"output"', '"answer"'))
    assert detect_format(rows).format is FORMATS["prompts"]
    with pytest.raises(UserError, match="no such file"):
        open_rows(str(tmp_path / "absent"))


def test_mutated_files_end_with_0_or_2_and_lose_no_row(tmp_path):
    outcome = fuzz(tmp_path, 150, 1)
    assert not outcome["failures"]
    assert Counter(outcome["ends"])["exit 0"] > 15 and Counter(outcome["ends"])["exit 2"] > 15


def test_rows_that_repeat_an_earlier_one_are_counted_and_said(tmp_path):
    """Whatever columns they are written in; a different answer is another row."""
    path = lines(
        tmp_path / "rows.jsonl",
        {"instruction": "Name a colour.", "output": "Blue."},
        {"instruction": "Name a colour.", "output": "Red."},
        {"output": "Blue.", "instruction": "Name a colour.", "input": ""},
        {"instruction": "Name a colour.", "output": "Blue."},
    )
    for command, flags in ((["data", "check"], []), (["import"], ["--out", str(tmp_path / "out")])):
        code, out, _ = tried([*command, str(path), *flags])
        assert code == 0 and "4 rows read, 4 good (4 records), 0 not" in out
        assert f"2 of them the same as an earlier one, the first at {path}:3; they are kept" in out
    lines(path, {"instruction": "A", "output": "B"}, {"instruction": "C", "output": "D"})
    code, out, _ = tried(["data", "check", str(path)])
    assert code == 0 and "the same as" not in out
