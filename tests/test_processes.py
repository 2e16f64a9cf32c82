"""Two processes take the steps of one."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from alpaca_rlhf.core import processes
from alpaca_rlhf.pipeline import run_loop
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.settings.parsing import parse, to_yaml
from alpaca_rlhf.settings.quickstart import QUICKSTART
from tests import together
from tests.prove import SMALL
from tests.whole_run import Quiet

ROOT = Path(__file__).resolve().parent.parent
STAGES = list(together.STAGES)


def launched(*words, cwd=ROOT, **env):
    """A program in two processes on the CPU, with the configuration that is for two GPUs."""
    config = ROOT / "recipes" / "accelerate" / "two_gpus.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    own = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return subprocess.run(
        launch + [str(one) for one in words],
        env={**own, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **env},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def both(tiny_folder, tmp_path_factory):
    """The results of one process and of each of two, by stage."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    done = launched(ROOT / "tests" / "together.py", tiny_folder, two, *STAGES)
    assert done.returncode == 0, done.stderr[-3000:]
    together.go(tiny_folder, one, STAGES)

    def read(path):
        return torch.load(path, weights_only=False)

    seen = [read(two / f"refusing-{one}.pt") for one in (0, 1)]
    given = [1, "the main one's"]
    refused = ["the main one refuses", True, given]
    assert seen == [[1, *refused], refused]
    return {
        stage: (
            read(one / f"{stage}-0.pt"),
            read(two / f"{stage}-0.pt"),
            read(two / f"{stage}-1.pt"),
        )
        for stage in STAGES
    }


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_have_the_gradients_of_one(both, stage):
    alone, first, second = both[stage]
    assert len(first["gradients"]) == len(alone["gradients"]) > 2
    for number, (one, other) in enumerate(zip(first["gradients"], alone["gradients"], strict=True)):
        assert other.norm() > 1e-3
        # later gradients are those of weights that differ a little already
        bound = 1e-5 if number == 0 else 1e-3
        assert (one - other).norm() <= bound * other.norm(), f"step {number + 1}"
    assert all(
        torch.equal(one, other)
        for one, other in zip(first["gradients"], second["gradients"], strict=True)
    )


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_end_with_the_weights_of_one(both, stage):
    alone, first, second = both[stage]
    for key, weight in alone["weights"].items():
        assert torch.equal(first["weights"][key], second["weights"][key]), "one model, not two"
        assert (first["weights"][key] - weight).abs().max() <= 2e-3, "twice the learning rate"
    apart = [first["weights"][key] - weight for key, weight in alone["weights"].items()]
    assert torch.cat([one.flatten().abs() for one in apart]).mean() <= 1e-5


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_log_the_numbers_of_one(both, stage):
    alone, first, second = both[stage]
    assert first["rows"] == second["rows"]
    for one, other in zip(first["rows"], alone["rows"], strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-5)


def test_a_whole_run_in_two_processes(tmp_path):
    """Up to best-of-K: one writes, and says everything once; SFT's steps are those of one process.

    In bf16 where the machine has it, so within what that rounds.
    """
    few = [*SMALL, "--generate.target", "8", "--ppo.updates", "2", "--ppo.value.warmup", "1"]
    settings = parse(Loop, few, prog="test", description="", default=QUICKSTART)
    config = tmp_path / "few.yaml"
    config.write_text(to_yaml(settings))
    out = tmp_path / "two"
    done = launched("-m", "alpaca_rlhf", "best-of-k", "--config", config, "--out", out)
    assert done.returncode == 0, done.stderr
    single = replace(settings, out=tmp_path / "one")
    run_loop(single, Quiet(), kind="loop", command="test", until="sft")

    two, one = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("two", "one")
    )
    keys = [(row["stage"], row["step"]) for row in two]
    assert len(keys) == len(set(keys)), "each row once"
    stages = list(dict.fromkeys(stage for stage, _ in keys))
    assert stages == [
        "generate",
        "sft",
        "reward_shuffled",
        "reward",
        "ppo",
        "random_of_k",
        "best_of_k",
    ]
    assert [row["tokens"] for row in two if row["stage"] == "sft"] == [
        row["tokens"] for row in one if row["stage"] == "sft"
    ]
    for row, other in zip(two, one, strict=False):
        assert row.get("loss", 0) == pytest.approx(other.get("loss", 0), rel=0.1)
    assert [line for line in done.stdout.splitlines() if line.startswith("ppo:")] == [
        "ppo: train the policy adapter against the reward adapter, anchored to sft"
    ]
    for stage in ("sft", "reward", "ppo", "best_of_k"):
        assert (tmp_path / "two" / stage / "adapter" / "adapter_model.safetensors").is_file()


def test_what_is_shared_comes_back_in_order(monkeypatch):
    """By hand: five things dealt to two, each doubled by whoever has it."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    shares = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        shares.append([2 * one for one in processes.share([1, 2, 3, 4, 5])])
    assert shares == [[2, 6, 10], [4, 8]]
    monkeypatch.setattr(processes, "_from_each", lambda value: shares)
    assert processes.gather(shares[1]) == [2, 4, 6, 8, 10]
    monkeypatch.setattr(processes, "_from_each", lambda value: [{"a": 1.0}, {"a": 2.5}])
    assert processes.add({"a": 2.5}) == {"a": 3.5}


def test_one_process_joins_nobody():
    program = """
import sys, torch
from alpaca_rlhf.core import processes
processes.join(); processes.wait()
parameter = torch.nn.Parameter(torch.ones(2)); parameter.grad = torch.ones(2)
processes.add_gradients([parameter])
assert processes.gather(processes.share([1, 2, 3])) == [1, 2, 3] and processes.main()
assert processes.add({"x": 1.0}) == {"x": 1.0} and processes.any_of(True)
done = []
processes.by_main(lambda: done.append(1))
assert processes.from_main(lambda: 7) == 7
assert done and not torch.distributed.is_initialized() and "accelerate" not in sys.modules
"""
    own = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=own, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
