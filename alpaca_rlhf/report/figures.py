"""Rows and comparisons that the report's templates show; their words stand in the templates."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from alpaca_rlhf.evaluation.accuracy_words import ensemble_in_words
from alpaca_rlhf.evaluation.learning_curve import more_in_words
from alpaca_rlhf.report import curves
from alpaca_rlhf.report.charts import Mark, Row, Series, TwoScores
from alpaca_rlhf.report.formatting import count
from alpaca_rlhf.report.policy_names import policy_label, policy_reranks, policy_tone
from alpaca_rlhf.report.schema import Policy, Report, RewardModel, WatchedPolicy
from alpaca_rlhf.settings.policies import POLICY_STAGES

MAX_GREEDY_LOSS = 0.05
"""A policy may lose this much greedy correctness against SFT before the report says so."""
MIN_STOP_RATE = 0.97
"""Share of completions that must end by themselves."""
MAX_CONTROL_DRIFT = 0.05
"""Distance from one half that a control without an interval of its own may have."""
_FIRST_PARTS = ("correct", "form", "to_the_point")
"""Parts of the gold judge's score, in the order they are shown in; those of other judges follow."""


class Step(NamedTuple):
    """A policy and the one it was trained from, by name and with their figures."""

    before_name: str
    after_name: str
    before: Policy
    after: Policy

    def change(self, part: str) -> float:
        """Change of a part of the gold score, sampled."""
        return self.after.gold_parts[part] - self.before.gold_parts[part]

    def greedy_change(self, part: str) -> float:
        """The same for greedy answers."""
        return self.after.gold_parts_greedy[part] - self.before.gold_parts_greedy[part]

    def most_changed(self, parts: Iterable[str]) -> str:
        """The part that changed most, sampled."""
        return max(parts, key=lambda part: abs(self.change(part)))


def best_policy(report: Report) -> str | None:
    """The policy trained on preferences that gained most over SFT, if there is one."""
    gain = {name: report.policies[name].paired_gain_vs_sft for name in report.trained}
    return max(gain, key=lambda name: gain[name], default=None)


def gold_rows(report: Report) -> list[Row]:
    """Every policy's gold score with its interval, and the greedy one."""
    return [
        _row(
            name,
            Mark(policy.gold_score, None if report.too_few else policy.ci95),
            None
            if policy_reranks(name)  # K greedy answers are all the same
            else Mark(
                policy.gold_score_greedy,
                None if report.too_few else policy.gold_score_greedy_ci95,
            ),
        )
        for name, policy in report.ordered
    ]


def scores_by_kl(report: Report, metrics: curves.Metrics, title: str, note: str) -> TwoScores:
    """The judge's and the reward model's score of every policy, and the course of PPO, over KL."""
    points = [
        (
            policy_label(name),
            policy_tone(name),
            policy.kl_from_sft_nats,
            policy.gold_score,
            policy.proxy_score,
        )
        for name, policy in report.ordered
    ]
    courses = [
        (Series("PPO", line, policy_tone("ppo")), on_right)
        for line, on_right in curves.courses_of_ppo(metrics)
    ]
    return TwoScores(title, note, "KL from SFT, nats (its root to scale)", points, courses)


def scores_while_training(name: str, watch: WatchedPolicy, title: str, note: str) -> TwoScores:
    """The held-out score and the reward of every look at a policy over its KL from SFT."""
    looks = [watch.start, *watch.looks]
    tone, kept = policy_tone(name), watch.kept
    points = [
        (label, look_tone, look.watch_kl, look.watch_score, look.watch_reward)
        for label, look_tone, look in (
            ("Start", policy_tone("sft"), watch.start),
            (f"Kept, update {kept.step}", tone, kept),
        )
    ]
    held_out = Series("held out", [(look.watch_kl, look.watch_score) for look in looks], tone)
    reward = Series("reward", [(look.watch_kl, look.watch_reward) for look in looks], tone)
    courses = [(held_out, False), (reward, True)]
    return TwoScores(title, note, "KL from SFT, nats (its root to scale)", points, courses)


