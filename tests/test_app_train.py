"""The Train tab: a process of its own that outlives the app, and what no browser can make it do."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console
from sqlalchemy import select

from alpaca_rlhf.app import train_tab as train_tab_module
from alpaca_rlhf.app import training as training_module
from alpaca_rlhf.app import training_view
from alpaca_rlhf.app.language import translations
from alpaca_rlhf.app.new_run import Offer
from alpaca_rlhf.app.page_layout import Tab
from alpaca_rlhf.app.run_choice import RunChoice
from alpaca_rlhf.app.train_tab import TrainPage, train_tab
from alpaca_rlhf.app.training import Training, TrainingCommand, TrainingRefused, TrainingState
from alpaca_rlhf.app.training_plan import PlannedStage, plan_of
from alpaca_rlhf.cli import app_command
from alpaca_rlhf.cli.terminal import Terminal
from alpaca_rlhf.core import gpu_lock
from alpaca_rlhf.core.locks import Lock
from alpaca_rlhf.planner import CPU, find_gpu
from alpaca_rlhf.preferences.database import DiskFull
from alpaca_rlhf.preferences.schema import Audit
from alpaca_rlhf.preferences.standing import Standing
from alpaca_rlhf.preferences.store import Store
from alpaca_rlhf.serving import run_contents
from alpaca_rlhf.settings import Evaluate, Inputs, Loop, Rank
from alpaca_rlhf.settings.parsing import to_yaml
from alpaca_rlhf.settings.steps import Step, order
from tests import apps, attacks
from tests.browser import NO_CHROMIUM, browser, chromium, free_port, visit
from tests.model_app import nothing_serious
from tests.screenshots import open_tab
from tests.test_preferences_store import rows as rows_of

ROOT = Path(__file__).resolve().parent.parent
LONG = 60.0

STAND_IN = """
import json, pathlib, signal, sys, time
from alpaca_rlhf.core.locks import Lock
run = pathlib.Path(sys.argv[1])
(run / "argv.json").write_text(json.dumps(sys.argv[1:]))
lock = Lock(run / ".lock")
import os
lock.write_owner(str(os.getpid()))
def stop(number, frame):
    print("interrupted; what was done is kept. To go on: alpaca-rlhf loop", flush=True)
    sys.exit(130)
signal.signal(signal.SIGINT, stop)
print("ppo: train the policy", flush=True)
print("  ppo 1/9 updates, 2 s/update, ETA 0:16, score 0.3", flush=True)
while True:
    time.sleep(0.05)
