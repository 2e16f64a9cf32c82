"""A model of torch's caching allocator on CUDA, with segments that expand.

What `PYTORCH_ALLOC_CONF=expandable_segments:True` does, as its source says it
(c10/cuda/CUDACachingAllocator.cpp of torch 2.13): sizes are rounded up to 512 bytes; up to 1 MiB
come from a segment of small blocks, the others from one of large blocks. The smallest free block
that fits is taken and split, the one at the end of a segment last; where none fits, the segment
grows by pages of 2 MiB or, for large blocks, 20 MiB. Free neighbours are joined. Pages stay until
memory runs out, which is not modelled: so what is counted is the most that a process would hold.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field

SMALLEST = 512
SMALL = 2**20
"""Size up to which a block lies among the small ones."""
SMALL_PAGE, LARGE_PAGE = 2 * 2**20, 20 * 2**20


@dataclass
class Segment:
    """Blocks that lie end to end from address 0."""

    page: int
    """Bytes by which it grows."""
    end: int = 0
    """Bytes that it holds."""
    _by_size: list[tuple[int, int]] = field(default_factory=list)
    """(size, address) of each free block, in order."""
    _size_at: dict[int, int] = field(default_factory=dict)
    """Sizes of free blocks by address."""
    _start_of: dict[int, int] = field(default_factory=dict)
    """Addresses of free blocks by their end."""

    def allocate(self, size: int) -> int:
        """Address of a new block."""
        place = bisect_left(self._by_size, (size, 0))
        fitting = self._by_size[place : place + 2]
        if len(fitting) == 2 and sum(fitting[0]) == self.end:
            fitting = fitting[1:]  # the block that could grow counts as the largest
        if fitting:
            free, start = fitting[0]
            self._remove(start)
        else:
            start = self._start_of.get(self.end, self.end)
            if start != self.end:
                self._remove(start)
            self.end = -(-(start + size) // self.page) * self.page
            free = self.end - start
        if free > size:
            self._add(start + size, free - size)
        return start

    def free(self, start: int, size: int) -> None:
        """Give a block back, joined with the free ones beside it."""
        end = start + size
        if end in self._size_at:
            after = end
            end += self._size_at[after]
            self._remove(after)
        if start in self._start_of:
            start = self._start_of[start]
            self._remove(start)
        self._add(start, end - start)

    def _add(self, start: int, size: int) -> None:
        insort(self._by_size, (size, start))
        self._size_at[start] = size
        self._start_of[start + size] = start

    def _remove(self, start: int) -> None:
        size = self._size_at.pop(start)
        del self._start_of[start + size]
        del self._by_size[bisect_left(self._by_size, (size, start))]


class CachingAllocator:
    """Segments of small and of large blocks, and the bytes that they hold."""

    def __init__(self) -> None:
        self._small, self._large = Segment(SMALL_PAGE), Segment(LARGE_PAGE)

    @property
    def reserved(self) -> int:
        """Bytes taken from the card, which never fall."""
        return self._small.end + self._large.end

    def allocate(self, size: int) -> tuple[int, int]:
        """A block of so many bytes: its address and its size, rounded up."""
        rounded = -(-max(size, 1) // SMALLEST) * SMALLEST
        return self._segment(rounded).allocate(rounded), rounded

    def free(self, block: tuple[int, int]) -> None:
        """Give a block back."""
        self._segment(block[1]).free(*block)

    def _segment(self, size: int) -> Segment:
        return self._small if size <= SMALL else self._large
