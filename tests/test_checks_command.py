"""`alpaca-rlhf checks list` and `checks score`."""

import json
import shlex

import pytest

from alpaca_rlhf.checks import KINDS, Checks, demonstrations, read_request
from alpaca_rlhf.cli import main as cli
from alpaca_rlhf.core.records import Instruction

PROMPT = "Why does it rain? Do not use any commas. Use at most 20 words."


def test_the_list_names_every_kind_with_a_phrasing_that_is_read(capsys):
    assert cli.main(["checks", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line[2:].split()[0]: line for line in lines[: len(KINDS)]}
    assert set(rows) == set(KINDS)
    for name, line in rows.items():
        [check] = read_request(line[2:].removeprefix(name)).constraints
        assert check.kind.name == name and line.startswith("*") == check.kind.held_out
    assert cli.main(["checks", "list", "--language", "zh", "--kind", "bullets"]) == 0
    assert "要点" in capsys.readouterr().out


def test_suggested_commands_run(capsys):
    assert cli.main(["checks", "list"]) == 0
    _, _, after = capsys.readouterr().out.partition("next:")
    commands = [shlex.split(line.partition("  # ")[0])[1:] for line in after.strip().splitlines()]
    assert len(commands) == 2
    for command in commands:
        assert cli.main(command) == 0
    assert "score 1.000" in capsys.readouterr().out


def test_an_answer_is_judged_constraint_by_constraint(capsys):
    answer = "Warm air rises, cools and lets its water fall as rain."
    assert cli.main(["checks", "score", "--prompt", PROMPT, "--answer", answer]) == 0
    first, second, score = capsys.readouterr().out.splitlines()
    assert first == "  no_commas (missed, 0.50): Do not use any commas."
    assert second == "  words_at_most (met): Use at most 20 words."
    expected = Checks().score(Instruction(PROMPT), answer, True).score
    assert score.startswith(f"  score {expected:.3f} (met 0.50, met_degree 0.75, all_met 0.00")
    assert (
        cli.main(["checks", "score", "--prompt", PROMPT, "--answer", answer, "--finished", "False"])
        == 0
    )
    assert "stops 0.00" in capsys.readouterr().out


@pytest.mark.parametrize(
    "names", [("prompt", "answer"), ("instruction", "output"), ("prompt", "completion")]
)
def test_a_file_of_answers(tmp_path, capsys, names):
    path = tmp_path / "answers.jsonl"
    rows = [(row.instruction, row.output) for row in demonstrations()] + [("Why?", "Because.")]
    path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    assert cli.main(["checks", "score", "--file", str(path), "--limit", "3"]) == 0
    out = capsys.readouterr().out
    assert out.count("  score 1.000") == 3
    assert f"{len(rows) - 1} answers, mean score 1.000; 1 rows state no constraint" in out
    assert "  no_commas " in out and " 100.0%" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["score"], "needs --prompt TEXT and --answer TEXT, or --file"),
        (["score", "--prompt", PROMPT], "needs --prompt TEXT and --answer TEXT"),
        (["score", "--prompt", "Why?", "--answer", "So."], "states no constraint"),
        (["score", "--prompt", PROMPT, "--file", "x.jsonl"], "leave --prompt and --answer out"),
        (["score", "--file", "absent.jsonl"], "absent.jsonl"),
        (["score", "--file", "{}"], "state no constraint"),
        (["list", "--kind", "rhyme"], "--kind rhyme: is not a kind; see them with"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(tmp_path, capsys, words, message):
    path = tmp_path / "plain.jsonl"
    path.write_text('{"prompt": "Why?", "answer": "So."}\n')
    assert cli.main(["checks", *(word.format(path) for word in words)]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error
