"""New runs from the page: what the form may ask for, and what no browser can make of it."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx
import pytest

from alpaca_rlhf.app import new_run, new_run_page, server
from alpaca_rlhf.app.login_session import LoginSessions
from alpaca_rlhf.app.new_run import FormRefused, Offer, read_form, settings_of_form, within
from alpaca_rlhf.app.new_run_page import NewRuns
from alpaca_rlhf.app.page_layout import Tab
from alpaca_rlhf.app.run_choice import RunChoice, is_run_name
from alpaca_rlhf.app.train_tab import train_tab
from alpaca_rlhf.app.uploads import SUFFIXES, Uploads
from alpaca_rlhf.cli import app_command
from alpaca_rlhf.cli.terminal import Terminal
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.locks import Lock
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import write_instructions
from alpaca_rlhf.planner import CPU, find_gpu
from alpaca_rlhf.planner.choosing import MAX_DECODED
from alpaca_rlhf.preferences import DATABASE, passwords
from alpaca_rlhf.preferences.assignment import Overlap
from alpaca_rlhf.preferences.store import Store
from alpaca_rlhf.serving import run_contents
from alpaca_rlhf.settings import Inputs, Loop, Rank
from alpaca_rlhf.settings.endpoint import Judge
from alpaca_rlhf.settings.parsing import parse
from alpaca_rlhf.settings.smollm2 import SMOLLM2_135M
from tests import apps, attacks
from tests.browser import NO_CHROMIUM, browser, chromium, free_port, visit
from tests.model_app import nothing_serious, prompts
from tests.screenshots import open_tab
from tests.test_app_train import served, until
from tests.whole_run import small

FORM = attacks.FORM
PASSWORD = attacks.PASSWORD


@pytest.fixture(autouse=True)
def quick_passwords(monkeypatch):
    monkeypatch.setattr(passwords, "LOG_N", 4)


@pytest.fixture
def uploads(tmp_path) -> Uploads:
    return Uploads(tmp_path / "runs" / "uploads")


@pytest.fixture
def offer(tmp_path) -> Offer:
    """Small numbers, so that the small world draws few tasks."""
    return Offer(recipe=small(tmp_path / "unused"))


def file_of(rows: list[Instruction], folder: Path) -> bytes:
    path = folder / "written.jsonl"
    write_instructions(path, rows)
    return path.read_bytes()


# --- the form -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field, values in attacks.CRAFTED.items() for value in values],
)
def test_only_what_the_lists_hold_is_taken(offer, uploads, field, value):
    with pytest.raises(FormRefused):
        read_form(FORM | {field: value}, offer, uploads)


def test_a_form_of_the_lists_is_taken_with_what_the_app_was_started_with(uploads, tmp_path):
    offer = Offer(bases=(*new_run.BASES, "org/model"), judges=(*new_run.JUDGES, "mine.py:judge"))
    sent = file_of(prompts(60), tmp_path)
    name, _ = uploads.keep(sent, "prompts", ".jsonl")
    form = read_form(
        FORM | {"base": "org/model", "judge": "mine.py:judge", "prompts_file": name},
        offer,
        uploads,
    )
    assert (form.base, form.judge) == ("org/model", "mine.py:judge")
    assert form.prompts_file.read_bytes() == sent


def test_smollm2_must_have_been_fetched(offer, uploads, monkeypatch, tmp_path):
    monkeypatch.setattr(new_run, "smollm2_folder", lambda: tmp_path / "absent")
    with pytest.raises(FormRefused, match="not_fetched"):
        read_form(FORM | {"base": "smollm2", "judge": "checks"}, offer, uploads)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"judge": "human"}, "no_prompts"),
        ({"prompts_file": "it"}, "gold_files"),
        ({"base": "other"}, "gold_base"),
    ],
)
def test_fields_that_do_not_go_together(uploads, tmp_path, changes, problem):
    name, _ = uploads.keep(file_of(prompts(5), tmp_path), "prompts", ".jsonl")
    changes = {key: name if value == "it" else value for key, value in changes.items()}
    with pytest.raises(FormRefused) as caught:
        read_form(FORM | changes, Offer(bases=("embedded", "other")), uploads)
    assert caught.value.problem == problem


def test_the_settings_are_the_recipes_under_the_form(offer, uploads, tmp_path):
    form = read_form(FORM | {"rounds": 2}, offer, uploads)
    settings, source = settings_of_form(form, offer, tmp_path / "runs")
    assert settings.out == tmp_path / "runs" / "mine" and settings.ppo == offer.recipe.ppo
    assert (settings.rank.prompts, settings.rank.k, settings.rounds) == (24, 3, 2)
    assert settings.policies == ("ppo",) and {"rank", "rank.2", "eval"} <= {*source.names()}


def test_the_form_begins_with_the_judge_that_a_recipe_chooses():
    """`gold` is what settings have that choose none, and it takes no files: people rank then."""
    checks = Loop(inputs=replace(Loop().inputs, judge="checks"))
    assert Offer(recipe=checks).suggested_judge == "checks"
    assert Offer(recipe=Loop()).suggested_judge == Offer().suggested_judge == "human"


@pytest.mark.parametrize(("judge", "recipe"), [("checks", "answers"), ("human", "alpaca")])
def test_smollm2_takes_the_numbers_of_its_recipe(
    uploads, monkeypatch, tmp_path, judge: str, recipe: str
) -> None:
    """Only a judge that scores can keep the base's own answers; else it writes new tasks."""
    monkeypatch.setattr(new_run, "smollm2_folder", lambda: tmp_path)
    sent = {"base": "smollm2", "judge": judge}
    if judge == "human":
        name, _ = uploads.keep(file_of(prompts(400), tmp_path), "prompts", ".jsonl")
        sent["prompts_file"] = name
    form = read_form(FORM | sent, Offer(), uploads)
    settings, _ = settings_of_form(form, Offer(), tmp_path / "runs")
    assert settings.sft == SMOLLM2_135M.sft and settings.lora == SMOLLM2_135M.lora
    assert settings.sampling == SMOLLM2_135M.sampling and settings.template == "chat"
    assert settings.generate.recipe == recipe and settings.generate.edit is (judge == "checks")


