"""The worth of more rankings: accuracy on nested subsets, and the sentence about it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from alpaca_rlhf.app import data_view
from alpaca_rlhf.app.language import translations
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.evaluation.learning_curve import more_in_words, more_rankings
from alpaca_rlhf.planner.peak_memory import Lengths
from alpaca_rlhf.planner.shapes import shape_from_config
from alpaca_rlhf.planner.work import StageWork
from alpaca_rlhf.preferences.store import Store
from alpaca_rlhf.report import figures as report_figures
from alpaca_rlhf.report.schema import RewardModel
from alpaca_rlhf.settings import Inputs, Loop, Reward
from alpaca_rlhf.settings.parsing import parse
from alpaca_rlhf.stages.learning_curve import nested_subset
from alpaca_rlhf.training.groups import Group
from tests import test_judge_loop

go = test_judge_loop.go
ended, home, settings = (getattr(test_judge_loop, name) for name in ("ended", "home", "settings"))
"""Fixtures of runs with a judge of the user's."""

RIGHT, WRONG = [1.0, 1.0], [0.0, 1.0]


def group(name):
    return Group(name, (), ((0, 1),))


def test_subsets_are_nested_and_depend_on_the_prompts_alone():
    groups = [group(f"prompt {n}") for n in range(40)]
    half, quarter = nested_subset(groups, 1), nested_subset(groups, 2)
    assert (len(half), len(quarter)) == (20, 10)
    names = [{g.prompt_id for g in subset} for subset in (quarter, half)]
    assert names[0] < names[1]
    assert {g.prompt_id for g in nested_subset(groups[::-1], 1)} == names[1]


@pytest.mark.parametrize(
    ("half", "whole", "verdict"),
    [
        ([WRONG] * 60, [RIGHT] * 60, "helps"),
        ([RIGHT] * 60, [RIGHT] * 60, "levelled"),
        ([(1.0,) * 99 + (0.0,)] * 60, [(1.0,) * 100] * 60, "levelled"),  # surely, and hardly
        ([RIGHT, WRONG] * 15, [WRONG, RIGHT] * 15, "unclear"),
        ([WRONG] * 6, [RIGHT] * 6, "unclear"),
    ],
)
def test_what_is_said_of_more_rankings(half, whole, verdict):
    """Nothing is claimed within the interval, nor of fewer than 20 prompts."""
    more = more_rankings(120, half, whole, resamples=200, seed=0)
    assert more["verdict"] == verdict
    words = {"helps": "would help", "levelled": "hardly help", "unclear": "too few rankings"}
    assert words[verdict] in more_in_words(more) and "120 rankings" in more_in_words(more)


def test_a_gain_on_a_handful_of_prompts_has_no_interval():
    """Terminal, report and Data tab print the gain alone, as they say that it can tell nothing."""
    few, enough = (
        more_rankings(120, [WRONG] * n, [RIGHT] * n, resamples=200, seed=0) for n in (19, 20)
    )
    assert (few["prompts"], enough["prompts"]) == (19, 20)
    assert "brought +0.500: too few rankings are held out" in more_in_words(few)
    assert "brought +0.500 (+0.500 to +0.500)" in more_in_words(enough)
    model = {
        **{"round": 1, "pairs": 9, "held_out_accuracy": 0.7, "ci95": [0.6, 0.8]},
        **{"shuffled_label_accuracy": None, "held_out_pairs": 38, "held_out_prompts": 19},
        "more_rankings": {key: value for key, value in few.items() if key != "prompts"},
    }
    assert "(" not in report_figures.more_rankings(RewardModel.model_validate(model))


@pytest.mark.parametrize("prompts", [19, 20])
def test_the_data_tab_shows_no_interval_of_a_handful(tmp_path, prompts):
    facts = {
        "learning_curve": [{"rankings": 60, "accuracy": 0.7, "ci95": [0.6, 0.8]}],
        "more_rankings": more_rankings(
            120, [WRONG] * prompts, [RIGHT] * prompts, resamples=200, seed=0
        ),
        "held_out_prompts": prompts,
        "held_out_pairs": 2 * prompts,
    }
    rounds = data_view.Rounds(dict, None, learned=lambda: facts)
    with Store(str(tmp_path / "preferences.db")) as store:
        page = data_view.figures(store.figures(), rounds, translations("data", "en"))
    assert ("0.600 … 0.800" in page) == ("+0.500 (+0.500" in page) == (prompts == 20)
    assert ("too few held out" in page) == (prompts == 19)


