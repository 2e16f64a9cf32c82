"""The command line: what it refuses and how, what it needs to load, and how it ends."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from string import ascii_lowercase as LETTERS

import pytest

from alpaca_rlhf import __version__
from alpaca_rlhf.cli import main as cli
from alpaca_rlhf.cli import shell, stage_commands
from alpaca_rlhf.cli.first_flags import FIRST_FLAGS
from alpaca_rlhf.cli.terminal import Terminal
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Completion, Instruction
from alpaca_rlhf.preferences import read_snapshot
from alpaca_rlhf.preferences.assignment import Rules, Verdict
from alpaca_rlhf.preferences.schema import Assignment
from alpaca_rlhf.preferences.store import Store
from alpaca_rlhf.serving import run_contents
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.settings.parsing import parse, to_yaml
from alpaca_rlhf.settings.quickstart import QUICKSTART
from alpaca_rlhf.sources.run_prompts import RunPrompts
from alpaca_rlhf.sources.sampled import queue_sampled
from tests import forked
from tests.databases import candidates

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}

SMALL = [
    *("--generate.target", "8", "--generate.seeds", "8", "--generate.batch-size", "8"),
    *("--rank.prompts", "8", "--ppo.batch-size", "8", "--ppo.minibatch-size", "8"),
    *(
        "--ppo.updates",
        "1",
        "--ppo.value.warmup",
        "0",
        "--best-of-k.prompts",
        "8",
        "--evaluate.prompts",
        "8",
    ),
]
"""Flags that keep the small world's splits small."""


