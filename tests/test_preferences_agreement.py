"""Agreement against reference implementations, and by hand."""

import math
import random

import krippendorff
import numpy as np
import pytest
from scipy.stats import kendalltau

from alpaca_rlhf.preferences.agreement import (
    MIN_OVERLAPS,
    agreement,
    kendall_tau_b,
    krippendorff_alpha,
    midranks,
)


@pytest.mark.parametrize("seed", range(40))
def test_alpha_equals_the_reference_with_ties_and_gaps(seed):
    rng = random.Random(seed)
    raters, units, levels = rng.randint(2, 6), rng.randint(4, 40), rng.randint(2, 7)
    truth = [rng.randint(1, levels) for _ in range(units)]
    table = [
        [
            math.nan
            if rng.random() < 0.3
            else float(value if rng.random() < 0.6 else rng.randint(1, levels))
            for value in truth
        ]
        for _ in range(raters)
    ]
    ours = krippendorff_alpha(
        [[row[at] for row in table if not math.isnan(row[at])] for at in range(units)]
    )
    paired = [at for at in range(units) if sum(not math.isnan(row[at]) for row in table) > 1]
    if len({row[at] for row in table for at in paired if not math.isnan(row[at])}) < 2:
        assert ours is None
        return
    theirs = krippendorff.alpha(reliability_data=np.array(table), level_of_measurement="ordinal")
    assert ours == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("seed", range(40))
def test_tau_b_equals_the_reference_with_ties(seed):
    rng = random.Random(seed)
    n, levels = rng.randint(2, 15), rng.randint(1, 8)
    first = [rng.randint(1, levels) for _ in range(n)]
    second = [rng.randint(1, levels) for _ in range(n)]
    theirs = kendalltau(first, second, variant="b").statistic
    ours = kendall_tau_b(first, second)
    assert (ours is None) == math.isnan(theirs)
    if ours is not None:
        assert ours == pytest.approx(theirs, abs=1e-12)


def test_alpha_by_hand():
    """Two raters, units (1,1) (2,2) (1,2): coincidences 11: 2, 22: 2, 12 and 21: 1; each value 3.

    The distance of 1 and 2 is (3 / 2 + 3 / 2)^2 = 9, so observed is 2 * 9 / 6 and expected
    2 * 3 * 3 * 9 / (6 * 5): alpha is 1 - 3 / 5.4.
    """
    assert krippendorff_alpha([[1, 1], [2, 2], [1, 2]]) == pytest.approx(1 - 3 / 5.4)
    assert krippendorff_alpha([[1, 1], [2, 2], [1, 2], [5]]) == pytest.approx(1 - 3 / 5.4)
    assert krippendorff_alpha([[1, 1], [1, 1]]) is None
    assert krippendorff_alpha([]) is None


def test_tau_b_by_hand():
    assert kendall_tau_b([1, 2, 3], [1, 2, 3]) == 1
    assert kendall_tau_b([1, 2, 3], [3, 2, 1]) == -1
    # pairs: 12 agree; 13 agree; 23 tie in the second: 2 / sqrt(3 * 2)
    assert kendall_tau_b([1, 2, 3], [1, 2, 2]) == pytest.approx(2 / math.sqrt(6))
    assert kendall_tau_b([1, 1, 1], [1, 2, 3]) is None
    with pytest.raises(ValueError):
        kendall_tau_b([1, 2], [1])


def test_ties_share_the_middle_of_their_ranks():
    assert midranks((("a",), ("b", "c"), ("d",))) == {"a": 1, "b": 2.5, "c": 2.5, "d": 4}


def test_figures_are_hidden_below_thirty_overlaps():
    same = [(("a",), ("b",), ("c",))] * 2
    few = agreement([same] * (MIN_OVERLAPS - 1) + [same[:1]])
    assert (few.n, few.alpha, few.tau) == (MIN_OVERLAPS - 1, None, None)
    enough = agreement([same] * MIN_OVERLAPS)
    assert (enough.n, enough.alpha, enough.tau) == (MIN_OVERLAPS, 1, 1)
    turned = [same[0], tuple(reversed(same[0]))]
    assert agreement([turned] * MIN_OVERLAPS).tau == -1


def test_random_orders_agree_by_chance_alone():
    rng = random.Random(0)
    tasks = [[list(rng.sample("abcd", 4)) for _ in range(2)] for _ in range(2000)]
    result = agreement(tasks)
    assert abs(result.alpha) < 0.05 and abs(result.tau) < 0.05
