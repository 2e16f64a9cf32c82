"""Best-of-K: who wins, who never does, and how often each completion wins."""

import json
import math
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import pytest
import torch

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.evaluation.win_rate import best_of_n_kl, expected_best
from alpaca_rlhf.models.batches import Example
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.models.rollout import SampledCompletion, sample
from alpaca_rlhf.models.scoring import score
from alpaca_rlhf.planner.disk import evaluated_arms
from alpaca_rlhf.report.policy_names import policy_order
from alpaca_rlhf.settings import PPO, BestOfK, Evaluate, Loop, Reward, Sampling
from alpaca_rlhf.stages import arm_answers
from alpaca_rlhf.stages.arms import arms as arms_of
from alpaca_rlhf.training.best_of_k import best_sample, choose, choose_at_random
from alpaca_rlhf.training.candidates import Candidates, draw, rescore

PROMPTS = [(1, 20, 30), (1, 40), (1, 50, 60, 70)]
KEYS = ["a", "b", "c"]


def drawn(adapters, head, prompts=PROMPTS, keys=KEYS, *, k=3, seed=0, **numbers):
    sampling = Sampling(**{"max_new_tokens": 8, "batch_size": 16, **numbers})
    return draw(
        adapters,
        "policy",
        prompts,
        keys,
        k=k,
        sampling=sampling,
        seed=seed,
        score_candidates=lambda pool: rescore(adapters, head, pool, batch_size=sampling.batch_size),
    )


def by_hand(said, scores, keys=KEYS):
    """Candidates of the first prompts: (name, finished) and a score each."""
    return [
        Candidates(
            key, prompt, tuple(SampledCompletion((name,), end) for name, end in own), tuple(numbers)
        )
        for key, prompt, own, numbers in zip(keys, PROMPTS, said, scores, strict=False)
    ]


def names(winners):
    return [one.completion[0] for one in winners.examples]


def test_the_best_finished_completion_wins():
    said = [
        [(10, True), (11, True), (12, True)],
        [(20, True), (21, False), (22, True)],
        [(30, False), (31, False), (32, True)],
    ]
    found = choose(by_hand(said, [[0.1, 0.5, 0.3], [-2.0, 9.0, -1.0], [5.0, 4.0, -7.0]]))
    assert found.examples == [
        Example(PROMPTS[0], (11,)),
        Example(PROMPTS[1], (22,)),
        Example(PROMPTS[2], (32,)),
    ]
    assert found.mean_best == pytest.approx((0.5 - 1.0 - 7.0) / 3)


def test_of_the_winners_the_best_scored_share_is_kept():
    said = [[(10, True), (11, True)], [(20, True), (21, True)], [(30, True), (31, True)]]
    pool = by_hand(said, [[0.1, 0.5], [-2.0, -1.0], [0.0, 7.0]])
    two = choose(pool, keep=2 / 3)
    assert two.examples == [Example(PROMPTS[0], (11,)), Example(PROMPTS[2], (31,))]
    assert two.mean_best == pytest.approx((0.5 + 7.0) / 2)
    assert names(choose(pool, keep=0.01)) == [31]  # never none


def test_of_equal_scores_the_first_wins():
    said = [[(10, True), (11, True), (12, True)], [(20, False), (21, True), (22, True)]]
    assert names(choose(by_hand(said, [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]))) == [10, 21]


def test_a_prompt_without_a_finished_completion_has_no_winner():
    said = [[(10, False), (11, False)], [(20, True), (21, False)]]
    found = choose(by_hand(said, [[9.0, 9.0], [-1.0, 9.0]]))
    assert found.examples == [Example(PROMPTS[1], (20,))]
    assert found.mean_best == -1


@pytest.mark.parametrize("threshold", [None, -5.0])
def test_where_nothing_ended_the_user_hears_what_to_do(threshold):
    said = [[(10, False), (11, False)], [(20, False), (21, False)]]
    with pytest.raises(UserError, match=r"none of the 4 .*raise --sampling\.max-new-tokens"):
        choose(by_hand(said, [[1.0, 2.0], [3.0, 4.0]]), threshold=threshold)


