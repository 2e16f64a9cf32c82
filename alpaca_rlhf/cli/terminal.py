"""Progress of a run, on a terminal or as plain lines in a file; and text that is safe to print."""

from __future__ import annotations

import shutil
import sys
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from alpaca_rlhf.core import processes
from alpaca_rlhf.core.durations import duration
from alpaca_rlhf.core.prompts import Segment, marked
from alpaca_rlhf.core.shell_words import quoted
from alpaca_rlhf.core.sizes import too_few
from alpaca_rlhf.evaluation.accuracy_words import judge_beside_baselines, judge_in_words

PROGRAM = "alpaca-rlhf"
"""Command that a person types."""

_UNITS = {
    "generate": "task",
    "against": "row",
    "split": "prompt",
    "sample": "completion",
    "fill": "prompt",
    "judge": "set",
    "rank": "set",
    **dict.fromkeys(("ppo", "grpo", "rloo"), "update"),
    "evaluate": "policy",
    "import": "row",
    "check": "row",
    "export": "row",
    "candidates": "completion",
    "weights": "tensor",
    **dict.fromkeys(("what was trained", "plain peft", "plain transformers"), "prompt"),
    "transformers' reader of GGUF": "prompt",
}
"""Unit in which a stage counts its steps; the default is an optimiser step."""

_METRICS = ("loss", "accuracy", "score", "kl", "gold_score")
"""Metrics shown beside the progress, in order of priority."""

_PREVIEW_CHARS = 600
"""Characters shown at each end of a long text in a preview; the run folder holds it in full."""

