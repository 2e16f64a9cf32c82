"""Intervals and win rates, against numbers worked by hand and simulated truth."""

import itertools
import math

import numpy as np
import pytest

from alpaca_rlhf.evaluation.win_rate import (
    Interval,
    accuracy_interval,
    best_of_n_kl,
    bootstrap_ci,
    expected_best,
    expected_max,
    paired_gain,
    win_rate,
)


def test_bootstrap_mean_is_the_plain_mean() -> None:
    result = bootstrap_ci([0.0, 0.5, 1.0, 0.5])
    assert result.mean == 0.5
    assert 0.0 <= result.low < 0.5 < result.high <= 1.0
    assert result.ci95 == [result.low, result.high]


def test_constant_data_have_an_interval_of_no_width() -> None:
    assert bootstrap_ci([0.25] * 7) == Interval(0.25, 0.25, 0.25)
    assert bootstrap_ci([0.75]) == Interval(0.75, 0.75, 0.75)


def test_one_in_two_coin_of_two_prompts() -> None:
    # Resamples of {0, 1} have mean 0, 1/2, 1 with chances 1/4, 1/2, 1/4: both ends are beyond 2.5%.
    assert bootstrap_ci([0, 1]) == Interval(0.5, 0.0, 1.0)


def test_whole_clusters_are_resampled_by_hand() -> None:
    """Three prompts of one cluster at 1 and one prompt at 0.

    Two draws of two clusters: both the large one (mean 1), both the lone one (0), or one of each
    (3 / 4): a quarter, a quarter, one half.
    """
    found = bootstrap_ci([1.0, 1.0, 1.0, 0.0], groups=[7, 7, 7, 2], resamples=4000)
    assert (found.mean, found.low, found.high) == (0.75, 0.0, 1.0)
    alone = bootstrap_ci([1.0, 1.0, 1.0, 0.0], resamples=4000)
    assert alone.low > 0 and alone.mean == 0.75, "a chance of 1 in 256 of nothing but the last"
    one = bootstrap_ci([0.2, 0.9, 0.4], groups=[5, 5, 5])
    assert one.low == one.mean == one.high == pytest.approx(0.5)


def test_clusters_of_one_change_nothing_and_copies_add_nothing() -> None:
    rng = np.random.default_rng(3)
    values, others = rng.random(40), rng.random(40)
    numbers = list(range(40))
    for measure in (paired_gain, win_rate):
        assert measure(values, others, groups=numbers) == measure(values, others)
    assert bootstrap_ci(values, groups=numbers) == bootstrap_ci(values)
    copied = bootstrap_ci(np.repeat(values, 5), groups=np.repeat(numbers, 5).tolist())
    assert copied == pytest.approx(bootstrap_ci(values)), "five copies of each prompt: as wide"
    naive = bootstrap_ci(np.repeat(values, 5))
    assert naive.high - naive.low < 0.6 * (copied.high - copied.low)
    with pytest.raises(ValueError, match="groups must name 40 groups, got 3"):
        bootstrap_ci(values, groups=[1, 2, 3])


def test_width_follows_the_standard_error() -> None:
    values = np.random.default_rng(3).normal(size=1000)
    result = bootstrap_ci(values)
    half = 1.96 * values.std() / math.sqrt(1000)
    assert result.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert result.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_same_seed_same_interval() -> None:
    values = np.random.default_rng(0).random(50)
    assert bootstrap_ci(values, seed=4) == bootstrap_ci(values, seed=4)
    assert bootstrap_ci(values, seed=4) != bootstrap_ci(values, seed=5)


def test_memory_bound_never_changes_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(37)
    whole = bootstrap_ci(values, resamples=501)
    monkeypatch.setattr("alpaca_rlhf.evaluation.win_rate._BATCH_INDICES", 100)
    assert bootstrap_ci(values, resamples=501) == whole


@pytest.mark.parametrize("shape", ["bounded", "skewed"])
def test_a_95_percent_interval_covers_the_truth_about_95_times_in_100(shape: str) -> None:
    rng = np.random.default_rng(11)
    truth, covered = (0.7, 0) if shape == "bounded" else (1.0, 0)
    for seed in range(300):
        values = rng.random(120) < 0.7 if shape == "bounded" else rng.exponential(size=120)
        result = bootstrap_ci(values, resamples=400, seed=seed)
        covered += not result.excludes(truth)
    assert 0.90 <= covered / 300 <= 0.98


def test_paired_gain_by_hand() -> None:
    result = paired_gain([0.9, 0.5, 0.7], [0.4, 0.5, 0.3])
    assert result.mean == pytest.approx(0.3)
    assert result.low >= 0.0 and result.high <= 0.5


def test_pairing_takes_out_the_difficulty_of_the_prompts() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(200)
    paired = paired_gain(hard + 0.05 + rng.normal(0, 0.02, 200), hard)
    alone = bootstrap_ci(hard)
    assert paired.excludes(0.0)
    assert paired.high - paired.low < (alone.high - alone.low) / 5


def test_identical_policies_gain_nothing_and_win_half() -> None:
    scores = np.random.default_rng(1).random(40)
    assert paired_gain(scores, scores) == Interval(0.0, 0.0, 0.0)
    assert win_rate(scores, scores) == Interval(0.5, 0.5, 0.5)


