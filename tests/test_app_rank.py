"""The Rank tab: in a real browser over a real store, and its reader of messages alone."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import gradio as gr
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from alpaca_rlhf.app import board, rank_tab
from alpaca_rlhf.app.board import CRITERIA, REASONS, parse_request
from alpaca_rlhf.app.language import LANGUAGES, translations
from alpaca_rlhf.app.services import Services
from alpaca_rlhf.core.records import Completion, Instruction
from alpaca_rlhf.preferences.assignment import Problem, Refused, Rules, Verdict
from alpaca_rlhf.preferences.people import Account
from alpaca_rlhf.preferences.schema import Audit, Demonstration, Flag, Ranking
from alpaca_rlhf.preferences.store import Store
from tests import board_actions, rank_server
from tests.browser import NO_CHROMIUM, browser, chromium, free_port, visit
from tests.databases import candidates

needs_browser = pytest.mark.skipif(chromium() is None, reason=NO_CHROMIUM)
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
SOURCE = Path(board.__file__).parent


class Desk:
    """One server and one browser for all tests; the store and the account are a test's own."""

    def __init__(self) -> None:
        self.store: Store | None = None
        self.signed_in = True
        self.role = "annotator"
        self.url = ""
        self.browser = None

    def account(self, request):
        if not self.signed_in:
            raise gr.Error("sign in")
        return Account(1, "ann", self.role, "en")

    def __getattr__(self, name):
        return getattr(self.store, name)

    def rankings(self):
        return self.rows(Ranking)

    def rows(self, table):
        with self.store.database.reading() as session:
            rows = list(session.scalars(select(table).order_by(table.id)))
            session.expunge_all()
            return rows

    @contextmanager
    def open(self, **options):
        options = {"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce"} | options
        with visit(self.browser, **options) as page:
            page.set_default_timeout(60_000)
            load(page, self.url)
            yield page


def load(page, url):
    page.goto(url)
    page.locator(".rank[data-started=yes][aria-busy=false]").wait_for()


@pytest.fixture(scope="module")
def served():
    desk = Desk()
    patch = pytest.MonkeyPatch()
    patch.setattr(rank_tab, "POLL_EMPTY_QUEUE_S", 0.2)
    app = rank_server.app(desk, desk.account)
    with rank_server.serving(app, free_port()) as desk.url, browser() as desk.browser:
        yield desk
    patch.undo()


@pytest.fixture
def desk(served, tmp_path):
    served.signed_in = True
    served.role = "annotator"
    with Store(tmp_path / "own.db", rules=rank_server.PLAIN, seed=0) as served.store:
        served.store.add_annotator("ann", "long enough")
        yield served


def order(page):
    """Completion ids from top to bottom."""
    return page.locator(".card").evaluate_all("cards => cards.map(card => card.dataset.answer)")


def number(page):
    return page.locator(".rank").get_attribute("data-task")


def gone(page, task):
    """Waits till another task, or none, is on screen."""
    page.locator(f".rank:not([data-task='{task}'])[aria-busy=false]").wait_for()


def submit(page):
    task = number(page)
    page.get_by_role("button", name="Submit").click()
    gone(page, task)


def tiers(row):
    return [list(tier) for tier in row.tiers]


def put(desk, *texts, prompt="Say something.", **columns):
    """One set of these answers."""
    instruction = Instruction(prompt, source="test", **columns)
    completions = [
        Completion(instruction.id, text, "secret-adapter", sample=i) for i, text in enumerate(texts)
    ]
    desk.store.add_sets([(instruction, completions)], origin="secret-origin")
    return completions


def target(page, card, place, part=".grip"):
    """A point on the grip of a card, and one just beyond the middle of another."""
    page.locator(".card").nth(max(card, place)).scroll_into_view_if_needed()
    grip = page.locator(".card").nth(card).locator(part).bounding_box()
    box = page.locator(".card").nth(place).bounding_box()
    beyond = box["height"] * (0.2 if place < card else 0.8)
    x, y = grip["x"] + grip["width"] / 2, grip["y"] + 24
    return x, y, box["y"] + beyond


def drag(page, card, place):
    x, y, end = target(page, card, place)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y + 12)
    page.mouse.move(x + 30, end, steps=6)
    page.mouse.up()


def swipe(page, card, place, part=".grip"):
    """Swipes until the card has moved: on a busy machine Chromium now and then drops a touch."""
    from playwright.sync_api import TimeoutError as WaitedInVain

    before = ",".join(order(page))
    moved = f"{ORDER} !== '{before}'"
    for _ in range(2):
        touch_once(page, card, place, part)
        with suppress(WaitedInVain):
            page.wait_for_function(moved, timeout=10_000)
            return
    touch_once(page, card, place, part)
    page.wait_for_function(moved, timeout=60_000)


