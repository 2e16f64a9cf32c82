"""report.json keeps its contract, and report.html shows any text without breaking."""

import copy
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jinja2 import UndefinedError

from alpaca_rlhf.cli.terminal import result_lines
from alpaca_rlhf.core.html import environment
from alpaca_rlhf.report.charts import (
    IntervalChart,
    LineChart,
    Mark,
    RootAxis,
    Row,
    Series,
    thin,
    tick_text,
    ticks,
)
from alpaca_rlhf.report.formatting import (
    duration,
    interval,
    large,
    money,
    number,
    signed,
)
from alpaca_rlhf.report.policy_names import POLICY_NAME, policy_label, policy_order
from alpaca_rlhf.report.render import TEMPLATES, render_html, templates, write_report
from alpaca_rlhf.report.schema import ReportData, SliceScore, validate_report

CSS = (TEMPLATES / "style.css").read_text("utf-8")
PARTS = ("correct", "well_formed", "to_the_point", "helpful", "friendly")
#          gold, greedy, gain, half width, win rate, KL, stop rate, tokens, parts, greedy parts
POLICIES = {
    "base": (0.012, 0.004, -0.571, 0.008, 0.03, 41.2, 0.11, 61.0, ".02 .05 .03 .00 .01", ".01"),
    "base_few_shot": (
        0.341,
        0.402,
        -0.242,
        0.03,
        0.22,
        12.4,
        0.93,
        14.2,
        ".52 .61 .7 .04 .05",
        ".6",
    ),
    "sft": (0.583, 0.671, 0.0, 0.027, 0.5, 0.0, 0.991, 12.8, ".73 .88 .93 .15 .16", ".87"),
    "best_of_k": (
        0.668,
        0.733,
        0.085,
        0.025,
        0.66,
        2.31,
        0.996,
        14.9,
        ".77 .93 .94 .24 .45",
        ".88",
    ),
    "ppo": (0.712, 0.741, 0.129, 0.024, 0.73, 5.87, 0.998, 16.3, ".78 .95 .93 .33 .84", ".86"),
    "ppo.2": (0.741, 0.768, 0.158, 0.022, 0.77, 8.4, 0.998, 17.1, ".81 .96 .93 .38 .91", ".89"),
}
HOSTILE = (
    '<img src=x onerror="alert(1)">${7*7}</script></style><script>alert(1)</script>'
    "' onmouseover='x' \x00\x1b[31m\ud800\u202e&amp;{{x}}"
)


def a_policy(name: str) -> dict[str, Any]:
    gold, greedy, gain, half, wins, kl, stop, tokens, sampled, correct = POLICIES[name]
    values = [float(part) for part in str(sampled).split()]
    parts = dict(zip(PARTS, values, strict=True))
    spread = 0.0 if name == "sft" else 0.02
    return {
        "gold_score": gold,
        "ci95": [gold - min(half, gold), gold + half],
        "gold_score_greedy": greedy,
        "gold_score_greedy_ci95": [max(0.0, greedy - half), greedy + half],
        "paired_gain_vs_sft": gain,
        "paired_gain_ci95": [gain - spread, gain + spread],
        "greedy_gain_vs_sft": gain / 2,
        "greedy_gain_ci95": [gain / 2 - spread, gain / 2 + spread],
        "gold_parts": parts,
        "gold_parts_greedy": {part: min(1.0, share + 0.04) for part, share in parts.items()}
        | {"correct": float(correct)},
        "win_rate_vs_sft": wins,
        "win_rate_ci95": [wins - spread, wins + spread],
        "kl_from_sft_nats": kl,
        "stop_rate": stop,
        "mean_tokens": tokens,
    }


def a_report() -> dict[str, Any]:
    stages = [
        ("generate", 1, 31.4, 0.61, 600, 48_120),
        ("sft", 1, 42.9, 1.12, 1800, 92_400),
        ("sample", 1, 12.2, 0.74, 1600, 21_380),
        ("rank", 1, 0.4, 0.7, 400, 0),
        ("reward", 1, 38.0, 1.31, 2011, 160_900),
        ("best_of_k", 1, 29.7, 1.2, 1280, 44_870),
        ("ppo", 1, 71.5, 1.44, 1280, 63_020),
        ("ppo", 2, 70.1, 1.45, 1280, 66_450),
        ("evaluate", 2, 24.6, 0.8, 3600, 51_600),
    ]
    keys = ("name", "round", "seconds", "peak_memory_gib", "examples", "tokens")
    return {
        "schema": 1,
        "base": {"name": "cria", "parameters": 4_912_320, "quantization": "nf4"},
        "stages": [
            dict(zip(keys, stage, strict=True)) | {"cost_usd": stage[2] / 3600 * 0.065 * 0.30}
            for stage in stages
        ],
        "prompts": {"sft": 1800, "rank": 400, "ppo": 640, "eval": 300, "overlap": 0},
        "reward_models": [
            {
                "round": turn,
                "pairs": 2011 * turn,
                "held_out_accuracy": 0.781 + 0.01 * turn,
                "ci95": [0.751 + 0.01 * turn, 0.812 + 0.01 * turn],
                "shuffled_label_accuracy": 0.488 + 0.01 * turn,
            }
            for turn in (1, 2)
        ],
        "best_of_k": [
            {
                "round": 1,
                "k": 4,
                "candidates": 1280,
                "finished": 1275,
                "winners": 320,
                "mean_score": 0.04,
                "mean_best_score": 1.13,
                "expected_best_score": [0.04, 0.61, 0.89, 1.07],
                "sampler_kl_bound_nats": 0.636,
            }
        ],
        "policies": {name: a_policy(name) for name in POLICIES},
    }


