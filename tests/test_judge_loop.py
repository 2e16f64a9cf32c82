"""A judge of the user's through the whole loop: as the one who ranks, and as the reward itself."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest

from alpaca_rlhf import pipeline
from alpaca_rlhf.checks import Checks
from alpaca_rlhf.cli import main as cli
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.core.runs import RunFolder
from alpaca_rlhf.judges import Judge, JudgeFailure
from alpaca_rlhf.judges.judge import MEND
from alpaca_rlhf.models.base import load_base
from alpaca_rlhf.pipeline import run_loop
from alpaca_rlhf.planner import Device, PeakMemory, shape_of
from alpaca_rlhf.preferences import read_snapshot
from alpaca_rlhf.report.schema import validate_report
from alpaca_rlhf.settings import (
    PPO,
    SFT,
    BestOfK,
    Evaluate,
    Generate,
    Inputs,
    Loop,
    Lora,
    Rank,
    Reward,
    Sampling,
    Value,
)
from alpaca_rlhf.settings import (
    Judge as JudgeEndpoint,
)
from alpaca_rlhf.settings.judge_names import parse_judge
from alpaca_rlhf.settings.parsing import to_yaml
from alpaca_rlhf.settings.steps import order
from alpaca_rlhf.sources import source_of
from alpaca_rlhf.stages import context, judging
from alpaca_rlhf.stages.rollouts import RolloutSource
from tests.prove import weights, without_times
from tests.test_pipeline import Quiet

RANDOM = """import os
import random
from alpaca_rlhf.judges import Scores

def score(prompt, completion, finished):
    if os.environ.get("NO_JUDGE"):
        raise RuntimeError("asked again")
    number = random.SystemRandom().random()
    return Scores(number, {"luck": number, "finished": finished})
"""
LENGTH = """def rate(prompt, completion, finished):
    if len(completion) > LIMIT:
        return 1.5
    return min(len(completion), 40) / 40

LIMIT = 1000
"""


@pytest.fixture(scope="module", autouse=True)
def ended():
    """Many tokens end a completion, so that a random base finishes some and others not."""

    def load(name, **options):
        base = load_base(name, **options)
        object.__setattr__(base, "stop_ids", frozenset({2, *range(100, 386, 6)}))
        return base

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "load_base", load)
        yield


def rows_in(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the user's files."""
    folder = tmp_path_factory.mktemp("files")
    openers = "how why when where who which whose what whom whether".split()
    questions = [f"{w} {i} {i * 7} {w * 3}" for i in range(6) for w in openers]
    rows_in(
        folder / "data.jsonl",
        [{"instruction": f"Count to {n}.", "output": "one two"} for n in range(6)],
    )
    rows_in(folder / "prompts.jsonl", [{"instruction": question} for question in questions])
    (folder / "judge.py").write_text(RANDOM)
    (folder / "length.py").write_text(LENGTH)
    return folder


@pytest.fixture(scope="module")
def settings(home, tiny_folder) -> Loop:
    return Loop(
        base=str(tiny_folder),
        template="brief",
        lora=Lora(r=4, alpha=8),
        inputs=Inputs(
            judge=f"{home}/judge.py:score",
            data=home / "data.jsonl",
            prompts=home / "prompts.jsonl",
        ),
        sampling=Sampling(max_new_tokens=8, batch_size=16),
        sft=SFT(lr=1e-3, epochs=1, batch_size=4, save_every=1),
        rank=Rank(prompts=8, k=3),
        reward=Reward(lr=1e-3, gate=0.0, held_out=0.4, batch_size=4, save_every=1),
        ppo=PPO(
            updates=3,
            batch_size=6,
            minibatch_size=6,
            max_new_tokens=8,
            save_every=1,
            value=Value(warmup=1),
        ),
        best_of_k=BestOfK(k=3, prompts=6, lr=1e-3, epochs=2),
        evaluate=Evaluate(prompts=6, bootstrap=20),
    )


def go(settings, out, reporter=None, until=None):
    settings = replace(settings, out=out)
    run_loop(settings, reporter or Quiet(), kind="loop", command="test", until=until)


