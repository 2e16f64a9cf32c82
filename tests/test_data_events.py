"""The events of a generation on the disk: kills, damage, two writers, bounded memory."""

import json
import random
import tracemalloc
from pathlib import Path

import pytest

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.data import EventStore, read_events, requests
from tests.generation import SEGMENT, AnyTeacher, events_in, files_of, killed_runs, run

RECIPES = ("alpaca", "self-instruct", "evol")


@pytest.mark.parametrize("recipe", RECIPES)
def test_killed_at_random_moments_it_ends_with_the_same_files(tmp_path: Path, recipe: str) -> None:
    """`make prove` does it twenty times."""
    seed = random.SystemRandom().randrange(2**32)
    kills = 3 if recipe == "self-instruct" else 1
    proof = killed_runs(tmp_path, recipe, kills, random.Random(seed))
    assert proof["same_files"] and proof["nothing_asked_twice"], f"{proof} with seed {seed}"
    assert proof["segments"] >= 2 and len(proof["killed_after_requests"]) == kills


@pytest.mark.parametrize("recipe", RECIPES)
def test_torn_anywhere_it_is_made_again(tmp_path: Path, recipe: str) -> None:
    """The newest segment cut at any byte: what is gone is asked again, the files are the same."""
    whole = run(tmp_path, recipe)
    files = files_of(tmp_path)
    path = max(tmp_path.glob("events-*.jsonl"))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert path.name not in {segment["file"] for segment in manifest["segments"]}, (
        "the newest is open"
    )
    data = path.read_bytes()
    before = events_in(tmp_path) - data.count(b"\n")
    rng = random.Random(0)
    for cut in [0, 1, data.index(b"\n"), data.index(b"\n") + 1, rng.randrange(len(data))]:
        path.write_bytes(data[:cut])
        teacher = AnyTeacher()
        again = run(tmp_path, recipe, teacher)
        assert (again.rows, list(again.drops)) == (whole.rows, list(whole.drops))
        assert files_of(tmp_path) == files
        assert min(teacher.prompts) == before + data[:cut].count(b"\n")


def test_killed_between_a_full_segment_and_its_manifest(tmp_path: Path) -> None:
    with EventStore(tmp_path, segment_bytes=60) as store:
        store.describe(seed=1)
        store.append([{"request": n, "text": "x" * 20} for n in range(4)])
    files = files_of(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert [segment["events"] for segment in manifest["segments"]] == [2, 2]
    manifest["segments"].pop()  # as it was before the second one was closed
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / ".manifest.json.12345678.tmp").write_text("half of the ne")
    with EventStore(tmp_path, segment_bytes=60) as store:
        assert [event["request"] for _, event in store.replay()] == [0, 1, 2, 3]
    assert files_of(tmp_path) == files


def test_a_damaged_closed_segment_is_named(tmp_path: Path) -> None:
    run(tmp_path, "alpaca")
    path = tmp_path / "events-00001.jsonl"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"birds", b"words", 1))
    with pytest.raises(UserError, match=r"events-00001\.jsonl: is damaged, its sha256"):
        run(tmp_path, "alpaca")
    path.write_bytes(data[:-30])  # a torn line is cut only in the open one
    with pytest.raises(UserError, match=r"events-00001\.jsonl: is damaged"):
        run(tmp_path, "alpaca")
    path.unlink()
    with pytest.raises(UserError, match=r"events-00001\.jsonl: is missing"):
        run(tmp_path, "alpaca")
    path.write_bytes(data)
    run(tmp_path, "alpaca")


@pytest.mark.parametrize("how", ["changed", "cut in a line", "cut after a line", "missing"])
def test_reading_alone_tells_a_damaged_closed_segment(tmp_path: Path, how: str) -> None:
    """A command that only looks takes no lock and opens no store: it must not pass over a loss."""
    run(tmp_path, "alpaca")
    path = tmp_path / "events-00001.jsonl"
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "changed":
        path.write_bytes(data.replace(b"birds", b"words", 1))
    else:
        last = data[:-1].rindex(b"\n") + 1
        path.write_bytes(data[: last + 20 * (how == "cut in a line")])
    with pytest.raises(UserError, match=r"events-00001\.jsonl(:\d+)?: (is|not an event; the file)"):
        list(read_events(tmp_path))
    with pytest.raises(UserError, match=r"events-00001\.jsonl"):
        list(requests(tmp_path))


