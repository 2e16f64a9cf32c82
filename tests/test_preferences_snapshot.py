"""Snapshots: what is in them, that nothing changes them unseen, and who can read them."""

import csv
import hashlib
import json
import random
import threading
import tracemalloc
from dataclasses import replace

import pytest

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Completion, Instruction, Ranking
from alpaca_rlhf.data import read_pairs
from alpaca_rlhf.preferences import JudgeIdentity, manifest_of, read_snapshot, snapshot
from alpaca_rlhf.preferences.assignment import Verdict
from alpaca_rlhf.preferences.store import Store
from tests.databases import candidates

CANONICAL = ("rankings.jsonl", "pairs.jsonl")


def ranked(store, n=3):
    """`n` sets of two prompts' worth each ranked by a person: best first, then a tie of two."""
    sets = candidates(n, k=3)
    store.add_sets(sets, origin="test")
    who = store.add_annotator("=Ann", "long enough")
    for _ in range(n):
        task = store.claim(who)
        a, b, c = sorted(one.id for one in task.completions)
        verdict = Verdict(((a,), (b, c)), {a: {"relevance": 5}}, comment="+1", input_method="touch")
        store.submit(who, task.id, verdict)
    return sets, who


def test_a_snapshot_holds_what_was_said(store, tmp_path):
    sets, _ = ranked(store)
    made = store.export(tmp_path / "one")
    assert (made.rankings, made.judged, made.pairs, made.max_ranking) == (3, 0, 6, 3)
    found = read_snapshot(tmp_path / "one")
    by_prompt = {prompt.id: (prompt, own, said) for prompt, own, said in found}
    for prompt, own in sets:
        read, completions, said = by_prompt[prompt.id]
        assert read == prompt and completions == own
        a, b, c = sorted(one.id for one in own)
        assert said.tiers == ((a,), (b, c)) and said.annotator == "=Ann"
        assert said.criteria == {a: {"relevance": 5}}
    text = (tmp_path / "one" / "rankings.jsonl").read_bytes()
    assert hashlib.sha256(text).hexdigest() == made.sha256
    pairs = (tmp_path / "one" / "pairs.jsonl").read_text()
    for line in (text.decode() + pairs).splitlines():
        row = json.loads(line)
        canonical = json.dumps(row, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        assert line == canonical
    store.export(tmp_path / "two")
    assert (tmp_path / "two" / "rankings.jsonl").read_bytes() == text, "the same bytes again"
    with pytest.raises(UserError, match="is there already"):
        store.export(tmp_path / "two")
    assert not list(tmp_path.glob(".*")), "nothing half done is left"


def test_only_what_counts_is_exported(store, tmp_path):
    """Not what was taken back, not repeats or gold; a judge only where no person ranked."""
    sets, who = ranked(store)
    store.undo(who)
    judged = [Ranking(p.id, tuple((c.id,) for c in own), "judge:gold") for p, own in sets]
    store.add_rankings(judged)
    gold = candidates(1, k=3, tag="gold ")
    store.add_sets(gold, origin="g", gold={gold[0][0].id: tuple((c.id,) for c in gold[0][1])})
    made = store.export(tmp_path / "one")
    assert (made.rankings, made.judged) == (3, 1)
    said = {one.annotator for _, _, one in read_snapshot(tmp_path / "one")}
    assert said == {"=Ann", "judge:gold"}
    task = store.claim(who)
    store.submit(
        who, task.id, Verdict(tuple((c.id,) for c in task.completions)), revision=task.revision
    )
    assert store.export(tmp_path / "two").judged == 0, "people win"
    (again,) = [one for _, _, one in read_snapshot(tmp_path / "two") if one.revision]
    assert again.revision == 2


def test_the_bytes_depend_on_what_was_said_and_not_on_when(tmp_path, clock):
    """The same verdicts in another order and other batches, at another time."""
    sets = candidates(12, k=3)
    orders = [
        Ranking(p.id, tuple((c.id,) for c in own), who, duration_s=3.0)
        for p, own in sets
        for who in ("judge:gold", "Ben", "安")
        if who == "judge:gold" or len(p.instruction) % 2
    ]
    texts = []
    for seed in range(3):
        rng = random.Random(seed)
        clock.now += 86_400 * seed
        with Store(tmp_path / f"{seed}.db", clock=clock) as store:
            rng.shuffle(sets)
            rng.shuffle(orders)
            store.add_sets(sets, origin=f"test {seed}")
            for at in range(0, len(orders), seed + 1):
                store.add_rankings(orders[at : at + seed + 1])
            store.export(tmp_path / f"{seed}")
        texts.append([(tmp_path / f"{seed}" / name).read_bytes() for name in CANONICAL])
    assert texts[0] == texts[1] == texts[2] and texts[0][0]


def test_people_outrank_judges_on_the_same_answers(store, tmp_path):
    """Equal texts are shown to people once, so theirs is another set of the same answers."""
    prompt = Instruction("Which bird?")
    texts = ("A robin.", " A robin.", "An owl.")
    all_three = [Completion(prompt.id, text, sample=n) for n, text in enumerate(texts)]
    a, _, c = all_three
    sets = [(prompt, all_three), (prompt, [a, c])]
    store.add_sets(sets, origin="test")
    judge = Ranking(prompt.id, tuple((one.id,) for one in all_three), "judge:gold")
    store.add_rankings([judge])
    store.export(tmp_path / "one")
    assert [row for _, _, row in read_snapshot(tmp_path / "one")] == [judge]
    assert [own for _, own in store.unjudged(JudgeIdentity("judge:llm", "x"))] == [[a, c]]
    assert (store.progress(0).sets, store.ranked(sets)) == (1, set())
    person = Ranking(prompt.id, ((c.id,), (a.id,)), "Ann")
    store.add_rankings([person])
    store.export(tmp_path / "two")
    assert [row for _, _, row in read_snapshot(tmp_path / "two")] == [person]
    assert store.ranked(sets) == {prompt.id}


def test_a_replayed_judge_adds_nothing(store, tmp_path):
    """A judge is known by its name and its settings; under other settings it may say otherwise."""
    sets = candidates(3, k=3)
    store.add_sets(sets, origin="test")
    noisy, exact = (JudgeIdentity("judge:gold", name) for name in ("noisy", "exact"))
    first = [Ranking(p.id, tuple((c.id,) for c in own), noisy.annotator) for p, own in sets]
    second = [replace(row, tiers=row.tiers[::-1]) for row in first]
    assert store.add_rankings(first[:2], judge=noisy) == 2
    assert store.add_rankings(first, judge=noisy) == 1, "killed after two, it goes on"
    store.export(tmp_path / "one", judge=noisy)
    assert store.add_rankings(second, judge=noisy) == 0, "it was asked already"
    assert list(store.unjudged(noisy)) == [] and len(list(store.unjudged(exact))) == 3
    assert store.add_rankings(second, judge=exact) == 3
    assert store.add_rankings(first, judge=noisy) == 0, "in whatever order they come"
    store.export(tmp_path / "two", judge=noisy)
    assert (tmp_path / "one" / "rankings.jsonl").read_bytes() == (
        (tmp_path / "two" / "rankings.jsonl").read_bytes()
    )
    store.export(tmp_path / "three")
    tiers = {row.prompt_id: row.tiers for _, _, row in read_snapshot(tmp_path / "three")}
    assert tiers == {row.prompt_id: row.tiers for row in second}, "the newest, unless one is named"
    assert store.figures().counts["judged"] == 3


def test_what_a_judge_said_before_it_was_stopped_is_kept(store):
    sets = candidates(5, k=3)
    store.add_sets(sets, origin="test")

    def ranked():
        for n, (prompt, own) in enumerate(sets):
            if n == 3:
                raise UserError("the budget is spent")
            yield Ranking(prompt.id, tuple((one.id,) for one in own), "judge:llm")

    with pytest.raises(UserError, match="budget"):
        store.add_rankings(ranked(), judge=JudgeIdentity("judge:llm", "x"), batch=2)
    assert store.figures().counts["judged"] == 3


def test_the_run_reads_its_own_texts(store, tmp_path):
    """No database holds a zero byte; the run's rankings keep their ids all the same."""
    prompt = Instruction("Say \0.")
    own = [Completion(prompt.id, text) for text in ("\0", "no")]
    store.add_sets([(prompt, own)], origin="test")
    ranking = Ranking(prompt.id, ((own[1].id,), (own[0].id,)), "judge:gold")
    store.add_rankings([ranking])
    store.export(tmp_path / "one")
    assert read_snapshot(tmp_path / "one", [(prompt, own)]) == [(prompt, own, ranking)]
    ((elsewhere, _, _),) = read_snapshot(tmp_path / "one")
    assert elsewhere.instruction == "Say \ufffd."


def test_a_changed_snapshot_is_refused(store, tmp_path):
    ranked(store)
    store.export(tmp_path / "one")
    file = tmp_path / "one" / "rankings.jsonl"
    file.write_text(file.read_text().replace('"stars":5', '"stars":4', 1))
    with pytest.raises(UserError, match="was changed since it was exported"):
        read_snapshot(tmp_path / "one")
    with pytest.raises(UserError, match="is no snapshot"):
        read_snapshot(tmp_path)
    (tmp_path / "manifest.json").write_text('{"kind": "something else"}')
    with pytest.raises(UserError, match="is no snapshot"):
        read_snapshot(tmp_path)
    assert manifest_of(tmp_path / "pairs.jsonl") is None


def test_datasets_and_this_kit_read_the_pairs(store, tmp_path, monkeypatch):
    ranked(store)
    store.export(tmp_path / "one")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    from datasets import load_dataset

    here = {"cache_dir": str(tmp_path / "cache")}
    pairs = load_dataset(str(tmp_path / "one"), split="train", **here)
    assert len(pairs) == 6 and set(pairs.column_names) == {"prompt", "chosen", "rejected"}
    assert pairs[0]["prompt"][0]["role"] == "user"
    rankings = load_dataset(str(tmp_path / "one"), "rankings", split="train", **here)
    assert len(rankings) == 3 and len(rankings[0]["tiers"]) == 2
    assert {(one.chosen, one.rejected) for one in read_pairs(tmp_path / "one" / "pairs.jsonl")} == {
        (row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in pairs
    }


def test_no_cell_of_the_table_is_a_formula(store, tmp_path):
    ranked(store, 1)
    store.export(tmp_path / "one")
    with (tmp_path / "one" / "rankings.csv").open(newline="") as stream:
        header, row = csv.reader(stream)
    assert row[header.index("annotator")] == "'=Ann" and row[header.index("comment")] == "'+1"
    for cell in ("=1+1", " =1+1", "@SUM(A1)", "-2+3", "\t=1", "+cmd|' /C calc'!A0", "\r=1"):
        (read,) = next(csv.reader([snapshot._csv([cell])]))
        assert read == f"'{cell}"
    assert next(csv.reader([snapshot._csv(["a=b", "", "1.5"])])) == ["a=b", "", "1.5"]


def test_an_export_needs_no_more_memory_for_more_rankings(tmp_path):
    """The rows are made as they are asked for; the peak is far below what they hold together."""

    def row(at):
        own = [{"id": f"{at}-{i}", "text": "word " * 100} for i in range(2)]
        return {
            "id": at,
            "annotator": "Ann",
            "instruction": "x" * 500,
            "input": "",
            "history": [],
            "source": "",
            "completions": own,
            "revision": 0,
            "tiers": [[own[0]["id"]], [own[1]["id"]]],
            "criteria": {},
            "all_bad": False,
            "comment": "",
            "input_method": "",
            "created_ms": 0,
            "duration_ms": 0,
        }

    tracemalloc.start()
    try:
        snapshot.write(
            tmp_path / "big", (row(at) for at in range(20_000)), max_ranking=1, created="now"
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    size = (tmp_path / "big" / "rankings.jsonl").stat().st_size
    assert size > 20e6 and peak < size / 3


def test_claims_go_on_while_a_snapshot_is_written(store, tmp_path, monkeypatch):
    """And the snapshot does not see what was submitted meanwhile."""
    _, who = ranked(store)
    store.add_sets(candidates(3, tag="later "), origin="later")
    real = snapshot.write
    submitted = threading.Event()

    def slow(folder, verdicts, **facts):
        first = next(iter(verdicts))

        def annotate():
            task = store.claim(who)
            store.submit(who, task.id, Verdict(tuple((c.id,) for c in task.completions)))
            submitted.set()

        other = threading.Thread(target=annotate)
        other.start()
        other.join(60)
        assert submitted.is_set(), "a claim had to wait for the export"
        rest = list(verdicts)
        return real(folder, [first, *rest], **facts)

    monkeypatch.setattr(snapshot, "write", slow)
    made = store.export(tmp_path / "one")
    assert (made.rankings, made.max_ranking) == (3, 3)
    assert store.figures().counts["rankings"] == 4


def test_the_turns_of_a_conversation_stand_in_the_prompt(store, tmp_path):
    prompt = Instruction("And then?", "the tale", history=(("Tell me.", "Once ..."),))
    own = [Completion(prompt.id, text) for text in ("A", "B")]
    store.add_sets([(prompt, own)], origin="test")
    store.add_rankings([Ranking(prompt.id, ((own[0].id,), (own[1].id,)), "Ann")])
    store.export(tmp_path / "one")
    (line,) = (tmp_path / "one" / "pairs.jsonl").read_text().splitlines()
    assert [one["content"] for one in json.loads(line)["prompt"]] == [
        "Tell me.",
        "Once ...",
        "And then?\n\nthe tale",
    ]
    ((read, _, _),) = read_snapshot(tmp_path / "one" / "manifest.json")
    assert read == prompt
