"""Policies as a choice: which stages a run has, what may change later, and what is refused."""

import json
import math
import re
import shutil
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from alpaca_rlhf.cli import main as cli
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.runs import RunFolder
from alpaca_rlhf.pipeline import _changeable, run_loop
from alpaca_rlhf.planner import Device, Lengths, PeakMemory, StageWork, disk_needs, shape_of
from alpaca_rlhf.report.policy_names import policy_order
from alpaca_rlhf.report.schema import validate_report
from alpaca_rlhf.serving import run_contents
from alpaca_rlhf.settings import GRPO, PPO, RLOO, BestOfK, Loop, Reward
from alpaca_rlhf.settings.earlier import config_of, with_earlier_defaults
from alpaca_rlhf.settings.parsing import parse, to_yaml
from alpaca_rlhf.settings.policies import POLICIES
from alpaca_rlhf.settings.quickstart import QUICKSTART
from alpaca_rlhf.settings.steps import order
from alpaca_rlhf.sources.choosing import deals_alike, split_sizes
from alpaca_rlhf.stages.arms import arms
from tests.prove import weights, without_times
from tests.whole_run import Quiet, small

GROUPS = {
    "updates": 2,
    "prompts": 4,
    "k": 2,
    "minibatch_size": 8,
    "micro_batch_size": 8,
    "lr": 1e-3,
    "max_new_tokens": 24,
    "save_every": 1,
}
ALL_FIVE = {
    "policies": POLICIES,
    "dpo": replace(QUICKSTART.dpo, save_every=1),
    "grpo": GRPO(**GROUPS),
    "rloo": RLOO(**GROUPS),
}


def settings_of(*flags, default=None):
    return parse(Loop, list(flags), prog="test", description="", default=default)


def stages_of(settings):
    return [name for name, _ in order(settings)]


@pytest.fixture
def unevaluated(whole_run, tmp_path):
    """A copy of a small finished run as it was before its evaluation."""
    out = tmp_path / "run"
    shutil.copytree(whole_run.path, out)
    ledger = json.loads((out / "ledger.json").read_text())
    del ledger["evaluate"]
    (out / "ledger.json").write_text(json.dumps(ledger))
    return out


def go_on(out, reporter=None, **changes):
    """Go on with a small run; returns its report."""
    run_loop(small(out, **changes), reporter or Quiet(), kind="quickstart", command="test")
    report = json.loads((out / "report.json").read_text())
    validate_report(report)
    return report


def test_policies_are_added_to_a_run(unevaluated, tmp_path):
    """Killed on the way it ends with the same weights; what was done is not done again."""
    other = tmp_path / "other"
    shutil.copytree(unevaluated, other)
    seen = Quiet()
    report = go_on(unevaluated, seen, **ALL_FIVE)
    assert seen.started == ["dpo", "grpo", "rloo", "evaluate"]
    assert policy_order(report["policies"])[-4:] == ["ppo", "dpo", "grpo", "rloo"]
    assert [row["name"] for row in report["stages"]][-4:] == ["dpo", "grpo", "rloo", "evaluate"]
    assert all(report["policies"][name]["kl_from_sft_nats"] != 0 for name in ("dpo", "grpo"))
    page = (unevaluated / "report.html").read_text()
    assert all(f"<h3>{name}</h3>" in page for name in ("DPO", "GRPO", "RLOO"))
    lines = (unevaluated / "dpo/reference.jsonl").read_text().splitlines()
    reference = [json.loads(line) for line in lines]
    assert all(len(row["logprobs"]) == 4 and max(row["logprobs"]) < 0 for row in reference)
    assert list(run_contents.policies(unevaluated))[-3:] == ["dpo", "grpo", "rloo"]
    for stage in ("dpo", "grpo", "rloo"):
        with pytest.raises(KeyboardInterrupt):
            go_on(other, Quiet(stop_in=stage), **ALL_FIVE)
        assert any((other / "checkpoints" / stage).iterdir())
    assert without_times(go_on(other, **ALL_FIVE)) == without_times(report)
    assert weights(other) == weights(unevaluated)