def run(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
    return forked.run("-m", "alpaca_rlhf", *words, env=ENVIRONMENT, **options)


def refused(*words: object) -> str:
    """The one line on stderr with which a command ends with code 2."""
    done = run(*words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.endswith("\n"), done.stderr
    assert "Traceback" not in done.stdout
    return done.stderr.removesuffix("\n")


def refused_here(capsys, *words: object) -> str:
    """The same, in this process: torch is not loaded anew."""
    assert cli.main([str(one) for one in words]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and line.endswith("\n")
    return line.removesuffix("\n")


# --- wrong input -------------------------------------------------------------------------------


def test_a_missing_base_is_refused(tmp_path):
    line = refused("sft", "--base", tmp_path / "nothing", "--out", tmp_path / "run", *SMALL)
    assert "--base" in line and str(tmp_path / "nothing") in line and "no such folder" in line


def test_a_folder_without_a_model_is_no_base(tmp_path, capsys):
    words = ["quickstart", "--base", tmp_path, "--out", tmp_path / "run", *SMALL]
    line = refused_here(capsys, *words)
    assert "config.json" in line


def test_a_broken_config_key_is_refused_with_its_line(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("seed: 1\nppo:\n  kl_coeff: 0.1\n")
    line = refused("loop", "--config", file, "--out", tmp_path / "run")
    assert f"{file}:3" in line and "kl_coef" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["quickstart", "loop", "ppo"])
def test_a_negative_learning_rate_is_refused(tmp_path, command):
    line = refused(command, "--sft.lr", "-0.1", "--out", tmp_path / "run")
    assert line == "error: --sft.lr must be > 0, got -0.1"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--seed", "-1"), "--seed must be at least 0 and below 2**32, got -1"),
        (("--generate.top-p", "7"), "--generate.top-p must be in (0, 1], got 7"),
        (("--ppo.updates", "2"), "--ppo.value.warmup 2 must be below --ppo.updates 2"),
        (("--inputs.judge", "human"), "needs rows to train on; give --inputs.data"),
        (
            ("--inputs.judge", "human", "--inputs.seeds", "shipped"),
            "needs prompts to rank; give --inputs.prompts",
        ),
        (("--inputs.rankings", "a.jsonl"), "--inputs.judge human"),
        (("--base", "~nobody-here/x"), "--base ~nobody-here/x: no such folder"),
        (("--out", "x" * 300), "File name too long"),
    ],
)
def test_what_cannot_work_is_refused_at_once(tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    assert said in refused("loop", "--base", "embedded", *words)


def test_a_data_file_with_a_bad_line_is_refused_with_its_place(tmp_path, tiny_folder):
    data = tmp_path / "rows.jsonl"
    good = json.dumps({"instruction": "Name a fruit.", "input": "", "output": "A plum."})
    data.write_text(good + "\n" + '{"instruction": "Name a bird.", "output": 7}' + "\n")
    words = ["sft", "--base", tiny_folder, "--out", tmp_path / "run", "--inputs.data", data]
    line = refused(*words, *SMALL)
    assert f"{data}:2" in line


def test_an_unwritable_output_folder_is_refused(tmp_path, tiny_folder, capsys):
    file = tmp_path / "file"
    file.write_text("mine")
    words = ["quickstart", "--base", tiny_folder, *SMALL, "--out"]
    assert str(file) in refused(*words, file)
    for path in (file / "run", "/proc/1/nothing"):
        assert str(path) in refused_here(capsys, *words, path)
    assert file.read_text() == "mine"


def begun(out: Path, kind: str = "quickstart", **changes: object) -> Loop:
    """A run folder as it is right after its start."""
    settings = dataclasses.replace(QUICKSTART, out=out, **changes)
    out.mkdir()
    (out / "config.yaml").write_text(to_yaml(settings))
    (out / "provenance.json").write_text(json.dumps({"kind": kind, "seed": 0, "inputs": {}}))
    return settings


def test_the_output_folder_of_another_run_is_refused(tmp_path):
    begun(tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    line = refused("quickstart", "--seed", 1, "--out", tmp_path / "run")
    assert "holds another run" in line and "seed was 0, now 1" in line
    kept = {path: path.read_bytes() for path in before}
    assert kept == before


def test_a_folder_of_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    line = refused_here(capsys, "quickstart", "--out", tmp_path)
    assert "thesis.txt" in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["quikstart"], "did you mean quickstart"),
        (["best_of"], "did you mean best-of-k"),
        (["conjure"], "there are doctor, quickstart, plan, base"),
        (["--seed", "1", "quickstart"], "flags come after the command"),
        (["loop", "--ppo.klcoef", "1"], "did you mean --ppo.kl-coef"),
        (["loop", "twice"], "every setting is a flag"),
        (["loop", "--rounds"], "--rounds needs a value"),
        (["chat", "--run", "nowhere"], "--run nowhere: holds no run"),
        (["chat", "--temperature", "-1"], "--temperature must be >= 0"),
        (["chat", "--input", "x"], "--input belongs to --prompt"),
        (["rank", "--annotator", "Ann", "--out", "nowhere"], "--out nowhere: holds no run"),
        (["loop", "--seed", "x"], "--seed expects"),
    ],
)
def test_wrong_words_are_refused_at_once(words, said, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    output = capsys.readouterr()
    assert said in output.err and output.err.count("\n") == 1
    assert output.out == ""
    assert not list(tmp_path.iterdir())


def test_annotator_belongs_to_a_run_that_people_rank(tmp_path, capsys):
    begun(tmp_path / "run")
    line = refused_here(capsys, "rank", "--annotator", "Ann", "--out", tmp_path / "run")
    assert "no person ranks in this run" in line


@pytest.mark.parametrize("command", ["rank", "reward", "ppo", "best-of-k", "evaluate"])
def test_a_later_stage_begins_no_run_in_a_mistyped_folder(command, tmp_path, capsys):
    begun(tmp_path / "mine")
    line = refused_here(capsys, command, "--out", tmp_path / "mien", "--seed", 3)
    assert f"--out {tmp_path / 'mien'}: holds no run; did you mean {tmp_path / 'mine'}?" in line
    assert "--inputs." in line
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("command", ["generate", "sft", "sample", "loop"])
def test_commands_that_begin_runs_take_a_new_folder(command, tmp_path, monkeypatch):
    assert asked(monkeypatch, command, "--out", tmp_path / "new")["settings"].out.name == "new"


def test_a_reward_model_from_given_rankings_begins_a_run(tmp_path, monkeypatch):
    words = ["--inputs.rankings", "pairs.jsonl", "--inputs.judge", "human", "--inputs.data", "d"]
    assert asked(monkeypatch, "reward", "--out", tmp_path / "new", *words)["until"] == "reward"
    file = tmp_path / "rankings.yaml"
    file.write_text("inputs: {judge: human, rankings: pairs.jsonl, data: rows.jsonl}\n")
    seen = asked(monkeypatch, "reward", "--out", tmp_path / "new", "--config", file)
    assert seen["until"] == "reward"


@pytest.mark.parametrize(
    "words",
    [
        ["app"],
        ["app", "--db", "elsewhere.db"],
        ["app", "--add-user", "ada"],
        ["chat"],
        ["export"],
        ["sample"],
        ["judge", "--by", "gold"],
    ],
)
def test_a_mistyped_run_is_refused_with_the_one_beside_it(words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    begun(tmp_path / "runs" / "typo")
    line = refused_here(capsys, *words, "--run", "runs/tpyo")
    assert "--run runs/tpyo: holds no run; did you mean runs/typo?" in line
    inside = refused_here(capsys, *words, "--run", "runs")
    assert "--run runs: holds no run; did you mean runs/typo?" in inside
    assert sorted(path.name for path in tmp_path.rglob("*") if "typo" not in str(path)) == ["runs"]


def test_a_policy_that_the_run_does_not_have_is_refused(tmp_path, capsys):
    begun(tmp_path / "run")
    assert cli.main(["chat", "--run", str(tmp_path / "run"), "--policy", "ppo"]) == 2
    assert capsys.readouterr().err == f"error: --policy ppo: {tmp_path / 'run'} has base\n"


# --- help --------------------------------------------------------------------------------------

PROGRAM = """
import contextlib, io, sys
from alpaca_rlhf.cli.main import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    code = main(sys.argv[1:])
heavy = {"torch", "transformers", "peft", "datasets"}
heavy |= {"jinja2", "gradio", "fastapi", "sqlalchemy"}
heavy &= set(sys.modules)
sys.exit(f"loads {heavy}" if heavy else code)
"""


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["ppo", "--help"], 0),
        (["chat", "--help"], 0),
        (["split", "--help"], 0),
        (["nonsense"], 2),
        (["loop", "--nonsense"], 2),
    ],
)
def test_help_and_refusals_load_no_torch(words, code):
    command = [sys.executable, "-c", PROGRAM, *words]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (code, "")