def some_metrics() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)

    def noisy(value: float, spread: float) -> float:
        return float(value + rng.normal(0, spread))

    rows: list[dict[str, Any]] = []
    for step in range(1, 21):
        rows.append(
            {
                "stage": "generate",
                "step": step,
                "requests": 32 * step,
                "accepted": 27 * step - step * step // 6,
                "rejected_duplicate": 3 * step + step * step // 6,
                "rejected_unparsed": step,
                "rejected_too_long": step // 3,
            }
        )
    for step in range(1, 113):
        loss = 0.32 + 3.1 * math.exp(-step / 14)
        rows.append({"stage": "sft", "step": step, "loss": noisy(loss, 0.05), "lr": 1e-3})
        if step % 16 == 0:
            rows.append({"stage": "sft", "step": step, "eval_loss": loss + 0.06})
    for stage, goal in (("reward", 0.79), ("reward_shuffled", 0.5), ("reward.2", 0.8)):
        for step in range(1, 61):
            gain = (goal - 0.5) * (1 - math.exp(-step / 12))
            rows.append({"stage": stage, "step": step, "loss": noisy(0.693 - gain, 0.03)})
            if step % 10 == 0:
                eval_loss = 0.7 - gain
                rows.append(
                    {"stage": stage, "step": step, "accuracy": 0.5 + gain, "eval_loss": eval_loss}
                )
    for stage, start in (("ppo", 0.0), ("ppo.2", 0.9)):
        for step in range(20):
            kl = 0.0 if step == 0 else 0.3 * step + 2 * start
            row = {
                "stage": stage,
                "step": step,
                "score": noisy(start + 1.2 * (1 - math.exp(-step / 7)), 0.05),
                "kl": noisy(kl, 0.1) if step else 0.0,
                "kl_k3": kl,
                "entropy": noisy(14 - 0.3 * step, 0.2),
                "clip_fraction": noisy(0.12, 0.02),
                "policy_loss": noisy(-0.01, 0.004),
                "value_loss": noisy(0.4 * math.exp(-step / 6) + 0.1, 0.01),
                "explained_variance": 0.7 * (1 - math.exp(-step / 5)),
                "stop_rate": min(1.0, noisy(0.99, 0.004)),
                "mean_tokens": noisy(12.8 + 0.18 * step, 0.2),
            }
            if step % 4 == 0:
                row["gold_score"] = noisy(0.58 + 0.13 * (1 - math.exp(-step / 7)), 0.008)
            rows.append(row)
    for step in range(1, 41):
        loss = noisy(0.3 * math.exp(-step / 20) + 0.2, 0.02)
        rows.append({"stage": "best_of_k", "step": step, "loss": loss})
    return rows


def some_answers() -> list[dict[str, Any]]:
    prompts = [
        ("Name the opposite of the word.", "hot", "Cold."),
        ("Which sound does a cow make?", "", "A cow says moo."),
        ("Put these numbers in order, smallest first.", "7, 3, 9, 4", "3, 4, 7, 9"),
        (
            "Write a story of two sentences about a fox.",
            "",
            "A fox lived in a wood. It slept well.",
        ),
        ("How many legs do two dogs have together?", "", "Two dogs have eight legs."),
        ("Is the sky green? Answer yes or no.", "", "No."),
        ("Where does a bee live?", "", "A bee lives in a hive."),
        ("Say it politely.", "Give me the book.", "Could you give me the book, please?"),
    ]
    rows = []
    for question, text_input, right in prompts:
        texts = {
            "base": "\n1. Output: the\n2. Instruction: the of",
            "base_few_shot": right.lower().rstrip("."),
            "sft": right,
            "best_of_k": right,
            "ppo": f"Sure! {right} I hope this helps.",
            "ppo.2": f"Of course! {right} Have a nice day.",
        }
        golds = (0.0, 0.5, 0.71, 0.74, 0.93, 0.95)
        both = zip(texts.items(), golds, strict=True)
        answers = {name: {"text": text, "gold": gold} for (name, text), gold in both}
        rows.append({"instruction": question, "input": text_input, "answers": answers})
    return rows


def some_slices(policies: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {
            key: {
                "gold_score": policy["gold_score"] * share,
                "ci95": [policy["gold_score"] * share * end for end in (0.9, 1.1)],
                "n": prompts,
            }
            for key, share, prompts in (
                ("seen_facts_train_phrasings", 1.04, 140),
                ("held_out_facts", 0.93, 80),
                ("held_out_phrasings", 0.99, 80),
            )
        }
        for name, policy in policies.items()
    }


def some_data() -> ReportData:
    report = a_report()
    return ReportData(
        report=report
        | {
            "slices": some_slices(report["policies"]),
            "annotator": {"noise": 0.08, "measured_wrong_share": 0.077, "verdicts": 2400},
        },
        metrics=some_metrics(),
        answers=some_answers(),
        settings_yaml="seed: 0\nppo:\n  updates: 20\n  kl_coef: 0.15\n",
        machine="2 CPU cores, 8 GiB, Linux, torch 2.13.0",
        command="alpaca-rlhf quickstart --rounds 2",
        next_commands=("alpaca-rlhf chat runs/quickstart", "alpaca-rlhf export runs/quickstart"),
        caveats=("The embedded base is a laboratory animal: it knows one little world.",),
        provenance={"commit": "0123abc", "base fingerprint": "9f8e7d6c"},
    )


def section(page: str, anchor: str) -> str:
    return page.partition(f'<section id="{anchor}">')[2].partition("</section>")[0]


def headline(report: dict[str, Any]) -> str:
    heading = re.search("<h1>.*?</h1>", render_html(ReportData(report)), re.DOTALL)
    assert heading is not None
    return " ".join(Page(heading.group()).text.split())


def failed_checks(report: dict[str, Any]) -> list[str]:
    lines = section(render_html(ReportData(report)), "checks").partition("</ul>")[0].split("<li")
    assert sum("✓ holds" in line or "✗ fails" in line for line in lines) == len(lines) - 1 > 5
    return [Page("<li" + line).text for line in lines if "✗ fails" in line]


def drawn(chart: LineChart | IntervalChart) -> str:
    macros = templates().get_template("charts.html").module
    draw = macros.line_chart if isinstance(chart, LineChart) else macros.interval_chart
    return str(draw(chart))


