"""The parts of the proof on a real LLaMA, without running them."""

import json
from pathlib import Path

import pytest

from alpaca_rlhf.settings.policies import POLICIES
from alpaca_rlhf.settings.steps import order
from tests import prove_real


def test_the_parts_are_steps_of_the_run_in_order():
    settings = prove_real.settings_of(0, Path("runs"), rounds=2, policies=POLICIES)
    entries = [step.entry for step in order(settings)]
    places = [entries.index(entry) for entry in prove_real.PARTS.values() if entry]
    assert places == sorted(places) and entries[-1] == "evaluate"
    assert settings.rounds == 2 and settings.evaluate.prompts >= 300


def test_a_proof_of_two_rounds_is_a_run_of_its_own(tmp_path):
    one, two = (prove_real.settings_of(0, tmp_path, rounds) for rounds in (1, 2))
    assert one.out != two.out
    assert prove_real.missing_parts(one) == [
        "sft",
        "rankings",
        "reward",
        "ppo",
        "best-of-k",
        "evaluate",
    ]
    assert len(prove_real.missing_parts(two)) == 9
    every = prove_real.settings_of(0, tmp_path, 2, POLICIES)
    assert prove_real.missing_parts(every) == [*prove_real.PARTS]


def test_tuning_never_sees_the_evaluation_split():
    assert prove_real.settings_of(2, Path("runs")).evaluate.split == "eval"
    tuning = prove_real.settings_of(100, Path("runs"))
    assert tuning.evaluate.split == "dev" and tuning.evaluate.dev_prompts == 100


def test_the_summary_says_what_is_missing_and_makes_nothing_up(tmp_path, monkeypatch):
    monkeypatch.setattr(prove_real, "PROOF", tmp_path / "proof")
    assert "seed 1: nothing yet; run: make prove-real SEED=1" in prove_real.summary()
    settings = prove_real.settings_of(1, tmp_path)
    out = settings.out
    out.mkdir()
    (out / "ledger.json").write_text(
        json.dumps({"sft": {"seconds": 3.0}, "rank": {"seconds": 1.0}})
    )
    prove_real.write(settings)
    line = prove_real.summary().splitlines()[1]
    assert line == "seed 1: missing reward, ppo, best-of-k, evaluate"
    policies = {
        "sft": {"gold_score": 0.5},
        "ppo": {"gold_score": 0.6, "paired_gain_ci95": [0.02, 0.18]},
    }
    ledger = {entry: {"seconds": 1.0} for entry in prove_real.PARTS.values() if entry}
    (out / "ledger.json").write_text(json.dumps(ledger))
    (out / "report.json").write_text(json.dumps({"policies": policies}))
    prove_real.write(settings)
    assert prove_real.summary().splitlines()[1] == "seed 1: sft 0.500, ppo 0.600 [+0.020, +0.180]"


@pytest.mark.parametrize("part", ["dpo", "reward-2"])
def test_a_part_that_the_run_does_not_have_is_refused(part, tmp_path, capsys):
    assert prove_real.main(["--part", part, "--folder", str(tmp_path)]) == 2
    assert f"--part {part}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_command_of_a_proof_names_what_is_not_the_recipes(tmp_path):
    settings = prove_real.settings_of(1, tmp_path, 2, ("ppo", "rloo"))
    assert prove_real.command_of(settings) == (
        'make prove-real SEED=1 ARGS="--rounds 2 --policies ppo rloo"'
    )
    assert prove_real.command_of(prove_real.settings_of(1, tmp_path)) == "make prove-real SEED=1"


@pytest.mark.parametrize("words", [["--part", "everything"], ["--seed", "one"]])
def test_wrong_words(words, capsys):
    with pytest.raises(SystemExit) as ended:
        prove_real.main(words)
    assert ended.value.code == 2
    assert words[0] in capsys.readouterr().err
