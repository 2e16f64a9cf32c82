"""Rounds that are added to a finished run: prompts of their own, and nothing before them moves."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import write_instructions
from alpaca_rlhf.pipeline import run_loop
from alpaca_rlhf.settings import PPO, BestOfK, Evaluate, Inputs, Loop, Rank
from alpaca_rlhf.settings.quickstart import QUICKSTART
from alpaca_rlhf.settings.steps import order
from alpaca_rlhf.sources import source_of
from tests.whole_run import Quiet, small

WORDS = "apple river stone cloud horse paper green seven music winter garden copper".split()


def prompts(n: int) -> list[Instruction]:
    """Prompts that are near no other."""
    rng = random.Random(3)
    return [Instruction(f"{i} " + " ".join(rng.sample(WORDS, 7))) for i in range(n)]


def files(folder: Path, n: int, **changes) -> Loop:
    rows = [replace(row, output="Yes.") for row in prompts(n + 4)[n:]]
    write_instructions(folder / "rows.jsonl", rows)
    write_instructions(folder / "prompts.jsonl", prompts(n))
    inputs = Inputs(data=folder / "rows.jsonl", prompts=folder / "prompts.jsonl", judge="human")
    sizes = {
        "rank": Rank(prompts=6),
        "ppo": PPO(batch_size=5, minibatch_size=5),
        "best_of_k": BestOfK(prompts=5),
        "evaluate": Evaluate(prompts=5),
    }
    return Loop(out=folder / "run", inputs=inputs, **(sizes | changes))


def dealt(settings: Loop) -> dict[str, list[str]]:
    source = source_of(settings)
    return {name: [row.id for row in source.prompts(name)] for name in source.names()}


def test_later_rounds_come_before_the_one_evaluation():
    entries = [step.entry for step in order(Loop(more_rounds=1))]
    assert entries.index("ppo.2") < entries.index("evaluate") == len(entries) - 1
    assert entries == [step.entry for step in order(Loop(rounds=2))]


def test_no_prompt_of_the_files_moves_when_a_round_is_added(tmp_path):
    settings = files(tmp_path, 60)
    before, after = dealt(settings), dealt(replace(settings, more_rounds=1))
    assert {name: ids for name, ids in after.items() if name in before} == before
    assert set(after) - set(before) == {"rank.2", "ppo.2"}
    assert (len(after["rank.2"]), len(after["ppo.2"])) == (6, 5)
    everything = [key for ids in after.values() for key in ids]
    assert len(everything) == len(set(everything))
    again = dealt(replace(settings, more_rounds=2))
    assert {name: ids for name, ids in again.items() if name in after} == after


def test_no_task_of_the_small_world_moves_when_a_round_is_added():
    settings = replace(QUICKSTART, rank=replace(QUICKSTART.rank, prompts=20))
    before, after = dealt(settings), dealt(replace(settings, more_rounds=1))
    assert {name: ids for name, ids in after.items() if name in before} == before
    assert not set(after["rank.2"]) & set(after["rank"])


def test_too_few_prompts_for_another_round_are_told(tmp_path):
    with pytest.raises(UserError, match=r"rank\.2 needs 6 prompts, and the rounds so far leave"):
        source_of(files(tmp_path, 17, more_rounds=1))


def test_verifiable_prompts_are_dealt_once():
    inputs = Inputs(judge="checks")
    with pytest.raises(UserError, match="begin another run with --rounds"):
        source_of(Loop(inputs=inputs, more_rounds=1))


def test_a_finished_run_goes_round_again(whole_run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole_run.path, out)
    first = json.loads((out / "ledger.json").read_text())
    reporter = Quiet()
    run_loop(small(out, more_rounds=1), reporter, kind="quickstart", command="test")
    assert reporter.started == [
        "sample.2",
        "rank.2",
        "reward.2",
        "ppo.2",
        "best_of_k.2",
        "evaluate",
    ]
    ledger = json.loads((out / "ledger.json").read_text())
    assert {name: ledger[name] for name in first if name != "evaluate"} == {
        name: first[name] for name in first if name != "evaluate"
    }, "what was done stays as it was"
    assert {"ppo", "ppo.2"} <= set(json.loads((out / "report.json").read_text())["policies"])
    again = Quiet()
    run_loop(small(out, more_rounds=1), again, kind="quickstart", command="test")
    assert again.started == [], "and it is finished again"
