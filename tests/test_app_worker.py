"""The model's one thread: its queue, its states, and the card that it gives back."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from importlib.util import spec_from_loader
from pathlib import Path
from types import SimpleNamespace

import pytest

from alpaca_rlhf.app.job_status import job_status
from alpaca_rlhf.app.jobs import without_folders
from alpaca_rlhf.app.worker import Worker
from alpaca_rlhf.core import gpu_lock
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.models.batches import answer, prompt_ids
from alpaca_rlhf.models.rollout import sample
from alpaca_rlhf.preferences.store import Store
from alpaca_rlhf.serving import run_contents
from alpaca_rlhf.serving.filling import fill
from alpaca_rlhf.serving.sampling_settings import SamplingSettings
from alpaca_rlhf.settings import Sampling
from alpaca_rlhf.sources.run_prompts import RunPrompts
from tests.model_app import make_run, prompts

ROOT = Path(__file__).parent.parent
LONG = 60.0


def until(true):
    """Waits for a condition, and fails where it never comes."""
    ends = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < ends, "it never came"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_folder):
    return make_run(tmp_path_factory.mktemp("worker") / "run", tiny_folder)


@pytest.fixture
def where(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_lock, "POLL_S", 0.02)
    return tmp_path / "card"


class Gate:
    """A work that says where it is and goes on when it is let."""

    def __init__(self, log=None, name="", steps=1):
        self.log, self.name, self.steps = log if log is not None else [], name, steps
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, policy_server, stop):
        for step in range(self.steps):
            self.log.append(f"{self.name}{step}")
            self.begun.set()
            while not (self.go.is_set() or stop.is_set()):
                time.sleep(0.002)
            yield step
            if stop.is_set():
                return


@pytest.fixture
def worker(run, where):
    fake_worker = Worker(
        run, load=lambda: SimpleNamespace(), gpu_folder=where, has_gpu=lambda: True
    )
    yield fake_worker
    fake_worker.close()


def last(job):
    return list(job.updates())[-1]


# --- the queue ------------------------------------------------------------------------------------


def test_it_is_loaded_when_first_asked_and_says_so(run, where):
    loading, go = threading.Event(), threading.Event()

    def load():
        loading.set()
        go.wait(LONG)
        return "the policy_server"

    worker = Worker(run, load=load, gpu_folder=where)
    assert worker.state.phase == "empty" and threading.active_count() >= 1
    assert "not loaded" in worker.status("en") and "尚未加载" in worker.status("zh-CN")
    job = worker.start(lambda policy_server, stop: iter([policy_server]), "chat")
    loading.wait(LONG)
    assert (worker.state.phase, job.latest.phase) == ("loading", "loading")
    go.set()
    assert last(job).value == "the policy_server"
    until(lambda: worker.state.phase == "ready")
    worker.close()
    assert worker.start(lambda policy_server, stop: iter([]), "chat").latest.problem == "closed"


def test_people_come_before_the_background_which_gives_way_between_steps(worker):
    log = []
    background = Gate(log, "b", steps=4)
    slow = worker.start(background, "sample", urgent=False)
    background.begun.wait(LONG)
    people = [Gate(log, name) for name in ("x", "y")]
    for gate in people:
        gate.go.set()
    jobs = [worker.start(gate, "chat") for gate in people]
    assert [job.latest.jobs_ahead for job in jobs] == [0, 1], "the background is not before anybody"
    assert worker.state.waiting == 2 and "2 waiting" in worker.status("en")
    background.go.set()
    assert [last(job).phase for job in (*jobs, slow)] == ["done"] * 3
    assert log == ["b0", "x0", "y0", "b1", "b2", "b3"], "it goes on where it was"


def test_accounts_take_turns_and_one_has_two_jobs_at_most(worker):
    log = []
    gates = [Gate(log, f"{owner}{number}") for owner in "abc" for number in (1, 2)]
    jobs = [worker.start(gate, "chat", owner=ord(gate.name[0])) for gate in gates]
    gates[0].begun.wait(LONG)
    ahead = {gate.name: job.latest.jobs_ahead for gate, job in zip(gates, jobs, strict=True)}
    assert [name for name in sorted(ahead, key=ahead.get)] == ["a1", "b1", "c1", "a2", "b2", "c2"]
    third = worker.start(Gate(log, "a3"), "compare", owner=ord("a")).latest
    assert third.finished and third.problem == "busy"
    assert "two answers under way" in job_status(third, "en")
    # One that is stopped is under way no longer, even before the model's thread has seen it.
    jobs[1].stop()
    fourth = worker.start(gates[-1], "chat", owner=ord("a"))
    assert fourth.latest.phase == "waiting"
    fourth.stop()
    for gate in gates:
        gate.go.set()
    assert [last(job).phase for job in jobs] == ["done", "stopped"] + ["done"] * 4
    assert log == ["a10", "b10", "c10", "b20", "c20"]


def test_twenty_pages_of_one_account_do_not_keep_another_waiting(worker):
    first = Gate(steps=2)
    pages = [worker.start(first if not page else Gate(), "chat", owner=1) for page in range(20)]
    first.begun.wait(LONG)
    assert [job.latest.problem for job in pages] == ["", "", *["busy"] * 18]
    other = worker.start(lambda policy_server, stop: iter([7]), "chat", owner=2)
    assert other.latest.jobs_ahead == 1, "after the answer that is being written"
    first.go.set()
    assert last(other).value == 7 and not pages[1].finished


def test_stop_stops_what_runs_and_what_waits(worker):
    first, second = Gate(steps=5), Gate()
    running = worker.start(first, "chat")
    first.begun.wait(LONG)
    until(lambda: worker.state == type(worker.state)("busy", "chat", 0))
    waiting = worker.start(second, "chat")
    assert waiting.latest.jobs_ahead == 1
    waiting.stop()
    assert last(waiting).phase == "stopped" and not second.begun.is_set()
    running.stop()
    assert last(running).phase == "stopped" and running.latest.value == 0
    third = Gate()
    third.go.set()
    assert last(worker.start(third, "chat")).phase == "done"
    assert not second.begun.is_set(), "nobody asked for it any more"


def test_whoever_leaves_stops_the_job(worker):
    gate = Gate(steps=3)
    job = worker.start(gate, "chat")
    updates = job.updates()
    gate.begun.wait(LONG)
    next(updates)
    updates.close()
    until(lambda: job.finished)
    assert job.latest.phase == "stopped"


def test_errors_are_told_and_do_not_end_the_thread(run, where, caplog):
    fails = [UserError("no such base"), None]

    def load():
        error = fails.pop(0)
        if error:
            raise error
        return "policy_server"

    worker = Worker(run, load=load, gpu_folder=where, has_gpu=lambda: True)
    update = last(worker.start(Gate(), "chat"))
    assert (update.phase, update.problem, update.message) == ("failed", "user", "no such base")
    assert worker.state.phase == "error" and "no such base" in worker.status("en")
    assert not [one for one in gpu_lock.live_notes("app", where) if one.holds]

    def too_long(policy_server, stop):
        yield 1
        raise UserError("too long")

    def broken(policy_server, stop):
        yield 1
        raise ZeroDivisionError("oops")

    class OutOfMemoryError(Exception):
        pass

    def full(policy_server, stop):
        raise OutOfMemoryError
        yield

    assert last(worker.start(too_long, "chat")).message == "too long"
    assert last(worker.start(broken, "chat")).problem == "bug" and "oops" in caplog.text
    assert last(worker.start(full, "chat")).problem == "memory"
    until(lambda: worker.state.phase == "empty")
    worker.close()


# --- the card -------------------------------------------------------------------------------------


def test_a_training_run_gets_the_card_and_the_app_comes_back(worker, run, where, tmp_path):
    begun = threading.Event()

    def endless(policy_server, stop):
        while not stop.is_set():
            begun.set()
            time.sleep(0.002)
            yield "so far"

    job = worker.start(endless, "chat")
    begun.wait(LONG)
    behind, step = Gate(steps=3), Gate()
    queued = worker.start(behind, "sample", urgent=False)
    assert [(one.pid, one.holds) for one in gpu_lock.live_notes("app", where)] == [
        (os.getpid(), True)
    ]
    messages = []
    with gpu_lock.Loan(tmp_path / "training", messages.append, where=where) as loan:
        loan.take()
        loan.take()
        assert (last(job).phase, last(job).value) == ("stopped", "so far"), (
            "what was under way stopped between two tokens"
        )
        assert worker.state.phase == "released" and "training" in worker.status("en")
        assert str(run) in messages[0] and messages[1] == "the card is free" and len(messages) == 2
        refused = last(worker.start(step, "chat"))
        assert (refused.problem, refused.message) == ("training", "training")
        assert str(tmp_path) not in worker.status("en"), "people are told no path of the server"
        assert queued.latest.phase == "waiting"
    behind.go.set()
    assert last(queued).phase == "done", "the background went on by itself"
    step.go.set()
    assert last(worker.start(step, "chat")).phase == "done"
    until(lambda: worker.state.phase == "ready")


def test_without_a_gpu_no_training_run_stops_the_chat_and_none_waits_for_it(run, where, tmp_path):
    """There is nothing to give back: both go on, each on its share of the processor."""
    worker = Worker(run, load=lambda: "policy_server", gpu_folder=where, has_gpu=lambda: False)
    step, messages = Gate(), []
    step.go.set()
    for folder in (tmp_path / "another", run):
        with gpu_lock.Loan(folder, messages.append, where=where, patience_s=0) as loan:
            loan.take()
            assert last(worker.start(step, "chat")).phase == "done"
            assert worker.state.phase == "ready" and str(folder) not in worker.status("en")
            with gpu_lock.Loan(run, messages.append, where=where, patience_s=0) as later:
                later.take()
    worker.close()
    assert messages == []


def test_the_allocator_is_told_before_torch_is_asked_for_a_card(run, where, monkeypatch):
    """Torch reads the variable once, when it is first imported."""
    told = []

    class TorchStub:
        def find_spec(self, name, path=None, target=None):
            return spec_from_loader(name, self) if name == "torch" else None

        def create_module(self, spec):
            told.append(os.environ.get("PYTORCH_ALLOC_CONF"))
            return None

        def exec_module(self, module):
            module.cuda = SimpleNamespace(is_available=lambda: False)

    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"):
        monkeypatch.setenv(name, "")  # so that it is removed again
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "meta_path", [TorchStub(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    worker = Worker(run, load=lambda: "policy_server", gpu_folder=where)
    step = Gate()
    step.go.set()
    assert last(worker.start(step, "chat")).phase == "done"
    worker.close()
    monkeypatch.delitem(sys.modules, "torch")
    assert told == ["expandable_segments:True"]


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("/srv/people/runs/mine: no base", "mine: no base"),
        ("'/srv/a/b.json' and /x/y/z", "'b.json' and z"),
        ("~/runs/mine is empty", "mine is empty"),
        ("https://host/a/b and 3/4 and a/b/c", "https://host/a/b and 3/4 and a/b/c"),
        ("nothing / to do", "nothing / to do"),
    ],
)
def test_people_are_shown_no_path_of_the_server(message, shown):
    assert without_folders(message) == shown


def test_a_base_that_cannot_be_loaded_names_no_folder_to_people(run, where, caplog):
    def load():
        raise UserError("/srv/hidden/base: no such base")

    worker = Worker(run, load=load, gpu_folder=where)
    update = last(worker.start(Gate(), "chat"))
    assert update.message == "base: no such base"
    assert "hidden" not in worker.status("en") and "base: no such base" in worker.status("en")
    assert "/srv/hidden/base" in caplog.text, "whoever runs the app is told where"
    worker.close()


def test_whoever_asks_after_the_training_is_answered_at_once(worker, where, tmp_path, monkeypatch):
    """However long ago the worker looked for training runs: it looks again before it refuses."""
    step = Gate()
    step.go.set()
    assert last(worker.start(step, "chat")).phase == "done"
    with gpu_lock.Loan(tmp_path / "training", lambda text: None, where=where) as loan:
        loan.take()
        monkeypatch.setattr(gpu_lock, "POLL_S", LONG)
        assert last(worker.start(step, "chat")).problem == "training"
    assert last(worker.start(step, "chat")).phase == "done"


def test_nobody_waits_where_no_app_holds_a_model(where, tmp_path):
    messages = []
    with gpu_lock.Loan(tmp_path, messages.append, where=where, patience_s=0) as loan:
        loan.take()
        assert [one.run for one in gpu_lock.live_notes("ask", where)] == [str(tmp_path)]
    assert messages == [] and not list(where.iterdir())


def test_an_app_that_keeps_the_card_is_named(where, tmp_path):
    sign = gpu_lock.Notice("app", tmp_path / "mine", where)
    sign.publish(holds=True)
    with pytest.raises(UserError) as refusal:
        with gpu_lock.Loan(tmp_path, lambda text: None, where=where, patience_s=0) as loan:
            loan.take()
    assert f"process {os.getpid()}" in str(refusal.value) and "mine" in str(refusal.value)
    assert gpu_lock.live_notes("ask", where) == []
    sign.withdraw()


@pytest.mark.parametrize("kind", ["app", "ask"])
def test_what_a_killed_process_left_counts_for_nothing(kind, where, tmp_path):
    program = (
        "import sys, time\nfrom pathlib import Path\n"
        "from alpaca_rlhf.core import gpu_lock\n"
        f"sign = gpu_lock.Notice({kind!r}, Path('other'), Path({str(where)!r}))\n"
        "sign.publish(holds=True)\n"
        "print('up', flush=True)\ntime.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "up\n"
        assert [one.pid for one in gpu_lock.live_notes(kind, where)] == [process.pid]
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert gpu_lock.live_notes(kind, where) == []
        assert list(where.iterdir()) == [], "taken away too"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_run_asks_for_the_card_before_it_loads_the_base(monkeypatch, tmp_path, where):
    """Once, and not for ranking, which needs no model."""
    from alpaca_rlhf import pipeline

    monkeypatch.setenv("ALPACA_RLHF_CARD", str(where))
    order = []
    monkeypatch.setattr(pipeline.gpu_lock.Loan, "take", lambda self: order.append("take"))
    monkeypatch.setattr(pipeline, "_work", lambda context, step: order.append(step.stage))
    monkeypatch.setattr(
        pipeline,
        "order",
        lambda settings: [pipeline.Step(name, 1) for name in ("rank", "sft", "generate")],
    )
    settings = pipeline.Loop(out=tmp_path / "out")
    reporter = SimpleNamespace(start=lambda stage, what: None)
    pipeline.run_loop(settings, reporter, kind="loop", command="", until="generate")
    assert order == ["rank", "take", "sft", "generate"]


# --- with a real base -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(run, tmp_path_factory):
    real_worker = Worker(run, gpu_folder=tmp_path_factory.mktemp("real-card"))
    yield real_worker
    real_worker.close()


ROW = Instruction("Name a colour.")


def generate_on_server(policy, sampling_settings=None, key="k", row=ROW, k=1):
    sampling_settings = sampling_settings or SamplingSettings(temperature=1.0)

    def work(policy_server, stop):
        return policy_server.generate(policy, row, sampling_settings, stop, key=key, k=k)

    return work


def test_answers_are_those_of_the_decode_loop_for_every_policy(real, run):
    """The base is loaded once; each policy says what it says alone, in whatever order."""
    from alpaca_rlhf.models.adapters import Adapters
    from alpaca_rlhf.models.base import load_base

    settings = run_contents.settings_of(run)
    alone = {}
    for name, folder in run_contents.policies(run).items():
        adapters = Adapters(load_base(settings.base), settings.lora, template="brief")
        role = None
        if folder is not None:
            role = "mine"
            adapters.load(role, folder)
        ids = prompt_ids(adapters.base, "brief", ROW)
        how = Sampling(max_new_tokens=60)
        ((sampled,),) = sample(adapters, role, [ids], ["k"], sampling=how, seed=0)
        alone[name] = answer(adapters.base, "brief", sampled.ids)
    assert list(alone) == real.policies() == ["base", "sft", "ppo.2"]
    assert len(set(alone.values())) == 3
    for name in ("ppo.2", "base", "sft", "base", "ppo.2"):
        answers = [
            update.value for update in real.start(generate_on_server(name), "chat").updates()
        ]
        assert answers[-1][0].text == alone[name]


def test_what_is_released_is_gone(run, where):
    worker = Worker(run, gpu_folder=where, has_gpu=lambda: True)
    base = []

    def work(policy_server, stop):
        base.append(weakref.ref(policy_server._base.model))
        yield from generate_on_server("sft")(policy_server, stop)

    first = last(worker.start(work, "chat")).value[0].text
    with gpu_lock.Loan(run, lambda text: None, where=where) as loan:
        loan.take()
        gc.collect()
        assert base[0]() is None, "nothing holds the model any more"
    second = last(worker.start(generate_on_server("sft"), "chat")).value[0].text
    assert second == first
    worker.close()


def test_the_queue_is_filled_and_filling_goes_on_where_it_stopped(real, run, tmp_path):
    rows = RunPrompts(run, real.settings).to_rank()
    assert len(rows) == 5
    with Store(tmp_path / "p.db") as store:

        def work(n=99):
            def steps(policy_server, stop):
                how = SamplingSettings(temperature=1.0)
                progresses = fill(
                    store,
                    policy_server,
                    rows,
                    "sft",
                    k=4,
                    sampling_settings=how,
                    origin="runs/x/sft",
                    batch=2,
                )
                for number, progress in enumerate(progresses):
                    yield progress
                    if number == n:
                        return

            return steps

        half = last(real.start(work(1), "sample", urgent=False)).value
        assert (half.done, half.total, half.new) == (2, 5, 2)
        updates = [update.value for update in real.start(work(), "sample", urgent=False).updates()]
        assert (updates[-1].done, updates[-1].new + updates[-1].alike) == (5, 3)
        second = last(real.start(work(), "sample", urgent=False)).value
        assert (second.done, second.new) == (5, 0)
        ann = store.add_annotator("ann", "long enough")
        task_ids = set()
        while (task := store.claim(ann, holding=task_ids)) is not None:
            task_ids.add(task.id)
            texts = [completion.text for completion in task.completions]
            assert len(set(texts)) == len(texts) <= 4 and task.prompt in rows
        assert len(task_ids) == 5 - updates[-1].alike


def test_typed_prompts_stay_away_from_those_of_other_stages(run):
    held = RunPrompts(run, run_contents.settings_of(run))
    assert set(held.splits) == {"sft", "rank", "ppo", "dev", "eval"}
    for name, rows in held.splits.items():
        near = Instruction(rows[0].instruction.replace(":", " :") + " please")
        leak = held.leak(near)
        assert (leak and leak.other_split) == (None if name == "rank" else name)
    assert held.leak(Instruction("Something else entirely, about ships.")) is None
    assert prompts(40)[0] not in held.splits["sft"]
