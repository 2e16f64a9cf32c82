"""The curves of every stage, from the rows of `metrics.jsonl`; only what was logged is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from alpaca_rlhf.report.charts import LineChart, Series
from alpaca_rlhf.report.formatting import finite

Metrics = Sequence[Mapping[str, Any]]

_REJECTED = "rejected_"
_LOSSES = {"loss": "training", "eval_loss": "held out"}
_TOKEN_LOSS = "Token mean in nats; lower is better."
_PAIR_LOSS = "Minus log of the chance given to the right order; guessing scores 0.693."
PPO_CHARTS = (
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
"""Title, metrics with the names of their lines, and note."""


class ChartGroup(NamedTuple):
    """Charts under one heading, and the CSS class of their grid."""

    title: str
    charts: list[LineChart]
    grid: str


class GeneratedTasks(NamedTuple):
    """Tasks that were written, by verdict: `accepted` first, then the rules that dropped most."""

    chart: LineChart
    counts: dict[str, float]


def generated_tasks(metrics: Metrics) -> GeneratedTasks | None:
    """Accepted tasks over time and reasons for the others, if tasks were generated."""
    rows = [row for row in metrics if row.get("stage") == "generate"]
    if not rows:
        return None
    x_key = "requests" if any(finite(row.get("requests")) for row in rows) else "step"
    accepted = Series("accepted", _points(rows, "accepted", x_key), "tone-ppo")
    note = "Self-instruct: tasks written by the base that passed every filter, so far."
    # Rows hold counts so far, so the last value of each is the total.
    totals = {key: value for row in rows for key, value in row.items() if finite(value)}
    counts = {"accepted": totals.get("accepted", 0)} | {
        key.removeprefix(_REJECTED).replace("_", " "): totals[key]
        for key in sorted(totals, key=lambda key: -totals[key])
        if key.startswith(_REJECTED)
    }
    return GeneratedTasks(LineChart("Accepted tasks", [accepted], note, x_key), counts)


def curves(metrics: Metrics) -> list[ChartGroup]:
    """Loss, accuracy and PPO's figures, a chart each; groups without a curve are left out."""
    fits = [
        _chart(metrics, "SFT loss", "sft", _LOSSES, _TOKEN_LOSS),
        _chart(metrics, "Reward loss", "reward", _LOSSES, _PAIR_LOSS),
        _accuracy(metrics),
        _chart(metrics, "Best-of-K loss", "best_of_k", {"loss": "training"}, _TOKEN_LOSS),
    ]
    ppo = [
        _chart(metrics, title, "ppo", lines, note, x_label="update")
        for title, lines, note in PPO_CHARTS
    ]
    ppo.insert(3, _gold_by_kl(metrics))
    groups = [
        ChartGroup("Fine-tuning and the reward model", fits, "grid-2"),
        ChartGroup("PPO", ppo[:4], "grid-2"),
        ChartGroup("PPO in detail", ppo[4:], "grid-4"),
    ]
    drawn = [group._replace(charts=[chart for chart in group.charts if chart]) for group in groups]
    return [group for group in drawn if group.charts]


def _chart(
    metrics: Metrics,
    title: str,
    stage: str,
    lines: Mapping[str, str],
    note: str,
    x_label: str = "step",
) -> LineChart:
    series = []
    for round_, rows in _rounds(metrics, stage).items():
        for position, (key, label) in enumerate(lines.items()):
            is_first = position == 0
            tone = "tone-bok" if round_ > 1 else "tone-sft" if is_first else "tone-ppo"
            series.append(
                Series(
                    _line_label(label, round_),
                    _points(rows, key),
                    tone,
                    dashed=round_ > 1 and not is_first,
                    dots=key in ("eval_loss", "gold_score"),  # measured only now and then
                )
            )
    return LineChart(title, series, note, x_label)


def _accuracy(metrics: Metrics) -> LineChart:
    series = [
        Series(_line_label(label, round_), _points(rows, "accuracy"), tone, round_ > 1, dots=True)
        for stage, label, tone in (
            ("reward", "reward model", "tone-ppo"),
            ("reward_shuffled", "shuffled labels", "tone-base"),
        )
        for round_, rows in _rounds(metrics, stage).items()
    ]
    note = "Pairs put in the annotator's order, before the step learns them. Dashed: chance."
    return LineChart("Reward accuracy on each batch", series, note, reference=0.5)


def _gold_by_kl(metrics: Metrics) -> LineChart:
    series = [
        Series(
            _line_label("gold", round_),
            _points(rows, "gold_score", "kl"),
            "tone-bok" if round_ > 1 else "tone-sft",
            dots=True,
        )
        for round_, rows in _rounds(metrics, "ppo").items()
    ]
    note = "Score rising while this falls is over-optimisation of the reward model."
    return LineChart("Gold score by KL", series, note, "KL from SFT, nats")


def _line_label(label: str, round_: int) -> str:
    return f"{label}, round {round_}" if round_ > 1 else label


def _rounds(metrics: Metrics, stage: str) -> dict[int, list[Mapping[str, Any]]]:
    """Rows of `stage` by round."""
    rounds: dict[int, list[Mapping[str, Any]]] = {}
    for row in metrics:
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
