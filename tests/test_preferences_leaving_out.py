"""Leaving out: it counts nowhere, and counts again once it is taken in; on both databases."""

import pytest

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Ranking
from alpaca_rlhf.preferences import read_snapshot
from alpaca_rlhf.preferences.assignment import Rules, Verdict
from alpaca_rlhf.preferences.schema import Annotator, Assignment, Audit, CandidateSet
from alpaca_rlhf.preferences.standing import Standing
from alpaca_rlhf.preferences.store import Store
from tests.databases import candidates
from tests.test_preferences_store import as_shown, people, places_add_up, rows

BY = {"actor": "test"}


@pytest.fixture
def shared(where):
    """A database in which two people rank every set, and nothing is left to chance."""
    with Store(where, rules=Rules(second_share=1, gold_rate=0, repeat_rate=0), seed=0) as store:
        yield store


def rank(store, who, n, *, reverse=False):
    for _ in range(n):
        task = store.claim(who)
        ids = sorted(answer.id for answer in task.completions)
        tiers = tuple((key,) for key in (ids[::-1] if reverse else ids))
        store.submit(who, task.id, Verdict(tiers), revision=task.revision)


def canonical(store, folder):
    store.export(folder)
    return [(folder / name).read_bytes() for name in ("rankings.jsonl", "pairs.jsonl")]


def annotators(store, folder):
    store.export(folder)
    return sorted(ranking.annotator for _, _, ranking in read_snapshot(folder))


def state(store):
    """Everything that figures are made of."""
    figures = store.figures()
    sets = [(one.claimed, one.verdicts, one.left_out) for one in rows(store, CandidateSet)]
    return figures, sets


def test_a_person_left_out_counts_nowhere_and_counts_again(shared, tmp_path):
    ann, bob = people(shared, 2)
    shared.add_sets(candidates(30, k=3), origin="test")
    rank(shared, ann, 30)
    rank(shared, bob, 30, reverse=True)
    before, bytes_before = state(shared), canonical(shared, tmp_path / "before")
    assert before[0].agreement.n >= 30

    change = shared.leave_out_person("person 1", reason="guesses", **BY)
    assert (change.rankings, change.changed) == (30, True)
    found = shared.figures()
    assert (found.counts["rankings"], found.counts["pairs"]) == (30, 30 * 3)
    assert found.agreement.n == 0 and found.last_hour == 30
    assert [n for _, n in found.by_day] == [30]
    assert [(one.name, one.rankings, one.left_out) for one in found.people] == [
        ("person 0", 30, False),
        ("person 1", 30, True),
    ]
    assert annotators(shared, tmp_path / "without") == ["person 0"] * 30
    assert shared.progress(ann).all_rankings == 30
    assert shared.claim(bob) is None and shared.progress(bob).mine_left == 0
    assert {one.claimed for one in rows(shared, CandidateSet)} <= {0, 1}, "their places are free"

    assert not shared.leave_out_person("person 1", **BY).changed, "twice is once"
    shared.leave_out_person("person 1", undo=True, **BY)
    assert state(shared) == before
    assert canonical(shared, tmp_path / "after") == bytes_before
    places_add_up(shared)
    audit = [(one.action, one.after) for one in rows(shared, Audit) if one.actor == "test"]
    assert audit == [
        ("leave_out", {"left_out": True, "rankings": 30, "reason": "guesses"}),
        ("take_in", {"left_out": False, "rankings": 30, "reason": ""}),
    ]


def test_what_somebody_does_while_left_out_is_kept_and_counts_later(shared):
    """Submits of open tasks, undos, and places, in any order."""
    ann, bob = people(shared, 2)
    shared.add_sets(candidates(3, k=2), origin="test")
    rank(shared, ann, 1)
    open_task, second = shared.claim(ann), None
    shared.leave_out_person("person 0", **BY)
    shared.submit(ann, open_task.id, as_shown(open_task), revision=0)
    assert shared.figures().counts["rankings"] == 0 and shared.standing().ranked == 0
    undone = shared.undo(ann)
    assert undone.id == open_task.id
    second = shared.submit(ann, undone.id, as_shown(undone), revision=undone.revision)
    assert not second.already
    rank(shared, bob, 3)
    assert shared.claim(bob) is None and shared.standing() == Standing(ranked=3)
    shared.leave_out_person("person 0", undo=True, **BY)
    found = shared.figures()
    assert (found.counts["rankings"], found.agreement.n) == (5, 2)
    places_add_up(shared)


