"""The Compare tab: blind rounds in a real browser, and the arithmetic of the win rates."""

from __future__ import annotations

import random
from functools import partial
from types import SimpleNamespace

import gradio as gr
import pytest

from alpaca_rlhf.app import compare_controller as compare_controller_module
from alpaca_rlhf.app import compare_tab as compare_tab_module
from alpaca_rlhf.app.compare_controller import CompareController, as_message, names_a_model
from alpaca_rlhf.app.compare_tab import compare_tab
from alpaca_rlhf.app.services import Services
from alpaca_rlhf.app.worker import Worker
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.preferences.assignment import Rules
from alpaca_rlhf.preferences.battles import VoteCounts
from alpaca_rlhf.preferences.people import Account
from alpaca_rlhf.preferences.schema import Battle
from alpaca_rlhf.preferences.store import Store
from tests.browser import NO_CHROMIUM, browser, chromium, free_port, visit
from tests.model_app import Echo, app, language, make_run, nothing_serious, serving

needs_browser = pytest.mark.skipif(chromium() is None, reason=NO_CHROMIUM)
ADMIN, BOB = Account(1, "ann", "admin", "en"), Account(2, "bob", "annotator", "en")
HOSTILE = (
    "${document.body.classList.add('bad')} {{1+1}} <b>x</b> "
    "<img src=x onerror=\"document.body.classList.add('bad')\"> &lt; ![p](http://example.org/x.png)"
)


# --- rules ----------------------------------------------------------------------------------------


def test_win_rates_by_hand():
    """Wilson's interval of 10 of 10, and of a half of 4, from the formula's tables."""
    assert VoteCounts("a", "b", 10, 0, 0).rate == pytest.approx((1.0, 0.7225, 1.0), abs=1e-4)
    assert VoteCounts("a", "b", 0, 10, 0).rate == pytest.approx((0.0, 0.0, 0.2775), abs=1e-4)
    assert VoteCounts("a", "b", 1, 1, 2).rate == pytest.approx((0.5, 0.1500, 0.8500), abs=1e-4)
    assert VoteCounts("a", "b", 1, 0, 1).rate == pytest.approx((0.75, 0.1979, 0.9733), abs=1e-4)
    assert VoteCounts("a", "b", 0, 0, 4).rate == VoteCounts("a", "b", 2, 2, 0).rate


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("I am LLaMA, made by Meta.", True),
        ("As ChatGPT I cannot.", True),
        ("This is the PPO model.", True),
        ("The palms are green and a laptop is here.", False),
        ("A llama spits.", True),
    ],
)
def test_an_answer_that_names_its_model(text, named):
    assert names_a_model(text, Instruction("Who are you?")) == named
    assert not names_a_model(text, Instruction("What is a llama, ChatGPT, or PPO?"))


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_folder):
    folder = tmp_path_factory.mktemp("compare")
    return SimpleNamespace(folder=folder, run=make_run(folder / "run", tiny_folder))


@pytest.fixture
def table(home, tmp_path):
    """A controller without a browser: whoever asks is set by a test."""
    echo = Echo(lambda policy, row, j: f"{policy.upper().replace('.', '')} says")
    plain = Rules(gold_rate=0, repeat_rate=0)
    with Store(tmp_path / "p.db", rules=plain, seed=0) as store:
        for name, role in (("ann", "admin"), ("bob", "annotator")):
            store.add_annotator(name, "long enough", role=role)
        worker = Worker(home.run, load=lambda: echo, gpu_folder=tmp_path / "card")
        asker = [ADMIN]
        services = Services(store, lambda request: asker[0], lambda request: "en")
        yield SimpleNamespace(
            controller=CompareController(services, worker, draw=random.Random(0).sample),
            store=store,
            echo=echo,
            asker=asker,
            worker=worker,
        )
        worker.close()


ASKER = SimpleNamespace(session_hash="s")


def play(table, text="Say it.", chosen=("", "")):
    return list(table.controller.play(text, chosen, ASKER))


def test_only_an_admin_chooses_and_nothing_tells_who_is_who(table):
    pairs, sides, firsts = set(), set(), set()
    for number in range(40):
        table.asker[0] = ADMIN if number % 2 else BOB
        views = play(table, f"Question {number}.", ("base", "sft"))
        assert all(view.round is None for view in views[:-1]), "both appear together"
        names = [policy for policy, _ in table.echo.asked[-2:]]
        if number % 2:
            assert set(names) == {"base", "sft"}
            firsts.add(names[0])
            status = table.controller.vote(views[-1].round, "tie", ASKER)
            sides.add(status.partition("A was ")[2].partition(",")[0])
        else:
            pairs.add(frozenset(names))
    assert len(pairs) > 1, "drawn for everybody else, whatever they send"
    assert sides == {"base", "sft"} == firsts, "sides and order change"
    assert table.store.claim(1) is None, "a battle is no task to rank"


