"""The reward adapter: its gradient, its groups, and that it learns what was planted."""

import math
from dataclasses import replace

import pytest
import torch

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Completion, Instruction, PreferencePair, Ranking
from alpaca_rlhf.evaluation.reward_accuracy import figures
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.base import load_base, weights_digest
from alpaca_rlhf.models.batches import Example, answer, collate, example
from alpaca_rlhf.models.forward import completion_scores
from alpaca_rlhf.models.heads import CriteriaHead, ScalarHead
from alpaca_rlhf.models.scoring import score
from alpaca_rlhf.settings import Lora, Reward
from alpaca_rlhf.training import reward
from alpaca_rlhf.training.groups import (
    Group,
    from_pairs,
    from_rankings,
    shuffled,
    split_held_out,
    usable,
)
from alpaca_rlhf.training.held_out import evaluate_reward
from alpaca_rlhf.training.loop import Checkpoints
from alpaca_rlhf.training.reward import group_loss, micro_batch, train_reward

SETTINGS = Reward(lr=5e-3, head_lr=5e-3, batch_size=8, micro_batch_size=2, warmup=0.0, save_every=2)
WANTED, KIND = 77, 88
EVERYTHING = replace(SETTINGS, margin=0.8, ties="soft", criteria_weight=0.5)
SEVERAL = replace(SETTINGS, heads=3, pessimism=1.0)
KINDS = {"plain": SETTINGS, "everything": EVERYTHING, "several heads": SEVERAL}


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


def starred(n, k=4, seed=0):
    """Rankings by two criteria, each with a token of its own: stars, ties and margins are there."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(n):
        prompt = (1, *torch.randint(100, 386, (5,), generator=generator).tolist())
        stars = torch.randint(1, 4, (k, 2), generator=generator).tolist()
        both = [sum(own) for own in stars]
        if len(set(both)) == 1:
            stars[0][0] = 4 - stars[0][0] if stars[0][0] != 2 else 3
            both[0] = sum(stars[0])
        examples = [
            Example(
                prompt,
                (
                    *(WANTED,) * useful,
                    *(KIND,) * kind,
                    *torch.randint(100, 386, (8 - useful - kind,), generator=generator).tolist(),
                    2,
                ),
            )
            for useful, kind in stars
        ]
        tiers = sorted(set(both), reverse=True)
        pairs = [(a, b) for a in range(k) for b in range(k) if both[a] > both[b]]
        apart = tuple(tiers.index(both[b]) - tiers.index(both[a]) for a, b in pairs)
        ties = [(a, b) for a in range(k) for b in range(a) if both[a] == both[b]]
        criteria = {
            name: tuple((a, b) for a in range(k) for b in range(k) if stars[a][c] > stars[b][c])
            for c, name in enumerate(("use", "kindness"))
        }
        margins = tuple(one / (k - 1) for one in apart)
        own = {name: found for name, found in criteria.items() if found}
        made.append(
            Group(
                f"{seed}/{number}", tuple(examples), tuple(pairs), apart, margins, tuple(ties), own
            )
        )
    return made


def train(adapters, folder, train_groups, held_out, settings=SETTINGS, *, seed=0, log=None, **more):
    if settings.heads > 1:
        more.setdefault("references", [e for group in train_groups for e in group.examples])
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


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_the_micro_batch_never_changes_the_gradient(
    tiny, tmp_path, gradients, monkeypatch, precision, settings
):
    dtype, quantization, bound = precision
    if dtype == torch.float64:
        new_head = reward._new_head
        monkeypatch.setattr(reward, "_new_head", lambda *args: new_head(*args).double())
    made = starred if settings is EVERYTHING else groups
    data = made(6) + made(2, k=7, seed=1)
    for size in (1, 2, 4, 8):
        adapters = tiny("reward", dtype=dtype, quantization=quantization)
        folder, small = tmp_path / str(size), replace(settings, micro_batch_size=size)
        train(adapters, folder, data, groups(2, seed=2), small)
    whole = gradients[-1]
    assert len(gradients) == 4
    assert whole.norm() > 0.01
    for one in gradients:
        assert (one - whole).norm() <= bound * whole.norm()


def test_each_ranking_weighs_one_whatever_its_k(tiny, tmp_path, gradients):
    """Of K = 2 and K = 6: the mean of the two rankings' gradients, not a mean over 16 pairs."""
    small, large = groups(1, k=2)[0], groups(1, k=6, seed=3)[0]
    assert len(large.pairs) > 8
    for data in ([small], [large], [small, large]):
        folder = tmp_path / str(len(gradients))
        train(tiny("reward"), folder, data, groups(1, seed=2))
    one, other, both = gradients
    assert ((one + other) / 2 - both).norm() <= 1e-5 * both.norm()


