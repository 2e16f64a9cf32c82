"""The seed tasks that ship with the package, one by one; and how a run finds them or a user's."""

# ruff: noqa: RUF001, RUF002 - the tasks use real signs for minus and times, and Chinese

import ast
import hashlib
import itertools
import json
import re
import sqlite3
import tomllib
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

from alpaca_rlhf.cli import main as cli
from alpaca_rlhf.core import runs
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.data import (
    NoveltyIndex,
    drop_reason,
    read_instructions,
    read_seeds,
    rule_set,
    seed_file,
)
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.settings.parsing import parse
from alpaca_rlhf.sources import source_of

ROOT = Path(__file__).parent.parent
FILE = ROOT / "data" / "seed_tasks.jsonl"
ROWS = [json.loads(line) for line in FILE.read_text("utf-8").splitlines()]
BY_ID = {row["id"]: row for row in ROWS}
COLUMNS = {
    "id": str,
    "instruction": str,
    "input": str,
    "output": str,
    "is_classification": bool,
    "language": str,
}
CHINESE = re.compile("[\u4e00-\u9fff]")
CODE = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)


# --- the file -------------------------------------------------------------------------------------


def test_there_are_enough_of_each_kind():
    languages = Counter(row["language"] for row in ROWS)
    assert set(languages) == {"en", "zh"}
    assert languages.total() >= 190 and languages["zh"] >= 50
    kinds = [row for row in ROWS if row["is_classification"]]
    assert len(kinds) >= 25 and {row["language"] for row in kinds} == {"en", "zh"}
    assert 0.4 < sum(bool(row["input"]) for row in ROWS) / len(ROWS) < 0.6
    assert sum("\n" in row["input"] for row in ROWS) >= 40
    headings = [row for row in ROWS if re.search(r"^#+ ", row["output"], re.MULTILINE)]
    assert len(headings) >= 4, "a heading is what cut Alpaca's rows in two"
    assert sum("\n|" in row["output"] for row in ROWS) >= 10, "tables"


@pytest.mark.parametrize("row", ROWS, ids=list(BY_ID))
def test_a_task_is_whole(row):
    assert {name: type(value) for name, value in row.items()} == COLUMNS
    assert row["id"].startswith(f"{row['language']}_")
    for name in ("instruction", "input", "output"):
        text = row[name]
        assert text == text.strip(), f"{name} has blanks around it"
        assert not re.search(r"[^\n\S ]|[\x00-\x09\x7f]", text.replace("\t", "").replace("　", ""))
        assert "�" not in text and "\r" not in text
    assert row["instruction"] and row["output"] and row["input"] != row["output"]
    whole = " ".join((row["instruction"], row["input"], row["output"]))
    assert not re.search(r"https?:|www\.|\.com\b", whole)
    assert not re.search(r"as an ai|language model|i (?:looked|searched) (?:it )?up", whole.lower())
    assert "noinput" not in whole.lower()
    if row["language"] == "zh":
        assert len(CHINESE.findall(row["instruction"])) >= 5, "a Chinese task is asked in Chinese"
        assert CHINESE.search(row["output"]) or not re.search("[a-z]", row["output"])
    else:
        assert not CHINESE.search(whole)


def test_the_readme_counts_them():
    counts = Counter(row["language"] for row in ROWS)
    kinds = sum(row["is_classification"] for row in ROWS)
    said = f"{counts['en']} in English and {counts['zh']} in Chinese, {kinds} of them"
    assert said in (FILE.parent / "README.md").read_text("utf-8")


def test_ids_are_unique():
    assert len(BY_ID) == len(ROWS)


@pytest.mark.parametrize(
    "row", [r for r in ROWS if r["is_classification"]], ids=lambda row: row["id"]
)
def test_a_classification_answers_with_a_label_that_was_asked_for(row):
    asked = row["instruction"].lower()
    labels = [re.split("[.。]", line)[0].lower() for line in row["output"].splitlines()]
    assert labels and all(label in asked for label in labels)
    assert all(len(label.split()) <= 3 for label in labels)


def test_classifications_have_many_sets_of_labels():
    answers = {row["output"] for row in ROWS if row["is_classification"]}
    assert len(answers) >= 25


# --- near-duplicates ------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", ["unicode", "rouge"])
def test_no_task_lies_near_another(tokenizer):
    index = NoveltyIndex(0.7, tokenizer)
    for row in ROWS:
        near = index.duplicate(row["instruction"])
        assert near is None, f"{row['id']} lies near {ROWS[near.row]['id']}: {near.score:.2f}"
        index.add(row["instruction"])