def test_the_overview_names_every_command_and_the_first_one_to_type(capsys):
    assert cli.main([]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in cli.COMMANDS)
    assert "Start with: alpaca-rlhf quickstart" in text
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"alpaca-rlhf {__version__}\n"


OWN_FLAGS = {
    "doctor": ["--base", "--template", "--json"],
    "base": ["get"],
    "chat": [],
    "answers": ["RUN", "--prompts", "--policy", "--out", "--temperature", "--column"],
    "duel": ["RUN", "--completions", "--minutes"],
    "runs": ["list", "prune"],
    "verdicts": ["status", "leave-out", "take-in"],
    "app": ["--run", "--db", "--host", "--port", "--url", "--add-user", "--add-gold"],
    "export": ["--run", "--policy", "--to", "--dtype", "--out", "--llama-cpp"],
    "judge": ["--run", "--db", "--by", "--judge.url", "--judge.model", "--judge.max-usd"],
    "split": ["--data", "--against", "--shares.sft", "--config"],
    "checks": ["list", "score"],
    "import": ["FILE...", "--out", "--format", "--broken", "--licence", "--teacher"],
    "data": ["inspect", "drops", "refilter", "report", "check", "export"],
}


@pytest.mark.parametrize("name", OWN_FLAGS)
def test_commands_without_a_run_explain_their_own(name, capsys):
    assert cli.main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in OWN_FLAGS[name]) and "--ppo" not in text


LOOP_COMMANDS = [name for name in cli.COMMANDS if name not in OWN_FLAGS]


@pytest.mark.parametrize("command", [["rank", "--help-all"], ["sample", "--run", "R", "--help"]])
def test_the_help_says_which_queue_is_not_ordered(command, capsys):
    """Answers that are made ahead are added prompt by prompt, before anything could order them."""
    assert cli.main(command) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "as they stand in" in text and "--rank.queue" in text


