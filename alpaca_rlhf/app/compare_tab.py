"""The Compare tab: two answers side by side, blind, and the win rates that the votes give."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from alpaca_rlhf.app.compare_controller import CompareController, CompareView, Round, as_message
from alpaca_rlhf.app.job_status import status_line
from alpaca_rlhf.app.language import label, translations
from alpaca_rlhf.app.rendering import render
from alpaca_rlhf.app.services import Services
from alpaca_rlhf.app.shortcuts import keyboard_shortcuts
from alpaca_rlhf.app.worker import Worker
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.preferences.battles import VOTES, Vote
from alpaca_rlhf.preferences.database import DiskFull

SHORTCUTS = {
    "Escape": "compare-stop",
    "Ctrl+Enter": "compare-ask",
    **{str(number): f"compare-{vote}" for number, vote in enumerate(VOTES, 1)},
}
"""Keys to the buttons that they press; the buttons show them."""
_STYLE = (Path(__file__).parent / "static" / "compare.css").read_text(encoding="utf-8")

Patch = dict[Any, Any]
"""New values of some components."""


def compare_tab(services: Services, worker: Worker) -> Callable[[gr.Tab], None]:
    """Build the tab; call it within `gr.Blocks`.

    Args:
        services: Store, accounts and language.
        worker: Owns the model.

    Returns:
        A function of the `gr.Tab` around it: the policies are listed anew when that opens.
    """
    components = _Components(worker)
    keyboard_shortcuts(SHORTCUTS)
    events = _Events(CompareController(services, worker), components)
    _wire(components, events)

    def list_on_open(tab: gr.Tab) -> None:
        options: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        tab.select(events.list_policies, None, [components.first, components.second], **options)

    return list_on_open


class _Components:
    """The components, laid out from top to bottom."""

    def __init__(self, worker: Worker) -> None:
        self.round: gr.State = gr.State(None)
        self.drawn: gr.State = gr.State(None)
        self.intro = gr.HTML(status_line(""), apply_default_css=False)
        with gr.Accordion(label("compare", "admin"), open=False, visible=False) as self.choice:
            with gr.Row():
                self.first, self.second = (
                    gr.Dropdown(
                        _policy_choices(worker, "en"),
                        value="",
                        label=label("compare", key),
                        elem_id=f"compare-{key}",
                    )
                    for key in ("first", "second")
                )
        self.earlier = gr.HTML(
            "", elem_id="compare-earlier", css_template=_STYLE, apply_default_css=False
        )
        self.box = gr.Textbox(
            label=label("compare", "prompt"),
            placeholder=label("compare", "prompt.hint"),
            elem_id="compare-box",
            lines=3,
            max_lines=10,
        )
        with gr.Row():
            self.ask = _button("ask", variant="primary", min_width=140)
            self.stop = _button("stop", interactive=False, min_width=120)
            self.draw = _button("draw", min_width=140)
        self.status = gr.HTML(status_line(""), elem_id="compare-line", apply_default_css=False)
        # Answers go into values, never into templates, which Gradio runs as code.
        with gr.Row(elem_id="compare-answers"):
            self.answers = [_answer_column(side) for side in ("left", "right")]
        with gr.Row():
            self.votes = [_vote_button(vote) for vote in VOTES]
        self.scores = gr.HTML(
            "", elem_id="compare-scores", css_template=_STYLE, apply_default_css=False
        )


def _button(key: str, **options: Any) -> gr.Button:
    return gr.Button(label("compare", key), elem_id=f"compare-{key}", **options)


def _vote_button(vote: Vote) -> gr.Button:
    title = label("compare", f"vote.{vote}")
    return gr.Button(title, elem_id=f"compare-{vote}", interactive=False, min_width=130)


def _answer_column(side: str) -> gr.HTML:
    with gr.Column(min_width=280):
        return gr.HTML(
            render("compare_answer", title="", answer=""),
            elem_id=f"compare-answer-{side}",
            css_template=_STYLE,
            apply_default_css=False,
            container=True,
            padding=True,
        )


def _wire(ui: _Components, events: _Events) -> None:
    outputs = [ui.round, ui.status, ui.stop, ui.ask, ui.earlier, *ui.answers, *ui.votes]
    private: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    fields = [ui.box, ui.drawn, ui.first, ui.second]
    ui.ask.click(events.play, fields, outputs, **private)
    ui.stop.click(events.stop, None, None, queue=False, **private)
    outputs_of_draw = [*outputs, ui.box, ui.drawn]
    ui.draw.click(events.draw_prompt, None, outputs_of_draw, **private)
    for vote, button in zip(VOTES, ui.votes, strict=True):
        button.click(events.voting(vote), ui.round, [ui.status, ui.scores, *ui.votes], **private)
    opened = [*outputs, ui.intro, ui.choice, ui.scores, ui.first, ui.second]
    gr.on(None, events.open_page, None, opened, **private)  # when the page opens


class _Events:
    """The event handlers: Gradio's values in, patches of the page out."""

    def __init__(self, controller: CompareController, components: _Components) -> None:
        self._controller = controller
        self._components = components

    def open_page(self, request: gr.Request) -> Patch:
        ui, services = self._components, self._controller.services
        language = services.language(request)
        choices = gr.update(choices=_policy_choices(self._controller.worker, language))
        return {
            **self._patch(CompareView(""), request),
            ui.intro: status_line(self._text(request)["intro"]),
            ui.choice: gr.update(visible=services.account(request).role == "admin"),
            ui.scores: self._scores(request),
            ui.first: choices,
            ui.second: choices,
        }

    def list_policies(self, request: gr.Request) -> tuple[Any, Any]:
        language = self._controller.services.language(request)
        choices = gr.update(choices=_policy_choices(self._controller.worker, language))
        return choices, choices

    def draw_prompt(self, request: gr.Request) -> Patch:
        self._controller.services.account(request)
        prompt = self._controller.evaluation_prompt()
        if prompt is None:
            return {self._components.status: status_line(self._text(request)["no_prompts"])}
        self._controller.page_jobs.leave(request)  # or its answers would come below this prompt
        return {
            **self._patch(CompareView(""), request),
            self._components.box: as_message(prompt),
            self._components.drawn: prompt,
            self._components.earlier: self._earlier(prompt, request),
        }

    def play(
        self,
        request: gr.Request,
        message: str,
        drawn: Instruction | None,
        first: str,
        second: str,
    ) -> Iterator[Patch]:
        views = self._controller.play(message or "", [first, second], request, drawn=drawn)
        for view in views:
            patch = self._patch(view, request)
            if view.prompt is not None:  # a message that was changed has no earlier turns
                patch |= {self._components.earlier: self._earlier(view.prompt, request)}
            yield patch

    def stop(self, request: gr.Request) -> None:
        self._controller.page_jobs.stop(request)

    def voting(self, vote: Vote) -> Callable[..., Patch]:
        """The handler of one vote button; a closure, since Gradio reads its annotations."""
        status = self._components.status

        def cast_vote(request: gr.Request, round_: Round | None) -> Patch:
            try:
                revealed = self._controller.vote(round_, vote, request)
            except DiskFull:  # the buttons stay, to vote again
                language = self._controller.services.language(request)
                return {status: status_line(translations("shell", language)["full"])}
            return {
                status: status_line(revealed),
                self._components.scores: self._scores(request),
                **self._vote_buttons(interactive=False),
            }

        return cast_vote

    def _patch(self, view: CompareView, request: gr.Request) -> Patch:
        ui = self._components
        return {
            ui.status: status_line(view.status),
            ui.stop: gr.update(interactive=view.running),
            ui.ask: gr.update(interactive=not view.running),
            **self._round(view.round, request),
        }

    def _round(self, current: Round | None, request: gr.Request) -> Patch:
        """The two answers of a round and its buttons; without one, empty places."""
        ui, text = self._components, self._text(request)
        answers = ["", ""]
        if current is not None:
            pairing = current.pairing
            answers = [
                answer.strip() or text["empty_answer"] for answer in (pairing.left, pairing.right)
            ]
        return {
            ui.round: current,
            ui.answers[0]: render("compare_answer", title=text["left"], answer=answers[0]),
            ui.answers[1]: render("compare_answer", title=text["right"], answer=answers[1]),
            **self._vote_buttons(interactive=current is not None),
        }

    def _earlier(self, prompt: Instruction, request: gr.Request) -> str:
        return render("compare_earlier", prompt=prompt, text=self._text(request))

    def _vote_buttons(self, *, interactive: bool) -> Patch:
        return {button: gr.update(interactive=interactive) for button in self._components.votes}

    def _scores(self, request: gr.Request) -> str:
        scores = self._controller.services.store.scores()
        scores = [score for score in scores if score.first != score.second]
        return render("compare_scores", scores=scores, text=self._text(request))

    def _text(self, request: gr.Request) -> dict[str, str]:
        return translations("compare", self._controller.services.language(request))


def _policy_choices(worker: Worker, language: str) -> list[tuple[str, str]]:
    random_choice = (translations("compare", language)["drawn"], "")
    return [random_choice, *((policy, policy) for policy in worker.policies())]
