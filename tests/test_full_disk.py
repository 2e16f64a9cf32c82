"""A disk that is full before a run, and one that fills up while it trains."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import writing
from alpaca_rlhf.pipeline import run_loop
from alpaca_rlhf.preferences.assignment import Rules, Verdict
from alpaca_rlhf.preferences.database import DiskFull
from alpaca_rlhf.preferences.store import Store
from tests.databases import candidates
from tests.prove import weights, without_times
from tests.test_cli import refused_here
from tests.whole_run import Quiet, small

STAGES = ("generate", "sft", "sample", "reward", "ppo", "best_of_k", "evaluate")


@pytest.fixture
def disk(tmp_path):
    """A disk of 200 MB, in memory; to be filled up and emptied."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("needs a disk of its own: mounting one is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk):
    """Write till nothing goes in any more."""
    with (disk / "ballast").open("ab", buffering=0) as stream:
        for size in (2**20, 4096):
            try:
                while stream.write(b"x" * size):
                    pass
            except OSError:
                continue


def test_a_run_that_the_disk_has_no_room_for_is_refused(disk, capsys):
    with (disk / "ballast").open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, 190 * 2**20)
    line = refused_here(capsys, "quickstart", "--out", disk / "run")
    assert "--out" in line and "this run needs 0." in line and "has 0.0" in line
    assert not (disk / "run").exists()


class Filler(Quiet):
    """Fills the disk in the middle of a stage."""

    def __init__(self, disk, stage):
        super().__init__()
        self.disk, self.stage = disk, stage

    def step(self, stage, done, total, metrics):
        if self.started[-1] == self.stage:
            fill(self.disk)


def test_a_disk_that_fills_up_in_any_stage_costs_nothing_but_time(disk, whole_run):
    out = disk / "run"
    for stage in STAGES:
        with pytest.raises(
            UserError, match=r"cannot be written .*free some space and run it again"
        ):
            run_loop(small(out), Filler(disk, stage), kind="quickstart", command="test")
        (disk / "ballast").unlink()
    run_loop(small(out), Quiet(), kind="quickstart", command="test")
    reports = [
        without_times(json.loads((folder / "report.json").read_text()))
        for folder in (whole_run.path, out)
    ]
    assert reports[0] == reports[1]
    assert weights(whole_run.path) == weights(out)


def test_what_safetensors_says_is_told_in_a_line(tmp_path):
    class SafetensorError(Exception):
        pass

    with pytest.raises(UserError, match=r"No space left.*free some space"), writing(tmp_path):
        raise SafetensorError("I/O error: No space left on device (os error 28)")
    with pytest.raises(KeyError), writing(tmp_path):
        raise KeyError("a bug stays one")


def test_a_ranking_that_the_disk_cannot_take_is_not_told_as_saved(disk):
    plain = Rules(gold_rate=0, repeat_rate=0, second_share=0)
    saved, refused = 0, 0
    with Store(disk / "p.db", rules=plain, seed=0) as store:
        store.add_sets(candidates(50), origin="test")
        ann = store.add_annotator("Ann", "long enough")
        fill(disk)
        while not refused or saved < 10:
            try:
                task = store.claim(ann)
                order = tuple((completion.id,) for completion in task.completions)
                verdict = Verdict(order, comment="x" * 2000)
                store.submit(ann, task.id, verdict, revision=task.revision)
                saved += 1
            except DiskFull as error:
                assert "full" in str(error)
                refused += 1
                (disk / "ballast").unlink()
        assert store.progress(ann).mine == saved