@pytest.mark.parametrize("name", LOOP_COMMANDS)
def test_every_command_explains_all_its_flags(name, capsys):
    assert cli.main([name, "--help-all"]) == 0
    text = capsys.readouterr().out
    assert "--ppo.kl-coef" in text and "--config FILE.yaml" in text
    assert (str(QUICKSTART.sft.lr) in text) == (name == "quickstart")


@pytest.mark.parametrize("name", LOOP_COMMANDS)
def test_help_shows_the_first_flags_and_how_to_see_all(name, capsys):
    assert cli.main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"alpaca-rlhf {name} --help-all" in text and "--config FILE.yaml" in text
    assert text.count("\n") < 80 and "--ppo.value.trunk" not in text
    shown = re.findall(r"^  (--[\w.-]+)", text, re.MULTILINE)
    assert shown == ["--" + path.replace("_", "-") for path in FIRST_FLAGS[name]]
    descriptions = re.findall(r"^        \S", text, re.MULTILINE)
    assert len(descriptions) >= len(shown), "each has a text"


def test_help_shows_defaults_and_whole_sentences(capsys):
    assert cli.main(["loop", "--help"]) == 0
    text = capsys.readouterr().out
    assert "(default: ppo best-of-k)" in text and "e.g. http" in text
    assert "--seed INT\n        Changes everything random. (default: 0)" in text


def test_help_loads_no_torch():
    code = (
        "import sys; from alpaca_rlhf.cli.main import main\n"
        "main(['loop', '--help'])\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize("name", list(cli.COMMANDS["data"].subcommands))
def test_every_data_command_explains_its_flags(name, capsys):
    assert cli.main(["data", "--help"]) == 0
    assert f"\n  {name} " in capsys.readouterr().out
    assert cli.main(["data", name, "--help"]) == 0
    given = {"check": "FILE...", "export": "FOLDER"}.get(name, "RUN")
    assert f"usage: alpaca-rlhf data {name} {given} " in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--help"], ["loop", "--help"]])
def test_a_reader_who_leaves_early_is_no_error(words):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as output:
        done = subprocess.run(
            [sys.executable, "-m", "alpaca_rlhf", *words],
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (0, "")


# --- what a command works with -----------------------------------------------------------------


class Stopped(Exception):
    """Raised where the run would begin."""


def asked(monkeypatch, *words: object) -> dict[str, object]:
    """The settings that a command would run with."""
    seen: dict[str, object] = {}

    def stop(settings, terminal, part):
        seen.update(kind=part.kind, until=part.until, settings=settings)
        raise Stopped

    monkeypatch.setattr(stage_commands, "run", stop)
    with pytest.raises(Stopped):
        cli.main([str(one) for one in words])
    return seen


def test_quickstart_has_numbers_of_its_own_and_loop_the_defaults(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    quick = asked(monkeypatch, "quickstart")
    assert (quick["settings"], quick["kind"], quick["until"]) == (QUICKSTART, "quickstart", None)
    whole = asked(monkeypatch, "loop", "--seed", 3)
    assert whole["settings"] == Loop(seed=3)
    assert (whole["kind"], whole["until"]) == ("loop", None)
    begun(tmp_path / "run")
    assert asked(monkeypatch, "best-of-k", "--out", "run")["until"] == "best_of_k"
    assert asked(monkeypatch, "evaluate", "--out", "run")["until"] is None


def test_in_a_run_folder_its_own_settings_are_the_defaults(monkeypatch, tmp_path):
    mine = begun(tmp_path / "run", rank=dataclasses.replace(QUICKSTART.rank, k=5))
    seen = asked(monkeypatch, "ppo", "--out", tmp_path / "run")
    assert (seen["settings"], seen["kind"], seen["until"]) == (mine, "quickstart", "ppo")
    file = tmp_path / "where.yaml"
    file.write_text(f"out: {tmp_path / 'run'}\n")
    assert asked(monkeypatch, "loop", "--config", file)["settings"] == mine
    changed = asked(monkeypatch, "rank", "--out", tmp_path / "run", "--rank.k", 3)["settings"]
    assert changed == dataclasses.replace(mine, rank=dataclasses.replace(mine.rank, k=3))
    strict = asked(monkeypatch, "quickstart", "--out", tmp_path / "run")["settings"]
    assert strict == dataclasses.replace(QUICKSTART, out=tmp_path / "run")


def test_a_stage_that_the_users_file_replaces_is_no_command(tmp_path, tiny_folder, capsys):
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"instruction": "Name a fruit.", "output": "A plum."}) + "\n")
    words = ["generate", "--inputs.data", data, "--base", tiny_folder, "--out", tmp_path / "run"]
    assert "--inputs.data" in refused_here(capsys, *words)


