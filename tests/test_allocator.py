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
for _ in range(200):
    free.append(np.ones(2**17))              # 1 MiB
    live.append(np.ones(2**10))              # 8 KiB
del free
print(resident() - start)
if "trim" in sys.argv:
    allocator.trim()
    print(resident() - start)
"""


def left(*words, **environment):
    """MiB that stay resident of 200 that were freed, before and after trimming."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *words],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return [float(line) for line in done.stdout.split()]


def test_free_blocks_go_back_at_once():
    assert left()[0] > 150, "what the system does by itself"
    assert left("kit")[0] < 30


def test_free_blocks_go_back_at_the_end_of_a_stage():
    before, after = left("trim")
    assert before > 150 and after < 30


def test_what_the_user_set_stays():
    assert left("kit", MALLOC_MMAP_THRESHOLD_="33554432")[0] > 150


CARD_SCRIPT = """
import os, sys
from alpaca_rlhf.core import quiet
with quiet.loading("."):
    assert "torch" not in sys.modules
    print(os.environ.get("PYTORCH_ALLOC_CONF"), os.environ.get("PYTORCH_CUDA_ALLOC_CONF"))
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
