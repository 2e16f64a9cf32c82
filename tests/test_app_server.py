"""The gate of the app: who gets in, from where, how often, and what they may do there."""

import asyncio
import errno
import io
import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import select
from starlette.responses import Response
from starlette.routing import Mount
from starlette.testclient import TestClient

from alpaca_rlhf.app import environment
from alpaca_rlhf.app.gate import MAX_REQUEST_BYTES, Gate, RateLimits
from alpaca_rlhf.app.language import preferred_language
from alpaca_rlhf.app.login_session import IDLE_S, MAX_AGE_S, RENEW_S, LoginSessions, read_secret
from alpaca_rlhf.app.proxy import ProxyHeaders
from alpaca_rlhf.app.rate_limit import RateLimit
from alpaca_rlhf.app.tabs import tabs as all_tabs
from alpaca_rlhf.app.training import TrainingCommand
from alpaca_rlhf.cli import app_command
from alpaca_rlhf.cli import main as cli
from alpaca_rlhf.cli.terminal import Terminal
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.preferences import passwords, snapshot
from alpaca_rlhf.preferences.assignment import Rules, Verdict
from alpaca_rlhf.preferences.database import DiskFull, db_flag
from alpaca_rlhf.preferences.schema import EndedSession
from alpaca_rlhf.preferences.store import Store
from tests import apps, forked
from tests.browser import free_port
from tests.databases import candidates

HOME = "http://127.0.0.1:7860"
ORIGIN = {"origin": HOME}
PASSWORD = "long enough"
SECRET_URL = "postgresql+psycopg://u:hunter2@h/n"
ROOT = Path(__file__).parent.parent
HERE = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def plain(tmp_path, monkeypatch):
    """An empty store, with cheap hashes."""
    monkeypatch.setattr(passwords, "LOG_N", 4)
    with Store(tmp_path / "preferences.db", seed=0) as store:
        yield store


@pytest.fixture
def store(plain):
    """With an admin and an annotator."""
    plain.add_annotator("boss", PASSWORD, role="admin")
    plain.add_annotator("ann", PASSWORD)
    return plain


@pytest.fixture
def enter(tmp_path):
    """Opens the app of a store, as a browser without cookies."""
    opened = []

    def begin(store, base=HOME, **options):
        wrap = options.pop("wrap", None)
        app = apps.house(store, tmp_path, **options)
        here = {} if wrap is None else {"client": ("127.0.0.1", 5)}
        client = TestClient(
            wrap(app) if wrap else app, base_url=base, follow_redirects=False, **here
        )
        client.headers["origin"] = base
        client.__enter__()
        opened.append(client)
        return client

    yield begin
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture(scope="module")
def without_accounts(tmp_path_factory):
    """One app of an empty store, for all that leaves nothing behind in it."""
    folder = tmp_path_factory.mktemp("plain")
    with (
        Store(folder / "preferences.db", seed=0) as store,
        TestClient(apps.house(store, folder), base_url=HOME, follow_redirects=False) as client,
    ):
        client.headers["origin"] = HOME
        yield client


def sign_in(client, name, password=PASSWORD):
    return client.post("/login", data={"name": name, "password": password})


def event(client, name):
    """The number of an event, from the page's own configuration."""
    dependencies = client.get("/config").json()["dependencies"]
    return next(dependency["id"] for dependency in dependencies if dependency["api_name"] == name)


def ask(client, do, **fields):
    sent = {"data": [json.dumps({"do": do, **fields})]}
    return client.post("/gradio_api/run/rank", json=sent)


# --- getting in ---------------------------------------------------------------------------------


def test_without_login_nothing_answers(enter, store):
    """Every route there is, Gradio's included: some of those ask for no login by themselves."""
    client = enter(store)
    answered = []
    n_requests = 0
    (mounted,) = (route for route in client.app.routes if isinstance(route, Mount))
    for route in [*client.app.routes, *_all(mounted.app.routes)]:
        path = getattr(route, "path", "")
        for method in getattr(route, "methods", None) or []:
            if path.rstrip("/") == "/login":
                continue
            filled = path.replace("{path_or_url:path}", "etc/passwd").replace("{path:path}", "x")
            while "{" in filled:
                head, _, rest = filled.partition("{")
                filled = head + "x" + rest.partition("}")[2]
            n_requests += 1
            response = client.request(method, filled or "/", json={})
            to_login = response.headers.get("location") == "/login"
            if response.status_code not in (401, 404, 405) and not to_login:
                answered.append((method, path, response.status_code))
    assert not answered
    assert n_requests > 60


def _all(routes):
    for route in routes:
        yield route
        inner = getattr(route, "original_router", route)  # FastAPI resolves what is included late
        yield from _all(getattr(inner, "routes", None) or [])


def test_signing_in_and_out(enter, store):
    client = enter(store)
    assert client.get("/").headers["location"] == "/login"
    assert "<form" in client.get("/login").text
    for name, password in (("ann", "wrong word"), ("nobody", PASSWORD), ("", "")):
        response = sign_in(client, name, password)
        assert response.status_code == 401 and "set-cookie" not in response.headers
        assert "Name or password is wrong" in response.text
    response = sign_in(client, "ann")
    assert response.status_code == 303 and response.headers["location"] == "/"
    cookie = response.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and "secure" not in cookie
    assert client.get("/").status_code == 200
    assert client.get("/status").json()["account"] == 2
    cookies = dict(client.cookies)
    assert client.post("/logout").headers["location"] == "/login"
    assert client.get("/status").status_code == 401
    client.cookies.update(cookies)
    assert client.get("/status").status_code == 401, "a copy of the cookie ends too"


