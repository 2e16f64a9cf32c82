"""The app behind nginx and Caddy, configured as the guide says: at a host's root and below a path.

Over http, and over https with a certificate of the test's own. Everything listens on 127.0.0.1;
where a proxy is not installed its cases are skipped.
"""

import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gradio as gr
import httpx
import pytest
from starlette.testclient import TestClient

from alpaca_rlhf.app.new_run import Offer
from alpaca_rlhf.app.page_layout import Tab
from alpaca_rlhf.app.proxy import ProxyHeaders
from alpaca_rlhf.app.rank_tab import rank_tab
from alpaca_rlhf.app.run_choice import RunChoice
from alpaca_rlhf.app.train_tab import TrainPage, train_tab
from alpaca_rlhf.app.training import Training, TrainingCommand
from alpaca_rlhf.cli import app_command
from alpaca_rlhf.cli import main as cli
from alpaca_rlhf.cli.terminal import Terminal
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.preferences import passwords
from alpaca_rlhf.preferences.assignment import Rules
from alpaca_rlhf.preferences.store import Store
from tests import apps, browser
from tests.databases import candidates
from tests.screenshots import open_tab
from tests.test_app_train import STAND_IN, until

GUIDE = Path(__file__).parent.parent / "docs" / "guides" / "ranking-with-a-team.md"
PASSWORD = "long enough"
NGINX, CADDY = shutil.which("nginx") or shutil.which("/usr/sbin/nginx"), shutil.which("caddy")
OPENSSL = shutil.which("openssl")

STRIPPED = "location /rank/ {\n    proxy_pass http://127.0.0.1:7860/;\n}"
"""The configuration that people write first: no header is passed on, and a path is cut off."""


def blocks(begin):
    """The indented blocks of the guide whose first line matches."""
    text = GUIDE.read_text()
    found = re.findall(r"(?:^    .*\n|^\n(?=    ))+", text, re.MULTILINE)
    lines = ["\n".join(line[4:] for line in block.splitlines()).strip() for block in found]
    return [block for block in lines if re.match(begin, block)]


def published(begin, path):
    (block,) = (one for one in blocks(begin) if ("/rank" in one) == bool(path) and "7860" in one)
    return block


def stream_tab(services):
    """Pieces that come one by one; a proxy that keeps them back shows them all at once."""
    button, shown = gr.Button("Stream"), gr.Textbox(label="Streamed", elem_id="streamed")

    def pieces():
        for piece in range(3):
            yield f"piece {piece}"
            time.sleep(0.5)

    button.click(pieces, None, shown, api_visibility="private")


@dataclass(frozen=True)
class Certificate:
    """A self-signed certificate of 127.0.0.1."""

    public: Path
    """The certificate."""
    private: Path
    """Its key."""


def self_signed(folder):
    """A new certificate, good for two days."""
    certificate = Certificate(folder / "cert.pem", folder / "key.pem")
    words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    words += ["-keyout", certificate.private, "-out", certificate.public, "-days", "2"]
    words += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([OPENSSL, *map(str, words)], check=True, capture_output=True)
    return certificate


def trust(certificate):
    """The certificates that a client trusts: this one alone, which is its own authority."""
    return certificate is None or ssl.create_default_context(cafile=certificate.public)


def gap_of_stream(page, home, certificate):
    """Seconds from the first piece of a stream to its end, with the cookie of a page."""
    cookies = {cookie["name"]: cookie["value"] for cookie in page.context.cookies()}
    options = {"headers": {"origin": home.removesuffix("/rank")}, "verify": trust(certificate)}
    arrived = {}
    with httpx.Client(cookies=cookies, trust_env=False, timeout=60, **options) as client:
        events = client.get(f"{home}/config").json()["dependencies"]
        (number,) = (event["id"] for event in events if event["api_name"] == "pieces")
        body = {"data": [], "fn_index": number, "session_hash": "abc"}
        assert client.post(f"{home}/gradio_api/queue/join", json=body).status_code == 200
        where = f"{home}/gradio_api/queue/data?session_hash=abc"
        with client.stream("GET", where) as stream:
            for line in stream.iter_lines():
                kind = json.loads(line.removeprefix("data: "))["msg"] if line else ""
                arrived.setdefault(kind, time.monotonic())
    return arrived["process_completed"] - arrived["process_generating"]


@contextmanager
def nginx(folder, port, location, certificate):
    folder.mkdir()
    listen = f"listen 127.0.0.1:{port};"
    if certificate is not None:
        listen = (
            f"listen 127.0.0.1:{port} ssl; ssl_certificate {certificate.public}; "
            f"ssl_certificate_key {certificate.private};"
        )
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/log; worker_processes 1;\n"
        "events {} http { access_log off;\n"
        + "".join(
            f"{name}_temp_path {folder}/{name};\n"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        + f"server {{ {listen} {location} }} }}\n"
    )
    words = [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "log")]
    with running(words, port, certificate):
        yield


