"""The reward adapter: its gradient, its groups, and that it learns what was planted."""

import math
from dataclasses import replace

import pytest
import torch

from alpaca_rlhf.config import UserError
from alpaca_rlhf.models.base import weights_digest
from alpaca_rlhf.models.batches import Example, answer, example
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.models.rollout import score
from alpaca_rlhf.records import Completion, Instruction, PreferencePair, Ranking
from alpaca_rlhf.settings import Reward
from alpaca_rlhf.training.groups import (
    Group,
    from_pairs,
    from_rankings,
    shuffled,
    split_held_out,
    usable,
)
from alpaca_rlhf.training.loop import Checkpoints
from alpaca_rlhf.training.reward import train_reward

SETTINGS = Reward(lr=5e-3, head_lr=5e-3, batch_size=8, micro_batch_size=2, warmup=0.0, save_every=2)
WANTED = 77


def groups(n, k=4, seed=0):
    """Rankings of K completions of 4 to 12 tokens, by how many of them are the wanted one."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    while len(made) < n:
        prompt = (1, *torch.randint(100, 386, (5,), generator=generator).tolist())
        lengths = torch.randint(4, 13, (k,), generator=generator).tolist()
        completions = [torch.randint(100, 386, (m,), generator=generator) for m in lengths]
        counts = torch.randint(0, 4, (k,), generator=generator).tolist()
        for completion, count in zip(completions, counts, strict=True):
            completion[:count] = WANTED
        pairs = tuple((a, b) for a in range(k) for b in range(k) if counts[a] > counts[b])
        if pairs:
            own = tuple(Example(prompt, (*one.tolist(), 2)) for one in completions)
            made.append(Group(f"{seed}/{len(made)}", own, pairs))
    return made


def train(adapters, folder, train_groups, held_out, settings=SETTINGS, *, seed=0, log=None, **more):
    return train_reward(
        adapters,
        "reward",
        train_groups,
        held_out,
        settings,
        seed=seed,
        checkpoints=Checkpoints(folder),
        log=log or (lambda row: None),
        **more,
    )


# --- gradients ------------------------------------------------------------------------------------


def test_the_micro_batch_never_changes_the_gradient(
    tiny, tmp_path, gradients, monkeypatch, precision
):
    dtype, quantization, bound = precision
    if dtype == torch.float64:
        monkeypatch.setattr("alpaca_rlhf.training.reward.ScalarHead", double_head)
    data = groups(6) + groups(2, k=7, seed=1)
    for size in (1, 2, 4, 8):
        adapters = tiny("reward", dtype=dtype, quantization=quantization)
        train(adapters, tmp_path, data, groups(2, seed=2), replace(SETTINGS, micro_batch_size=size))
    whole = gradients[-1]
    assert len(gradients) == 4
    assert whole.norm() > 0.01
    for one in gradients:
        assert (one - whole).norm() <= bound * whole.norm()


def double_head(width, seed=0):
    return ScalarHead(width, seed=seed).double()


def test_each_ranking_weighs_one_whatever_its_k(tiny, tmp_path, gradients):
    """Of K = 2 and K = 6: the mean of the two rankings' gradients, not a mean over 16 pairs."""
    small, large = groups(1, k=2)[0], groups(1, k=6, seed=3)[0]
    assert len(large.pairs) > 8
    for data in ([small], [large], [small, large]):
        train(tiny("reward"), tmp_path, data, groups(1, seed=2))
    one, other, both = gradients
    assert ((one + other) / 2 - both).norm() <= 1e-5 * both.norm()


def test_a_ranking_takes_k_forwards_not_one_a_pair(tiny, tmp_path):
    adapters = tiny("reward")
    data = groups(8, k=5)
    assert sum(len(g.pairs) for g in data) > 8 * 5
    rows = []
    embedding = adapters.base.model.get_input_embeddings()

    def count(module, args, out):
        if torch.is_grad_enabled():
            rows.append(int((args[0] == 1).sum()))  # each sequence begins with bos

    hook = embedding.register_forward_hook(count)
    train(adapters, tmp_path, data, groups(2, seed=2))
    hook.remove()
    assert rows == [10, 10, 10, 10]


