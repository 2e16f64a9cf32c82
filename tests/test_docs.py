"""The documents say what is true: links lead somewhere, commands exist, terms are defined."""

import json
import re
from pathlib import Path

import pytest

from alpaca_rlhf.cli.answers_command import Answers
from alpaca_rlhf.cli.app_command import App
from alpaca_rlhf.cli.doctor_command import Doctor
from alpaca_rlhf.cli.duel_command import DuelFlags
from alpaca_rlhf.cli.export_command import Export
from alpaca_rlhf.cli.judge_command import Judging
from alpaca_rlhf.cli.main import COMMANDS
from alpaca_rlhf.cli.plan_command import AUTO, LENGTHS, Plan
from alpaca_rlhf.cli.runs_command import Pruned
from alpaca_rlhf.cli.sample_command import Fill
from alpaca_rlhf.cli.split_command import Split
from alpaca_rlhf.report import schema as report_data
from alpaca_rlhf.settings.leaves import leaves_of

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("recipes/*.md"),
        *ROOT.glob("data/*.md"),
    ]
)
OTHER_FLAGS = {"--help", "--dry-run", "--config", "--run", "--policy", "--annotator", "--version"}
OTHER_FLAGS |= {"--scale"}  # recipes/pretrain_cria.py
OTHER_FLAGS |= {"--format", "--broken", "--columns"}  # alpaca-rlhf import
OTHER_FLAGS |= {AUTO, LENGTHS, "--judge", "--quick"}  # recipes, plan


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_files_that_are_named_exist(page):
    pattern = r"`((?:docs|tests|recipes|data|alpaca_rlhf)/[\w./-]*\w)`"
    for target in re.findall(pattern, page.read_text()):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.parent.name != "guides" and page.name != "mistakes.md"],
    ids=named,
)
def test_commands_and_flags_exist(page):
    """`test_guides.py` parses those of the guides; mistakes are of flags that do not exist."""
    text = page.read_text()
    for command in re.findall(r"(?:^ +|`)alpaca-rlhf ([a-z][a-z-]+)", text, re.MULTILINE):
        assert command in COMMANDS, command
    for target in re.findall(r"(?:^ +|`)make ([a-z]+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
    known = (
        Answers,
        App,
        Pruned,
        Doctor,
        DuelFlags,
        Export,
        Fill,
        Judging,
        Plan,
        Split,
    )  # Plan has those of the loop
    flags = {leaf.flag for cls in known for leaf in leaves_of(cls, required=False)}
    flags |= OTHER_FLAGS
    lines = [line for line in text.splitlines() if "alpaca-rlhf" in line or "recipes/" in line]
    used = re.findall(r"(--[a-z][a-z.-]+[a-z])", "\n".join(lines))
    used += re.findall(r"`(--[a-z][a-z.-]+[a-z])", text)
    assert not set(used) - flags


CHECKLIST = {"S": 16, "R": 20, "P": 45, "A": 15, "B": 6, "D": 5, "G": 5, "I": 5, "J": 5}


def test_every_item_of_the_checklist_is_decided():
    """Each once, in order, with words; and a test that is named is one that runs."""
    text = (ROOT / "docs" / "decisions.md").read_text()
    assert "TODO" not in text
    rows = re.findall(r"^\| ([A-Z]\d+) \|([^|]*)\|([^|]*)\|([^|]*)\|$", text, re.MULTILINE)
    wanted = [f"{letter}{i + 1}" for letter, n in CHECKLIST.items() for i in range(n)]
    assert [row[0] for row in rows] == wanted
    for item, what, _, shown in rows:
        assert len(what.split()) >= 3, f"{item} says nothing"
        declined = re.search(r"\bno[rt]?\b|\bnothing\b", what.lower())
        assert "`" in shown or declined, f"{item} names no test, and no reason why not"
    named_tests = re.findall(r"`(test_\w+\.py)::(\w+)`", text)
    assert text.count("::") == len(named_tests) > len(wanted)
    for file, name in named_tests:
        source = (ROOT / "tests" / file).read_text()
        assert re.search(rf"^def {name}\(", source, re.MULTILINE), f"{file}::{name}"


def test_both_readmes_hold_the_same_commands():
    blocks = [
        [
            line.split("#")[0].strip()
            for line in (ROOT / name).read_text().splitlines()
            if re.match(r" {4}(make|alpaca-rlhf|python) ", line)
        ]
        for name in ("README.md", "README.zh-CN.md")
    ]
    assert blocks[0] == blocks[1] and len(blocks[0]) > 5


def test_every_figure_of_the_report_is_defined():
    defined = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "metrics.md").read_text()))
    tables = (
        report_data.Policy,
        report_data.RewardModel,
        report_data.Stage,
        report_data.BestOfK,
        report_data.Prompts,
    )
    keys = {
        key for table in tables for key, field in table.model_fields.items() if field.is_required()
    }
    assert not keys - defined - {"name", "round"}


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_figures_are_those_of_the_proof(name):
    report = json.loads((ROOT / "docs" / "proof" / "quickstart-seed-0.json").read_text())["report"]
    text = (ROOT / name).read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text[: text.index("smollm2-seed-0.json")].splitlines()
        if re.match(r"\| [^|]+ \| 0\.\d{3} ", line) and line.count("|") == 9
    ]
    assert len(rows) == 5
    policies = [report["policies"][one] for one in ("base", "base_few_shot", "sft")]
    policies += [report["policies"][one] for one in ("best_of_k", "ppo")]
    for cells, policy in zip(rows, policies, strict=True):
        assert float(cells[1]) == pytest.approx(policy["gold_score"], abs=6e-4)
        assert float(cells[6]) == pytest.approx(policy["gold_parts_greedy"]["correct"], abs=6e-3)
        if cells[3]:
            assert float(cells[3]) == pytest.approx(policy["paired_gain_vs_sft"], abs=6e-4)
            assert float(cells[5]) == pytest.approx(policy["win_rate_vs_sft"], abs=6e-3)
    accuracy = report["reward_models"][0]["held_out_accuracy"]
    assert f"{accuracy:.1%}" in (ROOT / name).read_text()


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_figures_on_smollm2_are_those_of_the_report(name):
    text = (ROOT / name).read_text()
    proof = json.loads((ROOT / "docs" / "proof" / "smollm2-seed-0.json").read_text())
    assert proof["missing"] == []
    policies = proof["report"]["policies"]
    arms = ("base", "sft", "sampler_best_of_k", "best_of_k", "ppo", "rloo")
    # The first table below the link to the report.
    table = text[text.index("smollm2-seed-0.json") :].split("\n\n")[1]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]
    ]
    assert len(rows) == len(arms)
    for cells, policy in zip(rows, map(policies.get, arms), strict=True):
        assert float(cells[1]) == pytest.approx(policy["gold_score"], abs=6e-4)
        assert ends(cells[2]) == pytest.approx(policy["ci95"], abs=6e-4)
        if cells[3]:
            assert float(cells[3]) == pytest.approx(policy["gold_score_greedy"], abs=6e-4)
        if cells[4]:
            assert float(cells[4]) == pytest.approx(policy["paired_gain_vs_sft"], abs=6e-4)
            assert ends(cells[5]) == pytest.approx(policy["paired_gain_ci95"], abs=6e-4)
        assert float(cells[6]) == pytest.approx(policy["gold_parts"]["met"], abs=6e-3)
    # Minutes of the stages that made each.
    seconds = {stage: entry["seconds"] for stage, entry in proof["stages"].items()}
    stages = [
        ("generate", "sft"),
        ("sample", "rank", "reward"),
        ("best_of_k",),
        ("ppo",),
        ("rloo",),
    ]
    for cells, names in zip(rows[1:], stages, strict=True):
        assert float(cells[7]) == pytest.approx(sum(seconds[one] for one in names) / 60, abs=0.6)
    accuracy = proof["report"]["reward_models"][0]["held_out_accuracy"]
    assert f"{accuracy:.3f}" in text


