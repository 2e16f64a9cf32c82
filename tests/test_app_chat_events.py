"""Handlers of the Chat tab without a browser: what is left, saved, gone on with and rated."""

from __future__ import annotations

import html
import json
import threading
from dataclasses import replace
from types import SimpleNamespace

import gradio as gr
import pytest

from alpaca_rlhf.app import chat_tab
from alpaca_rlhf.app.chat_controller import MAX_MESSAGE_CHARS, MAX_TURNS, ChatController
from alpaca_rlhf.app.chat_messages import SampledReply, Turn
from alpaca_rlhf.app.chat_tab import PRESETS, SHAPING, _Components, _Events, _generation_request
from alpaca_rlhf.app.clicks import clicked
from alpaca_rlhf.app.jobs import Job
from alpaca_rlhf.app.language import LANGUAGES, translations
from alpaca_rlhf.app.page_jobs import PageJobs
from alpaca_rlhf.app.saved_chats import SavedChats
from alpaca_rlhf.app.services import Services
from alpaca_rlhf.app.worker import Worker
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.preferences.assignment import Refused
from alpaca_rlhf.preferences.chats import MAX_LISTED
from alpaca_rlhf.preferences.database import DiskFull
from alpaca_rlhf.preferences.people import Account
from alpaca_rlhf.preferences.store import Store
from tests.model_app import Echo, make_run

SETTINGS = ["sft", 0.7, 1, 0, 0, 1, "", 60, 0, True, ""]


class Gated(Echo):
    """Pauses between its two steps until `gate` is set, and refuses while `broken`."""

    def __init__(self):
        super().__init__(lambda policy, row, j: f"<{policy}: {row.instruction}>")
        self.gate, self.broken = threading.Event(), False
        self.gate.set()

    def generate(self, *args, **options):
        if self.broken:
            raise UserError("too long")
        first, last = super().generate(*args, **options)
        yield first
        self.gate.wait(60)
        yield last


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_folder):
    return make_run(tmp_path_factory.mktemp("events") / "run", tiny_folder)


@pytest.fixture
def page(run, tmp_path):
    """The handlers behind one page of Ann's, with her chats."""
    echo = Gated()
    worker = Worker(run, load=lambda: echo, gpu_folder=tmp_path / "card")
    with Store(tmp_path / "p.db", seed=0) as store:
        ann = store.add_annotator("ann", "long enough")
        account = Account(ann, "ann", "annotator", "en")
        services = Services(store, lambda request: account, lambda request: "en")
        with gr.Blocks():
            ui = _Components(worker)
        controller, chats = ChatController(services, worker), SavedChats(services)
        yield SimpleNamespace(
            ui=ui,
            echo=echo,
            store=store,
            chats=chats,
            controller=controller,
            events=_Events(controller, chats, ui),
            request=SimpleNamespace(session_hash="page"),
            text=translations("chat", "en"),
        )
        echo.gate.set()
        worker.close()


def kept(page):
    """The conversations of the database, as their messages and replies."""
    chats, looking_on = page.chats.choices(page.request), SimpleNamespace(session_hash="another")
    return {
        number: [(turn.user, turn.reply) for turn in page.chats.open(number, looking_on)[1]]
        for _, number in chats
    }


def said(page, patches):
    """State of the page after some patches."""
    state = {}
    for patch in patches:
        state |= patch
    return SimpleNamespace(
        turns=state[page.ui.turns],
        chat=state.get(page.ui.chat_id),
        status=state[page.ui.status],
        send=state[page.ui.send]["interactive"],
    )


def sent(page, message, turns=(), chat=None, settings=SETTINGS):
    return said(page, page.events.send(page.request, message, turns, chat, *settings))


def gone_on(page, turns, chat=None, settings=SETTINGS):
    return said(page, page.events.go_on(page.request, turns, chat, *settings))


def editing(page, index, text, turns, chat):
    event = SimpleNamespace(index=index, value=text)
    return list(page.events.edit(page.request, event, "", turns, chat, *SETTINGS))