"""
"""A process that holds a run as the loop does, until it is interrupted."""


def until(true, *, seconds=LONG):
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it never came"
        time.sleep(0.05)


@pytest.fixture
def audited(tmp_path):
    with Store(tmp_path / "audited.db") as store:
        yield store


@pytest.fixture
def run(tmp_path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    return folder


@pytest.fixture
def trainings(run, tmp_path, audited):
    """Makes the training of the run, as an app does that has just been started."""
    made = []

    def make(*, allowed=True) -> Training:
        command = [sys.executable, str(tmp_path / "stand_in.py"), str(run)]
        training = Training(run, audited, command, allowed=allowed, gpu_folder=tmp_path / "card")
        made.append(training)
        return training

    yield make
    for training in made:
        process = training._process
        if process is not None:
            process.kill()
            process.wait()


def started(training: Training) -> Training:
    training.start(actor="annotator:1")
    until(lambda: "ETA" in training.state.log)
    return training


def refusal(call) -> str:
    with pytest.raises(TrainingRefused) as caught:
        call(actor="annotator:1")
    return caught.value.reason


# --- the process ----------------------------------------------------------------------------------


def test_one_process_trains_and_is_interrupted_as_by_ctrl_c(trainings, run):
    training = trainings()
    assert training.state.activity == "idle" and refusal(training.stop) == "idle"
    training.start(actor="annotator:1")
    assert refusal(training.start) == "running", "before the process has locked the run"
    until(lambda: "ETA" in training.state.log)
    assert training.state.activity == "training"
    assert refusal(training.start) == "running"
    training.stop(actor="annotator:1")
    until(lambda: training.state.activity == "idle")
    assert training.state.exit_code == 130
    settings = Loop(out=run)
    assert training_view.ending(training.state, {}, settings) == ("stopped", "")
    started(training)
    assert training.state.log.count("ppo: ") == 1, "each process has a log of its own"
    training.stop(actor="annotator:1")


def test_a_restarted_app_finds_the_process_and_stops_it(trainings, run):
    first = started(trainings())
    restarted = trainings()
    state = restarted.state
    assert (state.activity, state.from_page) == ("training", True) and "ETA" in state.log
    assert refusal(restarted.start) == "running"
    restarted.stop(actor="annotator:1")
    assert restarted.state.activity in ("stopping", "idle")
    until(lambda: first.state.activity == "idle")
    assert restarted.state.activity == "idle"


def test_a_run_of_a_terminal_is_seen_and_stopped(trainings, run, tmp_path):
    command = [sys.executable, str(tmp_path / "stand_in.py"), str(run)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        training = trainings()
        until(lambda: training.state.activity == "training")
        assert not training.state.from_page and refusal(training.start) == "running"
        training.stop(actor="annotator:1")
        assert process.wait(LONG) == 130
    finally:
        process.kill()
        process.wait()


def test_a_killed_process_is_told_and_another_may_start(trainings, run):
    training = started(trainings())
    os.kill(training._process.pid, signal.SIGKILL)
    until(lambda: training.state.activity == "idle")
    assert training_view.ending(training.state, {}, Loop(out=run)) == ("killed", "")
    assert started(training).state.activity == "training"


def test_one_training_at_a_time_on_a_machine(trainings, run, tmp_path):
    other = gpu_lock.Notice("ask", tmp_path / "another run", tmp_path / "card")
    try:
        with pytest.raises(TrainingRefused) as caught:
            trainings().start(actor="annotator:1")
        assert (caught.value.reason, caught.value.detail) == ("elsewhere", "another run")
    finally:
        other.withdraw()
    assert not (run / "argv.json").exists()


def test_what_is_not_allowed_starts_and_stops_nothing(trainings, run):
    training, closed = started(trainings()), trainings(allowed=False)
    assert refusal(closed.start) == "not_allowed" and refusal(closed.stop) == "not_allowed"
    assert training.state.activity == "training"


def test_a_start_and_a_stop_stand_in_the_audit(trainings, audited):
    training = started(trainings())
    training.stop(actor="annotator:7")
    with audited.database.reading() as session:
        rows = [
            (row.actor, row.action, row.entity)
            for row in session.scalars(select(Audit).order_by(Audit.id))
        ]
    assert rows == [
        ("annotator:1", "start", "run:mine"),
        ("annotator:7", "stop", "run:mine"),
    ]


def test_a_start_that_cannot_be_noted_starts_nothing_and_a_stop_stops(
    trainings, audited, run, monkeypatch
):
    """On a full disk: "refused" is the truth, and nobody has to wait for space to stop."""

    def full(*args, **kwargs):
        raise DiskFull("the disk is full")

    note = audited.note_training
    monkeypatch.setattr(audited, "note_training", full)
    training = trainings()
    with pytest.raises(DiskFull):
        training.start(actor="annotator:1")
    assert training.state.activity == "idle" and training._process is None
    assert not (run / "argv.json").exists()
    monkeypatch.setattr(audited, "note_training", note)
    started(training)
    monkeypatch.setattr(audited, "note_training", full)
    training.stop(actor="annotator:1")
    until(lambda: training.state.activity == "idle")
    assert training.state.exit_code == 130


def test_a_process_that_could_not_be_started_stands_in_the_audit_as_such(
    trainings, audited, monkeypatch
):
    def fails(*args, **kwargs):
        raise OSError("Cannot allocate memory")

    monkeypatch.setattr(subprocess, "Popen", fails)
    assert refusal(trainings().start) == "failed"
    actions = [row.action for row in rows_of(audited, Audit)]
    assert actions == ["start", "start_failed"]


# --- its picture ----------------------------------------------------------------------------------


def state_of(log: str, activity="idle", **more) -> TrainingState:
    return TrainingState(activity, log, True, **more)


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("error: --out runs/x: is in use\n", ("refused", "--out runs/x: is in use")),
        ("  sft 1/2 steps\ninterrupted; what was done is kept. To go on: x\n", ("stopped", "")),
        (
            'Traceback (most recent call last):\n  File "x"\nValueError: no\n',
            ("crashed", "ValueError: no"),
        ),
        ("3 of 9 prompts are not ranked yet: rank them in a browser\n", ("paused", "")),
        ("", ("paused", "")),
    ],
)
def test_the_end_of_a_training_is_one_line(log, expected):
    assert training_view.ending(state_of(log), {"sft": {}}, Loop()) == expected


def test_a_traceback_that_ended_nothing_is_no_crash():
    noise = "Exception ignored in: x\nTraceback (most recent call last):\nKeyError: 1\n"
    done = {step.entry: {} for step in order(Loop())}
    assert training_view.ending(state_of(noise, exit_code=0), done, Loop()) == ("done", "")
    stopped = noise + "interrupted; what was done is kept. To go on: x\n"
    assert training_view.ending(state_of(stopped), {"sft": {}}, Loop()) == ("stopped", "")


def test_an_old_log_tells_nothing_once_a_terminal_has_gone_further():
    state = state_of("error: no space left\n", outdated=True)
    assert training_view.ending(state, {"sft": {}}, Loop()) == ("paused", "")
    done = {step.entry: {} for step in order(Loop())}
    assert training_view.ending(state, done, Loop()) == ("done", "")


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (
            "error: --more-rounds: too few are left\n",
            ("refused", "--more-rounds: too few are left"),
        ),
        ("Traceback (most recent call last):\nOSError: no\n", ("crashed", "OSError: no")),
        ("interrupted; what was done is kept. To go on: x\n", ("done", "")),
        ("evaluate: done\nnext: alpaca-rlhf chat\n", ("done", "")),
    ],
)
def test_a_refusal_after_the_last_stage_is_told(log, expected):
    done = {step.entry: {} for step in order(Loop())}
    assert training_view.ending(state_of(log), done, Loop()) == expected


def test_progress_is_read_from_what_the_terminal_writes():
    """By the terminal itself, so that neither changes without the other."""
    seconds = iter(range(0, 1000, 2))
    file = io.StringIO()
    terminal = Terminal(Console(file=file, width=200), every_s=0, clock=lambda: next(seconds))
    terminal.start("ppo.2", "train the policy")
    current = Step("ppo", 2)
    assert training_view.progress(state_of(file.getvalue(), "training"), [], current) is None
    terminal.step("ppo.2", 1, 9, {"score": 0.3})
    terminal.step("ppo.2", 3, 9, {"score": 0.4, "kl": 1.0})
    progress = training_view.progress(state_of(file.getvalue(), "training"), [], current)
    assert (progress.stage, progress.done, progress.total) == ("ppo.2", 3, 9)
    assert (progress.speed, progress.eta) == ("1 updates/s", "0:06")
    terminal.finish("ppo.2", "done")
    terminal.start("best_of_k.2", "fine-tune")
    later = training_view.progress(state_of(file.getvalue(), "training"), [], Step("best_of_k", 2))
    assert later is None, "the stage before is over"


def test_progress_of_a_terminals_run_is_that_of_its_metrics():
    state = TrainingState("training", "an old log", False)
    rows = [{"stage": "sft", "step": 5, "steps": 20, "loss": 1.0}]
    progress = training_view.progress(state, rows, Step("sft", 1))
    assert (progress.percent, progress.eta) == (25.0, "")
    assert training_view.progress(state, rows, Step("sample", 1)) is None


def test_stages_wait_run_and_are_done():
    inputs = Inputs(seeds=Path("shipped"), prompts=Path("prompts.jsonl"), judge="human")
    settings = Loop(rounds=2, rank=Rank(at_least=5), inputs=inputs)
    done = {"generate": {"seconds": 3.0}, "sft": {"seconds": 5.0, "peak_memory_gib": 1.5}}
    done |= {"sample": {"seconds": 1.0}}
    standings = {1: Standing(ranked=3, waiting=4)}
    plan = {"ppo": PlannedStage(60.0, 2.0, True)}
    show = partial(training_view.rounds, settings, plan=plan, standings=standings)
    groups = show(done, running=False)
    assert [number for number, _ in groups] == [0, 1, 2, 0]
    statuses = [card.status for _, cards in groups for card in cards]
    assert statuses[:5] == ["done", "done", "done", "people", "later"]
    assert groups[0][1][1].memory_gib == 1.5 and groups[1][1][3].planned == plan["ppo"]
    assert groups[1][1][1].standing == standings[1]
    assert training_view.waits_for_people(settings, Step("rank", 1), standings) == 2
    assert training_view.waits_for_people(settings, Step("reward", 1), standings) == 0
    assert show({}, running=True)[0][1][0].status == "running"


def test_curves_have_a_line_for_each_round():
    text = translations("train", "en")
    rows = [
        {"stage": stage, "step": step, "score": step / 10, "kl": 0.1}
        for stage in ("ppo", "ppo.2", "ppo_shuffled")
        for step in (1, 2, 3)
    ]
    score, kl = training_view.curves([*rows, {"stage": "sft", "step": 1, "loss": 2.0}], text)
    assert score.title == "PPO: score" and kl.title == "PPO: KL from SFT"
    assert [line.label for line in score.series] == ["score", "score, round 2"]
    assert score.series[1].dashed and list(score.series[0].points)[-1] == (3.0, 0.3)


def test_the_plan_is_that_of_the_planner():
    settings = Loop(rounds=3)
    on_cpu, on_card = plan_of(settings, CPU), plan_of(settings, find_gpu("24"))
    assert set(on_cpu) >= {"sft", "sample", "reward", "ppo", "best_of_k", "evaluate"}
    assert on_cpu["ppo"].seconds > on_card["ppo"].seconds > 0
    once = plan_of(Loop(), CPU)
    assert on_cpu["ppo"].seconds == pytest.approx(once["ppo"].seconds), "of one round"
    kept = plan_of(replace(settings, checkpointing="off"), find_gpu("24"))
    assert kept["sft"].seconds < on_card["sft"].seconds, "nothing is recomputed"


def test_new_policies_are_there_as_soon_as_they_are_trained(tmp_path):
    policies = run_contents.RunPolicies(tmp_path)
    assert list(policies) == ["base"]
    adapter = tmp_path / "ppo" / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text("{}")
    assert policies["ppo"] == adapter and len(policies) == 2


# --- attacks --------------------------------------------------------------------------------------


@contextmanager
def victim_of(trainings, tmp_path, *, allowed=True):
    """An app with the Train tab whose command tells what it was started with."""
    training = trainings(allowed=allowed)
    victim = attacks.Victim(tmp_path)
    command = TrainingCommand([], "alpaca-rlhf loop --out mine", None if allowed else "flag")
    page = TrainPage(training, victim.store, command)
    tabs = [
        Tab("rank", apps.stand_in),
        Tab("train", partial(train_tab, page=page), admin=True),
        Tab("data", apps.data_tab_of(tmp_path), admin=True),
    ]
    victim.app = apps.house(victim.store, tmp_path, tabs=tabs, own_routes=page.routes())
    with victim.store:
        yield victim, training


def act(client, fields, *, way="queue", number=None):
    number = number if number is not None else event_number(client)
    return attacks.called(client, way, "act", number, [None], fields)[:200]


def event_number(client):
    rows = client.get("/config").json()["dependencies"]
    return next(row["id"] for row in rows if row["api_name"] == "act")


@pytest.fixture(autouse=True)
def quick_passwords(monkeypatch):
    from alpaca_rlhf.preferences import passwords

    monkeypatch.setattr(passwords, "LOG_N", 4)


def test_an_annotator_neither_sees_nor_starts_a_training(trainings, tmp_path, run):
    (run / "report.html").write_text("secret")
    with victim_of(trainings, tmp_path) as (victim, training):
        with victim.visitor("boss") as boss:
            number = event_number(boss)
            assert boss.get("/training").status_code == 200
            assert boss.get("/report").text == "secret"
        with victim.visitor("ann") as ann:
            assert ann.get("/training").status_code == ann.get("/report").status_code == 403
            for way in ("queue", "run", "call"):
                answer = act(ann, {"do": "train"}, way=way, number=number)
                assert any(word in answer for word in ("admins", "404", "422", "error")), answer
        with victim.visitor() as nobody:
            assert nobody.get("/training").status_code == 401
            assert "401" in act(nobody, {"do": "train"}, number=number)
        assert training.state.activity == "idle" and not (run / "argv.json").exists()


@pytest.mark.parametrize("origin", ["https://evil.example", "null", ""])
def test_no_other_site_starts_a_training(trainings, tmp_path, run, origin):
    with victim_of(trainings, tmp_path) as (victim, training), victim.visitor("boss") as boss:
        number = event_number(boss)
        body = {"data": [None], "fn_index": number, "session_hash": "abc"}
        body["event_data"] = {"do": "train"}
        for path in ("queue/join", "run/act", "call/act"):
            posted = boss.post(f"/gradio_api/{path}", json=body, headers={"origin": origin})
            assert posted.status_code == 403
        assert boss.post("/training", json={}, headers={"origin": origin}).status_code == 403
        assert training.state.activity == "idle" and not (run / "argv.json").exists()


CRAFTED = [
    {"do": "train", "run": "/etc", "out": "/elsewhere", "words": ["--out", "/elsewhere"]},
    {"do": "train", "command": ["touch", "/elsewhere"], "flags": "--base http://evil.example"},
    {"do": "train", "judge": "/evil.py:judge", "base": "../../elsewhere"},
]
"""Fields that an admin's browser might send beside the name of the button."""


