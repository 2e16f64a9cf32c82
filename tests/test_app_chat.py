"""The Chat tab in a real browser, with a real tiny LLaMA."""

from __future__ import annotations

import json
import re
import threading
import time
from functools import partial
from types import SimpleNamespace

import pytest

from alpaca_rlhf.app.chat_messages import Turn, inert, restored, turn_index
from alpaca_rlhf.app.chat_tab import _generation_request, chat_tab
from alpaca_rlhf.app.saved_chats import SavedChats, sampled_reply
from alpaca_rlhf.app.services import Services
from alpaca_rlhf.app.worker import Worker
from alpaca_rlhf.preferences.assignment import Refused, Rules
from alpaca_rlhf.preferences.people import Account
from alpaca_rlhf.preferences.store import Store
from tests.browser import NO_CHROMIUM, browser, chromium, free_port, visit
from tests.model_app import Echo, app, make_run, nothing_serious, prompts, serving

pytestmark = pytest.mark.skipif(chromium() is None, reason=NO_CHROMIUM)
ADMIN = Account(1, "ann", "admin", "en")
HOSTILE = [
    "`${document.body.classList.add('bad')}` ${document.body.classList.add('bad')}",
    "<img src=x onerror=\"document.body.classList.add('bad')\">",
    "<script>document.body.classList.add('bad')</script> &lt;b&gt; <b>bold</b> a < b",
    "![pic](http://example.org/x.png) [l](javascript:alert(1)) {{7*7}} $$x^2$$ <think>t</think>",
]


@pytest.fixture(scope="module")
def desk(tmp_path_factory, tiny_folder):
    """The real model behind one page, a fake one behind another; one browser."""
    home = tmp_path_factory.mktemp("chat")
    run = make_run(home / "run", tiny_folder)
    echo = Echo(lambda policy, row, j: f"{policy} {j}: {row.instruction} / {len(row.history)}")
    plain = Rules(gold_rate=0, repeat_rate=0, second_share=0)
    with Store(home / "p.db", rules=plain, seed=0) as store:
        store.add_annotator("ann", "long enough", role="admin")
        real = Worker(run, gpu_folder=home / "card")
        fake = Worker(run, load=lambda: echo, gpu_folder=home / "card")
        ports = [app(store, ADMIN, partial(chat_tab, worker=worker)) for worker in (real, fake)]
        with (
            serving(ports[0], free_port()) as url,
            serving(ports[1], free_port()) as fake_url,
            browser() as opened,
        ):
            yield SimpleNamespace(
                url=url, fake=fake_url, browser=opened, store=store, real=real, echo=echo, run=run
            )
        real.close()
        fake.close()


def go(page, url):
    page.set_default_timeout(60_000)
    page.goto(url)
    page.locator("#chat-box textarea").wait_for()


def ask(page, text):
    page.locator("#chat-box textarea").fill(text)
    page.keyboard.press("Enter")


def line(page, fragment):
    page.locator("#chat-line", has_text=fragment).wait_for()


def said(page, role="bot"):
    return page.locator(f"#chat-log .message.{role}").all_inner_texts()


WATCH = """() => { window.seen = []; new MutationObserver(() => {
  const all = [...document.querySelectorAll('#chat-log .message.bot')];
  const text = all.length ? all[all.length - 1].innerText : '';
  if (text && window.seen[window.seen.length - 1] !== text) window.seen.push(text);
}).observe(document.body, { subtree: true, childList: true, characterData: true }); }"""


def slow(monkeypatch, seconds=0.02):
    """Every token takes a moment, so that there is time to press a key."""
    from alpaca_rlhf.serving import policy_server

    stream_text = policy_server.stream_text

    def slowly(*args, **options):
        for update in stream_text(*args, **options):
            time.sleep(seconds)
            yield update

    monkeypatch.setattr(policy_server, "stream_text", slowly)


