"""The address of the page names the tab and the conversation: links, reloads, back and forward."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from alpaca_rlhf.app.chat_messages import Turn
from alpaca_rlhf.app.chat_tab import chat_tab
from alpaca_rlhf.app.language import translations
from alpaca_rlhf.app.page_layout import Tab
from alpaca_rlhf.app.worker import Worker
from alpaca_rlhf.preferences import passwords
from alpaca_rlhf.preferences.store import Store
from tests import apps
from tests.browser import NO_CHROMIUM, browser, chromium, visit
from tests.screenshots import open_tab

pytestmark = pytest.mark.skipif(chromium() is None, reason=NO_CHROMIUM)
PASSWORD = "long enough"
GONE = translations("chat", "en")["chats.gone"]


@pytest.fixture(scope="module")
def opened():
    with browser() as chrome:
        yield chrome


@contextmanager
def site(tmp_path: Path, prefix: str = ""):
    """An app with the Rank, Chat and Data tabs; Ann, an annotator, has two conversations."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("seed: 0\n")
    worker = Worker(run, load=lambda: None, has_gpu=lambda: False)
    with Store(tmp_path / "p.db", seed=0) as store:
        boss = store.add_annotator("boss", PASSWORD, role="admin")
        ann = store.add_annotator("ann", PASSWORD)
        chats = {
            name: store.save_chat(ann, None, name, [Turn(name, f"About {name}.").to_json()])
            for name in ("lighthouses", "rivers")
        }
        chats["of the boss"] = store.save_chat(boss, None, "secret", [Turn("secret").to_json()])
        tabs = [
            Tab("rank", apps.stand_in),
            Tab("chat", partial(chat_tab, worker=worker)),
            Tab("data", apps.data_tab_of(tmp_path), admin=True),
        ]
        app = apps.house(store, tmp_path, tabs=tabs, prefix=prefix)
        with apps.serving(app) as home:
            yield SimpleNamespace(home=home + prefix, chats=chats)
    worker.close()


@pytest.fixture(autouse=True)
def quick_passwords(monkeypatch):
    monkeypatch.setattr(passwords, "LOG_N", 4)


def enter(page, address: str, name: str = "ann") -> None:
    page.set_default_timeout(120_000)
    page.goto(address)
    page.fill("#name", name)
    page.fill("#password", PASSWORD)
    page.click("button")
    page.locator("[data-account]").wait_for()


def at(page, place: str) -> None:
    """Wait until the address ends so, and its tab is the one that is shown."""
    page.wait_for_function("(place) => location.hash.startsWith(place)", arg=place)
    page.locator(f"#tab-{place[1:].split('/')[0]}").wait_for()


def about(page, name: str) -> None:
    page.locator("#chat-log .message.bot", has_text=f"About {name}.").wait_for()


@pytest.mark.parametrize("prefix", ["", "/below"])
def test_links_reloads_back_and_forward_keep_the_place(tmp_path, opened, prefix):
    with site(tmp_path, prefix) as its, visit(opened, locale="en-GB") as page:
        # 1. A link to a tab leads there through the page to sign in.
        enter(page, f"{its.home}/#data", "boss")
        at(page, "#data")
        page.reload()
        at(page, "#data")
        # 2. Tabs are steps of the history, and a reload keeps theirs.
        open_tab(page, "rank")
        at(page, "#rank")
        open_tab(page, "chat")
        at(page, "#chat")
        page.go_back()
        at(page, "#rank")
        page.go_back()
        at(page, "#data")
        page.go_forward()
        at(page, "#rank")
        page.reload()
        at(page, "#rank")
        path = page.evaluate("location.pathname")
        assert path == f"{prefix}/"


def test_an_open_conversation_is_part_of_the_place(tmp_path, opened):
    with site(tmp_path) as its, visit(opened, locale="en-GB") as page:
        enter(page, f"{its.home}/")
        open_tab(page, "chat")
        for name in ("lighthouses", "rivers"):
            page.locator("#chat-saved input").click()
            page.get_by_role("option", name=name).click()
            about(page, name)
            at(page, f"#chat/{its.chats[name]}/")
        # 1. A reload opens it again, and the list names it.
        page.reload()
        about(page, "rivers")
        page.wait_for_function("document.querySelector('#chat-saved input').value === 'rivers'")
        at(page, f"#chat/{its.chats['rivers']}/")
        # 2. Back to the other one, by way of another tab, and to a new one.
        page.go_back()
        about(page, "lighthouses")
        open_tab(page, "rank")
        at(page, "#rank")
        page.go_back()
        at(page, f"#chat/{its.chats['lighthouses']}/")
        about(page, "lighthouses")
        page.locator("#chat-new").click()
        page.wait_for_function("location.hash === '#chat'")
        assert page.locator("#chat-log .message").count() == 0
        page.go_back()
        about(page, "lighthouses")
        # 3. A typed link means this run; one of another run opens nothing.
        page.goto(f"{its.home}/#chat/{its.chats['rivers']}")
        about(page, "rivers")
        page.goto("about:blank")
        page.goto(f"{its.home}/#chat/{its.chats['rivers']}/00000000")
        page.locator("#chat-box").wait_for()
        page.wait_for_timeout(1500)
        assert page.locator("#chat-log .message").count() == 0


def test_the_address_opens_nothing_that_is_not_ones_own(tmp_path, opened):
    with site(tmp_path) as its, visit(opened, locale="en-GB") as page:
        enter(page, f"{its.home}/#chat/{its.chats['of the boss']}")
        page.locator("#chat-line", has_text=GONE).wait_for()
        assert page.locator("#chat-log .message").count() == 0
        # A tab of admins stays closed.
        page.goto(f"{its.home}/#data")
        page.wait_for_timeout(1500)
        assert not page.locator("#tab-data").is_visible()


def test_the_message_box_is_in_sight_below_the_newest_reply(tmp_path, opened):
    windows = (
        {"viewport": {"width": 1280, "height": 900}},
        {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True},
    )
    with site(tmp_path) as its:
        for options in windows:
            with visit(opened, locale="en-GB", **options) as page:
                enter(page, f"{its.home}/#chat/{its.chats['rivers']}")
                about(page, "rivers")
                height = page.viewport_size["height"]
                for part in ("#chat-box textarea", "#chat-send"):
                    box = page.locator(part).bounding_box()
                    assert 0 <= box["y"] and box["y"] + box["height"] <= height, (part, options)
                composer = page.locator("#chat-composer").bounding_box()
                reply = page.locator("#chat-log .message.bot").last.bounding_box()
                assert reply["y"] + reply["height"] <= composer["y"], options


HOSTILE = [
    "#<img src=x onerror=window.hit=1>",
    '#chat"]);window.hit=1;//',
    "#chat/1;window.hit=1",
    "#chat/99999999999999999999",
    "#chat/-1",
    "#javascript:window.hit=1",
    "#__proto__",
    "#train/../data",
    "#%23data",
]


def test_whatever_else_stands_in_the_address_does_nothing(tmp_path, opened):
    with site(tmp_path) as its, visit(opened, locale="en-GB") as page:
        enter(page, f"{its.home}/{HOSTILE[0]}")
        for hash_ in HOSTILE:
            page.goto("about:blank")
            page.goto(f"{its.home}/{hash_}")
            page.locator("#tab-rank").wait_for()
            assert page.evaluate("window.hit") is None
            assert page.locator("#tab-rank").is_visible()
        # The first step from there corrects it.
        open_tab(page, "chat")
        at(page, "#chat")
