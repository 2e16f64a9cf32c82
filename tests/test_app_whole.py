"""The whole app as a user starts it: from a chat on a small quickstart to a reward model."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests import forked
from tests.browser import NO_CHROMIUM, browser, chromium, free_port, visit
from tests.model_app import nothing_serious
from tests.prove import offline
from tests.screenshots import open_tab
from tests.test_app_rank import PHONE, drag, gone, number, order, submit, swipe

pytestmark = pytest.mark.skipif(chromium() is None, reason=NO_CHROMIUM)
ROOT = Path(__file__).resolve().parent.parent
DESK = {"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce", "locale": "en-GB"}


@pytest.fixture(scope="module")
def run(whole_run, tmp_path_factory) -> Path:
    """A small quickstart on the embedded base."""
    out = tmp_path_factory.mktemp("whole") / "quickstart"
    shutil.copytree(whole_run.path, out)
    return out


@pytest.fixture(scope="module")
def home(run):
    """`python app.py`, at work."""
    port = free_port()
    app_command = [sys.executable, str(ROOT / "app.py"), "--run", str(run), "--port", str(port)]
    with (run.parent / "said.txt").open("w") as log:
        process = subprocess.Popen(
            app_command, env=offline(), stdout=log, stderr=log, cwd=run.parent
        )
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: urllib.request.urlopen(url, timeout=60).status == 200, process)
        yield url
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def chrome():
    with browser() as opened:
        yield opened


def until(true, process=None):
    while True:
        assert process is None or process.poll() is None, "the app has ended"
        try:
            if true():
                return
        except OSError:
            pass
        time.sleep(0.2)


@contextmanager
def page_of(chrome, home, tab, **options):
    with visit(chrome, **{**DESK, **options}) as page:
        page.set_default_timeout(120_000)
        page.goto(home)
        page.locator("[data-account]").wait_for()
        open_tab(page, tab)
        yield page


def status(home) -> str:
    with urllib.request.urlopen(f"{home}/status", timeout=60) as answer:
        return json.loads(answer.read())["status"]["en"]


def ready(page):
    page.locator(".rank[data-started=yes][aria-busy=false]").wait_for()


def skip(page):
    task = number(page)
    page.get_by_role("button", name="Skip").click()
    gone(page, task)


def test_the_app_is_there_before_the_model_and_what_was_sampled_is_queued(home, chrome):
    with page_of(chrome, home, "rank") as page:
        ready(page)
        page.get_by_text(re.compile(r"[12]\d left for you")).wait_for()
        assert status(home).startswith("The model is not loaded")


def test_chat_streams_stops_and_makes_answers_to_rank(home, chrome, run):
    with page_of(chrome, home, "chat") as page:
        box = page.locator("#chat-box textarea")
        box.fill("Name the colour of the lemon.")
        page.keyboard.press("Enter")
        page.locator("#chat-line", has_text="tokens").wait_for()
        assert page.locator("#chat-log .message.bot").inner_text().strip()
        page.locator("#chat-policy input").click()
        page.get_by_role("option", name="base", exact=True).click()
        box.fill("Tell a long story.")
        page.keyboard.press("Enter")
        page.locator("#chat-stop:enabled").wait_for()
        page.locator("#chat-log .message.bot").nth(1).wait_for()
        page.keyboard.press("Escape")
        page.locator("#chat-line", has_text="Stopped.").or_(
            page.locator("#chat-line", has_text="tokens")
        ).wait_for()
        page.locator("#chat-send:enabled").wait_for()
        page.locator("#chat-make").click()
        page.locator("#chat-line", has_text="come up on the Rank tab").wait_for()
        assert status(home).startswith("The model is ready")


def test_ranked_by_mouse_by_touch_and_by_keyboard(home, chrome, run):
    with page_of(chrome, home, "rank") as page:
        ready(page)
        while not page.get_by_text("Tell a long story.").is_visible():
            skip(page)  # what was open before
        first, second, third, fourth = order(page)
        drag(page, 3, 0)
        assert order(page) == [fourth, first, second, third]
        submit(page)
        page.get_by_role("button", name="Undo").click()
        page.get_by_text("Tell a long story.").wait_for()
        assert order(page) == [fourth, first, second, third], "as it was submitted"
        submit(page)
        skip(page)
    with page_of(chrome, home, "rank", **PHONE) as page:
        ready(page)
        first = order(page)
        swipe(page, 2, 0)
        page.locator(f".cards li:first-child [data-answer='{first[2]}']").wait_for()
        task = number(page)
        page.get_by_role(
            "button", name="More", exact=True
        ).tap()  # Chromium drops the tap after a made-up swipe
        page.get_by_role("button", name="Submit").tap()
        gone(page, task)
    with page_of(chrome, home, "rank") as page:
        ready(page)
        for _ in range(4):
            before = order(page)
            page.locator(".card").nth(len(before) - 1).focus()
            page.keyboard.press("1")
            page.keyboard.press("ArrowDown")
            page.keyboard.press("=")
            task = number(page)
            page.keyboard.press("Control+Enter")
            gone(page, task)
        task = number(page)
        page.get_by_role("button", name="Flag").click()
        page.get_by_label("Personal data").check()
        page.get_by_role("button", name="Send").click()
        gone(page, task)


def test_two_answers_are_compared_blind(home, chrome):
    with page_of(chrome, home, "compare") as page:
        page.locator("#compare-draw").click()
        page.wait_for_function("document.querySelector('#compare-box textarea').value !== ''")
        page.locator("#compare-ask").click()
        page.locator("#compare-tie:enabled").wait_for()
        page.locator("#compare-box textarea").blur()
        page.keyboard.press("1")
        page.locator("#compare-scores td").first.wait_for()
        assert page.locator("#compare-left").is_disabled()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_chat_and_compare_in_the_apps_own_colours(home, chrome, scheme):
    """axe finds nothing serious, contrast included; `tests/model_app.py` has no theme for that."""
    with page_of(chrome, home, "chat", color_scheme=scheme) as page:
        page.locator("#chat-box textarea").fill("Hello?")
        page.keyboard.press("Enter")
        page.locator("#chat-line", has_text="tokens").wait_for()
        page.locator("#chat-send:enabled").wait_for()
        page.get_by_role("button", name="Settings").click()
        page.locator("#chat-temperature").wait_for()
        nothing_serious(page, colours=True)
        open_tab(page, "compare")
        page.locator("#compare-ask").wait_for()
        nothing_serious(page, colours=True)


def test_a_reward_model_trains_from_the_export_and_the_app_gives_the_card_back(home, chrome, run):
    """Only where there is one; without it the training waits for nobody, and the model stays."""
    has_gpu = torch.cuda.is_available()
    with page_of(chrome, home, "data") as page:
        page.get_by_role("button", name="Export a snapshot").click()
        typed = page.locator(".alpaca-data pre").last.inner_text()
        typed_command = shlex.split(typed)
        assert typed_command[:2] == ["alpaca-rlhf", "reward"]
        done = forked.run("-m", "alpaca_rlhf", *typed_command[1:], env=offline(), cwd=run.parent)
        assert done.returncode == 0, done.stderr
        assert ("asking process" in done.stderr + done.stdout) == has_gpu
    out = Path(typed_command[typed_command.index("--out") + 1])
    facts = json.loads((out / "ledger.json").read_text())["reward"]["facts"]
    assert facts["pairs"] > 10
    assert (out / "reward" / "adapter" / "adapter_model.safetensors").is_file()
    until(lambda: status(home).startswith("The model is not loaded" if has_gpu else "The model is"))
    with page_of(chrome, home, "chat") as page:
        page.locator("#chat-box textarea").fill("Are you back?")
        page.keyboard.press("Enter")
        page.locator("#chat-line", has_text="tokens").wait_for()


def test_the_app_said_nothing_that_a_person_need_not_know(home, run):
    log = (run.parent / "said.txt").read_text()
    assert not any(fragment in log for fragment in ("Traceback", "Warning", "kernels")), log
    assert f"the app is at {home}" in log
