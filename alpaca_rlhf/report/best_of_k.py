"""The report's section on best-of-K: what choosing promises, and what the fine-tuning took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alpaca_rlhf.report.charts import Series, line_chart
from alpaca_rlhf.report.markup import Markup, element, finite, join, number, table

_NOTE = (
    "Mean over prompts of the highest of n scores, estimated without bias from all K. The reward "
    "model's own view: the judge's stands above."
)
_CAPTION = (
    "The bound is how far the best of K completions, used as a policy, can lie from the policy "
    "they are drawn from: log K - (K - 1) / K. It does not cover a choice among the winners, by "
    "their share or by a threshold, nor the fine-tuning; the KL of the fine-tuned policy from SFT "
    "is measured on its own completions of the evaluation prompts."
)


def best_of_k(report: Mapping[str, Any]) -> Markup:
    """The expected best of n scores, and the KL that was promised beside the measured one."""
    series, rows = [], []
    for one in report.get("best_of_k", ()):
        turn = one["round"]
        points = [(float(n), score) for n, score in enumerate(one["expected_best_score"], 1)]
        tone = "tone-bok" if turn == 1 else "tone-sft"
        series.append(Series(f"round {turn}", points, tone, dashed=turn > 1, dots=True))
        policy = report["policies"].get("best_of_k" if turn == 1 else f"best_of_k.{turn}", {})
        rows.append(
            [
                f"Round {turn}, K = {one['k']}",
                f"{one['candidates']:,}",
                f"{one['finished']:,}",
                f"{one['winners']:,}",
                number(one["mean_best_score"]),
                number(one["sampler_kl_bound_nats"]),
                *(_measured(policy, key) for key in ("kl_from_sft_nats", "kl_from_sft_k3_nats")),
            ]
        )
    if not rows:
        return Markup()
    head = ["Best-of-K", "Candidates", "Finished", "Chosen", "Their score"]
    head += ["Bound, nats", "KL from SFT, k1", "k3"]
    chart = line_chart("Expected best of n scores", series, note=_NOTE, x_label="n")
    return join([element("div", chart, class_="card"), table(head, rows, caption=_CAPTION)])


def _measured(policy: Mapping[str, Any], key: str) -> str:
    return number(policy[key]) if finite(policy.get(key)) else "not measured"
