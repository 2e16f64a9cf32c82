"""The result of a run in a sentence, its charts of policies and reward models, and its checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from alpaca_rlhf.report.charts import IntervalChart, LineChart, Mark, Row, Series
from alpaca_rlhf.report.formatting import count, interval, number, percent, signed
from alpaca_rlhf.report.schema import (
    SLICES,
    Policy,
    Report,
    RewardModel,
    policy_label,
    policy_tone,
)

MAX_GREEDY_LOSS = 0.05
"""A policy may lose this much greedy correctness against SFT before the report says so."""
MIN_STOP_RATE = 0.97
"""Share of completions that must end by themselves."""
MAX_CONTROL_DRIFT = 0.05
"""Distance from one half that a control without an interval of its own may have."""
_PARTS = {
    "correct": "Correct",
    "well_formed": "Well-formed",
    "to_the_point": "To the point",
    "helpful": "Helpful extra",
    "friendly": "Friendly",
}


class Check(NamedTuple):
    """A condition under which the figures mean what they say."""

    holds: bool
    text: str


class Step(NamedTuple):
    """A policy and the one it was trained from."""

    before: str
    after: str


class Best(NamedTuple):
    """The policy that gained most over SFT; no gain is claimed within its interval."""

    name: str
    label: str
    policy: Policy

    @property
    def gains(self) -> bool:
        """True where the whole interval lies above zero."""
        return self.policy.paired_gain_ci95[0] > 0

    @property
    def loses(self) -> bool:
        """True where the whole interval lies below zero."""
        return self.policy.paired_gain_ci95[1] < 0


def best_policy(report: Report) -> Best | None:
    """The trained policy with the highest paired gain, if any was trained."""
    if not report.trained:
        return None
    name = max(report.trained, key=lambda name: report.policies[name].paired_gain_vs_sft)
    stem, _, round_ = name.partition(".")
    label = policy_label(stem) + (f" (round {round_})" if round_ else "")
    if stem == "best_of_k":
        label = label[0].lower() + label[1:]  # it stands within a sentence
    return Best(name, label, report.policies[name])


def gold_chart(report: Report) -> IntervalChart:
    """Every policy's gold score with its interval, and the greedy one."""
    rows = [
        Row(
            policy_label(name),
            policy_tone(name),
            Mark(policy.gold_score, policy.ci95),
            Mark(policy.gold_score_greedy, policy.gold_score_greedy_ci95),
        )
        for name, policy in report.ordered
    ]
    return IntervalChart(
        rows,
        caption="Gold score by policy. Filled: sampled at temperature 1, with its 95% interval. "
        "Hollow: greedy. Dashed: SFT at temperature 1.",
        reference=report.policies["sft"].gold_score,
    )


def part_names(report: Report) -> list[str]:
    """Parts of the gold score, in the order they are shown in."""
    known = list(_PARTS)

    def position(part: str) -> tuple[int, str]:
        return (known.index(part) if part in known else len(known), part)

    return sorted(report.policies["sft"].gold_parts, key=position)


def part_label(part: str) -> str:
    """The title of a part: `to_the_point` is `To the point`."""
    return _PARTS.get(part, part.replace("_", " ").capitalize())


def part_charts(report: Report) -> list[IntervalChart]:
    """Style against correctness: a chart of all policies for each part of the score."""
    return [
        IntervalChart(
            [
                Row(
                    policy_label(name),
                    policy_tone(name),
                    Mark(policy.gold_parts[part]),
                    Mark(policy.gold_parts_greedy[part]),
                )
                for name, policy in report.ordered
            ],
            caption=part_label(part),
        )
        for part in part_names(report)
    ]


def steps(report: Report) -> list[Step]:
    """SFT after the base, round 1 after SFT, a later round after the one before it."""
    found = []
    for name, _ in report.ordered:
        stem, _, round_ = name.partition(".")
        if name == "sft" and "base" in report.policies:
            found.append(Step("base", name))
        elif stem in ("best_of_k", "ppo"):
            earlier = [f"{stem}.{int(round_) - 1}", stem] if round_ else []
            before = next((policy for policy in earlier if policy in report.policies), "sft")
            found.append(Step(before, name))
    return found


def purchases(report: Report) -> list[tuple[str, str]]:
    """(label, sentence): what each policy trained on preferences bought."""
    style = [part for part in part_names(report) if part != "correct"]
    lines = []
    for before, after in steps(report):
        if after == "sft":
            continue
        old, new = report.policies[before], report.policies[after]
        change = {part: new.gold_parts[part] - old.gold_parts[part] for part in new.gold_parts}
        greedy = new.gold_parts_greedy["correct"] - old.gold_parts_greedy["correct"]
        text = (
            f"changed correctness by {signed(change['correct'])} at temperature 1"
            f" and by {signed(greedy)} greedy, against {policy_label(before)}"
        )
        if style:
            most = max(style, key=lambda part: abs(change[part]))
            text += (
                f"; the style it changed most is “{part_label(most).lower()}”, "
                f"by {signed(change[most])}"
            )
        lines.append((policy_label(after), text + "."))
    return lines