@pytest.mark.parametrize("n", [16, 30, 64, 200, 5000])
@pytest.mark.parametrize("rounds", [1, 2])
def test_uploaded_prompts_suffice_for_what_they_are_dealt_to(n, rounds):
    policies = ("ppo", "best-of-k", "grpo", "rloo")
    ranked = n // 4 // rounds
    settings = Loop(policies=policies, rounds=rounds)
    settings = within(replace(settings, rank=replace(settings.rank, prompts=ranked)), n)
    each = max(
        settings.ppo.batch_size,
        settings.best_of_k.prompts,
        settings.grpo.prompts,
        settings.rloo.prompts,
    )
    assert (ranked + each) * rounds + settings.evaluate.prompts <= n
    if n >= 64:  # and one more round
        assert (ranked + each) * (rounds + 1) + settings.evaluate.prompts <= n
    assert settings.ppo == Loop().ppo or n < 5000


def test_too_few_prompts_are_told(offer, uploads, tmp_path):
    name, _ = uploads.keep(file_of(prompts(26), tmp_path), "prompts", ".jsonl")
    form = read_form(FORM | {"judge": "human", "prompts_file": name}, offer, uploads)
    with pytest.raises(FormRefused, match="too_few"):
        settings_of_form(form, offer, tmp_path / "runs")


def test_the_first_problem_of_the_prompts_is_told(uploads, tmp_path, monkeypatch):
    """110 prompts of which 100 are to be ranked: fewer of them would be too few in any case."""
    name, _ = uploads.keep(file_of(prompts(110), tmp_path), "prompts", ".jsonl")
    sent = FORM | {"judge": "human", "prompts_file": name, "prompts": 100}
    form = read_form(sent, Offer(), uploads)

    def one_cluster(settings):
        raise UserError(f"{settings.inputs.prompts}: near-duplicates: 60 of them")

    monkeypatch.setattr(new_run, "source_of", one_cluster)
    with pytest.raises(UserError, match="near-duplicates: 60"):
        settings_of_form(form, Offer(), tmp_path / "runs")