@pytest.mark.parametrize("fields", CRAFTED)
def test_nothing_that_a_browser_sends_is_part_of_the_command(trainings, tmp_path, run, fields):
    with victim_of(trainings, tmp_path) as (victim, _), victim.visitor("boss") as boss:
        act(boss, fields)
        until(lambda: (run / "argv.json").exists())
        assert json.loads((run / "argv.json").read_text()) == [str(run)]


@pytest.mark.parametrize("action", ["train --out /x", "Train", "", None, 7, ["train"], "start"])
def test_only_the_name_of_a_button_does_something(trainings, tmp_path, run, action):
    with victim_of(trainings, tmp_path) as (victim, training), victim.visitor("boss") as boss:
        act(boss, {"do": action})
        assert training.state.activity == "idle" and not (run / "argv.json").exists()


def test_an_admin_starts_nothing_where_it_is_not_allowed(trainings, tmp_path, run):
    with (
        victim_of(trainings, tmp_path, allowed=False) as (victim, training),
        victim.visitor("boss") as boss,
    ):
        assert "--allow-training" in act(boss, {"do": "train"})
        sections = boss.get("/training").json()["sections"]
        assert "--allow-training" in sections["head"] and 'data-do="train"' not in sections["head"]
        assert training.state.activity == "idle" and not (run / "argv.json").exists()


