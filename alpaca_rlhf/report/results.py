"""The report's first half: the result in one sentence, the policies, and what each stage bought."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alpaca_rlhf.report.charts import Mark, Row, interval_chart
from alpaca_rlhf.report.markup import (
    Markup,
    duration,
    element,
    interval,
    join,
    large,
    money,
    number,
    policy_label,
    policy_order,
    policy_tone,
    signed,
    table,
)
from alpaca_rlhf.report.schema import SLICES, ReportData

_PARTS = {
    "correct": "Correct",
    "well_formed": "Well-formed",
    "to_the_point": "To the point",
    "helpful": "Helpful extra",
    "friendly": "Friendly",
}
_FULL_SHADE = 0.35  # opacity behind a change of one half or more


def headline(report: Mapping[str, Any]) -> Markup:
    """The result in one sentence, as honest as the intervals: no gain is claimed within noise."""
    policies = report["policies"]
    unseen = " that no stage had seen" if report["prompts"]["overlap"] == 0 else ""
    prompts = f"On {report['prompts']['eval']:,} prompts{unseen}, "

    def score(name: str) -> Markup:
        return element("b", f"{number(policies[name]['gold_score'])}")

    if "base" in policies:
        start = [prompts, "the base scores ", score("base"), ", supervised fine-tuning "]
    else:
        start = [prompts, "supervised fine-tuning scores "]
    start.append(score("sft"))
    trained = [name for name in policy_order(policies) if not name.startswith(("base", "sft"))]
    if not trained:
        return join([*start, "."])
    best = max(trained, key=lambda name: policies[name]["paired_gain_vs_sft"])
    gain = policies[best]["paired_gain_vs_sft"]
    low, high = policies[best]["paired_gain_ci95"]
    stem, _, turn = best.partition(".")
    label = policy_label(stem) + (f" (round {turn})" if turn else "")
    label = label[0].lower() + label[1:] if best.startswith("best") else label
    sure = f" ({interval((low, high), plus=True)})."
    if low > 0:
        verdict = join([", a gain of ", element("b", signed(gain)), " over SFT", sure])
    elif high < 0:
        verdict = join([", a loss: ", element("b", signed(gain)), " against SFT", sure])
    else:
        verdict = join([", no measurable gain over SFT", sure])
    return join([*start, f" and {label} ", score(best), verdict])


def facts(data: ReportData) -> Markup:
    """The run in a few numbers."""
    report = data.report
    stages = report["stages"]
    base = report["base"]
    prompts = report["prompts"]
    items = [
        ("Base", large(base["parameters"]), f"parameters, {base['quantization']}"),
        ("Evaluation", f"{prompts['eval']:,}", f"prompts, overlap {prompts['overlap']:,}"),
    ]
    for model in report["reward_models"][-1:]:
        accuracy = number(model["held_out_accuracy"])
        items.append(("Reward model", accuracy, "held-out accuracy"))
    items += [
        ("Time", duration(sum(one["seconds"] for one in stages)), f"{len(stages)} stages"),
        (
            "Peak memory",
            f"{number(max((one['peak_memory_gib'] for one in stages), default=0.0), 2)} GiB",
            "highest of all stages",
        ),
        (
            "Cost",
            money(sum(one["cost_usd"] for one in stages)),
            "electricity, and what a teacher behind HTTP took, at your prices",
        ),
    ]
    return element(
        "dl",
        *(
            element("div", element("dt", name), element("dd", value, element("small", note)))
            for name, value, note in items
        ),
        class_="facts",
    )


def side_by_side(report: Mapping[str, Any]) -> Markup:
    """Every policy's gold score with its interval, and the greedy one."""
    policies = report["policies"]
    rows = [
        Row(
            policy_label(name),
            policy_tone(name),
            Mark(policies[name]["gold_score"], _pair(policies[name]["ci95"])),
            Mark(
                policies[name]["gold_score_greedy"],
                _pair(policies[name].get("gold_score_greedy_ci95")),
            ),
        )
        for name in policy_order(policies)
    ]
    chart = interval_chart(
        rows,
        caption="Gold score by policy. Filled: sampled at temperature 1, with its 95% interval. "
        "Hollow: greedy. Dashed: SFT at temperature 1.",
        reference=policies["sft"]["gold_score"],
    )
    return element("div", chart, class_="card wide")


def policy_table(report: Mapping[str, Any]) -> Markup:
    """All figures of all policies."""
    policies = report["policies"]
    rows: list[list[object]] = []
    for name in policy_order(policies):
        one = policies[name]
        is_sft = name == "sft"
        rows.append(
            [
                _policy(name),
                _with(number(one["gold_score"], 3), interval(one["ci95"], 3)),
                number(one["gold_score_greedy"], 3),
                "reference"
                if is_sft
                else _with(
                    signed(one["paired_gain_vs_sft"], 3),
                    interval(one["paired_gain_ci95"], 3, plus=True),
                ),
                "reference"
                if is_sft
                else _with(number(one["win_rate_vs_sft"]), interval(one["win_rate_ci95"])),
                number(one["kl_from_sft_nats"]),
                number(one["stop_rate"], 3),
                number(one["mean_tokens"], 1),
            ]
        )
    head = ["Policy", "Gold score", "Greedy", "Gain over SFT", "Win rate against SFT"]
    head += ["KL from SFT, nats", "Stop rate", "Tokens"]
    caption = "Temperature 1 unless it says greedy; 95% bootstrap intervals over prompts."
    return table(head, rows, caption=caption)