def report_of(out):
    return json.loads((out / "report.json").read_text())


def logged(out):
    return [json.loads(line) for line in (out / "judge_scores.jsonl").read_text().splitlines()]


def keys_of(rows):
    return [(row["judge"], row["prompt"], row["completion"]) for row in rows]


@pytest.fixture(scope="module")
def ranked(settings, tmp_path_factory):
    """A run whose judge ranks and compares."""
    out = tmp_path_factory.mktemp("ranked") / "run"
    go(settings, out)
    return out


@pytest.fixture(scope="module")
def as_reward(settings, home):
    """Settings of a run whose judge gives the reward, and another one compares."""
    return replace(
        settings,
        reward=replace(settings.reward, source="judge"),
        evaluate=replace(settings.evaluate, judge=f"{home}/length.py:rate"),
    )


@pytest.fixture(scope="module")
def rewarded(as_reward, tmp_path_factory):
    out = tmp_path_factory.mktemp("rewarded") / "run"
    go(as_reward, out)
    return out


# --- a judge that ranks ---------------------------------------------------------------------------


def test_a_judge_goes_through_rank_reward_ppo_and_evaluation(ranked):
    report = report_of(ranked)
    validate_report(report)
    name = report["judge"]
    assert name.startswith("judge.py:score:")
    for policy in report["policies"].values():
        assert set(policy["gold_parts"]) == {"luck", "finished"}
        assert policy["gold_parts"]["luck"] == pytest.approx(policy["gold_score"])
    rankings = [ranking for _, _, ranking in read_snapshot(ranked / "rank" / "snapshot")]
    assert {ranking.annotator for ranking in rankings} == {f"judge:{name}"} and len(rankings) == 8
    page = (ranked / "report.html").read_text()
    assert name in page and "gold judge" not in page.lower() and "luck" in page


def test_each_score_is_given_once(ranked):
    rows = logged(ranked)
    assert len(keys_of(rows)) == len(set(keys_of(rows))) > 50
    provenance = json.loads((ranked / "provenance.json").read_text())
    (entry,) = provenance["judges"].values()
    assert {row["judge"] for row in rows} == {entry["digest"]}


def test_a_random_judge_ranks_as_it_scored(ranked):
    """The order is that of the scores in the log, with no noise beside."""
    scores = {
        tuple(key): row["score"]
        for key, row in zip(keys_of(logged(ranked)), logged(ranked), strict=True)
    }
    by_prompt = {}
    for (_, prompt, _), score in scores.items():
        by_prompt.setdefault(prompt, []).append(score)
    for prompt, completions, ranking in read_snapshot(ranked / "rank" / "snapshot"):
        assert len(ranking.tiers) <= len({one.text for one in completions})
        assert prompt.id in by_prompt
    facts = json.loads((ranked / "ledger.json").read_text())["rank"]["facts"]
    assert facts["noise"] == facts["measured_wrong_share"] == 0


@pytest.mark.parametrize(
    ("kind", "stops"),
    [
        ("ranked", ["rank", "reward", "ppo", "best_of_k", "evaluate"]),
        ("rewarded", ["ppo", "best_of_k", "evaluate"]),
    ],
)
def test_a_random_judge_cannot_break_a_resumed_run(
    kind, stops, settings, as_reward, tmp_path, monkeypatch, request
):
    """With the scores of a calm run in its log, one stopped everywhere ends with its report."""
    calm = request.getfixturevalue(kind)
    chosen = settings if kind == "ranked" else as_reward
    out = tmp_path / "run"
    go(chosen, out, until="sft")
    shutil.copy(calm / "judge_scores.jsonl", out)
    monkeypatch.setenv("NO_JUDGE", "1")
    for stage in stops:
        with pytest.raises(KeyboardInterrupt):
            go(chosen, out, Quiet(stop_in=stage))
    go(chosen, out)
    assert without_times(report_of(out)) == without_times(report_of(calm))
    assert weights(out) == weights(calm)
    assert logged(out) == logged(calm)