@contextmanager
def caddy(folder, port, site, certificate):
    folder.mkdir()
    head = f"http://127.0.0.1:{port} {{\n\tbind 127.0.0.1"
    if certificate is not None:
        head = head.replace("http:", "https:", 1)
        head += f"\n\ttls {certificate.public} {certificate.private}"
    site = re.sub(r"^\S+ {", head, site)
    text = "{\n\tadmin off\n\tauto_https off\n}\n" + site + "\n"
    (folder / "Caddyfile").write_text(text)
    words = [CADDY, "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]
    with running(words, port, certificate, XDG_CONFIG_HOME=folder, XDG_DATA_HOME=folder):
        yield


@contextmanager
def running(words, port, certificate, **environment):
    scheme = "http" if certificate is None else "https"
    process = subprocess.Popen(
        words,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **{name: str(folder) for name, folder in environment.items()}},
    )
    try:
        for _ in range(1200):
            try:
                address = f"{scheme}://127.0.0.1:{port}/"
                httpx.get(address, trust_env=False, verify=trust(certificate))
                break
            except httpx.TransportError:
                assert process.poll() is None, "the proxy has ended"
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def opened():
    if browser.chromium() is None:
        pytest.skip(browser.NO_CHROMIUM)
    with browser.browser() as chromium:
        yield chromium


CASES = {
    "nginx": (nginx, lambda: published("location / ", ""), ""),
    "nginx below a path": (nginx, lambda: published("location = /rank", "/rank"), "/rank"),
    "nginx bare, cuts off the path": (nginx, lambda: STRIPPED, "/rank"),
    "caddy": (caddy, lambda: published("rank.example.org", ""), ""),
    "caddy below a path": (caddy, lambda: published("example.org", "/rank"), "/rank"),
}
CASES |= {f"{name}, https": CASES[name] for name in ("nginx", "nginx below a path", "caddy")}


@contextmanager
def training_of(store, folder):
    """The page of a run whose training is a process that holds it until it is interrupted."""
    run = folder / "mine"
    run.mkdir()
    (run / "config.yaml").write_text("seed: 0\n")
    (folder / "stand_in.py").write_text(STAND_IN)
    command = [sys.executable, str(folder / "stand_in.py"), str(run)]
    training = Training(run, store, command, allowed=True, gpu_folder=folder / "card")
    try:
        yield TrainPage(training, store, TrainingCommand([], "alpaca-rlhf loop --out mine"))
    finally:
        if training._process is not None:
            training._process.kill()
            training._process.wait()


@pytest.mark.parametrize("case", CASES)
def test_people_work_behind_a_proxy(case, opened, tmp_path, monkeypatch):
    """They sign in, rank, see a stream piece by piece, export and train as admin, and sign out."""
    proxy, configuration, prefix = CASES[case]
    if (NGINX if proxy is nginx else CADDY) is None:
        pytest.skip(f"no {proxy.__name__} here: apt-get install {proxy.__name__}")
    has_tls = case.endswith("https")
    if has_tls and OPENSSL is None:
        pytest.skip("no openssl here: apt-get install openssl")
    monkeypatch.setattr(passwords, "LOG_N", 4)
    certificate = self_signed(tmp_path) if has_tls else None
    port, app_port = browser.free_port(), browser.free_port()
    origin = f"http{'s' * has_tls}://127.0.0.1:{port}"
    rules = Rules(gold_rate=0, repeat_rate=0, second_share=0)
    with (
        Store(tmp_path / "p.db", rules=rules, seed=0) as store,
        training_of(store, tmp_path) as training_page,
    ):
        store.add_annotator("boss", PASSWORD, role="admin")
        store.add_sets(candidates(3, k=2), origin="test")
        tabs = [
            Tab("rank", rank_tab),
            Tab("chat", stream_tab),
            Tab("train", partial(train_tab, page=training_page), admin=True),
            Tab("data", apps.data_tab_of(tmp_path), admin=True),
        ]
        options = {"origin": origin, "prefix": prefix, "own_routes": training_page.routes()}
        app = apps.house(store, tmp_path, local=False, tabs=tabs, **options)
        text = configuration().replace("127.0.0.1:7860", f"127.0.0.1:{app_port}")
        with (
            apps.serving(ProxyHeaders(app), app_port),
            proxy(tmp_path / "proxy", port, text, certificate),
            browser.visit(opened, locale="en-GB", ignore_https_errors=has_tls) as page,
        ):
            page.set_default_timeout(120_000)
            page.goto(f"{origin}{prefix}/")
            page.wait_for_url(f"{origin}{prefix}/login")
            page.fill("#name", "boss")
            page.fill("#password", PASSWORD)
            page.click("button")
            page.wait_for_url(f"{origin}{prefix}/")
            # 1. A ranking.
            page.locator(".rank[data-started=yes][aria-busy=false] .card").first.wait_for()
            page.locator(".card").nth(1).focus()
            page.keyboard.press("Shift+ArrowUp")
            page.get_by_role("button", name="Submit").click()
            page.get_by_text("2 left for you").wait_for()
            assert store.figures().counts["rankings"] == 1
            # 2. A stream.
            assert gap_of_stream(page, f"{origin}{prefix}", certificate) > 0.4, "all at once"
            # 3. A snapshot, to be downloaded.
            page.get_by_role("tab", name="Data").click()
            page.get_by_role("button", name="Export a snapshot").click()
            with page.expect_download() as waited:
                page.get_by_role("link", name="manifest.json").click()
            assert json.loads(Path(waited.value.path()).read_text())["rankings"] == 1
            # 4. A training is started, shown as it goes, and stopped.
            open_tab(page, "train")
            page.get_by_role("button", name="Train now").click()
            page.locator(".log", has_text="ppo 1/9 updates").wait_for()
            assert training_page.training.state.activity == "training"
            page.get_by_role("button", name="Stop and save").click()
            until(lambda: training_page.training.state.activity == "idle")
            # 5. The cookie is the app's alone, and signing out ends it.
            (cookie,) = page.context.cookies()
            assert cookie["path"] == (prefix or "/") and cookie["httpOnly"]
            assert cookie["secure"] == has_tls, "over https it never travels unencrypted"
            page.get_by_role("button", name="Log out").click()
            page.wait_for_url(f"{origin}{prefix}/login")