def test_a_ranking_takes_its_prompt_and_k_completions_once_not_once_a_pair(tiny, tmp_path):
    adapters = tiny("reward")
    data = groups(8, k=5)
    assert sum(len(g.pairs) for g in data) > 8 * 5
    seen = []
    embedding = adapters.base.model.get_input_embeddings()

    def count(module, args, out):
        if torch.is_grad_enabled():  # each prompt begins with bos, each completion ends with eos
            seen.append(tuple(int((args[0] == token).sum()) for token in (1, 2)))

    hook = embedding.register_forward_hook(count)
    train(adapters, tmp_path, data, groups(2, seed=2))
    hook.remove()
    assert seen == [(2, 10)] * 4


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


def loss_of(scores, group, **changes):
    return group_loss(torch.tensor(scores)[:, None], group, replace(SETTINGS, **changes)).item()


def test_a_margin_grows_with_the_distance_in_the_ranking():
    """The first is ahead of the last by 2 where 1 is asked for, of the second by 1.2 less half."""
    three = Group("a", (), ((0, 1), (0, 2)), (1, 2), (0.5, 1.0))
    found = loss_of([2.0, 0.8, 0.0], three, margin=1.0)
    assert found == pytest.approx((math.log(1 + math.exp(-0.7)) + math.log(1 + math.exp(-1))) / 2)
    assert loss_of([2.0, 0.8, 0.0], three) == loss_of([2.0, 0.8, 0.0], replace(three, margins=()))


def test_stars_add_the_loss_of_their_own_pairs():
    """Two criteria of weight .3: each looks at its own column, and at its own pairs."""
    group = Group("a", (), ((0, 1),), criteria={"kindness": ((1, 0),), "use": ((0, 1), (1, 0))})
    parts = torch.tensor([[1.0, 0.4, 0.6], [0.2, 0.4, -0.2]])  # score, kindness, use
    settings = replace(SETTINGS, criteria_weight=0.3)
    found = group_loss(parts, group, settings, ["kindness", "use"]).item()
    order, kindness = math.log(1 + math.exp(-0.8)), math.log(2)
    use = (math.log(1 + math.exp(-0.8)) + math.log(1 + math.exp(0.8))) / 2
    assert found == pytest.approx(order + 0.3 * kindness + 0.3 * use)
    unstarred = replace(group, criteria={})
    assert group_loss(parts, unstarred, settings, ["kindness", "use"]) == pytest.approx(order)


def test_what_is_not_asked_for_changes_nothing(tiny, tmp_path):
    """Margins, stars: with the settings at 0, groups that hold them train as those that do not."""
    found = []
    for data in (
        starred(8),
        [replace(g, margins=(), tier_gaps=(), criteria={}) for g in starred(8)],
    ):
        adapters = tiny("reward")
        head, _ = train(adapters, tmp_path, data, starred(2, seed=1))
        found.append((adapters.digest("reward"), head.weight.tolist()))
        assert type(head) is ScalarHead
    assert found[0] == found[1]


def test_a_ranking_of_ties_alone_is_learned_from_but_not_measured_on(tiny, tmp_path):
    three = starred(1)[0]
    tied = replace(
        three, prompt_id="tied", pairs=(), tier_gaps=(), margins=(), ties=((0, 1), (2, 3))
    )
    rows = []
    settings = replace(SETTINGS, batch_size=1)
    _, result = train(
        tiny("reward"),
        tmp_path,
        [three, tied],
        [*starred(2, seed=1), replace(tied, prompt_id="x")],
        settings,
        log=rows.append,
    )
    assert (result.rankings, result.pairs) == (2, len(three.pairs) + len(three.ties) + 2)
    assert sorted("accuracy" in row for row in rows) == [False, True]
    assert {pair.prompt_id for pair in result.held_out.pairs} == {"1/0", "1/1"}
    assert result.left_out == 0


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


