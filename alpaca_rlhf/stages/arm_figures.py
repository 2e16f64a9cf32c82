"""Figures of every arm of the evaluation for `report.json`, on any of the prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alpaca_rlhf.core.scorers import Scores
from alpaca_rlhf.evaluation.win_rate import bootstrap_ci, paired_gain, win_rate
from alpaca_rlhf.stages.arm_answers import Answers, Decoding
from alpaca_rlhf.stages.context import CONTROLS, control_of


@dataclass(frozen=True)
class ArmFigures:
    """The answers of every arm and their scores, as figures with intervals."""

    answers: Mapping[str, Answers]
    """Answers by arm."""
    judgements: Mapping[str, Mapping[Decoding, Sequence[Scores]]]
    """The judge's scores of them."""
    proxy: Mapping[str, Sequence[float]]
    """Scores of the last round's reward model, where there is one."""
    clusters: Sequence[int]
    """Cluster of near-duplicates of each prompt."""
    bootstrap: Mapping[str, int]
    """Options of a bootstrap interval: `resamples` and `seed`."""

    def of(self, name: str, indices: Sequence[int]) -> dict[str, Any]:
        """All figures of an arm on the prompts at `indices`."""
        golds, greedy = self._golds(name, "sampled", indices), self._golds(name, "greedy", indices)
        reference = self._golds("sft", "sampled", indices)
        options = self._resampling(indices)
        score, greedy_score = bootstrap_ci(golds, **options), bootstrap_ci(greedy, **options)
        gain = paired_gain(golds, reference, **options)
        greedy_gain = paired_gain(greedy, self._golds("sft", "greedy", indices), **options)
        wins = win_rate(golds, reference, **options)
        sampled = [self.answers[name].sampled[index] for index in indices]
        return {
            "gold_score": score.mean,
            "ci95": score.ci95,
            "gold_score_greedy": greedy_score.mean,
            "gold_score_greedy_ci95": greedy_score.ci95,
            "paired_gain_vs_sft": gain.mean,
            "paired_gain_ci95": gain.ci95,
            "greedy_gain_vs_sft": greedy_gain.mean,
            "greedy_gain_ci95": greedy_gain.ci95,
            "gold_parts": _mean_parts([self.judgements[name]["sampled"][i] for i in indices]),
            "gold_parts_greedy": _mean_parts([self.judgements[name]["greedy"][i] for i in indices]),
            "win_rate_vs_sft": wins.mean,
            "win_rate_ci95": wins.ci95,
            **self._against_control(name, indices),
            **({"proxy_score": _mean(self.proxy[name], indices)} if name in self.proxy else {}),
            **{key: _mean(values, indices) for key, values in self.answers[name].kl.items()},
            "stop_rate": sum(completion.finished for completion in sampled) / len(sampled),
            "mean_tokens": sum(len(completion.ids) for completion in sampled) / len(sampled),
        }

    def part(self, name: str, indices: Sequence[int]) -> dict[str, Any]:
        """The figures that a part of the prompts has: scores, and gain over SFT."""
        golds, reference = (self._golds(arm, "sampled", indices) for arm in (name, "sft"))
        gain = paired_gain(golds, reference, **self._resampling(indices))
        greedy = self._golds(name, "greedy", indices)
        return {
            **self.score(name, indices),
            "gold_score_greedy": sum(greedy) / len(greedy),
            "paired_gain_vs_sft": gain.mean,
            "paired_gain_ci95": gain.ci95,
        }

    def score(self, name: str, indices: Sequence[int]) -> dict[str, Any]:
        """An arm's gold score on a part of the prompts, with their number and their clusters'."""
        score = bootstrap_ci(self._golds(name, "sampled", indices), **self._resampling(indices))
        return {
            "gold_score": score.mean,
            "ci95": score.ci95,
            "n": len(indices),
            "clusters": self.clusters_among(indices),
        }

    def clusters_among(self, indices: Sequence[int]) -> int:
        """Clusters among some of the prompts, which an interval there resamples."""
        return len({self.clusters[index] for index in indices})

    def _against_control(self, name: str, indices: Sequence[int]) -> dict[str, Any]:
        """Gain over the same training on a choice or a reward that means nothing, if there is."""
        stem = name.partition(".")[0]
        control = control_of(name) if stem in CONTROLS else ""
        if control not in self.answers:
            return {}
        golds, reference = (self._golds(arm, "sampled", indices) for arm in (name, control))
        gain = paired_gain(golds, reference, **self._resampling(indices))
        return {"paired_gain_vs_control": gain.mean, "paired_gain_vs_control_ci95": gain.ci95}

    def _resampling(self, indices: Sequence[int]) -> dict[str, Any]:
        """Options of a bootstrap that resamples whole clusters of near-duplicates."""
        return {"groups": [self.clusters[index] for index in indices], **self.bootstrap}

    def _golds(self, name: str, decoding: Decoding, indices: Sequence[int]) -> list[float]:
        return [self.judgements[name][decoding][index].score for index in indices]


def _mean(values: Sequence[float], indices: Sequence[int]) -> float:
    return sum(values[index] for index in indices) / len(indices)


def _mean_parts(golds: Sequence[Scores]) -> dict[str, float]:
    return {part: sum(gold.parts[part] for gold in golds) / len(golds) for part in golds[0].parts}