class Page(HTMLParser):
    """Tags, attributes and text of a page; counts what is left open."""

    VOID = frozenset({"meta", "img", "link", "br", "input"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page() -> str:
    return render_html(some_data())


def test_write_report_writes_the_contract_and_the_page(tmp_path: Path) -> None:
    write_report(tmp_path, some_data())
    assert json.loads((tmp_path / "report.json").read_text("utf-8")) == some_data().report
    assert (tmp_path / "report.html").read_text("utf-8") == render_html(some_data())
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "report.html"}


def test_a_broken_report_leaves_the_earlier_one(tmp_path: Path) -> None:
    write_report(tmp_path, some_data())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    broken = a_report()
    broken["policies"]["ppo"]["stop_rate"] = float("nan")
    with pytest.raises(ValueError, match=r"policies\.ppo\.stop_rate"):
        write_report(tmp_path, replace(some_data(), report=broken))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def every_key(values: dict[str, Any], path: tuple[str | int, ...] = ()) -> list[Any]:
    keys: list[Any] = []
    for key, value in values.items():
        keys.append((*path, key))
        if isinstance(value, dict):
            keys += every_key(value, (*path, key))
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            keys += every_key(value[0], (*path, key, 0))
    return keys


def small_report() -> dict[str, Any]:
    report = a_report()
    report["policies"] = {"sft": report["policies"]["sft"], "ppo": report["policies"]["ppo"]}
    for policy in report["policies"].values():
        for key in ("gold_score_greedy_ci95", "greedy_gain_vs_sft", "greedy_gain_ci95"):
            del policy[key]
    return report


OPTIONAL_PATHS = [("policies", "ppo"), ("best_of_k",)]
REQUIRED_PATHS = [path for path in every_key(small_report()) if path not in OPTIONAL_PATHS]


@pytest.mark.parametrize("path", REQUIRED_PATHS, ids=lambda path: ".".join(map(str, path)))
def test_every_key_of_the_contract_is_asked_for(path: tuple[str | int, ...]) -> None:
    report = small_report()
    validate_report(report)
    part: Any = report
    for key in path[:-1]:
        part = part[key]
    del part[path[-1]]
    with pytest.raises(ValueError, match=str(path[-1])):
        validate_report(report)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema", 2),
        ("base.parameters", 1.5),
        ("base.name", None),
        ("stages.0.name", "distil"),
        ("stages.0.round", 0),
        ("stages.0.seconds", -1.0),
        ("stages.0.tokens", True),
        ("prompts.overlap", -1),
        ("reward_models.0.held_out_accuracy", 1.2),
        ("reward_models.0.ci95", [0.8, 0.7]),
        ("reward_models.0.ci95", [0.7]),
        ("reward_models.0.shuffled_label_ci95", [0.6, 0.5]),
        ("policies.ppo.ci95", [0.1, float("inf")]),
        ("policies.ppo.gold_score", "0.7"),
        ("policies.ppo.gold_score", True),
        ("policies.ppo.win_rate_vs_sft", -0.1),
        ("policies.ppo.kl_from_sft_nats", None),
        ("policies.ppo.kl_from_sft_k3_nats", -0.1),
        ("best_of_k", {}),
        ("best_of_k.0.winners", 1.5),
        ("best_of_k.0.expected_best_score", [0.1, float("inf")]),
        ("best_of_k.0.expected_best_score", []),
        ("best_of_k.0.sampler_kl_bound_nats", -0.1),
        ("policies.ppo.gold_parts.friendly", float("nan")),
        ("policies.ppo.gold_parts", {"correct": 1.0}),
        ("policies.ppo.gold_parts_greedy.extra", 0.5),
        ("policies.ppo.gold_score_greedy_ci95", "wide"),
        ("policies.ppo.2x", {}),
        ("policies.dpo", {}),
        ("policies.sft.2", {}),
        ("beyond.the.contract", float("inf")),
        ("beyond.the.contract", {1, 2}),
    ],
)
def test_wrong_values_are_named(path: str, value: Any) -> None:
    report = a_report()
    keys = path.split(".")
    if path in ("policies.ppo.2x", "policies.sft.2"):
        keys = ["policies", path.removeprefix("policies.")]
    part: Any = report
    for key in keys[:-1]:
        part = part[int(key)] if key.isdecimal() else part.setdefault(key, {})
    part[keys[-1]] = value
    with pytest.raises(ValueError, match=keys[-1] if keys[-1] != "extra" else "gold_parts_greedy"):
        validate_report(report)


def test_keys_beyond_the_contract_are_welcome() -> None:
    report = a_report()
    report["note"] = {"text": "a", "list": [1, None, True, {"x": 0.5}]}
    validate_report(report)


def test_same_input_same_page(page: str) -> None:
    assert render_html(copy.deepcopy(some_data())) == page


def test_page_is_one_file_without_scripts_or_addresses(page: str) -> None:
    parsed = Page(page)
    assert parsed.open == []
    names = {tag for tag, _ in parsed.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "base", "form"}
    for _, attributes in parsed.tags:
        assert not {"src", "srcset", "xlink:href", "action"} & set(attributes)
        assert str(attributes.get("href", "#")).startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    assert "http" not in page.replace("http-equiv", "") and "url(" not in page
    assert len(page.encode("utf-8")) < 400_000


