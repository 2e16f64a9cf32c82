"""PPO: what an update is made of, what it must not touch, and where it must end."""

from dataclasses import replace

import pytest
import torch

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import ValuedRollout
from alpaca_rlhf.models import scoring
from alpaca_rlhf.models.base import weights_digest
from alpaca_rlhf.models.batches import Example, collate
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.models.oom_retry import MicroBatch
from alpaca_rlhf.models.rollout import SampledCompletion
from alpaca_rlhf.models.scoring import score
from alpaca_rlhf.settings import PPO, Clip, Value
from alpaca_rlhf.training import loss_scale, ppo, rollouts
from alpaca_rlhf.training.loop import Checkpoints, Learner
from alpaca_rlhf.training.ppo import collect, train_ppo
from alpaca_rlhf.training.ppo_update import (
    Critic,
    KLCoefficient,
    PPOContext,
    advantages_of,
    explained_variance,
)
from alpaca_rlhf.training.rollouts import RolloutPrompt, missing_eos_score

SETTINGS = PPO(
    updates=3,
    batch_size=8,
    minibatch_size=4,
    micro_batch_size=2,
    epochs=2,
    lr=1e-3,
    max_new_tokens=8,
    value=Value(trunk="separate", lr=1e-3, warmup=0),
    save_every=1,
    clip=Clip(kl_stop=100.0),
)
STOPS = frozenset({2, *range(100, 150)})  # so that some completions finish and some do not


def prompts(n=12):
    generator = torch.Generator().manual_seed(4)
    return [
        RolloutPrompt(
            f"p{i}", (1, *torch.randint(100, 386, (2 + i % 5,), generator=generator).tolist())
        )
        for i in range(n)
    ]


def cast(make, **options):
    """Adapters with the four roles, the policy a copy of SFT; and the reward head."""
    adapters = make("sft", "reward", **options)
    object.__setattr__(adapters.base, "stop_ids", STOPS)
    adapters.add("policy", copy_of="sft")
    head = ScalarHead(adapters.base.model.config.hidden_size, seed=7)
    head.normalise(torch.tensor([-1.0, 0.0, 2.0]))
    return adapters, head


def train(adapters, head, folder, settings=SETTINGS, *, asked=None, seed=0, log=None, **options):
    rows = []

    def note(row):
        rows.append(row)
        if log is not None:
            log(row)

    train_ppo(
        adapters,
        head,
        asked or prompts(),
        settings,
        seed=seed,
        rollout_batch_size=16,
        checkpoints=Checkpoints(folder),
        log=note,
        **options,
    )
    return rows


COMPLETIONS = [
    SampledCompletion((200, 210, 2), True),
    SampledCompletion((220,), False),
    SampledCompletion((230, 240, 250, 260, 105), True),
    SampledCompletion((2,), True),
    SampledCompletion((270, 280), False),
]


def rolled(adapters, head, settings=SETTINGS, completions=COMPLETIONS):
    value = ScalarHead(128)
    value.load_state_dict(head.state_dict())
    adapters.add("value", copy_of="reward")
    micro = MicroBatch("ppo", "--ppo.micro-batch-size", settings.micro_batch_size, lower="")
    critic = Critic("value", value)
    context = PPOContext(adapters, head, critic, settings, micro)
    return collect(context, prompts(len(completions)), completions)


# --- what is collected ----------------------------------------------------------------------------


def test_a_completion_that_does_not_stop_gets_the_missing_eos_score(tiny):
    adapters, head = cast(tiny)
    examples = [Example(p.ids, c.ids) for p, c in zip(prompts(5), COMPLETIONS, strict=True)]
    real = score(adapters, "reward", head, examples, batch_size=2)
    found, metrics = rolled(adapters, head, replace(SETTINGS, missing_eos_score=-3.5))
    for i, one in enumerate(COMPLETIONS):
        expected = real[i].item() if one.finished else -3.5
        assert found.scores[i].item() == pytest.approx(expected, abs=1e-5)
    assert metrics["score"] == pytest.approx(real.mean().item(), abs=1e-5), "reported as it was"
    assert metrics["stop_rate"] == 0.6


