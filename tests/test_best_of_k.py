"""Best-of-K: who wins, who never does, and how often each completion wins."""

import math

import pytest
import torch

from alpaca_rlhf.models.batches import Example
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.models.rollout import Sampled, sample, score
from alpaca_rlhf.settings import Sampling
from alpaca_rlhf.training import best_of_k
from alpaca_rlhf.training.best_of_k import choose

PROMPTS = [(1, 20, 30), (1, 40), (1, 50, 60, 70)]
KEYS = ["a", "b", "c"]


def pick(adapters, head, prompts=PROMPTS, keys=KEYS, *, k=3, keep=1.0, seed=0, **numbers):
    sampling = Sampling(**{"max_new_tokens": 8, "batch_size": 16, **numbers})
    return choose(
        adapters,
        "policy",
        head,
        prompts,
        keys,
        k=k,
        keep=keep,
        sampling=sampling,
        seed=seed,
        score_batch_size=sampling.batch_size,
    )


def staged(monkeypatch, drawn, scores, **how):
    """Samples and scores given by hand: per prompt, (name, finished) and a number each."""
    monkeypatch.setattr(
        best_of_k,
        "sample",
        lambda *_, **__: [[Sampled((name,), end) for name, end in own] for own in drawn],
    )
    flat = torch.tensor([x for own in scores for x in own])
    monkeypatch.setattr(best_of_k, "score", lambda *_, **__: flat)
    return pick(None, None, PROMPTS[: len(drawn)], KEYS[: len(drawn)], k=len(drawn[0]), **how)


def test_the_best_finished_completion_wins(monkeypatch):
    drawn = [
        [(10, True), (11, True), (12, True)],
        [(20, True), (21, False), (22, True)],
        [(30, False), (31, False), (32, True)],
    ]
    found = staged(monkeypatch, drawn, [[0.1, 0.5, 0.3], [-2.0, 9.0, -1.0], [5.0, 4.0, -7.0]])
    assert found.examples == [
        Example(PROMPTS[0], (11,)),
        Example(PROMPTS[1], (22,)),
        Example(PROMPTS[2], (32,)),
    ]
    assert found.mean_best == pytest.approx((0.5 - 1.0 - 7.0) / 3)
    assert found.scores.shape == (3, 3)
    assert found.scores[1].tolist() == [-2, 9, -1]


def test_of_the_winners_the_best_scored_share_is_kept(monkeypatch):
    drawn = [[(10, True), (11, True)], [(20, True), (21, True)], [(30, True), (31, True)]]
    scores = [[0.1, 0.5], [-2.0, -1.0], [0.0, 7.0]]
    two = staged(monkeypatch, drawn, scores, keep=2 / 3)
    assert two.examples == [Example(PROMPTS[0], (11,)), Example(PROMPTS[2], (31,))]
    assert two.mean_best == pytest.approx((0.5 + 7.0) / 2)
    assert two.scores.shape == (3, 2)  # all candidates, for the report
    one = staged(monkeypatch, drawn, scores, keep=0.01)
    assert one.examples == [Example(PROMPTS[2], (31,))]  # never none


def test_of_equal_scores_the_first_wins(monkeypatch):
    drawn = [[(10, True), (11, True), (12, True)], [(20, False), (21, True), (22, True)]]
    found = staged(monkeypatch, drawn, [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]])
    assert [one.completion for one in found.examples] == [(10,), (21,)]


def test_a_prompt_without_a_finished_completion_has_no_winner(monkeypatch):
    drawn = [[(10, False), (11, False)], [(20, True), (21, False)]]
    found = staged(monkeypatch, drawn, [[9.0, 9.0], [-1.0, 9.0]])
    assert found.examples == [Example(PROMPTS[1], (20,))]
    assert found.mean_best == -1
    nobody = staged(monkeypatch, [[(10, False), (11, False)]], [[1.0, 2.0]])
    assert (nobody.examples, nobody.mean_best) == ([], 0)


def test_winners_are_the_samplers_own_completions_scored_by_the_reward_adapter(tiny):
    adapters = tiny("policy", "reward", "sft")
    object.__setattr__(adapters.base, "stop_ids", frozenset({2, *range(100, 386, 2)}))
    head = ScalarHead(128, seed=1)
    found = pick(adapters, head, k=6, seed=5)
    drawn = sample(
        adapters,
        "policy",
        PROMPTS,
        KEYS,
        k=6,
        sampling=Sampling(max_new_tokens=8, batch_size=3),
        seed=5,
    )
    winners = iter(found.examples)
    for i, (prompt, own) in enumerate(zip(PROMPTS, drawn, strict=True)):
        examples = [Example(prompt, one.ids) for one in own]
        scores = score(adapters, "reward", head, examples, batch_size=1)
        assert torch.allclose(found.scores[i], scores, atol=1e-5)
        finished = [j for j in range(6) if own[j].finished]
        assert len(finished) > 1
        assert next(winners) == examples[max(finished, key=lambda j: float(scores[j]))]
    assert next(winners, None) is None
    assert adapters.active is None


@pytest.mark.parametrize("n", [1, 4])
def test_the_winners_distribution_is_the_exact_one(toy, n):
    """Of n independent draws the i-th lowest arm wins with probability F_i^n - F_(i-1)^n."""
    adapters = toy("policy", "reward")
    prompt = (1, 5)
    head = ScalarHead(64, seed=2)
    arms = [Example(prompt, (i,)) for i in range(16)]
    rewards = score(adapters, "reward", head, arms, batch_size=16)
    assert len(rewards.unique()) == 16
    with torch.no_grad(), adapters.using("policy"):
        logits = adapters.base.model(input_ids=torch.tensor([prompt])).logits[0, -1]
    order = rewards.argsort()
    cumulative = logits.double().softmax(0)[order].cumsum(0)
    below = torch.cat([torch.zeros(1, dtype=torch.float64), cumulative[:-1]])
    expected = torch.empty(16, dtype=torch.float64)
    expected[order] = cumulative**n - below**n

    count = 2000
    found = pick(
        adapters,
        head,
        [prompt] * count,
        [f"prompt {i}" for i in range(count)],
        k=n,
        max_new_tokens=1,
        batch_size=100_000,
    )
    won = torch.bincount(
        torch.tensor([one.completion[0] for one in found.examples]), minlength=16
    ).double()
    assert won.sum() == count
    chi = float(((won - count * expected) ** 2 / (count * expected)).sum())
    assert chi < 15 + 5 * math.sqrt(2 * 15)
    assert found.mean_best == pytest.approx(float((expected * rewards).sum()), abs=0.1)


def test_more_candidates_score_higher(toy):
    adapters, head = toy("policy", "reward"), ScalarHead(64, seed=2)
    keys = [str(i) for i in range(400)]
    means = [
        pick(adapters, head, [(1, 5)] * 400, keys, k=k, max_new_tokens=1, batch_size=10_000)
        for k in (1, 2, 4, 8)
    ]
    best = [one.mean_best for one in means]
    assert best == sorted(best)
    assert best[0] == pytest.approx(float(means[0].scores.mean()))
    first = means[3].scores[:, :4]
    assert torch.allclose(first, means[2].scores, atol=1e-5), "the first four draws are the same"