def test_a_changed_judge_is_another_run(settings, ranked, home, tmp_path):
    out = shutil.copytree(ranked, tmp_path / "run")
    ledger = json.loads((out / "ledger.json").read_text())
    (out / "ledger.json").write_text(
        json.dumps({name: row for name, row in ledger.items() if name != "evaluate"})
    )
    judge = home / "judge.py"
    try:
        judge.write_text(RANDOM + "# changed\n")
        with pytest.raises(UserError) as refusal:
            go(settings, out)
        line = str(refusal.value)
        assert line.startswith(f"{judge}: was changed since") and "another --out" in line
        assert "--evaluate.judge" in line and "\n" not in line
        # What it suggests works: another judge for the evaluation, the old one put back.
        judge.write_text(RANDOM)
        other = replace(settings.evaluate, judge=f"{home}/length.py:rate")
        go(replace(settings, evaluate=other), out)
        assert report_of(out)["judge"].startswith("length.py:rate:")
    finally:
        judge.write_text(RANDOM)


def test_a_judge_that_fails_is_mended_and_nothing_is_lost(settings, tmp_path):
    """In the middle of ranking: the scores before it are kept, the run goes on once mended."""
    judge, out = tmp_path / "mine.py", tmp_path / "run"
    text = (
        "N = [0]\ndef score(prompt, completion, finished):\n    N[0] += 1\n"
        "    return 0.5 if N[0] % 2 else {}\n"
    )
    judge.write_text(text.format("1 / (10 - N[0])"))
    mine = replace(settings, inputs=replace(settings.inputs, judge=f"{judge}:score"))
    with pytest.raises(UserError, match=r"mine\.py:4: score\(\) raised ZeroDivisionError"):
        go(mine, out, until="rank")
    kept = logged(out)
    assert len(kept) == 9
    with pytest.raises(KeyboardInterrupt):  # a start that stops before it asks the judge again
        go(mine, out, Quiet(stop_in="rank"), until="rank")
    judge.write_text(text.format("len(completion) / 1000"))
    go(mine, out, until="rank")
    assert logged(out)[:9] == kept
    judge.write_text(text.format("0.25"))
    with pytest.raises(UserError, match="was changed since"):
        go(mine, out, until="reward")


def test_a_judge_that_fails_in_the_evaluation_may_be_named_anew(settings, ranked, tmp_path):
    """It has ranked by then, so a mended copy compares the policies."""
    judge, out = tmp_path / "mine.py", tmp_path / "run"
    judge.write_text(RANDOM.replace("NO_JUDGE", "MY_JUDGE"))
    mine = replace(settings, inputs=replace(settings.inputs, judge=f"{judge}:score"))
    go(mine, out, until="best_of_k")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MY_JUDGE", "1")
        with pytest.raises(
            UserError, match=r"mend a copy and give that as --evaluate\.judge"
        ) as stop:
            go(mine, out)
    assert str(stop.value).startswith(f"{judge}:7: score() raised RuntimeError: asked again")
    shutil.copy(judge, tmp_path / "copy.py")
    go(replace(mine, evaluate=replace(mine.evaluate, judge=f"{tmp_path}/copy.py:score")), out)
    assert report_of(out)["judge"].startswith("copy.py:score:")


def test_a_judge_that_kept_answers_has_been_used(settings, tmp_path):
    """With the recipe `answers` it chose the rows of SFT, before anything is ranked."""
    judge = tmp_path / "mine.py"
    judge.write_text(LENGTH)
    mine = replace(
        settings,
        inputs=Inputs(judge=f"{judge}:rate"),
        generate=Generate(recipe="answers"),
        out=tmp_path / "run",
    )
    judges = judging.open_judges(mine, lambda: source_of(mine))
    failure = JudgeFailure(f"mine.py:1: rate() raised; {MEND}")
    failure.digest = judges.ranks.digest
    with RunFolder.open(mine.out, to_yaml(mine), kind="loop", inputs={}) as run:
        judging.note_files(run, judges)
        told = judging.noted_failure(run, mine, {"generate"}, failure)
        assert "mend a copy and give that as --inputs.judge" in str(told)
        assert "--evaluate.judge" in str(
            judging.noted_failure(run, mine, {"generate", "rank"}, failure)
        )
        judge.write_text(LENGTH + "# mended\n")
        changed = judging.open_judges(mine, lambda: source_of(mine))
        judging.refuse_changed(run, changed, mine, set())
        with pytest.raises(UserError, match="was changed since"):
            judging.refuse_changed(run, changed, mine, {"generate"})


