"""The best-of-K stage in a run folder: what it keeps, and what it never does twice."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.base import load_base
from alpaca_rlhf.models.batches import Example
from alpaca_rlhf.models.heads import HEAD, ScalarHead
from alpaca_rlhf.models.scoring import score
from alpaca_rlhf.pipeline import run_loop
from alpaca_rlhf.settings import (
    PPO,
    SFT,
    BestOfK,
    Evaluate,
    Inputs,
    Loop,
    Lora,
    Reward,
    Sampling,
    Value,
)
from alpaca_rlhf.stages import context, policies
from alpaca_rlhf.training import candidates
from tests.whole_run import Quiet

K, PROMPTS = 3, 6


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def ended():
    """Many tokens end a completion, so that a random base finishes some and others not."""

    def load(name, **options):
        base = load_base(name, **options)
        object.__setattr__(base, "stop_ids", frozenset({2, *range(100, 386, 6)}))
        return base

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "load_base", load)
        yield load


@pytest.fixture(scope="module")
def settings(tmp_path_factory, tiny_folder) -> Loop:
    """A run on files of its own."""
    folder = tmp_path_factory.mktemp("files")
    openers = "how why when where who which whose what whom whether".split()
    questions = [f"{w} {i} {i * 7} {w * 3}" for i in range(8) for w in openers]
    pairs = [
        {"instruction": f"Name a {c} thing.", "chosen": f"{c} sky", "rejected": f"a {c * 2}"}
        for c in ("red", "green", "blue", "black", "white", "grey", "pink", "brown")
    ]
    rows = [{"instruction": f"Count to {n}.", "output": "one two"} for n in range(6)]
    return Loop(
        base=str(tiny_folder),
        template="brief",
        lora=Lora(r=4, alpha=8),
        inputs=Inputs(
            judge="human",
            data=written(folder / "data.jsonl", rows),
            prompts=written(
                folder / "prompts.jsonl", [{"instruction": question} for question in questions]
            ),
            rankings=written(folder / "pairs.jsonl", pairs),
        ),
        sampling=Sampling(max_new_tokens=8, batch_size=16),
        sft=SFT(lr=1e-3, epochs=1, batch_size=4, save_every=1),
        reward=Reward(lr=1e-3, gate=0.0, held_out=0.4),
        ppo=PPO(
            updates=2,
            batch_size=6,
            minibatch_size=6,
            max_new_tokens=8,
            value=Value(warmup=1),
        ),
        best_of_k=BestOfK(k=K, prompts=PROMPTS, lr=1e-3, epochs=3),
        evaluate=Evaluate(prompts=6, bootstrap=20),
    )


def go(settings, out, reporter=None, until="best_of_k"):
    settings_of_run = replace(settings, out=out)
    run_loop(settings_of_run, reporter or Quiet(), kind="loop", command="test", until=until)


@pytest.fixture(scope="module")
def before(settings, ended, tmp_path_factory):
    """A run that has everything but best-of-K."""
    out = tmp_path_factory.mktemp("before") / "run"
    go(settings, out, until="ppo")
    return out


@pytest.fixture(scope="module")
def calm(settings, before, tmp_path_factory):
    """The same, with best-of-K, undisturbed."""
    out = tmp_path_factory.mktemp("calm") / "run"
    shutil.copytree(before, out)
    go(settings, out)
    return out


@pytest.fixture
def out(before, tmp_path):
    """A copy of the run before best-of-K."""
    return shutil.copytree(before, tmp_path / "run")


@pytest.fixture
def stopped(settings, out):
    """The same, stopped in the fine-tuning."""
    with pytest.raises(KeyboardInterrupt):
        go(settings, out, Quiet(stop_in="best_of_k"))
    return out


@pytest.fixture
def calls(monkeypatch):
    """Count how often completions are sampled and scored from now on."""
    names = []
    for name in ("sample", "score"):
        real = getattr(candidates, name)

        def spy(*arguments, name=name, real=real, **options):
            names.append(name)
            return real(*arguments, **options)

        monkeypatch.setattr(candidates, name, spy)
    return names


def rows_of(out, stage="best_of_k"):
    path = out / stage / "candidates.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def facts_of(out, stage="best_of_k"):
    return json.loads((out / "ledger.json").read_text())[stage]["facts"]


def weights(out, stage="best_of_k"):
    return (out / stage / "adapter" / "adapter_model.safetensors").read_bytes()


def test_candidates_are_kept_with_their_scores(calm, settings, ended):
    """As a fresh process reads and scores them."""
    rows = rows_of(calm)
    assert len({row["prompt_id"] for row in rows}) == PROMPTS
    assert {len(row["completions"]) for row in rows} == {K}
    adapters = Adapters(ended(settings.base), settings.lora, template="brief")
    adapters.load("reward", calm / "reward" / "adapter")
    head = ScalarHead.load(calm / "reward" / "adapter", 128)
    scored = [(row["prompt"], completion) for row in rows for completion in row["completions"]]
    examples = [Example(tuple(prompt), tuple(completion["ids"])) for prompt, completion in scored]
    scores = score(adapters, "reward", head, examples, batch_size=4)
    assert torch.allclose(
        scores, torch.tensor([completion["score"] for _, completion in scored]), atol=1e-2
    )
    stops = ended(settings.base).stop_ids
    assert [completion["finished"] for _, completion in scored] == [
        completion["ids"][-1] in stops for _, completion in scored
    ]
    assert any(completion["text"] for _, completion in scored)


def test_sampling_tells_where_it_stands(settings, out, calls):
    """Stopped half-way there nothing is kept: the next sitting draws all of them again."""
    progress = []

    class Counting(Quiet):
        def step(self, stage, done, total, metrics):
            if stage == "candidates":
                progress.append((done, total))
            super().step(stage, done, total, metrics)

    with pytest.raises(KeyboardInterrupt):
        go(settings, out, Counting(stop_in="candidates"))
    assert K * PROMPTS / 2 < progress[-1][0] < K * PROMPTS == progress[-1][1]
    progress.clear()
    go(settings, out, Counting())
    counts = [done for done, _ in progress]
    assert counts[-1] == K * PROMPTS and counts == sorted(set(counts)) and len(counts) > 1
    assert calls == ["sample", "sample", "score"]


def test_its_facts_are_those_of_the_file(calm):
    facts, rows = facts_of(calm), rows_of(calm)
    scores = [[completion["score"] for completion in row["completions"]] for row in rows]
    finished = [
        [completion["score"] for completion in row["completions"] if completion["finished"]]
        for row in rows
    ]
    best = [max(scores_of_prompt) for scores_of_prompt in finished if scores_of_prompt]
    assert facts["candidates"] == K * PROMPTS > facts["finished"] == sum(map(len, finished)) > 0
    assert facts["winners"] == len(best)
    assert facts["mean_best_score"] == pytest.approx(sum(best) / len(best))
    assert facts["mean_score"] == pytest.approx(sum(map(sum, scores)) / (K * PROMPTS))
    expected = facts["expected_best_score"]
    assert len(expected) == K and expected == sorted(expected)
    assert expected[0] == pytest.approx(facts["mean_score"])
    assert expected[-1] == pytest.approx(sum(map(max, scores)) / PROMPTS)
    assert facts["sampler_kl_bound_nats"] == pytest.approx(0.4319, abs=1e-4)  # log 3 - 2/3


def test_stopped_in_the_fine_tuning_nothing_is_sampled_or_scored_again(
    stopped, settings, calm, monkeypatch
):
    def never(*_, **__):
        raise AssertionError("the candidates are there already")

    saved = (stopped / "best_of_k" / "candidates.jsonl").read_bytes()
    assert not (stopped / "best_of_k" / "adapter").exists()
    monkeypatch.setattr(candidates, "sample", never)
    monkeypatch.setattr(candidates, "score", never)
    go(settings, stopped)
    assert (stopped / "best_of_k" / "candidates.jsonl").read_bytes() == saved
    assert weights(stopped) == weights(calm)
    assert facts_of(stopped) == facts_of(calm)


def test_another_learning_rate_needs_no_new_candidates(stopped, settings, calm, calls):
    go(replace(settings, best_of_k=replace(settings.best_of_k, lr=5e-4)), stopped)
    assert calls == []
    assert weights(stopped) != weights(calm)


def test_candidates_of_another_k_are_not_used(stopped, settings, calls):
    go(replace(settings, best_of_k=replace(settings.best_of_k, k=2)), stopped)
    assert calls == ["sample", "score"]
    assert {len(row["completions"]) for row in rows_of(stopped)} == {2}
    assert facts_of(stopped)["candidates"] == 2 * PROMPTS


def test_a_file_that_was_changed_is_not_used(stopped, settings, calm, calls):
    path = stopped / "best_of_k" / "candidates.jsonl"
    path.write_text(path.read_text().replace('"finished": false', '"finished": true'))
    go(settings, stopped)
    assert calls == ["sample", "score"]
    assert rows_of(stopped) == rows_of(calm)
    assert weights(stopped) == weights(calm)


def test_candidates_of_another_reward_model_are_not_used(
    stopped, settings, calm, before, tmp_path, calls
):
    """Nor what was learned from them."""
    straight = shutil.copytree(before, tmp_path / "straight")
    for folder in (straight, stopped):
        turn_round(folder / "reward" / "adapter")
    go(settings, straight)
    del calls[:]
    assert list(stopped.glob("checkpoints/best_of_k/step-*"))
    go(settings, stopped)
    assert calls == ["sample", "score"]
    assert_scores_negated(rows_of(stopped), rows_of(calm))
    assert weights(stopped) == weights(straight) != weights(calm)
    logged = (stopped / "metrics.jsonl").read_text().splitlines()
    steps = [row["step"] for row in map(json.loads, logged) if row["stage"] == "best_of_k"]
    assert steps == list(range(1, len(steps) + 1))


def assert_scores_negated(rows, old_rows):
    for row, old_row in zip(rows, old_rows, strict=True):
        for new, old in zip(row["completions"], old_row["completions"], strict=True):
            assert new["ids"] == old["ids"]
            assert new["score"] == pytest.approx(-old["score"], abs=1e-5)


def turn_round(folder):
    """Make a saved reward model prefer what it liked least."""
    head = ScalarHead.load(folder, 128)
    head.gain.neg_()
    head.bias.neg_()
    (folder / HEAD).unlink()
    head.save(folder)


def test_a_threshold_that_leaves_nothing_can_be_lowered(out, settings, calls):
    high = replace(settings, best_of_k=replace(settings.best_of_k, threshold=1e6))
    with pytest.raises(UserError, match=r"--best-of-k\.threshold 1e\+06, the highest scores ") as e:
        go(high, out)
    finished = [
        completion
        for row in rows_of(out)
        for completion in row["completions"]
        if completion["finished"]
    ]
    scores = sorted((completion["score"] for completion in finished), reverse=True)
    assert f"the highest scores {scores[0]:.4g};" in str(e.value)
    assert calls == ["sample", "score"]
    lower = (scores[2] + scores[3]) / 2
    go(replace(settings, best_of_k=replace(settings.best_of_k, threshold=lower)), out)
    assert calls == ["sample", "score"], "not again"
    assert facts_of(out)["winners"] == 3
    assert facts_of(out)["mean_best_score"] == pytest.approx(sum(scores[:3]) / 3)


def test_where_nothing_ends_the_run_says_so(out, settings, monkeypatch):
    def endless(name, **options):
        base = load_base(name, **options)
        object.__setattr__(base, "stop_ids", frozenset({1}))
        return base

    monkeypatch.setattr(context, "load_base", endless)
    with pytest.raises(UserError, match=r"none of the 18 completions ended"):
        go(settings, out)


def test_the_pool_of_all_rounds_is_scored_by_the_newest_reward_model(
    settings, ended, tmp_path, monkeypatch, calls
):
    """Stopped before the second best-of-K, the second reward model is turned round by hand."""
    out = tmp_path / "run"
    both = replace(settings, rounds=2, best_of_k=replace(settings.best_of_k, pool=True))

    class Turning(Quiet):
        def start(self, stage, what):
            super().start(stage, what)
            if stage == "best_of_k.2":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(both, out, Turning(), until=None)
    assert facts_of(out)["candidates"] == K * PROMPTS, "the first round has no other"
    first = rows_of(out)
    turn_round(out / "reward.2" / "adapter")
    path = out / "best_of_k" / "candidates.jsonl"
    saved = path.read_text()
    path.write_text(saved.replace('"finished": false', '"finished": true'))
    with pytest.raises(UserError, match=r"best_of_k/candidates\.jsonl: is not what round 1 wrote"):
        go(both, out, until=None)
    path.write_text(saved)

    trained = []
    real = policies.train_sft

    def spy(adapters, role, examples, *arguments, **options):
        trained.extend(examples)
        return real(adapters, role, examples, *arguments, **options)

    monkeypatch.setattr(policies, "train_sft", spy)
    del calls[:]
    with pytest.raises(KeyboardInterrupt):
        go(both, out, Quiet(stop_in="best_of_k.2"), until=None)
    assert calls == ["score", "sample", "score"]
    rows = rows_of(out, "best_of_k.2")
    assert [row["round"] for row in rows] == [1] * PROMPTS + [2] * PROMPTS
    assert len({row["prompt_id"] for row in rows}) == 2 * PROMPTS
    assert [row["prompt_id"] for row in rows[:PROMPTS]] == [row["prompt_id"] for row in first]
    assert_scores_negated(rows[:PROMPTS], first)
    best = {}
    for row in rows:
        finished = [completion for completion in row["completions"] if completion["finished"]]
        if finished:
            top = max(finished, key=lambda completion: completion["score"])
            best[tuple(row["prompt"])] = tuple(top["ids"])
    assert {example.prompt: example.completion for example in trained} == best

    del calls[:]
    go(both, out, until=None)
    assert calls == [], "the pool is read back too"
    facts = facts_of(out, "best_of_k.2")
    assert facts["candidates"] == 2 * K * PROMPTS
    report = json.loads((out / "report.json").read_text())
    assert [entry["round"] for entry in report["best_of_k"]] == [1, 2]
    measured = report["policies"]["best_of_k.2"]
    assert measured["kl_from_sft_k3_nats"] > 0 and "kl_from_sft_nats" in measured
    assert report["policies"]["sft"]["kl_from_sft_k3_nats"] == 0
    page = (out / "report.html").read_text()
    assert "Expected best of n scores" in page