def test_the_quickstarts_numbers_survive_the_way_through_yaml(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(QUICKSTART))
    read = parse(Loop, ["--config", str(file)], prog="test", description="")
    assert read == QUICKSTART


@pytest.fixture
def human_run(tmp_path, tiny_folder, capsys, monkeypatch):
    """Types commands at a run whose four prompts wait for people, and its flags."""
    rng = random.Random(0)
    rows = [
        {
            "instruction": " ".join("".join(rng.choices(LETTERS, k=5)) for _ in range(4)),
            "output": "a",
        }
        for _ in range(24)
    ]
    for name, part in (("data", rows[:8]), ("prompts", rows[8:])):
        text = "".join(json.dumps(row) + "\n" for row in part)
        (tmp_path / f"{name}.jsonl").write_text(text)
    words = ["--base", tiny_folder, "--template", "brief", "--inputs.judge", "human"]
    words += ["--inputs.data", tmp_path / "data.jsonl"]
    words += ["--inputs.prompts", tmp_path / "prompts.jsonl"]
    words += ["--rank.prompts", 4, "--rank.k", 2, "--sampling.max-new-tokens", 8]
    words += ["--reward.held-out", 0.5, "--reward.gate", 0, "--evaluate.prompts", 4]
    words += ["--ppo.batch-size", 4, "--ppo.minibatch-size", 4, "--best-of-k.prompts", 4]
    words += ["--ppo.max-new-tokens", 8]

    def typed(text: str, *command: object) -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        assert cli.main([str(one) for one in command]) == 0
        output = capsys.readouterr()
        assert output.err == ""
        return output.out

    return typed, words


def test_people_rank_in_the_middle_and_the_run_goes_on(human_run, tmp_path, capsys):
    typed, words = human_run
    out = str(tmp_path / "run")
    assert "4 of 4 prompts are not ranked yet" in typed("", "loop", "--out", out, *words)
    rank = ["rank", "--out", out, "--annotator", "Ann"]
    first = typed("2 1\n1 3\n", *rank)
    assert "there is no answer 3" in first and "3 left; your verdicts are kept" in first
    assert "--annotator Ann  # go on ranking" in first
    assert "3 of 4 prompts are not ranked yet" in typed("", "ppo", "--out", out)
    assert "every prompt is ranked" in typed("1 2\n2 1\n1 2\n\n", *rank)
    trained = typed("", "reward", "--out", out)
    rankings = read_snapshot(tmp_path / "run" / "rank" / "snapshot")
    assert {ranking.annotator for _, _, ranking in rankings} == {"Ann"} and len(rankings) == 4
    assert "done already: sft, sample" in trained and "held-out accuracy" in trained
    assert f"alpaca-rlhf ppo --out {out}" in trained
    assert "nothing to do: reward is done already" in typed("", "reward", "--out", out)
    assert "nothing to do: the rankings of every round were taken" in typed("", *rank)
    assert "rank.k was 2, now 3" in refused_here(capsys, *rank, "--rank.k", 3)


