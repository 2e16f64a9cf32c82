"""The Data tab, for admins: figures and their quality, snapshots, flags and people."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gradio as gr

from alpaca_rlhf.app import data_view
from alpaca_rlhf.app.browse import Browse
from alpaca_rlhf.app.clicks import clicked
from alpaca_rlhf.app.handing_out import HandingOut
from alpaca_rlhf.app.language import label, translations
from alpaca_rlhf.app.rendering import render
from alpaca_rlhf.app.sections import PLAIN_HTML, scripted_section
from alpaca_rlhf.app.services import Services
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.preferences.assignment import MIN_GOLD_ASKED, Refused
from alpaca_rlhf.preferences.guidelines import MAX_GUIDELINE_CHARS
from alpaca_rlhf.preferences.people import MAX_NAME_CHARS, MAX_PASSWORD_CHARS, Account, Role

FLAGS_PER_PAGE = 10
REMARKS_PER_PAGE = 10
"""Comments, and as many reasons for skips."""
PASSWORD_BYTES = 12
"""Random bytes of a password that is made here."""

DEFAULT_GOLD_PERCENT = 70
"""Share of gold questions that the form suggests."""

_LEAVING_OUT = ("leave_out", "take_in")
"""Actions on the rankings of somebody, who need not have an account."""
_CLICKS = (Path(__file__).parent / "static" / "clicks.js").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Exports:
    """The place of snapshots, and the command that trains on one."""

    folder: Path
    """Each snapshot gets a folder of its own in it."""
    command: Callable[[Path], str]
    """The command that trains a reward model on a snapshot."""
    own_files: Callable[[], bool]
    """True if that command has placeholders for files of the user's own, as before any training."""


def data_tab(
    services: Services,
    exports: Exports,
    rounds: data_view.Rounds = data_view.NO_ROUNDS,
    *,
    upload: bool = False,
) -> Callable[[gr.Tab], None]:
    """Build the tab; call it within `gr.Blocks`.

    Args:
        services: Store, accounts and language.
        exports: Where snapshots go.
        rounds: How far the rounds of the run are.
        upload: Show the form that adds prompts to rank, whose routes are those of `PromptUpload`.

    Returns:
        A function of the `gr.Tab` around it: the figures are read when that opens.
    """
    events = _Events(services, exports, rounds)
    # Without padding, so that texts and Gradio's own buttons stand in one line.
    small: dict[str, Any] = {"size": "sm", "scale": 0, "min_width": 120}
    # 1. The figures.
    with gr.Row():
        refresh = gr.Button(label("data", "refresh"), **small)
    figures, scores = gr.HTML(**PLAIN_HTML), gr.HTML(**PLAIN_HTML)
    # 2. Snapshots.
    intro = gr.HTML(**PLAIN_HTML)
    with gr.Row():
        export = gr.Button(label("data", "export.do"), variant="primary", scale=0, min_width=200)
    exported = gr.HTML(**PLAIN_HTML)
    # 3. Flags.
    flags = gr.HTML(js_on_load=_CLICKS, **PLAIN_HTML)
    oldest = gr.State(None)
    with gr.Row():
        newest = gr.Button(label("data", "flag.newest"), **small)
        older = gr.Button(label("data", "flag.older"), **small)
    # 4. What people wrote.
    remarks = gr.HTML(js_on_load=_CLICKS, **PLAIN_HTML)
    oldest_remarks = gr.State((None, None))
    with gr.Row():
        newest_remarks = gr.Button(label("data", "remark.newest"), **small)
        older_remarks = gr.Button(label("data", "remark.older"), **small)
    # 5. Prompts to rank.
    if upload:
        scripted_section("prompt-upload", "prompt_upload", css_class="prompt-upload-box")
    # 6. All sets.
    browse = Browse(services)
    # 7. Who ranks what, and people.
    handing_out = HandingOut(services)
    people = gr.HTML(js_on_load=_CLICKS, **PLAIN_HTML)
    with gr.Accordion(label("data", "add"), open=False):
        with gr.Row():
            name = gr.Textbox(label=label("data", "name"), max_lines=1, max_length=MAX_NAME_CHARS)
            password = gr.Textbox(
                label=label("data", "add.password"),
                info=label("data", "add.password.info"),
                type="password",
                max_length=MAX_PASSWORD_CHARS,
                html_attributes=gr.InputHTMLAttributes(autocomplete="new-password"),
            )
            role = gr.Radio(
                [(label("data", f"role.{key}"), key) for key in ("annotator", "admin")],
                value="annotator",
                label=label("data", "role"),
            )
        add = gr.Button(label("data", "add.do"))
    with gr.Accordion(label("data", "below"), open=False, elem_id="below-gold"):
        with gr.Row():
            share = gr.Number(
                value=DEFAULT_GOLD_PERCENT,
                label=label("data", "below.share"),
                minimum=0,
                maximum=100,
                elem_id="below-gold-share",
                min_width=160,
            )
            questions = gr.Number(
                value=MIN_GOLD_ASKED,
                label=label("data", "below.asked"),
                info=label("data", "below.asked.info"),
                minimum=1,
                precision=0,
                elem_id="below-gold-asked",
                min_width=160,
            )
        leave_out = gr.Button(label("data", "below.do"), elem_id="below-gold-do")
    outcome = gr.HTML(**PLAIN_HTML)
    # 8. Guidelines.
    with gr.Accordion(label("data", "guidelines"), open=False):
        guidelines = gr.Textbox(
            label=label("data", "guidelines.text"),
            info=label("data", "guidelines.info"),
            lines=8,
            max_lines=30,
            max_length=MAX_GUIDELINE_CHARS,
            elem_id="guidelines-text",
        )
        save = gr.Button(label("data", "guidelines.save"))
        saved = gr.HTML(**PLAIN_HTML)
        versions = gr.HTML(elem_id="guidelines-versions", **PLAIN_HTML)
        loaded = gr.State("")  # the text that the field was given; another one is not saved yet

    private: dict[str, Any] = {"api_visibility": "private"}
    contents = [figures, scores, intro, flags, oldest, remarks, oldest_remarks, people]
    pages = [remarks, oldest_remarks]
    newest_remarks.click(events.newest_remarks, None, pages, **private)
    older_remarks.click(events.older_remarks, oldest_remarks, pages, **private)
    refresh.click(events.refresh, None, contents, **private)
    export.click(events.export, None, exported, **private)
    newest.click(events.newest_flags, None, [flags, oldest], **private)
    older.click(events.older_flags, oldest, [flags, oldest], **private)
    flags.submit(events.handle_flag, None, [outcome, *contents], **private)
    changed = people.submit(events.change_person, None, [outcome, people], **private)
    changed.then(events.refresh, None, contents, **private)
    leave_out.click(events.leave_out_below, [share, questions], [outcome, *contents], **private)
    added = [outcome, people, name, password]
    add.click(events.add_person, [name, password, role], added, **private)
    remarks.submit(events.leave_out_set, None, [outcome, *contents], **private)
    save.click(events.save_guidelines, guidelines, [saved, loaded, versions], **private)

    def refresh_on_open(tab: gr.Tab) -> None:
        tab.select(events.refresh, None, contents, **private)
        tab.select(browse.names, None, browse.person, **private)
        tab.select(handing_out.show, None, handing_out.fields, **private)
        guideline_fields = [guidelines, loaded, saved, versions]
        tab.select(
            events.show_guidelines_of_admin, [guidelines, loaded], guideline_fields, **private
        )

    return refresh_on_open