def test_two_completions_are_bradley_terry(tiny, tmp_path):
    """The loss of one pair is -log of the winner's odds, from the scores of a fresh head."""
    (group,) = groups(1, k=2)
    adapters = tiny("reward")
    found = score(adapters, "reward", ScalarHead(128, seed=5), group.examples, batch_size=2)
    better, worse = (float(found[i]) for i in group.pairs[0])
    rows = []
    train(adapters, tmp_path, [group], groups(1, seed=2), seed=5, log=rows.append)
    expected = -math.log(math.exp(better) / (math.exp(better) + math.exp(worse)))
    assert rows[0]["loss"] == pytest.approx(expected, rel=1e-4)


def test_the_head_has_a_rate_of_its_own(tiny, tmp_path):
    """Adam's first step moves nearly every weight by its rate."""
    adapters = tiny("reward")
    before = {k: p.clone() for k, p in adapters.parameters("reward").items()}
    settings = replace(SETTINGS, lr=1e-4, head_lr=3e-2)
    head, _ = train(adapters, tmp_path, groups(8), groups(2, seed=2), settings, seed=4)
    moved = (head.weight - ScalarHead(128, seed=4).weight).detach().abs()
    assert float(moved.median()) == pytest.approx(3e-2, rel=1e-2)
    for key, parameter in adapters.parameters("reward").items():
        assert float((parameter - before[key]).abs().max()) < 1.1e-4


# --- learning -------------------------------------------------------------------------------------


def test_it_finds_a_planted_preference_and_shuffled_verdicts_give_one_half(tiny, tmp_path):
    data, held_out = groups(64), groups(40, seed=9)
    settings = replace(SETTINGS, batch_size=8, epochs=3, micro_batch_size=8)
    adapters = tiny("reward", trained=False)
    base = weights_digest(adapters.base)
    head, result = train(adapters, tmp_path / "a", data, held_out, settings)
    assert result.accuracy > 0.9
    assert (result.rankings, result.pairs) == (64, sum(len(g.pairs) for g in data))
    pairs = sum(len(g.pairs) for g in held_out)
    assert len(result.held_out.pairs) == pairs
    assert weights_digest(adapters.base) == base

    one = held_out[0].examples[0]
    more = [replace(one, completion=(*(WANTED,) * n, 150, 2)) for n in range(4)]
    scores = score(adapters, "reward", head, more, batch_size=4)
    assert scores.argsort().tolist() == [0, 1, 2, 3]

    control = tiny("reward", trained=False)
    _, result = train(control, tmp_path / "b", shuffled(data, 0), held_out, settings)
    assert 0.3 < result.accuracy < 0.7


# --- seeds and resuming ---------------------------------------------------------------------------


class Killed(Exception):
    pass


def test_killed_and_resumed_equals_uninterrupted(tiny, tmp_path):
    data, held_out = groups(20), groups(4, seed=2)
    settings = replace(SETTINGS, batch_size=4, epochs=2)

    def go(folder, until=None, seed=0):
        def log(row):
            if row["step"] == until:
                raise Killed

        adapters = tiny("reward", trained=False)
        try:
            head, result = train(adapters, folder, data, held_out, settings, seed=seed, log=log)
        except Killed:
            return None
        return adapters.digest("reward"), head.weight.tolist(), result

    whole = go(tmp_path / "a")
    assert go(tmp_path / "b") == whole, "the same seed gives the same weights"
    assert go(tmp_path / "c", seed=1)[:2] != whole[:2]
    for until in (1, 5, 8):
        folder = tmp_path / str(until)
        assert go(folder, until) is None
        assert go(folder) == whole


# --- refusals and what is left out ----------------------------------------------------------------