def test_over_https_the_cookie_is_secure(enter, store):
    client = enter(store, base="https://127.0.0.1:7860")
    response = sign_in(client, "ann")
    assert "secure" in response.headers["set-cookie"].lower()
    assert "strict-transport-security" in response.headers


def test_a_page_signs_in_again_without_leaving(enter, store):
    client = enter(store)
    wants = {"accept": "application/json"}
    form = {"name": "ann", "password": "nope nope"}
    response = client.post("/login", data=form, headers=wants)
    assert response.status_code == 401 and response.json()["detail"]
    response = client.post("/login", data={**form, "password": PASSWORD}, headers=wants)
    assert response.json() == {"account": 2}


def test_a_session_dies_with_the_password_and_the_account(enter, store):
    for change in ({"password": "another word"}, {"active": False}):
        client = enter(store)
        sign_in(client, "ann", PASSWORD)
        assert client.get("/status").status_code == 200
        store.change_annotator(2, actor="test", **change)
        assert client.get("/status").status_code == 401
        assert ask(client, "next").status_code == 401
        store.change_annotator(2, active=True, password=PASSWORD, actor="test")


def test_the_login_page_speaks_chinese(enter, store):
    client = enter(store)
    response = client.get("/login", headers={"accept-language": "zh-CN,zh;q=0.9,en;q=0.5"})
    assert "登录" in response.text and 'lang="zh-CN"' in response.text


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("", "en"),
        ("zh", "zh-CN"),
        ("zh-TW, en;q=0.9", "zh-CN"),
        ("en;q=0.8, zh-CN;q=0.9", "zh-CN"),
        ("fr, en-GB;q=0.7, zh;q=0.3", "en"),
        ("de", "en"),
        ("zh;q=nonsense", "en"),
        ("english", "en"),
    ],
)
def test_the_language_of_a_request(header, language):
    assert preferred_language({"accept-language": header}) == language


# --- cookies ------------------------------------------------------------------------------------


class Clock:
    now = 1_700_000_000.0

    def __call__(self):
        return self.now


def test_cookies_are_not_forged_and_end(store):
    clock = Clock()
    sessions = LoginSessions(store, apps.SECRET, clock)
    cookie = sessions.cookie(2)
    assert sessions.read(cookie).account.name == "ann"
    account, began, renewed, signature = cookie.split(".")
    other_signature = sessions.cookie(1).split(".")[3]
    for forged in (
        f"1.{began}.{renewed}.{signature}",
        f"{account}.{began}.{int(renewed) + 1}.{signature}",
        f"{account}.{began}.{renewed}.{other_signature}",
        f"{account}.{began}.{renewed}.",
        f" {cookie}",
        f"+{cookie}",
        f"{account}.{began}.{renewed}.é",
        "99." + cookie,
        "9" * 30 + f".{began}.{renewed}.{signature}",
        "",
        "....",
        LoginSessions(store, b"y" * 32, clock).cookie(2),
    ):
        assert sessions.read(forged) is None, forged
    assert LoginSessions(store, apps.SECRET, clock).read(cookie), "a restart signs nobody out"
    clock.now += IDLE_S - 1
    assert sessions.read(cookie)
    clock.now += 2
    assert sessions.read(cookie) is None


def test_a_session_in_use_goes_on_but_not_for_ever(store):
    clock = Clock()
    sessions = LoginSessions(store, apps.SECRET, clock)
    cookie = sessions.cookie(2)
    assert sessions.renewal(sessions.read(cookie)) is None, "not on every request"
    begin = clock.now
    while (session := sessions.read(cookie)) is not None:
        clock.now += IDLE_S / 2
        cookie = sessions.renewal(session) or cookie
        assert clock.now - begin < 2 * MAX_AGE_S
    assert MAX_AGE_S <= clock.now - begin <= MAX_AGE_S + IDLE_S


def test_logging_out_ends_every_cookie_of_the_login(tmp_path, store):
    """A copy from before a renewal too, and after a restart; other logins go on."""
    clock = Clock()
    sessions = LoginSessions(store, apps.SECRET, clock)
    stolen = sessions.cookie(2)
    clock.now += RENEW_S
    elsewhere = sessions.cookie(2)
    renewed = sessions.renewal(sessions.read(stolen))
    assert sessions.read(renewed) and sessions.read(stolen)
    held = sessions.read(stolen)
    for not_genuine in ("", "2.1.1.x", f"1.{held.began}.{held.renewed}.{stolen[-64:]}"):
        sessions.end(not_genuine)
    assert sessions.read(stolen), "only who holds a cookie ends its login"
    sessions.end(renewed)
    sessions.end(renewed)
    clock.now += RENEW_S
    with Store(tmp_path / "preferences.db") as reopened:
        for known in (sessions, LoginSessions(reopened, apps.SECRET, clock)):
            assert known.read(stolen) is None and known.read(renewed) is None
            assert known.renewal(held) is None, "a request under way renews nothing"
            assert known.read(elsewhere).account.name == "ann"


