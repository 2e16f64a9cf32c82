"""Judges as functions: the grammar, loading, what a score may be, and the log of scores."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alpaca_rlhf.cli import main as cli
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.judges import Judge, JudgeFailure, Response, ScoreLog, Scores, load_function
from alpaca_rlhf.settings import Evaluate, Inputs
from alpaca_rlhf.settings.judge_names import GRAMMAR, parse_judge

PROMPTS = [Instruction(f"Name {number} animals.", source="test") for number in range(4)]
RESPONSES = [Response(prompt, f"{prompt.instruction} Cat!", True) for prompt in PROMPTS]


# --- the grammar ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "place", "function"),
    [
        ("human", "human", "", ""),
        ("people", "human", "", ""),
        ("llm", "llm", "", ""),
        ("gold", "gold", "", ""),
        ("checks", "checks", "", ""),
        ("reward:runs/a/reward/adapter", "reward", "runs/a/reward/adapter", ""),
        ("judge.py:score", "function", "judge.py", "score"),
        ("../my judges/a:b.py:score", "function", "../my judges/a:b.py", "score"),
        ("package.module:score", "function", "package.module", "score"),
        ("module:Judge.score", "function", "module", "Judge.score"),
    ],
)
def test_every_form_of_the_grammar(text, kind, place, function):
    name = parse_judge(text)
    assert (name.kind, name.place, name.function) == (kind, place, function)
    assert name.is_scorer == (kind not in ("human", "llm"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Gold", "'Gold' names no judge"),
        ("", "'' names no judge"),
        ("judge.py", "give judge.py:FUNCTION"),
        ("judge.py:", "'judge.py:' names no judge"),
        ("judge.py:my score", "names no judge"),
        ("dir/module:score", "names no judge"),
        ("reward", "give reward:FOLDER"),
        ("reward:", "give reward:FOLDER"),
        ("http://127.0.0.1:8000/v1", "names no judge"),
    ],
)
def test_what_is_no_judge_is_refused_with_the_grammar(text, told):
    with pytest.raises(ValueError, match=r"--inputs\.judge") as refusal:
        Inputs(judge=text)
    assert told in str(refusal.value)
    assert GRAMMAR in str(refusal.value) or "FUNCTION" in told
    assert "\n" not in str(refusal.value)


def test_people_are_human_everywhere(tmp_path):
    rows = tmp_path / "rows.jsonl"
    assert Inputs(data=rows, judge="people") == Inputs(data=rows, judge="human")


@pytest.mark.parametrize(
    ("inputs", "origin"),
    [
        ({}, "small world"),
        ({"judge": "judge.py:score"}, "small world"),
        ({"judge": "checks"}, "checks"),
        ({"judge": "judge.py:score", "data": "d", "prompts": "p"}, "files"),
        ({"judge": "checks", "data": "d"}, "checks"),
        ({"judge": "checks", "data": "d", "prompts": "p"}, "files"),
        ({"judge": "human", "data": "d"}, "files"),
    ],
)
def test_where_the_prompts_come_from(inputs, origin, tmp_path):
    paths = {name: tmp_path / value for name, value in inputs.items() if name != "judge"}
    assert (
        Inputs(**paths, **{k: v for k, v in inputs.items() if k == "judge"}).prompts_from == origin
    )


def test_prompts_without_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match="needs rows to train on"):
        Inputs(judge="judge.py:score", prompts=tmp_path / "p")


@pytest.mark.parametrize("judge", ["human", "people", "llm"])
def test_who_compares_gives_no_scores_to_the_evaluation(judge):
    with pytest.raises(ValueError, match=r"--evaluate\.judge .* give win rates, not scores"):
        Evaluate(judge=judge)
    with pytest.raises(ValueError, match=r"--evaluate\.judge 'x' names no judge"):
        Evaluate(judge="x")


def typed(capsys, *words):
    code = cli.main([str(word) for word in words])
    said = capsys.readouterr()
    return code, (said.out + said.err).strip()


def test_a_flag_and_a_file_are_refused_at_their_place(tmp_path, capsys):
    code, said = typed(capsys, "loop", "--inputs.judge", "judge.py", "--out", tmp_path / "run")
    assert code == 2 and "--inputs.judge 'judge.py' names a file" in said
    config = tmp_path / "mine.yaml"
    config.write_text("inputs:\n  judge: goald\n")
    code, said = typed(capsys, "loop", "--config", config, "--out", tmp_path / "run")
    assert code == 2 and f"{config}:2: " in said and GRAMMAR in said
    assert not (tmp_path / "run").exists()


# --- loading --------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Write a file of a user's, and load a function of it."""
    monkeypatch.chdir(tmp_path)

    def load(text, function="score", file="judge.py"):
        (tmp_path / file).write_text(text)
        name = parse_judge(f"{file}:{function}")
        loaded = load_function(name, "--inputs.judge")
        log = ScoreLog(tmp_path / "judge_scores.jsonl")
        return Judge(name, loaded, loaded.digest, loaded.files, log)

    return load


