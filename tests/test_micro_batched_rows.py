"""Rows of a policy's update in micro-batches: on a card by tokens, and never more than planned."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alpaca_rlhf.core.records import Rollout
from alpaca_rlhf.models.batches import from_rollout
from alpaca_rlhf.planner.passes import Rows
from alpaca_rlhf.settings import GRPO, PPO
from alpaca_rlhf.training import rollouts
from alpaca_rlhf.training.rollouts import MicroBatchedRows

few = settings(max_examples=80, deadline=None, derandomize=True)


def rollout_of(prompts, completions):
    """A rollout of rows with these lengths; row `i` has a prompt that is filled with 100 + p."""
    width, columns = max(length for _, length in prompts), max(completions)
    ids = torch.zeros(len(prompts), width, dtype=torch.int64)
    prompt_mask = torch.zeros(len(prompts), width, dtype=torch.bool)
    mask = torch.zeros(len(prompts), columns, dtype=torch.bool)
    for row, ((name, length), completion) in enumerate(zip(prompts, completions, strict=True)):
        ids[row, width - length :] = 100 + name
        prompt_mask[row, width - length :] = True
        mask[row, :completion] = True
    zeros = torch.zeros(len(prompts), columns)
    scores = torch.zeros(len(prompts))
    return Rollout(ids, zeros.long(), prompt_mask, mask, zeros, zeros, scores)


def deal(rollout, numbers, size, k=1):
    rows = torch.arange(len(rollout))
    return [part.tolist() for part in MicroBatchedRows(rollout, numbers, k).parts(rows, size)]


@pytest.fixture
def on_a_card(monkeypatch):
    monkeypatch.setattr(rollouts, "fills_by_tokens", lambda device: True)


def test_short_rows_join_a_micro_batch_on_a_card(on_a_card):
    numbers = PPO(max_new_tokens=10, batch_size=8, minibatch_size=8)
    rollout = rollout_of([(row, 10) for row in range(8)], [10, 1, 1, 1, 1, 1, 1, 10])
    parts = deal(rollout, numbers, 2)
    assert parts == [[0, 7], [1, 2, 3], [4, 5, 6]], "two of 20 tokens, or three of 11"


def test_on_a_cpu_a_micro_batch_is_so_many_rows():
    numbers = PPO(max_new_tokens=10, batch_size=8, minibatch_size=8)
    rollout = rollout_of([(row, 10) for row in range(7)], [10, 1, 1, 1, 1, 1, 1])
    assert deal(rollout, numbers, 2) == [[0, 1], [2, 3], [4, 5], [6]]
    assert rollouts.fills_by_tokens(torch.device("cuda"))
    assert MicroBatchedRows(rollout, numbers).parts(torch.arange(0), 2) == []


def test_completions_of_a_prompt_stay_together_and_pay_for_it_once(on_a_card):
    numbers = GRPO(prompts=4, k=4, minibatch_size=16, max_new_tokens=9)
    rollout = rollout_of([(row // 4, 30) for row in range(16)], [4] * 16)
    assert deal(rollout, numbers, 4, k=4) == [
        [*range(4)],
        [*range(4, 8)],
        [*range(8, 12)],
        [*range(12, 16)],
    ]


@given(
    data=st.data(),
    k=st.integers(1, 4),
    prompts=st.integers(1, 6),
    size=st.sampled_from([1, 2, 4, 8]),
)
@few
def test_no_micro_batch_is_larger_than_the_plan_has_it(data, k, prompts, size):
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=prompts, max_size=prompts))
    completions = data.draw(
        st.lists(st.integers(1, 12), min_size=prompts * k, max_size=prompts * k)
    )
    rollout = rollout_of([(row // k, lengths[row // k]) for row in range(prompts * k)], completions)
    longest = max(completions)
    if k > 1:
        numbers = GRPO(prompts=prompts, k=k, minibatch_size=prompts * k, max_new_tokens=longest)
    else:
        numbers = PPO(batch_size=prompts, minibatch_size=prompts, max_new_tokens=longest)
    planned = Rows(size, max(lengths), longest, k, cut=numbers.minibatch_size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollouts, "fills_by_tokens", lambda device: True)
        parts = deal(rollout, numbers, size, k)
    assert sorted(row for part in parts for row in part) == list(range(prompts * k))
    for part in parts:
        batch = from_rollout(rollout[torch.tensor(part)])
        assert len(batch.ids) <= planned.count * planned.length - planned.repeated
        assert int(batch.completion_mask.sum()) <= planned.count * planned.completion
        assert len(part) >= size or part is parts[-1]