@pytest.mark.parametrize(
    ("finished", "expected"),
    [([0.5, -0.2, 2.0], -1.0), ([0.5, -3.25, -1.5], -3.25), ([-1.0], -1.0), ([], -1.0)],
)
def test_the_score_of_not_stopping_by_hand(finished, expected):
    assert missing_eos_score(torch.tensor(finished), None) == expected
    for chosen in (-2.0, 0.0, 5.0):
        assert missing_eos_score(torch.tensor(finished), chosen) == chosen, "as the user says"


def test_by_default_not_stopping_never_pays(tiny):
    """A fixed -1 lies above finished completions that the reward model dislikes."""
    adapters, head = cast(tiny)
    finished = torch.tensor([one.finished for one in COMPLETIONS])
    head.bias.sub_(20)  # now all of them score far below -1
    found, _ = rolled(adapters, head)
    assert (found.scores[finished] > -1).sum() == 0, "the fixed score would be the best one"
    assert (found.scores[~finished] == found.scores[finished].min()).all()
    head.bias.add_(40)
    found, _ = rolled(adapters, head)
    assert (found.scores[finished] > 0).all() and (found.scores[~finished] == -1).all()


def test_the_worst_finished_one_is_that_after_clamping(tiny):
    adapters, head = cast(tiny)
    head.bias.sub_(20)
    finished = torch.tensor([one.finished for one in COMPLETIONS])
    found, _ = rolled(adapters, head, replace(SETTINGS, clip=replace(SETTINGS.clip, score=2.0)))
    assert (found.scores == -2).all() and not finished.all()


def test_scores_are_clamped_where_the_user_says_so(tiny):
    adapters, head = cast(tiny)
    plain, _ = rolled(adapters, head)
    bound = float(plain.scores.abs().sort().values[2])
    clip = replace(SETTINGS.clip, score=bound)
    found, _ = rolled(adapters, head, replace(SETTINGS, clip=clip, missing_eos_score=-9.0))
    finished = torch.tensor([one.finished for one in COMPLETIONS])
    assert torch.equal(found.scores[finished], plain.scores[finished].clamp(-bound, bound))
    assert (found.scores[~finished] == -9).all()


@pytest.mark.parametrize("temperature", [None, 0.7])
def test_the_reported_numbers_are_those_of_a_slow_loop(tiny, temperature):
    """KL is the token sum of a completion; pads count nowhere. Both policies at the temperature."""
    adapters, head = cast(tiny)
    with torch.no_grad():  # a policy that has moved away from its reference
        for p in adapters.parameters("policy").values():
            p.mul_(2)
    found, metrics = rolled(adapters, head, replace(SETTINGS, temperature=temperature))
    k1 = k3 = entropy = tokens = 0.0
    for prompt, one in zip(prompts(5), COMPLETIONS, strict=True):
        ids = torch.tensor([prompt.ids + one.ids])
        place = slice(len(prompt.ids) - 1, -1)
        logs = {}
        for role in ("policy", "sft"):
            with torch.no_grad(), adapters.using(role):
                logits = adapters.base.model(input_ids=ids).logits[0, place]
            logs[role] = (logits / (temperature or 1)).log_softmax(-1)
        said = torch.tensor(one.ids)[:, None]
        ratio = (logs["policy"] - logs["sft"]).gather(1, said)[:, 0].double()
        k1 += float(ratio.sum())
        k3 += float(((-ratio).exp() - 1 + ratio).sum())
        entropy += float(torch.distributions.Categorical(logits=logs["policy"]).entropy().sum())
        tokens += len(one.ids)
    assert metrics["kl"] == pytest.approx(k1 / 5, abs=1e-4)
    assert metrics["kl_k3"] == pytest.approx(k3 / 5, abs=1e-4)
    assert metrics["kl_k3"] > 0.01
    assert metrics["entropy"] == pytest.approx(entropy / tokens, abs=1e-4)
    assert metrics["mean_tokens"] == tokens / 5
    assert not found.logprobs[~found.completion_mask].any()


def test_a_value_is_first_the_reward_of_what_stands_so_far(tiny):
    """V before token t is the reward model's score of the prompt and t tokens."""
    adapters, head = cast(tiny)
    found, _ = rolled(adapters, head)
    for i, (prompt, one) in enumerate(zip(prompts(5), COMPLETIONS, strict=True)):
        parts = [Example(prompt.ids, one.ids[:t]) for t in range(len(one.ids))]
        expected = score(adapters, "reward", head, parts, batch_size=8)
        assert torch.allclose(found.values[i, : len(parts)], expected, atol=1e-5)


