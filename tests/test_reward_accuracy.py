"""What is said of held-out pairs, on pairs small enough to work out by hand."""

import math

import pytest

from alpaca_rlhf.evaluation.reward_accuracy import (
    accuracy_of,
    calibration_error,
    correlation,
    figures,
)
from alpaca_rlhf.training.held_out import HeldOutEvaluation, HeldOutPair

OPTIONS = {"resamples": 200, "seed": 0}


def pair(gap, prompt="p", k=2, tier_gap=1, tokens=(10, 10)):
    return HeldOutPair(prompt, k, tier_gap, tokens, gap)


def held_out(pairs, scores=(0.0, 1.0), lengths=(3, 4), criteria=None):
    return HeldOutEvaluation(tuple(pairs), criteria or {}, tuple(scores), tuple(lengths))


def parts(pairs, kind, **more):
    rows = figures(held_out(pairs, **more), **OPTIONS)["accuracy_by"].get(kind, [])
    return {row["is"]: (row["pairs"], row["accuracy"]) for row in rows}


def test_accuracy_counts_an_equal_score_as_one_half():
    accuracy = accuracy_of([pair(2.0), pair(-1.0), pair(0.0), pair(0.1)], **OPTIONS)
    assert accuracy.mean == 2.5 / 4


def test_its_interval_draws_prompts_not_pairs():
    """A hundred pairs of one prompt are one draw: with one prompt there is nothing to vary."""
    gaps = [1.0, -1.0] * 50
    one_prompt = accuracy_of([pair(gap) for gap in gaps], **OPTIONS)
    many_prompts = accuracy_of([pair(gap, str(i)) for i, gap in enumerate(gaps)], **OPTIONS)
    assert one_prompt.ci95 == [0.5, 0.5]
    assert many_prompts.low < 0.45 and many_prompts.high > 0.55


def test_by_k_and_by_tiers_apart():
    pairs = [pair(1.0, k=4, tier_gap=3), pair(-1.0, k=4), pair(1.0, k=4), pair(1.0, k=2)]
    assert parts(pairs, "completions") == {"2": (1, 1.0), "4": (3, 2 / 3)}
    assert parts(pairs, "tiers_apart") == {"1": (3, 2 / 3), "3": (1, 1.0)}
    assert parts([pair(1.0, tier_gap=0)], "tiers_apart") == {}, "nobody put them in tiers"


@pytest.mark.parametrize(
    ("tokens", "name"),
    [
        ((4, 10), "less than half as long"),
        ((6, 10), "shorter"),
        ((19, 20), "about as long"),
        ((20, 19), "about as long"),
        ((10, 6), "longer"),
        ((10, 4), "more than twice as long"),
        ((10, 0), "more than twice as long"),
        ((0, 0), "about as long"),
    ],
)
def test_by_how_long_the_preferred_one_is(tokens, name):
    assert parts([pair(1.0, tokens=tokens)], "preferred_is") == {name: (1, 1.0)}


def test_by_confidence_is_a_reliability_table():
    """Odds of 3 to 1 are .75, of 19 to 1 are .95, whichever side the model is for."""
    pairs = [pair(math.log(3)), pair(-math.log(3)), pair(math.log(19)), pair(0.0), pair(80.0)]
    assert parts(pairs, "confidence") == {
        "0.5 to 0.6": (1, 0.5),
        "0.7 to 0.8": (2, 0.5),
        "0.9 to 1": (2, 1.0),
    }
    rows = figures(held_out(pairs), **OPTIONS)["accuracy_by"]["confidence"]
    assert [row["confidence"] for row in rows] == pytest.approx([0.5, 0.75, 0.975])


def test_by_criterion():
    criteria = {"relevance": (pair(1.0), pair(-1.0)), "safety": (pair(2.0),), "style": ()}
    criteria_shown = parts([pair(1.0)], "criterion", criteria=criteria)
    assert criteria_shown == {"relevance": (2, 0.5), "safety": (1, 1.0)}


def test_log_loss_and_saturation_by_hand():
    """Chances 3/4 and 1/4 for the annotator's side, and two all but certain ones."""
    pairs = [pair(math.log(3)), pair(-math.log(3)), pair(-100.0), pair(math.log(99) + 1e-9)]
    held_out_figures = figures(held_out(pairs), **OPTIONS)
    expected = (math.log(4 / 3) + math.log(4) + 100 + math.log(100 / 99)) / 4
    assert held_out_figures["log_loss"] == pytest.approx(expected)
    assert held_out_figures["saturated"] == 0.5
    assert figures(held_out([pair(0.0)]), **OPTIONS)["log_loss"] == pytest.approx(math.log(2))


def test_calibration_error_by_hand():
    """Sure by 9 to 1 and right three times in four: wrong by .15, from either side."""
    gap = math.log(9) + 1e-9
    assert calibration_error([gap, gap, gap, -gap]) == pytest.approx(0.15)
    assert calibration_error([0.0, 0.0]) == pytest.approx(0)
    assert calibration_error([50.0, 50.0]) == pytest.approx(0, abs=1e-9)
    assert calibration_error([-50.0, -50.0]) == pytest.approx(1)


def test_length_correlations_by_hand():
    lengths = [3, 4, 6, 7]
    for scores, pearson, spearman in (
        ([3.0, 4.0, 6.0, 7.0], 1, 1),
        ([-6.0, -8.0, -12.0, -14.0], -1, -1),
        ([1.0, -1.0, -1.0, 1.0], 0, 0),
        ([0.0, 1.0, 2.0, 1e9], None, 1),  # ranks do not care how far away an outlier lies
        ([5.0, 5.0, 5.0, 5.0], 0, 0),
        ([1.0, 1.0, 2.0, 3.0], None, 4.5 / math.sqrt(4.5 * 5)),  # the two ties are 1.5 each
    ):
        held_out_figures = figures(held_out([pair(1.0)], scores, lengths), **OPTIONS)
        assert held_out_figures["length_rank_correlation"] == pytest.approx(spearman)
        if pearson is not None:
            assert held_out_figures["length_correlation"] == pytest.approx(pearson)
    assert correlation([0.0, 1.0, 2.0, 1e9], lengths) < 0.9
