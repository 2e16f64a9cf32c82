"""Memory that runs out and numbers that are not finite, in the stages other than SFT."""

import json
from dataclasses import replace

import pytest
import torch

from alpaca_rlhf.config import UserError
from alpaca_rlhf.models.batches import Example
from alpaca_rlhf.models.forward import completion_scores
from alpaca_rlhf.settings import Reward
from alpaca_rlhf.training import reward
from alpaca_rlhf.training.loop import Checkpoints, batches
from alpaca_rlhf.training.reward import Group, train_reward

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
        sizes.append(len(batch.ids))
        found = completion_scores(adapters, head, batch)
        if sizes[-1] > 6 and (sizes[-1] == 24 or sizes.count(sizes[-1]) > 1):
            found.register_hook(fail)
        return found

    monkeypatch.setattr(reward, "completion_scores", scores)
    learn(tiny("reward"), tmp_path / "b", rankings(8))
    expected, found = gradients
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    assert sizes == [24, 12, 12, 6, 6, 6, 6], "three completions a ranking"
    assert "reward: out of memory with --reward.micro-batch-size 4; goes on with 2" in caplog.text


def test_reward_keeps_the_rankings_that_gave_a_nan(tiny, tmp_path):
    adapters, rows = tiny("reward"), rankings(12)

    def poison(row):
        with torch.no_grad():
            next(iter(adapters.parameters("reward").values())).fill_(float("nan"))

    with pytest.raises(UserError, match=r"reward: .*; lower --reward\.lr .*step 2") as caught:
        learn(adapters, tmp_path, rows, replace(REWARD, batch_size=6), log=poison)
    (path,) = (tmp_path / "bad_batch").iterdir()
    assert str(path) in str(caught.value)
    kept = json.loads(path.read_text())["rows"]
    assert [row["prompt_id"] for row in kept] == [
        rows[i].prompt_id for i in batches(12, 6, 1, seed=0)[1]
    ]
    assert kept[0]["pairs"] == [[0, 1], [0, 2], [1, 2]]
    assert len(kept[0]["completions"]) == 3
