"""Prompts that an admin adds: kept once, audited, and there after a restart."""

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.preferences.schema import AddedPrompt, Audit
from alpaca_rlhf.preferences.store import Store
from tests.databases import candidates
from tests.test_preferences_store import rows


def test_added_prompts_are_there_once_in_their_order_with_an_audit_row(store, clock):
    first = [Instruction("Name a tree.", output="Oak."), Instruction("Name a bird.", "A blue one.")]
    assert store.add_prompts(first, actor="annotator:1", refused={"near.ppo": 2}) == 2
    clock.now += 5
    again = [first[1], Instruction("Name a fish."), Instruction("Name a fish.")]
    assert store.add_prompts(again, actor="annotator:2", refused={}) == 1
    kept = store.added_prompts()
    assert [prompt.instruction for prompt in kept] == [
        "Name a tree.",
        "Name a bird.",
        "Name a fish.",
    ]
    assert [prompt.id for prompt in kept[:2]] == [prompt.id for prompt in first]
    assert all(prompt.output is None and prompt.source == "upload" for prompt in kept)
    entries = rows(store, AddedPrompt)
    assert [row.author for row in entries] == ["annotator:1", "annotator:1", "annotator:2"]
    assert entries[2].created_ms - entries[0].created_ms == 5000
    audit = [(row.actor, row.after) for row in rows(store, Audit) if row.action == "add_prompts"]
    assert audit == [
        ("annotator:1", {"added": 2, "refused": {"near.ppo": 2}}),
        ("annotator:2", {"added": 1, "refused": {}}),
    ]


def test_one_with_a_candidate_set_is_answered(store):
    (answered,) = candidates(1)
    waiting = Instruction("Name a tree.")
    store.add_prompts([answered[0], waiting], actor="annotator:1", refused={})
    assert len(store.added_prompts(unanswered=True)) == 2
    store.add_completions([answered])  # which nobody is to rank
    assert len(store.added_prompts(unanswered=True)) == 2
    store.add_sets([answered], origin="test")
    assert [prompt.id for prompt in store.added_prompts(unanswered=True)] == [waiting.id]
    assert len(store.added_prompts()) == 2


def test_texts_that_no_database_holds_keep_one_id(where):
    """Answers name their prompt by its id, so it must be that of the prompt that is read back."""
    hostile = Instruction("Half \ud800 and \0", "\0", history=(("a\0", "b"),), system="c\0")
    with Store(where) as store:
        store.add_prompts([hostile], actor="annotator:1", refused={})
    with Store(where) as store:
        (prompt,) = store.added_prompts()
        assert prompt.system == "c\ufffd" and prompt.history == (("a\ufffd", "b"),)
        ((_, answers),) = [(p, [c]) for p, (c, *_) in candidates(1)]
        assert answers
        assert store.add_prompts([prompt], actor="annotator:1", refused={}) == 0
        assert len(store.added_prompts()) == 1