def test_it_streams_stops_and_goes_on(desk, monkeypatch):
    with visit(desk.browser) as page:
        go(page, desk.url)
        page.evaluate(WATCH)
        slow(monkeypatch, seconds=0.1)  # else a busy server sends several tokens at once
        ask(page, "Name a colour.")
        line(page, "tokens")
        texts = page.evaluate("window.seen")
        assert len(texts) > 5 and len(texts[0]) < len(texts[-1]), "it grew"
        assert said(page, "user") == ["Name a colour."]
        assert page.locator("#chat-box textarea").input_value() == ""
        slow(monkeypatch, seconds=0.2)
        ask(page, "Name another.")
        page.locator("#chat-stop:enabled").wait_for()
        page.locator("#chat-log .message.bot").nth(1).wait_for()
        assert page.locator("#chat-send").is_disabled()
        page.keyboard.press("Escape")
        line(page, "Stopped.")
        page.locator("#chat-send:enabled").wait_for()
        cut = said(page)[1]
        assert cut
        monkeypatch.undo()
        page.locator("#chat-policy input").click()
        page.get_by_role("option", name="sft").click()
        page.keyboard.press("Alt+R")
        line(page, "sft")
        page.locator("#chat-send:enabled").wait_for()
        assert said(page)[1] != cut and said(page, "user")[1] == "Name another."


def test_who_asks_for_a_job_that_waits_can_stop_it(desk):
    go_on, begun = threading.Event(), threading.Event()

    def block(policy_server, stop):
        begun.set()
        go_on.wait(60)
        yield 1

    desk.real.start(block, "compare")
    begun.wait(60)
    try:
        with visit(desk.browser) as page:
            go(page, desk.url)
            ask(page, "Anybody there?")
            line(page, "Waiting: 1 before you.")
            page.locator("#chat-stop").click()
            line(page, "Stopped.")
            assert said(page) == [] and said(page, "user") == ["Anybody there?"]
    finally:
        go_on.set()


def test_edit_regenerate_undo_and_new(desk):
    with visit(desk.browser) as page:
        go(page, desk.fake)
        page.get_by_role("button", name="Settings").click()
        page.locator("#chat-remember input").check()
        for number, text in enumerate(("One?", "Two?", "Three?")):
            ask(page, text)
            page.locator("#chat-log", has_text=f"{text} / {number}").wait_for()
        assert desk.echo.asked[-1][1].history == (
            ("One?", "ppo.2 0: One? / 0"),
            ("Two?", "ppo.2 0: Two? / 1"),
        )
        page.locator("#chat-log .message-row").nth(2).hover()
        page.get_by_label("Edit").nth(2).click()
        page.locator("#chat-log textarea").fill("Deux <i>?")
        page.locator("#chat-log").get_by_label("Submit").click()
        page.locator("#chat-log", has_text="Deux <\u200bi>? / 1").wait_for()
        assert [restored(message) for message in said(page, "user")] == ["One?", "Deux <i>?"]
        assert desk.echo.asked[-1][1].instruction == "Deux <i>?", "no mark"
        before = len(desk.echo.asked)
        page.locator("#chat-regenerate").click()
        while len(desk.echo.asked) == before:
            page.wait_for_timeout(20)
        assert desk.echo.asked[-1][1] == desk.echo.asked[-2][1]
        page.locator("#chat-send:enabled").wait_for()
        page.locator("#chat-undo").click()
        page.wait_for_function(
            "() => document.querySelectorAll('#chat-log .message.user').length === 1"
        )
        assert page.locator("#chat-box textarea").input_value() == "Deux <i>?"
        page.locator("#chat-new").click()
        page.locator("#chat-log .message.user").wait_for(state="detached")
        ask(page, "Fresh?")
        page.locator("#chat-log", has_text="Fresh? / 0").wait_for()