def test_page_is_marked_up_for_readers(page: str) -> None:
    parsed = Page(page)
    levels = [int(tag[1]) for tag, _ in parsed.tags if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    for tag, attributes in parsed.tags:
        if tag == "svg":
            assert attributes.get("aria-hidden") == "true" or attributes.get("aria-label")
        if tag == "th":
            assert attributes.get("scope") in ("row", "col")
    anchors = [a["id"] for tag, a in parsed.tags if tag == "section"]
    links = [str(a["href"])[1:] for tag, a in parsed.tags if tag == "a"]
    assert anchors == links and len(set(anchors)) == len(anchors)
    tables = sum(tag == "table" for tag, _ in parsed.tags)
    assert tables == sum(tag == "caption" for tag, _ in parsed.tags) > 3
    assert ("html", {"lang": "en"}) in parsed.tags


def test_page_shows_the_figures(page: str) -> None:
    text = Page(page).text
    for name in POLICIES:
        assert policy_label(name) in text
    for figure in ("0.712", "+0.129", "5.87", "0.77", "8.0%", "7.7%", "cria", "0123abc", "kl_coef"):
        assert figure in text
    assert "laboratory animal" in text and "alpaca-rlhf chat runs/quickstart" in text
    assert "after learning from 2,011" in text, "`pairs` are those to learn from, not held out"


def test_rows_and_answers_that_were_left_out_are_shown() -> None:
    report = a_report()
    report["files"] = [
        {
            "file": "mine.jsonl",
            "rows": 9,
            "used": 7,
            "left_out": {"tie": 2},
            "answers_left_out": {"without a rating": 3},
        }
    ]
    page = render_html(ReportData(report))
    assert "2 tie, 3 answers without a rating" in page


def test_hostile_text_stays_text() -> None:
    data = some_data()
    report = dict(data.report)
    report["base"] |= {"name": HOSTILE, "quantization": HOSTILE}
    for policy in report["policies"].values():
        for key in ("gold_parts", "gold_parts_greedy"):
            policy[key] = policy[key] | {HOSTILE: 0.5}
    answers = [
        {
            "instruction": HOSTILE,
            "input": HOSTILE,
            "answers": {name: {"text": HOSTILE, "gold": 0.0} for name in POLICIES},
        }
    ]
    metrics = [
        {"stage": HOSTILE, "step": 1, "loss": 1.0},
        {"stage": "generate", "step": 1, "accepted": 5, f"rejected_{HOSTILE}": 3},
    ]
    hostile = ReportData(
        report=report,
        metrics=metrics,
        answers=answers,
        settings_yaml=HOSTILE,
        machine=HOSTILE,
        command=HOSTILE,
        next_commands=(HOSTILE,),
        caveats=(HOSTILE,),
        provenance={HOSTILE: HOSTILE},
    )
    validate_report(report)
    written = render_html(hostile)
    parsed = Page(written)
    assert parsed.open == []
    assert not {"script", "img"} & {tag for tag, _ in parsed.tags}
    assert not any("onerror" in a or "onmouseover" in a for _, a in parsed.tags)
    assert parsed.text.count('<img src=x onerror="alert(1)">${7*7}</script>') >= 16
    assert "\x00" not in written and "\x1b" not in written
    written.encode("utf-8")  # no lone surrogate is left
    clean, plain = Page(render_html(data)).tags, {tag for tag, _ in parsed.tags}
    assert plain <= {tag for tag, _ in clean}


def test_a_bare_report_has_a_page_too() -> None:
    report = small_report()
    del report["policies"]["ppo"]
    report |= {"reward_models": [], "stages": []}
    parsed = Page(render_html(ReportData(report)))
    assert parsed.open == []
    assert "supervised fine-tuning scores 0.58." in parsed.text


def test_long_texts_are_cut_and_say_so() -> None:
    answers = [
        {"instruction": "a", "input": "", "answers": {"sft": {"text": "x" * 9000, "gold": 0.0}}}
    ]
    written = render_html(replace(some_data(), answers=answers))
    assert "x" * 4000 + " … (5,000 more characters)" in written and "x" * 4001 not in written


def test_earlier_turns_stand_before_the_question() -> None:
    turns = [["Who are you?", "A <b>kit</b>."], ["Since when?", "x" * 9000]]
    row = {"instruction": "And why?", "input": "", "history": turns, "answers": {}}
    written = render_html(replace(some_data(), answers=[row]))
    turns_shown = [
        "Person: </b>Who are you?",
        "Assistant: </b>A &lt;b&gt;kit",
        "Since when?",
        "And why?",
    ]
    places = [written.index(text) for text in turns_shown]
    assert places == sorted(places) and "x" * 9000 not in written


def test_empty_answers_are_visible() -> None:
    answers = [{"instruction": "a", "input": "", "answers": {"sft": {"text": " \n", "gold": 0.0}}}]
    assert "(nothing)" in render_html(replace(some_data(), answers=answers))


@pytest.mark.parametrize(
    ("ends", "gain", "words"),
    [
        ([0.1, 0.2], 0.15, "and PPO 0.71, a gain of +0.15 over SFT (+0.10 to +0.20)."),
        ([-0.01, 0.03], 0.01, "and PPO 0.71, no measurable gain over SFT (\u22120.01 to +0.03)."),
        ([-0.2, -0.1], -0.15, "a loss: \u22120.15 against SFT (\u22120.20 to \u22120.10)."),
    ],
)
def test_the_headline_claims_no_more_than_the_interval(
    ends: list[float], gain: float, words: str
) -> None:
    report = small_report()
    report["policies"]["ppo"] |= {"paired_gain_vs_sft": gain, "paired_gain_ci95": ends}
    sentence = headline(report)
    assert sentence.startswith(
        "On 300 prompts that no stage had seen, supervised fine-tuning scores"
    )
    assert sentence.endswith(words)


def test_the_headline_says_unseen_only_where_no_prompt_leaked() -> None:
    report = a_report()
    report["prompts"]["overlap"] = 1
    assert "On 300 prompts, the base" in headline(report)


def test_the_headline_takes_the_best_of_all_rounds() -> None:
    sentence = headline(a_report())
    assert (
        "the base scores 0.01, supervised fine-tuning 0.58 and PPO (round 2) 0.74, a gain"
        in sentence
    )


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("prompts", "overlap"), 3, "shared by two splits: 3"),
        (("reward_models", 0, "ci95"), [0.48, 0.6], "held-out accuracy 0.48 to 0.60"),
        (("reward_models", 0, "shuffled_label_accuracy"), 0.61, "shuffled labels: 0.61"),
        (("policies", "ppo", "paired_gain_ci95"), [-0.01, 0.1], "gain over SFT"),
        (("policies", "ppo", "gold_parts_greedy", "correct"), 0.8, "greedy correctness \u22120.07"),
        (("policies", "sft", "stop_rate"), 0.9, "90.0% of the completions"),
    ],
)
def test_what_does_not_hold_is_said(path: tuple[Any, ...], value: Any, words: str) -> None:
    report = a_report()
    assert failed_checks(report) == []
    part: Any = report
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    failed = failed_checks(report)
    assert len(failed) == 1 and words in failed[0]


