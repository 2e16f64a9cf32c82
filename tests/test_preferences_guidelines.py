"""Guidelines: every version is kept, and each verdict notes the one it was given under."""

import pytest

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Ranking as Record
from alpaca_rlhf.preferences.guidelines import MAX_GUIDELINE_CHARS
from alpaca_rlhf.preferences.judges import JudgeIdentity
from alpaca_rlhf.preferences.schema import Audit, GuidelineRow, Ranking
from tests.databases import candidates
from tests.test_preferences_leaving_out import rank
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


def test_each_verdict_of_a_person_notes_its_version(store):
    (ann,) = people(store, 1)
    sets = candidates(4)
    store.add_sets(sets, origin="test")
    rank(store, ann, 1)
    first = store.set_guidelines("Short ones.", actor="test")
    rank(store, ann, 1)
    second = store.set_guidelines("True ones.", actor="test")
    rank(store, ann, 1)
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
