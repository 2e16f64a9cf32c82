"""The recipes: their numbers make sense, and a dry run goes through every stage."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.settings import Inputs
from alpaca_rlhf.settings.quickstart import QUICKSTART
from alpaca_rlhf.sources import source_of
from tests import forked

ROOT = Path(__file__).parent.parent
CARDS = {
    "llama3_8b_24gb": "llama-3.1-8b",
    "llama2_7b_24gb": "llama-2-7b",
    "llama2_7b_12gb": "llama-2-7b",
    "llama3_1b_8gb": "llama-3.2-1b",
    "smollm2_135m_cpu": "smollm2-135m",
}
"""Recipes of real bases, and what their dry runs shrink."""
GIB = {"llama3_8b_24gb": 24, "llama2_7b_24gb": 24, "llama2_7b_12gb": 12, "llama3_1b_8gb": 8}
"""Memory of the cards that they are for."""


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "recipes" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    return forked.run(ROOT / "recipes" / f"{name}.py", *words, env=variables, timeout=900)


def test_the_quickstart_recipe_is_the_quickstart():
    assert load("quickstart").EXPERIMENT == QUICKSTART


def test_the_quickstart_recipe_tells_its_stages_with_their_numbers():
    text = run("quickstart", "--help").stdout
    assert f"{QUICKSTART.ppo.updates} updates of {QUICKSTART.ppo.batch_size} completions" in text
    assert f"every policy on {QUICKSTART.evaluate.prompts} prompts" in text


@pytest.mark.parametrize("name", GIB)
def test_a_cards_recipe_asks_people_and_is_short(name):
    module = load(name)
    settings = module.EXPERIMENT
    assert settings.inputs.judge == "human"
    prompts = settings.rank.prompts + settings.evaluate.prompts
    prompts += max(settings.best_of_k.prompts, settings.ppo.batch_size)
    assert f"{prompts:,} that" in (ROOT / "recipes" / f"{name}.py").read_text()
    assert len((ROOT / "recipes" / f"{name}.py").read_text().splitlines()) <= 60


def test_the_recipe_for_smollm2_needs_nothing_but_its_base():
    """The prompts and the judge are the kit's; --quick is a smaller run in a folder of its own."""
    module = load("smollm2_135m_cpu")
    for settings in (module.EXPERIMENT, module.QUICK):
        assert settings.base == "smollm2" and settings.inputs == Inputs(judge="checks")
        source = source_of(settings)
        sizes = {name: len(source.prompts(name)) for name in ("rank", "ppo", "eval")}
        assert sizes["rank"] == settings.rank.prompts and sizes["eval"] == settings.evaluate.prompts
        assert len(source.unanswered()) >= settings.generate.target
    assert module.QUICK.out != module.EXPERIMENT.out


def test_quick_is_a_flag_of_that_recipe_alone(tmp_path):
    words = ("--quick", "--out", tmp_path / "run", "--base", tmp_path / "nothing")
    done = run("smollm2_135m_cpu", *map(str, words))
    assert done.returncode == 2 and "no such folder" in done.stderr
    done = run("llama3_1b_8gb", *map(str, words))
    assert done.returncode == 2 and "--quick" in done.stderr


@pytest.mark.parametrize("name", ["quickstart", *CARDS])
def test_every_recipe_explains_itself(name):
    done = run(name, "--help")
    assert done.returncode == 0 and done.stderr == ""
    assert "--ppo.kl-coef" in done.stdout
    assert "torch" not in done.stderr


def test_a_file_that_is_not_there_is_told_in_one_line(tmp_path):
    done = run("llama2_7b_24gb", "--out", str(tmp_path / "run"), "--base", "embedded")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert re.search(r"my/(instructions|prompts)\.jsonl", done.stderr), done.stderr


@pytest.mark.parametrize("name", GIB)
def test_the_plan_of_a_cards_recipe_fits_its_card_with_a_tenth_to_spare(name):
    from alpaca_rlhf.planner import Budget, find_gpu, shape_of

    settings = load(name).EXPERIMENT
    card = find_gpu(str(GIB[name]))
    phases = Budget(shape_of(settings.base), card).phases(settings)
    assert {"sft", "sample", "reward", "ppo", "best_of_k", "evaluate"} <= set(phases)
    for stage, own in phases.items():
        for phase in own:
            assert phase.peak < 0.9 * GIB[name] * 2**30, (stage, phase)