def test_each_criterion_is_learned_by_its_own_head(tiny, tmp_path):
    """Two planted tokens: each head counts its own, and the score is the sum of the two."""
    adapters = tiny("reward", trained=False)
    settings = replace(SETTINGS, epochs=3, micro_batch_size=8, criteria_weight=0.5, ties="soft")
    head, result = train(adapters, tmp_path, starred(64), starred(40, seed=9), settings)
    assert head.criteria == ("kindness", "use")
    found = figures(result.held_out, resamples=100, seed=0)
    accuracy = {row["is"]: row["accuracy"] for row in found["accuracy_by"]["criterion"]}
    assert found["held_out_accuracy"] > 0.8
    assert min(accuracy.values()) > 0.8, accuracy

    one = starred(1, seed=9)[0].examples[0]
    rows = [(WANTED,) * a + (KIND,) * b + (150,) * (6 - a - b) + (2,) for a, b in ((3, 1), (1, 3))]
    parts = score(
        adapters,
        "reward",
        head.all_scores,
        [replace(one, completion=row) for row in rows],
        batch_size=2,
    )
    (_, kindness, use), (_, other_kindness, other_use) = parts.tolist()
    assert use > other_use and kindness < other_kindness
    assert torch.allclose(parts[:, 1:].sum(1), parts[:, 0], atol=1e-4)


# --- seeds and resuming ---------------------------------------------------------------------------


def test_a_loss_scale_leaves_no_trace(tiny, tmp_path, scaled):
    def weights():
        adapters = tiny("reward", trained=False)
        settings = replace(EVERYTHING, max_grad_norm=0.1)
        head, _ = train(adapters, tmp_path / "none", starred(12), starred(4, seed=2), settings)
        return adapters.digest("reward"), head.weight.tolist()

    plain = weights()
    with scaled(1024):
        assert weights() == plain


class Killed(Exception):
    pass


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_killed_and_resumed_equals_uninterrupted(tiny, tmp_path, settings):
    data, held_out = starred(20), starred(4, seed=2)
    settings = replace(settings, batch_size=4, epochs=2)

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
    three = Group(
        "a",
        (short, long, replace(short, completion=(7, 2))),
        ((0, 1), (1, 2), (0, 2)),
        (1, 1, 2),
        (0.5, 0.5, 1.0),
        criteria={"use": ((2, 0), (1, 0)), "kindness": ((1, 2),)},
    )
    two = Group("b", (short, long), ((1, 0),))
    tied = Group("c", (long, short, short), (), ties=((0, 1), (1, 2)))
    kept, drawn = usable([three, two, tied], 20)
    assert kept.examples == (three.examples[0], three.examples[2])
    assert (kept.pairs, kept.tier_gaps, kept.margins) == (((0, 1),), (2,), (1.0,))
    assert kept.criteria == {"use": ((1, 0),)}
    assert drawn.ties == ((0, 1),)
    assert usable([three, two, tied], 100) == [three, two, tied]


def test_what_is_too_long_is_counted(tiny, tmp_path):
    """By completions and by rankings that lose their last pair, on both sides."""
    data, held_out = groups(6), groups(4, seed=2)

    def stretched(group, *which):
        own = [
            replace(e, prompt=e.prompt + (9,) * 60) if i in which else e
            for i, e in enumerate(group.examples)
        ]
        return replace(group, examples=tuple(own))

    data[0] = stretched(data[0], 0, 1, 2, 3)  # its prompt is beyond the limit
    one = next(i for i, group in enumerate(data) if i and len(group.pairs) > 3)
    data[one] = stretched(data[one], data[one].pairs[0][1])
    held_out[1] = stretched(held_out[1], 0, 1, 2, 3)
    settings = replace(SETTINGS, max_length=40)
    _, result = train(tiny("reward"), tmp_path, data, held_out, settings)
    assert (result.too_long, result.left_out, result.rankings) == (9, 2, 5)
    with pytest.raises(UserError, match=r"within --reward\.max-length 3"):
        train(tiny("reward"), tmp_path, data, held_out, replace(SETTINGS, max_length=3))


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
    assert all(i < j for i, j in group.pairs), "the better ones stand first"
    apart = {
        (order[i], order[j]): n for (i, j), n in zip(group.pairs, group.tier_gaps, strict=True)
    }
    assert apart == {(b, a): 1, (b, d): 1, (b, c): 2, (a, c): 1, (d, c): 1}
    assert group.margins == tuple(one / 3 for one in group.tier_gaps)
    assert not group.ties and not group.criteria
    ends = {order[i]: e.completion[-1] == 2 for i, e in enumerate(group.examples)}
    assert ends == {a: True, b: True, c: True, d: False}, "eos only where the model wrote it"


