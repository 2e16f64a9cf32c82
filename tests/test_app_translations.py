"""The app's texts: complete in both languages, used, and one Chinese word for one thing."""

import ast
import json
import re
from pathlib import Path
from typing import get_args, get_type_hints

import jinja2
import pytest

from alpaca_rlhf.app import rendering
from alpaca_rlhf.app.board.requests import CRITERIA
from alpaca_rlhf.app.chat_tab import PRESETS
from alpaca_rlhf.app.handing_out import TASKS
from alpaca_rlhf.app.jobs import Problem
from alpaca_rlhf.app.language import LANGUAGES, label, translations
from alpaca_rlhf.app.new_run import JUDGES, NUMBERS, FieldProblem
from alpaca_rlhf.app.training import Activity, Closed, Refusal
from alpaca_rlhf.app.training_view import CURVES, Ending, StageStatus
from alpaca_rlhf.app.worker import ModelPhase
from alpaca_rlhf.pipeline import STAGES
from alpaca_rlhf.preferences.battles import VOTES
from alpaca_rlhf.preferences.browsing import STATES, Statement
from alpaca_rlhf.sources.screening import REASONS, SPLITS

APP = Path(rendering.__file__).parent
TABS = sorted(path.stem for path in (APP / "translations").glob("*.json"))
BANNED = {"令牌": "词元", "代币": "词元", "您": "你", "提问模板": "提示模板", "盲测": "盲评"}
"""Chinese words that would be a second word for a thing, and the one to use."""

BUILT_KEYS = {
    "chat": [f"model.{phase}" for phase in get_args(ModelPhase)]
    + [f"problem.{problem}" for problem in get_args(Problem) if problem]
    + [f"purpose.{purpose}" for purpose in ("chat", "compare", "make", "sample")]
    + [f"status.{status}" for status in ("loading", "stopped", "done", "cut", "nothing")]
    + [f"refused.{split}" for split in ("ppo", "eval", "sft")]
    + [f"system.none.{template}" for template in ("brief", "alpaca")]
    + [f"thumb.{word}" for word in ("up", "down", "none", "ppo", "eval", "sft")]
    + ["chats.gone", "chats.unnamed", "chats.none"]
    + [f"preset.{name}" for name in PRESETS],
    "compare": [f"{kind}.{vote}" for kind in ("vote", "votes") for vote in VOTES],
    "data": [f"curve.{verdict}" for verdict in ("helps", "levelled", "unclear")]
    + [f"done.{action}" for action in ("resolve", "retire", "leave_out")]
    + [f"remark.{kind}" for kind in ("comment", "skip")]
    + [f"role.{role}" for role in ("admin", "annotator", "judge")]
    + [f"user.{action}" for action in ("off", "on", "admin", "annotator")]
    + [f"user.{action}" for action in ("leave_out", "take_in")]
    + ["set.take_in"]
    + [f"browse.state.{state}" for state in STATES]
    + [f"browse.is.{key}" for key in ("left_out", "retired", "gold")]
    + [f"browse.n.{key}" for key in ("judged", "comments", "flags", "skips")]
    + [f"browse.kind.{kind}" for kind in get_args(get_type_hints(Statement)["kind"])]
    + [f"browse.task.{kind}" for kind in ("gold", "repeat")]
    + [f"browse.criterion.{criterion}" for criterion in CRITERIA]
    + [f"handing.tasks.{tasks}" for tasks in TASKS]
    + [f"upload.reason.{reason}" for reason in REASONS]
    + [f"upload.reason.{near}.{split}" for near in ("same", "near") for split in SPLITS],
    "train": [f"activity.{activity}" for activity in get_args(Activity) if activity != "idle"]
    + [f"closed.{reason}" for reason in get_args(Closed)]
    + [f"ending.{ending}" for ending in get_args(Ending)]
    + [f"refused.{refusal}" for refusal in get_args(Refusal)]
    + [f"stage.{stage}" for stage in STAGES]
    + [f"new.closed.{reason}" for reason in get_args(Closed)]
    + [f"new.refused.{problem}" for problem in get_args(FieldProblem)]
    + [f"new.judge.{judge}" for judge in JUDGES]
    + [f"new.{number}" for number in NUMBERS]
    + [f"status.{status}" for status in get_args(StageStatus)]
    + [f"{title}.note" for charts in CURVES.values() for title, _ in charts],
    "shell": [],
}
"""Keys that the code puts together; all others stand in it as they are."""


def placeholders(text):
    return sorted(re.findall(r"\{(\w+)\}", text))


def source():
    """Everything that names a key: Python without docstrings, templates and scripts."""
    texts = []
    for path in APP.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(f'"{node.value}"')
    for pattern in ("*.html", "*.js"):
        texts += [path.read_text(encoding="utf-8") for path in APP.rglob(pattern)]
    return "\n".join(texts)


@pytest.mark.parametrize("tab", TABS)
def test_both_languages_say_everything_with_the_same_placeholders(tab):
    table = json.loads((APP / "translations" / f"{tab}.json").read_text(encoding="utf-8"))
    for key, by_language in table.items():
        assert tuple(by_language) == LANGUAGES, key
        assert all(text.strip() for text in by_language.values()), key
        english, chinese = by_language.values()
        assert placeholders(english) == placeholders(chinese), key


@pytest.mark.parametrize("tab", TABS)
def test_chinese_has_one_word_for_one_thing(tab):
    for key, text in translations(tab, "zh-CN").items():
        for banned, right in BANNED.items():
            assert banned not in text, f"{tab}.{key}: {right}"


@pytest.mark.parametrize("tab", sorted(BUILT_KEYS))
def test_every_text_is_used(tab):
    known, code = set(translations(tab, "en")), source()
    assert set(BUILT_KEYS[tab]) <= known
    assert {key for key in known - set(BUILT_KEYS[tab]) if f'"{key}"' not in code} == set()


def test_a_label_without_a_text_is_an_error():
    with pytest.raises(KeyError):
        label("chat", "no such text")


@pytest.mark.parametrize("template", sorted(path.name for path in APP.glob("templates/*.html")))
def test_every_key_in_a_template_is_there(template):
    keys = re.findall(r'text\["([\w.]+)"\]', (APP / "templates" / template).read_text("utf-8"))
    known = set().union(*(translations(tab, "en") for tab in TABS))
    assert set(keys) <= known


def test_a_template_escapes_and_refuses_a_missing_value():
    hostile = "<script>alert(1)</script> ${1} {{ 1 }}"
    page = rendering.render("compare_answer", title="A", answer=hostile)
    assert "<script>" not in page and "${1} {{ 1 }}" in page
    with pytest.raises(jinja2.UndefinedError):
        rendering.render("compare_answer", title="A")


def test_a_script_of_texts_cannot_end_early():
    texts = {"en": {"key": "</script>"}}
    head = rendering.render("page_head", texts=texts, prefix="</script>", run_token="", script="")
    assert head.count("</script>") == 1
