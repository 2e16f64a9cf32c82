"""`alpaca-rlhf data ...`: looking at what a teacher wrote, without it, and at files of data."""

from __future__ import annotations

import difflib
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from alpaca_rlhf.cli import data_files
from alpaca_rlhf.cli.generation_rows import short, show_request, show_row
from alpaca_rlhf.cli.terminal import PROGRAM, Terminal, next_lines
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.data import (
    Check,
    Drop,
    read_manifest,
    refilter,
    requests,
    rule_set,
    write_instructions,
)
from alpaca_rlhf.serving import folders
from alpaca_rlhf.settings import FilterName
from alpaca_rlhf.settings.parsing import parse

T = TypeVar("T")


@dataclass(frozen=True)
class Inspect:
    """Flags of `data inspect RUN ID`: none."""


@dataclass(frozen=True)
class DropsShown:
    """Flags of `data drops RUN`."""

    rule: str | None = None
    """Show only rows that this rule dropped."""
    limit: int = 20
    """Rows shown at most; 0 shows all."""

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise ValueError(f"--limit must be at least 0, got {self.limit}")


@dataclass(frozen=True)
class Refilter:
    """Flags of `data refilter RUN`."""

    filters: FilterName = "strict"
    """The set of rules to decide by."""


@dataclass(frozen=True)
class ReportMade:
    """Flags of `data report RUN`."""

    out: Path | None = None
    """Where to write the page; by default report.html beside the events."""
    usd_per_million_tokens: float = 0.0
    """Price of a million tokens that the teacher wrote; 0 if it costs nothing, or told its cost."""

    def __post_init__(self) -> None:
        if not self.usd_per_million_tokens >= 0:
            raise ValueError(
                f"--usd-per-million-tokens must be >= 0, got {self.usd_per_million_tokens:g}"
            )


def inspect(words: Sequence[str], terminal: Terminal) -> int:
    """Show one row with its verdict, its request and its neighbours; or one request, as `@17`.

    Raises:
        UserError: There is no such row or request; the run cannot be read.
    """
    about = "One row with its request, prompt and neighbours; or the request @NUMBER."
    (run, wanted), _ = _given(words, Inspect, "data inspect", ("RUN", "ID"), about)
    folder = _folder(run)
    say = terminal.say
    say(f"inspect: {wanted} in {folder}")
    show = show_request if wanted.startswith("@") else show_row
    show(folder, wanted, say)
    shown = f"{PROGRAM} data drops {_quoted(run)}"
    _tell_next(terminal, [(shown, "rows that were dropped, and why")])
    return 0