def test_where_no_one_knows_the_right_answers_nothing_is_said_of_them() -> None:
    """People ranked: a second reward model judges, and there are no parts."""
    report = a_report()
    for policy in report["policies"].values():
        policy |= {"gold_parts": {}, "gold_parts_greedy": {}}
    with pytest.raises(ValueError, match=r"gold_parts\.correct is missing"):
        validate_report(report)
    report["judge"] = "reward model trained on held-out rankings"
    validate_report(report)
    page = Page(render_html(ReportData(report=report)))
    assert "those of a reward model trained on held-out rankings" in page.text
    assert "What each stage bought" not in page.text
    assert "correctness" not in section(render_html(ReportData(report)), "checks")


def test_a_control_with_an_interval_may_stray_within_it() -> None:
    report = a_report()
    report["reward_models"][0] |= {"shuffled_label_accuracy": 0.42}
    assert len(failed_checks(report)) == 1
    report["reward_models"][0] |= {"shuffled_label_ci95": [0.33, 0.51]}
    assert failed_checks(report) == []


def test_both_scores_stand_over_the_kl_and_controls_are_shown_but_not_checked() -> None:
    report = a_report()
    before = len(section(render_html(ReportData(report)), "checks").split("<li"))
    arms = ("random_of_k", "sampler_best_of_k", "oracle_best_of_k", "ppo_shuffled.2")
    for name in arms:
        report["policies"][name] = a_policy("sft") | {"kl_from_sft_nats": 0.64, "stop_rate": 0.5}
    for position, policy in enumerate(report["policies"].values()):
        policy["proxy_score"] = position - 3.25
    report["policies"]["ppo"] |= {
        "paired_gain_vs_control": -0.02,
        "paired_gain_vs_control_ci95": [-0.05, 0.01],
    }
    page = render_html(ReportData(report=report, metrics=some_metrics()))
    text = Page(page).text
    assert "PPO against its control" in text and "(\u22120.050 to +0.010)" in text
    chart = page.partition("Scores by KL from SFT")[2].partition("</figure>")[0]
    assert chart.count("dot large") == chart.count("hole") == len(report["policies"])
    assert "tone-bound" in chart and "line dashed" in chart
    for name in (*arms, "base", "ppo.2"):
        assert policy_label(name) in chart
    failed = failed_checks(report)
    assert len(failed) == 1 and "gain over its control" in failed[0]
    assert len(section(page, "checks").split("<li")) == before + 1


def test_the_axis_of_kl_is_that_of_its_root() -> None:
    axis = RootAxis.covering([0.0, 2.5, 16.0, -0.3])
    assert [axis.percent(kl) for kl in (-0.3, 0, 1, 4, 16)] == [0, 0, 25, 50, 100]
    assert axis.labels == [(0, "0"), (25, "1"), (50, "4"), (75, "9"), (100, "16")]
    flat = RootAxis.covering([0.0])
    assert flat.percent(0.0) == 0 and flat.labels


def test_a_reward_model_that_judges_is_shown_with_its_size_and_accuracy() -> None:
    report = a_report()
    for policy in report["policies"].values():
        policy |= {"gold_parts": {}, "gold_parts_greedy": {}}
    report["judge"] = "reward model trained on held-out rankings"
    report["judge_accuracy"] = {
        **{"trained_pairs": 143, "pairs": 1612, "prompts": 570},
        **{"accuracy": 0.624, "ci95": [0.58, 0.67]},
    }
    words = (
        "a second reward model, trained on 143 held-out pairs: "
        "accuracy 0.62 (0.58 to 0.67) on 1,612 others"
    )
    page = render_html(ReportData(report=report, answers=some_answers()))
    assert words in Page(section(page, "policies")).text
    assert words in Page(section(page, "answers")).text
    assert words in Page(page.partition("<nav")[0]).text
    line = result_lines(report)[0]
    assert "trained on 143 held-out pairs: accuracy 0.624 [0.580, 0.670] on 1,612 others)" in line
    report["judge_accuracy"] |= {"pairs": 12}
    assert "0.58 to 0.67" not in render_html(ReportData(report=report))
    assert "trained on 143 held-out pairs: accuracy 0.624 on 12 others" in result_lines(report)[0]


def test_the_temperature_of_the_scores_is_said() -> None:
    report = a_report()
    assert "temperature 1" in Page(render_html(ReportData(report=report))).text
    report["temperatures"] = {"ppo": 1.0, "evaluate": 0.7}
    text = Page(render_html(ReportData(report=report))).text.lower()
    assert text.count("temperature 0.7") > 5 and "temperature 1" not in text
    assert "at temperature 0.7" in result_lines(report)[0]


def test_several_heads_are_named_with_what_their_mean_is_worth() -> None:
    report = a_report()
    assert "heads" not in Page(render_html(ReportData(report))).text
    report["reward_models"][1] |= {
        **{"heads": 4, "pessimism": 1.5, "mean_accuracy": 0.8124, "disagreement": 0.333},
    }
    validate_report(report)
    text = " ".join(Page(render_html(ReportData(report=report))).text.split())
    assert (
        "The reward model of round 2 has 4 heads, which differ by 0.33 on a held-out completion; "
        "the score is their mean less 1.5 times their deviation; the mean alone has 0.812." in text
    )


def test_without_a_control_nothing_is_said_of_one() -> None:
    report = a_report()
    for model in report["reward_models"]:
        model["shuffled_label_accuracy"] = None
    validate_report(report)
    assert failed_checks(report) == []
    text = Page(render_html(ReportData(report=report))).text
    assert (
        "shuffled" not in text.lower()
        and "Shuffled" in Page(render_html(ReportData(a_report()))).text
    )


def a_baseline(kind: str, accuracy: float, lead: float) -> dict[str, Any]:
    return {
        "is": kind,
        "accuracy": accuracy,
        "ci95": [accuracy - 0.03, accuracy + 0.03],
        "lead": lead,
        "lead_ci95": [lead - 0.02, lead + 0.02],
    }


def test_a_reward_model_that_does_not_beat_the_best_rule_fails_a_check() -> None:
    report = a_report()
    weak = a_baseline("the shorter", 0.183, 0.6)
    report["reward_models"][0]["baselines"] = [a_baseline("the longer", 0.6, 0.19), weak]
    assert failed_checks(report) == []
    text = Page(render_html(ReportData(report))).text
    assert "The longer, round 1" in text and "The shorter, round 1" in text
    report["reward_models"][0]["baselines"][0] = a_baseline("the longer", 0.787, 0.005)
    (failed,) = failed_checks(report)
    assert "lead over \u201cthe longer\u201d" in failed and "(0.79)" in failed
    assert "\u22120.01 to +0.03" in failed or "\u22120.02 to +0.03" in failed


