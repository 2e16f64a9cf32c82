"""`alpaca-rlhf checks list` and `checks score`: the verifiable constraints, and answers to them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alpaca_rlhf.checks import KINDS, CheckResult, Checks, Language, Verdict, example_of
from alpaca_rlhf.cli.terminal import PROGRAM, Terminal
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import FileAccount, Reading
from alpaca_rlhf.data.readers.columns import OUTPUT, refuse_marked_bad
from alpaca_rlhf.data.readers.formats import instructions_of
from alpaca_rlhf.data.readers.problems import EmptyRow, listed
from alpaca_rlhf.data.readers.rows import collect
from alpaca_rlhf.data.readers.values import checked_text
from alpaca_rlhf.settings.bounds import Bounded, NonNegativeInt


@dataclass(frozen=True)
class Listing:
    """Flags of `checks list`."""

    kind: str | None = None
    """Show every phrasing of this kind alone."""
    language: Language = "en"
    """Language of the phrasings."""


@dataclass(frozen=True)
class Scoring(Bounded):
    """Flags of `checks score`."""

    prompt: str | None = None
    """A request that states constraints."""
    answer: str | None = None
    """An answer to it."""
    file: Path | None = None
    """Prompts with answers instead, a row each: `prompt` (or `instruction`, `input`) and `answer`
    (or `output`, `completion`, `response`), in JSON lines, JSON, CSV or Parquet."""
    finished: bool = True
    """False if the answers were cut at a limit."""
    limit: NonNegativeInt = 20
    """Rows of the file that are shown; 0 shows all."""


def listing(settings: Listing, terminal: Terminal) -> int:
    """List the kinds of constraint with an example of each, or the phrasings of one.

    Raises:
        UserError: There is no such kind.
    """
    if settings.kind is not None:
        if settings.kind not in KINDS:
            raise UserError(
                f"--kind {settings.kind}: is not a kind; see them with: {PROGRAM} checks list"
            )
        kind = KINDS[settings.kind]
        terminal.say(f"{kind.name}: {kind.summary}")
        templates = kind.templates(settings.language)
        for template in templates:
            held_out = " (held out from training)" if template == templates[-1] else ""
            terminal.say(f"  {template}{held_out}")
        return 0
    width = max(map(len, KINDS))
    for kind in KINDS.values():
        if kind.templates(settings.language):
            mark = "*" if kind.held_out else " "
            terminal.say(f"{mark} {kind.name:<{width}}  {example_of(kind, settings.language)}")
    terminal.say("* held out from training: only in eval and dev")
    terminal.say()
    command = f'{PROGRAM} checks score --prompt "Why does it rain? Do not use any commas."'
    terminal.say_next(
        [
            (f"{PROGRAM} checks list --kind title", "every phrasing of a kind"),
            (f'{command} --answer "Clouds cool and their drops fall as rain."', "judge an answer"),
        ]
    )
    return 0


def scoring(settings: Scoring, terminal: Terminal) -> int:
    """Judge answers: each constraint met or missed, the parts and the score.

    Raises:
        UserError: Flags are missing, the file cannot be read, or no prompt states a constraint.
    """
    if settings.file is not None:
        if settings.prompt is not None or settings.answer is not None:
            raise UserError(
                "--file brings prompts and answers; leave --prompt and --answer out, or --file"
            )
        _score_file(settings, terminal)
        return 0
    if settings.prompt is None or settings.answer is None:
        raise UserError(
            "checks score needs --prompt TEXT and --answer TEXT, or --file ANSWERS.jsonl"
        )
    verdict = Checks().verdict(Instruction(settings.prompt), settings.answer, settings.finished)
    _show(verdict, terminal)
    return 0


def _score_file(settings: Scoring, terminal: Terminal) -> None:
    """Score every row of a file whose prompt states a constraint, and count by kind."""
    assert settings.file is not None
    # 1. The rows, without those that nothing can be checked of.
    file = settings.file
    # An answer may stand in `answer` too.
    reading = Reading("instructions", {"answer": OUTPUT[0]}, account=FileAccount(str(file)))
    rows = collect(file, lambda row: _answered(row, file.name), reading)
    for line in reading.account.lines():
        terminal.say(line)
    judged = [row for row in rows if Checks.can_judge(row)]
    if not judged:
        Checks.refuse_others(rows, f"--file {file}")
    # 2. Each row, then the share met of each kind.
    met: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    scores = []
    for number, row in enumerate(judged):
        verdict = Checks().verdict(row, row.output or "", settings.finished)
        for result in verdict.results:
            totals[result.constraint.kind.name] += 1
            met[result.constraint.kind.name] += result.met
        scores.append(verdict.scores.score)
        if not settings.limit or number < settings.limit:
            terminal.say(f"{' '.join(row.instruction.split())[:100]}")
            _show(verdict, terminal)
    terminal.say()
    for name, total in totals.most_common():
        terminal.say(f"  {name:<20} {met[name]:>5} of {total:<5} {met[name] / total:>6.1%}")
    left_out = len(rows) - len(judged)
    terminal.say(
        f"{len(judged)} answers, mean score {sum(scores) / len(scores):.3f}"
        + (f"; {left_out} rows state no constraint and were left out" if left_out else "")
    )


def _answered(row: dict[str, Any], file_name: str) -> list[Instruction]:
    """The tasks of a row, with their answers.

    Raises:
        BadRow: It has no prompt or no answer.
        MarkedBad: Its label marks it as bad.
    """
    refuse_marked_bad(row)
    tasks = instructions_of(row, file_name)
    if row.get(OUTPUT[0]) is not None:  # beside messages too
        answer = checked_text(row[OUTPUT[0]], "the answer")
        tasks = [replace(task, output=answer) for task in tasks]
    if not all((task.output or "").strip() for task in tasks):
        names = " or ".join(f"`{name}`" for name in ("answer", *OUTPUT))
        columns = listed(list(row))
        raise EmptyRow(f"no answer; expected it in {names}; columns here: {columns}")
    return tasks


def _show(verdict: Verdict, terminal: Terminal) -> None:
    for result in verdict.results:
        terminal.say(_line(result))
    parts = ", ".join(f"{name} {value:.2f}" for name, value in verdict.scores.parts.items())
    terminal.say(f"  score {verdict.scores.score:.3f} ({parts})")


def _line(result: CheckResult) -> str:
    verdict = "met" if result.met else f"missed, {result.degree:.2f}"
    return f"  {result.constraint.kind.name} ({verdict}): {result.constraint.text}"
