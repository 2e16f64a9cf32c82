"""A finding of the doctor: the thing checked, its state, and the remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warning", "bad"]
"""A `warning` costs speed or comfort; `bad` would spoil a run."""


@dataclass(frozen=True)
class Finding:
    """The result of one check. Its fields are the keys of `doctor --json`."""

    what: str
    """The thing checked."""
    found: str
    """The state it was found in."""
    verdict: Verdict = "ok"
    """The severity of that state."""
    todo: str = ""
    """The remedy; empty if the verdict is `ok`."""


Check = Callable[[], Finding]


def carried_out(checks: dict[str, Check]) -> Iterator[Finding]:
    """Run each check in order; an exception inside a check becomes a finding."""
    for name, check in checks.items():
        try:
            yield check()
        except Exception as error:  # a broken installation may raise anything
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            yield Finding(name, f"{type(error).__name__}: {reason}", "bad", "see the error message")
