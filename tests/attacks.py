"""An attacker at the app: what is tried, what is expected, what comes of it, and what gets through.

`quick` is what can be tried by requests alone; the rest needs a browser, which runs what was
written by others if the page lets it. `python -m tests.prove attacks` writes the table.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.routing import Mount
from starlette.testclient import TestClient

from alpaca_rlhf.app.gate import MAX_REQUEST_BYTES
from alpaca_rlhf.app.login_session import LoginSessions
from alpaca_rlhf.app.proxy import ProxyHeaders
from alpaca_rlhf.preferences import passwords
from alpaca_rlhf.preferences.assignment import Rules, Verdict
from alpaca_rlhf.preferences.store import Store
from tests import apps, browser
from tests.databases import candidates

HOME = "http://127.0.0.1:7860"
PASSWORD = "long enough"


@dataclass(frozen=True)
class Attack:
    """One attempt."""

    group: str
    tried: str
    expected: str
    got: str
    through: bool


class Victim:
    """An app with an admin, two annotators, tasks, and a snapshot; and browsers without cookies."""

    def __init__(self, folder: Path, *, real: bool = False, **options: Any) -> None:
        self.folder = folder
        rules = Rules(gold_rate=0, repeat_rate=0, second_share=0)
        self.store = Store(folder / "preferences.db", rules=rules, seed=0)
        self.boss = self.store.add_annotator("boss", PASSWORD, role="admin")
        self.ann, self.ben = (self.store.add_annotator(name, PASSWORD) for name in ("ann", "ben"))
        self.store.add_sets(candidates(8, k=2), origin="test")
        self.store.export(folder / "snapshots" / "first")
        self.app = apps.house(self.store, folder, real=real, **options)

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
        victim = Victim(folder)
        with victim.store:
            return [
                *_without_login(victim),
                *_from_annotator_to_admin(victim),
                *_on_the_work_of_others(victim),
                *_origins(victim),
                *_cookies(victim),
                *_sizes_and_paths(victim),
                *_guesses(victim),
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
    """Every event of the Data tab, by the queue, directly and by name; snapshots; own account."""
    group, store = "from annotator to admin", victim.store
    with victim.visitor("ann") as client, victim.visitor("boss") as boss:
        listed = boss.get("/config").json()["dependencies"]
        public = {"rank", "answer", "who", "echo", "show_header"}
        events = [row for row in listed if row["api_name"] not in public]
        assert len(events) >= 9
        before = json.dumps([vars(person) for person in store.figures().people], default=str)
        for row in events:
            name, data = row["api_name"], [None] * len(row["inputs"])
            data = ["mallory", PASSWORD, "admin"] if name == "add_person" else data
            clicked = {"do": "admin", "id": victim.ann, "extra": 0}
            for way in ("queue", "run", "call"):
                said = _called(client, way, name, row["id"], data, clicked)
                refused = any(
                    word in said for word in ("admins", "403", "404", "422", "event: error")
                )
                yield Attack(group, f"event {name} by {way}", "refused", said[:80], not refused)
        after = json.dumps([vars(person) for person in store.figures().people], default=str)
        yield Attack(group, "people after all this", "unchanged",
                     "unchanged" if before == after else "changed", before != after)  # fmt: skip
        exports = sorted(path.name for path in (victim.folder / "snapshots").iterdir())
        yield Attack(group, "snapshots after all this", "the admin's", ", ".join(exports),
                     exports != ["first"])  # fmt: skip
        for file in ("manifest.json", "rankings.jsonl", "pairs.jsonl", "rankings.csv"):
            status = client.get(f"/snapshots/first/{file}").status_code
            yield Attack(group, f"GET /snapshots/first/{file}", "403", str(status), status != 403)
        for path in ("../preferences.db", "%2e%2e/preferences.db", "first/../../preferences.db",
                     "first/README.md", ".hidden/manifest.json"):  # fmt: skip
            response = boss.get(f"/snapshots/{path}")
            yield Attack(group, f"an admin: GET /snapshots/{path}", "404",
                         str(response.status_code), response.status_code != 404)  # fmt: skip


def _called(
    client: TestClient, way: str, name: str, number: int, data: list[Any], clicked: dict[str, Any]
) -> str:
    """The answer to an event that is called in one of Gradio's ways."""
    if way == "run":
        body = {"data": data, "fn_index": number, "session_hash": "abc", "event_data": clicked}
        return _said(client.post(f"/gradio_api/run/{name}", json=body))
    if way == "call":
        joined = client.post(f"/gradio_api/call/{name}", json={"data": data})
        if joined.status_code != 200:
            return _said(joined)
        with client.stream("GET", f"/gradio_api/call/{name}/{joined.json()['event_id']}") as stream:
            return "".join(stream.iter_text())
    body = {"data": data, "fn_index": number, "session_hash": "abc", "event_data": clicked}
    joined = client.post("/gradio_api/queue/join", json=body)
    if joined.status_code != 200:
        return _said(joined)
    said = "the stream ended"
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": "abc"}) as stream:
        for line in stream.iter_lines():  # to its end, or the server complains
            if '"process_completed"' in line:
                said = json.dumps(json.loads(line.removeprefix("data: "))["output"])[:200]
    return said


def _said(response: Any) -> str:
    return f"{response.status_code} {response.text[:80]}"


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


# --- 4. other sites -----------------------------------------------------------------------------


def _origins(victim: Victim) -> Iterator[Attack]:
    """Requests that a page of another site makes a signed-in browser send."""
    group = "forged origins"
    with victim.visitor("boss") as client:
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
            for path, form in (("/logout", {}), ("/gradio_api/run/who", {"data": []})):
                status = client.post(path, json=form, headers=headers).status_code
                tried = f"POST {path} with {json.dumps(headers)}"
                yield Attack(group, tried, "403 or 421", str(status), status not in (403, 421))
        status = client.get("/status").status_code
        yield Attack(group, "the login after all this", "200", str(status), status != 200)


# --- 5. cookies ---------------------------------------------------------------------------------


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


# --- 6. sizes, paths and shapes -----------------------------------------------------------------


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


# --- 7. guesses ---------------------------------------------------------------------------------


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


# --- 8. in a browser ----------------------------------------------------------------------------


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
