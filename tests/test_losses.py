"""The arithmetic, against numbers worked by hand and against slow loops."""

import math

import pytest
import torch

from alpaca_rlhf.training.losses import (
    gae,
    kl_k1,
    kl_k3,
    masked_mean,
    policy_loss,
    ranking_loss,
    token_rewards,
    value_loss,
    whiten,
)


def ragged(lengths, seed=0, width=None):
    """Random rewards and values with a mask of these lengths, and rubbish behind it."""
    generator = torch.Generator().manual_seed(seed)
    width = width or max(lengths)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    rewards = torch.randn(len(lengths), width, generator=generator) * mask
    values = torch.randn(len(lengths), width, generator=generator)
    return rewards, values, mask


# --- rewards of tokens ----------------------------------------------------------------------------


def test_token_rewards_by_hand():
    """Three tokens with KL .1 .2 .3 at kl_coef .5: the score joins the last one."""
    mask = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    kl = torch.tensor([[0.1, 0.2, 0.3], [0.4, -0.2, 9.0], [-0.6, 9.0, 9.0]])
    found = token_rewards(torch.tensor([2.0, -1.0, 0.5]), kl, mask, kl_coef=0.5)
    expected = [[-0.05, -0.1, 1.85], [-0.2, -0.9, 0], [0.8, 0, 0]]
    assert torch.allclose(found, torch.tensor(expected))


def test_token_rewards_sum_to_score_minus_kl():
    _, kl, mask = ragged([3, 7, 1])
    scores = torch.tensor([1.0, 2.0, 3.0])
    found = token_rewards(scores, kl, mask, kl_coef=0.25)
    for i, n in enumerate((3, 7, 1)):
        expected = scores[i] - 0.25 * kl[i, :n].sum()
        assert found[i].sum().item() == pytest.approx(expected.item(), abs=1e-5)
        assert not found[i, n:].any()


# --- advantages -----------------------------------------------------------------------------------


def test_gae_by_hand():
    """Rewards 1 0 2, values .5 1 1.5, gamma .9, lambda .5.

    delta = 1 + .9*1 - .5, 0 + .9*1.5 - 1, 2 - 1.5 = 1.4, .35, .5;
    A2 = .5, A1 = .35 + .45*.5 = .575, A0 = 1.4 + .45*.575 = 1.65875.
    """
    mask = torch.ones(1, 3, dtype=torch.bool)
    found = gae(
        torch.tensor([[1.0, 0, 2]]), torch.tensor([[0.5, 1, 1.5]]), mask, gamma=0.9, lam=0.5
    )
    assert found.advantages[0].tolist() == pytest.approx([1.65875, 0.575, 0.5])
    assert found.returns[0].tolist() == pytest.approx([2.15875, 1.575, 2.0])


def slow_gae(rewards, values, gamma, lam):
    """A_t as the sum of (gamma lam)^l delta_(t + l), without a recursion."""
    n = len(rewards)
    values = [*values, 0.0]
    deltas = [rewards[t] + gamma * values[t + 1] - values[t] for t in range(n)]
    return [sum((gamma * lam) ** (u - t) * deltas[u] for u in range(t, n)) for t in range(n)]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 0.0), (0.99, 1.0)])
def test_gae_equals_the_slow_sum_for_ragged_lengths(gamma, lam):
    lengths = [5, 1, 9, 3, 9, 2]
    rewards, values, mask = ragged(lengths)
    found = gae(rewards, values, mask, gamma=gamma, lam=lam)
    for i, n in enumerate(lengths):
        expected = slow_gae(rewards[i, :n].tolist(), values[i, :n].tolist(), gamma, lam)
        assert found.advantages[i, :n].tolist() == pytest.approx(expected, abs=1e-5)
        assert not found.advantages[i, n:].any()
        assert not found.returns[i, n:].any()


def test_lambda_1_is_the_return_minus_the_value():
    rewards, values, mask = ragged([4, 6, 2])
    found = gae(rewards, values, mask, gamma=1, lam=1)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    assert torch.allclose(found.advantages[mask], (to_go - values)[mask], atol=1e-5)
    assert torch.allclose(found.returns[mask], to_go[mask], atol=1e-5)


def test_lambda_0_is_the_one_step_error():
    rewards, values, mask = ragged([4, 6, 2])
    found = gae(rewards, values, mask, gamma=0.9, lam=0)
    after = torch.cat([values[:, 1:] * mask[:, 1:], torch.zeros(3, 1)], 1)
    assert torch.allclose(found.advantages[mask], (rewards + 0.9 * after - values)[mask], atol=1e-6)


