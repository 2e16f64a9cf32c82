"""Watching for over-optimisation: what a look measures, what is kept, and when a stage ends."""

import json
import re
from dataclasses import replace

import pytest
import torch

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.settings import GRPO, PPO, RLOO, Loop, Value
from alpaca_rlhf.settings.parsing import parse
from alpaca_rlhf.stages.watch_words import watch_facts
from alpaca_rlhf.training.group_policy import train_in_groups
from alpaca_rlhf.training.grpo import grpo_method
from alpaca_rlhf.training.loop import Checkpoints
from alpaca_rlhf.training.ppo import train_ppo
from alpaca_rlhf.training.probes import probes
from alpaca_rlhf.training.rloo import rloo_method
from alpaca_rlhf.training.watching import Look, Watch
from tests import test_judge_loop
from tests.test_group_policies import SIZES, cast, prompts

POLICIES = ("ppo", "grpo", "rloo")

go = test_judge_loop.go
as_reward, ended, home, settings = (
    getattr(test_judge_loop, name) for name in ("as_reward", "ended", "home", "settings")
)
"""Fixtures of runs with a judge of the user's."""


def length(update_prompts, completions):
    """A judge that likes long answers."""
    return [float(len(c.ids)) for c in completions]


def brevity(update_prompts, completions):
    """A judge that likes short answers."""
    return [-float(len(c.ids)) for c in completions]


def watch(scorer=brevity, *, every=1, patience=0):
    return Watch(prompts(6), scorer, every=every, patience=patience)


def train(adapters, folder, policy, watch, *, log=None):
    """Six updates against length; returns the rows and copies of the policy after each."""
    rows, copies = [], {}

    def note(row):
        rows.append(row)
        copies[row["step"]] = weights_of(adapters)
        if log is not None:
            log(row)

    common = {
        "seed": 0,
        "rollout_batch_size": 16,
        "checkpoints": Checkpoints(folder),
        "log": note,
        "watch": watch,
    }
    if policy == "ppo":
        numbers = PPO(
            updates=6,
            batch_size=8,
            minibatch_size=4,
            lr=1e-3,
            max_new_tokens=8,
            save_every=3,
            value=Value(warmup=1),
        )
        train_ppo(adapters, length, prompts(), numbers, **common)
    else:
        sizes = {**SIZES, "updates": 6, "save_every": 3}
        method = grpo_method(GRPO(**sizes)) if policy == "grpo" else rloo_method(RLOO(**sizes))
        train_in_groups(adapters, length, prompts(), method, **common)
    return rows, copies


def weights_of(adapters):
    return {name: p.detach().clone() for name, p in adapters.parameters("policy").items()}


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_probes_by_hand():
    prompt = [9, 8, 7, 6, 5]
    answers = [[1, 2, 3, 4, 1, 2, 3, 4], [1, 2, 3, 4], [9, 8, 7, 6, 0], [5]]
    seen = probes([prompt] * 4, answers, [True, True, False, True])
    assert seen["tokens"] == [8, 4, 5, 1]
    assert seen["repeated"] == [0.2, 0, 0, 0], "of 1234 2341 3412 4123 1234 the last one"
    assert seen["same_beginning"] == [1, 1, 0, 0]
    assert seen["copied"] == [0, 0, 0.5, 0]
    assert seen["unfinished"] == [0, 0, 1, 0]


@pytest.mark.parametrize("policy", POLICIES)
def test_the_weights_of_the_best_look_stay(tiny, tmp_path, policy):
    """In the middle of a run, by scores that are told look by look."""
    told = iter([0.0, 1.0, 2.0, 5.0, 3.0, 4.0, 2.0])  # before the first update, then after each
    adapters, looks = cast(tiny), watch(lambda asked, _: [next(told)] * len(asked))
    rows, copies = train(adapters, tmp_path, policy, looks)
    assert [row["watch_score"] for row in rows] == [1, 2, 5, 3, 4, 2]
    assert looks.kept_step == 3 and equal(weights_of(adapters), copies[3])
    assert not equal(copies[3], copies[6])


@pytest.mark.parametrize("policy", POLICIES)
def test_looking_changes_nothing_that_is_learned(tiny, tmp_path, policy):
    _, copies = train(cast(tiny), tmp_path / "a", policy, watch(every=2))
    _, unwatched = train(cast(tiny), tmp_path / "b", policy, None)
    assert all(equal(copies[step], unwatched[step]) for step in unwatched)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("killed_at", [1, 4])
def test_killed_and_resumed_it_keeps_the_same_weights(tiny, tmp_path, policy, killed_at):
    whole, looks = cast(tiny), watch()
    train(whole, tmp_path / "whole", policy, looks)

    def kill(row):
        if row["step"] == killed_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(cast(tiny), tmp_path / "killed", policy, watch(), log=kill)
    resumed, looks_again = cast(tiny), watch()
    train(resumed, tmp_path / "killed", policy, looks_again)
    assert equal(weights_of(resumed), weights_of(whole))
    assert looks_again.state() == looks.state()


