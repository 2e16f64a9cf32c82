"""The report as one HTML page that needs nothing from elsewhere: no script, font, image or link."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alpaca_rlhf.report import results as report_results
from alpaca_rlhf.report import training as report_training
from alpaca_rlhf.report.best_of_k import best_of_k
from alpaca_rlhf.report.charts import share_bar
from alpaca_rlhf.report.markup import (
    Markup,
    duration,
    element,
    join,
    money,
    number,
    policy_label,
    policy_order,
    policy_tone,
    table,
)
from alpaca_rlhf.report.schema import ReportData, judged_by_gold
from alpaca_rlhf.report.style import CSS
from alpaca_rlhf.report.terms import TERMS

_MOST_SHOWN = 4000  # characters of one text; a runaway completion must not hide the others
_STAGE_LABELS = {
    "generate": "Generate tasks",
    "sft": "Fine-tune (SFT)",
    "sample": "Sample completions",
    "rank": "Rank them",
    "reward": "Train reward model",
    "ppo": "PPO",
    "best_of_k": "Best-of-K",
    "evaluate": "Evaluate",
}
_SPLITS = {
    "sft": "Fine-tuning, and the tasks that were generated",
    "rank": "Completions to rank, for the reward model",
    "ppo": "PPO and best-of-K",
    "eval": "The figures of this report, and nothing else",
}


def render_html(data: ReportData) -> str:
    """The whole page; the same for the same input."""
    report = data.report
    name = report["base"]["name"]
    sections = [
        ("policies", "Policies", "The policies side by side", _policies(data)),
        ("stages", "Stages", "What each stage bought", _bought(data)),
        ("unseen", "Held out", "Held-out facts and phrasings", _unseen(data)),
        ("reward", "Reward model", "The reward model", report_training.reward_models(data)),
        ("best-of-k", "Best-of-K", "The best of K completions", best_of_k(report)),
        ("curves", "Learning", "How it learned", _learned(data)),
        ("answers", "Answers", "The same prompts, answered by each", _answers(data)),
        ("prompts", "Prompts", "Which prompts went where", _prompts(report)),
        ("cost", "Cost", "Time, memory and cost", _cost(report["stages"])),
        ("checks", "Checks", "What was checked", report_training.checks(report)),
        ("terms", "Terms", "How to read it", _terms()),
        ("caveats", "Caveats", "What not to conclude", _caveats(data.caveats)),
        ("again", "Provenance", "Settings and provenance", _again(data)),
    ]
    shown = [one for one in sections if one[3]]
    links = [element("li", element("a", short, href=f"#{anchor}")) for anchor, short, _, _ in shown]
    top = element(
        "header",
        element("p", element("b", "alpaca-rlhf"), f" · run report · base {name} · seed {data.seed}",
                class_="kicker"),
        element("h1", report_results.headline(report)),
        element("p", _lead(report), class_="lead"),
        report_results.facts(data),
        element("nav", element("ul", *links), aria_label="Contents"),
    )  # fmt: skip
    body = [
        element("section", element("h2", title), content, id=anchor)
        for anchor, _, title, content in shown
    ]
    bottom = element("footer", "Written by alpaca-rlhf. The same figures are in report.json.")
    head = (
        '<meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    )
    title = element("title", f"alpaca-rlhf: {name}, seed {data.seed}")
    style = element("style", Markup(CSS))
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}{title}{style}</head>\n'
        f"<body>{top}\n{element('main', *body)}\n{bottom}</body></html>\n"
    )


def _lead(report: Mapping[str, Any]) -> str:
    count = len([name for name in report["policies"] if not name.startswith("base")])
    judge = "the gold judge" if judged_by_gold(report) else f"a {report['judge']}"
    return (
        f"One frozen {report['base']['quantization']} base, {count} trained policies as small "
        f"adapters on it. Scores are those of {judge}, from 0 to 1, at temperature 1; brackets "
        "hold 95% intervals."
    )


def _policies(data: ReportData) -> Markup:
    chart, figures = (
        report_results.side_by_side(data.report),
        report_results.policy_table(data.report),
    )
    return join([chart, figures])


def _bought(data: ReportData) -> Markup:
    if not data.report["policies"]["sft"]["gold_parts"]:
        return Markup()
    intro = (
        "A reward model likes to buy style together with correctness, so the judge's parts stand "
        "apart. Filled and in black: temperature 1. Hollow and in grey: greedy."
    )
    return join([element("p", intro), report_results.parts(data.report)])


def _unseen(data: ReportData) -> Markup:
    body = report_results.held_out(data)
    intro = "Gold score at temperature 1. Following instructions must not be memory."
    return join([element("p", intro), body]) if body else body


def _learned(data: ReportData) -> Markup:
    generated = report_training.generation(data.metrics, data.report.get("generation", {}))
    title = element("h3", "Generated tasks") if generated else ""
    return join([title, generated, report_training.curves(data.metrics)])


def _answers(data: ReportData) -> Markup:
    cards = []
    for place, one in enumerate(data.answers, start=1):
        lines = []
        for name in policy_order(one["answers"]):
            answer = one["answers"][name]
            text = str(answer["text"]).strip()
            shown = _cut(text) if text else element("i", "(nothing)", class_="soft")
            chip = element("span", class_=f"chip {policy_tone(name)}")
            gold = element("dd", number(answer["gold"]), class_="gold", aria_label="gold score "
                           + number(answer["gold"]))  # fmt: skip
            words = element("dd", shown, class_="text", dir="auto")
            lines.append(element("div", element("dt", chip, policy_label(name)), words, gold))
        title = element(
            "h3", element("span", f"{place}.", class_="number"), _cut(one["instruction"])
        )
        earlier = [
            element("p", element("b", f"{who}: "), _cut(said), class_="input", dir="auto")
            for turn in one.get("history", ())
            for who, said in zip(("Person", "Assistant"), turn, strict=True)
        ]
        given = element("p", _cut(one["input"]), class_="input", dir="auto") if one["input"] else ""
        cards.append(
            element("article", *earlier, title, given, element("dl", *lines), class_="answer card")
        )
    if not cards:
        return Markup()
    intro = "The same prompts for every policy. The number is the answer's gold score."
    return join([element("p", intro), *cards])


def _cut(text: object) -> str:
    whole = str(text)
    if len(whole) <= _MOST_SHOWN:
        return whole
    return f"{whole[:_MOST_SHOWN]} … ({len(whole) - _MOST_SHOWN:,} more characters)"


def _prompts(report: Mapping[str, Any]) -> Markup:
    prompts = report["prompts"]
    rows = [[split, f"{prompts[split]:,}", use] for split, use in _SPLITS.items()]
    overlap = prompts["overlap"]
    foot = ["overlap", f"{overlap:,}", "Prompts in two splits, near-duplicates included"]
    caption = "No prompt may stand in two splits; a leak stops the run."
    return table(["Split", "Prompts", "Used for"], rows, caption=caption, foot=foot, words=True)


def _cost(stages: Sequence[Mapping[str, Any]]) -> Markup:
    total = sum(one["seconds"] for one in stages)
    rounds = max((one["round"] for one in stages), default=1)
    rows: list[list[object]] = []
    for one in stages:
        label = _STAGE_LABELS[one["name"]]
        rows.append(
            [
                f"{label}, round {one['round']}" if rounds > 1 else label,
                duration(one["seconds"]),
                share_bar(one["seconds"] / total if total else 0.0, "tone-ppo"),
                f"{number(one['peak_memory_gib'])} GiB",
                *_planned(one),
                f"{one['examples']:,}",
                f"{one['tokens']:,}",
                money(one["cost_usd"]),
            ]
        )
    foot = [
        "Total",
        duration(total),
        "",
        f"{number(max((one['peak_memory_gib'] for one in stages), default=0.0))} GiB peak",
        "",
        "",
        f"{sum(one['examples'] for one in stages):,}",
        f"{sum(one['tokens'] for one in stages):,}",
        money(sum(one["cost_usd"] for one in stages)),
    ]
    head = [
        "Stage",
        "Time",
        "Share",
        "Peak memory",
        "Card",
        "Planned",
        "Examples",
        "Tokens",
        "Cost",
    ]
    caption = (
        "Every stage of this run. Peak memory is the whole process; card, the tensors on the "
        "graphics card; planned, the tensors, were every row as long as it may be."
    )
    return table(head, rows, caption=caption, foot=foot)


def _planned(stage: Mapping[str, Any]) -> list[str]:
    """Measured and planned memory of the tensors, where there are such."""
    found = [stage.get(key) for key in ("gpu_memory_gib", "planned_memory_gib")]
    return ["" if one is None else f"{number(one)} GiB" for one in found]


def _terms() -> Markup:
    pairs = [element("div", element("dt", term), element("dd", text)) for term, text in TERMS]
    return element("dl", *pairs, class_="terms")


def _caveats(caveats: Sequence[str]) -> Markup:
    lines = [element("li", text) for text in caveats]
    return element("ul", *lines, class_="plain") if lines else Markup()


def _again(data: ReportData) -> Markup:
    facts = {"command": data.command, "seed": str(data.seed), "machine": data.machine}
    rows = [
        [name, element("code", text)] for name, text in {**facts, **data.provenance}.items() if text
    ]
    parts: list[object] = [
        table(["What", "Value"], rows, caption="Where this run comes from.", words=True)
    ]
    if data.next_commands:
        parts += [element("h3", "What to run next"), element("pre", "\n".join(data.next_commands))]
    if data.settings_yaml:
        summary = element("summary", "All settings of this run")
        parts.append(element("details", summary, element("pre", data.settings_yaml)))
    return join(parts)