def test_what_the_form_does_not_ask_is_the_recipes(uploads, tmp_path):
    recipe = small(
        tmp_path / "unused",
        inputs=Inputs(
            judge="llm",
            data=tmp_path / "of_the_recipe.jsonl",
            columns="question=instruction",
            languages="zh",
            broken="drop",
        ),
        judge=Judge(url="http://127.0.0.1:9/v1", model="m", concurrency=3),
        rank=Rank(prompts=8, at_least=6, queue="uncertain"),
    )
    offer = Offer(judges=(*new_run.JUDGES, "llm"), recipe=recipe)
    file = tmp_path / "asked.jsonl"
    file.write_text(
        "".join(json.dumps({"question": row.instruction}) + "\n" for row in prompts(60))
    )
    name, account = Uploads(tmp_path / "runs" / "uploads", offer.columns).keep(
        file.read_bytes(), "prompts", ".jsonl"
    )
    assert account.used == 60

    def made(**fields):
        sent = FORM | {"prompts_file": name, "prompts": 8} | fields
        return settings_of_form(read_form(sent, offer, uploads), offer, tmp_path / "runs")[0]

    people = made(judge="human")
    assert (people.inputs.columns, people.inputs.languages) == ("question=instruction", "zh")
    assert (people.rank.at_least, people.rank.queue, people.rank.prompts) == (6, "uncertain", 8)
    assert (people.inputs.judge, people.judge.url, people.judge.concurrency) == ("human", None, 3)
    # Files and what the form does ask are the form's.
    assert people.inputs.data is None and people.inputs.broken == "refuse"
    assert made(judge="llm").judge == recipe.judge
    assert made(judge="human", prompts=5).rank.at_least is None, "fewer are ranked than that"


def test_an_upload_is_read_and_counted_and_what_cannot_be_read_is_not_kept(uploads, tmp_path):
    rows = [replace(row, output="Yes.") for row in prompts(3)]
    sent = file_of(rows, tmp_path) + b'{"instruction": ""}\n'
    name, account = uploads.keep(sent, "rows", ".jsonl")
    assert (account.used, account.rows) == (3, 4)
    assert uploads.path(name, "rows") is not None and uploads.path(name, "prompts") is None
    before = sorted((tmp_path / "runs" / "uploads").iterdir())
    for content, suffix in ((b"\x00\x01", ".parquet"), (b"no rows", ".json"), (sent, ".py")):
        with pytest.raises(UserError) as caught:
            uploads.keep(content, "rows", suffix)
        assert str(tmp_path) not in str(caught.value)
    assert sorted((tmp_path / "runs" / "uploads").iterdir()) == before
    assert not any(suffix.startswith(".py") for suffix in SUFFIXES)


# --- the run that the app is on -------------------------------------------------------------------


def begun(folder: Path, name: str) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "config.yaml").write_text("seed: 0\n")
    return folder / name


def test_the_choice_of_a_run_outlives_the_app(tmp_path):
    runs = tmp_path / "runs"
    first, second = begun(runs, "first"), begun(runs, "second")
    assert RunChoice(first).current == first
    RunChoice(first).choose("second")
    assert RunChoice(first).current == second, "another process sees it"
    assert RunChoice(second).current == second, "an app on another run has its own choice"
    (second / "config.yaml").unlink()
    assert RunChoice(first).current == first, "a run that is gone counts for nothing"
    (second / "config.yaml").write_text("seed: many\n")
    assert RunChoice(first).current == first, "nor does one whose settings cannot be read"
    with pytest.raises(UserError, match="seed"):
        RunChoice(first).choose("second")
    (second / "config.yaml").write_text("seed: 0\n")
    RunChoice(first).choose("first")
    assert RunChoice(first).current == first
    for name in ("../runs/second", "absent", "", "/etc"):
        with pytest.raises(UserError):
            RunChoice(first).choose(name)
    (runs / ".app-first").write_text("../runs/second")
    assert RunChoice(first).current == first


def test_names_of_runs_are_plain():
    assert all(map(is_run_name, ("a", "Mine-2", "llama_7b", "9")))
    assert not any(map(is_run_name, ("", ".a", "a/b", "a b", "uploads", "a.b")))


