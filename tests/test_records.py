"""Records: what makes two of them the same, and what they refuse."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpaca_rlhf.core.records import Completion, Instruction, PreferencePair, Ranking, content_hash


def test_content_hash_is_pinned():
    # SHA-256 of b"3:abc0:", worked with sha256sum: ids are stored, so they must not change.
    assert content_hash("abc", "") == "bdf1004d3099a7a3"
    assert content_hash("a", "bc") != content_hash("ab", "c")
    assert content_hash("\ud800") != content_hash("?")


@given(st.lists(st.text(), max_size=3), st.lists(st.text(), max_size=3))
def test_content_hash_tells_lists_of_parts_apart(one, other):
    assert (content_hash(*one) == content_hash(*other)) == (one == other)


def test_an_instruction_is_its_prompt():
    task = Instruction("Sort.", "b a", "a b", source="seed")
    assert task.id == Instruction("Sort.", "b a").id
    assert task.id != Instruction("Sort.", "b c").id
    assert task.id != Instruction("Sort.b a").id
    assert Instruction(**json.loads(json.dumps(task.to_json()))) == task


def test_a_conversation_is_another_prompt_and_a_lone_task_keeps_its_id():
    # SHA-256 of b"5:Sort.3:b a", worked with sha256sum: rankings and splits are keyed by it.
    task = Instruction("Sort.", "b a")
    assert task.id == "2d60c7868491cea5"
    assert "history" not in task.to_json()
    assert Instruction('[\n  {"role": "user"}\n]').to_json()["history"] == ()
    one = dataclasses.replace(task, history=(("Hi.", "Hello."), ("Sing.", "La.")))
    others = [
        dataclasses.replace(task, history=history)
        for history in (
            (),
            (("Hi.", "Hello."),),
            (("Hi.", "Hello.Sing."), ("", "La.")),
            (("Sing.", "La."), ("Hi.", "Hello.")),
        )
    ]
    assert len({one.id, *(other.id for other in others)}) == 5
    assert Instruction.from_json(json.loads(json.dumps(one.to_json()))) == one
    assert Instruction.from_json(task.to_json()) == task


def test_a_completion_is_its_text_and_how_it_was_made():
    one = Completion("p", "hello", adapter="f", sampling="temperature=1", seed=1, sample=2)
    assert one.to_json()["id"] == one.id
    for change in ({"text": "x"}, {"seed": 2}, {"sample": 0}, {"adapter": "g"}, {"prompt_id": "q"}):
        assert dataclasses.replace(one, **change).id != one.id
    assert dataclasses.replace(one, n_tokens=5).id == one.id


def test_records_are_frozen():
    task = Instruction("Sort.")
    for record in (task, Completion("p", "x"), PreferencePair(task, "a", "b", task.id)):
        name = dataclasses.fields(record)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(record, name, "changed")


def test_a_ranking_may_tie():
    ranking = Ranking("p", (("a",), ("b", "c")), annotator="me")
    assert ranking.to_json()["tiers"] == (("a",), ("b", "c"))
    assert ranking.revision == 0


@pytest.mark.parametrize(
    ("tiers", "problem"),
    [
        ((("a",),), "at least 2"),
        ((("a",), ("a", "b")), "two places"),
        ((("a",), (), ("b",)), "tier is empty"),
    ],
)
def test_a_ranking_that_is_none(tiers, problem):
    with pytest.raises(ValueError, match=problem):
        Ranking("p", tiers, annotator="me")


def test_a_rollout_is_sliced_as_a_whole():
    torch = pytest.importorskip("torch")
    from alpaca_rlhf.core.records import ValuedRollout

    def block(width, kind=torch.float32):
        return torch.arange(3 * width).reshape(3, width).to(kind)

    whole = ValuedRollout(
        prompt_ids=block(2, torch.int64),
        completion_ids=block(4, torch.int64),
        prompt_mask=block(2, torch.bool),
        completion_mask=block(4, torch.bool),
        logprobs=block(4),
        ref_logprobs=block(4),
        values=block(4),
        scores=torch.arange(3.0),
    )
    assert len(whole) == 3
    part = whole[torch.tensor([2, 0])]
    assert len(part) == 2
    assert part.scores.tolist() == [2.0, 0.0]
    for name in (one.name for one in dataclasses.fields(ValuedRollout)):
        assert torch.equal(getattr(part, name)[0], getattr(whole, name)[2])