def test_a_set_left_out_counts_nowhere_and_goes_to_nobody(shared, tmp_path):
    ann, bob = people(shared, 2)
    sets = candidates(2, k=3)
    shared.add_sets(sets, origin="test")
    shared.add_rankings([Ranking(sets[0][0].id, tuple((c.id,) for c in sets[0][1]), "judge:x")])
    rank(shared, ann, 2)
    task = shared.claim(bob)
    (number,) = [one.candidate_set_id for one in rows(shared, Assignment) if one.id == task.id]
    before, bytes_before = state(shared), canonical(shared, tmp_path / "before")
    change = shared.leave_out_set(number, **BY)
    assert change.changed and change.rankings in (1, 2)
    shared.submit(bob, task.id, as_shown(task), revision=0)  # it was before them already
    rank(shared, bob, 1)
    found = shared.figures()
    assert (found.counts["rankings"], found.counts["left_out"]) == (2, 1)
    assert found.counts["judged"] == (0 if number == 1 else 1)
    assert shared.standing() == Standing(ranked=1, closed=1)
    assert annotators(shared, tmp_path / "without") == ["person 0", "person 1"]
    (cat,) = [shared.add_annotator("cat", "long enough")]
    assert shared.claim(cat) is None
    shared.undo(bob)
    shared.leave_out_set(number, undo=True, **BY)
    shared.undo(bob, task.id)
    assert state(shared)[0].counts == before[0].counts | {"open_places": 0}, "both are before bob"
    assert canonical(shared, tmp_path / "after") == bytes_before
    places_add_up(shared)


def test_where_the_only_person_is_left_out_a_judge_counts_again(shared, tmp_path):
    (ann,) = people(shared, 1)
    ((prompt, completions),) = sets = candidates(1, k=2)
    shared.add_sets(sets, origin="test")
    shared.add_rankings([Ranking(prompt.id, tuple((c.id,) for c in completions), "judge:x")])
    rank(shared, ann, 1)
    assert annotators(shared, tmp_path / "one") == ["person 0"]
    shared.leave_out_person("person 0", **BY)
    assert annotators(shared, tmp_path / "two") == ["judge:x"] and not shared.ranked(sets)
    shared.leave_out_person("judge:x", **BY)
    assert annotators(shared, tmp_path / "three") == []
    shared.leave_out_person("person 0", undo=True, **BY)
    assert annotators(shared, tmp_path / "four") == ["person 0"]


def test_a_deactivated_persons_work_stays_unless_it_is_left_out(shared, tmp_path):
    ann, _ = people(shared, 2)
    shared.add_sets(candidates(2, k=2), origin="test")
    rank(shared, ann, 2)
    shared.change_annotator(ann, active=False, actor="test")
    assert annotators(shared, tmp_path / "one") == ["person 0"] * 2
    shared.leave_out_person("person 0", **BY)
    assert annotators(shared, tmp_path / "two") == []


def test_people_below_a_share_of_gold_questions_are_found(where):
    with Store(where, rules=Rules(gold_rate=1, repeat_rate=0), seed=0) as store:
        gold = candidates(6, k=2, tag="gold ")
        orders = {prompt.id: tuple((c.id,) for c in own) for prompt, own in gold}
        store.add_sets(gold, origin="gold", gold=orders)
        for name, wrong in (("good", 0), ("half", 3), ("few", 1)):
            who = store.add_annotator(name, "long enough")
            for at in range(1 if name == "few" else 6):
                task = store.claim(who)
                order = orders[task.prompt.id]
                store.submit(who, task.id, Verdict(order[::-1] if at < wrong else order))
        assert store.below_gold_rate(0.7, min_asked=5) == ["half"]
        assert store.below_gold_rate(0.5, min_asked=5) == [], "exactly half is not below half"
        assert store.below_gold_rate(1, min_asked=1) == ["few", "half"]
        store.leave_out_person("few", **BY)
        changes = store.leave_out_below_gold(1, min_asked=1, actor="annotator:1", reason="gold")
        assert [(change.name, change.changed) for change in changes] == [
            ("few", False),
            ("half", True),
        ]
        assert store.left_out() == ["few", "half"]
        entry = [row for row in rows(store, Audit) if row.action == "leave_out"][-1]
        assert (entry.actor, entry.after["reason"]) == ("annotator:1", "gold")


def test_votes_of_somebody_left_out_do_not_count(shared):
    ann, _ = people(shared, 2)
    ((prompt, completions),) = sets = candidates(1, k=2)
    shared.add_completions(sets)
    sides = (("sft", completions[0].id), ("ppo", completions[1].id))
    shared.vote(ann, shared.battle(ann, prompt.id, sides).round, "left")
    assert len(shared.scores()) == 1
    shared.leave_out_person("person 0", **BY)
    assert shared.scores() == []


def test_nobody_and_no_set_of_this_name_is_refused(shared):
    people(shared, 2)
    with pytest.raises(UserError, match=r"'persn 1': there is no annotator .* person 1"):
        shared.leave_out_person("persn 1", **BY)
    with pytest.raises(UserError, match="there is no candidate set 7"):
        shared.leave_out_set(7, **BY)
    assert not [one for one in rows(shared, Annotator) if one.left_out]


# --- ranked, skipped, closed, waiting ---------------------------------------------------------