@pytest.mark.parametrize("subsets", [-1, 5, "all"])
def test_a_wrong_number_of_subsets_is_refused(subsets):
    with pytest.raises(UserError, match=r"--reward\.curve"):
        parse(Loop, ["--reward.curve", str(subsets)], prog="test", description="")


def test_people_get_a_curve_unasked():
    people = Inputs(judge="human", data=Path("rows.jsonl"), prompts=Path("prompts.jsonl"))
    settings = replace(Loop(), inputs=people)
    assert settings.curve_subsets == 2
    assert replace(settings, reward=Reward(curve=0)).curve_subsets == 0
    of_a_file = replace(people, prompts=None, rankings=Path("pairs.jsonl"))
    assert replace(settings, inputs=of_a_file).curve_subsets == 0
    assert Loop().curve_subsets == 0 and Loop().inputs.judge != "human"


@pytest.fixture(scope="module")
def curved(settings, home):
    return replace(
        settings,
        inputs=replace(settings.inputs, judge=f"{home}/length.py:rate"),
        rank=replace(settings.rank, prompts=30),
        reward=replace(settings.reward, curve=2, held_out=0.3),
    )


def facts_of(out):
    return json.loads((out / "ledger.json").read_text())["reward"]["facts"]


def test_the_curve_ends_at_the_reward_model_itself(curved, tmp_path):
    """A quarter of some twenty rankings is too few for a step of two batches, and is left out."""
    go(curved, tmp_path / "run")
    facts = facts_of(tmp_path / "run")
    points = facts["learning_curve"]
    assert [point["rankings"] for point in points] == [
        size for size in (points[-1]["rankings"] // 4, points[-1]["rankings"] // 2) if size >= 8
    ] + [points[-1]["rankings"]]
    assert points[-1]["accuracy"] == facts["held_out_accuracy"]
    assert points[-1]["ci95"] == facts["ci95"]
    gain = points[-1]["accuracy"] - points[-2]["accuracy"]
    assert facts["more_rankings"]["gain"] == pytest.approx(gain)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "How many more rankings" in page and "The last doubling, to" in page


def test_a_curve_that_was_killed_ends_the_same(curved, tmp_path):
    class Killed(test_judge_loop.Quiet):
        def step(self, stage, done, total, metrics):
            if stage == "reward_subset_2" and done == 1:
                raise KeyboardInterrupt

    go(curved, tmp_path / "whole", until="reward")
    with pytest.raises(KeyboardInterrupt):
        go(curved, tmp_path / "killed", Killed(), until="reward")
    go(curved, tmp_path / "killed", until="reward")
    whole, killed = (facts_of(tmp_path / name) for name in ("whole", "killed"))
    assert {**killed, "curve_seconds": 0} == {**whole, "curve_seconds": 0}
    plain = replace(curved, reward=replace(curved.reward, curve=0))
    go(plain, tmp_path / "plain", until="reward")
    with_curve, without = (
        (tmp_path / name / "reward" / "adapter" / "adapter_model.safetensors").read_bytes()
        for name in ("whole", "plain")
    )
    assert with_curve == without, "the curve changes nothing that is kept"


def test_the_plan_counts_the_subsets(tiny_folder):
    shape = shape_from_config("tiny", json.loads((tiny_folder / "config.json").read_text()))

    def flops(subsets):
        settings = replace(Loop(), reward=replace(Loop().reward, curve=subsets))
        return StageWork(shape, settings, Lengths(), rows=100).all()["reward"].flops

    assert 1.3 < flops(1) / flops(0) < 1.6 and 1.5 < flops(2) / flops(0) < 1.9