def test_the_reference_is_sft_not_the_bare_base(tiny, tmp_path):
    """Exactly 0 at the start, and not 0 against the bare base."""
    adapters, head = cast(tiny)
    found, metrics = rolled(adapters, head)
    assert torch.equal(found.logprobs, found.ref_logprobs)
    assert metrics["kl"] == metrics["kl_k3"] == 0
    examples = [Example(p.ids, c.ids) for p, c in zip(prompts(5), COMPLETIONS, strict=True)]
    bare, _ = scoring.logprobs(adapters, None, collate(adapters.base, examples), micro_batch_size=4)
    assert (bare - found.logprobs).abs().max() > 0.05
    assert train(adapters, head, tmp_path)[0]["kl"] == 0


def test_advantages_by_hand():
    """Two tokens, then one. Score 2 and -1, KL .5 and -.5, then 1; kl_coef .2, lambda 1."""
    mask = torch.tensor([[True, True], [True, False]])
    ids = torch.zeros(2, 2, dtype=torch.int64)
    found = advantages_of(
        ValuedRollout(
            ids,
            ids,
            mask,
            mask,
            logprobs=torch.tensor([[-1.0, -2.0], [-1.0, 0.0]]),
            ref_logprobs=torch.tensor([[-1.5, -1.5], [-2.0, 0.0]]),
            values=torch.tensor([[0.25, 1.0], [0.5, 0.0]]),
            scores=torch.tensor([2.0, -1.0]),
        ),
        PPO(gamma=1.0, lam=1.0),
        kl_coef=0.2,
    )
    # rewards -.1 and 2.1, then -1.2; returns 2 and 2.1, then -1.2
    assert torch.allclose(found.returns, torch.tensor([[2.0, 2.1], [-1.2, 0.0]]))
    assert torch.allclose(found.advantages, torch.tensor([[1.75, 1.1], [-1.7, 0.0]]))


def test_explained_variance_by_hand():
    mask = torch.tensor([[True, True, True, False]])
    returns = torch.tensor([[1.0, 2.0, 3.0, 99.0]])
    assert explained_variance(returns, returns, mask) == 1
    assert explained_variance(torch.zeros(1, 4), returns, mask) == 0
    half = torch.tensor([[1.0, 2.0, 1.0, -7.0]])  # residuals 0 0 2: variance 8/9 of 2/3
    assert explained_variance(half, returns, mask) == pytest.approx(1 - 4 / 3)
    assert explained_variance(half, torch.ones(1, 4), mask) == 0


# --- the update -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "temperature", "trunk"),
    [
        (torch.float32, None, "separate"),
        (torch.bfloat16, None, "separate"),
        (torch.float32, 0.7, "separate"),
        (torch.float32, 0.7, "detached"),
    ],
)
def test_a_rate_of_0_leaves_ratio_1(tiny, tmp_path, dtype, temperature, trunk):
    adapters, head = cast(tiny, dtype=dtype)
    before = adapters.digest("policy")
    value = replace(SETTINGS.value, trunk=trunk)
    settings = replace(SETTINGS, lr=1e-30, temperature=temperature, value=value)
    rows = train(adapters, head, tmp_path, settings)
    assert adapters.digest("policy") == before
    for row in rows:
        assert abs(row["approx_kl"]) < 1e-8
        assert row["clip_fraction"] == 0
        assert row["kl"] == row["kl_k3"] == 0
        assert abs(row["policy_loss"]) < 1e-5, "whitened advantages have mean 0"
        assert row["policy_grad_norm"] > 0


