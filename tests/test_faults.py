"""Memory that runs out and numbers that are not finite, in the stages other than SFT."""

import json
from dataclasses import replace

import pytest
import torch

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.models.batches import Example
from alpaca_rlhf.models.forward import completion_scores, token_logprobs, value_states
from alpaca_rlhf.settings import Reward
from alpaca_rlhf.training import ppo_update, reward
from alpaca_rlhf.training.groups import Group
from alpaca_rlhf.training.loop import Checkpoints, batches
from alpaca_rlhf.training.reward import train_reward
from tests import test_ppo as ppo_tests

PPO_SETTINGS = replace(ppo_tests.SETTINGS, micro_batch_size=4, updates=1)
REWARD = Reward(lr=5e-3, head_lr=5e-3, batch_size=8, micro_batch_size=8, warmup=0.0, save_every=2)


def rankings(n, seed=0):
    """Rankings of three random completions."""
    generator = torch.Generator().manual_seed(seed)

    def ids(m):
        return tuple(torch.randint(3, 386, (m,), generator=generator).tolist())

    return [
        Group(
            f"{seed}/{i}",
            tuple(Example((1, *ids(4)), (*ids(3 + j), 2)) for j in range(3)),
            ((0, 1), (0, 2), (1, 2)),
        )
        for i in range(n)
    ]


def learn(adapters, folder, rows, settings=REWARD, log=lambda row: None):
    return train_reward(
        adapters,
        "reward",
        rows,
        rankings(2, seed=1),
        settings,
        seed=0,
        checkpoints=Checkpoints(folder),
        log=log,
    )


def test_reward_goes_on_with_smaller_micro_batches(tiny, tmp_path, monkeypatch, gradients, caplog):
    small = tiny("reward")
    learn(small, tmp_path / "a", rankings(8), replace(REWARD, micro_batch_size=2))
    sizes = []

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def scores(adapters, head, batch):
        sizes.append(len(batch))
        scores_of_batch = completion_scores(adapters, head, batch)
        if sizes[-1] > 6 and (sizes[-1] == 24 or sizes.count(sizes[-1]) > 1):
            scores_of_batch.register_hook(fail)
        return scores_of_batch

    monkeypatch.setattr(reward, "completion_scores", scores)
    learn(tiny("reward"), tmp_path / "b", rankings(8))
    expected, measured = gradients
    assert (measured - expected).norm() <= 1e-5 * expected.norm()
    assert sizes == [24, 12, 12, 6, 6, 6, 6], "three completions a ranking"
    assert (
        "reward: out of memory with --reward.micro-batch-size 4; continuing with 2" in caplog.text
    )


def test_reward_keeps_the_rankings_that_gave_a_nan(tiny, tmp_path):
    adapters, rows = tiny("reward"), rankings(12)

    def poison(row):
        with torch.no_grad():
            next(iter(adapters.parameters("reward").values())).fill_(float("nan"))

    with pytest.raises(UserError, match=r"reward: .*; lower --reward\.lr .*step 2") as caught:
        learn(adapters, tmp_path, rows, replace(REWARD, batch_size=6), log=poison)
    (path,) = (tmp_path / "bad_batch").iterdir()
    assert str(path) in str(caught.value)
    bad_rows = json.loads(path.read_text())["rows"]
    assert [row["prompt_id"] for row in bad_rows] == [
        rows[i].prompt_id for i in batches(12, 6, 1, seed=0)[1]
    ]
    assert bad_rows[0]["pairs"] == [[0, 1], [0, 2], [1, 2]]
    assert len(bad_rows[0]["completions"]) == 3


@pytest.mark.parametrize("full", ["policy", "value"])
def test_ppo_goes_on_with_smaller_micro_batches(tiny, tmp_path, monkeypatch, full, caplog):
    small, head = ppo_tests.cast(tiny)
    ppo_tests.train(small, head, tmp_path / "a", replace(PPO_SETTINGS, micro_batch_size=1))
    big, head = ppo_tests.cast(tiny)
    sizes = []

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def logprobs(adapters, batch, **options):
        logprobs_of_batch = token_logprobs(adapters, batch, **options)
        watch(len(batch), logprobs_of_batch)
        return logprobs_of_batch

    def states(adapters, batch):
        states_of_batch = value_states(adapters, batch)
        watch(len(batch), states_of_batch)
        return states_of_batch

    def watch(rows, out):
        if not out.requires_grad:
            return
        sizes.append(rows)
        if rows > 1:
            out.register_hook(fail)

    name, replacement = (
        ("token_logprobs", logprobs) if full == "policy" else ("value_states", states)
    )
    monkeypatch.setattr(ppo_update, name, replacement)
    ppo_tests.train(big, head, tmp_path / "b", PPO_SETTINGS)
    for role in ("policy", "value"):
        for key, p in big.parameters(role).items():
            assert torch.allclose(p, small.parameters(role)[key], atol=PPO_SETTINGS.lr / 50)
    assert sizes[:2] == [4, 2]
    assert set(sizes[2:]) == {1}
    assert "ppo: out of memory with --ppo.micro-batch-size 2; continuing with 1" in caplog.text


def test_ppo_keeps_the_completions_that_gave_a_nan(tiny, tmp_path):
    adapters, head = ppo_tests.cast(tiny)

    def poison(row):
        with torch.no_grad():
            next(p for k, p in adapters.parameters("value").items() if "lora_B" in k).fill_(
                float("nan")
            )

    settings = replace(PPO_SETTINGS, updates=2)
    with pytest.raises(UserError, match=r"ppo: .*; lower --ppo\.(value\.)?lr .*step 2") as caught:
        ppo_tests.train(adapters, head, tmp_path, settings, log=poison)
    (path,) = (tmp_path / "bad_batch").iterdir()
    assert str(path) in str(caught.value)
    bad_rows = json.loads(path.read_text())["rows"]
    assert len(bad_rows) == settings.batch_size
    prompts = {prompt.ids for prompt in ppo_tests.prompts()}
    assert all(tuple(row["prompt_ids"]) in prompts for row in bad_rows)
