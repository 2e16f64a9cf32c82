"""A judge of the user's, wrong in every way, at the command line: one line that says what to do."""

from __future__ import annotations

import json
import shutil

import pytest

from alpaca_rlhf.cli import main as cli
from alpaca_rlhf.core.provenance import sha256_of
from tests.model_app import prompts
from tests.test_wrong_inputs import refused

SMALL = (
    "--template brief --lora.r 4 --lora.alpha 8 --sampling.max-new-tokens 6 --sft.epochs 1 "
    "--sft.batch-size 4 --rank.prompts 6 --rank.k 2 --reward.gate 0 --reward.held-out 0.4 "
    "--reward.batch-size 4 --ppo.updates 2 --ppo.value.warmup 1 --ppo.batch-size 4 "
    "--ppo.minibatch-size 4 --ppo.max-new-tokens 6 --policies ppo --evaluate.prompts 4 "
    "--evaluate.bootstrap 20 --evaluate.rerank False --inputs.data data.jsonl "
    "--inputs.prompts prompts.jsonl --out run"
).split()
BY_FILE = ["--inputs.judge", "judge.py:score"]
TOO_MANY = ["--rank.prompts", "4000"]
"""More prompts than there are, which is not what such a run is refused for."""
RIGHT = """import re

VOWELS = re.compile("[aeiou]", re.IGNORECASE)


def score(prompt, completion, finished):
    if not completion:
        return 0.0
    share = len(VOWELS.findall(completion)) / len(completion)
    return 0.9 * share + 0.1 * finished
"""
THIRD = """SEEN = []
def score(prompt, completion, finished):
    SEEN.append(completion)
    if len(SEEN) == 3:
        {}
    return len(completion) / 100
"""


