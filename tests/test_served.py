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
    faults_left = list(faults)

    def answer(handler, body):
        with handler.server.lock:
            fault = faults_left.pop(0) if faults_left else None
        if fault is not None:
            FAULTS[fault](handler)
            return
        text = f" {body['messages'][-1]['content'][:5]} {body['seed'] % 3 and body['seed']} "
        usage = {"prompt_tokens": 9, "completion_tokens": 4}
        finish_reason = "stop" if body["seed"] % 2 else "length"
        choice = {"message": {"content": text}, "finish_reason": finish_reason}
        handler.give(200, {"choices": [choice], "usage": usage})

    return serving(answer)


def typed(capsys, *arguments):
    code = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_it_fills_the_queue_and_asks_nothing_twice(run, capsys):
    with writer(faults=["429", "500", "json"]) as server:
        arguments = ["sample", "--run", run, "--k", 3, "--sampler.url", server.url]
        arguments += ["--sampler.model", "served", "--sampler.concurrency", 2]
        code, output = typed(capsys, *arguments, "--n", 2)
        assert code == 0 and "2 sets added" in output and "3 answers of served" in output, output
        assert "faults: 1 x 429, 1 x 5xx, 1 x json; 0 requests given up" in output
        assert len(server.asked) == 6
        code, output = typed(capsys, *arguments)
        assert code == 0 and "3 sets added, 2 were there already" in output
        assert len(server.asked) == 15, "five prompts, three answers each"
        bodies = {(body["messages"][-1]["content"], body["seed"]) for body in server.bodies}
        assert len(bodies) == 15 and {body["temperature"] for body in server.bodies} == {1.0}
    with Store(run / "preferences.db", rules=Rules(0, 0, 0, 0), seed=0) as store:
        ann = store.add_annotator("Ann", "long enough")
        n_tasks = 0
        while (task := store.claim(ann)) is not None:
            store.skip(ann, task.id)
            n_tasks += 1
            texts = [completion.text for completion in task.completions]
            assert len(set(texts)) == len(texts) >= 2 and all(
                text == text.strip() for text in texts
            )
            assert all(text.startswith(task.prompt.instruction[:5].strip()) for text in texts)
        assert n_tasks == 5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--policy", "sft"], "--policy: the model at --sampler.url answers already"),
        ([], "--sampler.url http://127.0.0.1:9/v1: cannot be reached ("),
        (["--sampler.max-usd", "1"], "--sampler.max-usd needs your prices"),
    ],
)
def test_what_is_refused(run, capsys, words, said):
    flags = ["--sampler.url", "http://127.0.0.1:9/v1", "--sampler.model", "m"]
    code, output = typed(capsys, "sample", "--run", run, *flags, *words)
    assert code == 2 and said in output and "Traceback" not in output
