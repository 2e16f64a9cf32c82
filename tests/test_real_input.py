"""Data and weights that nobody here made: a real tiny LLaMA, human-written rows, human rankings."""

import gzip
import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from alpaca_rlhf.core.provenance import sha256_of
from alpaca_rlhf.data import (
    Firewall,
    read_instructions,
    read_prompts,
    read_rankings,
    write_instructions,
)
from alpaca_rlhf.pipeline import run_loop
from alpaca_rlhf.preferences.store import Store
from alpaca_rlhf.settings import (
    PPO,
    SFT,
    BestOfK,
    Evaluate,
    Inputs,
    Loop,
    Lora,
    Reward,
    Sampling,
    Value,
)
from tests.whole_run import Quiet

ROWS = 640
"""Rows of Dolly that SFT learns from: enough for the loss to fall by a tenth of a nat."""


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    """Prompts that lie near none of the rows that SFT sees."""
    shared = Path(__file__).resolve().parent.parent.parent / "shared"
    if not (shared / "data" / "dolly_2000.json").is_file():
        pytest.skip("needs the real data in shared/data, which is not here")
    wall = Firewall()
    wall.note("sft", read_instructions(shared / "data" / "dolly_2000.json"))
    rows = read_prompts(shared / "data" / "alpaca_en_999.json")[:300]
    rows += rows[:1]  # a row that stands there twice counts once
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    write_instructions(path, [row for row in rows if wall.leak("rank", row) is None])
    return path


def settings(
    shared: Path, prompts: Path, rankings: Path, out: Path, sft_adapter: Path | None = None
) -> Loop:
    return Loop(
        base=str(shared / "models" / "stories260k"),
        template="brief",
        out=out,
        lora=Lora(r=8, alpha=16),
        inputs=Inputs(
            data=None if sft_adapter else shared / "data" / "dolly_2000.json",
            sft_adapter=sft_adapter,
            prompts=prompts,
            rankings=rankings,
            judge="human",
        ),
        sampling=Sampling(max_new_tokens=16, batch_size=64),
        sft=SFT(lr=2e-3, epochs=1, batch_size=16, micro_batch_size=16, max_length=256),
        reward=Reward(lr=1e-3, batch_size=16, micro_batch_size=8, gate=0.01, max_length=384),
        ppo=PPO(
            updates=3,
            batch_size=16,
            minibatch_size=8,
            micro_batch_size=8,
            lr=1e-3,
            max_new_tokens=16,
            value=Value(warmup=1),
        ),
        best_of_k=BestOfK(prompts=8),
        evaluate=Evaluate(prompts=24),
    )


def ledger(out: Path) -> dict:
    return json.loads((out / "ledger.json").read_text())


@pytest.fixture(scope="module")
def from_pairs(shared, prompts, tmp_path_factory) -> Path:
    """A run up to PPO: SFT on Dolly, a reward model on HH pairs, on someone else's LLaMA."""
    folder = tmp_path_factory.mktemp("pairs")
    pairs = folder / "pairs.jsonl"
    with gzip.open(shared / "data" / "hh_harmless_pairs_1156.jsonl.gz", "rt") as lines:
        pairs.write_text("".join(islice(lines, 500)))
    rows = folder / "dolly.json"
    every_row = json.loads((shared / "data" / "dolly_2000.json").read_text())
    rows.write_text(json.dumps(every_row[:ROWS]))
    chosen = settings(shared, prompts, pairs, folder / "run")
    chosen = replace(chosen, inputs=replace(chosen.inputs, data=rows))
    run_loop(chosen, Quiet(), kind="loop", command="test", until="ppo")
    return folder / "run"


def test_the_loop_learns_from_files_alone(from_pairs):
    out = from_pairs
    entries = ledger(out)
    sft = entries["sft"]["facts"]
    assert sft["loss_after"] < sft["loss_before"] - 0.1
    assert sft["too_long"] > 0  # counted, never cut
    reward = entries["reward"]["facts"]
    low, high = reward["ci95"]
    assert low < reward["held_out_accuracy"] < high
    assert reward["held_out_pairs"] > 50
    assert entries["ppo"]["facts"]["kl_at_start"] == 0.0
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["stage"] == "ppo"] == [1, 2, 3]


def test_a_reward_model_trains_on_ranking_trees(shared, prompts, from_pairs, tmp_path):
    """OpenAssistant's K-way human rankings; those too long for the context are left out."""
    out = tmp_path / "run"
    trees = shared / "data" / "oasst_en_100_tree.jsonl.gz"
    chosen = settings(shared, prompts, trees, out, from_pairs / "sft" / "adapter")
    run_loop(chosen, Quiet(), kind="loop", command="test", until="reward")
    reward = ledger(out)["reward"]["facts"]
    assert reward["pairs"] > 20
    assert 0.0 <= reward["ci95"][0] <= reward["held_out_accuracy"] <= reward["ci95"][1] <= 1.0


def test_a_reward_model_trains_on_a_snapshot_of_imported_trees(
    shared, prompts, from_pairs, tmp_path
):
    """Every tree goes into the database, and comes out as a snapshot to train from."""
    trees = read_rankings(shared / "data" / "oasst_en_100_tree.jsonl.gz")
    with Store(tmp_path / "preferences.db") as store:
        store.add_sets(((prompt, completions) for prompt, completions, _ in trees), origin="oasst")
        added = store.add_rankings(ranking for prompt, _, ranking in trees)
        assert added == len(trees) > 90
        snapshot = store.export(tmp_path / "snapshot")
    assert snapshot.rankings == len(trees) and snapshot.judged == 0
    out = tmp_path / "run"
    adapter = from_pairs / "sft" / "adapter"
    chosen = settings(shared, prompts, tmp_path / "snapshot", out, adapter)
    run_loop(chosen, Quiet(), kind="loop", command="test", until="reward")
    assert ledger(out)["reward"]["facts"]["pairs"] > 20
    read = json.loads((out / "provenance.json").read_text())["inputs"]["rankings"]
    manifest = tmp_path / "snapshot" / "manifest.json"
    assert read["sha256"] == sha256_of(manifest), "the adapter's run says what it was trained on"
    assert json.loads(manifest.read_text())["sha256"] == snapshot.sha256
