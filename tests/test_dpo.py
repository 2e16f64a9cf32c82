"""DPO: its loss by hand, its gradient against plain torch, and that it learns what was planted."""

import math
from dataclasses import replace

import pytest
import torch

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.models.batches import Example
from alpaca_rlhf.models.scoring import completion_logprobs
from alpaca_rlhf.settings import DPO, Loop, Reward
from alpaca_rlhf.settings.inputs import Inputs
from alpaca_rlhf.training.dpo import (
    ReferencedGroup,
    evaluate_dpo,
    micro_batch,
    reference_logprobs,
    train_dpo,
)
from alpaca_rlhf.training.groups import Group
from alpaca_rlhf.training.loop import Checkpoints
from alpaca_rlhf.training.losses import dpo_loss

SETTINGS = DPO(lr=5e-3, batch_size=8, micro_batch_size=2, warmup=0.0, save_every=2)
WANTED = 77
LN3 = math.log(3)


def groups(n, k=4, seed=0, ties=False):
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
        tied = tuple((a, b) for a in range(k) for b in range(a) if counts[a] == counts[b])
        if pairs:
            examples = tuple(Example(prompt, (*ids.tolist(), 2)) for ids in completions)
            made.append(Group(f"{seed}/{len(made)}", examples, pairs, ties=tied if ties else ()))
    return made


def cast(make, **options):
    """SFT, frozen, and a policy that begins as it."""
    adapters = make("sft", **options)
    adapters.add("policy", copy_of="sft")
    return adapters


def referenced(adapters, rankings):
    values = reference_logprobs(adapters, rankings, micro_batch("dpo", SETTINGS))
    return [ReferencedGroup(*pair) for pair in zip(rankings, values, strict=True)]


def train(adapters, folder, rankings, held_out, settings=SETTINGS, *, seed=0, log=None):
    return train_dpo(
        adapters,
        "policy",
        rankings,
        held_out,
        settings,
        seed=seed,
        checkpoints=Checkpoints(folder),
        log=log or (lambda row: None),
    )


# --- the loss by hand -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # The chance of the right order is 3/4 at a gap of ln 3, 9/10 at one of 2 ln 3.
        ({"beta": 1.0}, (math.log(4 / 3) + math.log(4 / 3) + math.log(10 / 9)) / 3),
        ({"beta": 0.5}, (2 * math.log1p(3**-0.5) + math.log(4 / 3)) / 3),
        (
            {"beta": 1.0, "label_smoothing": 0.25},
            (2 * (0.75 * math.log(4 / 3) + 0.25 * math.log(4))) / 3
            + (0.75 * math.log(10 / 9) + 0.25 * math.log(10)) / 3,
        ),
        ({"beta": 0.25, "kind": "ipo"}, (2 * (LN3 - 2) ** 2 + (2 * LN3 - 2) ** 2) / 3),
    ],
)
def test_three_completions_by_hand(options, expected):
    log_ratios = torch.tensor([LN3, 0.0, -LN3], dtype=torch.float64)
    pairs = torch.tensor([(0, 1), (1, 2), (0, 2)])
    assert dpo_loss(log_ratios, pairs, **options).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", ["sigmoid", "ipo"])
def test_a_tie_draws_log_ratios_together(kind):
    log_ratios = torch.tensor([0.4, -0.1], dtype=torch.float64, requires_grad=True)
    none, both = torch.zeros(0, 2, dtype=torch.int64), torch.tensor([(1, 0)])
    dpo_loss(log_ratios, none, beta=0.3, kind=kind, ties=both).backward()
    up, down = log_ratios.grad.tolist()
    assert up > 0 > down and up == pytest.approx(-down)


def test_before_the_first_step_every_order_is_as_likely(tiny):
    """The policy is the reference: implicit rewards 0, loss ln 2, or the square of IPO's target."""
    adapters = cast(tiny)
    rows, micro = referenced(adapters, groups(4)), micro_batch("dpo", SETTINGS)
    start = evaluate_dpo(adapters, "policy", rows, SETTINGS, micro)
    assert start.loss == pytest.approx(math.log(2), abs=1e-6)
    assert start.margin == pytest.approx(0, abs=1e-6)
    ipo = replace(SETTINGS, loss="ipo", beta=0.5)
    assert evaluate_dpo(adapters, "policy", rows, ipo, micro).loss == pytest.approx(1, abs=1e-5)


