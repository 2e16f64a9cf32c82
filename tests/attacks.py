"""An attacker at the app: what is tried, what is expected, what comes of it, and what gets through.

`quick` is what can be tried by requests alone; the rest needs a browser, which runs what was
written by others if the page lets it. `python -m tests.prove attacks` writes the table.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from starlette.routing import Mount
from starlette.testclient import TestClient

from alpaca_rlhf.app.chat_messages import Turn
from alpaca_rlhf.app.connections import ConnectionLimits
from alpaca_rlhf.app.gate import MAX_REQUEST_BYTES
from alpaca_rlhf.app.login_session import LoginSessions
from alpaca_rlhf.app.proxy import ProxyHeaders
from alpaca_rlhf.app.tabs import AppTabs
from alpaca_rlhf.app.uploads import MAX_UPLOAD_BYTES
from alpaca_rlhf.preferences import passwords
from alpaca_rlhf.preferences.assignment import Refused, Rules, Verdict
from alpaca_rlhf.preferences.store import Store
from tests import apps, browser
from tests.databases import candidates

HOME = "http://127.0.0.1:7860"
PASSWORD = "long enough"


FORM: dict[str, Any] = {
    "name": "mine",
    "base": "embedded",
    "judge": "gold",
    "rows": "",
    "prompts_file": "",
    "prompts": 24,
    "k": 3,
    "rounds": 1,
    "policies": ["ppo"],
    "drop_broken": False,
}
"""The form of a new run that is taken."""

CRAFTED: dict[str, list[Any]] = {
    "name": ["", "../up", "/etc", "a/b", "a\\b", ".hidden", "a.b", "-flag", "uploads", "Uploads",
             "a b", "a\n", "x" * 41, None, 7, ["a"], "${HOME}", "名"],
    "base": ["", "/etc", "../base", "meta-llama/Llama-3.2-1B", "http://evil.example/base",
             "./model.gguf", "--config", None, ["embedded"]],
    "judge": ["", "llm", "/evil.py:judge", "evil.module:judge", "reward:/elsewhere", "people",
              None, ["gold"]],
    "rows": ["/etc/passwd", "../secret.jsonl", "rows-0123456789abcdef.jsonl", "hub:someone/rows",
             "http://evil.example/rows.jsonl", ["x"], 7],
    "prompts_file": ["prompts-0123456789abcdef.jsonl/..", "rows-0123456789abcdef.jsonl"],
    "prompts": [0, 3, 5001, -1, 24.0, "24", True, None, "24 --base x"],
    "k": [1, 10, "4"],
    "rounds": [0, 6, "1"],
    "policies": [[], "ppo", ["ppo", "--config"], ["evil.py:policy"], None, [["ppo"]]],
    "out": ["/elsewhere"], "config": ["/evil.yaml"], "reward": [{"source": "judge"}],
}  # fmt: skip
"""Values of each field of a new run, and fields, that no list of the app has."""
OF_EVERYBODY = {
    "rank", "answer", "who", "echo", "show_header",
    "send", "retry", "edit", "undo", "rate", "open_chat", "open_place", "rename_chat",
    "delete_chat", "ask_to_delete", "keep_chat", "export_chat", "clear", "go_on", "apply_preset",
    "make_candidates", "stop",
    "list_policies", "list_chats", "open_page", "play", "draw_prompt", "cast_vote",
}  # fmt: skip
"""Events that are open to annotators; every other event is the admins'."""
ADMIN_GETS = ("/training", "/training/new", "/report", "/prompts")
ADMIN_POSTS: dict[str, Any] = {
    "/training/new": {"do": "start", "form": FORM},
    "/training/open": {"run": "other"},
    "/training/upload?kind=rows&suffix=.jsonl": {"instruction": "a", "output": "b"},
    "/prompts?do=check&suffix=.jsonl": {"instruction": "Praise an old bicycle."},
    "/prompts?do=add&suffix=.jsonl": {"instruction": "Praise an old bicycle."},
    "/prompts?do=answer": {},
    "/prompts?do=remove": {"ids": ["x"]},
}
"""Routes that are the admins', with what they take."""


@dataclass(frozen=True)
class Attack:
    """One attempt."""

    group: str
    tried: str
    expected: str
    got: str
    through: bool


