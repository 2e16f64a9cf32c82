"""First use: what is asked for, what is suggested next, and how early mishaps end."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from string import ascii_lowercase

import pytest
from safetensors.torch import load_file

from alpaca_rlhf import pipeline
from alpaca_rlhf.cli import (
    app_command,
    doctor_command,
    export_command,
    own_files,
    plan_command,
    running,
    sample_command,
    shell,
    stage_commands,
)
from alpaca_rlhf.cli import commands as table
from alpaca_rlhf.cli import main as cli
from alpaca_rlhf.cli.ranking import HELP, RankingSession
from alpaca_rlhf.cli.terminal import Terminal
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Completion, Instruction
from alpaca_rlhf.core.runs import RunFolder
from alpaca_rlhf.core.templates import has_chat_template
from alpaca_rlhf.exporting import gguf_file
from alpaca_rlhf.exporting.ollama import model_name
from alpaca_rlhf.models.adapter_files import FINGERPRINT
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.base import load_base
from alpaca_rlhf.models.heads import HEAD, ScalarHead
from alpaca_rlhf.preferences.store import Store
from alpaca_rlhf.settings import Generate, Inputs, Loop, Lora, Reward, Watch
from alpaca_rlhf.settings import Judge as JudgeEndpoint
from alpaca_rlhf.settings.inputs import ADAPTER
from alpaca_rlhf.settings.parsing import parse, to_yaml
from alpaca_rlhf.settings.policies import POLICY_STAGES
from alpaca_rlhf.settings.quickstart import QUICKSTART
from alpaca_rlhf.settings.steps import order
from alpaca_rlhf.sources import read_rows
from alpaca_rlhf.stages import judging

ROOT = Path(__file__).parent.parent


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"instruction": "Name a fruit.", "output": "A plum."}) + "\n")
    return file


def refused(capsys, *words: object) -> str:
    assert cli.main([str(word) for word in words]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1, output
    return output.err


def next_command(output: str) -> list[str]:
    """The words of the first command that is suggested."""
    lines = output.splitlines()
    return shlex.split(lines[lines.index("next:") + 1], comments=True)


def settings_of(words: list[str]) -> Loop:
    """The settings with which a suggested `loop` would run."""
    assert words[:2] == ["alpaca-rlhf", "loop"]
    _, flags = plan_command.taken(words[2:])
    _, flags = plan_command.card_word(flags)
    return parse(Loop, flags, prog="loop", description="")


# --- the small world is the quickstart's ----------------------------------------------------------


@pytest.mark.parametrize(
    "command", [["loop"], ["generate"], ["generate", "--dry-run"], ["sft"], ["sample"]]
)
def test_a_base_of_ones_own_asks_for_files_and_a_judge(command, tmp_path, tiny_folder, capsys):
    line = refused(capsys, *command, "--base", tiny_folder, "--out", tmp_path / "run")
    assert f"--base {tiny_folder}: " in line and "quickstart --base" in line
    assert all(flag in line for flag in ("--inputs.data", "--inputs.prompts", "--inputs.judge"))
    assert not (tmp_path / "run").exists()


def test_rows_of_ones_own_are_not_judged_by_the_small_world(tmp_path, tiny_folder, rows, capsys):
    for base in ("embedded", tiny_folder):
        words = ["sample", "--base", base, "--inputs.data", rows, "--out", tmp_path / "run"]
        line = refused(capsys, *words)
        assert "--inputs.judge gold knows only the small world" in line and str(rows) in line
        assert "--inputs.prompts PROMPTS.jsonl --inputs.judge human" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("base", ["embedded", "own"])
def test_sft_on_rows_alone_and_the_quickstart_on_any_base_stay(base, tmp_path, tiny_folder, rows):
    name = str(tiny_folder) if base == "own" else base
    settings = Loop(base=name, out=tmp_path / "run", inputs=Inputs(data=rows))
    own_files.refuse_small_world(settings, "sft")
    terminal = table.Terminal()
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "run", lambda settings, *rest, **more: seen.append(settings) or 0)
        quick = stage_commands.Part("quickstart", "quickstart", "quickstart")
        stage_commands.run(replace(settings, inputs=Inputs()), terminal, quick)
    assert [one.base for one in seen] == [name]


def test_a_run_of_the_small_world_that_was_begun_goes_on(tmp_path, tiny_folder):
    settings = Loop(base=str(tiny_folder), out=tmp_path)
    (tmp_path / "config.yaml").write_text("")
    own_files.refuse_small_world(settings, None)


# --- the next command repeats what was given ------------------------------------------------------


def test_doctor_repeats_base_template_lora_and_place(tmp_path, tiny_folder, capsys):
    words = ["--base", str(tiny_folder), "--template", "brief", "--lora.r", "8"]
    assert cli.main(["doctor", *words, "--out", str(tmp_path / "my runs")]) == 0
    settings = settings_of(next_command(capsys.readouterr().out))
    assert (settings.base, settings.template) == (str(tiny_folder), "brief")
    assert settings.lora == Lora(r=8) and settings.out.parent == tmp_path / "my runs"
    assert settings.inputs == Inputs(
        data=Path("ROWS.jsonl"), prompts=Path("PROMPTS.jsonl"), judge="human"
    )


def test_plan_repeats_inputs_template_and_stages(tiny_folder, rows, capsys):
    words = ["--base", str(tiny_folder), "--template", "brief", "--inputs.data", str(rows)]
    words += ["--inputs.prompts", "my prompts.jsonl", "--inputs.judge", "human", "--card", "cpu"]
    words += ["--ppo.kl-coef", "0.2", "--best-of-k.pool", "True", "--rounds", "2"]
    assert cli.main(["plan", *words]) == 0
    typed = next_command(capsys.readouterr().out)
    assert typed[-3:] == ["--auto", "--card", "cpu"]
    settings = settings_of(typed)
    assert settings.inputs == Inputs(rows, prompts=Path("my prompts.jsonl"), judge="human")
    assert (settings.template, settings.ppo.kl_coef, settings.rounds) == ("brief", 0.2, 2)
    assert settings.best_of_k.pool


def test_plan_suggests_no_name_that_only_it_knows(capsys):
    assert cli.main(["plan", "--base", "llama-2-7b", "--card", "24"]) == 0
    typed = next_command(capsys.readouterr().out)
    assert "llama-2-7b" not in typed and typed[1] == "doctor"


@pytest.mark.parametrize("seeds", [None, Path("shipped")])
def test_after_sft_on_rows_alone_the_next_command_asks_for_prompts(seeds, tmp_path, rows):
    inputs = Inputs(seeds=seeds, judge="human") if seeds else Inputs(data=rows)
    settings = Loop(out=tmp_path / "run", inputs=inputs, template="brief")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(settings))
    command = running._after(settings, folder, "loop", "sft")[0][0]
    going_on = settings_of(shlex.split(command))
    assert going_on.template == "brief" and going_on.inputs.judge == "human"
    assert going_on.inputs.prompts == Path("PROMPTS.jsonl") and going_on.out != folder
    assert going_on.inputs.sft_adapter == folder / "sft" / "adapter"
    own_files.refuse_small_world(going_on, None)


def test_data_check_repeats_the_format(rows, capsys):
    assert cli.main(["data", "check", str(rows), "--format", "alpaca"]) == 0
    typed = next_command(capsys.readouterr().out)
    assert typed[typed.index("--format") + 1] == "alpaca"


def test_data_check_repeats_the_columns_and_takes_files_of_several_kinds(tmp_path, capsys):
    rows, prompts = tmp_path / "rows.jsonl", tmp_path / "prompts.jsonl"
    rows.write_text(json.dumps({"question": "Hi?", "output": "Hello."}) + "\n")
    prompts.write_text(json.dumps({"question": "Why?"}) + "\n")
    columns = ["--columns", "question=instruction"]
    assert cli.main(["data", "check", str(rows), str(prompts), *columns]) == 0
    output = capsys.readouterr().out.splitlines()
    said = output[output.index("next:") + 1 :]
    typed = [shlex.split(line, comments=True) for line in said]
    assert typed == [
        ["alpaca-rlhf", "import", str(file), *columns, "--out", "FOLDER"]
        for file in (rows, prompts)
    ]


@pytest.mark.parametrize(
    "typed",
    [
        [],
        ["--inputs.judge", "data/samples/polite.py:score", "--rounds", "2"],
        ["--policies", "dpo", "rloo", "--ppo.kl-coef", "0.1", "--base", "my base"],
        ["--reward.control", "False", "--evaluate.judge", "my judge.py:rate"],
    ],
)
def test_after_a_quickstart_the_same_with_another_seed_repeats_its_flags(typed, tmp_path):
    words = [*typed, "--seed", "3", "--out", str(tmp_path / "my run")]
    settings = parse(Loop, words, prog="quickstart", description="", default=QUICKSTART)
    (command,) = [
        command
        for command, purpose in running._after(settings, settings.out, "quickstart", None)
        if purpose == "the same with other randomness"
    ]
    again = shlex.split(command)
    assert again[:2] == ["alpaca-rlhf", "quickstart"]
    repeated = parse(Loop, again[2:], prog="quickstart", description="", default=QUICKSTART)
    assert repeated == replace(settings, seed=4, out=tmp_path / "my run-seed4")


# --- a stage that is no part of the run -----------------------------------------------------------

OWN = Inputs(data=Path("rows.jsonl"), prompts=Path("prompts.jsonl"), judge="human")
BY_FUNCTION = replace(OWN, judge="judge.py:score")
PAIRS = Path("pairs.jsonl")
PARTIAL_RUNS = {
    "dpo only": Loop(policies=("dpo",), inputs=OWN),
    "judge reward": Loop(reward=Reward(source="judge"), inputs=BY_FUNCTION),
    "rankings": Loop(inputs=replace(OWN, rankings=PAIRS)),
    "untrained": Loop(
        base="x", template="chat", inputs=Inputs(rankings=PAIRS, judge="human"), policies=("dpo",)
    ),
}
STAGES = ("generate", "sft", "sample", "rank", "reward", *POLICY_STAGES, "evaluate")


def begun(settings: Loop, out: Path, *done: str, kind: str = "loop") -> Loop:
    """The settings of a run, in a folder as it is after some stages."""
    settings = replace(settings, out=out)
    out.mkdir()
    (out / "config.yaml").write_text(to_yaml(settings))
    (out / "provenance.json").write_text(json.dumps({"kind": kind}))
    (out / "ledger.json").write_text(json.dumps({stage: {} for stage in done}))
    return settings


@pytest.mark.parametrize("is_begun", [False, True])
@pytest.mark.parametrize("kind", PARTIAL_RUNS)
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_is_no_part_of_a_run_is_refused_in_one_line(stage, kind, is_begun, tmp_path):
    settings = replace(PARTIAL_RUNS[kind], out=tmp_path / "my run")
    if is_begun:
        settings = begun(settings, tmp_path / "my run", "sft")
    if stage in [step.stage for step in order(settings)]:
        running._refuse_replaced(settings, stage)
        return
    with pytest.raises(UserError) as refusal:
        running._refuse_replaced(settings, stage)
    line = str(refusal.value)
    assert (
        line.startswith(f"{stage.replace('_', '-')}: not a part of this run") and "\n" not in line
    )
    # What it has instead of the stage is what was given.
    _, _, has = line.partition("because it has ")
    if has:
        given = own_files.given(settings)
        assert all(flag in given for flag in re.findall(r"--[\w.-]+", has)), line
        return
    if "it cannot be added" in line:
        assert kind == "judge reward" and stage == "dpo" and "nothing is ranked" in line
        return
    # What adds the stage works as printed: a flag of the same command, or another run.
    flags = re.search(r"give (--policies [a-z -]+)$", line)
    if flags is not None:
        words = ["--config", str(tmp_path / "typed.yaml"), *flags[1].split()]
        (tmp_path / "typed.yaml").write_text(to_yaml(settings))
        added = parse(Loop, words, prog="loop", description="")
        assert not is_begun or pipeline.takes_policies(added, ("sft",))
    else:
        assert is_begun
        words = shlex.split(line.partition("begin another: ")[2])
        assert words[:2] == ["alpaca-rlhf", stage.replace("_", "-")]
        added = parse(Loop, words[2:], prog="loop", description="")
        assert added.out != settings.out and added.out.parent == tmp_path
    assert stage in [step.stage for step in order(added)]
    assert added == replace(settings, policies=added.policies, out=added.out)


def test_a_run_of_dpo_alone_says_that_it_needs_no_reward_model(tmp_path, rows, tiny_folder, capsys):
    """At the command line, for a run that was begun and for one that is not."""
    begun(PARTIAL_RUNS["dpo only"], tmp_path / "run", "sft")
    line = refused_after_its_title(capsys, "reward", "--out", tmp_path / "run")
    assert "--policies dpo needs no reward model" in line and "--policies ppo dpo" in line
    words = ["--inputs.data", rows, "--inputs.prompts", rows, "--inputs.judge", "human"]
    words += ["--base", tiny_folder, "--policies", "dpo", "--out", tmp_path / "new"]
    line = refused_after_its_title(capsys, "reward", *words)
    assert line.endswith("needs no reward model; give --policies ppo dpo\n")


def refused_after_its_title(capsys, *words: object) -> str:
    assert cli.main([str(word) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: "), error
    return error


# --- the command beside an export -----------------------------------------------------------------

EXPORTED = {
    "people": Loop(inputs=OWN),
    "the recipe answers": Loop(
        inputs=Inputs(judge="checks"), generate=Generate(recipe="answers", edit=True)
    ),
    "a model that compares": Loop(
        inputs=replace(OWN, judge="llm"),
        judge=JudgeEndpoint(url="http://127.0.0.1:9/v1", model="wise"),
    ),
    "a judge as the reward": Loop(reward=Reward(source="judge"), inputs=BY_FUNCTION),
    "dpo alone": Loop(policies=("dpo",), inputs=OWN),
    "dpo alone in the small world": replace(QUICKSTART, policies=("dpo",)),
    "the small world": replace(QUICKSTART, more_rounds=1),
    "a function in the small world": replace(
        QUICKSTART,
        inputs=Inputs(judge="judge.py:score"),
        evaluate=replace(QUICKSTART.evaluate, judge="gold"),
        watch=Watch(every=3, scorer="gold", patience=2),
    ),
    "seeds": Loop(inputs=Inputs(seeds=Path("shipped"), prompts=OWN.prompts, judge="human")),
    "watched": Loop(inputs=OWN, watch=Watch(every=4)),
}


@pytest.mark.parametrize("kind", EXPORTED)
def test_the_command_beside_an_export_trains_a_reward_model(kind, tmp_path, monkeypatch):
    """It is read, its files are dealt and its judges opened: what is left is the training."""
    monkeypatch.chdir(tmp_path)
    letters = random.Random(0)
    texts = [
        " ".join("".join(letters.choices(ascii_lowercase, k=5)) for _ in range(6))
        for _ in range(30)
    ]
    answered = [{"instruction": f"Count to {n}.", "output": "One."} for n in range(6)]
    pairs = [{"prompt": f"Say {n} {n}.", "chosen": "Yes.", "rejected": "No."} for n in range(6)]
    for name, lines in (
        ("rows", answered),
        ("prompts", [{"instruction": text} for text in texts]),
        ("my snapshot", pairs),
    ):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "judge.py").write_text("def score(prompt, completion, finished):\n    return 1\n")
    few = EXPORTED[kind]
    if few.inputs.prompts is not None:
        few = replace(
            few,
            rank=replace(few.rank, prompts=6),
            ppo=replace(few.ppo, batch_size=4, minibatch_size=4),
            best_of_k=replace(few.best_of_k, prompts=6 if few.rewarded else 500),
            evaluate=replace(few.evaluate, prompts=4),
            watch=replace(few.watch, prompts=2),
        )
    settings = begun(few, tmp_path / "my run", "sft")
    flags = app_command.App(run=settings.out)
    exports = app_command._exports(flags, settings.out, has_run=True)
    # The page trains the run while the app is open.
    assert "ROWS" in exports.command(tmp_path / "my snapshot.jsonl") and exports.own_files()
    (settings.out / "sft" / "adapter").mkdir(parents=True)
    for name in ADAPTER:
        (settings.out / "sft" / "adapter" / name).write_text("")
    words = shlex.split(exports.command(tmp_path / "my snapshot.jsonl"))
    assert words[:2] == ["alpaca-rlhf", "reward"] and not exports.own_files()
    training = parse(Loop, words[2:], prog="reward", description="")
    assert training.inputs.judge == "human" and training.out.parent == tmp_path
    assert training.inputs.rankings == tmp_path / "my snapshot.jsonl"
    running._refuse_replaced(training, "reward")
    own_files.refuse_small_world(training, "reward")
    steps = pipeline._up_to("reward", order(training))
    assert [step.stage for step in steps] == ["sft", "reward"]
    pipeline._check_temperatures(training, steps)
    pipeline._checked_inputs(training, steps)
    source = pipeline._checked_source(training)
    judging.open_judges(training, lambda: source)
    assert len(source.prompts("rank")) == len(pairs)


# --- hints that work as they stand ----------------------------------------------------------------


@pytest.mark.parametrize("where", [["--host", "0.0.0.0"], ["--url", "https://a.example"]])
def test_the_hint_for_an_account_names_the_same_database(where, tmp_path, capsys):
    (tmp_path / "my run").mkdir()
    (tmp_path / "my run" / "config.yaml").write_text("base: embedded\n")
    for more in ([], ["--db", str(tmp_path / "p.db")]):
        words = ["--run", str(tmp_path / "my run"), *more]
        line = refused(capsys, "app", *words, *where)
        hint = shlex.split(line.partition("first: ")[2])
        assert hint == ["alpaca-rlhf", "app", *words, "--add-user", "NAME"]


def test_gguf_comes_with_the_package(monkeypatch):
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert any(need.startswith("gguf") for need in needs["dependencies"])
    assert re.search(r"^gguf==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert "gguf" in needs["optional-dependencies"], "`alpaca-rlhf[gguf]` can still be typed"
    monkeypatch.setattr(gguf_file.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install gguf$"):
        gguf_file.need_gguf()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("quickstart", "quickstart"),
        ("My Run", "my-run"),
        ('it\'s "the" one', "it-s-the-one"),
        ("我的运行", "model"),
        ("v2 我的", "v2"),
        ("Llama-3.1_8B (ppo.2)", "llama-3.1_8b-ppo.2"),
        ("-.hidden", "hidden"),
        ("été", "ete"),
        ("x" * 99, "x" * 80),
    ],
)
def test_ollama_takes_the_name_that_is_suggested(text, name):
    assert model_name(text) == name
    assert re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,79}", name), "ollama/ollama types/model/name.go"


def test_after_an_export_the_commands_take_any_folder(tmp_path):
    run = tmp_path / 'Mein "Lauf" 我'
    flags = export_command.Export(run=run, to="gguf")
    ((command, then),) = export_command._next(flags, run / "export", Loop())
    assert shlex.split(command)[:3] == ["cd", str(run / "export"), "&&"]
    assert shlex.split(command)[3:] == ["ollama", "create", "mein-lauf", "-f", "Modelfile"]
    assert then == "then: ollama run mein-lauf"
    for policy, words in (("sft", ["--policy", "sft"]), (None, [])):
        flags = export_command.Export(run=run, policy=policy)
        *_, (command, _) = export_command._next(flags, run / "export", Loop())
        exported = ["alpaca-rlhf", "export", "--run", str(run), *words, "--to", "gguf"]
        assert shlex.split(command) == exported, "the same policy, not the last one"


# --- early and odd ends ---------------------------------------------------------------------------


def started(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
    )


ENTRIES = (["-m", "alpaca_rlhf"], ["app.py"], ["recipes/quickstart.py"])


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(
    ("happens", "code", "told"),
    [
        ("raise KeyboardInterrupt", 130, "interrupted; run it again"),
        ("raise ModuleNotFoundError('No module', name='rich')", 2, "error: rich is not installed"),
    ],
)
def test_an_end_while_modules_load_is_one_line(entry, happens, code, told, tmp_path):
    """Ctrl-C in the first second, and a Python outside the environment."""
    (tmp_path / "rich").mkdir()
    (tmp_path / "rich" / "__init__.py").write_text(happens + "\n")
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    done = started(sys.executable, *entry, PYTHONPATH=path)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr.startswith(told) and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("--help >&-", 2, "error: the output is closed; give it a file: alpaca-rlhf --help > log"),
        ("chat --run nowhere >&-", 2, "error: the output is closed"),
        ("chat --run nowhere <&-", 2, "error: --run nowhere: holds no run"),
        ("app --add-user ada --db DB <&-", 2, "error: --add-user: the password is read from"),
        ("chat --run nowhere 2>&-", 2, ""),
        ("chat --run nowhere <&- >&- 2>&-", 2, ""),
    ],
)
def test_closed_streams_end_in_one_line(words, code, told, tmp_path):
    words = words.replace("DB", str(tmp_path / "p.db"))
    command = f"{shlex.quote(sys.executable)} -m alpaca_rlhf {words}"
    done = started("bash", "-c", command, PYTHONPATH=str(ROOT))
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr.startswith(told) and done.stderr.count("\n") == bool(told)


@pytest.mark.parametrize("file", [*ADAPTER, FINGERPRINT, HEAD])
@pytest.mark.parametrize("content", [b"", b"{", b"[]"])
def test_a_damaged_adapter_is_told_in_one_line(file, content, tmp_path, tiny_folder):
    adapters = Adapters(load_base(str(tiny_folder)), Lora(), template="brief")
    adapters.add("reward", seed=0)
    folder = tmp_path / "adapter"
    adapters.save("reward", folder, ScalarHead(128))
    (folder / file).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(folder))) as told:
        adapters.load("policy", folder)
        ScalarHead.load(folder, 128)
    assert "\n" not in str(told.value)


# --- small ones -----------------------------------------------------------------------------------


def test_home_is_expanded_in_files_and_flags(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("out: ~/runs/x\ninputs:\n  data: ~/rows.jsonl\n")
    words = ["--config=~/mine.yaml", "--inputs.prompts=~/prompts.jsonl", "--inputs.judge", "human"]
    settings = parse(Loop, words, prog="loop", description="")
    assert settings.out == tmp_path / "runs" / "x"
    assert settings.inputs.files() == {
        "data": tmp_path / "rows.jsonl",
        "prompts": tmp_path / "prompts.jsonl",
    }
    odd = parse(Loop, ["--out", "~nobody-here/x"], prog="loop", description="")
    assert odd.out == Path("~nobody-here/x")


def test_a_database_at_home_is_found_there(tmp_path, monkeypatch, capsys):
    """It made a folder called `~` where the command was typed."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("a long password\r\n"))
    assert cli.main(["app", "--db=~/ours.db", "--add-user", "ann"]) == 0, capsys.readouterr()
    assert (tmp_path / "ours.db").is_file() and not (tmp_path / "~").exists()
    with Store(tmp_path / "ours.db") as store:
        assert store.sign_in("ann", "a long password") is not None, "without the line's end"
    assert cli.main(["verdicts", "status", "--db=~/ours.db"]) == 0, capsys.readouterr()


