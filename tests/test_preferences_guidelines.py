"""Guidelines: every version is kept, and each verdict notes the one that was shown."""

import csv
import json

import pytest

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Ranking as Record
from alpaca_rlhf.preferences.assignment import Refused, Verdict
from alpaca_rlhf.preferences.browsing import SetFilter
from alpaca_rlhf.preferences.guidelines import MAX_GUIDELINE_CHARS
from alpaca_rlhf.preferences.judges import JudgeIdentity
from alpaca_rlhf.preferences.schema import Audit, GuidelineRow, Ranking
from alpaca_rlhf.preferences.snapshot import GUIDELINES, RANKINGS, TABLE
from tests.databases import candidates
from tests.test_preferences_store import people, rows


def test_a_version_is_added_only_where_the_text_changes(store):
    assert store.guidelines() is None
    assert store.set_guidelines("  ", actor="annotator:1") is None, "nothing is no version"
    first = store.set_guidelines("# Prefer\n\n- true\n", actor="annotator:1")
    assert (first.text, first.author) == ("# Prefer\n\n- true", "annotator:1")
    assert store.set_guidelines(first.text, actor="annotator:2") == first
    second = store.set_guidelines("", actor="annotator:2")
    assert second.version > first.version and store.guidelines() == second
    assert [row.text for row in rows(store, GuidelineRow)] == [first.text, ""]
    entries = [row.entity for row in rows(store, Audit) if row.action == "guidelines"]
    assert entries == [f"guideline:{first.version}", f"guideline:{second.version}"]
    with pytest.raises(UserError, match="50,000"):
        store.set_guidelines("x" * (MAX_GUIDELINE_CHARS + 1), actor="annotator:1")


def submitted(store, annotator, guideline):
    task = store.claim(annotator)
    tiers = tuple((answer.id,) for answer in task.completions)
    store.submit(annotator, task.id, Verdict(tiers, guideline=guideline), revision=task.revision)
    return task


def test_each_verdict_of_a_person_notes_the_version_that_was_shown(store):
    (ann,) = people(store, 1)
    sets = candidates(4)
    store.add_sets(sets, origin="test")
    submitted(store, ann, None)
    first = store.set_guidelines("Short ones.", actor="test")
    second = store.set_guidelines("True ones.", actor="test")
    submitted(store, ann, first.version)  # on screen since before the second was written
    submitted(store, ann, second.version)
    store.undo(ann)
    prompt, completions = sets[0]
    record = Record(prompt.id, tuple((one.id,) for one in completions), "judge:x")
    store.add_rankings([record], judge=JudgeIdentity("judge:x", "ab12"))
    noted = [(row.guideline, row.withdrawn) for row in rows(store, Ranking)]
    assert noted == [
        (None, False),
        (first.version, False),
        (second.version, False),
        (second.version, True),
        (None, False),
    ]


def test_a_version_that_never_was_is_refused(store):
    (ann,) = people(store, 1)
    store.add_sets(candidates(1), origin="test")
    first = store.set_guidelines("Short ones.", actor="test")
    for version in (first.version + 1, -1):
        with pytest.raises(Refused) as refused:
            submitted(store, ann, version)
        assert refused.value.problem == "bad_value"
    assert rows(store, Ranking) == []


def test_the_version_is_shown_with_the_verdict_and_in_the_table(store, tmp_path):
    (ann,) = people(store, 1)
    store.add_sets(candidates(2), origin="test")
    task = submitted(store, ann, None)
    first = store.set_guidelines("Short ones.", actor="test")
    second_task = submitted(store, ann, first.version)
    second = store.set_guidelines("True ones.", actor="test")
    assert store.guideline_versions() == [second, first]
    sets = [store.opened_set(listed.id) for listed in store.sets(SetFilter(), n=9)]
    noted = {opened.prompt.id: opened.statements[0].guideline for opened in sets}
    assert noted == {task.prompt.id: None, second_task.prompt.id: first.version}
    store.export(tmp_path / "snapshot")
    with (tmp_path / "snapshot" / TABLE).open(newline="", encoding="utf-8") as stream:
        table = list(csv.DictReader(stream))
    assert sorted(row["guidelines"] for row in table) == ["", str(first.version)]
    lines = (tmp_path / "snapshot" / RANKINGS).read_text(encoding="utf-8")
    assert "guideline" not in lines, "its bytes depend on what was ranked alone"
    texts = (tmp_path / "snapshot" / GUIDELINES).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in texts] == [
        {"version": first.version, "text": "Short ones."},
        {"version": second.version, "text": "True ones."},
    ]
