"""`alpaca-rlhf data ... RUN`: a look at what a teacher wrote, without it."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Interval

from alpaca_rlhf.cli.generation_rows import short, show_request, show_row
from alpaca_rlhf.cli.terminal import PROGRAM, Terminal, next_lines
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.shell_words import quoted
from alpaca_rlhf.data import (
    Check,
    Drop,
    read_manifest,
    refilter,
    requests,
    rule_set,
    write_instructions,
)
from alpaca_rlhf.serving import run_contents
from alpaca_rlhf.settings import FilterName
from alpaca_rlhf.settings.bounds import Bounded, NonNegativeFloat


@dataclass(frozen=True)
class Inspect:
    """Flags of `data inspect RUN ID`: none."""


@dataclass(frozen=True)
class DropsShown(Bounded):
    """Flags of `data drops RUN`."""

    rule: str | None = None
    """Show only rows that this rule dropped."""
    limit: Annotated[int, Interval(ge=0)] = 20
    """Rows shown at most; 0 shows all."""


@dataclass(frozen=True)
class Refilter:
    """Flags of `data refilter RUN`."""

    filters: FilterName = "strict"
    """The set of rules to decide by."""


@dataclass(frozen=True)
class ReportMade(Bounded):
    """Flags of `data report RUN`."""

    out: Path | None = None
    """File for the page; by default report.html beside the events."""
    usd_per_million_tokens: NonNegativeFloat = 0.0
    """Price of a million tokens that the teacher wrote; 0 if it costs nothing, or told its cost."""


def inspect(names: Sequence[str], settings: Inspect, terminal: Terminal) -> int:
    """Show one row with its verdict, its request and its neighbours; or one request, as `@17`.

    Raises:
        UserError: There is no such row or request; the run cannot be read.
    """
    run, row_id = names
    folder = _folder(run)
    terminal.say(f"inspect: {row_id} in {folder}")
    show = show_request if row_id.startswith("@") else show_row
    show(folder, row_id, terminal.say)
    _say_drops_next(terminal, run)
    return 0


def drops(names: Sequence[str], settings: DropsShown, terminal: Terminal) -> int:
    """List dropped rows, with counts by rule.

    Raises:
        UserError: No row was dropped by that rule; the run cannot be read.
    """
    run = names[0]
    folder = _folder(run)
    terminal.say(f"drops: rows of {folder} that were not kept")
    # 1. Count every rule, and choose the rows to show.
    counts: Counter[str] = Counter()
    examples: list[tuple[int, Drop]] = []
    for _, request in requests(folder):
        for drop in request.dropped:
            counts[drop.rule] += 1
            has_room = not settings.limit or len(examples) < settings.limit
            if has_room and settings.rule in (None, drop.rule):
                examples.append((request.number, drop))
    if settings.rule is not None and settings.rule not in counts:
        known = ", ".join(counts) or "none at all"
        near = difflib.get_close_matches(settings.rule, counts, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {known}"
        raise UserError(f"--rule {settings.rule}: no row of {folder} was dropped by it; {hint}")
    # 2. The counts, then the rows.
    width = max(map(len, counts), default=0)
    for rule, count in counts.most_common():
        terminal.say(f"  {rule:<{width}}  {count:>7,}  {count / counts.total():>6.1%}")
    terminal.say()
    for number, drop in examples:
        terminal.say(f"{drop.rule}: {short(drop.detail)}")
        if drop.row is not None:
            terminal.say(f"  {drop.row.id}  {short(drop.row.instruction)}")
        nearest = f", nearest {drop.near} at {drop.score:.3f}" if drop.near else ""
        terminal.say(f"  request @{number}{nearest}")
    total = counts[settings.rule] if settings.rule else counts.total()
    if len(examples) < total:
        terminal.say(f"... {len(examples)} of {total:,} shown; --limit 0 shows all")
    example = next((drop.row.id if drop.row else f"@{number}" for number, drop in examples), "ID")
    _say_next(
        terminal,
        [
            (f"{PROGRAM} data inspect {quoted(run)} {example}", "one of them with its prompt"),
            (f"{PROGRAM} data refilter {quoted(run)} --filters strict", "decide by other rules"),
        ],
    )
    return 0


def refiltered(names: Sequence[str], settings: Refilter, terminal: Terminal) -> int:
    """Decide anew on all stored replies and write the rows beside them; no teacher is asked.

    Raises:
        UserError: The run cannot be read.
    """
    run = names[0]
    folder = _folder(run)
    accept, novel = _checks_of(run)
    total = int(read_manifest(folder).get("counts", {}).get("requests", 0))
    terminal.say(f"refilter: {folder} by the rules `{settings.filters}`; no teacher is asked")
    terminal.start("refilter", "reading every reply again")
    outcome = refilter(
        folder,
        rules=rule_set(settings.filters),
        accept=accept,
        novel=novel,
        on_progress=lambda done: terminal.step("refilter", done, max(done, total), {}),
    )
    path = folder / f"rows-{settings.filters}.jsonl"
    write_instructions(path, outcome.rows)
    summary = f"{len(outcome.rows)} rows stay, {len(outcome.drops)} are dropped"
    terminal.finish("refilter", summary)
    lost, gained = sum(outcome.lost.values()), len(outcome.gained)
    terminal.say(f"before {outcome.before}, now {len(outcome.rows)}: {lost} lost, {gained} new")
    for rule, count in sorted(outcome.lost.items(), key=lambda rule_and_count: -rule_and_count[1]):
        terminal.say(f"  lost by {rule}: {count}")
    for row in outcome.gained[:3]:
        terminal.say(f"  new: {short(row.instruction)}")
    if outcome.unanswered:
        terminal.say(
            f"  {outcome.unanswered} tasks would pass now, but the teacher never answered them"
        )
    terminal.say(f"rows: {path}")
    train = f"{PROGRAM} sft --inputs.data {quoted(path)} --inputs.judge human"
    _say_next(
        terminal,
        [
            (f"{train} --inputs.prompts PROMPTS.jsonl --out runs/refiltered", "train on them"),
            (f"{PROGRAM} data drops {quoted(run)}", "what the run itself dropped"),
        ],
    )
    return 0


def report(names: Sequence[str], settings: ReportMade, terminal: Terminal) -> int:
    """Write one HTML page about a generation.

    Raises:
        UserError: The run cannot be read, or the page not written.
    """
    from alpaca_rlhf.report.render import write_generation_report

    run = names[0]
    folder = _folder(run)
    out = settings.out or folder / "report.html"
    terminal.say(f"report: reading {folder}")
    headline = write_generation_report(
        folder,
        out,
        seconds=_seconds(run),
        usd_per_million_tokens=settings.usd_per_million_tokens,
    )
    terminal.say(headline)
    terminal.say(f"report: {out}")
    _say_drops_next(terminal, run)
    return 0


def _folder(run: str) -> Path:
    """The folder of a run's events: the run itself, or `generate` in it."""
    for folder in (Path(run) / "generate", Path(run)):
        if (folder / "manifest.json").is_file():
            return folder
    meant = [path for path in run_contents.nearest_runs(Path(run)) if (path / "generate").is_dir()]
    near = f"did you mean {' or '.join(map(str, meant))}? " if meant else ""
    raise UserError(
        f"{run}: holds no generation; {near}`{PROGRAM} generate --out {quoted(run)}` makes one"
    )


def _run_of(run: str) -> Path | None:
    """The run folder, where the events lie in one."""
    candidates = (Path(run), Path(run).parent)
    return next((folder for folder in candidates if run_contents.holds_run(folder)), None)


def _checks_of(run: str) -> tuple[Check | None, Check | None]:
    """The caller's own checks, as the generate stage has them; none outside a run folder."""
    folder = _run_of(run)
    if folder is None:
        return None, None
    from alpaca_rlhf.sources import source_of

    source = source_of(run_contents.settings_of(folder))
    return source.accept, source.novelty()


def _seconds(run: str) -> float | None:
    """Duration of the stage in s; None if it has not ended."""
    folder = _run_of(run)
    return None if folder is None else run_contents.seconds_of(folder, "generate")


def _say_drops_next(terminal: Terminal, run: str) -> None:
    command = f"{PROGRAM} data drops {quoted(run)}"
    _say_next(terminal, [(command, "rows that were dropped, and why")])


def _say_next(terminal: Terminal, commands: list[tuple[str, str]]) -> None:
    terminal.say()
    for line in next_lines(commands):
        terminal.say(line)