def test_a_run_at_home_is_gone_on_with_after_an_equals_sign(tmp_path, monkeypatch):
    """The shell expands no `~` there: without it the defaults would be those of another run."""
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["--out", str(tmp_path / "mine"), "--seed", "7"]
    text = to_yaml(parse(Loop, words, prog="loop", description=""))
    RunFolder.open(tmp_path / "mine", text, kind="loop").close()
    invocation = table.Invocation("loop", table.COMMANDS["loop"], ["--out=~/mine"], Terminal())
    settings, _ = stage_commands._resumed(Loop, invocation, invocation.arguments)
    assert (settings.seed, settings.out) == (7, tmp_path / "mine")


@pytest.mark.parametrize("words", [["--json"], ["--json", "--base", "x"], ["--json", "True"]])
def test_a_switch_needs_no_value(words):
    assert parse(doctor_command.Doctor, words, prog="doctor", description="").json
    assert parse(app_command.App, ["--open"], prog="app", description="").open
    with pytest.raises(UserError, match="--json expects True or False, got 'maybe'"):
        parse(doctor_command.Doctor, ["--json", "maybe"], prog="doctor", description="")


def test_a_path_that_is_empty_is_refused_where_it_was_given(tmp_path):
    """As of a shell's variable that is not set: it would be the current folder."""
    for flag in ("--out", "--inputs.data"):
        with pytest.raises(UserError, match=f"{flag} expects a path.*, got an empty text"):
            parse(Loop, [flag, ""], prog="loop", description="")
    (tmp_path / "mine.yaml").write_text('out: ""\n')
    with pytest.raises(UserError, match=r"mine\.yaml:1: out expects a path"):
        parse(Loop, ["--config", str(tmp_path / "mine.yaml")], prog="loop", description="")
    with pytest.raises(UserError, match="unexpected ''"):
        parse(Loop, ["--seed", "1", ""], prog="loop", description="")