def drops(words: Sequence[str], terminal: Terminal) -> int:
    """List dropped rows, with counts by rule.

    Raises:
        UserError: No row was dropped by that rule; the run cannot be read.
    """
    about = "Rows that were dropped, and why."
    (run,), asked = _given(words, DropsShown, "data drops", ("RUN",), about)
    folder = _folder(run)
    terminal.say(f"drops: rows of {folder} that were not kept")
    counts: Counter[str] = Counter()
    chosen: list[tuple[int, Drop]] = []
    for _, one in requests(folder):
        for drop in one.dropped:
            counts[drop.rule] += 1
            room = not asked.limit or len(chosen) < asked.limit
            if room and asked.rule in (None, drop.rule):
                chosen.append((one.number, drop))
    if asked.rule is not None and asked.rule not in counts:
        known = ", ".join(counts) or "none at all"
        near = difflib.get_close_matches(asked.rule, counts, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {known}"
        raise UserError(f"--rule {asked.rule}: no row of {folder} was dropped by it; {hint}")
    width = max(map(len, counts), default=0)
    for rule, count in counts.most_common():
        terminal.say(f"  {rule:<{width}}  {count:>7,}  {count / counts.total():>6.1%}")
    terminal.say()
    for asked_in, drop in chosen:
        terminal.say(f"{drop.rule}: {short(drop.detail)}")
        if drop.row is not None:
            terminal.say(f"  {drop.row.id}  {short(drop.row.instruction)}")
        beside = f", nearest {drop.near} at {drop.score:.3f}" if drop.near else ""
        terminal.say(f"  request @{asked_in}{beside}")
    total = counts[asked.rule] if asked.rule else counts.total()
    if len(chosen) < total:
        terminal.say(f"... {len(chosen)} of {total:,} shown; --limit 0 shows all")
    with_row = next((one.row.id if one.row else f"@{at}" for at, one in chosen), "ID")
    _tell_next(
        terminal,
        [
            (f"{PROGRAM} data inspect {_quoted(run)} {with_row}", "one of them with its prompt"),
            (f"{PROGRAM} data refilter {_quoted(run)} --filters strict", "decide by other rules"),
        ],
    )
    return 0


def refiltered(words: Sequence[str], terminal: Terminal) -> int:
    """Decide anew on all stored replies and write the rows beside; no teacher is asked.

    Raises:
        UserError: The run cannot be read.
    """
    about = "Run filters and novelty again on the stored replies, without asking the teacher."
    (run,), asked = _given(words, Refilter, "data refilter", ("RUN",), about)
    folder = _folder(run)
    accept, novel = _checks_of(run)
    total = int(read_manifest(folder).get("counts", {}).get("requests", 0))
    terminal.say(f"refilter: {folder} by the rules `{asked.filters}`; no teacher is asked")
    terminal.start("refilter", "reading every reply again")
    made = refilter(
        folder,
        rules=rule_set(asked.filters),
        accept=accept,
        novel=novel,
        on_progress=lambda done: terminal.step("refilter", done, max(done, total), {}),
    )
    path = folder / f"rows-{asked.filters}.jsonl"
    write_instructions(path, made.rows)
    lost = sum(made.lost.values())
    terminal.finish("refilter", f"{len(made.rows)} rows stay, {len(made.drops)} are dropped")
    terminal.say(f"before {made.before}, now {len(made.rows)}: {lost} lost, {len(made.gained)} new")
    for rule, count in sorted(made.lost.items(), key=lambda one: -one[1]):
        terminal.say(f"  lost by {rule}: {count}")
    for row in made.gained[:3]:
        terminal.say(f"  new: {short(row.instruction)}")
    if made.unanswered:
        terminal.say(
            f"  {made.unanswered} tasks would pass now, but the teacher never answered them"
        )
    terminal.say(f"rows: {path}")
    train = f"{PROGRAM} sft --inputs.data {_quoted(path)} --inputs.judge human"
    _tell_next(
        terminal,
        [
            (f"{train} --inputs.prompts PROMPTS.jsonl --out runs/refiltered", "train on them"),
            (f"{PROGRAM} data drops {_quoted(run)}", "what the run itself dropped"),
        ],
    )
    return 0


def report(words: Sequence[str], terminal: Terminal) -> int:
    """Write one HTML page about a generation.

    Raises:
        UserError: The run cannot be read, or the page not written.
    """
    from alpaca_rlhf.report.generation_page import write_generation_report

    about = "One HTML page about a generation."
    (run,), asked = _given(words, ReportMade, "data report", ("RUN",), about)
    folder = _folder(run)
    out = asked.out or folder / "report.html"
    terminal.say(f"report: reading {folder}")
    headline = write_generation_report(
        folder,
        out,
        seconds=_seconds(run),
        usd_per_million_tokens=asked.usd_per_million_tokens,
    )
    terminal.say(headline)
    terminal.say(f"report: {out}")
    shown = f"{PROGRAM} data drops {_quoted(run)}"
    _tell_next(terminal, [(shown, "rows that were dropped, and why")])
    return 0


COMMANDS: dict[str, tuple[Callable[[Sequence[str], Terminal], int], str]] = {
    "inspect": (
        inspect,
        "one row with its request, prompt and neighbours: RUN ID, or RUN @REQUEST",
    ),
    "drops": (drops, "rows that were dropped, and why: RUN [--rule NAME]"),
    "refilter": (refiltered, "decide by other rules, without the teacher: RUN --filters strict"),
    "report": (report, "one HTML page about a generation: RUN"),
    "check": (data_files.check, "read files as import does, and write nothing: FILE..."),
    "export": (data_files.exported, "data for others, with a card: FOLDER --to parquet --out DIR"),
}
"""Commands below `data`, and what they do."""


def run(words: Sequence[str], terminal: Terminal) -> int:
    """Run `alpaca-rlhf data <words>`.

    Raises:
        UserError: There is no such command, or it has something to tell.
    """
    if not words or words[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        rows = [f"  {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items()]
        terminal.say("\n".join([f"usage: {PROGRAM} data COMMAND ... [flags]\n", *rows]))
        return 0
    name, *rest = words
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}" if near else f"there are {', '.join(COMMANDS)}"
        raise UserError(f"data {name}: no such command; {hint}")
    return COMMANDS[name][0](rest, terminal)


def _given(
    words: Sequence[str], cls: type[T], command: str, names: tuple[str, ...], about: str
) -> tuple[list[str], T]:
    """The words before the flags, one for each name, and the flags.

    Raises:
        UserError: There are more or fewer words, or a flag is wrong.
    """
    usage = f"{PROGRAM} {command} {' '.join(names)}"
    at = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    given, flags = list(words[:at]), list(words[at:])
    wants_help = "-h" in words or "--help" in words
    if len(given) != len(names) and not wants_help:
        got = f"got {shlex.join(given)}" if given else "got nothing"
        raise UserError(f"{command}: {got}; expected {usage}")
    return given, parse(cls, flags, prog=usage, description=about, default=cls())


def _folder(run: str) -> Path:
    """Where the events of a run lie: in it, or below it in `generate`."""
    for folder in (Path(run) / "generate", Path(run)):
        if (folder / "manifest.json").is_file():
            return folder
    raise UserError(f"{run}: holds no generation; `{PROGRAM} generate --out {run}` makes one")


def _run_of(run: str) -> Path | None:
    """The run folder, where the events lie in one."""
    near = (Path(run), Path(run).parent)
    return next((one for one in near if folders.holds_run(one)), None)


def _checks_of(run: str) -> tuple[Check | None, Check | None]:
    """The caller's own checks, as the generate stage has them; none outside a run folder."""
    folder = _run_of(run)
    if folder is None:
        return None, None
    from alpaca_rlhf.sources import source_of

    source = source_of(folders.settings_of(folder))
    return source.accept, source.novelty()


def _seconds(run: str) -> float | None:
    """How long the stage took, if it ended."""
    folder = _run_of(run)
    return None if folder is None else folders.seconds_of(folder, "generate")


def _tell_next(terminal: Terminal, commands: list[tuple[str, str]]) -> None:
    terminal.say()
    for line in next_lines(commands):
        terminal.say(line)


def _quoted(path: str | Path) -> str:
    return shlex.quote(str(path))
