"""The benchmarks' own measures: FLOPs, live bytes and the floor, on what can be worked by hand."""

import random
import re

import bitsandbytes as bnb
import pytest
import torch
from sqlalchemy import select

from alpaca_rlhf.data import read_prompts
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.base import load_base
from alpaca_rlhf.models.batches import Example, collate
from alpaca_rlhf.preferences.schema import Demonstration, Ranking, Tally
from alpaca_rlhf.preferences.store import Store
from alpaca_rlhf.settings import Lora
from benchmarks import measure, novelty
from benchmarks import store as store_benchmark
from benchmarks.lengths import ALPACA, spread
from benchmarks.little_llama import Shape, random_ids, write_checkpoint
from tests.test_data_novelty import f1
from tests.test_preferences_store import places_add_up, rows

SHAPE = Shape(hidden=64, inner=96, layers=2, heads=2, vocabulary=128, rank=4)


def test_live_bytes_count_a_storage_once_until_it_dies():
    weight = torch.zeros(10, 10)
    with measure.LiveBytes([weight]) as live:
        assert live.start == 400
        made = weight + 1
        view = made.t()[2:]
        assert live.live == 800, "a view is the same storage"
        del made
        assert live.live == 800
        del view
        assert live.live == 400
        weight @ weight
    assert live.peak == 800


def test_live_bytes_see_what_autograd_keeps():
    x = torch.ones(100, requires_grad=True)
    with measure.LiveBytes([x]) as live:
        y = x.exp().exp().sum()
        assert live.live >= 3 * 400, "the input and both results are saved for the backward"
        y.backward()
        del y
    assert live.live <= 2 * 400, "the input and its gradient"


@pytest.mark.parametrize("grad", [False, True])
def test_a_four_bit_product_counts_as_any_other(grad):
    layer = bnb.nn.Linear4bit(64, 32, bias=False, quant_type="nf4", compute_dtype=torch.float32)
    layer.weight = bnb.nn.Params4bit(torch.randn(32, 64), requires_grad=False, quant_type="nf4")
    layer = layer.to("cpu")
    x = torch.randn(5, 64, requires_grad=grad)
    with torch.set_grad_enabled(grad), measure.flop_counter() as flops:
        layer(x)
    assert flops.get_total_flops() == 2 * 5 * 64 * 32


@pytest.mark.parametrize("length", [7, 40])
def test_the_floor_of_a_forward_is_what_the_kit_does(tmp_path, length):
    """Torch counts the whole square of attention; the floor holds half of it and the diagonal."""
    base = load_base(str(write_checkpoint(tmp_path, SHAPE)), device="cpu")
    adapters = Adapters(base, Lora(r=SHAPE.rank), template="brief")
    adapters.add("policy")
    ids = tuple(random_ids(length, seed=0, shape=SHAPE))
    batch = collate(base, [Example(ids[:3], ids[3:])])
    adapters.trainable("policy")
    with adapters.using("policy"):
        with measure.flop_counter() as forward:
            states = adapters.hidden(batch)
        with measure.flop_counter() as backward:
            states.sum().backward()
    beyond = SHAPE.layers * 2 * SHAPE.hidden * length * (length - 1)
    assert forward.get_total_flops() == SHAPE.forward(length) + beyond
    # torch counts five products for the backward of attention, one made anew, where four must be
    square = SHAPE.layers * 2 * SHAPE.hidden * length * length
    more = 5 * square - SHAPE.layers * 4 * SHAPE.hidden * length * (length + 1)
    assert backward.get_total_flops() == SHAPE.backward(length) + more


def test_a_spread_stands_for_the_whole_list():
    assert spread(128) == list(ALPACA)
    few = spread(16)
    assert len(few) == 16 and few == sorted(few, key=lambda pair: sum(pair))
    mean = sum(p + c for p, c in ALPACA) / len(ALPACA)
    assert abs(sum(p + c for p, c in few) / 16 - mean) < 0.05 * mean