PLAIN = """def score(prompt, completion, finished):
    return 1.0 if completion.endswith("!") and finished else 0.25
"""


def test_a_plain_function_is_a_judge(written):
    judge = written(PLAIN)
    unfinished = RESPONSES[0]._replace(finished=False)
    scores = judge.scores([*RESPONSES, unfinished], stage="rank")
    assert [rating.score for rating in scores] == [1.0] * 4 + [0.25]
    assert judge.annotator == f"judge:judge.py:score:{judge.digest[:8]}"


@pytest.mark.parametrize(
    "text",
    [
        "class Rater:\n    def score(self, prompt, completion, finished):\n        return 0.5\n",
        "class Rater:\n    batched = True\n    def score_batch(self, responses):\n"
        "        return [0.5 for response in responses]\n",
        "from alpaca_rlhf.judges import batched\n@batched\ndef Rater(responses):\n"
        "    return [0.5 if each.prompt.instruction else 0 for each in responses]\n",
        "from alpaca_rlhf.judges import Scores\ndef Rater(prompt, completion, finished):\n"
        "    return Scores(0.5, {'polite': 1})\n",
        "import functools\ndef rate(low, prompt, completion, finished):\n    return low\n"
        "Rater = functools.partial(rate, 0.5)\n",
    ],
)
def test_other_shapes_of_a_judge(written, text):
    scores = written(text, "Rater").scores(RESPONSES, stage="rank")
    assert [rating.score for rating in scores] == [0.5] * 4


def test_a_batched_judge_gets_as_many_as_it_asks_for(written):
    judge = written(
        "from alpaca_rlhf.judges import batched\n@batched(size=3)\ndef score(responses):\n"
        "    return [len(responses) / 10 for _ in responses]\n"
    )
    scores = judge.scores(RESPONSES, stage="rank")
    assert [rating.score for rating in scores] == [0.3, 0.3, 0.3, 0.1]


