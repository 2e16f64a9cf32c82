"""Accuracy and calibration of a reward model on held-out pairs, by kind of pair. Pure numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alpaca_rlhf.evaluation.win_rate import Interval, accuracy_interval, accuracy_lead
from alpaca_rlhf.training.held_out import HeldOutEvaluation, HeldOutPair

SATURATED = 0.99
"""A pair is saturated where the model gives either side at least this probability: almost nothing
is left to learn from it."""
LENGTHS: Final = (
    (-0.5, "less than half as long"),
    (-0.1, "shorter"),
    (0.1, "about as long"),
    (0.5, "longer"),
    (1.0, "more than twice as long"),
)
"""Relative lengths of the preferred completion, each up to a difference in tokens, given as a share
of the longer completion."""
CONFIDENCES: Final = (
    (0.6, "0.5 to 0.6"),
    (0.7, "0.6 to 0.7"),
    (0.8, "0.7 to 0.8"),
    (0.9, "0.8 to 0.9"),
    (np.inf, "0.9 to 1"),
)
"""Bins of the probability that the model gives the side it prefers, each below its upper end."""


def facts_of_others(
    trained_pairs: int, pairs: Sequence[HeldOutPair], *, resamples: int, seed: int
) -> dict[str, Any]:
    """The accuracy of a reward model on rankings that another one has learned from, with baselines.

    Args:
        trained_pairs: Pairs that it was trained on itself.
        pairs: The others' pairs, with its scores.
        resamples: Bootstrap resamples over prompts.
        seed: Seed of the resampling.
    """
    accuracy = accuracy_of(pairs, resamples=resamples, seed=seed)
    return {
        "trained_pairs": trained_pairs,
        "pairs": len(pairs),
        "prompts": _prompts(pairs),
        "accuracy": accuracy.mean,
        "ci95": accuracy.ci95,
        "baselines": baselines(pairs, resamples=resamples, seed=seed),
    }


def accuracy_of(pairs: Sequence[HeldOutPair], *, resamples: int, seed: int) -> Interval:
    """Share of pairs scored in the annotator's order, its interval resampled over prompts.

    Raises:
        ValueError: There are no pairs.
    """
    return accuracy_interval(correct_by_prompt(pairs), resamples=resamples, seed=seed)


def correct_by_prompt(pairs: Sequence[HeldOutPair]) -> list[list[float]]:
    """1 for each pair in the annotator's order, 0 for each other, a list for each prompt."""
    return _by_prompt(pairs, lambda pair: pair.correct)


def baselines(pairs: Sequence[HeldOutPair], *, resamples: int, seed: int) -> list[dict[str, Any]]:
    """Accuracy on the same pairs of rules that learn nothing, and the reward model's lead.

    Each is `{"is", "accuracy", "ci95", "lead", "lead_ci95"}`. "the first sampled" stands only
    where it is known of all pairs.

    Raises:
        ValueError: There are no pairs.
    """
    rules: dict[str, Callable[[HeldOutPair], float]] = {
        "the longer": lambda pair: _share(pair.tokens[0] - pair.tokens[1]),
        "the shorter": lambda pair: _share(pair.tokens[1] - pair.tokens[0]),
    }
    if all(pair.samples is not None for pair in pairs):
        rules["the first sampled"] = _first_sampled
    options = {"resamples": resamples, "seed": seed}
    correct = correct_by_prompt(pairs)
    rows = []
    for name, rule in rules.items():
        by_rule = _by_prompt(pairs, rule)
        accuracy = accuracy_interval(by_rule, **options)
        lead = accuracy_lead(correct, by_rule, **options)
        rows.append(
            {
                "is": name,
                "accuracy": accuracy.mean,
                "ci95": accuracy.ci95,
                "lead": lead.mean,
                "lead_ci95": lead.ci95,
            }
        )
    return rows


def _by_prompt(
    pairs: Sequence[HeldOutPair], value_of: Callable[[HeldOutPair], float]
) -> list[list[float]]:
    """Values of the pairs, a list for each prompt in the order of their first pairs."""
    by_prompt: dict[str, list[float]] = {}
    for pair in pairs:
        by_prompt.setdefault(pair.prompt_id, []).append(value_of(pair))
    return list(by_prompt.values())


def _first_sampled(pair: HeldOutPair) -> float:
    assert pair.samples is not None
    better, worse = pair.samples
    return _share(worse - better)


def _share(advantage: float) -> float:
    """1 where the better one of a pair is chosen, one half where nothing tells them apart."""
    return 1.0 if advantage > 0 else 0.5 if advantage == 0 else 0.0


def figures(held_out: HeldOutEvaluation, *, resamples: int, seed: int) -> dict[str, Any]:
    """Every held-out figure of `docs/metrics.md`, for `report.json`."""
    gaps = np.array([pair.gap for pair in held_out.pairs])
    accuracy = accuracy_of(held_out.pairs, resamples=resamples, seed=seed)
    return {
        "held_out_pairs": len(held_out.pairs),
        "held_out_prompts": _prompts(held_out.pairs),
        "held_out_accuracy": accuracy.mean,
        "ci95": accuracy.ci95,
        "baselines": baselines(held_out.pairs, resamples=resamples, seed=seed),
        # -log sigmoid(gap), in a form that does not overflow.
        "log_loss": float(np.logaddexp(0.0, -gaps).mean()),
        "calibration_error": calibration_error(gaps),
        "saturated": float((_probability(np.abs(gaps)) >= SATURATED).mean()),
        "length_correlation": correlation(held_out.scores, held_out.lengths),
        "length_rank_correlation": correlation(_ranks(held_out.scores), _ranks(held_out.lengths)),
        "accuracy_by": accuracy_by(held_out, resamples=resamples, seed=seed),
    }


