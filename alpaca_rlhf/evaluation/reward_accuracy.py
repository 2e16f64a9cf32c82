"""How well a reward model orders pairs it has not seen, and which kinds of pairs. Pure numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alpaca_rlhf.evaluation.win_rate import Interval, accuracy_interval
from alpaca_rlhf.training.held_out import HeldOutEvaluation, HeldOutPair

SATURATED = 0.99
"""A pair is saturated where the model gives either side at least this chance: nothing is left to
learn from it, and nothing to be unsure of."""
LENGTHS: Final = (
    (-0.5, "less than half as long"),
    (-0.1, "shorter"),
    (0.1, "about as long"),
    (0.5, "longer"),
    (1.0, "more than twice as long"),
)
"""What the preferred completion is, up to a difference in tokens as a share of the longer one."""
CONFIDENCES: Final = (
    (0.6, "0.5 to 0.6"),
    (0.7, "0.6 to 0.7"),
    (0.8, "0.7 to 0.8"),
    (0.9, "0.8 to 0.9"),
    (np.inf, "0.9 to 1"),
)
"""Bins of the chance that the model gives the side it prefers, each below its upper end."""


def accuracy_of(pairs: Sequence[HeldOutPair], *, resamples: int, seed: int) -> Interval:
    """Share of pairs in the annotator's order, its interval resampled over prompts.

    Raises:
        ValueError: There are no pairs.
    """
    by_prompt: dict[str, list[float]] = {}
    for pair in pairs:
        by_prompt.setdefault(pair.prompt_id, []).append(pair.correct)
    return accuracy_interval(list(by_prompt.values()), resamples=resamples, seed=seed)


def figures(held_out: HeldOutEvaluation, *, resamples: int, seed: int) -> dict[str, Any]:
    """Every figure of `docs/metrics.md` about held-out pairs, for `report.json`."""
    gaps = np.array([pair.gap for pair in held_out.pairs])
    accuracy = accuracy_of(held_out.pairs, resamples=resamples, seed=seed)
    return {
        "held_out_pairs": len(held_out.pairs),
        "held_out_accuracy": accuracy.mean,
        "ci95": accuracy.ci95,
        "log_loss": float(np.logaddexp(0.0, -gaps).mean()),
        "calibration_error": calibration_error(gaps),
        "saturated": float((_chance(np.abs(gaps)) >= SATURATED).mean()),
        "length_correlation": correlation(held_out.scores, held_out.lengths),
        "length_rank_correlation": correlation(_ranks(held_out.scores), _ranks(held_out.lengths)),
        "accuracy_by": accuracy_by(held_out, resamples=resamples, seed=seed),
    }


def accuracy_by(
    held_out: HeldOutEvaluation, *, resamples: int, seed: int
) -> dict[str, list[dict[str, Any]]]:
    """Accuracy by K, tiers apart, length, confidence and criterion, where there are any.

    Each is a list of `{"is", "pairs", "accuracy", "ci95"}`; with `confidence` also the mean chance
    that the model gave the side it preferred.
    """

    def rows(kinds: Mapping[str, Sequence[HeldOutPair]]) -> list[dict[str, Any]]:
        found = []
        for name, pairs in kinds.items():
            if pairs:
                own = accuracy_of(pairs, resamples=resamples, seed=seed)
                row = {"is": name, "pairs": len(pairs), "accuracy": own.mean, "ci95": own.ci95}
                found.append(row)
        return found

    def split(
        kind: Callable[[HeldOutPair], str], names: Sequence[str]
    ) -> dict[str, list[HeldOutPair]]:
        kinds: dict[str, list[HeldOutPair]] = {name: [] for name in names}
        for pair in held_out.pairs:
            if kind(pair) in kinds:
                kinds[kind(pair)].append(pair)
        return kinds

    def numbers(values: set[int]) -> list[str]:
        return [str(one) for one in sorted(values)]

    ks = numbers({pair.completions for pair in held_out.pairs})
    tiers = numbers({pair.tier_gap for pair in held_out.pairs} - {0})
    by_confidence = split(_confidence, [name for _, name in CONFIDENCES])
    confidences = rows(by_confidence)
    for row in confidences:
        own = np.array([pair.gap for pair in by_confidence[row["is"]]])
        row["confidence"] = float(_chance(np.abs(own)).mean())
    parts = {
        "completions": rows(split(lambda pair: str(pair.completions), ks)),
        "tiers_apart": rows(split(lambda pair: str(pair.tier_gap), tiers)),
        "preferred_is": rows(split(_length, [name for _, name in LENGTHS])),
        "confidence": confidences,
        "criterion": rows(held_out.criteria),
    }
    return {name: found for name, found in parts.items() if found}


def calibration_error(gaps: ArrayLike, bins: int = 10) -> float:
    """Expected calibration error of sigmoid(gap) as the probability that the first one is better.

    Each of the (N,) gaps is seen from both sides: sigmoid(gap) is right, sigmoid(-gap) is wrong.

    Source: Guo et al. 2017 (arXiv 1706.04599) section 3.
    """
    one = np.asarray(gaps, dtype=np.float64)
    chance = _chance(np.concatenate([one, -one]))
    truth = np.concatenate([np.ones_like(one), np.zeros_like(one)])
    which = np.minimum((chance * bins).astype(int), bins - 1)
    error = 0.0
    for bin_ in range(bins):
        inside = which == bin_
        if inside.any():
            error += float(inside.mean() * abs(chance[inside].mean() - truth[inside].mean()))
    return error


def correlation(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson correlation of two lists of numbers; 0 where one of them is constant."""
    a, b = (np.asarray(one, dtype=np.float64) for one in (x, y))
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / scale if scale > 0 else 0.0


def _ranks(x: ArrayLike) -> NDArray[np.float64]:
    """Ranks from 1, equal numbers sharing the mean of theirs: Pearson's of them is Spearman's."""
    _, inverse, counts = np.unique(np.asarray(x), return_inverse=True, return_counts=True)
    mean: NDArray[np.float64] = counts.cumsum() - (counts - 1) / 2
    return mean[inverse]


def _chance(gaps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Chance that the first one is better, by Bradley and Terry."""
    chance: NDArray[np.float64] = np.exp(-np.logaddexp(0.0, -gaps))
    return chance


def _confidence(pair: HeldOutPair) -> str:
    chance = float(_chance(np.array([abs(pair.gap)]))[0])
    return next(name for end, name in CONFIDENCES if chance < end)


def _length(pair: HeldOutPair) -> str:
    better, worse = pair.tokens
    share = (better - worse) / max(1, better, worse)
    return next(name for most, name in LENGTHS if share <= most)