def touch_once(page, card, place, part):
    from playwright.sync_api import TimeoutError as WaitedInVain

    # The cards between lie in the middle of the screen, none behind the bar at its lower end, and
    # nothing above them is still growing.
    middle = page.locator(".card").nth((card + place) // 2)
    middle.evaluate("card => card.scrollIntoView({ block: 'center' })")
    page.wait_for_function(STILL, polling=250)

    def hold():
        if part != ".grip":
            with suppress(WaitedInVain):  # on a slow machine the browser has selected a word by now
                page.locator("li.held").wait_for(timeout=5_000)

    x, y, end = target(page, card, place, part)
    flick(page, x, y, end - y, hold)


def flick(page, x, y, distance, hold=lambda: None):
    """A finger goes down, waits as it is told, moves up or down and leaves."""
    session = page.context.new_cdp_session(page)

    def touch(kind, *points):
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": list(points)})

    touch("touchStart", {"x": x, "y": y})
    hold()
    for step in range(1, 7):
        touch("touchMove", {"x": x, "y": y + distance * step / 6})
    touch("touchEnd")


ORDER = "[...document.querySelectorAll('.card')].map(card => card.dataset.answer).join()"
STILL = """() => {
    const tops = [...document.querySelectorAll('.card')]
        .map(card => card.getBoundingClientRect().top);
    const before = window.topsBefore;
    window.topsBefore = tops.join();
    return before === window.topsBefore;
}"""


# --- in the browser ---------------------------------------------------------------------------


@needs_browser
def test_every_order_of_four_answers_takes_few_keys_or_drags(served):
    """By the board's own functions: the fewest for each of the 24 orders, and their mean."""
    with visit(served.browser) as page:
        found = board_actions.shortest_actions(page)
    orders = board_actions.strict_orders()
    assert len(orders) == 24 and len(found["keys"]) == 75, "ties included"
    keys, drags = (board_actions.mean_actions(found[kind], orders) for kind in ("keys", "drags"))
    # Each drag brings one card to its place, and the longest run that is in order already stays.
    assert drags == pytest.approx(4 - 58 / 24)
    assert keys == pytest.approx(63 / 24)
    assert board_actions.are_few(keys, drags) and not board_actions.are_few(keys + 0.1, drags)
    assert found["keys"]["A>B>C>D"] == [] and len(found["keys"]["B>A>C>D"]) == 1
    assert len(found["keys"]["A=B>C>D"]) == 2


@needs_browser
def test_those_keys_make_those_orders_on_the_board(desk):
    desk.add_sets(candidates(6), origin="test")
    chosen = ("D>C>B>A", "B>D>A>C", "A>B>C>D", "C>A=B>D", "A=B=C=D")
    with desk.open() as page:
        keys = board_actions.shortest_actions(page)["keys"]
        expected = []
        for wanted in chosen:
            letters = dict(zip("ABCD", order(page), strict=True))
            expected.append([{letters[a] for a in tier.split("=")} for tier in wanted.split(">")])
            board_actions.rank_by_keys(page, keys[wanted])
    assert [[set(tier) for tier in row.tiers] for row in desk.rankings()] == expected
    assert [row.input_method for row in desk.rankings()] == [
        "keyboard", "keyboard", "as_shown", "keyboard", "keyboard"
    ]  # fmt: skip


@needs_browser
def test_four_answers_by_mouse_and_the_next_task_is_there_at_once(desk):
    desk.add_sets(candidates(2), origin="test")
    with desk.open() as page:
        a, b, c, d = order(page)
        drag(page, 3, 0)
        assert order(page) == [d, a, b, c]
        drag(page, 1, 2)
        assert order(page) == [d, b, a, c]
        grip = page.locator(".card").nth(0).locator(".grip").bounding_box()
        page.mouse.move(grip["x"] + 20, grip["y"] + 20)
        page.mouse.down()
        page.mouse.move(grip["x"] + 20, grip["y"] + 25)
        page.mouse.up()
        assert order(page) == [d, b, a, c], "five pixels are no drag"
        page.get_by_role("button", name="More", exact=True).wait_for(state="hidden")
        first = page.locator(".card").nth(0)
        assert page.get_by_role("radiogroup").count() == 0, "stars are folded until wanted"
        page.get_by_role("button", name="Ratings").click()
        first.get_by_role("radiogroup", name="Relevance").get_by_label("4 of 5").click()
        harmless = first.get_by_role("radiogroup", name="Harmlessness").get_by_label("2 of 5")
        harmless.click()
        harmless.click()  # takes it back
        page.get_by_label("Comment").fill("close <b>call</b>")
        page.get_by_text("2 left for you").wait_for()
        bodies = []
        page.on("request", lambda request: bodies.append(request.post_data or ""))
        first_task = number(page)
        page.get_by_role("button", name="Submit").click()
        page.locator(".rank .toast.on").wait_for()
        gone(page, first_task)
        assert [json.loads(json.loads(body)["data"][0])["do"] for body in bodies if "data" in body][
            :2
        ] == ["submit", "renew"], "the next task was fetched before it was needed"
        page.get_by_text("1 today").wait_for()
        assert page.get_by_role("radiogroup").count() == 12, "the choice is kept for the next task"
        page.reload()
        page.get_by_role("radiogroup").first.wait_for()
        page.get_by_role("button", name="Ratings").click()
        page.get_by_role("radiogroup").first.wait_for(state="hidden")
        page.get_by_role("button", name="Undo last").click()
        page.locator(f".rank[data-task='{first_task}']").wait_for()
        page.get_by_role("radiogroup").first.wait_for()  # stars that would be sent are in sight
    row = desk.rankings()[0]
    assert tiers(row) == [[d], [b], [a], [c]]
    assert row.criteria == {d: {"relevance": 4}}
    assert (row.input_method, row.comment) == ("mouse", "close <b>call</b>")
    assert (row.all_bad, row.blind) == (False, True)


@needs_browser
def test_four_answers_by_touch_on_a_phone(desk):
    desk.add_sets(candidates(1), origin="test")
    with desk.open(**PHONE) as page:
        a, b, c, d = order(page)
        assert page.evaluate(BROKEN) == [], "buttons on a row of their own"
        swipe(page, 2, 0)
        page.locator(f".cards li:first-child [data-answer='{c}']").wait_for()
        assert order(page) == [c, a, b, d]
        swipe(page, 1, 3)
        page.locator(f".cards li:last-child [data-answer='{a}']").wait_for()
        page.get_by_role("button", name="More", exact=True).tap()
        page.get_by_role("button", name="Ratings").tap()
        width, window_width = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert width <= window_width == 390
        small = page.evaluate(SMALL)
        assert small == [], f"controls that are hard to hit: {small}"
        page.get_by_role("button", name="Submit").tap()
        page.get_by_text("Nothing to rank right now").wait_for()
    (row,) = desk.rankings()
    assert (tiers(row), row.input_method) == ([[c], [b], [d], [a]], "touch")


BROKEN = """() => [...document.querySelectorAll('.rank .head')].filter(head => {
        const [letter, moves] = ['.letter', '.moves'].map(
            name => head.querySelector(name).getBoundingClientRect());
        return moves.top >= letter.bottom || moves.bottom <= letter.top;
    }).map(head => head.innerText)"""


SMALL = """() => [...document.querySelectorAll(
        '.rank button, .rank input, .rank textarea, .rank .grip, .rank summary')]
    .filter(one => one.checkVisibility())
    .map(one => [one, one.getBoundingClientRect()])
    .filter(([one, box]) => {
        const least = one.matches('.bar button, .moves button') ? 44 : 24;
        return box.width < least || box.height < least;
    })
    .map(([one, box]) => [one.outerHTML.slice(0, 80), box.width, box.height])"""


@needs_browser
def test_four_answers_by_keyboard_with_a_tie(desk):
    desk.add_sets(candidates(1), origin="test")
    with desk.open() as page:
        a, b, c, d = order(page)
        page.locator(".card").nth(2).focus()
        page.keyboard.press("1")
        assert order(page) == [c, a, b, d]
        assert page.evaluate("document.activeElement.dataset.answer") == c, "focus goes along"
        page.keyboard.press("ArrowDown")
        page.keyboard.press("=")
        tied = page.locator(f"[data-answer='{a}']")
        assert tied.get_attribute("aria-label") == "Answer A, place 1 of 3, tied with C"
        page.locator(".rank > .sr").get_by_text("Answer A, place 1 of 3, tied with C").wait_for()
        page.keyboard.press("End")
        page.keyboard.press("Shift+ArrowUp")
        assert order(page) == [c, a, d, b]
        page.keyboard.press("9")
        assert order(page) == [c, a, d, b], "there is no ninth place"
        page.get_by_label("Comment").focus()
        page.keyboard.type("1=2")
        assert order(page) == [c, a, d, b], "what is typed as text moves nothing"
        page.keyboard.press("Control+Enter")
        page.get_by_text("Nothing to rank right now").wait_for()
    (row,) = desk.rankings()
    assert (tiers(row), row.input_method) == ([[c, a], [d], [b]], "keyboard")
    assert row.comment == "1=2"


@needs_browser
def test_buttons_untie_what_they_tied(desk):
    desk.add_sets(candidates(1, k=3), origin="test")
    with desk.open() as page:
        a, b, c = order(page)
        tie = page.get_by_role("button", name="Tie answer B with the one above")
        tie.click()
        assert page.locator(".place").all_inner_texts() == ["1", "1", "2"]
        assert tie.get_attribute("aria-pressed") == "true"
        tie.click()
        assert page.locator(".place").all_inner_texts() == ["1", "2", "3"]
        up = page.get_by_role("button", name="Move answer C up")
        up.focus()
        page.keyboard.press("Enter")
        page.keyboard.press("Enter")
        assert order(page) == [c, a, b]
        assert up.evaluate("one => one === document.activeElement"), "focus stays on the button"
        assert up.get_attribute("aria-disabled") == "true"
        submit(page)
    (row,) = desk.rankings()
    assert (tiers(row), row.input_method) == ([[c], [a], [b]], "mixed")


@needs_browser
def test_an_untouched_order_has_to_be_confirmed_and_undo_brings_it_back(desk):
    desk.add_sets(candidates(1), origin="test")
    with desk.open() as page:
        a, b, c, d = order(page)
        task = number(page)
        page.get_by_role("button", name="Submit").click()
        sure = page.get_by_role("button", name="Right as shown")
        sure.wait_for()
        assert sure.evaluate("one => one === document.activeElement")
        assert not desk.rankings(), "not without saying so"
        page.get_by_label("Comment").fill("a first thought")
        sure.click()
        gone(page, task)
        assert [(tiers(ranking), ranking.input_method) for ranking in desk.rankings()] == [
            ([[a], [b], [c], [d]], "as_shown")
        ]
        page.get_by_role("button", name="Undo last").click()
        page.locator(f".rank[data-task='{task}']").wait_for()
        assert order(page) == [a, b, c, d]
        assert page.get_by_label("Comment").input_value() == "a first thought"
        page.locator(".card").nth(3).focus()
        page.keyboard.press("2")
        submit(page)
        page.get_by_role("button", name="Undo last").click()
        page.locator(f".rank[data-task='{task}']").wait_for()
        assert order(page) == [a, d, b, c], "as it was when it was taken back"
    first, undone, second, undone_again = desk.rankings()
    assert (first.withdrawn, undone.withdrawn, undone_again.withdrawn) == (False, True, True)
    assert (tiers(second), second.revision) == ([[a], [d], [b], [c]], 2)


@needs_browser
def test_skip_asks_only_where_work_would_be_lost(desk):
    desk.add_sets(candidates(3), origin="test")
    with desk.open() as page:
        first = number(page)
        page.get_by_role("button", name="Skip").click()
        gone(page, first)
        second = number(page)
        page.locator(".card").nth(1).focus()
        page.keyboard.press("1")
        moved = order(page)
        page.get_by_role("button", name="Skip").click()
        page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
        assert (number(page), order(page)) == (second, moved)
        page.get_by_role("button", name="Skip").click()
        page.get_by_label("Why? (optional)").fill("I know nothing of this")
        page.get_by_role("button", name="Skip it").click()
        gone(page, second)
    skips = [entry for entry in desk.rows(Audit) if entry.action == "skip"]
    assert [(entry.entity, entry.after) for entry in skips] == [
        (f"assignment:{first}", None),
        (f"assignment:{second}", {"reason": "I know nothing of this"}),
    ]
    assert not desk.rankings()


@needs_browser
def test_flag_and_all_bad(desk):
    desk.add_sets(candidates(2), origin="test")
    hostile = "<img src=x onerror=alert(1)> ${1+1}"
    with desk.open() as page:
        first = number(page)
        bad = order(page)[1]
        page.get_by_role("button", name="Flag").click()
        page.get_by_label("Answer B", exact=True).check()
        page.get_by_label("In your words").fill(hostile)
        page.get_by_role("button", name="Send").click()
        page.get_by_role("alert").get_by_text("Choose a reason.").wait_for()
        assert not desk.rows(Flag), "no reason is chosen for anybody"
        page.get_by_label("Personal data").check()
        assert page.get_by_text("Choose a reason.").count() == 0
        page.get_by_role("button", name="Send").click()
        gone(page, first)
        (flag,) = desk.rows(Flag)
        assert (flag.completion, flag.reason, flag.text) == (bad, "personal", hostile)
        a, b, c, d = order(page)
        all_bad = page.get_by_role("button", name="All bad")
        all_bad.click()
        assert page.locator(".place").all_inner_texts() == ["1"] * 4
        all_bad.click()
        assert page.locator(".place").all_inner_texts() == ["1", "2", "3", "4"]
        all_bad.click()
        submit(page)
    (row,) = desk.rankings()
    assert row.all_bad and tiers(row) == [[a, b, c, d]], "an order that nobody gave trains nothing"


@needs_browser
def test_nothing_is_lost_when_the_server_is_killed(tmp_path, served):
    where, port = tmp_path / "own.db", free_port()
    with Store(where, rules=rank_server.PLAIN) as store:
        store.add_annotator("ann", "long enough")
        store.add_sets(candidates(2), origin="test")

    def start():
        words_ = [sys.executable, "-m", "tests.rank_server", str(where), str(port)]
        process = subprocess.Popen(words_, cwd=Path(__file__).parent.parent, env=dict(os.environ))
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
                return process
            except OSError:
                assert process.poll() is None, "the server ended"
                time.sleep(0.1)
        raise AssertionError("the server does not start")

    def kill(process):
        process.send_signal(signal.SIGKILL)
        process.wait()

    process = start()
    try:
        with visit(served.browser, reduced_motion="reduce") as page:
            page.set_default_timeout(60_000)
            url = f"http://127.0.0.1:{port}/"
            load(page, url)
            a, b, c, d = order(page)
            task = number(page)
            page.locator(".card").nth(3).focus()
            page.keyboard.press("1")
            page.keyboard.press("ArrowDown")
            page.keyboard.press("=")
            page.get_by_role("button", name="Ratings").click()
            page.get_by_role("radiogroup", name="Relevance").nth(0).get_by_label("3 of 5").click()
            page.get_by_label("Comment").fill("half a thought")
            kill(process)
            process = start()
            load(page, url)
            assert (number(page), order(page)) == (task, [d, a, b, c])
            assert page.locator(".place").all_inner_texts() == ["1", "1", "2", "3"]
            assert page.get_by_label("Comment").input_value() == "half a thought"
            kill(process)
            page.get_by_role("button", name="Submit").click()
            page.get_by_text("Not saved yet").wait_for()
            assert order(page) == [d, a, b, c]
            process = start()
            gone(page, task)  # by itself
            page.get_by_text("Not saved yet").wait_for(state="detached")
            drafts = page.evaluate("Object.keys(localStorage).filter(key => key.includes('draft'))")
            assert drafts == [], "what is acknowledged is forgotten"
    finally:
        kill(process)
    with Store(where, rules=rank_server.PLAIN) as store, store.database.reading() as session:
        (row,) = session.scalars(select(Ranking))
        assert tiers(row) == [[d, a], [b], [c]]
        assert (row.comment, row.criteria) == ("half a thought", {d: {"relevance": 3}})


@needs_browser
@pytest.mark.parametrize("how", ["mouse", "keyboard", "touch"])
def test_after_submit_the_next_task_is_at_its_top_and_takes_keys(desk, how):
    """Without a click: the pressed button is disabled, which leaves the focus to the page."""
    for prompt in range(3):
        put(desk, *(f"{prompt} {answer} " + "long " * 2000 for answer in "abcde"))
    with desk.open(has_touch=how == "touch") as page:
        for _ in range(2):
            task = number(page)
            page.keyboard.press("2")  # of the first answer, which is in focus
            page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
            submit = page.get_by_role("button", name="Submit")
            if how == "keyboard":
                submit.focus()
                page.keyboard.press("Enter")
            else:
                (submit.tap if how == "touch" else submit.click)()
            gone(page, task)
            top = "document.querySelector('.rank .ask').getBoundingClientRect().top"
            page.wait_for_function(f"{top} >= 0 && {top} < innerHeight / 2")
            assert page.evaluate("document.activeElement.matches('.card')")
        # A click beside the cards takes the focus from them, and no key.
        page.locator(".rank h2").click()
        assert page.evaluate("document.activeElement === document.body")
        first, second = order(page)[:2]
        page.keyboard.press("2")
        assert order(page)[:2] == [second, first]
        # So does one on a button of the board, or on the tab, as when one comes from another tab.
        page.get_by_role("button", name="Plain text").click()
        page.keyboard.press("2")
        assert order(page)[:2] == [first, second]
        page.get_by_label("Comment").fill("12")
        assert order(page)[:2] == [first, second], "whoever writes moves nothing"


@needs_browser
def test_a_lost_answer_is_asked_for_again_and_saves_nothing_twice(desk):
    desk.add_sets(candidates(2), origin="test")
    lost = []

    def lose(route):
        if '\\"do\\":\\"submit' in (route.request.post_data or "") and lost:
            lost.pop()
            route.fetch()  # the server has it ...
            route.abort()  # ... and nobody hears of it
        else:
            route.continue_()

    with desk.open() as page:
        page.route("**/run/rank", lose)
        for closed in (False, True):
            task = number(page)
            page.locator(".card").nth(1).focus()
            page.keyboard.press("1")
            lost[:] = ["answer"] * (2 if closed else 1)
            page.get_by_role("button", name="Submit").click()
            page.get_by_text("Not saved yet").wait_for()
            if closed:
                load(page, desk.url)
            page.get_by_text("This ranking was already saved").wait_for()
            gone(page, task)
        page.unroute("**/run/rank")
        drafts = page.evaluate("Object.keys(localStorage).filter(key => key.includes('draft'))")
        assert (drafts, lost) == ([], [])
    assert len(desk.rankings()) == 2


@needs_browser
def test_what_a_browser_keeps_of_one_run_is_never_sent_to_another(desk, tmp_path):
    """Numbers of tasks restart in every database, and the texts may be the same."""
    desk.add_sets(candidates(3), origin="test")
    first, told = desk.store, []
    name_run = "window.alpacaRun = localStorage.getItem('of the test') || 'aaaaaaaa';"

    def refuse(route):
        if '\\"do\\":\\"submit' in (route.request.post_data or "") and not told:
            route.fulfill(status=409, json={"detail": "another run"})
        else:
            route.continue_()

    def rank_one(page):
        page.locator(".card").nth(1).focus()
        page.keyboard.press("1")
        page.get_by_role("button", name="Submit").click()

    def go_on_to(page, run, store):
        page.evaluate("run => localStorage.setItem('of the test', run)", run)
        desk.store = store
        load(page, desk.url)

    with Store(tmp_path / "second.db", rules=rank_server.PLAIN, seed=0) as second:
        second.add_annotator("ann", "long enough")
        second.add_sets(candidates(3), origin="test")
        with visit(desk.browser, reduced_motion="reduce") as page:
            page.set_default_timeout(60_000)
            page.add_init_script(name_run)
            load(page, desk.url)
            task = number(page)
            rank_one(page)
            gone(page, task)
            # 1. The app goes on to another run while a verdict is on its way.
            page.route("**/run/rank", refuse)
            rank_one(page)
            page.get_by_role("alert").get_by_text("gone on to another run").wait_for()
            told.append("the page")
            # 2. On that run nothing of the first is sent or taken back.
            go_on_to(page, "bbbbbbbb", second)
            for _ in range(2):
                task = number(page)
                rank_one(page)
                gone(page, task)
            page.get_by_role("button", name="Undo last").click()
            page.get_by_text("Your last ranking is open again").wait_for()
            assert number(page) == task, "the verdict before the last was taken back"
            assert len(second.own_verdicts(1)) == 1
            # 3. Back on the first run its verdict arrives.
            go_on_to(page, "aaaaaaaa", first)
            page.get_by_text("Saved.").wait_for()
    assert len(first.own_verdicts(1)) == 2


@needs_browser
def test_signed_out_the_draft_waits(desk):
    desk.add_sets(candidates(1), origin="test")
    with desk.open() as page:
        page.locator(".card").nth(1).focus()
        page.keyboard.press("1")
        moved_order = order(page)
        desk.signed_in = False
        page.get_by_role("button", name="Submit").click()
        page.get_by_role("alert").get_by_text("You are signed out").wait_for()
        assert order(page) == moved_order and not desk.rankings()
        desk.signed_in = True
        page.get_by_role("button", name="Try now").click()
        page.get_by_text("Nothing to rank right now").wait_for()
    (ranking,) = desk.rankings()
    assert tiers(ranking) == [[answer_id] for answer_id in moved_order]


@needs_browser
def test_a_task_that_went_to_somebody_else_is_not_shown_for_long(desk, tmp_path):
    clock_s = [1000.0]
    with Store(
        tmp_path / "clock.db", rules=Rules(gold_rate=0, repeat_rate=0, second_share=0),
        clock=lambda: clock_s[0],
    ) as desk.store:  # fmt: skip
        desk.store.add_annotator("ann", "long enough")
        bob = desk.store.add_annotator("bob", "long enough")
        desk.store.add_sets(candidates(2), origin="test")
        with desk.open() as page:
            page.get_by_text("2 left for you").wait_for()  # both are here now
            task = number(page)
            page.locator(".card").nth(1).focus()
            page.keyboard.press("1")
            clock_s[0] += 2 * desk.store.rules.lease_s
            first = desk.store.claim(bob)
            for bobs_task in (first, desk.store.claim(bob, holding=[first.id])):
                verdict = Verdict(tuple((answer.id,) for answer in bobs_task.completions))
                desk.store.submit(bob, bobs_task.id, verdict)
            page.get_by_role("button", name="Submit").click()
            page.get_by_text("went to somebody else").wait_for()
            page.get_by_text("Nothing to rank right now").wait_for()
        mine = [ranking for ranking in desk.rankings() if ranking.assignment_id == int(task)]
        assert len(mine) == 1, "work that was done is kept all the same"


@needs_browser
@pytest.mark.parametrize("role", ["annotator", "admin"])
def test_an_empty_queue_says_what_to_do_and_looks_again(desk, role):
    desk.role = role
    with desk.open() as page:
        page.get_by_text("Nothing to rank right now").wait_for()
        assert page.get_by_text("alpaca-rlhf sample --run").count() == (role == "admin")
        desk.add_sets(candidates(1), origin="test")
        page.get_by_text("What is 0 plus 0?").wait_for()


LOADED = """() => [...document.querySelectorAll('.said *')].filter(one =>
        !one.matches('p, h4, h5, h6, blockquote, ul, ol, li, pre, code, em, strong, s, hr, div, '
            + 'span, table, thead, tbody, tr, th, td, mark, math, math *')
        || one.getAttributeNames().some(name => !['class', 'value', 'tabindex', 'alttext'].includes(
            name) && one.namespaceURI !== 'http://www.w3.org/1998/Math/MathML')
    ).map(one => one.outerHTML.slice(0, 120))"""


HOSTILE = (
    "${document.body.dataset.pwned=1}",
    "<img src=x onerror=\"document.body.dataset.pwned=1\">",
    "{{value}} {{#each value}}x{{/each}} `${1}` \\u0041",
    "</script><script>document.body.dataset.pwned=1</script></textarea>",
    "\u202egnp.exe\u2066 \u2067RTL \u05e9\u05dc\u05d5\u05dd",
    "javascript:alert(1) [x](javascript:alert(1)) **bold**",
    "W" * 10_000,
    "<style>*{display:none}</style><svg onload=document.body.dataset.pwned=1>",
    "line one\n\n\tline two   with  spaces",
)  # fmt: skip


@needs_browser
@pytest.mark.parametrize("options", [{}, PHONE], ids=["wide", "phone"])
def test_hostile_texts_are_shown_literally(desk, options):
    history = ((HOSTILE[0] + HOSTILE[3], HOSTILE[1]), (HOSTILE[6], HOSTILE[2]))
    columns = {"prompt": "\n".join(HOSTILE), "input": HOSTILE[4] + HOSTILE[1], "history": history}
    completions = put(desk, *HOSTILE, **columns)
    with desk.open(**options) as page:
        assert len(order(page)) == 9
        assert page.evaluate(LOADED) == []
        assert page.evaluate("document.body.dataset.pwned") is None
        page.get_by_role("button", name="Plain text").click()
        for completion in completions:
            element = page.locator(f"[data-answer='{completion.id}'] .said")
            assert element.evaluate("one => one.textContent") == completion.text
        prompt_texts = page.locator(".ask .said").evaluate_all(
            "elements => elements.map(element => element.textContent)"
        )
        assert prompt_texts == [
            HOSTILE[0] + HOSTILE[3], HOSTILE[1], HOSTILE[6], HOSTILE[2],
            columns["prompt"], columns["input"],
        ]  # fmt: skip
        assert page.evaluate("document.body.dataset.pwned") is None
        assert page.locator(".rank img, .rank script, .rank style, .rank svg, .rank a").count() == 0
        page.get_by_role("button", name="Show all").first.click()
        width, window_width = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert width <= window_width
        long = page.locator(f"[data-answer='{completions[6].id}']")
        assert long.locator(".said").evaluate("one => one.clientHeight") < 300
        long.get_by_role("button", name="Show all").click()
        assert long.locator(".said").evaluate("one => one.clientHeight") > 1000
        page.locator(".card").nth(8).focus()
        page.keyboard.press("1")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("9")
        last = order(page)
        submit(page)
    (row,) = desk.rankings()
    assert tiers(row) == [[answer_id] for answer_id in last]


RUN = "document.body.dataset.pwned=1"
HOSTILE_MARKUP = (
    f"[x](javascript:{RUN}) <javascript:{RUN}> [y](data:text/html,<script>{RUN}</script>)\n"
    f"[z](https://example.org/ 'onmouseover={RUN}') <https://example.org/a>",
    f"![x](https://example.org/x.png) ![y](data:image/svg+xml,<svg/onload={RUN}>) "
    f"![][z]\n\n[z]: https://example.org/z.png\n\n<img src=x onerror={RUN}>",
    "> " * 500 + "deep " + "- " * 500 + "*" * 3000 + "a" + "*" * 3000,
    f"```html onload={RUN}\n<script>{RUN}</script>\n~~~\nnever closed",
    "# \u202egnp.exe\u2066 \u2067RTL\n\n`\u202e` **\u05e9\u05dc\u05d5\u05dd** \u202e",
    "W" * 20_000,
    f"&lt;script&gt;{RUN}&lt;/script&gt; &#x3c;svg onload={RUN}&#x3e; &#0; **b** &amp;lt;",
    f"$\\href{{javascript:{RUN}}}{{x}}$ $\\style{{position:fixed;inset:0}}{{y}}$ "
    f"$\\text{{<img src=x onerror={RUN}>}}$ $\\newcommand{{\\a}}{{\\a\\a}}\\a$ "
    f"$\\hspace{{9999em}}x$ $\\color{{red}}y$ $${'x+' * 400}x$$ ${'{' * 300}{'}' * 300}$",
    "<div style='position:fixed;inset:0'>**x**{style=position:fixed}</div>\n\n"
    + "|a" * 40 + "|\n" + "|-" * 40 + "|\n" + "|<style>*{display:none}</style>" * 40 + "|",
)  # fmt: skip


@needs_browser
def test_hostile_markup_runs_nothing_loads_nothing_and_keeps_the_layout(desk):
    history = ((HOSTILE_MARKUP[0], HOSTILE_MARKUP[1]),)
    put(desk, *HOSTILE_MARKUP, prompt=HOSTILE_MARKUP[7], input=HOSTILE_MARKUP[8], history=history)
    put(desk, "W" * 2**20, "**b** " * 2**17)
    with desk.open() as page:  # which allows no request to elsewhere
        requests = []
        page.on("request", lambda request: requests.append(request.url))
        formatted = page.locator(".card .said.formatted").count()
        assert formatted >= 7, "what cannot be formatted is shown as it is"
        assert page.locator(".said math").count() > 2 and page.locator(".said table").count() > 1
        for viewport in (PHONE["viewport"], {"width": 1280, "height": 900}):
            page.set_viewport_size(viewport)
            for _ in range(2):  # a list, then side by side
                page.locator(".card").first.press("v")
                assert page.evaluate(LOADED) == []
                assert page.evaluate(OUTSIDE) == []
        page.locator(".said").first.hover()
        assert page.evaluate("document.body.dataset.pwned") is None
        text = page.locator(".turn .said").first.text_content()
        assert 'https://example.org/ "onmouseover' in text, "an address is text"
        page.locator(".card").last.press("1")
        submit(page)
        assert page.evaluate(OUTSIDE) == [], "lines of a megabyte"
        assert not [url for url in requests if "/gradio_api/" not in url]


OUTSIDE = """() => {
    const width = document.documentElement.clientWidth;
    const boxes = [...document.querySelectorAll('.rank .card, .rank .ask')];
    return [document.documentElement, ...boxes].filter(one => one.scrollWidth > one.clientWidth + 1
        || one.getBoundingClientRect().right > width + 1).map(one => one.outerHTML.slice(0, 80));
}"""

MARKDOWN = """# Title

Some **bold** text, `code`, [a link](https://example.org/x) and ![a picture](https://example.org/p).

3. third
5. fifth

| a | b |
|---|---|
| 1 | 2 |

```python
for x in y:
    pass
```

Euler: $e^{i\\pi} = -1$ for $5"""


@needs_browser
def test_markdown_code_and_maths_are_shown_or_plain_text_at_a_key(desk):
    for prompt in ("Say *it*.", "Say it again."):
        put(desk, MARKDOWN, "line one\n  line two", "another *answer*", prompt=prompt)
    with desk.open() as page:
        card = page.locator(".card", has_text="Euler")
        said = card.locator(".said")
        for selector, text in {
            "h4": "Title", "strong": "bold", "p code": "code", "pre code": "for x in y:\n    pass",
            ".link": "a link", ".address": " (https://example.org/x)", "td:last-child": "2",
            ".image": "![a picture](https://example.org/p)",
        }.items():  # fmt: skip
            assert said.locator(selector).text_content() == text, selector
        values = said.locator("ol li").evaluate_all("all => all.map(one => one.value)")
        assert values == [3, 5], "numbers are as they were written"
        formula = said.locator("math")
        assert formula.evaluate("one => one instanceof MathMLElement && one.clientWidth > 0")
        assert formula.get_attribute("alttext") == "e^{i\\pi} = -1"
        assert page.locator(".ask em").text_content() == "it"
        plain = page.locator(".card", has_text="line one").locator(".said")
        assert plain.evaluate("one => one.innerText") == "line one\n  line two"
        card.press("p")
        assert said.evaluate("one => one.textContent") == MARKDOWN
        assert page.get_by_role("button", name="Plain text").get_attribute("aria-pressed") == "true"
        page.locator(".card").last.press("1")
        submit(page)
        page.reload()
        page.locator(".card", has_text="**bold**").wait_for()  # the choice is remembered
        page.get_by_role("button", name="Plain text").click()
        page.locator(".card strong").wait_for()


@needs_browser
def test_words_that_differ_between_near_equal_answers_are_marked(desk):
    seine, rhone, formatted, other = (
        "The capital of France is Paris, a city on the Seine.",
        "The capital of France is Lyon, a city on the Rhône: $x^2$",
        "The capital of **France** is Paris, a city on the Seine.",
        "Bananas are yellow, as everybody knows who has seen them.",
    )
    put(desk, seine, rhone, formatted, other, prompt="Capital?")
    first = "".join(chr(0x4E00 + i * 7919 % 3000) for i in range(2000))
    put(desk, *("".join(c if i % n else "汉" for i, c in enumerate(first)) for n in (5, 7, 9, 11)))
    with desk.open() as page:
        cards = page.evaluate(MARKS)
        twins = [card for card in cards if card["text"] == seine]
        assert [card["marks"] for card in twins] == [[], []]
        assert [card["note"] for card in twins] == [
            f"The same words as answer {card['letter']}." for card in reversed(twins)
        ]
        (lyon,) = [card for card in cards if "Lyon" in card["text"]]
        assert lyon["marks"] == ["Lyon", "Rhône:", "x^2"]
        assert lyon["note"].startswith("The underlined words differ from answer ")
        assert lyon["lines"] == ["underline"], "not by colour alone"
        (unlike,) = [card for card in cards if card["text"] == other]
        assert (unlike["marks"], unlike["note"]) == ([], "")
        page.locator(".card").first.press("p")
        by_text = {card["text"]: card for card in page.evaluate(MARKS)}
        assert by_text[formatted]["marks"] == ["**", "**"], "plain text has other words"
        assert by_text[seine]["note"].endswith("has all these words and more.")
        page.locator(".card").first.press("d")
        assert [card["marks"] + [card["note"]] for card in page.evaluate(MARKS)] == [[""]] * 4
        page.locator(".card").first.press("1")
        page.get_by_role("button", name="Submit").click()
        page.get_by_role("button", name="Right as shown").click()
        page.locator(".card", has_text="汉").first.wait_for()
        assert page.locator(".card mark").count() == 0, "the choice is remembered"
        milliseconds = page.evaluate(TIME_TO_MARK)
        assert milliseconds < 10_000, "four answers of 2,000 characters, each a word"
        assert page.locator(".card mark").count() > 100


MARKS = """() => [...document.querySelectorAll('.card')].map(card => ({
    text: [...card.querySelectorAll('.said')].map(one => one.textContent).join(''),
    letter: card.querySelector('.letter').textContent.slice(-1),
    marks: [...card.querySelectorAll('mark, .differs math')].map(
        one => one.getAttribute('alttext') ?? one.textContent),
    lines: [...new Set([...card.querySelectorAll('mark')].map(
        one => getComputedStyle(one).textDecorationLine))],
    note: card.querySelector('.compared').hidden ? '' : card.querySelector('.compared').textContent,
}))"""
TIME_TO_MARK = """() => {
    const key = new KeyboardEvent('keydown', { key: 'd', bubbles: true });
    const start = performance.now();
    document.querySelector('.card').dispatchEvent(key);
    return performance.now() - start;
}"""


@needs_browser
@pytest.mark.parametrize("wide", [False, True], ids=["list", "side by side"])
def test_a_card_is_dragged_from_anywhere_and_its_text_is_selected(desk, wide):
    put(desk, *(f"{letter} is an answer of some words" for letter in "wxyz"))
    with desk.open() as page:
        a, b, c, d = order(page)
        if wide:
            page.locator(".card").first.press("v")

        def at(answer, part):
            box = page.locator(f"[data-answer='{answer}'] {part}").bounding_box()
            return box["x"] + min(20, box["width"] / 2), box["y"] + box["height"] / 2

        def go(answer, part, other, *, hold=False):
            """Drag from a part of a card to the upper left part of another."""
            box = page.locator(f"[data-answer='{other}']").bounding_box()
            x, y = at(answer, part)
            page.mouse.move(x, y)
            page.mouse.down()
            if hold:
                page.locator("li.held").wait_for()
            page.mouse.move(x - 4, y - 9)
            page.mouse.move(box["x"] + 12, box["y"] + box["height"] * 0.3, steps=5)

        selection = "getSelection().toString()"
        # 1. From beside the text: at once, and nothing is selected.
        go(d, ".letter", a)
        page.mouse.up()
        assert order(page) == [d, a, b, c] and page.evaluate(selection) == ""
        assert page.evaluate("document.activeElement.dataset.answer") == d
        # 2. From the text, held still: the same. Escape gives up.
        go(c, ".said", a, hold=True)
        page.keyboard.press("Escape")
        page.mouse.up()
        assert order(page) == [d, a, b, c] and page.locator(".dragged, .held").count() == 0
        go(c, ".said", a, hold=True)
        page.mouse.up()
        assert order(page) == [d, c, a, b] and page.evaluate(selection) == ""
        # 3. From the text without waiting: it is selected, and no card moves.
        x, y = at(a, ".said")
        for _ in range(5):  # a busy machine may take longer than the moment that makes a drag
            page.mouse.move(x - 18, y)
            page.mouse.down()
            page.mouse.move(x + 60, y, steps=4)
            page.mouse.up()
            if page.evaluate(selection):
                break
        assert page.evaluate(selection) != "" and order(page) == [d, c, a, b]
        # 4. To the end, from the grip.
        box = page.locator(f"[data-answer='{b}']").bounding_box()  # before it makes room
        go(d, ".grip", b)
        page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] * 0.8, steps=3)
        page.mouse.up()
        assert order(page) == [c, a, b, d]
        submit(page)
    (row,) = desk.rankings()
    assert (tiers(row), row.input_method) == ([[c], [a], [b], [d]], "mouse")


