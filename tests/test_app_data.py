"""The Data tab and the page around it, in a real browser: figures, snapshots, flags, people."""

import json
import re
import shutil
from types import SimpleNamespace

import gradio as gr
import pytest

from alpaca_rlhf.app import data_view
from alpaca_rlhf.app.browse import Browse
from alpaca_rlhf.app.data_tab import _Events
from alpaca_rlhf.app.services import Services
from alpaca_rlhf.core.records import Completion, Instruction, Ranking
from alpaca_rlhf.preferences import passwords, read_snapshot
from alpaca_rlhf.preferences.assignment import Rules, Verdict
from alpaca_rlhf.preferences.people import Account
from alpaca_rlhf.preferences.store import Store
from tests import apps, browser
from tests.screenshots import open_tab

pytestmark = pytest.mark.skipif(browser.chromium() is None, reason=browser.NO_CHROMIUM)
PASSWORD = "long enough"


RULES = Rules(second_share=1, gold_rate=0, repeat_rate=0)


@pytest.fixture(scope="module", autouse=True)
def cheap_passwords():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passwords, "LOG_N", 4)
        yield


@pytest.fixture(scope="module")
def filled(tmp_path_factory, cheap_passwords):
    """40 sets, ranked by two of three people with hostile names; 8 flags; 24 battles."""
    path = tmp_path_factory.mktemp("filled") / "p.db"
    with Store(path, rules=RULES, seed=0) as opened:
        opened.add_annotator("boss", PASSWORD, role="admin")
        opened.add_annotator("ann", PASSWORD)
        apps.fill(opened)
    return path


@pytest.fixture
def store(filled, tmp_path):
    """A copy of the filled store, to be changed."""
    with Store(shutil.copy(filled, tmp_path), rules=RULES, seed=0) as opened:
        yield opened


@pytest.fixture(scope="module")
def opened():
    with browser.browser() as chrome:
        yield chrome


@pytest.fixture
def home(store, tmp_path):
    """The app on a store of the test's own."""
    with apps.serving(apps.house(store, tmp_path)) as address:
        yield address


@pytest.fixture(scope="module")
def shared_home(filled, tmp_path_factory):
    """One app for all tests that change nothing in the store but sessions and exports."""
    folder = tmp_path_factory.mktemp("shared")
    with (
        Store(shutil.copy(filled, folder), rules=RULES, seed=0) as opened,
        apps.serving(apps.house(opened, folder)) as address,
    ):
        yield address


def sign_in(page, home, name="boss", password=PASSWORD):
    page.goto(home)
    page.fill("#name", name)
    page.fill("#password", password)
    page.click("button")
    page.locator("[data-account]").wait_for()


def to_data(page, language="en"):
    open_tab(page, "data", language)
    page.locator(".alpaca-data td:visible").first.wait_for()


def rows(page, heading):
    """The texts of the table's rows under a heading."""
    table = page.locator(f"h3:text-is('{heading}') ~ div table").first
    return cells(table)


def cells(table):
    """The texts of a table's rows."""
    return [
        [cell.inner_text() for cell in row.locator("th, td").all()]
        for row in table.locator("tbody tr").all()
    ]


def serious(page):
    from axe_playwright_python.sync_playwright import Axe

    violations = Axe().run(page).response["violations"]
    return [
        (violation["id"], node["html"][:200])
        for violation in violations
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]


def test_the_figures_are_the_stores(opened, store, home):
    with browser.visit(opened, locale="en-GB", viewport={"width": 1280, "height": 900}) as page:
        sign_in(page, home)
        to_data(page)
        figures = store.figures()
        tiles = dict(
            tile.inner_text().split("\n") for tile in page.locator(".tiles > div:visible").all()
        )
        assert tiles["Rankings"] == f"{figures.counts['rankings']:,}" != "0"
        assert tiles["Pairs"] == f"{figures.counts['pairs']:,}"
        assert tiles["Open flags"] == "8"
        text = page.locator(".alpaca-data:visible").first.inner_text()
        assert f"{figures.agreement.alpha:.3f}" in text and f"{figures.agreement.tau:.3f}" in text
        assert "hidden: 0 of the 30 tasks needed" in text, "no repeats: no self-consistency"
        people = {row[0]: row for row in rows(page, "People")}
        assert set(people) == {"boss", "ann", *apps.HOSTILE[:3]}
        for person in figures.people:
            assert people[person.name][2] == str(person.rankings)
        (battle,) = rows(page, "Win rates by blind votes")
        (score,) = store.scores()
        assert battle[0] == "ppo" and battle[3:] == [
            str(n) for n in (score.wins, score.losses, score.ties)
        ]


