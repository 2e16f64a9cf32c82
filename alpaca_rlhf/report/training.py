"""The report's second half: what was checked, the reward model, and the curves of every stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alpaca_rlhf.report.charts import Mark, Row, Series, interval_chart, line_chart, share_bar
from alpaca_rlhf.report.markup import (
    Markup,
    element,
    finite,
    interval,
    join,
    number,
    policy_label,
    policy_order,
    signed,
    table,
)
from alpaca_rlhf.report.schema import ReportData

MOST_GREEDY_LOSS = 0.05
"""A policy may lose this much greedy correctness against SFT before the report says so."""
LEAST_STOP_RATE = 0.97
"""Share of completions that must end by themselves."""
MOST_CONTROL_DRIFT = 0.05
"""Distance from one half that a control without an interval of its own may have."""


def checks(report: Mapping[str, Any]) -> Markup:
    """What must hold for the figures to mean what they say, each with its verdict."""
    prompts, policies = report["prompts"], report["policies"]
    found = [
        (
            prompts["overlap"] == 0,
            f"Prompts shared by two splits: {prompts['overlap']:,}. Scores of prompts seen in "
            "training would measure memory.",
        )
    ]
    for model in report["reward_models"]:
        low, high = model["ci95"]
        name = f"Reward model of round {model['round']}"
        found.append(
            (low > 0.5, f"{name}: held-out accuracy {interval((low, high))}, above one half.")
        )
        control = model["shuffled_label_accuracy"]
        ends = model.get("shuffled_label_ci95")
        near = abs(control - 0.5) <= MOST_CONTROL_DRIFT
        within = ends[0] <= 0.5 <= ends[1] if ends else near
        found.append(
            (
                within or near,
                f"{name}, trained on shuffled labels: {number(control)}. It can have learned "
                "nothing, so anything but one half would be a leak.",
            )
        )
    correct = policies["sft"]["gold_parts_greedy"].get("correct")
    for name in policy_order(policies):
        one, label = policies[name], policy_label(name)
        if not name.startswith(("base", "sft")):
            ends = interval(one["paired_gain_ci95"], plus=True)
            text = f"{label}: gain over SFT {ends}; an interval above 0 is a gain."
            found.append((one["paired_gain_ci95"][0] > 0, text))
            if correct is not None:
                change = one["gold_parts_greedy"]["correct"] - correct
                text = (
                    f"{label}: greedy correctness {signed(change)} against SFT; more than "
                    f"{number(MOST_GREEDY_LOSS)} lost would be style bought with substance."
                )
                found.append((change >= -MOST_GREEDY_LOSS, text))
        if not name.startswith("base"):
            text = f"{label}: {one['stop_rate']:.1%} of the completions end by themselves"
            text += f", {LEAST_STOP_RATE:.0%} are asked for."
            found.append((one["stop_rate"] >= LEAST_STOP_RATE, text))
    lines = [
        element(
            "li",
            element("b", "✓ holds" if holds else "✗ fails"),
            element("span", text),
            class_=None if holds else "no",
        )
        for holds, text in found
    ]
    return element("ul", *lines, class_="checks")


def reward_models(data: ReportData) -> Markup:
    """Held-out accuracy against the shuffled control, and how wrong the annotator was."""
    rows, pairs = [], []
    for model in data.report["reward_models"]:
        turn = f", round {model['round']}" if len(data.report["reward_models"]) > 1 else ""
        low, high = model["ci95"]
        ends = model.get("shuffled_label_ci95")
        control = Mark(model["shuffled_label_accuracy"], (ends[0], ends[1]) if ends else None)
        rows.append(Row(f"Reward{turn}", "tone-ppo", Mark(model["held_out_accuracy"], (low, high))))
        rows.append(Row(f"Shuffled{turn}", "tone-base", control))
        pairs.append(f"{model['pairs']:,}")
    if not rows:
        return element("p", "No reward model was trained.")
    caption = (
        "Share of held-out pairs put in the annotator's order, after learning from "
        f"{' and '.join(pairs)} others. "
        "Dashed: chance. Shuffled: the same training on labels that mean nothing."
    )
    chart = interval_chart(rows, caption=caption, domain=(0.4, 1.0), reference=0.5)
    text: list[object] = []
    noise = data.annotator
    if "noise" in noise:
        text.append(f"The annotator turns round {noise['noise']:.1%} of its verdicts on purpose")
        if "measured_wrong_share" in noise and "verdicts" in noise:
            text.append(
                f"; {noise['measured_wrong_share']:.1%} of {noise['verdicts']:,.0f} were wrong"
            )
        text.append(
            ". Where held-out verdicts carry the same noise, even a perfect scorer "
            f"would agree with only {1 - noise['noise']:.0%} of them."
        )
    return join(
        [
            element("div", chart, class_="card wide"),
            element("p", *text) if text else "",
            *(_kinds_of_pairs(model) for model in data.report["reward_models"]),
        ]
    )


def _kinds_of_pairs(model: Mapping[str, Any]) -> Markup:
    """Which pairs a reward model gets right, where the report says so."""
    lines = [
        [
            f"{label}: {row['is']}",
            f"{row['pairs']:,}",
            number(row["accuracy"]),
            interval(row["ci95"]),
        ]
        for kind, label in _KINDS.items()
        for row in model.get("accuracy_by", {}).get(kind, ())
    ]
    if not lines:
        return Markup()
    caption = f"Held-out accuracy by kind of pair, round {model['round']}."
    shares = [
        f"{meaning} {number(model[key])}"
        for key, meaning in _OF_PAIRS.items()
        if finite(model.get(key))
    ]
    return join(
        [
            table(["Pairs", "Number", "Accuracy", "95% interval"], lines, caption=caption),
            element("p", "; ".join(shares).capitalize() + ".") if shares else "",
        ]
    )


_KINDS = {
    "completions": "Completions ranked together",
    "tiers_apart": "Tiers apart",
    "preferred_is": "The preferred one is",
    "confidence": "The model's chance for its side",
    "criterion": "Criterion",
}
_OF_PAIRS = {
    "log_loss": "log loss (guessing scores 0.69)",
    "calibration_error": "calibration error",
    "saturated": "share of pairs that it is all but certain of",
    "length_correlation": "correlation of score and length",
    "length_rank_correlation": "of their ranks",
}


def generation(
    metrics: Sequence[Mapping[str, Any]], facts: Mapping[str, Any] | None = None
) -> Markup:
    """How many written tasks were accepted, why others were not, and what ROUGE-L would do."""
    rows = [row for row in metrics if row.get("stage") == "generate"]
    if not rows:
        return Markup()
    x_key = "requests" if any(finite(row.get("requests")) for row in rows) else "step"
    accepted = Series("accepted", _points(rows, "accepted", x_key), "tone-ppo")
    note = "Self-instruct: tasks written by the base that passed every filter, so far."
    chart = line_chart("Accepted tasks", [accepted], note=note, x_label=x_key)
    prefix = "rejected_"
    last = {key: value for row in rows for key, value in row.items() if finite(value)}
    counts = {"accepted": last.get("accepted", 0)} | {
        key.removeprefix(prefix).replace("_", " "): last[key]
        for key in sorted(last, key=lambda key: -last[key])
        if key.startswith(prefix)
    }
    total = sum(counts.values()) or 1
    lines = [
        [
            name if name == "accepted" else f"dropped: {name}",
            f"{count:,.0f}",
            f"{count / total:.1%}",
            share_bar(count / total, "tone-ppo" if name == "accepted" else "tone-base"),
        ]
        for name, count in counts.items()
    ]
    head = ["Verdict", "Tasks", "Share", ""]
    reasons = table(head, lines, caption="Every task that was written, by its verdict.")
    pictures = element("div", _card(chart), reasons, class_="grid-2")
    alone = (facts or {}).get("rouge_alone")
    if not alone:
        return pictures
    told = (
        f"Of the {alone['of']:,} readable tasks that passed the other rules, novelty by ROUGE-L at "
        f"0.7 alone would have kept {alone['kept']:,}; {last.get('accepted', 0):,.0f} were kept."
    )
    return join([pictures, element("p", told)])


def curves(metrics: Sequence[Mapping[str, Any]]) -> Markup:
    """Loss, accuracy and PPO's figures, a chart each; only what was logged is drawn."""
    fits = [
        _chart(metrics, "SFT loss", "sft", {"loss": "training", "eval_loss": "held out"}),
        _chart(metrics, "Reward loss", "reward", {"loss": "training", "eval_loss": "held out"}),
        _accuracy(metrics),
        _chart(metrics, "Best-of-K loss", "best_of_k", {"loss": "training"}),
    ]
    policy = [
        _chart(metrics, title, "ppo", lines, note=note, x_label="update")
        for title, lines, note in _PPO
    ]
    policy.insert(3, _gold_by_kl(metrics))
    parts = []
    for title, charts, grid in (
        ("Fine-tuning and the reward model", fits, "grid-2"),
        ("PPO", policy[:4], "grid-2"),
        ("PPO in detail", policy[4:], "grid-4"),
    ):
        drawn = [_card(chart) for chart in charts if chart]
        if drawn:
            parts += [element("h3", title), element("div", *drawn, class_=grid)]
    return join(parts)