def test_an_answer_is_gone_on_with_and_edited_under_settings_of_a_preset(desk):
    with visit(desk.browser, locale="en-GB") as page:
        go(page, desk.fake)
        page.get_by_role("button", name="Settings").click()
        page.locator("#chat-remember input").check()
        page.locator("#chat-preset input").click()
        page.get_by_role("option", name="Lively").click()
        page.wait_for_function(
            "document.querySelector('#chat-min-p input[type=number]').value === '0.05'"
        )
        page.locator("#chat-stop-texts").locator("input, textarea").first.fill("User:\\n")
        ask(page, "One?")
        line(page, "2 tokens")
        page.locator("#chat-send:enabled").wait_for()
        # 1. Gone on with: what was there stays, and the rest follows.
        once = restored(said(page)[0])
        page.locator("#chat-go_on").click()
        page.locator("#chat-log .message.bot", has_text=once + once).wait_for()
        page.locator("#chat-send:enabled").wait_for()
        sampling = desk.echo.settings[-1]
        assert (sampling.temperature, sampling.min_p, sampling.stop) == (1, 0.05, ("User:\n",))
        # 2. Edited: the next answer reads the edited one.
        page.locator("#chat-log .message.bot").first.hover()
        page.get_by_label("Edit").nth(1).click()
        page.locator("#chat-log textarea").fill("Better <b>said</b>.")
        page.locator("#chat-log").get_by_label("Submit").click()
        page.locator("#chat-log .message.bot", has_text="Better").wait_for()
        ask(page, "Two?")
        page.locator("#chat-log", has_text="Two? / 1").wait_for()
        assert desk.echo.asked[-1][1].history == (("One?", "Better <b>said</b>."),)


def counted(desk, key):
    return desk.store.figures().counts[key]


def choose_chat(page, title):
    """Open a conversation of the list, which an open one does not show before it is there."""
    option = page.get_by_role("option", name=title, exact=True)
    for _ in range(60):
        page.locator("#chat-saved input").click()
        page.wait_for_timeout(500)
        if option.count():
            break
        page.locator("#chat-box textarea").click()
    option.click()


def test_a_thumb_is_kept_shown_again_and_taken_back(desk):
    before = counted(desk, "thumbs")
    with visit(desk.browser, locale="en-GB") as page:
        go(page, desk.fake)
        ask(page, "What glides?")
        line(page, "tokens")
        page.locator("#chat-send:enabled").wait_for()
        page.locator("#chat-log .message.bot").first.hover()
        page.get_by_label("Like", exact=True).click()
        line(page, "Your thumb up is kept.")
        assert counted(desk, "thumbs") == before + 1
        # It is there again with its conversation.
        go(page, desk.fake)
        choose_chat(page, "What glides?")
        page.locator("#chat-log .message.bot").first.hover()
        page.get_by_label("Liked", exact=True).wait_for()
        page.get_by_label("Dislike", exact=True).click()
        line(page, "Your thumb down is kept.")
        assert counted(desk, "thumbs") == before + 1, "one of each account"
        page.get_by_label("Disliked", exact=True).click()
        line(page, "Your thumb is taken back.")
        assert counted(desk, "thumbs") == before


def test_an_edited_reply_with_a_thumb_up_is_a_better_answer(desk):
    before = counted(desk, "demonstrations")
    with visit(desk.browser, locale="en-GB") as page:
        go(page, desk.fake)
        ask(page, "What rolls?")
        line(page, "tokens")
        page.locator("#chat-send:enabled").wait_for()
        page.locator("#chat-log .message.bot").first.hover()
        page.get_by_label("Edit").nth(1).click()
        page.locator("#chat-log textarea").fill("A ball.")
        page.locator("#chat-log").get_by_label("Submit").click()
        line(page, "A thumb up keeps your text as a better answer")
        assert counted(desk, "demonstrations") == before
        page.locator("#chat-log .message.bot").first.hover()
        page.get_by_label("Like", exact=True).click()
        line(page, "Your better answer is kept.")
        assert counted(desk, "demonstrations") == before + 1


def test_a_conversation_of_the_list_is_renamed_exported_and_deleted(desk, tmp_path):
    with visit(desk.browser, locale="en-GB") as page:
        go(page, desk.fake)
        ask(page, "What sinks?")
        line(page, "tokens")  # before that, the button may not have been disabled yet
        page.get_by_role("button", name="Name, export or delete this chat").click()
        # 1. Renamed, it stands in the list under its new name, after a reload too.
        title = page.locator("#chat-title").locator("input, textarea").first
        title.fill("Stones <b>")
        page.locator("#chat-rename").click()
        line(page, "Renamed.")
        go(page, desk.fake)
        choose_chat(page, "Stones <b>")
        page.locator("#chat-log .message.bot", has_text="What sinks?").wait_for()
        # 2. Exported: one row for SFT.
        page.get_by_role("button", name="Name, export or delete this chat").click()
        with page.expect_download() as download:
            page.locator("#chat-export").click()
        download.value.save_as(tmp_path / "chat.jsonl")
        row = json.loads((tmp_path / "chat.jsonl").read_text())
        assert row["title"] == "Stones <b>"
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert row["messages"][0]["content"] == "What sinks?"
        # 3. Deleted, it is neither on the page nor in the list.
        page.locator("#chat-delete").click()
        page.get_by_role("button", name="Delete “Stones <b>” for good").click()
        line(page, "Deleted.")
        page.locator("#chat-log .message.user").wait_for(state="detached")
        page.locator("#chat-saved input").click()
        assert page.get_by_role("option", name="Stones <b>").count() == 0
    assert "Stones <b>" not in [chat.title for chat in desk.store.chats(1)]