@pytest.mark.parametrize(
    ("trunk", "fills"), [("detached", False), ("separate", False), ("separate", True)]
)
def test_the_micro_batch_never_changes_the_gradient(
    tiny, tmp_path, gradients, monkeypatch, precision, trunk, fills
):
    monkeypatch.setattr(rollouts, "fills_by_tokens", lambda device: fills)
    dtype, quantization, bound = precision
    if dtype == torch.float64:
        monkeypatch.setattr(ppo, "ScalarHead", lambda width: ScalarHead(width).double())
    value = replace(SETTINGS.value, trunk=trunk)
    settings = replace(
        SETTINGS, updates=1, epochs=1, minibatch_size=8, lam=0.9, kl_coef=0.1, value=value
    )
    for size in (1, 2, 4, 8):
        adapters, head = cast(tiny, dtype=dtype, quantization=quantization)
        with torch.no_grad():
            for p in adapters.parameters("policy").values():
                p.mul_(1.1)
        head = head.to(dtype)
        train(adapters, head, tmp_path / str(size), replace(settings, micro_batch_size=size))
    assert len(gradients) == 8
    for kind in (gradients[0::2], gradients[1::2]):  # policy, value
        whole = kind[-1]
        assert whole.norm() > 1e-3
        for one in kind:
            assert (one - whole).norm() <= bound * whole.norm()


@pytest.mark.parametrize("trunk", ["shared", "detached"])
def test_a_value_on_the_policys_states_moves_the_policy_only_if_shared(
    tiny, tmp_path, gradients, trunk
):
    """The policy's gradient is that of its own loss, and on a shared trunk coef times the value's.

    Where it is detached, the value's loss adds exactly nothing.
    """
    settings = replace(SETTINGS, updates=1, epochs=1, minibatch_size=8)

    def policy_gradient(coef):
        gradients.clear()
        adapters, head = cast(tiny)
        chosen = Value(trunk=trunk, coef=coef, warmup=0)
        with pytest.MonkeyPatch.context() as patch:  # a head at 0 would have no gradient to give
            patch.setattr(torch.nn.init, "zeros_", lambda tensor: tensor)
            train(adapters, head, tmp_path / str(coef), replace(settings, value=chosen))
        assert "value" not in adapters.names
        policy, value = gradients
        assert value.shape == (128,)
        return policy

    without, once, twice = (policy_gradient(coef) for coef in (0.0, 0.5, 1.0))
    if trunk == "detached":
        assert torch.equal(without, once) and torch.equal(without, twice)
        return
    assert (once - without).norm() > 1e-3 * without.norm()
    assert torch.allclose(twice - without, 2 * (once - without), atol=1e-6)


@pytest.mark.parametrize("trunk", ["shared", "detached"])
def test_a_value_on_the_policys_states_begins_at_0_and_learns_first(tiny, tmp_path, trunk):
    adapters, head = cast(tiny)
    start, moved = adapters.digest("policy"), []
    settings = replace(SETTINGS, updates=3, value=Value(trunk=trunk, lr=1e-3, warmup=2))
    rows = train(
        adapters, head, tmp_path, settings, log=lambda row: moved.append(adapters.digest("policy"))
    )
    assert rows[0]["explained_variance"] == 0, "a constant value explains nothing"
    assert [row["policy_steps"] for row in rows] == [0, 0, 4]
    assert moved[0] == moved[1] == start != moved[2]
    assert rows[1]["explained_variance"] != 0, "the head has learned meanwhile"


@pytest.mark.parametrize("trunk", ["shared", "detached"])
def test_the_values_head_learns_the_same_whatever_moves_the_policy(
    tiny, tmp_path, gradients, trunk
):
    """`coef` scales what reaches the policy; the head's gradient is that of the value's own step.

    Else the head's optimiser would see its gradient jump where the warm-up ends.
    """
    settings = replace(SETTINGS, updates=1, epochs=1, minibatch_size=8)

    def value_gradient(coef, warmup):
        gradients.clear()
        adapters, head = cast(tiny)
        chosen = Value(trunk=trunk, coef=coef, warmup=warmup)
        folder = tmp_path / f"{coef}-{warmup}"
        train(adapters, head, folder, replace(settings, value=chosen))
        return gradients[-1]

    alone = value_gradient(0.1, warmup=1)
    assert alone.norm() > 1e-3
    for coef in (0.0, 0.1, 1.0):
        joint = value_gradient(coef, warmup=0)
        assert (joint - alone).norm() <= 1e-5 * alone.norm()