def test_ties_are_pairs_where_that_is_asked_for(tiny):
    adapters = tiny("reward")
    prompt = Instruction("Name a colour.")
    three = [completion(text) for text in ("red", "blue", "a dog")]
    twice = Completion("p", "red", sample=1)
    a, b, c = (one.id for one in three)
    by_id = {one.id: one for one in (*three, twice)}
    rankings = [
        Ranking(prompt.id, ((b,), (a, c, twice.id)), "me"),
        Ranking(prompt.id, ((a, b),), "me"),
        Ranking(prompt.id, ((a, twice.id),), "me"),
    ]
    first, second = from_rankings(adapters, rankings, {prompt.id: prompt}, by_id, ties=True)
    assert first.pairs == ((0, 1), (0, 2), (0, 3))
    assert first.ties == ((1, 2), (2, 3)), "red and red are the same, not tied"
    assert (second.pairs, second.ties) == ((), ((0, 1),))


def test_stars_order_pairs_of_their_own(tiny):
    """Not those with equal stars, not those without; whatever the tiers say."""
    adapters = tiny("reward")
    prompt = Instruction("Name a colour.")
    four = [completion(text) for text in ("red", "blue", "a dog", "green")]
    a, b, c, d = (one.id for one in four)
    stars = {a: {"use": 2, "style": 3}, b: {"use": 5, "style": 3}, c: {"use": 2}, d: {"sound": 1}}
    ranking = Ranking(prompt.id, ((a,), (b,), (c, d)), "me", stars)
    by_id = {one.id: one for one in four}
    (group,) = from_rankings(adapters, [ranking], {prompt.id: prompt}, by_id)
    assert group.criteria == {"use": ((1, 0), (1, 2))}


def test_pairs_of_one_prompt_share_their_forwards(tiny):
    adapters = tiny("reward")
    prompt = Instruction("Name a colour.")
    pairs = [
        PreferencePair(prompt, "red", "dog", prompt.id),
        PreferencePair(prompt, "red", "cat", prompt.id, 0.5),
    ]
    (group,) = from_pairs(adapters, [pairs])
    assert [e.completion for e in group.examples] == [
        example(adapters.base, "brief", prompt, text).completion for text in ("red", "dog", "cat")
    ]
    assert (group.pairs, group.margins) == (((0, 1), (0, 2)), (0.0, 0.5))
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


# --- evaluation -----------------------------------------------------------------------------------


def rankings_at_once(size):
    return micro_batch("reward", Reward(micro_batch_size=size))


def test_evaluation_does_not_depend_on_its_batch(tiny):
    """Ten rankings in batches of 4 completions, and of any other size, give one set of figures."""
    adapters, data = tiny("reward"), starred(10)
    head = CriteriaHead(128, ["kindness", "use"], seed=2)
    found = [
        figures(
            evaluate_reward(adapters, "reward", head, data, rankings_at_once(size)),
            resamples=50,
            seed=0,
        )
        for size in (4, 1, 7, 100)
    ]
    assert set(found[0]["accuracy_by"]) >= {
        "tiers_apart",
        "preferred_is",
        "confidence",
        "criterion",
    }
    for other in found[1:]:
        assert flat(other) == pytest.approx(flat(found[0]), abs=1e-5)


def flat(value):
    if isinstance(value, dict | list):
        rows = value.values() if isinstance(value, dict) else value
        return [x for one in rows for x in flat(one)]
    return [] if isinstance(value, str) else [value]


def test_what_is_held_of_each_pair(tiny):
    adapters, head, data = tiny("reward"), CriteriaHead(128, ["use", "x"], seed=2), starred(3)
    found = evaluate_reward(adapters, "reward", head, data, rankings_at_once(2))
    alone = [score(adapters, "reward", head.all_scores, g.examples, batch_size=1) for g in data]
    expected = [
        (g.prompt_id, 4, n, float(s[a, 0] - s[b, 0]))
        for g, s in zip(data, alone, strict=True)
        for (a, b), n in zip(g.pairs, g.tier_gaps, strict=True)
    ]
    held = [(p.prompt_id, p.completions, p.tier_gap, p.gap) for p in found.pairs]
    assert [one[:3] for one in held] == [one[:3] for one in expected]
    assert [one[3] for one in held] == pytest.approx([one[3] for one in expected], abs=1e-5)
    use = [
        float(s[a, 1] - s[b, 1])
        for g, s in zip(data, alone, strict=True)
        for a, b in g.criteria["use"]
    ]
    assert [p.gap for p in found.criteria["use"]] == pytest.approx(use, abs=1e-5)
    assert found.criteria["x"] == ()
    assert found.lengths == (9,) * 12 and found.pairs[0].tokens == (9, 9)
    assert found.accuracy == sum(p.gap > 0 for p in found.pairs) / len(found.pairs)