def test_a_prompt_on_both_sides_is_refused(tiny, tmp_path):
    data = groups(4)
    with pytest.raises(UserError, match="both trained on and held out"):
        train(tiny("reward"), tmp_path, data, data[:1])
    with pytest.raises(UserError, match="0 held out"):
        train(tiny("reward"), tmp_path, data, [])


def test_completions_that_are_too_long_leave_with_their_pairs():
    short, long = Example((1, 5), (6, 2)), Example((1, 5), (*range(3, 40), 2))
    three = Group("a", (short, long, replace(short, completion=(7, 2))), ((0, 1), (1, 2), (0, 2)))
    two = Group("b", (short, long), ((1, 0),))
    (kept,) = usable([three, two], 20)
    assert kept.examples == (three.examples[0], three.examples[2])
    assert kept.pairs == ((0, 1),)
    assert usable([three, two], 100) == [three, two]


# --- groups ---------------------------------------------------------------------------------------


def completion(text, finish="eos"):
    return Completion("p", text, finish_reason=finish)


def test_a_ranking_becomes_all_its_untied_pairs(tiny):
    adapters = tiny("reward")
    prompt = Instruction("Name a colour.")
    four = [completion(text) for text in ("red", "blue", "a dog")] + [completion("x", "length")]
    a, b, c, d = (one.id for one in four)
    ranking = Ranking(prompt.id, ((b,), (a, d), (c,)), "me")
    tied = Ranking(prompt.id, ((a, b, c, d),), "me")
    twice = Completion("p", "red", sample=1)  # the same words: nothing to learn from the two
    same = Ranking(prompt.id, ((a,), (twice.id,)), "me")
    by_id = {one.id: one for one in (*four, twice)}
    (group,) = from_rankings(adapters, [ranking, tied, same], {prompt.id: prompt}, by_id)
    texts = {"red": a, "blue": b, "a dog": c, "x": d}
    order = [texts[answer(adapters.base, "brief", e.completion)] for e in group.examples]
    named = {(order[i], order[j]) for i, j in group.pairs}
    assert named == {(b, a), (b, d), (b, c), (a, c), (d, c)}
    ends = {order[i]: e.completion[-1] == 2 for i, e in enumerate(group.examples)}
    assert ends == {a: True, b: True, c: True, d: False}, "eos only where the model wrote it"


def test_pairs_of_one_prompt_share_their_forwards(tiny):
    adapters = tiny("reward")
    prompt = Instruction("Name a colour.")
    pairs = [
        PreferencePair(prompt, "red", "dog", prompt.id),
        PreferencePair(prompt, "red", "cat", prompt.id),
    ]
    (group,) = from_pairs(adapters, [pairs])
    assert [e.completion for e in group.examples] == [
        example(adapters.base, "brief", prompt, text).completion for text in ("red", "dog", "cat")
    ]
    assert group.pairs == ((0, 1), (0, 2))
    assert group.prompt_id == prompt.id


def test_no_prompt_is_ever_on_both_sides_of_the_split():
    data = groups(200)
    twice = data + [replace(g, pairs=g.pairs[:1]) for g in data]
    train_side, held_out = split_held_out(twice, 0.25)
    assert not {g.prompt_id for g in train_side} & {g.prompt_id for g in held_out}
    assert len(train_side) + len(held_out) == 400
    assert 60 < len(held_out) < 140
    assert split_held_out(twice[::-1], 0.25)[1] == held_out[::-1]


def test_shuffling_moves_completions_and_leaves_verdicts():
    data = groups(60, k=2)
    control = shuffled(data, 0)
    turned = 0
    for one, other in zip(data, control, strict=True):
        assert one.pairs == other.pairs
        assert sorted(one.examples, key=repr) == sorted(other.examples, key=repr)
        turned += one.examples != other.examples
    assert 15 < turned < 45
    assert shuffled(data, 0) == control != shuffled(data, 1)