@pytest.mark.parametrize(
    ("flags", "allowed"),
    [
        ({}, True),
        ({"host": "0.0.0.0"}, False),
        ({"host": "0.0.0.0", "allow_training": True}, True),
        ({"url": "https://rank.example.org"}, False),
        ({"root_path": "/rank"}, False),
        ({"root_path": "/rank", "allow_training": True}, True),
    ],
)
def test_where_others_reach_the_app_training_must_be_allowed(run, monkeypatch, flags, allowed):
    assert (started_with(run, monkeypatch, run / "preferences.db", flags) is None) == allowed


def test_training_is_closed_where_the_rankings_are_not_in_the_run(run, monkeypatch, tmp_path):
    for flags in ({}, {"host": "0.0.0.0", "allow_training": True}):
        assert started_with(run, monkeypatch, tmp_path / "people.db", flags) == "database"


def started_with(run, monkeypatch, database, flags):
    """The reason why training is closed in an app that is started with these flags."""
    from alpaca_rlhf.app import server, tabs

    class Built(Exception):
        pass

    def build(*positional, command, **named):
        assert command.words[1:] == ["-m", "alpaca_rlhf", "loop", "--out", str(run)]
        raise Built(command.closed)

    monkeypatch.setattr(tabs, "tabs", build)
    monkeypatch.setattr(server, "serve", lambda *_, **__: pytest.fail("served"))
    typed = app_command.App(run=run, port=free_port(), **flags)
    with Store(database) as store, pytest.raises(Built) as caught:
        if not store.any_accounts():
            store.add_annotator("boss", "long enough", role="admin")
        site = app_command._Site(RunChoice(run), Offer())
        app_command._serve(store, typed, site, Terminal(Console(file=io.StringIO())))
    [closed] = caught.value.args
    return closed