def test_gae_ignores_what_lies_behind_the_mask_and_the_width():
    rewards, values, mask = ragged([4, 6, 2])
    found = gae(rewards, values, mask, gamma=1, lam=0.95)
    other = gae(rewards, values.where(mask, torch.tensor(1e6)), mask, gamma=1, lam=0.95)
    assert torch.equal(found.advantages, other.advantages)
    assert torch.equal(found.returns, other.returns)
    longer = [torch.cat([x, torch.full((3, 4), f)], 1) for x, f in ((rewards, 0.0), (values, 7.0))]
    wide = torch.cat([mask, torch.zeros(3, 4, dtype=torch.bool)], 1)
    padded = gae(*longer, wide, gamma=1, lam=0.95)
    assert torch.equal(padded.advantages[:, :6], found.advantages)


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="shapes differ"):
        gae(
            torch.zeros(2, 3), torch.zeros(2, 4), torch.ones(2, 3, dtype=torch.bool), gamma=1, lam=1
        )


# --- whitening ------------------------------------------------------------------------------------


def test_whitening_by_hand():
    """1 2 3 4 5 have mean 3 and population variance 2."""
    x = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 99.0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    expected = torch.tensor([[-2.0, -1, 0], [1, 2, 0]]) / math.sqrt(2)
    assert torch.allclose(whiten(x, mask), expected)
    assert masked_mean(x, mask).item() == 3


def test_whitening_equals_torch_on_the_flat_valid_entries():
    x, rubbish, mask = ragged([5, 1, 9, 3])
    x = x.where(mask, rubbish * 1e3)
    found = whiten(x, mask)
    flat = x[mask]
    expected = (flat - flat.mean()) / flat.std(correction=0)
    assert torch.allclose(found[mask], expected, atol=1e-5)
    assert not found[~mask].any()
    other = whiten(x.where(mask, torch.tensor(-5e4)), mask)
    assert torch.equal(found, other)


def test_equal_advantages_whiten_to_0():
    found = whiten(torch.full((2, 2), 3.0), torch.ones(2, 2, dtype=torch.bool))
    assert not found.any()


# --- divergences ----------------------------------------------------------------------------------


def test_both_estimators_are_unbiased_and_k3_is_steadier():
    """On ten tokens the expectation is a sum of ten terms: exact, without sampling."""
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(10, generator=generator, dtype=torch.float64).softmax(0)
    q = (p.log() + 0.5 * torch.randn(10, generator=generator, dtype=torch.float64)).softmax(0)
    exact = sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p, q, strict=True))
    k1, k3 = kl_k1(p.log(), q.log()), kl_k3(p.log(), q.log())
    assert float((p * k1).sum()) == pytest.approx(exact, rel=1e-12)
    assert float((p * k3).sum()) == pytest.approx(exact, rel=1e-12)
    assert float(k1.min()) < 0 <= float(k3.min())
    assert float((p * k3**2).sum()) < float((p * k1**2).sum())
    assert exact > 0.05


def test_estimators_by_hand():
    p, q = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    assert kl_k1(p, q).item() == pytest.approx(math.log(2))
    assert kl_k3(p, q).item() == pytest.approx(0.5 - 1 + math.log(2))
    assert kl_k1(p, p).item() == kl_k3(p, p).item() == 0


# --- rankings -------------------------------------------------------------------------------------


def test_two_completions_are_bradley_terry():
    """Score 1.5 against .3: the better one wins with probability 1 / (1 + e^-1.2)."""
    found = ranking_loss(torch.tensor([0.3, 1.5]), torch.tensor([[1, 0]]))
    assert found.item() == pytest.approx(-math.log(1 / (1 + math.exp(-1.2))))


def test_the_loss_is_a_mean_over_all_pairs():
    scores = torch.tensor([2.0, 0.5, 1.0, -1.0])
    pairs = torch.tensor([[i, j] for i in range(4) for j in range(i + 1, 4)])
    assert len(pairs) == 6
    alone = [ranking_loss(scores, pair[None]).item() for pair in pairs]
    assert ranking_loss(scores, pairs).item() == pytest.approx(sum(alone) / 6)


