"""New runs and the choice of a run, for admins: the form on the Train tab and its routes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from alpaca_rlhf.app.language import preferred_language, translations
from alpaca_rlhf.app.new_run import (
    NUMBERS,
    FormRefused,
    NewRunForm,
    Offer,
    read_form,
    settings_of_form,
)
from alpaca_rlhf.app.refusals import for_admins_only
from alpaca_rlhf.app.rendering import render
from alpaca_rlhf.app.run_choice import MAX_NAME_CHARS, UPLOADS, RunChoice
from alpaca_rlhf.app.training import Closed, TrainingRefused, training_elsewhere
from alpaca_rlhf.app.training_plan import local_card, plan_of
from alpaca_rlhf.app.uploads import SUFFIXES, Uploads
from alpaca_rlhf.core.bases import SMOLLM2, smollm2_folder
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.locks import is_locked
from alpaca_rlhf.core.runs import CONFIG, TRAINING_LOG, RunFolder
from alpaca_rlhf.planner import CPU, GpuSpec, fitted
from alpaca_rlhf.preferences.store import Store
from alpaca_rlhf.serving import run_contents
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.settings.earlier import config_of
from alpaca_rlhf.settings.policies import POLICIES
from alpaca_rlhf.settings.steps import order
from alpaca_rlhf.sources import Source, input_files
from alpaca_rlhf.sources.sampled import queue_sampled
from alpaca_rlhf.sources.verdicts import open_store

PATHS = ("/training/new", "/training/upload", "/training/open")
"""The routes; `gate` lets them through."""


@dataclass(frozen=True)
class RunSwitch:
    """The run that the app is to go on with."""

    run: Path
    """Its folder."""
    start_as: str | None = None
    """The account that starts its training, for the audit; None leaves it as it is."""


class NewRuns:
    """Begins runs, and hands the app over to another run.

    Args:
        store: The database of the run that the app is on, whose accounts, newest guidelines and
            overlap a new run gets.
        choice: The runs, and the memory of which one the app is on.
        offer: The lists to choose from.
        closed: The reason why no browser may begin a run; None if it may.
        switch: Called once with the run that the app is to go on with.
    """

    def __init__(
        self,
        store: Store,
        choice: RunChoice,
        offer: Offer,
        *,
        closed: Closed | None,
        switch: Callable[[RunSwitch], None],
    ) -> None:
        self._store = store
        self._choice = choice
        self._offer = offer
        self._closed = closed
        self._switch = switch
        self._uploads = Uploads(choice.folder / UPLOADS, offer.columns)
        self._lock = threading.Lock()
        self._left = False

    # --- what is done -----------------------------------------------------------------------------

    def form(self, language: str) -> str:
        """The form, and the other runs, as HTML."""
        suggested = self._offer.suggested
        numbers = {
            "prompts": suggested.rank.prompts,
            "k": suggested.rank.k,
            "rounds": suggested.rounds,
        }
        current = self._choice.current.name
        return render(
            "new_run",
            text=translations("train", language),
            closed=self._closed,
            bases=[(base, self._is_fetched(base)) for base in self._offer.bases],
            judges=self._offer.judges,
            judge=self._offer.suggested_judge,
            numbers=[(key, numbers[key], *NUMBERS[key]) for key in NUMBERS],
            policies=[(policy, policy in suggested.policies) for policy in POLICIES],
            suffixes=",".join(SUFFIXES),
            max_name_chars=MAX_NAME_CHARS,
            others=[name for name in self._choice.runs() if name != current],
        )

    def upload(self, content: bytes, kind: str, suffix: str, language: str) -> tuple[str, str]:
        """Keep a file; its name, and what the readers say of it as HTML.

        Raises:
            TrainingRefused: No browser may begin a run.
            UserError: It cannot be read.
        """
        self._refuse_closed()
        if kind == "rows":
            name, account = self._uploads.keep(content, "rows", suffix)
        elif kind == "prompts":
            name, account = self._uploads.keep(content, "prompts", suffix)
        else:
            raise UserError("a file holds rows or prompts")
        lines = [self._uploads.without_places(line) for line in account.lines()]
        text = translations("train", language)
        return name, render(
            "new_run_upload", text=text, used=account.used, rows=account.rows, lines=lines
        )

    def plan(self, sent: object, language: str) -> str:
        """The plan of a run that the form asks for, as HTML. Nothing is written.

        Raises:
            TrainingRefused: No browser may begin a run.
            FormRefused: A field is not what it may be.
            UserError: A file cannot be read, or the settings do not go together.
        """
        self._refuse_closed()
        form = read_form(sent, self._offer, self._uploads)
        card = local_card()
        settings, source = self._settings_of(form, card)
        planned = plan_of(settings, card)
        steps = [step.stage for step in order(settings)]
        return render(
            "new_run_plan",
            text=translations("train", language),
            settings=settings,
            stages=[(name, planned.get(name)) for name in dict.fromkeys(steps)],
            rounds=settings.rounds,
            seconds=sum(planned[name].seconds for name in steps if name in planned),
            splits=[(name, len(source.prompts(name))) for name in source.names()],
            lines=[
                self._uploads.without_places(line)
                for account in source.accounts
                for line in account.lines()
            ],
            by_people=settings.inputs.judge == "human",
            card=card.name,
        )

    def start(self, sent: object, *, actor: str) -> RunSwitch:
        """Make the folder of a run, and choose it; the app that follows starts its training.

        Raises:
            TrainingRefused: No browser may begin a run, or one is being trained.
            FormRefused: A field is not what it may be, or there is such a run.
            UserError: A file cannot be read, the settings do not go together, or the disk is full.
        """
        self._refuse_closed()
        form = read_form(sent, self._offer, self._uploads)
        run = self._choice.folder / form.name
        settings, _ = self._settings_of(form, local_card())
        with self._lock:
            # 1. One training at a time, and no run upon another.
            if self._left:
                raise TrainingRefused("starting")
            other = training_elsewhere(run)
            if other is not None:
                raise TrainingRefused("elsewhere", other)
            if _holds_anything(run):
                raise FormRefused("taken", form.name)
            # 2. The run, as `loop` makes it; its settings come last.
            RunFolder.open(
                run, config_of(settings).text, kind="loop", inputs=input_files(settings.inputs)
            ).close()
            return self._leave_for(form.name, actor=actor, start=True)

    def open(self, name: object, *, actor: str) -> RunSwitch:
        """Go on with another run of the folder.

        Raises:
            TrainingRefused: No browser may choose, or the app is on its way to a run.
            UserError: There is no such run, or its files cannot be read.
        """
        self._refuse_closed()
        if not isinstance(name, str) or name not in self._choice.runs():
            raise UserError("there is no such run")
        run_contents.settings_of(self._choice.folder / name)  # a damaged run would end the app
        with self._lock:
            if self._left:
                raise TrainingRefused("starting")
            return self._leave_for(name, actor=actor, start=False)

    def _leave_for(self, name: str, *, actor: str, start: bool) -> RunSwitch:
        run = self._choice.folder / name
        # The accounts first: nobody may find a database that asks for no login. What the app reads
        # when it starts on a run is read here: a file that is damaged would end it for good.
        with open_store(run) as store:
            queue_sampled(run, store)
            store.adopt_accounts(self._store)
            if start:
                self._hand_on_rules(store, actor)
        self._store.note_training("open", name, actor=actor)
        self._choice.choose(name)
        self._left = True
        return RunSwitch(run, actor if start else None)

    def _hand_on_rules(self, store: Store, actor: str) -> None:
        """Let the people of a new run rank as they did before, by the newest guidelines."""
        guidelines, overlap = self._store.guidelines(), self._store.overlap()
        if guidelines is not None and store.guidelines() is None:
            store.set_guidelines(guidelines.text, actor=actor)
        if overlap != store.overlap():
            store.set_overlap(overlap, actor=actor)

    def _settings_of(self, form: NewRunForm, card: GpuSpec) -> tuple[Loop, Source]:
        """The settings in batches that fit the machine's graphics card, if it has one."""
        try:
            settings, source = settings_of_form(form, self._offer, self._choice.folder)
        except UserError as error:
            raise UserError(self._uploads.without_places(str(error))) from None
        return settings if card == CPU else fitted(settings, card), source

    def _refuse_closed(self) -> None:
        if self._closed is not None:
            raise TrainingRefused("not_allowed")

    def _is_fetched(self, base: str) -> bool:
        return base != SMOLLM2 or smollm2_folder().is_dir()

    # --- the routes -------------------------------------------------------------------------------

    def routes(self) -> list[BaseRoute]:
        """The form, uploads and the choice of a run; all for admins."""
        new, upload, open_ = PATHS
        return [
            Route(new, self._get_form, methods=["GET"]),
            Route(new, self._post_form, methods=["POST"]),
            Route(upload, self._post_upload, methods=["POST"]),
            Route(open_, self._post_open, methods=["POST"]),
        ]

    async def _get_form(self, request: Request) -> Response:
        if request.state.account.role != "admin":
            return for_admins_only()
        language = preferred_language(request.headers)
        return JSONResponse({"html": await run_in_threadpool(self.form, language)})

    async def _post_form(self, request: Request) -> Response:
        """Plan or start, as the body says."""
        if request.state.account.role != "admin":
            return for_admins_only()
        language, sent = preferred_language(request.headers), await _object_of(request)
        action, form = sent.get("do"), sent.get("form")

        def work() -> Response:
            if action == "plan":
                return JSONResponse({"html": self.plan(form, language)})
            if action == "start":
                return self._leaving(self.start(form, actor=_actor(request)), language)
            return JSONResponse({"detail": "`do` must be plan or start"}, 422)

        return await run_in_threadpool(_answered, work, language)

    async def _post_upload(self, request: Request) -> Response:
        if request.state.account.role != "admin":
            return for_admins_only()
        language = preferred_language(request.headers)
        kind, suffix = (request.query_params.get(name, "") for name in ("kind", "suffix"))
        content = await request.body()

        def work() -> Response:
            name, html = self.upload(content, kind, suffix, language)
            return JSONResponse({"name": name, "html": html})

        return await run_in_threadpool(_answered, work, language)

    async def _post_open(self, request: Request) -> Response:
        if request.state.account.role != "admin":
            return for_admins_only()
        language, sent = preferred_language(request.headers), await _object_of(request)

        def work() -> Response:
            return self._leaving(self.open(sent.get("run"), actor=_actor(request)), language)

        return await run_in_threadpool(_answered, work, language)

    def _leaving(self, switch: RunSwitch, language: str) -> Response:
        message = translations("train", language)["new.opening"].format(name=switch.run.name)
        self._switch(switch)
        return JSONResponse({"html": render("data_outcome", message=message, kind="good")})


def _answered(work: Callable[[], Response], language: str) -> Response:
    """The response of some work, or its refusal in one line."""
    text = translations("train", language)
    try:
        return work()
    except TrainingRefused as refused:
        message = text[f"refused.{refused.reason}"].format(detail=refused.detail)
    except FormRefused as refused:
        message = text[f"new.refused.{refused.problem}"].format(detail=refused.detail)
    except UserError as error:
        message = str(error)
    return JSONResponse({"html": render("data_outcome", message=message, kind="bad")}, 422)


async def _object_of(request: Request) -> dict[str, Any]:
    """The body as a JSON object; an empty one for anything else."""
    try:
        sent = json.loads(await request.body())
    except (ValueError, RecursionError):
        return {}
    return sent if isinstance(sent, dict) else {}


def _actor(request: Request) -> str:
    return f"annotator:{request.state.account.id}"


def _holds_anything(run: Path) -> bool:
    """True if something lies at a folder that a killed start has not left behind."""
    if not run.exists():
        return False
    if not run.is_dir() or (run / CONFIG).exists() or is_locked(run / TRAINING_LOG):
        return True
    return any(path.name not in (".lock", "provenance.json") for path in run.iterdir())