def test_a_module_is_found_beside_the_user(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_package_x").mkdir()
    (tmp_path / "my_package_x" / "__init__.py").write_text("")
    (tmp_path / "my_package_x" / "rules.py").write_text(PLAIN)
    function = load_function(parse_judge("my_package_x.rules:score"), "--by")
    assert function([RESPONSES[0]]) == 1.0 and len(function.files) == 1


def test_a_package_that_fails_on_the_way_to_its_module_gives_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, text, told in (
        ("broken_x", "import math\nmath.sqrt(-1)\n", "broken_x/__init__.py:2: loading the judge"),
        ("unmet_x", "import nowhere_x\n", "unmet_x/__init__.py:1: loading the judge raised Module"),
        ("torn_x", "x = (\n", "torn_x/__init__.py:1: is not Python"),
        ("whole_x", "", "--by whole_x.rules:score: there is no module whole_x.rules"),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text(text)
        if folder != "whole_x":
            (tmp_path / folder / "rules.py").write_text(PLAIN)
        with pytest.raises(UserError) as refusal:
            load_function(parse_judge(f"{folder}.rules:score"), "--by")
        assert told in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_judge_imports_what_lies_beside_it(written, tmp_path):
    (tmp_path / "words_beside_x.py").write_text("GOOD = 'Cat'\n")
    judge = written(
        "from words_beside_x import GOOD\ndef score(prompt, completion, finished):\n"
        "    return GOOD in completion\n"
    )
    assert judge.scores(RESPONSES[:1], stage="rank")[0].score == 1.0


WRONG_FILES = {
    "no such function": (
        "def sore(prompt, completion, finished):\n    return 1\n",
        "judge.py: has no function score; it defines sore",
    ),
    "nothing in it": ("import math\n", "judge.py: has no function score; it defines none"),
    "no function": ("score = 0.5\n", "judge.py: score is float, not a function"),
    "no Python": ("x = 1\ndef score(prompt:\n", "judge.py:2: is not Python"),
    "not even text": ("x = '\0'\n", "judge.py:"),
    "a missing package": ("\nimport nowhere_x\n", "judge.py:2: loading the judge raised Module"),
    "raises at once": ("x = 1 / 0\n", "judge.py:1: loading the judge raised ZeroDivisionError"),
    "exits": ("import sys\nsys.exit('bye')\n", "judge.py:2: loading the judge raised SystemExit"),
    "too few arguments": (
        "\ndef score(prompt, completion):\n    return 1\n",
        "judge.py:2: score(prompt, completion) cannot be called as score(prompt, completion, fin",
    ),
    "swapped": (
        "\ndef score(completion, prompt, finished):\n    return 1\n",
        "judge.py:2: score(completion, prompt, finished) is called as score(prompt, completion, ",
    ),
    "swapped, by other names": (
        "class Rater:\n    def score(self, answer, question, done):\n        return 1\n"
        "score = Rater()\n",
        "judge.py:2: score(answer, question, done) is called as score(prompt, completion, ",
    ),
    "is cancelled": (
        "import asyncio\nraise asyncio.CancelledError\n",
        "judge.py:2: loading the judge raised CancelledError",
    ),
    "a class that exits": (
        "class score:\n    def __init__(self):\n        raise SystemExit\n",
        "judge.py: score() raised SystemExit",
    ),
    "async": (
        "async def score(prompt, completion, finished):\n    return 1\n",
        "judge.py:1: score() is async; make it a plain function",
    ),
    "generator": (
        "def score(prompt, completion, finished):\n    yield 1\n",
        "judge.py:1: score() is a generator",
    ),
    "files": (
        "FILES = 'words.txt'\n" + PLAIN,
        "judge.py: FILES must be a list of file names, got 'words.txt'",
    ),
    "a missing file": (
        "FILES = ['words.txt']\n" + PLAIN,
        "judge.py: FILES names words.txt, and there is no file words.txt",
    ),
    "a class that wants more": (
        "class score:\n    def __init__(self, x):\n        self.x = x\n",
        "judge.py: score() raised TypeError",
    ),
    "a batch of none": (
        "def score(responses):\n    return []\nscore.batched, score.batch_size = True, 0\n",
        "judge.py: the batch size must be a whole number above 0, got 0",
    ),
}


@pytest.mark.parametrize("wrong", WRONG_FILES)
def test_a_file_that_is_no_judge_gives_one_line(written, wrong):
    text, told = WRONG_FILES[wrong]
    with pytest.raises(UserError) as refusal:
        written(text)
    assert told in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("gone.py:score", "--by gone.py:score: there is no file gone.py"),
        ("nowhere_x.module:score", "--by nowhere_x.module:score: there is no module"),
        ("json.nowhere_x:score", "there is no module json.nowhere_x"),
        ("json:score", "json: has no function score"),
    ],
)
def test_a_judge_that_is_not_there(name, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refusal:
        load_function(parse_judge(name), "--by")
    assert told.removeprefix("json: ") in str(refusal.value)


# --- scores ---------------------------------------------------------------------------------------

BODY = """def score(prompt, completion, finished):
    if '2' in completion:
        {}
    return 1
"""
IMPORTED = "from alpaca_rlhf.judges import Scores; "
WRONG_SCORES = {
    "return float('nan')": "judge.py:1: score() returned NaN",
    "return float('inf')": "judge.py:1: score() returned inf",
    "return -0.01": "judge.py:1: score() returned -0.01; return a number in [0, 1]",
    "return 1.5": "judge.py:1: score() returned 1.5",
    "return": "judge.py:1: score() returned None; return a number in [0, 1] on every path",
    "return '0.5'": "judge.py:1: score() returned '0.5' (str)",
    "return [1]": "judge.py:1: score() returned [1] (list)",
    "return 2 ** 1024": "judge.py:1: score() returned 17976931348623159077",
    "return 10 ** 5000": "judge.py:1: score() returned ? (int); return a number in [0, 1]",
    "return -(2 ** 1024)": "(int); return a number in [0, 1] (evaluate, ",
    IMPORTED + "return Scores(2 ** 1024)": "returned Scores whose score is 179769313486231590",
    IMPORTED + "return Scores(1, {'a': 2 ** 1024})": "whose part 'a' is 17976931348623159077",
    "return 1j": "judge.py:1: score() returned 1j (complex)",
    "return {'score': 1}": "judge.py:1: score() returned {'score': 1} (dict)",
    "return (lambda: (yield))()": "judge.py:1: score() returned a generator",
    "import asyncio; return asyncio.sleep(0)": "judge.py:1: score() returned a coroutine",
    "raise KeyError('x')": "judge.py:3: score() raised KeyError: 'x'",
    "raise SystemExit": "judge.py:3: score() raised SystemExit",
    "import asyncio; raise asyncio.CancelledError": "judge.py:3: score() raised CancelledError",
    "raise type('Mine', (BaseException,), {})": "judge.py:3: score() raised Mine",
    "prompt.lower()": "no attribute 'lower'; its text is prompt.instruction (evaluate, ",
    "'a' in prompt": "; its text is prompt.instruction (evaluate, ",
    "prompt.text": "no attribute 'text'; its text is prompt.instruction (evaluate, ",
    "import json; json.loads('{')": "judge.py:3: score() raised JSONDecodeError",
    "raise ValueError('two\\nlines')": "judge.py:3: score() raised ValueError: two lines",
    IMPORTED + "return Scores(2)": "returned Scores whose score is 2",
    IMPORTED + "return Scores(1, {'a': None})": "whose part 'a' is None",
    IMPORTED + "return Scores(1, {3: 1})": "a part named 3 (int)",
    IMPORTED + "return Scores(1, [1])": "whose parts are [1] (list)",
    IMPORTED + "return Scores(1, {'a': 1})": "parts a, before it none",
}


@pytest.mark.parametrize("wrong", WRONG_SCORES)
def test_what_is_no_score_gives_one_line(written, wrong):
    judge = written(BODY.format(wrong))
    with pytest.raises(JudgeFailure) as refusal:
        judge.scores(RESPONSES, stage="evaluate")
    line = str(refusal.value)
    assert WRONG_SCORES[wrong] in line and "\n" not in line
    assert f"(evaluate, response 3 of 4, prompt {PROMPTS[2].id})" in line
    kept = (judge.log._path).read_text().splitlines()
    assert len(kept) == 2, "the scores before it are kept"


def test_a_number_of_another_kind_is_a_number(written):
    judge = written(
        "import numpy as np\ndef score(prompt, completion, finished):\n"
        "    return {'0': True, '1': 0, '2': np.float32(0.5), '3': np.int64(1)}[completion[5]]\n"
    )
    assert [rating.score for rating in judge.scores(RESPONSES, stage="rank")] == [1, 0, 0.5, 1]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (
            "return [1, 1]",
            "judge.py:2: score() returned 2 scores for 4 responses (rank, response 1",
        ),
        ("return 0.5", "score() returned float; return a list, a score for each response"),
        ("return [1, 1, 2, 1]", "returned 2; return a number in [0, 1] (rank, response 3 of 4"),
        ("return [1 / 0]", "judge.py:4: score() raised ZeroDivisionError: division by zero"),
        (
            "return (1 / (i - 2) ** 2 for i, _ in enumerate(responses))",
            "judge.py:4: score() raised ZeroDivisionError: division by zero (rank, response 3 of 4",
        ),
        (
            "return map(lambda response: response.missing, responses)",
            "judge.py:4: score() raised AttributeError: 'Response' object has no attribute "
            "'missing'; its texts are response.prompt.instruction and response.completion (rank, "
            "response 1 of 4",
        ),
        (
            "return (len(3) for _ in responses)",
            "judge.py:4: score() raised TypeError: object of type 'int' has no len() (rank, ",
        ),
        ("return (exit(1) for _ in responses)", "judge.py:4: score() raised SystemExit: 1 (rank, "),
        ("return (1 for _ in range(10**6))", "returned more than 4 scores for 4 responses"),
        ("return [1] * 9", "returned 9 scores for 4 responses"),
        ("return [2 ** 1024] * 4", "returned 17976931348623159077"),
        (
            "return {0.1, 0.2, 0.3, 0.4}",
            "judge.py:2: score() returned set, which tells no order of scores; return a list",
        ),
        (
            "return {each.completion: 1 for each in responses}",
            "judge.py:2: score() returned dict, which tells no order of scores; return a list",
        ),
        ("return dict.fromkeys([0.0, 0.1, 0.2, 1.0]).keys()", "score() returned dict_keys, which"),
        ("return bytes([1, 0, 1, 0])", "judge.py:2: score() returned bytes; return a list"),
        (
            "responses.sort(key=lambda each: each.completion, reverse=True); return [1, 1, 1, 0]",
            "judge.py:2: score() changed the list that it was given, whose order tells which "
            "score is whose; sort a copy: sorted(responses, ...) (rank, response 1 of 4",
        ),
        ("responses.pop(); return [1] * 4", "score() changed the list that it was given"),
        ("import asyncio; raise asyncio.CancelledError", "judge.py:4: score() raised Cancelled"),
    ],
)
def test_a_batch_that_goes_wrong_gives_one_line(written, body, told):
    text = f"from alpaca_rlhf.judges import batched\n@batched\ndef score(responses):\n    {body}\n"
    with pytest.raises(JudgeFailure) as refusal:
        written(text).scores(RESPONSES, stage="rank")
    assert told in str(refusal.value)