def test_a_judge_stands_beside_people(opened, store, home):
    """Whatever its name; what it ranked is not the people's."""
    prompts = [Instruction(f"Another {i}", source="test") for i in range(31)]
    sets = [(prompt, [Completion(prompt.id, text, "ab12") for text in "ab"]) for prompt in prompts]
    store.add_sets(sets, origin="test")
    name = f"judge:{apps.HOSTILE[0]}"
    for annotator in (name, "a file"):
        store.add_rankings(
            [
                Ranking(prompt.id, tuple((completion.id,) for completion in completions), annotator)
                for prompt, completions in sets
            ]
        )
    with browser.visit(opened, locale="en-GB") as page:
        sign_in(page, home)
        to_data(page)
        tiles = dict(
            tile.inner_text().split("\n") for tile in page.locator(".tiles > div:visible").all()
        )
        assert tiles["Rankings by judges"] == "31"
        (row,) = (
            row
            for row in cells(page.locator("h3:text-is('Quality') ~ div table:has(thead)").first)
            if row[0].endswith(" with people")
        )
        assert row == [f"{name} with people", "31", "1.000", "1.000"]
        assert page.evaluate("window.hit") is None


def test_a_snapshot_is_exported_and_downloaded(opened, store, home, tmp_path):
    with browser.visit(opened, locale="en-GB") as page:
        sign_in(page, home)
        to_data(page)
        page.get_by_role("button", name="Export a snapshot").click()
        page.get_by_text("Train a reward model on it").wait_for()
        (folder,) = (tmp_path / "snapshots").iterdir()
        text = page.locator(".alpaca-data:has(pre)").last.inner_text()
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["sha256"] in text and str(folder) in text
        assert f"{manifest['rankings']} rankings (0 by judges), {manifest['pairs']} pairs" in text
        assert f"alpaca-rlhf reward --inputs.rankings {folder}" in text
        for name in ("rankings.jsonl", "pairs.jsonl", "rankings.csv", "manifest.json"):
            with page.expect_download() as waited:
                page.get_by_role("link", name=name, exact=True).click()
            assert waited.value.suggested_filename == f"{folder.name}-{name}"
            copy = tmp_path / "got"
            waited.value.save_as(copy)
            assert copy.read_bytes() == (folder / name).read_bytes() != b""
        page.get_by_role("button", name="Export a snapshot").click()
        page.get_by_text(folder.name).first.wait_for(state="detached")
    assert len(read_snapshot(folder)) == store.figures().counts["rankings"]
    for line in (folder / "rankings.csv").read_text().splitlines():
        for cell in line.strip('"').split('","'):
            assert not cell.startswith(("=", "+", "-", "@")), "a spreadsheet would run it"


def test_hostile_hostile_textis_shown_as_it_is(opened, store, home):
    """In names, reasons, prompts and words; nothing of it runs, whatever is clicked."""
    hostile = apps.HOSTILE[4]
    store.add_annotator(hostile, PASSWORD, role="admin")
    for language in ("en", "zh-CN"):
        with browser.visit(opened, locale=language) as page:
            sign_in(page, home, hostile)
            assert page.locator(".alpaca-head .user").inner_text() == hostile
            to_data(page, language)
            text = page.locator("body").inner_text()
            for hostile_text in apps.HOSTILE[:5]:
                assert hostile_text in text, hostile_text
            assert "Look: <img src=x onerror=window.hit=1>" in text
            page.locator("button[data-do=password]").first.click()
            page.locator(".alpaca-data .good").wait_for()
            for button in page.locator("button[data-do]").all()[:6]:
                button.hover()
            assert page.evaluate("window.hit") is None
            assert page.locator("img[src=x]").count() == 0