def checks_of(report: dict[str, Any]) -> list[str]:
    text = section(render_html(ReportData(report)), "checks").partition("</ul>")[0]
    return [Page("<li" + line).text for line in text.split("<li")[1:]]


def of_others(pairs: int = 1612, lead: float = 0.004, **more: Any) -> dict[str, Any]:
    """A reward model that scores policies, measured on the rankings of another."""
    return {
        **{"trained_pairs": 143, "pairs": pairs, "prompts": min(pairs, 570)},
        **{"accuracy": 0.704, "ci95": [0.67, 0.74]},
        "baselines": [a_baseline("the longer", 0.7, lead), a_baseline("the shorter", 0.3, 0.404)],
        **more,
    }


def judged_by_others(**judge: Any) -> dict[str, Any]:
    report = a_report()
    for policy in report["policies"].values():
        policy |= {"gold_parts": {}, "gold_parts_greedy": {}}
    report["judge"] = "reward model trained on held-out rankings"
    report["judge_accuracy"] = of_others(**judge)
    return report


def test_the_judge_of_all_policies_stands_beside_rules_that_learn_nothing() -> None:
    """Accuracy .70 may be length alone: report, terminal and checks say so."""
    report = judged_by_others()
    (failed,) = failed_checks(report)
    assert "Reward model that judges all policies: its lead over “the longer”" in failed
    page = render_html(ReportData(report=report))
    shown = " ".join(Page(section(page, "reward")).text.split())
    assert "judges all policies 143 1,612 0.7040.670 to 0.740 +0.004" in shown
    assert "the longer 0.700, the shorter 0.300" in shown
    named = Page(section(page, "policies")).text
    assert "on 1,612 others, where “the longer” alone is right on 0.70" in named
    line = result_lines(report)[1]
    assert "the longer 0.700, the shorter 0.300: it does not beat the best of them" in line
    learned = judged_by_others(lead=0.2)
    assert failed_checks(learned) == []
    assert "0.300: it beats the best of them (lead +0.180 to +0.220)" in result_lines(learned)[1]


def test_a_judge_on_a_handful_of_pairs_holds_nothing() -> None:
    report = judged_by_others(pairs=12, lead=0.2)
    (line,) = [line for line in checks_of(report) if "judges all policies" in line]
    assert "? too few" in line and "on 12 pairs of 12 prompts" in line
    page = render_html(ReportData(report=report))
    assert "0.670 to 0.740" not in page and "+0.180 to +0.220" not in page
    assert result_lines(report)[1].endswith("12 pairs of 12 prompts are too few to tell")


def test_the_reward_model_that_looks_stands_beside_the_same_rules() -> None:
    report = a_report()
    report["reward_models"][0]["second"] = of_others(used=True)
    (failed,) = failed_checks(report)
    assert "Reward model that looks at the policies of round 1: its lead over" in failed
    assert "looks at the policies of round 1" in section(render_html(ReportData(report)), "reward")
    report["reward_models"][0]["second"] = of_others(used=False)
    assert failed_checks(report) == [], "it looks at nothing"


@pytest.mark.parametrize(("pairs", "prompts"), [(3, 1), (19, 19), (300, 19)])
def test_a_handful_of_pairs_has_no_interval_and_holds_nothing(pairs: int, prompts: int) -> None:
    report = a_report()
    del report["reward_models"][1]
    model = report["reward_models"][0]
    model |= {"held_out_pairs": pairs, "held_out_prompts": prompts, "ci95": [0.67, 0.67]}
    model["baselines"] = [a_baseline("the longer", 0.6, 0.2)]
    kind = {"is": "1", "pairs": pairs, "prompts": prompts, "accuracy": 0.67, "ci95": [0.67, 0.67]}
    model["accuracy_by"] = {"tiers_apart": [kind]}
    page = render_html(ReportData(report))
    assert "0.67 to 0.67" not in page and "too few" in section(page, "reward")
    (line,) = [line for line in checks_of(report) if "Reward model" in line]
    assert "? too few" in line and "holds" not in line
    assert f"{pairs} pairs of {prompts} prompts" in line
    model |= {"held_out_pairs": 20, "held_out_prompts": 20}
    assert "0.67 to 0.67" in render_html(ReportData(report))


def test_a_handful_of_evaluation_prompts_has_no_interval_and_no_gain() -> None:
    report = a_report()
    report["prompts"]["eval"] = 19
    text = Page(render_html(ReportData(report))).text
    for name in ("sft", "ppo"):
        low, high = report["policies"][name]["ci95"]
        assert f"{low:.2f} to {high:.2f}" not in text and f"{low:.3f} to {high:.3f}" not in text
    assert "fewer than 20 prompts are too few for an interval" in text
    assert "a gain of" not in headline(report) and "too few prompts to tell" in headline(report)
    gains = [line for line in checks_of(report) if "gain over SFT" in line]
    assert gains and all("? too few" in line for line in gains)


def test_a_handful_of_clusters_has_no_interval_however_many_prompts() -> None:
    """The intervals resample clusters; of a single one every resample is the same."""
    report = a_report()
    report["prompts"] |= {"eval": 300, "eval_clusters": 1}
    text = Page(render_html(ReportData(report))).text
    low, high = report["policies"]["ppo"]["ci95"]
    assert f"{low:.3f} to {high:.3f}" not in text
    assert "fewer than 20 clusters of near-duplicate prompts are too few" in text
    gains = [line for line in checks_of(report) if "gain over SFT" in line]
    assert gains and all("on 1 clusters of near-dup" in line and "? too" in line for line in gains)
    report["prompts"]["eval_clusters"] = 20
    assert f"{low:.3f} to {high:.3f}" in Page(render_html(ReportData(report))).text
    score = {"gold_score": 0.5, "ci95": [0.5, 0.5], "n": 300}
    assert [
        SliceScore(**score, **clusters).too_few
        for clusters in ({"clusters": 1}, {"clusters": 20}, {})
    ] == [True, False, False]