def slice_charts(report: Report) -> list[IntervalChart]:
    """Gold scores on the slices of the evaluation prompts that were measured."""
    charts = []
    for key, title in SLICES.items():
        measured = [
            (name, report.slices[name][key])
            for name, _ in report.ordered
            if key in report.slices.get(name, {})
        ]
        if measured:
            rows = [
                Row(policy_label(name), policy_tone(name), Mark(score.gold_score, score.ci95))
                for name, score in measured
            ]
            caption = f"{title} ({count(measured[0][1].n)} prompts)"
            charts.append(IntervalChart(rows, caption))
    return charts


def reward_chart(models: Sequence[RewardModel]) -> IntervalChart:
    """Held-out accuracy against the control that learned from shuffled labels."""
    rows = []
    for model in models:
        suffix = f", round {model.round}" if len(models) > 1 else ""
        control = Mark(model.shuffled_label_accuracy, model.shuffled_label_ci95)
        rows.append(Row(f"Reward{suffix}", "tone-ppo", Mark(model.held_out_accuracy, model.ci95)))
        rows.append(Row(f"Shuffled{suffix}", "tone-base", control))
    caption = (
        "Share of held-out pairs put in the annotator's order, after learning from "
        f"{' and '.join(count(model.pairs) for model in models)} others. "
        "Dashed: chance. Shuffled: the same training on labels that mean nothing."
    )
    return IntervalChart(rows, caption, domain=(0.4, 1.0), reference=0.5)


def pair_summary(model: RewardModel) -> str:
    """The figures of held-out pairs that a reward model has, in a sentence; empty without any."""
    figures = (
        (model.log_loss, "log loss (guessing scores 0.69)"),
        (model.calibration_error, "calibration error"),
        (model.saturated, "share of pairs that it is all but certain of"),
        (model.length_correlation, "correlation of score and length"),
        (model.length_rank_correlation, "of their ranks"),
    )
    shown = [f"{meaning} {number(value)}" for value, meaning in figures if value is not None]
    return "; ".join(shown).capitalize() + "." if shown else ""


def best_of_k_chart(report: Report) -> LineChart:
    """The expected best of n scores, a line for each round."""
    return LineChart(
        "Expected best of n scores",
        [
            Series(
                f"round {row.round}",
                [(float(n), score) for n, score in enumerate(row.expected_best_score, 1)],
                "tone-bok" if row.round == 1 else "tone-sft",
                dashed=row.round > 1,
                dots=True,
            )
            for row in report.best_of_k
        ],
        note="Mean over prompts of the highest of n scores, estimated without bias from all K. "
        "The reward model's own view: the judge's stands above.",
        x_label="n",
    )


def checks(report: Report) -> list[Check]:
    """Conditions under which the figures mean what they say."""
    overlap = report.prompts.overlap
    return [
        Check(
            overlap == 0,
            f"Prompts shared by two splits: {count(overlap)}. Scores of prompts seen in training "
            "would measure memory.",
        ),
        *(check for model in report.reward_models for check in _reward_checks(model)),
        *(check for name, _ in report.ordered for check in _policy_checks(report, name)),
    ]


def _reward_checks(model: RewardModel) -> list[Check]:
    name = f"Reward model of round {model.round}"
    control, ends = model.shuffled_label_accuracy, model.shuffled_label_ci95
    is_near = abs(control - 0.5) <= MAX_CONTROL_DRIFT
    return [
        Check(
            model.ci95[0] > 0.5,
            f"{name}: held-out accuracy {interval(model.ci95)}, above one half.",
        ),
        Check(
            is_near or (ends is not None and ends[0] <= 0.5 <= ends[1]),
            f"{name}, trained on shuffled labels: {number(control)}. It can have learned "
            "nothing, so anything but one half would be a leak.",
        ),
    ]


def _policy_checks(report: Report, name: str) -> list[Check]:
    policy, label, found = report.policies[name], policy_label(name), []
    if name in report.trained:
        ends = interval(policy.paired_gain_ci95, plus=True)
        text = f"{label}: gain over SFT {ends}; an interval above 0 is a gain."
        found.append(Check(policy.paired_gain_ci95[0] > 0, text))
        correct = report.policies["sft"].gold_parts_greedy.get("correct")
        if correct is not None:
            change = policy.gold_parts_greedy["correct"] - correct
            text = (
                f"{label}: greedy correctness {signed(change)} against SFT; more than "
                f"{number(MAX_GREEDY_LOSS)} lost would be style bought with substance."
            )
            found.append(Check(change >= -MAX_GREEDY_LOSS, text))
    if not name.startswith("base"):
        text = (
            f"{label}: {percent(policy.stop_rate, 1)} of the completions end by themselves, "
            f"{percent(MIN_STOP_RATE)} are asked for."
        )
        found.append(Check(policy.stop_rate >= MIN_STOP_RATE, text))
    return found