def test_its_gradient_is_the_probability_of_being_wrong():
    scores = torch.tensor([0.3, 1.5], requires_grad=True)
    ranking_loss(scores, torch.tensor([[1, 0]])).backward()
    wrong = 1 / (1 + math.exp(1.2))
    assert scores.grad.tolist() == pytest.approx([wrong, -wrong])


def test_extreme_scores_stay_finite():
    scores = torch.tensor([-200.0, 200.0], requires_grad=True)
    loss = ranking_loss(scores, torch.tensor([[0, 1]]))
    loss.backward()
    assert loss.item() == pytest.approx(400)
    assert scores.grad.tolist() == [-1, 1]


def test_swapping_a_pair_and_its_scores_changes_nothing():
    one = ranking_loss(torch.tensor([0.3, 1.5]), torch.tensor([[1, 0]]))
    other = ranking_loss(torch.tensor([1.5, 0.3]), torch.tensor([[0, 1]]))
    assert torch.equal(one, other)


def test_a_margin_of_zero_is_none_and_a_margin_asks_for_a_lead():
    """Ahead by 1.2 where .5 is asked for is as good as ahead by .7."""
    scores, pairs = torch.tensor([0.3, 1.5]), torch.tensor([[1, 0]])
    plain = ranking_loss(scores, pairs)
    assert torch.equal(ranking_loss(scores, pairs, margins=torch.zeros(1)), plain)
    found = ranking_loss(scores, pairs, margins=torch.tensor([0.5]))
    assert found.item() == pytest.approx(math.log(1 + math.exp(-0.7)))


def test_the_pull_grows_with_the_margin():
    """Up to 1: the pull is the chance of falling short of the margin."""
    pulls = []
    for margin in (0.0, 0.5, 1.0, 3.0, 50.0):
        scores = torch.tensor([0.3, 1.5], requires_grad=True)
        ranking_loss(scores, torch.tensor([[1, 0]]), margins=torch.tensor([margin])).backward()
        pulls.append(-scores.grad[1].item())
    assert pulls == sorted(pulls) and len(set(pulls)) == 5
    assert pulls[2] == pytest.approx(1 / (1 + math.exp(0.2)))
    assert pulls[4] == pytest.approx(1)


def test_each_pair_has_its_own_margin():
    scores, pairs = torch.tensor([2.0, 0.5, 1.0]), torch.tensor([[0, 1], [0, 2]])
    found = ranking_loss(scores, pairs, margins=torch.tensor([1.0, 0.25]))
    by_hand = (math.log(1 + math.exp(-0.5)) + math.log(1 + math.exp(-0.75))) / 2
    assert found.item() == pytest.approx(by_hand)


@pytest.mark.parametrize("order", [[[0, 1]], [[1, 0]]])
def test_a_tie_draws_scores_together_whichever_comes_first(order):
    """Its gradient is sigma(gap) - 1/2, and nothing where the scores are equal."""
    none = torch.empty(0, 2, dtype=torch.int64)
    for gap in (0.0, 1.2, -3.0, 400.0):
        scores = torch.tensor([gap, 0.0], requires_grad=True)
        loss = ranking_loss(scores, none, ties=torch.tensor(order))
        loss.backward()
        pull = 1 / (1 + math.exp(-gap)) - 0.5
        assert scores.grad.tolist() == pytest.approx([pull, -pull], abs=1e-6)
        assert loss.isfinite()
    level = ranking_loss(torch.zeros(2), none, ties=torch.tensor(order))
    assert level.item() == pytest.approx(math.log(2))


def test_ties_count_among_the_pairs_of_their_ranking():
    scores, pairs = torch.tensor([2.0, 0.5, 0.5]), torch.tensor([[0, 1], [0, 2]])
    found = ranking_loss(scores, pairs, ties=torch.tensor([[1, 2]]))
    assert found.item() == pytest.approx((2 * math.log(1 + math.exp(-1.5)) + math.log(2)) / 3)


def test_of_verdicts_one_in_ten_turned_round_it_learns_odds_of_nine():
    pairs = torch.tensor([[0, 1]] * 9 + [[1, 0]])
    scores = torch.tensor([math.log(9), 0.0], requires_grad=True)
    ranking_loss(scores, pairs).backward()
    assert scores.grad.tolist() == pytest.approx([0, 0], abs=1e-7)


