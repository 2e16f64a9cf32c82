"""Rankings on disk and the pairs they give."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from alpaca_rlhf.config import UserError
from alpaca_rlhf.data import read_pairs, read_ranking_trees
from alpaca_rlhf.preferences import append, group_pairs, pairs, read, split_by_prompt
from alpaca_rlhf.records import Completion, Instruction, PreferencePair, Ranking

PROMPT = Instruction("Name a bird.")
OTHER = Instruction("Name a fish.")


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


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "absent.jsonl")
    with pytest.raises(UserError, match="cannot be written"):
        append(tmp_path, ranking("a", "b"))


def test_an_acknowledged_ranking_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    child = (
        "import sys, itertools; from pathlib import Path\n"
        "from alpaca_rlhf.preferences import append; from alpaca_rlhf.records import Ranking\n"
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


def test_pairs_of_different_tiers_with_their_distance() -> None:
    answers = [Completion(PROMPT.id, text, sample=i) for i, text in enumerate("a b c d d".split())]
    a, b, c, d, same = (one.id for one in answers)
    known = {one.id: one for one in answers}
    order = Ranking(PROMPT.id, ((a,), (b, c), (d,), (same,)), "ann")
    (group,) = pairs([order], {PROMPT.id: PROMPT}, known)
    assert [(pair.chosen, pair.rejected, pair.margin) for pair in group] == [
        ("a", "b", 1), ("a", "c", 1), ("a", "d", 2), ("a", "d", 3),
        ("b", "d", 1), ("c", "d", 1), ("b", "d", 2), ("c", "d", 2),
    ]  # fmt: skip
    assert {(pair.group, pair.prompt) for pair in group} == {(PROMPT.id, PROMPT)}


def test_rankings_of_one_prompt_share_a_group_and_ties_give_none() -> None:
    answers = [Completion(prompt.id, text) for prompt in (PROMPT, OTHER) for text in "ab"]
    known = {one.id: one for one in answers}
    prompts = {PROMPT.id: PROMPT, OTHER.id: OTHER}
    a, b, x, y = known
    tie = Ranking(OTHER.id, ((x, y),), "ann")
    both = [Ranking(PROMPT.id, ((a,), (b,)), "ann"), tie, Ranking(PROMPT.id, ((b,), (a,)), "bob")]
    assert [
        [(one.chosen, one.rejected) for one in group] for group in pairs(both, prompts, known)
    ] == [[("a", "b"), ("b", "a")]]
    for broken, says in (
        (Ranking("gone", ((a,), (b,)), "ann"), "prompt 'gone' is not known"),
        (Ranking(PROMPT.id, ((a,), ("gone",)), "ann"), "'gone' is not known"),
        (Ranking(PROMPT.id, ((a,), (x,)), "ann"), "answers another prompt"),
    ):
        with pytest.raises(UserError, match=says):
            pairs([broken], prompts, known)


def test_a_split_never_parts_a_prompt() -> None:
    loose = [PreferencePair(PROMPT, f"a{i}", f"b{i}", f"prompt {i % 40}") for i in range(200)]
    groups = group_pairs(loose)
    assert [len(group) for group in groups] == [5] * 40
    train, held = split_by_prompt(groups, 0.2, seed=0)
    assert (len(train), len(held)) == (32, 8)
    assert not {group[0].group for group in train} & {group[0].group for group in held}
    assert (
        split_by_prompt(groups, 0.2, seed=0)
        == (train, held)
        != split_by_prompt(groups, 0.2, seed=1)
    )
    # the same prompts are held out however the pairs come
    again, same = split_by_prompt([[pair] for pair in reversed(loose)], 0.2, seed=0)
    assert {group[0].group for group in same} == {group[0].group for group in held} and len(
        again
    ) == 32
    assert [len(part) for part in split_by_prompt(groups[:2], 0.01, seed=0)] == [1, 1]
    with pytest.raises(UserError, match="1 prompts with preferences"):
        split_by_prompt(groups[:1], 0.2, seed=0)


def test_real_rankings_and_pairs(shared: Path, tmp_path: Path) -> None:
    found = read_ranking_trees(shared / "data" / "oasst_en_100_tree.jsonl.gz")
    append(tmp_path / "r.jsonl", *(order for _, _, order in found))
    known = {one.id: one for _, answers, _ in found for one in answers}
    orders = read(tmp_path / "r.jsonl", completions=known)
    assert len(orders) == len(found)
    groups = pairs(orders, {prompt.id: prompt for prompt, _, _ in found}, known)
    expected = sum(len(answers) * (len(answers) - 1) // 2 for _, answers, _ in found)
    assert expected - 5 <= sum(map(len, groups)) <= expected  # a few replies are the same text
    train, held = split_by_prompt(
        group_pairs(read_pairs(shared / "data" / "hh_harmless_pairs_1156.jsonl.gz")), 0.1, 0
    )
    assert sum(map(len, train)) + sum(map(len, held)) == 1156
