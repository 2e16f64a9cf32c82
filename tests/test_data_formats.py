"""Reading and writing instructions."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import read_instructions, read_pairs, read_prompts, read_rankings
from alpaca_rlhf.data.readers.formats import write_instructions

GOOD = {"instruction": "Name a colour.", "input": "", "output": "Blue."}
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refusal(path: Path, read=read_instructions) -> str:
    with pytest.raises(UserError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{path}")


def test_json_lines_json_array_gzip_and_bom_give_the_same_rows(tmp_path: Path) -> None:
    rows = [GOOD, {"prompt": "  Say hello.\n", "completion": "你好"}]
    want = [
        Instruction("Name a colour.", "", "Blue.", "rows.json"),
        Instruction("  Say hello.\n", "", "你好", "rows.json"),  # converted without loss
    ]
    path = tmp_path / "rows.json"
    as_lines = "".join(json.dumps(row) + "\n" for row in rows)
    for text in (
        as_lines,
        as_lines.rstrip(),
        "\n\n" + as_lines,
        json.dumps(rows, indent=1),
        json.dumps(rows),
    ):
        for data in (text.encode(), b"\xef\xbb\xbf" + text.encode(), gzip.compress(text.encode())):
            path.write_bytes(data)
            assert read_instructions(path) == want


def test_dolly_and_seed_task_columns(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "a.jsonl",
        {"instruction": "Who?", "context": "A story.", "response": "Ann.", "category": "qa"},
        {
            "id": "seed_task_0",
            "instruction": "Sort.",
            "instances": [{"input": "b a", "output": "a b"}, {"input": "d c", "output": "c d"}],
        },
    )
    assert [(row.instruction, row.input, row.output) for row in read_instructions(path)] == [
        ("Who?", "A story.", "Ann."),
        ("Sort.", "b a", "a b"),
        ("Sort.", "d c", "c d"),
    ]


@pytest.mark.parametrize(
    ("row", "fragment"),
    [
        ({"instruction": "Go.", "output": " \n"}, "output is empty"),
        ({"instruction": "Go."}, "output is empty or absent"),
        ({"instruction": " ", "output": "x"}, "instruction is empty"),
        (
            {"input": "a", "output": "x"},
            "expected a column `instruction` or `prompt`; columns here: input, output",
        ),
        ({"instruction": 3, "output": "x"}, "`instruction` must be text, got a number"),
        ({"instruction": "Go.", "output": ["x"]}, "`output` must be text, got a list"),
        ({"instruction": "Go.", "output": "\ud800"}, "surrogate"),
        ({"instruction": "Go.", "instances": []}, "`instances` must be a list, not empty"),
        ([1], "expected an object with named columns, got a list"),
        (None, "got null"),
    ],
)
def test_broken_rows_are_named_by_line(tmp_path: Path, row: object, fragment: str) -> None:
    message = refusal(lines(tmp_path / "a.jsonl", GOOD, row, GOOD))
    assert message.startswith(":2: ") and fragment in message and "(1 of 3 rows broken)" in message
    array = tmp_path / "a.json"
    array.write_text(
        json.dumps([GOOD, row, GOOD]).replace("}, {", "},\n\n{").replace("}, [", "},\n\n[")
    )
    assert fragment in refusal(array)


def test_every_problem_is_counted(tmp_path: Path) -> None:
    empty = {"instruction": "Go.", "output": ""}
    message = refusal(lines(tmp_path / "a.jsonl", GOOD, empty, {"output": "x"}, empty))
    assert message.startswith(":2: ") and "(3 of 4 rows broken: 2 x the output is empty" in message


def test_the_line_inside_a_json_array(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(
        '[\n {"instruction": "a",\n  "output": "b"},\n\n {"instruction": "c",\n  "output": ""}\n]\n'
    )
    assert refusal(path).startswith(":5: ")
    path.write_text(
        '[\n {"instruction": "a",\n  "output": "b"},\n {"instruction": "c",\n  "output" "d"}\n]\n'
    )
    assert refusal(path).startswith(":5: not JSON")
    path.write_text('[{"instruction": "a", "output": "b"}\n{"instruction": "a", "output": "b"}]')
    assert refusal(path).startswith(":2: not JSON: expected a comma")
    path.write_text('[{"instruction": "a", "output": "b"},\n')
    assert ": not JSON" in refusal(path)
    path.write_text('[{"instruction": "a", "output": "b"}]\n{}')
    assert "closing bracket" in refusal(path)


def test_files_that_are_no_rows(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "absent.json")
    assert "is a folder" in refusal(tmp_path)
    path = tmp_path / "a.jsonl"
    for text in ("", "\n \n", "[]"):
        path.write_text(text)
        assert "no rows" in refusal(path)
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"instruction": "\xff"}\n')
    assert refusal(path).startswith(":2: not UTF-8")
    path.write_bytes(b'[\n{"instruction": "\xff"}]')
    assert refusal(path).startswith(":2: not UTF-8")
    path.write_bytes(gzip.compress(json.dumps(GOOD).encode() * 50)[:-20])
    assert "cannot be unpacked" in refusal(path)
    path.write_text("instruction,output\nGo.,Went.\n")
    assert refusal(path).startswith(":1: not JSON")
    path.write_text("[" * 100_000)
    assert "nested too deeply" in refusal(path)


def test_prompts_need_no_output(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "a.jsonl", {"prompt": "Go."}, {"instruction": "Run.", "output": ""}, GOOD
    )
    assert [row.output for row in read_prompts(path)] == [None, None, "Blue."]


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.tuples(TEXT.filter(str.strip), TEXT, TEXT.filter(str.strip), TEXT), min_size=1)
)
def test_written_rows_come_back_as_they_were(tmp_path_factory, rows) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    tasks = [Instruction(*row) for row in rows]
    write_instructions(path, tasks)
    assert read_instructions(path) == tasks


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_mutated_files_are_read_or_refused(tmp_path_factory, data) -> None:
    original = json.dumps([GOOD, {"prompt": "p", "chosen": "a", "rejected": "b"}]).encode()
    if data.draw(st.booleans()):
        original = original[1:-1].replace(b"}, {", b"}\n{")
    at = data.draw(st.integers(0, len(original)))
    cut = data.draw(st.integers(0, 8))
    mutated = original[:at] + data.draw(st.binary(max_size=4)) + original[at + cut :]
    path = tmp_path_factory.getbasetemp() / "mutated.json"
    path.write_bytes(mutated)
    for read in (read_instructions, read_prompts, read_pairs, read_rankings):
        try:
            read(path)
        except UserError as error:
            assert str(error).startswith(str(path))


@pytest.mark.parametrize(
    ("name", "count"), [("dolly_2000.json", 2000), ("alpaca_en_999.json", 999)]
)
def test_real_instruction_files(shared: Path, name: str, count: int) -> None:
    rows = read_instructions(shared / "data" / name)
    assert len(rows) == count and rows[0].source == name


def test_real_seed_tasks_and_alpaca(shared: Path) -> None:
    seeds = read_instructions(shared / "data" / "self_instruct_seed_tasks_175.jsonl")
    assert len(seeds) == 175 and sum(not row.input for row in seeds) == 50
    alpaca = shared / "data" / "alpaca_17k.jsonl.gz"
    assert "(9 of 17387 rows broken)" in refusal(
        alpaca
    )  # Stanford's generator let empty outputs pass
    assert len(read_prompts(alpaca)) == 17387