@pytest.mark.parametrize("tokenizer", ["unicode", "rouge"])
def test_no_task_lies_near_one_of_self_instruct(shared, tokenizer):
    theirs = read_instructions(shared / "data" / "self_instruct_seed_tasks_175.jsonl")
    index = NoveltyIndex(0.7, tokenizer)
    for one in theirs:
        index.add(one.instruction)
    for row in ROWS:
        near = index.duplicate(row["instruction"])
        assert near is None, f"{row['id']} lies near {theirs[near.row].instruction!r}"


def test_rouge_score_itself_finds_nothing_near(shared):
    scorers = pytest.importorskip("rouge_score.rouge_scorer", reason="needs rouge-score ([dev])")
    tokenize = pytest.importorskip("rouge_score.tokenize").tokenize
    theirs = read_instructions(shared / "data" / "self_instruct_seed_tasks_175.jsonl")
    seen = [tokenize(one.instruction, None) for one in theirs]
    for row in (row for row in ROWS if row["language"] == "en"):
        own = tokenize(row["instruction"], None)
        nearest = max(scorers._score_lcs(other, own).fmeasure for other in seen)
        assert nearest <= 0.7, row["id"]
        seen.append(own)


def test_no_prompt_of_the_evaluation_set_is_among_them(shared):
    path = shared / "data" / "selfinstruct_user_oriented_252.jsonl"
    index = NoveltyIndex(0.7)
    for row in ROWS:
        index.add(row["instruction"])
    for one in map(json.loads, path.read_text("utf-8").splitlines()):
        near = index.duplicate(one["instruction"])
        assert near is None, ROWS[near.row]["id"]


# --- answers that can be checked ------------------------------------------------------------------

HAS = {
    "en_train_meeting": [str(54 / (16 + 20)), "10:45", "24 km"],
    "en_discount_order": ["54 pounds", "56 pounds", "2 pounds less"],
    "en_mean_median": [f"**{(620 + 640 + 655 + 700 + 2385) // 5}**", "**655**"],
    "en_probability_socks": [str(Fraction(6 * 5 + 4 * 3, 90)), "46.7%"],
    "en_compound_interest": [f"{2000 * 1.03**3:.2f}", f"{2000 * 1.03**3 - 2180:.2f}"],
    "en_binary_convert": [f"{202:b}", f"{202:X}"],
    "en_area_garden": [f"{12 * 7.5 - 3.14 * 4 - 15:.2f}", "66 m²"],
    "en_units_fuel": [f"{3.785 / (30 * 1.609) * 100:.2f}"],
    "en_sequence_next": [str(54 * 3), str(6 * 6), str(11 + 18)],
    "en_race_pace": ["5 min 15 s", "21 min 0 s"],
    "en_recipe_scaling": ["750 g", "2.5 l", "1.25"],
    "en_plan_language": [f"{4 * 6 * 25} minutes", "ten hours"],
    "en_budget_gap": ["1,834", "1,934", "**84 more**"],
    "en_puzzle_clock": ["**11 times", "65 minutes and 27 seconds"],
    "zh_chicken_rabbit": ["鸡12只", "兔8只"],
    "zh_discount_compare": [f"{480 * 0.75:.0f}", f"{600 - 180}", "450"],
    "zh_word_problem_tank": ["5/12", "2小时24分钟"],
    "zh_age_problem": ["6（年）", "42 ÷ 14 = 3"],
    "zh_circle_area": [f"{3.14 * 0.75**2:.5f}", "1.77"],
    "zh_survey_percent": [f"{84 / 200:.0%}", f"{84 - 56}人"],
}


@pytest.mark.parametrize("name", HAS)
def test_results_are_right(name):
    for result in HAS[name]:
        assert result in BY_ID[name]["output"]


def sums(text: str) -> list[list[str]]:
    """The sides of each chain such as `2 × 3 + 1/2 = 6.5`; one with letters in it is left out."""
    found = []
    plain = re.sub(r" = [\d.]+%", "", CODE.sub("", text).replace("*", ""))
    for run in re.findall(r"[\d.,()+−×÷/= ]+", plain):
        sides = [
            balanced(side.strip(" .,"))
            for side in re.sub(r"(?<=\d),(?=\d{3}\b)", "", run).split("=")
        ]
        part = r"\(*\d+(?:\.\d+)?(?:/\d+)?\)*"
        if len(sides) > 1 and all(re.fullmatch(f"{part}(?: [+−×÷] {part})*", one) for one in sides):
            found.append(sides)
    return found


def balanced(side: str) -> str:
    return side if side.count("(") == side.count(")") else side.strip("()")


def value(expression: str) -> float:
    whole = re.sub(r"\d+/\d+", r"(\g<0>)", expression)
    return eval(whole.translate(str.maketrans("−×÷", "-*/")))


def test_every_sum_that_is_written_out_adds_up():
    written = [(row["id"], sides) for row in ROWS for sides in sums(row["output"])]
    assert len(written) >= 40
    for name, sides in written:
        for other in sides[1:]:
            assert value(other) == pytest.approx(value(sides[0]), abs=1e-9), (name, sides)


