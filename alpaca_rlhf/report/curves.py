"""Lines of every stage, from the rows of `metrics.jsonl`; only what was logged is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alpaca_rlhf.report.charts import LineChart, Series
from alpaca_rlhf.report.formatting import finite

Metrics = Sequence[Mapping[str, Any]]

_REJECTED = "rejected_"


def accepted_tasks(metrics: Metrics, title: str, note: str) -> LineChart:
    """Accepted tasks over the requests or, where they were not counted, over the steps."""
    rows = [row for row in metrics if row.get("stage") == "generate"]
    x_key = "requests" if any(finite(row.get("requests")) for row in rows) else "step"
    series = Series("accepted", _points(rows, "accepted", x_key), "tone-ppo")
    return LineChart(title, [series], note, x_key)


def task_counts(metrics: Metrics) -> dict[str, float]:
    """Tasks that were written, by verdict: `accepted`, then the rules that dropped most.

    Empty where none was generated.
    """
    rows = [row for row in metrics if row.get("stage") == "generate"]
    # Rows hold counts so far, so the last value of each is the total.
    totals = {key: value for row in rows for key, value in row.items() if finite(value)}
    rules = [key for key in totals if key.startswith(_REJECTED)]
    return ({"accepted": totals.get("accepted", 0)} if rows else {}) | {
        rule.removeprefix(_REJECTED).replace("_", " "): totals[rule]
        for rule in sorted(rules, key=lambda rule: -totals[rule])
    }


def chart(
    metrics: Metrics,
    title: str,
    stage: str,
    lines: Mapping[str, str],
    note: str,
    x_label: str = "step",
) -> LineChart:
    """A stage's metrics over its steps; `lines` maps a metric to the name of its line."""
    series = []
    for round_, rows in _rounds(metrics, stage).items():
        for position, (key, label) in enumerate(lines.items()):
            # Later rounds have one colour; all their lines but the first are dashed.
            tone = "tone-ppo" if position else "tone-sft"
            sparse = key.startswith("eval_") or key == "gold_score"  # measured only now and then
            series.append(
                Series(
                    _line_label(label, round_),
                    _points(rows, key),
                    "tone-bok" if round_ > 1 else tone,
                    dashed=round_ > 1 and position > 0,
                    dots=sparse,
                )
            )
    return LineChart(title, series, note, x_label)


def reward_accuracy(metrics: Metrics, title: str, note: str) -> LineChart:
    """Accuracy of the reward model and of its control on each batch."""
    series = [
        Series(_line_label(label, round_), _points(rows, "accuracy"), tone, round_ > 1, dots=True)
        for stage, label, tone in (
            ("reward", "reward model", "tone-ppo"),
            ("reward_shuffled", "shuffled labels", "tone-base"),
        )
        for round_, rows in _rounds(metrics, stage).items()
    ]
    return LineChart(title, series, note, reference=0.5)


def gold_by_kl(metrics: Metrics, title: str, note: str, x_label: str) -> LineChart:
    """The judge's score over the distance from SFT, of every PPO update that was judged."""
    series = [
        Series(
            _line_label("gold", round_),
            _points(rows, "gold_score", "kl"),
            "tone-bok" if round_ > 1 else "tone-sft",
            dots=True,
        )
        for round_, rows in _rounds(metrics, "ppo").items()
    ]
    return LineChart(title, series, note, x_label)


def courses_of_ppo(metrics: Metrics) -> list[tuple[list[tuple[float, float]], bool]]:
    """Points of the judge's score over KL, and of the reward model's (True), of judged rounds."""
    rounds = [
        [row for row in rows if finite(row.get("gold_score"))]
        for rows in _rounds(metrics, "ppo").values()
    ]
    return [
        (points, key == "score")
        for rows in rounds
        for key in ("gold_score", "score")
        if (points := _points(rows, key, "kl"))
    ]


def _line_label(label: str, round_: int) -> str:
    return f"{label}, round {round_}" if round_ > 1 else label


def _rounds(metrics: Metrics, stage: str) -> dict[int, list[Mapping[str, Any]]]:
    """Rows of `stage` by round."""
    rounds: dict[int, list[Mapping[str, Any]]] = {}
    for row in metrics:
        # `ppo` is round 1 and `ppo.2` round 2; a suffix that is no number is another stage.
        stem, _, round_ = str(row.get("stage", "")).partition(".")
        if stem == stage and (round_ or "1").isdecimal():
            rounds.setdefault(int(round_ or 1), []).append(row)
    return dict(sorted(rounds.items()))


def _points(
    rows: Sequence[Mapping[str, Any]], key: str, x_key: str = "step"
) -> list[tuple[float, float]]:
    """(x, y) of the rows that hold both, x ascending."""
    return sorted(
        (float(row[x_key]), float(row[key]))
        for row in rows
        if finite(row.get(key)) and finite(row.get(x_key))
    )