def test_below_a_path_every_address_has_it(tmp_path, monkeypatch):
    """With the prefix and without it (a proxy may cut it off); a last slash is added."""
    monkeypatch.setattr(passwords, "LOG_N", 4)
    with Store(tmp_path / "p.db") as store:
        store.add_annotator("boss", PASSWORD, role="admin")
        app = apps.house(store, tmp_path, prefix="/rank")
        with TestClient(app, base_url="http://127.0.0.1:7860", follow_redirects=False) as client:
            client.headers["origin"] = "http://127.0.0.1:7860"
            assert client.get("/rank").headers["location"] == "/rank/"
            for path in ("/rank/", "/"):
                assert client.get(path).headers["location"] == "/rank/login"
            assert 'action="/rank/login"' in client.get("/rank/login").text
            assert client.get("/rankle/login").status_code == 404
            assert client.get("/rank/rank/login").status_code == 404
            form = {"name": "boss", "password": PASSWORD}
            response = client.post("/rank/login", data=form)
            assert response.headers["location"] == "/rank/"
            assert "path=/rank;" in response.headers["set-cookie"].lower()
            assert client.get("/rank/status").json()["account"] == 1
            root = client.get("/rank/config").json()["root"]
            assert root == "http://127.0.0.1:7860/rank"
            assert "/rank/status" not in client.get("/rank/").text.replace("${prefix}", "")
            assert client.post("/rank/logout").headers["location"] == "/rank/login"


@pytest.mark.parametrize(
    ("flags", "prefix", "origin"),
    [
        ({}, "", ""),
        ({"url": "https://rank.example.org"}, "", "https://rank.example.org"),
        ({"url": "https://rank.example.org/"}, "", "https://rank.example.org"),
        ({"url": "https://example.org:8443/a/rank/"}, "/a/rank", "https://example.org:8443"),
        ({"root_path": "/rank/"}, "/rank", ""),
        ({"root_path": "/rank", "url": "https://example.org"}, "/rank", "https://example.org"),
        (
            {"root_path": "/rank", "url": "https://example.org/rank/"},
            "/rank",
            "https://example.org",
        ),
    ],
)
def test_the_path_is_taken_from_the_address(flags, prefix, origin):
    app = app_command.App(**flags)
    assert (app.prefix, app.origin) == (prefix, origin)


@pytest.mark.parametrize("name", ["login", "status", "gradio_api", "assets", "training"])
@pytest.mark.parametrize("flag", ["root_path", "url"])
def test_no_path_of_the_app_itself_is_a_prefix(tmp_path, name, flag):
    """A proxy that passes the path on, or does not, could not tell the two apart."""
    value = f"/{name}" if flag == "root_path" else f"https://example.org/{name}/more"
    with Store(tmp_path / "p.db") as store, Terminal() as terminal:
        store.add_annotator("boss", "long enough", role="admin")
        flags = app_command.App(**{flag: value})
        with pytest.raises(UserError, match="is a path of the app itself") as told:
            site = app_command._Site(RunChoice(tmp_path / "absent"), Offer())
            app_command._serve(store, flags, site, terminal)
        assert str(told.value).startswith(f"--{flag.replace('_', '-')} {value}: /{name}")


@pytest.mark.parametrize(
    "words",
    [
        ["--root-path", "rank"],
        ["--root-path", "/a//b"],
        ["--root-path", "/a/../b"],
        ["--root-path", "/a'><script>"],
        ["--root-path", "/a?b"],
        ["--url", "https://example.org/a b"],
        ["--url", "https://example.org/rank?x=1"],
        ["--url", "https://me:word@example.org/"],
        ["--url", "example.org/rank"],
        ["--url", "https://example.org/rank", "--root-path", "/other"],
    ],
)
def test_a_path_that_is_none_is_refused(words, capsys):
    assert cli.main(["app", *words]) == 2
    error = capsys.readouterr().err
    assert words[0] in error and "Traceback" not in error and error.count("\n") == 1
