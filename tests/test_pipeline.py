"""The whole loop at a small size: what it writes, and that interruptions change nothing."""

import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from alpaca_rlhf import pipeline
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.runs import RunFolder
from alpaca_rlhf.models.rollout import sample
from alpaca_rlhf.pipeline import run_loop
from alpaca_rlhf.report.policy_names import policy_order
from alpaca_rlhf.report.schema import validate_report
from alpaca_rlhf.settings import PPO, BestOfK, Evaluate
from alpaca_rlhf.settings.quickstart import QUICKSTART
from alpaca_rlhf.settings.steps import order
from alpaca_rlhf.stages import arm_answers
from tests.forked import Forked
from tests.prove import SMALL, command, kill_in, weights, without_times
from tests.whole_run import Quiet, small


def run(out: Path, reporter=None, **changes) -> dict:
    run_loop(small(out, **changes), reporter or Quiet(), kind="quickstart", command="test")
    return json.loads((out / "report.json").read_text())


@pytest.fixture
def calm(whole_run) -> Path:
    """The folder of a run that nobody disturbed."""
    return whole_run.path


def report_of(out: Path) -> dict:
    return json.loads((out / "report.json").read_text())


def test_the_report_keeps_its_contract(calm):
    report = report_of(calm)
    validate_report(report)
    assert [row["name"] for row in report["stages"]] == [name for name, _ in order(small(calm))]
    assert (
        policy_order(report["policies"])
        == (
            "base base_few_shot sft random_of_k best_of_k sampler_best_of_k oracle_best_of_k ppo"
        ).split()
    )
    assert report["prompts"]["overlap"] == 0
    assert report["policies"]["sft"]["kl_from_sft_nats"] == 0.0
    assert (calm / "report.html").stat().st_size > 10_000


def test_the_arms_that_rerank_bound_each_other(calm):
    """The judge's choice among K samples is the best of all; greedy, all K are SFT's answer."""
    policies = report_of(calm)["policies"]
    sampler, oracle, sft = (
        policies[name] for name in ("sampler_best_of_k", "oracle_best_of_k", "sft")
    )
    assert oracle["gold_score"] >= max(sampler["gold_score"], sft["gold_score"])
    assert oracle["paired_gain_ci95"][0] >= 0, "prompt by prompt, its first sample being SFT's"
    for arm in (sampler, oracle):
        assert arm["kl_from_sft_nats"] == pytest.approx(math.log(4) - 3 / 4)
        assert arm["gold_score_greedy"] == sft["gold_score_greedy"]
        assert arm["greedy_gain_vs_sft"] == 0 and arm["greedy_gain_ci95"] == [0, 0]
    for policy in policies.values():
        change = policy["gold_score_greedy"] - sft["gold_score_greedy"]
        assert policy["greedy_gain_vs_sft"] == pytest.approx(change)
        assert policy["greedy_gain_ci95"][0] <= change <= policy["greedy_gain_ci95"][1]
    assert all(math.isfinite(arm["proxy_score"]) for arm in policies.values())
    assert sampler["proxy_score"] > sft["proxy_score"], "what it chooses by"
    rows = [json.loads(line) for line in (calm / "answers.jsonl").read_text().splitlines()]
    for row in rows:
        golds = {name: answer["gold"] for name, answer in row["answers"].items()}
        assert golds["oracle_best_of_k"] >= max(golds["sft"], golds["sampler_best_of_k"])


def test_without_the_arms_that_rerank_the_others_are_as_they_were(calm, tmp_path):
    """SFT's answer is the first of its K samples, so one sample a prompt is the same answer."""
    out = without_evaluation(calm, tmp_path / "run")
    policies = run(out, evaluate=replace(small(out).evaluate, rerank=False))["policies"]
    reranked = ("sampler_best_of_k", "oracle_best_of_k")
    before = report_of(calm)["policies"]
    assert policies == {name: arm for name, arm in before.items() if name not in reranked}


def without_evaluation(calm, out) -> Path:
    """A copy of a run whose evaluation was interrupted before its end."""
    shutil.copytree(calm, out)
    ledger = json.loads((out / "ledger.json").read_text())
    del ledger["evaluate"]
    (out / "ledger.json").write_text(json.dumps(ledger))
    return out