def test_sessions_and_passwords_hold_on_the_next_run(tmp_path):
    with Store(tmp_path / "a.db") as first, Store(tmp_path / "b.db") as second:
        boss = first.add_annotator("boss", PASSWORD, role="admin")
        ann, gone = (first.add_annotator(name, PASSWORD) for name in ("ann", "gone"))
        first.change_annotator(gone, active=False, actor="test")
        sessions = LoginSessions(first, apps.SECRET)
        live, ended = sessions.cookie(boss), sessions.cookie(ann)
        sessions.end(ended)
        second.adopt_accounts(first)
        there = LoginSessions(second, apps.SECRET)
        assert there.read(live).account.role == "admin"
        assert there.read(ended) is None, "who signed out stays out"
        assert second.sign_in("ann", PASSWORD) and not second.sign_in("gone", PASSWORD)
        second.change_annotator(ann, password="another word", actor="test")
        first.adopt_accounts(second)
        assert first.sign_in("ann", "another word") and not first.sign_in("ann", PASSWORD)
        assert len(first.figures().people) == 3, "nobody is there twice"


def test_an_account_of_the_same_number_is_somebody_else(tmp_path):
    with Store(tmp_path / "a.db") as first, Store(tmp_path / "b.db") as second:
        boss = first.add_annotator("boss", PASSWORD, role="admin")
        other = second.add_annotator("other", PASSWORD)
        assert boss == other
        cookie = LoginSessions(first, apps.SECRET).cookie(boss)
        second.adopt_accounts(first)
        assert LoginSessions(second, apps.SECRET).read(cookie) is None
        assert second.sign_in("boss", PASSWORD).role == "admin"
        assert second.sign_in("other", PASSWORD).role == "annotator"


# --- attacks --------------------------------------------------------------------------------------


@contextmanager
def victim_of(tmp_path, offer, *, closed=None):
    """An app on a run, which offers new ones and notes what it would go on to."""
    folder = tmp_path / "runs" / "first"
    begun(tmp_path / "runs", "first")
    switches = []
    victim = attacks.Victim(folder)
    page = NewRuns(victim.store, RunChoice(folder), offer, closed=closed, switch=switches.append)
    tabs = [
        Tab("rank", apps.stand_in),
        Tab("train", partial(train_tab, page=None, new_runs=True), admin=True),
        Tab("data", apps.data_tab_of(folder), admin=True),
    ]
    victim.app = apps.house(victim.store, folder, tabs=tabs, own_routes=page.routes())
    with victim.store:
        yield victim, switches


def begin(client, form=FORM, action="start", **options):
    return client.post("/training/new", json={"do": action, "form": form}, **options)


def test_an_admin_begins_a_run_and_everybody_keeps_their_login(tmp_path, offer):
    runs = tmp_path / "runs"
    with victim_of(tmp_path, offer) as (victim, switches), victim.visitor("boss") as boss:
        shown = boss.get("/training/new").json()["html"]
        assert '<option value="embedded"' in shown and "smollm2" in shown
        planned = begin(boss, action="plan").json()["html"]
        assert "PPO" in planned and "GiB" in planned and "rank 24" in planned
        assert sorted(path.name for path in runs.iterdir()) == ["first"], "a plan writes nothing"
        overlap = Overlap(0.5, 3)
        victim.store.set_guidelines("Be fair.", actor="test")
        victim.store.set_guidelines("Be kind.", actor="test")
        victim.store.set_overlap(overlap, actor="test")
        started = begin(boss)
        assert started.status_code == 200 and "mine" in started.json()["html"]
        [switch] = switches
        assert switch.run == runs / "mine" and switch.start_as == f"annotator:{victim.boss}"
        settings = run_contents.settings_of(runs / "mine")
        assert settings.rank.prompts == 24 and run_contents.kind_of(runs / "mine") == "loop"
        assert RunChoice(runs / "first").current == runs / "mine", "before the app follows"
        with Store(runs / "mine" / DATABASE) as store:
            assert store.any_accounts() and store.sign_in("ann", PASSWORD) is not None
            assert store.guidelines().text == "Be kind." and store.overlap() == overlap
        assert "starting" in begin(boss, FORM | {"name": "more"}).json()["html"]
        assert not (runs / "more").exists() and len(switches) == 1