@needs_browser
def test_a_finger_drags_a_card_after_a_moment_and_scrolls_at_once(desk):
    put(desk, *(f"{letter} " + "long " * 60 for letter in "wxyz"))
    with desk.open(**PHONE) as page:
        a, b, c, d = order(page)
        swipe(page, 1, 0, ".said")
        assert order(page) == [b, a, c, d]
        page.locator(".card").nth(2).evaluate("card => card.scrollIntoView({ block: 'center' })")
        page.wait_for_function(STILL, polling=250)
        before = page.evaluate("scrollY")
        box = page.locator(".card").nth(2).locator(".said").bounding_box()
        flick(page, box["x"] + 40, box["y"] + 20, -150)
        page.wait_for_function(f"scrollY > {before} + 50")
        assert order(page) == [b, a, c, d]


@needs_browser
@pytest.mark.parametrize("options", [{}, PHONE], ids=["wide", "phone"])
def test_all_of_four_long_answers_is_there_at_one_key(desk, options):
    texts = [f"{letter} " + " ".join(f"word{n}" for n in range(290)) + " END" for letter in "wxyz"]
    assert min(map(len, texts)) > 2000
    completions = put(desk, *texts)
    with desk.open(**options) as page:

        def cut():
            return page.locator(".card .said").evaluate_all(
                "all => all.filter(one => one.scrollHeight > one.clientHeight + 2).length"
            )

        assert cut() == 4
        page.locator(".card").first.focus()
        page.keyboard.press("v")
        assert cut() == 0, "nothing needs to be opened"
        tops = page.locator(".card").evaluate_all(
            "cards => new Set(cards.map(card => Math.round(card.getBoundingClientRect().top))).size"
        )
        assert tops == (4 if options else 1), "side by side where there is room"
        width, window_width = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert width <= window_width
        first = order(page)[0]
        page.keyboard.press("4")
        submit(page)
        page.get_by_role("button", name="Undo").click()
        page.locator(".card").first.wait_for()
        assert cut() == 0, "it stays so for the next task"
        page.keyboard.press("v")
        assert cut() == 4
    assert tiers(desk.rankings()[0])[-1] == [first] and len(completions) == 4