def test_a_batched_judge_may_return_its_scores_one_by_one(written):
    text = (
        "from alpaca_rlhf.judges import batched\n@batched\ndef score(responses):\n    return {}\n"
    )
    for body in ("(0.5 for _ in responses)", "map(lambda _: 0.5, responses)", "(0.5,) * 4"):
        judge = written(text.format(body), file=f"judge{len(body)}.py")
        assert [rating.score for rating in judge.scores(RESPONSES, stage="rank")] == [0.5] * 4


# --- the process around a judge ------------------------------------------------------------------

CHANGES = """import locale, os, random, signal, sys
{first}
def score(prompt, completion, finished):
    {then}
    print("noise")
    return 0.5
"""
CHANGED = {
    "folder": "os.chdir('/')",
    "environment": "os.environ['A_JUDGE_X'] = '1'; os.environ.pop('PATH', 0)",
    "Ctrl-C": "signal.signal(signal.SIGINT, signal.SIG_IGN)",
    "SIGTERM": "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
    "gradients": "import torch; torch.set_grad_enabled(False)",
    "dtype": "import torch; torch.set_default_dtype(torch.float64)",
    "device": "import torch; torch.set_default_device('meta')",
    "threads": "import torch; torch.set_num_threads(torch.get_num_threads() + 1)",
    "precision": "import torch; torch.set_float32_matmul_precision('medium')",
}