def test_only_admins_begin_choose_and_upload(tmp_path, offer):
    posts = {
        "/training/new": {"do": "start", "form": FORM},
        "/training/open": {"run": "first"},
        "/training/upload?kind=rows&suffix=.jsonl": {"instruction": "a", "output": "b"},
    }
    with victim_of(tmp_path, offer) as (victim, switches):
        for name, status in (("ann", 403), ("", 401)):
            with victim.visitor(name) as client:
                assert client.get("/training/new").status_code == status
                for path, body in posts.items():
                    assert client.post(path, json=body).status_code == status
        with victim.visitor("boss") as boss:
            for origin in ("https://evil.example", "null", ""):
                for path, body in posts.items():
                    forged = boss.post(path, json=body, headers={"origin": origin})
                    assert forged.status_code == 403
        assert not switches
        assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["first"]


@pytest.mark.parametrize("closed", ["flag", "database"])
def test_where_it_is_not_allowed_nothing_begins(tmp_path, offer, closed):
    with (
        victim_of(tmp_path, offer, closed=closed) as (victim, switches),
        victim.visitor("boss") as boss,
    ):
        shown = boss.get("/training/new").json()["html"]
        assert "<form" not in shown
        assert ("--allow-training" if closed == "flag" else "--db") in shown
        for action in ("plan", "start"):
            assert begin(boss, action=action).status_code == 422
        assert boss.post("/training/open", json={"run": "first"}).status_code == 422
        upload = "/training/upload?kind=rows&suffix=.jsonl"
        sent = b'{"instruction": "a", "output": "b"}\n'
        assert boss.post(upload, content=sent).status_code == 422
        assert not switches
        assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["first"]


@pytest.mark.parametrize(
    "flags",
    [{"host": "0.0.0.0"}, {"url": "https://rank.example.org"}, {"root_path": "/rank"}],
)
def test_where_others_reach_the_app_a_run_needs_the_flag(flags):
    typed = app_command.App(**flags)
    assert app_command._closed_to_new_runs(typed, local=False) == "flag"
    allowed = replace(typed, allow_training=True)
    assert app_command._closed_to_new_runs(allowed, local=False) is None
    assert app_command._closed_to_new_runs(app_command.App(), local=True) is None
    elsewhere = replace(allowed, db="people.db")
    assert app_command._closed_to_new_runs(elsewhere, local=False) == "database"


def test_crafted_requests_make_nothing(tmp_path, offer):
    crafted = [
        FORM | {"name": "../escaped"},
        FORM | {"name": "first"},
        FORM | {"base": "/etc"},
        FORM | {"judge": "/evil.py:judge"},
        FORM | {"rows": "../../etc/passwd"},
        FORM | {"words": ["--out", "/elsewhere"]},
        [], "start", None, 7,
    ]  # fmt: skip
    with victim_of(tmp_path, offer) as (victim, switches), victim.visitor("boss") as boss:
        for form in crafted:
            refused = begin(boss, form)
            assert refused.status_code == 422 and 'class="bad"' in refused.json()["html"], form
        for body in (b"", b"[1]", b"{", b"[" * 10000):
            headers = {"content-type": "application/json"}
            answer = boss.post("/training/new", content=body, headers=headers)
            assert answer.status_code == 422
        for run in ("../first", "/etc", "", None, ["first"], "absent", ".app-first"):
            assert boss.post("/training/open", json={"run": run}).status_code == 422
        upload = "/training/upload"
        for query in ("kind=rows&suffix=.py", "kind=../x&suffix=.jsonl", "suffix=/../x.jsonl"):
            sent = b'{"instruction": "a", "output": "b"}\n'
            assert boss.post(f"{upload}?{query}", content=sent).status_code == 422
        headers = {"content-length": str(2**30)}
        assert boss.post(f"{upload}?kind=rows", content=b"x", headers=headers).status_code == 413
        assert not switches
        left = {path.name for path in (tmp_path / "runs").iterdir()} - {"uploads"}
        assert left == {"first"} and not (tmp_path / "escaped").exists()


def test_a_hostile_file_is_only_text(tmp_path, offer):
    sent = b'{"instruction": "a", "output": "b", "<img src=x onerror=hit()>": 1}\n'
    with victim_of(tmp_path, offer) as (victim, _), victim.visitor("boss") as boss:
        answer = boss.post("/training/upload?kind=rows&suffix=.jsonl", content=sent).json()
        assert "&lt;img" in answer["html"] and "<img" not in answer["html"]
        assert str(tmp_path) not in answer["html"]