def test_a_killed_run_with_a_changed_judge_is_refused(settings, tmp_path):
    judge, out = tmp_path / "mine.py", tmp_path / "run"
    words = tmp_path / "words.txt"
    words.write_text("one")
    judge.write_text("FILES = ['words.txt']\n" + LENGTH)
    mine = replace(settings, inputs=replace(settings.inputs, judge=f"{judge}:rate"))
    go(mine, out, until="sft")
    words.write_text("two")
    with pytest.raises(UserError) as refusal:
        go(mine, out, until="rank")
    assert str(refusal.value).startswith(f"{words}: was changed since the run in {out} began")
    words.write_text("one")
    go(mine, out, until="rank")


# --- a judge that is the reward -------------------------------------------------------------------


def test_a_judge_as_the_reward_leaves_out_what_trains_one(as_reward, rewarded):
    stages = [step.stage for step in order(as_reward)]
    assert stages == ["sft", "ppo", "best_of_k", "evaluate"]
    report = report_of(rewarded)
    validate_report(report)
    assert [row["name"] for row in report["stages"]] == stages
    assert report["reward_models"] == [] and report["judge"].startswith("length.py:rate:")
    page = (rewarded / "report.html").read_text()
    assert "came from the judge judge.py:score:" in page and "no reward model" in page
    plan = PeakMemory(shape_of(as_reward.base), Device("cpu", 4), as_reward)
    assert set(plan.all()) == {"sft", "ppo", "best_of_k", "evaluate", "chat"}


def test_its_scores_are_on_the_scale_of_a_reward_model(rewarded):
    """SFT has mean 0 and deviation 1, so the first update has about that."""
    scale = json.loads((rewarded / "ledger.json").read_text())["judge_scale"]
    candidates = [
        json.loads(line)
        for line in (rewarded / "best_of_k" / "candidates.jsonl").read_text().splitlines()
    ]
    raw = {row["score"] for row in logged(rewarded)}
    assert scale["std"] > 0
    for row in candidates:
        for completion in row["completions"]:
            back = completion["score"] * scale["std"] + scale["mean"]
            assert min(abs(back - one) for one in raw) < 1e-9