def test_skipped_prompts_are_left_out_and_enough_is_enough(human_run, tmp_path):
    """One is skipped, two are enough; the same numbers everywhere; then a person is left out."""
    typed, words = human_run
    run = tmp_path / "run"
    typed("", "loop", "--out", run, *words)
    rank = ["rank", "--out", run, "--annotator"]
    said = typed("s\n1 2\nq\n", *rank, "Ann")
    assert "1 of 4 prompts ranked, 1 skipped, 2 waiting; 2 left" in said
    waits = typed("", "reward", "--out", run)
    assert "2 of 4 prompts are not ranked yet" in waits
    assert "(1 of 4 prompts ranked, 1 skipped, 2 waiting)" in waits
    waits = typed("", "reward", "--out", run, "--rank.at-least", 4)
    assert "3 more must be ranked" in waits and "--rank.at-least 3" in waits
    assert "1 of 4 prompts are not ranked yet" in typed(
        "", "loop", "--out", run, "--rank.at-least", 2
    )
    said = typed("1 2\nq\n", *rank, "Ben")
    assert "that is enough to go on" in said and f"alpaca-rlhf loop --out {run}" in said
    status = typed("", "verdicts", "status", "--run", run)
    line = "2 of 4 prompts ranked, 1 skipped, 1 waiting"
    assert f"round 1: {line}, at least 2 asked for; enough to train on" in status
    assert f"preferences.db: {line}" in status and "Ben: 1 rankings" in status

    said = typed(
        "", "verdicts", "leave-out", "--run", run, "--person", "Ben", "--reason", "guesses"
    )
    assert "Ben: left out; 1 rankings do not count" in said
    assert f"alpaca-rlhf verdicts take-in --run {run} --person Ben" in said
    assert "1 of 4 prompts are not ranked yet" in typed("", "reward", "--out", run)
    assert "Ben: taken in again" in typed(
        "", "verdicts", "take-in", "--run", run, "--person", "Ben"
    )
    trained = typed("", "reward", "--out", run, "--reward.epochs", 1)
    assert f"2 rankings by people; {line}, at least 2 asked for: 2 left out of training" in trained
    facts = json.loads((run / "ledger.json").read_text())["rank"]["facts"]["standing"]
    assert facts == {"prompts": 4, "ranked": 2, "skipped": 1, "closed": 0, "waiting": 1}


def test_who_is_left_out_after_the_rankings_were_taken_is_not_trained_on(
    human_run, tmp_path, capsys
):
    typed, words = human_run
    run = tmp_path / "run"
    typed("", "loop", "--out", run, *words)
    typed("1 2\n1 2\n1 2\nq\n", "rank", "--out", run, "--annotator", "Ann")
    typed("1 2\n\n", "rank", "--out", run, "--annotator", "Ben")
    gated = ["reward", "--out", str(run), "--reward.gate", "1"]
    assert "is below --reward.gate 1" in refused_here(capsys, *gated), "the rankings are taken"
    assert len(read_snapshot(run / "rank" / "snapshot")) == 4
    typed("", "verdicts", "leave-out", "--run", run, "--person", "Ben")
    assert "its snapshot is taken anew" in typed("", "reward", "--out", run, "--reward.gate", 0)
    names = [ranking.annotator for _, _, ranking in read_snapshot(run / "rank" / "snapshot")]
    assert names == ["Ann"] * 3
    assert "reward: trained already" in typed(
        "", "verdicts", "take-in", "--run", run, "--person", "Ben"
    )


def test_mistakes_about_whom_to_leave_out(tmp_path, capsys):
    db = tmp_path / "p.db"
    with Store(db) as store:
        store.add_annotator("Ann", "long enough")
    words = ["verdicts", "leave-out", "--db", str(db)]
    assert "--person 'An': there is no annotator of this name; there are Ann" in refused_here(
        capsys, *words, "--person", "An"
    )
    assert "there is no candidate set 9" in refused_here(capsys, *words, "--set", 9)
    assert "give one of --person NAME, --set NUMBER and --gold-below SHARE" in refused_here(
        capsys, *words
    )
    assert "there is no such file" in refused_here(
        capsys, *words[:-1], str(tmp_path / "q.db"), "--set", 1
    )
    assert not (tmp_path / "q.db").exists()
    assert cli.main([*words, "--gold-below", "0.9"]) == 0
    assert "nobody is below" in capsys.readouterr().out


