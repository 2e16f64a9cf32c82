"""GRPO and RLOO: advantages by hand, gradients against plain torch, and where they must end."""

from dataclasses import replace

import pytest
import torch

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.models.batches import Example
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.models.rollout import sample
from alpaca_rlhf.models.scoring import score
from alpaca_rlhf.settings import GRPO, RLOO, Sampling
from alpaca_rlhf.training import loss_scale, rollouts
from alpaca_rlhf.training.group_policy import minibatches, token_weights, train_in_groups
from alpaca_rlhf.training.grpo import grpo_method
from alpaca_rlhf.training.loop import Checkpoints
from alpaca_rlhf.training.losses import group_advantages, leave_one_out_advantages
from alpaca_rlhf.training.rloo import rloo_method
from alpaca_rlhf.training.rollouts import RolloutPrompt

SIZES = {
    "updates": 3,
    "prompts": 4,
    "k": 2,
    "minibatch_size": 4,
    "micro_batch_size": 2,
    "lr": 1e-3,
    "max_new_tokens": 8,
    "save_every": 1,
}
METHODS = {
    "grpo": grpo_method(GRPO(**SIZES, kl_coef=0.3)),
    "rloo": rloo_method(RLOO(**SIZES, kl_coef=0.3)),
}
STOPS = frozenset({2, *range(100, 150)})  # so that some completions finish and some do not


def changed(method, **changes):
    make = {"grpo": grpo_method, "rloo": rloo_method}[method.name]
    return make(replace(method.settings, **changes))


def prompts(n=8):
    generator = torch.Generator().manual_seed(4)
    return [
        RolloutPrompt(
            f"p{i}", (1, *torch.randint(100, 386, (2 + i % 5,), generator=generator).tolist())
        )
        for i in range(n)
    ]


def cast(make, *, moved=1.0, **options):
    """SFT, and a policy that begins as it or has moved away."""
    adapters = make("sft", **options)
    object.__setattr__(adapters.base, "stop_ids", STOPS)
    adapters.add("policy", copy_of="sft")
    with torch.no_grad():
        for p in adapters.parameters("policy").values():
            p.mul_(moved)
    return adapters


def judged(update_prompts, completions):
    """A judge that likes large first tokens and short answers."""
    return [c.ids[0] / 100 - 0.1 * len(c.ids) for c in completions]


def train(adapters, folder, method, reward=judged, *, asked=None, seed=0, log=None):
    rows = []

    def note(row):
        rows.append(row)
        if log is not None:
            log(row)

    train_in_groups(
        adapters,
        reward,
        asked or prompts(),
        method,
        seed=seed,
        rollout_batch_size=16,
        checkpoints=Checkpoints(folder),
        log=note,
    )
    return rows


# --- by hand --------------------------------------------------------------------------------------


def test_advantages_by_hand():
    scores = torch.tensor([1.0, 3.0, 5.0, 5.0])
    assert group_advantages(scores, 2, divide_by_std=False).tolist() == [-1, 1, 0, 0]
    assert leave_one_out_advantages(scores, 2).tolist() == [-2, 2, 0, 0]
    # Of 0, 0, 0, 4 the mean is 1, the sample's variance 12 / 3.
    scores = torch.tensor([0.0, 0.0, 0.0, 4.0], dtype=torch.float64)
    by_deviation = group_advantages(scores, 4, divide_by_std=True).tolist()
    assert by_deviation == pytest.approx([-0.5, -0.5, -0.5, 1.5], rel=1e-4)
    assert leave_one_out_advantages(scores, 4).tolist() == pytest.approx([-4 / 3] * 3 + [4])


def test_in_groups_of_two_both_are_the_same_up_to_their_scale():
    scores = torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    by_mean = group_advantages(scores, 2, divide_by_std=False)
    assert torch.allclose(2 * by_mean, leave_one_out_advantages(scores, 2), atol=1e-12)
    by_std = group_advantages(scores, 2, divide_by_std=True)
    assert torch.allclose(by_std.abs(), torch.tensor(0.5, dtype=torch.float64).sqrt(), atol=1e-2)