def test_the_plan_of_the_recipe_without_a_card_fits_a_laptop():
    """Tensors in half of 8 GiB: Python and a desktop want the rest. No gap of CUDA's."""
    from alpaca_rlhf.planner import PROCESS, RESERVE, Budget, device_of, find_gpu, shape_of

    settings = load("smollm2_135m_cpu").EXPERIMENT
    card = find_gpu("cpu")
    budget = Budget(shape_of(settings.base), card, device=device_of(card))
    for phases in budget.phases(settings).values():
        for phase in phases:
            tensors = phase.peak - phase.items[PROCESS]
            assert tensors < 4 * 2**30 and RESERVE not in phase.items


@pytest.mark.parametrize("architecture", sorted({*CARDS.values()}))
def test_a_shrunken_model_is_of_the_same_architecture(tmp_path, architecture):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from alpaca_rlhf.cli.rehearsal import ARCHITECTURES, shrunken
    from alpaca_rlhf.models.base import load_base
    from alpaca_rlhf.models.batches import decode, example, prompt_ids

    kind = ARCHITECTURES[architecture]
    folder = shrunken(kind, tmp_path / "model")
    config = AutoModelForCausalLM.from_pretrained(folder).config
    assert config.num_attention_heads == config.num_key_value_heads * kind.shared_by
    assert config.tie_word_embeddings == kind.tied
    assert config.rope_parameters["rope_theta"] == kind.rope["rope_theta"]
    assert config.rope_parameters["rope_type"] == kind.rope["rope_type"]
    assert all(size % 64 == 0 for size in (config.hidden_size, config.intermediate_size))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.bos_token, tokenizer.eos_token) == kind.special[:2]
    assert tokenizer.pad_token is None
    base = load_base(str(folder))
    assert base.pad_id != base.eos_id
    assert len(base.stop_ids) == len({*kind.special[1:]})
    row = Instruction("Name a fruit, 中文 <|eot_id|>.", "", "A plum 🙂.")
    assert prompt_ids(base, "alpaca", row).count(tokenizer.bos_token_id) == 1
    assert decode(base, example(base, "alpaca", row, "A plum 🙂.").completion) == "A plum 🙂."
    other = shrunken(kind, tmp_path / "again")
    weights = [one.joinpath("model.safetensors").read_bytes() for one in (folder, other)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("name", CARDS)
def test_a_dry_run_goes_through_every_stage(name, tmp_path):
    done = run(name, "--dry-run", "--seed", "3", TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    base = load(name).EXPERIMENT.base
    assert f"DRY RUN of {base}" in done.stdout
    planned = f"card: {GIB[name]} GiB" if name in GIB else "card: cpu, 8 GiB"
    assert planned in done.stdout and "does not fit" not in done.stdout
    assert "here people rank" in done.stdout and "DRY RUN done" in done.stdout
    (report_file,) = tmp_path.glob("*/run/report.json")
    report = json.loads(report_file.read_text())
    names = [one["name"] for one in report["stages"]]
    assert names == ["sft", "sample", "rank", "reward", "ppo", "best_of_k", "evaluate"]
    assert set(report["policies"]) == {
        *("base", "base_few_shot", "sft", "best_of_k", "ppo"),
        *("sampler_best_of_k", "oracle_best_of_k"),
    }
    assert report["prompts"]["overlap"] == 0 and report["seed"] == 3
    html = (report_file.parent / "report.html").read_text()
    assert "--dry-run" in html
    assert not (ROOT / load(name).EXPERIMENT.out).exists()


@pytest.mark.parametrize(("name", "count"), [("one_gpu", 1), ("two_gpus", 2), ("four_gpus", 4)])
def test_accelerate_reads_its_configurations(name, count):
    """`tests/test_processes.py` runs the one for two, on the CPU."""
    from accelerate.commands.config.config_args import load_config_from_file

    file = ROOT / "recipes" / "accelerate" / f"{name}.yaml"
    found = load_config_from_file(str(file))
    assert found.num_processes == count and found.mixed_precision == "no"
    assert (found.distributed_type == "MULTI_GPU") == (count > 1)
    assert str(file.relative_to(ROOT)) in file.read_text()