def blocks(language: str) -> list[tuple[str, str]]:
    return [
        (r["id"], code)
        for r in ROWS
        for kind, code in CODE.findall(r["output"])
        if kind == language
    ]


@pytest.mark.parametrize(("name", "code"), blocks("python"))
def test_python_compiles(name, code):
    ast.parse(code)


def test_json_outputs_are_json():
    order = json.loads(BY_ID["en_json_from_text"]["output"])
    assert [one["quantity"] for one in order["items"]] == [3, 12, 2]
    assert order["deliver_on"] == "2024-03-05"
    assert list(json.loads(BY_ID["zh_json_schedule"]["output"])) == ["周一", "周二", "周三"]


def ran(name: str) -> dict:
    """The names that the Python of a task defines."""
    names: dict = {}
    for kind, code in CODE.findall(BY_ID[name]["output"]):
        if kind == "python":
            exec(compile(code, name, "exec"), names)
    return names


def test_python_does_what_its_task_asks():
    assert ran("en_py_wordcount")["top_words"]("b, B! a-a c", 2) == [("a", 2), ("b", 2)]
    roman = ran("en_py_roman")["to_roman"]
    assert [roman(n) for n in (4, 49, 1994, 3999)] == ["IV", "XLIX", "MCMXCIV", "MMMCMXCIX"]
    with pytest.raises(ValueError, match="4000"):
        roman(4000)
    add = ran("en_py_bug_default")["add_guest"]
    assert (add("Ada"), add("Bert")) == (["Ada"], ["Bert"])
    twice = ran("en_big_o")["has_duplicate"]
    assert twice([3, 1, 3]) and not twice([3, 1, 2])
    assert ran("en_variable_names")["total_above"]([{"p": 3}, {"p": 9}, {"p": 5}], 4) == 14
    mirrored = ran("zh_py_palindrome")["is_palindrome"]
    assert mirrored("上海自来水来自海上。") and mirrored("Abba!") and not mirrored("你好")
    average = ran("zh_py_fix_average")["average"]
    assert average([]) is None and average([1, 2]) == 1.5


def test_sql_answers_its_question():
    queries = dict(blocks("sql"))
    db = sqlite3.connect(":memory:")
    db.executescript(
        """
        create table customers(id, name, city);
        create table orders(id, customer_id, total, ordered_on);
        insert into customers values (1, 'A', 'Lyon'), (2, 'B', 'Lyon'), (3, 'C', 'Paris'),
                                     (4, 'D', 'Lyon');
        insert into orders values (1, 1, 300, '2023-01-01'), (2, 1, 300, '2023-12-31'),
                                  (3, 2, 900, '2024-01-01'), (4, 3, 999, '2023-05-05'),
                                  (5, 4, 500, '2023-05-05'), (6, 4, 200, '2023-05-06');
        create table students(id, name, class);
        create table scores(student_id, subject, score);
        insert into students values (1, 'a', '1'), (2, 'b', '1'), (3, 'c', '2');
        insert into scores values (1, '数学', 90), (2, '数学', 80), (3, '数学', 80),
                                  (3, '英语', 100);
        """
    )
    assert db.execute(queries["en_sql_orders"]).fetchall() == [("D", 700), ("A", 600)]
    assert db.execute(queries["zh_sql_scores"]).fetchall() == [("1", 85.0)]


def test_the_pattern_for_times():
    ((_, pattern),) = CODE.findall(BY_ID["en_regex_time"]["output"])
    times = {f"{hour:02}:{minute:02}" for hour in range(24) for minute in range(60)}
    tried = {f"{hour:02}:{minute:02}" for hour in range(100) for minute in range(100)}
    assert {one for one in tried if re.match(pattern.strip(), one)} == times


def test_what_was_asked_in_numbers_is_kept():
    words = {name: len(re.findall(r"[\w'’–-]+", BY_ID[name]["output"])) for name in BY_ID}
    assert words["en_shorten_12"] <= 12 and words["en_summary_one_line"] <= 20
    assert words["en_lost_cat"] < 60 and words["en_vaccines_memory"] < 120
    assert words["en_email_subject"] <= 8
    assert len(BY_ID["zh_neighbour_dog"]["output"]) <= 80
    assert len(BY_ID["zh_story_umbrella"]["output"]) < 200
    for line in BY_ID["zh_headline_three"]["output"].splitlines():
        assert len(line.partition(". ")[2]) <= 15
    for line in BY_ID["en_six_words"]["output"].splitlines():
        assert len(line.split()[1:]) == 6
    ladder = BY_ID["en_word_ladder"]["output"].split()
    for one, other in itertools.pairwise(ladder):
        assert sum(a != b for a, b in zip(one, other, strict=True)) == 1
    left, right, _ = (one[3:] for one in BY_ID["zh_couplet"]["output"].splitlines())
    assert len(left) == len(right) == 7