def test_a_manifest_that_is_not_the_events_own_is_refused(tmp_path: Path) -> None:
    run(tmp_path, "alpaca")
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest["schema"] == 1 and manifest["counts"]["kept"] == 200
    assert manifest["teachers"] == [{"name": "any-teacher", "licence": "CC0-1.0"}]
    assert manifest["counts"]["requests"] == events_in(tmp_path)
    for text, want in (
        (None, "manifest.json: is missing, but events-00000.jsonl is there"),
        ("{", "manifest.json: is no longer valid JSON"),
        ('{"schema": 2}', "manifest.json: is not a manifest of schema 1"),
        (json.dumps(manifest | {"segments": manifest["segments"][:1]}), "does not know it"),
        ('{"schema": 1}', "its segments cannot be read"),
        (json.dumps(manifest | {"segments": ["events-00000.jsonl"]}), "its segments cannot be"),
        (json.dumps(manifest | {"counts": 3}), "its counts cannot be read"),
    ):
        path.unlink() if text is None else path.write_text(text)
        with pytest.raises(UserError, match=want.replace(".", r"\.")):
            run(tmp_path, "alpaca")


def test_two_writers(tmp_path: Path) -> None:
    with EventStore(tmp_path) as store:
        with pytest.raises(UserError, match="another process generates there"):
            run(tmp_path, "alpaca")
        store.append([{"request": 0}])
        assert [event for _, event in read_events(tmp_path)] == [{"request": 0}], "readers may"
    with EventStore(tmp_path / "new"):
        pass  # a refusal leaves no lock behind


def test_changed_seed_tasks_beside_the_events_are_refused(tmp_path: Path) -> None:
    run(tmp_path, "alpaca")
    path = tmp_path / "seeds.jsonl"
    path.write_text(path.read_text().replace("seed number 3", "seed number 4"))
    with pytest.raises(UserError, match=r"seeds\.jsonl: is not the file that the manifest knows"):
        next(requests(tmp_path))


def test_replay_holds_one_event_at_a_time(tmp_path: Path) -> None:
    """20 MB of events are read in less than 2.5 MB."""
    with EventStore(tmp_path, segment_bytes=5_000_000) as store:
        store.describe(seed=1)
        for number in range(200):
            store.append([{"request": number, "text": "x" * 100_000}])
    tracemalloc.start()
    with EventStore(tmp_path, segment_bytes=5_000_000) as store:
        assert sum(1 for _ in store.replay()) == 200
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(list(tmp_path.glob("events-*.jsonl"))) == 4
    assert peak < 2_500_000, f"{peak} bytes"


def test_prompts_are_made_again_from_the_folder_alone(tmp_path: Path) -> None:
    for recipe in RECIPES:
        teacher = AnyTeacher()
        result = run(tmp_path / recipe, recipe, teacher)
        answered_requests = [answered for _, answered in requests(tmp_path / recipe)]
        assert {
            answered.number: answered.ask.prompt for answered in answered_requests
        } == teacher.prompts
        assert [
            row
            for answered in answered_requests
            if not answered.ask.drafts
            for row in answered.kept
        ] == result.rows


def test_segments_are_closed_at_their_size_and_not_after(tmp_path: Path) -> None:
    run(tmp_path, "alpaca")
    *closed, newest = sorted(tmp_path.glob("events-*.jsonl"))
    assert all(path.stat().st_size >= SEGMENT for path in closed)
    for path in closed:
        without_last = path.read_bytes()[:-1].rpartition(b"\n")[0]
        assert len(without_last) + 1 < SEGMENT
    assert newest.stat().st_size < SEGMENT