def parts(report: Mapping[str, Any]) -> Markup:
    """Style against correctness: the judge's parts by policy, and what each stage changed."""
    policies = report["policies"]
    names = policy_order(policies)
    columns = sorted(policies["sft"]["gold_parts"], key=_part_place)
    charts = [
        element(
            "div",
            interval_chart(
                [
                    Row(
                        policy_label(name),
                        policy_tone(name),
                        Mark(policies[name]["gold_parts"][part]),
                        Mark(policies[name]["gold_parts_greedy"][part]),
                    )
                    for name in names
                ],
                caption=_part_label(part),
            ),
            class_="card",
        )
        for part in columns
    ]
    rows: list[list[object]] = []
    for before, after in _steps(names):
        cells = [_change(policies[before], policies[after], part) for part in columns]
        label = f"{policy_label(before)} → {policy_label(after)}"
        rows.append([_policy(after, label), *cells])
    head = ["Step", *(_part_label(part) for part in columns)]
    caption = "Change of each part at temperature 1, and below it of the greedy answers."
    return join(
        [
            element("div", *charts, class_="grid-3"),
            table(head, rows, caption=caption) if rows else "",
            *(element("p", line) for line in _verdicts(policies, names, columns)),
        ]
    )


def held_out(data: ReportData) -> Markup:
    """Gold scores on the slices of the evaluation prompts; nothing where none was measured."""
    names = [name for name in policy_order(data.report["policies"]) if name in data.slices]
    cards = []
    for key, label in SLICES.items():
        measured = [(name, data.slices[name][key]) for name in names if key in data.slices[name]]
        if measured:
            rows = [
                Row(
                    policy_label(name),
                    policy_tone(name),
                    Mark(one["gold_score"], _pair(one["ci95"])),
                )
                for name, one in measured
            ]
            caption = f"{label} ({measured[0][1]['n']:,} prompts)"
            cards.append(element("div", interval_chart(rows, caption=caption), class_="card"))
    return element("div", *cards, class_="grid-3") if cards else Markup()


def _verdicts(policies: Mapping[str, Any], names: list[str], columns: list[str]) -> list[Markup]:
    """What each policy trained on preferences bought, in words."""
    lines = []
    for before, after in _steps(names):
        if after == "sft":
            continue
        old, new = policies[before]["gold_parts"], policies[after]["gold_parts"]
        greedy = (
            policies[after]["gold_parts_greedy"]["correct"]
            - policies[before]["gold_parts_greedy"]["correct"]
        )
        text = (
            f" changed correctness by {signed(new['correct'] - old['correct'])} at temperature 1"
            f" and by {signed(greedy)} greedy, against {policy_label(before)}"
        )
        style = [part for part in columns if part != "correct"]
        if style:
            most = max(style, key=lambda part: abs(new[part] - old[part]))
            text += (
                f"; the style it changed most is “{_part_label(most).lower()}”, "
                f"by {signed(new[most] - old[most])}"
            )
        lines.append(join([element("b", policy_label(after)), text + "."]))
    return lines


def _steps(names: list[str]) -> list[tuple[str, str]]:
    """(before, after): SFT after the base, round 1 after SFT, a later round after the last one."""
    steps = []
    for name in names:
        stem, _, turn = name.partition(".")
        if name == "sft" and "base" in names:
            steps.append(("base", name))
        elif stem in ("best_of_k", "ppo"):
            earlier = [f"{stem}.{int(turn) - 1}", stem] if turn else []
            steps.append((next((one for one in earlier if one in names), "sft"), name))
    return steps


def _change(before: Mapping[str, Any], after: Mapping[str, Any], part: str) -> Markup:
    sampled = after["gold_parts"][part] - before["gold_parts"][part]
    greedy = after["gold_parts_greedy"][part] - before["gold_parts_greedy"][part]
    force = _FULL_SHADE * min(1.0, abs(sampled) / 0.5)
    hue = "var(--up)" if sampled >= 0 else "var(--down)"
    style = f"--hue:{hue};--force:{force:.2f}"
    return element(
        "div", signed(sampled), element("small", signed(greedy)), style=style, class_="change"
    )


def _policy(name: str, label: str | None = None) -> Markup:
    chip = element("span", class_=f"chip {policy_tone(name)}")
    return join([chip, label or policy_label(name)])


def _with(value: str, note: str) -> Markup:
    return join([value, element("small", note)])


def _pair(ci95: Any) -> tuple[float, float] | None:
    return None if ci95 is None else (ci95[0], ci95[1])


def _part_place(part: str) -> tuple[int, str]:
    known = list(_PARTS)
    return (known.index(part) if part in known else len(known), part)


def _part_label(part: str) -> str:
    return _PARTS.get(part, part.replace("_", " ").capitalize())