def test_each_of_several_people_is_taken_in_again_by_a_command_of_their_own(tmp_path, capsys):
    db = tmp_path / "p.db"
    below_gold(db, {"Ann": 6, "Ben B": 5, "Cy": 0, "Dan": 4})
    with Store(db) as store:
        store.leave_out_person("Dan", actor="test", reason="asked to")
    words = ["verdicts", "leave-out", "--db", str(db), "--gold-below", "0.7"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "Ann: left out" in said and "Dan: already left out" in said
    commands = [line.split("#")[0].strip() for line in said.splitlines() if "# undo it" in line]
    assert [command.partition(" --person ")[2] for command in commands] == ["Ann", "'Ben B'"]
    for command in commands:
        assert cli.main(shlex.split(command)[1:]) == 0
    with Store(db) as store:
        assert store.left_out() == ["Dan"], "for another reason, and before"


def below_gold(db: Path, wrong: dict[str, int]) -> None:
    """People who answered six gold questions each, so many of them wrongly."""
    with Store(db, rules=Rules(gold_rate=1, repeat_rate=0), seed=0) as store:
        gold = candidates(6, k=2, tag="gold ")
        orders = {prompt.id: tuple((c.id,) for c in answers) for prompt, answers in gold}
        store.add_sets(gold, origin="gold", gold=orders)
        for name, n_wrong in wrong.items():
            person = store.add_annotator(name, "long enough")
            for at in range(6):
                task = store.claim(person)
                order = orders[task.prompt.id]
                store.submit(person, task.id, Verdict(order[::-1] if at < n_wrong else order))


def test_people_rank_in_the_app_and_the_run_goes_on(human_run, tmp_path):
    """Two in the app, one in the terminal, one that an admin takes out of the queue."""
    typed, words = human_run
    run = tmp_path / "run"
    told = typed("", "loop", "--out", run, *words)
    assert f"`alpaca-rlhf app --run {run}`" in told
    typed("2 1\nq\n", "rank", "--out", run, "--annotator", "Ann")
    plain = Rules(gold_rate=0, repeat_rate=0, second_share=0)
    with Store(run / "preferences.db", rules=plain, seed=0) as store:
        assert queue_sampled(run, store) == 0, "the terminal put them there"
        assert store.figures().counts["sets"] == 4
        store.export(tmp_path / "by_hand")
        ((_, _, by_hand),) = read_snapshot(tmp_path / "by_hand")
        ben, boss = (store.add_annotator(who, "long enough") for who in ("Ben", "Boss"))
        said = {}
        while len(said) < 2:
            task = store.claim(ben)
            if task.prompt.id == by_hand.prompt_id:  # where two people are asked
                store.skip(ben, task.id)
                continue
            order = tuple((one.id,) for one in task.completions)
            store.submit(ben, task.id, Verdict(order), revision=task.revision)
            said[task.prompt.id] = order
        assert "1 of 4 prompts are not ranked yet" in typed("", "reward", "--out", run)
        last = store.claim(ben)
        with store.database.reading() as session:
            number = session.get(Assignment, last.id).candidate_set_id
        store.retire(number, actor=f"annotator:{boss}")
        trained = typed("", "reward", "--out", run)
    assert "held-out accuracy" in trained
    rows = read_snapshot(run / "rank" / "snapshot")
    kept = {ranking.prompt_id: ranking for _, _, ranking in rows}
    assert kept.keys() == {by_hand.prompt_id, *said}
    assert kept[by_hand.prompt_id] == by_hand
    for prompt, order in said.items():
        assert (kept[prompt].tiers, kept[prompt].annotator) == (order, "Ben")
    made = json.loads((run / "rank" / "snapshot" / "manifest.json").read_text())
    assert made["rankings"] == 3, "the app's and the terminal's"


def test_typed_prompts_train_too_and_what_says_the_same_is_not_waited_for(human_run, tmp_path):
    typed, words = human_run
    run = tmp_path / "run"
    typed("", "loop", "--out", run, *words)
    file = run / "sample" / "completions.jsonl"
    drawn = [json.loads(line) for line in file.read_text().splitlines()]
    alike = drawn[0]["prompt_id"]
    for one in drawn:
        if one["prompt_id"] == alike:
            one["text"] = "The same."
    file.write_text("".join(json.dumps(one) + "\n" for one in drawn))
    splits = RunPrompts(run, run_contents.settings_of(run)).splits
    own = Instruction("Which bird is quite another one?", source="chat")
    near = Instruction(f"{splits['eval'][0].instruction}!", splits["eval"][0].input, source="chat")
    plain = Rules(gold_rate=0, repeat_rate=0, second_share=0)
    with Store(run / "preferences.db", rules=plain, seed=0) as store:
        assert queue_sampled(run, store) == 3
        for row in (own, near):
            answers = [Completion(row.id, text, "x") for text in ("A robin.", "No idea.")]
            store.add_sets([(row, answers)], origin="chat")
        ben = store.add_annotator("Ben", "long enough")
        while (task := store.claim(ben)) is not None:
            order = tuple((one.id,) for one in sorted(task.completions, key=lambda one: one.text))
            store.submit(ben, task.id, Verdict(order), revision=task.revision)
    told = typed("", "reward", "--out", run)
    assert "3 rankings by people, and 1 in the app of other answers; 1 left out" in told
    facts = json.loads((run / "ledger.json").read_text())
    assert facts["rank"]["facts"]["of_other_answers"] == facts["rank"]["facts"]["near"] == 1
    reward = facts["reward"]["facts"]
    assert reward["pairs"] + reward["held_out_pairs"] == 4, "three of the run's own, one typed"


# --- how it ends -------------------------------------------------------------------------------


def ended(body, capsys, terminal=None) -> tuple[int, str]:
    code = shell.guarded(body, command="alpaca-rlhf loop", terminal=terminal or Terminal())
    return code, capsys.readouterr().err


def test_every_end_has_its_code(capsys):
    def raising(error: BaseException):
        def body() -> int:
            raise error

        return body

    class OutOfMemoryError(RuntimeError):
        pass

    assert ended(lambda: 0, capsys) == (0, "")
    assert ended(raising(UserError("a\nb\x1b[31m")), capsys) == (2, "error: a b[31m\n")
    code, line = ended(raising(KeyboardInterrupt()), capsys)
    assert code == 130 and line.endswith("To go on: alpaca-rlhf loop\n")
    assert ended(raising(SystemExit(0)), capsys) == (0, "")
    code, line = ended(raising(OutOfMemoryError()), capsys)
    assert code == 2 and "--sampling.batch-size" in line and line.count("\n") == 1
    terminal = Terminal()
    terminal.start("export", "ppo")
    _, line = ended(raising(OutOfMemoryError()), capsys, terminal)
    assert "export: out of GPU memory; end what else uses the card" in line
    with pytest.raises(ZeroDivisionError):
        ended(raising(ZeroDivisionError()), capsys)


def test_ctrl_c_ends_with_the_command_that_goes_on(tmp_path, tiny_folder):
    words = ["quickstart", "--base", tiny_folder, "--out", tmp_path / "a run", *SMALL]
    words += ["--generate.target", "5000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "alpaca_rlhf", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    events = tmp_path / "a run" / "generate" / "events-00000.jsonl"
    deadline = time.monotonic() + 240
    while not events.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert err.count("\n") == 1 and f"--out '{tmp_path / 'a run'}'" in err
    assert "generate" in out and events.exists()


@pytest.mark.parametrize(
    "command",
    [
        "judge --by gold",
        "verdicts status",
        "verdicts leave-out --person ann",
        "verdicts take-in --set 3",
        "chat",
        "export",
        "app",
    ],
)
def test_the_run_may_be_the_first_word(command, tmp_path, capsys):
    words = command.split()
    at = 2 if words[0] == "verdicts" else 1
    mistyped = str(tmp_path / "quikstart")
    assert cli.main([*words[:at], mistyped, *words[at:]]) == 2
    told = capsys.readouterr().err
    assert f"{mistyped}: holds no run" in told and f"--run {mistyped}: " not in told