# --- gradients ------------------------------------------------------------------------------------

VARIANTS = {
    "plain": SETTINGS,
    "ipo": replace(SETTINGS, loss="ipo", beta=0.5),
    "everything": replace(SETTINGS, label_smoothing=0.1, sft_coef=0.3, length_normalised=True),
}


def slow_logprob(adapters, role, example):
    """log p of a completion, by transformers' own forward of that one sequence."""
    ids = torch.tensor([example.prompt + example.completion])
    with adapters.using(role), adapters.training():
        logits = adapters.base.model(input_ids=ids).logits[0, len(example.prompt) - 1 : -1]
        chosen = torch.tensor(example.completion)[:, None]
        return logits.float().log_softmax(-1).gather(1, chosen).sum()


def slow_loss(adapters, rankings, settings):
    """The mean over rankings of the mean over pairs, from the papers' equations."""
    losses = []
    for group in rankings:
        values = []
        for example in group.examples:
            with torch.no_grad():
                reference = slow_logprob(adapters, "sft", example)
            logprob = slow_logprob(adapters, "policy", example)
            length = len(example.completion) if settings.length_normalised else 1
            values.append(((logprob - reference) / length, logprob / len(example.completion)))
        terms = []
        for better, worse in group.pairs:
            h = values[better][0] - values[worse][0]
            eps, beta = settings.label_smoothing, settings.beta
            if settings.loss == "ipo":
                terms.append((h - 0.5 / beta) ** 2)
            else:
                right, wrong = torch.sigmoid(beta * h), torch.sigmoid(-beta * h)
                terms.append(-(1 - eps) * right.log() - eps * wrong.log())
        loss = sum(terms) / len(terms)
        losing = {worse for _, worse in group.pairs}
        best = [
            i for i in range(len(values)) if i not in losing and any(i in p for p in group.pairs)
        ]
        if settings.sft_coef:
            loss = loss - settings.sft_coef * sum(values[i][1] for i in best) / len(best)
        losses.append(loss)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_gradient_is_that_of_plain_torch(tiny, tmp_path, gradients, name):
    settings = replace(VARIANTS[name], batch_size=3, micro_batch_size=1, max_grad_norm=1e9)
    rankings = groups(3)

    def moved():
        adapters = cast(tiny)
        with torch.no_grad():
            for p in adapters.parameters("policy").values():
                p.mul_(1.1)
        return adapters

    adapters = moved()
    rows = []
    train(
        adapters,
        tmp_path,
        referenced(adapters, rankings),
        referenced(adapters, groups(1, seed=2)),
        settings,
        log=rows.append,
    )
    adapters = moved()
    adapters.trainable("policy")
    loss = slow_loss(adapters, rankings, settings)
    loss.backward()
    parameters = sorted(adapters.parameters("policy").items())
    expected = torch.cat([p.grad.flatten().double() for _, p in parameters])
    assert rows[0]["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert expected.norm() > 1e-3
    assert (gradients[0] - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("name", VARIANTS)
def test_the_micro_batch_never_changes_the_gradient(tiny, tmp_path, gradients, precision, name):
    dtype, quantization, bound = precision
    data = groups(6, ties=True) + groups(2, k=7, seed=1)
    for size in (1, 2, 8):
        adapters = cast(tiny, dtype=dtype, quantization=quantization)
        reference = [
            ReferencedGroup(group, tuple(-3.0 * len(e.completion) for e in group.examples))
            for group in data
        ]
        held_out = [ReferencedGroup(group, (0.0,) * 4) for group in groups(1, seed=2)]
        settings = replace(VARIANTS[name], micro_batch_size=size)
        train(adapters, tmp_path / str(size), reference, held_out, settings)
    assert len(gradients) == 3
    whole = gradients[-1]
    assert whole.norm() > 1e-3
    for gradient in gradients:
        assert (gradient - whole).norm() <= bound * whole.norm()


def test_a_ranking_takes_k_forwards_and_weighs_one(tiny, tmp_path, gradients):
    """The gradient of two rankings is the mean of theirs, however many pairs each has."""
    few, many = groups(1, k=2), groups(1, k=7, seed=1)
    for data in (few, many, few + many):
        adapters = cast(tiny)
        with torch.no_grad():
            for p in adapters.parameters("policy").values():
                p.mul_(1.1)
        held_out = referenced(adapters, groups(1, seed=2))
        rows = [ReferencedGroup(g, (-20.0,) * len(g.examples)) for g in data]
        train(adapters, tmp_path / str(len(gradients)), rows, held_out)
    alone, other, both = gradients
    assert torch.allclose(both, (alone + other) / 2, atol=1e-6 * both.norm())


# --- learning, and resuming -----------------------------------------------------------------------


def test_it_learns_a_planted_order_and_leaves_sft_alone(tiny, tmp_path):
    adapters = cast(tiny)
    sft = adapters.digest("sft")
    data, unseen = referenced(adapters, groups(48)), referenced(adapters, groups(16, seed=2))
    logged = []
    settings = replace(SETTINGS, epochs=3, eval_every=6)
    result = train(adapters, tmp_path, data, unseen, settings, log=logged.append)
    assert result.held_out.accuracy > 0.75 and result.held_out.margin > 0
    assert result.held_out.loss < math.log(2)
    assert [row["step"] for row in logged if "eval_loss" in row] == [6, 12, 18]
    assert logged[-1]["eval_accuracy"] == result.held_out.accuracy
    assert logged[-1]["accuracy"] > 0.8
    assert adapters.digest("sft") == sft


def test_the_best_weights_are_kept_where_patience_ends_it(tiny, tmp_path):
    adapters = cast(tiny)
    data = referenced(adapters, groups(8))
    # Held-out rankings in the opposite order: the longer it learns, the worse.
    turned = [
        ReferencedGroup(
            replace(row.group, pairs=tuple((b, a) for a, b in row.group.pairs)), row.reference
        )
        for row in data
    ]
    settings = replace(SETTINGS, batch_size=4, epochs=6, eval_every=1, patience=2)
    result = train(adapters, tmp_path, data, turned, settings)
    assert (result.steps, result.best_step) == (3, 1)
    micro = micro_batch("dpo", settings)
    kept = evaluate_dpo(adapters, "policy", turned, settings, micro)
    assert kept == result.held_out


class Killed(Exception):
    pass


def test_killed_and_resumed_equals_uninterrupted(tiny, tmp_path):
    settings = replace(SETTINGS, batch_size=4, epochs=2, eval_every=2)
    data, unseen = groups(16), groups(4, seed=2)

    def go(folder, until=None, seed=0):
        def log(row):
            if row["step"] == until:
                raise Killed

        adapters = cast(tiny)
        rows = referenced(adapters, data), referenced(adapters, unseen)
        try:
            result = train(adapters, folder, *rows, settings, seed=seed, log=log)
        except Killed:
            return None
        return adapters.digest("policy"), result

    whole = go(tmp_path / "a")
    assert go(tmp_path / "b", seed=1)[0] != whole[0]
    for until in (1, 5, 8):
        assert go(tmp_path / str(until), until) is None
        assert go(tmp_path / str(until)) == whole


def test_log_probabilities_do_not_depend_on_their_batch(tiny):
    adapters = cast(tiny)
    examples = [example for group in groups(3) for example in group.examples]
    alone = completion_logprobs(adapters, "sft", examples, batch_size=1)
    together = completion_logprobs(adapters, "sft", examples, batch_size=12)
    assert torch.allclose(alone, together, rtol=1e-6)
    slow = [slow_logprob(adapters, "sft", example).item() for example in examples[:3]]
    assert alone[:3].tolist() == pytest.approx(slow, rel=1e-5)


# --- refusals -------------------------------------------------------------------------------------


def test_no_rankings_left_are_refused(tiny, tmp_path):
    adapters = cast(tiny)
    rows = referenced(adapters, groups(2))
    with pytest.raises(
        UserError, match=r"2 rankings to train on and 0 held out .*--dpo.max-length"
    ):
        train(adapters, tmp_path, rows, [])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"beta": 0}, r"--dpo\.beta must be > 0, got 0"),
        ({"label_smoothing": 0.5}, r"--dpo\.label-smoothing must be at least 0 and below 0.5"),
        ({"sft_coef": -1}, r"--dpo\.sft-coef must be >= 0"),
    ],
)
def test_settings_out_of_range_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        DPO(**changes)


def test_a_judge_as_the_reward_leaves_dpo_nothing_to_learn_from():
    judged = {"reward": Reward(source="judge"), "inputs": Inputs(judge="gold")}
    with pytest.raises(ValueError, match=r"--policies dpo learns from rankings, and with --reward"):
        Loop(policies=("ppo", "dpo"), **judged)
