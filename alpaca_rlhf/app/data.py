"""The Data tab, for admins: what there is, how good it is, who made it, and a snapshot of it."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gradio as gr

from alpaca_rlhf.app import views
from alpaca_rlhf.app.language import label, words
from alpaca_rlhf.app.services import Services
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.preferences.assignment import Refused
from alpaca_rlhf.preferences.people import Account, Role

PAGE = 10
"""Flags on a page."""
PASSWORD_BYTES = 12
"""Random bytes of a password that is made here."""

_CLICKS = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-do]');
  if (!button) return;
  trigger('submit', {
    do: button.dataset.do, id: Number(button.dataset.id), extra: Number(button.dataset.extra),
  });
});
"""


@dataclass(frozen=True)
class Exports:
    """Where snapshots go, and what is done with them."""

    folder: Path
    """Each snapshot gets a folder of its own in it."""
    command: Callable[[Path], str]
    """The command that trains a reward model on a snapshot."""
    own_files: bool
    """Whether that command has places for files of the user's own."""


def data_tab(services: Services, exports: Exports) -> Callable[[gr.Tab], None]:
    """Build the tab; call it within `gr.Blocks`.

    Args:
        services: What every tab is given.
        exports: Where snapshots go.

    Returns:
        What is to be told of the `gr.Tab` around it: the figures are read when that opens.
    """
    actor = Desk(services, exports)
    kind: dict[str, Any] = {"apply_default_css": False, "elem_classes": ["alpaca-data"]}
    with gr.Row():
        refresh = gr.Button(label("data", "refresh"), size="sm", scale=0, min_width=120)
    figures, scores = gr.HTML(**kind), gr.HTML(**kind)
    intro = gr.HTML(**kind)
    with gr.Row():
        export = gr.Button(label("data", "export.do"), variant="primary", scale=0, min_width=200)
    exported = gr.HTML(**kind)
    flags = gr.HTML(js_on_load=_CLICKS, **kind)
    oldest = gr.State(None)
    with gr.Row():
        newest = gr.Button(label("data", "flag.newest"), size="sm", scale=0, min_width=120)
        older = gr.Button(label("data", "flag.older"), size="sm", scale=0, min_width=120)
    people = gr.HTML(js_on_load=_CLICKS, **kind)
    with gr.Accordion(label("data", "add"), open=False):
        with gr.Row():
            name = gr.Textbox(label=label("data", "name"), max_lines=1, max_length=80)
            password = gr.Textbox(
                label=label("data", "add.password"),
                info=label("data", "add.password.info"),
                type="password",
                max_length=1000,
                html_attributes=gr.InputHTMLAttributes(autocomplete="new-password"),
            )
            role = gr.Radio(
                [
                    (label("data", "role.annotator"), "annotator"),
                    (label("data", "role.admin"), "admin"),
                ],
                value="annotator",
                label=label("data", "role"),
            )
        add = gr.Button(label("data", "add.do"))
    said = gr.HTML(**kind)

    quiet: dict[str, Any] = {"api_visibility": "private"}
    everything = [figures, scores, intro, flags, oldest, people]
    refresh.click(actor.everything, None, everything, **quiet)
    export.click(actor.export, None, exported, **quiet)
    newest.click(actor.newest_flags, None, [flags, oldest], **quiet)
    older.click(actor.older_flags, oldest, [flags, oldest], **quiet)
    flags.submit(actor.flag, None, [said, *everything], **quiet)
    people.submit(actor.person, None, [said, people], **quiet)
    add.click(actor.add, [name, password, role], [said, people, name, password], **quiet)

    def opened(tab: gr.Tab) -> None:
        tab.select(actor.everything, None, everything, **quiet)

    return opened


