"""The standing of prompts in the ranking: the one truth for app, terminal, loop and report.

A prompt is *ranked* once a person who is not left out has ranked a set of it. It is *skipped* if
somebody has skipped or flagged it, nobody has it now and nobody has ranked it; whoever ranks it
after all is heard. It is *closed* if an admin has closed or left out all its sets. All others
*wait*. Training uses the ranked ones and leaves the others out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Status = Literal["ranked", "skipped", "closed", "waiting"]


@dataclass(frozen=True)
class Standing:
    """Numbers of prompts by their status."""

    ranked: int = 0
    """Ranked by a person; used in training."""
    skipped: int = 0
    """Skipped or flagged by whoever was asked, and ranked by nobody."""
    closed: int = 0
    """Closed or left out by an admin before a person ranked them."""
    waiting: int = 0
    """Still to be ranked."""

    @classmethod
    def of(cls, statuses: Iterable[Status]) -> Standing:
        """Count statuses."""
        return cls(**Counter[str](statuses))

    @property
    def prompts(self) -> int:
        """All prompts."""
        return self.ranked + self.skipped + self.closed + self.waiting

    def missing(self, at_least: int | None) -> int:
        """Prompts that must still be ranked before training goes on; 0 is enough.

        Args:
            at_least: Prompts that suffice; None asks for all that wait, and for one at least.
        """
        if at_least is None:
            return self.waiting or int(not self.ranked)
        return max(0, at_least - self.ranked)

    def line(self, at_least: int | None = None) -> str:
        """All numbers in one line."""
        parts = [f"{self.ranked} of {self.prompts} prompts ranked"]
        parts += [f"{self.skipped} skipped"] if self.skipped else []
        parts += [f"{self.closed} closed"] if self.closed else []
        parts += [f"{self.waiting} waiting"] if self.waiting else []
        if at_least is not None:
            parts.append(f"at least {at_least} asked for")
        return ", ".join(parts)

    def facts(self) -> dict[str, int]:
        """The numbers for a ledger."""
        names = ("prompts", "ranked", "skipped", "closed", "waiting")
        return {name: getattr(self, name) for name in names}