def test_who_gave_the_reward_is_not_the_only_judge(as_reward, home, tmp_path):
    only = replace(as_reward, evaluate=replace(as_reward.evaluate, judge=None))
    with pytest.raises(UserError, match=r"gives the reward, .* give --evaluate\.judge another one"):
        go(only, tmp_path / "run")
    same = replace(only.evaluate, judge=only.inputs.judge)
    with pytest.raises(UserError, match=r"--evaluate\.judge .* gives the reward too"):
        go(replace(only, evaluate=same), tmp_path / "run")
    shutil.copy(home / "judge.py", tmp_path / "copy.py")
    copied = replace(only.evaluate, judge=f"{tmp_path}/copy.py:score")
    with pytest.raises(UserError, match=r"--evaluate\.judge .*copy\.py:score gives the reward too"):
        go(replace(only, evaluate=copied), tmp_path / "run")
    (tmp_path / "copy.py").write_text(RANDOM + "\nalso = score\n")
    named = replace(only.inputs, judge=f"{tmp_path}/copy.py:score")
    alias = replace(only.evaluate, judge=f"{tmp_path}/copy.py:also")
    with pytest.raises(UserError, match=r"--evaluate\.judge .*copy\.py:also gives the reward too"):
        go(replace(only, inputs=named, evaluate=alias), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_checks_on_prompts_without_a_constraint_is_told_before_anything_begins(
    settings, as_reward, tmp_path
):
    evaluate = replace(settings.evaluate, judge="checks")
    checks = replace(settings.inputs, judge="checks")
    watch = replace(settings.watch, every=1, scorer="checks")
    for wrong, flag, split in (
        (replace(settings, evaluate=evaluate), "evaluate.judge", "eval: 6 of 6"),
        (replace(settings, inputs=checks), "inputs.judge", "rank: 8 of 8"),
        (replace(as_reward, inputs=checks), "inputs.judge", "ppo: 6 of 6"),
        (replace(settings, watch=watch), "watch.scorer", "dev: "),
    ):
        with pytest.raises(
            UserError, match=rf"^--{flag} checks, split {split}.* prompts, the first"
        ):
            go(wrong, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_checks_that_compare_look_at_ppo_only_where_they_know_all_of_its_prompts():
    known = Instruction("Why does it rain? Use at most 30 words.")
    judges = judging.Judges(evaluates=Judge(parse_judge("checks"), Checks()))
    for rows, watches in (([known], True), ([known, Instruction("Why?")], False)):
        source = RolloutSource(SimpleNamespace(judges=judges), "ppo", 1, rows, None)
        assert (source._watching is not None) == watches
        if not watches:
            assert source.completion_metrics([], []) == {}


NARROW = """def rate(prompt, completion, finished):
    return int(sum(completion.encode())) % 97 / 10_000
"""


def test_a_narrow_scale_is_told_with_its_flag_as_soon_as_it_has_ranked(settings, tmp_path):
    (tmp_path / "narrow.py").write_text(NARROW)
    inputs = replace(settings.inputs, judge=f"{tmp_path}/narrow.py:rate")
    narrow = replace(settings, inputs=inputs)
    with pytest.raises(UserError, match=r"^--rank\.tie-below 0\.03: no two .* give --rank\.tie-b"):
        go(narrow, tmp_path / "run", until="rank")
    # The same folder goes on with another value, and keeps what was sampled.
    sampled = (tmp_path / "run" / "sample" / "completions.jsonl").read_bytes()
    go(replace(narrow, rank=replace(settings.rank, tie_below=0.0)), tmp_path / "run", until="rank")
    assert (tmp_path / "run" / "sample" / "completions.jsonl").read_bytes() == sampled
    assert RunFolder.follow(tmp_path / "run").done("rank")["facts"]["verdicts"] > 10


def test_equal_scores_are_told_as_soon_as_they_have_ranked(settings, tmp_path):
    (tmp_path / "same.py").write_text(NARROW.replace("% 97", "% 1"))
    inputs = replace(settings.inputs, judge=f"{tmp_path}/same.py:rate")
    same = replace(settings, inputs=inputs)
    with pytest.raises(UserError, match=r"^--inputs\.judge same\.py:rate.* the same score .*tie"):
        go(same, tmp_path / "run", until="rank")
    # Where ties are learned from, nothing is amiss.
    soft = replace(same, reward=replace(same.reward, ties="soft"))
    go(soft, tmp_path / "run", until="rank")


@pytest.mark.parametrize("judge", ["human", "llm"])
def test_who_compares_gives_no_reward(settings, judge):
    with pytest.raises(ValueError, match=r"--reward\.source judge: --inputs\.judge .* no scores"):
        replace(
            settings,
            inputs=replace(settings.inputs, judge=judge),
            judge=JudgeEndpoint(url="http://127.0.0.1:9/v1", model="wise")
            if judge == "llm"
            else JudgeEndpoint(),
            reward=replace(settings.reward, source="judge"),
        )


@pytest.mark.parametrize("pending", [["evaluate"], ["best_of_k", "evaluate"]])
def test_who_rewarded_a_policy_stays_the_reward(pending, as_reward, rewarded, home, tmp_path):
    """Once a policy has learned from it, neither the judge nor the source of the reward changes."""
    out = shutil.copytree(rewarded, tmp_path / "run")
    ledger = json.loads((out / "ledger.json").read_text())
    kept = {name: row for name, row in ledger.items() if name not in pending}
    (out / "ledger.json").write_text(json.dumps(kept))
    swapped = replace(
        as_reward,
        inputs=replace(as_reward.inputs, judge=f"{home}/length.py:rate"),
        evaluate=replace(as_reward.evaluate, judge=f"{home}/judge.py:score"),
    )
    with pytest.raises(
        UserError, match=r"inputs\.judge was .*judge\.py:score, now .*length\.py:rate"
    ):
        go(swapped, out)
    ranked = replace(as_reward, reward=replace(as_reward.reward, source="rankings"))
    with pytest.raises(UserError, match=r"reward\.source was judge, now rankings"):
        go(ranked, out)
    assert json.loads((out / "ledger.json").read_text()) == kept
    # Another judge may still compare, and the run then ends.
    shutil.copy(home / "length.py", tmp_path / "other.py")
    other = replace(as_reward.evaluate, judge=f"{tmp_path}/other.py:rate")
    go(replace(as_reward, evaluate=other), out)
    assert report_of(out)["judge"].startswith("other.py:rate:")


def changeable(settings, out, *done):
    """What a run that was begun with these settings lets one change, after some stages."""
    out.mkdir(exist_ok=True)
    (out / "config.yaml").write_text(to_yaml(settings))
    return pipeline._changeable(done, replace(settings, out=out))


def test_the_judge_changes_until_something_was_made_of_its_scores(settings, as_reward, tmp_path):
    both = {"inputs.judge", "reward.source"}
    assert both <= changeable(as_reward, tmp_path, "sft")
    for stage in ("ppo", "best_of_k"):
        assert both.isdisjoint(changeable(as_reward, tmp_path, "sft", stage))
        # What is typed now does not say what the run was begun with.
        typed = replace(settings, out=tmp_path)
        assert both.isdisjoint(pipeline._changeable(("sft", stage), typed))
    assert "inputs.judge" in changeable(settings, tmp_path, "sft", "sample")
    assert both.isdisjoint(changeable(settings, tmp_path, "sft", "sample", "rank", "reward"))
    # With rankings of the user's own the judge compares alone.
    inputs = replace(settings.inputs, rankings=tmp_path / "pairs.jsonl")
    own = replace(settings, inputs=inputs)
    assert "inputs.judge" in changeable(own, tmp_path, "sft", "reward", "ppo")
    assert "inputs.judge" not in changeable(own, tmp_path, "sft", "reward", "ppo", "evaluate")


def test_half_trained_policies_begin_anew_with_another_reward(as_reward, home, tmp_path, caplog):
    """PPO was stopped before it ended: then the judge may change, and so may the source."""
    out = tmp_path / "run"
    go(as_reward, out, until="sft")
    with pytest.raises(KeyboardInterrupt):
        go(as_reward, out, Quiet(stop_in="ppo"))
    checkpoints = out / "checkpoints" / "ppo"
    assert any(checkpoints.iterdir())
    ranked = replace(as_reward, reward=replace(as_reward.reward, source="rankings"))
    caplog.clear()
    go(ranked, out, until="sample")
    assert "ppo begins anew after" in caplog.text
    assert not checkpoints.exists() or not any(checkpoints.iterdir())


def test_equal_scores_teach_nothing(as_reward, tmp_path):
    judge = tmp_path / "same.py"
    judge.write_text("def score(prompt, completion, finished):\n    return 0.25\n")
    same = replace(as_reward, inputs=replace(as_reward.inputs, judge=f"{judge}:score"))
    with pytest.raises(UserError, match=r"gives all \d+ completions of SFT the score 0\.25"):
        go(same, tmp_path / "run", until="ppo")


# --- a reward model as a judge --------------------------------------------------------------------


def test_a_reward_model_of_another_run_judges(settings, as_reward, ranked, tmp_path):
    """It ranks, and it compares what another judge has rewarded."""
    judge = f"reward:{ranked}/reward/adapter"
    mine = replace(
        settings,
        inputs=replace(settings.inputs, judge=judge),
    )
    go(mine, tmp_path / "run", until="rank")
    rows = logged(tmp_path / "run")
    assert len({row["score"] for row in rows}) > 10 and all(0 < row["score"] < 1 for row in rows)
    compared = replace(as_reward, evaluate=replace(as_reward.evaluate, judge=judge))
    go(compared, tmp_path / "other")
    assert report_of(tmp_path / "other")["judge"].startswith("reward:")


def test_an_exported_reward_model_judges_alike(settings, ranked, tmp_path, capsys):
    exported = tmp_path / "exported"
    words = ["export", "--run", ranked, "--to", "reward", "--out", exported]
    assert cli.main([str(word) for word in words]) == 0, capsys.readouterr()
    scores = []
    for number, folder in enumerate((ranked / "reward" / "adapter", exported)):
        mine = replace(settings.inputs, judge=f"reward:{folder}")
        go(replace(settings, inputs=mine), tmp_path / str(number), until="rank")
        rows = logged(tmp_path / str(number))
        scores.append({(row["prompt"], row["completion"]): row["score"] for row in rows})
    assert scores[0] == pytest.approx(scores[1], abs=0.03) and len(scores[0]) > 10


def test_a_reward_model_of_this_run_may_not_compare(settings, ranked, tmp_path):
    out = shutil.copytree(ranked, tmp_path / "run")
    judge = f"reward:{out}/reward/adapter"
    with pytest.raises(UserError, match="is a reward model of this run"):
        go(replace(settings, evaluate=replace(settings.evaluate, judge=judge)), out)


def test_a_reward_model_of_another_template_or_base_is_told_before_the_first_step(
    settings, ranked, tmp_path
):
    """Of the template before the base is loaded, of the base as soon as it is."""
    folder = shutil.copytree(ranked / "reward" / "adapter", tmp_path / "reward")
    compares = replace(settings.evaluate, judge=f"reward:{folder}")
    other = replace(settings, evaluate=compares, template="alpaca")
    named = rf"^--evaluate\.judge reward:{folder}: trained on "
    with pytest.raises(UserError, match=named + ".* with template brief, but this run has"):
        go(other, tmp_path / "run")
    lora = replace(settings, evaluate=compares, lora=Lora(r=8, alpha=8))
    with pytest.raises(UserError, match=rf"^--evaluate\.judge reward:{folder}: r=4, alpha=8, but"):
        go(lora, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    fingerprint = json.loads((folder / "fingerprint.json").read_text())
    (folder / "fingerprint.json").write_text(json.dumps(fingerprint | {"base": "another"}))
    with pytest.raises(UserError, match=named + ".* with base another, but this run has"):
        go(replace(settings, evaluate=compares), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists(), "nothing was trained"


def test_a_folder_without_a_reward_model(settings, ranked, tmp_path):
    for folder, told in (
        (tmp_path, "holds no reward model"),
        (ranked, rf"did you mean reward:{ranked}/reward/adapter\?"),
        (ranked / "sft" / "adapter", "holds no reward model"),
    ):
        mine = replace(settings.inputs, judge=f"reward:{folder}")
        with pytest.raises(UserError, match=told):
            go(replace(settings, inputs=mine), tmp_path / "run")


def test_a_later_round_of_ties_goes_on_with_the_earlier_rankings(
    settings, home, tmp_path, monkeypatch
):
    (home / "tie.py").write_text(
        "import os\n\ndef score(prompt, completion, finished):\n"
        "    return 0.5 if os.environ.get('ALL_TIE') else min(len(completion), 40) / 40\n"
    )
    inputs = replace(settings.inputs, judge=f"{home}/tie.py:score")
    both = replace(settings, rounds=2, policies=("best-of-k",), inputs=inputs)
    go(both, tmp_path, until="sample.2")
    monkeypatch.setenv("ALL_TIE", "1")
    go(both, tmp_path, until="reward.2")
    facts = json.loads((tmp_path / "ledger.json").read_text())["rank.2"]["facts"]
    assert facts["verdicts"] == 0 and facts["mean_gold"] == 0.5
    with pytest.raises(UserError, match="every ranking is a tie"):
        go(both, tmp_path / "first", until="rank")
