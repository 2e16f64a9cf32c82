"""The Train tab, for admins: the stages of the run, training from the page, curves and the log."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import gradio as gr
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from alpaca_rlhf.app import training_view
from alpaca_rlhf.app.language import preferred_language, translations
from alpaca_rlhf.app.refusals import for_admins_only
from alpaca_rlhf.app.rendering import render
from alpaca_rlhf.app.sections import scripted_section
from alpaca_rlhf.app.services import Services
from alpaca_rlhf.app.training import Training, TrainingCommand, TrainingRefused, changed_ns
from alpaca_rlhf.app.training_plan import PlannedStage, local_card, plan_of
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.runs import CONFIG, METRICS, RunFolder
from alpaca_rlhf.preferences.database import DiskFull
from alpaca_rlhf.preferences.store import Store
from alpaca_rlhf.serving import run_contents
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.settings.steps import order
from alpaca_rlhf.sources import source_of
from alpaca_rlhf.sources.standing import standing_by_round


def train_tab(services: Services, page: TrainPage | None, *, new_runs: bool = False) -> None:
    """Build the tab; call it within `gr.Blocks`.

    Args:
        services: Store, accounts and language.
        page: Renders the run, and starts and stops its training; None without a run.
        new_runs: Show the form of new runs too.
    """
    if new_runs:
        scripted_section("new-run", "new_run", css_class="new-run-box")
    if page is not None:
        _training_of(services, page)


def _training_of(services: Services, page: TrainPage) -> None:
    view = scripted_section("train", "train", css_class="train")
    outcome = gr.HTML(apply_default_css=False, elem_classes=["alpaca-data"], padding=False)

    def act(event: gr.EventData, request: gr.Request) -> str:
        account, text = services.account(request), translations("train", services.language(request))
        actor = f"annotator:{account.id}"
        # Of all that a browser sends only the name of the button counts.
        action = getattr(event, "do", None)
        try:
            if action == "train":
                page.training.start(actor=actor)
            elif action == "next":
                page.start_round(actor=actor)
            elif action == "stop":
                page.training.stop(actor=actor)
            else:
                return ""
        except TrainingRefused as refused:
            message = text[f"refused.{refused.reason}"].format(detail=refused.detail)
            return render("data_outcome", message=message, kind="bad")
        except UserError as error:  # no prompts for another round, or a damaged file
            message = text["ending.refused"].format(line=error)
            return render("data_outcome", message=message, kind="bad")
        return ""

    view.submit(act, None, outcome, api_visibility="private", show_progress="hidden")


class TrainPage:
    """The sections of the tab as HTML, and the report.

    Args:
        training: The training of the run.
        store: People's rankings.
        command: The command that goes on in a terminal.
    """

    def __init__(self, training: Training, store: Store, command: TrainingCommand) -> None:
        self.training = training
        self._store = store
        self._command = command
        self._run = training.run
        self._metrics: tuple[tuple[int, int], list[dict[str, Any]]] = ((0, 0), [])
        self._settings: tuple[int, Loop] | None = None
        self._plan: Mapping[str, PlannedStage] = {}
        self._card = ""
        self._planner: threading.Thread | None = None
        self._refused: TrainingRefused | None = None

    def start_first(self, *, actor: str) -> TrainingRefused | None:
        """Start a run that the page has just begun; the refusal, which the tab then shows too."""
        try:
            self.training.start(actor=actor)
        except TrainingRefused as refused:
            self._refused = refused
        except DiskFull as full:
            self._refused = TrainingRefused("failed", str(full))
        return self._refused

    def start_round(self, *, actor: str) -> None:
        """Add a round to a finished run, and start it.

        Raises:
            TrainingRefused: The run is not finished, or as `Training.start`.
            UserError: There are no prompts for another round.
        """
        settings, ledger = run_contents.settings_of(self._run), run_contents.ledger_of(self._run)
        if not training_view.is_finished(settings, ledger):
            raise TrainingRefused("unfinished")
        longer = replace(settings, more_rounds=settings.more_rounds + 1)
        if self.training.allowed:
            # As the command does. Its refusal would stand only in the log of a process.
            source = source_of(longer)
            for split in source.names():
                source.prompts(split)
        words = ["--more-rounds", str(longer.more_rounds)]
        self.training.start(actor=actor, words=words)

    def routes(self) -> list[BaseRoute]:
        """The sections for the tab's script, and the report as a page; both for admins."""

        def sections(request: Request) -> Response:
            if request.state.account.role != "admin":
                return for_admins_only()
            try:
                rendered = self.sections(preferred_language(request.headers))
            except UserError as error:  # a file of the run is damaged
                rendered = {"head": render("data_outcome", message=str(error), kind="bad")}
            return JSONResponse({"sections": rendered})

        def report(request: Request) -> Response:
            if request.state.account.role != "admin":
                return for_admins_only()
            path = self._run / "report.html"
            if not path.is_file():
                return JSONResponse({"detail": "there is no report yet"}, 404)
            return FileResponse(path, media_type="text/html")

        return [Route("/training", sections), Route("/report", report)]

    def sections(self, language: str) -> dict[str, str]:
        """The HTML of every section by its name, from top to bottom.

        Raises:
            UserError: A file of the run cannot be read.
        """
        # 1. The run, and what trains it.
        text = translations("train", language)
        state = self.training.state
        settings, ledger = self._read_settings(), run_contents.ledger_of(self._run)
        metrics = self._read_metrics()
        current = next((step for step in order(settings) if step.entry not in ledger), None)
        by_people = training_view.is_ranked_by_people(settings, current)
        counts = by_people and self._command.closed != "database"
        standings = standing_by_round(self._run, self._store) if by_people else {}
        missing = training_view.waits_for_people(settings, current, standings)
        active = state.activity != "idle"
        end, line = training_view.ending(state, ledger, settings)
        if self._refused is not None and end == "new" and not active:
            refused = text[f"refused.{self._refused.reason}"]
            end, line = "refused", refused.format(detail=self._refused.detail)
        # 2. Its sections.
        rounds = training_view.rounds(
            settings, ledger, running=active, plan=self._planned(), standings=standings
        )
        progress = training_view.progress(state, metrics, current)
        head = render(
            "train_head",
            text=text,
            activity=state.activity,
            ending=end,
            line=line,
            finished=training_view.is_finished(settings, ledger),
            missing=missing,
            enough=counts and not missing and end in ("waits", "paused"),
            stage=text[f"stage.{current.stage}"] if current else "",
            allowed=self.training.allowed,
            command=self._command.shown,
            closed=self._command.closed,
            report=(self._run / "report.html").is_file(),
            rank=translations("shell", language)["rank"],
            chat=translations("shell", language)["chat"],
        )
        return {
            "head": head,
            "progress": render("train_progress", text=text, progress=progress),
            "stages": render("train_stages", text=text, rounds=rounds, card=self._card),
            "curves": render("train_curves", text=text, charts=training_view.curves(metrics, text)),
            "log": render("train_log", text=text, lines=training_view.log_lines(state)),
        }

    def _read_settings(self) -> Loop:
        """The settings of the run, parsed anew where the file has changed."""
        version = changed_ns(self._run / CONFIG)
        if self._settings is None or self._settings[0] != version:
            self._settings = (version, run_contents.settings_of(self._run))
        return self._settings[1]

    def _read_metrics(self) -> list[dict[str, Any]]:
        """The metrics of the run, read anew where the file has changed."""
        try:
            status = (self._run / METRICS).stat()
        except OSError:
            return []
        version = (status.st_mtime_ns, status.st_size)
        if version != self._metrics[0]:
            self._metrics = (version, RunFolder.follow(self._run).metrics())
        return self._metrics[1]

    def _planned(self) -> Mapping[str, PlannedStage]:
        """The plan, made in a thread when it is first asked for; empty until then."""
        if self._planner is None:
            self._planner = threading.Thread(target=self._make_plan, name="plan", daemon=True)
            self._planner.start()
        return self._plan

    def _make_plan(self) -> None:
        try:
            card = local_card()
            self._plan = plan_of(run_contents.settings_of(self._run), card)
            self._card = card.name
        except UserError:  # a base or rows that are gone: training says so
            self._plan = {}
