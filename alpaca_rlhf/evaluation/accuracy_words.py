"""Accuracy of a reward model in words, beside the rules that learn nothing. Imports no numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alpaca_rlhf.core.sizes import too_few


def beside_baselines(baselines: Sequence[Mapping[str, Any]], pairs: int, prompts: int) -> str:
    """The accuracies of the rules that learn nothing, and whether the model beats the best of them.

    Args:
        baselines: Rows of `reward_accuracy.baselines`, at least one.
        pairs: Pairs that model and rules were measured on.
        prompts: Prompts of those pairs.
    """
    words = ", ".join(f"{rule['is']} {rule['accuracy']:.3f}" for rule in baselines)
    if too_few(pairs, prompts):
        return f"{words}; {pairs:,} pairs of {prompts:,} prompts are too few to tell"
    best = max(baselines, key=lambda rule: rule["accuracy"])
    low, high = best["lead_ci95"]
    verdict = "beats" if low > 0 else "does not beat"
    return f"{words}: it {verdict} the best of them (lead {low:+.3f} to {high:+.3f})"


def judge_in_words(measured: Mapping[str, Any]) -> str:
    """A reward model that scores policies: its size, and its accuracy on others' rankings.

    Args:
        measured: Figures of `reward_accuracy.facts_of_others`.
    """
    ends = ""
    if not too_few(measured["pairs"], measured["prompts"]):
        low, high = measured["ci95"]
        ends = f" [{low:.3f}, {high:.3f}]"
    return (
        f"a second reward model, trained on {measured['trained_pairs']:,} held-out pairs: accuracy "
        f"{measured['accuracy']:.3f}{ends} on {measured['pairs']:,} others"
    )


def judge_beside_baselines(measured: Mapping[str, Any]) -> str | None:
    """Such a reward model beside the rules that learn nothing; None where none were measured."""
    if not measured.get("baselines"):
        return None
    return beside_baselines(measured["baselines"], measured["pairs"], measured["prompts"])


def ensemble_in_words(measured: Mapping[str, Any]) -> str:
    """A reward model of several heads: how its score comes about, and what their mean is worth.

    Args:
        measured: Its `heads`, `pessimism`, `mean_accuracy` and `disagreement`.
    """
    pessimism = measured["pessimism"]
    score = f"their mean less {pessimism:g} times their deviation" if pessimism else "their mean"
    alone = f"; the mean alone has {measured['mean_accuracy']:.3f}" if pessimism else ""
    return (
        f"{measured['heads']} heads, which differ by {measured['disagreement']:.2f} on a held-out "
        f"completion; the score is {score}{alone}"
    )