def process_now():
    """All of the process that a judge may change."""
    torch = sys.modules["torch"]
    return {
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "Ctrl-C": signal.getsignal(signal.SIGINT),
        "SIGTERM": signal.getsignal(signal.SIGTERM),
        "gradients": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "precision": torch.get_float32_matmul_precision(),
    }


def test_a_judge_finds_torch_as_it_left_it(written):
    """What it switches as it is loaded holds whenever it scores, and nowhere else."""
    torch = pytest.importorskip("torch")
    judge = written(
        "import torch\ntorch.set_default_dtype(torch.float64)\n"
        "def score(prompt, completion, finished):\n"
        "    return 1.0 if torch.zeros(1).dtype == torch.float64 else 0.0\n"
    )
    for stage in ("rank", "evaluate"):
        assert {scores.score for scores in judge.scores(RESPONSES, stage=stage)} == {1.0}
        assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("when", ["loading", "scoring", "failing"])
@pytest.mark.parametrize("what", CHANGED)
def test_a_judge_changes_nothing_of_the_process(written, capsys, what, when):
    pytest.importorskip("torch")
    before = process_now()
    if when == "loading":
        text = CHANGES.format(first=CHANGED[what], then="pass")
    else:
        fault = "; raise ValueError" if when == "failing" else ""
        text = CHANGES.format(first="", then=CHANGED[what] + fault)
    judge = written(text)
    if when == "failing":
        with pytest.raises(JudgeFailure, match=r"judge\.py:4: score"):
            judge.scores(RESPONSES, stage="rank")
    else:
        assert len(judge.scores(RESPONSES, stage="rank")) == 4
        assert capsys.readouterr().out == "", "what it prints is not the program's output"
    assert process_now() == before