def test_all_five_policies_in_two_rounds(tmp_path):
    """Each goes on from its own last policy; DPO begins as SFT, on the rankings of both rounds."""
    out = tmp_path / "run"
    usual = small(out)
    report = go_on(
        out,
        rounds=2,
        rank=replace(usual.rank, prompts=12),
        reward=replace(usual.reward, control=False),
        best_of_k=replace(usual.best_of_k, control=False, prompts=6, epochs=1),
        evaluate=replace(usual.evaluate, prompts=4, dev=False),
        **ALL_FIVE,
    )
    second = [f"{name}.2" for name in ("ppo", "best_of_k", "dpo", "grpo", "rloo")]
    assert {*second} <= {*report["policies"]} and report["prompts"]["overlap"] == 0
    ledger = json.loads((out / "ledger.json").read_text())
    assert ledger["dpo.2"]["facts"]["pairs"] > ledger["dpo"]["facts"]["pairs"]
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    first = {row["stage"]: row for row in reversed(rows)}
    assert first["dpo.2"]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    for name in ("grpo", "rloo"):
        assert first[name]["kl_k3"] == 0 < first[f"{name}.2"]["kl_k3"]
    logged = {name for row in rows for name in row if not name.startswith("rejected_")}
    undefined = logged - named_in_the_docs()
    assert not undefined, "docs/metrics.md defines every logged number"


def named_in_the_docs():
    """The names that docs/metrics.md writes as code, and the columns that every row has."""
    page = Path(__file__).parent.parent / "docs" / "metrics.md"
    return {*re.findall(r"`(\w+)`", page.read_text()), "stage", "step", "steps"}


def test_references_of_another_sft_are_computed_anew(unevaluated, monkeypatch):
    """And those of the same one are read back."""
    settings = small(unevaluated, policies=("ppo", "best-of-k", "dpo"))
    computed = []
    module = import_module("alpaca_rlhf.stages.dpo")  # its name in `stages` is the stage's
    original = module.reference_logprobs

    def counted(adapters, groups, micro):
        computed.append(len(groups))
        return original(adapters, groups, micro)

    monkeypatch.setattr(module, "reference_logprobs", counted)
    with pytest.raises(KeyboardInterrupt):
        run_loop(settings, Quiet(stop_in="dpo"), kind="quickstart", command="test")
    ledger = json.loads((unevaluated / "ledger.json").read_text())
    run_loop(settings, Quiet(), kind="quickstart", command="test", until="dpo")
    assert len(computed) == 1
    ledger["dpo_reference"]["made_of"] = "another"
    ledger.pop("dpo", None)
    (unevaluated / "ledger.json").write_text(json.dumps(ledger))
    run_loop(settings, Quiet(), kind="quickstart", command="test", until="dpo")
    assert len(computed) == 2


def test_without_a_policy_that_needs_a_reward_none_is_trained():
    settings = Loop(policies=("dpo",))
    assert stages_of(settings) == ["generate", "sft", "sample", "rank", "dpo", "evaluate"]
    assert "ppo" not in split_sizes(settings), "nor is any prompt kept for sampling"
    plan = PeakMemory(shape_of("llama-2-7b"), Device("cuda", 2), settings).all()
    assert "dpo" in plan and "reward" not in plan
    assert {phase.name for phase in plan["dpo"]} == {"reference", "training", "optimiser step"}


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
    assert error.count("\n") == 1 and "give --policies ppo best-of-k" in error


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
        free = set(_changeable(done, settings))
        with RunFolder.open(tmp_path, to_yaml(settings), kind="loop", free=lambda _: free) as run:
            return run.changed

    more = replace(begun, policies=("ppo", "best-of-k"), best_of_k=BestOfK(prompts=17))
    with pytest.raises(UserError, match="holds another run: policies was"):
        changed(more, ["sft", "evaluate"])
    greedy = replace(more, best_of_k=BestOfK(prompts=begun.ppo.updates * begun.ppo.batch_size + 1))
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
    asked = config_of(resumed)
    with RunFolder.open(tmp_path, asked.text, kind="quickstart", before=asked.before) as run:
        assert run.changed == [] and resumed.policies == ("ppo", "best-of-k")


def test_a_policy_that_is_added_to_a_run_of_before_has_the_numbers_of_its_command(tmp_path):
    settings = replace(QUICKSTART, out=tmp_path)
    lines = yaml.safe_load(to_yaml(settings))
    for name in ("policies", "dpo", "grpo", "rloo"):
        del lines[name]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(lines))
    (tmp_path / "provenance.json").write_text(json.dumps({"kind": "quickstart"}))

    def opened(asked, done):
        resumed = with_earlier_defaults(asked)
        config, free = config_of(resumed), partial(_changeable, settings=resumed)
        with RunFolder.open(
            tmp_path, config.text, kind="quickstart", before=config.before, free=free, pin=False
        ) as run:
            return resumed, run.changed

    assert opened(settings, ["sft", "evaluate"]) == (settings, []), "nothing of it was asked for"
    more = replace(settings, policies=("ppo", "best-of-k", "dpo"))
    resumed, changed = opened(more, ["sft"])
    assert resumed.dpo == QUICKSTART.dpo and "policies" in changed
    given = replace(more, dpo=replace(QUICKSTART.dpo, lr=1e-4))
    assert opened(given, ["sft"])[0].dpo.lr == 1e-4


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