_PPO = (
    ("Score", {"score": "score"}, "What the reward model gives: the aim PPO is trained on."),
    (
        "KL from SFT",
        {"kl": "k1", "kl_k3": "k3"},
        "Nats a completion: how far the policy has moved.",
    ),
    ("Gold score", {"gold_score": "gold"}, "What the judge gives, which PPO never sees."),
    ("Entropy", {"entropy": "entropy"}, "Falls as the policy makes up its mind."),
    ("Clipped share", {"clip_fraction": "clipped"}, "Tokens whose ratio left the trust region."),
    ("Policy loss", {"policy_loss": "policy"}, "The clipped objective, negated."),
    ("Value loss", {"value_loss": "value"}, "Squared error of the predicted return."),
    (
        "Explained variance",
        {"explained_variance": "explained"},
        "Share of the return's variance that the value predicts; 1 is all of it.",
    ),
    ("Stop rate", {"stop_rate": "stopped"}, "Completions that end by themselves."),
    ("Length", {"mean_tokens": "tokens"}, "Tokens a completion: a jump is often a trick."),
)


def _chart(
    metrics: Sequence[Mapping[str, Any]],
    title: str,
    stage: str,
    lines: Mapping[str, str],
    *,
    note: str = "Token mean in nats; lower is better.",
    x_label: str = "step",
) -> Markup:
    series = []
    for turn, rows in _rounds(metrics, stage).items():
        for key, label in lines.items():
            first = key == next(iter(lines))
            tone = "tone-bok" if turn > 1 else "tone-sft" if first else "tone-ppo"
            name = f"{label}, round {turn}" if turn > 1 else label
            sparse = key in ("eval_loss", "gold_score")
            points = _points(rows, key)
            series.append(Series(name, points, tone, dashed=turn > 1 and not first, dots=sparse))
    if title.startswith("Reward"):
        note = "Minus log of the chance given to the right order; guessing scores 0.693."
    return line_chart(title, series, note=note, x_label=x_label)