def test_an_evaluation_goes_on_with_the_arms_that_have_not_answered(calm, tmp_path, monkeypatch):
    out = without_evaluation(calm, tmp_path / "run")
    (out / "evaluate" / "ppo.jsonl").unlink()
    asked = []

    def counted(adapters, role, *arguments, **options):
        asked.append(role)
        return sample(adapters, role, *arguments, **options)

    monkeypatch.setattr(arm_answers, "sample", counted)
    policies = run(out)["policies"]
    assert asked == ["policy", "policy"], "sampled and greedily, by PPO alone"
    assert policies == report_of(calm)["policies"]
    assert (out / "evaluate" / "ppo.jsonl").read_bytes() == (
        calm / "evaluate" / "ppo.jsonl"
    ).read_bytes()


def test_answers_of_other_weights_are_not_kept(calm, tmp_path):
    """A policy that was trained anew under the same name answers anew."""

    def answers(out, policy):
        return (out / "evaluate" / f"{policy}.jsonl").read_text().splitlines()[1:]

    out = without_evaluation(calm, tmp_path / "run")
    adapter = out / "ppo" / "adapter" / "adapter_model.safetensors"
    other = out / "best_of_k" / "adapter" / "adapter_model.safetensors"
    shutil.copy(other, adapter)
    assert answers(calm, "ppo") != answers(calm, "best_of_k"), "they differ in KL at least"
    run(out)
    assert answers(out, "ppo") == answers(calm, "best_of_k")


def test_the_control_of_the_choice_costs_as_much_as_the_choice(calm):
    rows = [json.loads(line) for line in (calm / "metrics.jsonl").read_text().splitlines()]
    steps = {
        stage: [row["lr"] for row in rows if row["stage"] == stage]
        for stage in ("best_of_k", "random_of_k")
    }
    assert steps["best_of_k"] == steps["random_of_k"] != []
    policies = report_of(calm)["policies"]
    low, high = policies["best_of_k"]["paired_gain_vs_control_ci95"]
    difference = policies["best_of_k"]["gold_score"] - policies["random_of_k"]["gold_score"]
    assert policies["best_of_k"]["paired_gain_vs_control"] == pytest.approx(difference)
    assert low <= difference <= high
    assert (
        weights(calm)["random_of_k/adapter/adapter_model.safetensors"]
        != (weights(calm)["best_of_k/adapter/adapter_model.safetensors"])
    )


def test_parts_of_the_prompts_stand_in_each_policys_figures(calm):
    report = report_of(calm)
    for name, policy in report["policies"].items():
        assert (
            policy["held_out_phrasings"]["n"] == report["slices"][name]["held_out_phrasings"]["n"]
        )
        assert policy["dev"]["n"] == small(calm).evaluate.prompts
        assert 0 <= policy["dev"]["gold_score"] <= 1
    assert report["policies"]["sft"]["dev"]["paired_gain_vs_sft"] == 0
    assert len((calm / "answers.jsonl").read_text().splitlines()) == report["prompts"]["eval"]


def test_every_step_is_in_the_metrics_once(calm):
    """Nothing that came after the last checkpoint is lost, and no checkpoint is left behind."""
    rows = [json.loads(line) for line in (calm / "metrics.jsonl").read_text().splitlines()]
    for stage in ("sft", "reward_shuffled", "reward", "ppo", "random_of_k", "best_of_k"):
        own = [row for row in rows if row["stage"] == stage]
        assert [row["step"] for row in own] == list(range(1, own[0]["steps"] + 1)), stage
    assert not list(calm.glob("checkpoints/*/*"))


def test_every_logged_number_is_defined(calm):
    page = (Path(__file__).parent.parent / "docs" / "metrics.md").read_text()
    defined = set(re.findall(r"`(\w+)`", page))
    for line in (calm / "metrics.jsonl").read_text().splitlines():
        names = {name for name in json.loads(line) if not name.startswith("rejected_")}
        assert not names - defined


def test_ppo_starts_at_the_reference_exactly(calm):
    ledger = json.loads((calm / "ledger.json").read_text())
    assert ledger["ppo"]["facts"]["kl_at_start"] == 0.0


