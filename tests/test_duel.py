"""The duel of a run's policies, and the looks at them in the report."""

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace

import pytest
import yaml

from alpaca_rlhf.cli import main as cli
from alpaca_rlhf.cli.duel_command import duel_lines
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.runs import RunFolder
from alpaca_rlhf.evaluation.duel import TrainingPoint, differences, read_within
from alpaca_rlhf.report import render
from alpaca_rlhf.report.duel import validate_duel
from alpaca_rlhf.settings import Loop, Rank
from alpaca_rlhf.settings.parsing import parse, to_yaml
from alpaca_rlhf.settings.quickstart import QUICKSTART
from alpaca_rlhf.stages import duel as duel_stage

PROMPTS = 20
"""Prompts of a planted look."""


@pytest.fixture
def run(whole_run, tmp_path):
    """A copy of a small finished run with PPO and best-of-K."""
    out = tmp_path / "run"
    shutil.copytree(whole_run.path, out)
    return out


def change(path, edit: Callable[[dict], None]) -> None:
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def duel(run, *flags):
    assert cli.main(["duel", str(run), *flags]) == 0
    return json.loads((run / "duel.json").read_text())


def refusal(run, capsys):
    capsys.readouterr()
    assert cli.main(["duel", str(run)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def look(step, score, reward, kl):
    return {
        "step": step,
        "watch_score": score,
        "watch_reward": reward,
        "watch_kl": kl,
        "watch_tokens": 9.0,
    }


def watch(run, policy, gains):
    """Looks at a policy after each update, each prompt's score at the start plus a gain."""
    start = [0.1, 0.2, 0.3, 0.4] * (PROMPTS // 4)
    looks = [look(0, 0.25, 0.0, 0.0)]
    looks += [look(n, 0.25 + gain, n / 2, n / 4) for n, gain in enumerate(gains, 1)]
    rows = [
        {"step": n, "scores": [score + gain for score in start]}
        for n, gain in enumerate([0.0, *gains])
    ]
    (run / policy).mkdir(exist_ok=True)
    lines = (json.dumps(row) for row in rows)
    (run / policy / "looks.jsonl").write_text("\n".join(lines) + "\n")
    kept = max(looks[1:], key=lambda look: look["watch_score"])["step"]
    return {
        "start": looks[0],
        "looks": looks[1:],
        "kept_step": kept,
        "stopped": False,
        "prompts": PROMPTS,
        "words": [f"kept the adapter of update {kept}"],
    }


@pytest.fixture
def watched(run):
    """The run as if PPO and a policy that scores 1 more than it, RLOO, had been looked at."""

    def with_looks(ledger):
        ledger["rloo"] = json.loads(json.dumps(ledger["ppo"]))
        policies = ledger["evaluate"]["facts"]["policies"]
        policies["rloo"] = policies["ppo"]
        ledger["ppo"] |= {"seconds": 30.0}
        ledger["rloo"] |= {"seconds": 60.0}
        ledger["best_of_k"] |= {"seconds": 100.0}
        ledger["sample"] |= {"seconds": 5.0}
        ledger["reward"] |= {"seconds": 12.0}
        ledger["reward"]["facts"] |= {"control_seconds": 2.0}
        ledger["ppo"]["facts"] |= {"watch": watch(run, "ppo", [0.1, 0.3, 0.2])}
        ledger["rloo"]["facts"] |= {"watch": watch(run, "rloo", [0.05, 0.15, 0.25])}
        for name in ("ppo", "rloo", "best_of_k"):
            ledger[name]["facts"]["control_seconds"] = 0.0

    change(run / "ledger.json", with_looks)
    rows = [json.loads(line) for line in (run / "answers.jsonl").read_text().splitlines()]
    for row in rows:
        answer = row["answers"]["ppo"]
        row["answers"]["rloo"] = answer | {"gold": answer["gold"] + 1.0}
    (run / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["watch"] |= {"every": 1, "scorer": "gold", "prompts": PROMPTS}
    settings["evaluate"] |= {"dev_prompts": PROMPTS}  # as many as a planted look
    settings["policies"] = ["ppo", "best-of-k", "rloo"]
    settings["rloo"] |= {"updates": 3, "prompts": 4, "minibatch_size": 16}  # deals no more
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    return run


def test_a_duel_of_two_policies(run, capsys):
    """At the end, with what each cost; the report holds the same."""
    compared = duel(run)
    report = json.loads((run / "report.json").read_text())
    assert report["duel"] == compared
    ppo, best_of_k = compared["policies"]["ppo"], compared["policies"]["best_of_k"]
    assert (compared["rankings"], compared["ranked_completions"]) == (24, 96)
    assert (ppo["completions"], best_of_k["completions"]) == (3 * 16, 12 * 4)
    for name, policy in compared["policies"].items():
        figures = report["policies"][name]
        assert policy["gain"] == pytest.approx(figures["paired_gain_vs_sft"])
        assert policy["gain_ci95"] == pytest.approx(figures["paired_gain_ci95"])
        assert policy["kl_from_sft_nats"] == figures["kl_from_sft_nats"]
    (pair,) = compared["between"]
    lead = best_of_k["gold_score"] - ppo["gold_score"]
    assert (pair["first"], pair["second"]) == ("best_of_k", "ppo")
    assert pair["gain"] == pytest.approx(lead) and pair["ci95"][0] <= lead <= pair["ci95"][1]
    ledger = json.loads((run / "ledger.json").read_text())
    trained = ledger["best_of_k"]["seconds"] - ledger["best_of_k"]["facts"]["control_seconds"]
    assert 0 < trained < ledger["best_of_k"]["seconds"], "its control is not in them"
    assert best_of_k["seconds"] == pytest.approx(trained)
    shown = capsys.readouterr().out
    assert "2 policies from one SFT adapter, 24 rankings" in shown and "too few" in shown
    assert "each is read at its end alone" in shown
    for page in ("duel.html", "report.html"):
        text = (run / page).read_text()
        assert "The policies against each other" in text and "<script" not in text


def test_looks_are_read_at_equal_completions_and_minutes(watched):
    """PPO has had 16 completions and 10 seconds an update, RLOO 16 and 20, best-of-K 48 and 100.

    Each has needed 15 seconds before, for what was ranked and for the reward model.
    """
    compared = duel(watched, "--completions", "40", "--minutes", "1")
    by_completions, by_seconds = compared["readings"]

    def gains(readings):
        return {
            name: reading and (reading["update"], pytest.approx(reading["gain"]))
            for name, reading in readings["policies"].items()
        }

    assert gains(by_completions) == {"best_of_k": None, "ppo": (2, 0.3), "rloo": (2, 0.15)}
    assert by_seconds["policies"]["ppo"]["update"] is None, "its end"
    assert by_seconds["policies"]["rloo"]["update"] == 2
    assert by_seconds["policies"]["rloo"]["seconds"] == pytest.approx(40)
    assert by_seconds["policies"]["rloo"]["total_seconds"] == pytest.approx(55)
    (pair,) = by_completions["between"]
    assert [pair["gain"], *pair["ci95"]] == pytest.approx([0.15] * 3)
    ahead = next(p for p in compared["between"] if {p["first"], p["second"]} == {"ppo", "rloo"})
    assert [ahead["gain"], *ahead["ci95"]] == pytest.approx([-1.0] * 3)
    assert compared["policies"]["ppo"]["looked_at"] == 4 * PROMPTS
    assert compared["policies"]["ppo"]["kept_update"] == 2
    usual = duel(watched)["readings"]
    assert [readings["budget"] for readings in usual] == [48, 45]
    assert usual[1]["policies"]["rloo"]["update"] == 1


def test_the_minutes_of_the_reward_model_count(watched, capsys):
    """DPO takes 40 seconds and 10 before, best-of-K 23 and 68: DPO is done first, after 50."""

    def with_dpo(ledger):
        ledger["dpo"] = {**ledger["ppo"], "seconds": 40.0, "facts": {}}
        policies = ledger["evaluate"]["facts"]["policies"]
        policies["dpo"] = policies["ppo"]
        for name, seconds in (("sample", 10.0), ("reward", 60.0), ("best_of_k", 23.0)):
            ledger[name] |= {"seconds": seconds}

    change(watched / "ledger.json", with_dpo)
    rows = [json.loads(line) for line in (watched / "answers.jsonl").read_text().splitlines()]
    for row in rows:
        row["answers"]["dpo"] = row["answers"]["ppo"]
    (watched / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    compared = duel(watched)
    by_minutes = compared["readings"][1]
    assert (by_minutes["by"], by_minutes["budget"]) == ("total_seconds", 50)
    assert by_minutes["policies"]["best_of_k"] is None
    at_end = by_minutes["policies"]["dpo"]
    assert at_end["update"] is None
    assert (at_end["seconds"], at_end["total_seconds"]) == (40, 50)
    shown = capsys.readouterr().out
    assert "at equal minutes: 0.83 of its training and of what it needs before" in shown
    assert "0.67 min, 0.83 with what is before" in shown
    page = " ".join((watched / "duel.html").read_text().split())
    assert "0.83 of a policy's training and of what it needs before" in page.replace("&#39;", "'")


def test_a_duel_of_an_earlier_version_says_that_it_leaves_out_what_was_before(watched, tmp_path):
    earlier = duel(watched)
    readings = earlier["readings"][1]
    readings["by"] = "seconds"
    for reading in filter(None, readings["policies"].values()):
        del reading["total_seconds"]
    assert "what it needs before is not counted" in render.templates().get_template(
        "duel.html"
    ).render(duel=validate_duel(earlier))
    lines = list(duel_lines(validate_duel(earlier)))
    assert any(line.endswith("of its own training") for line in lines)


def test_the_report_shows_the_looks_and_what_was_kept(watched):
    assert cli.main(["evaluate", "--out", str(watched)]) == 0
    report = json.loads((watched / "report.json").read_text())
    assert report["watches"]["ppo"]["scorer"] == "gold"
    page = (watched / "report.html").read_text()
    assert "Kept the adapter of update 2." in page and "2, kept" in page
    assert "since no held-out scorer looked at it" not in page


def test_a_report_without_looks_says_that_the_last_adapter_was_kept(run):
    page = (run / "report.html").read_text()
    assert "PPO: the adapter is that of the last update" in page


def without_evaluation(run):
    (run / "report.json").unlink()


def one_policy(run):
    change(run / "ledger.json", lambda ledger: ledger.pop("best_of_k"))


def another_sft(run):
    change(run / "ledger.json", lambda ledger: ledger["ppo"].update(sft_sha256="another"))


def other_rankings(run):
    def with_dpo(ledger):
        ledger["dpo"] = {**ledger["ppo"], "facts": {"rankings_digest": "another"}}
        policies = ledger["evaluate"]["facts"]["policies"]
        policies["dpo"] = policies["ppo"]

    change(run / "ledger.json", with_dpo)


def other_prompts(run):
    lines = (run / "answers.jsonl").read_text().splitlines(keepends=True)
    (run / "answers.jsonl").write_text("".join(reversed(lines)))


def no_run(run):
    (run / "config.yaml").unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (without_evaluation, "have not been evaluated; first run: alpaca-rlhf evaluate --out"),
        (one_policy, "this run has PPO alone"),
        (another_sft, "best_of_k and ppo began as different SFT adapters"),
        (other_rankings, "dpo learned from other rankings than the reward model"),
        (other_prompts, "holds other prompts than the run's settings deal now"),
        (no_run, "holds no run"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_line(run, capsys, spoil, words):
    spoil(run)
    assert words in refusal(run, capsys)
    assert not (run / "duel.json").exists()


def test_the_command_for_an_evaluation_works_as_printed(run, capsys):
    spaced = run.rename(run.with_name("my run"))
    without_evaluation(spaced)
    change(spaced / "ledger.json", lambda ledger: ledger.pop("evaluate"))
    words = shlex.split(refusal(spaced, capsys).partition("first run: ")[2])
    assert words == ["alpaca-rlhf", "evaluate", "--out", str(spaced)]
    with pytest.raises(UserError) as told:
        duel_stage._refuse_incomparable(RunFolder.follow(spaced), {}, Loop(out=spaced), [])
    assert shlex.split(str(told.value).partition("first run: ")[2]) == words


@pytest.mark.parametrize(
    ("settings", "kind", "policies"),
    [
        (Loop(policies=("dpo",)), "loop", ("ppo", "dpo")),
        (Loop(policies=("ppo",)), "quickstart", ("ppo", "best-of-k")),
        (Loop(policies=("rloo", "dpo"), more_rounds=2), "loop", ("dpo", "rloo")),
    ],
)
def test_two_policies_are_trained_by_the_command_as_printed(settings, kind, policies, tmp_path):
    """It begins another run with the settings of this one."""
    folder = tmp_path / "my run"
    folder.mkdir()
    settings = replace(settings, out=folder, seed=7, rank=Rank(prompts=9))
    (folder / "config.yaml").write_text(to_yaml(settings))
    (folder / "provenance.json").write_text(json.dumps({"kind": kind}))
    run, names = RunFolder.follow(folder), [settings.policy_stages[0]]
    with pytest.raises(UserError) as told:
        duel_stage._refuse_incomparable(run, {"evaluate": {}}, settings, names)
    assert "\n" not in str(told.value)
    words = shlex.split(str(told.value).partition("train two with: ")[2])
    assert words[:2] == ["alpaca-rlhf", kind]
    default = QUICKSTART if kind == "quickstart" else None
    again = parse(Loop, words[2:], prog=kind, description="", default=default)
    expected = replace(settings, policies=policies, out=tmp_path / "my run-duel")
    assert again == replace(expected, rounds=settings.all_rounds, more_rounds=0)


def test_whole_clusters_are_resampled():
    """One cluster leaves nothing to resample: the interval is the mean alone."""
    scores = {"a": [1.0, 0.0, 0.5, 0.2], "b": [0.0, 0.0, 0.0, 0.0]}
    options = {"resamples": 200, "seed": 0}
    ((_, _, together),) = differences(scores, groups=[7, 7, 7, 7], **options)
    assert together.low == together.high == pytest.approx(0.425)
    ((_, _, apart),) = differences(scores, groups=None, **options)
    assert apart.low < 0.425 < apart.high


def test_looks_on_near_duplicates_have_no_interval(watched, monkeypatch):
    """They are one cluster, however many they are."""
    kept, _ = duel(watched, "--completions", "40")["readings"]
    assert kept["policies"]["ppo"]["ci95"] is not None
    monkeypatch.setattr(duel_stage, "cluster_numbers", lambda prompts, key: [0] * len(prompts))
    together, _ = duel(watched, "--completions", "40")["readings"]
    assert together["policies"]["ppo"]["gain"] == kept["policies"]["ppo"]["gain"]
    assert together["policies"]["ppo"]["ci95"] is None and together["between"] == []


def test_the_end_counts_before_a_look_at_the_same_cost():
    points = [
        TrainingPoint(10, 1.0, 8.0, 1, 0.1),
        TrainingPoint(20, 2.0, 9.0, 2, 0.3),
        TrainingPoint(20, 2.0, 9.0, None, 0.2),
    ]
    assert read_within(points, 20, "completions") == points[2]
    assert read_within(points, 1.9, "seconds") == points[0]
    assert read_within(points, 8.9, "total_seconds") == points[0]
    assert read_within(points, 7.9, "total_seconds") is None
    assert read_within(points, 9, "completions") is None


def test_a_lead_is_told_only_where_its_interval_leaves_out_zero(watched):
    compared = duel(watched)
    compared |= {"prompts": 300, "clusters": 300}
    words = validate_duel(compared).headline
    assert words.startswith("RLOO gains") and "measurably more than" in words and "PPO" in words