LEAVING = {
    "new": lambda page, turns, chat, other: page.events.clear(page.request),
    "open": lambda page, turns, chat, other: page.events.open_chat(
        page.request, other, turns, chat
    ),
    "delete": lambda page, turns, chat, other: page.events.delete_chat(page.request, chat),
    "undo": lambda page, turns, chat, other: page.events.undo(page.request, turns, chat),
    "edit": lambda page, turns, chat, other: editing(page, 1, "Mine.", turns, chat),
}


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("way", LEAVING)
def test_a_job_that_the_page_has_left_writes_nothing_any_more(page, way, stored):
    other = sent(page, "Other?").chat
    first = sent(page, "One?") if stored else SimpleNamespace(turns=(), chat=None)
    page.echo.gate.clear()
    answering = page.events.send(page.request, "Two?", first.turns, first.chat, *SETTINGS)
    chat = first.chat
    for patch in answering:
        turns, chat = patch[page.ui.turns], patch.get(page.ui.chat_id, chat)
        if turns[-1].reply:
            break
    LEAVING[way](page, turns, chat, other)
    before = kept(page)
    page.echo.gate.set()
    assert list(answering) == [], "the page shows something else by now"
    assert kept(page) == before
    apart = set(before) - {other, chat}
    assert len(apart) == (way == "edit" and stored), "what was said after the edited reply stays"
    assert set(before) - apart == {other, chat} - ({chat} if way == "delete" else set())
    if way == "undo":
        assert [user for user, _ in before[chat]] == (["One?"] if stored else [])


def test_the_address_opens_a_chat_and_begins_a_new_one(page):
    ui, first, second = page.ui, sent(page, "One?"), sent(page, "Two?")

    def followed(number, turns, chat):
        event = SimpleNamespace(chat=number)
        return page.events.open_place(page.request, event, turns, chat)

    patch = followed(first.chat, second.turns, second.chat)
    assert patch[ui.chat_id] == first.chat and patch[ui.saved]["value"] == first.chat
    assert [turn.user for turn in patch[ui.turns]] == ["One?"]
    patch = followed(None, first.turns, first.chat)
    assert patch[ui.chat_id] is None and patch[ui.turns] == ()
    assert followed(first.chat, first.turns, first.chat) == {ui.chat_id: first.chat}, "it is open"
    for number in (10**6, -1, "1", [1], {"a": 1}, 1.5):
        patch = followed(number, first.turns, first.chat)
        assert ui.chat_id not in patch and patch[ui.turns] == first.turns
        assert page.text["chats.gone"] in patch[ui.status]


def test_to_list_the_chats_names_none_that_is_not_open(page):
    state = sent(page, "One?")
    assert "value" not in page.events.list_chats(page.request, None)
    assert page.events.list_chats(page.request, state.chat)["value"] == state.chat


def test_again_without_a_turn_changes_nothing(page):
    """Gradio takes an empty dictionary for a single output, and fails."""
    [patch] = page.events.retry(page.request, (), None, *SETTINGS)
    assert patch[page.ui.turns] == ()


def test_a_stopped_answer_is_still_shown_and_kept(page):
    page.echo.gate.clear()
    answering = page.events.send(page.request, "One?", (), None, *SETTINGS)
    for patch in answering:
        if patch[page.ui.turns][-1].reply:
            break
    page.events.stop(page.request)
    page.echo.gate.set()
    state = said(page, [patch, *answering])
    assert page.text["status.stopped"] in state.status and state.send
    assert kept(page) == {state.chat: [("One?", state.turns[0].reply)]}


def test_the_job_of_another_page_drops_none_of_this_one(page):
    jobs, worker = PageJobs(), page.controller.worker
    one, two = (SimpleNamespace(session_hash=name) for name in ("one", "two"))
    followed = threading.Event()

    def seven(policy_server, stop):
        followed.wait(60)
        yield 7

    job = worker.start(seven, "chat")
    following = jobs.follow(one, job)
    next(following)
    followed.set()
    while not job.finished:
        pass
    assert len(list(jobs.follow(two, worker.start(lambda *_: iter([8]), "chat")))) > 0
    assert [(update.phase, update.value) for update in following][-1] == ("done", 7)
    assert not jobs.holds(one, job)


