"""The form of who ranks what on the Data tab: the overlap, and whose sets somebody gets."""

from __future__ import annotations

from typing import Any

import gradio as gr

from alpaca_rlhf.app.language import label, translations
from alpaca_rlhf.app.rendering import render
from alpaca_rlhf.app.sections import PLAIN_HTML
from alpaca_rlhf.app.services import Services
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.preferences.assignment import MAX_OVERLAP, Overlap

TASKS = ("all", "some", "none")
"""Tasks that somebody gets: of all origins, of some, or none at all."""


class HandingOut:
    """The form of the overlap and that of one person's tasks, within an admin's tab.

    Args:
        services: Store, accounts and language.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._store = services.store
        with gr.Accordion(label("data", "handing"), open=False, elem_id="handing"):
            # 1. The overlap.
            with gr.Row():
                percent = gr.Number(
                    label=label("data", "handing.share"),
                    info=label("data", "handing.share.info"),
                    minimum=0,
                    maximum=100,
                    elem_id="handing-share",
                    min_width=160,
                )
                people = gr.Number(
                    value=2,  # until `show`: an empty field reads 0, and that is refused
                    label=label("data", "handing.people"),
                    info=label("data", "handing.people.info"),
                    minimum=2,
                    maximum=MAX_OVERLAP,
                    precision=0,
                    elem_id="handing-people",
                    min_width=160,
                )
            save_overlap = gr.Button(label("data", "handing.save"), elem_id="handing-save")
            # 2. The tasks of one person.
            with gr.Row():
                person = gr.Dropdown(
                    [], value=None, label=label("data", "handing.person"), elem_id="handing-person"
                )
                tasks = gr.Radio(
                    [(label("data", f"handing.tasks.{key}"), key) for key in TASKS],
                    value="all",
                    label=label("data", "handing.tasks"),
                    elem_id="handing-tasks",
                )
            origins = gr.CheckboxGroup(
                [], label=label("data", "handing.origins"), elem_id="handing-origins"
            )
            save_person = gr.Button(label("data", "handing.save_person"), elem_id="handing-limit")
            limited = gr.HTML(elem_id="handing-limited", **PLAIN_HTML)
            outcome = gr.HTML(elem_id="handing-outcome", **PLAIN_HTML)
        self.fields = [percent, people, person, origins, limited, outcome]
        private: dict[str, Any] = {"api_visibility": "private"}
        save_overlap.click(self.save_overlap, [percent, people], outcome, **private)
        chosen = [person, tasks, origins]
        save_person.click(self.save_origins, chosen, [limited, outcome], **private)

    def show(self, request: gr.Request) -> tuple[Any, ...]:
        """The values of `fields` as they are now."""
        overlap = self._store.overlap()
        names = [each.name for each in self._store.figures().people if each.role != "judge"]
        sets = [(f"{origin.name} ({origin.sets:,})", origin.name)
                for origin in self._store.origins()]  # fmt: skip
        return (
            round(overlap.share * 100, 1),
            overlap.people,
            gr.update(choices=names),
            gr.update(choices=sets),
            self._limited(request),
            "",
        )

    def save_overlap(self, percent: Any, people: Any, request: gr.Request) -> str:
        """Change the overlap."""
        text, actor = self._text(request), self._actor(request)
        try:
            changed = self._store.set_overlap(_overlap(percent, people), actor=actor)
        except UserError as error:
            return _outcome(text["outcome.refused"].format(why=error), good=False)
        return _outcome(text["handing.saved"].format(n=f"{changed:,}"))

    def save_origins(
        self, name: Any, tasks: Any, origins: Any, request: gr.Request
    ) -> tuple[str, str]:
        """Change the origins of the sets that somebody gets."""
        text, actor = self._text(request), self._actor(request)
        try:
            if tasks not in TASKS or not isinstance(name, str) or not name:
                raise UserError(text["handing.nobody"])
            chosen = [str(origin) for origin in origins or ()]
            if tasks == "some" and not chosen:
                raise UserError(text["handing.no_origin"])
            names = {"all": None, "some": chosen, "none": []}[tasks]
            self._store.set_origins(name, names, actor=actor)
        except UserError as error:
            why = text["outcome.refused"].format(why=error)
            return self._limited(request), _outcome(why, good=False)
        return self._limited(request), _outcome(text["handing.limited"].format(name=name))

    def _limited(self, request: gr.Request) -> str:
        return render("data_limits", limits=self._store.limits(), text=self._text(request))

    def _actor(self, request: gr.Request) -> str:
        return f"annotator:{self._services.account(request).id}"

    def _text(self, request: gr.Request) -> dict[str, str]:
        return translations("data", self._services.language(request))


def _overlap(percent: Any, people: Any) -> Overlap:
    """The overlap of two fields; one that is refused for anything but numbers."""
    try:
        return Overlap(float(percent) / 100, int(people))
    except (TypeError, ValueError, OverflowError):
        return Overlap(-1.0, 0)


def _outcome(message: str, *, good: bool = True) -> str:
    return render("data_outcome", message=message, kind="good" if good else "bad")