@pytest.mark.parametrize(
    "words",
    [
        ["data", "check", "x" * 300],
        ["import", "x" * 300, "--out", "y"],
        ["split", "--data", "rows.jsonl", "--out", "x" * 300],
        ["sft", "--base", "x" * 300, "--inputs.data", "rows.jsonl", "--out", "y"],
        ["chat", "--run", "x" * 300],
        ["loop", "x" * 300],
    ],
)
def test_a_name_that_is_too_long_for_the_system_is_one_line(words, rows, monkeypatch, capsys):
    monkeypatch.chdir(rows.parent)
    assert cli.main(words) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1 and "xxx" in told, told


def test_a_path_that_may_not_be_looked_at_is_one_line(capsys):
    def look() -> int:
        raise PermissionError(errno.EACCES, "Permission denied", "/somebody's/rows.jsonl")

    assert shell.guarded(look, command="alpaca-rlhf loop", terminal=Terminal()) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: /somebody's/rows.jsonl: Permission denied;")
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    "words", [["--k", "0"], ["--k", "1"], ["--k", "10"], ["--n", "0"], ["--n", "-1"]]
)
def test_no_queue_is_filled_with_less_than_two_answers_or_less_than_a_prompt(words):
    with pytest.raises(UserError, match=f"{words[0]} must be .*, got {words[1]}"):
        parse(sample_command.Fill, words, prog="sample", description="")


