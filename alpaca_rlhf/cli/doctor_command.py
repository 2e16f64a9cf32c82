"""`alpaca-rlhf doctor`: what of this machine and a base would spoil a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from alpaca_rlhf.cli.terminal import PROGRAM, Terminal, next_lines
from alpaca_rlhf.core import quiet
from alpaca_rlhf.core.bases import EMBEDDED
from alpaca_rlhf.settings import Loop, Lora

if TYPE_CHECKING:
    from alpaca_rlhf.doctor import Finding


_MARKS = {"ok": "ok ", "warning": "!  ", "bad": "BAD"}


@dataclass(frozen=True)
class Doctor:
    """Flags of `alpaca-rlhf doctor`."""

    base: str = EMBEDDED
    """`embedded`, a folder with a Hugging Face checkpoint, or a hub id."""
    template: Literal["brief", "alpaca", "chat"] = "alpaca"
    """Prompt template, as a run's."""
    lora: Lora = field(default_factory=Lora)
    """Shape of the adapters, as a run's."""
    out: Path = Path("runs")
    """Where runs will be written; nothing is written now."""
    json: bool = False
    """One JSON object for programs, instead of lines."""


def run(asked: Doctor, terminal: Terminal) -> int:
    """Carry out every check and tell each as it is done.

    Returns:
        The exit code: 0, or 1 where something is bad.
    """
    quiet.quiet(asked.base)
    quiet.quiet_transformers(asked.base)
    findings = []
    for one in _findings(asked):
        findings.append(one)
        if not asked.json:
            _tell(one, terminal)
    bad = sum(one.verdict == "bad" for one in findings)
    if asked.json:
        found = {"good": bad == 0, "findings": [asdict(one) for one in findings]}
        terminal.say(json.dumps(found, ensure_ascii=False, indent=1))
        return min(bad, 1)
    warnings = sum(one.verdict == "warning" for one in findings)
    terminal.say()
    if bad:
        terminal.say(f"{bad} of {len(findings)} checks are BAD: a run would go wrong here")
        return 1
    terminal.say(f"{len(findings)} checks, nothing bad{f', {warnings} to know' * bool(warnings)}")
    start = "quickstart" if asked.base == Loop().base else f"loop --base {asked.base}"
    for line in next_lines([(f"{PROGRAM} {start}", "the whole loop")]):
        terminal.say(line)
    return 0


def _findings(asked: Doctor) -> Iterator[Finding]:
    from alpaca_rlhf.doctor import base_checks, machine_checks

    yield from machine_checks(asked.out)
    yield from base_checks(asked.base, asked.template, asked.lora)


def _tell(one: Finding, terminal: Terminal) -> None:
    first, *rest = one.found.splitlines() or [""]
    terminal.say(f"{_MARKS[one.verdict]} {one.what:<18} {first}")
    for line in rest:
        terminal.say(f"{'':23}{line}")
    if one.todo:
        terminal.say(f"{'':23}-> {one.todo}")
