"""Rankings on disk."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Completion, Ranking
from alpaca_rlhf.data import read_rankings
from alpaca_rlhf.preferences import append, read


def ranking(*tiers: str, prompt: str = "p", annotator: str = "ann", revision: int = 0) -> Ranking:
    return Ranking(prompt, tuple(tuple(tier) for tier in tiers), annotator, revision=revision)


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "below" / "rankings.jsonl"
    full = Ranking("p", (("a",), ("b", "c")), "安", {"a": {"helpful": 5}}, 12.5)
    append(path, full)
    append(path, ranking("x", "y", prompt="q"), ranking("y", "x", prompt="r"))
    assert read(path) == [full, ranking("x", "y", prompt="q"), ranking("y", "x", prompt="r")]
    assert read(path, completions={"a", "b", "c", "x", "y"})[0].criteria == {"a": {"helpful": 5}}


def test_the_last_word_of_each_annotator_counts_and_people_before_judges(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    append(
        path,
        ranking("a", "b", annotator="judge:gold"),
        ranking("a", "b", revision=2),
        ranking("b", "a", revision=1),
        ranking("b", "a", annotator="bob"),
        ranking("a", "b", prompt="q", annotator="judge:gold"),
        ranking("b", "a", prompt="q", annotator="judge:gold"),
        ranking("b", "a", annotator="judge:gold", revision=9),
    )
    assert read(path) == [
        ranking("a", "b", revision=2),
        ranking("b", "a", annotator="bob"),
        ranking("b", "a", prompt="q", annotator="judge:gold"),
    ]


def test_a_torn_tail_is_passed_over_and_cut_by_the_next_append(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    append(path, ranking("a", "b"), ranking("a", "b", prompt="q" * 9000))
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in (0, 5, first, first + 1, first + 20, first + 8900, len(whole) - 2):
        path.write_bytes(whole[:cut])
        assert len(read(path)) == (cut >= first)
        append(path, ranking("b", "a", prompt="new"))
        assert [one.prompt_id for one in read(path)] == (["p"] if cut >= first else []) + ["new"]


def test_a_last_line_without_its_line_end_counts_if_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    append(path, ranking("a", "b"))
    path.write_bytes(path.read_bytes().rstrip())  # as some editors save
    append(path, ranking("a", "b", prompt="q"))
    assert [one.prompt_id for one in read(path)] == ["p", "q"]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "`prompt_id` is missing"),
        ({"tiers": [["a"], ["b"]], "annotator": "x"}, "`prompt_id` is missing"),
        ({"prompt_id": "p", "tiers": [["a"]], "annotator": "x"}, "needs at least 2 completions"),
        ({"prompt_id": "p", "tiers": [["a"], ["a"]], "annotator": "x"}, "stands in two places"),
        ({"prompt_id": "p", "tiers": [["a", "b"], []], "annotator": "x"}, "a tier is empty"),
        ({"prompt_id": "p", "tiers": ["ab"], "annotator": "x"}, "`tiers` must be lists"),
        ({"prompt_id": "p", "tiers": [["a"], ["b"]]}, "`annotator` is missing"),
        (
            {"prompt_id": "p", "tiers": [["a"], ["b"]], "annotator": "x", "revision": "1"},
            "`revision`",
        ),
        (
            {"prompt_id": "p", "tiers": [["a"], ["b"]], "annotator": "x", "criteria": [1]},
            "`criteria`",
        ),
        (
            {"prompt_id": "p", "tiers": [["a"], ["b"]], "annotator": "x", "duration_s": None},
            "`duration_s`",
        ),
        *(
            (
                {"prompt_id": "p", "tiers": [["a"], ["b"]], "annotator": "x", "criteria": stars},
                says,
            )
            for stars, says in (
                ({"a": {"use": 6}}, "1 to 5 stars for 'use', got 6"),
                ({"a": {"use": 0}}, "1 to 5 stars for 'use', got 0"),
                ({"a": {"use": True}}, "1 to 5 stars for 'use', got True"),
                ({"a": {"use": "many" * 200}}, "1 to 5 stars for 'use', got manymany"),
                ({"z": {"use": 3}}, "stars for 'z', which is not ranked"),
            )
        ),
        (
            {"prompt_id": "p", "tiers": [["a"], ["z"]], "annotator": "x"},
            "'z' is not one of the 2 known ones",
        ),
    ],
)
def test_broken_rows_are_named_by_line(tmp_path: Path, row: object, says: str) -> None:
    path = tmp_path / "r.jsonl"
    append(path, ranking("a", "b"))
    with path.open("a") as file:
        file.write((row if isinstance(row, str) else json.dumps(row)) + "\n")
    append(path, ranking("a", "b"))
    with pytest.raises(UserError, match=r"r\.jsonl:2: ") as caught:
        read(path, completions=["a", "b"])
    assert says in str(caught.value) and len(str(caught.value)) < 400


def test_a_completion_of_another_prompt_is_named_by_line(tmp_path: Path) -> None:
    """An id that is known may still stand in the wrong place, or its prompt be unknown."""
    a, b, c = (Completion(prompt, text) for prompt, text in (("p", "1"), ("p", "2"), ("q", "3")))
    known = {one.id: one for one in (a, b, c)}
    path = tmp_path / "r.jsonl"
    append(path, Ranking("p", ((a.id,), (b.id,)), "ann"))
    assert len(read(path, known)) == 1
    for prompt, ids, says in (
        ("p", (a.id, c.id), f"{c.id!r} answers prompt 'q', not 'p'"),
        ("nowhere", (a.id, b.id), f"{a.id!r} answers prompt 'p', not 'nowhere'"),
    ):
        bad = tmp_path / f"{prompt}.jsonl"
        append(bad, Ranking("p", ((a.id,), (b.id,)), "ann"), Ranking(prompt, (ids,), "ann"))
        with pytest.raises(UserError, match=r"\.jsonl:2: ") as caught:
            read(bad, known)
        assert says in str(caught.value)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "absent.jsonl")
    with pytest.raises(UserError, match="cannot be written"):
        append(tmp_path, ranking("a", "b"))


def test_an_acknowledged_ranking_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    child = (
        "import sys, itertools; from pathlib import Path\n"
        "from alpaca_rlhf.preferences import append; from alpaca_rlhf.core.records import Ranking\n"
        "for i in itertools.count():\n"
        "    append(Path(sys.argv[1]), Ranking(str(i), (('a',), ('b',)), 'ann'))\n"
        "    print(i, flush=True)\n"
    )
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", child, str(path)], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": os.getcwd()},
        ) as process:  # fmt: skip
            assert process.stdout is not None
            acknowledged = [process.stdout.readline() for _ in range(7)]
            process.send_signal(signal.SIGKILL)
        assert {one.prompt_id for one in read(path)} >= {line.strip() for line in acknowledged}


def test_real_rankings(shared: Path, tmp_path: Path) -> None:
    found = read_rankings(shared / "data" / "oasst_en_100_tree.jsonl.gz")
    orders = [order for _, _, order in found]
    append(tmp_path / "r.jsonl", *orders)
    known = {one.id: one for _, answers, _ in found for one in answers}
    assert read(tmp_path / "r.jsonl", completions=known) == orders