def test_a_round_is_locked_by_its_first_vote(table):
    round_ = play(table)[-1].round
    assert table.controller.vote(round_, "sideways", ASKER) == "This round has expired; ask again."
    table.asker[0] = BOB
    assert "expired" in table.controller.vote(round_, "left", ASKER), "somebody else's"
    table.asker[0] = ADMIN
    assert table.controller.vote(round_, "left", ASKER).startswith("You voted: A is better.")
    status = table.controller.vote(round_, "right", ASKER)
    assert status.startswith("Your first vote counts: A is better.")
    assert "expired" in table.controller.vote(None, "left", ASKER)


def test_a_vote_on_an_answer_that_names_its_model_is_kept_apart(table):
    table.echo.say = lambda policy, row, j: "I am ChatGPT." if policy == "sft" else "Hello."
    round_ = play(table, chosen=("base", "sft"))[-1].round
    assert "does not count" in table.controller.vote(round_, "left", ASKER)
    assert table.store.scores() == []
    with table.store.database.reading() as session:
        assert [battle.blind for battle in session.query(Battle)] == [False]


@pytest.mark.parametrize(
    ("text", "chosen", "fragment"),
    [("  ", ("", ""), "Type a prompt"), ("Hi.", ("sft", "sft"), "two different")],
)
def test_what_is_no_round(table, text, chosen, fragment):
    (view,) = play(table, text, chosen)
    assert fragment in view.status and not table.echo.asked


DIALOGUE = Instruction(
    "And the second largest?",
    history=(("Which planet is the largest?", f"Jupiter. {HOSTILE}"),),
    system="Answer as ChatGPT would.",
    output="Saturn.",
    source="a file",
)


def test_a_drawn_dialogue_is_answered_with_its_earlier_turns(table, monkeypatch):
    lone = Instruction(DIALOGUE.instruction, source="a file")
    splits = SimpleNamespace(to_evaluate=lambda: [DIALOGUE, lone])
    monkeypatch.setattr(type(table.worker), "prompts", splits)
    monkeypatch.setattr("secrets.choice", lambda prompts: prompts[0])
    drawn = table.controller.evaluation_prompt()
    views = list(table.controller.play(as_message(drawn), ("", ""), ASKER, drawn=drawn))
    asked = [row for _, row in table.echo.asked]
    assert [(row.history, row.system) for row in asked] == [(DIALOGUE.history, DIALOGUE.system)] * 2
    assert {row.id for row in asked} == {DIALOGUE.id}, "the battle is one of the prompt itself"
    assert all(view.prompt.history == DIALOGUE.history for view in views)
    # A message that was changed, or typed, has no earlier turns.
    for message, before in (("And the third?", drawn), (DIALOGUE.instruction, None)):
        *_, last = table.controller.play(message, ("", ""), ASKER, drawn=before)
        assert (last.prompt.history, last.prompt.system) == ((), "")


def test_a_name_in_an_earlier_turn_gives_nobody_away():
    assert not names_a_model("I am ChatGPT.", DIALOGUE)
    assert names_a_model("I am Claude.", DIALOGUE)


def test_the_earlier_turns_are_shown_as_text(table, monkeypatch):
    with gr.Blocks():
        ui = compare_tab_module._Components(table.worker)
    events = compare_tab_module._Events(table.controller, ui)
    monkeypatch.setattr(table.controller, "evaluation_prompt", lambda: DIALOGUE)
    patch = events.draw_prompt(gr.Request())
    assert patch[ui.box] == DIALOGUE.instruction and patch[ui.drawn] is DIALOGUE
    assert "Which planet is the largest?" in patch[ui.earlier]
    assert "Answer as ChatGPT would." in patch[ui.earlier] and "<img" not in patch[ui.earlier]
    # Answers to another prompt do not stay below them, to be voted on.
    assert patch[ui.round] is None
    assert not any(patch[button]["interactive"] for button in ui.votes)
    monkeypatch.setattr(table.controller, "evaluation_prompt", lambda: Instruction("Say it."))
    assert events.draw_prompt(gr.Request())[ui.earlier].strip() == ""


def test_a_prompt_that_is_drawn_meanwhile_gets_no_answers_to_another(table, monkeypatch):
    with gr.Blocks():
        ui = compare_tab_module._Components(table.worker)
    events = compare_tab_module._Events(table.controller, ui)
    monkeypatch.setattr(table.controller, "evaluation_prompt", lambda: Instruction("Say it."))
    asking = SimpleNamespace(session_hash="page", username="ann", request=None)
    playing = events.play(asking, "Which moon is it?", None, "", "")
    next(playing)
    patch = events.draw_prompt(asking)
    assert patch[ui.ask]["interactive"] and not patch[ui.stop]["interactive"]
    assert list(playing) == [], "the page shows another prompt by now"


