"""Allocators told to waste less: the C library's, and torch's on a graphics card.

glibc takes large blocks from the system and returns them at once, but after the first that is freed
it raises the size from which it does so, up to 32 MiB, and keeps smaller ones in heaps that only
shrink at their end (mallopt(3), M_MMAP_THRESHOLD). The activations of a forward are of just that
size: a few live tensors at the end of a heap then hold gigabytes that nobody uses
(`benchmarks/process_memory.py`). Returning every one of them at once is no way out: each of its
pages costs a fault when the next tensor takes it, 0.8 ms for each MiB where the system is itself a
guest. So blocks of a few MiB stay in the heaps, and the heaps give up what is free once it has
grown; larger blocks are returned at once, and torch asks for huge pages for them.

On a card torch reserves segments of fixed sizes, and a cache that grows with each token fits none
of the earlier ones. Segments that expand fit (docs.pytorch.org, CUDA semantics, "Optimizing memory
usage with PYTORCH_ALLOC_CONF"); simulated, nothing measured on a card yet.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from pathlib import Path
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Numbers of the parameters in glibc's malloc.h."""
BLOCK_BYTES = 2**22
"""Size from which a block is returned when it is freed. Setting it stops glibc from raising it."""
HEAP_BYTES = 2**26
"""Free bytes at the end of a heap that are kept."""
GROWTH_BYTES = 2**28
"""Growth of the resident memory since the heaps were trimmed from which on they are trimmed again.
"""


_HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""The variable by which torch asks for huge pages, for blocks of 2 MiB and more
(c10/core/impl/alloc_cpu.cpp)."""
_CARD_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")


def expand_segments() -> None:
    """Let torch's segments on a card expand, unless the user has set its allocator.

    Only before torch is loaded, which reads the variable once.
    """
    if not any(name in os.environ for name in _CARD_VARIABLES):
        os.environ[_CARD_VARIABLES[0]] = "expandable_segments:True"


def return_memory() -> None:
    """Fix the sizes for this process; nothing on other systems, or where the user has set them.

    Only before torch is loaded, which reads whether it asks for huge pages once.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    os.environ.setdefault(_HUGE_PAGES, "1")
    library = _glibc()
    if library is not None:
        library.mallopt(_M_MMAP_THRESHOLD, BLOCK_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, HEAP_BYTES)


def trim() -> None:
    """Return what is free within the heaps, as at the end of a stage; nothing on other systems."""
    gc.collect()
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


class Growth:
    """Trims the heaps whenever the resident memory has grown, between two steps of a stage.

    Between steps hardly anything is live, so what has grown is free.
    """

    def __init__(self) -> None:
        self._trimmed_at = _resident_bytes()

    def trim(self) -> None:
        """Trim if there is enough; call it after each step."""
        resident = _resident_bytes()
        self._trimmed_at = min(self._trimmed_at, resident)
        if resident - self._trimmed_at < GROWTH_BYTES:
            return
        library = _glibc()
        if library is not None:
            library.malloc_trim(0)
        self._trimmed_at = _resident_bytes()


def _resident_bytes() -> int:
    """Resident memory of this process; 0 on systems without /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _glibc() -> Any:
    """The C library, if it is glibc."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