def accuracy_by(
    held_out: HeldOutEvaluation, *, resamples: int, seed: int
) -> dict[str, list[dict[str, Any]]]:
    """Accuracy by K, distance in tiers, length, confidence and criterion, where there are pairs.

    Each is a list of `{"is", "pairs", "prompts", "accuracy", "ci95"}`; `confidence` rows also hold
    the mean probability that the model gave the side it preferred.
    """

    def rows(kinds: Mapping[str, Sequence[HeldOutPair]]) -> list[dict[str, Any]]:
        accuracies = {
            name: accuracy_of(pairs, resamples=resamples, seed=seed)
            for name, pairs in kinds.items()
            if pairs
        }
        return [
            {
                "is": name,
                "pairs": len(kinds[name]),
                "prompts": _prompts(kinds[name]),
                "accuracy": accuracy.mean,
                "ci95": accuracy.ci95,
            }
            for name, accuracy in accuracies.items()
        ]

    def split(
        kind_of: Callable[[HeldOutPair], str], names: Sequence[str]
    ) -> dict[str, list[HeldOutPair]]:
        kinds: dict[str, list[HeldOutPair]] = {name: [] for name in names}
        for pair in held_out.pairs:
            if kind_of(pair) in kinds:
                kinds[kind_of(pair)].append(pair)
        return kinds

    def names_of(values: set[int]) -> list[str]:
        return [str(value) for value in sorted(values)]

    # 1. Name the kinds of pairs that occur. 0 tiers means that nobody put the two in tiers.
    completions = names_of({pair.completions for pair in held_out.pairs})
    tiers = names_of({pair.tier_gap for pair in held_out.pairs} - {0})
    # 2. Compare confidence with accuracy, bin by bin: a reliability table.
    by_confidence = split(_confidence_bin, [name for _, name in CONFIDENCES])
    confidences = rows(by_confidence)
    for row in confidences:
        gaps = np.array([pair.gap for pair in by_confidence[row["is"]]])
        row["confidence"] = float(_probability(np.abs(gaps)).mean())
    # 3. Measure the other kinds; those without pairs are left out.
    tables = {
        "completions": rows(split(lambda pair: str(pair.completions), completions)),
        "tiers_apart": rows(split(lambda pair: str(pair.tier_gap), tiers)),
        "preferred_is": rows(split(_length_bin, [name for _, name in LENGTHS])),
        "confidence": confidences,
        "criterion": rows(held_out.criteria),
    }
    return {name: table for name, table in tables.items() if table}


def calibration_error(gaps: ArrayLike, bins: int = 10) -> float:
    """Expected calibration error of sigmoid(gap) as the probability that the first side is better.

    Each of the (N,) gaps counts from both sides: sigmoid(gap) for the side that is better,
    sigmoid(-gap) for the other.

    Source: Guo et al. 2017 (arXiv 1706.04599) section 3.
    """
    better = np.asarray(gaps, dtype=np.float64)
    probability = _probability(np.concatenate([better, -better]))
    label = np.concatenate([np.ones_like(better), np.zeros_like(better)])
    # A probability of exactly 1 belongs to the last bin.
    bin_of = np.minimum((probability * bins).astype(int), bins - 1)
    error = 0.0
    for bin_ in range(bins):
        inside = bin_of == bin_
        if inside.any():
            # A bin weighs as much as the share of probabilities in it.
            error += float(inside.mean() * abs(probability[inside].mean() - label[inside].mean()))
    return error


def correlation(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson correlation of two lists of numbers; 0 where one of them is constant."""
    a, b = (np.asarray(values, dtype=np.float64) for values in (x, y))
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / scale if scale > 0 else 0.0


def _ranks(x: ArrayLike) -> NDArray[np.float64]:
    """Ranks from 1, ties sharing their mean; Pearson's correlation of ranks is Spearman's."""
    _, inverse, counts = np.unique(np.asarray(x), return_inverse=True, return_counts=True)
    # Equal values take up the last `counts` ranks up to counts.cumsum(); this is their middle.
    mean: NDArray[np.float64] = counts.cumsum() - (counts - 1) / 2
    return mean[inverse]


def _prompts(pairs: Sequence[HeldOutPair]) -> int:
    """Number of prompts that the pairs belong to."""
    return len({pair.prompt_id for pair in pairs})


def _probability(gaps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probability that the first side is better: sigmoid(gap), by Bradley and Terry."""
    probability: NDArray[np.float64] = np.exp(-np.logaddexp(0.0, -gaps))
    return probability


def _confidence_bin(pair: HeldOutPair) -> str:
    probability = float(_probability(np.array([abs(pair.gap)]))[0])
    return next(name for end, name in CONFIDENCES if probability < end)


def _length_bin(pair: HeldOutPair) -> str:
    preferred, rejected = pair.tokens
    difference = (preferred - rejected) / max(1, preferred, rejected)
    return next(name for end, name in LENGTHS if difference <= end)
