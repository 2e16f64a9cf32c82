"""Runs of earlier versions, which kept rankings in `rankings.jsonl`, are taken up by the store."""

import json

import pytest

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Completion, Instruction, Ranking
from alpaca_rlhf.data import read_rankings, write_instructions
from alpaca_rlhf.preferences import read_snapshot
from alpaca_rlhf.preferences.ranking_files import read_ranking_file
from alpaca_rlhf.preferences.store import Store
from alpaca_rlhf.sources.verdicts import open_store, take_up_earlier

KNOWN = {key: Completion("p", key) for key in "ab"} | {
    key: Completion("q", key, sample=1) for key in "xy"
}


def ranking(*tiers, prompt="p", annotator="ann", revision=0):
    return Ranking(prompt, tuple(tuple(tier) for tier in tiers), annotator, revision=revision)


def write(path, *rankings):
    """The file that an earlier version wrote."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in rankings]
    path.write_text("".join(lines))
    return path


# --- the file -------------------------------------------------------------------------------------


def test_a_file_is_read_in_its_order(tmp_path):
    full = Ranking("p", (("a",), ("b",)), "安", {"a": {"helpful": 5}}, 12.5)
    path = write(tmp_path / "r.jsonl", ranking("x", "y", prompt="q"), full)
    assert read_ranking_file(path, KNOWN) == [ranking("x", "y", prompt="q"), full]


def test_the_last_word_of_each_annotator_counts(tmp_path):
    path = write(
        tmp_path / "r.jsonl",
        ranking("a", "b", annotator="judge:gold"),
        ranking("a", "b", revision=2),
        ranking("b", "a", revision=1),
        ranking("b", "a", annotator="judge:gold"),
    )
    assert read_ranking_file(path, KNOWN) == [
        ranking("b", "a", annotator="judge:gold"),
        ranking("a", "b", revision=2),
    ]


def test_a_torn_tail_is_passed_over(tmp_path):
    path = write(tmp_path / "r.jsonl", ranking("a", "b"), ranking("x", "y", prompt="q"))
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in (0, 5, first, first + 1, first + 20, len(whole) - 2):
        path.write_bytes(whole[:cut])
        assert len(read_ranking_file(path, KNOWN)) == (cut >= first)
    path.write_bytes(whole.rstrip())  # as some editors save
    assert len(read_ranking_file(path, KNOWN)) == 2


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
                ({"a": {"use": 6}}, "use: give 1 to 5 stars"),
                ({"a": {"use": 0}}, "use: give 1 to 5 stars"),
                ({"a": {"use": True}}, "use: give 1 to 5 stars"),
                ({"a": {"use": "many" * 200}}, "use: give 1 to 5 stars"),
                ({"z": {"use": 3}}, "stars for 'z', which is not an answer"),
            )
        ),
        (
            {"prompt_id": "p", "tiers": [["a"], ["z"]], "annotator": "x"},
            "'z' is not one of the 4 known ones",
        ),
        (
            {"prompt_id": "p", "tiers": [["a"], ["x"]], "annotator": "x"},
            "'x' answers prompt 'q', not 'p'",
        ),
        (
            {"prompt_id": "nowhere", "tiers": [["a"], ["b"]], "annotator": "x"},
            "'a' answers prompt 'p', not 'nowhere'",
        ),
    ],
)
def test_broken_rows_are_named_by_line(tmp_path, row, says):
    path = write(tmp_path / "r.jsonl", ranking("a", "b"))
    with path.open("a") as file:
        file.write((row if isinstance(row, str) else json.dumps(row)) + "\n")
        file.write(json.dumps(ranking("a", "b").to_json()) + "\n")
    with pytest.raises(UserError, match=r"r\.jsonl:2: ") as caught:
        read_ranking_file(path, KNOWN)
    assert says in str(caught.value) and len(str(caught.value)) < 400


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_ranking_file(tmp_path / "absent.jsonl", KNOWN)


# --- the run --------------------------------------------------------------------------------------


def begun(run, answers=("A robin.", "An owl.", "No idea."), prompts=3, ledger=("sample",)):
    """A run that sampled some answers to each prompt; returns its sets."""
    rows = [Instruction(f"Name bird {n}.") for n in range(prompts)]
    sets = [
        (row, [Completion(row.id, text, "ab", sample=n) for n, text in enumerate(answers)])
        for row in rows
    ]
    (run / "sample").mkdir(parents=True)
    write_instructions(run / "sample" / "prompts.jsonl", rows)
    lines = [json.dumps(one.to_json()) + "\n" for _, completions in sets for one in completions]
    (run / "sample" / "completions.jsonl").write_text("".join(lines))
    (run / "ledger.json").write_text(json.dumps({name: {} for name in ledger}))
    return sets


def order(candidates, annotator, reverse=False, **more):
    prompt, completions = candidates
    tiers = [(completion.id,) for completion in completions]
    return Ranking(prompt.id, tuple(tiers[::-1] if reverse else tiers), annotator, **more)


def test_a_run_with_rankings_in_a_file_is_taken_up_once(tmp_path):
    run = tmp_path / "run"
    first, second, third = begun(run)
    ann = order(second, "Ann", reverse=True, duration_s=7.5)
    rows = [order(first, "judge:gold"), ann, order(second, "judge:gold"), order(third, "Ben")]
    path = write(run / "rank" / "rankings.jsonl", *rows)
    lines = []
    with open_store(run, say=lines.append) as store:
        store.export(tmp_path / "one")
        found = store.statuses([prompt.id for prompt, _ in (first, second, third)])
        assert {key for key, status in found.items() if status == "ranked"} == {
            second[0].id,
            third[0].id,
        }
    (line,) = lines
    assert str(path) in line and "its 4 rankings are in" in line and "preferences.db" in line
    assert not path.exists() and path.with_name("rankings.jsonl.taken-up").exists()
    kept = {row.prompt_id: row for _, _, row in read_snapshot(tmp_path / "one")}
    assert kept == {first[0].id: rows[0], second[0].id: ann, third[0].id: rows[3]}
    open_store(run, say=lines.append).close()
    assert len(lines) == 1, "once"


def test_a_stage_that_is_done_gets_the_snapshot_that_training_reads(tmp_path):
    """And taking it up again after a kill in the middle comes to the same."""
    run = tmp_path / "run"
    sets = begun(run, ledger=("sample", "rank"))
    rows = [order(candidates, "judge:gold") for candidates in sets]
    path = write(run / "rank" / "rankings.jsonl", *rows)
    take_up_earlier(run, lambda line: None)
    snapshot = run / "rank" / "snapshot" / "rankings.jsonl"
    first = snapshot.read_bytes()
    assert {row.prompt_id for _, _, row in read_snapshot(snapshot.parent)} == {
        prompt.id for prompt, _ in sets
    }
    path.with_name("rankings.jsonl.taken-up").rename(path)
    take_up_earlier(run, lambda line: None)
    assert snapshot.read_bytes() == first
    assert (run / "rank" / "snapshot-earlier" / "rankings.jsonl").read_bytes() == first
    with Store(run / "preferences.db") as store:
        assert store.figures().counts["judged"] == 3, "it added nothing"


def test_a_text_that_a_person_saw_twice_is_kept_once(tmp_path):
    """Nobody is shown equal texts any more; a judge's ranking of all of them stays whole."""
    run = tmp_path / "run"
    (candidates,) = begun(run, ("A robin.", "A robin.", "No idea."), prompts=1)
    rows = [order(candidates, "judge:gold"), order(candidates, "Ann", reverse=True)]
    write(run / "rank" / "rankings.jsonl", *rows)
    with open_store(run) as store:
        store.export(tmp_path / "one")
        assert store.progress(0).sets == 1, "one to rank, another for judges alone"
    ((_, completions, kept),) = read_snapshot(tmp_path / "one")
    a, _, c = candidates[1]
    assert completions == [a, c] and (kept.annotator, kept.tiers) == ("Ann", ((c.id,), (a.id,)))


def test_a_broken_file_is_refused_and_left_alone(tmp_path):
    run = tmp_path / "run"
    begun(run)
    path = write(run / "rank" / "rankings.jsonl", ranking("a", "b"))
    with pytest.raises(UserError, match=r"rank/rankings\.jsonl:1: "):
        open_store(run)
    assert path.exists()


def test_real_rankings(shared, tmp_path):
    rows = read_rankings(shared / "data" / "oasst_en_100_tree.jsonl.gz")
    orders = [row for _, _, row in rows]
    known = {one.id: one for _, completions, _ in rows for one in completions}
    assert read_ranking_file(write(tmp_path / "r.jsonl", *orders), known) == orders
