"""Sets are found by what was said, and an open one tells all of it; on both databases."""

import pytest
from sqlalchemy import event, insert

from alpaca_rlhf.core.records import Completion, Instruction, Ranking
from alpaca_rlhf.preferences.assignment import Refused, Verdict
from alpaca_rlhf.preferences.browsing import SetFilter
from alpaca_rlhf.preferences.schema import Audit
from alpaca_rlhf.preferences.store import Store
from tests.databases import candidates
from tests.test_preferences_store import people

TEXTS = ["The lemon is 100% yellow", "The sea_side is wide", "A dog barks"]


@pytest.fixture
def said(store, clock):
    """Three sets: one ranked twice with a comment and by a judge, one skipped, one flagged."""
    rows = []
    for text in TEXTS:
        prompt = Instruction(f"Say: {text}", source="test")
        answers = [Completion(prompt.id, f"{text} {j}", "ab12", sample=j) for j in range(3)]
        rows.append((prompt, answers))
        store.add_sets(rows[-1:], origin="here")
    ann, ben = people(store, 2)
    task = store.claim(ann)
    order = sorted(answer.id for answer in task.completions)
    tiers = ((order[0],), (order[1], order[2]))
    stars = {order[0]: {"relevance": 4}}
    store.submit(ann, task.id, Verdict(tiers), revision=0)
    clock.now += 60
    store.undo(ann, task.id)
    clock.now += 60
    store.submit(ann, task.id, Verdict(tiers, stars, comment="Who KNOWS why?"), revision=2)
    prompt, answers = rows[0]
    judged = tuple((answer.id,) for answer in answers)
    store.add_rankings([Ranking(prompt.id, judged, "judge:x")])
    task = store.claim(ann)
    store.skip(ann, task.id, "too salty for me")
    task = store.claim(ben)
    if task.prompt.instruction == f"Say: {TEXTS[1]}":
        store.submit(ben, task.id, Verdict(((task.completions[0].id,), *(
            (answer.id,) for answer in task.completions[1:]))), revision=0)  # fmt: skip
        task = store.claim(ben)
    while task.prompt.instruction != f"Say: {TEXTS[2]}":
        store.skip(ben, task.id)
        task = store.claim(ben)
    store.flag(ben, task.id, "spam", "barking mad", completion=task.completions[1].id)
    return rows, order, tiers


def prompts(store, **conditions):
    found = store.sets(SetFilter(**conditions))
    return [listed.prompt.removeprefix("Say: ") for listed in found]


def test_sets_are_found_by_what_was_said(store, said):
    assert prompts(store) == TEXTS[::-1], "the newest first"
    lemon, sea, dog = TEXTS
    assert prompts(store, search="LEMON") == [lemon]
    assert prompts(store, search="barks 2") == [dog], "an answer"
    assert prompts(store, search="knows WHY") == [lemon], "a comment"
    assert prompts(store, search="barking mad") == [dog], "a flag"
    assert prompts(store, search="Salty") == [sea], "the reason for a skip"
    assert prompts(store, search="0%") == [lemon], "no pattern"
    assert prompts(store, search="_side") == [sea]
    assert prompts(store, search="%") == [lemon]
    assert prompts(store, search="'; DROP TABLE prompt; --") == []
    assert prompts(store, state="commented") == [lemon]
    assert prompts(store, state="flagged") == [dog]
    assert sea in prompts(store, state="skipped")
    assert prompts(store, annotator="judge:x") == [lemon]
    assert prompts(store, annotator="person 1", state="flagged") == [dog]
    assert prompts(store, annotator="nobody") == []
    assert lemon in prompts(store, state="ranked") and lemon not in prompts(store, state="waiting")
    assert dog in prompts(store, state="waiting")
    store.leave_out_set(store.sets(SetFilter(search="dog"))[0].id, actor="test")
    assert prompts(store, state="left_out") == [dog] and dog not in prompts(store, state="waiting")