@needs_browser
def test_two_answers_and_a_conversation(desk):
    completions = put(desk, "yes", "no", prompt="And then?", history=(("Hello", "Hi"),))
    with desk.open() as page:
        assert page.locator(".turn .who").all_inner_texts() == ["User", "Assistant"]
        a, b = order(page)
        assert {a, b} == {completion.id for completion in completions}
        page.get_by_role("button", name="Move answer A down").click()
        submit(page)
    assert [tiers(one) for one in desk.rankings()] == [[[b], [a]]]


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(desk, scheme):
    from axe_playwright_python.sync_playwright import Axe

    put(desk, MARKDOWN, MARKDOWN.replace("bold", "heavy"), MARKDOWN.replace("for x", "for z"))
    put(desk, MARKDOWN, MARKDOWN.replace("third", "last"), "x" * 400 + f"${'x+' * 99}x$")
    axe = Axe()

    def look(page, what):
        bad = [
            (violation["id"], node["html"][:120])
            for violation in axe.run(page, context=".rank").response["violations"]
            if violation["impact"] in ("serious", "critical")
            for node in violation["nodes"]
        ]
        assert not bad, f"{what}: {bad}"

    with desk.open(color_scheme=scheme) as page:
        page.get_by_role("button", name="Tie answer B").click()
        page.get_by_role("button", name="Ratings").click()
        page.get_by_role("radiogroup", name="Relevance").nth(0).get_by_label("4 of 5").click()
        page.get_by_role("button", name="All bad").click()
        look(page, "the board")
        page.get_by_role("button", name="Flag").click()
        page.get_by_role("button", name="Send").click()
        look(page, "the flag dialog")
        page.get_by_role("button", name="Cancel").click()
        submit(page)
        page.get_by_role("button", name="Submit").click()
        look(page, "the confirmation")
        page.get_by_role("button", name="Right as shown").click()
        page.get_by_text("Nothing to rank right now").wait_for()
        look(page, "the empty queue")