def test_the_next_round_is_one_more_and_only_of_a_finished_run(trainings, tmp_path, run):
    with victim_of(trainings, tmp_path) as (victim, training), victim.visitor("boss") as boss:
        assert "not finished" in act(boss, {"do": "next", "words": ["--more-rounds", "9"]})
        assert training.state.activity == "idle" and not (run / "argv.json").exists()
        finished_run(run, Loop(inputs=Inputs(judge="gold")))
        assert 'data-do="next"' in boss.get("/training").json()["sections"]["head"]
        act(boss, {"do": "next", "words": ["--more-rounds", "9"]})
        until(lambda: (run / "argv.json").exists())
        assert json.loads((run / "argv.json").read_text()) == [str(run), "--more-rounds", "1"]


def finished_run(run: Path, settings: Loop) -> None:
    (run / "config.yaml").write_text(to_yaml(settings))
    done = {step.entry: {} for step in order(settings)}
    (run / "ledger.json").write_text(json.dumps(done))


def few_prompts(folder: Path) -> Loop:
    """Settings whose one round leaves two prompts over."""
    words = "apples bridges candles deserts engines forests glaciers harbours islands jungles"
    rows = [json.dumps({"instruction": f"Describe {word}."}) for word in words.split()]
    (folder / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    inputs = Inputs(seeds=Path("shipped"), prompts=folder / "prompts.jsonl", judge="human")
    return Loop(
        inputs=inputs,
        rank=Rank(prompts=4),
        evaluate=Evaluate(prompts=4),
        policies=("dpo",),
    )


@pytest.mark.parametrize(
    ("settings_in", "why"),
    [
        (lambda _: Loop(inputs=Inputs(judge="checks")), "begin another run with --rounds"),
        (few_prompts, "rank.2 needs 4 prompts, and the rounds so far leave"),
    ],
    ids=["checks", "too few prompts"],
)
def test_a_round_without_prompts_is_refused_before_it_starts(
    trainings, tmp_path, run, settings_in, why
):
    finished_run(run, settings_in(tmp_path))
    with victim_of(trainings, tmp_path) as (victim, training), victim.visitor("boss") as boss:
        assert why in act(boss, {"do": "next"})
        assert training.state.activity == "idle" and not (run / "argv.json").exists()


def test_the_head_of_a_finished_run_shows_what_its_next_round_met(trainings, tmp_path, run):
    finished_run(run, Loop(inputs=Inputs(judge="gold")))
    time.sleep(0.05)
    (run / training_module.TRAINING_LOG).write_text("error: --seed-file x: was changed\n")
    with Store(run / "preferences.db") as store:
        page = TrainPage(trainings(), store, TrainingCommand([], "alpaca-rlhf loop"))
        head = page.sections("en")["head"]
        assert "Refused: --seed-file x: was changed" in head and "All stages are done" not in head
        assert 'data-do="next"' in head and 'data-do="train"' not in head


def test_the_head_of_a_new_run_says_why_it_was_not_started(trainings, run):
    (run / "config.yaml").write_text("seed: 0\n")
    (run.parent / "faster").mkdir()
    with Store(run / "preferences.db") as store:
        page = TrainPage(trainings(), store, TrainingCommand([], "alpaca-rlhf loop"))
        with Lock(run.parent / "faster" / training_module.TRAINING_LOG):
            refused = page.start_first(actor="annotator:1")
        assert refused is not None and refused.reason == "elsewhere"
        head = page.sections("en")["head"]
    assert "another run is being trained" in head and "(faster)" in head
    assert "Nothing has been trained yet" not in head and 'data-do="train"' in head


def test_people_are_asked_to_rank_until_it_is_enough(trainings, tmp_path, run, monkeypatch):
    settings = Loop(
        out=run,
        rank=Rank(at_least=3),
        inputs=Inputs(seeds=Path("shipped"), prompts=Path("prompts.jsonl"), judge="human"),
    )
    (run / "config.yaml").write_text(to_yaml(settings))
    (run / "ledger.json").write_text(json.dumps({"generate": {}, "sft": {}, "sample": {}}))
    standing = Standing(ranked=1, waiting=5)
    monkeypatch.setattr(train_tab_module, "standing_by_round", lambda *_: {1: standing})
    with Store(run / "preferences.db") as store:
        page = TrainPage(trainings(), store, TrainingCommand([], "alpaca-rlhf loop"))
        sections = page.sections("en")
        assert "2 prompts are still to be ranked" in sections["head"]
        assert 'data-go="Rank"' in sections["head"] and 'data-do="train"' not in sections["head"]
        assert "1 of 6 prompts ranked" in sections["stages"]
        standing = Standing(ranked=3, waiting=3)
        sections = page.sections("en")
        assert "Enough prompts are ranked" in sections["head"]
        assert 'data-do="train"' in sections["head"]
        assert "还有" not in sections["head"] and "可以继续训练" in page.sections("zh-CN")["head"]


def test_the_log_and_the_ending_are_only_text(trainings, tmp_path, run):
    (run / "ledger.json").write_text("{}")
    (run / training_module.TRAINING_LOG).write_text("error: <img src=x onerror=hit()> ${hit()}\n")
    with victim_of(trainings, tmp_path) as (victim, _), victim.visitor("boss") as boss:
        sections = boss.get("/training").json()["sections"]
        assert "&lt;img" in sections["head"] and "&lt;img" in sections["log"]
        assert not any("<img" in html for html in sections.values())


# --- as a person does it --------------------------------------------------------------------------

TO_BE_TRAINED = ("ppo", "best_of_k", "random_of_k", "evaluate")


@pytest.fixture(scope="module")
def half(whole_run, tmp_path_factory) -> Path:
    """A small quickstart that was stopped before PPO."""
    out = tmp_path_factory.mktemp("train") / "quickstart"
    shutil.copytree(whole_run.path, out)
    ledger = json.loads((out / "ledger.json").read_text())
    kept = {key: row for key, row in ledger.items() if not key.startswith(TO_BE_TRAINED)}
    (out / "ledger.json").write_text(json.dumps(kept))
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if not row["stage"].startswith(TO_BE_TRAINED)]
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in TO_BE_TRAINED:
        shutil.rmtree(out / name, ignore_errors=True)
    for name in ("report.html", "report.json", "answers.jsonl"):
        (out / name).unlink()
    return out


