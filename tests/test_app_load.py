"""50 annotators at once over HTTP against a server process that is killed: nothing is lost.

Each signs in, asks for tasks and submits in the words that the page of the Rank tab uses. What is
not answered is sent again, as the page does.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import httpx

from alpaca_rlhf.preferences.assignment import Rules
from alpaca_rlhf.preferences.schema import Assignment, CandidateSet, Ranking
from alpaca_rlhf.preferences.store import Store
from tests.browser import free_port
from tests.databases import candidates
from tests.test_preferences_store import alone, places_add_up, rows

ANNOTATORS = 50
PASSWORD = "long enough"
PLAIN = Rules(gold_rate=0, repeat_rate=0)
WITHIN_S = 900


class Server:
    """The server as a process of its own, on one port for good."""

    def __init__(self, where: str, folder: Path) -> None:
        self.port = free_port()
        self.home = f"http://127.0.0.1:{self.port}"
        root = Path(__file__).parent.parent
        self._words = [sys.executable, "-m", "tests.apps", where, str(self.port)]
        self._env = {**os.environ, "APP_FOLDER": str(folder), "PYTHONPATH": str(root)}
        self._root = root
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; returns when it answers."""
        self.process = subprocess.Popen(self._words, cwd=self._root, env=self._env)
        for _ in range(1200):
            assert self.process.poll() is None, "the server did not start"
            try:
                httpx.get(f"{self.home}/login", timeout=5)
                return
            except httpx.TransportError:
                time.sleep(0.1)
        raise AssertionError("the server does not answer")

    def kill(self) -> None:
        """SIGKILL, as a power cut for the process."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Load:
    """50 people at work, and what they were told.

    Args:
        server: What they work on; it may be killed and started again meanwhile.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._guard = threading.Lock()
        self._until = time.monotonic() + WITHIN_S
        self.acknowledged: dict[tuple[int, int], tuple[str, bool]] = {}
        self.retried = 0
        self.already = 0
        self.signed_in = 0
        self.errors: list[str] = []
        self.times: list[float] = []

    def run(self) -> list[threading.Thread]:
        """Begin; the threads end when there is nothing left to rank."""
        threads = [threading.Thread(target=self._work, args=(i,)) for i in range(ANNOTATORS)]
        for thread in threads:
            thread.start()
        return threads

    def _work(self, number: int) -> None:
        try:
            self._person(number)
        except Exception as error:  # told by the test, with all the others
            self.errors.append(f"annotator {number}: {error!r}")

    def _person(self, number: int) -> None:
        rng = random.Random(number)
        headers = {"origin": self._server.home}
        with httpx.Client(base_url=self._server.home, headers=headers, timeout=60) as client:
            form = {"name": f"person {number}", "password": PASSWORD}
            self._sent(lambda: client.post("/login", data=form))
            with self._guard:
                self.signed_in += 1
            while True:
                reply, _ = self._ask(client, {"do": "next"})
                task = reply["task"]
                if task is None:
                    return
                order = [[answer["id"]] for answer in task["answers"]]
                rng.shuffle(order)
                message = {"do": "submit", "task": task["id"], "revision": task["revision"]}
                message |= {"tiers": order, "method": "mouse"}
                began = time.perf_counter()
                reply, tries = self._ask(client, message)
                with self._guard:
                    self.times.append(time.perf_counter() - began)
                    self.retried += tries > 1
                    self.already += reply["already"]
                    key = task["id"], task["revision"]
                    assert key not in self.acknowledged, f"{key} was given out twice"
                    assert tries > 1 or not reply["already"], "saved before it was sent"
                    self.acknowledged[key] = order[0][0], reply["already"]
                if rng.random() < 0.2:  # a page that never got the answer, though it came
                    repeated, _ = self._ask(client, message)
                    assert repeated["already"], "a submit that is sent again says that it is saved"

    def _ask(self, client: httpx.Client, message: dict) -> tuple[dict, int]:
        body = {"data": [json.dumps(message)]}
        response, tries = self._sent(lambda: client.post("/gradio_api/run/rank", json=body))
        reply = json.loads(response.json()["data"][0])
        assert "problem" not in reply, reply
        return reply, tries

    def _sent(self, send) -> tuple[httpx.Response, int]:
        """Send until there is an answer; the session outlives the server."""
        tries = 0
        while time.monotonic() < self._until:
            tries += 1
            try:
                response = send()
            except httpx.TransportError:
                time.sleep(0.1)
                continue
            assert response.status_code in (200, 303), (response.status_code, response.text[:200])
            return response, tries
        raise AssertionError("no answer in time")


def prepare(where: str, sets: int) -> int:
    """Fill the queue and add the people; returns how many rankings there will be."""
    with Store(where, rules=PLAIN, seed=0) as store:
        store.add_sets(candidates(sets), origin="test")
        store.add_annotator("boss", PASSWORD, role="admin")
        for i in range(ANNOTATORS):
            store.add_annotator(f"person {i}", PASSWORD)
        return sum(candidate_set.target for candidate_set in rows(store, CandidateSet))


def check(where: str, load: Load, places: int) -> None:
    """Nothing is lost, doubled or given to too many."""
    with Store(where, rules=PLAIN) as store:
        alone(store)
        places_add_up(store)
        rankings = rows(store, Ranking)
        best = {(row.assignment_id, row.revision): row.tiers[0][0] for row in rankings}
        assert len(best) == len(rankings) == len(load.acknowledged), "one for each that was told"
        assert best == {key: first for key, (first, _) in load.acknowledged.items()}
        pairs = Counter((row.candidate_set_id, row.annotator_id) for row in rows(store, Assignment))
        assert set(pairs.values()) == {1}, "nobody gets a set twice"
        assert len(rankings) == places, "every place was filled"
    assert load.signed_in == ANNOTATORS
    assert len(load.errors) == 0


def under_load(where: str, folder: Path, *, sets: int, kills: int) -> tuple[Load, int]:
    """Let 50 people rank everything, and kill the server now and then."""
    places = prepare(where, sets)
    server = Server(where, folder)
    server.start()
    load = Load(server)
    try:
        threads = load.run()
        for at in range(kills):
            # Between two kills a share of the work is done, so that each falls into the load.
            share = places * (at + 1) // (kills + 1)
            while len(load.acknowledged) < share and any(thread.is_alive() for thread in threads):
                time.sleep(0.01)
            server.kill()
            server.start()
        for thread in threads:
            thread.join()
    finally:
        server.kill()
    assert not load.errors, load.errors[:3]
    return load, places


def test_fifty_annotators_over_http_and_a_killed_server(where, tmp_path):
    load, places = under_load(where, tmp_path, sets=60, kills=1)
    check(where, load, places)
    assert load.retried > 0, "the kill fell into the load"


def test_the_check_sees_what_is_lost(where, tmp_path):
    """One acknowledged ranking that is not there, or one too many, and it fails."""
    import pytest

    load = Load(Server(where, tmp_path))
    places = prepare(where, 3)
    load.signed_in = ANNOTATORS
    load.acknowledged[(1, 0)] = "x", False
    with pytest.raises(AssertionError, match="one for each"):
        check(where, load, places)
