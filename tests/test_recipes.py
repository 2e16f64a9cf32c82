"""The recipes: their numbers make sense, and a dry run goes through every stage."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from alpaca_rlhf import planner
from alpaca_rlhf.cli.main import recipe, spelled_out
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.core.sizes import too_few
from alpaca_rlhf.settings import Inputs, Loop
from alpaca_rlhf.settings.parsing import parse
from alpaca_rlhf.settings.quickstart import QUICKSTART
from alpaca_rlhf.settings.steps import order
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


def test_quick_is_a_tenth_of_the_work_and_its_evaluation_has_intervals():
    """An hour of it would be no first look; below so many clusters no interval is shown."""
    module = load("smollm2_135m_cpu")
    shape, flops = planner.shape_of("smollm2-135m"), []
    for settings in (module.QUICK, module.EXPERIMENT):
        rows, lengths = settings.generate.target, planner.Lengths()
        work = planner.StageWork(shape, settings, lengths, rows, checkpointing=0).all()
        stages = ("generate", "sft", "sample", "reward", *settings.policy_stages, "evaluate")
        flops.append(sum(work[stage].flops for stage in stages))
    assert flops[0] < flops[1] / 10
    source = source_of(module.QUICK)
    assert not too_few(len({source.key(row) for row in source.prompts("eval")}))


def test_quick_is_a_flag_of_that_recipe_alone(tmp_path):
    words = ("--quick", "--out", tmp_path / "run", "--base", tmp_path / "nothing")
    done = run("smollm2_135m_cpu", *map(str, words))
    assert done.returncode == 2 and "no such folder" in done.stderr
    done = run("llama3_1b_8gb", *map(str, words))
    assert done.returncode == 2 and "--quick" in done.stderr


OTHER_JUDGES = {
    "people": ["--inputs.judge", "human"],
    "people by the alias": ["--judge", "people"],
    "a model that compares": ["--judge", "http://127.0.0.1:9/v1", "--judge.model", "wise"],
    "a function": ["--inputs.judge", "judge.py:score"],
}


def changed(settings: Loop, *words: str) -> Loop:
    """The settings of a recipe with further flags."""
    return parse(Loop, spelled_out(words), prog="recipe", description="", default=settings)


@pytest.mark.parametrize("judge", OTHER_JUDGES)
def test_the_recipe_for_smollm2_takes_rows_and_another_judge(judge):
    """Nothing is generated then, so that what the recipe says of it stands in nobody's way."""
    experiment = load("smollm2_135m_cpu").EXPERIMENT
    files = ["--inputs.data", "r.jsonl", "--inputs.prompts", "p.jsonl"]
    settings = changed(experiment, *OTHER_JUDGES[judge], *files)
    assert [step.stage for step in order(settings)][:3] == ["sft", "sample", "rank"]


@pytest.mark.parametrize("judge", OTHER_JUDGES)
def test_where_rows_are_made_a_judge_that_cannot_serve_is_told_what_to_type(judge):
    """The flags that are named work as they are typed, beside what was typed."""
    experiment = load("smollm2_135m_cpu").EXPERIMENT
    files = ["--inputs.seeds", "shipped", "--inputs.prompts", "p.jsonl"]
    words = [*OTHER_JUDGES[judge], *files]
    with pytest.raises(UserError) as refusal:
        changed(experiment, *words)
    line = str(refusal.value)
    assert line.startswith("--inputs.judge ") and "\n" not in line
    named = re.search(r"give ((?:--generate\.\w+ \w+ ?)+)", line)
    assert named is not None, line
    settings = changed(experiment, *words, *named[1].split())
    assert order(settings)[0].stage == "generate"
    with pytest.raises(UserError, match=r"give --generate\.edit False"):
        changed(experiment, *words, "--generate.recipe", "evol")


