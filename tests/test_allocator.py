"""Memory that is free goes back to the system, and what a card's allocator is told."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or "glibc" not in str(os.confstr("CS_GNU_LIBC_VERSION")),
    reason="needs glibc, whose allocator keeps what is free",
)

SCRIPT = """
import re, sys
import numpy as np
from alpaca_rlhf.core import allocator

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024

if "kit" in sys.argv:
    allocator.return_memory()
np.ones(3 * 2**20)                   # 24 MiB, freed: glibc now keeps what is smaller
start, live, free = resident(), [], []
growth, mib = allocator.Growth(), int(sys.argv[1])
for _ in range(400 // mib):
    free.append(np.ones(mib * 2**17))
    live.append(np.ones(2**10))              # 8 KiB
del free
print(resident() - start)
{"trim": allocator.trim, "growth": growth.trim}.get(sys.argv[-1], int)()
print(resident() - start)
"""


def left(mib, *words, **environment):
    """MiB that stay of 400 that were freed, in blocks of `mib`, before and after a trim."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(mib), *words],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return [float(line) for line in done.stdout.split()]


def test_large_free_blocks_go_back_at_once():
    assert left(8)[0] > 300, "what the system does by itself"
    assert left(8, "kit")[0] < 30


@pytest.mark.parametrize("trimmed_by", ["trim", "growth"])
def test_free_blocks_go_back_between_stages_and_where_they_are_many_between_steps(trimmed_by):
    before, after = left(1, "kit", trimmed_by)
    assert before > 300 and after < 30


def test_a_little_that_is_free_stays_for_the_next_step():
    """It would be taken again page by page."""
    script = SCRIPT.replace("400 // mib", "100 // mib")
    done = subprocess.run(
        [sys.executable, "-c", script, "1", "kit", "growth"],
        capture_output=True,
        text=True,
        check=True,
    )
    before, after = map(float, done.stdout.split())
    assert before > 60 and after == pytest.approx(before, abs=5)


def test_what_the_user_set_stays():
    assert left(8, "kit", MALLOC_MMAP_THRESHOLD_="33554432")[0] > 300


CARD_SCRIPT = """
import os, sys
from alpaca_rlhf.core import quiet
with quiet.loading("."):
    assert "torch" not in sys.modules
    print(os.environ.get("PYTORCH_ALLOC_CONF"), os.environ.get("PYTORCH_CUDA_ALLOC_CONF"))
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"  # torch reads it once
"""


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({}, "expandable_segments:True None"),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64 None"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, "None backend:native"),
    ],
)
def test_a_card_s_segments_expand_unless_the_user_says_otherwise(environment, told):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTORCH_")}
    done = subprocess.run(
        [sys.executable, "-c", CARD_SCRIPT],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == told