@pytest.mark.parametrize(("pairs", "shown"), [(12, False), (1612, True)])
def test_an_unused_scorer_has_no_interval_from_a_handful(pairs: int, shown: bool) -> None:
    report = a_report()
    report["reward_models"][0]["second"] = of_others(pairs=pairs, used=False)
    text = Page(section(render_html(ReportData(report)), "watch")).text
    assert ("(0.670 to 0.740)" in text) == shown
    assert ("12 pairs of 12 prompts are too few for an interval" in text) != shown


def some_looks() -> dict[str, Any]:
    look = {"watch_score": 0.6, "watch_reward": 0.1, "watch_kl": 0.5, "watch_tokens": 12.0}
    return {
        **{"start": {**look, "step": 0}, "looks": [{**look, "step": 1}], "kept_step": 1},
        **{"stopped": False, "words": ["kept the adapter of update 1"], "scorer": "gold"},
    }


def test_a_control_that_no_look_chose_is_said_to_be_none_for_looks() -> None:
    """PPO keeps the best of its looks; a control of an earlier version its last adapter."""
    report = a_report()
    report["policies"]["ppo_shuffled"] = a_policy("sft")
    report["policies"]["ppo"] |= {
        "paired_gain_vs_control": 0.1,
        "paired_gain_vs_control_ci95": [0.05, 0.15],
    }
    words = "Looks chose the adapter of PPO and not that of the control"

    def policies(watches: dict[str, Any]) -> str:
        return Page(
            section(render_html(ReportData(report | {"watches": watches})), "policies")
        ).text

    assert words in policies({"ppo": some_looks()})
    assert words not in policies({"ppo": some_looks(), "ppo_shuffled": some_looks()})
    assert words not in policies({})


def test_gold_is_said_only_where_there_is_a_gold_judge() -> None:
    report = a_report()
    assert "Gold score by policy" in Page(render_html(ReportData(report))).text
    for policy in report["policies"].values():
        policy |= {"gold_parts": {}, "gold_parts_greedy": {}}
    report["judge"] = "reward model trained on held-out rankings"
    report["slices"] = some_slices(report["policies"])
    answers = some_answers()
    html = render_html(ReportData(report, answers=answers))
    page = Page(html.partition("<body>")[2].partition("</body>")[0])
    assert "gold" not in page.text.lower() and "Judge's score by policy" in page.text
    labels = [str(value) for _, attributes in page.tags for value in attributes.values()]
    assert not [label for label in labels if "gold " in label.lower()]


def with_kinds() -> ReportData:
    """Of round 2 alone it is known which pairs the reward model gets right."""
    data = some_data()
    row = {"is": "3", "pairs": 1234, "accuracy": 0.917, "ci95": [0.871, 0.955]}
    data.report["reward_models"][1] |= {
        "accuracy_by": {
            "tiers_apart": [row],
            "criterion": [row | {"is": "<b>kind</b>", "pairs": 77}],
        },
        "log_loss": 0.512,
        "saturated": 0.034,
        "calibration_error": 0.061,
        "length_correlation": -0.218,
    }
    return data


def test_the_reward_model_is_shown_by_kind_of_pair() -> None:
    page = Page(render_html(with_kinds()))
    assert "Held-out accuracy by kind of pair, round 2." in page.text
    assert "by kind of pair, round 1." not in page.text
    for text in ("Tiers apart: 3", "1,234", "0.92", "0.87 to 0.95", "Criterion: <b>kind</b>"):
        assert text in page.text
    assert "Log loss (guessing scores 0.69) 0.51; calibration error 0.06;" in page.text
    assert "correlation of score and length \u22120.22." in page.text
    assert not page.open


@pytest.mark.parametrize(
    ("key", "value"), [("accuracy", 1.2), ("pairs", -1), ("ci95", [0.9, 0.8]), ("is", 3)]
)
def test_wrong_kinds_of_pairs_are_named(key: str, value: Any) -> None:
    report = with_kinds().report
    report["reward_models"][1]["accuracy_by"]["tiers_apart"][0][key] = value
    where = rf"reward_models\.1\.accuracy_by\.tiers_apart\.0\.{key}"
    with pytest.raises(ValueError, match=where):
        validate_report(report)


def test_what_best_of_k_promised_stands_beside_what_was_measured(page: str) -> None:
    def row_of(report: dict[str, Any]) -> list[str]:
        text = render_html(replace(some_data(), report=report))
        row = section(text, "best-of-k").partition("<tbody>")[2]
        return [re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row)]

    report = a_report()
    figures = ["Round 1, K = 4", "1,280", "1,275", "320", "1.13", "0.64"]
    k1 = f"{report['policies']['best_of_k']['kl_from_sft_nats']:.2f}"
    assert row_of(report) == [*figures, k1, "not measured"]
    report["policies"]["best_of_k"]["kl_from_sft_k3_nats"] = 0.78
    assert row_of(report) == [*figures, k1, "0.78"]
    assert "Expected best of n scores" in page and "log K - (K - 1) / K" in page
    del report["best_of_k"]
    assert row_of(report) == []
    assert "Expected best of n" not in render_html(replace(some_data(), report=report))


def test_later_rounds_are_compared_with_the_round_before(page: str) -> None:
    text = Page(page).text
    for step in ("Base → SFT", "SFT → Best-of-K", "SFT → PPO", "PPO → PPO, round 2"):
        assert step in text
    assert "PPO changed correctness by +0.05 at temperature 1 and by \u22120.01 greedy" in text
    assert "“friendly”, by +0.68" in text


def test_charts_skip_what_was_not_logged() -> None:
    rows = [
        {"stage": "ppo", "step": 0, "score": 0.1, "gold_score": None, "kl": float("nan")},
        {"stage": "ppo", "step": 1, "score": 0.4},
    ]
    section_text = Page(section(render_html(replace(some_data(), metrics=rows)), "curves")).text
    assert "Score" in section_text and "Gold" not in section_text and "KL" not in section_text
    assert 'id="curves"' not in render_html(replace(some_data(), metrics=[]))