def test_what_was_not_measured_is_not_logged(tiny, tmp_path):
    """A 0 would be read, and plotted, as a measurement."""
    adapters, head = cast(tiny)
    settings = replace(SETTINGS, updates=2, value=replace(SETTINGS.value, warmup=1))
    first, second = train(adapters, head, tmp_path, settings)
    of_policy = {"policy_loss", "clip_fraction", "approx_kl", "policy_grad_norm", "lr"}
    assert not of_policy & first.keys()
    assert of_policy <= second.keys()
    assert {"value_loss", "value_grad_norm", "value_lr"} <= first.keys() & second.keys()


def test_the_policys_rate_falls_to_0_whatever_kl_stop_refuses(tiny, tmp_path):
    """A step that is refused is a step of the schedule all the same."""
    settings = replace(SETTINGS, updates=4, epochs=2, lr=1e-2)

    def train_with(limit):
        adapters, head = cast(tiny)
        clip = replace(SETTINGS.clip, kl_stop=limit)
        return train(adapters, head, tmp_path / str(limit), replace(settings, clip=clip))

    refused, calm = train_with(1e-6), train_with(100.0)
    assert [row["policy_steps"] for row in refused] == [1, 1, 1, 1]
    assert [row["policy_steps"] for row in calm] == [4, 4, 4, 4]
    # 16 steps, of which the first is the warm-up: the last one taken is step 13 of 16
    assert refused[-1]["lr"] == pytest.approx(settings.lr * (16 - 12) / 15)
    assert calm[-1]["lr"] == pytest.approx(settings.lr * (16 - 15) / 15)
    assert refused[-1]["approx_kl"] > 1e-6, "what stopped it is shown"


def test_the_kl_coefficient_follows_its_target_by_hand():
    """KL 12 and 6.6, then 0, against 6: errors .2 (bounded), .1 and -.2; n / N is a tenth."""
    steered = KLCoefficient(PPO(kl_coef=0.5, clip=Clip(kl_target=6.0, kl_horizon=1000)))
    seen = []
    for kl in (12.0, 6.6, 0.0):
        steered.update(kl, 100)
        seen.append(steered.value)
    assert seen == pytest.approx([0.51, 0.5151, 0.504798])
    fixed = KLCoefficient(PPO(kl_coef=0.5))
    fixed.update(12.0, 100)
    assert fixed.value == 0.5


def test_an_update_uses_the_coefficient_from_before_it(tiny, tmp_path):
    adapters, head = cast(tiny)
    clip = replace(SETTINGS.clip, kl_target=1e-9, kl_horizon=8)
    rows = train(adapters, head, tmp_path, replace(SETTINGS, kl_coef=0.5, clip=clip))
    # KL is 0 at first, so the coefficient falls by a fifth; later far above its tiny target
    assert [row["kl_coef"] for row in rows] == pytest.approx([0.5, 0.4, 0.48])


def test_the_steps_are_epochs_times_minibatches(tiny, tmp_path, monkeypatch):
    seen = []
    step = Learner.step

    def spy(learner):
        seen.append(learner.flag)
        return step(learner)

    monkeypatch.setattr(Learner, "step", spy)
    adapters, head = cast(tiny)
    settings = replace(SETTINGS, epochs=3, minibatch_size=2)
    rows = train(adapters, head, tmp_path, settings)
    assert seen.count("--ppo.lr") == seen.count("--ppo.value.lr") == 3 * 3 * 4
    assert [row["policy_steps"] for row in rows] == [12, 12, 12]


def test_the_first_updates_train_the_value_alone(tiny, tmp_path):
    adapters, head = cast(tiny)
    digests = []

    def log(row):
        digests.append((adapters.digest("policy"), adapters.digest("value")))

    start = adapters.digest("policy")
    settings = replace(SETTINGS, updates=4, value=Value(trunk="separate", lr=1e-3, warmup=2))
    rows = train(adapters, head, tmp_path, settings, log=log)
    assert [row["policy_steps"] for row in rows] == [0, 0, 4, 4]
    policy, value = zip(*digests, strict=True)
    assert policy[0] == policy[1] == start
    assert len(set(policy)) == 3
    assert len(set(value)) == 4


