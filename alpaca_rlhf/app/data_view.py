"""The figures of the Data tab as HTML."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alpaca_rlhf.app.board import REASONS
from alpaca_rlhf.app.language import translations
from alpaca_rlhf.app.rendering import render
from alpaca_rlhf.core.sizes import too_few
from alpaca_rlhf.preferences import snapshot
from alpaca_rlhf.preferences.agreement import MIN_OVERLAPS, Agreement
from alpaca_rlhf.preferences.figures import Figures
from alpaca_rlhf.preferences.standing import Standing

SNAPSHOT_FILES: tuple[str, ...] = (
    snapshot.RANKINGS,
    snapshot.PAIRS,
    snapshot.TABLE,
    snapshot.MANIFEST,
    snapshot.DEMONSTRATIONS,
    snapshot.DEMONSTRATION_PAIRS,
    snapshot.THUMBS,
    snapshot.GUIDELINES,
)
_BAR_PERCENT = 60
"""Width of the longest bar of the pace."""
_COUNTS: tuple[str, ...] = ("open_places", "flags", "sets", "left_out", "prompts", "completions")
_COUNTS += ("judged", "battles", "demonstrations", "thumbs")


@dataclass(frozen=True)
class Rounds:
    """Source of the standing of a run's rounds."""

    by_round: Callable[[], Mapping[int, Standing]]
    """The standing of each round by its number; none without a run."""
    at_least: int | None
    """`--rank.at-least` of the run."""
    judge: str | None = None
    """`--inputs.judge` of the run, if it ranks in people's place."""
    learned: Callable[[], Mapping[str, Any]] = dict
    """Facts of the newest reward model, `learning_curve` and `more_rankings` among them; empty
    without one."""


NO_ROUNDS = Rounds(dict, None)
"""An app without a run."""


def reason_names(language: str) -> dict[str, str]:
    """The reasons of flags as annotators choose them on the Rank tab; other programs' have none."""
    text = translations("rank", language)
    return {reason: text[f"reason.{reason}"] for reason in REASONS}


def figures(figures: Figures, rounds: Rounds, text: Mapping[str, str]) -> str:
    """Counts, how far the ranking is, quality and pace."""
    tiles = [
        (text["rankings"], figures.counts["rankings"]),
        (text["pairs"], figures.counts["pairs"]),
        (text["last_hour"], figures.last_hour),
        *((text[key], figures.counts[key]) for key in _COUNTS),
    ]
    agreements = [
        (text["agreement"], figures.agreement),
        (text["consistency"], figures.self_consistency),
        *((text["with_people"].format(name=name), value) for name, value in figures.judges),
    ]
    standings = [(text["standing.all"], figures.standing, text["none"])]
    for number, standing in rounds.by_round().items():
        missing = standing.missing(rounds.at_least)
        enough = text["standing.missing"].format(n=missing) if missing else text["standing.yes"]
        if rounds.judge is not None:
            enough = text["standing.by_judge"].format(judge=rounds.judge)
        standings.append((text["standing.round"].format(n=number), standing, enough))
    learned = rounds.learned()
    busiest_day = max((n for _, n in figures.by_day), default=1)
    return render(
        "data_figures",
        figures=figures,
        tiles=tiles,
        standings=standings,
        agreements=[
            (
                name,
                agreement.n,
                _measure(agreement, agreement.alpha, text),
                _measure(agreement, agreement.tau, text),
            )
            for name, agreement in agreements
        ],
        curve=[
            (
                point["rankings"],
                f"{point['accuracy']:.3f}",
                text["curve.too_few"] if _is_handful(learned) else _interval(point["ci95"]),
            )
            for point in learned.get("learning_curve", ())
        ],
        more=_more(learned, text),
        days=[
            (day, n, f"{n / busiest_day * _BAR_PERCENT:.1f}") for day, n in reversed(figures.by_day)
        ],
        text=text,
    )


def _is_handful(learned: Mapping[str, Any]) -> bool:
    """True where too few prompts are held out for an interval."""
    return too_few(learned.get("held_out_prompts"), learned.get("held_out_pairs"))


def _interval(ci95: Sequence[float], sign: str = "") -> str:
    low, high = (f"{bound:{sign}.3f}" for bound in ci95)
    return f"{low} … {high}"


def _more(learned: Mapping[str, Any], text: Mapping[str, str]) -> str:
    """A sentence on more rankings; that nothing is known yet without a learning curve."""
    more = learned.get("more_rankings")
    if more is None:
        return text["curve.none"]
    gain = f"{more['gain']:+.3f}"
    if not _is_handful(learned):
        gain += f" ({_interval(more['ci95'], '+')})"
    return text[f"curve.{more['verdict']}"].format(n=f"{more['rankings']:,}", gain=gain)


def _measure(agreement: Agreement, value: float | None, text: Mapping[str, str]) -> str:
    if value is not None:
        return f"{value:.3f}"
    if agreement.n < MIN_OVERLAPS:
        return text["hidden"].format(n=agreement.n, fewest=MIN_OVERLAPS)
    return text["undefined"]