ENGLISH = """() => {
    const root = document.querySelector('.rank').cloneNode(true);
    for (const one of root.querySelectorAll('.said, kbd, code')) one.remove();
    const said = [root.textContent];
    for (const one of root.querySelectorAll('*'))
        for (const name of ['aria-label', 'title', 'placeholder'])
            if (one.hasAttribute(name)) said.push(one.getAttribute(name));
    return said.flatMap(text => text.match(/[A-Za-z]{2,}/g) || []);
}"""


@needs_browser
def test_in_chinese_no_english_is_left(desk):
    completions = put(desk, "one", "two", prompt="Count.", input="1 2", history=(("Hello", "Hi"),))
    with desk.open(locale="zh-CN") as page:
        assert page.locator(".rank").get_attribute("lang") == "zh-CN"
        assert len(order(page)) == len(completions)
        page.locator(".numbers b").first.wait_for()
        assert page.evaluate(ENGLISH) == []
        page.get_by_role("button", name="举报").click()
        page.get_by_role("button", name="发送").click()
        page.get_by_text("请选择一个原因").wait_for()
        assert page.evaluate(ENGLISH) == []
        page.get_by_role("button", name="取消").click()
        page.get_by_role("button", name="提交").click()
        page.get_by_role("button", name="顺序正确").click()
        page.get_by_text("暂时没有需要排序的任务").wait_for()
        assert page.evaluate(ENGLISH) == []


