"""Policies as a choice: which stages a run has, what may change later, and what is refused."""

import json
from dataclasses import replace

import pytest
import yaml

from alpaca_rlhf.cli import main as cli
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.runs import RunFolder
from alpaca_rlhf.pipeline import _changeable
from alpaca_rlhf.planner import Device, Lengths, PeakMemory, StageWork, disk_needs, shape_of
from alpaca_rlhf.settings import PPO, BestOfK, Loop, Reward
from alpaca_rlhf.settings.earlier import added, with_earlier_defaults
from alpaca_rlhf.settings.parsing import parse, to_yaml
from alpaca_rlhf.settings.quickstart import QUICKSTART
from alpaca_rlhf.settings.steps import order
from alpaca_rlhf.sources.choosing import deals_alike, split_sizes
from alpaca_rlhf.stages.arms import arms


def settings_of(*flags, default=None):
    return parse(Loop, list(flags), prog="test", description="", default=default)


def stages_of(settings):
    return [name for name, _ in order(settings)]


def test_the_policies_chosen_are_the_stages_run():
    first = ["generate", "sft", "sample", "rank", "reward"]
    assert stages_of(Loop()) == [*first, "ppo", "best_of_k", "evaluate"]
    alone = settings_of("--policies", "best-of-k")
    assert stages_of(alone) == [*first, "best_of_k", "evaluate"]
    typed = settings_of("--policies", "best-of-k", "ppo")
    assert typed.policies == ("ppo", "best-of-k"), "in the order of a round"
    assert parse(Loop, [], prog="", description="", default=alone).policies == alone.policies


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--policies"], "--policies names none"),
        (["--policies", "ppo", "best_of_K"], "--policies expects a list of values, each one of"),
    ],
)
def test_policies_that_do_not_exist_are_refused(flags, words):
    with pytest.raises(UserError, match=words):
        settings_of(*flags)


def test_the_command_of_a_policy_that_was_not_chosen_is_refused(tmp_path, capsys):
    RunFolder.open(tmp_path, to_yaml(replace(QUICKSTART, out=tmp_path)), kind="quickstart").close()
    command = ["ppo", "--out", str(tmp_path), "--policies", "best-of-k"]
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "give --policies best-of-k ppo" in error


def test_prompts_are_dealt_for_the_policies_chosen():
    made = Loop(ppo=PPO(updates=10, batch_size=128), best_of_k=BestOfK(prompts=300))
    assert split_sizes(made)["ppo"] == 1280
    assert split_sizes(replace(made, policies=("best-of-k",)))["ppo"] == 300
    assert deals_alike(made, replace(made, policies=("ppo",)))
    assert not deals_alike(made, replace(made, policies=("best-of-k",)))


def test_a_policy_may_be_added_until_the_evaluation_if_nothing_is_dealt_anew(tmp_path):
    begun = replace(QUICKSTART, out=tmp_path, policies=("ppo",))
    RunFolder.open(tmp_path, to_yaml(begun), kind="loop").close()

    def changed(settings, done):
        free = lambda _: _changeable(done, settings)  # noqa: E731
        with RunFolder.open(tmp_path, to_yaml(settings), kind="loop", free=free) as run:
            return run.changed

    more = replace(begun, policies=("ppo", "best-of-k"), best_of_k=BestOfK(prompts=17))
    with pytest.raises(UserError, match="holds another run: policies was"):
        changed(more, ["sft", "evaluate"])
    greedy = replace(more, best_of_k=BestOfK(prompts=9 * 128 + 1))
    with pytest.raises(UserError, match="holds another run: policies was"):
        changed(greedy, ["sft"])
    assert "policies" in changed(more, ["sft"])
    with pytest.raises(UserError, match=r"best_of_k\.prompts was 17"):
        changed(replace(more, best_of_k=BestOfK(prompts=18)), ["sft"])


def test_a_run_of_before_goes_on_with_both(tmp_path):
    settings = replace(QUICKSTART, out=tmp_path)
    lines = yaml.safe_load(to_yaml(settings))
    del lines["policies"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(lines))
    (tmp_path / "provenance.json").write_text(json.dumps({"kind": "quickstart"}))
    resumed = with_earlier_defaults(settings)
    options = {"kind": "quickstart", "added": added(tmp_path)}
    with RunFolder.open(tmp_path, to_yaml(resumed), **options) as run:
        assert run.changed == [] and resumed.policies == ("ppo", "best-of-k")


def test_only_chosen_policies_are_planned_and_compared():
    settings = Loop(policies=("best-of-k",), reward=Reward(control=True), ppo=PPO(control=True))
    names = [arm.name for arm in arms(settings, ["reward"])]
    assert names == "base base_few_shot sft best_of_k sampler_best_of_k oracle_best_of_k".split()
    shape = shape_of("llama-2-7b")
    assert "ppo" not in PeakMemory(shape, Device("cuda", 2), settings).all()
    both = replace(settings, policies=("ppo", "best-of-k"))
    plan, plan_of_both = (
        StageWork(shape, s, Lengths(), rows=100).all()["evaluate"].flops for s in (settings, both)
    )
    assert plan < plan_of_both, "two arms fewer"
    steps = [step for step in order(both) if step.stage == "evaluate"]
    text, text_of_both = (disk_needs(shape, s, steps)["text"] for s in (settings, both))
    assert text < text_of_both