@pytest.mark.parametrize("judge", ["human", "judge.py:score"])
def test_the_recipe_for_smollm2_goes_with_another_judge_to_its_rankings(
    judge, tmp_path, tiny_folder, monkeypatch, capsys
):
    """On a tiny model: people are asked to rank, a function has ranked."""
    monkeypatch.chdir(tmp_path)
    text = "def score(prompt, completion, finished):\n    return min(len(completion), 50) / 50\n"
    (tmp_path / "judge.py").write_text(text)
    questions = [f"{word} {n} {n * 7}?" for n in range(8) for word in ("why", "how", "who")]
    rows = [{"instruction": f"Count to {n}.", "output": "One, two."} for n in range(8)]
    for name, lines in (("rows", rows), ("prompts", [{"instruction": q} for q in questions])):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = (
        f"--inputs.judge {judge} --inputs.data rows.jsonl --inputs.prompts prompts.jsonl "
        f"--base {tiny_folder} --template brief --out run --rank.prompts 6 --rank.k 2 "
        "--sampling.max-new-tokens 4 --sft.epochs 1 --policies dpo --evaluate.prompts 4 "
        "--evaluate.bootstrap 20 --dpo.batch-size 4 --evaluate.rerank False"
    )
    module = load("smollm2_135m_cpu")
    code = recipe(module.EXPERIMENT, module.__doc__, quick=module.QUICK, argv=words.split())
    captured = capsys.readouterr()
    assert code == 0, captured.err
    ledger = json.loads((tmp_path / "run" / "ledger.json").read_text())
    assert "generate" not in ledger and "sample" in ledger
    if judge == "human":
        assert "6 of 6 prompts are not ranked yet" in captured.out and "rank" not in ledger
    else:
        assert ledger["rank"]["examples"] == 6


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


class Taken(Exception):
    """Carries the settings that a recipe would run with."""


@pytest.fixture
def run_on(monkeypatch):
    """The settings that a recipe runs with on a machine with this card."""
    from alpaca_rlhf.cli import stage_commands
    from alpaca_rlhf.stages import preflight

    def take(name: str, gib: float | None, *words: str) -> Loop:
        found = gib and replace(planner.find_gpu(str(gib)), name="a card", local=True)
        taken: list[Loop] = []
        monkeypatch.setattr(preflight, "local_gpu", lambda: found or None)
        monkeypatch.setattr(
            stage_commands, "run", lambda settings, terminal, part: taken.append(settings) or 0
        )
        assert recipe(load(name).EXPERIMENT, "A recipe.", card="24", argv=words) == 0
        return taken[0]

    return take


def test_a_cards_recipe_takes_what_fits_its_card(run_on, capsys):
    written = load("llama3_8b_24gb").EXPERIMENT
    taken = run_on("llama3_8b_24gb", 24)
    assert taken.ppo.micro_batch_size > written.ppo.micro_batch_size
    assert "chosen for a card" in capsys.readouterr().out
    assert written.checkpoints_on("cuda") == 1 and taken.checkpoints_on("cuda") != 1
    results = {"lr": taken.ppo.lr, "batch": taken.sft.batch_size, "prompts": taken.rank.prompts}
    assert results == {"lr": written.ppo.lr, "batch": written.sft.batch_size, "prompts": 500}
    smaller = run_on("llama3_8b_24gb", 12)
    assert smaller.ppo.micro_batch_size < taken.ppo.micro_batch_size


def test_a_typed_size_wins_over_what_fits(run_on):
    written = load("llama3_8b_24gb").EXPERIMENT
    taken = run_on("llama3_8b_24gb", 24, "--sft.micro-batch-size", "3", "--ppo.lr", "1e-6")
    assert taken.sft.micro_batch_size == 3 and taken.ppo.lr == 1e-6
    assert taken.ppo.micro_batch_size > written.ppo.micro_batch_size
    assert taken.checkpointing == written.checkpointing, "it was chosen for another size"


@pytest.mark.parametrize("gib", [None, 2])
def test_without_a_card_or_on_one_that_is_too_small_a_recipe_is_as_written(run_on, capsys, gib):
    """The run itself refuses what is too small, and says what to lower."""
    assert run_on("llama3_8b_24gb", gib) == load("llama3_8b_24gb").EXPERIMENT
    assert "chosen" not in capsys.readouterr().out


def test_where_an_app_holds_a_model_nothing_is_concluded_from_what_is_free(run_on, tmp_path):
    from alpaca_rlhf.core import gpu_lock

    notice = gpu_lock.Notice("app", tmp_path, gpu_lock.folder())
    notice.publish(holds=True)
    try:
        assert run_on("llama3_8b_24gb", 24) == load("llama3_8b_24gb").EXPERIMENT
    finally:
        notice.withdraw()


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
