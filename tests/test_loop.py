"""The loop that every stage shares."""

import itertools
import json
import os
import signal
import threading

import pytest
import torch

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.randomness import derived_seed
from alpaca_rlhf.models.oom_retry import MicroBatch
from alpaca_rlhf.training import loop
from alpaca_rlhf.training.loop import Bookkeeping, Checkpoints, Learner, batches, fit
from alpaca_rlhf.training.loss_scale import LossScale
from alpaca_rlhf.training.patience import Patience


def learner(
    parameter, *, lr=0.1, steps=10, warmup=0.0, max_grad_norm=1e9, optimizer="adamw", **more
):
    groups = [({"w": parameter}, lr), *(({name: p}, rate) for name, (p, rate) in more.items())]
    return Learner(
        "sft",
        "--sft.lr",
        groups,
        steps=steps,
        warmup=warmup,
        max_grad_norm=max_grad_norm,
        optimizer=optimizer,
        scale=LossScale(torch.float32),
    )


def weight(*values):
    return torch.nn.Parameter(torch.tensor(values or (1.0, 2.0)))


def step(made, parameter, gradient):
    parameter.grad = torch.tensor(gradient)
    return made.step()


# --- the order of the data ------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "size"), [(12, 4), (10, 4), (3, 8), (1, 1)])
def test_each_epoch_sees_every_example_once(n, size):
    plan = batches(n, size, 3, seed=5)
    per_epoch = -(-n // size)
    assert len(plan) == 3 * per_epoch
    orders = []
    for epoch in range(3):
        own = plan[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert [len(one) for one in own[:-1]] == [size] * (per_epoch - 1)
        orders.append([i for one in own for i in one])
        assert sorted(orders[-1]) == list(range(n))
    if n > 3:
        assert len({tuple(one) for one in orders}) == 3, "each epoch has an order of its own"


def test_the_order_is_the_seeds_alone():
    torch.manual_seed(1)
    one = batches(50, 8, 2, seed=3)
    torch.manual_seed(2)
    assert batches(50, 8, 2, seed=3) == one
    assert batches(50, 8, 2, seed=4) != one


def test_no_seed_orders_what_another_seed_orders_later():
    """Sums of seed, update and epoch would: update 10 of seed 1 is update 0 of seed 11."""
    seeds = [derived_seed(seed, "update", update) for seed in range(40) for update in range(40)]
    plans = {str(batches(20, 20, 1, seed)) for seed in seeds}
    assert len(set(seeds)) == len(plans) == 1600
    assert derived_seed(1, "a", 23) != derived_seed(1, "a", 2, 3)
    long = [str(one) for one in batches(20, 20, 1500, 0) + batches(20, 20, 1500, 1)]
    assert len(set(long)) == 3000


# --- the optimiser --------------------------------------------------------------------------------


def test_the_rate_falls_linearly_to_0():
    w = weight()
    made = learner(w, lr=0.1, steps=5)
    rates = [step(made, w, [1.0, 1.0])["lr"] for _ in range(5)]
    assert rates == pytest.approx([0.1, 0.08, 0.06, 0.04, 0.02])
    assert made.optimizer.param_groups[0]["lr"] == pytest.approx(0)


def test_the_rate_first_rises():
    w = weight()
    made = learner(w, lr=0.4, steps=10, warmup=0.3)
    rates = [step(made, w, [1.0, 1.0])["lr"] for _ in range(10)]
    assert rates[:4] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    falls = [a - b for a, b in itertools.pairwise(rates[3:])]
    assert falls == pytest.approx([falls[0]] * 6)
    assert rates[-1] == pytest.approx(falls[0]), "one step before 0"


def test_each_group_has_its_own_rate():
    """Adam's first step moves every weight by its rate, whatever the gradient's size."""
    w, head = weight(0.0), weight(0.0)
    made = learner(w, lr=0.1, head=(head, 0.001))
    w.grad, head.grad = torch.tensor([7.0]), torch.tensor([-0.02])
    made.step()
    assert w.item() == pytest.approx(-0.1, rel=1e-4)
    assert head.item() == pytest.approx(0.001, rel=1e-4)


def test_nothing_decays():
    w, still = weight(3.0), weight(5.0)
    made = learner(w, still=(still, 0.1))
    for _ in range(5):
        w.grad, still.grad = torch.tensor([1.0]), torch.tensor([0.0])
        made.step()
    assert still.item() == 5


def test_the_first_step_is_the_rate_times_the_sign_even_of_tiny_gradients():
    """0.1 * 1e-6 / (1e-6 + 1e-8) for one of 1e-6; an epsilon of 1e-5 would damp it to a tenth."""
    w = torch.nn.Parameter(torch.zeros(2))
    w.grad = torch.tensor([1e-6, -1e-6])
    learner(w, lr=0.1, steps=10**9).step()
    assert w.tolist() == pytest.approx([-0.1 / 1.01, 0.1 / 1.01], rel=1e-4)


def test_gradients_are_clipped_together_and_reported_before():
    w, head = weight(0.0), weight(0.0)
    made = learner(w, max_grad_norm=0.5, head=(head, 0.1))
    seen = []
    made.optimizer.register_step_pre_hook(
        lambda *_: seen.append((w.grad.clone(), head.grad.clone()))
    )
    w.grad, head.grad = torch.tensor([3.0]), torch.tensor([-4.0])
    assert made.step()["grad_norm"] == 5
    ((one, other),) = seen
    assert (one.item(), other.item()) == pytest.approx((0.3, -0.4), rel=1e-4)
    w.grad, head.grad = torch.tensor([0.03]), torch.tensor([-0.04])
    made.step()
    assert seen[1][0].item() == pytest.approx(0.03, rel=1e-4), "a small gradient is left alone"


def test_after_a_step_no_gradient_lies_there():
    w = weight()
    made = learner(w)
    step(made, w, [1.0, 2.0])
    assert w.grad is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_stops_the_run(bad):
    w = weight()
    made = learner(w)
    with pytest.raises(UserError, match=r"sft: .*not finite; lower --sft\.lr"):
        step(made, w, [1.0, bad])
    assert w.tolist() == [1, 2], "and the weights are as they were"


def test_a_name_in_two_groups_is_refused():
    w = weight()
    with pytest.raises(ValueError, match="two groups"):
        Learner(
            "x",
            "--x.lr",
            [({"w": w}, 1), ({"w": w}, 2)],
            steps=1,
            warmup=0,
            max_grad_norm=1,
            scale=LossScale(torch.float32),
        )


OPTIMIZERS = ["adamw", "adamw8bit", "paged_adamw8bit"]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_a_learner_goes_on_from_its_state_bit_for_bit(tmp_path, optimizer):
    """With 8192 weights, so that bitsandbytes keeps 8-bit moments, and a head, where it does not.

    Of the 8-bit moments the dtype is looked at: nothing else tells that they are used.
    """
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(9, 2, 8192, generator=generator)

    def make():
        w, head = (torch.nn.Parameter(torch.linspace(-1, 1, n)) for n in (8192, 64))
        return w, head, learner(w, warmup=0.2, optimizer=optimizer, head=(head, 0.01))

    def go(w, head, made, steps):
        for one in steps:
            w.grad, head.grad = gradients[one, 0].clone(), gradients[one, 1, :64].clone()
            yield made.step()["lr"]

    w, head, made = make()
    list(go(w, head, made, range(4)))
    Checkpoints(tmp_path).save(4, made.state())
    uninterrupted = list(go(w, head, made, range(4, 9)))
    kinds = {t.dtype for t in made.optimizer.state[w].values() if torch.is_tensor(t)}
    assert (torch.uint8 in kinds) == (optimizer != "adamw")

    again, other_head, other = make()
    done, state = Checkpoints(tmp_path).latest()
    other.load_state(state)
    assert done == 4
    assert list(go(again, other_head, other, range(4, 9))) == uninterrupted
    assert torch.equal(again, w)
    assert torch.equal(other_head, head)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_every_optimiser_takes_the_same_first_steps(optimizer):
    """Adam moves by its rate while the sign of the gradient stays, in 8 bit as in 32."""
    w = torch.nn.Parameter(torch.zeros(8192))
    made = learner(w, lr=0.1, steps=1000, optimizer=optimizer)
    sign = torch.where(torch.arange(8192) % 2 == 0, 1.0, -1.0)
    for _ in range(3):
        w.grad = sign.clone()
        made.step()
    assert torch.allclose(w, -0.3 * sign, atol=2e-3)


# --- checkpoints ----------------------------------------------------------------------------------


def names(folder):
    return sorted(one.name for one in folder.iterdir())


def test_the_last_two_checkpoints_are_kept(tmp_path):
    made = Checkpoints(tmp_path / "checkpoints")
    assert made.latest() is None
    for done in (2, 4, 10):
        made.save(done, {"x": torch.tensor(done)})
    assert names(made.folder) == ["step-000004", "step-000010"]
    done, state = made.latest()
    assert (done, state["x"].item()) == (10, 10)
    made.clear()
    assert made.latest() is None
    assert not made.folder.exists()
    made.clear()


def test_a_torn_checkpoint_is_passed_over(tmp_path):
    made = Checkpoints(tmp_path)
    made.save(2, {"x": 2})
    (tmp_path / "step-000004").mkdir()
    (tmp_path / "step-000004" / "state.pt.tmp").write_bytes(b"half")
    (tmp_path / "step-000006").mkdir()
    assert made.latest() == (2, {"x": 2})
    made.save(4, {"x": 4})
    made.save(6, {"x": 6})
    assert made.latest() == (6, {"x": 6})


def test_a_checkpoint_killed_while_written_leaves_the_one_before(tmp_path, monkeypatch):
    made = Checkpoints(tmp_path)
    made.save(2, {"x": 2})

    def killed(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        patch.setattr(os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            made.save(4, {"x": 4})
    assert Checkpoints(tmp_path).latest() == (2, {"x": 2})


def test_a_checkpoint_holds_no_code(tmp_path):
    """It is read with weights_only: an object in it is refused, not run."""
    made = Checkpoints(tmp_path)
    made.save(1, {"x": Exception("boo")})
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        made.latest()


# --- fit ------------------------------------------------------------------------------------------


def micro_batch(size=4):
    return MicroBatch("sft", "--sft.micro-batch-size", size, lower="--sft.max-length")


def run(folder, *, until=None, plan=None, save_every=2, logged=None, each_step=None):
    """Ten steps on one weight, whose gradient depends on step and weight; killed after `until`."""
    w = weight()
    plan = plan or [[i] for i in range(10)]
    made = learner(w, steps=len(plan), warmup=0.2)

    def backward(indices):
        w.grad = torch.tensor([float(indices[0] + 1), 1.0]) * w.detach()
        return {"loss": float(w.sum().detach())}

    def log(row):
        if logged is not None:
            logged.append(row)
        if row["step"] == until:
            raise KeyboardInterrupt

    options = {} if each_step is None else {"evaluate": each_step}
    options["describe"] = lambda indices: [{"example": i} for i in indices]
    books = Bookkeeping(Checkpoints(folder), save_every, log)
    fit(made, plan, backward, books, micro=micro_batch(), **options)
    return w.detach().clone()


@pytest.mark.parametrize("until", [1, 2, 3, 7, 10])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, until):
    rows, torn, rest = [], [], []
    whole = run(tmp_path / "a", logged=rows)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", until=until, logged=torn)
    assert torch.equal(run(tmp_path / "b", logged=rest), whole)
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert rest[0]["step"] == (until - 1) // 2 * 2 + 1
    assert rest == rows[rest[0]["step"] - 1 :], "the same rows"


def test_a_row_is_logged_a_step_with_its_evaluation(tmp_path):
    rows = []
    run(tmp_path, logged=rows, each_step=lambda done: {"eval_loss": 7.0} if done == 5 else None)
    assert [row["step"] for row in rows if "eval_loss" in row] == [5]
    assert all({"step", "steps", "loss", "lr", "grad_norm"} <= row.keys() for row in rows)
    assert all(row["steps"] == 10 for row in rows)


@pytest.mark.parametrize(("loss", "gradient"), [(float("nan"), 0.0), (1.0, float("inf"))])
def test_what_is_not_finite_stops_the_run_with_its_batch(tmp_path, loss, gradient):
    w = weight()

    def backward(indices):
        w.grad = torch.full((2,), gradient if indices == [2, 3] else 0.0)
        return {"loss": loss if indices == [2, 3] else 1.0}

    with pytest.raises(UserError, match=r"lower --sft\.lr .*step 2; its batch is in .*2\.json"):
        fit(
            learner(w),
            [[0, 1], [2, 3], [4]],
            backward,
            Bookkeeping(Checkpoints(tmp_path), save_every=1, log=lambda row: None),
            describe=lambda indices: [{"example": i} for i in indices],
            micro=micro_batch(),
        )
    assert w.tolist() == [1, 2]
    (path,) = (tmp_path / "bad_batch").iterdir()
    assert json.loads(path.read_text()) == {"step": 2, "rows": [{"example": 2}, {"example": 3}]}


def test_memory_that_did_not_suffice_is_remembered(tmp_path):
    """A resumed run must not run out of memory again; a smaller size that is asked for counts."""
    told = micro_batch(8)

    def work(size):
        if size > 2:
            raise torch.OutOfMemoryError("no")
        return size

    assert told.run(work) == 2
    for asked, expected in ((8, 2), (1, 1)):
        later = micro_batch(asked)
        later.load_state(told.state())
        assert later.run(work) == later.size == expected


# --- Ctrl-C ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 4, 5, 10])
def test_ctrl_c_finishes_the_step_saves_and_goes_on_bit_for_bit(tmp_path, at, caplog):
    rows = []

    def press(done):
        rows.append(done)
        if done == at:
            signal.raise_signal(signal.SIGINT)

    whole = run(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", each_step=press)
    assert rows == list(range(1, at + 1)), "the step is finished, and no other begun"
    assert Checkpoints(tmp_path / "b").step() == at
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again = []
    assert torch.equal(run(tmp_path / "b", logged=again), whole)
    assert [row["step"] for row in again] == list(range(at + 1, 11))
    assert "Ctrl-C again stops at once" in caplog.text


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    def press(done):
        if done == 5:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            pytest.fail("it went on")

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, each_step=press)
    assert Checkpoints(tmp_path).step() == 4
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_that_is_not_pythons_is_left_alone(tmp_path):
    seen = []

    def ours(number, frame):
        pass

    before = signal.signal(signal.SIGINT, ours)
    try:
        run(tmp_path / "a", each_step=lambda done: seen.append(signal.getsignal(signal.SIGINT)))
    finally:
        signal.signal(signal.SIGINT, before)
    assert set(seen) == {ours}


def test_in_another_thread_it_trains_all_the_same(tmp_path):
    done = []
    thread = threading.Thread(target=lambda: done.append(run(tmp_path / "a")))
    thread.start()
    thread.join()
    assert torch.equal(done[0], run(tmp_path / "b"))


# --- the best checkpoint --------------------------------------------------------------------------


def test_the_best_checkpoint_outlives_the_newest(tmp_path):
    made = Checkpoints(tmp_path)
    for done in (1, 2, 3, 4, 5):
        made.save(done, {"x": done}, best=None if done < 2 else 2)
    assert names(tmp_path) == ["step-000002", "step-000004", "step-000005"]
    assert made.load(2) == {"x": 2}
    made.save(6, {"x": 6}, best=6)
    assert names(tmp_path) == ["step-000005", "step-000006"]


def test_patience_by_hand():
    made = Patience(2)
    for step, loss in ((1, 3.0), (2, 2.0), (3, 2.0)):
        made.observe(step, {"eval_loss": loss})
        assert not made.exhausted
    again = Patience(2)
    again.load_state(made.state())
    again.observe(4, {"eval_loss": 1.9})
    assert (again.best_step, again.exhausted) == (4, False)
    made.observe(4, {"eval_loss": 2.1})
    assert (made.best_step, made.exhausted) == (2, True)
    endless = Patience(0)
    for step in range(100):
        endless.observe(step, {"eval_loss": 1.0})
    assert not endless.exhausted


@pytest.mark.parametrize(("limit", "kept"), [(0, []), (9, [5, 6])])
def test_without_early_stopping_a_better_evaluation_writes_no_checkpoint(tmp_path, limit, kept):
    patience = Patience(limit)
    made, saved = Checkpoints(tmp_path), []
    write = made.save
    made.save = lambda step, state, **more: (saved.append(step), write(step, state, **more))
    books = Bookkeeping(made, 100, lambda row: None, patience=patience)
    steps = loop.run_steps("sft", 6, lambda done: {"eval_loss": 1.0 / (1 + done)}, {}, books)
    assert (steps, patience.best_step, patience.best) == (6, 6, 1 / 6), "it is still recorded"
    assert saved == ([1, 2, 3, 4, 5, 6] if limit else [])
    assert names(tmp_path) == [f"step-{step:06d}" for step in kept]


def test_the_log_says_where_it_goes_on(tmp_path, caplog):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, until=5)
    with caplog.at_level("INFO", logger=loop.__name__):
        run(tmp_path)
    assert "sft resumes at step 4 of 10" in caplog.text
