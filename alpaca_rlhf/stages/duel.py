"""The duel: the policies of a run that began as one SFT adapter and share one set of rankings.

All of it is read from what the run recorded: the ledger, the answers of the evaluation with their
scores, and the looks at a policy. Policies of later rounds began as different policies, so that
only those of the first round are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.runs import RunFolder
from alpaca_rlhf.core.shell_words import quoted
from alpaca_rlhf.core.sizes import too_few
from alpaca_rlhf.data import cluster_numbers
from alpaca_rlhf.evaluation.duel import Budget, TrainingPoint, differences, read_within
from alpaca_rlhf.evaluation.win_rate import Interval, bootstrap_ci, paired_gain
from alpaca_rlhf.report.policy_names import policy_label, policy_order
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.settings.another_run import command_of_another
from alpaca_rlhf.settings.policies import POLICY_STAGES, REWARDED_STAGES
from alpaca_rlhf.sources import Source
from alpaca_rlhf.stages.watch_words import scorer_in_words

_IN_UPDATES = ("ppo", "grpo", "rloo")
"""Policies that sample anew each update, which looks are taken of."""
_USUAL = ("ppo", "best-of-k")
"""Policies that a run trains unless it is told otherwise."""


@dataclass(frozen=True)
class Budgets:
    """Means at which the policies are read; None takes those of the cheapest."""

    completions: int | None = None
    """Completions that a policy samples itself."""
    seconds: float | None = None
    """Seconds of its training and of what it needs before."""


def contenders(ledger: Mapping[str, Any]) -> list[str]:
    """The policies of the first round that were trained and compared, in the order of the loop."""
    compared = ledger.get("evaluate", {}).get("facts", {}).get("policies", {})
    return policy_order(stage for stage in POLICY_STAGES if stage in ledger and stage in compared)


def duel_of(
    run: RunFolder,
    ledger: Mapping[str, Any],
    settings: Loop,
    source: Source,
    *,
    judge: str,
    budgets: Budgets | None = None,
) -> dict[str, Any]:
    """The content of `duel.json`.

    Args:
        run: The folder, which is only read.
        ledger: Its finished stages.
        settings: Its settings.
        source: Its prompts.
        judge: The judge of the evaluation, in words.
        budgets: Means at which the policies are read.

    Raises:
        UserError: There are no two policies to compare, or they cannot be compared.
    """
    names = contenders(ledger)
    _refuse_incomparable(run, ledger, settings, names)
    record = _Record(run, ledger, settings, source, names)
    return {
        "schema": 1,
        "seed": settings.seed,
        "judge": judge,
        "prompts": len(record.clusters),
        "clusters": len(set(record.clusters)),
        "rankings": record.rankings,
        "ranked_completions": record.ranked_completions,
        "policies": {name: record.contender(name) for name in names},
        "between": _pairs(differences(record.scores_of(names), **record.resampling)),
        "readings": record.readings(budgets or Budgets()),
        "notes": record.notes(),
    }


def _with_two(settings: Loop, kind: str) -> str:
    """The command that trains the run's policies and another one, from one SFT adapter."""
    others = [policy for policy in _USUAL if policy not in settings.policies]
    policies = [*settings.policies, *others[: max(0, 2 - len(settings.policies))]]
    command = "quickstart" if kind == "quickstart" else "loop"  # the small world is its alone
    return command_of_another(settings, ["--policies", *policies], suffix="duel", command=command)