def test_an_idle_page_that_logs_out_ends_a_copy_that_was_kept_in_use(store):
    clock = Clock()
    sessions = LoginSessions(store, apps.SECRET, clock)
    idle = sessions.cookie(2)
    clock.now += IDLE_S - RENEW_S
    copied = sessions.renewal(sessions.read(idle))
    clock.now += 2 * RENEW_S
    assert sessions.read(idle) is None and sessions.read(copied)
    sessions.end(idle)
    assert sessions.read(copied) is None


def test_the_list_of_ended_logins_does_not_grow_for_ever(store):
    clock = Clock()
    sessions = LoginSessions(store, apps.SECRET, clock)
    for _ in range(4):
        sessions.end(sessions.cookie(2))
        clock.now += MAX_AGE_S
    with store.database.reading() as session:
        assert len(session.scalars(select(EndedSession)).all()) <= 2


def test_on_a_full_disk_logging_out_still_ends_the_login(enter, store, monkeypatch):
    client = enter(store)
    sign_in(client, "ann")
    cookies = dict(client.cookies)

    def full(*_, **__):
        raise DiskFull("--db: the disk is full")

    monkeypatch.setattr(store, "end_session", full)
    assert client.post("/logout").headers["location"] == "/login"
    client.cookies.update(cookies)
    assert client.get("/status").status_code == 401


def test_the_secret_is_its_owners_alone(tmp_path):
    path = tmp_path / "app.secret"
    secret = read_secret(path)
    assert len(secret) == 32 and path.stat().st_mode & 0o777 == 0o600
    assert read_secret(path) == secret
    path.chmod(0o640)
    with pytest.raises(UserError, match="chmod 600"):
        read_secret(path)
    path.chmod(0o600)
    for broken in ("", "ab", "not hex at all"):
        path.write_text(broken)
        with pytest.raises(UserError, match="delete it"):
            read_secret(path)


# --- from where ---------------------------------------------------------------------------------


def test_a_name_that_was_made_to_point_here_is_refused(without_accounts):
    client = without_accounts
    for host, status in (
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example:7860", 421),
        ("", 421),
        ("[", 421),  # which no parser takes: refused as any other, and no traceback
        ("[::1", 421),
        ("localhost]", 421),
        ("127.0.0.1:7860", 200),
        ("LOCALHOST:7860", 200),
        ("[::1]:7860", 200),
        ("192.168.1.7:7860", 200),
    ):
        assert client.get("/status", headers={"host": host}).status_code == status, host


def test_a_post_comes_from_our_own_page(enter, plain):
    plain.add_sets(candidates(1), origin="test")
    client = enter(plain)
    for origin, status in (
        ("https://evil.example", 403),
        ("null", 403),
        ("", 403),
        ("http://127.0.0.1", 403),
        ("https://127.0.0.1:7860", 403),
        ("http://127.0.0.1:7860.evil.example", 403),
        ("http://[", 403),
        (HOME, 200),
    ):
        client.headers["origin"] = origin
        assert ask(client, "next").status_code == status, origin
        if status == 403:
            assert plain.figures().counts["open_places"] >= 1
    del client.headers["origin"]
    assert ask(client, "next").status_code == 403


def test_behind_a_proxy_that_passes_on_nothing_people_sign_in(enter, store):
    """nginx with a bare `proxy_pass`: our host is its name for us, and the scheme is http."""
    client = enter(store, wrap=ProxyHeaders, origin="https://rank.example.org")
    for origin, status in (
        ("https://rank.example.org", 303),
        ("https://rank.example.org.evil.example", 403),
        ("http://rank.example.org", 403),
        ("https://other.example.org", 403),
        ("null", 403),
        ("", 403),
        (HOME, 303),
    ):
        client.headers["origin"] = origin
        assert sign_in(client, "ann").status_code == status, origin


def test_the_gate_judges_the_path_that_is_served():
    """An address that is put together and parsed again loses tabs: it is not what the app sees."""
    served = []

    async def app(scope, receive, send):
        served.append(scope["path"])
        await Response()(scope, receive, send)

    gate = Gate(
        app,
        authenticator=SimpleNamespace(session=lambda cookie: None),
        sessions=SimpleNamespace(cookie_name="cookie"),
        hosts=["localhost"],
        limits=RateLimits.default(local=True),
    )
    client = TestClient(gate, base_url=HOME)
    for path in ("/lo%09gin", "/login%0a", "/stat%0dus"):
        assert client.get(path).status_code == 404, path
    assert client.get("/login").status_code == 200
    assert served == ["/login"]


def test_other_sites_may_link_here_and_nothing_else(without_accounts):
    client = without_accounts
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert client.get("/", headers=link).status_code == 200
    for site in ("cross-site", "same-site"):
        read = {"sec-fetch-site": site, "sec-fetch-mode": "no-cors"}
        assert client.get("/status", headers=read).status_code == 403