def test_undo_of_the_only_turn_is_kept(page):
    first = sent(page, "One?")
    page.events.undo(page.request, first.turns, first.chat)
    assert kept(page) == {first.chat: []}
    # Deleted in another tab meanwhile: nothing is to be kept.
    page.chats.delete(first.chat, page.request)
    assert page.chats.save(first.chat, (), page.request) is None and kept(page) == {}


def test_a_full_disk_leaves_the_page_free(page, monkeypatch):
    def full(*args):
        raise DiskFull("full")

    monkeypatch.setattr(page.store, "save_chat", full)
    state = sent(page, "One?")
    assert state.send and state.turns[0].reply == "<sft: One?>" and state.chat is None
    assert translations("shell", "en")["full"] in html.unescape(state.status)

    def broken(*args):
        raise RuntimeError("lost")

    monkeypatch.setattr(page.store, "save_chat", broken)
    patches = []
    with pytest.raises(RuntimeError):
        for patch in page.events.send(page.request, "Two?", (), None, *SETTINGS):
            patches.append(patch)
    assert said(page, patches).send


def test_only_a_reply_of_one_policy_has_an_origin(page):
    first = sent(page, "One?")
    assert first.turns[0].sampled.adapter == "sft"
    # 1. The same policy goes on: it wrote all of it.
    whole = gone_on(page, first.turns, first.chat)
    assert whole.turns[0].sampled.adapter == "sft"
    # 2. Another policy, or a person's words gone on with: nobody's alone, but kept.
    mixed = gone_on(page, first.turns, first.chat, ["ppo.2", *SETTINGS[1:]])
    assert mixed.turns[0].sampled is None and mixed.chat == first.chat
    edited = (replace(first.turns[0], reply="Mine", sampled=None),)
    theirs = gone_on(page, edited, first.chat)
    assert theirs.turns[0] == Turn("One?", "Mine<sft: One?>")
    assert kept(page) == {first.chat: [("One?", "Mine<sft: One?>")]}
    event = SimpleNamespace(index=1, liked=True)
    patch = page.events.rate(page.request, event, theirs.turns, theirs.chat)
    assert page.text["thumb.unknown"] in patch[page.ui.status]
    assert page.store.figures().counts["thumbs"] == 0


def test_an_export_does_not_make_a_page_overwrite_another_windows_words(page):
    first = sent(page, "One?")
    other = SimpleNamespace(session_hash="other window")
    theirs = (*first.turns, Turn("Two?", "Two."))
    page.chats.open(first.chat, other)
    assert page.chats.save(first.chat, theirs, other) == first.chat
    assert "Two." in page.chats.exported(first.chat, page.request)
    apart = gone_on(page, first.turns, first.chat)
    assert apart.chat not in (None, first.chat)
    assert page.chats.open(first.chat, other)[1] == theirs


def test_a_refused_continuation_keeps_origin_and_thumb(page):
    first = sent(page, "One?")
    rated = (replace(first.turns[0], thumb=True),)
    page.echo.broken = True
    refused = gone_on(page, rated, first.chat)
    assert "too long" in refused.status and refused.turns == rated
    page.echo.broken = False
    assert gone_on(page, rated, first.chat).turns[0].thumb is None, "another reply by now"


def test_a_thumb_near_the_evaluation_is_not_kept(page):
    event = SimpleNamespace(index=1, liked=True)

    def rated(message):
        state = sent(page, message)
        return page.events.rate(page.request, event, state.turns, state.chat)[page.ui.status]

    for split in ("eval", "ppo", "sft"):
        near = page.controller.worker.prompts.splits[split][0].instruction
        assert page.text[f"thumb.{split}"] in rated(near)
    assert page.store.figures().counts["thumbs"] == 0
    assert page.text["thumb.up"] in rated("What floats?")
    assert page.store.figures().counts["thumbs"] == 1


