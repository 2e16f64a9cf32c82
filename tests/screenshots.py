"""Pictures of every tab, to be looked at: `python -m tests.screenshots OUT [RUN]`.

Light, dark, on a phone of 390 px and in Chinese; with what the tests fill in, or of a run.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from alpaca_rlhf.app import server
from alpaca_rlhf.app.language import translations
from alpaca_rlhf.app.new_run import Offer
from alpaca_rlhf.app.new_run_page import NewRuns
from alpaca_rlhf.app.run_choice import RunChoice
from alpaca_rlhf.app.tabs import tabs
from alpaca_rlhf.app.training import TrainingCommand
from alpaca_rlhf.core.bases import EMBEDDED, SMOLLM2
from alpaca_rlhf.preferences import passwords
from alpaca_rlhf.preferences.assignment import Rules
from alpaca_rlhf.preferences.store import Store
from alpaca_rlhf.serving import run_contents
from alpaca_rlhf.sources.sampled import queue_sampled
from tests import apps
from tests.browser import browser, visit
from tests.databases import candidates

LOOKS: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "has_touch": True},
    "zh-CN": {"viewport": {"width": 1280, "height": 900}, "locale": "zh-CN"},
}


READY = {
    "train": ".train[data-filled] .stages",
    "data": ".alpaca-data td:visible",
    "rank": ".rank[data-started=yes][aria-busy=false]",
}
"""The part of a tab that is there once it is filled."""


QUESTIONS = {
    EMBEDDED: ("Name the colour of the lemon.", "What does the dog say?"),
    SMOLLM2: (
        "Why do cats purr? Answer in exactly two sentences.",
        "Give me three reasons to learn the piano, as a bulleted list.",
    ),
}
"""Questions for the chat, by the base; a run of any other base is asked those of SmolLM2."""


def _chat(page: Any, base: str) -> None:
    for text in QUESTIONS.get(base, QUESTIONS[SMOLLM2]):
        page.locator("#chat-send:enabled").wait_for()
        page.locator("#chat-box textarea").fill(text)
        page.keyboard.press("Enter")
        page.locator("#chat-log .message.user", has_text=text).wait_for()
        page.locator("#chat-stop:disabled").wait_for()
    page.locator("#chat-send:enabled").wait_for()


def _compare(page: Any, base: str) -> None:
    page.locator("#compare-draw").click()
    page.wait_for_function("document.querySelector('#compare-box textarea').value !== ''")
    page.locator("#compare-ask").click()
    page.locator("#compare-tie:enabled").wait_for()
    page.locator("#compare-left").click()
    page.locator("#compare-scores td").first.wait_for()


def _data(page: Any, base: str) -> None:
    page.locator("#handing > button").click()
    if page.locator(".prompt-upload summary").count():
        page.locator(".prompt-upload summary").click()
        page.fill("#upload-text", "Why is the sky blue?\nWrite a haiku about rain.")
        page.locator("[data-upload=check]").click()
        page.locator("[data-upload=add]").wait_for()


def _train(page: Any, base: str) -> None:
    box = page.locator(".new-run-box details summary")
    if box.count():
        box.first.click()


ACT = {"chat": _chat, "compare": _compare, "data": _data, "train": _train}
"""The actions in a tab before its picture is taken, given the base."""


def open_tab(page: Any, key: str, language: str = "en") -> None:
    """Go to a tab; on a phone it may lie behind the menu of those that do not fit."""
    name = translations("shell", language)[key]
    tab = page.get_by_role("tab", name=name, exact=True, include_hidden=True)
    menu = page.locator(".overflow-menu > button")
    tab.first.or_(menu.locator("visible=true")).first.wait_for(state="attached")
    if not (tab.count() and tab.first.is_visible()):
        menu.click()
        page.locator(".overflow-dropdown button", has_text=name).click()
        return
    tab.first.click()


def take(
    app: Any, out: Path, keys: list[str], *, password: str = "", base: str = EMBEDDED
) -> list[Path]:
    """A picture of each tab in each look, and of the page to sign in where there is one.

    Args:
        app: What `server.build_app` made.
        out: Folder.
        keys: Tabs.
        password: Of `boss`, where one must sign in.
        base: The base that the app is on.
    """
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    with apps.serving(app) as home, browser() as opened:
        for look, options in LOOKS.items():
            language = options.get("locale", "en")
            with visit(opened, **{"locale": "en-GB", **options}) as page:
                page.set_default_timeout(120_000)
                page.goto(home)
                if password:
                    page.get_by_label(translations("shell", language)["login.name"]).wait_for()
                    paths.append(_shot(page, out / f"login-{look}.png"))
                    page.fill("#name", "boss")
                    page.fill("#password", password)
                    page.click("button")
                page.locator("[data-account]").wait_for()
                for key in keys:
                    open_tab(page, key, language)
                    page.locator(READY.get(key, "[role=tabpanel]:visible")).first.wait_for()
                    if key in ACT:
                        ACT[key](page, base)
                    paths.append(_shot(page, out / f"{key}-{look}.png"))
    return paths


def _shot(page: Any, path: Path) -> Path:
    page.screenshot(path=path, full_page=True)
    return path


def of_run(out: Path, run: Path) -> None:
    """Photograph the app of a run, with what is in its database."""
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "p.db") as store:
        queue_sampled(run, store)
        command = TrainingCommand([], f"alpaca-rlhf loop --out {run}")
        new_runs = NewRuns(store, RunChoice(run), Offer(), closed=None, switch=lambda switch: None)
        app_tabs = tabs(
            store,
            run,
            apps.exports(Path(folder) / "snapshots"),
            refill="",
            command=command,
            new_runs=new_runs,
        )
        deployment = server.Deployment(f"runs/{run.name}", Path(folder), ["localhost"], True)
        app = server.build_app(
            store,
            apps.SECRET,
            app_tabs.tabs,
            deployment,
            status=app_tabs.worker.status,
            own_routes=app_tabs.routes(),
        )
        try:
            base = run_contents.settings_of(run).base
            for path in take(app, out, ["chat", "compare", "rank", "train", "data"], base=base):
                sys.stdout.write(f"{path}\n")
        finally:
            app_tabs.close()


def main(out: Path) -> None:
    """Fill a store and photograph the app."""
    passwords.LOG_N = 4
    with (
        tempfile.TemporaryDirectory() as folder,
        Store(Path(folder) / "p.db", rules=Rules(second_share=1, gold_rate=0), seed=0) as store,
    ):
        store.add_annotator("boss", "long enough", role="admin")
        apps.fill(store)
        store.add_sets(candidates(20), origin="to be ranked")
        app = apps.house(store, Path(folder), real=True)
        keys = ["rank", "data"]
        for path in take(app, out, keys, password="long enough"):
            sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        of_run(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        main(Path(sys.argv[1]))