def test_a_policy_that_runs_away_stops_its_inner_epochs(tiny, tmp_path):
    """The step after which the divergence shows is the last; the value goes on."""
    adapters, head = cast(tiny)
    states = []
    step = Learner.step

    clip = replace(SETTINGS.clip, kl_stop=1e-6)
    settings = replace(SETTINGS, updates=1, epochs=4, lr=1e-2, clip=clip)
    counts = {"--ppo.lr": 0, "--ppo.value.lr": 0}

    def spy(learner):
        counts[learner.flag] += 1
        states.append((learner.flag, learner.optimizer))
        return step(learner)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "step", spy)
        rows = train(adapters, head, tmp_path, settings)
    assert counts == {"--ppo.lr": 1, "--ppo.value.lr": 8}
    assert rows[0]["policy_steps"] == 1
    (optimizer,) = {id(o): o for flag, o in states if flag == "--ppo.lr"}.values()
    assert {int(s["step"]) for s in optimizer.state.values()} == {1}
    assert all(p.grad is None for p in adapters.parameters("policy").values())


def test_only_policy_and_value_move(tiny, tmp_path):
    adapters, head = cast(tiny)

    def digests():
        roles = {role: adapters.digest(role) for role in ("sft", "reward", "policy")}
        return roles | {"base": weights_digest(adapters.base), "head": head.weight.tolist()}

    before = digests()
    train(adapters, head, tmp_path)
    after = digests()
    assert {name for name in before if before[name] != after[name]} == {"policy"}
    assert adapters.digest("value") != after["reward"]
    assert not any(p.requires_grad for p in adapters.base.model.parameters())
    assert adapters.active is None
    assert not adapters.base.model.training


def test_the_value_moves_towards_the_returns(tiny, tmp_path):
    adapters, head = cast(tiny)
    settings = replace(
        SETTINGS,
        updates=24,
        lr=1e-30,
        value=Value(trunk="separate", lr=5e-3, warmup=24),
        missing_eos_score=-1.0,  # the default follows the batch, and with it the returns
    )
    settings = replace(settings, clip=replace(settings.clip, value=0.0))
    rows = train(adapters, head, tmp_path, settings)
    assert rows[-1]["value_loss"] < rows[0]["value_loss"] / 2
    assert rows[-1]["explained_variance"] > rows[0]["explained_variance"]


# --- prompts, seeds, resuming ---------------------------------------------------------------------


def test_no_prompt_comes_twice_in_an_epoch(tiny, tmp_path):
    adapters, head = cast(tiny)
    seen = []

    def watch(asked, completions):
        assert len(asked) == len(completions) == 8
        seen.append([one.key for one in asked])
        return {"watched": 1.0}

    settings = replace(SETTINGS, updates=6, max_new_tokens=2)
    rows = train(adapters, head, tmp_path, settings, asked=prompts(26), completion_metrics=watch)
    assert all(row["watched"] == 1 for row in rows)
    for epoch in (seen[:3], seen[3:]):
        keys = [key for one in epoch for key in one]
        assert len(set(keys)) == len(keys) == 24
    assert seen[:3] != seen[3:]


def test_the_same_prompt_draws_new_noise_in_each_update(tiny, tmp_path):
    adapters, head = cast(tiny)
    said = {}

    def watch(asked, completions):
        for prompt, one in zip(asked, completions, strict=True):
            said.setdefault(prompt.key, []).append(one.ids)
        return {}

    settings = replace(SETTINGS, lr=1e-30)
    train(adapters, head, tmp_path, settings, asked=prompts(8), completion_metrics=watch)
    assert all(len(own) == 3 for own in said.values())
    assert sum(len(set(own)) > 1 for own in said.values()) > 5


def test_too_few_prompts_are_refused(tiny, tmp_path):
    adapters, head = cast(tiny)
    with pytest.raises(UserError, match=r"--ppo\.batch-size 8 needs as many prompts"):
        train(adapters, head, tmp_path, asked=prompts(7))