def test_win_rate_counts_a_win_1_and_a_tie_one_half() -> None:
    # two wins, one tie, one loss: (1 + 1 + 1/2 + 0) / 4
    assert win_rate([1.0, 0.6, 0.5, 0.0], [0.0, 0.5, 0.5, 0.1]).mean == 0.625


def test_win_rates_of_both_sides_add_to_one() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.integers(0, 4, 60) / 4, rng.integers(0, 4, 60) / 4
    assert win_rate(a, b).mean + win_rate(b, a).mean == pytest.approx(1.0)


def test_a_tie_is_within_the_tolerance() -> None:
    assert win_rate([0.50], [0.49], tie=0.02).mean == 0.5
    assert win_rate([0.50], [0.49]).mean == 1.0
    assert win_rate([0.1 + 0.2], [0.3]).mean == 0.5  # float dust is no win


def test_accuracy_counts_pairs_not_prompts() -> None:
    # 1 of 1 and 2 of 6: three right of seven pairs, not the mean of 1 and 1/3
    result = accuracy_interval([[True], [1, 1, 0, 0, 0, 0], []])
    assert result.mean == pytest.approx(3 / 7)


def test_pairs_of_one_prompt_stand_or_fall_together() -> None:
    rng = np.random.default_rng(5)
    right = rng.random(60) < 0.7
    grouped = accuracy_interval([[bool(correct)] * 6 for correct in right])
    single = accuracy_interval([[bool(correct)] for correct in np.repeat(right, 6)])
    assert grouped.mean == pytest.approx(single.mean)
    ratio = (grouped.high - grouped.low) / (single.high - single.low)
    assert ratio == pytest.approx(math.sqrt(6), rel=0.15)


def test_accuracy_interval_covers_under_correlation() -> None:
    rng, covered = np.random.default_rng(8), 0
    for seed in range(300):
        chance = rng.beta(7, 3, size=80)  # a prompt is easy or hard for all its pairs; mean 0.7
        groups = [list(rng.random(rng.integers(1, 7)) < p) for p in chance]
        covered += not accuracy_interval(groups, resamples=400, seed=seed).excludes(0.7)
    assert 0.90 <= covered / 300 <= 0.98


def test_expected_max_by_hand() -> None:
    # pairs of {1, 2, 4}: maxima 2, 4, 4
    assert expected_max([4.0, 1.0, 2.0], 2) == pytest.approx(10 / 3)
    assert expected_max([4.0, 1.0, 2.0], 1) == pytest.approx(7 / 3)
    assert expected_max([4.0, 1.0, 2.0], 3) == pytest.approx(4.0)


def test_expected_max_is_the_mean_over_all_subsets() -> None:
    scores = np.random.default_rng(0).normal(size=9)
    for n in range(1, 10):
        subsets = [max(subset) for subset in itertools.combinations(scores, n)]
        assert expected_max(scores, n) == pytest.approx(float(np.mean(subsets)))


def test_expected_best_is_the_mean_over_prompts_and_their_subsets() -> None:
    """Ties and duplicates included."""
    prompts = [[1.0, 1.0, 3.0, -2.0], [0.0, 0.0, 0.0, 0.0], [5.0, 4.0, 4.0, 5.0]]
    bests = expected_best(prompts)
    assert len(bests) == 4
    for n, best in enumerate(bests, 1):
        by_prompt = [
            np.mean([max(c) for c in itertools.combinations(scores, n)]) for scores in prompts
        ]
        assert best == pytest.approx(float(np.mean(by_prompt)))
    with pytest.raises(ValueError, match="at least one prompt"):
        expected_best([])


def test_expected_max_is_unbiased() -> None:
    # The best of 4 uniform numbers is 4/5 on average.
    rng = np.random.default_rng(0)
    estimates = [expected_max(rng.random(10), 4) for _ in range(4000)]
    assert np.mean(estimates) == pytest.approx(0.8, abs=4 * np.std(estimates) / math.sqrt(4000))


def test_expected_max_of_many_scores_stays_finite() -> None:
    assert 0.9 < expected_max(np.linspace(0, 1, 3000), 64) < 1.0


def test_best_of_n_kl_by_hand() -> None:
    assert best_of_n_kl(1) == 0.0
    assert best_of_n_kl(2) == pytest.approx(0.1931, abs=1e-4)
    assert best_of_n_kl(4) == pytest.approx(0.6363, abs=1e-4)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="at least one number"):
        bootstrap_ci([])
    with pytest.raises(ValueError, match="number 1 is not"):
        bootstrap_ci([0.0, float("nan")])
    with pytest.raises(ValueError, match="resamples"):
        bootstrap_ci([1.0], resamples=0)
    with pytest.raises(ValueError, match="same prompts, got 2 and 1"):
        win_rate([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="tie"):
        win_rate([1.0], [1.0], tie=-1)
    with pytest.raises(ValueError, match="no pair"):
        accuracy_interval([[], []])
    with pytest.raises(ValueError, match="0 to 1"):
        accuracy_interval([[2.0]])
    with pytest.raises(ValueError, match=r"n must be in 1\.\.2"):
        expected_max([1.0, 2.0], 3)
    with pytest.raises(ValueError, match="n must be at least 1"):
        best_of_n_kl(0)