def test_every_answer_carries_the_headers(enter, store):
    client = enter(store)
    answers = [
        client.get("/login"),
        client.get("/"),
        client.get("/status"),
        client.get("/nothing/here"),
        client.get("/login", headers={"host": "evil.example"}),
        client.post("/login", headers={"origin": "null"}),
    ]
    sign_in(client, "ann")
    answers.append(client.get("/"))
    assert [response.status_code for response in answers] == [200, 303, 401, 404, 421, 403, 200]
    for response in answers:
        policy = response.headers["content-security-policy"]
        assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy
        assert "http" not in policy and "*" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "DENY"
        assert response.headers["referrer-policy"] == "same-origin"
        assert response.headers["cache-control"] == "no-store"


def test_too_large_a_request_is_refused(without_accounts):
    client = without_accounts
    big = b"x" * (MAX_REQUEST_BYTES + 1)
    assert client.post("/gradio_api/run/rank", content=big).status_code == 413

    def pieces(n):
        yield b'{"data": ["{\\"do\\": \\"next\\", \\"more\\": \\"'
        for _ in range(n):
            yield b"x" * (MAX_REQUEST_BYTES // 8)
        yield b'\\"}"]}'

    json_ = {"content-type": "application/json"}
    response = client.post("/gradio_api/run/rank", content=pieces(7), headers=json_)
    assert response.status_code == 200, response.text
    response = client.post("/gradio_api/run/rank", content=pieces(9), headers=json_)
    assert response.status_code == 413 and "data" not in response.text


def test_what_no_tab_needs_is_closed(without_accounts):
    client = without_accounts
    for path in ("upload", "component_server/", "vibe-edit/", "stream/x", "process_recording"):
        assert client.post(f"/gradio_api/{path}", json={}).status_code == 404
    for path in ("/monitoring", "/gradio_api/runs", "/gradio_api/proxy=http://x", "/docs"):
        assert client.get(path).status_code == 404
    for path in ("/gradio_api/dev/reload", "/gradio_api/openapi.json", "/gradio_api/mcp/sse"):
        assert client.get(path).status_code == 404
    assert client.get("/gradio_api/file=/etc/passwd").status_code in (403, 404)
    assert client.request("PUT", "/status").status_code == 405
    config = client.get("/config").json()
    assert not config["footer_links"] and not config.get("is_vibe_mode")
    assert config["run_history"] is False and config.get("mcp_server") in (None, False)


# --- who may do what ----------------------------------------------------------------------------


def queued(client, number, data=()):
    """Run an event by the queue, and what its stream says in the end."""
    body = {"data": list(data), "fn_index": number, "session_hash": "abc", "event_data": {}}
    joined = client.post("/gradio_api/queue/join", json=body)
    assert joined.status_code == 200, joined.text
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": "abc"}) as stream:
        for line in stream.iter_lines():
            if '"process_completed"' in line:
                return json.loads(line.removeprefix("data: "))
    raise AssertionError("the stream ended early")


def called(client, name, data=()):
    joined = client.post(f"/gradio_api/call/{name}", json={"data": list(data)}).json()
    with client.stream("GET", f"/gradio_api/call/{name}/{joined['event_id']}") as stream:
        return "".join(stream.iter_text())


def test_only_admins_use_the_data_tab_however_they_call_it(enter, store, tmp_path):
    """By the queue, by name, directly: the server asks, whatever the page shows."""
    snapshots = tmp_path / "snapshots"
    client = enter(store)
    sign_in(client, "ann")
    number = event(client, "export")
    assert queued(client, event(client, "who"))["output"]["data"] == ["ann"]
    outcome = queued(client, number)
    assert outcome["success"] is False and "admins only" in outcome["output"]["error"]
    assert "event: error" in called(client, "export")
    assert client.post("/gradio_api/run/export", json={"data": []}).status_code >= 400
    assert not snapshots.exists()
    names = ("refresh", "newest_flags", "add_person", "change_person", "handle_flag")
    for name in (
        *names,
        "leave_out_set",
        "leave_out_below",
        "save_guidelines",
        "show_guidelines_of_admin",
    ):
        number = event(client, name)
        assert queued(client, number, ["x"] * 3)["success"] is False, name
    assert len(store.figures().people) == 2
    boss = enter(store)
    sign_in(boss, "boss")
    assert queued(boss, event(boss, "export"))["success"]
    (folder,) = snapshots.iterdir()
    path = f"/snapshots/{folder.name}/rankings.jsonl"
    assert boss.get(path).status_code == 200
    assert client.get(path).status_code == 403
    assert boss.get(f"/snapshots/{folder.name}/other").status_code == 404
    assert boss.get("/snapshots/%2e%2e/preferences.db").status_code == 404
    store.change_annotator(1, role="admin", actor="test")
    store.change_annotator(2, role="admin", actor="test")
    store.change_annotator(1, role="annotator", actor="test")
    assert queued(boss, event(boss, "export"))["success"] is False, "from then on"


def test_here_without_accounts_there_is_an_admin_who_needs_no_login(enter, plain):
    client = enter(plain)
    assert client.get("/login").headers["location"] == "/"
    assert queued(client, event(client, "refresh"))["success"]
    assert client.get("/status").json()["account"] == 1
    plain.add_annotator("boss", PASSWORD, role="admin")
    assert client.get("/status").status_code == 401, "from the first account on everybody signs in"
    assert sign_in(client, "local", "").status_code == 401


def test_annotators_are_told_no_command_and_no_secret(enter, store, tmp_path):
    """Whatever an annotator's browser can fetch; only an admin who finds no task is told more."""
    refill = app_command._refill(app_command.App(db=SECRET_URL, run=Path("/srv/hidden/mine")))
    assert refill == "alpaca-rlhf sample --run /srv/hidden/mine --db postgresql+psycopg://u@h/n"
    command = TrainingCommand([], "alpaca-rlhf loop --out /srv/hidden/mine", "flag")
    everything = all_tabs(store, None, apps.exports(tmp_path), refill=refill, command=command)
    assert everything.worker is None and everything.train is None
    tabs = everything.tabs
    client = enter(store, tabs=tabs, run="/srv/hidden/mine")
    sign_in(client, "ann")
    pages = ["/config", "/", "/status", "/gradio_api/info", "/theme.css"]
    answers = [client.get(page).text for page in pages]
    answers += [ask(client, do).text for do in ("next", "progress")]
    answers.append(
        json.dumps(queued(client, client.get("/config").json()["dependencies"][-1]["id"]))
    )
    for answer in answers:
        for secret in (
            "hunter2",
            "alpaca-rlhf sample",
            "alpaca-rlhf loop",
            "/srv/hidden",
            "psycopg",
        ):
            assert secret not in answer
    assert "mine" in answers[-1], "the run's name is the header's"
    boss = enter(store, tabs=tabs, run="/srv/hidden/mine")
    sign_in(boss, "boss")
    assert refill not in boss.get("/config").text
    assert json.loads(ask(boss, "next").json()["data"][0])["refill"] == refill


@pytest.mark.parametrize(
    ("typed", "repeated"),
    [
        (None, []),
        ("people:1.db", ["--db", "people:1.db"]),
        ("postgresql+psycopg://u@h/n", ["--db", "postgresql+psycopg://u@h/n"]),
        ("postgresql+psycopg://u:p%40w@h:5/n", ["--db", "postgresql+psycopg://u@h:5/n"]),
        (
            "postgresql+psycopg://u@h/n?password=pw&sslmode=require",
            ["--db", "postgresql+psycopg://u@h/n?sslmode=require"],
        ),
    ],
)
def test_a_command_that_is_shown_repeats_no_password(typed, repeated):
    assert db_flag(typed) == repeated


def test_a_lost_password_is_set_by_a_command(store, monkeypatch, capsys, enter):
    client = enter(store)
    assert sign_in(client, "boss").status_code == 303
    monkeypatch.setattr("sys.stdin", io.StringIO("another one\n"))
    with Terminal() as terminal:
        assert app_command._set_password(store, "boss", terminal) == 0
        with pytest.raises(UserError, match=r"--set-password nobody: .* there is boss, ann"):
            app_command._set_password(store, "nobody", terminal)
    assert "another one" not in capsys.readouterr().out
    assert client.get("/status").status_code == 401, "sessions of the lost password have ended"
    assert sign_in(client, "boss").status_code == 401
    assert sign_in(client, "boss", "another one").status_code == 303


def test_without_accounts_there_is_no_password_to_set(tmp_path):
    with Store(tmp_path / "empty.db") as store, Terminal() as terminal:
        with pytest.raises(UserError, match=r"--set-password ada: .* --add-user ada makes"):
            app_command._set_password(store, "ada", terminal)


def test_everybody_changes_their_own_password(enter, store):
    client, elsewhere = enter(store), enter(store)
    sign_in(client, "ann")
    sign_in(elsewhere, "ann")

    def change(current, new, again=None, **more):
        return client.post(
            "/password", data={"current": current, "new": new, "again": again or new}, **more
        )

    page = client.get("/password")
    assert page.status_code == 200 and "ann" in page.text
    assert change("wrong", "brand new word").status_code == 422
    assert "differ" in change(PASSWORD, "brand new word", "another word").text
    assert "too short" in change(PASSWORD, "short").text
    assert (
        change(PASSWORD, "brand new word", headers={"origin": "https://evil.example"}).status_code
        == 403
    )
    assert store.sign_in("ann", PASSWORD) is not None, "nothing has changed so far"
    changed = change(PASSWORD, "brand new word")
    assert (changed.status_code, changed.headers["location"]) == (303, "/")
    assert client.get("/status").status_code == 200, "this session goes on"
    assert elsewhere.get("/status").status_code == 401, "all others have ended"
    assert store.sign_in("ann", "brand new word") is not None
    nobody = enter(store)
    assert nobody.get("/password").status_code == 401
    assert (
        nobody.post(
            "/password", data={"current": "brand new word", "new": "x" * 9, "again": "x" * 9}
        ).status_code
        == 401
    )


def test_the_current_password_is_not_guessed_at_leisure(enter, store):
    client = enter(store)
    sign_in(client, "ann")
    form = {"current": "guess", "new": "brand new word", "again": "brand new word"}
    statuses = [client.post("/password", data=form).status_code for _ in range(12)]
    assert statuses == [422] * 10 + [429] * 2


def test_without_accounts_there_is_no_password_to_change(enter, plain):
    client = enter(plain)
    assert client.get("/password").headers["location"] == "/"
    assert client.post("/password", data={}).headers["location"] == "/"


def test_adding_somebody_prints_no_password_of_the_database(store, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("long enough\n"))
    with Terminal() as terminal:
        app_command._add_user(store, app_command.App(db=SECRET_URL, add_user="new"), terminal)
    output = capsys.readouterr()
    assert "app --db postgresql+psycopg://u@h/n" in output.out
    assert "hunter2" not in output.out + output.err and "long enough" not in output.out


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("run/rank", b'{"data": []}', 422),
        ("run/rank", b'{"data": null}', 422),
        ("run/rank", b'{"data": "x"}', 422),
        ("run/rank", b"{}", 422),
        ("run/rank", b"[]", 422),
        ("run/rank", b"not json", 422),
        ("run/rank", b"[" * 100_000, 422),
        ("run/rank", b"", 422),
        ("run/rank", b'{"data": [], "fn_index": 9999}', 404),
        ("run/rank", b'{"data": [], "fn_index": "x"}', 404),
        ("run/no_such_event", b'{"data": []}', 404),
        ("call/echo", b'{"data": []}', 422),
        ("call/no_such_event", b'{"data": []}', 404),
        ("queue/join", b'{"data": [], "session_hash": "abc"}', 404),
        ("queue/join", b'{"data": [], "fn_index": -1, "session_hash": "abc"}', 404),
    ],
)
def test_a_call_that_no_page_sends_is_refused_in_one_line(
    without_accounts, capfd, path, body, status
):
    json_ = {"content-type": "application/json"}
    response = without_accounts.post(f"/gradio_api/{path}", content=body, headers=json_)
    assert response.status_code == status, response.text
    assert len(response.json()["detail"]) < 80
    assert "Traceback" not in capfd.readouterr().err


