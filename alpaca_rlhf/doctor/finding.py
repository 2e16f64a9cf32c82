"""One line of the doctor: the thing checked, its state, and the remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warning", "bad"]
"""A `warning` costs speed or comfort; `bad` spoils a run."""


@dataclass(frozen=True)
class Finding:
    """The result of one check. Its fields are the keys of `doctor --json`."""

    what: str
    """The thing checked."""
    found: str
    """Its state."""
    verdict: Verdict = "ok"
    """The severity of that state."""
    todo: str = ""
    """The remedy, unless the verdict is `ok`."""


Check = Callable[[], Finding]


def carried_out(checks: dict[str, Check]) -> Iterator[Finding]:
    """Run each check in order; an exception inside a check becomes a finding."""
    for name, check in checks.items():
        try:
            yield check()
        except Exception as error:  # whatever a broken installation provokes
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            yield Finding(name, f"{type(error).__name__}: {line}", "bad", "see the message")