# --- without a browser --------------------------------------------------------------------------


@needs_browser
def test_a_better_answer_is_written_and_an_own_verdict_revised(desk):
    texts = ["one is good", "two is better", f"three {HOSTILE_TEXT}"]
    completions = put(desk, *texts)
    with desk.open() as page:
        task = number(page)
        # 1. An answer is edited; word for word it is refused; a reload keeps it.
        card = page.locator(f".card[data-answer='{completions[1].id}']")
        card.press("1")
        card.get_by_role("button", name="Edit answer").click()
        field = page.get_by_label("Your better answer")
        assert field.input_value() == "two is better"
        page.get_by_role("button", name="Submit").click()
        page.locator(".toast.on", has_text="word for word").wait_for()
        field.fill(f"two is best {HOSTILE_TEXT}")
        page.reload()
        page.locator(f".rank[data-task='{task}'][aria-busy=false]").wait_for()
        assert field.input_value() == f"two is best {HOSTILE_TEXT}"
        submit(page)
        # 2. It is found among the own verdicts, taken back, and sent without the answer.
        page.get_by_role("button", name="My rankings").click()
        own = page.locator("dialog .own li")
        own.first.wait_for()
        assert own.count() == 1 and "two is better" in own.inner_text()
        own.get_by_role("button", name="Revise").click()
        page.locator(f".rank[data-task='{task}'][aria-busy=false]").wait_for()
        assert field.input_value() == f"two is best {HOSTILE_TEXT}"
        assert page.evaluate("window.hit") is None and page.locator("img[src=x]").count() == 0
        kept = desk.rows(Demonstration)
        page.get_by_role("button", name="Discard it").click()
        submit(page)
        # 3. Written anew after all of an answer was deleted, it is no answer edited.
        page.get_by_role("button", name="My rankings").click()
        page.locator("dialog .own li").get_by_role("button", name="Revise").click()
        page.locator(f".rank[data-task='{task}'][aria-busy=false]").wait_for()
        card.get_by_role("button", name="Edit answer").click()
        field.fill("")
        field.fill("four is new")
        submit(page)
    demonstration, anew = desk.rows(Demonstration)
    assert [demonstration.text] == [row.text for row in kept] == [f"two is best {HOSTILE_TEXT}"]
    assert demonstration.edited_from == completions[1].id
    assert (anew.text, anew.edited_from) == ("four is new", "")
    assert [row.withdrawn for row in desk.rankings()] == [False, True, False, True, False]
    assert desk.store.figures().counts["demonstrations"] == 1


