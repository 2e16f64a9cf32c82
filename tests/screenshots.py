"""Pictures of every tab, to be looked at: `python -m tests.screenshots OUT`.

Light, dark, on a phone of 390 px and in Chinese; with what the tests fill in.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from alpaca_rlhf.preferences import passwords
from alpaca_rlhf.preferences.assignment import Rules
from alpaca_rlhf.preferences.store import Store
from alpaca_rlhf.ui.app.language import words
from tests import apps
from tests.browser import browser, visit
from tests.databases import candidates

LOOKS: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "has_touch": True},
    "zh-CN": {"viewport": {"width": 1280, "height": 900}, "locale": "zh-CN"},
}


READY = {"data": ".alpaca-data td:visible"}
"""What a tab shows once it is filled."""


def open_tab(page: Any, key: str, language: str = "en") -> None:
    """Go to a tab; on a phone it may lie behind the menu of those that do not fit."""
    name = words("shell", language)[key]
    tab = page.get_by_role("tab", name=name, exact=True)
    tab.first.wait_for(state="attached")
    if not tab.first.is_visible():
        page.locator(".overflow-menu > button").click()
        page.locator(".overflow-dropdown button", has_text=name).click()
        return
    tab.first.click()


def take(app: Any, out: Path, keys: list[str], *, password: str = "") -> list[Path]:
    """A picture of each tab in each look, and of the page to sign in where there is one.

    Args:
        app: What `server.make` made.
        out: Folder.
        keys: Tabs.
        password: Of `boss`, where one must sign in.
    """
    out.mkdir(parents=True, exist_ok=True)
    made = []
    with apps.serving(app) as home, browser() as opened:
        for look, options in LOOKS.items():
            language = options.get("locale", "en")
            with visit(opened, **{"locale": "en-GB", **options}) as page:
                page.goto(home)
                if password:
                    page.get_by_label(words("shell", language)["login.name"]).wait_for()
                    made.append(_shot(page, out / f"login-{look}.png"))
                    page.fill("#name", "boss")
                    page.fill("#password", password)
                    page.click("button")
                page.locator("[data-account]").wait_for()
                for key in keys:
                    open_tab(page, key, language)
                    page.locator(READY.get(key, "[role=tabpanel]:visible")).first.wait_for()
                    made.append(_shot(page, out / f"{key}-{look}.png"))
    return made


def _shot(page: Any, path: Path) -> Path:
    page.screenshot(path=path, full_page=True)
    return path


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
    main(Path(sys.argv[1]))