def test_scores_are_normalised_on_sft_completions(calm):
    """The folded gain and bias, applied by a fresh process's reading of the folder."""
    import torch

    from alpaca_rlhf.core.records import Completion, Instruction
    from alpaca_rlhf.models.adapters import Adapters
    from alpaca_rlhf.models.base import load_base
    from alpaca_rlhf.models.heads import ScalarHead
    from alpaca_rlhf.models.scoring import score
    from alpaca_rlhf.training.groups import completion_example

    settings = small(calm)
    adapters = Adapters(load_base(), settings.lora, template=settings.template)
    adapters.load("reward", calm / "reward" / "adapter")
    head = ScalarHead.load(calm / "reward" / "adapter", 192)
    prompts = {}
    for line in (calm / "sample" / "prompts.jsonl").read_text().splitlines():
        row = json.loads(line)
        prompt = Instruction(row["instruction"], row["input"])
        prompts[prompt.id] = prompt
    examples = []
    for line in (calm / "sample" / "completions.jsonl").read_text().splitlines():
        row = json.loads(line)
        row.pop("id")
        one = Completion(**row)
        if one.finish_reason == "eos":  # PPO gives one that was cut no score of its own
            examples.append(completion_example(adapters, prompts[one.prompt_id], one))
    scores = score(adapters, "reward", head, examples, batch_size=32).double()
    assert abs(float(scores.mean())) < 1e-3
    assert abs(float(scores.std(correction=0)) - 1) < 1e-3
    assert torch.isfinite(scores).all()


@pytest.mark.parametrize("stage", ["sft", "ppo", "best_of_k", "reward"])
def test_adapters_load_with_plain_peft(calm, stage):
    import torch
    from peft import PeftModel

    from alpaca_rlhf.models.base import load_base

    base = load_base()
    ids = torch.tensor([[1, 300, 301, 302]])
    with torch.no_grad(), base.autocast():
        before = base.model(ids).logits
        model = PeftModel.from_pretrained(base.model, str(calm / stage / "adapter"))
        assert not torch.equal(model(ids).logits, before)


def test_a_finished_run_is_left_alone(calm):
    before = {f: f.stat().st_mtime_ns for f in calm.rglob("*") if f.is_file() and f.name != ".lock"}
    reporter = Quiet()
    run(calm, reporter)
    assert reporter.started == []
    changed = {f.name for f, t in before.items() if f.stat().st_mtime_ns != t}
    assert changed <= {"report.json", "report.html", "provenance.json"}  # it notes the visit


def test_interrupted_in_every_stage_it_ends_with_the_same_report(calm, tmp_path):
    out = tmp_path / "run"
    for stage in [name for name, _ in order(small(out))]:
        with pytest.raises(KeyboardInterrupt):
            run(out, Quiet(stop_in=stage))
    assert without_times(run(out)) == without_times(report_of(calm))


def test_killed_twice_in_every_training_stage_it_ends_with_the_same_weights(calm, tmp_path):
    """SIGKILL at random moments: nothing is tidied up. `make prove` does it ten times."""
    out, seed = tmp_path / "run", random.SystemRandom().randrange(2**32)
    rng, words = random.Random(seed), command(out, *SMALL)
    took = json.loads((calm / "ledger.json").read_text())
    for stage in ("sft", "reward", "ppo", "best_of_k"):
        # the second one may come after the end of the stage
        moments = [took[stage]["seconds"] * rng.uniform(0.05, 0.6) for _ in range(2)]
        assert kill_in(out, stage, moments[0], words, start=Forked), seed
        kill_in(out, stage, moments[1], words, start=Forked)
    assert without_times(run(out)) == without_times(report_of(calm)), f"moments of seed {seed}"
    stages = {name.partition("/")[0] for name in weights(calm)}
    assert stages == {"sft", "reward", "reward_shuffled", "ppo", "best_of_k", "random_of_k"}
    assert weights(out) == weights(calm), f"moments of seed {seed}"