def test_scores_that_differ_by_rounding_alone_teach_nothing():
    """Four equal completions, scored in batches of different shapes."""
    scores = torch.tensor([0.7, 0.7 + 1e-7, 0.7, 0.7 - 1e-7, 0.7, 0.8, 0.7, 0.6])
    advantages = group_advantages(scores, 4, divide_by_std=True)
    assert advantages[:4].tolist() == [0, 0, 0, 0] and advantages[5] > 1


@pytest.mark.parametrize("size", [3, 4, 6, 12])
def test_the_completions_of_a_prompt_stay_together(size):
    settings = GRPO(prompts=4, k=3, minibatch_size=size, epochs=3, micro_batch_size=1)
    plan = minibatches(settings, seed=0)
    rows = [row for minibatch in plan for row in minibatch]
    assert [len(minibatch) for minibatch in plan] == [size] * (36 // size)
    epochs = [tuple(rows[start : start + 12]) for start in (0, 12, 24)]
    assert len(set(epochs)) > 1, "another order in every epoch"
    for epoch in epochs:
        assert sorted(epoch) == list(range(12))
        assert all(epoch[i : i + 3] == tuple(range(epoch[i], epoch[i] + 3)) for i in (0, 3, 6, 9))
    assert minibatches(settings, seed=0) == plan != minibatches(settings, seed=1)


def test_token_weights_by_hand():
    mask = torch.tensor([[True, False, False], [True, True, True]])
    sequence = token_weights(mask, "sequence", longest=8)
    assert torch.allclose(sequence, torch.tensor([[1 / 2, 0, 0], [1 / 6, 1 / 6, 1 / 6]]))
    assert torch.equal(token_weights(mask, "token", longest=8), mask / 4)
    assert torch.equal(token_weights(mask, "fixed", longest=8), mask / 16)


@pytest.mark.parametrize("name", METHODS)
def test_it_starts_at_the_reference_exactly(tiny, tmp_path, name):
    row = train(cast(tiny), tmp_path, METHODS[name])[0]
    assert row["kl"] == row["kl_k3"] == 0
    assert row["approx_kl"] < 1e-2 and row["policy_steps"] == 2
    assert 0 <= row["equal_groups"] <= 1 and row["group_std"] > 0


# --- gradients ------------------------------------------------------------------------------------


def slow_gradient(adapters, method):
    """The gradient of the published loss on the first rollout, sequence by sequence."""
    settings = method.settings
    asked = prompts(4)
    sampling = Sampling(max_new_tokens=settings.max_new_tokens, batch_size=16)
    keys = [f"0/{prompt.key}" for prompt in asked]
    groups = sample(
        adapters, "policy", [p.ids for p in asked], keys, k=settings.k, sampling=sampling, seed=0
    )
    adapters.trainable("policy")

    def logprobs(role, prompt, completion):
        ids = torch.tensor([prompt.ids + completion.ids])
        with adapters.using(role), adapters.training():
            logits = adapters.base.model(input_ids=ids).logits[0, len(prompt.ids) - 1 : -1]
        return logits.float().log_softmax(-1).gather(1, torch.tensor(completion.ids)[:, None])[:, 0]

    everything = [c for group in groups for c in group]
    lowest = min(s for s, c in zip(judged(None, everything), everything, strict=True) if c.finished)
    total = torch.zeros(())
    tokens = sum(len(c.ids) for c in everything)
    for prompt, group in zip(asked, groups, strict=True):
        with torch.no_grad():
            kl1 = [
                (logprobs("policy", prompt, c) - logprobs("sft", prompt, c)).sum() for c in group
            ]
        rewards = torch.tensor(
            [
                s if c.finished else min(-1.0, lowest)
                for s, c in zip(judged(None, group), group, strict=True)
            ]
        )
        if method.name == "rloo":
            rewards = rewards - settings.kl_coef * torch.stack(kl1)
        for i, completion in enumerate(group):
            if method.name == "rloo":
                others = [float(rewards[j]) for j in range(len(group)) if j != i]
                advantage = float(rewards[i]) - sum(others) / len(others)
            else:
                advantage = float(rewards[i] - rewards.mean())
                if settings.divide_by_std:
                    advantage /= float(rewards.std()) + 1e-4
            with torch.no_grad():
                reference = logprobs("sft", prompt, completion)
            own = logprobs("policy", prompt, completion)
            terms = -advantage * (own - own.detach()).exp()
            if method.name == "grpo":
                gap = reference - own
                terms = terms + settings.kl_coef * (gap.exp() - gap - 1)
            length = len(completion.ids)
            total = (
                total
                + {
                    "sequence": terms.mean() / len(everything),
                    "token": terms.sum() / tokens,
                    "fixed": terms.sum() / (len(everything) * settings.max_new_tokens),
                }[settings.mean]
            )
            assert length == len(terms)
    total.backward()
    parameters = sorted(adapters.parameters("policy").items())
    return total.item(), torch.cat([p.grad.flatten().double() for _, p in parameters])


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("grpo", {}),
        ("grpo", {"mean": "token", "k": 3, "minibatch_size": 12}),
        ("grpo", {"mean": "fixed", "divide_by_std": False}),
        ("rloo", {}),
        ("rloo", {"mean": "sequence", "k": 3, "minibatch_size": 12}),
    ],
)
def test_the_gradient_is_that_of_plain_torch(tiny, tmp_path, gradients, name, changes):
    options = {"updates": 1, "minibatch_size": 8, "max_grad_norm": 1e9, **changes}
    method = changed(METHODS[name], **options)
    row = train(cast(tiny, moved=1.5), tmp_path, method, asked=in_their_order(method))[0]
    loss, expected = slow_gradient(cast(tiny, moved=1.5), method)
    assert row["policy_loss"] == pytest.approx(loss, rel=1e-3, abs=1e-5)
    assert expected.norm() > 1e-3
    assert (gradients[0] - expected).norm() <= 1e-3 * expected.norm()