def ends(interval: str) -> list[float]:
    """The two ends of an interval as it is printed."""
    return [float(end) for end in interval.split(" \u2013 ")]


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_comparisons_are_those_of_the_benchmarks(name):
    """Shares of the other side's time and memory, by the benchmark that stands beside them."""
    rows = re.findall(
        r"\| (0\.\d\d) .*?\| (0\.\d\d) .*?benchmarks/(\w+)\.py`", (ROOT / name).read_text()
    )
    assert {script for _, _, script in rows} == {
        "ppo_vs_trl",
        "sft_vs_trainer",
        "reward_vs_trl",
        "dpo_vs_trl",
        "rollout",
    }
    for time, memory, script in rows:
        file = ROOT / "benchmarks" / "results" / f"{script}.json"
        found = json.loads(file.read_text())["summary"]
        faster = {"sft_vs_trainer": "tokens_per_second_ratio", "rollout": "speedup_vs_generate"}
        slower = {
            "ppo_vs_trl": "wall_ratio",
            "reward_vs_trl": "time_ratio",
            "dpo_vs_trl": "time_ratio",
        }
        share = 1 / found[faster[script]] if script in faster else found[slower[script]]
        assert float(time) == pytest.approx(share, abs=6e-3)
        assert float(memory) == pytest.approx(found["memory_ratio"], abs=6e-3)
