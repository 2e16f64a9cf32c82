"""A prompt that several completions share goes through the base once, and nothing else changes."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alpaca_rlhf.models.batches import Example, by_length, by_prompt, collate, from_rollout
from alpaca_rlhf.models.forward import completion_scores, loss_logprobs, token_stats
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.models.scoring import completion_logprobs, micro_batches, score
from tests.test_batches import as_rollout

PROMPTS = ((1, 20, 30, 40), (1, *range(20, 61)), (1, 21))
COMPLETIONS = (
    ((50, 60, 2), (51, 2), (), (52, 62, 72, 82, 2)),
    ((53, 2), tuple(range(60, 160)), (54, 64, 74)),
    ((55,), (55, 65, 2)),
)
GROUPS = [
    [Example(prompt, completion) for completion in completions]
    for prompt, completions in zip(PROMPTS, COMPLETIONS, strict=True)
]
"""Rows of three sizes, so that the completions of a prompt are in several tables."""
SHARED = [example for group in GROUPS for example in group]
APART = [SHARED[i] for i in (0, 4, 7, 1, 5, 8, 2, 6, 3)]
"""The same rows, no two neighbours of the same prompt."""


@pytest.fixture
def head():
    return ScalarHead(128, seed=1)


def loss_of(adapters, head, examples):
    """Every kind of reading, weighed so that no two tokens have the same gradient."""
    batch = collate(adapters.base, examples)
    stats = token_stats(adapters, batch)
    columns = torch.arange(stats.logprobs.shape[1], dtype=torch.float64)
    weights = torch.stack([columns + sum(example.prompt) for example in examples]).sin()
    scores = completion_scores(adapters, head.to(adapters.base.dtype), batch)
    lengths = torch.tensor([len(example.completion) for example in examples]).double()
    return (stats.logprobs * weights).sum() + (scores * lengths.cos()).sum()


def gradient(adapters):
    return torch.cat([p.grad.flatten() for _, p in sorted(adapters.parameters("policy").items())])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_every_sequence_alone(tiny, precision, head, checkpointing):
    dtype, quantization, tolerance = precision
    tolerance = max(tolerance, 1e-7)  # norms round a shared prompt's summed gradient to fp32
    adapters = tiny("policy", dtype=dtype, quantization=quantization)
    adapters.checkpointing(checkpointing)
    found = []
    for batches in (
        [SHARED],
        [[example] for example in SHARED],
        [SHARED[:2], SHARED[2:6], SHARED[6:]],
    ):
        adapters.trainable("policy")
        head.weight.grad = None
        total = 0.0
        for examples in batches:
            with adapters.using("policy"), adapters.training():
                loss = loss_of(adapters, head, examples)
                loss.backward()
                total += loss.item()
        found.append((total, gradient(adapters), head.weight.grad))
    shared, *others = found
    for alone in others:
        assert shared[0] == pytest.approx(alone[0], rel=10 * tolerance)
        for ours, theirs in zip(shared[1:], alone[1:], strict=True):
            assert (ours - theirs).norm() <= tolerance * theirs.norm()


def test_each_prompt_is_packed_once(tiny_base):
    batch = collate(tiny_base, SHARED)
    assert len(batch.ids) == sum(map(len, PROMPTS)) + sum(len(e.completion) for e in SHARED)
    assert len(batch.packing.tables) == 3
    for row, example in enumerate(SHARED):
        positions = torch.arange(len(example))
        tokens = batch.packing.index(torch.full_like(positions, row), positions)
        assert batch.ids[tokens].tolist() == [*example.prompt, *example.completion]
        assert batch.packing.positions[tokens].tolist() == positions.tolist()
        assert batch.last_positions[row] == tokens[-1]
    before = [
        [*example.prompt, *example.completion][len(example.prompt) - 1 : -1] for example in SHARED
    ]
    states = batch.before(batch.completion_positions)
    assert batch.ids[states].tolist() == [token for row in before for token in row]


def test_scores_and_logprobs_are_those_of_every_sequence_alone(tiny, head):
    adapters = tiny("policy", "reward")
    for size in (1, 3, 9):
        scores = score(adapters, "reward", head, APART, batch_size=size)
        logprobs = completion_logprobs(adapters, "policy", APART, batch_size=size)
        for i, example in enumerate(APART):
            alone = score(adapters, "reward", head, [example], batch_size=1)
            assert scores[i].item() == pytest.approx(alone.item(), abs=1e-5)
            alone = completion_logprobs(adapters, "policy", [example], batch_size=1)
            assert logprobs[i].item() == pytest.approx(alone.item(), rel=1e-5, abs=1e-4)


def test_no_completion_sees_another_of_its_prompt(tiny):
    """Bit for bit, even where one overflows."""
    adapters = tiny("policy")
    group = GROUPS[0]
    changed = [group[0], replace(group[1], completion=(9, 9)), *group[2:]]
    with torch.no_grad(), adapters.using("policy"):
        kept = len(group[0])
        before = adapters.hidden(collate(adapters.base, group))
        adapters.base.model.model.embed_tokens.weight[9] = torch.inf
        after = adapters.hidden(collate(adapters.base, changed))
        assert torch.equal(before[:kept], after[:kept])
        assert after[kept : kept + 2].isnan().any()
        assert torch.equal(before[kept + 2 :], after[kept + 2 :])


def test_earlier_replies_of_a_shared_prompt_are_taught_for_each_completion(tiny):
    """As when each were alone: a row whose reply is masked leaves it out for itself alone."""
    adapters = tiny("policy")
    turns = Example((1, 10, 11, 2, 12, 13, 2, 14), (15, 2), earlier=((2, 4), (5, 7)))
    rows = [turns, replace(turns, completion=(16, 2), earlier=((5, 7),))]
    with torch.no_grad(), adapters.using("policy"):
        together = loss_logprobs(adapters, collate(adapters.base, rows))
        alone = [loss_logprobs(adapters, collate(adapters.base, [row])) for row in rows]
    assert len(together) == sum(row.loss_tokens for row in rows)
    assert torch.allclose(together.sort()[0], torch.cat(alone).sort()[0], atol=1e-5)


prompts = st.sampled_from([(1,), (1, 0), (1, 0, 2), (2, 1, 0, 3)])  # pad and eos among them
sequences = st.builds(
    Example, prompts, st.lists(st.integers(0, 9), min_size=1, max_size=40).map(tuple)
)


@given(rows=st.lists(sequences, min_size=1, max_size=8), size=st.integers(1, 5))
@settings(max_examples=60)
def test_a_part_of_a_batch_keeps_the_prompts_of_its_rows(tiny_base, rows, size):
    whole = collate(tiny_base, rows)
    from_rows = from_rollout(as_rollout(tiny_base, rows))
    for batch in (whole, from_rows):
        for number, part in enumerate(micro_batches(batch, size)):
            alone = collate(tiny_base, rows[number * size : (number + 1) * size])
            for name in ("ids", "starts", "last_positions", "completion_positions"):
                assert torch.equal(getattr(part, name), getattr(alone, name)), name
            for name in ("offsets", "prefixes", "shifts", "positions", "before", "order"):
                assert torch.equal(getattr(part.packing, name), getattr(alone.packing, name))


@given(rows=st.lists(sequences, max_size=12), size=st.integers(1, 5))
@settings(max_examples=60)
def test_completions_of_a_prompt_are_scored_side_by_side(rows, size):
    batches = by_prompt(rows, size)
    dealt = [i for batch in batches for i in batch]
    assert sorted(dealt) == list(range(len(rows)))
    assert all(1 <= len(batch) <= size for batch in batches)
    in_order = [rows[i].prompt for i in dealt]
    runs = [prompt for i, prompt in enumerate(in_order) if i == 0 or in_order[i - 1] != prompt]
    assert len(runs) == len(set(in_order))
    for prompt in set(in_order):
        count = in_order.count(prompt)
        inside = sum(any(rows[i].prompt == prompt for i in batch) for batch in batches)
        assert inside == -(-count // size)
    if len(set(in_order)) == len(rows):
        assert batches == by_length([len(row) for row in rows], size)