def in_their_order(method):
    """Four prompts: all of them are in the first update, in whatever order."""
    return prompts(method.settings.prompts)


@pytest.mark.parametrize(("name", "fills"), [("grpo", False), ("grpo", True), ("rloo", False)])
def test_the_micro_batch_never_changes_the_gradient(
    tiny, tmp_path, gradients, monkeypatch, precision, name, fills
):
    monkeypatch.setattr(rollouts, "fills_by_tokens", lambda device: fills)
    dtype, quantization, bound = precision
    bound = max(bound, 1e-7)  # norms round a shared prompt's summed gradient to fp32
    for size in (1, 2, 8):
        adapters = cast(tiny, moved=1.1, dtype=dtype, quantization=quantization)
        options = {"updates": 1, "minibatch_size": 8, "micro_batch_size": size}
        train(adapters, tmp_path / str(size), changed(METHODS[name], **options))
    assert len(gradients) == 3
    whole = gradients[-1]
    assert whole.norm() > 1e-4
    for gradient in gradients:
        assert (gradient - whole).norm() <= bound * whole.norm()


# --- resuming -------------------------------------------------------------------------------------


class Killed(Exception):
    pass


@pytest.mark.parametrize(("name", "dtype"), [("grpo", torch.float32), ("rloo", torch.float16)])
def test_killed_and_resumed_equals_uninterrupted(tiny, tmp_path, monkeypatch, name, dtype):
    monkeypatch.setattr(loss_scale, "START", 2.0**40)  # float16 has to find its scale
    method = changed(METHODS[name], updates=4, save_every=2, epochs=2)

    def go(folder, until=None, seed=0):
        def log(row):
            if row["step"] == until:
                raise Killed

        adapters = cast(tiny, dtype=dtype)
        try:
            rows = train(adapters, folder, method, seed=seed, log=log)
        except Killed:
            return None
        return adapters.digest("policy"), rows

    policy, rows = go(tmp_path / "a")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert go(tmp_path / "c", seed=1)[0] != policy
    for until in (1, 3):
        assert go(tmp_path / str(until), until) is None
        again, later = go(tmp_path / str(until))
        assert again == policy and later == rows[-len(later) :]