HOSTILE_TEXT = "<img src=x onerror=window.hit=1>"


@needs_browser
def test_a_verdict_names_the_guidelines_on_screen_and_newer_ones_come_by_themselves(desk):
    for prompt in ("First.", "Second."):
        put(desk, "one is good", "two is better", prompt=prompt)
    first = desk.store.set_guidelines("Prefer **short** answers.", actor="test")
    with desk.open() as page:
        page.locator(f"#guidelines-version [data-version='{first.version}']").wait_for(
            state="attached"
        )
        page.locator("#guidelines strong", has_text="short").wait_for()
        assert f"version {first.version}" in page.locator("#guidelines").inner_text()
        page.get_by_text("left for you").wait_for()  # the last reply of the beginning
        # 1. New guidelines while a task is on screen: the verdict names those that were read.
        second = desk.store.set_guidelines("Prefer **true** answers.", actor="test")
        page.locator(".card").nth(1).press("1")
        submit(page)
        # 2. The reply tells of them, and they are shown before the next verdict.
        page.locator(".toast.on", has_text=f"version {second.version}").wait_for()
        page.locator("#guidelines strong", has_text="true").wait_for()
        page.locator(".card").nth(1).press("1")
        submit(page)
    assert [row.guideline for row in desk.rankings()] == [first.version, second.version]


def message(**fields):
    return json.dumps({"do": "submit", "task": 1, "revision": 0, "method": "mouse"} | fields)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inside: st.lists(inside) | st.dictionaries(st.text(), inside),
    max_leaves=12,
)


FIELDS = (
    "do task revision tiers criteria comment method all_bad holding reason words completion shown"
).split()


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(st.sampled_from(FIELDS), JSON),
    st.sampled_from([None, "next", "renew", "submit", "undo", "skip", "flag", "progress"]),
)
def test_any_message_is_read_or_refused(fields, do):
    try:
        board_request = parse_request(json.dumps(fields | ({"do": do} if do else {})))
    except Refused as refused:
        assert refused.problem in ("bad_value", "incomplete")
    else:
        assert board_request.action == do


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.permutations([f"id{i}" for i in range(9)]), st.integers(2, 9), st.data())
def test_every_order_with_every_tie_is_read_as_sent(ids, k, data):
    ids = ids[:k]
    cuts = sorted(data.draw(st.sets(st.integers(1, k - 1))))
    sent = [ids[a:b] for a, b in zip([0, *cuts], [*cuts, k], strict=True)]
    stars = data.draw(
        st.dictionaries(
            st.sampled_from(ids), st.dictionaries(st.sampled_from(CRITERIA), st.integers(1, 5))
        )
    )
    board_request = parse_request(message(tiers=sent, criteria=stars, comment="c", all_bad=True))
    assert [list(tier) for tier in board_request.verdict.tiers] == sent
    rated = {answer_id: rating for answer_id, rating in stars.items() if rating}
    assert board_request.verdict.criteria == rated
    assert (board_request.verdict.comment, board_request.verdict.all_bad) == ("c", True)


GOOD = {"tiers": [["a"], ["b"]]}


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({}, "incomplete"),
        ({"tiers": [["a"]]}, "incomplete"),
        ({"tiers": [["a"], ["a"]]}, "incomplete"),
        ({"tiers": [["a", "b"], []]}, "incomplete"),
        ({"tiers": [["a", 1]]}, "incomplete"),
        ({"tiers": [["a", ["b"]]]}, "incomplete"),
        ({"tiers": ["ab"]}, "incomplete"),
        ({"tiers": [[str(i)] for i in range(10)]}, "incomplete"),
        ({"tiers": [["a"], ["b" * 65]]}, "incomplete"),
        (GOOD | {"criteria": {"c": {"relevance": 1}}}, "bad_value"),
        (GOOD | {"criteria": {"a": {"charm": 1}}}, "bad_value"),
        (GOOD | {"criteria": {"a": {"relevance": 0}}}, "bad_value"),
        (GOOD | {"criteria": {"a": {"relevance": 6}}}, "bad_value"),
        (GOOD | {"criteria": {"a": {"relevance": True}}}, "bad_value"),
        (GOOD | {"criteria": {"a": {"relevance": 1.0}}}, "bad_value"),
        (GOOD | {"criteria": []}, "bad_value"),
        (GOOD | {"comment": "x" * 2001}, "bad_value"),
        (GOOD | {"comment": None}, "bad_value"),
        (GOOD | {"method": ""}, "bad_value"),
        (GOOD | {"method": "telepathy"}, "bad_value"),
        (GOOD | {"method": ["mouse"]}, "bad_value"),
        (GOOD | {"all_bad": 1}, "bad_value"),
        (GOOD | {"task": 0}, "bad_value"),
        (GOOD | {"task": 2**53}, "bad_value"),
        (GOOD | {"task": "1"}, "bad_value"),
        (GOOD | {"task": True}, "bad_value"),
        (GOOD | {"revision": -1}, "bad_value"),
        ({"do": "next", "holding": list(range(1, 60))}, "bad_value"),
        ({"do": "next", "holding": ["1"]}, "bad_value"),
        ({"do": "skip", "reason": "x" * 501}, "bad_value"),
        ({"do": "flag", "reason": "because"}, "bad_value"),
        ({"do": "flag", "reason": REASONS[0], "words": "x" * 2001}, "bad_value"),
        ({"do": "drop table"}, "bad_value"),
        ({"do": ["next"]}, "bad_value"),
    ],
)
def test_what_is_refused(fields, problem):
    with pytest.raises(Refused) as refused:
        parse_request(message(**fields))
    assert refused.value.problem == problem


@pytest.mark.parametrize(
    "sent",
    ["", "nonsense", "[]", "null", "[" * 50_000, "1" * 5000, json.dumps("x" * 200_000), None],
)
def test_what_is_no_message(sent):
    with pytest.raises(Refused):
        parse_request(sent)


@pytest.fixture
def services(tmp_path):
    with Store(tmp_path / "own.db", rules=rank_server.PLAIN, seed=0) as store:
        for name in ("ann", "bob"):
            store.add_annotator(name, "long enough")
        put(SimpleNamespace(store=store), "good", "better", "best")
        yield Services(
            store,
            lambda request: Account(request.account, "x", "annotator", "en"),
            lambda request: "zh-CN" if request.account == 2 else "en",
        )


def send(services, account, **fields):
    sent = json.dumps(fields)
    return rank_tab.reply(services, sent, SimpleNamespace(account=account))