def test_answers_are_indented_and_a_question_mark_helps(tmp_path):
    prompt = Instruction("Count.\nSlowly.", "one\ntwo")
    answers = [Completion(prompt.id, text, text) for text in ("1) one\n2) two", "none")]
    typed, said = iter(["?", "1 2", ""]), list[str]()
    with Store(tmp_path / "p.db") as store:
        store.add_sets([(prompt, answers)], origin="test")
        ask, say = (lambda question: next(typed)), said.append
        assert RankingSession([(prompt, answers)], store, "Ann", ask=ask, say=say).run()
    lines = "\n".join(said).splitlines()
    assert sum(line.startswith("2) ") for line in lines) == 1 and "   2) two" in lines
    assert "    Slowly." in lines and "    two" in lines
    assert said.count(HELP) == 1 and "`?`" in HELP


# --- the template of an instruct base -------------------------------------------------------------


@pytest.fixture
def instruct(tiny_folder, tmp_path):
    """The tiny LLaMA with a chat template in its tokenizer's folder."""
    folder = tmp_path / "instruct"
    shutil.copytree(tiny_folder, folder)
    (folder / "chat_template.jinja").write_text(
        "{% for message in messages %}<{{ message.role }}>{{ message.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    return folder


def test_a_new_run_takes_the_chat_template_of_its_base_unless_told_otherwise(
    instruct, tiny_folder, tmp_path, capsys
):
    told = "template: chat, the base's own"
    words = ["sft", "--inputs.data", str(tmp_path / "none.jsonl"), "--inputs.judge", "human"]
    words += ["--out", str(tmp_path / "run")]
    for base, more, expected in (
        (instruct, [], True),
        (instruct, ["--template", "alpaca"], False),
        (tiny_folder, [], False),
        ("embedded", [], False),
    ):
        assert cli.main([*words, "--base", str(base), *more]) == 2
        assert (told in capsys.readouterr().out) is expected


def test_a_run_that_was_begun_keeps_its_template(instruct, tmp_path, capsys):
    out = tmp_path / "run"
    out.mkdir()
    inputs = Inputs(data=tmp_path / "none.jsonl", judge="human")
    settings = Loop(base=str(instruct), out=out, inputs=inputs)
    (out / "config.yaml").write_text(to_yaml(settings))
    (out / "provenance.json").write_text('{"kind": "loop"}')
    assert cli.main(["sft", "--out", str(out)]) == 2
    assert "template: chat" not in capsys.readouterr().out


def test_a_chat_template_is_found_in_either_file(instruct, tiny_folder, tmp_path):
    assert has_chat_template(str(instruct)) and not has_chat_template(str(tiny_folder))
    (instruct / "chat_template.jinja").unlink()
    assert not has_chat_template(str(instruct))
    config = json.loads((instruct / "tokenizer_config.json").read_text())
    (instruct / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": "x"}))
    assert has_chat_template(str(instruct))
    (instruct / "tokenizer_config.json").write_text("{")
    assert not has_chat_template(str(instruct)) and not has_chat_template("nobody/none")


def test_the_hubs_cache_is_asked_before_the_hub(instruct, monkeypatch):
    import huggingface_hub

    def fetched(*_, **__):
        raise AssertionError("asked the hub")

    def cached(base, name):
        return str(instruct / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetched)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert has_chat_template("somebody/instruct")


def test_plan_takes_the_template_that_the_run_takes(instruct, capsys):
    assert cli.main(["plan", "--base", str(instruct), "--card", "cpu"]) == 0
    words = next_command(capsys.readouterr().out)
    assert words[words.index("--template") + 1] == "chat"
    flags = ["--base", str(instruct), "--card", "cpu", "--template", "alpaca"]
    assert cli.main(["plan", *flags]) == 0
    assert "chat" not in next_command(capsys.readouterr().out)


def test_doctor_says_what_to_do_about_a_missing_gguf_file(tmp_path, capsys):
    assert cli.main(["doctor", "--base", str(tmp_path / "none.gguf"), "--out", str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert "no such file\n" in output and "-> check the path of the GGUF file\n" in output


def test_a_reward_model_from_pairs_alone_takes_an_instruct_base_as_it_is(
    instruct, tiny_folder, tmp_path, capsys
):
    samples = ROOT / "data" / "samples"
    words = ["reward", "--inputs.judge", "human", "--inputs.rankings", samples / "pairs.jsonl"]
    words += ["--config", samples / "small.yaml", "--out", tmp_path / "run", "--base"]
    assert cli.main([str(word) for word in (*words, tiny_folder)]) == 2
    assert "--inputs.rankings without rows" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert cli.main([str(word) for word in (*words, instruct)]) == 0
    assert "the base is taken as it is" in capsys.readouterr().out
    ledger = json.loads((tmp_path / "run" / "ledger.json").read_text())
    assert ledger["sft"]["facts"]["untrained"] and "generate" not in ledger and "reward" in ledger
    weights = load_file(tmp_path / "run" / "sft" / "adapter" / "adapter_model.safetensors")
    second = [tensor for name, tensor in weights.items() if "lora_B" in name]
    assert second and not any(tensor.any() for tensor in second), "the adapter changes nothing"


# --- names of other kits --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model_name_or_path", "x"], "did you mean --base?"),
        (["--dataset", "x"], "did you mean --inputs.data?"),
        (["--output_dir", "x"], "did you mean --out?"),
        (["--learning_rate", "1e-4"], "did you mean --sft.lr?"),
        (["--num-train-epochs", "3"], "did you mean --sft.epochs?"),
        (["--max_seq_length", "512"], "did you mean --sft.max-length?"),
        (["--num_generations", "8"], "did you mean --grpo.k?"),
        (["--judge", "human"], "did you mean --evaluate.judge or --inputs.judge?"),
        (["--load_in_4bit"], "the base is always in 4 bit"),
        (["--bf16"], "the precision follows the card"),
        (["--resume"], "the same command resumes a run"),
        (["--card", "24"], "`loop` beside --auto"),
        (["smollm2"], "did you mean --base smollm2?"),
        (["meta-llama/Llama-3.2-1B"], "did you mean --base meta-llama/Llama-3.2-1B?"),
    ],
)
def test_names_of_other_kits_lead_to_ours(words, told):
    with pytest.raises(UserError, match=re.escape(told)):
        parse(Loop, words, prog="loop", description="")


def test_a_file_without_a_flag_leads_to_its_flag(rows):
    with pytest.raises(UserError, match=f"did you mean --inputs.data {rows}?"):
        parse(Loop, [str(rows)], prog="loop", description="")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("hub:tatsu-lab/alpaca", "alpaca-rlhf import hub:tatsu-lab/alpaca --out FOLDER"),
        (
            "https://huggingface.co/datasets/tatsu-lab/alpaca",
            "alpaca-rlhf import hub:tatsu-lab/alpaca --out FOLDER",
        ),
        ("https://example.org/rows.jsonl", "download the file first"),
    ],
)
def test_what_is_elsewhere_is_told_how_it_becomes_a_file(name, told):
    with pytest.raises(UserError, match=re.escape(told)):
        read_rows(Inputs(data=Path(name)))