def test_border_candidates_have_seven_tenths_exactly():
    rng = random.Random(0)
    pool = [[f"row{i}w{j}" for j in range(n)] for i, n in enumerate((8, 9, 10, 11, 12, 16, 20))]
    made = novelty.at_border(rng, pool, 70)
    assert len(made) == 70
    for text in made:
        scores = [f1(text.split(), row) for row in pool]
        assert abs(max(scores) - 0.7) < 1e-12
    decided = {max(f1(text.split(), row) for row in pool) > 0.7 for text in made}
    assert decided == {True, False}, "the floats fall on both sides"


def test_chinese_rows_are_different_and_near_each_other():
    rows = novelty.chinese(200)
    assert len(set(rows)) == 200 and all(re.search("[\u4e00-\u9fff]", row) for row in rows)
    index = novelty.indexed(rows, "unicode")
    assert sum(len(index.duplicates(row)) > 1 for row in rows) > 20
    assert not novelty.indexed(rows, "rouge").duplicates(rows[0]), "rouge tokens see none of it"


@pytest.mark.parametrize("side", ["rouge_score", "rapidfuzz"])
def test_the_sides_decide_alike(side):
    pytest.importorskip(side, reason=f"compares with {side}, which is not installed")
    rng = random.Random(0)
    pool = [" ".join(rng.choices("abcdefghijkl", k=rng.randint(5, 20))) for _ in range(300)]
    asked = [novelty.edited(rng, rng.choice(pool)) for _ in range(60)]
    asked += novelty.at_border(rng, [text.split() for text in pool], 28)
    index = novelty.indexed(pool, "rouge")
    ours = [index.duplicate(text) is not None for text in asked]
    assert {True, False} == set(ours)
    if side == "rouge_score":
        assert [novelty.Original(pool).duplicate(text) for text in asked] == ours
    else:
        packed = novelty.Packed(pool, "rouge")
        assert [packed.duplicate(text) for text in asked] == ours
        exact = [packed.exact(text) for text in asked]
        assert [above for above, _ in exact] == ours
        assert sum(border for _, border in exact) >= 28


def test_the_pool_is_made_of_different_texts(shared):
    path = shared / "data" / "alpaca_17k.jsonl.gz"
    texts = novelty.texts(path, 20_000)
    assert len(set(texts)) == 20_000 and all(4 <= len(text.split()) <= 30 for text in texts)
    assert read_prompts(path)[0].instruction in texts
    with pytest.raises(ValueError, match="texts of 4 to 30 words, not"):
        novelty.texts(path, 10**6)


def test_the_store_is_filled_as_it_would_fill_itself_and_is_measured(where, tmp_path):
    """The current schema takes the rows, and what others count by agrees with them."""
    store_benchmark.fill(where, rankings=1_200, fresh=150)
    with Store(where) as store:
        places_add_up(store)
        assert len(rows(store, Ranking)) == 1_200 and len(rows(store, Demonstration)) == 24
        assert {row.guideline for row in rows(store, Ranking)} == {1, 2, 3}
        counts = store.figures().counts
        # Left out: a ranked set and a fresh one, and a person with a fifty-first of the rankings.
        sets = ["set:s000000000000001", "set:s000000000001001"]
        assert store.left_out() == ["person 50", *sets]
        assert 1_160 < counts["rankings"] < 1_190 and 20 < counts["demonstrations"] <= 24
        manifest = store.export(tmp_path / "snapshot")
        assert manifest.rankings == counts["rankings"]
        # Left out and taken in again: the sums that the store works out itself are those filled in.
        before = sums_of(store)
        for undo in (False, True):
            for number in range(2, 12):
                store.leave_out_set(number, actor="test", undo=undo)
        assert sums_of(store) == before
    measured, summary = store_benchmark.measured(
        where, tmp_path / "measured", repeats=2, rankings=1_200, tasks=5
    )
    assert {"claim, 50 writers", "leave out a person", "export"} <= {
        row["name"] for row in measured
    }
    assert "search, words of one set" in store_benchmark.table_of(measured)
    assert summary["rankings"] == 1_200
    with Store(where) as store:
        places_add_up(store)


def sums_of(store):
    """The running sums of each person and day, with shares rounded."""
    with store.database.reading() as session:
        tallies = session.scalars(select(Tally)).all()
        return {
            (row.annotator_id, row.day): (
                row.rankings,
                row.pairs,
                row.decided,
                round(row.first_slot, 6),
                round(row.first_slot_expected, 6),
            )
            for row in tallies
        }
