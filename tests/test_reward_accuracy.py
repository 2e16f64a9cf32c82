"""Figures of held-out pairs, on sets small enough to work out by hand."""

import math

import pytest

from alpaca_rlhf.core.records import Completion
from alpaca_rlhf.evaluation.accuracy_words import beside_baselines
from alpaca_rlhf.evaluation.reward_accuracy import (
    accuracy_of,
    baselines,
    calibration_error,
    correlation,
    facts_of_others,
    figures,
)
from alpaca_rlhf.models.batches import Example
from alpaca_rlhf.training.groups import Group, _sample_numbers, shuffled, usable
from alpaca_rlhf.training.held_out import HeldOutEvaluation, HeldOutPair

OPTIONS = {"resamples": 200, "seed": 0}


def pair(gap, prompt="p", k=2, tier_gap=1, tokens=(10, 10), samples=None):
    return HeldOutPair(prompt, k, tier_gap, tokens, gap, samples)


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


def rules(pairs):
    return {row["is"]: row for row in baselines(pairs, **OPTIONS)}


def test_rules_that_learn_nothing_by_hand():
    """Of four pairs the longer one wins in two, and in one they are of one length."""
    pairs = [
        pair(1.0, tokens=(12, 10), samples=(0, 1)),
        pair(1.0, tokens=(11, 10), samples=(2, 3)),
        pair(-1.0, tokens=(9, 10), samples=(0, 3)),
        pair(1.0, tokens=(7, 7), samples=(3, 1)),
    ]
    found = rules(pairs)
    assert {name: row["accuracy"] for name, row in found.items()} == {
        "the longer": 2.5 / 4,
        "the shorter": 1.5 / 4,
        "the first sampled": 3 / 4,
    }
    assert {name: row["lead"] for name, row in found.items()} == {
        "the longer": pytest.approx(0.75 - 2.5 / 4),
        "the shorter": pytest.approx(0.75 - 1.5 / 4),
        "the first sampled": pytest.approx(0),
    }
    unknown = [*pairs, pair(1.0)]
    assert set(rules(unknown)) == {"the longer", "the shorter"}, "of one pair nobody knows"


def test_the_lead_over_a_rule_is_resampled_in_pairs():
    """A model that has learned length and nothing else leads by 0, however much either varies."""
    lengths = [(12, 10), (8, 10), (14, 10)] * 20
    pairs = [
        pair(float(a - b), prompt=str(number), tokens=(a, b))
        for number, (a, b) in enumerate(lengths)
    ]
    row = rules(pairs)["the longer"]
    assert row["ci95"][1] - row["ci95"][0] > 0.1
    assert row["lead"] == 0 and row["lead_ci95"] == [0, 0]
    better = [pair(1.0, prompt=str(n), tokens=tokens) for n, tokens in enumerate(lengths)]
    row = rules(better)["the longer"]
    assert row["lead"] == pytest.approx(1 / 3) and row["lead_ci95"][0] > 0.15


def test_prompts_are_counted_beside_pairs():
    found = figures(held_out([pair(1.0, "a"), pair(1.0, "a"), pair(-1.0, "b")]), **OPTIONS)
    assert (found["held_out_pairs"], found["held_out_prompts"]) == (3, 2)
    (row,) = found["accuracy_by"]["tiers_apart"]
    assert (row["pairs"], row["prompts"]) == (3, 2)


def test_numbers_of_samples_are_known_of_what_was_sampled_here_alone():
    """A file may list its answers from best to worst: its first one is no baseline."""
    sampled = [Completion("p", text, adapter="a", sample=n) for n, text in enumerate("xyz")]
    assert _sample_numbers(sampled[::-1]) == (2, 1, 0)
    assert _sample_numbers([Completion("p", text, sample=n) for n, text in enumerate("xy")]) == ()
    assert _sample_numbers([sampled[1], sampled[1]]) == (), "of two samplings"


def test_numbers_of_samples_go_with_their_completions():
    short, long = Example((1,), (2,)), Example((1,), (3, 4, 5, 6))
    group = Group("p", (short, long, short), ((0, 1), (0, 2)), samples=(2, 0, 1))
    (kept,) = usable([group], 3)
    assert kept.samples == (2, 1)
    (other,) = shuffled([group], 3)
    assert sorted(other.samples) == [0, 1, 2]
    assert all(
        (number == 0) == (example is long)
        for number, example in zip(other.samples, other.examples, strict=True)
    )
    assert repr(group) == repr(Group("p", (short, long, short), ((0, 1), (0, 2)))), "one digest"


def in_words(pairs):
    facts = facts_of_others(7, pairs, **OPTIONS)
    return beside_baselines(facts["baselines"], facts["pairs"], facts["prompts"])


def test_the_summary_says_whether_the_best_rule_is_beaten():
    won = [pair(1.0, str(n), tokens=(9, 10) if n % 2 else (10, 9)) for n in range(40)]
    text = in_words(won)
    assert text.startswith("the longer 0.500, the shorter 0.500: it beats the best of them (lead +")
    text = in_words([pair(1.0, str(n), tokens=(10, 9)) for n in range(40)])
    assert "it does not beat the best of them (lead +0.000 to +0.000)" in text
    few = in_words([pair(1.0), pair(1.0), pair(-1.0)])
    assert few.endswith("3 pairs of 1 prompts are too few to tell")


def test_a_reward_model_that_judges_is_measured_beside_the_same_rules():
    """A judge that has learned length alone: right on 7 of 10 pairs, and so is "the longer"."""
    lengths = [(12, 10)] * 28 + [(10, 12)] * 12
    pairs = [
        pair(float(a - b), str(n), tokens=(a, b), samples=(n % 2, 1 - n % 2))
        for n, (a, b) in enumerate(lengths)
    ]
    facts = facts_of_others(143, pairs, **OPTIONS)
    assert facts["trained_pairs"] == 143 and facts["accuracy"] == pytest.approx(0.7)
    rules_of_judge = {row["is"]: row for row in facts["baselines"]}
    assert rules_of_judge["the longer"]["accuracy"] == pytest.approx(0.7)
    assert rules_of_judge["the longer"]["lead_ci95"] == [0, 0]
    assert rules_of_judge["the shorter"]["lead"] == pytest.approx(0.4)
    assert rules_of_judge["the first sampled"]["accuracy"] == 0.5