def test_a_skip_by_a_lone_annotator_holds_up_nothing(shared):
    (ann,) = people(shared, 1)
    sets = candidates(4, k=2)
    ids = [prompt.id for prompt, _ in sets]
    assert set(shared.statuses(ids).values()) == {"waiting"}, "not even in the store"
    shared.add_sets(sets, origin="test")
    rank(shared, ann, 1)
    shared.skip(ann, shared.claim(ann).id, "unclear")
    shared.flag(ann, shared.claim(ann).id, "spam")
    assert shared.standing() == Standing(ranked=1, skipped=2, waiting=1)
    shared.retire(4, actor="test")
    assert shared.standing() == Standing(ranked=1, skipped=2, closed=1)
    assert Standing.of(shared.statuses(ids).values()) == shared.standing()
    assert shared.claim(ann) is None and shared.progress(ann).mine_left == 0


def test_a_skipped_prompt_that_somebody_else_has_or_ranked_is_not_skipped(shared, clock):
    ann, bob = people(shared, 2)
    shared.add_sets(candidates(1, k=2), origin="test")
    shared.skip(ann, shared.claim(ann).id)
    assert shared.standing() == Standing(skipped=1)
    task = shared.claim(bob)
    assert shared.standing() == Standing(waiting=1)
    shared.submit(bob, task.id, as_shown(task))
    assert shared.standing() == Standing(ranked=1)


def test_enough_by_hand():
    some = Standing(ranked=3, skipped=2, closed=1, waiting=4)
    assert (some.prompts, some.missing(None), some.missing(3), some.missing(9)) == (10, 4, 0, 6)
    assert Standing(skipped=2).missing(None) == 1, "nothing at all is not enough"
    assert Standing(ranked=1, skipped=2).missing(None) == 0
    assert some.line() == "3 of 10 prompts ranked, 2 skipped, 1 closed, 4 waiting"


# --- counters do not tell gold questions ------------------------------------------------------


def test_counters_move_alike_whatever_the_kind_of_a_task(where):
    with Store(where, rules=Rules(second_share=0, gold_rate=0.4, repeat_rate=0), seed=1) as store:
        who = store.add_annotator("ann", "long enough")
        store.add_sets(candidates(6, k=2), origin="test")
        gold = candidates(4, k=2, tag="gold ")
        orders = {prompt.id: tuple((c.id,) for c in own) for prompt, own in gold}
        store.add_sets(gold, origin="gold", gold=orders)

        def shown():
            mine = store.progress(who)
            return mine.mine, mine.mine_today, mine.mine_last_hour, mine.mine_left

        seen, kinds = [shown()], []
        while (task := store.claim(who)) is not None:
            seen.append(shown())
            store.submit(who, task.id, as_shown(task))
            seen.append(shown())
            kinds.append(task.kind)
        assert sorted(kinds) == ["gold"] * 4 + ["task"] * 6
        for n, (before, claimed, after) in enumerate(
            zip(seen[:-1:2], seen[1::2], seen[2::2], strict=True)
        ):
            assert before == claimed == (n, n, n, 10 - n)
            assert after == (n + 1, n + 1, n + 1, 9 - n)


@pytest.mark.parametrize("seed", range(4))
def test_the_number_of_tasks_left_falls_alike_for_repeats(where, seed):
    """Whoever watches it learns of no repeat while tasks are left, and sees 0 in the end."""
    rules = Rules(second_share=0, gold_rate=0.1, repeat_rate=0.25, repeat_after=3)
    with Store(where, rules=rules, seed=seed) as store:
        who = store.add_annotator("ann", "long enough")
        store.add_sets(candidates(24, k=2), origin="test")
        gold = candidates(2, k=2, tag="gold ")
        orders = {prompt.id: tuple((c.id,) for c in own) for prompt, own in gold}
        store.add_sets(gold, origin="gold", gold=orders)
        left, kinds = [], []
        while store.progress(who).mine_left:
            left.append(store.progress(who).mine_left)
            task = store.claim(who)
            assert task is None or store.progress(who).mine_left == left[-1], (
                "a claim tells nothing"
            )
            if task is None:
                break
            store.submit(who, task.id, as_shown(task))
            kinds.append(task.kind)
        assert kinds.count("task") == 24 and kinds.count("repeat") > 2
        last = max(at for at, kind in enumerate(kinds) if kind != "repeat")
        assert left[: last + 1] == [left[0] - at for at in range(last + 1)]


def test_remarks_are_found_newest_first(shared):
    ann, _ = people(shared, 2)
    shared.add_sets(candidates(5, k=2), origin="test")
    for at in range(2):
        task = shared.claim(ann)
        order = tuple((answer.id,) for answer in task.completions)
        shared.submit(ann, task.id, Verdict(order, comment=f"number {at}"))
    shared.skip(ann, shared.claim(ann).id, "unclear")
    shared.skip(ann, shared.claim(ann).id)
    assert [(one.text, one.annotator) for one in shared.comments()] == [
        ("number 1", "person 0"),
        ("number 0", "person 0"),
    ]
    (older,) = shared.comments(before=shared.comments()[0].id)
    assert older.text == "number 0" and older.prompt.startswith("What is")
    assert [one.text for one in shared.skips()] == ["unclear"], "a skip without a reason is none"
    shared.undo(ann)
    assert [one.text for one in shared.comments()] == ["number 0"], "taken back"
