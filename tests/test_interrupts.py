"""Interrupting another process, as on Windows: by Ctrl-Break to a group of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from alpaca_rlhf.app.training import Training, TrainingRefused
from alpaca_rlhf.core import interrupts, locks
from alpaca_rlhf.core.locks import is_locked
from alpaca_rlhf.core.runs import TRAINING_LOG
from alpaca_rlhf.preferences.store import Store
from alpaca_rlhf.training.interrupt import finishing_the_step

BREAK_EVENT, NEW_GROUP = 1, 0x200


@pytest.fixture
def on_windows(monkeypatch):
    """Names that only Windows has; SIGUSR1 stands in for SIGBREAK."""
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(signal, "CTRL_BREAK_EVENT", BREAK_EVENT, raising=False)
    monkeypatch.setattr(signal, "SIGBREAK", signal.SIGUSR1, raising=False)
    monkeypatch.setattr(subprocess, "CREATE_NEW_PROCESS_GROUP", NEW_GROUP, raising=False)
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.fixture
def training(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    with Store(tmp_path / "store.db") as store:
        yield Training(run, store, ["loop"], allowed=True, gpu_folder=tmp_path / "card")


class Process:
    """A process that lives on."""

    pid = 4321

    def poll(self) -> None:
        return None


def test_stop_never_ends_a_process_of_windows_unsaved(on_windows, training, monkeypatch):
    """There `os.kill` with any other number is TerminateProcess."""
    started, sent = {}, []

    def popen(words, **options):
        started.update(options)
        return Process()

    monkeypatch.setattr(subprocess, "Popen", popen)
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    training.start(actor="annotator:1")
    assert started["creationflags"] == NEW_GROUP and "start_new_session" not in started
    assert started["env"]["ALPACA_RLHF_LOCKED"] == str(training.run / TRAINING_LOG)
    training.stop(actor="annotator:1")
    assert sent == [(Process.pid, BREAK_EVENT)]


def test_a_process_at_another_console_is_not_stopped_and_it_is_told(
    on_windows, training, monkeypatch
):
    def unreachable(pid, number):
        raise OSError(87, "The parameter is incorrect")

    monkeypatch.setattr(subprocess, "Popen", lambda words, **options: Process())
    monkeypatch.setattr(os, "kill", unreachable)
    training.start(actor="annotator:1")
    with pytest.raises(TrainingRefused, match="parameter is incorrect"):
        training.stop(actor="annotator:1")


def test_the_log_stays_locked_by_the_process_that_writes_it(on_windows, tmp_path, monkeypatch):
    """A child of Windows inherits no lock, so it takes one."""
    log = tmp_path / TRAINING_LOG
    monkeypatch.setattr(locks, "_taken_over", [])
    for name, value in locks.inheriting(log).items():
        monkeypatch.setenv(name, value)
    locks.take_over()
    assert is_locked(log)
    locks.take_over()  # its own children are not told
    (lock,) = locks._taken_over
    lock.close()
    assert not is_locked(log)


def test_elsewhere_a_child_inherits_the_lock_with_its_output(tmp_path):
    assert locks.inheriting(tmp_path) == {} and interrupts.apart() == {"start_new_session": True}


def test_ctrl_break_finishes_the_step_and_the_second_interrupts(on_windows, caplog):
    interrupts.heed()
    with pytest.raises(KeyboardInterrupt), finishing_the_step() as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGUSR1)
        assert interrupted(), "the step goes on"
        signal.raise_signal(signal.SIGUSR1)
        pytest.fail("it went on")
    assert signal.getsignal(signal.SIGUSR1) is signal.default_int_handler


def test_ctrl_break_outside_of_a_step_is_an_interrupt(on_windows):
    interrupts.heed()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGUSR1)