def test_above_a_threshold_all_win_and_nothing_else():
    """However many of a prompt; not at it; not without an end; equal completions each count."""
    said = [
        [(10, True), (10, True), (12, True)],
        [(20, True), (21, False), (22, True)],
        [(30, True), (31, True), (32, True)],
    ]
    pool = by_hand(said, [[2.0, 2.0, 0.9], [1.0, 5.0, 1.5], [0.0, -1.0, 0.5]])
    found = choose(pool, threshold=1.0)
    assert names(found) == [10, 10, 22]
    assert found.mean_best == pytest.approx((2.0 + 2.0 + 1.5) / 3)
    with pytest.raises(UserError, match=r"none of the 8 finished .*threshold 2, .*scores 2; lower"):
        choose(pool, threshold=2.0)


def test_a_prompt_of_two_rounds_has_one_winner():
    first = by_hand([[(10, True), (11, True)], [(20, True), (21, True)]], [[0, 1], [5, 4]])
    later = by_hand([[(12, True), (13, False)], [(22, True), (23, True)]], [[1, 9], [5, 6]])
    assert names(choose([*first, *later])) == [11, 23]
    other = by_hand([[(14, True), (15, True)]], [[0.5, -1.0]], keys=["later"])
    assert names(choose([*first, *other])) == [11, 20, 14]


SAID = [
    [(10, True), (11, False), (12, True)],
    [(20, True), (21, True), (22, True)],
    [(30, False), (31, True), (32, True)],
]
SCORES = [[0.1, 9.0, 0.3], [-2.0, 5.0, -1.0], [7.0, 4.0, -7.0]]


def test_the_control_of_the_choice_looks_at_no_score():
    """As many finished completions as there are winners, one of a prompt, whatever they score."""
    pool = by_hand(SAID, SCORES)
    other = by_hand(SAID, [[-s for s in scores] for scores in SCORES])
    seen = set()
    for seed in range(60):
        chosen = choose_at_random(pool, 2, seed=seed)
        assert chosen == choose_at_random(pool, 2, seed=seed)
        assert names(chosen) == names(choose_at_random(other, 2, seed=seed))
        assert len({name // 10 for name in names(chosen)}) == len(chosen.examples) == 2
        seen |= set(names(chosen))
    assert seen == {10, 12, 20, 21, 22, 31, 32}, "any finished one, and no other"
    firsts = [names(choose_at_random(pool, 3, seed=seed))[1] for seed in range(600)]
    assert all(abs(firsts.count(name) - 200) < 60 for name in (20, 21, 22)), "each as often"


def test_where_a_threshold_lets_many_win_the_control_has_as_many():
    pool = by_hand(SAID, SCORES)
    winners = choose(pool, threshold=-5.0)
    chosen = choose_at_random(pool, len(winners.examples), seed=0)
    assert len(set(names(chosen))) == len(chosen.examples) == len(winners.examples) == 6


@pytest.mark.parametrize(
    ("scores", "finished", "best"),
    [
        ([0.1, 0.9, 0.5], [True, True, True], 1),
        ([0.1, 0.9, 0.5], [True, False, True], 2),
        ([0.1, 0.9, 0.5], [False, False, False], 1),
        ([0.5, 0.5], [True, True], 0),
        ([-1.0, 9.0], [True, False], 0),
    ],
)
def test_of_samples_the_best_finished_one_is_taken(scores, finished, best):
    assert best_sample(scores, finished) == best


def test_the_arms_of_a_run():
    plain = [arm.name for arm in arms_of(Loop(), ["reward"])]
    assert plain == (
        "base base_few_shot sft best_of_k sampler_best_of_k oracle_best_of_k ppo".split()
    )
    full = Loop(
        rounds=2,
        reward=Reward(control=True),
        ppo=PPO(control=True),
        best_of_k=BestOfK(control=True),
    )
    names_of_arms = [arm.name for arm in arms_of(full, ["reward", "reward.2"])]
    later = "random_of_k best_of_k sampler_best_of_k ppo ppo_shuffled".split()
    assert (
        policy_order(names_of_arms)
        == names_of_arms
        == [
            *"base base_few_shot sft random_of_k best_of_k sampler_best_of_k".split(),
            *"oracle_best_of_k ppo ppo_shuffled".split(),
            *(f"{name}.2" for name in later),
        ]
    )
    assert "sampler_best_of_k" not in [arm.name for arm in arms_of(full, [])], "no reward model"
    without = replace(full, evaluate=Evaluate(rerank=False))
    names_of_others = [arm.name for arm in arms_of(without, ["reward", "reward.2"])]
    assert names_of_others == [
        name for name in names_of_arms if not name.startswith(("sampler", "oracle"))
    ]
    assert [evaluated_arms(each) for each in (full, without)] == [
        len(names_of_arms),
        len(names_of_others),
    ]
    with pytest.raises(ValueError, match=r"--ppo\.control .* --reward\.control"):
        Loop(ppo=PPO(control=True))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"k": 1}, r"--best-of-k\.k must be at least 2, got 1"),
        ({"threshold": 0.5, "keep": 0.5}, r"threshold keeps .*give --best-of-k\.keep 1"),
    ],
)
def test_settings_that_choose_nothing_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        BestOfK(**changes)