@pytest.fixture(scope="module")
def failed(tmp_path_factory, tiny_folder):
    """A folder with a run whose judge failed on the first answer it was to rank."""
    home = tmp_path_factory.mktemp("failed")
    texts = [row.instruction for row in prompts(40)]
    rows = [{"instruction": text, "output": "Yes."} for text in texts[:6]]
    for name, lines in (("data", rows), ("prompts", [{"instruction": t} for t in texts[6:]])):
        (home / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (home / "judge.py").write_text("def score(prompt, completion, finished):\n    return None\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert cli.main(["loop", "--base", str(tiny_folder), *SMALL, *BY_FILE]) == 2
    assert {"sft", "sample"} <= set(json.loads((home / "run" / "ledger.json").read_text()))
    return home


@pytest.fixture
def home(failed, tmp_path, monkeypatch):
    """A copy of it, where the user works."""
    monkeypatch.chdir(shutil.copytree(failed, tmp_path / "home"))
    return tmp_path / "home"


def contents(folder):
    """sha256 of every file by its path; what Python and SQLite write by themselves left out."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix[:3] != ".db"]
    files = [path for path in files if path.parent.name != "__pycache__"]
    return {str(path.relative_to(folder)): sha256_of(path) for path in files}


def scores(folder):
    return (folder / "judge_scores.jsonl").read_text().splitlines()


WITHOUT_A_SCORE = {
    "None": ("pass; return", "judge.py:2: score() returned None; return a number in [0, 1]"),
    "text": ("return '0.5'", "judge.py:2: score() returned '0.5' (str); return a number"),
    "NaN": ("return float('nan')", "judge.py:2: score() returned NaN; return a number"),
    "above 1": ("return 1.5", "judge.py:2: score() returned 1.5; return a number in [0, 1]"),
    "an exception": ("return 1 / 0", "judge.py:5: score() raised ZeroDivisionError: division by"),
    "an exit": ("exit(1)", "judge.py:5: score() raised SystemExit: 1"),
}


@pytest.mark.parametrize("wrong", WITHOUT_A_SCORE)
def test_a_score_that_is_none(wrong, home, capsys):
    """On one row, in the loop and in the queue: both name it, and keep the scores before it."""
    body, told = WITHOUT_A_SCORE[wrong]
    (home / "judge.py").write_text(THIRD.format(body))
    before = contents(home / "run" / "sft") | contents(home / "run" / "sample")
    line = refused(capsys, "loop", "--out", "run")
    assert line.startswith(f"error: {told}") and "(rank, response 3 of " in line, line
    assert "prompt " in line and line.endswith("the scores before it are kept")
    assert len(scores(home / "run")) == 2
    line = refused(capsys, "judge", "run", "--by", "judge.py:score")
    assert line.startswith(f"error: {told}") and "(judge, response 1 of 2, prompt " in line, line
    assert len(scores(home / "run" / "judge")) == 2, "a set is scored at a time"
    assert contents(home / "run" / "sft") | contents(home / "run" / "sample") == before


NOT_LOADED = {
    "no such file": (
        {},
        "gone.py:score",
        "{flag} gone.py:score: there is no file gone.py; check the path",
    ),
    "a misspelt function": (
        {"mine.py": RIGHT.replace("def score", "def scores")},
        "mine.py:score",
        "mine.py: has no function score; it defines scores; give mine.py:scores",
    ),
    "no function": (
        {"mine.py": "LIMIT = 3\n"},
        "mine.py:score",
        "it defines none; write def score(prompt, completion, finished)",
    ),
    "a syntax error": (
        {"mine.py": RIGHT.replace("finished):", "finished)")},
        "mine.py:score",
        "mine.py:6: is not Python: expected ':'; mend it and run the same command again",
    ),
    "a missing module": (
        {"mine.py": "import re\nimport nowhere_x\n" + RIGHT},
        "mine.py:score",
        "mine.py:2: loading the judge raised ModuleNotFoundError: No module named 'nowhere_x'; "
        "install that module, or put it beside the judge",
    ),
    "an exception at once": (
        {"mine.py": "LIMIT = 1 / 0\n" + RIGHT},
        "mine.py:score",
        "mine.py:1: loading the judge raised ZeroDivisionError: division by zero; mend it and run "
        "the same command again",
    ),
    "two arguments": (
        {"mine.py": "def score(prompt, completion):\n    return 1\n"},
        "mine.py:score",
        "mine.py:1: score(prompt, completion) cannot be called as score(prompt, completion, "
        "finished); give it these arguments",
    ),
    "async": (
        {"mine.py": "async def score(prompt, completion, finished):\n    return 1\n"},
        "mine.py:score",
        "mine.py:1: score() is async; make it a plain function",
    ),
    "a missing list of words": (
        {"mine.py": "FILES = ['words.txt']\n" + RIGHT},
        "mine.py:score",
        "mine.py: FILES names words.txt, and there is no file words.txt; put it there, or take it "
        "out of FILES",
    ),
    "no colon": (
        {"mine.py": RIGHT},
        "mine.py",
        "{flag} 'mine.py' names a file and no function; give mine.py:FUNCTION",
    ),
}


@pytest.mark.parametrize("wrong", NOT_LOADED)
def test_a_judge_that_cannot_be_loaded(wrong, home, capsys):
    """As the judge of a new run, of the evaluation, and of the queue: nothing is touched."""
    files, judge, told = NOT_LOADED[wrong]
    for name, text in files.items():
        (home / name).write_text(text)
    before = contents(home)
    for flag, words in (
        ("--inputs.judge", ["loop", *SMALL[:-1], "other", "--inputs.judge", judge, *TOO_MANY]),
        ("--evaluate.judge", ["loop", "--out", "run", "--evaluate.judge", judge]),
        ("--by", ["judge", "run", "--by", judge]),
    ):
        line = refused(capsys, *words)
        assert told.format(flag=flag) in line, (flag, line)
    assert contents(home) == before


MISPLACED = {
    "people compare": (
        [*BY_FILE, "--evaluate.judge", "human"],
        "--evaluate.judge human: people and models that compare give win rates, not scores; give ",
    ),
    "who ranks pairs compares": (
        [*BY_FILE, "--evaluate.judge", "llm"],
        "--evaluate.judge llm: people and models that compare give win rates, not scores; give ",
    ),
    "people are the reward": (
        ["--inputs.judge", "human", "--reward.source", "judge"],
        "--reward.source judge: --inputs.judge human compares completions and gives no scores; ",
    ),
    "the reward compares": (
        [*BY_FILE, "--reward.source", "judge"],
        "judge.py:score gives the reward, and may not be the only judge of what it trained; give "
        "--evaluate.judge another one: ",
    ),
    "the reward compares under another name": (
        [*BY_FILE, "--reward.source", "judge", "--evaluate.judge", "copy.py:score"],
        "--evaluate.judge copy.py:score gives the reward too, and may not be the only judge of "
        "what it trained; give another one: ",
    ),
    "the reward chooses the adapter": (
        "--inputs.judge judge.py:score --reward.source judge --evaluate.judge mine.py:score "
        "--watch.every 1 --watch.scorer judge.py:score".split(),
        "--watch.scorer judge.py:score: gives the reward, and would see nothing that the reward "
        "does not; give another one: ",
    ),
    "gold knows no prompts of the user's": (
        [*BY_FILE, "--evaluate.judge", "gold"],
        "--evaluate.judge gold: only the small world has known answers, and the prompts of this "
        "run are your own; name another judge",
    ),
}


@pytest.mark.parametrize("wrong", MISPLACED)
def test_a_judge_in_the_wrong_place(wrong, home, tiny_folder, capsys):
    words, told = MISPLACED[wrong]
    (home / "judge.py").write_text(RIGHT)
    (home / "copy.py").write_text(RIGHT)
    (home / "mine.py").write_text(RIGHT + "# another\n")
    line = refused(capsys, "loop", "--base", tiny_folder, *SMALL[:-1], "other", *words)
    assert told in line, line
    if told.endswith(": ") and "give" in told:
        assert "FILE.py:function" in line
    assert not (home / "other").exists()


def test_a_judge_that_is_right_ranks_rewards_and_compares(home, capsys):
    """The failed one mended: the loop goes on where it stopped, to the report; then the judge is
    changed between two sittings."""
    judge = home / "judge.py"
    assert len([line for line in RIGHT.splitlines() if line]) < 10
    judge.write_text(RIGHT)
    before = contents(home / "run" / "sft") | contents(home / "run" / "sample")
    assert cli.main(["loop", "--out", "run"]) == 0, capsys.readouterr().err
    assert contents(home / "run" / "sft") | contents(home / "run" / "sample") == before
    report = json.loads((home / "run" / "report.json").read_text())
    assert report["judge"].startswith("judge.py:score:")
    assert {"base", "sft", "ppo"} <= set(report["policies"])
    ledger = json.loads((home / "run" / "ledger.json").read_text())
    del ledger["evaluate"]
    (home / "run" / "ledger.json").write_text(json.dumps(ledger))
    judge.write_text(RIGHT.replace("0.9", "0.8"))
    given = scores(home / "run")
    capsys.readouterr()
    line = refused(capsys, "loop", "--out", "run")
    assert f"{judge}: was changed since the run in run began" in line
    assert "put it back, or begin a new run with another --out; --evaluate.judge may name" in line
    assert scores(home / "run") == given


def test_a_judge_that_is_right_is_the_reward(home, tiny_folder, capsys):
    (home / "judge.py").write_text(RIGHT)
    (home / "length.py").write_text(
        "def rate(prompt, completion, finished):\n    return min(len(completion), 40) / 40\n"
    )
    words = [*SMALL[:-1], "rewarded", *BY_FILE, "--reward.source", "judge"]
    words += ["--evaluate.judge", "length.py:rate", "--inputs.sft-adapter", "run/sft/adapter"]
    code = cli.main(["loop", "--base", str(tiny_folder), *words])
    assert code == 0, capsys.readouterr().err
    report = json.loads((home / "rewarded" / "report.json").read_text())
    assert report["reward_models"] == [] and report["judge"].startswith("length.py:rate:")