def served(run: Path, port: int) -> subprocess.Popen[bytes]:
    words = [sys.executable, str(ROOT / "app.py"), "--run", str(run), "--port", str(port)]
    process = subprocess.Popen(
        words, env={**os.environ, "HF_HUB_OFFLINE": "1"}, cwd=run.parent, stdout=subprocess.DEVNULL
    )

    def answers():
        assert process.poll() is None, "the app has ended"
        try:
            url = f"http://127.0.0.1:{port}/login"
            return urllib.request.urlopen(url, timeout=LONG).status == 200
        except OSError:
            return False

    until(answers, seconds=300)
    return process


@pytest.mark.skipif(chromium() is None, reason=NO_CHROMIUM)
def test_a_person_trains_a_policy_while_the_server_is_killed(half):
    port = free_port()
    server = served(half, port)
    options = {"viewport": {"width": 1280, "height": 900}, "locale": "en-GB"}
    try:
        with browser() as opened, visit(opened, **options) as page:
            page.set_default_timeout(300_000)  # it trains beside other tests
            page.goto(f"http://127.0.0.1:{port}")
            page.locator("[data-account]").wait_for()
            # 1. Training is started, and a curve of it appears.
            open_tab(page, "train")
            page.get_by_text("Training goes on where it stopped").wait_for()
            assert page.get_by_role("img", name="PPO: score").count() == 0
            page.get_by_role("button", name="Train now").click()
            # The text first: on a quiet machine the stage is soon over.
            page.get_by_text("Training: PPO").wait_for()
            page.get_by_role("img", name="PPO: score").wait_for()
            nothing_serious(page, colours=True)
            # 2. The server is killed, and started again: the training has gone on meanwhile.
            server.kill()
            server.wait()
            server = served(half, port)
            page.reload()
            page.locator("[data-account]").wait_for()
            open_tab(page, "train")
            page.get_by_text("All stages are done").wait_for()
            # 3. The report is a page, and the new policy answers.
            with page.expect_popup() as popup:
                page.get_by_role("link", name="Open the report").click()
            assert popup.value.locator("h1").count() == 1
            popup.value.close()
            page.emulate_media(color_scheme="dark")
            nothing_serious(page, colours=True)
            page.get_by_role("button", name="Chat with the new policy").click()
            page.locator("#chat-policy input").click()
            page.get_by_role("option", name="ppo", exact=True).click()
            page.locator("#chat-box textarea").fill("Name the colour of the lemon.")
            page.keyboard.press("Enter")
            page.locator("#chat-line", has_text="tokens").wait_for()
    finally:
        server.kill()
        server.wait()
    ledger = json.loads((half / "ledger.json").read_text())
    assert {"ppo", "best_of_k", "evaluate"} <= set(ledger)
