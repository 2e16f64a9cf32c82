"""The guides: their commands parse, their messages are ours, their figures are proven."""

from __future__ import annotations

import ast
import json
import re
import runpy
from functools import cache
from importlib import import_module

import pytest

from alpaca_rlhf.cli import commands as table
from alpaca_rlhf.cli import plan_command, stage_commands
from alpaca_rlhf.cli.main import spelled_out
from alpaca_rlhf.cli.sample_command import Fill
from alpaca_rlhf.cli.terminal import Terminal
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.settings.parsing import parse
from tests.pages import GUIDES, PAGES, ROOT, commands, mentions

LOOPS = {"plan": plan_command.Plan, "rank": stage_commands.Ranked}
"""Commands of a loop that have more flags than it."""


def check(words):
    """Parse a command of ours as the program does, without running it."""
    name, command, rest = table.resolve(words)
    if command.settings:
        invocation = table.Invocation(name, command, rest, Terminal())
        _, rest = invocation.operands() if command.operands else ([], rest)
        module = import_module(f"alpaca_rlhf.cli.{command.module}")
        return parse(getattr(module, command.settings), rest, prog=name, description="")
    if name == "sample" and "--run" in rest:
        return parse(Fill, rest, prog=name, description="")
    if name in ("plan", "loop"):
        _, rest = plan_command.taken(rest)
        _, rest = plan_command.card_word(rest) if name == "loop" else (None, rest)
    if name == "generate":
        rest = [word for word in rest if word != "--dry-run"]
    return parse(LOOPS.get(name, Loop), rest, prog=name, description="")


@pytest.mark.parametrize("name", PAGES)
def test_every_command_of_a_guide_parses(name):
    seen = 0
    text = PAGES[name].read_text()
    for words in [*commands(text), *mentions(text)]:
        if words[0] == "alpaca-rlhf":
            check(words[1:])
        elif words[0] == "accelerate":
            assert words[1:3] == ["launch", "--config_file"]
            assert (ROOT / words[3]).is_file(), words[3]
            assert words[4:6] == ["-m", "alpaca_rlhf"]
            check(words[6:])
        elif words[:2] == ["python", "-m"]:
            assert words[2] == "tests.prove"
        elif words[0] == "python":
            assert (ROOT / words[1]).is_file(), words[1]
            if words[1].startswith("recipes/"):
                flags = [word for word in words[2:] if word not in ("--dry-run", "--quick")]
                settings = runpy.run_path(str(ROOT / words[1]))["EXPERIMENT"]
                parse(Loop, spelled_out(flags), prog="recipe", description="", default=settings)
        seen += 1
    assert seen


def test_a_wrong_flag_in_a_guide_is_found():
    with pytest.raises(UserError, match=r"--ppo\.kl-coeff"):
        check(["loop", "--ppo.kl-coeff", "0.1"])


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_both_readmes_lead_to_every_guide(readme):
    text = (ROOT / readme).read_text()
    assert all(f"(docs/guides/{name}.md)" in text for name in GUIDES)


# --- troubleshooting ------------------------------------------------------------------------------