def test_an_admin_reads_what_was_flagged_and_remarked(opened, store, home):
    """The flagged answer itself, a comment and the reason for a skip; who is left out is marked."""
    annotator = store.add_annotator("finder", PASSWORD)
    store.add_sets(apps_sets(3), origin="later")
    task = store.claim(annotator)
    answer = task.completions[1]
    store.flag(annotator, task.id, "harmful", "look here", completion=answer.id)
    store.skip(annotator, store.claim(annotator).id, "I know too little of this")
    task = store.claim(annotator)
    order = tuple((completion.id,) for completion in task.completions)
    store.submit(annotator, task.id, Verdict(order, comment="the second one has a mistake"))
    store.leave_out_person("finder", actor="test")
    with browser.visit(opened, locale="en-GB") as page:
        sign_in(page, home)
        to_data(page)
        flag = page.locator(".flags:not(.remarks) li", has_text="look here")
        assert answer.text in flag.locator("blockquote.answer").inner_text()
        remarks = page.locator(".remarks li").all_inner_texts()
        assert "the second one has a mistake" in remarks[0] and "Comment" in remarks[0]
        assert "I know too little of this" in remarks[1] and "Skipped" in remarks[1]
        people = {row[0]: row for row in rows(page, "People")}
        assert people["finder"][1] == "annotator, left out"


def test_flags_are_paged_resolved_and_retired(opened, store, home):
    annotator = store.add_annotator("finder", PASSWORD)
    store.add_sets(apps_sets(9), origin="later")
    for at in range(9):
        store.flag(annotator, store.claim(annotator).id, "spam", f"number {at}")
    with browser.visit(opened, locale="en-GB") as page:
        sign_in(page, home)
        to_data(page)
        items = page.locator(".flags:not(.remarks):visible li")
        assert items.count() == 10 and "number 8" in items.first.inner_text()
        page.get_by_role("button", name="Older", exact=True).click()
        page.locator(".flags li", has_text="number 8").wait_for(state="detached")
        assert items.count() == 7
        page.get_by_role("button", name="Newest", exact=True).click()
        first = page.locator(".flags li", has_text="number 8")
        first.wait_for()
        first.get_by_role("button", name="Resolve: spam").click()
        first.wait_for(state="detached")
        assert store.figures().counts["flags"] == 16
        second = page.locator(".flags li", has_text="number 7")
        places = store.figures().counts["open_places"]
        second.get_by_role("button", name="Retire the set: spam").click()
        second.wait_for(state="detached")
    assert store.figures().counts["flags"] == 15
    assert store.figures().counts["open_places"] < places


def test_sets_and_people_are_left_out_and_guidelines_written(opened, store, home):
    before = store.figures().counts["rankings"]
    with browser.visit(opened, locale="en-GB") as page:
        sign_in(page, home)
        to_data(page)
        # 1. The set of a flag, and a person; both count no more, and the person counts again.
        page.get_by_role("button", name="Leave out the set:").first.click()
        page.locator(".alpaca-data .good", has_text="no longer count").wait_for()
        assert store.figures().counts["left_out"] == 1
        name = apps.HOSTILE[0]
        rankings = store.figures().counts["rankings"]
        page.get_by_role("button", name=f"Leave out: {name}", exact=True).click()
        again = page.get_by_role("button", name=f"Take in again: {name}", exact=True)
        again.wait_for()
        assert name in store.left_out() and store.figures().counts["rankings"] < rankings <= before
        again.click()
        again.wait_for(state="detached")
        assert store.figures().counts["rankings"] == rankings
        # 2. Guidelines: a hostile text is shown as it is, and Markdown as Markdown.
        page.get_by_role("button", name="Guidelines for annotators").click()
        page.locator("#guidelines-text textarea").fill("**Prefer** true answers. " + HOSTILE_HTML)
        page.get_by_role("button", name="Save a new version").click()
        page.locator(".alpaca-data .good", has_text="Version 1 holds").wait_for()
        # 3. Words that are not saved yet outlive a look at another tab.
        page.locator("#guidelines-text textarea").fill("Prefer short ones.")
        open_tab(page, "rank")
        to_data(page)
        page.get_by_text("Your changes are not saved yet.").wait_for()
        kept = page.locator("#guidelines-text textarea").input_value()
        assert kept == "Prefer short ones."
        page.locator("#guidelines-versions summary", has_text="Version 1").click()
        assert HOSTILE_HTML in page.locator("#guidelines-versions blockquote").inner_text()
        assert page.evaluate("window.hit") is None
    assert store.guidelines().text.startswith("**Prefer**")