# --- the clipped surrogate ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        (1.0, 2.0, -2.0, -2.0, 0),
        (1.1, 2.0, -2.2, -2.2, 0),
        (1.3, 2.0, -2.4, 0.0, 1),  # further up would not help: 1.2 * 2, and no gradient
        (0.7, 2.0, -1.4, -1.4, 0),  # a good token that fell: not clipped
        (1.0, -2.0, 2.0, 2.0, 0),
        (0.9, -2.0, 1.8, 1.8, 0),
        (0.7, -2.0, 1.6, 0.0, 1),  # .8 * 2
        (1.3, -2.0, 2.6, 2.6, 0),  # a bad token that rose: not clipped
    ],
)
def test_the_surrogate_inside_and_outside_its_clip(ratio, advantage, loss, gradient, clipped):
    """The derivative by the log-probability is -A * ratio, or 0 where it is clipped."""
    new = torch.tensor([[math.log(0.4 * ratio)]], requires_grad=True)
    old = torch.tensor([[math.log(0.4)]])
    found = policy_loss(new, old, torch.tensor([[advantage]]), torch.tensor([[True]]), clip=0.2)
    found.loss.backward()
    assert found.loss.item() == pytest.approx(loss, rel=1e-5)
    assert new.grad.item() == pytest.approx(gradient, rel=1e-5)
    assert found.clipped.item() == clipped


def test_the_surrogate_is_a_sum_over_unmasked_tokens():
    new = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, 50.0, 50.0]], requires_grad=True)
    old = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -50.0, -50.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    advantages = torch.tensor([[1.0, 2.0, 3.0], [4.0, 1e9, 1e9]])
    found = policy_loss(new, old, advantages, mask, clip=0.2)
    found.loss.backward()
    assert found.loss.item() == -10
    assert new.grad.tolist() == [[-1, -2, -3], [-4, 0, 0]]
    assert (found.clipped.item(), found.kl.item()) == (0, 0)


def test_the_reported_kl_is_k3_of_old_and_new():
    new, old = torch.tensor([[math.log(0.25)]]), torch.tensor([[math.log(0.5)]])
    found = policy_loss(new, old, torch.ones(1, 1), torch.tensor([[True]]), clip=0.2)
    assert found.kl.item() == pytest.approx(0.5 - 1 + math.log(2))


def test_a_runaway_ratio_stays_finite():
    new = torch.tensor([[0.0, -1000.0]], requires_grad=True)
    old = torch.tensor([[-1000.0, 0.0]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    found = policy_loss(new, old, torch.tensor([[-1.0, 1.0]]), mask, clip=0.2)
    found.loss.backward()
    assert found.loss.isfinite()
    assert new.grad.isfinite().all()


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "target", "loss", "gradient"),
    [
        (1.1, 2.0, 0.405, -0.9),  # inside the clip: half the squared error
        (1.5, 2.0, 0.32, 0.0),  # moved from 1 towards 2 beyond 1.2: .5 * .8^2, and no gradient
        (0.5, 2.0, 1.125, -1.5),  # moved away: the plain error is the worse one
        (1.5, 1.5, 0.045, 0.0),  # at its target, still counted from 1.2
        (1.5, 1.0, 0.125, 0.5),  # beyond its target on the other side
    ],
)
def test_the_value_loss_inside_and_outside_its_clip(value, target, loss, gradient):
    """The old value is 1 and the clip .2."""
    new = torch.tensor([[value]], requires_grad=True)
    mask = torch.tensor([[True]])
    found = value_loss(new, torch.ones(1, 1), torch.tensor([[target]]), mask, clip=0.2)
    found.backward()
    assert found.item() == pytest.approx(loss, abs=1e-6)
    assert new.grad.item() == pytest.approx(gradient, abs=1e-6)


def test_clip_0_is_half_the_squared_error():
    values, targets, mask = ragged([4, 2])
    found = value_loss(values, torch.zeros(2, 4), targets, mask, clip=0)
    expected = sum(
        0.5 * float(values[i, t] - targets[i, t]) ** 2
        for i, n in ((0, 4), (1, 2))
        for t in range(n)
    )
    assert found.item() == pytest.approx(expected, rel=1e-5)
    wide = value_loss(values, torch.zeros(2, 4), targets, mask, clip=1e9)
    assert wide.item() == pytest.approx(expected, rel=1e-5)


def test_the_value_loss_ignores_what_lies_behind_the_mask():
    values, targets, mask = ragged([4, 2])
    found = value_loss(values, values, targets, mask, clip=0.2)
    other = value_loss(values.where(mask, torch.tensor(1e4)), values, targets, mask, clip=0.2)
    assert torch.equal(found, other)