def law_of_the_winner(chances, scores, n):
    """By choosing from every one of the m^n possible sets of draws, each with its chance."""
    m = len(chances)
    every = list(product(range(m), repeat=n))
    pool = [
        Candidates(
            str(i),
            (1,),
            tuple(SampledCompletion((arm,), True) for arm in arms),
            tuple(scores[arm] for arm in arms),
        )
        for i, arms in enumerate(every)
    ]
    found = [0.0] * m
    for arms, arm in zip(every, names(choose(pool)), strict=True):
        found[arm] += math.prod(chances[one] for one in arms)
    return found


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def test_the_kl_of_the_best_of_two_by_hand():
    found = law_of_the_winner([0.5, 0.5], [0.0, 1.0], 2)
    assert found == [0.25, 0.75]
    assert kl(found, [0.5, 0.5]) == pytest.approx(0.1308, abs=1e-4)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("chances", "scores"),
    [
        ([0.1, 0.2, 0.3, 0.4], [3.0, 1.0, 2.0, 0.0]),  # each its own score
        ([0.1, 0.2, 0.3, 0.4], [1.0, 1.0, 2.0, 2.0]),  # ties
        ([0.97, 0.01, 0.01, 0.01], [0.0, 1.0, 2.0, 3.0]),  # nearly all draws are duplicates
        ([0.25] * 4, [7.0] * 4),  # nothing to choose
        ([1e-6, 0.5, 0.499999], [9.0, 0.0, 0.0]),  # a rare best
    ],
)
def test_the_kl_of_the_winner_never_passes_the_bound(chances, scores, n):
    found = law_of_the_winner(chances, scores, n)
    assert sum(found) == pytest.approx(1)
    moved, bound = kl(found, chances), best_of_n_kl(n)
    assert -1e-12 <= moved <= bound + 1e-12
    if n == 1 or len(set(scores)) == 1:
        assert moved == pytest.approx(0, abs=1e-12)  # ties move nothing
    else:
        assert moved < bound  # atoms lie strictly below it
    gain = sum(s * (b - p) for s, b, p in zip(scores, found, chances, strict=True))
    assert gain >= -1e-12


def test_without_atoms_the_bound_is_reached():
    many = 100
    found = law_of_the_winner([1 / many] * many, [math.sin(i) for i in range(many)], 2)
    assert 0.99 * best_of_n_kl(2) < kl(found, [1 / many] * many) < best_of_n_kl(2)


def test_the_expected_best_is_the_score_of_the_winners():
    """At n = K, where all stopped; and never lower with one more to choose from."""
    said = [[(10 * i + j, True) for j in range(3)] for i in range(3)]
    pool = by_hand(said, [[0.1, 0.5, 0.5], [-2.0, -1.0, 3.0], [0.0, 0.0, 0.0]])
    best = expected_best([one.scores for one in pool])
    assert best[-1] == pytest.approx(choose(pool).mean_best)
    assert best[0] == pytest.approx((1.1 + 0.0 + 0.0) / 9)
    assert best == sorted(best) and len(best) == 3


def test_candidates_survive_a_file(tiny):
    """Numbers bit for bit, through text; equal completions stay apart."""
    adapters = tiny("policy", "reward")
    found = drawn(adapters, ScalarHead(128, seed=1), k=4)
    twice = Candidates("d", (1,), (SampledCompletion((2,), True),) * 2, (0.1 + 0.2, -1e-30))
    for one in [*found, twice]:
        row = json.loads(json.dumps(one.to_json(lambda ids: f"{len(ids)} tokens")))
        assert Candidates.from_json(row) == one
        assert [c["text"] for c in row["completions"]] == [
            f"{len(c.ids)} tokens" for c in one.completions
        ]


def test_rescored_candidates_are_the_same_with_the_new_scores(tiny):
    adapters, new = tiny("policy", "reward"), ScalarHead(128, seed=2)
    old = drawn(adapters, ScalarHead(128, seed=1), k=4)
    found = rescore(adapters, new, old, batch_size=3)
    for one, before in zip(found, old, strict=True):
        assert (one.key, one.completions) == (before.key, before.completions)
        scores = score(adapters, "reward", new, before.examples, batch_size=1)
        assert one.scores == pytest.approx(scores.tolist(), abs=1e-5)
        assert one.scores != before.scores


