"""Gaps of torch's allocator on a card: the plan's, against a model of the allocator."""

from dataclasses import replace

import pytest

from alpaca_rlhf.planner import Budget, Device, PeakMemory, find_gpu, layers, passes, shape_of
from alpaca_rlhf.planner import tape as tape_module
from alpaca_rlhf.planner.gpu_specs import allocator_gaps
from alpaca_rlhf.planner.tape import Block, Tape
from alpaca_rlhf.settings import Loop
from tests.cuda_sim.caching_allocator import LARGE_PAGE, SMALL_PAGE, CachingAllocator

MIB = 2**20


def test_segments_grow_by_pages_of_their_size():
    allocator = CachingAllocator()
    allocator.allocate(1)
    assert allocator.reserved == SMALL_PAGE
    allocator.allocate(MIB)  # the last small size; a byte more is large
    assert allocator.reserved == SMALL_PAGE
    allocator.allocate(MIB + 1)
    assert allocator.reserved == SMALL_PAGE + LARGE_PAGE
    allocator.allocate(40 * MIB)  # begins where the first large block ends
    assert allocator.reserved == SMALL_PAGE + 3 * LARGE_PAGE


def test_the_smallest_free_block_that_fits_is_split_and_joined_again():
    allocator = CachingAllocator()
    blocks = [allocator.allocate(size * MIB) for size in (8, 2, 4, 2, 4)]
    allocator.free(blocks[0])
    allocator.free(blocks[2])
    small = allocator.allocate(3 * MIB)
    assert small[0] == blocks[2][0], "the hole of 4, not that of 8"
    allocator.free(small)
    allocator.free(blocks[1])
    whole = allocator.allocate(14 * MIB)
    assert whole[0] == blocks[0][0], "8, 2 and 4 are one block"
    assert allocator.reserved == LARGE_PAGE


def test_a_growing_cache_fits_where_segments_grow():
    """100 copies of up to 129 MiB, two at a time: segments of fixed sizes would be 7.8 GiB."""
    allocator = CachingAllocator()
    cache, largest = allocator.allocate(30 * MIB), 0
    for tokens in range(31, 130):
        grown = allocator.allocate(tokens * MIB)
        allocator.free(cache)
        cache, largest = grown, tokens * MIB
    assert 2 * largest <= allocator.reserved <= 3.5 * largest


class _Allocated(Block):
    """A block of a tape that lies in a model of the allocator too."""

    __slots__ = ("place",)

    def __init__(self, tape, size, item):
        super().__init__(tape, size, item)
        self.place = tape.allocator.allocate(size) if size else None

    def __del__(self):
        super().__del__()
        if self.place is not None:
            self.tape.allocator.free(self.place)


@pytest.fixture
def tapes(monkeypatch):
    """All tapes from now on, each with an allocator that its blocks lie in."""
    made = []
    init = Tape.__init__

    def with_allocator(tape):
        init(tape)
        tape.allocator = CachingAllocator()
        made.append(tape)

    monkeypatch.setattr(Tape, "__init__", with_allocator)
    monkeypatch.setattr(tape_module, "Block", _Allocated)
    assert layers.Block is passes.Block is Block, "they name the type alone; tapes make blocks"
    return made


@pytest.mark.parametrize(
    ("base", "stage", "checkpointing"),
    [
        ("llama-3-8b", "sft", 0),
        ("llama-3-8b", "sft", 1),
        ("llama-2-7b", "reward", 2),
        ("smollm2-135m", "reward", 0),
        ("smollm2-135m", "sample", 1),
    ],
)
def test_planned_gaps_cover_those_of_the_model(tapes, base, stage, checkpointing):
    """Of every phase, and not by far more than what one layer takes."""
    plan = PeakMemory(shape_of(base), Device("cuda", 2), Loop(), checkpointing=checkpointing)
    phases = plan.phases(stage)
    reserved = [tape.allocator.reserved - tape.peak for tape in tapes]
    planned = [allocator_gaps(items) for items in plan.of_one_layer(stage)]
    assert len(phases) == len(reserved) == len(planned)
    for phase, gaps, allowed in zip(phases, reserved, planned, strict=True):
        assert 0 <= gaps <= allowed, (phase.name, gaps / MIB, allowed / MIB)
    assert max(reserved) > 5 * MIB


def test_kept_activations_leave_no_more_gaps_than_one_layer():
    """Eight per cent of all activations would be a gigabyte here."""
    budget = Budget(shape_of("llama-3-8b"), find_gpu("24"))
    gaps = []
    for mode in ("off", "on"):
        settings = replace(Loop(), checkpointing=mode)
        kept = budget.phases(settings)["sft"][0]
        gaps.append(kept.items["CUDA context and gaps"] - int(0.6 * 2**30))
    assert gaps[0] == gaps[1] < 0.7 * 2**30
