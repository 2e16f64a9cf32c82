"""50 annotators at once over HTTP against a server process that is killed: nothing is lost.

Each signs in, asks for tasks and submits in the words that the page of the Rank tab uses, some with
a better answer of their own, while an admin leaves people and sets out and writes guidelines. What
is not answered is sent again, as the page does.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import update

from alpaca_rlhf.preferences.assignment import BetterAnswer, Rules, Verdict
from alpaca_rlhf.preferences.schema import (
    Annotator,
    Assignment,
    Audit,
    CandidateSet,
    Demonstration,
    GuidelineRow,
    Ranking,
)
from alpaca_rlhf.preferences.snapshot import DEMONSTRATIONS
from alpaca_rlhf.preferences.store import Store
from tests.attacks import called
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


@dataclass(frozen=True)
class Acknowledged:
    """One verdict that the server said it had kept."""

    best: str
    """Id of the completion in the first place."""
    better: str
    """A better answer by the person; empty without one."""
    guideline: int | None
    """Version of the guidelines that the person had been told of."""
    already: bool
    """True if it had been kept before, though no answer came."""


class Load:
    """50 people at work beside an admin, and what they were told.

    One in four of their verdicts has a better answer of their own, one in ten is taken back and
    given anew. The admin leaves people and sets out, takes some of them in again, and writes
    guidelines.

    Args:
        server: What they work on; it may be killed and started again meanwhile.
        decisions: Decisions of the admin.
        places: Rankings that the sets want at first; the decisions are spread over them.
    """

    def __init__(self, server: Server, *, decisions: int = 0, places: int = 0) -> None:
        self._server = server
        self._decisions = decisions
        self._places = places
        self._guard = threading.Lock()
        self._until = time.monotonic() + WITHIN_S
        self._decided = threading.Event()
        self._ranked_in_round = 0
        self._over = False
        self._rounds = threading.Barrier(ANNOTATORS, action=self._end_round)
        self.acknowledged: dict[tuple[int, int], Acknowledged] = {}
        self.taken_back: set[tuple[int, int]] = set()
        self.people_out: set[int] = set()
        self.sets_out: set[int] = set()
        self.left_out_or_in = 0
        self.guidelines: list[str] = []
        self.retried = 0
        self.already = 0
        self.signed_in = 0
        self.errors: list[str] = []
        self.times: list[float] = []

    def run(self) -> list[threading.Thread]:
        """Begin; the threads end when all is decided and nothing is left to rank."""
        work = [partial(self._person, number) for number in range(ANNOTATORS)]
        threads = [threading.Thread(target=self._noted, args=(each,)) for each in work]
        threads.append(threading.Thread(target=self._noted, args=(self._admin,)))
        for thread in threads:
            thread.start()
        return threads

    def _noted(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # told by the test, with all the others
            self.errors.append(f"{work}: {error!r}")
            self._decided.set()
            self._rounds.abort()

    # --- the people -------------------------------------------------------------------------------

    def _person(self, number: int) -> None:
        rng = random.Random(number)
        with self._client(f"person {number}") as client:
            with self._guard:
                self.signed_in += 1
            while not self._over:
                self._rank_all(client, rng)
                # Whoever is left out gives a place back with the task that is still open: others
                # look again, until nobody has found anything.
                self._rounds.wait(WITHIN_S)

    def _rank_all(self, client: httpx.Client, rng: random.Random) -> None:
        """Rank until the admin has decided everything and there is no task."""
        while True:
            decided = self._decided.is_set()
            reply, _ = self._ask(client, {"do": "next"})
            if reply["task"] is None and decided:
                return
            if reply["task"] is None:
                time.sleep(2)  # fifty who ask all the time would leave the admin no turn
                continue
            sent = self._rank(client, reply["task"], reply["guideline"], rng)
            if rng.random() < 0.1:
                self._rank_again(client, sent, rng)
            with self._guard:
                self._ranked_in_round += 1

    def _end_round(self) -> None:
        self._over = self._ranked_in_round == 0
        self._ranked_in_round = 0

    def _rank(
        self, client: httpx.Client, task: dict, guideline: int, rng: random.Random
    ) -> dict[str, Any]:
        """Submit an order; returns the message."""
        order = [[answer["id"]] for answer in task["answers"]]
        rng.shuffle(order)
        message = {"do": "submit", "task": task["id"], "revision": task["revision"]}
        message |= {"tiers": order, "method": "mouse", "guideline": guideline}
        if rng.random() < 0.25:
            message["better"] = f"better than task {task['id']}, revision {task['revision']}"
            message["better_from"] = order[0][0] if rng.random() < 0.5 else ""
        began = time.perf_counter()
        reply, tries = self._ask(client, message)
        with self._guard:
            self.times.append(time.perf_counter() - began)
            self.retried += tries > 1
            self.already += reply["already"]
            key = task["id"], task["revision"]
            assert key not in self.acknowledged, f"{key} was given out twice"
            assert tries > 1 or not reply["already"], "saved before it was sent"
            self.acknowledged[key] = Acknowledged(
                order[0][0], message.get("better", ""), guideline or None, reply["already"]
            )
        if rng.random() < 0.2:  # a page that never got the answer, though it came
            repeated, _ = self._ask(client, message)
            assert repeated["already"], "a submit that is sent again says that it is saved"
        return message

    def _rank_again(self, client: httpx.Client, sent: dict[str, Any], rng: random.Random) -> None:
        """Take a verdict back, and give another one."""
        reply, _ = self._ask(client, {"do": "undo", "task": sent["task"]})
        task = reply["task"]
        assert task["id"] == sent["task"] and task["better"]["text"] == sent.get("better", "")
        with self._guard:
            self.taken_back.add((sent["task"], sent["revision"]))
        self._rank(client, task, reply["guideline"], rng)

    # --- the admin --------------------------------------------------------------------------------

    def _admin(self) -> None:
        """Decide now and then; every decision is repeated until it is answered."""
        rng = random.Random(0)
        with self._client("boss") as client:
            config, _ = self._sent(lambda: client.get("/config"))
            events = {row["api_name"]: row["id"] for row in config.json()["dependencies"]}
            for at in range(self._decisions):
                waits_until = time.monotonic() + 3
                while len(self.acknowledged) < self._places * at / self._decisions:
                    if time.monotonic() > waits_until:
                        break
                    time.sleep(0.05)
                self._decide(client, events, at, rng)
        self._decided.set()

    def _decide(
        self, client: httpx.Client, events: dict[str, int], at: int, rng: random.Random
    ) -> None:
        if at % 3 == 2:
            text = f"Guidelines, {at}: the correct answer first."
            self._event(client, events, "save_guidelines", [text], {})
            self.guidelines.append(text)
            return
        # People are numbered after the admin, sets from 1.
        name, left_out, numbers, most = (
            ("change_person", self.people_out, range(2, ANNOTATORS + 2), 8),
            ("change_set", self.sets_out, range(1, 41), 6),
        )[at % 3]
        takes_in = len(left_out) == most or (len(left_out) > 2 and rng.random() < 0.4)
        if takes_in:
            number = rng.choice(sorted(left_out))
        else:
            number = rng.choice([each for each in numbers if each not in left_out])
        action = "take_in" if takes_in else "leave_out"
        self._event(client, events, name, [], {"do": action, "id": number, "extra": 0})
        left_out ^= {number}
        self.left_out_or_in += 1

    def _event(
        self,
        client: httpx.Client,
        events: dict[str, int],
        name: str,
        data: list[Any],
        clicked: dict[str, Any],
    ) -> None:
        """Call an event of the Data tab by the queue, as its page does."""
        while time.monotonic() < self._until:
            try:
                said = called(client, "queue", name, events[name], data, clicked)
            except httpx.TransportError:
                time.sleep(0.1)
                continue
            if said != "the stream ended":  # with the server
                assert not said.startswith('{"error"'), said
                return
        raise AssertionError("no answer in time")

    # --- requests ---------------------------------------------------------------------------------

    @contextmanager
    def _client(self, name: str) -> Iterator[httpx.Client]:
        """A client that is signed in."""
        headers = {"origin": self._server.home}
        with httpx.Client(base_url=self._server.home, headers=headers, timeout=60) as client:
            form = {"name": name, "password": PASSWORD}
            self._sent(lambda: client.post("/login", data=form))
            yield client

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


def check(where: str, load: Load, folder: Path) -> dict[str, int]:
    """Nothing is lost, doubled or given to too many, and all that was decided holds.

    Returns:
        Counts for the proof.
    """
    with Store(where, rules=PLAIN) as store:
        alone(store)
        places_add_up(store)
        rankings, tasks = rows(store, Ranking), rows(store, Assignment)
        # 1. Every verdict with its better answer and guidelines, once.
        better = {row.ranking_id: row.text for row in rows(store, Demonstration)}
        kept = {
            (row.assignment_id, row.revision): (
                row.tiers[0][0],
                better.pop(row.id, ""),
                row.guideline,
            )
            for row in rankings
            if not row.withdrawn
        }
        told = {key: (each.best, each.better, each.guideline)
                for key, each in load.acknowledged.items()}  # fmt: skip
        assert kept.keys() == told.keys(), "one for each that was told"
        assert kept == told and not better, "with its better answer, and no other one"
        withdrawn = {(row.assignment_id, row.revision - 1) for row in rankings if row.withdrawn}
        assert withdrawn == load.taken_back
        assert len(rankings) == len(kept) + len(withdrawn)
        # 2. The guidelines in their order, and everybody and everything that is left out.
        assert [row.text for row in rows(store, GuidelineRow)] == load.guidelines
        people = {row.id for row in rows(store, Annotator) if row.left_out}
        sets = {row.id: row for row in rows(store, CandidateSet)}
        out = {number for number, row in sets.items() if row.left_out}
        assert people == load.people_out and out == load.sets_out
        audit = Counter(row.action for row in rows(store, Audit))
        assert audit["leave_out"] + audit["take_in"] == load.left_out_or_in, "each decision once"
        assert audit["guidelines"] == len(load.guidelines)
        # 3. Every place is filled, by somebody who counts; nobody has a set twice.
        pairs = Counter((row.candidate_set_id, row.annotator_id) for row in tasks)
        assert set(pairs.values()) <= {1}, "nobody gets a set twice"
        assert all(row.claimed == row.target for number, row in sets.items() if number not in out)
        # 4. Running sums, figures and snapshot count what stands, and no more.
        standing = [row for row in tasks if row.ranking_id is not None]
        in_sets = [row for row in standing if row.candidate_set_id not in out]
        counted = [row for row in in_sets if row.annotator_id not in people]
        for person in store.figures().people:
            of_person = [row for row in in_sets if row.annotator_id == person.id]
            assert person.rankings == len(of_person), person.name
        assert store.figures().counts["rankings"] == len(counted)
        manifest = store.export(folder / "snapshot")
        assert manifest.rankings == len(counted)
        texts = {row.ranking_id: row.text for row in rows(store, Demonstration)}
        n_better = sum(row.ranking_id in texts for row in counted)
        assert store.figures().counts["demonstrations"] == n_better
        written = (folder / "snapshot" / DEMONSTRATIONS).read_text().splitlines()
        outputs = Counter(json.loads(line)["output"] for line in written)
        assert outputs == Counter(texts[row.ranking_id] for row in counted
                                  if row.ranking_id in texts)  # fmt: skip
    assert load.signed_in == ANNOTATORS
    assert len(load.errors) == 0
    return {
        "rankings_that_count": len(counted),
        "taken_back_and_given_anew": len(withdrawn),
        "better_answers": len(texts),
        "better_answers_that_count": n_better,
        "guidelines": len(load.guidelines),
        "people_left_out_or_taken_in": audit["leave_out"] + audit["take_in"],
        "people_left_out_at_the_end": len(people),
        "sets_left_out_at_the_end": len(out),
    }


def under_load(
    where: str, folder: Path, *, sets: int, kills: int, decisions: int
) -> tuple[Load, int]:
    """Let 50 people rank everything beside an admin, and kill the server now and then."""
    places = prepare(where, sets)
    server = Server(where, folder)
    server.start()
    load = Load(server, decisions=decisions, places=places)
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
    load, _ = under_load(where, tmp_path, sets=60, kills=1, decisions=12)
    counts = check(where, load, tmp_path)
    assert load.retried > 0, "the kill fell into the load"
    assert counts["people_left_out_or_taken_in"] == 8 and counts["guidelines"] == 4
    assert counts["better_answers"] > 5


def test_the_check_sees_what_is_lost(where, tmp_path):
    """An acknowledged ranking, guideline or decision that is not there, or one too many."""
    import pytest

    server = Server(where, tmp_path)
    prepare(where, 3)

    def told(**changes: Any) -> Load:
        load = Load(server)
        load.signed_in = ANNOTATORS
        for name, value in changes.items():
            setattr(load, name, value)
        return load

    verdict = Acknowledged("x", "", None, False)
    with pytest.raises(AssertionError, match="one for each"):
        check(where, told(acknowledged={(1, 0): verdict}), tmp_path)
    for lost in ({"guidelines": ["a"]}, {"people_out": {2}}, {"sets_out": {1}},
                 {"taken_back": {(1, 0)}}):  # fmt: skip
        with pytest.raises(AssertionError):
            check(where, told(**lost), tmp_path)
    with pytest.raises(AssertionError):
        check(where, told(), tmp_path)  # nobody has ranked the three sets
    with Store(where, rules=PLAIN, seed=0) as store:
        load, who = told(), 2
        while (task := store.claim(who)) is not None:
            order = tuple((answer.id,) for answer in task.completions)
            better = BetterAnswer(f"better {task.id}")
            store.submit(who, task.id, Verdict(order, better=better))
            load.acknowledged[task.id, 0] = Acknowledged(order[0][0], better.text, None, False)
        for row in rows(store, CandidateSet):  # one person is enough here
            with store.database.writing() as session:
                session.get(CandidateSet, row.id).target = row.claimed
    assert check(where, load, tmp_path)["better_answers_that_count"] == 3
    with Store(where, rules=PLAIN) as store, store.database.writing() as session:
        session.execute(update(Demonstration).where(Demonstration.id == 1).values(text="other"))
    with pytest.raises(AssertionError, match="better answer"):
        check(where, load, tmp_path / "again")