@cache
def texts():
    """Every text in the code, what is filled in left open as `…`."""
    found = []
    for path in sorted((ROOT / "alpaca_rlhf").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [str(one.value) if isinstance(one, ast.Constant) else "…"
                         for one in node.values]  # fmt: skip
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def said_by_the_code(message):
    """True if a text of the code holds a message, `…` standing for anything."""
    parts = [re.escape(part) for part in message.split("…")]
    pattern = re.compile(".*?".join(parts), re.DOTALL)
    return any(pattern.search(text) for text in texts())


def test_every_message_in_troubleshooting_is_one_of_ours():
    messages = re.findall(r"^### `(.+)`$", GUIDES["troubleshooting"].read_text(), re.MULTILINE)
    assert len(messages) > 25 and len(set(messages)) == len(messages)
    missing = [one for one in messages if not said_by_the_code(one)]
    assert not missing
    assert all(len(one.replace("…", "").strip()) >= 12 for one in messages), "too short to find"


def test_a_message_that_nobody_says_is_found():
    assert said_by_the_code("is in use by process …; wait for it")
    assert not said_by_the_code("is in use by process …; wait for them")


# --- reading the report ---------------------------------------------------------------------------


def test_every_section_and_chart_of_the_report_is_explained():
    text = GUIDES["reading-the-report"].read_text()
    page = (ROOT / "alpaca_rlhf/report/templates/report.html").read_text()
    sections = re.findall(r'\("[a-z-]+", "[^"]+", "([^"]+)",', page)
    assert len(sections) == 15
    assert [one for one in sections if f"## {one}" not in text] == []
    charts = re.findall(r'curves\.\w+\([\w.]+, "([^"]+)"', page)
    charts += re.findall(r'LineChart\("([^"]+)"', page)
    charts.remove("Accepted tasks")
    assert len(charts) == 28
    assert [one for one in charts if f"**{one}**" not in text] == []


# --- PPO or best-of-K -----------------------------------------------------------------------------


def test_the_figures_of_ppo_and_best_of_k_are_those_of_the_proofs():
    text = GUIDES["policies"].read_text()
    arms = {
        "best-of-4": "best_of_k",
        "PPO": "ppo",
        "fine-tuned on one at random": "random_of_k",
        "SFT, best of 4 by the reward model": "sampler_best_of_k",
    }
    rows = re.findall(r"^\| seed (\d+), ([^|]+) \|(.+)\|$", text, re.MULTILINE)
    files = list((ROOT / "docs/proof").glob("quickstart-seed-*.json"))
    assert len(rows) == len(arms) * len(files)
    for seed, label, cells in rows:
        file = ROOT / "docs" / "proof" / f"quickstart-seed-{seed}.json"
        policies = json.loads(file.read_text())["report"]["policies"]
        policy, sft = policies[arms[label]], policies["sft"]
        told = [float(cell) for cell in re.findall(r"[-+]?\d+\.\d+", cells)]
        real = [policy["paired_gain_vs_sft"], *policy["paired_gain_ci95"]]
        real += [policy["greedy_gain_vs_sft"], policy["kl_from_sft_nats"]]
        real += [
            policy["gold_parts"][part] - sft["gold_parts"][part] for part in ("correct", "form")
        ]
        assert told == pytest.approx(real, abs=0.0051), (seed, label)


def test_the_figures_of_peoples_judgements_are_those_of_the_proof():
    proof = json.loads((ROOT / "docs" / "proof" / "smollm2-people.json").read_text())
    lines = GUIDES["own-data"].read_text().splitlines()
    rows = [line for line in lines if re.match(r"\| [^|]+ \| \d+ (pairs|rankings)", line)]
    assert len(rows) == len(proof["runs"]) > 0
    for row, run in zip(rows, proof["runs"].values(), strict=True):
        rules = [rule["accuracy"] for rule in run["baselines"]]
        low, high = run["ci95"]
        wanted = [run["held_out_accuracy"], low, high, run["log_loss"], *rules]
        assert re.findall(r"[.]\d{3}", row) == [f"{value:.3f}"[1:] for value in wanted]
        counts = [int(number.replace(",", "")) for number in re.findall(r"(?<![.\d])\d[\d,]*", row)]
        assert {run["left_out"], run["held_out_pairs"]} <= {*counts}


def test_the_figures_of_the_duel_are_those_of_the_proof():
    seeds = json.loads((ROOT / "docs/proof/duel-cria.json").read_text())["seeds"]
    text = GUIDES["policies"].read_text()
    rows = re.findall(r"^\| (\d+), ([\w-]+) \|(.+)\|$", text, re.MULTILINE)
    assert len(rows) == sum(len(seed["duel"]["policies"]) for seed in seeds.values())
    for seed, label, cells in rows:
        name = {"best-of-4": "best_of_k"}.get(label, label.lower())
        policy = seeds[seed]["duel"]["policies"][name]
        told = [float(cell) for cell in re.findall(r"[-+]?\d+(?:\.\d+)?", cells.replace(",", ""))]
        real = [policy["gain"], *policy["gain_ci95"], policy["kl_from_sft_nats"]]
        real += [policy["completions"], policy["seconds"], policy["seconds_before"]]
        assert told == pytest.approx(real, abs=0.51e-2, rel=0.02), (seed, label)


def test_the_reward_models_of_the_proofs_stand_beside_their_best_baseline():
    rows = re.findall(r"^\| seed (\d+) \|(.+)\|$", GUIDES["policies"].read_text(), re.MULTILINE)
    assert len(rows) == len(list((ROOT / "docs/proof").glob("quickstart-seed-*.json")))
    for seed, cells in rows:
        file = ROOT / "docs" / "proof" / f"quickstart-seed-{seed}.json"
        [model] = json.loads(file.read_text())["report"]["reward_models"]
        best = max(model["baselines"], key=lambda baseline: baseline["accuracy"])
        assert f"| {best['is']}, {best['accuracy']:.3f} |" in cells
        told = [float(cell) for cell in re.findall(r"(?<!\d)[-+]?\d+\.\d+", cells)]
        real = [model["held_out_accuracy"], *model["ci95"], best["accuracy"], *best["lead_ci95"]]
        assert told == pytest.approx([*real, model["shuffled_label_accuracy"]], abs=6e-4), seed
