"""Where a run stands, on a terminal or in a file of plain lines; and text that is safe to print."""

from __future__ import annotations

import shlex
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
from alpaca_rlhf.core.prompts import Segment, marked

PROGRAM = "alpaca-rlhf"
"""What a person types."""

_UNITS = {
    "generate": "task",
    "against": "row",
    "split": "prompt",
    "sample": "completion",
    "fill": "prompt",
    "judge": "set",
    "rank": "set",
    "ppo": "update",
    "evaluate": "policy",
    "import": "row",
    "check": "row",
    "export": "row",
    "candidates": "completion",
    "weights": "tensor",
    **dict.fromkeys(("what was trained", "plain peft", "plain transformers"), "prompt"),
    "transformers' reader of GGUF": "prompt",
}
"""What a step of a stage is; of the others, an optimiser step."""

_SHOWN = ("loss", "accuracy", "score", "kl", "gold_score")
"""Metrics worth a glance, in this order."""

_SIDE = 600
"""Characters shown at either end of a long text in a preview; the run folder has all of it."""

_BIDI = {chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def plain(text: str) -> str:
    """Text that cannot move the cursor, change colours or turn the direction of what follows."""
    unified = text.replace("\r\n", "\n")
    kept = (one for one in unified if one in "\n\t" or not _harmful(one))
    return "".join(kept)


def _harmful(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs") or character in _BIDI


def duration(seconds: float) -> str:
    """`0:07`, `12:30`, `1:02:03`."""
    whole = max(0, round(seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Terminal:
    """Tells a person what happens; a `context.Reporter`. Use it in a `with` block.

    Args:
        console: Where to write. Where it is a terminal a live line shows the stage; elsewhere a
            plain line is written now and then.
        every_s: Least seconds between two plain lines.
        clock: Seconds, for rates.
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
        """Write text as it is, without the characters that `plain` drops."""
        self.console.print(plain(text), markup=False, highlight=False, emoji=False, soft_wrap=True)

    def ask(self, question: str) -> str:
        """A line that a person types; where nobody sits at a keyboard nothing is asked aloud.

        Raises:
            EOFError: The input ended.
        """
        if not sys.stdin.isatty():
            return input()
        try:
            return input(question)
        except EOFError:
            self.say()  # leave the line of the question
            raise

    def start(self, stage: str, what: str) -> None:
        """A stage begins."""
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
        """A step is done; `stage` may be a part of the one that began, with steps of its own."""
        now = self._clock()
        if stage != self._pace.stage or done < self._pace.first:
            self._pace = _Pace(stage, done, now)
        line = self._pace.line(done, total, now)
        if stage == "generate":
            line += generation_line(metrics, self._pace.tokens_per_second(metrics, now))
        for name in [one for one in _SHOWN if isinstance(metrics.get(one), int | float)][:3]:
            line += f", {name} {metrics[name]:.3g}"
        if self._live is not None:
            task = self._live.task_ids[0]
            self._live.update(task, description=line, completed=done, total=total)
        elif now - self._written >= self._every_s:
            self._written = now
            self.say(f"  {line}")

    def preview(self, stage: str, what: str, segments: Sequence[Segment]) -> None:
        """One row that is learned from: in colour, or marked, what carries loss."""
        shown = [(plain(_elided(text)), learned) for text, learned in segments]
        if self.console.color_system is None or self.console.no_color:
            self.say(f"  {what}, in [[...]]:\n{marked(shown)}")
            return
        self.say(f"  {what}, in green:")
        styled = Text.assemble(*((text, "green" if on else "dim") for text, on in shown))
        self.console.print(styled, soft_wrap=True)

    def finish(self, stage: str, what: str) -> None:
        """A stage ended."""
        self._stop()
        self.say(f"  done in {duration(self._clock() - self._started)}: {what}")
        self.stage = None

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def _elided(text: str) -> str:
    cut = len(text) - 2 * _SIDE
    if cut <= 0:
        return text
    return f"{text[:_SIDE]} [... {cut} more characters ...] {text[-_SIDE:]}"


class _Console(Console):
    """rich's, but a reader who leaves is an error like any other, and not its own way out."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class _Pace:
    """How fast the steps come. The first step seen is where counting starts.

    Before it lies what is not a step: loading the base, or steps of an earlier run.
    """

    def __init__(self, stage: str, first: int, at: float) -> None:
        self.stage = stage
        self.first = first
        self._at = at
        self._tokens: int | None = None

    def tokens_per_second(self, metrics: Mapping[str, Any], now: float) -> float | None:
        """Tokens since the first step seen, a second; None before there are two."""
        tokens = metrics.get("tokens", 0)
        if self._tokens is None:
            self._tokens = tokens
        seconds = now - self._at
        return (tokens - self._tokens) / seconds if seconds > 0 < tokens - self._tokens else None

    def line(self, done: int, total: int, now: float) -> str:
        """`sft 12/60 steps, 3.1 steps/s, ETA 0:16`."""
        unit = _UNITS.get(self.stage.partition(".")[0], "step")
        units = unit.removesuffix("y") + "ies" if unit.endswith("y") else unit + "s"
        line = f"{self.stage} {done}/{total} {units}"
        steps, seconds = done - self.first, now - self._at
        if steps <= 0 or seconds <= 0:
            return line
        rate = steps / seconds
        speed = f"{rate:.3g} {units}/s" if rate >= 1 else f"{1 / rate:.3g} s/{unit}"
        return f"{line}, {speed}, ETA {duration(max(0, total - done) / rate)}"


def generation_line(metrics: Mapping[str, Any], tokens_per_second: float | None) -> str:
    """`, 41% kept (duplicate 120, cut 31), 850 tokens/s, $0.02`: how a generation goes."""
    kept = int(metrics.get("accepted", 0))
    dropped = {
        name.removeprefix("rejected_"): int(count)
        for name, count in metrics.items()
        if name.startswith("rejected_") and name != "rejected_surplus"
    }
    written = kept + sum(dropped.values())
    line = f", {kept / written:.0%} kept" if written else ""
    top = sorted(dropped, key=lambda name: (-dropped[name], name))[:2]
    if top:
        line += f" ({', '.join(f'{name} {dropped[name]}' for name in top)})"
    if tokens_per_second is not None:
        line += f", {tokens_per_second:,.0f} tokens/s"
    if metrics.get("cost_usd"):
        line += f", ${metrics['cost_usd']:.2f}"
    return line


def result_lines(report: Mapping[str, Any]) -> list[str]:
    """One line a policy: its score with its interval, and its gain over SFT."""
    policies: Mapping[str, Mapping[str, Any]] = report["policies"]
    judge = str(report.get("judge", "gold"))
    width = max(len(name) for name in policies)
    lines = [f"score at temperature 1 with its 95% interval (judge: {judge}), gain over sft"]
    for name, figures in policies.items():
        line = f"  {name:<{width}}  {figures['gold_score']:.3f} {_interval(figures['ci95'])}"
        if name not in ("base", "base_few_shot", "sft"):
            gain = figures["paired_gain_vs_sft"]
            line += f"  {gain:+.3f} {_interval(figures['paired_gain_ci95'], sign='+')}"
        lines.append(line)
    return lines


def next_lines(commands: Sequence[tuple[str, str]]) -> list[str]:
    """Commands a person may run next, each with what it is for."""
    rows = [(_as_typed(command), why) for command, why in commands]
    width = max((len(command) for command, _ in rows), default=0)
    lines = [f"  {command:<{width}}  # {why}" for command, why in rows]
    return ["next:", *lines] if lines else []


def _as_typed(command: str) -> str:
    """A command of ours with the path of its program, where the shell would not find it.

    That is so in a virtual environment which is not activated.
    """
    name, _, words = command.partition(" ")
    program = Path(sys.argv[0])
    if name != PROGRAM or program.name != name or shutil.which(name) is not None:
        return command
    near = program.relative_to(Path.cwd()) if program.is_relative_to(Path.cwd()) else program
    return f"{shlex.quote(str(near))} {words}"


def _interval(bounds: Sequence[float], sign: str = "") -> str:
    low, high = bounds
    return f"[{low:{sign}.3f}, {high:{sign}.3f}]"