def part_rows(report: Report, part: str) -> list[Row]:
    """Every policy's mean of one part of the gold score, sampled and greedy."""
    return [
        _row(name, Mark(policy.gold_parts[part]), Mark(policy.gold_parts_greedy[part]))
        for name, policy in report.ordered
    ]


def slice_rows(report: Report, key: str) -> list[Row]:
    """Gold scores on one slice of the evaluation prompts, of the policies that have one."""
    return [
        _row(name, Mark(scores[key].gold_score, None if scores[key].too_few else scores[key].ci95))
        for name, _ in report.ordered
        if key in (scores := report.slices.get(name, {}))
    ]


def reward_rows(report: Report) -> list[Row]:
    """Held-out accuracy of every reward model, of its control, and of its baselines."""
    rows: list[Row] = []
    for model in report.reward_models:
        suffix = f", round {model.round}" if len(report.reward_models) > 1 else ""
        marks = [
            ("Reward", "tone-ppo", model.held_out_accuracy, model.ci95),
            *(
                [("Shuffled", "tone-base", control, model.shuffled_label_ci95)]
                if (control := model.shuffled_label_accuracy) is not None
                else []
            ),
            *(
                (baseline.kind.capitalize(), "tone-few", baseline.accuracy, baseline.ci95)
                for baseline in model.baselines
            ),
        ]
        rows += [
            Row(f"{label}{suffix}", tone, Mark(accuracy, None if model.too_few else ci95))
            for label, tone, accuracy, ci95 in marks
        ]
    return rows


def learning_curve_rows(model: RewardModel) -> list[Row]:
    """Held-out accuracy of the reward models on each subset of the rankings."""
    return [
        Row(
            f"{count(point.rankings)} rankings",
            "tone-ppo" if point is model.learning_curve[-1] else "tone-base",
            Mark(point.accuracy, None if model.too_few else point.ci95),
        )
        for point in model.learning_curve
    ]


def more_rankings(model: RewardModel) -> str:
    """A sentence on what to expect of more rankings."""
    assert model.more_rankings is not None
    measured_on = {"prompts": model.held_out_prompts}  # older reports say it here alone
    return more_in_words({**model.more_rankings.model_dump(), **measured_on})


def ensemble(model: RewardModel) -> str:
    """The heads of a reward model that has several, in words."""
    return ensemble_in_words(model.model_dump())


def best_of_k_series(report: Report) -> list[Series]:
    """The expected best of n scores over n, a line for each round."""
    return [
        Series(
            f"round {row.round}",
            [(float(n), score) for n, score in enumerate(row.expected_best_score, 1)],
            "tone-bok" if row.round == 1 else "tone-sft",
            dashed=row.round > 1,
            dots=True,
        )
        for row in report.best_of_k
    ]


def part_names(report: Report) -> list[str]:
    """Parts of the gold score, in the order they are shown in."""
    parts = report.policies["sft"].gold_parts
    return [part for part in _FIRST_PARTS if part in parts] + sorted(set(parts) - set(_FIRST_PARTS))


def part_label(part: str) -> str:
    """The title of a part: `to_the_point` is `To the point`."""
    return part.replace("_", " ").capitalize()


def steps(report: Report) -> list[Step]:
    """SFT after the base, round 1 after SFT, a later round after the one before it."""
    policies, pairs = report.policies, []
    for name, _ in report.ordered:
        stem, _, round_ = name.partition(".")
        if name == "sft" and "base" in policies:
            pairs.append(("base", name))
        elif stem in POLICY_STAGES:
            # The first round bears no number.
            earlier = [f"{stem}.{int(round_) - 1}", stem] if round_ else []
            pairs.append((next((policy for policy in earlier if policy in policies), "sft"), name))
    return [Step(before, after, policies[before], policies[after]) for before, after in pairs]


def _row(name: str, full: Mark, hollow: Mark | None = None) -> Row:
    return Row(policy_label(name), policy_tone(name), full, hollow)