class _Events:
    """The event handlers. The guard of the page has made sure that an admin calls them.

    Args:
        services: Store, accounts and language.
        exports: Where snapshots go.
        rounds: How far the rounds of the run are.
    """

    def __init__(self, services: Services, exports: Exports, rounds: data_view.Rounds) -> None:
        self._services = services
        self._store = services.store
        self._exports = exports
        self._rounds = rounds

    def refresh(self, request: gr.Request) -> tuple[Any, ...]:
        """Everything that is shown."""
        text = self._text(request)
        figures = self._store.figures()
        flags, oldest = self.newest_flags(request)
        remarks, oldest_remarks = self.newest_remarks(request)
        return (
            data_view.figures(figures, self._rounds, text),
            render("data_scores", scores=self._store.scores(), text=text),
            render("data_intro", text=text),
            flags,
            oldest,
            remarks,
            oldest_remarks,
            self._people(request),
        )

    def newest_flags(self, request: gr.Request) -> tuple[str, int | None]:
        """The first page of the flags."""
        return self._flags(None, request)

    def older_flags(self, oldest: int | None, request: gr.Request) -> tuple[str, int | None]:
        """The next page; after the last one the first."""
        return self._flags(oldest, request)

    def newest_remarks(self, request: gr.Request) -> tuple[str, Any]:
        """The first page of comments and of reasons for skips."""
        return self._remarks((None, None), request)

    def older_remarks(self, oldest: Any, request: gr.Request) -> tuple[str, Any]:
        """The next page; after the last one the first."""
        return self._remarks(oldest, request)

    def export(self, request: gr.Request) -> str:
        """Write a snapshot and show its contents."""
        text = self._text(request)
        timestamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        folder = self._exports.folder / f"{timestamp}-{secrets.token_hex(2)}"
        try:
            manifest = self._store.export(folder)
        except UserError as error:
            return _failure(text["export.failed"].format(why=error))
        return render(
            "data_exported",
            prefix=self._services.prefix,
            manifest=manifest,
            folder=folder,
            files=data_view.SNAPSHOT_FILES,
            command=self._exports.command(folder),
            own_files=self._exports.own_files(),
            text=text,
        )

    def handle_flag(self, event: gr.EventData, request: gr.Request) -> tuple[Any, ...]:
        """Resolve a flag, or retire its candidate set."""
        text, admin = self._text(request), self._services.account(request)
        action, flag_id, set_id = clicked(event)
        actor = f"annotator:{admin.id}"
        try:
            if action == "retire":
                self._store.retire(set_id, actor=actor)
            elif action == "leave_out":
                self._store.leave_out_set(set_id, actor=actor)
            elif action != "resolve":
                raise Refused("bad_value", action)
            self._store.resolve(flag_id, actor=actor)
            outcome = _success(text[f"done.{action}"])
        except (Refused, UserError) as refused:
            outcome = _failure(text["outcome.refused"].format(why=refused))
        return outcome, *self.refresh(request)

    def leave_out_set(self, event: gr.EventData, request: gr.Request) -> tuple[Any, ...]:
        """Leave out the set of a remark."""
        text, admin = self._text(request), self._services.account(request)
        action, set_id, _ = clicked(event)
        try:
            if action != "leave_out":
                raise UserError(action)
            self._store.leave_out_set(set_id, actor=f"annotator:{admin.id}")
            outcome = _success(text["done.leave_out"])
        except UserError as error:
            outcome = _failure(text["outcome.refused"].format(why=error))
        return outcome, *self.refresh(request)

    def save_guidelines(self, written: str, request: gr.Request) -> tuple[str, Any, Any]:
        """Add a version of the guidelines; the outcome, the saved text, and all versions."""
        text, admin = self._text(request), self._services.account(request)
        written = str(written or "")
        try:
            guidelines = self._store.set_guidelines(written, actor=f"annotator:{admin.id}")
        except UserError as error:
            failure = _failure(text["outcome.refused"].format(why=error))
            return failure, gr.skip(), gr.skip()
        version = guidelines.version if guidelines is not None else 0
        outcome = _success(text["guidelines.saved"].format(n=version))
        return outcome, written, self._guideline_versions(request)

    def show_guidelines_of_admin(
        self, written: str, loaded: str, request: gr.Request
    ) -> tuple[Any, str, str, str]:
        """The guidelines that hold now, unless the field has changes that are not saved yet."""
        text, guidelines = self._text(request), self._store.guidelines()
        newest = guidelines.text if guidelines is not None else ""
        lines = []
        if guidelines is not None:
            lines.append(text["guidelines.version"].format(n=guidelines.version))
        unsaved = str(written or "").splitlines() != loaded.splitlines()
        if unsaved:
            lines.insert(0, text["guidelines.unsaved"])
        return (
            gr.skip() if unsaved else newest,
            loaded if unsaved else newest,
            render("status_line", text=" ".join(lines)),
            self._guideline_versions(request),
        )

    def _guideline_versions(self, request: gr.Request) -> str:
        versions = self._store.guideline_versions()
        return render("data_guidelines", versions=versions, text=self._text(request))

    def change_person(self, event: gr.EventData, request: gr.Request) -> tuple[str, str]:
        """Change the role, the password or the access of somebody."""
        text, admin = self._text(request), self._services.account(request)
        action, person_id, _ = clicked(event)
        oneself = person_id == admin.id and action not in ("password", *_LEAVING_OUT)
        no_account = person_id in self._without_account(admin) and action not in _LEAVING_OUT
        if no_account or oneself:
            return _failure(text["outcome.not_you"]), self._people(request)
        password = secrets.token_urlsafe(PASSWORD_BYTES)
        changes: dict[str, dict[str, Any]] = {
            "off": {"active": False},
            "on": {"active": True},
            "admin": {"role": "admin"},
            "annotator": {"role": "annotator"},
            "password": {"password": password},
        }
        try:
            people = {person.id: person for person in self._store.figures().people}
            person = people.get(person_id)
            judge = person is not None and person.role == "judge"
            known = action in _LEAVING_OUT or (action in changes and not judge)
            if person is None or not known:
                raise UserError(action)
            actor = f"annotator:{admin.id}"
            if action in _LEAVING_OUT:
                self._store.leave_out_person(person.name, actor=actor, undo=action == "take_in")
            else:
                self._store.change_annotator(person_id, actor=actor, **changes[action])
        except UserError as error:
            return _failure(text["outcome.refused"].format(why=error)), self._people(request)
        key = {
            "password": "outcome.password",
            "off": "outcome.off",
            "leave_out": "outcome.left_out",
        }.get(action, "outcome.changed")
        outcome = _success(text[key].format(name=person.name, password=password))
        return outcome, self._people(request)

    def leave_out_below(self, percent: Any, questions: Any, request: gr.Request) -> tuple[Any, ...]:
        """Leave out everybody below a share of gold questions."""
        text, admin = self._text(request), self._services.account(request)
        bounds = _gold_bounds(percent, questions)
        if bounds is None:
            why = text["below.numbers"]
            return _failure(text["outcome.refused"].format(why=why)), *self.refresh(request)
        share, min_asked = bounds
        changes = self._store.leave_out_below_gold(
            share, min_asked=min_asked, actor=f"annotator:{admin.id}"
        )
        names = ", ".join(change.name for change in changes if change.changed)
        key = "below.done" if names else "below.nobody"
        return _success(text[key].format(names=names)), *self.refresh(request)

    def add_person(
        self, name: str, password: str, role: Role, request: gr.Request
    ) -> tuple[str, str, str, str]:
        """Add somebody who may sign in; returns the outcome, the people and the form's fields."""
        text, admin = self._text(request), self._services.account(request)
        new_password = password or secrets.token_urlsafe(PASSWORD_BYTES)
        try:
            if role not in ("annotator", "admin"):
                raise UserError(str(role))
            if role != "admin" and not self._store.any_accounts():
                return _failure(text["add.first"]), self._people(request), name, ""
            language = self._services.language(request)
            actor = f"annotator:{admin.id}"
            self._store.add_annotator(name, new_password, role=role, lang=language, actor=actor)
        except UserError as error:
            failure = _failure(text["outcome.refused"].format(why=error))
            return failure, self._people(request), name, ""
        key = "outcome.added" if password else "outcome.password"
        outcome = _success(text[key].format(name=name.strip(), password=new_password))
        return outcome, self._people(request) if self._still_signed_in(request) else "", "", ""

    def _still_signed_in(self, request: gr.Request) -> bool:
        """False once the first account exists, for whoever was here without one."""
        try:
            self._services.account(request)
        except gr.Error:
            return False
        return True

    def _flags(self, before: int | None, request: gr.Request) -> tuple[str, int | None]:
        flags = self._store.flagged(before=before, n=FLAGS_PER_PAGE)
        oldest = flags[-1].id if len(flags) == FLAGS_PER_PAGE else None
        reasons = data_view.reason_names(self._services.language(request))
        html = render("data_flags", flags=flags, reasons=reasons, text=self._text(request))
        return html, oldest

    def _remarks(self, before: Any, request: gr.Request) -> tuple[str, Any]:
        """A page of comments and one of skips, newest first, and what the next ones begin before.

        A list that is at its end gives no more rows until both begin anew.
        """
        first_page = tuple(before) == (None, None)
        pages = [
            read(before=number, n=REMARKS_PER_PAGE) if first_page or number is not None else []
            for read, number in zip((self._store.comments, self._store.skips), before, strict=True)
        ]
        oldest = [page[-1].id if len(page) == REMARKS_PER_PAGE else None for page in pages]
        remarks = sorted((remark for page in pages for remark in page), key=lambda r: -r.at_ms)
        return render("data_remarks", remarks=remarks, text=self._text(request)), oldest

    def _people(self, request: gr.Request) -> str:
        admin = self._services.account(request)
        return render(
            "data_people",
            people=self._store.figures().people,
            unchangeable=self._without_account(admin),
            me=admin.id,
            text=self._text(request),
        )

    def _without_account(self, admin: Account) -> list[int]:
        """The local admin, who works here without an account and cannot be changed."""
        return [] if self._store.stamped(admin.id) else [admin.id]

    def _text(self, request: gr.Request) -> dict[str, str]:
        return translations("data", self._services.language(request))


_MAX_ASKED = 1_000_000
"""Gold questions that a bound may ask for; a database cannot compare with any number."""


def _gold_bounds(percent: Any, questions: Any) -> tuple[float, int] | None:
    """The share and the number of gold questions of two fields; None if they are not."""
    try:
        share, min_asked = float(percent) / 100, int(questions)
    except (TypeError, ValueError, OverflowError):
        return None
    return (share, min_asked) if 0 < share <= 1 and 1 <= min_asked <= _MAX_ASKED else None


def _success(message: str) -> str:
    return render("data_outcome", message=message, kind="good")


def _failure(message: str) -> str:
    return render("data_outcome", message=message, kind="bad")
