"""Work that a CUDA card would be given, held to budgets: simulated, nothing is measured on one.

The budgets are what the simulation counted when they were written (`budgets/`, a file a base).
Write them again where a change is meant to raise or lower them:

    python -m tests.cuda_sim.simulate llama-3-8b tests/cuda_sim/budgets/llama-3-8b.json
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BUDGETS = Path(__file__).with_name("budgets")
BASES = ("llama-2-7b", "llama-3-8b")
TOLERANCE = 0.02
"""Share by which a count may be above its budget."""
LAYERS = 2
"""Layers of the base that the stages run on (`simulate.py`)."""
STALE = 0.1
"""Share below which a budget says nothing any more."""
PLAN = 0.05
"""Share by which planned bytes may be off."""

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++, which is not here"),
    pytest.mark.skipif(
        torch.version.cuda is not None or torch.version.hip is not None,
        reason="simulated in a build of torch without a device of its own",
    ),
]


@pytest.fixture(scope="module", params=BASES)
def simulation(request: Any, tmp_path_factory: Any) -> tuple[str, dict[str, Any]]:
    """A base, and what its stages took; in a process of its own, which the simulation changes."""
    out = tmp_path_factory.mktemp("cuda_sim") / "table.json"
    command = [sys.executable, "-m", "tests.cuda_sim.simulate", request.param, str(out)]
    root = Path(__file__).parents[2]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-4000:]
    return request.param, json.loads(out.read_text())


def budgets(base: str) -> dict[str, Any]:
    """The budgets of a base, by stage."""
    rows: dict[str, Any] = json.loads((BUDGETS / f"{base}.json").read_text())
    return rows


def grown(stage: str, budget: dict[str, Any], row: dict[str, Any]) -> list[str]:
    """A line for each count of a stage that is above its budget, with what in it grew."""
    lines = []
    for count, parts in (
        ("kernels", "by_kernel"),
        ("reads", "by_read"),
        ("uploads", ""),
        ("bytes", ""),
    ):
        if row[count] <= budget[count] * (1 + TOLERANCE):
            continue
        more = {
            name: (budget[parts].get(name, 0), number)
            for name, number in row.get(parts, {}).items()
            if number > budget[parts].get(name, 0)
        }
        what = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in more.items())
        lines.append(f"{stage}: {count} {budget[count]} -> {row[count]} ({what or 'in all'})")
    return lines


def test_nothing_takes_more_than_its_budget(simulation: tuple[str, dict[str, Any]]) -> None:
    """Kernels, reads by the host, uploads and live bytes of every stage."""
    base, rows = simulation
    limits = budgets(base)
    assert rows.keys() == limits.keys()
    lines = [line for stage, row in rows.items() for line in grown(stage, limits[stage], row)]
    assert not lines, "\n".join(lines)


def test_budgets_are_not_stale(simulation: tuple[str, dict[str, Any]]) -> None:
    """One that is far above its count would let a loss of the same size pass."""
    base, rows = simulation
    stale = [
        f"{stage}: {count} {budget[count]} -> {rows[stage][count]}"
        for stage, budget in budgets(base).items()
        for count in ("kernels", "reads", "bytes")
        if rows[stage][count] < budget[count] * (1 - STALE)
    ]
    assert not stale, "write the budgets again: " + "; ".join(stale)


def test_the_plan_holds(simulation: tuple[str, dict[str, Any]]) -> None:
    """Planned bytes are those of the tensors on the card, within a twentieth."""
    _, rows = simulation
    errors = {
        stage: row["planned"] / row["bytes"] - 1 for stage, row in rows.items() if "planned" in row
    }
    assert len(errors) >= 10
    assert all(abs(error) <= PLAN for error in errors.values()), errors


def test_decoding_reads_at_most_once_in_16_steps(simulation: tuple[str, dict[str, Any]]) -> None:
    """Of 17 tokens the first is read when the prompt is, and the others at once."""
    _, rows = simulation
    assert rows["sample"]["reads"] == 2, rows["sample"]["by_read"]


def test_packed_rows_take_the_kernel_of_their_card(simulation: tuple[str, dict[str, Any]]) -> None:
    """From sm80 on no table is made; before it grouped heads are multiplied out."""
    base, rows = simulation
    kernels = {stage: row["by_kernel"] for stage, row in rows.items()}
    for stage in ("sft, checkpointing off", "reward", "dpo", "grpo", "ppo, detached: update"):
        assert kernels[stage]["torch_attn._varlen_attn_backward"] > 0, stage
        assert "_scaled_dot_product_flash_attention" not in kernels[stage], stage
    if base == "llama-3-8b":
        earlier = kernels["sft, before sm80"]
        assert earlier["_safe_softmax"] > 0 and "torch_attn._varlen_attn" not in earlier


def test_a_decode_step_launches_at_most_three_fifths_of_what_it_did(
    simulation: tuple[str, dict[str, Any]],
) -> None:
    """It was 2,352 kernels a token of an 8B; where a step is a CUDA graph it is one launch."""
    _, rows = simulation
    step = rows["sample"]["decode_step"]
    around = step["step"] - LAYERS * step["layer"]
    assert around + 32 * step["layer"] <= 0.6 * 2352, step


def test_a_broken_budget_names_what_grew() -> None:
    budget = {"kernels": 100, "reads": 1, "uploads": 0, "bytes": 50}
    budget |= {"by_kernel": {"mm": 60, "cat": 40}, "by_read": {"item": 1}}
    row = {"kernels": 120, "reads": 1, "uploads": 0, "bytes": 60}
    row |= {"by_kernel": {"mm": 60, "cat": 50, "nonzero": 10}, "by_read": {"item": 1}}
    assert grown("sft", budget, row) == [
        "sft: kernels 100 -> 120 (cat 40 -> 50, nonzero 0 -> 10)",
        "sft: bytes 50 -> 60 (in all)",
    ]
    assert grown("sft", budget, budget) == []
