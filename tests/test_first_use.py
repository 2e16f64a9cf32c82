"""First use: what is asked for, what is suggested next, and how early mishaps end."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from alpaca_rlhf.cli import commands as table
from alpaca_rlhf.cli import main as cli
from alpaca_rlhf.cli import own_files, plan_command, running, stage_commands
from alpaca_rlhf.settings import Inputs, Loop, Lora
from alpaca_rlhf.settings.parsing import parse, to_yaml


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