def test_equal_scores_are_half_right(tiny):
    head = ScalarHead(128)
    with torch.no_grad():
        head.weight.zero_()
    held_out = evaluate_reward(tiny("reward"), "reward", head, groups(4), rankings_at_once(2))
    found = figures(held_out, resamples=50, seed=0)
    assert held_out.accuracy == found["held_out_accuracy"] == 0.5
    assert found["length_correlation"] == found["length_rank_correlation"] == 0
    assert found["calibration_error"] == pytest.approx(0)


# --- where the score is read, and from what -------------------------------------------------------


def test_it_starts_as_sft_bit_for_bit(tiny):
    adapters = tiny("sft")
    adapters.add("reward", copy_of="sft", seed=7)
    batch = collate(adapters.base, groups(1)[0].examples)
    states = []
    for role in ("sft", "reward", None):
        with torch.no_grad(), adapters.using(role):
            states.append(adapters.hidden(batch))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2]), "not the bare base"


def test_two_train_mode_forwards_give_the_same_scores(tiny):
    """No dropout of any kind, and checkpointed activations change nothing."""
    adapters, head = tiny("reward"), ScalarHead(128, seed=1)
    batch = collate(adapters.base, groups(1)[0].examples)
    with torch.no_grad(), adapters.using("reward"):
        evaluated = completion_scores(adapters, head, batch)
        with adapters.training():
            one, other = (completion_scores(adapters, head, batch) for _ in range(2))
    assert torch.equal(one, other) and torch.equal(one, evaluated)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_completion_counts_its_positions_from_0(tiny, dtype):
    """A hook sees them: scores cannot tell, since attention only knows differences."""
    adapters, head = tiny("reward", dtype=dtype), ScalarHead(128, seed=1)
    examples = [Example((1, *range(100, 110)), (120, 2)), Example((1, 101), (121, 122, 123, 2))]
    seen = []
    hook = adapters.base.model.model.register_forward_pre_hook(
        lambda module, args, given: seen.append(given["position_ids"]), with_kwargs=True
    )
    together = score(adapters, "reward", head, examples, batch_size=2)
    hook.remove()
    assert seen[0].flatten().tolist() == [*range(13), *range(6)]
    alone = [float(score(adapters, "reward", head, [one], batch_size=1)) for one in examples]
    close = 1e-5 if dtype == torch.float32 else 0.05  # bfloat16 rounds states to 8 bits
    assert together.tolist() == pytest.approx(alone, abs=close)


# --- on the disk ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", [SETTINGS, EVERYTHING], ids=["plain", "everything"])
def test_reloaded_on_a_fresh_base_it_scores_the_same_bit_for_bit(
    tiny, tiny_folder, tmp_path, dtype, settings
):
    """Trained, normalised, saved; then the base, the adapter and the head are read anew."""
    data = starred(6)
    adapters = tiny("reward", dtype=dtype)
    head, _ = train(adapters, tmp_path / "c", data, starred(2, seed=1), settings)
    examples = [one for group in data for one in group.examples]
    raw = score(adapters, "reward", head, examples, batch_size=4)
    head.normalise(raw)
    before = score(adapters, "reward", head, examples, batch_size=4)
    assert float(before.mean()) == pytest.approx(0, abs=1e-5)
    assert float(before.std(correction=0)) == pytest.approx(1, abs=1e-4)
    assert torch.equal(before.argsort(), raw.argsort()), "the accuracy stays what it was"
    adapters.save("reward", tmp_path / "reward", head)

    again = Adapters(load_base(str(tiny_folder), dtype=dtype), Lora(r=4, alpha=8), template="brief")
    assert again.base.quantization == "nf4"
    again.load("reward", tmp_path / "reward")
    read = ScalarHead.load(tmp_path / "reward", 128)
    assert torch.equal(score(again, "reward", read, examples, batch_size=4), before)
    if isinstance(head, CriteriaHead):
        both = CriteriaHead.load(tmp_path / "reward", 128)
        assert both.criteria == ("kindness", "use")
        parts = score(again, "reward", both.all_scores, examples, batch_size=4)
        assert torch.equal(
            parts, score(adapters, "reward", head.all_scores, examples, batch_size=4)
        )