def _accuracy(metrics: Sequence[Mapping[str, Any]]) -> Markup:
    series = []
    for stage, label, tone in (
        ("reward", "reward model", "tone-ppo"),
        ("reward_shuffled", "shuffled labels", "tone-base"),
    ):
        for turn, rows in _rounds(metrics, stage).items():
            name = f"{label}, round {turn}" if turn > 1 else label
            points = _points(rows, "accuracy")
            series.append(Series(name, points, tone, dashed=turn > 1, dots=True))
    note = "Pairs put in the annotator's order, before the step learns them. Dashed: chance."
    return line_chart("Reward accuracy on each batch", series, note=note, reference=0.5)


def _gold_by_kl(metrics: Sequence[Mapping[str, Any]]) -> Markup:
    series = []
    for turn, rows in _rounds(metrics, "ppo").items():
        both = [row for row in rows if finite(row.get("gold_score"))]
        points = sorted(_points(both, "gold_score", "kl"))
        tone = "tone-bok" if turn > 1 else "tone-sft"
        name = f"gold, round {turn}" if turn > 1 else "gold"
        series.append(Series(name, points, tone, dots=True))
    note = "Score rising while this falls is over-optimisation of the reward model."
    return line_chart("Gold score by KL", series, note=note, x_label="KL from SFT, nats")


def _rounds(metrics: Sequence[Mapping[str, Any]], stage: str) -> dict[int, list[Mapping[str, Any]]]:
    """Rows of `stage` by round."""
    found: dict[int, list[Mapping[str, Any]]] = {}
    for row in metrics:
        stem, _, turn = str(row.get("stage", "")).partition(".")
        if stem == stage and (turn or "1").isdecimal():
            found.setdefault(int(turn or 1), []).append(row)
    return dict(sorted(found.items()))


def _points(
    rows: Sequence[Mapping[str, Any]], key: str, x_key: str = "step"
) -> list[tuple[float, float]]:
    found = [
        (row[x_key], row[key]) for row in rows if finite(row.get(key)) and finite(row.get(x_key))
    ]
    return sorted((float(x), float(y)) for x, y in found)


def _card(chart: Markup) -> Markup:
    return element("div", chart, class_="card")