class Desk:
    """What an admin does on the tab. That it is an admin has been asked before each call.

    Args:
        services: What every tab is given.
        exports: Where snapshots go.
    """

    def __init__(self, services: Services, exports: Exports) -> None:
        self._services = services
        self._store = services.store
        self._exports = exports

    def everything(self, request: gr.Request) -> tuple[Any, ...]:
        """All that is shown."""
        says, me = self._says(request), self._services.account(request)
        found = self._store.figures()
        people = views.people(found.people, says, local=self._local(me), me=me.id)
        shown, last = self.newest_flags(request)
        scores = views.scores(self._store.scores(), says)
        return views.figures(found, says), scores, views.intro(says), shown, last, people

    def newest_flags(self, request: gr.Request) -> tuple[str, int | None]:
        """The first page of the flags."""
        return self._flags(None, request)

    def older_flags(self, oldest: int | None, request: gr.Request) -> tuple[str, int | None]:
        """The next page; after the last one the first."""
        return self._flags(oldest, request)

    def export(self, request: gr.Request) -> str:
        """Write a snapshot and tell what is in it."""
        says = self._says(request)
        now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        folder = self._exports.folder / f"{now}-{secrets.token_hex(2)}"
        try:
            made = self._store.export(folder)
        except UserError as error:
            return views.message(says["export.failed"].format(why=error), good=False)
        command, own = self._exports.command(folder), self._exports.own_files
        return views.exported(made, folder, command, own, says)

    def flag(self, sent: gr.EventData, request: gr.Request) -> tuple[Any, ...]:
        """Resolve a flag, or retire its set."""
        says, me = self._says(request), self._services.account(request)
        do, number, extra = _read(sent)
        actor = f"annotator:{me.id}"
        try:
            if do == "retire":
                self._store.retire(extra, actor=actor)
            elif do != "resolve":
                raise Refused("bad_value", do)
            self._store.resolve(number, actor=actor)
            told = views.message(says[f"done.{do}"])
        except Refused as refused:
            told = views.message(says["said.refused"].format(why=refused), good=False)
        return told, *self.everything(request)

    def person(self, sent: gr.EventData, request: gr.Request) -> tuple[str, str]:
        """Change somebody."""
        says, me = self._says(request), self._services.account(request)
        do, number, _ = _read(sent)
        if number in self._local(me) or (number == me.id and do != "password"):
            return views.message(says["said.not_you"], good=False), self._people(request)
        password = secrets.token_urlsafe(PASSWORD_BYTES)
        changes: dict[str, dict[str, Any]] = {
            "off": {"active": False},
            "on": {"active": True},
            "admin": {"role": "admin"},
            "annotator": {"role": "annotator"},
            "password": {"password": password},
        }
        try:
            who = next((one for one in self._store.figures().people if one.id == number), None)
            if do not in changes or who is None or who.role == "judge":
                raise UserError(do)
            self._store.change_annotator(number, actor=f"annotator:{me.id}", **changes[do])
        except UserError as error:
            told = views.message(says["said.refused"].format(why=error), good=False)
            return told, self._people(request)
        line = "said.password" if do == "password" else "said.changed"
        told = views.message(says[line].format(name=who.name, password=password))
        return told, self._people(request)

    def add(
        self, name: str, password: str, role: Role, request: gr.Request
    ) -> tuple[str, str, str, str]:
        """Add somebody who may sign in."""
        says, me = self._says(request), self._services.account(request)
        made = password or secrets.token_urlsafe(PASSWORD_BYTES)
        try:
            if role not in ("annotator", "admin"):
                raise UserError(str(role))
            if role != "admin" and not self._store.any_accounts():
                return views.message(says["add.first"], good=False), self._people(request), name, ""
            language = self._services.language(request)
            actor = f"annotator:{me.id}"
            self._store.add_annotator(name, made, role=role, lang=language, actor=actor)
        except UserError as error:
            told = views.message(says["said.refused"].format(why=error), good=False)
            return told, self._people(request), name, ""
        line = says["said.added"] if password else says["said.password"]
        told = views.message(line.format(name=name.strip(), password=made))
        return told, self._people(request) if self._may_go_on(request) else "", "", ""

    def _may_go_on(self, request: gr.Request) -> bool:
        """After the first account was added, who was here without one must sign in."""
        try:
            self._services.account(request)
        except gr.Error:
            return False
        return True

    def _flags(self, before: int | None, request: gr.Request) -> tuple[str, int | None]:
        found = self._store.flagged(before=before, n=PAGE)
        last = found[-1].id if len(found) == PAGE else None
        return views.flags(found, self._says(request)), last

    def _people(self, request: gr.Request) -> str:
        says, me = self._says(request), self._services.account(request)
        return views.people(self._store.figures().people, says, local=self._local(me), me=me.id)

    def _local(self, me: Account) -> list[int]:
        """Who works here without an account; nothing of it can be changed."""
        return [] if self._store.stamped(me.id) else [me.id]

    def _says(self, request: gr.Request) -> dict[str, str]:
        return words("data", self._services.language(request))


def _read(sent: gr.EventData) -> tuple[str, int, int]:
    """What a button sends; anything else does nothing."""
    try:
        return str(sent.do), int(sent.id), int(sent.extra)
    except (AttributeError, ValueError, TypeError):
        return "", 0, 0