@pytest.mark.parametrize(("language", "named"), [("en", "Harmful"), ("zh-CN", "有害内容")])
def test_an_admin_reads_the_reason_that_an_annotator_chose(tmp_path, language, named):
    with Store(tmp_path / "p.db", seed=0) as store:
        ann = store.add_annotator("ann", PASSWORD)
        store.add_sets(apps_sets(2), origin="test")
        for reason in ("harmful", "<of a program>"):
            store.flag(ann, store.claim(ann).id, reason)
        account = Account(ann, "ann", "admin", language)
        services = Services(store, lambda request: account, lambda request: language)
        events = _Events(services, apps.exports(tmp_path), data_view.NO_ROUNDS)
        shown, _ = events.newest_flags(None)
        assert f"<strong>{named}</strong>" in shown and "&lt;of a program&gt;" in shown
        with gr.Blocks():
            browse = Browse(services)
        flagged = store.flagged()[-1].candidate_set
        click = SimpleNamespace(do="open", id=flagged, extra=0)
        assert f" {named}" in browse.open_set(click, None)


def test_unsaved_guidelines_stay_and_earlier_versions_are_listed(tmp_path):
    with Store(tmp_path / "p.db", seed=0) as store:
        account = Account(store.local().id, "local", "admin", "en")
        services = Services(store, lambda request: account, lambda request: "en")
        events = _Events(services, apps.exports(tmp_path), data_view.NO_ROUNDS)
        outcome, loaded, _ = events.save_guidelines("Be kind.", None)
        assert "Version 1" in outcome
        store.set_guidelines("Be <b>brief</b>.", actor="another admin")
        text, loaded, line, versions = events.show_guidelines_of_admin("Be kind.", loaded, None)
        assert text == loaded == "Be <b>brief</b>." and "not saved" not in line
        assert "Be kind." in versions and "Be &lt;b&gt;brief&lt;/b&gt;." in versions
        text, loaded, line, _ = events.show_guidelines_of_admin("Be mine.", loaded, None)
        assert not isinstance(text, str) and loaded == "Be <b>brief</b>."
        assert "not saved yet" in line and "Version 2 holds" in line
        _, loaded, _ = events.save_guidelines(None, None)
        assert loaded == "" and events.show_guidelines_of_admin("", loaded, None)


HOSTILE_HTML = "<img src=x onerror=window.hit=1> <script>window.hit=1</script> ${window.hit=1}"


def test_annotators_see_the_guidelines_above_the_task(opened, store, tmp_path):
    store.set_guidelines("**Prefer** true answers. " + HOSTILE_HTML, actor="test")
    with (
        apps.serving(apps.house(store, tmp_path, real=True)) as home,
        browser.visit(opened, locale="en-GB") as page,
    ):
        sign_in(page, home, "ann")
        page.locator("#guidelines strong", has_text="Prefer").wait_for()
        page.locator(".rank[data-started=yes][aria-busy=false]").wait_for()
        assert page.locator("#guidelines").inner_text().count("${window.hit=1}") == 1
        assert page.evaluate("window.hit") is None
        assert page.locator("#guidelines img[onerror], #guidelines script").count() == 0


def apps_sets(n):
    from tests.databases import candidates

    return candidates(n, tag="later ")


