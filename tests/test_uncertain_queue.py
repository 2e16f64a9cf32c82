"""Prompts that people are given first: those that the reward model is least sure of."""

import json
import math
from dataclasses import replace

import pytest

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.data import read_prompts
from alpaca_rlhf.preferences.assignment import Rules
from alpaca_rlhf.preferences.store import Store
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.settings.parsing import parse
from alpaca_rlhf.sources.sampled import candidate_sets, queue_stage
from alpaca_rlhf.stages.uncertainty import order_entropy
from benchmarks.uncertain_first import rankings_to_reach
from tests import test_judge_loop

go = test_judge_loop.go
ended, home, settings = (getattr(test_judge_loop, name) for name in ("ended", "home", "settings"))
"""Fixtures of runs with a judge of the user's."""


def test_entropy_by_hand():
    assert order_entropy([2.0, 2.0]) == pytest.approx(math.log(2))
    # a chance of three quarters
    three_to_one = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert order_entropy([1.0, 1.0 + math.log(3)]) == pytest.approx(three_to_one)
    assert order_entropy([0.0, 0.0, 900.0]) == pytest.approx(math.log(2) / 3)


def test_another_order_is_refused():
    with pytest.raises(UserError, match=r"--rank\.queue"):
        parse(Loop, ["--rank.queue", "certain"], prog="test", description="")


class Listening(test_judge_loop.Quiet):
    def __init__(self):
        super().__init__()
        self.said = []

    def say(self, text):
        self.said.append(text)


@pytest.fixture(scope="module")
def two_rounds(settings, home, tmp_path_factory):
    """Two rounds up to the second one's completions, in both orders."""
    inputs = replace(settings.inputs, judge=f"{home}/length.py:rate")
    both = replace(settings, rounds=2, policies=("ppo",), inputs=inputs)
    folder, reporters = tmp_path_factory.mktemp("runs"), {}
    for queue in ("random", "uncertain"):
        reporters[queue] = Listening()
        numbers = replace(both, rank=replace(both.rank, queue=queue))
        go(numbers, folder / queue, reporters[queue], until="sample.2")
    return folder, reporters


def prompts_of(out, stage):
    return [prompt.id for prompt in read_prompts(out / stage / "prompts.jsonl")]


def test_the_second_round_begins_with_what_the_reward_model_does_not_know(two_rounds):
    folder, reporters = two_rounds
    file = folder / "uncertain" / "sample.2" / "uncertainty.jsonl"
    rows = [json.loads(row) for row in file.read_text().splitlines()]
    entropies = [row["entropy"] for row in rows]
    assert entropies == sorted(entropies, reverse=True) and len(set(entropies)) > 1
    ordered = prompts_of(folder / "uncertain", "sample.2")
    assert ordered == [row["prompt_id"] for row in rows]
    at_random = prompts_of(folder / "random", "sample.2")
    assert sorted(ordered) == sorted(at_random) and ordered != at_random
    completions = [
        (folder / queue / "sample.2" / "completions.jsonl").read_bytes()
        for queue in ("random", "uncertain")
    ]
    assert completions[0] == completions[1], "the order changes nothing that is sampled"
    assert not any("--rank.queue" in line for line in reporters["random"].said)


def test_a_first_round_has_no_reward_model_and_says_so(two_rounds):
    folder, reporters = two_rounds
    told = [line for line in reporters["uncertain"].said if "--rank.queue" in line]
    assert len(told) == 1 and told[0].startswith("sample: --rank.queue uncertain: there is no rew")
    assert prompts_of(folder / "uncertain", "sample") == prompts_of(folder / "random", "sample")


def test_people_are_given_the_uncertain_ones_first(two_rounds, tmp_path):
    run = two_rounds[0] / "uncertain"
    with Store(tmp_path / "queue.db", rules=Rules(gold_rate=0, repeat_rate=0), seed=0) as store:
        sets = candidate_sets(run, "sample.2")
        assert queue_stage(run, "sample.2", store) == len(sets)
        assert queue_stage(run, "sample.2", store) == 0
        annotator, given = store.add_annotator("Ann", "long enough"), []
        while (task := store.claim(annotator)) is not None:
            given.append(task.prompt.id)
            store.skip(annotator, task.id)
    # Sets with two equal answers are not asked for.
    assert given == [
        prompt.id for prompt, answers in sets if len({a.text for a in answers}) == len(answers)
    ]


def test_rankings_that_a_curve_needs():
    points = [(30, 0.6), (60, 0.7), (120, 0.7), (240, 0.8)]
    assert rankings_to_reach(points, 0.6) == 30
    assert rankings_to_reach(points, 0.65) == pytest.approx(45)
    assert rankings_to_reach(points, 0.75) == pytest.approx(180)
    assert rankings_to_reach(points, 0.9) is None