class Victim:
    """An app with an admin, two annotators, tasks, and a snapshot; and browsers without cookies.

    Args:
        folder: The folder of its database; with all tabs, that of its run, beside another run.
        real: Show the real Rank tab.
        all_tabs: Mount chat, compare, train, new runs and the upload of prompts too.
        options: Those of `apps.house`.
    """

    def __init__(
        self, folder: Path, *, real: bool = False, all_tabs: bool = False, **options: Any
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        rules = Rules(gold_rate=0, repeat_rate=0, second_share=0)
        self.store = Store(folder / "preferences.db", rules=rules, seed=0)
        self.boss = self.store.add_annotator("boss", PASSWORD, role="admin")
        self.ann, self.ben = (self.store.add_annotator(name, PASSWORD) for name in ("ann", "ben"))
        self.store.add_sets(candidates(8, k=2), origin="test")
        self.store.export(folder / "snapshots" / "first")
        self.tabs: AppTabs | None = None
        self.switches: list[Any] = []
        if all_tabs:
            self.tabs = apps.all_tabs(self.store, folder, self.switches.append)
            options |= {"tabs": self.tabs.tabs, "own_routes": self.tabs.routes()}
        self.app = apps.house(self.store, folder, real=real, **options)

    def close(self) -> None:
        """End its threads, and close its database."""
        if self.tabs is not None:
            self.tabs.close()
        self.store.close()

    def changes(self) -> dict[str, Any]:
        """Everything that only an admin may change: people, runs, prompts, trainings."""
        runs = sorted(path.name for path in self.folder.parent.iterdir())
        started = (self.folder / apps.STARTED).exists()
        return {
            "people": [vars(person) for person in self.store.figures().people],
            "runs": [name for name in runs if name != "uploads"],
            "uploads": sorted(path.name for path in self.folder.parent.glob("uploads/*")),
            "prompts": [prompt.instruction for prompt in self.store.added_prompts()],
            "trainings": started,
            "switches": len(self.switches),
            "snapshots": sorted(path.name for path in (self.folder / "snapshots").iterdir()),
        }

    @contextmanager
    def visitor(self, name: str = "", *, proxied: bool = False) -> Iterator[TestClient]:
        """A client, signed in by a name."""
        app = ProxyHeaders(self.app) if proxied else self.app
        where = {"client": ("127.0.0.1", 5)} if proxied else {}
        with TestClient(app, base_url=HOME, follow_redirects=False, **where) as client:
            client.headers["origin"] = HOME
            if name:
                assert sign_in(client, name).status_code == 303
            yield client


def sign_in(client: TestClient, name: str, password: str = PASSWORD) -> Any:
    """Post the form."""
    return client.post("/login", data={"name": name, "password": password})


def quick(folder: Path) -> list[Attack]:
    """Everything that requests alone can try."""
    passwords_before, passwords.LOG_N = passwords.LOG_N, 4
    try:
        victim = Victim(folder / "runs" / "mine", all_tabs=True)
        with closing(victim):
            return [
                *_without_login(victim),
                *_from_annotator_to_admin(victim),
                *_on_the_work_of_others(victim),
                *_on_the_talk_of_others(victim),
                *_crafted_runs(victim),
                *_origins(victim),
                *_cookies(victim),
                *_passwords(victim),
                *_sizes_and_paths(victim),
                *_uploads(victim),
                *_guesses(victim),
                *_half_sent(folder / "half-sent"),
            ]
    finally:
        passwords.LOG_N = passwords_before


# --- 1. without a login -------------------------------------------------------------------------


def _routes(routes: Any) -> Iterator[Any]:
    for route in routes:
        yield route
        inner = getattr(route, "original_router", route)  # FastAPI resolves what is included late
        yield from _routes(getattr(inner, "routes", None) or [])


def _filled(path: str) -> list[str]:
    """A path with something in each of its parameters."""
    ways = []
    for value in ("x", "..%2f..%2fpreferences.db", "1"):
        filled = path.replace("{path_or_url:path}", "etc/passwd").replace("{path:path}", value)
        while "{" in filled:
            head, _, rest = filled.partition("{")
            filled = head + value + rest.partition("}")[2]
        ways.append(filled or "/")
    return sorted(set(ways))


def _without_login(victim: Victim) -> Iterator[Attack]:
    """Every route that there is, Gradio's included, by every method, with and without a slash."""
    with victim.visitor() as client:
        (mounted,) = (route for route in victim.app.routes if isinstance(route, Mount))
        patterns = {getattr(route, "path", "") for route in _routes(victim.app.routes)}
        patterns |= {getattr(route, "path", "") for route in _routes(mounted.app.routes)}
        paths = sorted({path for pattern in patterns for path in _filled(pattern)})
        for path in paths:
            if path.rstrip("/") == "/login":
                continue
            for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"):
                response = client.request(method, path, json={})
                status, where = response.status_code, response.headers.get("location")
                through = status not in (401, 403, 404, 405, 421) and where != "/login"
                yield Attack(
                    "without login", f"{method} {path}", "401, 404, 405 or to /login",
                    f"{status}{f' to {where}' if where else ''}", through,
                )  # fmt: skip


# --- 2. an annotator wants to be an admin -------------------------------------------------------


def _from_annotator_to_admin(victim: Victim) -> Iterator[Attack]:
    """Every event and route of Train and Data, called by an annotator; snapshots."""
    group = "from annotator to admin"
    with victim.visitor("ann") as client, victim.visitor("boss") as boss:
        before = victim.changes()
        # 1. Events, by the queue, directly and by name.
        listed = boss.get("/config").json()["dependencies"]
        named = [row for row in listed if row["backend_fn"]]
        events = [row for row in named if _name(row) not in OF_EVERYBODY]
        assert len(events) >= 12
        for row in events:
            name, data = row["api_name"], [None] * len(row["inputs"])
            data = ["mallory", PASSWORD, "admin"] if name == "add_person" else data
            action = "train" if name == "act" else "admin"
            clicked = {"do": action, "id": victim.ann, "extra": 0}
            for way in ("queue", "run", "call"):
                said = called(client, way, name, row["id"], data, clicked)[:200]
                refused = any(
                    word in said for word in ("admins", "403", "404", "422", "event: error")
                )
                yield Attack(group, f"event {name} by {way}", "refused", said[:80], not refused)
        # 2. Routes.
        for path in ADMIN_GETS:
            status = client.get(path).status_code
            yield Attack(group, f"GET {path}", "403", str(status), status != 403)
        for path, body in ADMIN_POSTS.items():
            status = client.post(path, json=body).status_code
            yield Attack(group, f"POST {path}", "403", str(status), status != 403)
        after = victim.changes()
        yield Attack(group, "people, runs, prompts and trainings after all this", "unchanged",
                     "unchanged" if before == after else "changed", before != after)  # fmt: skip
        # 3. Snapshots.
        for file in ("manifest.json", "rankings.jsonl", "pairs.jsonl", "rankings.csv"):
            status = client.get(f"/snapshots/first/{file}").status_code
            yield Attack(group, f"GET /snapshots/first/{file}", "403", str(status), status != 403)
        for path in ("../preferences.db", "%2e%2e/preferences.db", "first/../../preferences.db",
                     "first/README.md", ".hidden/manifest.json"):  # fmt: skip
            response = boss.get(f"/snapshots/{path}")
            yield Attack(group, f"an admin: GET /snapshots/{path}", "404",
                         str(response.status_code), response.status_code != 404)  # fmt: skip


def _name(row: dict[str, Any]) -> str:
    """The name of an event's function; Gradio numbers those of the same name."""
    return re.sub(r"_\d+$", "", row["api_name"] or "")


_PAGES = itertools.count()


def called(
    client: TestClient, way: str, name: str, number: int, data: list[Any], clicked: dict[str, Any]
) -> str:
    """The answer to an event that is called in one of Gradio's ways.

    Each call is of a page of its own: Gradio binds the queue of a page to the event loop of the
    client that waited on it, and each client here has another.
    """
    page = f"abc{next(_PAGES)}"
    if way == "run":
        body = {"data": data, "fn_index": number, "session_hash": page, "event_data": clicked}
        return _said(client.post(f"/gradio_api/run/{name}", json=body))
    if way == "call":
        joined = client.post(f"/gradio_api/call/{name}", json={"data": data})
        if joined.status_code != 200:
            return _said(joined)
        with client.stream("GET", f"/gradio_api/call/{name}/{joined.json()['event_id']}") as stream:
            return "".join(stream.iter_text())
    body = {"data": data, "fn_index": number, "session_hash": page, "event_data": clicked}
    joined = client.post("/gradio_api/queue/join", json=body)
    if joined.status_code != 200:
        return _said(joined)
    said = "the stream ended"
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": page}) as stream:
        for line in stream.iter_lines():  # to its end, or the server complains
            if '"process_completed"' in line:
                said = json.dumps(json.loads(line.removeprefix("data: "))["output"])
    return said


def _said(response: Any) -> str:
    return f"{response.status_code} {response.text}"


# --- 3. the work of others ----------------------------------------------------------------------


def _on_the_work_of_others(victim: Victim) -> Iterator[Attack]:
    """Tasks of somebody else: submitted, taken back, skipped, flagged, kept from them."""
    from alpaca_rlhf.app.rank_tab import reply
    from alpaca_rlhf.app.services import Services

    store, group = victim.store, "another's tasks"
    task, done = store.claim(victim.ann), None
    order = [[completion.id] for completion in task.completions]
    verdict = Verdict(tuple((key,) for (key,) in order))
    store.submit(victim.ann, task.id, verdict, revision=task.revision)
    done, task = task, store.claim(victim.ann)
    order = [[completion.id] for completion in task.completions]
    services = Services(store, lambda _: store.account(victim.ben), lambda _: "en")
    before = [vars(person) for person in store.figures().people]
    for fields in (
        {"do": "submit", "task": task.id, "revision": 0, "tiers": order, "method": "mouse"},
        {"do": "submit", "task": done.id, "revision": 1, "tiers": order, "method": "mouse"},
        {
            "do": "submit",
            "task": done.id,
            "revision": 1,
            "tiers": order,
            "method": "mouse",
            "better": "by somebody else",
        },
        {"do": "mine", "before": [done.id]},
        {"do": "undo", "task": done.id},
        {"do": "skip", "task": task.id, "reason": "mine"},
        {"do": "flag", "task": task.id, "reason": "other", "words": ""},
        {"do": "renew", "task": task.id, "holding": []},
        {"do": "submit", "task": 10**9, "revision": 0, "tiers": order, "method": "mouse"},
        {"do": "submit", "task": -1, "revision": 0, "tiers": order, "method": "mouse"},
        {"do": "next", "holding": [task.id] * 1000},
        {"do": "drop table"},
    ):
        problem = reply(services, json.dumps(fields), None).get("problem", "done")
        tried = f"{fields['do']} task {fields.get('task', '')}".strip()
        yield Attack(group, tried, "refused", problem, problem == "done")
    after = [vars(person) for person in store.figures().people]
    yield Attack(group, "what counts after all this", "unchanged",
                 "unchanged" if before == after else "changed", before != after)  # fmt: skip


def _on_the_talk_of_others(victim: Victim) -> Iterator[Attack]:
    """Conversations and votes of somebody else, by their numbers."""
    store, group, secret = victim.store, "another's talk", "The key lies under the third stone."
    turns = [Turn("Where is it?", secret).to_json()]
    number = store.save_chat(victim.ann, None, "Where is it?", turns)
    prompt, answers = candidates(1, k=2, tag="vote ")[0]
    store.add_completions([(prompt, answers)])
    sides = (("base", answers[0].id), ("sft", answers[1].id))
    pairing = store.battle(victim.ann, prompt.id, sides)

    def unchanged() -> bool:
        return store.chat(victim.ann, number) == ("Where is it?", turns) and not store.scores()

    # 1. By the events, in each of Gradio's ways; what the server holds itself cannot be sent.
    calls = {
        "open_chat": [number, [], number],
        "open_place": [[], None],
        "rename_chat": [number, "mine"],
        "ask_to_delete": [number],
        "delete_chat": [number],
        "export_chat": [number],
        "undo": [[], number],
        "list_chats": [number],
        "cast_vote": [pairing.round],
    }
    with victim.visitor("ben") as client:
        listed = client.get("/config").json()["dependencies"]
        for row in listed:
            if not row["backend_fn"] or _name(row) not in calls:
                continue
            for way in ("queue", "run", "call"):
                name, data = row["api_name"], calls[_name(row)]
                said = called(client, way, name, row["id"], data, {"chat": number, "index": 0})
                through = secret in said or "Where is it?" in said or not unchanged()
                yield Attack(group, f"event {name} by {way}", "nothing of it shown or changed",
                             "shown or changed" if through else "nothing", through)  # fmt: skip
    # 2. In the store, where every call of the tab ends.
    attempts: dict[str, Callable[[], Any]] = {
        "open": lambda: store.chat(victim.ben, number),
        "rename": lambda: store.rename_chat(victim.ben, number, "mine"),
        "overwrite": lambda: store.save_chat(victim.ben, number, "mine", []),
        "delete": lambda: store.delete_chat(victim.ben, number),
        "vote": lambda: store.vote(victim.ben, pairing.round, "left"),
        "vote on no round": lambda: store.vote(victim.ben, "0" * 32, "left"),
    }
    for tried, attempt in attempts.items():
        try:
            attempt()
            got = "done"
        except Refused as refused:
            got = refused.problem
        yield Attack(group, tried, "refused", got, got == "done" or not unchanged())
    yield Attack(group, "the talk after all this", "unchanged",
                 "unchanged" if unchanged() else "changed", not unchanged())  # fmt: skip


# --- 4. paths, addresses and functions in forms -------------------------------------------------


def _crafted_runs(victim: Victim) -> Iterator[Attack]:
    """An admin's form with a path, an address, a flag or a function in it; runs elsewhere."""
    group = "crafted forms"
    before = victim.changes()
    forms: list[tuple[str, Any]] = [
        (f"{field} = {json.dumps(value)}", FORM | {field: value})
        for field, values in CRAFTED.items()
        for value in values
    ]
    forms += [(json.dumps(form), form) for form in ([], "start", None, 7)]
    with victim.visitor("boss") as boss:
        for tried, form in forms:
            for action in ("plan", "start"):
                status = boss.post("/training/new", json={"do": action, "form": form}).status_code
                yield Attack(group, f"{action} with {tried}", "422", str(status), status != 422)
        for run in ("../mine", "/etc", "", None, ["other"], "absent", ".", "uploads", "other/.."):
            status = boss.post("/training/open", json={"run": run}).status_code
            tried = f"open the run {json.dumps(run)}"
            yield Attack(group, tried, "422", str(status), status != 422)
        # Of a click on the Train tab only the name of the button counts.
        listed = boss.get("/config").json()["dependencies"]
        (act,) = (row for row in listed if _name(row) == "act")
        for clicked in (
            {"do": ["train"]}, {"do": "train; true"}, {"do": "../train"}, {"do": "start"}, {},
            {"words": ["--out", "/elsewhere"]}, {"do": "eval", "command": "true"},
        ):  # fmt: skip
            called(boss, "queue", "act", act["id"], [None], clicked)
            began = (victim.folder / apps.STARTED).exists()
            yield Attack(group, f"a click with {json.dumps(clicked)}", "nothing starts",
                         "started" if began else "nothing", began)  # fmt: skip
    after = victim.changes()
    yield Attack(group, "runs and trainings after all this", "unchanged",
                 "unchanged" if before == after else "changed", before != after)  # fmt: skip


# --- 5. other sites -----------------------------------------------------------------------------


def _origins(victim: Victim) -> Iterator[Attack]:
    """Requests that a page of another site makes a signed-in browser send."""
    group, before = "forged origins", victim.changes()
    with victim.visitor("boss") as client:
        listed = client.get("/config").json()["dependencies"]
        (act,) = (row for row in listed if _name(row) == "act")
        train = {"data": [None], "fn_index": act["id"], "session_hash": "abc"}
        posts: list[tuple[str, Any]] = [
            ("/logout", {}),
            ("/password", {}),
            ("/gradio_api/run/rank", {"data": ['{"do": "next"}']}),
            ("/gradio_api/queue/join", train | {"event_data": {"do": "train"}}),
            *ADMIN_POSTS.items(),
        ]
        for headers in (
            {"origin": "https://evil.example"},
            {"origin": "null"},
            {"origin": ""},
            {"origin": "http://127.0.0.1"},
            {"origin": "http://127.0.0.1:7861"},
            {"origin": "https://127.0.0.1:7860"},
            {"origin": "http://127.0.0.1:7860.evil.example"},
            {"origin": "http://evil.example/127.0.0.1:7860"},
            {"origin": "http://127.0.0.1:7860@evil.example"},
            {"origin": "http://localhost:7860"},
            {"sec-fetch-site": "cross-site"},
            {"sec-fetch-site": "same-site"},
            {"origin": "http://evil.example", "x-forwarded-host": "evil.example"},
            {"origin": "http://evil.example", "host": "evil.example"},
            {"host": "evil.example"},
            {"host": "127.0.0.1.evil.example"},
        ):
            for path, form in posts:
                status = client.post(path, json=form, headers=headers).status_code
                tried = f"POST {path} with {json.dumps(headers)}"
                yield Attack(group, tried, "403 or 421", str(status), status not in (403, 421))
        status = client.get("/status").status_code
        yield Attack(group, "the login after all this", "200", str(status), status != 200)
        after = victim.changes()
        yield Attack(group, "what an admin may change after all this", "unchanged",
                     "unchanged" if before == after else "changed", before != after)  # fmt: skip


# --- 6. cookies ---------------------------------------------------------------------------------


def _cookies(victim: Victim) -> Iterator[Attack]:
    """Cookies that nobody was given, that ended, or that belong to another app."""
    sessions = LoginSessions(victim.store, apps.SECRET)
    genuine = sessions.cookie(victim.ann)
    assert genuine is not None
    account, began, renewed, signature = genuine.split(".")
    now = int(time.time())
    forged = {
        "the admin's number": f"{victim.boss}.{began}.{renewed}.{signature}",
        "renewed later": f"{account}.{began}.{int(renewed) + 60}.{signature}",
        "begun later": f"{account}.{int(began) + 60}.{renewed}.{signature}",
        "no signature": f"{account}.{began}.{renewed}.",
        "no signature at all": f"{account}.{began}.{renewed}",
        "another app's": LoginSessions(victim.store, b"y" * 32).cookie(victim.boss) or "",
        "nobody's number": f"99.{now}.{now}.{signature}",
        "a huge number": f"{'9' * 40}.{now}.{now}.{signature}",
        "no number": f"boss.{now}.{now}.{signature}",
        "SQL": f"1 OR 1=1.{now}.{now}.{signature}",
        "nothing": "",
    }
    with victim.visitor() as client:
        for tried, cookie in forged.items():
            client.cookies.clear()
            client.cookies.set(sessions.cookie_name, cookie)
            status = client.get("/status").status_code
            yield Attack("cookies", tried, "401", str(status), status != 401)
    with victim.visitor("ben") as client:
        stolen = dict(client.cookies)
        client.post("/logout")
        client.cookies.update(stolen)
        status = client.get("/status").status_code
        yield Attack("cookies", "a copy after logging out", "401", str(status), status != 401)
    with victim.visitor("ben") as client:
        victim.store.change_annotator(victim.ben, password="another word", actor="attack")
        status = client.get("/status").status_code
        yield Attack("cookies", "after a new password", "401", str(status), status != 401)
        victim.store.change_annotator(victim.ben, password=PASSWORD, actor="attack")
    with victim.visitor("ben") as client:
        victim.store.change_annotator(victim.ben, active=False, actor="attack")
        status = client.get("/status").status_code
        yield Attack("cookies", "of a deactivated account", "401", str(status), status != 401)
        victim.store.change_annotator(victim.ben, active=True, actor="attack")


# --- 7. one's own password ---------------------------------------------------------------------


def _passwords(victim: Victim) -> Iterator[Attack]:
    """Another's password, or one's own without knowing it; the form in wrong shapes."""
    group, new = "passwords", "another good word"

    def holds() -> bool:
        names = ("ann", "ben", "boss")
        return all(victim.store.sign_in(name, PASSWORD) is not None for name in names)

    good = {"current": PASSWORD, "new": new, "again": new}
    with victim.visitor("ann") as client:
        forms: dict[str, Any] = {
            "a wrong current one": good | {"current": "a guess"},
            "no current one": {"new": new, "again": new},
            "the admin's name beside it": good | {"current": "a guess", "name": "boss"},
            "the admin's number beside it": good | {"current": "a guess", "id": victim.boss},
            "another one in the second field": good | {"again": "another"},
            "one that is too short": good | {"new": "x", "again": "x"},
            "one that is too long": good | {"new": "x" * 5000, "again": "x" * 5000},
            "half a megabyte before it": {"x": "x" * 2**19, **good},
            "nothing": {},
        }
        for tried, form in forms.items():
            status = client.post("/password", data=form).status_code
            got = str(status)
            yield Attack(group, tried, "422 or 429", got, status not in (422, 429) or not holds())
        for query in ("?name=boss", f"?id={victim.boss}", "?current=&new=x"):
            status = client.post(f"/password{query}", data={}).status_code
            yield Attack(group, f"POST /password{query}", "422 or 429", str(status),
                         status not in (422, 429) or not holds())  # fmt: skip


# --- 8. sizes, paths and shapes -----------------------------------------------------------------


def _sizes_and_paths(victim: Victim) -> Iterator[Attack]:
    """Requests that are too large or of a wrong shape, and paths out of their folders."""
    group = "sizes, paths and shapes"
    with victim.visitor("ann") as client:
        for path in (
            "/gradio_api/file=/etc/passwd",
            "/gradio_api/file=../../../../etc/passwd",
            "/gradio_api/file=" + str(victim.folder / "preferences.db"),
            "/gradio_api/proxy=http://127.0.0.1:22/",
            "/gradio_api/dev/reload",
            "/gradio_api/component_server/",
            "/monitoring",
            "/docs",
            "/openapi.json",
            "/static/../../etc/passwd",
            "/assets/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
            "/login/../status/..\\..",
            "//evil.example/%2f..",
        ):
            response = client.get(path)
            away = response.headers.get("location", "/").startswith(("//", "http"))
            through = response.status_code == 200 or away
            tried = "GET " + path.replace(str(victim.folder), "FOLDER")  # the same in every table
            yield Attack(group, tried, "403 or 404", str(response.status_code), through)
        for path in ("upload", "stream/x", "process_recording", "vibe-edit/"):
            status = client.post(f"/gradio_api/{path}", json={}).status_code
            yield Attack(group, f"POST /gradio_api/{path}", "404", str(status), status != 404)
        kind = {"content-type": "application/json"}
        for tried, body, expected in (
            ("4 MiB and a byte", b"x" * (MAX_REQUEST_BYTES + 1), 413),
            ("100,000 brackets", b"[" * 100_000, 422),
            ('"data":[]', b'{"data":[]}', 422),
            ('"data":null', b'{"data":null}', 422),
            ("no JSON", b"\xff\xfe", 422),
        ):
            response = client.post("/gradio_api/run/rank", content=body, headers=kind)
            got = str(response.status_code)
            yield Attack(group, tried, str(expected), got, response.status_code != expected)
        status = client.request("TRACE", "/status").status_code
        yield Attack(group, "TRACE /status", "405", str(status), status != 405)


# --- 9. uploads ---------------------------------------------------------------------------------


def _uploads(victim: Victim) -> Iterator[Attack]:
    """Files of an admin that are too large, unpack to too much, or would lie elsewhere."""
    group, before = "uploads", victim.changes()
    bomb = gzip.compress(b'{"instruction": "' + b"x" * 2**20 + b'"}\n') * 300
    paths = {
        "/training/upload?kind=rows&suffix={}": MAX_UPLOAD_BYTES,
        "/prompts?do=add&suffix={}": MAX_UPLOAD_BYTES,
        "/training/new?{}": MAX_REQUEST_BYTES,
        "/training/open?{}": MAX_REQUEST_BYTES,
        "/password?{}": MAX_REQUEST_BYTES,
    }
    with victim.visitor("boss") as client:
        # 1. Sizes, named beforehand and not.
        for path, most in paths.items():
            where = path.format(".jsonl")
            headers = {"content-length": str(most + 1)}
            status = client.post(where, content=b"x", headers=headers).status_code
            yield Attack(group, f"{where}, {most + 1} bytes announced", "413", str(status),
                         status != 413)  # fmt: skip
            pieces = (b"x" * 2**20 for _ in range(most // 2**20 + 1))
            status = client.post(where, content=pieces).status_code
            yield Attack(group, f"{where}, too many bytes in pieces", "413", str(status),
                         status != 413)  # fmt: skip
        # 2. Small files that unpack to a lot, names and shapes.
        for path in [*paths][:2]:
            files = {
                "300 MiB packed into one": (".jsonl.gz", bomb),
                "half a packed file": (".jsonl.gz", bomb[:500]),
                "no suffix": ("", b'{"instruction": "a", "output": "b"}\n'),
                "code": (".py", b"import os\n"),
                "a path as suffix": (".jsonl/../../x.jsonl", b'{"instruction": "a"}\n'),
                "a path upwards": ("/../../mine/config.yaml", b"seed: 1\n"),
                "a zero byte": (".jsonl%00.py", b'{"instruction": "a"}\n'),
                "100,000 brackets": (".json", b"[" * 100_000),
                "no rows": (".jsonl", b""),
                "no text": (".csv", b"\xff\xfe\x00"),
                "no Parquet": (".parquet", b"PAR1" + b"x" * 100),
            }
            for tried, (suffix, content) in files.items():
                status = client.post(path.format(suffix), content=content).status_code
                yield Attack(group, f"{path.format('')}: {tried}", "422", str(status),
                             status != 422)  # fmt: skip
        for query in ("kind=../rows", "kind=/etc", "kind=", "kind=rows&kind=../x"):
            path = f"/training/upload?suffix=.jsonl&{query}"
            status = client.post(path, content=b'{"instruction": "a"}\n').status_code
            yield Attack(group, path, "422", str(status), status != 422)
    after = victim.changes()
    yield Attack(group, "what lies there after all this", "unchanged",
                 "unchanged" if before == after else "changed", before != after)  # fmt: skip


# --- 10. guesses ---------------------------------------------------------------------------------


def _guesses(victim: Victim) -> Iterator[Attack]:
    """Passwords that are guessed, from one address and from many that are forged."""
    group = "guesses"
    with victim.visitor() as client:
        texts = {
            sign_in(client, name, "wrong word").text.replace(name, "") for name in ("ann", "nobody")
        }
        yield Attack(group, "which of name and password is wrong", "the same page for both",
                     f"{len(texts)} kinds of pages", len(texts) != 1)  # fmt: skip
        statuses = [sign_in(client, "ann", f"guess {i}").status_code for i in range(30)]
        yield Attack(group, "30 guesses at once", "401 ten times at most, then 429",
                     f"401: {statuses.count(401)}, 429: {statuses.count(429)}",
                     statuses.count(401) > 10 or 303 in statuses)  # fmt: skip
    with victim.visitor(proxied=True) as client:
        statuses = []
        for i in range(60):
            client.headers["x-forwarded-for"] = f"10.1.{i}.1"
            statuses.append(sign_in(client, "ben", f"guess {i}").status_code)
        yield Attack(group, "60 guesses by forged addresses", "401 thirty times at most",
                     f"401: {statuses.count(401)}, 429: {statuses.count(429)}",
                     statuses.count(401) > 30 or 303 in statuses)  # fmt: skip


# --- 11. half-sent requests ---------------------------------------------------------------------


def _half_sent(folder: Path) -> Iterator[Attack]:
    """Requests to the routes of the tabs that never come whole, on the product's own server."""
    group, whole = "half-sent requests", "the app answers"
    limits = ConnectionLimits(head_s=60, body_s=60, unfinished_per_address=20)
    victim = Victim(folder / "runs" / "mine", all_tabs=True)
    with closing(victim), apps.served_as_product(victim.app, limits) as port, ExitStack() as lines:
        home = f"http://127.0.0.1:{port}"
        form = {"name": "boss", "password": PASSWORD}
        with httpx.Client(base_url=home, headers={"origin": home}, timeout=60) as client:
            assert client.post("/login", data=form).status_code == 303
            cookie = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
            before = victim.changes()
            for path in (*ADMIN_POSTS, "/password"):
                for signed_in in (True, False):
                    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nOrigin: {home}\r\n"
                    head += f"Cookie: {cookie}\r\n" if signed_in else ""
                    starts = (head, f'{head}Content-Length: 5000\r\n\r\n{{"do":')
                    for i in range(40):
                        with suppress(OSError):
                            line = socket.create_connection(("127.0.0.1", port), timeout=20)
                            lines.enter_context(line).sendall(starts[i % 2].encode())
                    # On a line of its own: one that waits makes room too, and is opened anew.
                    try:
                        answer = httpx.get(f"{home}/status", headers={"cookie": cookie}, timeout=60)
                        got = str(answer.status_code)
                    except httpx.HTTPError as error:
                        got = type(error).__name__
                    who = "an admin" if signed_in else "nobody"
                    yield Attack(group, f"40 to {path} by {who}", whole, got, got != "200")
            changed = before != victim.changes()
            got = "changed" if changed else "unchanged"
            yield Attack(group, "what an admin may change after it", "unchanged", got, changed)


# --- 12. in a browser ----------------------------------------------------------------------------


def in_a_browser(folder: Path) -> list[Attack]:
    """Texts that would run if a page took them for code, wherever the app shows them."""
    before, passwords.LOG_N = passwords.LOG_N, 4
    try:
        with Store(folder / "p.db", rules=Rules(second_share=1, gold_rate=0), seed=0) as store:
            hostile = apps.HOSTILE[4]
            store.add_annotator(hostile, PASSWORD, role="admin")
            people = apps.fill(store)
            for text in apps.HOSTILE:
                task = store.claim(people[0])
                if task is not None:
                    order = tuple((answer.id,) for answer in task.completions)
                    store.submit(people[0], task.id, Verdict(order, comment=text))
                task = store.claim(people[0])
                if task is not None:
                    store.skip(people[0], task.id, text)
            store.add_sets(candidates(4, tag=apps.HOSTILE[0]), origin=apps.HOSTILE[1])
            app = apps.house(store, folder, real=True, run=apps.HOSTILE[0])
            return [*_stored(app, hostile)]
    finally:
        passwords.LOG_N = before


def _stored(app: Any, name: str) -> Iterator[Attack]:
    from tests.screenshots import READY, open_tab

    hit = "window.hit"
    with apps.serving(app) as home, browser.browser() as chromium:
        for language in ("en", "zh-CN"):
            with browser.visit(chromium, locale=language) as page:
                page.set_default_timeout(120_000)
                page.goto(home)
                page.fill("#name", name)
                page.fill("#password", PASSWORD)
                page.click("button")
                page.locator("[data-account]").wait_for()
                for tab in ("rank", "data"):
                    open_tab(page, tab, language)
                    page.locator(READY[tab]).first.wait_for()
                    for button in page.locator("button[data-do]").all()[:4]:
                        button.hover()
                    shown = page.locator("body").inner_text()
                    for text in apps.HOSTILE[: 5 if tab == "data" else 1]:
                        ran = page.evaluate(hit) is not None
                        as_text = text in shown
                        yield Attack(
                            "stored scripts", f"{text} in the {tab} tab, {language}",
                            "shown as text, nothing runs",
                            ("shown, " if as_text else "not shown, ")
                            + ("ran" if ran else "nothing ran"),
                            ran or page.locator("img[src=x]").count() > 0,
                        )  # fmt: skip


def summary(attacks: list[Attack]) -> dict[str, dict[str, int]]:
    """The number tried of each group, and the number that got through."""
    groups = dict.fromkeys(attack.group for attack in attacks)
    return {
        group: {
            "tried": sum(attack.group == group for attack in attacks),
            "through": sum(attack.group == group and attack.through for attack in attacks),
        }
        for group in groups
    }
