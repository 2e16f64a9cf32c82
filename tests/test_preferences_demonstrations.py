"""Better answers that people write, and own verdicts that they revise; on both databases."""

import json

import pytest

from alpaca_rlhf.core.records import Completion
from alpaca_rlhf.data import read_instructions, write_instructions
from alpaca_rlhf.preferences import read_snapshot
from alpaca_rlhf.preferences.assignment import BetterAnswer, Refused, Rules, Verdict
from alpaca_rlhf.preferences.snapshot import read_manifest
from alpaca_rlhf.preferences.store import Store
from alpaca_rlhf.settings import PPO, BestOfK, Evaluate, Inputs, Loop, Rank
from alpaca_rlhf.sources.run_prompts import RunPrompts
from tests.databases import candidates
from tests.model_app import prompts
from tests.test_preferences_store import as_shown, people


def with_better(task, text, edited_from=""):
    shown = as_shown(task)
    return Verdict(shown.tiers, better=BetterAnswer(text, edited_from))


def export(store, folder):
    manifest = store.export(folder)
    lines = {
        name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in ("demonstrations", "demonstration_pairs", "pairs")
    }
    return manifest, lines


def test_a_better_answer_is_counted_apart_and_is_an_instruction(store, tmp_path):
    (ann,) = people(store, 1)
    store.add_sets(candidates(2, k=3), origin="test")
    task = store.claim(ann)
    store.submit(ann, task.id, with_better(task, " Four.\0 ", task.completions[1].id), revision=0)
    other = store.claim(ann)
    store.submit(ann, other.id, as_shown(other), revision=0)

    manifest, lines = export(store, tmp_path / "one")
    assert (manifest.rankings, manifest.pairs) == (2, 6), "as without it"
    assert (manifest.demonstrations, manifest.demonstration_pairs) == (1, 3)
    assert read_manifest(tmp_path / "one") == manifest
    assert all("Four" not in json.dumps(pair) for pair in lines["pairs"])
    assert {pair["rejected"][0]["content"] for pair in lines["demonstration_pairs"]} == {
        answer.text for answer in task.completions
    }
    assert {pair["chosen"][0]["content"] for pair in lines["demonstration_pairs"]} == {
        "Four.\ufffd"
    }
    (row,) = read_instructions(tmp_path / "one" / "demonstrations.jsonl")
    assert (row.instruction, row.output) == (task.prompt.instruction, "Four.\ufffd")
    assert len(read_snapshot(tmp_path / "one")) == 2
    assert store.figures().counts["demonstrations"] == 1

    # What is taken back, or left out, is no instruction any more.
    undone = store.undo(ann, task.id)
    assert undone.better == BetterAnswer("Four.\ufffd", task.completions[1].id)
    assert export(store, tmp_path / "two")[0].demonstrations == 0
    store.submit(ann, task.id, with_better(undone, "Four, surely."), revision=undone.revision)
    (row,) = read_instructions(export_of(store, tmp_path / "three"))
    assert row.output == "Four, surely."
    store.leave_out_person("person 0", actor="test")
    assert export(store, tmp_path / "four")[0].demonstrations == 0
    assert store.figures().counts["demonstrations"] == 0


def export_of(store, folder):
    store.export(folder)
    return folder / "demonstrations.jsonl"


def test_what_is_no_better_answer_is_refused(store):
    ann, ben = people(store, 2)
    store.add_sets(candidates(1), origin="test")
    task = store.claim(ann)
    same = with_better(task, f" {task.completions[2].text}\n")
    for verdict, problem in (
        (same, "same_answer"),
        (with_better(task, "x" * 20_001), "bad_value"),
        (with_better(task, " "), "bad_value"),
        (with_better(task, "x", "another"), "bad_value"),
    ):
        with pytest.raises(Refused) as refused:
            store.submit(ann, task.id, verdict, revision=0)
        assert refused.value.problem == problem
    with pytest.raises(Refused) as refused:
        store.submit(ben, task.id, with_better(task, "mine"), revision=0)
    assert refused.value.problem == "not_yours"
    assert store.figures().counts["demonstrations"] == 0
    # Another text is another verdict, and the same one again is the same.
    store.submit(ann, task.id, with_better(task, "mine"), revision=0)
    assert store.submit(ann, task.id, with_better(task, "mine "), revision=0).counts
    assert not store.submit(ann, task.id, as_shown(task), revision=0).counts
    assert store.figures().counts["demonstrations"] == 1


def test_own_verdicts_come_newest_first_and_are_ones_own(store, clock):
    ann, ben = people(store, 2)
    store.add_sets(candidates(5), origin="test")
    tasks = []
    for _ in range(3):
        task = store.claim(ann)
        ids = [answer.id for answer in task.completions]
        tiers = ((ids[2], ids[0]), (ids[1],), (ids[3],))
        store.submit(ann, task.id, Verdict(tiers, comment="hm"), revision=0)
        tasks.append(task)
        clock.now += 1
    store.skip(ann, store.claim(ann).id)
    assert store.own_verdicts(ben) == []
    newest, second = store.own_verdicts(ann, n=2)
    assert [newest.task, second.task] == [tasks[2].id, tasks[1].id]
    assert newest.tiers == [[2, 0], [1], [3]] and newest.comment == "hm"
    assert newest.best == [tasks[2].completions[place].text for place in (2, 0)]
    (oldest,) = store.own_verdicts(ann, before=second.ranking)
    assert oldest.task == tasks[0].id
    store.undo(ann, oldest.task)
    assert [verdict.task for verdict in store.own_verdicts(ann)] == [newest.task, second.task]