def test_patience_counts_looks_that_lose_score_and_gain_reward(tiny, tmp_path):
    """A look with less reward than the best one is no sign of over-optimisation."""
    scores = iter([0.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0])
    rewards = iter([0.0, 1.0, 2.0, 0.5, 3.0, 4.0, 5.0])
    looks = watch(patience=2)

    def look(step, policy):
        return Look(step, [next(scores)], next(rewards), 0.0, {"tokens": [1.0]})

    looks._look = look
    rows, _ = train(cast(tiny), tmp_path, "rloo", looks)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5] and looks.exhausted
    assert looks.kept_step == 1


def seen(gains):
    """Looks at a policy whose completions grow by 9 tokens, and gain on each prompt as given."""

    def look_at(step, scores, tokens):
        names = ("repeated", "same_beginning", "copied", "unfinished")
        signs = {name: [0.0] * len(scores) for name in names}
        return Look(step, scores, 0.0, 0.0, {**signs, "tokens": [tokens] * len(scores)})

    looks = watch()
    looks.prompts = prompts(len(gains))
    looks.start, looks.looks = look_at(0, [0.0] * len(gains), 9.0), [look_at(1, gains, 18.0)]
    return looks


def test_the_interval_of_a_look_resamples_whole_clusters():
    """Of 40 prompts every other pair gains: as 20 clusters of two they are half as many."""
    looks = seen([float(n % 4 < 2) for n in range(40)])

    def interval(clusters):
        words = watch_facts(looks, clusters)["words"]
        assert any("completions are longer (9 -> 18 tokens)" in sentence for sentence in words)
        low, high = re.search(r"95% \+(0\.\d+) to \+(0\.\d+), from the start", words[0]).groups()
        return float(high) - float(low)

    apart, together = interval(list(range(40))), interval([n // 2 for n in range(40)])
    assert together > 1.2 * apart


def test_looks_at_a_handful_have_no_interval_and_tell_nothing_moved():
    words = watch_facts(seen([1.0] * 40), [n // 8 for n in range(40)])["words"]
    assert words[0].endswith("the best of 1 looks by the held-out scorer (+1.000 from the start)")
    assert words[1].startswith("40 prompts in 5 clusters of near-duplicates are too few")
    assert len(words) == 2
    assert watch_facts(seen([1.0] * 12), list(range(12)))["words"][1].startswith("12 prompts are")


def test_the_last_update_has_a_look(tiny, tmp_path):
    rows, _ = train(cast(tiny), tmp_path, "grpo", watch(every=4))
    assert [row["step"] for row in rows if "watch_score" in row] == [4, 6]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--watch.every", "5", "--reward.source", "judge", "--inputs.judge", "checks"],
            "--watch.every 5 needs a judge that does not give the reward: .* no rankings for a",
        ),
        (["--watch.patience", "2"], "--watch.patience 2 counts looks; give --watch.every"),
        (["--watch.scorer", "human"], "--watch.scorer human: compares completions"),
        (["--watch.scorer", "nobody"], "--watch.scorer 'nobody' names no judge"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags, words):
    with pytest.raises(UserError, match=words):
        parse(Loop, flags, prog="test", description="")


def test_policies_without_updates_have_no_looks():
    flags = ["--watch.every", "5", "--watch.scorer", "gold", "--policies", "best-of-k", "dpo"]
    with pytest.raises(UserError, match=r"--watch\.every looks at PPO, GRPO and RLOO"):
        parse(Loop, flags, prog="test", description="")


def test_the_evaluation_is_not_on_the_prompts_that_chose_the_adapter():
    flags = ["--watch.every", "5", "--watch.scorer", "gold", "--evaluate.split", "dev"]
    with pytest.raises(UserError, match=r"--watch\.every chooses the adapter on `dev`"):
        parse(Loop, flags, prog="test", description="")


def watched(settings, scorer):
    return replace(
        settings,
        policies=("ppo",),
        watch=replace(settings.watch, every=1, scorer=scorer, prompts=4),
    )


def test_the_judge_that_gives_the_reward_may_not_look(as_reward, tmp_path):
    looked_at = watched(as_reward, as_reward.inputs.judge)
    with pytest.raises(UserError, match="gives the reward, and would see nothing"):
        go(looked_at, tmp_path / "run", until="sft")
    assert not (tmp_path / "run" / "ledger.json").exists()


def test_a_run_tells_what_it_kept(as_reward, home, tmp_path):
    looked_at = watched(as_reward, f"{home}/length.py:rate")
    go(looked_at, tmp_path / "run", until="ppo")
    row = json.loads((tmp_path / "run" / "ledger.json").read_text())["ppo"]
    seen = row["facts"]["watch"]
    assert [look["step"] for look in seen["looks"]] == [1, 2, 3]
    best = max(seen["looks"], key=lambda look: look["watch_score"])
    assert seen["kept_step"] == best["step"]
    assert seen["words"][0].startswith(f"kept the adapter of update {best['step']}, the best of 3")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [r for r in map(json.loads, lines) if r["stage"] == "ppo"]
    looked = 4 * sum(look["watch_tokens"] for look in [seen["start"], *seen["looks"]])
    assert row["tokens"] == round(6 * sum(r["mean_tokens"] for r in rows)) + round(looked)


@pytest.fixture(scope="module")
def by_second(settings, home):
    """Rankings by length, and looks without a judge that is named."""
    looked_at = watched(settings, None)
    inputs = replace(settings.inputs, judge=f"{home}/length.py:rate")
    return replace(looked_at, inputs=inputs, rank=replace(settings.rank, prompts=16))


def ledger_of(out):
    return json.loads((out / "ledger.json").read_text())


def test_without_a_judge_a_second_reward_model_looks(by_second, tmp_path):
    """It has learned from the rankings that the first was not trained on, and from no other."""
    go(by_second, tmp_path / "run")
    ledger = ledger_of(tmp_path / "run")
    first, second = ledger["reward"]["facts"], ledger["reward_second"]
    assert first["second"] == second and second["used"]
    assert {"the longer", "the shorter"} <= {row["is"] for row in second["baselines"]}
    assert (second["trained_pairs"], second["pairs"]) == (first["held_out_pairs"], first["pairs"])
    weights = [
        (tmp_path / "run" / name / "adapter" / "adapter_model.safetensors").read_bytes()
        for name in ("reward", "reward_second")
    ]
    assert weights[0] != weights[1]
    seen = ledger["ppo"]["facts"]["watch"]
    scores = [look["watch_score"] for look in seen["looks"]]
    assert all(0 < score < 1 for score in scores)
    assert seen["kept_step"] == seen["looks"][scores.index(max(scores))]["step"]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    named = f"a second reward model, trained on {second['trained_pairs']} held-out pairs"
    assert report["watches"]["ppo"]["scorer"].startswith(named)
    assert named in (tmp_path / "run" / "report.html").read_text()


def test_the_control_of_ppo_is_looked_at_in_the_same_way(by_second, tmp_path):
    """Else PPO's gain over it would hold what the choice among looks brought."""
    controlled = replace(
        by_second,
        reward=replace(by_second.reward, control=True),
        ppo=replace(by_second.ppo, control=True),
    )
    out = tmp_path / "run"
    go(controlled, out)
    ledger = ledger_of(out)
    control, ppo = ledger["ppo_shuffled"]["watch"], ledger["ppo"]["facts"]["watch"]
    assert [look["step"] for look in control["looks"]] == [look["step"] for look in ppo["looks"]]
    best = max(control["looks"], key=lambda look: look["watch_score"])
    assert control["kept_step"] == best["step"]
    assert control["start"]["watch_score"] == ppo["start"]["watch_score"], "the same prompts, noise"
    assert (out / "ppo_shuffled" / "looks.jsonl").is_file()
    report = json.loads((out / "report.json").read_text())
    assert set(report["watches"]) == {"ppo", "ppo_shuffled"}


def test_a_control_that_was_begun_unwatched_goes_on_so(by_second, tmp_path):
    """As an earlier version left it: its checkpoint holds nothing of looks."""
    controlled = replace(
        by_second,
        reward=replace(by_second.reward, control=True),
        ppo=replace(by_second.ppo, control=True),
    )
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        go(controlled, out, test_judge_loop.Quiet(stop_in="ppo_shuffled"))
    (saved,) = (out / "checkpoints" / "ppo_shuffled").rglob("state.pt")
    state = torch.load(saved, weights_only=True)
    del state["patience"]
    torch.save(state, saved)
    go(controlled, out)
    ledger = ledger_of(out)
    assert "watch" not in ledger["ppo_shuffled"] and "watch" in ledger["ppo"]["facts"]


def test_a_second_reward_model_that_was_killed_ends_the_same(by_second, tmp_path):
    go(by_second, tmp_path / "whole", until="reward")

    class Killed(test_judge_loop.Quiet):
        def step(self, stage, done, total, metrics):
            if stage == "reward_second" and done == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(by_second, tmp_path / "killed", Killed(), until="reward")
    go(by_second, tmp_path / "killed", until="reward")
    whole, killed = (tmp_path / name / "reward_second" / "adapter" for name in ("whole", "killed"))
    for name in ("adapter_model.safetensors", "head.safetensors"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


def test_a_second_reward_model_below_the_gate_looks_at_nothing(by_second, tmp_path):
    """The last adapter is kept then, and both the terminal and the report say so."""
    out, said = tmp_path / "run", []
    go(by_second, out, until="reward")
    ledger = ledger_of(out)
    ledger["reward_second"]["used"] = ledger["reward"]["facts"]["second"]["used"] = False
    (out / "ledger.json").write_text(json.dumps(ledger))
    reporter = test_judge_loop.Quiet()
    reporter.say = said.append
    go(by_second, out, reporter)
    assert any("ppo: nothing looks at the policy, and its last adapter is kept" in s for s in said)
    assert "watch" not in ledger_of(out)["ppo"]["facts"]
    page = " ".join((out / "report.html").read_text().split())
    assert "PPO: the adapter is that of the last update" in page
    assert "others only" in page and "below --reward.gate" in page
