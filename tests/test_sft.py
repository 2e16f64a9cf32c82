"""Supervised fine-tuning: what carries loss, what must not change it, and that it learns."""

import json
import math
from dataclasses import replace

import pytest
import torch

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.models.base import weights_digest
from alpaca_rlhf.models.batches import Example, TokenCounts, by_length, collate, example
from alpaca_rlhf.models.forward import loss_logprobs
from alpaca_rlhf.models.rollout import sample
from alpaca_rlhf.settings import SFT, Sampling
from alpaca_rlhf.stages.sft import held_out_summary
from alpaca_rlhf.training import loss_scale, sft
from alpaca_rlhf.training.loop import Checkpoints, Learner, batches
from alpaca_rlhf.training.sft import (
    EncodedRows,
    SFTResult,
    encode,
    held_out_loss,
    preview_indices,
    split_held_out,
    train_sft,
)


def examples(n, seed=0):
    """Random prompts of 2 to 12 tokens with completions of 1 to 20."""
    generator = torch.Generator().manual_seed(seed)

    def ids(least, most):
        length = int(torch.randint(least, most + 1, (1,), generator=generator))
        return tuple(torch.randint(3, 386, (length,), generator=generator).tolist())

    return [Example((1, *ids(1, 11)), (*ids(0, 19), 2)) for _ in range(n)]


def full_rows(n):
    """Random rows of 32 tokens, of which 20 carry loss."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 386, (n, 30), generator=generator).tolist()
    return [Example((1, *row[:11]), (*row[11:], 2)) for row in ids]


LONGEST = 32
"""Tokens of the longest row of `examples` and of each of `full_rows`."""
LARGEST = TokenCounts.of_longest(LONGEST)
SETTINGS = SFT(lr=1e-2, epochs=1, batch_size=8, micro_batch_size=4, warmup=0.0, save_every=2)
FULL = replace(SETTINGS, max_length=LONGEST)


def train(adapters, folder, rows, settings=SETTINGS, *, seed=0, held_out=(), log=None, **options):
    return train_sft(
        adapters,
        "sft",
        rows,
        held_out,
        settings,
        seed=seed,
        checkpoints=Checkpoints(folder),
        log=log or (lambda row: None),
        **options,
    )


# --- gradients ------------------------------------------------------------------------------------


def test_the_micro_batch_never_changes_the_gradient(tiny, tmp_path, gradients, precision):
    dtype, quantization, bound = precision
    for size in (1, 2, 4, 8):
        adapters = tiny("sft", dtype=dtype, quantization=quantization)
        if dtype == torch.float64:
            assert {p.dtype for p in adapters.parameters("sft").values()} == {torch.float64}
        settings = replace(SETTINGS, micro_batch_size=size, max_length=LONGEST)
        train(adapters, tmp_path, examples(8), settings)
    whole = gradients[-1]
    assert len(gradients) == 4
    assert whole.norm() > 0.1
    for one in gradients:
        assert (one - whole).norm() <= bound * whole.norm()


def test_short_rows_fill_a_micro_batch_and_keep_the_gradient(
    tiny, tmp_path, gradients, monkeypatch
):
    """In fp32, against micro-batches that are counted in rows: fewer forwards, equal gradients."""
    rows = [*examples(30), *full_rows(2)]
    settings = replace(SETTINGS, batch_size=32, micro_batch_size=2, max_length=64)
    forwards = []

    def logprobs(adapters, batch):
        forwards.append((len(batch), len(batch.ids), len(batch.loss_positions)))
        return loss_logprobs(adapters, batch)

    monkeypatch.setattr(sft, "loss_logprobs", logprobs)
    train(tiny("sft"), tmp_path / "tokens", rows, settings)
    by_tokens = forwards.copy()
    forwards.clear()
    monkeypatch.setattr(
        sft,
        "longest_first",
        lambda examples, size, largest: by_length([len(row) for row in examples], size),
    )
    train(tiny("sft"), tmp_path / "rows", rows, settings)
    packed, counted = gradients
    assert counted.norm() > 0.1
    assert (packed - counted).norm() <= 1e-5 * counted.norm()
    assert len(forwards) == 16 and len(by_tokens) <= 8
    assert sum(count for count, _, _ in by_tokens) == 32
    assert all(tokens <= 128 for _, tokens, _ in by_tokens)
    assert all(count <= 2 or with_loss <= 64 for count, _, with_loss in by_tokens)


def test_the_gradient_is_that_of_a_plain_token_mean(tiny, tmp_path, gradients):
    """Of cross-entropy over the completion tokens of the whole batch, by transformers' forward."""
    rows = examples(8)
    adapters = tiny("sft")
    adapters.trainable("sft")
    total, count = 0.0, 0
    with adapters.using("sft"):
        for one in rows:
            ids = torch.tensor([one.prompt + one.completion])
            logits = adapters.base.model(input_ids=ids, use_cache=False).logits[0, :-1]
            labels = ids[0, 1:].clone()
            labels[: len(one.prompt) - 1] = -100
            own = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
            total, count = total + own, count + len(one.completion)
        (total / count).backward()
    expected = torch.cat(
        [p.grad.flatten().double() for _, p in sorted(adapters.parameters("sft").items())]
    )
    del total, own
    logged = []
    result = train(tiny("sft"), tmp_path, rows, log=logged.append)
    assert (gradients[0] - expected).norm() <= 1e-5 * expected.norm()
    assert logged[0]["tokens"] == count == result.tokens