def test_refused_tasks_are_counted_by_reason() -> None:
    section_text = Page(section(render_html(some_data()), "curves")).text
    # of the last row: 474 accepted, 126 duplicates, 20 unparsed, 6 too long
    for text in ("474", "75.7%", "dropped: duplicate", "126", "dropped: too long", "1.0%"):
        assert text in section_text


def test_line_chart_puts_points_where_they_belong() -> None:
    chart = drawn(
        LineChart("T", [Series("a", [(0, 0.0), (5, 1.0), (10, 0.5)], "tone-sft")], note="n")
    )
    assert 'd="M0 100L50 0L100 50"' in chart
    assert "a: 3 points, from 0.000 to 0.500, lowest 0.000, highest 1.00." in chart
    assert not LineChart("T", [Series("a", [], "tone-sft")], note="n")


def test_one_point_and_a_flat_line_are_drawn() -> None:
    for points in ([(3.0, 2.0)], [(0.0, 0.0), (1.0, 0.0)], [(0.0, 1e9), (1.0, 1e9)]):
        chart = drawn(LineChart("T", [Series("a", points, "tone-sft")], note="n"))
        assert "nan" not in chart and 'class="line"' in chart


def test_interval_chart_puts_marks_where_they_belong() -> None:
    row = Row("x", "tone-ppo", Mark(0.5, (0.25, 0.75)), Mark(1.0))
    chart = drawn(IntervalChart([row], caption="c"))
    assert 'd="M25 40H75"' in chart and 'd="M50 40h0"' in chart and 'd="M100 72h0"' in chart
    wide = drawn(IntervalChart([Row("x", "tone-ppo", Mark(-0.5))], caption="c"))
    assert 'd="M0 50h0"' in wide  # the scale is widened to -0.5


def test_ticks_are_round_and_cover() -> None:
    assert ticks(0, 1, 4) == [0, 0.25, 0.5, 0.75, 1]
    assert ticks(0.03, 0.97, 4) == [0, 0.25, 0.5, 0.75, 1]
    assert ticks(-1.2, 3.9, 4) == [-2, 0, 2, 4]
    assert ticks(0, 0, 4)[0] < 0 < ticks(0, 0, 4)[-1]
    rng = np.random.default_rng(0)
    for low, width in zip(rng.normal(0, 100, 200), rng.lognormal(0, 4, 200), strict=True):
        marks = ticks(low, low + width, 4)
        assert marks[0] <= low and low + width <= marks[-1] and 2 <= len(marks) <= 7
    assert [tick_text(0.25, 0.25), tick_text(0.5, 0.5), tick_text(2.5, 2.5)] == [
        "0.25",
        "0.5",
        "2.5",
    ]
    assert [tick_text(-20, 10), tick_text(0.001, 0.001)] == ["\u221220", "0.001"]


def test_long_lines_are_thinned_without_moving_their_end() -> None:
    points = [(float(x), float(x)) for x in range(5000)]
    thinned = thin(points)
    assert len(thinned) <= 240 and thinned[-1] == (4999.0, 4999.0)
    assert all(x == pytest.approx(y) for x, y in thinned)
    assert thin(points[:200]) == points[:200]


def test_numbers_for_people() -> None:
    assert [number(-0.004), number(-1.5), number(1234.5, 1)] == ["0.00", "\u22121.50", "1,234.5"]
    assert [signed(0.129), signed(-0.2), signed(0.001)] == ["+0.13", "\u22120.20", "0.00"]
    assert interval([-0.01, 0.02], plus=True) == "\u22120.01 to +0.02"
    assert [duration(8.24), duration(59.97), duration(252), duration(7500)] == [
        "8.2 s",
        "1 min 00 s",
        "4 min 12 s",
        "2 h 05 min",
    ]
    assert [money(0), money(0.00001), money(0.0021), money(1.5)] == [
        "$0",
        "under $0.0001",
        "$0.0021",
        "$1.50",
    ]
    assert [large(260_032), large(4_912_320), large(8.03e9)] == [
        "260,032",
        "4.9 million",
        "8.0 billion",
    ]


def test_policies_stand_in_the_order_of_the_loop() -> None:
    names = dict.fromkeys(["ppo.10", "ppo.2", "best_of_k.2", "ppo", "sft", "base"], 0)
    assert policy_order(names) == ["base", "sft", "ppo", "best_of_k.2", "ppo.2", "ppo.10"]
    assert policy_label("best_of_k.2") == "Best-of-K, round 2"
    assert POLICY_NAME.fullmatch("ppo.12") and not POLICY_NAME.fullmatch("ppo.1")
    assert not POLICY_NAME.fullmatch("ppo\n")


def test_templates_escape_whatever_is_not_markup(tmp_path: Path) -> None:
    """Inside a macro and joined to markup too; a name nobody passed is an error."""
    (tmp_path / "a.html").write_text(
        "{% macro bold(text) %}<b>{{ text }}</b>{% endmacro %}"
        '<p title="{{ text }}">{{ bold(text) }}{{ bold("&") ~ text }}</p>'
    )
    page = environment(tmp_path).get_template("a.html").render(text='<"\x00\ud800')
    text = "&lt;&#34;\ufffd\ufffd"
    assert page == f'<p title="{text}"><b>{text}</b><b>&amp;</b>{text}</p>'
    with pytest.raises(UndefinedError, match="nobody"):
        environment(tmp_path).from_string("{{ nobody }}").render()


def luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_colours_can_be_told_from_the_page_in_both_themes() -> None:
    # WCAG 2.2: 4.5 for text (1.4.3), 3 for what carries meaning in a picture (1.4.11)
    light, dark = (
        dict(re.findall(r"--(\w+):\s*(#\w+)", theme))
        for theme in CSS.partition("}}")[0].split("screen and (prefers-color-scheme:dark)")
    )
    assert len(dark) >= 13
    for theme in (light, dark):
        for ground in (theme["page"], theme["card"]):
            for name in (
                "ink",
                "soft",
                "accent",
                "good",
                "bad",
                "base",
                "few",
                "sft",
                "bok",
                "ppo",
            ):
                pair = sorted((luminance(theme[name]), luminance(ground)))
                least = 3 if name in ("base", "few", "sft", "bok", "ppo") else 4.5
                assert (pair[1] + 0.05) / (pair[0] + 0.05) >= least, (name, ground)
