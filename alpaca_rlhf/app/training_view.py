"""The Train tab's picture of a run: stages with their times, progress, curves, and how it ended.

Reads the run folder alone, so that it is the same for a run that a terminal has started.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from alpaca_rlhf.app.training import TrainingState
from alpaca_rlhf.app.training_plan import PlannedStage
from alpaca_rlhf.preferences.standing import Standing
from alpaca_rlhf.report.charts import LineChart, Series
from alpaca_rlhf.report.formatting import finite
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.settings.steps import Step, order

StageStatus = Literal["done", "running", "people", "next", "later"]
Ending = Literal["new", "done", "stopped", "refused", "crashed", "killed", "waits", "paused"]

LOG_LINES = 14
"""Lines of the log's end that are shown."""

_PROGRESS = re.compile(
    r"^  (?P<stage>[\w.]+) (?P<done>\d+)/(?P<total>\d+) \w+"
    r"(?:, (?P<speed>[^,]+/\w+), ETA (?P<eta>[\d:]+))?"
)
"""A line of progress, as `cli/terminal.py` writes it."""

_LOSS = ("curve.loss", {"loss": "line.training", "eval_loss": "line.held_out"})
_ACCURACY = ("curve.accuracy", {"accuracy": "line.training", "eval_accuracy": "line.held_out"})
_SCORE = ("curve.score", {"score": "line.score"})
_KL = ("curve.kl", {"kl": "line.kl"})
CURVES: Mapping[str, Sequence[tuple[str, Mapping[str, str]]]] = {
    "sft": [_LOSS],
    "reward": [_LOSS, _ACCURACY],
    "dpo": [_LOSS, _ACCURACY],
    **{stage: [_SCORE, _KL] for stage in ("ppo", "grpo", "rloo")},
    "best_of_k": [_LOSS],
}
"""Charts of each stage: the key of the title, and metrics with the keys of their names."""
_TONES = ("tone-1", "tone-2")


@dataclass(frozen=True)
class StageCard:
    """One stage of one round."""

    stage: str
    """Its name in `pipeline.STAGES`."""
    status: StageStatus
    """Its status."""
    seconds: float | None
    """Measured, once it is done."""
    memory_gib: float | None
    """Measured on the card, or of the process where there is none."""
    planned: PlannedStage | None
    """Planned for this machine; None until that is known."""
    standing: Standing | None
    """Standing of the prompts, for a stage that waits for people."""


@dataclass(frozen=True)
class StageProgress:
    """Progress of the running stage."""

    stage: str
    """The stage, or a part of it with steps of its own."""
    done: int
    """Steps done."""
    total: int
    """All steps."""
    speed: str = ""
    """Such as `3.1 steps/s`; empty before the second step, and for a run of a terminal."""
    eta: str = ""
    """Time left for the stage, such as `0:16`."""

    @property
    def percent(self) -> float:
        """Share of the steps that are done, in percent."""
        return 100 * self.done / self.total if self.total else 0.0


def rounds(
    settings: Loop,
    ledger: Mapping[str, Any],
    *,
    running: bool,
    plan: Mapping[str, PlannedStage],
    standings: Mapping[int, Standing],
) -> list[tuple[int, list[StageCard]]]:
    """The stages of each round; round 0 holds those before the first, and after the last.

    Args:
        settings: The run's settings.
        ledger: The finished stages and their results.
        running: True while a process trains.
        plan: Planned time and memory by stage.
        standings: Standing of the prompts in the ranking, by round.
    """
    steps = order(settings)
    current = next((step for step in steps if step.entry not in ledger), None)
    groups: list[tuple[int, list[StageCard]]] = []
    for step in steps:
        number = 0 if step.stage in ("generate", "sft", "evaluate") else step.round
        if not groups or groups[-1][0] != number:
            groups.append((number, []))
        row = ledger.get(step.entry)
        by_people = step.stage == "rank" and settings.inputs.judge == "human"
        status: StageStatus = "later"
        if row is not None:
            status = "done"
        elif step == current:
            status = "people" if by_people else "running" if running else "next"
        groups[-1][1].append(
            StageCard(
                step.stage,
                status,
                None if row is None else row.get("seconds"),
                None if row is None else row.get("gpu_memory_gib", row.get("peak_memory_gib")),
                plan.get(step.stage),
                standings.get(step.round) if by_people and row is None else None,
            )
        )
    return groups


def is_finished(settings: Loop, ledger: Mapping[str, Any]) -> bool:
    """True once every stage of every round is in the ledger."""
    return all(step.entry in ledger for step in order(settings))


