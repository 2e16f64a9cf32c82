"""Leaving out everybody below a share of gold questions, on the Data tab."""

from __future__ import annotations

import gradio as gr
import pytest

from alpaca_rlhf.app import data_tab, data_view
from alpaca_rlhf.app.services import Services
from alpaca_rlhf.preferences.assignment import Rules, Verdict
from alpaca_rlhf.preferences.people import Account
from alpaca_rlhf.preferences.schema import Audit
from alpaca_rlhf.preferences.store import Store
from tests import apps
from tests.databases import candidates
from tests.test_preferences_store import rows

BOSS = Account(7, "boss", "admin", "en")


@pytest.fixture
def store(tmp_path):
    """Six gold questions to each of three people; Bad failed all, Half half of them, Good none."""
    with Store(tmp_path / "p.db", rules=Rules(gold_rate=1, repeat_rate=0), seed=0) as opened:
        gold = candidates(6, k=2, tag="gold ")
        orders = {prompt.id: tuple((c.id,) for c in answers) for prompt, answers in gold}
        opened.add_sets(gold, origin="gold", gold=orders)
        for name, n_wrong in {"Bad": 6, "Half": 3, "Good": 0}.items():
            person = opened.add_annotator(name, "long enough")
            for at in range(6):
                task = opened.claim(person)
                order = orders[task.prompt.id]
                opened.submit(person, task.id, Verdict(order[::-1] if at < n_wrong else order))
        yield opened


@pytest.fixture
def events(store, tmp_path):
    services = Services(store, lambda request: BOSS, lambda request: "en")
    return data_tab._Events(services, apps.exports(tmp_path), data_view.NO_ROUNDS)


def test_everybody_below_is_left_out_with_the_row_of_the_command_in_the_audit(events, store):
    outcome, *_, people = events.leave_out_below(50, 5, gr.Request())
    assert "Left out: Bad." in outcome and store.left_out() == ["Bad"]
    assert "Take in again: Bad" in people and "Leave out: Half" in people
    outcome, *_ = events.leave_out_below(70, 5, gr.Request())
    assert "Left out: Half." in outcome and store.left_out() == ["Bad", "Half"]
    by_page = [row for row in rows(store, Audit) if row.action == "leave_out"]
    assert [row.actor for row in by_page] == ["annotator:7"] * 2
    store.leave_out_person("Bad", actor="test", undo=True)
    store.leave_out_below_gold(0.5, min_asked=5, actor="command line")
    by_command = [row for row in rows(store, Audit) if row.action == "leave_out"][-1]
    first = by_page[0]
    assert (by_command.entity, by_command.before, by_command.after) == (
        first.entity,
        first.before,
        first.after,
    )


def test_nobody_is_left_out_twice_or_by_few_questions(events, store):
    assert "Nobody was left out" in events.leave_out_below(70, 7, gr.Request())[0]
    events.leave_out_below(70, 5, gr.Request())
    assert "Nobody was left out" in events.leave_out_below(70, 5, gr.Request())[0]


@pytest.mark.parametrize(
    ("percent", "asked"),
    [(0, 5), (-1, 5), (101, 5), (float("nan"), 5), (70, 0), (70, None), (None, 5), ("x", []),
     (1e999, 5), (70, 1e999), (70, 1e20)],
)  # fmt: skip
def test_wrong_numbers_leave_out_nobody(events, store, percent, asked):
    outcome, *_ = events.leave_out_below(percent, asked, gr.Request())
    assert 'class="bad"' in outcome and "Nothing was changed" in outcome
    assert store.left_out() == []