def test_winners_are_the_samplers_own_completions_scored_by_the_reward_adapter(tiny):
    adapters = tiny("policy", "reward", "sft")
    object.__setattr__(adapters.base, "stop_ids", frozenset({2, *range(100, 386, 2)}))
    head = ScalarHead(128, seed=1)
    pool = drawn(adapters, head, k=6, seed=5)
    alone = sample(
        adapters,
        "policy",
        PROMPTS,
        KEYS,
        k=6,
        sampling=Sampling(max_new_tokens=8, batch_size=3),
        seed=5,
    )
    winners = iter(choose(pool).examples)
    for one, prompt, own in zip(pool, PROMPTS, alone, strict=True):
        assert one.completions == tuple(own)
        examples = [Example(prompt, each.ids) for each in own]
        scores = score(adapters, "reward", head, examples, batch_size=1)
        assert one.scores == pytest.approx(scores.tolist(), abs=1e-5)
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
    pool = drawn(
        adapters,
        head,
        [prompt] * count,
        [f"prompt {i}" for i in range(count)],
        k=n,
        max_new_tokens=1,
        batch_size=100_000,
    )
    found = choose(pool)
    won = torch.bincount(
        torch.tensor([one.completion[0] for one in found.examples]), minlength=16
    ).double()
    assert won.sum() == count
    chi = float(((won - count * expected) ** 2 / (count * expected)).sum())
    assert chi < 15 + 5 * math.sqrt(2 * 15)
    assert found.mean_best == pytest.approx(float((expected * rewards).sum()), abs=0.1)


def test_the_measured_kl_is_the_exact_one(toy, monkeypatch):
    """k1 and k3 on completions of the policy, against the sum over all 16 of them."""
    adapters, prompt = toy("policy", "sft"), (1, 5)
    law = {}
    for role in ("policy", "sft"):
        with torch.no_grad(), adapters.using(role):
            logits = adapters.base.model(input_ids=torch.tensor([prompt])).logits[0, -1]
        law[role] = logits.double().softmax(0)
    exact = kl(law["policy"].tolist(), law["sft"].tolist())
    assert exact > 0.01
    count = 4000
    keys = [str(i) for i in range(count)]
    own = sample(
        adapters,
        "policy",
        [prompt] * count,
        keys,
        sampling=Sampling(max_new_tokens=1, batch_size=count),
        seed=3,
    )
    monkeypatch.setattr(arm_answers, "arm_prompt", lambda *_, **__: prompt)
    ctx = SimpleNamespace(
        adapters=adapters,
        base=adapters.base,
        settings=Loop(sampling=Sampling(batch_size=count)),
    )
    found = arm_answers.kl_estimates(ctx, "policy", keys, [one for (one,) in own], few_shot=False)
    ratio = (law["policy"] / law["sft"]).log()
    variance = float((law["policy"] * ratio**2).sum()) - exact**2
    spread = math.sqrt(variance / count)
    means = {name: sum(values) / count for name, values in found.items()}
    assert means["kl_from_sft_nats"] == pytest.approx(exact, abs=4 * spread)
    assert means["kl_from_sft_k3_nats"] == pytest.approx(exact, abs=4 * spread)
    assert means["kl_from_sft_nats"] != means["kl_from_sft_k3_nats"]


def test_more_candidates_score_higher(toy):
    adapters, head = toy("policy", "reward"), ScalarHead(64, seed=2)
    keys = [str(i) for i in range(400)]
    pools = [
        drawn(adapters, head, [(1, 5)] * 400, keys, k=k, max_new_tokens=1, batch_size=10_000)
        for k in (1, 2, 4, 8)
    ]
    best = [choose(pool).mean_best for pool in pools]
    assert best == sorted(best)
    assert best[0] == pytest.approx(sum(one.scores[0] for one in pools[0]) / 400)
    for four, eight in zip(pools[2], pools[3], strict=True):  # the first four draws are the same
        assert eight.completions[:4] == four.completions
        assert eight.scores[:4] == pytest.approx(four.scores, abs=1e-5)
    expected = expected_best([one.scores for one in pools[3]])
    assert expected[-1] == pytest.approx(best[3])
    assert expected[3] == pytest.approx(best[2], abs=0.1)  # half the draws, the same expectation