def dump(store):
    with store.database.reading() as session:
        return [
            [{key: value for key, value in vars(row).items() if key[0] != "_"} for row in
             session.scalars(select(table).order_by(table.id))]
            for table in (Ranking, Flag, Audit)
        ]  # fmt: skip


def test_a_hostile_client_changes_nothing(services):
    task = send(services, 1, do="next")["task"]
    ids = [answer["id"] for answer in task["answers"]]
    before = dump(services.store)
    tiers_in_order = [[answer_id] for answer_id in ids]
    base = {"do": "submit", "task": task["id"], "revision": 0, "method": "mouse"}
    for account, fields, problem in [
        (1, base | {"tiers": tiers_in_order[:2]}, "incomplete"),
        (1, base | {"tiers": [*tiers_in_order, ["x"]]}, "incomplete"),
        (1, base | {"tiers": [[ids[0]], [ids[1]], ["another"]]}, "incomplete"),
        (1, base | {"tiers": tiers_in_order, "revision": 7}, "unknown"),
        (1, base | {"tiers": tiers_in_order, "task": 99}, "unknown"),
        (2, base | {"tiers": tiers_in_order}, "not_yours"),
        (2, {"do": "skip", "task": task["id"]}, "not_yours"),
        (2, {"do": "undo", "task": task["id"]}, "not_yours"),
        (2, {"do": "renew", "task": task["id"]}, "not_yours"),
        (1, {"do": "undo", "task": task["id"]}, "done"),
        (1, base | {"tiers": tiers_in_order, "better": "good"}, "same_answer"),
        (1, base | {"tiers": tiers_in_order, "better": "x", "better_from": "y"}, "bad_value"),
        (1, base | {"tiers": tiers_in_order, "better": "x" * 20_001}, "bad_value"),
        (1, base | {"tiers": tiers_in_order, "better": ["x"]}, "bad_value"),
        (2, base | {"tiers": tiers_in_order, "better": "mine"}, "not_yours"),
        (1, base | {"tiers": tiers_in_order, "guideline": 1}, "bad_value"),
        (1, base | {"tiers": tiers_in_order, "guideline": "1"}, "bad_value"),
        (1, base | {"tiers": tiers_in_order, "guideline": -1}, "bad_value"),
        (1, {"do": "mine", "before": "1"}, "bad_value"),
        (1, {"do": "flag", "task": task["id"], "reason": "other", "completion": "x"}, "bad_value"),
        (3, {"do": "next"}, "unknown"),
    ]:
        reply = send(services, account, **fields)
        assert reply["problem"] == problem, fields
        language = "zh-CN" if account == 2 else "en"
        assert reply["message"] == translations("rank", language)[f"problem.{problem}"]
    assert dump(services.store) == before


def test_another_verdict_from_another_tab_is_not_called_saved(services):
    task = send(services, 1, do="next")["task"]
    ids = [answer["id"] for answer in task["answers"]]
    sent = {"do": "submit", "task": task["id"], "revision": 0, "method": "mouse"}
    sent |= {"tiers": [[answer_id] for answer_id in ids], "comment": " with\x00care "}
    other_tabs = [
        {"tiers": sent["tiers"][::-1]},
        {"tiers": [ids]},
        {"comment": "otherwise"},
        {"criteria": {ids[0]: {"relevance": 3}}},
        {"all_bad": True},
    ]
    assert not send(services, 1, **sent)["already"]
    for other in other_tabs:
        reply = send(services, 1, **(sent | other))
        assert reply["problem"] == "other_verdict", other
        assert reply["message"].startswith("Not saved")
    assert send(services, 1, **sent)["already"], "the same one is there"
    assert send(services, 1, **(sent | {"method": "keyboard"}))["already"], "however it was entered"
    send(services, 1, do="undo", task=task["id"])
    assert send(services, 1, **sent)["problem"] == "other_verdict", (
        "what was taken back is not kept"
    )
    again = sent | {"revision": 2, "tiers": sent["tiers"][::-1]}
    assert not send(services, 1, **again)["already"]
    assert send(services, 1, **sent)["problem"] == "other_verdict"
    assert send(services, 1, **again)["already"]
    assert len(dump(services.store)[0]) == 3, "kept, taken back, kept"


def test_the_page_is_told_nothing_that_is_not_blind(services):
    task = send(services, 1, do="next")["task"]
    assert set(task) == {
        "id", "revision", "instruction", "input", "history", "shown", "answers", "lease_s",
        "tiers", "criteria", "better",
    }  # fmt: skip
    assert all(set(answer) == {"id", "text", "cut", "shown"} for answer in task["answers"])
    assert "secret" not in json.dumps(task)


def test_own_verdicts_are_ones_own_and_tell_nothing_of_their_kind(services):
    task = send(services, 1, do="next")["task"]
    one_tier = [[answer["id"] for answer in task["answers"]]]
    sent = {"do": "submit", "task": task["id"], "revision": 0, "tiers": one_tier, "method": "mouse"}
    send(services, 1, **sent, better="best of all")
    reply = send(services, 1, do="mine")
    (own,) = reply["verdicts"]
    assert set(own) == {"task", "ranking", "prompt", "best", "tiers", "comment", "all_bad", "at_ms"}
    assert "secret" not in json.dumps(reply) and not reply["more"]
    assert send(services, 2, do="mine")["verdicts"] == []
    assert send(services, 2, do="undo", task=own["task"])["problem"] == "not_yours"
    assert send(services, 1, do="mine", before=own["ranking"])["verdicts"] == []


def test_every_reply_tells_the_version_of_the_guidelines(services):
    assert send(services, 1, do="next")["guideline"] == 0
    first = services.store.set_guidelines("Short ones.", actor="test")
    reply = send(services, 1, do="next")
    assert reply["guideline"] == first.version
    task = reply["task"]
    sent = {"do": "submit", "task": task["id"], "revision": 0, "method": "mouse"}
    sent |= {"tiers": [[answer["id"]] for answer in task["answers"]], "guideline": 0}
    assert not send(services, 1, **sent)["already"]
    assert [row["guideline"] for row in dump(services.store)[0]] == [None]


def test_each_message_may_come_twice(services):
    task = send(services, 1, do="next")["task"]
    one_tier = [[answer["id"] for answer in task["answers"]]]
    sent = {"do": "submit", "task": task["id"], "revision": 0, "tiers": one_tier, "method": "mouse"}
    assert [send(services, 1, **sent)["already"] for _ in range(2)] == [False, True]
    back = [send(services, 1, do="undo", task=task["id"])["task"] for _ in range(2)]
    assert back[0] == back[1] and back[0]["revision"] == 2
    for do in ("skip", "flag"):
        for _ in range(2):
            assert "problem" not in send(services, 1, do=do, task=task["id"], reason="other")
    assert len(dump(services.store)[1]) == 1


def scripts():
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(SOURCE.glob("*.js")))


def test_every_word_is_there_and_every_problem_has_a_sentence():
    script = scripts()
    english, chinese = (translations("rank", language) for language in LANGUAGES)
    used = {f"problem.{problem}" for problem in (*get_args(Problem), "signed_out", "full")}
    used |= {f"reason.{reason}" for reason in REASONS}
    used |= {f"{kind}.{criterion}" for kind in ("criterion", "hint") for criterion in CRITERIA}
    tab = Path(rank_tab.__file__).read_text(encoding="utf-8")
    used |= set(re.findall(r'(?:label\("rank", |text\[)"([\w.]+)"', tab))
    assert set(re.findall(r'\bw\("([\w.]+)"', script)) | used <= set(english), "words are missing"
    unused = {key for key in set(english) - used if f'"{key}"' not in script}
    assert not unused, "nothing shows these words"
    for key, text in chinese.items():
        assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", english[key])), key
        assert not re.findall("[A-Za-z]{2,}", re.sub(r"\{\w+\}", "", text)), key


def test_the_script_makes_no_markup_of_text():
    script = scripts()
    doors = "innerHTML outerHTML insertAdjacentHTML document.write eval( Function( srcdoc".split()
    for door in doors:
        assert door not in script, door
    style = (SOURCE / "board.css").read_text(encoding="utf-8")
    for code in ("{{", "${", "`", "\\"):
        assert code not in style, f"{code}: Gradio runs the style as a template"
