"""Allocators told to waste less: the C library's, and torch's on a graphics card.

glibc takes large blocks from the system and returns them at once, but after the first that is freed
it raises the size from which it does so, up to 32 MiB, and keeps smaller ones in heaps that only
shrink at their end (mallopt(3), M_MMAP_THRESHOLD). The activations of a forward are of just that
size: a few live tensors at the end of a heap then hold gigabytes that nobody uses
(`benchmarks/process_memory.py`).

On a card torch reserves segments of fixed sizes, and a cache that grows with each token fits none
of the earlier ones. Segments that expand fit (docs.pytorch.org, CUDA semantics, "Optimizing memory
usage with PYTORCH_ALLOC_CONF"); simulated, nothing measured on a card yet.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Numbers of the parameters in glibc's malloc.h."""
BLOCK_BYTES = 2**18
"""Size from which a block is returned when it is freed. Setting it stops glibc from raising it."""
HEAP_BYTES = 2**26
"""Free bytes at the end of a heap that are kept."""


_CARD_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")


def expand_segments() -> None:
    """Let torch's segments on a card expand, unless the user has set its allocator.

    Only before torch is loaded, which reads the variable once.
    """
    if not any(name in os.environ for name in _CARD_VARIABLES):
        os.environ[_CARD_VARIABLES[0]] = "expandable_segments:True"


def return_memory() -> None:
    """Fix the sizes for this process; nothing on other systems, or where the user has set them."""
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
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


def _glibc() -> Any:
    """The C library, if it is glibc."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
