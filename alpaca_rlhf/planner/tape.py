"""Bytes alive at once: blocks stand for tensors, and die as tensors do, with their last name.

The planner writes down what the real forwards and backwards allocate, in their order, with blocks
in place of tensors. So the peak is found as torch would find it, and no torch is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Block:
    """Memory of one tensor; given back when nothing refers to it any more.

    Args:
        tape: Counts it.
        size: Bytes.
        item: What it is counted under.
    """

    __slots__ = ("item", "size", "tape")

    def __init__(self, tape: Tape, size: int, item: str) -> None:
        self.tape, self.size, self.item = tape, size, item
        tape.count(size, item)

    def __del__(self) -> None:
        self.tape.count(-self.size, self.item)


class Tape:
    """Counts live bytes by item, and keeps the moment of the most."""

    def __init__(self) -> None:
        self.live = 0
        self.peak = 0
        self.items: dict[str, int] = {}
        self.at_peak: dict[str, int] = {}
        self._under = "activations"

    def new(self, size: float, item: str | None = None) -> Block:
        """A block of so many bytes, under the item of `under` unless told otherwise."""
        return Block(self, int(size), item or self._under)

    def count(self, size: int, item: str) -> None:
        """Add bytes to an item, or take them away."""
        self.items[item] = self.items.get(item, 0) + size
        self.live += size
        if self.live > self.peak:
            self.peak = self.live
            self.at_peak = dict(self.items)

    @contextmanager
    def under(self, item: str) -> Iterator[None]:
        """Count what is new in the block under an item."""
        before, self._under = self._under, item
        try:
            yield
        finally:
            self._under = before