def test_earlier_turns_and_the_system_text_are_searched(store):
    turns = (("Wie heißt das Meer?", 'It is "the Baltic"\nor 波罗的海.'),)
    texts = {
        "with": Instruction("And its depth?", system="Answer as a Sailor.", history=turns),
        "without": Instruction("And its length?"),
    }
    for prompt in texts.values():
        answers = [Completion(prompt.id, f"{j} m", "ab12", sample=j) for j in range(2)]
        store.add_sets([(prompt, answers)], origin="here")
    for words in ("heißt das", "baltic", '"the Baltic"', "波罗的海", "a SAILOR", "Meer?"):
        assert prompts(store, search=words) == ["And its depth?"], words
    for words in ('Meer?", "It is', "[", "],", '"', "sea", "\\n"):
        expected = ["And its depth?"] if words == '"' else []
        assert prompts(store, search=words) == expected, f"{words}: nobody wrote it"


def test_every_reason_for_a_skip_is_searched_not_only_the_newest(store):
    store.add_sets(candidates(30), origin="here")
    (ann,) = people(store, 1)
    first = store.claim(ann)
    store.skip(ann, first.id, "too SALTY")
    later = store.claim(ann)
    skips = [
        {"at_ms": 1, "actor": "annotator:1", "action": "skip", "after": {"reason": f"number {at}"}}
        for at in range(1500)
    ]
    with store.database.writing() as session:
        session.execute(
            insert(Audit), [{**skip, "entity": f"assignment:{later.id}"} for skip in skips]
        )
    assert prompts(store, search="salty") == [first.prompt.instruction]
    assert prompts(store, search="number 1499") == [later.prompt.instruction]


def test_pages_follow_each_other(store, said):
    first = store.sets(SetFilter(), n=2)
    rest = store.sets(SetFilter(), before=first[-1].id, n=2)
    assert [row.prompt for row in (*first, *rest)] == [f"Say: {text}" for text in TEXTS[::-1]]


def test_an_open_set_tells_all_that_was_said(store, said):
    _, order, tiers = said
    (lemon,) = store.sets(SetFilter(search="lemon"))
    assert (lemon.verdicts, lemon.judged, lemon.comments) == (1, 1, 1)
    opened = store.opened_set(lemon.id)
    assert sorted(answer.id for answer in opened.answers) == order and opened.origin == "here"
    by_ann = [row for row in opened.statements if row.annotator == "person 0"]
    assert [row.kind for row in by_ann] == ["earlier", "withdrawn", "verdict"]
    assert by_ann[2].tiers == tiers and by_ann[2].text == "Who KNOWS why?"
    assert by_ann[2].criteria == {order[0]: {"relevance": 4}}
    (judged,) = (row for row in opened.statements if row.annotator == "judge:x")
    assert (judged.kind, judged.task_kind) == ("verdict", "judge")

    (dog,) = store.sets(SetFilter(state="flagged"))
    (flag,) = (row for row in store.opened_set(dog.id).statements if row.kind == "flag")
    assert (flag.annotator, flag.reason, flag.text) == ("person 1", "spam", "barking mad")
    assert flag.completion in {answer.id for answer in store.opened_set(dog.id).answers}
    (sea,) = store.sets(SetFilter(search="sea_side"))
    skips = [row for row in store.opened_set(sea.id).statements if row.kind == "skip"]
    assert ("person 0", "too salty for me") in [(row.annotator, row.text) for row in skips]
    with pytest.raises(Refused):
        store.opened_set(10**9)


def test_a_search_reads_of_each_set_only_what_belongs_to_it(tmp_path):
    """A store of a million rankings has three million answers: none is read once for every set."""
    statements = []
    with Store(tmp_path / "p.db") as store:
        store.add_sets(candidates(3), origin="test")
        event.listen(
            store.database._engine,
            "before_cursor_execute",
            lambda *call: statements.append((call[2], call[3])),
        )
        store.sets(SetFilter(search="words of nobody"))
        query, parameters = next(call for call in statements if "FROM candidate_set" in call[0])
        with store.database.reading() as session:
            plan = session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {query}", parameters)
            steps = [row[3] for row in plan]
    assert [step for step in steps if step.startswith("SCAN")] == [
        "SCAN candidate_set",
        "SCAN audit USING INDEX ix_audit_skip",
    ]