def test_a_thumb_up_keeps_an_edited_reply_as_a_better_answer(page, tmp_path):
    def rated(liked, state):
        event = SimpleNamespace(index=1, liked=liked)
        return said(page, [page.events.rate(page.request, event, state.turns, state.chat)])

    def better():
        folder = tmp_path / f"snapshot {len(list(tmp_path.iterdir()))}"
        page.store.export(folder)
        rows = (folder / "demonstrations.jsonl").read_text().splitlines()
        return [json.loads(row)["output"] for row in rows]

    first = sent(page, "What floats?")
    state = said(page, editing(page, 1, "Ice and wood.", first.turns, first.chat))
    assert html.escape(page.text["edited.hint"]) in state.status and better() == []
    # What is opened again still knows the reply that it was made of.
    _, turns = page.chats.open(first.chat, page.request)
    assert turns == state.turns and turns[0].edited.text == first.turns[0].reply
    kept = rated(True, state)
    assert kept.turns[0].thumb is True and better() == ["Ice and wood."]
    assert page.text["edited.down"] in rated(False, kept).status and better() == ["Ice and wood."]
    again = said(page, editing(page, 1, "Ice.", kept.turns, first.chat))
    assert again.turns[0].thumb is None and rated(True, again).turns[0].thumb is True
    assert better() == ["Ice."]
    assert rated(None, again).turns[0].thumb is None and better() == []
    # Edited back it is the policy's own text, and gone on with it is nobody's alone.
    back = said(page, editing(page, 1, first.turns[0].reply, again.turns, first.chat))
    assert page.text["thumb.unknown"] in rated(True, back).status
    assert gone_on(page, again.turns, first.chat).turns[0].edited is None
    assert page.store.figures().counts["thumbs"] == 0


def test_a_better_answer_near_the_evaluation_is_not_kept(page):
    for split in ("eval", "ppo", "sft"):
        near = page.controller.worker.prompts.splits[split][0].instruction
        first = sent(page, near)
        state = said(page, editing(page, 1, "Mine.", first.turns, first.chat))
        event = SimpleNamespace(index=1, liked=True)
        patch = page.events.rate(page.request, event, state.turns, state.chat)
        assert page.text[f"thumb.{split}"] in patch[page.ui.status]
    assert page.store.figures().counts["demonstrations"] == 0