def test_a_judge_keeps_its_own_folder_and_variables(written, tmp_path):
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "words.txt").write_text("0.75")
    judge = written(
        "import os\nos.chdir('beside')\nos.environ['A_JUDGE_X'] = '1'\n"
        "def score(prompt, completion, finished):\n"
        "    return float(open('words.txt').read()) * float(os.environ['A_JUDGE_X'])\n"
    )
    assert judge.scores(RESPONSES[:1], stage="rank")[0].score == 0.75
    assert Path.cwd() == tmp_path and "A_JUDGE_X" not in os.environ


def test_ctrl_c_in_a_judge_is_ctrl_c(written):
    judge = written(BODY.format("raise KeyboardInterrupt"))
    with pytest.raises(KeyboardInterrupt):
        judge.scores(RESPONSES, stage="rank")
    with pytest.raises(KeyboardInterrupt):
        written("raise KeyboardInterrupt\n")


# --- the log --------------------------------------------------------------------------------------

COUNTED = """import random
CALLS = []
def score(prompt, completion, finished):
    CALLS.append(completion)
    return random.random()
"""


def calls_of(judge):
    return judge.source.call.__globals__["CALLS"]


def test_a_score_is_given_once_and_read_back(written, tmp_path):
    random.seed(1)
    first = written(COUNTED).scores([*RESPONSES, *RESPONSES], stage="rank")
    assert first[:4] == first[4:] and len({rating.score for rating in first}) == 4
    random.seed(2)
    again = written(COUNTED)
    assert again.scores(RESPONSES, stage="ppo") == first[:4] and not calls_of(again)
    cut = RESPONSES[0]._replace(finished=False)
    again.scores([cut, Response(PROMPTS[1], RESPONSES[0].completion, True)], stage="ppo")
    assert len(calls_of(again)) == 2, "cut off, or of another prompt, it is another response"
    changed = written(COUNTED + "# another judge\n")
    changed.scores(RESPONSES, stage="rank")
    assert len(calls_of(changed)) == 4


def test_a_torn_line_is_scored_again(written, tmp_path):
    log = tmp_path / "judge_scores.jsonl"
    first = written(COUNTED).scores(RESPONSES, stage="rank")
    log.write_bytes(log.read_bytes()[:-5])
    again = written(COUNTED)
    assert again.scores(RESPONSES, stage="rank")[:3] == first[:3] and len(calls_of(again)) == 1
    assert len(log.read_text().splitlines()) == 4
    log.write_text(log.read_text().replace('"score"', '"scor"', 1))
    with pytest.raises(UserError, match=r"judge_scores\.jsonl:1: is not a judge's score"):
        written(COUNTED).scores(RESPONSES, stage="rank")


KILLED = """import sys
from pathlib import Path
from alpaca_rlhf.judges import Instruction, Judge, Response, ScoreLog, load_function
from alpaca_rlhf.settings.judge_names import parse_judge

name = parse_judge("judge.py:score")
function = load_function(name, "--by")
judge = Judge(name, function, function.digest, function.files, ScoreLog(Path("judge_scores.jsonl")))
prompt = Instruction("Say something.", source="test")
judge.scores([Response(prompt, str(number), True) for number in range(400)], stage="rank")
"""


def test_a_random_judge_killed_in_the_middle_goes_on(written, tmp_path):
    """With SIGKILL: the scores before it are read back, the others are given once."""
    slow = COUNTED.replace("    CALLS", "    time.sleep(0.005)\n    CALLS")
    (tmp_path / "judge.py").write_text("import time\n" + slow)
    log = tmp_path / "judge_scores.jsonl"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    child = subprocess.Popen([sys.executable, "-c", KILLED], cwd=tmp_path, env=environment)
    while not log.exists() or log.read_bytes().count(b"\n") < 30:
        assert child.poll() is None
        time.sleep(0.005)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    before = log.read_text().splitlines()[: log.read_bytes().count(b"\n")]
    assert len(before) < 400
    judge = written("import time\n" + slow)
    prompt = Instruction("Say something.", source="test")
    responses = [Response(prompt, str(number), True) for number in range(60)]
    scores = judge.scores(responses, stage="rank")
    given = [json.loads(line)["score"] for line in before]
    both = min(60, len(given))
    assert [rating.score for rating in scores[:both]] == given[:both]
    assert len(calls_of(judge)) == 60 - both
    assert log.read_text().splitlines()[: len(before)] == before


def test_the_digest_is_that_of_the_module_and_its_files(written, tmp_path):
    (tmp_path / "words.txt").write_text("cat")
    text = "FILES = ['words.txt']\n" + PLAIN
    first = written(text).digest
    assert written(text).digest == first
    (tmp_path / "words.txt").write_text("dog")
    second = written(text).digest
    assert second != first != written(PLAIN).digest != second
    assert written(text, file="moved.py").digest == second, "a name is no content"