# --- how a run finds them -------------------------------------------------------------------------


def test_the_words_and_a_path():
    assert seed_file(Path("shipped")) == FILE == seed_file(Path("shipped-zh"))
    assert seed_file(Path("my/shipped")) == Path("my/shipped")
    every, english, chinese = (read_seeds(Path(f"shipped{one}")) for one in ("", "-en", "-zh"))
    assert [row.output for row in every] == [row["output"] for row in ROWS]
    assert [row.id for row in every] == [row.id for row in english + chinese]
    assert all(CHINESE.search(row.instruction) for row in chinese)
    assert not any(CHINESE.search(row.instruction) for row in english)


def test_they_are_found_in_an_installed_package(tmp_path, monkeypatch):
    shipping = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    wheel = shipping["targets"]["wheel"]
    assert "data" in wheel["only-include"] and wheel["sources"]["data"] == "alpaca_rlhf/_data"
    package = tmp_path / "alpaca_rlhf"
    (package / "_data").mkdir(parents=True)
    (package / "_data" / FILE.name).write_bytes(FILE.read_bytes())
    monkeypatch.setattr(runs, "__file__", str(package / "core" / "runs.py"))
    assert seed_file(Path("shipped")) == package / "_data" / FILE.name
    assert len(read_seeds(Path("shipped"))) == len(ROWS)


def test_a_users_file_in_either_form(tmp_path):
    alpaca = tmp_path / "alpaca.json"
    alpaca.write_text(json.dumps([{"instruction": "Say hi.", "input": "", "output": "Hi!"}]))
    assert [row.output for row in read_seeds(alpaca)] == ["Hi!"]
    instances = [{"input": "3", "output": "odd"}, {"input": "4", "output": "even"}]
    row = {"id": "seed_task_0", "instruction": "Odd or even?", "instances": instances}
    own = tmp_path / "self_instruct.jsonl"
    own.write_text(json.dumps({**row, "is_classification": True}) + "\n")
    assert [(one.input, one.output) for one in read_seeds(own)] == [("3", "odd"), ("4", "even")]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"instruction": "Say hi.", "output": " "}, "seeds.jsonl:2: the output is empty"),
        ({"instruction": "Say hi.", "instances": []}, "seeds.jsonl:2: column `instances`"),
        ({"instruction": "", "output": "Hi!"}, "seeds.jsonl:2: the instruction is empty"),
    ],
)
def test_a_broken_row_is_named(tmp_path, row, said):
    path = tmp_path / "seeds.jsonl"
    path.write_text(f"{json.dumps({'instruction': 'a', 'output': 'b'})}\n{json.dumps(row)}\n")
    with pytest.raises(UserError) as error:
        read_seeds(path)
    assert said in str(error.value)


def flags(tmp_path: Path, seeds: str) -> list[str]:
    prompts = tmp_path / "prompts.jsonl"
    words = "ant bee cat dog eel fox gnu hen ibis jay kite lark mole newt owl pug".split()
    asks = [f"{a} {b} {c}" for a in words for b in words for c in words[:2] if a < b]
    prompts.write_text("".join(json.dumps({"instruction": one}) + "\n" for one in asks))
    given = ["--inputs.judge", "human", "--inputs.seeds", seeds, "--inputs.prompts", str(prompts)]
    given += ["--rank.prompts", "6", "--ppo.batch-size", "6", "--ppo.minibatch-size", "6"]
    given += ["--best-of-k.prompts", "6", "--evaluate.prompts", "6"]
    return [*given, "--out", str(tmp_path / "run")]


@pytest.mark.parametrize("word", ["shipped", "shipped-zh"])
def test_a_run_takes_them_whole(tmp_path, word):
    """Though some would not pass the filters: Alpaca's drop everything that is Chinese."""
    settings = parse(Loop, flags(tmp_path, word), prog="test", description="")
    own = source_of(settings).seeds()
    assert any(drop_reason(row, rule_set("alpaca")) for row in own)
    assert own == read_seeds(Path(word))


def test_a_run_notes_which_file_it_read(tmp_path, tiny_folder):
    small = ["--generate.batch-size", "1", "--generate.max-requests", "1"]
    small += ["--generate.max-new-tokens", "2", "--base", str(tiny_folder)]
    assert cli.main(["generate", *flags(tmp_path, "shipped"), *small]) != 1
    noted = json.loads((tmp_path / "run" / "provenance.json").read_text())["inputs"]["seeds"]
    assert noted == {"path": str(FILE), "sha256": hashlib.sha256(FILE.read_bytes()).hexdigest()}
