"""Answers to rank from a model behind HTTP."""

from __future__ import annotations

import pytest

from alpaca_rlhf.cli import main as cli
from alpaca_rlhf.preferences.assignment import Rules
from alpaca_rlhf.preferences.store import Store
from tests.endpoints import FAULTS, serving
from tests.model_app import make_run


@pytest.fixture
def run(tmp_path, tiny_folder):
    return make_run(tmp_path / "run", tiny_folder)


def writer(faults=()):
    """Writes a text for each prompt and seed; a third of the seeds give the same one."""
    left = list(faults)

    def answer(handler, body):
        with handler.server.lock:
            fault = left.pop(0) if left else None
        if fault is not None:
            FAULTS[fault](handler)
            return
        text = f" {body['messages'][-1]['content'][:5]} {body['seed'] % 3 and body['seed']} "
        usage = {"prompt_tokens": 9, "completion_tokens": 4}
        whole = "stop" if body["seed"] % 2 else "length"
        choice = {"message": {"content": text}, "finish_reason": whole}
        handler.give(200, {"choices": [choice], "usage": usage})

    return serving(answer)


def typed(capsys, *words):
    code = cli.main([str(one) for one in words])
    said = capsys.readouterr()
    return code, said.out + said.err


def test_it_fills_the_queue_and_asks_nothing_twice(run, capsys):
    with writer(faults=["429", "500", "json"]) as server:
        words = ["sample", "--run", run, "--k", 3, "--sampler.url", server.url]
        words += ["--sampler.model", "served", "--sampler.concurrency", 2]
        code, said = typed(capsys, *words, "--n", 2)
        assert code == 0 and "2 sets added" in said and "3 answers of served" in said, said
        assert "faults: 1 x 429, 1 x 5xx, 1 x json; 0 requests given up" in said
        assert len(server.asked) == 6
        code, said = typed(capsys, *words)
        assert code == 0 and "3 sets added, 2 were there already" in said
        assert len(server.asked) == 15, "five prompts, three answers each"
        bodies = {(one["messages"][-1]["content"], one["seed"]) for one in server.bodies}
        assert len(bodies) == 15 and {one["temperature"] for one in server.bodies} == {1.0}
    with Store(run / "preferences.db", rules=Rules(0, 0, 0, 0), seed=0) as store:
        ann = store.add_annotator("Ann", "long enough")
        seen = 0
        while (task := store.claim(ann)) is not None:
            store.skip(ann, task.id)
            seen += 1
            texts = [one.text for one in task.completions]
            assert len(set(texts)) == len(texts) >= 2 and all(one == one.strip() for one in texts)
            assert all(one.startswith(task.prompt.instruction[:5].strip()) for one in texts)
        assert seen == 5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--policy", "sft"], "--policy: the model at --sampler.url answers already"),
        (["--sampler.retries", "0"], "--sampler.url http://127.0.0.1:9/v1"),
        (["--sampler.max-usd", "1"], "--sampler.max-usd needs your prices"),
    ],
)
def test_what_is_refused(run, capsys, words, said):
    given = ["--sampler.url", "http://127.0.0.1:9/v1", "--sampler.model", "m"]
    code, told = typed(capsys, "sample", "--run", run, *given, *words)
    assert code == 2 and said in told and "Traceback" not in told
