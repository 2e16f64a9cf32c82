"""Conversations and thumbs of each account, and nobody else's; on both databases."""

import json
import threading

import pytest

from alpaca_rlhf.core.records import Completion, Instruction
from alpaca_rlhf.preferences import chats
from alpaca_rlhf.preferences.assignment import Refused
from alpaca_rlhf.preferences.snapshot import read_manifest
from tests.test_preferences_store import people

TURNS = [{"user": "Hello?", "reply": "Yes.", "attempt": 0}]


def titles(store, account):
    return [chat.title for chat in store.chats(account)]


def test_conversations_are_kept_renamed_and_deleted(store, clock):
    ann, ben = people(store, 2)
    first = store.save_chat(ann, None, "  Hello,\n you? ", TURNS)
    clock.now += 1
    second = store.save_chat(ann, None, "x" * 200, TURNS)
    assert titles(store, ann) == ["x" * 80, "Hello, you?"] and titles(store, ben) == []
    clock.now += 1
    assert store.save_chat(ann, first, "ignored", [*TURNS, *TURNS]) == first
    assert titles(store, ann) == ["Hello, you?", "x" * 80], "what changed last comes first"
    assert store.chat(ann, first) == ("Hello, you?", [*TURNS, *TURNS])
    store.rename_chat(ann, first, "Ships")
    with pytest.raises(Refused):
        store.rename_chat(ann, first, " \n")
    store.delete_chat(ann, second)
    assert titles(store, ann) == ["Ships"]
    with pytest.raises(Refused) as refused:
        store.chat(ann, second)
    assert refused.value.problem == "unknown"


def test_nobody_reaches_the_conversation_of_somebody_else(store):
    ann, ben = people(store, 2)
    number = store.save_chat(ann, None, "private", TURNS)
    for attempt in (
        lambda: store.chat(ben, number),
        lambda: store.save_chat(ben, number, "mine", []),
        lambda: store.rename_chat(ben, number, "mine"),
        lambda: store.delete_chat(ben, number),
    ):
        with pytest.raises(Refused) as refused:
            attempt()
        assert refused.value.problem == "not_yours"
    assert store.chat(ann, number) == ("private", TURNS)


def test_thumbs_are_kept_changed_and_exported(store, tmp_path):
    ann, ben = people(store, 2)
    prompt = Instruction("And ships?", history=(("Hello?", "Yes."),), source="chat")
    good, bad = (Completion(prompt.id, text, "ab12") for text in ("They float.", "No."))
    store.rate_reply(ann, (prompt, [good]), False)
    store.rate_reply(ann, (prompt, [good]), True)
    store.rate_reply(ann, (prompt, [bad]), False)
    store.rate_reply(ben, (prompt, [bad]), True)
    store.rate_reply(ben, (prompt, [bad]), None)
    assert store.figures().counts["thumbs"] == 2
    manifest = store.export(tmp_path / "one")
    assert manifest.thumbs == 2 and manifest.rankings == 0
    assert read_manifest(tmp_path / "one") == manifest
    lines = (tmp_path / "one" / "thumbs.jsonl").read_text().splitlines()
    rows = {row["completion"][0]["content"]: row for row in map(json.loads, lines)}
    assert {text: row["label"] for text, row in rows.items()} == {"They float.": True, "No.": False}
    roles = [message["role"] for message in rows["No."]["prompt"]]
    assert roles == ["user", "assistant", "user"]
    store.leave_out_person("person 0", actor="test")
    assert store.export(tmp_path / "two").thumbs == 0 == store.figures().counts["thumbs"]


def test_two_pages_may_rate_a_reply_at_once(store):
    """The second waits for the first to commit, and then replaces its thumb."""
    (ann,) = people(store, 1)
    prompt = Instruction("Ships?", source="chat")
    reply = (prompt, [Completion(prompt.id, "They float.", "ab12")])
    store.rate_reply(ann, reply, None)
    errors = []

    def second():
        try:
            store.rate_reply(ann, reply, False)
        except Exception as error:
            errors.append(error)

    with store.database.writing() as session:
        chats.rate(session, ann, reply, True, now_ms=1)
        other = threading.Thread(target=second)
        other.start()
        other.join(0.5)
        assert other.is_alive(), "it waits"
    other.join(60)
    with store.database.reading() as session:
        ((up,),) = [(row["up"],) for row in chats.thumbs(session)]
    assert errors == [] and up is False