def test_another_seed_changes_everything_random(calm, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(out, Quiet(stop_in="sample"), seed=1)
    rows = (out / "generate" / "rows.jsonl").read_text()
    assert rows != (calm / "generate" / "rows.jsonl").read_text()


def test_the_folder_of_another_run_is_refused(calm):
    before = (calm / "report.json").read_bytes()
    with pytest.raises(UserError, match="seed"):
        run(calm, seed=7)
    assert (calm / "report.json").read_bytes() == before


def test_what_is_yet_to_come_may_be_changed(calm, tmp_path):
    """A learning rate that was too high must not cost the rankings: its stage begins anew."""
    outs = [tmp_path / name for name in ("mended", "straight")]
    for out in outs:
        shutil.copytree(calm, out, ignore=shutil.ignore_patterns("ppo", "best_of_k", "report.*"))
        ledger = json.loads((out / "ledger.json").read_text())
        for stage in ("ppo", "best_of_k", "evaluate"):
            del ledger[stage]
        (out / "ledger.json").write_text(json.dumps(ledger))
    first = small(outs[0])
    mended = replace(first, ppo=replace(first.ppo, lr=1e-5))
    with pytest.raises(UserError, match=r"ppo\.batch_size"):  # says which prompts go where
        changed = replace(mended, ppo=replace(mended.ppo, batch_size=24, minibatch_size=8))
        run_loop(changed, Quiet(), kind="quickstart", command="test", until="ppo")
    with pytest.raises(UserError, match=r"sft\.lr"):  # done already
        changed = replace(mended, sft=replace(mended.sft, lr=1e-5))
        run_loop(changed, Quiet(), kind="quickstart", command="test", until="ppo")
    with pytest.raises(KeyboardInterrupt):
        run_loop(first, Quiet(stop_in="ppo"), kind="quickstart", command="test", until="ppo")
    for out in outs:
        settings = replace(mended, out=out)
        run_loop(settings, Quiet(), kind="quickstart", command="test", until="ppo")
    weights = [(out / "ppo/adapter/adapter_model.safetensors").read_bytes() for out in outs]
    assert weights[0] == weights[1]
    assert "lr: 1.0e-05" in (outs[0] / "config.yaml").read_text()


def test_a_reward_model_below_the_gate_can_be_trained_otherwise(calm, tmp_path):
    """The rankings stay; the model and its control begin anew with what was changed."""
    out = tmp_path / "run"
    gone = shutil.ignore_patterns("reward", "ppo", "best_of_k", "report.*")
    shutil.copytree(calm, out, ignore=gone)
    ledger = json.loads((out / "ledger.json").read_text())
    kept = {k: v for k, v in ledger.items() if k in ("base", "generate", "sft", "sample", "rank")}
    (out / "ledger.json").write_text(json.dumps(kept))
    settings = small(out)
    strict = replace(settings, reward=replace(settings.reward))
    object.__setattr__(strict.reward, "gate", 1.01)  # above what can be typed: it is right on all
    with pytest.raises(UserError, match=r"below --reward\.gate 1\.01"):
        run_loop(strict, Quiet(), kind="quickstart", command="test", until="reward")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    run_loop(settings, Quiet(), kind="quickstart", command="test", until="reward")
    again = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert again == rows, "with a lower gate nothing is trained again"
    assert (
        weights(out)["reward/adapter/adapter_model.safetensors"]
        == (weights(calm)["reward/adapter/adapter_model.safetensors"])
    )
    ledger = json.loads((out / "ledger.json").read_text())
    del ledger["reward"]
    (out / "ledger.json").write_text(json.dumps(ledger))
    with pytest.raises(UserError, match=r"below --reward\.gate 1\.01"):
        run_loop(strict, Quiet(), kind="quickstart", command="test", until="reward")
    other = replace(settings, reward=replace(settings.reward, lr=1e-30, head_lr=1e-30))
    run_loop(other, Quiet(), kind="quickstart", command="test", until="reward")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for stage in ("reward", "reward_shuffled"):
        own = [row for row in rows if row["stage"] == stage]
        assert [row["step"] for row in own] == list(range(1, own[0]["steps"] + 1))
        assert max(row["lr"] for row in own) <= 1e-30
    assert (out / "rank" / "snapshot" / "rankings.jsonl").read_bytes() == (
        calm / "rank" / "snapshot" / "rankings.jsonl"
    ).read_bytes()


def test_a_second_round_goes_on_from_the_last_policy(tmp_path):
    out = tmp_path / "run"
    settings = small(out)
    control = replace(settings.ppo, control=True)
    report = run(out, rounds=2, ppo=control, evaluate=replace(settings.evaluate, dev=False))
    validate_report(report)
    assert {
        *("random_of_k", "sampler_best_of_k", "ppo_shuffled", "ppo.2", "best_of_k.2"),
        *("random_of_k.2", "sampler_best_of_k.2", "ppo_shuffled.2"),
    } <= set(report["policies"])
    assert "oracle_best_of_k.2" not in report["policies"], "it is the same in every round"
    assert "paired_gain_vs_control" in report["policies"]["ppo.2"]
    assert [m["round"] for m in report["reward_models"]] == [1, 2]
    assert report["reward_models"][1]["pairs"] > report["reward_models"][0]["pairs"]
    assert report["prompts"]["overlap"] == 0


def test_no_network_is_needed(tmp_path):
    """In a network namespace of its own, without even a loopback device that is up."""
    probe = subprocess.run(["unshare", "-n", "true"], capture_output=True)
    if probe.returncode != 0:
        pytest.skip("this machine does not let a test make a network namespace")
    words = ["unshare", "-n", sys.executable, "-m", "alpaca_rlhf", "generate"]
    flags = [*SMALL, "--base", "embedded", "--template", "brief", "--out", str(tmp_path / "run")]
    done = subprocess.run([*words, *flags], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr


class Stopping(Quiet):
    """Stops the run where its first stage begins."""

    def start(self, stage, what):
        raise KeyboardInterrupt


def test_a_refused_run_pins_no_settings(tmp_path, monkeypatch):
    """Too few prompts, or too small a card: what is advised is then no other run."""
    from alpaca_rlhf import pipeline

    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "run"
    words = ("Name a bird.", "Why is rain wet?", "Sing low.", "Count to nine.")
    rows = [{"instruction": word, "output": "Yes."} for word in words]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    inputs = replace(QUICKSTART.inputs, data=prompts, prompts=prompts, judge="human")
    for refused in (
        small(out, inputs=inputs),
        small(out, evaluate=replace(QUICKSTART.evaluate, prompts=5_000)),
    ):
        with pytest.raises(UserError, match=r"too few|--evaluate\.prompts"):
            run_loop(refused, Quiet(), kind="quickstart", command="test")
        assert not out.exists()

    own = replace(QUICKSTART.inputs, data=prompts, prompts=prompts, judge="human")
    sizes = {
        "rank": replace(QUICKSTART.rank, prompts=1),
        "best_of_k": replace(BestOfK(), prompts=1),
    }
    sizes |= {"ppo": replace(PPO(), batch_size=1, minibatch_size=1)}
    no_dev = small(out, inputs=own, **sizes, evaluate=Evaluate(prompts=2, dev=True))
    with pytest.raises(UserError, match=r"--evaluate\.dev: .* no split `dev`"):
        run_loop(no_dev, Quiet(), kind="quickstart", command="test")
    assert not out.exists()

    def refuse(*_):
        raise UserError("use a larger card")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.preflight, "check_gpu", refuse)
        with pytest.raises(UserError, match="larger card"):
            run(out, base="embedded", seed=7)
    assert not (out / "config.yaml").exists()
    with pytest.raises(KeyboardInterrupt):
        run(out, Stopping())
    assert (out / "config.yaml").exists()


def test_a_run_of_an_earlier_version_goes_on(calm, tmp_path):
    """Its file lacks what was added since; another number of shown answers changes no result."""
    out = tmp_path / "run"
    shutil.copytree(calm, out)
    begun = yaml.safe_load((out / "config.yaml").read_text())
    for section, name in [
        ("generate", "attempts"),
        ("generate", "min_score"),
        ("evaluate", "dev_prompts"),
        ("evaluate", "max_cluster"),
        ("reward", "control"),
        ("inputs", "languages"),
    ]:
        del begun[section][name]
    (out / "config.yaml").write_text(yaml.safe_dump(begun))
    settings = small(out)
    for shown in (3, 4):  # the second time the first one's file is there
        changed = replace(settings, evaluate=replace(settings.evaluate, shown=shown))
        assert run(out, evaluate=changed.evaluate)["policies"] == report_of(calm)["policies"]
    assert "attempts" not in yaml.safe_load((out / "config.yaml").read_text())["generate"]


def test_a_run_does_not_go_on_with_other_weights_of_its_base(tmp_path):
    """The embedded base of another version has the same name."""
    run = RunFolder.open(tmp_path / "run", "seed: 0\n", kind="loop")
    base = SimpleNamespace(parameters=1, quantization="nf4", fingerprint="new")
    adapters = SimpleNamespace(fits_earlier=lambda fingerprint: fingerprint == "earlier")
    ctx = SimpleNamespace(run=run, base=base, base_digest="d", adapters=adapters)
    for noted, taken in (("new", True), ("earlier", True), ("old", False)):
        run.finish("base", {"fingerprint": noted})
        if taken:
            pipeline._note_base(ctx)
            continue
        with pytest.raises(UserError, match=r"begun with another base \(old, here it is new\)"):
            pipeline._note_base(ctx)