MANY = """import functools
def rate(low, prompt, completion, finished):
    return low
def score(prompt, completion, finished):
    return 1.0
def other(prompt, completion, finished):
    return 0.5
def bounded(limit):
    def bound(prompt, completion, finished):
        return limit
    return bound
class Rater:
    def __init__(self, low=0.5):
        self.low = low
    def score(self, prompt, completion, finished):
        return self.low
alias, Alias, wrapped = score, Rater, functools.partial(score)
strict, lenient, severe = bounded(0.1), bounded(0.9), bounded(0.1)
half, full, mid = functools.partial(rate, 0.5), functools.partial(rate, 1.0), Rater(0.25)
"""


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("score", "alias", True),
        ("score", "wrapped", True),
        ("Rater", "Alias", True),
        ("strict", "severe", True),
        ("score", "other", False),
        ("strict", "lenient", False),
        ("half", "full", False),
        ("Rater", "mid", False),
    ],
)
def test_a_judge_is_known_by_its_code_not_by_its_name(written, first, second, same):
    module = f"many_{first}_{second}_x"
    judges = [written(MANY, name, f"{module}.py").source for name in (first, second)]
    assert judges[0].same_code(judges[1]) == judges[1].same_code(judges[0]) == same
    text = f"from {module} import {first} as moved\n"
    imported = written(text, "moved", "importing.py").source
    assert judges[0].same_code(imported), "also where another file imports it"


def test_one_code_that_reads_other_files_is_another_judge(written, tmp_path):
    text = """FILES = ["words.txt"]
def score(prompt, completion, finished):
    return 0.5
"""
    judges = []
    for folder, words in (("a", "yes"), ("b", "no"), ("c", "yes")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "words.txt").write_text(words)
        judges.append(written(text, "score", f"{folder}/rates.py").source)
    assert not judges[0].same_code(judges[1])
    assert judges[0].same_code(judges[2])


def test_what_cannot_be_compared_is_another_judge(written):
    """Arrays have no truth value, and a function may hold itself or a variable without a value."""
    text = """import torch
class Rater:
    def __init__(self):
        self.table = torch.arange(3)
    def score(self, prompt, completion, finished):
        return 0.5
Alias = Rater
def made(filled):
    def recursive(prompt, completion, finished, depth=0):
        return recursive(prompt, completion, finished, 1) if not depth else 0.5
    def empty(prompt, completion, finished):
        return later
    if filled:
        later = 0.5
    return recursive, empty
recursive, empty = made(False)
again, full = made(True)
"""
    for first, second in (("Rater", "Alias"), ("recursive", "again"), ("empty", "full")):
        one, another = (written(text, name, "kinds.py").source for name in (first, second))
        assert not one.same_code(another)


def test_parts_survive_the_log(written):
    text = (
        "from alpaca_rlhf.judges import Scores\ndef score(prompt, completion, finished):\n"
        "    return Scores(0.5, {'polite': 0.1, 'short': True})\n"
    )
    first = written(text).scores(RESPONSES, stage="rank")
    assert first[0] == Scores(0.5, {"polite": 0.1, "short": 1.0})
    assert written(text).scores(RESPONSES, stage="rank") == first


# --- at the terminal ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("judge", "told"),
    [
        ("gone.py:score", "--inputs.judge gone.py:score: there is no file gone.py"),
        ("broken.py:score", "broken.py:2: is not Python: "),
        ("plain.py:sore", "plain.py: has no function sore; it defines score"),
        ("nowhere_x:score", "there is no module nowhere_x"),
        ("reward:runs", "--inputs.judge reward:runs: holds no reward model"),
        ("goald", "--inputs.judge 'goald' names no judge"),
    ],
)
def test_a_wrong_judge_is_one_line_before_anything_is_loaded(
    judge, told, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("import re\ndef score(prompt, completion, finished)\n")
    (tmp_path / "plain.py").write_text(PLAIN)
    monkeypatch.setattr("alpaca_rlhf.stages.context.load_base", None)
    code, said = typed(capsys, "quickstart", "--inputs.judge", judge, "--out", "run")
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and told in errors[0] and "Traceback" not in said
    assert not (tmp_path / "run").exists()