@pytest.mark.parametrize("trunk", ["separate", "shared", "detached"])
def test_a_loss_scale_leaves_no_trace(tiny, tmp_path, scaled, trunk):
    settings = replace(
        SETTINGS, clip=replace(SETTINGS.clip, grad_norm=0.1), value=Value(trunk=trunk, lr=1e-3)
    )

    def weights(folder):
        adapters, head = cast(tiny)
        rows = train(adapters, head, folder, settings)
        return adapters.digest("policy"), rows

    plain = weights(tmp_path / "a")
    with scaled(1024):
        assert weights(tmp_path / "b") == plain


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("dtype", "trunk"),
    [
        (torch.float32, "separate"),
        (torch.float32, "shared"),
        (torch.bfloat16, "detached"),
        (torch.float16, "shared"),
    ],
)
def test_killed_and_resumed_equals_uninterrupted(tiny, tmp_path, monkeypatch, dtype, trunk):
    monkeypatch.setattr(loss_scale, "START", 2.0**40)  # float16 has to find its scale
    settings = replace(
        SETTINGS,
        updates=5,
        save_every=2,
        value=Value(trunk=trunk, lr=1e-3, warmup=1),
        clip=replace(SETTINGS.clip, kl_target=0.01, kl_horizon=20),
    )

    def go(folder, until=None, seed=0):
        def log(row):
            if row["step"] == until:
                raise Killed

        adapters, head = cast(tiny, dtype=dtype)
        try:
            rows = train(adapters, head, folder, settings, seed=seed, log=log)
        except Killed:
            return None
        value = adapters.digest("value") if trunk == "separate" else rows[-1]["value_loss"]
        return adapters.digest("policy"), value, rows

    policy, value, rows = go(tmp_path / "a")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert len({row["kl_coef"] for row in rows}) == 5, "the coefficient is on its way"
    # before the first checkpoint, between two, and at the end; each dtype and trunk, once
    for until in (1, 3, 5) if (dtype, trunk) == (torch.float32, "separate") else (3,):
        folder = tmp_path / str(until)
        assert go(folder, until) is None
        again = go(folder)
        assert again[:2] == (policy, value)
        assert again[2] == rows[-len(again[2]) :]
    if (dtype, trunk) == (torch.float32, "separate"):
        assert go(tmp_path / "b") == (policy, value, rows), "the same seed, the same weights"
        assert go(tmp_path / "c", seed=1)[0] != policy


# --- where it must end ----------------------------------------------------------------------------


def total_variation(p, q):
    return float((p - q).abs().sum() / 2)


@pytest.mark.parametrize(
    ("seed", "trunk", "temperature"),
    [
        (0, "detached", 1.0),
        (0, "shared", 1.0),
        (0, "separate", 1.0),
        (0, "detached", 0.7),
    ],
)
def test_the_bandit_ends_at_the_closed_form(toy, tmp_path, seed, trunk, temperature):
    """With one-token completions the best policy is known: pi* ~ pi_ref exp(r / kl_coef).

    At any temperature, of policy and reference alike.

    The real reward adapter scores, the real sampler samples; the sum runs over 16 tokens.
    """
    adapters = toy("sft", "reward", weights=seed)
    adapters.add("policy", copy_of="sft")
    prompt = (1, 5)
    arms = [Example(prompt, (i,)) for i in range(16)]
    head = ScalarHead(64, seed=seed)
    head.normalise(score(adapters, "reward", head, arms, batch_size=16))
    rewards = score(adapters, "reward", head, arms, batch_size=16).double()

    def distribution(role):
        with torch.no_grad(), adapters.using(role):
            logits = adapters.base.model(input_ids=torch.tensor([prompt])).logits[0, -1]
        return (logits.double() / temperature).softmax(0)

    reference = distribution("sft")
    best = (reference.log() + rewards / 1.0).softmax(0)
    assert total_variation(reference, best) > 0.25
    settings = PPO(
        updates=60,
        batch_size=256,
        minibatch_size=128,
        micro_batch_size=256,
        epochs=2,
        lr=1e-2,
        value=Value(trunk=trunk, lr=1e-2, warmup=0),
        kl_coef=1.0,
        temperature=temperature,
        max_new_tokens=1,
        save_every=1000,
        clip=Clip(kl_stop=10.0),
    )
    asked = [RolloutPrompt(str(i), prompt) for i in range(256)]
    rows = train(adapters, head, tmp_path, settings, asked=asked, seed=seed)
    found = distribution("policy")
    # The noise of 256 samples an update: ten seeds end between 0.005 and 0.040.
    assert total_variation(found, best) < 0.05
    divergence = float((best * (best / reference).log()).sum())
    assert rows[-1]["kl"] == pytest.approx(divergence, abs=0.15)
    assert rows[-1]["score"] == pytest.approx(float((best * rewards).sum()), abs=0.15)
    assert rows[-1]["stop_rate"] == 1