def test_no_run_begins_while_another_one_trains(tmp_path, offer):
    with victim_of(tmp_path, offer) as (victim, switches), victim.visitor("boss") as boss:
        with Lock(tmp_path / "runs" / "first" / "train.log"):
            assert "first" in begin(boss).json()["html"]
        assert not switches and not (tmp_path / "runs" / "mine").exists()
        assert begin(boss).status_code == 200


def test_a_damaged_run_is_not_gone_on_to(tmp_path, offer):
    """The app would end there, and never come back."""
    second = begun(tmp_path / "runs", "second")
    (second / "config.yaml").write_text("seed: many\n")
    with victim_of(tmp_path, offer) as (victim, switches), victim.visitor("boss") as boss:
        refused = boss.post("/training/open", json={"run": "second"})
        assert refused.status_code == 422 and "seed" in refused.json()["html"]
        (second / "config.yaml").write_text("seed: 0\n")
        (second / "ledger.json").write_text('{"sample": {}}')  # whose completions are gone
        refused = boss.post("/training/open", json={"run": "second"})
        assert refused.status_code == 422 and "prompts.jsonl" in refused.json()["html"]
        assert not switches and RunChoice(tmp_path / "runs" / "first").current.name == "first"
        (second / "ledger.json").unlink()
        assert boss.post("/training/open", json={"run": "second"}).status_code == 200


def test_a_page_of_another_run_changes_nothing(tmp_path, offer):
    """Numbers of tasks and sets mean something else there."""
    with victim_of(tmp_path, offer) as (victim, _), victim.visitor("ann") as ann:
        status = ann.get("/status").json()
        body = {"data": [json.dumps({"do": "next"})]}
        stale = ann.post("/gradio_api/run/rank", json=body, headers={"x-alpaca-run": "0" * 8})
        assert stale.status_code == 409
        fresh = ann.post("/gradio_api/run/rank", json=body, headers={"x-alpaca-run": status["run"]})
        assert fresh.status_code == 200


def test_runs_of_one_name_in_two_folders_have_two_tokens(tmp_path, monkeypatch):
    tokens = []
    for folder in (tmp_path / "here", tmp_path / "there", tmp_path / "here"):
        (folder / "runs").mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(folder)
        with Store(Path("runs/own.db")) as store:
            deployment = server.Deployment("runs/mine", folder, [], True)
            tokens.append(deployment.run_token(store))
    assert tokens[0] == tokens[2] != tokens[1]


# --- from one run to the next ---------------------------------------------------------------------


def test_a_listener_serves_one_app_after_the_other():
    import urllib.request

    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    seen = []

    def visit_then_stop(stop):
        seen.append(urllib.request.urlopen(url, timeout=60).read().decode())
        stop.set()

    for name in ("first", "second"):
        stop = threading.Event()
        app = Starlette(routes=[Route("/", lambda request, name=name: PlainTextResponse(name))])
        ready = partial(threading.Thread(target=visit_then_stop, args=(stop,)).start)
        server.serve(app, listener, behind_proxy=False, on_ready=ready, stop=stop)
    listener.close()
    assert seen == ["first", "second"]


def test_the_app_goes_on_to_another_run_and_is_there_after_a_kill(tmp_path):
    """On the same port, with the same login."""
    first, _ = begun(tmp_path, "first"), begun(tmp_path, "second")
    with Store(first / DATABASE) as store:
        store.add_annotator("boss", PASSWORD, role="admin")
    port = free_port()
    home = f"http://127.0.0.1:{port}"
    client = httpx.Client(base_url=home, headers={"origin": home}, timeout=300)

    def run_shown():
        try:
            return client.get("/status").json().get("run", "")
        except httpx.TransportError:
            return ""

    server_ = served(first, port)
    try:
        assert client.post("/login", data={"name": "boss", "password": PASSWORD}).status_code == 303
        before = run_shown()
        shown = client.get("/training/new").json()["html"]
        assert '<option value="second"' in shown and '<option value="first"' not in shown
        assert client.post("/training/open", json={"run": "second"}).status_code == 200
        until(lambda: run_shown() not in ("", before), seconds=300)
        after = run_shown()
        server_.kill()
        server_.wait()
        server_ = served(first, port)
        assert run_shown() == after and client.get("/training/new").status_code == 200
    finally:
        server_.kill()
        server_.wait()
        client.close()


