"""Live bytes: blocks stand for tensors and, like them, are freed with their last reference.

The planner repeats the allocations of the real forwards and backwards, in their order, with blocks
in place of tensors. The peak is therefore found as torch would find it, without torch.
"""

from __future__ import annotations

ACTIVATIONS = "activations"


class Block:
    """The memory of one tensor, freed when nothing refers to it any more.

    Args:
        tape: The tape that counts it.
        size: Bytes.
        item: The purpose that it is counted under.
    """

    __slots__ = ("item", "size", "tape")

    def __init__(self, tape: Tape, size: int, item: str) -> None:
        self.tape, self.size, self.item = tape, size, item
        tape.count(size, item)

    def __del__(self) -> None:
        self.tape.count(-self.size, self.item)


class Tape:
    """A count of live bytes by item, and its breakdown at the peak."""

    def __init__(self) -> None:
        self.live = 0
        self.peak = 0
        self.items: dict[str, int] = {}
        self.at_peak: dict[str, int] = {}

    def new(self, size: float, item: str = ACTIVATIONS) -> Block:
        """Allocate a block of `size` bytes."""
        return Block(self, int(size), item)

    def count(self, size: int, item: str) -> None:
        """Add bytes to an item; a negative size frees them."""
        self.items[item] = self.items.get(item, 0) + size
        self.live += size
        if self.live > self.peak:
            self.peak = self.live
            self.at_peak = dict(self.items)