def test_only_completion_tokens_carry_loss(tiny, tmp_path, gradients):
    """A completion of eos alone has one term: minus log p(eos)."""
    adapters = tiny("sft", trained=False)
    one = Example((1, 20, 30, 40), (2,))
    with torch.no_grad():
        logits = adapters.base.model(input_ids=torch.tensor([one.prompt])).logits[0, -1]
    rows = []
    train(adapters, tmp_path, [one], log=rows.append)
    assert rows[0]["loss"] == pytest.approx(-logits.log_softmax(-1)[2].item(), abs=1e-4)


def test_the_replies_of_earlier_turns_carry_loss_too(tiny):
    """A conversation of two turns costs what its two replies cost, each after what precedes it."""
    adapters = tiny("sft")
    talk = Example((1, 110, 120, 130, 2, 140, 150), (160, 2), earlier=((3, 5),))
    replies = [Example(talk.prompt[:3], talk.prompt[3:5]), Example(talk.prompt, talk.completion)]
    whole = held_out_loss(adapters, "sft", [talk], 1, LARGEST)
    assert whole == pytest.approx(held_out_loss(adapters, "sft", replies, 1, LARGEST), abs=1e-6)
    last = held_out_loss(adapters, "sft", replies[1:], 1, LARGEST)
    assert abs(whole - last) > 1e-3


def test_the_last_smaller_batch_is_a_mean_of_its_own(tiny, tmp_path):
    """Ten examples by four make three steps an epoch, and the loss of the last is not diluted."""
    rows = []
    settings = replace(SETTINGS, batch_size=4, lr=1e-12)
    data = [Example((1, 20, 30), (40, 50, 2))] * 10
    train(tiny("sft"), tmp_path, data, settings, log=rows.append)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row["tokens"] for row in rows] == [12, 12, 6]
    assert rows[2]["loss"] == pytest.approx(rows[0]["loss"], rel=1e-5)


# --- seeds and resuming ---------------------------------------------------------------------------


class Killed(Exception):
    pass


def test_a_loss_scale_leaves_no_trace(tiny, tmp_path, scaled):
    def digest():
        adapters = tiny("sft", trained=False)
        train(adapters, tmp_path / "none", examples(20), replace(SETTINGS, max_grad_norm=0.5))
        return adapters.digest("sft")

    plain = digest()
    with scaled(1024):
        assert digest() == plain


def test_float16_keeps_small_gradients_by_its_scale(tiny):
    """A share in the mean over ten million tokens rounds to nothing without it."""
    adapters = tiny("sft", dtype=torch.float16)
    parameters = adapters.parameters("sft").values()
    adapters.trainable("sft")

    def gradient(scale, divisor):
        with adapters.using("sft"), adapters.training():
            batch = collate(adapters.base, examples(4))
            scale.backward(-loss_logprobs(adapters, batch).sum() / divisor)
        scale.unscale(parameters)
        whole = torch.cat([p.grad.flatten() for p in parameters]) * divisor
        for p in parameters:
            p.grad = None
        return whole

    none = loss_scale.LossScale(torch.bfloat16)
    exact = gradient(none, 1.0)
    kept = gradient(loss_scale.LossScale(torch.float16), 1e7)
    lost = gradient(none, 1e7)
    assert (kept - exact).norm() < 0.02 * exact.norm()
    assert (lost - exact).norm() > 0.2 * exact.norm()