def test_people_are_added_and_changed(opened, store, home):
    with browser.visit(opened, locale="en-GB") as page:
        sign_in(page, home)
        to_data(page)
        page.get_by_role("button", name="Add a person").click()
        page.get_by_label("Name").fill("new one")
        page.get_by_role("button", name="Add", exact=True).click()
        outcome = page.locator(".alpaca-data .good")
        outcome.wait_for()
        password = re.search(r"shown this once: (\S+)", outcome.inner_text())[1]
        new = store.sign_in("new one", password)
        assert new.role == "annotator"
        for do, after in (
            ("Make admin", lambda: store.account(new.id).role == "admin"),
            ("Make annotator", lambda: store.account(new.id).role == "annotator"),
            ("Deactivate", lambda: store.account(new.id) is None),
            ("Activate", lambda: store.account(new.id) is not None),
        ):
            button = page.get_by_role("button", name=f"{do}: new one", exact=True)
            button.click()
            button.wait_for(state="detached")
            assert after(), do
        page.get_by_role("button", name="New password: new one").click()
        page.locator(".alpaca-data .good", has_text="shown this once").wait_for()
        assert store.sign_in("new one", password) is None, "the old one is no good any more"
        assert page.get_by_role("button", name="Deactivate: boss").count() == 0, "not oneself"
        page.get_by_label("Name").fill("new one")
        page.get_by_role("button", name="Add", exact=True).click()
        page.locator(".alpaca-data .bad", has_text="there is an annotator of this name").wait_for()
    with browser.visit(opened, locale="en-GB") as page:
        sign_in(page, home, "ann")
        page.get_by_role("tab", name="Rank").wait_for()
        assert page.get_by_role("tab", name="Data").count() == 0


def test_a_page_whose_session_ended_signs_back_in_and_keeps_its_draft(opened, store, home):
    with browser.visit(opened, locale="en-GB") as page:
        sign_in(page, home, "ann")
        page.locator("#draft textarea").fill("half a thought")
        store.change_annotator(2, password="another word", actor="test")
        page.get_by_role("button", name="Say who").click()
        dialog = page.get_by_role("dialog", name="Your session has ended")
        dialog.wait_for()
        assert not serious(page)
        assert dialog.get_by_label("Name").input_value() == "ann"
        dialog.get_by_label("Password").fill(PASSWORD)
        dialog.get_by_role("button", name="Sign in").click()
        dialog.get_by_text("Name or password is wrong.").wait_for()
        dialog.get_by_label("Password").fill("another word")
        dialog.get_by_role("button", name="Sign in").click()
        dialog.wait_for(state="detached")
        assert page.locator("#draft textarea").input_value() == "half a thought"
        page.get_by_role("button", name="Say who").click()
        page.wait_for_function("document.querySelector('#said textarea').value === 'ann'")


def test_somebody_else_who_signs_in_sees_nothing_of_the_first(opened, shared_home):
    with browser.visit(opened, locale="en-GB") as page:
        sign_in(page, shared_home, "ann")
        page.locator("#draft textarea").fill("half a thought")
        page.context.clear_cookies()
        page.get_by_role("button", name="Say who").click()
        page.get_by_role("dialog").wait_for()
        page.get_by_role("dialog").get_by_label("Name").fill("boss")
        page.get_by_role("dialog").get_by_label("Password").fill(PASSWORD)
        page.get_by_role("dialog").get_by_role("button", name="Sign in").click()
        page.locator(".user", has_text="boss").wait_for()
        page.locator("#draft textarea").wait_for()
        assert page.locator("#draft textarea").input_value() == ""


def test_logging_out(opened, shared_home):
    with browser.visit(opened, locale="en-GB") as page:
        sign_in(page, shared_home, "ann")
        page.get_by_role("button", name="Log out").click()
        page.get_by_role("heading", name="alpaca-rlhf").wait_for()
        page.goto(shared_home)
        assert page.url.endswith("/login")