def test_only_the_policy_moves(tiny, tmp_path):
    adapters = cast(tiny)
    sft, policy = adapters.digest("sft"), adapters.digest("policy")
    train(adapters, tmp_path, METHODS["grpo"])
    assert adapters.digest("sft") == sft and adapters.digest("policy") != policy


# --- where they must end --------------------------------------------------------------------------


def best_of_rloo(reference, rewards, beta):
    """pi* ~ pi_ref exp(r / beta): the KL of the policy from the reference stands in the reward."""
    return (reference.log() + rewards / beta).softmax(0)


def best_of_grpo(reference, rewards, beta, k):
    """The gradient of k3 is that of the reference's KL from the policy, so its optimum is another.

    pi_i (r_i - r) (K - 1) / K = beta (pi_i - ref_i), r being the mean reward of the policy; a
    group's mean holds the completion itself, hence (K - 1) / K.
    """
    low, high = rewards.max() - beta * k / (k - 1), rewards.max()
    for _ in range(200):
        mean = (low + high) / 2
        policy = reference / (1 - (rewards - mean) * (k - 1) / k / beta)
        low, high = (low, mean) if policy.sum() < 1 or (policy < 0).any() else (mean, high)
        if (policy < 0).any():
            low, high = mean, high
    return policy


@pytest.mark.parametrize("name", METHODS)
def test_the_bandit_ends_at_the_closed_form(toy, tmp_path, name):
    """With one-token completions, the real reward adapter and the real sampler."""
    adapters = toy("sft", "reward")
    adapters.add("policy", copy_of="sft")
    prompt = (1, 5)
    arms = [Example(prompt, (i,)) for i in range(16)]
    head = ScalarHead(64, seed=0)
    head.normalise(score(adapters, "reward", head, arms, batch_size=16))
    rewards = score(adapters, "reward", head, arms, batch_size=16).double()

    def distribution(role):
        with torch.no_grad(), adapters.using(role):
            logits = adapters.base.model(input_ids=torch.tensor([prompt])).logits[0, -1]
        return logits.double().softmax(0)

    sizes = {
        "updates": 60,
        "prompts": 64,
        "k": 4,
        "minibatch_size": 128,
        "micro_batch_size": 256,
        "lr": 1e-2,
        "max_new_tokens": 1,
        "save_every": 1000,
    }
    reference = distribution("sft")
    if name == "grpo":
        method = grpo_method(GRPO(**sizes, kl_coef=2.0, divide_by_std=False))
        best = best_of_grpo(reference, rewards, 2.0, 4)
    else:
        method = rloo_method(RLOO(**sizes, kl_coef=1.0))
        best = best_of_rloo(reference, rewards, 1.0)
    assert best.sum() == pytest.approx(1, abs=1e-6)
    assert float((reference - best).abs().sum() / 2) > 0.15
    asked = [RolloutPrompt(str(i), prompt) for i in range(64)]
    train(adapters, tmp_path, method, head, asked=asked)
    assert float((distribution("policy") - best).abs().sum() / 2) < 0.04


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_too_few_prompts_are_refused(tiny, tmp_path, name):
    with pytest.raises(UserError, match=rf"--{name}\.prompts 4 needs as many prompts; .* has 3"):
        train(cast(tiny), tmp_path, METHODS[name], asked=prompts(3))


@pytest.mark.parametrize(
    ("make", "changes", "words"),
    [
        (GRPO, {"k": 1}, r"--grpo\.k must be at least 2, got 1"),
        (RLOO, {"prompts": 7}, r"--rloo\.prompts 7 times --rloo\.k 4 must be a multiple of --rloo"),
        (GRPO, {"kl_coef": -0.1}, r"--grpo\.kl-coef must be >= 0"),
        (RLOO, {"clip_ratio": 0}, r"--rloo\.clip-ratio must be > 0"),
    ],
)
def test_settings_out_of_range_are_refused(make, changes, words):
    with pytest.raises(ValueError, match=words):
        make(**changes)
