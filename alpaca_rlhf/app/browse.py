"""Browsing on the Data tab: sets found by what was said, and one of them with all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from alpaca_rlhf.app.clicks import clicked
from alpaca_rlhf.app.data_view import reason_names
from alpaca_rlhf.app.language import label, translations
from alpaca_rlhf.app.rendering import render
from alpaca_rlhf.app.sections import PLAIN_HTML
from alpaca_rlhf.app.services import Services
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.preferences.assignment import Refused
from alpaca_rlhf.preferences.browsing import MAX_SEARCH_CHARS, STATES, SetFilter

SETS_PER_PAGE = 20
LETTERS = "ABCDEFGHI"
"""Names of the answers of an open set, in the order in which the set holds them."""
_CLICKS = (Path(__file__).parent / "static" / "clicks.js").read_text(encoding="utf-8")

_SHOW_OPENED = """() => {
  const title = document.querySelector('#browse-open h3');
  title?.scrollIntoView({block: 'start'});
  title?.focus({preventScroll: true});
}"""


class Browse:
    """A search, its list, and an open set; made within `gr.Blocks` by an admin's tab.

    Args:
        services: Store, accounts and language.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._store = services.store
        with gr.Accordion(label("data", "browse"), open=False, elem_id="browse"):
            query = gr.Textbox(
                label=label("data", "browse.words"),
                info=label("data", "browse.words.info"),
                max_lines=1,
                max_length=MAX_SEARCH_CHARS,
                elem_id="browse-words",
            )
            with gr.Row():
                state = gr.Dropdown(
                    [(label("data", f"browse.state.{state}"), state) for state in STATES],
                    value="any",
                    label=label("data", "browse.state"),
                    elem_id="browse-state",
                    min_width=160,
                )
                self.person = gr.Dropdown(
                    [],
                    value=None,
                    label=label("data", "browse.person"),
                    elem_id="browse-person",
                    min_width=160,
                )
            small: dict[str, Any] = {"size": "sm", "scale": 0, "min_width": 120}
            with gr.Row():
                find = gr.Button(label("data", "browse.find"), **small)
                older = gr.Button(label("data", "browse.older"), **small)
            listing = gr.HTML(js_on_load=_CLICKS, elem_id="browse-found", **PLAIN_HTML)
            oldest = gr.State(None)
            opened = gr.HTML(js_on_load=_CLICKS, elem_id="browse-open", **PLAIN_HTML)
        fields = [query, state, self.person]
        private: dict[str, Any] = {"api_visibility": "private"}
        page = [listing, oldest, opened]
        gr.on([find.click, query.submit, state.input, self.person.input],
              self.find_sets, fields, page, **private)  # fmt: skip
        older.click(self.older_sets, [*fields, oldest], page, **private)
        opening = listing.submit(self.open_set, None, opened, **private)
        opening.then(None, None, None, js=_SHOW_OPENED, **private)
        opened.submit(self.change_set, None, opened, **private)

    def names(self) -> Any:
        """The people and judges to choose from."""
        return gr.update(choices=["", *(person.name for person in self._store.figures().people)])

    def find_sets(
        self, query: Any, state: Any, person: Any, request: gr.Request
    ) -> tuple[str, int | None, str]:
        """The newest sets that were looked for."""
        return self._page(query, state, person, None, request)

    def older_sets(
        self, query: Any, state: Any, person: Any, oldest: Any, request: gr.Request
    ) -> tuple[str, int | None, str]:
        """The next page; after the last one the first."""
        return self._page(query, state, person, oldest, request)

    def open_set(self, event: gr.EventData, request: gr.Request) -> str:
        """One set with all that was said of it."""
        _, number, _ = clicked(event)
        return self._opened(number, request)

    def change_set(self, event: gr.EventData, request: gr.Request) -> str:
        """Leave out the open set, take it in again, or retire it."""
        action, number, _ = clicked(event)
        actor = f"annotator:{self._services.account(request).id}"
        text = self._text(request)
        try:
            if action == "retire":
                self._store.retire(number, actor=actor)
            elif action in ("leave_out", "take_in"):
                self._store.leave_out_set(number, actor=actor, undo=action == "take_in")
            else:
                raise UserError(action)
        except (Refused, UserError) as refused:
            why = text["outcome.refused"].format(why=refused)
            return render("data_outcome", message=why, kind="bad")
        return self._opened(number, request)

    def _page(
        self, query: Any, state: Any, person: Any, before: Any, request: gr.Request
    ) -> tuple[str, int | None, str]:
        filter_ = SetFilter(
            str(query or "")[:MAX_SEARCH_CHARS],
            state if state in STATES else "any",
            str(person or ""),
        )
        before = before if type(before) is int else None
        sets = self._store.sets(filter_, before=before, n=SETS_PER_PAGE)
        oldest = sets[-1].id if len(sets) == SETS_PER_PAGE else None
        return render("data_sets", sets=sets, text=self._text(request)), oldest, ""

    def _opened(self, number: int, request: gr.Request) -> str:
        text = self._text(request)
        try:
            opened = self._store.opened_set(number)
        except Refused as refused:
            why = text["outcome.refused"].format(why=refused)
            return render("data_outcome", message=why, kind="bad")
        letters = {answer.id: LETTERS[at] for at, answer in enumerate(opened.answers)}
        reasons = reason_names(self._services.language(request))
        return render("data_set", set=opened, letters=letters, reasons=reasons, text=text)

    def _text(self, request: gr.Request) -> dict[str, str]:
        return translations("data", self._services.language(request))
