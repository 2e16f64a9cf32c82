"""The overlap and whose sets somebody gets, set on the Data tab."""

from __future__ import annotations

import gradio as gr
import pytest

from alpaca_rlhf.app.handing_out import HandingOut
from alpaca_rlhf.app.services import Services
from alpaca_rlhf.preferences import passwords
from alpaca_rlhf.preferences.assignment import Overlap
from alpaca_rlhf.preferences.handing_out import Limit
from alpaca_rlhf.preferences.schema import Audit
from tests import apps, attacks
from tests.browser import NO_CHROMIUM, browser, chromium, visit
from tests.model_app import nothing_serious
from tests.screenshots import open_tab
from tests.test_preferences_store import rows


@pytest.fixture
def victim(tmp_path, monkeypatch):
    monkeypatch.setattr(passwords, "LOG_N", 4)
    victim = attacks.Victim(tmp_path)
    with victim.store:
        yield victim


def test_an_admin_changes_both_and_wrong_values_change_nothing(victim):
    store = victim.store
    services = Services(store, lambda request: store.account(victim.boss), lambda request: "en")
    with gr.Blocks():
        form = HandingOut(services)
    assert "8 sets" in form.save_overlap(100, 3, None)
    assert store.overlap() == Overlap(1, 3)
    for wrong in ((101, 2), (-1, 2), (50, 1), (50, 10), (None, None), ("x", []), (50, 1e999)):
        assert 'class="bad"' in form.save_overlap(*wrong, None)
    assert store.overlap() == Overlap(1, 3)
    limited, outcome = form.save_origins("ann", "some", ["test"], None)
    assert "ann" in limited and "test" in limited and 'class="good"' in outcome
    assert store.limits() == [Limit("ann", ("test",))]
    for wrong in (
        ("ann", "some", []),
        ("ann", "some", ["elsewhere"]),
        ("", "none", []),
        ("nobody", "none", []),
        ("ann", "every", ["test"]),
        (None, None, None),
    ):
        assert 'class="bad"' in form.save_origins(*wrong, None)[1]
    assert store.limits() == [Limit("ann", ("test",))]
    percent, people, *_, limited, _ = form.show(None)
    assert (percent, people) == (100, 3) and "ann" in limited
    form.save_origins("ann", "none", ["test"], None)
    assert store.limits() == [Limit("ann", ())] and store.claim(victim.ann) is None
    form.save_origins("ann", "all", ["test"], None)
    assert store.limits() == [] and store.claim(victim.ann) is not None
    actors = {row.actor for row in rows(store, Audit) if row.action in ("overlap", "origins")}
    assert actors == {f"annotator:{victim.boss}"}


def test_an_annotator_changes_neither(victim):
    """However the events are called."""
    sent = {"save_overlap": [100, 9], "save_origins": ["ben", "none", []]}
    with victim.visitor("ann") as ann, victim.visitor("boss") as boss:
        events = {row["api_name"]: row for row in boss.get("/config").json()["dependencies"]}
        for name, data in sent.items():
            for way in ("queue", "run", "call"):
                attacks.called(ann, way, name, events[name]["id"], data, {})
    assert victim.store.overlap() == Overlap(0) and victim.store.limits() == []


@pytest.mark.skipif(chromium() is None, reason=NO_CHROMIUM)
def test_in_a_browser(victim):
    victim.store.set_overlap(Overlap(0.3, 3), actor="test")
    with (
        apps.serving(victim.app) as home,
        browser() as opened,
        visit(opened, locale="en-GB", viewport={"width": 390, "height": 900}) as page,
    ):
        page.set_default_timeout(300_000)
        page.goto(home)
        page.fill("#name", "boss")
        page.fill("#password", attacks.PASSWORD)
        page.click("button")
        page.locator("[data-account]").wait_for()
        open_tab(page, "data")
        page.get_by_role("button", name="Who ranks what").click()
        # What holds now must be there first, or it would come over what is typed.
        filled = "document.querySelector('#handing-share input').value === '30'"
        page.wait_for_function(filled)
        page.fill("#handing-share input", "100")
        page.locator("#handing-save").click()
        page.locator("#handing-outcome .good").wait_for()
        assert victim.store.overlap() == Overlap(1, 3)
        page.locator("#handing-person input").click()
        page.get_by_role("option", name="ann").click()
        page.get_by_label("none", exact=True).check()
        page.locator("#handing-limit").click()
        page.locator("#handing-limited li").wait_for()
        assert victim.store.limits() == [Limit("ann", ())]
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        nothing_serious(page, colours=True)
