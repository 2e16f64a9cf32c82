"""The teacher behind HTTP: a real client against a real server, with what goes wrong on the way."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from alpaca_rlhf.cli.main import main
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.data import TeacherStop, generate, requests
from alpaca_rlhf.data.generation.endpoint import EndpointTeacher
from alpaca_rlhf.settings.endpoint import Endpoint
from tests.endpoints import FAULTS, KEY, KIND, PROBE, faulty, run, serving, settings, writer
from tests.generation import SEEDS, SEGMENT, events_in, files_of

ROOT = Path(__file__).resolve().parent.parent


def rows_of(result):
    return [(row.instruction, row.input, row.output) for row in result.rows]


def events_of(folder):
    """Every request with all its rows; what a try cost in time is not among them."""
    return [(request.number, request.kept, request.dropped) for _, request in requests(folder)]


@pytest.mark.parametrize("recipe", ["alpaca", "self-instruct", "evol"])
@pytest.mark.parametrize("api", ["completions", "chat"])
def test_every_recipe_runs_over_http(tmp_path, recipe, api):
    with serving(writer()) as server:
        target = 20 if recipe == "evol" else 60
        run_settings = settings(server.url, recipe, target, api=api)
        result, teacher = run(tmp_path / "a", run_settings)
        second_result, _ = run(tmp_path / "b", run_settings)
        assert (
            len(result.rows) == target == len({(row.instruction, row.input) for row in result.rows})
        )
        assert rows_of(second_result) == rows_of(result)
        assert files_of(tmp_path / "a").keys() == files_of(tmp_path / "b").keys()
        assert max(server.asked.values()) == 2, "one ask a run"
        bodies = [body for body in server.bodies if PROBE not in json.dumps(body)]
        assert teacher.account.answered >= len(bodies) / 2
        assert len({body["seed"] for body in bodies}) > 20, "a seed of its own for each request"
        if api == "chat":
            assert bodies[0]["messages"][0]["role"] == "system"


def often(seed):
    """A fault at four first tries in ten, at two second ones, never at a third."""
    rng = random.Random(seed)

    def choose(n, body, before):
        return rng.choice(list(FAULTS)) if rng.random() < (0.4, 0.2, 0.0)[min(before, 2)] else None

    return choose


def test_faults_on_the_way_lose_no_row(tmp_path):
    with serving(writer()) as server:
        calm, _ = run(tmp_path / "calm", settings(server.url, target=120))
        slept = []
        with faulty(server.url, often(0)) as (proxy, faults_made):
            run_settings = settings(proxy.url, target=120, timeout=1.5)
            rough, teacher = run(tmp_path / "rough", run_settings, sleep=slept.append)
    assert set(faults_made) == set(FAULTS), "each fault was met"
    assert rows_of(rough) == rows_of(calm)
    assert events_of(tmp_path / "rough") == events_of(tmp_path / "calm")
    met = Counter()
    for name, count in faults_made.items():
        met[KIND.get(name, name)] += count
    assert teacher.account.faults == met, "a correct account of the bad ones"
    assert teacher.account.given_up == set()
    after = [seconds for seconds in slept if seconds >= 7]
    assert sum(seconds >= 11 for seconds in after) >= faults_made["429 date"]
    assert len(after) >= faults_made["429 after"] + faults_made["429 date"]


def test_what_fails_every_time_is_given_up_and_noted(tmp_path):
    bad = {3, 4, 9}
    numbers = {}

    def choose(n, body, before):
        number = numbers.setdefault(body["seed"], len(numbers))
        return "500" if number in bad else None

    with serving(writer()) as server, faulty(server.url, choose) as (proxy, faults_made):
        result, teacher = run(tmp_path, settings(proxy.url, retries=2, concurrency=1))
    assert len(result.rows) == 60
    assert len(teacher.account.given_up) == 3
    assert teacher.account.faults == {"5xx": 9} == {"5xx": faults_made["500"]}
    failed = [request for _, request in requests(tmp_path) if request.reply.error]
    assert [request.number for request in failed] == sorted(teacher.account.given_up)
    assert all("5xx: 500" in request.reply.error and not request.kept for request in failed)


def test_an_endpoint_that_is_gone_stops_the_run_and_it_goes_on(tmp_path):
    with serving(writer()) as server:
        calm, _ = run(tmp_path / "calm", settings(server.url))
        down = [False]

        def choose(n, body, before):
            down[0] |= n == 20
            return "500" if down[0] else None

        with faulty(server.url, choose) as (proxy, _):
            run_settings = settings(proxy.url, retries=1)
            with pytest.raises(TeacherStop, match=r"gave up on 4 requests in a row.*go on"):
                run(tmp_path / "x", run_settings)
        result, _ = run(tmp_path / "x", settings(server.url, retries=1))
    assert rows_of(result) == rows_of(calm)
    assert events_of(tmp_path / "x") == events_of(tmp_path / "calm")


def test_identical_replies_stop_the_run_and_nothing_is_asked_twice(tmp_path):
    stuck = [True]
    write = writer()

    def answer(handler, body):
        if body is None or PROBE in json.dumps(body) or not stuck[0]:
            return write(handler, body)
        usage = {"prompt_tokens": 5, "completion_tokens": 40}
        choice = {
            "text": " Name a bird that can sing well.\n4. Input: <noinput>\n4. Output: A wren.\n###"
        }
        return handler.give(200, {"choices": [{**choice, "finish_reason": "stop"}], "usage": usage})

    with serving(answer) as server:
        run_settings = settings(server.url)
        with pytest.raises(TeacherStop, match="does not sample") as caught:
            run(tmp_path, run_settings)
        assert "every reply is kept" in str(caught.value)
        assert events_in(tmp_path) >= 8
        stuck[0] = False
        result, _ = run(tmp_path, run_settings)
        assert len(result.rows) == 60
        assert max(server.asked.values()) == 1
    rows = [row for _, request in requests(tmp_path) for row in request.kept]
    assert sum(row.output == "A wren." for row in rows) == 1, "and a reply that came again is none"


def test_an_endpoint_that_never_samples_is_refused_at_the_start(tmp_path):
    def answer(handler, body):
        usage = {"prompt_tokens": 5, "completion_tokens": 4}
        choice = {"text": " Birds and trees.", "finish_reason": "stop"}
        handler.give(200, {"choices": [choice], "usage": usage})

    with serving(answer) as server, pytest.raises(UserError, match="switch sampling on"):
        run(tmp_path, settings(server.url))


FEW = (
    "--ppo.updates 2 --ppo.value.warmup 1 --ppo.batch-size 8 --ppo.minibatch-size 8 "
    "--rank.prompts 8 --best-of-k.prompts 8 --evaluate.prompts 8"
).split()
"""Small splits, which are drawn sooner."""


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "fragment"),
    [(401, "wants a key"), (403, "wants a key"), (404, "ends in /v1"), (422, "model, .api")],
)
def test_what_no_other_try_mends_is_one_line_at_once(tmp_path, capsys, status, fragment):
    def answer(handler, body):
        handler.give(status, {"error": {"message": "no such\nthing"}})

    slept = []
    with serving(answer) as server:
        with pytest.raises(UserError) as caught:
            run(tmp_path / "x", settings(server.url), sleep=slept.append)
        assert not slept
        line = str(caught.value)
        assert line.startswith(f"--generate.endpoint.url {server.url}: {status} no such thing; ")
        assert fragment in line and "\n" not in line
        assert len(server.bodies) <= 4, "the spellings of a plain request, and nothing else"
        out = tmp_path / "run"
        flags = ["--generate.endpoint.url", server.url, "--generate.endpoint.model", "m"]
        assert main(["generate", "--out", str(out), *flags, *FEW]) == 2
        captured = capsys.readouterr().err
        assert f"{status} no such thing" in captured and "Traceback" not in captured


def test_a_server_that_is_not_there_is_one_line(tmp_path, capsys):
    with serving(writer()) as server:
        url = server.url
    flags = ["--generate.endpoint.url", url, "--generate.endpoint.model", "m"]
    assert main(["generate", "--out", str(tmp_path / "run"), *flags, *FEW]) == 2
    captured = capsys.readouterr().err.strip()
    assert url in captured and "start the server" in captured and "Traceback" not in captured


@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        (["--generate.endpoint.url", "localhost:8000", "--generate.endpoint.model", "m"], "http"),
        (["--generate.endpoint.url", "http://127.0.0.1:1/v1"], "endpoint.model is missing"),
        (["--generate.endpoint.url", f"http://u:{KEY}@h/v1"], "no user, password or query"),
        (["--generate.endpoint.key-env", KEY], "NAME of an environment variable"),
        (["--generate.endpoint.max-usd", "5"], "needs your prices"),
        (["--generate.endpoint.params", "{top_k: 5}"], "must be a JSON object"),
        (["--generate.endpoint.concurrency", "0"], "concurrency"),
    ],
)
def test_wrong_flags_are_one_line_without_the_key(tmp_path, capsys, flags, fragment):
    assert main(["generate", "--out", str(tmp_path / "run"), *flags]) == 2
    captured = capsys.readouterr()
    assert fragment in captured.err and KEY not in captured.err + captured.out
    assert not (tmp_path / "run").exists()


# --- the key --------------------------------------------------------------------------------------


def test_the_key_is_sent_and_written_nowhere(tmp_path, monkeypatch, capsys):
    write, turns = writer(), []

    def answer(handler, body):
        turns.append(handler.headers["authorization"])
        if body is not None and PROBE not in json.dumps(body) and len(turns) == 9:
            handler.give(500, {"error": f"no luck with {handler.headers['authorization']}"})
        else:
            write(handler, body)

    monkeypatch.setenv("MY_KEY", KEY)
    out = tmp_path / "run"
    seeds = tmp_path / "seeds.jsonl"
    lines = [
        {"instruction": f"Tell me about seed {i}.", "input": "", "output": f"{i}"} for i in range(9)
    ]
    seeds.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ["generate", "--out", str(out), "--inputs.judge", "human"]
    arguments += ["--inputs.seeds", str(seeds)]
    arguments += ["--generate.target", "12", "--generate.endpoint.model", "writer"]
    arguments += ["--generate.endpoint.key-env", "MY_KEY", "--generate.endpoint.concurrency", "2"]
    monkeypatch.setattr("alpaca_rlhf.llm.retry.FIRST_PAUSE", 0.01)
    with serving(answer) as server:
        code = main([*arguments, "--generate.endpoint.url", server.url])
        captured = capsys.readouterr()
        assert code == 0, captured.err
    assert set(turns) == {f"Bearer {KEY}"}
    assert KEY not in captured.out + captured.err
    files = [path for path in out.rglob("*") if path.is_file()]
    assert any(b"no luck with Bearer ***" in path.read_bytes() for path in files)
    for path in files:
        assert KEY.encode() not in path.read_bytes(), path
    assert "endpoint writer at" in captured.out and "tokens" in captured.out


def test_a_key_that_is_not_there_is_one_line(tmp_path):
    run_settings = settings("http://127.0.0.1:1/v1", key_env="NOT_SET")
    with pytest.raises(UserError, match=r"NOT_SET: there is no such variable.*export NOT_SET"):
        EndpointTeacher(run_settings, tmp_path, environ={})


# --- budgets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["tokens", "usd", "minutes"])
def test_a_budget_stops_the_run_before_it_is_overdrawn(tmp_path, limit):
    prices = {"usd_per_1k_in": 0.001, "usd_per_1k_out": 0.002}
    time_now = [0.0]

    def clock():
        time_now[0] += 0.4
        return time_now[0]

    with serving(writer()) as server:
        calm, teacher = run(tmp_path / "calm", settings(server.url, **prices))
        full_account = teacher.account
        half = {
            "tokens": {"max_tokens_total": (full_account.tokens_in + full_account.tokens_out) // 2},
            "usd": {"max_usd": full_account.usd / 2, **prices},
            "minutes": {"max_minutes": 1.0},
        }[limit]
        flag = f"--generate.endpoint.max-{limit}"
        run_settings = settings(server.url, **half)
        with EndpointTeacher(
            run_settings, tmp_path / "x", environ={}, clock=clock, sleep=lambda seconds: None
        ) as teacher:
            with pytest.raises(TeacherStop, match=rf"{flag}.*reached.*reply is kept") as caught:
                generate(
                    teacher,
                    SEEDS,
                    run_settings,
                    seed=1,
                    folder=tmp_path / "x",
                    segment_bytes=SEGMENT,
                )
        spent = teacher.account
        assert 0 < spent.answered < full_account.answered
        if limit == "tokens":
            assert 0.5 < (spent.tokens_in + spent.tokens_out) / half["max_tokens_total"] <= 1
        if limit == "usd":
            assert 0.5 < spent.usd / half["max_usd"] <= 1
            assert f"${spent.usd:.4f}" in str(caught.value)
        result, _ = run(tmp_path / "x", settings(server.url))
    assert rows_of(result) == rows_of(calm)
    assert max(server.asked.values()) <= 2, "one ask in each of the two folders"


def test_a_dry_run_asks_nothing_and_says_what_it_may_cost(tmp_path, capsys):
    with serving(writer()) as server:
        arguments = ["generate", "--out", str(tmp_path / "run"), "--dry-run"]
        arguments += ["--inputs.seeds", "shipped", "--inputs.judge", "human"]
        arguments += ["--generate.target", "100"]
        arguments += ["--generate.max-requests", "1000", "--generate.max-new-tokens", "500"]
        arguments += ["--generate.endpoint.url", server.url, "--generate.endpoint.model", "writer"]
        arguments += ["--generate.endpoint.usd-per-1k-in", "0"]
        arguments += ["--generate.endpoint.usd-per-1k-out", "2"]
        assert main(arguments) == 0
        assert not server.bodies
    captured = capsys.readouterr().out
    assert "--- system" in captured and "Instruction:" in captured
    most = next(line for line in captured.splitlines() if line.startswith("at most"))
    assert "1000 requests" in most and "$1000.00" in most, "1000 x 500 tokens at $2 a thousand"
    assert not (tmp_path / "run").exists()


# --- kills ----------------------------------------------------------------------------------------


def test_killed_runs_ask_nothing_twice_but_what_was_under_way(tmp_path):
    """Each reply that came is on the disk before it is used."""
    kills, rng = 3, random.Random(5)
    with serving(writer(0.01)) as server:
        calm, _ = run(tmp_path / "calm", settings(server.url, target=200))
        before = server.asked
        arguments = [
            sys.executable,
            "-m",
            "tests.endpoints",
            str(tmp_path / "x"),
            server.url,
            "200",
        ]
        for kill in range(kills + 1):
            process = subprocess.Popen(
                arguments, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
            goal = before.total() + (kill + 1) * (25 + rng.randrange(10))
            while kill < kills and server.asked.total() < goal:
                assert process.poll() is None, "it ended before it could be killed"
                time.sleep(0.005)
            if kill < kills:
                process.send_signal(signal.SIGKILL)
            assert process.wait() == (-signal.SIGKILL if kill < kills else 0)
        times_asked = server.asked - before
    assert times_asked.keys() == before.keys()
    twice = sum(count - 1 for count in times_asked.values())
    assert twice <= kills * 4, "at most what was under way, of a concurrency of 4"
    result, _ = run(tmp_path / "x", settings("http://127.0.0.1:1/v1", target=200))
    assert rows_of(result) == rows_of(calm)
    assert events_of(tmp_path / "x") == events_of(tmp_path / "calm")


def test_settings_hold_the_name_of_the_key_and_not_the_key():
    with pytest.raises(ValueError, match="NAME of an environment variable"):
        replace(Endpoint(), key_env="sk-abc")
