"""The number of people who rank a set, and who gets which: changed by the admin, held at once."""

from dataclasses import replace

import pytest

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.preferences.assignment import Overlap, Rules, Verdict
from alpaca_rlhf.preferences.handing_out import Limit, Origin
from alpaca_rlhf.preferences.schema import Audit, CandidateSet, OverlapRow
from alpaca_rlhf.preferences.store import Store
from tests.databases import candidates
from tests.test_preferences_leaving_out import rank
from tests.test_preferences_store import as_shown, people, places_add_up, rows

BY = {"actor": "annotator:1"}


def targets(store):
    return [row.target for row in rows(store, CandidateSet)]


def test_another_overlap_holds_for_sets_that_are_there_and_for_those_that_come(store):
    store.add_sets(candidates(200), origin="test")
    assert store.overlap() == Overlap(0.2, 2)
    shared = {row.key for row in rows(store, CandidateSet) if row.target == 2}
    assert 20 < len(shared) < 60
    changed = store.set_overlap(Overlap(0.5, 3), **BY)
    after = {row.key: row.target for row in rows(store, CandidateSet)}
    more = {key for key, target in after.items() if target == 3}
    assert set(after.values()) == {1, 3} and shared < more and 70 < len(more) == changed < 130
    store.add_sets(candidates(200, tag="later "), origin="test")
    assert 150 < targets(store).count(3) < 250
    assert store.set_overlap(Overlap(0, 2), **BY) > 0 and set(targets(store)) == {1}
    store.set_overlap(Overlap(1, 2), **BY)
    assert set(targets(store)) == {2}
    assert store.set_overlap(Overlap(1, 2), **BY) == 0, "nothing changes, nothing is noted"
    audit = [(row.entity, row.before, row.after) for row in rows(store, Audit)]
    assert len(audit) == len(rows(store, OverlapRow)) == 3
    assert audit[0][1:] == (
        {"share": 0.2, "people": 2},
        {"share": 0.5, "people": 3, "sets": changed},
    )


def test_it_survives_a_restart(where):
    with Store(where) as store:
        store.set_overlap(Overlap(1, 3), **BY)
    with Store(where) as store:
        store.add_sets(candidates(5), origin="test")
        assert store.overlap() == Overlap(1, 3) and set(targets(store)) == {3}


@pytest.mark.parametrize(
    "wrong", [Overlap(-0.1, 2), Overlap(1.1, 2), Overlap(0.5, 1), Overlap(0.5, 10)]
)
def test_what_is_no_overlap_is_refused(store, wrong):
    with pytest.raises(UserError, match="between 0 and 100%"):
        store.set_overlap(wrong, **BY)
    assert rows(store, Audit) == []


def test_nobody_loses_a_place_and_a_claim_honours_it_at_once(where):
    rules = Rules(second_share=1, gold_rate=0, repeat_rate=0)
    with Store(where, rules=rules, seed=0) as store:
        ann, bob, eve = people(store, 3)
        store.add_sets(candidates(2), origin="test")
        rank(store, ann, 2)
        open_task = store.claim(bob)
        store.set_overlap(Overlap(0, 2), **BY)
        # The set that two have keeps both places; the other one needs nobody any more.
        assert sorted(targets(store)) == [1, 2] and store.progress(eve).mine_left == 0
        assert store.claim(eve) is None
        store.submit(bob, open_task.id, as_shown(open_task), revision=0)
        assert store.claim(bob) is None
        store.set_overlap(Overlap(1, 3), **BY)
        assert store.progress(eve).mine_left == 2 and store.progress(bob).mine_left == 1
        rank(store, eve, 2)
        rank(store, bob, 1)
        assert [store.claim(who) for who in (ann, bob, eve)] == [None] * 3
        assert store.figures().counts["rankings"] == 6
        places_add_up(store)


def test_sets_for_judges_alone_and_gold_questions_get_no_places(store):
    prompt, completions = candidates(1)[0]
    gold, answers = candidates(1, tag="gold ")[0]
    alike = [replace(completion, text="same") for completion in completions]
    store.add_sets([(prompt, alike)], origin="test")
    order = tuple((completion.id,) for completion in answers)
    store.add_sets([(gold, answers)], origin="gold", gold={gold.id: order})
    assert store.set_overlap(Overlap(1, 9), **BY) == 0 and targets(store) == [0, 0]


@pytest.fixture
def two_origins(where):
    """A database with three sets of each of two origins, and gold questions of a third."""
    with Store(where, rules=Rules(second_share=1, gold_rate=0, repeat_rate=0), seed=0) as store:
        for origin in ("run/sft", "run/ppo"):
            store.add_sets(candidates(3, tag=f"{origin} "), origin=origin)
        yield store