def test_an_event_without_its_inputs_is_refused_in_the_queue_too(without_accounts, capfd):
    client = without_accounts
    body = {"data": [], "fn_index": event(client, "add_person"), "session_hash": "abc"}
    assert client.post("/gradio_api/queue/join", json=body).status_code == 422
    assert called(client, "echo", ["said"]).count("said") == 1
    assert "Traceback" not in capfd.readouterr().err


def test_on_a_full_disk_an_admin_is_told_so_and_no_snapshot_is_left(
    enter, store, tmp_path, monkeypatch, capfd
):
    boss = enter(store)
    sign_in(boss, "boss")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(snapshot._HashedFile, "add", full)
        outcome = queued(boss, event(boss, "export"))
    assert outcome["success"] and "No space left on device" in outcome["output"]["data"][0]
    assert not list((tmp_path / "snapshots").glob("*"))

    def disk_full(*_, **__):
        raise DiskFull("--db: the disk is full")

    def moved(*_, **__):
        raise UserError("/home/me/prompts.jsonl: no such file")

    for name, method, error, shown in (
        ("refresh", "figures", full, "disk is full"),
        ("newest_flags", "flagged", disk_full, "disk is full"),
        ("newest_flags", "flagged", moved, "a file of the run cannot be read"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(store, method, error)
            outcome = queued(boss, event(boss, name))
        assert outcome["success"] is False and shown in outcome["output"]["error"], name
        assert "/home/me" not in outcome["output"]["error"]
    assert "Traceback" not in capfd.readouterr().err
    assert queued(boss, event(boss, "export"))["success"]


# --- how often ----------------------------------------------------------------------------------


def test_guessing_passwords_is_slow(enter, store):
    client = enter(store)
    statuses = [sign_in(client, "ann", f"guess {i} guess").status_code for i in range(12)]
    assert statuses == [401] * 10 + [429] * 2
    late = sign_in(client, "ann")
    assert late.status_code == 429 and int(late.headers["retry-after"]) > 0
    assert sign_in(client, "boss").status_code == 303, "another name may still sign in"
    statuses = [sign_in(client, f"name {i}", "guess guess").status_code for i in range(12)]
    assert statuses == [401] * 10 + [429] * 2, "20 of one address, whatever the names"


def test_guesses_sent_at_once_are_counted_too(enter, store):
    client = enter(store)
    with ThreadPoolExecutor(24) as many:
        statuses = [
            response.status_code
            for response in many.map(lambda i: sign_in(client, "ann", f"guess {i}"), range(24))
        ]
    assert sorted(statuses) == [401] * 10 + [429] * 14


def test_forged_addresses_do_not_walk_round_the_limit_of_sign_ins(enter, store):
    """Behind a proxy: only what it added counts, and that alone is not believed for ever."""
    client = enter(store, wrap=ProxyHeaders)

    def guess(i, forwarded):
        client.headers["x-forwarded-for"] = forwarded
        return sign_in(client, "ann", f"guess {i} guess").status_code

    statuses = [guess(i, f"10.0.0.{i}, 198.51.100.7") for i in range(12)]
    assert statuses == [401] * 10 + [429] * 2, "one address, whatever stands left of it"
    client.headers["x-forwarded-for"] = "198.51.100.8"
    assert sign_in(client, "ann").status_code == 303, "another address is another person"
    statuses = [guess(i, f"10.0.1.{i}, 127.0.0.1") for i in range(12)]
    assert statuses == [401] * 10 + [429] * 2, "not even where the last hop is this machine"
    # Sent past the proxy, from this machine, with an address that nobody checks.
    statuses = [guess(i, f"10.0.2.{i}") for i in range(40)]
    assert statuses == [401] * 10 + [429] * 30, "30 guesses of one name from wherever they come"
    client.headers["x-forwarded-for"] = "198.51.100.8"
    assert sign_in(client, "ann").status_code == 303, "at her usual address she is not kept out"


@pytest.mark.parametrize(
    ("headers", "address", "scheme"),
    [
        ([], "127.0.0.1", "http"),
        ([("x-forwarded-for", "1.2.3.4, 5.6.7.8")], "5.6.7.8", "http"),
        ([("x-forwarded-for", "1.2.3.4"), ("x-forwarded-for", "5.6.7.8")], "5.6.7.8", "http"),
        ([("x-forwarded-for", "5.6.7.8:4711")], "5.6.7.8", "http"),
        ([("x-forwarded-for", "[2001:db8::1]:4711")], "2001:db8::1", "http"),
        ([("x-forwarded-for", "1.2.3.4, 127.0.0.1")], "127.0.0.1", "http"),
        ([("x-forwarded-for", "1.2.3.4, unknown")], "127.0.0.1", "http"),
        ([("x-forwarded-for", "1.2.3.4,")], "127.0.0.1", "http"),
        ([("x-forwarded-proto", "https")], "127.0.0.1", "https"),
        ([("x-forwarded-proto", "https, http")], "127.0.0.1", "http"),
        ([("x-forwarded-proto", "file")], "127.0.0.1", "http"),
    ],
)
def test_only_the_last_hop_of_a_proxy_counts(headers, address, scheme):
    seen = {}

    async def app(scope, receive, send):
        seen.update(scope)

    raw = [(name.encode(), value.encode()) for name, value in headers]
    scope = {"type": "http", "client": ("127.0.0.1", 5), "scheme": "http", "headers": raw}
    asyncio.run(ProxyHeaders(app)(scope, None, None))
    assert (seen["client"][0], seen["scheme"]) == (address, scheme)
    scope |= {"client": ("192.0.2.1", 5), "scheme": "http"}
    asyncio.run(ProxyHeaders(app)(scope, None, None))
    assert (seen["client"][0], seen["scheme"]) == ("192.0.2.1", "http"), "only a proxy is believed"


def test_a_room_full_of_people_signs_in_at_once(enter, store):
    client = enter(store)
    for i in range(8):  # of the 10 and the 20 that are let through
        assert sign_in(client, "ann", f"guess {i} guess").status_code == 401
    with ThreadPoolExecutor(50) as many:
        responses = list(many.map(lambda _: sign_in(client, "ann"), range(50)))
    statuses = [response.status_code for response in responses]
    assert statuses == [303] * 50, "all come from one address, as behind a router"


def test_a_right_password_costs_no_guess(enter, store):
    client = enter(store)
    for _ in range(25):
        assert sign_in(client, "ann").status_code == 303
    statuses = [sign_in(client, "ann", f"guess {i} guess").status_code for i in range(12)]
    assert statuses == [401] * 10 + [429] * 2


def test_where_others_can_reach_it_everything_is_counted(enter, store):
    still = RateLimit(5, 0.001)
    limits = RateLimits(False, still, RateLimit(20, 1), RateLimit(10, 1))
    client = enter(store, local=False, limits=limits)
    sign_in(client, "ann")
    responses = [client.get("/status") for _ in range(7)]
    assert [response.status_code for response in responses] == [200] * 5 + [429] * 2
    assert int(responses[-1].headers["retry-after"]) > 0
    limits = RateLimits(True, RateLimit(5, 0.001), RateLimit(20, 1), RateLimit(10, 1))
    client = enter(store, limits=limits)
    sign_in(client, "ann")
    assert {client.get("/status").status_code for _ in range(9)} == {200}, "here it is not"


def test_a_bucket_fills_up_again():
    clock = Clock()
    clock.now = 0.0
    limit = RateLimit(3, 0.5, clock)
    assert [limit.take("a") for _ in range(4)] == [0, 0, 0, 2.0]
    assert limit.take("b") == 0 and limit.wait_s("a") == 2.0
    clock.now = 2.0
    assert limit.take("a") == 0 and limit.take("a") == 2.0
    clock.now = 1000.0
    assert [limit.take("a") for _ in range(4)] == [0, 0, 0, 2.0], "never more than the burst"


# --- the command --------------------------------------------------------------------------------


def test_gradios_own_switches_do_nothing(monkeypatch, enter, plain):
    for name in ("GRADIO_SHARE", "GRADIO_MCP_SERVER", "GRADIO_ALLOWED_PATHS", "GRADIO_RUN_HISTORY"):
        monkeypatch.setenv(name, "True")
    config = enter(plain).get("/config").json()
    assert config["run_history"] is False and not config.get("mcp_server")
    environment.isolate_environment()
    switches = {name for name in os.environ if name.startswith("GRADIO_")}
    assert switches == {"GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR"}
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert os.stat(os.environ["GRADIO_TEMP_DIR"]).st_mode & 0o077 == 0
    monkeypatch.setenv("GRADIO_VIBE_MODE", "1")
    with pytest.raises(UserError, match="GRADIO_VIBE_MODE"):
        enter(plain)


def one_line(capsys, code, *fragments):
    message = capsys.readouterr().err
    assert code == 2 and message.count("\n") == 1, message
    for fragment in fragments:
        assert fragment in message


def test_what_would_open_the_app_to_others_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for flags in (["--host", "0.0.0.0"], ["--host", "192.168.0.1"], ["--url", "https://a.example"]):
        one_line(capsys, cli.main(["app", *flags]), flags[0], "--add-user")
    one_line(capsys, cli.main(["app", "--role", "admin"]), "--add-user")
    one_line(capsys, cli.main(["app", "--url", "a.example"]), "--url", "https://")
    one_line(capsys, cli.main(["app", "--url", "https://a.example/x?y"]), "path alone")
    one_line(capsys, cli.main(["app", "--root-path", "/x"]), "--root-path /x", "--add-user")
    one_line(capsys, cli.main(["app", "--db", "mysql://x/y"]), "--db")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        one_line(capsys, cli.main(["app", "--port", port]), f"--port {port}")
    one_line(capsys, cli.main(["app", "--host", "203.0.113.7", "--port", "0"]), "--port")


def command(folder, *flags):
    return [sys.executable, "-m", "alpaca_rlhf", "app", "--db", str(folder / "p.db"), *flags]


def test_accounts_from_the_command_line(tmp_path, monkeypatch):
    """The password is never an argument; the first one is an admin, so that there is one."""

    def add(*flags, word="long enough\n"):
        return forked.run(*command(tmp_path, "--add-user", *flags)[1:], input=word, env=HERE)

    done = add("boss", "--role", "annotator")
    assert done.returncode == 2 and "must be an admin" in done.stderr
    assert add("boss", word="short\n").returncode == 2
    assert add("boss", word="").returncode == 2
    done = add("boss")
    assert done.returncode == 0 and "admin" in done.stdout and "long enough" not in done.stdout
    done = add("boss")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert add("ann").returncode == 0
    with Store(tmp_path / "p.db") as store:
        assert store.sign_in("boss", "long enough").role == "admin"
        assert store.sign_in("ann", "long enough").role == "annotator"


def test_gold_questions_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [
        {"prompt": f"Say {i}.", "responses": ["bad", "good", "fair"], "ranks": [3, 1, 2]}
        for i in range(2)
    ]
    file = tmp_path / "gold.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(["app", "--add-gold", str(file)]) == 0
    assert cli.main(["app", "--add-gold", str(file)]) == 0
    output = capsys.readouterr().out
    assert "2 gold questions added" in output and "0 gold questions added" in output
    always = Rules(gold_rate=1, repeat_rate=0, second_share=0)
    with Store(tmp_path / "preferences.db", rules=always, seed=0) as store:
        ann = store.add_annotator("Ann", "long enough")
        for right in (True, False):
            task = store.claim(ann)
            by_text = {completion.text: completion for completion in task.completions}
            order = [by_text[text] for text in ("good", "fair", "bad")]
            tiers = tuple((completion.id,) for completion in (order if right else order[::-1]))
            store.submit(ann, task.id, Verdict(tiers), revision=task.revision)
        figures = store.figures()
        assert (figures.gold_rate, figures.gold_asked) == (0.5, 2)
    file.write_text(json.dumps({"chosen": "a", "rejected": "b"}) + "\n")
    assert cli.main(["app", "--add-gold", str(file)]) == 2
    assert "no rankings" in capsys.readouterr().err


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_serves_before_any_model_is_there_and_ends_with_a_signal(
    number, code, tmp_path
):
    import httpx

    port = free_port()
    files = tmp_path / "tmp"
    files.mkdir()
    process = subprocess.Popen(
        [*command(tmp_path, "--port", str(port))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**HERE, "GRADIO_SHARE": "1", "GRADIO_MCP_SERVER": "1", "TMPDIR": str(files)},
    )
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if f"http://127.0.0.1:{port}" in line:
                break
        assert process.poll() is None, process.stderr.read()
        assert httpx.get(f"http://127.0.0.1:{port}/", timeout=60).status_code == 200
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        assert "libtorch" not in maps, "torch was loaded before the page was there"
        with httpx.stream("GET", f"http://127.0.0.1:{port}/gradio_api/heartbeat/x", timeout=60):
            assert any(files.iterdir())
            process.send_signal(number)
            assert process.wait(60) == code, process.stderr.read()
    finally:
        process.kill()
        process.wait()
    errors = process.stderr.read()
    assert "Traceback" not in errors and ("To go on:" in errors) == (number == signal.SIGINT)
    assert not any(files.iterdir()), "files that people sent stay nowhere"
    assert (tmp_path / "app.secret").exists() or (tmp_path / "p.db.secret").exists()


def test_without_a_port_the_next_free_one_is_taken(monkeypatch):
    from alpaca_rlhf.app.server_socket import listen

    default_port = free_port()
    with listen("127.0.0.1", None, default_port) as first:
        first.listen()
        assert first.getsockname()[1] == default_port
        with listen("127.0.0.1", None, default_port) as second:
            assert second.getsockname()[1] > default_port
        with pytest.raises(UserError, match=f"--port {default_port}"):
            listen("127.0.0.1", default_port, default_port)