def test_an_exported_chat_alternates_and_has_its_system_text(page):
    origin = SampledReply("ab", "t", 0, "eos", 3, True, "Be brief.")
    turns = (Turn("Lost?"), Turn("One?", "Yes.", sampled=origin), Turn("Two?", "No."))
    number = page.chats.save(None, turns[:2], page.request)
    messages = json.loads(page.chats.exported(number, page.request))["messages"]
    assert [(message["role"], message["content"]) for message in messages] == [
        ("system", "Be brief."),
        ("user", "One?"),
        ("assistant", "Yes."),
    ]
    page.chats.save(number, turns, page.request)
    messages = json.loads(page.chats.exported(number, page.request))["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    page.chats.save(number, turns[:1], page.request)
    with pytest.raises(Refused) as refused:
        page.chats.exported(number, page.request)
    assert page.chats.problem(refused.value, page.request) == page.text["chats.none"]


def test_a_chat_without_a_number_is_not_called_gone(page):
    for patch in (
        page.events.rename_chat(page.request, None, "x"),
        page.events.export_chat(page.request, None),
        page.events.delete_chat(page.request, None),
    ):
        assert page.text["chats.none"] in patch[page.ui.status]
    gone = page.events.rename_chat(page.request, 77, "x")[page.ui.status]
    assert page.text["chats.gone"] in gone


def test_an_edited_reply_is_as_long_as_a_message_may_be(page):
    first = sent(page, "One?")
    (patch,) = editing(page, 1, "x" * (MAX_MESSAGE_CHARS + 1), first.turns, first.chat)
    assert patch[page.ui.turns] == first.turns
    assert page.text["status.too_long"].format(n=MAX_MESSAGE_CHARS) in patch[page.ui.status]
    editing(page, 1, "x" * MAX_MESSAGE_CHARS, first.turns, first.chat)
    assert kept(page)[first.chat] == [("One?", "x" * MAX_MESSAGE_CHARS)]


def test_chat_goes_on_with_the_policy_that_was_trained_meanwhile(page, monkeypatch):
    on_screen = page.ui.policy.value
    names = ["base", "sft", "ppo.2", "ppo.3"]
    monkeypatch.setattr(page.controller.worker, "policies", lambda: names)
    for shown, answering in ((on_screen, "ppo.3"), ("sft", "sft")):
        sent(page, "Hello?", settings=[shown, *SETTINGS[1:]])
        assert page.echo.asked[-1][0] == answering
    labels = dict(page.events.list_policies(page.request)["choices"])
    assert [name for name in labels.values() if name] == names
    assert "ppo.3" in next(title for title, name in labels.items() if name == on_screen)


def test_a_message_that_is_refused_stays_where_it_was_written(page):
    first = sent(page, "One?")
    full = (Turn("a", "b"),) * MAX_TURNS
    for message, turns in (("x" * (MAX_MESSAGE_CHARS + 1), first.turns), ("Next?", full)):
        patches = list(page.events.send(page.request, message, turns, first.chat, *SETTINGS))
        assert not any(page.ui.box in patch for patch in patches)
        assert patches[-1][page.ui.turns] == turns
    taken = list(page.events.send(page.request, "Two?", first.turns, first.chat, *SETTINGS))
    assert [patch.get(page.ui.box) for patch in taken] == ["", *[None] * (len(taken) - 1)]
    # A message that is edited into nothing does not take the rest away.
    assert editing(page, 0, "  ", first.turns, first.chat)[-1][page.ui.turns] == first.turns


def test_a_message_is_kept_before_its_answer_and_the_answer_as_it_grows(page, monkeypatch):
    monkeypatch.setattr(chat_tab, "SAVE_EVERY_S", 0)
    page.echo.broken = True
    failed = sent(page, "One?")
    assert kept(page) == {failed.chat: [("One?", "")]}
    page.echo.broken = False
    page.echo.gate.clear()
    answering = page.events.send(page.request, "Two?", failed.turns, failed.chat, *SETTINGS)
    assert next(answering)[page.ui.chat_id] == failed.chat
    for patch in answering:
        if patch[page.ui.turns][-1].reply == "<":
            break
    # The page is closed, or the server is killed: what was there is kept.
    answering.close()
    assert kept(page) == {failed.chat: [("One?", ""), ("Two?", "<")]}


def test_a_message_is_kept_where_nothing_answers_any_more(page):
    page.controller.worker.close()
    closed = sent(page, "One?")
    assert page.text["problem.closed"] in closed.status
    assert kept(page) == {closed.chat: [("One?", "")]}


def test_an_answer_is_kept_until_there_is_another_one(page, monkeypatch):
    monkeypatch.setattr(chat_tab, "SAVE_EVERY_S", 0)
    first = sent(page, "One?")
    page.echo.gate.clear()
    again = page.events.retry(page.request, first.turns, first.chat, *SETTINGS)
    for patch in again:
        if patch[page.ui.turns][-1].reply == "<":
            break
    again.close()
    assert kept(page) == {first.chat: [("One?", "<sft: One?>")]}


def occupied(page):
    """Two answers of the account, which grow elsewhere until the gate is set."""
    page.echo.gate.clear()
    for number in range(2):
        elsewhere = SimpleNamespace(session_hash=f"elsewhere {number}")
        generation = _generation_request(page.controller.worker, SETTINGS)
        answering = page.controller.answer([Turn("?")], generation, elsewhere)
        next(answering)
        yield answering


@pytest.mark.parametrize("way", ["retry", "edit", "edit the last"])
def test_what_gets_no_answer_takes_the_place_of_nothing(page, way):
    first = sent(page, "One?")
    both = sent(page, "Two?", first.turns, first.chat)
    before = kept(page)
    elsewhere = list(occupied(page))
    if way == "retry":
        patches = list(page.events.retry(page.request, both.turns, both.chat, *SETTINGS))
    else:
        index = 2 if way == "edit the last" else 0
        patches = editing(page, index, "Else?", both.turns, both.chat)
    assert html.escape(page.text["problem.busy"]) in patches[-1][page.ui.status]
    assert way == "retry" or patches[-1][page.ui.box] == "Else?", "the words are not lost"
    assert all(patch[page.ui.turns] == both.turns for patch in patches)
    assert patches[-1][page.ui.log]["value"] == chat_tab.messages(both.turns)
    assert kept(page) == before
    page.echo.gate.set()
    for answering in elsewhere:
        answering.close()


@pytest.mark.parametrize("index", [0, 1])
def test_what_is_edited_early_on_leaves_what_was_said_after_it(page, index):
    first = sent(page, "One?")
    both = sent(page, "Two?", first.turns, first.chat)
    before = kept(page)
    state = said(page, editing(page, index, "Else?", both.turns, both.chat))
    assert state.chat not in (None, both.chat) and len(state.turns) == 1
    assert kept(page) == {**before, state.chat: [(t.user, t.reply) for t in state.turns]}


def test_an_answer_that_fails_takes_the_place_of_nothing(page):
    first = sent(page, "One?")
    both = sent(page, "Two?", first.turns, first.chat)
    before, whole = kept(page), page.echo.generate

    def failing(*args, **options):
        yield next(iter(whole(*args, **options)))
        raise MemoryError("no room")

    page.echo.generate = failing
    patches = editing(page, 0, "Else?", both.turns, both.chat)
    assert patches[-1][page.ui.turns] == both.turns and kept(page) == before
    assert patches[-1][page.ui.box] == "Else?"


def test_a_thumb_waits_for_the_answer_that_grows(page):
    """The growing answer would be kept with the turns before it as they were."""
    first = sent(page, "One?")
    page.echo.gate.clear()
    answering = page.events.send(page.request, "Two?", first.turns, first.chat, *SETTINGS)
    next(answering)
    event = SimpleNamespace(index=1, liked=True)
    with pytest.raises(gr.Error, match="Wait for the answer"):
        page.events.rate(page.request, event, first.turns, first.chat)
    page.echo.gate.set()
    done = said(page, answering)
    page.events.rate(page.request, event, done.turns, done.chat)
    assert page.store.figures().counts["thumbs"] == 1


def test_a_page_that_knows_nothing_of_a_conversation_overwrites_nothing(page):
    first = sent(page, "One?")
    other = SimpleNamespace(session_hash="never opened it")
    number = page.chats.save(first.chat, (*first.turns, Turn("Two?", "Two.")), other)
    assert number != first.chat and kept(page)[first.chat] == [("One?", first.turns[0].reply)]


def test_again_stopped_before_the_first_token_keeps_the_answer(page):
    first = sent(page, "One?")
    page.controller.worker.start = lambda *args, **options: Job(
        *args, urgent=True, count_ahead=lambda job: 0, **options
    )
    again = page.events.retry(page.request, first.turns, first.chat, *SETTINGS)
    assert next(again)[page.ui.turns] == first.turns
    page.events.stop(page.request)
    stopped = said(page, again)
    assert page.text["status.stopped"] in stopped.status and stopped.turns == first.turns


def test_deleting_can_be_confirmed_while_an_answer_grows(page):
    first = sent(page, "One?")
    page.echo.gate.clear()
    answering = page.events.send(page.request, "Two?", first.turns, first.chat, *SETTINGS)
    assert not next(answering)[page.ui.delete_sure]["visible"], "asked before the message"
    page.events.ask_to_delete(page.request, first.chat)
    patch = next(answering)
    page.echo.gate.set()
    assert not any(page.ui.delete_sure in later for later in [patch, *answering])


@pytest.mark.parametrize("way", ["delete", "undo"])
def test_what_the_page_leaves_between_an_update_and_its_save_is_not_saved(page, monkeypatch, way):
    monkeypatch.setattr(chat_tab, "SAVE_EVERY_S", 0)
    first, patch_of = sent(page, "One?"), page.events._patch
    page.echo.gate.clear()
    answering = page.events.send(page.request, "Two?", first.turns, first.chat, *SETTINGS)
    turns = next(answering)[page.ui.turns]

    def left(view):
        monkeypatch.setattr(page.events, "_patch", patch_of)
        LEAVING[way](page, turns, first.chat, None)
        return patch_of(view)

    monkeypatch.setattr(page.events, "_patch", left)
    assert list(answering) == []
    assert kept(page) == ({} if way == "delete" else {first.chat: [("One?", "<sft: One?>")]})


def test_two_saves_of_one_page_at_once_do_not_split_its_chat(page, monkeypatch):
    first, save_chat = sent(page, "One?"), page.store.save_chat
    inside, other, others = threading.Event(), [], (*first.turns, Turn("Two?"))

    def slow(*args, **options):
        if not inside.is_set():
            inside.set()
            thread = threading.Thread(
                target=page.chats.save, args=(first.chat, others, page.request)
            )
            other.append(thread)
            thread.start()
            thread.join(0.5)  # comes to its end here where nothing holds it up
        return save_chat(*args, **options)

    monkeypatch.setattr(page.store, "save_chat", slow)
    rated = (replace(first.turns[0], thumb=True),)
    assert page.chats.save(first.chat, rated, page.request) == first.chat
    other[0].join(60)
    assert page.chats.save(first.chat, rated, page.request) == first.chat
    assert list(kept(page)) == [first.chat]


def test_two_windows_on_one_chat_lose_nothing(page):
    first = sent(page, "One?")
    window = SimpleNamespace(session_hash="another window")
    opened = page.events.open_chat(window, first.chat, (), None)[page.ui.turns]
    list(page.events.send(window, "Two?", opened, first.chat, *SETTINGS))
    apart = sent(page, "Three?", first.turns, first.chat)
    assert page.text["chats.apart"] in apart.status and apart.chat != first.chat
    after = sent(page, "Four?", apart.turns, apart.chat)
    assert page.text["chats.apart"] not in after.status
    messages = {number: [user for user, _ in turns] for number, turns in kept(page).items()}
    assert messages == {first.chat: ["One?", "Two?"], apart.chat: ["One?", "Three?", "Four?"]}


def test_a_chat_is_deleted_once_that_is_confirmed(page):
    ui, chat = page.ui, sent(page, "One?").chat
    other = sent(page, "Two?")
    asked = page.events.ask_to_delete(page.request, chat)
    assert asked[ui.delete_sure]["visible"] and "One?" in asked[ui.delete_sure]["value"]
    assert chat in kept(page) and not page.events.keep_chat()[ui.delete_sure]["visible"]
    # Whoever opens another chat instead has not confirmed that one.
    opened = page.events.open_chat(page.request, other.chat, (), chat)
    assert not opened[ui.delete_sure]["visible"]
    page.events.delete_chat(page.request, chat)
    assert list(kept(page)) == [other.chat]


def test_who_does_not_get_the_answers_is_not_told_that_they_come(page):
    page.echo.say = lambda policy, row, j: f"{row.instruction} {j}"

    def made(prompt):
        patches = page.events.make_candidates(page.request, prompt, (), *SETTINGS)
        return list(patches)[-1][page.ui.status]

    assert page.text["make.done"].format(n=4) in html.unescape(made("Name a lake."))
    page.store.leave_out_person("ann", actor="test")
    assert page.text["make.others"].format(n=4) in html.unescape(made("Sing of the sea."))


def test_a_preset_goes_through_the_sliders_unchanged(page):
    for name, preset in PRESETS.items():
        values = page.events.apply_preset(name)
        settings = ("sft", *values, *SETTINGS[1 + len(SHAPING) :])
        request = _generation_request(page.controller.worker, settings)
        assert request.sampling == replace(preset, max_new_tokens=60), name


@pytest.mark.parametrize("number", [10**400, 2**53, -(2**53), "9" * 40])
def test_a_click_with_a_number_that_no_browser_writes_does_nothing(number):
    assert clicked(SimpleNamespace(do="retire", id=number, extra=0)) == ("", 0, 0)
    assert clicked(SimpleNamespace(do="retire", id=1, extra=number)) == ("", 0, 0)
    assert clicked(SimpleNamespace(do="retire", id=2**53 - 1, extra=3)) == ("retire", 2**53 - 1, 3)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_says_where_the_list_of_chats_ends(language):
    assert str(MAX_LISTED) in translations("chat", language)["chats.info"]