def test_settings_that_a_browser_sends_are_clamped(desk):
    sent = ["nobody", "x", None, 10**6, -1, 99, {}, 10**9, "s", 1, "a\n" * 50]
    sampling = _generation_request(desk.real, tuple(sent)).sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.7, 1.0, 200)
    assert (sampling.min_p, sampling.repetition_penalty, sampling.stop) == (0, 2, ("a",))
    assert (sampling.max_new_tokens, sampling.seed, sampling.system) == (2048, 0, "")


def test_nobody_opens_or_changes_the_chat_of_somebody_else(tmp_path):
    """Whatever number a browser sends, and however it sends it."""
    with Store(tmp_path / "p.db", seed=0) as store:
        ann, ben = (store.add_annotator(name, "long enough") for name in ("ann", "ben"))
        chats = SavedChats(
            Services(
                store,
                lambda request: Account(request.account, "x", "annotator", "en"),
                lambda request: "en",
            )
        )
        ann, ben = (SimpleNamespace(account=who, session_hash=str(who)) for who in (ann, ben))
        turns = (Turn("What is private?", "This."),)
        number = chats.save(None, turns, ann)
        for name in (number, str(number), float(number), True, None, -1, 2**70, [number]):
            for attempt in (
                lambda name=name: chats.open(name, ben),
                lambda name=name: chats.rename(name, "mine", ben),
                lambda name=name: chats.delete(name, ben),
                lambda name=name: chats.exported(name, ben),
            ):
                with pytest.raises(Refused):
                    attempt()
        assert chats.save(number, (Turn("Mine?", "Yes."),), ben) != number
        assert chats.choices(ann) == [("What is private?", number)]
        assert chats.open(number, ann) == ("What is private?", turns)
        assert sampled_reply(turns, 0) is None, "no policy of ours has said it"


def test_four_answers_are_queued_and_come_next(desk):
    with visit(desk.browser) as page:
        go(page, desk.url)
        ask(page, "Say something about ships.")
        line(page, "tokens")
        page.keyboard.press("Alt+M")
        line(page, "come up on the Rank tab")
        page.locator("#chat-make").click()
        line(page, "in the queue already")
    task = desk.store.claim(1)
    assert task.prompt.instruction == "Say something about ships."
    assert task.prompt.source == "chat" and task.prompt.history == ()
    assert len({completion.text for completion in task.completions}) == 4
    with desk.store.database.reading() as session:
        from alpaca_rlhf.preferences.schema import Completion

        rows = [session.query(Completion).filter_by(key=row.id).one() for row in task.completions]
        assert {row.sampling for row in rows} == {"temperature=0.7 top_p=1 max_new_tokens=60"}
        assert sorted(row.sample for row in rows) == [0, 1, 2, 3]
        assert len({row.adapter for row in rows}) == 1 and rows[0].adapter


def test_a_prompt_near_the_evaluation_is_talked_about_but_not_ranked(desk):
    from alpaca_rlhf.sources.run_prompts import RunPrompts

    held = RunPrompts(desk.run, desk.real.settings).splits
    assert set(map(len, (held["eval"], held["ppo"]))) == {5} and prompts(1)
    before = desk.store.progress(1).sets
    with visit(desk.browser) as page:
        go(page, desk.fake)
        for split, fragment in (("eval", "evaluation"), ("ppo", "PPO"), ("sft", "fine-tuned")):
            near = f"{held[split][0].instruction}?"
            ask(page, near)
            page.locator("#chat-log", has_text=f"0: {near} / ").wait_for()
            page.locator("#chat-make:enabled").click()
            line(page, fragment)
    assert desk.store.progress(1).sets == before