def test_lists_are_given_when_the_app_is_started(tmp_path):
    words = ["--allow-base", "a/b", "--allow-base", "c", "--allow-judge", "mine.py:judge"]
    flags = parse(app_command.App, words, prog="app", description="")
    assert flags.allow_base == ("a/b", "c")
    offer = app_command._offer(flags)
    assert offer.bases == ("embedded", "smollm2", "a/b", "c")
    assert offer.judges == ("human", "gold", "checks", "mine.py:judge")
    with pytest.raises(UserError, match="--allow-judge 'nonsense'"):
        parse(app_command.App, ["--allow-judge", "nonsense"], prog="app", description="")
    with pytest.raises(UserError, match=r"--allow-judge llm: .*--recipe"):
        app_command._offer(app_command.App(allow_judge=("llm",)))
    with pytest.raises(UserError, match=r"^--recipe .*absent\.yaml: cannot be read"):
        app_command._offer(app_command.App(recipe=tmp_path / "absent.yaml"))


def test_a_wrong_recipe_is_refused_before_a_database_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^--recipe absent\.yaml"):
        app_command.run(app_command.App(recipe=Path("absent.yaml")), Terminal())
    assert not any(tmp_path.iterdir())


def test_a_new_run_is_written_with_what_fits_the_machines_card(tmp_path, offer, monkeypatch):
    """And as the form makes it where there is no card, or too small a card."""
    runs = {}
    for name, card in {"card": find_gpu("8"), "none": CPU, "small": find_gpu("0.01")}.items():
        monkeypatch.setattr(new_run_page, "local_card", lambda card=card: card)
        (tmp_path / name).mkdir()
        with victim_of(tmp_path / name, offer) as (victim, _), victim.visitor("boss") as boss:
            assert begin(boss).status_code == 200
            runs[name] = run_contents.settings_of(victim.folder.parent / "mine")
    assert runs["none"].ppo.micro_batch_size == runs["small"].ppo.micro_batch_size
    assert runs["none"].sampling == runs["small"].sampling != runs["card"].sampling
    assert runs["card"].sampling.batch_size == MAX_DECODED
    assert runs["card"].ppo.lr == runs["none"].ppo.lr


@pytest.mark.skipif(chromium() is None, reason=NO_CHROMIUM)
def test_the_form_is_accessible_and_shows_the_plan(tmp_path, offer):
    rows = tmp_path / "mine.jsonl"
    write_instructions(rows, [replace(row, output="Yes.") for row in prompts(10)])
    with victim_of(tmp_path, offer) as (victim, _), apps.serving(victim.app) as home:
        for scheme, language in (("light", "en-GB"), ("dark", "zh-CN")):
            with browser() as opened, visit(opened, locale=language, color_scheme=scheme) as page:
                page.set_default_timeout(120_000)
                page.goto(home)
                page.fill("#name", "boss")
                page.fill("#password", PASSWORD)
                page.click("button")
                page.locator("[data-account]").wait_for()
                open_tab(page, "train", "en" if language == "en-GB" else language)
                page.locator(".new-run summary").first.click()
                page.fill("#new-name", "mine")
                page.select_option("#new-judge", "gold")
                page.fill("#new-prompts", "24")
                # A reload loses no field.
                page.locator("[name=policies]").last.set_checked(True)
                page.reload()
                page.locator("#new-name").wait_for()
                values = [page.input_value(f"#new-{name}") for name in ("name", "judge", "prompts")]
                assert values == ["mine", "gold", "24"]
                assert page.locator("[name=policies]").last.is_checked()
                page.locator("[name=policies]").last.set_checked(False)
                page.set_input_files("#new-rows", str(rows))
                page.locator("[data-part=upload-rows] .good").wait_for()
                page.locator("[data-new=plan]").click()
                page.locator("[data-part=plan] .bad").wait_for()  # gold has no files
                page.set_input_files("#new-rows", [])
                page.locator("[data-new=plan]").click()
                page.locator("[data-part=plan] table").wait_for()
                assert page.locator("[data-new=start]").is_enabled()
                chosen = page.locator("[name=policies]:checked").first
                look = chosen.evaluate("box => getComputedStyle(box).appearance")
                assert look != "none", "a box without its mark says nothing of what is chosen"
                nothing_serious(page, colours=True)