def prompts_ranked(store, who):
    """The prompts of all tasks that somebody gets, which they rank."""
    prompts = []
    while (task := store.claim(who)) is not None:
        prompts.append(task.prompt.instruction)
        store.submit(who, task.id, as_shown(task), revision=task.revision)
    return prompts


def test_somebody_gets_the_sets_of_some_origins_alone(two_origins):
    ann, bob = people(two_origins, 2)
    assert two_origins.origins() == [Origin("run/ppo", 3), Origin("run/sft", 3)]
    two_origins.set_origins("person 0", ["run/ppo"], **BY)
    assert two_origins.limits() == [Limit("person 0", ("run/ppo",))]
    assert two_origins.progress(ann).mine_left == 3
    assert two_origins.progress(bob).mine_left == 6
    mine = prompts_ranked(two_origins, ann)
    assert len(mine) == 3 and all(text.startswith("run/ppo") for text in mine)
    assert len(prompts_ranked(two_origins, bob)) == 6
    two_origins.set_origins("person 0", None, **BY)
    assert len(prompts_ranked(two_origins, ann)) == 3 and two_origins.limits() == []
    places_add_up(two_origins)
    audit = [row for row in rows(two_origins, Audit) if row.action == "origins"]
    assert [(row.before, row.after) for row in audit] == [
        ({"origins": None}, {"origins": ["run/ppo"]}),
        ({"origins": ["run/ppo"]}, {"origins": None}),
    ]


def test_somebody_without_tasks_gets_none_and_what_is_open_may_be_submitted(two_origins):
    ann, bob = people(two_origins, 2)
    task = two_origins.claim(ann)
    two_origins.set_origins("person 0", [], **BY)
    assert two_origins.claim(ann) is None and two_origins.progress(ann).mine_left == 0
    two_origins.submit(ann, task.id, as_shown(task), revision=0)
    assert two_origins.figures().counts["rankings"] == 1, "it counts"
    prompt, completions = candidates(1, tag="chat ")[0]
    two_origins.add_sets([(prompt, completions)], origin="run/chat")
    keys = [completion.id for completion in completions]
    assert not two_origins.reserve(ann, prompt.id, keys)
    assert two_origins.reserve(bob, prompt.id, keys)
    assert len(prompts_ranked(two_origins, bob)) == 7


def test_an_open_task_of_another_origin_is_not_given_again(two_origins):
    (ann,) = people(two_origins, 1)
    task = two_origins.claim(ann)
    other = "run/ppo" if task.prompt.instruction.startswith("run/sft") else "run/sft"
    two_origins.set_origins("person 0", [other], **BY)
    assert two_origins.claim(ann).prompt.instruction.startswith(other)
    assert two_origins.progress(ann).mine_left == 3
    assert len(prompts_ranked(two_origins, ann)) == 3


def test_whoever_is_limited_to_some_sources_gets_gold_questions_too(where, clock):
    """Else nobody who is limited could ever fall below the share of gold questions to pass."""
    rules = Rules(second_share=0, gold_rate=0.5, repeat_rate=0, lease_s=60)
    with Store(where, rules=rules, seed=0, clock=clock) as store:
        ann, bob = people(store, 2)
        store.add_sets(candidates(3, tag="run/ppo "), origin="run/ppo")
        store.add_sets(candidates(2, tag="run/sft "), origin="run/sft")
        gold = candidates(4, tag="gold ")
        known = {prompt.id: tuple((c.id,) for c in answers) for prompt, answers in gold}
        store.add_sets(gold, origin="gold", gold=known)
        store.set_origins("person 0", ["run/ppo"], **BY)
        store.set_origins("person 1", ["run/sft"], **BY)
        assert store.progress(ann).mine_left == 3 + 4
        kinds = []
        while (task := store.claim(ann)) is not None:
            assert store.claim(ann).id == task.id, "a reload shows the same one"
            assert store.progress(ann).mine_left == 7 - len(kinds)
            clock.now += 61
            store.claim(bob)  # ends ann's lease; what she left comes again in its turn
            task = store.claim(ann)
            wrong = Verdict(tuple(reversed(known.get(task.prompt.id, as_shown(task).tiers))))
            store.submit(ann, task.id, wrong, revision=task.revision)
            kinds.append(task.kind)
        assert sorted(kinds) == ["gold"] * 4 + ["task"] * 3
        assert store.below_gold_rate(0.5, min_asked=4) == ["person 0"]
        store.set_origins("person 1", [], **BY)
        assert store.claim(bob) is None, "no tasks at all are no gold questions either"


def test_only_people_and_origins_that_are_there(two_origins):
    people(two_origins, 1)
    for name, origins in (("nobody", []), ("person 0", ["elsewhere"]), ("judge:x", [])):
        with pytest.raises(UserError):
            two_origins.set_origins(name, origins, **BY)
    assert two_origins.limits() == []
