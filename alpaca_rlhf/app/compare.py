"""The Compare tab: two answers side by side, blind, and the win rates that the votes give."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

import gradio as gr

from alpaca_rlhf.app.duel import Duel, Round, Seen
from alpaca_rlhf.app.keys import keys
from alpaca_rlhf.app.language import label, words
from alpaca_rlhf.app.services import Services
from alpaca_rlhf.app.speech import line
from alpaca_rlhf.app.worker import Worker
from alpaca_rlhf.preferences.battles import VOTES
from alpaca_rlhf.preferences.database import DiskFull

KEYS = {
    "Escape": "compare-stop",
    "Ctrl+Enter": "compare-ask",
    **{str(number): f"compare-{vote}" for number, vote in enumerate(VOTES, 1)},
}
"""What presses which button; the buttons say so."""
_STYLE = """
.answer { white-space: pre-wrap; overflow-wrap: anywhere; min-height: 9em; margin: 4px 0 0; }
h4 { margin: 0; font-size: 14px; font-weight: 600; color: var(--block-label-text-color); }
table { border-collapse: collapse; } caption, p { text-align: left; margin: 4px 0; }
caption { font-weight: 700; font-size: 17px; }
th, td { padding: 6px 16px 6px 0; text-align: left; overflow-wrap: anywhere;
  border-bottom: 1px solid var(--border-color-primary); font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
"""

Patch = dict[Any, Any]


def compare_tab(services: Services, worker: Worker) -> None:
    """Build the tab; call it within `gr.Blocks`.

    Args:
        services: What every tab is given.
        worker: Owns the model.
    """
    duel = Duel(services, worker)
    held: gr.State = gr.State(None)
    intro = gr.HTML(line(""), apply_default_css=False)
    with gr.Accordion(label("compare", "admin"), open=False, visible=False) as choice:
        with gr.Row():
            first, second = (
                gr.Dropdown(
                    _choices(services, worker, None),
                    value="",
                    label=label("compare", side),
                    elem_id=f"compare-{side}",
                )
                for side in ("first", "second")
            )
    box = gr.Textbox(
        label=label("compare", "prompt"),
        placeholder=label("compare", "prompt.hint"),
        elem_id="compare-box",
        lines=3,
        max_lines=10,
    )
    with gr.Row():
        ask = gr.Button(
            label("compare", "ask"), variant="primary", elem_id="compare-ask", min_width=140
        )
        stop = gr.Button(
            label("compare", "stop"), interactive=False, elem_id="compare-stop", min_width=120
        )
        draw = gr.Button(label("compare", "draw"), elem_id="compare-draw", min_width=140)
    said = gr.HTML(line(""), elem_id="compare-line", apply_default_css=False)
    sides = []
    with gr.Row(elem_id="compare-answers"):
        for side in ("left", "right"):
            with gr.Column(min_width=280):
                sides.append(
                    gr.HTML(
                        _answer("", ""),
                        elem_id=f"compare-answer-{side}",
                        css_template=_STYLE,
                        apply_default_css=False,
                        container=True,
                        padding=True,
                    )
                )
    with gr.Row():
        buttons = [
            gr.Button(
                label("compare", f"vote.{vote}"),
                interactive=False,
                elem_id=f"compare-{vote}",
                min_width=130,
            )
            for vote in VOTES
        ]
    scores = gr.HTML("", elem_id="compare-scores", css_template=_STYLE, apply_default_css=False)
    keys(KEYS)
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

    def votes(able: bool) -> Patch:
        return {one: gr.update(interactive=able) for one in buttons}

    def page(one: Seen, says: dict[str, str]) -> Patch:
        texts = ("", "") if one.round is None else _texts(one.round, says)
        return {
            held: one.round,
            said: line(one.line),
            stop: gr.update(interactive=one.running),
            ask: gr.update(interactive=not one.running),
            sides[0]: _answer(says["left"], texts[0]),
            sides[1]: _answer(says["right"], texts[1]),
            **votes(one.round is not None),
        }

    def play(request: gr.Request, text: str, one: str, other: str) -> Iterator[Patch]:
        says = words("compare", services.language(request))
        for seen in duel.play(text or "", [one, other], request):
            yield page(seen, says)

    def voter(given: Any) -> Any:
        def vote(request: gr.Request, round_: Round | None) -> Patch:
            try:
                told = duel.vote(round_, given, request)
            except DiskFull:  # the buttons stay, to vote again
                return {said: line(words("shell", services.language(request))["full"])}
            return {said: line(told), scores: _table(services, request), **votes(False)}

        return vote

    def take(request: gr.Request) -> Patch:
        services.account(request)
        text = duel.prompt()
        if text is None:
            return {said: line(words("compare", services.language(request))["no_prompts"])}
        return {box: text}

    def opened(request: gr.Request) -> Patch:
        says = words("compare", services.language(request))
        admin = services.account(request).role == "admin"
        choices = gr.update(choices=_choices(services, worker, request))
        return {
            **page(Seen(""), says),
            intro: line(says["intro"]),
            choice: gr.update(visible=admin),
            scores: _table(services, request),
            first: choices,
            second: choices,
        }

    shown = [held, said, stop, ask, *sides, *buttons]
    ask.click(play, [box, first, second], shown, **quiet)
    stop.click(duel.pages.stop, None, None, queue=False, **quiet)
    draw.click(take, None, [box, said], **quiet)
    for vote, button in zip(VOTES, buttons, strict=True):
        button.click(voter(vote), held, [said, scores, *buttons], **quiet)
    gr.on(None, opened, None, [*shown, intro, choice, scores, first, second], **quiet)


def _choices(
    services: Services, worker: Worker, request: gr.Request | None
) -> list[tuple[str, str]]:
    language = "en" if request is None else services.language(request)
    names = [(one, one) for one in worker.policies()]
    return [(words("compare", language)["drawn"], ""), *names]


def _texts(round_: Round, says: dict[str, str]) -> tuple[str, str]:
    pairing = round_.pairing
    left, right = (one.strip() or says["empty_answer"] for one in (pairing.left, pairing.right))
    return left, right


def _answer(title: str, text: str) -> str:
    return f'<h4>{escape(title)}</h4><div class="answer" tabindex="0">{escape(text)}</div>'


def _table(services: Services, request: gr.Request) -> str:
    says = {key: escape(text) for key, text in words("compare", services.language(request)).items()}
    rows = [one for one in services.store.scores() if one.first != one.second]
    if not rows:
        return f"<p>{says['scores']}: {says['scores.none']}</p>"
    head = "".join(f"<th scope=col>{says[f'scores.{k}']}</th>" for k in _COLUMNS)
    body = ""
    for one in rows:
        share, low, high = one.rate
        pair = says["scores.against"].format(first=escape(one.first), second=escape(one.second))
        body += (
            f"<tr><th scope=row>{pair}</th><td>{share:.0%}</td><td>{low:.0%}{_TO}{high:.0%}</td>"
            f"<td>{one.wins} / {one.losses} / {one.ties}</td></tr>"
        )
    return (
        f'<div class="scroll"><table><caption>{says["scores"]}</caption><thead><tr>{head}</tr>'
        f"</thead><tbody>{body}</tbody></table></div><p>{says['scores.note']}</p>"
    )


_TO = " \N{EN DASH} "
_COLUMNS = ("pair", "rate", "ci", "votes")
