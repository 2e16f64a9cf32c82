"""The three calls of a card's day: rehearsed on a CPU, and refused where there is no card."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.gpu import card, carry, checks, ppo, sft

CALLS = {"checks": checks, "sft": sft, "ppo": ppo}
no_card = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card here")


@no_card
@pytest.mark.parametrize("name", CALLS)
def test_without_a_card_one_line_and_code_2(name: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        CALLS[name].main([])
    assert ended.value.code == 2
    assert capsys.readouterr() == (
        "",
        "error: no CUDA card is seen here; --rehearse goes without one\n",
    )


@no_card
@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("sft", ["matmul", "llama-2-7b, ours, kept", "llama-3.1-8b, ours, recomputed"]),
        ("ppo", ["decode, 2 rows", "PPO, detached value", "PPO, separate value"]),
    ],
)
def test_a_rehearsal_measures_every_part(name: str, parts: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert CALLS[name].main(["--rehearse", "--json", str(out), "--scratch", str(tmp_path)]) == 0
    result = json.loads(out.read_text())
    rows = {row["name"]: row for row in result["rows"]}
    assert not [row for row in rows.values() if "failed" in row]
    assert result["rehearsed"] and rows.keys() >= set(parts)
    for part in {*parts} - {"matmul"}:
        assert rows[part]["seconds"] > 0, rows[part]


def test_the_checks_run_their_commands(tmp_path: Path, monkeypatch: Any) -> None:
    """The commands themselves have tests of their own; a failure is kept, and the code is 1."""
    ran: list[list[str]] = []

    def run(command: list[str], **options: Any) -> Any:
        ran.append(command[1:])
        assert 0 < options["timeout"] <= card.CALL_SECONDS
        return SimpleNamespace(returncode=int("doctor" in command), stdout="said\n")

    spy = SimpleNamespace(run=run, PIPE=subprocess.PIPE, STDOUT=subprocess.STDOUT)
    monkeypatch.setattr(checks, "subprocess", spy)
    out = tmp_path / "out.json"
    assert checks.main(["--rehearse", "--json", str(out)]) == 1
    assert [command[-1] for command in ran] == ["tests/gpu", "doctor", "--dry-run"]
    rows = {row["name"]: row for row in json.loads(out.read_text())["rows"]}
    assert rows["doctor"]["failed"] == "RuntimeError: exit code 1: said\n"
    assert rows["plan"]["last_lines"] == ["said"]
    assert [*rows] == ["matmul", "tests", "load", "doctor", "plan"]
    assert rows["load"]["seconds"] > 0 and rows["load"]["weights"] > 0


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="what is carried are libraries for Linux on x86-64",
)
def test_what_a_call_carries_is_below_its_limit_and_whole(tmp_path: Path) -> None:
    sizes = {
        "libraries.zip": carry.pack(carry.library_files(), tmp_path / "libraries.zip"),
        "repository.zip": carry.pack(carry.repository_files(), tmp_path / "repository.zip"),
    }
    assert sum(sizes.values()) <= 64 * 2**20
    names: set[str] = set()
    for archive in sizes:
        with zipfile.ZipFile(tmp_path / archive) as packed:
            names |= {*packed.namelist()}
    assert not [name for name in names if name.endswith(".pyc") or name.startswith("..")]
    for module in ("bitsandbytes", "transformers", "peft", "accelerate", "huggingface_hub"):
        assert f"{module}/__init__.py" in names
    assert {f"bitsandbytes/libbitsandbytes_cuda{version}.so" for version in carry.CUDA} <= names
    assert {
        "tests/gpu/test_gpu_equal.py",
        "benchmarks/gpu/plan.py",
        "data/cria/config.json",
    } <= names


def test_a_part_without_time_is_left_out() -> None:
    call = card.Call("gpu_sft", rehearsed=True, out=None)
    call.began -= card.CALL_SECONDS - 30
    call.part("long", 60, lambda: pytest.fail("it has no time"))
    assert call.parts == [{"name": "long", "left_out": "30 s were left, and it may take 60"}]
    assert call.code() == 0