def test_hostile_text_is_shown_as_it_is(desk):
    with visit(desk.browser) as page:
        page.on("dialog", lambda dialog: pytest.fail("a dialog opened"))
        go(page, desk.fake)
        for number, text in enumerate(HOSTILE, 1):
            ask(page, text)
            page.wait_for_function(
                "n => document.querySelectorAll('#chat-log .message.bot').length === n",
                arg=number,
            )
            line(page, "2 tokens")
            page.locator("#chat-send:enabled").wait_for()
            mine, theirs = (restored(said(page, role)[-1]) for role in ("user", "bot"))
            assert mine == text and text in theirs
        inside = page.locator("#chat-log .message-content")
        assert inside.locator("img, script, b, a, .katex").count() == 0
        assert not page.evaluate("document.body.classList.contains('bad')")


CODE = 'if (a<b && c<d) { s = "<p class=x>&copy;</p>"; } /* <\u200bmine> */'


def test_what_is_copied_is_what_was_written(desk):
    """By the buttons, as a selection and out of the box of an edit: not a character more."""
    with visit(desk.browser, permissions=["clipboard-read", "clipboard-write"]) as page:
        go(page, desk.fake)
        ask(page, CODE)
        line(page, "2 tokens")
        page.locator("#chat-send:enabled").wait_for()
        answer = page.locator("#chat-log .message.bot").first
        assert answer.inner_text() != restored(answer.inner_text()), "on the screen there are marks"
        copies = []

        def copy(act):
            page.evaluate("navigator.clipboard.writeText('nothing')")
            act()
            page.wait_for_function(
                "navigator.clipboard.readText().then(text => text !== 'nothing')"
            )
            copies.append(page.evaluate("navigator.clipboard.readText()"))

        page.locator("#chat-log .message.bot").first.hover()
        for name in ("Copy message", "Copy conversation"):
            copy(page.get_by_role("button", name=name).last.click)
        select = "one => getSelection().selectAllChildren(one)"
        answer.evaluate(select)
        copy(lambda: page.keyboard.press("Control+c"))
        page.get_by_role("button", name="Edit").first.click()
        page.locator("#chat-log textarea").first.press("Control+a")
        copy(lambda: page.keyboard.press("Control+c"))
        assert len(copies) == 4
        for copied in copies:
            assert CODE in copied and copied.count("\u200b") == copied.count(CODE), copied
        page.keyboard.press("Control+x")
        assert page.evaluate("navigator.clipboard.readText()") == CODE
        assert page.locator("#chat-log textarea").first.input_value() == ""


@pytest.mark.parametrize(
    "text",
    [
        *HOSTILE,
        CODE,
        "<\u200b\u200bi",
        "&\u200b",
        "a<b",
        "<",
        "&amp;&",
        "x < y && z > 1",
        "中文 & <",
    ],
)
def test_text_made_inert_comes_back(text):
    assert restored(inert(text)) == text
    assert not re.search("[<&](?=[#A-Za-z/!?])", inert(text))


def test_a_message_belongs_to_its_turn():
    """One without an answer takes one place, the others two."""
    turns = [Turn("a", "1"), Turn("b"), Turn("c", "3")]
    assert [turn_index(turns, at) for at in range(5)] == [0, 0, 1, 2, 2]


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_on_a_phone_in_both_languages_and_for_a_screen_reader(desk, locale):
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    with visit(desk.browser, locale=locale, **phone) as page:
        go(page, desk.fake)
        ask(page, "Hello?")
        line(page, "tokens" if locale == "en-US" else "词元")
        name = "Send" if locale == "en-US" else "发送"
        assert page.get_by_role("button", name=name).is_visible()
        page.locator("button", has_text="Settings" if locale == "en-US" else "设置").click()
        page.locator("#chat-temperature").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        text = page.locator("body").inner_text()
        assert locale == "en-US" or "Temperature" not in text
        nothing_serious(page)