# --- in a browser ---------------------------------------------------------------------------------


class Draws:
    """Draws of prompts and seeds that are the same in every run, in place of `secrets`."""

    SystemRandom = staticmethod(lambda: random.Random(0))
    randbelow = staticmethod(lambda n: 0)
    choice = staticmethod(lambda rows: rows[0])


@pytest.fixture(scope="module")
def desk(home):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare_controller_module, "secrets", Draws)
        yield from _desk(home)


def _desk(home):
    echo = Echo(lambda policy, row, j: HOSTILE)
    with Store(home.folder / "p.db", rules=Rules(gold_rate=0, repeat_rate=0), seed=0) as store:
        for name, role in (("ann", "admin"), ("bob", "annotator")):
            store.add_annotator(name, "long enough", role=role)
        real = Worker(home.run, gpu_folder=home.folder / "card")
        fake = Worker(home.run, load=lambda: echo, gpu_folder=home.folder / "card")
        apps = [
            app(store, account, partial(compare_tab, worker=worker))
            for account, worker in ((BOB, real), (ADMIN, fake))
        ]
        with (
            serving(apps[0], free_port()) as url,
            serving(apps[1], free_port()) as fake_url,
            browser() as opened,
        ):
            yield SimpleNamespace(url=url, fake=fake_url, browser=opened, store=store)
        real.close()
        fake.close()


def go(page, url):
    page.set_default_timeout(60_000)
    page.goto(url)
    page.locator("#compare-scores:not(:empty)").wait_for()
    page.locator("#compare-answer-left h4:not(:empty)").wait_for()


def answers(page):
    return page.locator(".answer").all_inner_texts()


@needs_browser
def test_a_blind_round_with_the_real_model(desk):
    with visit(desk.browser) as page:
        go(page, desk.url)
        assert page.locator("#compare-first").count() == 0, "only admins choose"
        page.evaluate("""() => { window.halves = 0; new MutationObserver(() => {
          const both = [...document.querySelectorAll('.answer')].map(one => one.innerText !== '');
          if (both.length === 2 && both[0] !== both[1]) window.halves += 1;
        }).observe(document.body, { subtree: true, childList: true }); }""")
        page.locator("#compare-draw").click()
        page.wait_for_function("() => document.querySelector('#compare-box textarea').value")
        for vote in ("left", "right", "tie", "both_bad"):
            assert page.locator(f"#compare-{vote}").is_disabled()
        page.keyboard.press("Control+Enter")
        page.locator("#compare-left:enabled").wait_for()
        left_answer, right_answer = answers(page)
        assert left_answer and right_answer and left_answer != right_answer
        body = page.locator("body").inner_text()
        assert not any(name in body for name in ("ppo.2", "sft", "base")), "no name yet"
        page.locator("#compare-answer-left .answer").focus()
        page.keyboard.press("2")
        page.locator("#compare-line", has_text="You voted: B is better.").wait_for()
        page.locator("#compare-right:disabled").wait_for()
        page.keyboard.press("1")
        page.locator("#compare-scores table").wait_for()
        assert "1 / 0 / 0" in page.locator("#compare-scores").inner_text() or (
            "0 / 1 / 0" in page.locator("#compare-scores").inner_text()
        )
        assert answers(page) == [left_answer, right_answer], "they stay"
    (score,) = desk.store.scores()
    assert score.wins + score.losses == 1 and score.ties == 0
    assert desk.store.claim(2) is None


@needs_browser
def test_hostile_text_is_shown_as_it_is(desk):
    with visit(desk.browser) as page:
        go(page, desk.fake)
        page.locator("#compare-box textarea").fill(HOSTILE)
        page.locator("#compare-ask").click()
        page.locator("#compare-tie:enabled").wait_for()
        assert answers(page) == [HOSTILE, HOSTILE]
        assert page.locator(".answer *").count() == 0
        assert not page.evaluate("document.body.classList.contains('bad')")


@needs_browser
@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_on_a_phone_in_both_languages_and_for_a_screen_reader(desk, locale):
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    with visit(desk.browser, locale=locale, **phone) as page:
        go(page, desk.fake)
        page.locator("#compare-box textarea").fill("Hello?")
        page.locator("#compare-ask").click()
        page.locator("#compare-tie:enabled").wait_for()
        name = "Tie" if locale == "en-US" else "平局"
        page.get_by_role("button", name=name).click()
        page.locator("#compare-line", has_text="A" if locale == "en-US" else "你的投票").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        nothing_serious(page)
    assert language is not None
