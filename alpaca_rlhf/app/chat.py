"""The Chat tab: talk to any policy of the run, and make answers to rank of what was asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gradio as gr

from alpaca_rlhf.app.keys import keys
from alpaca_rlhf.app.language import label
from alpaca_rlhf.app.services import Services
from alpaca_rlhf.app.speech import line, restored
from alpaca_rlhf.app.talk import Asked, Shown, Talk, Turn, messages, place
from alpaca_rlhf.app.worker import Worker
from alpaca_rlhf.serving import folders
from alpaca_rlhf.serving.manner import Manner
from alpaca_rlhf.settings import Loop

KEYS = {
    "Escape": "chat-stop",
    "Ctrl+Enter": "chat-send",
    "Alt+KeyR": "chat-again",
    "Alt+KeyZ": "chat-undo",
    "Alt+KeyN": "chat-new",
    "Alt+KeyM": "chat-make",
}
"""What presses which button; the buttons say so."""
MOST_TOKENS = 2048
"""The longest answer that can be asked for."""

Patch = dict[Any, Any]


def chat_tab(services: Services, worker: Worker) -> None:
    """Build the tab; call it within `gr.Blocks`.

    Args:
        services: What every tab is given.
        worker: Owns the model.
    """
    talk = Talk(services, worker)
    turns: gr.State = gr.State(())
    policies = worker.policies()
    with gr.Row():
        policy = gr.Dropdown(
            policies,
            value=policies[-1],
            label=label("chat", "policy"),
            info=label("chat", "policy.info"),
            elem_id="chat-policy",
            scale=2,
        )
        new = gr.Button(label("chat", "new"), elem_id="chat-new", size="md", min_width=120)
    log = gr.Chatbot(
        label=label("chat", "log"),
        elem_id="chat-log",
        height="min(56vh, 620px)",
        editable="user",
        buttons=["copy", "copy_all"],
        render_markdown=False,
        sanitize_html=True,
        latex_delimiters=[],
        allow_tags=False,
        placeholder=label("chat", "empty"),
        feedback_options=None,
        group_consecutive_messages=False,
    )
    said = gr.HTML(line(""), elem_id="chat-line", apply_default_css=False)
    box = gr.Textbox(
        label=label("chat", "box"),
        placeholder=label("chat", "box.hint"),
        elem_id="chat-box",
        lines=1,
        max_lines=10,
        autofocus=True,
    )
    with gr.Row():
        send = gr.Button(
            label("chat", "send"), variant="primary", elem_id="chat-send", min_width=120, scale=2
        )
        stop = gr.Button(
            label("chat", "stop"), interactive=False, elem_id="chat-stop", min_width=120
        )
    with gr.Row():
        small: dict[str, Any] = {"size": "md", "min_width": 140}
        make = gr.Button(label("chat", "make"), elem_id="chat-make", **small)
        again = gr.Button(label("chat", "again"), elem_id="chat-again", **small)
        undo = gr.Button(label("chat", "undo"), elem_id="chat-undo", **small)
    drawer = _drawer(worker)
    keys(KEYS)
    given = [policy, *drawer]
    shown = [turns, log, said, box, send, stop, make, again]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

    def page(one: Shown) -> Patch:
        idle = gr.update(interactive=not one.running)
        return {
            turns: one.turns,
            log: messages(one.turns),
            said: line(one.line),
            stop: gr.update(interactive=one.running),
            **dict.fromkeys((send, make, again), idle),
        }

    def asked(values: tuple[Any, ...]) -> Asked:
        return _asked(worker, *values)

    def ask(request: gr.Request, text: str, before: tuple[Turn, ...], *values: Any) -> Any:
        first: Patch = {box: ""}
        for one in talk.answer([*before, Turn(text)], asked(values), request):
            yield page(one) | first
            first = {}

    def redo(request: gr.Request, before: tuple[Turn, ...], *values: Any) -> Any:
        if before:
            last = replace(before[-1], draws=before[-1].draws + 1)
            for one in talk.answer([*before[:-1], last], asked(values), request):
                yield page(one)
        else:
            yield {}

    def edit(
        request: gr.Request, event: gr.EditData, before: tuple[Turn, ...], *values: Any
    ) -> Iterator[Patch]:
        at = place(before, event.index if isinstance(event.index, int) else event.index[0])
        changed = Turn(restored(str(event.value)))
        for one in talk.answer([*before[:at], changed], asked(values), request):
            yield page(one)

    def take_back(request: gr.Request, before: tuple[Turn, ...]) -> Patch:
        talk.pages.stop(request)
        kept = before[:-1]
        text = before[-1].user if before else ""
        return page(Shown(kept, "", False)) | ({box: text} if text else {})

    def forget(request: gr.Request) -> Patch:
        talk.pages.stop(request)
        return page(Shown((), "", False)) | {box: ""}

    def to_rank(request: gr.Request, text: str, before: tuple[Turn, ...], *values: Any) -> Any:
        for one in talk.make(text, before, asked(values), request):
            yield page(one)

    gr.on([send.click, box.submit], ask, [box, turns, *given], shown, **quiet)
    gr.on([again.click, log.retry], redo, [turns, *given], shown, **quiet)
    log.edit(edit, [turns, *given], shown, **quiet)
    gr.on([undo.click, log.undo], take_back, [turns], shown, **quiet)
    gr.on([new.click, log.clear], forget, None, shown, **quiet)
    make.click(to_rank, [box, turns, *given], shown, **quiet)
    stop.click(talk.pages.stop, None, None, queue=False, **quiet)
    gr.on(None, lambda: gr.update(choices=worker.policies()), None, policy, **quiet)


def _drawer(worker: Worker) -> list[Any]:
    """What an answer is drawn with, in the order of `_asked`."""
    run = worker.settings
    chat = run.template == "chat"
    with gr.Accordion(label("chat", "settings"), open=False):
        system = gr.Textbox(
            label=label("chat", "system"),
            info=label("chat", "system.info")
            if chat
            else label("chat", f"system.none.{run.template}"),
            interactive=chat,
            lines=2,
            elem_id="chat-system",
        )
        with gr.Row():
            temperature = gr.Slider(
                0,
                2,
                Manner.temperature,
                step=0.05,
                label=label("chat", "temperature"),
                info=label("chat", "temperature.info"),
                elem_id="chat-temperature",
            )
            top_p = gr.Slider(
                0.05,
                1,
                Manner.top_p,
                step=0.05,
                label=label("chat", "top_p"),
                info=label("chat", "top_p.info"),
            )
        with gr.Row():
            length = gr.Slider(
                1,
                MOST_TOKENS,
                _usual(run),
                step=1,
                label=label("chat", "length"),
                elem_id="chat-length",
            )
            seed = gr.Number(
                0,
                label=label("chat", "seed"),
                info=label("chat", "seed.info"),
                precision=0,
                minimum=0,
                maximum=2**32 - 1,
            )
        knows = folders.saw_conversations(worker.run)
        remember = gr.Checkbox(
            knows,
            label=label("chat", "remember"),
            info=label("chat", "remember.yes" if knows else "remember.no"),
            elem_id="chat-remember",
        )
    return [system, temperature, top_p, length, seed, remember]


def _usual(run: Loop) -> int:
    return min(MOST_TOKENS, run.sampling.max_new_tokens)


def _asked(
    worker: Worker,
    policy: Any,
    system: Any,
    temperature: Any,
    top_p: Any,
    length: Any,
    seed: Any,
    remember: Any,
) -> Asked:
    """What a browser sent, within its limits; what it left out is as usual."""
    there = worker.policies()
    manner = Manner(
        temperature=_within(temperature, 0, 2, Manner.temperature),
        top_p=_within(top_p, 0.05, 1, Manner.top_p),
        max_new_tokens=int(_within(length, 1, MOST_TOKENS, _usual(worker.settings))),
        seed=int(_within(seed, 0, 2**32 - 1, 0)),
        system=str(system or "").strip() if worker.settings.template == "chat" else "",
    )
    return Asked(policy if policy in there else there[-1], manner, bool(remember))


def _within(value: Any, low: float, high: float, usual: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return usual
    return min(high, max(low, number)) if number == number else usual
