"""The gain of more rankings: held-out accuracy on nested subsets of those there are.

Source: the error of deep networks falls by about the same share with every doubling of the data,
until it levels off (arXiv 1712.00409).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alpaca_rlhf.core.sizes import too_few
from alpaca_rlhf.evaluation.win_rate import accuracy_interval, accuracy_lead

WORTH_IT = 0.02
"""Accuracy that is worth another doubling of the rankings: a pair in fifty."""

CorrectByPrompt = Sequence[Sequence[float]]
"""For each held-out prompt, 1 for each pair in the right order, 0 for each in the wrong one."""


def more_rankings(
    rankings: int, half: CorrectByPrompt, whole: CorrectByPrompt, *, resamples: int, seed: int
) -> dict[str, Any]:
    """The gain in accuracy from half of the rankings to all of them, and what to expect of more.

    Args:
        rankings: All rankings that were trained on.
        half: Pairs that a reward model of half of them ordered rightly.
        whole: The same pairs with all of them.
        resamples: Bootstrap resamples over prompts.
        seed: Seed of the resampling.

    Returns:
        `gain`, its `ci95`, the held-out `prompts`, and `verdict`: `levelled` where the gain is
        below `WORTH_IT`, `helps` where it is above 0, else `unclear`.
    """
    lead = accuracy_lead(whole, half, resamples=resamples, seed=seed)
    low, high = lead.ci95
    verdict = "unclear"
    if not too_few(len(whole)):
        verdict = "levelled" if high < WORTH_IT else "helps" if low > 0 else "unclear"
    return {
        "rankings": rankings,
        "prompts": len(whole),
        "gain": lead.mean,
        "ci95": lead.ci95,
        "verdict": verdict,
    }


def curve_point(
    rankings: int, correct: CorrectByPrompt, *, resamples: int, seed: int
) -> dict[str, Any]:
    """The held-out accuracy after so many rankings, with its interval."""
    accuracy = accuracy_interval(correct, resamples=resamples, seed=seed)
    return {"rankings": rankings, "accuracy": accuracy.mean, "ci95": accuracy.ci95}


def more_in_words(more: Mapping[str, Any]) -> str:
    """A sentence on what to expect of more rankings; no interval from a handful of prompts."""
    gain = f"{more['gain']:+.3f}"
    if not too_few(more.get("prompts")):
        low, high = more["ci95"]
        gain += f" ({low:+.3f} to {high:+.3f})"
    rankings = f"{more['rankings']:,}"
    return {
        "helps": f"the last doubling, to {rankings} rankings, brought {gain}: as many again would "
        "help, and bring about as much or less",
        "levelled": f"the last doubling, to {rankings} rankings, brought {gain}: the curve has "
        "levelled off, and more of the same would hardly help",
        "unclear": f"the last doubling, to {rankings} rankings, brought {gain}: too few rankings "
        "are held out to tell whether more would help",
    }[more["verdict"]]
