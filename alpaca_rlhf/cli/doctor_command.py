"""`alpaca-rlhf doctor`: checks of this machine and a base before a run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from alpaca_rlhf.cli import own_files
from alpaca_rlhf.cli.terminal import PROGRAM, Terminal
from alpaca_rlhf.core import quiet
from alpaca_rlhf.core.bases import EMBEDDED
from alpaca_rlhf.core.templates import default_template
from alpaca_rlhf.settings import Loop, Lora

if TYPE_CHECKING:
    from alpaca_rlhf.doctor import Finding


_MARKS = {"ok": "ok ", "warning": "!  ", "bad": "BAD"}


@dataclass(frozen=True)
class Doctor:
    """Flags of `alpaca-rlhf doctor`."""

    base: str = EMBEDDED
    """`embedded`, `smollm2`, a folder with a Hugging Face checkpoint, a GGUF file, or a hub id."""
    template: Literal["brief", "alpaca", "chat"] | None = None
    """Prompt template, as a run's; by default `chat` where the base brings one, else `alpaca`."""
    lora: Lora = field(default_factory=Lora)
    """Shape of the adapters, as a run's."""
    out: Path = Path("runs")
    """Folder where runs will be written; nothing is written now."""
    json: bool = False
    """One JSON object for programs, instead of lines."""


def run(flags: Doctor, terminal: Terminal) -> int:
    """Carry out every check and print each result at once.

    Returns:
        The exit code: 0, or 1 if a check is BAD.
    """
    quiet.quiet(flags.base)
    quiet.quiet_transformers(flags.base)
    if flags.template is None:
        flags = replace(flags, template=default_template(flags.base))
    findings = []
    for finding in _findings(flags):
        findings.append(finding)
        if not flags.json:
            _show(finding, terminal)
    bad = sum(finding.verdict == "bad" for finding in findings)
    if flags.json:
        report = {"good": bad == 0, "findings": [asdict(finding) for finding in findings]}
        terminal.say(json.dumps(report, ensure_ascii=False, indent=1))
        return min(bad, 1)
    warnings = sum(finding.verdict == "warning" for finding in findings)
    terminal.say()
    if bad:
        terminal.say(f"{bad} of {len(findings)} checks are BAD: a run would go wrong here")
        return 1
    terminal.say(f"{len(findings)} checks, nothing bad{f', {warnings} to know' * bool(warnings)}")
    terminal.say_next([(_next(flags), "the whole loop")])
    return 0


def _next(flags: Doctor) -> str:
    """The command that runs what was checked, with the flags that were given."""
    settings = Loop(base=flags.base, template=flags.template or "alpaca", lora=flags.lora)
    quick = flags.base == EMBEDDED
    if flags.out != Doctor.out:
        settings = replace(settings, out=flags.out / ("quickstart" if quick else "loop"))
    if quick:
        return shlex.join([PROGRAM, "quickstart", *own_files.given(settings)])
    return own_files.loop_command(settings)


def _findings(flags: Doctor) -> Iterator[Finding]:
    from alpaca_rlhf.doctor import base_checks, machine_checks

    yield from machine_checks(flags.out)
    yield from base_checks(flags.base, flags.template or "alpaca", flags.lora)


def _show(finding: Finding, terminal: Terminal) -> None:
    first, *further = finding.found.splitlines() or [""]
    terminal.say(f"{_MARKS[finding.verdict]} {finding.what:<18} {first}")
    for line in further:
        terminal.say(f"{'':23}{line}")
    if finding.todo:
        terminal.say(f"{'':23}-> {finding.todo}")
