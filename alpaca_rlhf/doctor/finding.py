"""One line of the doctor: what was looked at, what was found, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warning", "bad"]
"""`warning` costs speed or comfort; `bad` spoils a run."""


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    what: str
    """What was looked at."""
    found: str
    """What is there."""
    verdict: Verdict = "ok"
    """How good that is."""
    todo: str = ""
    """What to do, where it is not `ok`."""


Check = Callable[[], Finding]


def carried_out(checks: dict[str, Check]) -> Iterator[Finding]:
    """Each check in order; one that fails itself is a finding too."""
    for what, check in checks.items():
        try:
            yield check()
        except Exception as error:  # whatever a broken installation provokes
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            yield Finding(what, f"{type(error).__name__}: {line}", "bad", "see the message")