def is_ranked_by_people(settings: Loop, current: Step | None) -> bool:
    """True if the step to come is the ranking, and people rank."""
    return current is not None and current.stage == "rank" and settings.inputs.judge == "human"


def waits_for_people(
    settings: Loop, current: Step | None, standings: Mapping[int, Standing]
) -> int:
    """Prompts that people must still rank before training can go on; 0 if it can."""
    if current is None or not is_ranked_by_people(settings, current):
        return 0
    standing = standings.get(current.round)
    return standing.missing(settings.rank.at_least) if standing else 0


def ending(state: TrainingState, ledger: Mapping[str, Any], settings: Loop) -> tuple[Ending, str]:
    """The end of the last training, and its one line if it has one."""
    lines = [line.strip() for line in state.log.splitlines() if line.strip()]
    is_newest = bool(lines) and not state.outdated
    # 1. A failure that is newer than the ledger, such as that of a round which could not begin.
    if is_newest and lines[-1].startswith("error: "):
        return "refused", lines[-1].removeprefix("error: ")
    # A traceback that did not end the process is no crash, such as one ignored at its exit.
    was_stopped = is_newest and lines[-1].startswith("interrupted; ")
    survived = state.exit_code == 0 or was_stopped
    if is_newest and "Traceback (most recent call last):" in lines and not survived:
        return "crashed", lines[-1]
    # 2. A finished run.
    if is_finished(settings, ledger):
        return "done", ""
    # 3. Any other end of one that is not.
    if is_newest:
        if was_stopped:
            return "stopped", ""
        if state.exit_code is not None and state.exit_code < 0:
            return "killed", ""
        if state.exit_code == 0:  # it waits for something, and says for what
            return "waits", lines[-1]
    return ("paused" if ledger else "new"), ""


def log_lines(state: TrainingState) -> list[str]:
    """The last lines of the log."""
    return [line for line in state.log.splitlines() if line.strip()][-LOG_LINES:]


def progress(
    state: TrainingState, metrics: Sequence[Mapping[str, Any]], current: Step | None
) -> StageProgress | None:
    """Progress of the running stage: from the log, or from the metrics of a terminal's run."""
    if current is None or state.activity == "idle":
        return None
    # 1. The last line of progress, unless a later stage has begun since.
    if state.from_page:
        for line in reversed(state.log.splitlines()):
            if line.startswith(f"{current.entry}: "):
                return None
            match = _PROGRESS.match(line)
            if match is not None:
                return StageProgress(
                    match["stage"],
                    int(match["done"]),
                    int(match["total"]),
                    match["speed"] or "",
                    match["eta"] or "",
                )
        return None
    # 2. The last row of the stage.
    row = metrics[-1] if metrics else {}
    if str(row.get("stage", "")) != current.entry or not row.get("steps"):
        return None
    return StageProgress(current.entry, int(row.get("step", 0)), int(row["steps"]))


def curves(metrics: Sequence[Mapping[str, Any]], text: Mapping[str, str]) -> list[LineChart]:
    """The curves of every stage that has logged two steps; the one that has logged last first."""
    stages = [str(row.get("stage", "")) for row in metrics]
    newest = stages[-1].partition(".")[0] if stages else ""
    charts = []
    kinds = [(stage, *kind) for stage, of_stage in CURVES.items() for kind in of_stage]
    for stage, title, names in kinds:
        entries = dict.fromkeys(name for name in stages if _is_round_of(name, stage))
        series = [
            Series(
                _line_name(text, label, entry),
                points,
                _TONES[position % len(_TONES)],
                dashed=entry != stage,
                dots=key.startswith("eval_"),
            )
            for entry in entries
            for position, (key, label) in enumerate(names.items())
            if (points := _points(metrics, entry, key))
        ]
        heading = text["curve.of"].format(stage=text[f"stage.{stage}"], what=text[title])
        chart = LineChart(heading, series, text[f"{title}.note"])
        if any(len(line.points) > 1 for line in chart.series):
            charts.append((stage != newest, chart))
    return [chart for _, chart in sorted(charts, key=lambda pair: pair[0])]


def _is_round_of(entry: str, stage: str) -> bool:
    stem, _, number = entry.partition(".")
    return stem == stage and (number or "1").isdecimal()


def _line_name(text: Mapping[str, str], label: str, entry: str) -> str:
    number = entry.partition(".")[2]
    return text["line.round"].format(line=text[label], n=number) if number else text[label]


def _points(
    metrics: Sequence[Mapping[str, Any]], entry: str, key: str
) -> list[tuple[float, float]]:
    return [
        (float(row["step"]), float(row[key]))
        for row in metrics
        if row.get("stage") == entry and finite(row.get(key)) and finite(row.get("step"))
    ]
