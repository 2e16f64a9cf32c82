"""The looks at a policy in the ledger: their numbers, and in words what they saw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alpaca_rlhf.core.sizes import too_few
from alpaca_rlhf.evaluation.win_rate import paired_gain
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.training.watching import Look, Watch

_MOVED = {
    "tokens": ("completions are {way} ({before:.0f} -> {after:.0f} tokens)", "longer", "shorter"),
    "repeated": (
        "{way} of their words is repeated ({before:.0%} -> {after:.0%} of n-grams)",
        "more",
        "less",
    ),
    "same_beginning": ("{way} begin alike ({before:.0%} -> {after:.0%})", "more", "fewer"),
    "copied": ("{way} is copied from the prompt ({before:.0%} -> {after:.0%})", "more", "less"),
    "unfinished": ("{way} do not stop ({before:.0%} -> {after:.0%})", "more", "fewer"),
}
"""Sentences on a probe that moved, and its direction up and down."""


def scorer_in_words(settings: Loop) -> str:
    """The scorer of the looks, as it was named or as it is by default."""
    if settings.second_reward:
        return "a second reward model (trained on held-out rankings)"
    return f"--watch.scorer {settings.watch.scorer}"


def watch_facts(watch: Watch, clusters: Sequence[int]) -> dict[str, Any]:
    """The looks of a finished stage for the ledger.

    Args:
        watch: The looks.
        clusters: Cluster of near-duplicates of each watched prompt, which intervals resample.
    """
    assert watch.start is not None
    assert watch.best is not None
    return {
        "start": {"step": 0, **watch.start.metrics},
        "looks": [{"step": look.step, **look.metrics} for look in watch.looks],
        "kept_step": watch.best.step,
        "stopped": watch.exhausted,
        "prompts": len(watch.prompts),
        "clusters": len(set(clusters)),
        "words": _words(watch, watch.start, watch.best, clusters),
    }


def look_rows(watch: Watch) -> list[dict[str, Any]]:
    """The looks prompt by prompt, the start first: `step` and `scores`."""
    looks = [*([watch.start] if watch.start else []), *watch.looks]
    return [{"step": look.step, "scores": list(look.scores)} for look in looks]


def _words(watch: Watch, start: Look, best: Look, clusters: Sequence[int]) -> list[str]:
    """The adapter that was kept and why, why the stage ended, and what has moved since SFT."""
    last = watch.looks[-1]
    prompts, n_clusters = len(watch.prompts), len(set(clusters))
    # 1. The best look, with a paired interval over clusters of prompts where there are enough.
    is_handful = too_few(prompts, n_clusters)
    gain = paired_gain(best.scores, start.scores, groups=clusters)
    gain_words = f"{gain.mean:+.3f} from the start"
    if not is_handful:
        gain_words = f"{gain.mean:+.3f}, 95% {gain.low:+.3f} to {gain.high:+.3f}, from the start"
    words = [f"kept the adapter of update {best.step}, the best of {len(watch.looks)} looks"]
    words[0] += f" by the held-out scorer ({gain_words})"
    # 2. The end before the last update.
    if watch.exhausted:
        words.append(
            f"stopped after update {last.step}: in {watch.patience} looks the held-out score lay "
            "below the best while the reward rose"
        )
    elif last.step != best.step and last.reward > best.reward:
        words.append(
            f"at update {last.step} the reward was higher ({best.reward:+.2f} -> "
            f"{last.reward:+.2f}) and the held-out score lower ({best.score:.3f} -> "
            f"{last.score:.3f})"
        )
    # 3. Probes whose paired interval between the start and the last look leaves out 0.
    if is_handful:
        units = f"{prompts} prompts"
        if n_clusters < prompts:
            units += f" in {n_clusters} clusters of near-duplicates"
        return [*words, f"{units} are too few for an interval, or to tell what else has moved"]
    for name, (sentence, up, down) in _MOVED.items():
        change = paired_gain(last.probes[name], start.probes[name], groups=clusters)
        if change.excludes(0.0):
            before, after = (sum(look.probes[name]) / len(look.scores) for look in (start, last))
            way = up if change.mean > 0 else down
            words.append(sentence.format(way=way, before=before, after=after))
    return words