_BIDI = {chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def plain(text: str) -> str:
    """Remove characters that move the cursor, change colours or reverse the writing direction."""
    characters = text.replace("\r\n", "\n")
    return "".join(
        character for character in characters if character in "\n\t" or not _harmful(character)
    )


def _harmful(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs") or character in _BIDI


class Terminal:
    """Shows a person the progress; a `context.Reporter`. Use it in a `with` block.

    Args:
        console: Console to write to. A terminal shows the stage in a live line; anything else gets
            a plain line now and then.
        every_s: Seconds between two plain lines at least.
        clock: Time in seconds, for rates.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        every_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = console or _Console(
            highlight=False, markup=False, emoji=False, quiet=not processes.main()
        )
        self.stage: str | None = None
        self.stages: list[str] = []
        self._every_s = every_s
        self._clock = clock
        self._live: Progress | None = None
        self._started = 0.0
        self._pace = _Pace("", 0, 0.0)
        self._written = 0.0

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def say(self, text: str = "") -> None:
        """Write text as it is, without the characters that `plain` removes."""
        self.console.print(plain(text), markup=False, highlight=False, emoji=False, soft_wrap=True)

    def say_next(self, commands: Sequence[tuple[str, str]]) -> None:
        """Write the commands that a person may run next, each with its purpose."""
        for line in next_lines(commands):
            self.say(line)

    def ask(self, question: str) -> str:
        """Read a line that a person types; the question is shown only at a keyboard.

        Raises:
            EOFError: The input ended.
        """
        if not sys.stdin.isatty():
            return input()
        try:
            return input(question)
        except EOFError:
            self.say()  # end the line of the question
            raise

    def start(self, stage: str, what: str) -> None:
        """Show that a stage begins."""
        self._stop()
        self.say(f"{stage}: {what}")
        self.stage = stage
        self.stages.append(stage)
        self._started = self._written = self._clock()
        self._pace = _Pace("", 0, self._started)
        if self.console.is_terminal:
            self._live = Progress(
                SpinnerColumn(),
                BarColumn(bar_width=20),
                TextColumn(
                    "{task.description}",
                    markup=False,
                    table_column=Column(no_wrap=True, overflow="ellipsis"),
                ),
                TimeElapsedColumn(),
                console=self.console,
                transient=True,
                refresh_per_second=4,
            )
            self._live.add_task(stage, total=None)
            self._live.start()

    def step(self, stage: str, done: int, total: int, metrics: Mapping[str, Any]) -> None:
        """Show a finished step; `stage` may be a part of the current one, with steps of its own."""
        time_now = self._clock()
        # A part of a stage counts from its own first step, and so does a stage that starts again.
        if stage != self._pace.stage or done < self._pace.first:
            self._pace = _Pace(stage, done, time_now)
        line = self._pace.line(done, total, time_now)
        if stage == "generate":
            line += generation_line(metrics, self._pace.tokens_per_second(metrics, time_now))
        numbers = [name for name in _METRICS if isinstance(metrics.get(name), int | float)]
        for name in numbers[:3]:
            line += f", {name} {metrics[name]:.3g}"
        if self._live is not None:
            task = self._live.task_ids[0]
            self._live.update(task, description=line, completed=done, total=total)
        elif time_now - self._written >= self._every_s:
            self._written = time_now
            self.say(f"  {line}")

    def preview(self, stage: str, what: str, segments: Sequence[Segment]) -> None:
        """Show one training row, with the text that carries loss in colour or in brackets."""
        parts = [(plain(_elided(text)), has_loss) for text, has_loss in segments]
        if self.console.color_system is None or self.console.no_color:
            self.say(f"  {what}, in [[...]]:\n{marked(parts)}")
            return
        self.say(f"  {what}, in green:")
        styled = Text.assemble(
            *((text, "green" if has_loss else "dim") for text, has_loss in parts)
        )
        self.console.print(styled, soft_wrap=True)

    def finish(self, stage: str, what: str) -> None:
        """Show that a stage ended."""
        self._stop()
        self.say(f"  done in {duration(self._clock() - self._started)}: {what}")
        self.stage = None

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def _elided(text: str) -> str:
    cut = len(text) - 2 * _PREVIEW_CHARS
    if cut <= 0:
        return text
    return f"{text[:_PREVIEW_CHARS]} [... {cut} more characters ...] {text[-_PREVIEW_CHARS:]}"


class _Console(Console):
    """rich's console, but a closed pipe raises an error instead of ending the program."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class _Pace:
    """Speed of the steps, counted from the first one seen.

    The time before it is not a step: the base was loaded, or an earlier run did the steps.
    """

    def __init__(self, stage: str, first: int, started: float) -> None:
        self.stage = stage
        self.first = first
        self._started = started
        self._tokens: int | None = None

    def tokens_per_second(self, metrics: Mapping[str, Any], time_now: float) -> float | None:
        """Tokens per second since the first step seen; None before the second one."""
        tokens = metrics.get("tokens", 0)
        if self._tokens is None:
            self._tokens = tokens
        seconds = time_now - self._started
        return (tokens - self._tokens) / seconds if seconds > 0 < tokens - self._tokens else None

    def line(self, done: int, total: int, time_now: float) -> str:
        """The progress as `sft 12/60 steps, 3.1 steps/s, ETA 0:16`."""
        unit = _UNITS.get(self.stage.partition(".")[0], "step")
        units = unit.removesuffix("y") + "ies" if unit.endswith("y") else unit + "s"
        line = f"{self.stage} {done}/{total} {units}"
        steps, seconds = done - self.first, time_now - self._started
        if steps <= 0 or seconds <= 0:
            return line
        rate = steps / seconds
        speed = f"{rate:.3g} {units}/s" if rate >= 1 else f"{1 / rate:.3g} s/{unit}"
        return f"{line}, {speed}, ETA {duration(max(0, total - done) / rate)}"


def generation_line(metrics: Mapping[str, Any], tokens_per_second: float | None) -> str:
    """The progress of a generation: `, 41% kept (duplicate 120, cut 31), 850 tokens/s, $0.02`."""
    accepted = int(metrics.get("accepted", 0))
    dropped = {
        name.removeprefix("rejected_"): int(count)
        for name, count in metrics.items()
        if name.startswith("rejected_") and name != "rejected_surplus"
    }
    written = accepted + sum(dropped.values())
    line = f", {accepted / written:.0%} kept" if written else ""
    top = sorted(dropped, key=lambda name: (-dropped[name], name))[:2]
    if top:
        line += f" ({', '.join(f'{name} {dropped[name]}' for name in top)})"
    if tokens_per_second is not None:
        line += f", {tokens_per_second:,.0f} tokens/s"
    if metrics.get("cost_usd"):
        line += f", ${metrics['cost_usd']:.2f}"
    return line


def result_lines(report: Mapping[str, Any]) -> list[str]:
    """One line for each policy: its score and its gain over SFT, with intervals.

    Before them a line names the judge, and another its baselines where it is a reward model.
    """
    policies: Mapping[str, Mapping[str, Any]] = report["policies"]
    measured = report.get("judge_accuracy")
    judge = judge_in_words(measured) if measured else report.get("judge", "gold")
    temperature = report.get("temperatures", {}).get("evaluate", 1.0)
    width = max(len(name) for name in policies)
    prompts, clusters = (report.get("prompts", {}).get(key) for key in ("eval", "eval_clusters"))
    is_too_few = too_few(prompts, clusters)
    if is_too_few:
        units = f"{prompts:,} prompts"
        if clusters not in (None, prompts):
            units += f" in {clusters:,} clusters of near-duplicates"
        lines = [
            f"score at temperature {temperature:g} (judge: {judge}), gain over sft; "
            f"{units} are too few for an interval"
        ]
    else:
        lines = [
            f"score at temperature {temperature:g} with its 95% interval (judge: {judge}), "
            "gain over sft"
        ]
    beside = judge_beside_baselines(measured) if measured else None
    if beside is not None:
        lines.append(f"  the judge beside rules that learn nothing: {beside}")
    for name, figures in policies.items():
        line = f"  {name:<{width}}  {figures['gold_score']:.3f}"
        if not is_too_few:
            line += f" {_interval(figures['ci95'])}"
        if name not in ("base", "base_few_shot", "sft"):
            gain = figures["paired_gain_vs_sft"]
            line += f"  {gain:+.3f}"
            if not is_too_few:
                line += f" {_interval(figures['paired_gain_ci95'], sign='+')}"
        lines.append(line)
    return lines


def next_lines(commands: Sequence[tuple[str, str]]) -> list[str]:
    """Commands that a person may run next, each with its purpose."""
    rows = [(_as_typed(command), purpose) for command, purpose in commands]
    width = max((len(command) for command, _ in rows), default=0)
    lines = [f"  {command:<{width}}  # {purpose}" for command, purpose in rows]
    return ["next:", *lines] if lines else []


def _as_typed(command: str) -> str:
    """A command, with the path of the program if the shell would not find it by name.

    That is so in a virtual environment that is not activated.
    """
    # Only our own program, started by its path, is written with that path.
    name, _, arguments = command.partition(" ")
    program = Path(sys.argv[0])
    if name != PROGRAM or program.name != name or shutil.which(name) is not None:
        return command
    near = program.relative_to(Path.cwd()) if program.is_relative_to(Path.cwd()) else program
    return f"{quoted(near)} {arguments}"


def _interval(bounds: Sequence[float], sign: str = "") -> str:
    low, high = bounds
    return f"[{low:{sign}.3f}, {high:{sign}.3f}]"