def _refuse_incomparable(
    run: RunFolder, ledger: Mapping[str, Any], settings: Loop, names: Sequence[str]
) -> None:
    """Refuse a run whose policies cannot be compared.

    Raises:
        UserError: It has no evaluation, fewer than two policies, or they do not share SFT and
            rankings.
    """
    # 1. Two policies, and answers of both.
    if "evaluate" not in ledger:
        raise UserError(
            f"{run.path}: its policies have not been evaluated; first run: "
            f"alpaca-rlhf evaluate --out {quoted(run.path)}"
        )
    if len(names) < 2:
        only = f"has {policy_label(names[0])} alone" if names else "has none"
        raise UserError(
            f"{run.path}: a duel takes two policies that were trained and evaluated, and this run "
            f"{only}; train two with: {_with_two(settings, run.kind)}"
        )
    # 2. One SFT adapter. Runs of earlier versions do not say which it was.
    adapters = {name: ledger[name].get("sft_sha256") for name in names}
    known = {name: digest for name, digest in adapters.items() if digest is not None}
    if len(set(known.values())) > 1:
        first = next(iter(known))
        other = next(name for name in known if known[name] != known[first])
        raise UserError(
            f"{run.path}: {first} and {other} began as different SFT adapters, so that nothing can "
            f"be said of the two; train them again from one in another --out"
        )
    # 3. One set of rankings: that of the reward model and that of DPO.
    by_dpo = ledger.get("dpo", {}).get("facts", {}).get("rankings_digest")
    by_reward = ledger.get("reward_rankings", {}).get("digest")
    rewarded = [name for name in names if name in REWARDED_STAGES]
    if "dpo" in names and rewarded and by_dpo and by_reward and by_dpo != by_reward:
        raise UserError(
            f"{run.path}: dpo learned from other rankings than the reward model of "
            f"{', '.join(rewarded)}, since people went on ranking in between; train them again "
            "from one set in another --out"
        )