@pytest.mark.parametrize(("scheme", "language"), [("light", "en-GB"), ("dark", "zh-CN")])
def test_nothing_serious_for_axe(opened, shared_home, scheme, language):
    with browser.visit(
        opened, locale=language, color_scheme=scheme, viewport={"width": 1280, "height": 900}
    ) as page:
        page.goto(shared_home)
        assert not serious(page), "the page to sign in"
        sign_in(page, shared_home)
        to_data(page, language if language == "zh-CN" else "en")
        label = "导出快照" if language == "zh-CN" else "Export a snapshot"
        page.get_by_role("button", name=label).click()
        page.locator(".alpaca-data pre").wait_for()
        # What is new is faint at first.
        page.wait_for_function(
            """() => {
                let node = document.querySelector(".alpaca-data pre");
                while (node && getComputedStyle(node).opacity === "1") node = node.parentElement;
                return node === null;
            }"""
        )
        assert not serious(page)
        assert page.evaluate("document.documentElement.lang") == language[:2] + language[2:] * (
            language == "zh-CN"
        )


def test_a_phone_scrolls_in_one_direction(opened, shared_home):
    size = {"width": 390, "height": 844}
    with browser.visit(opened, locale="en-GB", viewport=size, has_touch=True) as page:
        page.goto(shared_home)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        sign_in(page, shared_home)
        to_data(page)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert not serious(page)


def test_dark_follows_the_system_until_the_switch_is_pressed(opened, shared_home):
    def dark():
        return page.evaluate("document.body.classList.contains('dark')")

    with browser.visit(opened, locale="en-GB", color_scheme="dark") as page:
        sign_in(page, shared_home, "ann")
        assert dark()
        page.emulate_media(color_scheme="light")
        page.wait_for_function("!document.body.classList.contains('dark')")
        switch = page.get_by_role("button", name="Light or dark")
        switch.click()
        assert dark() and switch.get_attribute("aria-pressed") == "true"
        page.reload()
        page.locator("[data-account]").wait_for()
        assert dark(), "it is remembered"
        page.get_by_role("button", name="Light or dark").click()
        assert not dark()


FREQUENT_POLLS = """
const every = window.setInterval;
window.setInterval = (action, ms, ...values) => every(action, ms / 20, ...values);
"""


def test_the_line_about_the_model_and_a_server_that_is_gone(opened, store, tmp_path):
    status = {"en": "loading <b>the base</b>", "zh-CN": "正在加载"}
    app = apps.house(store, tmp_path, status=lambda language: status[language])
    with apps.serving(app) as home, browser.visit(opened, locale="en-GB") as page:
        page.add_init_script(FREQUENT_POLLS)
        sign_in(page, home, "ann")
        line = page.locator("#alpaca-status")
        page.get_by_text("loading <b>the base</b>").wait_for()
        status["en"] = "ready: ppo"
        page.get_by_text("ready: ppo").wait_for()
        page.context.set_offline(True)
        page.locator("#alpaca-status.lost").wait_for()
        assert "No connection" in line.inner_text()
        page.context.set_offline(False)
        page.get_by_text("ready: ppo").wait_for()


def test_an_admin_finds_a_set_and_reads_all_that_was_said(opened, store, home):
    annotator = store.add_annotator("finder", PASSWORD)
    store.add_sets(apps_sets(1), origin="later")
    task = store.claim(annotator)
    order = tuple((completion.id,) for completion in task.completions)
    comment = f"mind the gap {apps.HOSTILE[0]}"
    store.submit(annotator, task.id, Verdict(order, comment=comment))
    with browser.visit(opened, locale="en-GB") as page:
        sign_in(page, home)
        to_data(page)
        page.get_by_role("button", name="Browse and search").click()
        page.locator("#browse-words input, #browse-words textarea").first.fill("MIND the gap")
        page.get_by_role("button", name="Find", exact=True).click()
        found = page.locator("#browse-found li")
        found.filter(has_text="comments: 1").wait_for()
        assert found.count() == 1
        found.get_by_role("button", name="Open").click()
        said = page.locator("#browse-open .statements li")
        said.first.wait_for()
        assert comment in said.inner_text() and "finder" in said.inner_text()
        answers = page.locator("#browse-open ol.answers li")
        assert answers.count() == 4 and task.completions[0].text in "".join(
            answers.all_inner_texts()
        )
        page.locator("#browse-open").get_by_role("button", name="Leave out the set").click()
        page.locator("#browse-open").get_by_role("button", name="Take the set in again").wait_for()
        assert store.figures().counts["left_out"] == 1
        assert page.evaluate("window.hit") is None
        assert serious(page) == []