@pytest.mark.parametrize("start", [2.0**16, 2.0**60])
def test_an_overflow_leaves_no_batch_out(tiny, tmp_path, gradients, monkeypatch, start):
    """The batch is done again with half the scale until it fits; there is one step a batch."""
    monkeypatch.setattr(loss_scale, "START", start)
    rows, scales = [], []
    adapters = tiny("sft", trained=False, dtype=torch.float16)
    step = Learner.step
    monkeypatch.setattr(Learner, "step", lambda one: (scales.append(one.scale.value), step(one))[1])
    train(adapters, tmp_path, examples(20), log=rows.append)
    assert len(gradients) == len(rows) == 3
    assert all(one.isfinite().all() for one in gradients)
    if start > 2.0**16:
        assert scales[0] < start
    plain = tiny("sft", trained=False)
    others = []
    train(plain, tmp_path / "plain", examples(20), log=others.append)
    for one, other in zip(rows, others, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=0.01)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=0.02)


def test_the_same_seed_gives_the_same_weights(tiny, tmp_path):
    def digest(seed, micro=4):
        adapters = tiny("sft", trained=False)
        settings = replace(SETTINGS, epochs=2, micro_batch_size=micro)
        train(adapters, tmp_path / "none", examples(20), settings, seed=seed)
        return adapters.digest("sft")

    assert digest(0) == digest(0)
    assert digest(0) != digest(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_killed_and_resumed_equals_uninterrupted(tiny, tmp_path, dtype):
    data, held_out = examples(22), examples(6, seed=1)
    settings = replace(SETTINGS, epochs=2, batch_size=4)

    def go(folder, until=None):
        def log(row):
            rows.append(row)
            if row["step"] == until:
                raise Killed

        rows = []
        adapters = tiny("sft", trained=False, dtype=dtype)
        try:
            result = train(adapters, folder, data, settings, held_out=held_out, log=log)
        except Killed:
            return None
        return adapters.digest("sft"), result, rows

    digest, result, rows = go(tmp_path / "a")
    assert len(rows) == 12
    for until in (1, 5, 8):
        folder = tmp_path / str(until)
        assert go(folder, until) is None
        again, other, rest = go(folder)
        assert again == digest
        assert other == result
        assert rest == rows[-len(rest) :]
    assert go(tmp_path / "twice", 3) is None
    assert go(tmp_path / "twice", 7) is None
    assert go(tmp_path / "twice")[0] == digest


# --- out of memory --------------------------------------------------------------------------------


def no_cuda_memory():
    return torch.OutOfMemoryError("CUDA out of memory")


def no_memory():
    return RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")


def crammed(monkeypatch, most, error=no_cuda_memory):
    """From now on more than `most` rows find no memory; returns the sizes tried.

    It runs out in the backward, where there is one, of the second micro-batch of a size: a failed
    try leaves gradients of the first, and a graph that has lost its backward.
    """
    sizes = []

    def fail(*_):
        raise error()

    def logprobs(adapters, batch):
        sizes.append(len(batch))
        found = loss_logprobs(adapters, batch)
        if len(batch) > most and (sizes.count(len(batch)) > 1 or most == 0):
            found.register_hook(fail) if found.requires_grad else fail()
        return found

    monkeypatch.setattr(sft, "loss_logprobs", logprobs)
    return sizes


@pytest.mark.parametrize("error", [no_cuda_memory, no_memory])
def test_where_memory_runs_out_the_result_is_that_of_smaller_micro_batches(
    tiny, tmp_path, monkeypatch, caplog, gradients, error
):
    settings = replace(FULL, epochs=2, batch_size=16)
    small, big = tiny("sft"), tiny("sft")
    train(small, tmp_path / "a", full_rows(16), replace(settings, micro_batch_size=2))
    expected = [gradients.pop(0) for _ in range(2)]
    sizes = crammed(monkeypatch, 2, error)
    train(big, tmp_path / "b", full_rows(16), replace(settings, micro_batch_size=8))
    for one, other in zip(gradients, expected, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()
    for key, p in big.parameters("sft").items():
        assert torch.allclose(p, small.parameters("sft")[key], atol=SETTINGS.lr / 100)
    assert sizes[:4] == [8, 8, 4, 4], "twice halved, each try from its start"
    assert set(sizes[4:]) == {2}, "and it stays small"
    assert [one.getMessage() for one in caplog.records if one.levelname == "WARNING"] == [
        "sft: out of memory with --sft.micro-batch-size 8; continuing with 4, and the same result",
        "sft: out of memory with --sft.micro-batch-size 4; continuing with 2, and the same result",
    ]


def test_where_not_one_row_fits_it_says_what_to_lower(tiny, tmp_path, monkeypatch):
    adapters = tiny("sft")
    before = adapters.digest("sft")
    crammed(monkeypatch, 0)
    with pytest.raises(UserError, match=r"sft: out of memory .*size 1; lower --sft\.max-length"):
        train(adapters, tmp_path, full_rows(8), FULL)
    assert adapters.digest("sft") == before


def test_the_evaluation_too_makes_do_with_less(tiny, tmp_path, monkeypatch):
    adapters = tiny("sft")
    expected = held_out_loss(adapters, "sft", full_rows(9), 1, LARGEST)
    crammed(monkeypatch, 1)
    result = train(adapters, tmp_path, full_rows(8), FULL, held_out=full_rows(9))
    assert result.loss_before == pytest.approx(expected, rel=1e-5)


def test_other_errors_are_not_taken_for_it(tiny, tmp_path, monkeypatch):
    crammed(monkeypatch, 2, lambda: RuntimeError("a shape is invalid for memory format"))
    with pytest.raises(RuntimeError, match="shape"):
        train(tiny("sft"), tmp_path, full_rows(8), FULL)


# --- the best weights -----------------------------------------------------------------------------


def planted(monkeypatch, losses):
    """Held-out losses as written, one after the other; returns the weights at each look."""
    looks = iter(losses)
    seen = []

    def loss(adapters, role, examples, size, largest):
        seen.append(adapters.digest(role))
        return next(looks, 99.0)

    monkeypatch.setattr(sft, "held_out_loss", loss)
    return seen


def test_it_stops_when_patience_ends_and_the_best_weights_stay(tiny, tmp_path, monkeypatch):
    adapters, rows = tiny("sft"), []
    settings = replace(SETTINGS, epochs=9, batch_size=4, eval_every=2, patience=2, save_every=1)
    seen = planted(monkeypatch, [5.0, 4.0, 3.0, 3.0, 3.5, 1.0, 3.0])
    result = train(adapters, tmp_path, examples(8), settings, held_out=examples(2), log=rows.append)
    assert [row["step"] for row in rows if "eval_loss" in row] == [2, 4, 6, 8]
    assert (result.steps, result.best_step) == (8, 4), (
        "1.0 is never seen: 3.0 and 3.5 are no better"
    )
    assert adapters.digest("sft") == seen[2] != seen[4]
    assert seen[5] == seen[2], "and the loss after is theirs"
    assert result.tokens == sum(row["tokens"] for row in rows)
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        "step-000004",
        "step-000007",
        "step-000008",
    ]


def test_without_patience_the_last_weights_stay(tiny, tmp_path, monkeypatch):
    adapters = tiny("sft")
    seen = planted(monkeypatch, [5.0, 3.0, 4.0, 4.5])
    result = train(
        adapters, tmp_path, examples(8), replace(SETTINGS, epochs=3), held_out=examples(2)
    )
    assert (result.steps, result.best_step) == (3, 1)
    assert adapters.digest("sft") == seen[3]


def test_the_last_step_is_always_evaluated(tiny, tmp_path):
    rows = []
    settings = replace(SETTINGS, epochs=5, eval_every=2)
    train(tiny("sft"), tmp_path, examples(8), settings, held_out=examples(3), log=rows.append)
    assert [row["step"] for row in rows if "eval_loss" in row] == [2, 4, 5]


@pytest.mark.parametrize("until", [3, 4, 7, 8])
def test_killed_and_resumed_it_stops_at_the_same_step(tiny, tmp_path, monkeypatch, until):
    settings = replace(SETTINGS, epochs=9, batch_size=4, eval_every=2, patience=2, lr=0.3)
    data, held_out = examples(8), examples(6, seed=1)

    def go(folder, until=None):
        def log(row):
            rows.append(row)
            if row["step"] == until:
                raise Killed

        rows = []
        adapters = tiny("sft")
        try:
            result = train(adapters, folder, data, settings, held_out=held_out, log=log)
        except Killed:
            return None
        return adapters.digest("sft"), result

    whole = go(tmp_path / "a")
    assert 0 < whole[1].best_step < whole[1].steps < 18, "or this tests nothing"
    assert go(tmp_path / "b", until) is None or until > whole[1].steps
    assert go(tmp_path / "b") == whole


# --- learning -------------------------------------------------------------------------------------


def test_it_learns_eight_samples_by_heart_and_stops_after_them(tiny, tmp_path):
    words = ["red", "green apples", "blue.\nAnd more", "你好", "12 + 3 = 15", "a b c", "🦙", "woof"]
    adapters = tiny("sft", trained=False)
    before = weights_digest(adapters.base)
    rows = [Instruction(f"Say number {i}.", output=word) for i, word in enumerate(words)]
    encoded = encode(adapters, rows, 256)
    data = encoded.examples
    assert (encoded.too_long, encoded.lost) == ([], [])
    settings = replace(SETTINGS, lr=2e-2, epochs=110, warmup=0.1, micro_batch_size=8)
    result = train(adapters, tmp_path, data, settings, held_out=data)
    assert result.loss_before > 3
    assert result.loss_after < 0.05
    greedy = Sampling(temperature=0, max_new_tokens=32)
    prompts = [one.prompt for one in data]
    drawn = sample(adapters, "sft", prompts, words, sampling=greedy, seed=0)
    assert [one.ids for (one,) in drawn] == [one.completion for one in data]
    assert all(one.finished for (one,) in drawn)
    assert weights_digest(adapters.base) == before


def test_only_the_named_adapter_learns_and_none_is_left_trainable(tiny, tmp_path):
    adapters = tiny("sft", "policy")
    before = adapters.digest("policy")
    train(adapters, tmp_path, examples(8))
    assert adapters.digest("policy") == before
    assert adapters.active is None
    assert not adapters.base.model.training
    assert not any(p.requires_grad for p in adapters.base.model.parameters())


def test_small_steps_are_not_lost(tiny, tmp_path):
    """In bf16 weights of this size most steps of 1e-5 would round away; these are fp32."""
    adapters = tiny("sft", dtype=torch.bfloat16)
    before = {k: p.clone() for k, p in adapters.parameters("sft").items()}
    train(adapters, tmp_path, examples(8), replace(SETTINGS, lr=1e-5, epochs=5))
    moved = torch.cat([(p != before[k]).flatten() for k, p in adapters.parameters("sft").items()])
    assert moved.double().mean() > 0.99


# --- its data -------------------------------------------------------------------------------------


def test_rows_that_are_too_long_are_left_out_whole(tiny):
    adapters = tiny("sft")
    rows = [Instruction("x", output="y"), Instruction("x", output="lemon " * 60)]
    encoded = encode(adapters, rows, 64)
    assert encoded.examples == [example(adapters.base, "brief", rows[0], "y")]
    assert (encoded.too_long, encoded.lost) == (rows[1:], [])
    long = Instruction("x", output="lemon " * 250)
    assert len(example(adapters.base, "brief", long, long.output)) > adapters.base.context
    assert encode(adapters, [long], 10_000) == EncodedRows([], too_long=[long], lost=[])


def test_a_rows_side_depends_on_its_prompt_alone():
    rows = [Instruction(f"task {i}", output="x") for i in range(400)]
    train_rows, held_out = split_held_out(rows, 0.25)
    assert len(train_rows) + len(held_out) == 400
    assert 60 < len(held_out) < 140
    other = [replace(row, output="y") for row in rows[::-1]]
    assert {r.id for r in split_held_out(other, 0.25)[1]} == {r.id for r in held_out}
    assert split_held_out(rows, 0.0) == (rows, [])
    # A conversation goes with its opening: the held-out loss must not be of a prompt learned from.
    longer = [Instruction("Go on.", history=((row.instruction, "x"),)) for row in rows]
    openings = {row.history[0][0] for row in split_held_out(longer, 0.25)[1]}
    assert openings == {row.instruction for row in held_out}


def test_the_preview_is_of_the_first_row_and_the_first_conversation():
    one, talk = Example((1, 20), (30, 2)), Example((1, 20, 30, 2, 21), (31, 2), ((2, 4),))
    assert preview_indices([one, one, talk, talk]) == [0, 2]
    assert preview_indices([talk, one]) == [0]
    assert preview_indices([one, one]) == [0]
    assert preview_indices([]) == []
    assert (one.loss_tokens, talk.loss_tokens) == (2, 4)


def test_the_held_out_loss_is_a_mean_over_tokens(tiny):
    adapters = tiny("sft")
    rows = examples(7)
    found = [held_out_loss(adapters, "sft", rows, size, LARGEST) for size in (1, 3, 7)]
    assert found == pytest.approx([found[0]] * 3, rel=1e-5)
    alone = [held_out_loss(adapters, "sft", [one], 1, LARGEST) for one in rows]
    lengths = [len(one.completion) for one in rows]
    weighted = sum(a * n for a, n in zip(alone, lengths, strict=True)) / sum(lengths)
    assert found[0] == pytest.approx(weighted, rel=1e-5)
    assert held_out_loss(adapters, "sft", [], 4, LARGEST) == 0


def test_the_loss_before_is_that_of_the_adapter_it_starts_from(tiny, tmp_path):
    """Best-of-K goes on from SFT, not from the bare base."""
    adapters, rows = tiny("sft"), examples(6)
    expected = held_out_loss(adapters, "sft", rows, 4, LARGEST)
    assert not math.isclose(expected, held_out_loss(adapters, None, rows, 4, LARGEST), rel_tol=1e-3)
    assert train(adapters, tmp_path, rows, FULL, held_out=rows).loss_before == expected


def test_each_epoch_is_evaluated(tiny, tmp_path):
    rows = []
    settings = replace(SETTINGS, epochs=3, batch_size=4)
    train(tiny("sft"), tmp_path, examples(10), settings, held_out=examples(3), log=rows.append)
    assert [row["step"] for row in rows if "eval_loss" in row] == [3, 6, 9]


def test_nothing_to_train_on_is_refused(tiny, tmp_path):
    with pytest.raises(UserError, match=r"--sft\.max-length 512"):
        train(tiny("sft"), tmp_path, [])


def test_a_run_that_blows_up_names_the_flag_as_typed_and_keeps_the_batch(tiny, tmp_path):
    adapters = tiny("policy")
    first = next(iter(adapters.parameters("policy").values()))
    before = {key: p.clone() for key, p in adapters.parameters("policy").items()}
    rows = examples(10)
    settings = replace(SETTINGS, batch_size=4)

    def poison(row):
        if row["step"] == 1:
            before.update({k: p.clone() for k, p in adapters.parameters("policy").items()})
            with torch.no_grad():
                first[0, 0] = float("nan")

    with pytest.raises(UserError, match=r"best_of_k\.2: .*lower --best-of-k\.lr") as caught:
        train_sft(
            adapters,
            "policy",
            rows,
            [],
            settings,
            seed=0,
            checkpoints=Checkpoints(tmp_path / "checkpoints", bad_batches=tmp_path / "bad_batch"),
            log=poison,
            stage="best_of_k.2",
        )
    path = tmp_path / "bad_batch" / "step-000002.json"
    assert str(path) in str(caught.value)
    kept = json.loads(path.read_text())
    assert kept["step"] == 2
    ids = [(tuple(row["prompt_ids"]), tuple(row["completion_ids"])) for row in kept["rows"]]
    second = batches(10, 4, 1, seed=0)[1]
    assert ids == [(rows[i].prompt, rows[i].completion) for i in second]
    assert all({"prompt", "completion"} <= row.keys() for row in kept["rows"])
    with torch.no_grad():
        first[0, 0] = before[next(iter(before))][0, 0]
    assert all(torch.equal(p, before[k]) for k, p in adapters.parameters("policy").items())


def test_a_batch_that_follows_the_rows_is_that_of_the_steps(tiny, tmp_path):
    """Twenty rows in two epochs are batches of 8: six steps, the last of an epoch of 4."""
    examples = [Example((1, 20, 30 + i), (50, 2)) for i in range(20)]
    rows = []
    result = train_sft(
        tiny("policy"),
        "policy",
        examples,
        [],
        SFT(epochs=2, lr=1e-3),
        seed=0,
        checkpoints=Checkpoints(tmp_path),
        log=rows.append,
    )
    assert (result.batch_size, result.steps) == (8, 6)
    assert [row["tokens"] for row in rows] == [16, 16, 8, 16, 16, 8]


def test_a_loss_on_no_rows_is_not_reported():
    result = SFTResult(
        examples=8,
        held_out=0,
        tokens=40,
        loss_before=0.0,
        loss_after=0.0,
        batch_size=4,
        steps=2,
        best_step=0,
    )
    assert held_out_summary(result, 0) == "no row is held out, so there is no held-out loss"
    told = held_out_summary(replace(result, loss_before=3.0, loss_after=1.5), 1)
    assert told == "held-out loss 3.00 -> 1.50 nats a token on 1 rows"