def test_a_repeat_and_its_original_are_never_both_listed(where, clock):
    rules = Rules(gold_rate=0, repeat_rate=0.5, repeat_after=3)
    with Store(where, rules=rules, seed=1, clock=clock) as store:
        store.add_sets(candidates(30), origin="test")
        (ann,) = people(store, 1)
        kinds, prompts = set(), set()
        for _ in range(24):
            task = store.claim(ann)
            kinds.add(task.kind)
            prompts.add(task.prompt.instruction)
            store.submit(ann, task.id, as_shown(task), revision=0)
            clock.now += 1
            listed = store.own_verdicts(ann, n=100)
            assert {verdict.prompt for verdict in listed} == prompts, "however old they are"
            assert len(listed) == len(prompts)
            assert store.own_verdicts(ann, before=listed[-1].ranking) == []
        assert kinds == {"task", "repeat"}


def test_a_verdict_whose_repeat_was_skipped_is_listed_again(where, clock):
    rules = Rules(gold_rate=0, repeat_rate=1, repeat_after=1)
    with Store(where, rules=rules, seed=1, clock=clock) as store:
        store.add_sets(candidates(5), origin="test")
        (ann,) = people(store, 1)
        done = 0
        while (task := store.claim(ann)).kind != "repeat":
            store.submit(ann, task.id, as_shown(task), revision=0)
            done, clock.now = done + 1, clock.now + 1
        assert len(store.own_verdicts(ann)) == done - 1, "it is being judged again"
        store.skip(ann, task.id)
        assert len(store.own_verdicts(ann)) == done


def test_in_a_new_run_their_prompts_are_sfts_and_no_other_splits(tmp_path):
    rows = prompts(41)
    completions = [Completion(rows[0].id, text, "ab12") for text in ("yes", "no")]
    with Store(tmp_path / "p.db", rules=Rules(gold_rate=0), seed=0) as store:
        store.add_sets([(rows[0], completions)], origin="test")
        ann = store.add_annotator("ann", "long enough")
        task = store.claim(ann)
        store.submit(ann, task.id, with_better(task, "Perhaps."), revision=0)
        data = export_of(store, tmp_path / "snapshot")
    write_instructions(tmp_path / "prompts.jsonl", rows)
    loop = Loop(
        base="some/base",
        template="brief",
        out=tmp_path / "run",
        rank=Rank(prompts=5),
        ppo=PPO(batch_size=5, minibatch_size=5),
        best_of_k=BestOfK(prompts=5),
        evaluate=Evaluate(prompts=5),
        inputs=Inputs(data=data, prompts=tmp_path / "prompts.jsonl", judge="human", leaks="drop"),
    )
    splits = RunPrompts(tmp_path / "run", loop).splits
    assert [(row.id, row.output) for row in splits.pop("sft")] == [(rows[0].id, "Perhaps.")]
    elsewhere = {row.id for split in splits.values() for row in split}
    assert rows[0].id not in elsewhere and len(elsewhere) >= 15


def test_an_edited_reply_of_a_chat_is_a_better_answer_until_it_is_taken_back(store, tmp_path):
    ann, ben = people(store, 2)
    prompt, (reply, *_) = candidates(1)[0]
    store.keep_edited_reply(ann, (prompt, [reply]), " Mine.\0 ")
    store.keep_edited_reply(ben, (prompt, [reply]), "Ben's.")
    store.keep_edited_reply(ann, (prompt, [reply]), "Mine, again.")
    manifest, lines = export(store, tmp_path / "one")
    assert (manifest.demonstrations, manifest.demonstration_pairs, manifest.rankings) == (2, 2, 0)
    assert {row["output"] for row in lines["demonstrations"]} == {"Mine, again.", "Ben's."}
    assert {pair["rejected"][0]["content"] for pair in lines["demonstration_pairs"]} == {reply.text}
    assert store.figures().counts["demonstrations"] == 2
    assert len(read_instructions(tmp_path / "one" / "demonstrations.jsonl")) == 2
    assert store.claim(ann) is None, "nobody is asked to rank it"
    store.leave_out_person("person 1", actor="test")
    assert export(store, tmp_path / "two")[0].demonstrations == 1
    store.keep_edited_reply(ann, (prompt, [reply]), None)
    assert export(store, tmp_path / "three")[0].demonstrations == 0
    for text, problem in (
        (f"{reply.text} ", "same_answer"),
        (" ", "bad_value"),
        ("x" * 20_001, "bad_value"),
    ):
        with pytest.raises(Refused) as refused:
            store.keep_edited_reply(ann, (prompt, [reply]), text)
        assert refused.value.problem == problem
    assert store.figures().counts["demonstrations"] == 0


def test_better_answers_of_both_kinds_come_in_an_order_of_their_own(store, tmp_path):
    """The bytes depend on what was said, not on when."""
    (ann,) = people(store, 1)
    store.add_sets(candidates(1), origin="test")
    replies = [(prompt, answers[:1]) for prompt, answers in candidates(3, tag="chat ")]
    for reply in reversed(replies):
        store.keep_edited_reply(ann, reply, "Mine.")
    task = store.claim(ann)
    store.submit(ann, task.id, with_better(task, "Better."), revision=0)
    before = export_of(store, tmp_path / "one").read_bytes()
    for reply in replies:
        store.keep_edited_reply(ann, reply, None)
        store.keep_edited_reply(ann, reply, "Mine.")
    assert export_of(store, tmp_path / "two").read_bytes() == before
    assert before.count(b"\n") == 4