@dataclass(frozen=True)
class _Record:
    """A run's own account of its policies: ledger, answers and looks."""

    run: RunFolder
    ledger: Mapping[str, Any]
    settings: Loop
    source: Source
    names: Sequence[str]

    @cached_property
    def answers(self) -> list[dict[str, Any]]:
        """Rows of `answers.jsonl`, checked to be those of the evaluation's prompts.

        Raises:
            UserError: They are not there, or the prompts have changed.
        """
        answers = self.run.read_jsonl("answers.jsonl")
        prompts = self.source.prompts(self.settings.evaluate.split)
        answered = [(row["instruction"], row["input"]) for row in answers]
        if answered != [(prompt.instruction, prompt.input) for prompt in prompts]:
            raise UserError(
                f"{self.run.path / 'answers.jsonl'}: holds other prompts than the run's settings "
                "deal now, since a file of theirs has changed; put it back, or evaluate again"
            )
        return answers

    @cached_property
    def clusters(self) -> list[int]:
        """Cluster of near-duplicates of each evaluation prompt."""
        prompts = self.source.prompts(self.settings.evaluate.split)
        assert len(self.answers) == len(prompts)
        return cluster_numbers(prompts, self.source.key)

    @property
    def resampling(self) -> dict[str, Any]:
        """Options of the bootstrap over whole clusters, as in the evaluation."""
        return {"groups": self.clusters, **self.bootstrap}

    @cached_property
    def watched_clusters(self) -> list[int]:
        """Cluster of near-duplicates of each prompt of a look."""
        prompts = self.source.prompts("dev")[: self.settings.watch.prompts]
        return cluster_numbers(prompts, self.source.key)

    @property
    def resampling_looks(self) -> dict[str, Any]:
        """Options of the bootstrap of looks, over whole clusters of their prompts too."""
        return {"groups": self.watched_clusters, **self.bootstrap}

    def _is_enough(self, scores: Sequence[float]) -> bool:
        """True where a look was kept prompt by prompt, on enough clusters for an interval."""
        clusters = self.watched_clusters if scores else []
        return len(scores) == len(clusters) and not too_few(len(set(clusters)))

    @property
    def bootstrap(self) -> dict[str, Any]:
        """Resamples and seed of a bootstrap."""
        return {"resamples": self.settings.evaluate.bootstrap, "seed": self.settings.seed}

    def scores_of(self, names: Sequence[str]) -> dict[str, list[float]]:
        """The judge's scores of the sampled answers, by policy."""
        return {name: [row["answers"][name]["gold"] for row in self.answers] for name in names}

    @property
    def rankings(self) -> int | None:
        """Rankings behind the policies; None where a judge gave the reward."""
        if "rank" in self.ledger:
            return int(self.ledger["rank"]["examples"])
        return None if self.settings.reward.source == "judge" else self._imported_rankings

    @property
    def _imported_rankings(self) -> int:
        """Rankings of a file that were learned from or held out."""
        learned = self.ledger.get("reward") or self.ledger.get("dpo") or {"examples": 0}
        return int(learned["examples"]) + int(learned.get("facts", {}).get("held_out_prompts", 0))

    @property
    def ranked_completions(self) -> int | None:
        """Completions behind the rankings; None where they come from a file."""
        if self.settings.reward.source == "judge":
            return 0
        sampled = self.ledger.get("sample")
        return None if sampled is None else int(sampled["examples"])

    def completions(self, name: str) -> int:
        """Completions that a policy sampled to learn from."""
        row = self.ledger[name]
        if name == "best_of_k":
            return int(row["facts"]["candidates"])
        return int(row["examples"]) if name in _IN_UPDATES else 0

    def seconds(self, name: str) -> float:
        """Seconds of a stage, without those of the models that it trained beside."""
        row = self.ledger[name]
        beside = ("control_seconds", "second_seconds", "curve_seconds")
        seconds = sum(float(row["facts"].get(key, 0.0)) for key in beside)
        return max(0.0, float(row["seconds"]) - seconds)

    def seconds_before(self, name: str) -> float:
        """Seconds of what a policy's training needs: completions to rank, and the reward model."""
        needed = ["sample"] if "rank" in self.ledger else []
        needed += ["reward"] if name in REWARDED_STAGES and "reward" in self.ledger else []
        return sum(self.seconds(stage) for stage in needed if stage in self.ledger)

    def contender(self, name: str) -> dict[str, Any]:
        """A policy at the end, as `Contender` describes it."""
        row, watch = self.ledger[name], self.watch(name)
        figures = self.ledger["evaluate"]["facts"]["policies"]
        scores = self.scores_of([name, "sft"])
        score = bootstrap_ci(scores[name], **self.resampling)
        gain = self.gain(name)
        seconds = self.seconds(name), self.seconds_before(name)
        looks = (1 + len(watch["looks"])) * self.watched_prompts(name) if watch else 0
        return {
            "gold_score": score.mean,
            "ci95": score.ci95,
            "gain": gain.mean,
            "gain_ci95": gain.ci95,
            "gold_parts": figures[name]["gold_parts"],
            "gold_parts_of_sft": figures["sft"]["gold_parts"],
            "kl_from_sft_nats": figures[name]["kl_from_sft_nats"],
            "kl_from_sft_k3_nats": figures[name].get("kl_from_sft_k3_nats"),
            "mean_tokens": figures[name]["mean_tokens"],
            "completions": self.completions(name),
            "looked_at": looks,
            "kept_update": watch["kept_step"] if watch else None,
            "seconds": seconds[0],
            "seconds_before": seconds[1],
            "watt_hours": sum(seconds) * self.settings.evaluate.watts / 3600,
            "peak_memory_gib": row["peak_memory_gib"],
            "gpu_memory_gib": row.get("gpu_memory_gib"),
        }

    def gain(self, name: str) -> Interval:
        """Paired gain of a policy over SFT."""
        scores = self.scores_of([name, "sft"])
        return paired_gain(scores[name], scores["sft"], **self.resampling)

    def watch(self, name: str) -> Mapping[str, Any] | None:
        """The looks at a policy, where there were any."""
        watch: Mapping[str, Any] | None = self.ledger[name]["facts"].get("watch")
        return watch

    def watched_prompts(self, name: str) -> int:
        """Prompts of each look."""
        watch = self.watch(name) or {}
        return int(watch.get("prompts", self.settings.watch.prompts))

    def points(self, name: str) -> list[TrainingPoint]:
        """Every saved evaluation of a policy: its looks, and its end."""
        gain, before = self.gain(name), self.seconds_before(name)
        completions, seconds = self.completions(name), self.seconds(name)
        end = TrainingPoint(completions, seconds, before + seconds, None, gain.mean, gain.ci95)
        watch = self.watch(name)
        if watch is None:
            return [end]
        # 1. The scores prompt by prompt, where they were kept.
        file = f"{name}/looks.jsonl"
        rows = self.run.read_jsonl(file) if (self.run.path / file).is_file() else []
        scores = {row["step"]: row["scores"] for row in rows}
        # 2. Updates take about as long as each other, and sample as many completions.
        updates = watch["looks"][-1]["step"]
        points = []
        for look in watch["looks"]:
            share = look["step"] / updates
            by_prompt, at_start = scores.get(look["step"], ()), scores.get(0, ())
            enough = self._is_enough(by_prompt)
            interval = paired_gain(by_prompt, at_start, **self.resampling_looks) if enough else None
            points.append(
                TrainingPoint(
                    round(share * completions),
                    share * seconds,
                    before + share * seconds,
                    look["step"],
                    look["watch_score"] - watch["start"]["watch_score"],
                    interval.ci95 if interval else None,
                    by_prompt,
                )
            )
        return [*points, end]

    def readings(self, budgets: Budgets) -> list[dict[str, Any]]:
        """Every policy within as many completions, and within as many seconds from the SFT on."""
        points = {name: self.points(name) for name in self.names}
        sampling = [self.completions(name) for name in self.names if self.completions(name)]
        fewest = min(sampling, default=0)
        completions = fewest if budgets.completions is None else budgets.completions
        shortest = min(self.seconds(name) + self.seconds_before(name) for name in self.names)
        seconds = shortest if budgets.seconds is None else budgets.seconds
        return [
            self._reading(points, "completions", completions),
            self._reading(points, "total_seconds", seconds),
        ]

    def _reading(
        self, points: Mapping[str, Sequence[TrainingPoint]], by: Budget, budget: float
    ) -> dict[str, Any]:
        at = {name: read_within(course, budget, by) for name, course in points.items()}
        looks = {
            name: point.scores
            for name, point in at.items()
            if point and self._is_enough(point.scores)
        }
        return {
            "by": by,
            "budget": budget,
            "policies": {
                name: point
                and {
                    "update": point.update,
                    "completions": point.completions,
                    "seconds": point.seconds,
                    "total_seconds": point.total_seconds,
                    "gain": point.gain,
                    "ci95": point.ci95,
                }
                for name, point in at.items()
            },
            "between": _pairs(
                differences(looks, **self.resampling_looks) if len(looks) > 1 else []
            ),
        }

    def notes(self) -> list[str]:
        """Bounds of the comparison, a sentence each."""
        watched = [name for name in self.names if self.watch(name)]
        notes = []
        if not watched:
            notes.append(
                "No policy was looked at while it trained (--watch.every), so that each is read at "
                "its end alone."
            )
        else:
            labels = ", ".join(map(policy_label, watched))
            notes.append(
                f"{labels}: looks are on {self.watched_prompts(watched[0])} prompts of dev, by "
                f"{scorer_in_words(self.settings)}, and the adapter of the best look "
                "is the one that was evaluated; the seconds of an update are the stage's divided "
                "by the updates, the looks among them."
            )
        if self.ranked_completions is None:
            notes.append(
                "The rankings come from a file, so that the completions behind them are not "
                "counted."
            )
        with_control = [
            name for name in (*self.names, "reward") if self._control_is_in_the_seconds(name)
        ]
        if with_control:
            notes.append(
                f"The seconds of {', '.join(with_control)} include those of the control, which "
                "earlier versions did not measure."
            )
        if self.settings.all_rounds > 1:
            notes.append(
                "Policies of later rounds began as other policies than SFT and are not compared."
            )
        notes.append(
            "Seconds are those of a stage's last sitting; people's time to rank is not counted."
        )
        return notes

    def _control_is_in_the_seconds(self, name: str) -> bool:
        section = getattr(self.settings, name)
        controlled = bool(getattr(section, "control", False)) and name in self.ledger
        return controlled and "control_seconds" not in self.ledger[name]["facts"]


def _pairs(intervals: Sequence[tuple[str, str, Interval]]) -> list[dict[str, Any]]:
    return [
        {"first": first, "second": second, "gain": gain.mean, "ci95": gain.ci95}
        for first, second, gain in intervals
    ]
