"""The Chat tab: talk to any policy of the run, and make answers to rank."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from alpaca_rlhf.app.chat_controller import (
    MAX_MESSAGE_CHARS,
    ChatController,
    ChatView,
    GenerationRequest,
)
from alpaca_rlhf.app.chat_messages import (
    MARK,
    Turn,
    edited_turn,
    feedback,
    is_reply,
    messages,
    restored,
    turn_index,
)
from alpaca_rlhf.app.job_status import status_line
from alpaca_rlhf.app.language import label, translations
from alpaca_rlhf.app.saved_chats import SavedChats, edited_reply, sampled_reply
from alpaca_rlhf.app.services import Services
from alpaca_rlhf.app.shortcuts import keyboard_shortcuts
from alpaca_rlhf.app.worker import Worker
from alpaca_rlhf.preferences.assignment import Candidates, Refused
from alpaca_rlhf.preferences.chats import MAX_TITLE_CHARS
from alpaca_rlhf.preferences.database import DiskFull
from alpaca_rlhf.serving import run_contents
from alpaca_rlhf.serving.sampling_settings import SamplingSettings
from alpaca_rlhf.settings import Loop

SHORTCUTS = {
    "Escape": "chat-stop",
    "Ctrl+Enter": "chat-send",
    "Alt+KeyC": "chat-go_on",
    "Alt+KeyR": "chat-regenerate",
    "Alt+KeyZ": "chat-undo",
    "Alt+KeyN": "chat-new",
    "Alt+KeyM": "chat-make",
}
"""Keys to the buttons that they press; the buttons show them."""
MAX_NEW_TOKENS = 2048
"""The longest answer that can be asked for."""
MAX_TOP_K, MAX_MIN_P, MAX_PENALTY = 200, 0.5, 2.0
"""Highest values of the sliders of that name."""
SHAPING: dict[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (0.05, 1),
    "top_k": (0, MAX_TOP_K),
    "min_p": (0, MAX_MIN_P),
    "repetition_penalty": (1, MAX_PENALTY),
}
"""Limits of the settings that a preset sets, by their names in `SamplingSettings` and in the order
of their sliders."""
MAX_STOP_TEXTS, MAX_STOP_CHARS = 8, 40
"""Texts that end an answer, and characters of each."""
PRESETS = {
    "exact": SamplingSettings(temperature=0),
    "balanced": SamplingSettings(),
    "lively": SamplingSettings(temperature=1, min_p=0.05),
    "unshaped": SamplingSettings(temperature=1),
}
"""Settings to start from."""
SAVE_EVERY_S = 1.0
"""Seconds between two saves of an answer that grows."""
_MAX_SEED = 2**32 - 1
_COPYING = (Path(__file__).parent / "static" / "copying.js").read_text(encoding="utf-8")
_PLACE = (Path(__file__).parent / "static" / "chat_place.js").read_text(encoding="utf-8")
_CHAT_OPENED = "(number) => { window.alpacaPlace?.chatOpened(number); }"
"""Tells the page's script, where there is one, which conversation its address is to name."""
_DOWNLOAD = """(text) => {
  if (!text) return;
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {type: 'application/x-ndjson'}));
  link.download = 'chat.jsonl';
  link.click();
  URL.revokeObjectURL(link.href);
}"""

NEWEST = ""
"""Choice of whichever policy was trained last: a run goes on while its page stays open."""

Patch = dict[Any, Any]
"""New values of some components."""


def chat_tab(services: Services, worker: Worker) -> Callable[[gr.Tab], None]:
    """Build the tab; call it within `gr.Blocks`.

    Args:
        services: Store, accounts and language.
        worker: Owns the model.

    Returns:
        A function of the `gr.Tab` around it: the policies are listed anew when that opens.
    """
    components = _Components(worker)
    keyboard_shortcuts(SHORTCUTS)
    gr.HTML(
        html_template="<span hidden></span>",
        js_on_load=_COPYING,
        apply_default_css=False,
        container=False,
        padding=False,
        mark=MARK,
    )
    events = _Events(ChatController(services, worker), SavedChats(services), components)
    _wire(components, events)

    def list_on_open(tab: gr.Tab) -> None:
        options: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        tab.select(events.list_policies, None, components.policy, **options)
        tab.select(events.list_chats, components.chat_id, components.saved, **options)

    return list_on_open


class _Components:
    """The components, laid out from top to bottom."""

    def __init__(self, worker: Worker) -> None:
        self.turns: gr.State = gr.State(())
        self.chat_id: gr.State = gr.State(None)
        with gr.Row():
            self.policy = gr.Dropdown(
                _policy_choices(worker, "en"),
                value=NEWEST,
                label=label("chat", "policy"),
                info=label("chat", "policy.info"),
                elem_id="chat-policy",
                scale=2,
            )
            self.saved = gr.Dropdown(
                [],
                value=None,
                label=label("chat", "chats"),
                info=label("chat", "chats.info"),
                elem_id="chat-saved",
                scale=2,
            )
            self.new = _button("new", size="md")
        # No Markdown, LaTeX or tags: the text of a model is only ever text.
        self.log = gr.Chatbot(
            label=label("chat", "log"),
            elem_id="chat-log",
            height="clamp(160px, calc(100dvh - 510px), 620px)",  # and the message box below it
            editable="all",
            buttons=["copy", "copy_all"],
            render_markdown=False,
            sanitize_html=True,
            latex_delimiters=[],
            allow_tags=False,
            placeholder=label("chat", "empty"),
            feedback_options=("Like", "Dislike"),
            group_consecutive_messages=False,
        )
        with gr.Column(elem_id="chat-composer"):  # in sight at the lower edge of the window
            self.status = gr.HTML(status_line(""), elem_id="chat-line", apply_default_css=False)
            self.box = gr.Textbox(
                label=label("chat", "box"),
                placeholder=label("chat", "box.hint"),
                elem_id="chat-box",
                lines=1,
                max_lines=10,
                autofocus=True,
            )
            with gr.Row():
                self.send = _button("send", variant="primary", scale=2)
                self.stop = _button("stop", interactive=False)
        with gr.Row():
            self.make = _button("make", size="md", min_width=140)
            self.go_on = _button("go_on", size="md", min_width=140)
            self.regenerate = _button("regenerate", size="md", min_width=140)
            self.undo = _button("undo", size="md", min_width=140)
        with gr.Accordion(label("chat", "chats.manage"), open=False, elem_id="chat-manage"):
            self.title = gr.Textbox(
                label=label("chat", "chats.title"),
                max_lines=1,
                max_length=MAX_TITLE_CHARS,
                elem_id="chat-title",
            )
            with gr.Row():
                self.rename = _button("chats.rename", size="md")
                self.export = _button("chats.export", size="md")
                self.delete = _button("chats.delete", size="md", variant="stop")
                self.delete_sure = _button(
                    "chats.delete_sure", size="md", variant="stop", visible=False
                )
                self.delete_not = _button("chats.delete_not", size="md", visible=False)
            self.exported = gr.Textbox(visible="hidden", elem_id="chat-exported")
        self.preset, self.sampling, other = _build_settings(worker)
        self.settings = [self.policy, *self.sampling, *other]
        # At the end, since even without content it takes a gap of the layout.
        self.place = gr.HTML(
            html_template="<span hidden></span>",
            js_on_load=_PLACE,
            apply_default_css=False,
            container=False,
            padding=False,
        )


def _button(key: str, *, min_width: int = 120, **options: Any) -> gr.Button:
    elem_id = f"chat-{key.removeprefix('chats.')}"
    return gr.Button(label("chat", key), elem_id=elem_id, min_width=min_width, **options)


def _build_settings(worker: Worker) -> tuple[Any, list[Any], list[Any]]:
    """The presets, the settings that they set, and the others, in the order of their readers."""
    template = worker.settings.template
    chat = template == "chat"
    with gr.Accordion(label("chat", "settings"), open=False):
        system = gr.Textbox(
            label=label("chat", "system"),
            info=label("chat", "system.info" if chat else f"system.none.{template}"),
            interactive=chat,
            lines=2,
            elem_id="chat-system",
        )
        preset = gr.Dropdown(
            [(label("chat", f"preset.{name}"), name) for name in PRESETS],
            value="balanced",
            label=label("chat", "preset"),
            elem_id="chat-preset",
        )
        with gr.Row():
            temperature = gr.Slider(
                *SHAPING["temperature"],
                SamplingSettings.temperature,
                step=0.05,
                label=label("chat", "temperature"),
                info=label("chat", "temperature.info"),
                elem_id="chat-temperature",
            )
            top_p = gr.Slider(
                *SHAPING["top_p"],
                SamplingSettings.top_p,
                step=0.05,
                label=label("chat", "top_p"),
                info=label("chat", "top_p.info"),
            )
        with gr.Row():
            top_k = gr.Slider(
                *SHAPING["top_k"],
                SamplingSettings.top_k,
                step=1,
                label=label("chat", "top_k"),
                info=label("chat", "top_k.info"),
                elem_id="chat-top-k",
            )
            min_p = gr.Slider(
                *SHAPING["min_p"],
                SamplingSettings.min_p,
                step=0.01,
                label=label("chat", "min_p"),
                info=label("chat", "min_p.info"),
                elem_id="chat-min-p",
            )
            penalty = gr.Slider(
                *SHAPING["repetition_penalty"],
                SamplingSettings.repetition_penalty,
                step=0.05,
                label=label("chat", "penalty"),
                info=label("chat", "penalty.info"),
                elem_id="chat-penalty",
            )
        with gr.Row():
            length = gr.Slider(
                1,
                MAX_NEW_TOKENS,
                _default_length(worker.settings),
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
                maximum=_MAX_SEED,
            )
        stop_texts = gr.Textbox(
            label=label("chat", "stop_texts"),
            info=label("chat", "stop_texts.info"),
            lines=1,
            max_lines=4,
            max_length=MAX_STOP_TEXTS * (MAX_STOP_CHARS + 1),
            elem_id="chat-stop-texts",
        )
        trained_on_turns = run_contents.saw_conversations(worker.run)
        remember = gr.Checkbox(
            trained_on_turns,
            label=label("chat", "remember"),
            info=label("chat", "remember.yes" if trained_on_turns else "remember.no"),
            elem_id="chat-remember",
        )
    sliders = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repetition_penalty": penalty,
    }
    sampling = [sliders[name] for name in SHAPING]
    return preset, sampling, [system, length, seed, remember, stop_texts]


def _wire(ui: _Components, events: _Events) -> None:
    outputs = [ui.turns, ui.log, ui.status, ui.box, ui.send, ui.stop, ui.make, ui.regenerate]
    outputs.append(ui.go_on)
    outputs += [ui.chat_id, ui.saved, ui.title]
    deleting = [ui.delete, ui.delete_sure, ui.delete_not]
    outputs += deleting
    private: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    gr.on(
        [ui.send.click, ui.box.submit],
        events.send,
        [ui.box, ui.turns, ui.chat_id, *ui.settings],
        outputs,
        **private,
    )
    gr.on(
        [ui.regenerate.click, ui.log.retry],
        events.retry,
        [ui.turns, ui.chat_id, *ui.settings],
        outputs,
        **private,
    )
    ui.log.edit(events.edit, [ui.box, ui.turns, ui.chat_id, *ui.settings], outputs, **private)
    gr.on([ui.undo.click, ui.log.undo], events.undo, [ui.turns, ui.chat_id], outputs, **private)
    ui.log.like(events.rate, [ui.turns, ui.chat_id], outputs, **private)
    ui.saved.input(events.open_chat, [ui.saved, ui.turns, ui.chat_id], outputs, **private)
    ui.saved.change(None, ui.saved, None, js=_CHAT_OPENED, **private)
    ui.place.submit(events.open_place, [ui.turns, ui.chat_id], outputs, **private)
    gr.on(
        [ui.rename.click, ui.title.submit],
        events.rename_chat,
        [ui.chat_id, ui.title],
        [ui.status, ui.saved],
        **private,
    )
    ui.delete.click(events.ask_to_delete, ui.chat_id, [ui.status, *deleting], **private)
    ui.delete_not.click(events.keep_chat, None, deleting, **private)
    ui.delete_sure.click(events.delete_chat, ui.chat_id, outputs, **private)
    exporting = ui.export.click(events.export_chat, ui.chat_id, [ui.exported, ui.status], **private)
    exporting.then(None, ui.exported, None, js=_DOWNLOAD, **private)
    gr.on([ui.new.click, ui.log.clear], events.clear, None, outputs, **private)
    ui.go_on.click(events.go_on, [ui.turns, ui.chat_id, *ui.settings], outputs, **private)
    ui.preset.input(events.apply_preset, ui.preset, ui.sampling, **private)
    ui.make.click(events.make_candidates, [ui.box, ui.turns, *ui.settings], outputs, **private)
    ui.stop.click(events.stop, None, None, queue=False, **private)
    # When the page opens:
    gr.on(None, events.list_policies, None, ui.policy, **private)
    gr.on(None, events.list_chats, ui.chat_id, ui.saved, **private)


class _Events:
    """The event handlers: Gradio's values in, patches of the page out."""

    def __init__(
        self, controller: ChatController, chats: SavedChats, components: _Components
    ) -> None:
        self._controller = controller
        self._chats = chats
        self._components = components

    def send(
        self,
        request: gr.Request,
        message: str | None,
        turns: tuple[Turn, ...],
        chat: int | None,
        *settings: Any,
    ) -> Iterator[Patch]:
        turns_asked = [*turns, Turn(message or "")]
        clear_box = {self._components.box: ""}
        yield from self._answer(turns_asked, turns, chat, settings, request, once_taken=clear_box)

    def retry(
        self, request: gr.Request, turns: tuple[Turn, ...], chat: int | None, *settings: Any
    ) -> Iterator[Patch]:
        if not turns:
            yield self._patch(ChatView((), "", False))
            return
        last = replace(turns[-1], attempt=turns[-1].attempt + 1)
        turns_asked = [*turns[:-1], last]
        # The answer before this one is kept until there is another one.
        yield from self._answer(turns_asked, turns, chat, settings, request, save_early=False)

    def edit(
        self,
        request: gr.Request,
        event: gr.EditData,
        draft: str | None,
        turns: tuple[Turn, ...],
        chat: int | None,
        *settings: Any,
    ) -> Iterator[Patch]:
        message_index = event.index if isinstance(event.index, int) else event.index[0]
        text = restored(str(event.value))
        # What gets no answer goes into the message box, so that it is not lost.
        is_free = bool(text.strip()) and not (draft or "").strip()
        into_box = {self._components.box: text} if is_free else {}
        if len(text) > MAX_MESSAGE_CHARS:
            refusal = self._text(request)["status.too_long"].format(n=MAX_MESSAGE_CHARS)
            yield self._patch(ChatView(turns, refusal, False)) | into_box
            return
        earlier_turns = turns[: turn_index(turns, message_index)]
        if is_reply(turns, message_index):
            # The turns after it answered another reply: they stay where they are.
            edited_turns = (*earlier_turns, edited_turn(turns[len(earlier_turns)], text))
            self._controller.page_jobs.leave(request)
            is_better = edited_reply(edited_turns, len(earlier_turns)) is not None
            hint = self._text(request)["edited.hint"] if is_better else ""
            chat = chat if len(edited_turns) == len(turns) else None
            yield self._patch(ChatView(edited_turns, hint, False)) | self._saved(
                edited_turns, chat, request, hint
            )
            return
        turns_asked = [*earlier_turns, Turn(text)]
        # Its old reply is kept until there is an answer in its place, and turns after it for good:
        # they were said, so what is said instead becomes a conversation of its own.
        chat = chat if len(turns_asked) == len(turns) else None
        yield from self._answer(
            turns_asked,
            turns,
            chat,
            settings,
            request,
            save_early=False,
            if_unanswered=into_box,
        )

    def go_on(
        self, request: gr.Request, turns: tuple[Turn, ...], chat: int | None, *settings: Any
    ) -> Iterator[Patch]:
        """Go on with the last answer where it ended."""
        if not turns or not turns[-1].reply.strip():
            text = self._text(request)["status.nothing_begun"]
            yield self._patch(ChatView(turns, text, False))
            return
        yield from self._answer(list(turns), turns, chat, settings, request, go_on=True)

    def apply_preset(self, name: Any) -> list[Any]:
        """Values of the sampling settings."""
        preset = PRESETS.get(name, PRESETS["balanced"])
        return [getattr(preset, setting) for setting in SHAPING]

    def undo(self, request: gr.Request, turns: tuple[Turn, ...], chat: int | None) -> Patch:
        self._controller.page_jobs.leave(request)
        patch = self._patch(ChatView(turns[:-1], "", False))
        patch |= self._saved(turns[:-1], chat, request)
        message = turns[-1].user if turns else ""
        return patch | ({self._components.box: message} if message else {})

    def clear(self, request: gr.Request) -> Patch:
        self._controller.page_jobs.leave(request)
        ui = self._components
        no_chat = {ui.chat_id: None, ui.saved: gr.update(value=None), ui.title: ""}
        patch = self._patch(ChatView((), "", False)) | self._deleting("")
        return patch | {ui.box: ""} | no_chat

    def rate(
        self, request: gr.Request, event: gr.LikeData, turns: tuple[Turn, ...], chat: int | None
    ) -> Patch:
        """Keep a thumb on a reply; pressed again it is taken back.

        Raises:
            gr.Error: An answer grows, with which the conversation is shown and kept as it was.
        """
        if self._controller.page_jobs.under_way(request):
            raise gr.Error(self._text(request)["thumb.wait"], print_exception=False)
        message = event.index if isinstance(event.index, int) else event.index[0]
        up = event.liked if isinstance(event.liked, bool) else None
        index, text = turn_index(turns, message), self._text(request)
        reply = sampled_reply(turns, index) if turns else None
        original = edited_reply(turns, index) if turns else None
        if original is not None:
            return self._keep_edited(request, original, index, turns, chat, up=up)
        refusal = text["thumb.unknown"] if reply is None else ""
        # Exports are trained on: no prompt of PPO or the evaluation may come into them.
        if reply is not None and up is not None:
            refusal = self._controller.leak_refusal(reply[0], "thumb", text)
        if reply is None or refusal:
            return self._patch(ChatView(turns, refusal, False))
        self._chats.rate(reply, up, request)
        rated = (*turns[:index], replace(turns[index], thumb=up), *turns[index + 1 :])
        word = "none" if up is None else "up" if up else "down"
        status = text[f"thumb.{word}"]
        patch = self._patch(ChatView(rated, status, False))
        return patch | self._saved(rated, chat, request, status)

    def _keep_edited(
        self,
        request: gr.Request,
        original: Candidates,
        index: int,
        turns: tuple[Turn, ...],
        chat: int | None,
        *,
        up: bool | None,
    ) -> Patch:
        """Keep an edited reply as a better answer at a thumb up; any other takes it back."""
        text = self._text(request)
        refusal = self._controller.leak_refusal(original[0], "thumb", text) if up else ""
        if up is False:
            refusal = text["edited.down"]
        try:
            if not refusal:
                better = turns[index].reply if up else None
                self._chats.keep_edited(original, better, request)
        except Refused:
            refusal = text["thumb.unknown"]
        if refusal:
            return self._patch(ChatView(turns, refusal, False))
        rated = (*turns[:index], replace(turns[index], thumb=up), *turns[index + 1 :])
        status = text["edited.kept" if up else "edited.none"]
        patch = self._patch(ChatView(rated, status, False))
        return patch | self._saved(rated, chat, request, status)

    def list_chats(self, request: gr.Request, chat: int | None) -> Any:
        """The conversations when the page or the tab opens."""
        if chat is None:  # the address of the page may have opened one meanwhile
            return gr.update(choices=self._chats.choices(request))
        return self._listed(request, chat)

    def open_place(
        self, request: gr.Request, event: gr.EventData, turns: tuple[Turn, ...], chat: int | None
    ) -> Patch:
        """Open the conversation that the address of the page names, or begin a new one."""
        number = getattr(event, "chat", None)
        if number == chat:
            return {self._components.chat_id: chat}
        if number is None:
            return self.clear(request)
        patch, ui = self.open_chat(request, number, turns, chat), self._components
        opened = ui.chat_id in patch
        return patch | ({ui.saved: self._listed(request, number)} if opened else {})

    def open_chat(
        self, request: gr.Request, number: Any, turns: tuple[Turn, ...], chat: int | None
    ) -> Patch:
        ui = self._components
        self._controller.page_jobs.leave(request)
        try:
            title, opened = self._chats.open(number, request)
        except Refused as refused:
            patch = self._patch(ChatView(turns, self._chats.problem(refused, request), False))
            return patch | {ui.saved: self._listed(request, chat)}
        patch = self._patch(ChatView(opened, "", False)) | self._deleting("")
        return patch | {ui.chat_id: number, ui.title: title, ui.box: ""}

    def rename_chat(self, request: gr.Request, chat: int | None, title: str) -> Patch:
        ui, text = self._components, self._text(request)
        try:
            self._chats.rename(chat, title, request)
            status = text["chats.renamed"]
        except Refused as refused:
            status = self._chats.problem(refused, request)
        return {ui.status: status_line(status), ui.saved: self._listed(request, chat)}

    def ask_to_delete(self, request: gr.Request, chat: int | None) -> Patch:
        """Show the button that deletes, with the name of the conversation on it."""
        ui, text = self._components, self._text(request)
        if chat is None:
            return self._deleting("") | {ui.status: status_line(text["chats.none"])}
        titles = {number: title for title, number in self._chats.choices(request)}
        confirm_title = text["chats.delete_sure.title"].format(title=titles.get(chat, f"#{chat}"))
        return self._deleting(confirm_title) | {ui.status: status_line("")}

    def keep_chat(self) -> Patch:
        return self._deleting("")

    def _deleting(self, confirm_title: str) -> Patch:
        """The button that asks, or the two that decide, one of them with this title."""
        ui = self._components
        return {
            ui.delete: gr.update(visible=not confirm_title),
            ui.delete_sure: gr.update(
                visible=bool(confirm_title), **({"value": confirm_title} if confirm_title else {})
            ),
            ui.delete_not: gr.update(visible=bool(confirm_title)),
        }

    def delete_chat(self, request: gr.Request, chat: int | None) -> Patch:
        ui, text = self._components, self._text(request)
        self._controller.page_jobs.leave(request)  # first, or its answer would be saved again
        try:
            self._chats.delete(chat, request)
            status = text["chats.deleted"]
        except Refused as refused:
            status = self._chats.problem(refused, request)
        patch = self.clear(request) | {ui.status: status_line(status)}
        return patch | {ui.saved: self._listed(request, None)}

    def export_chat(self, request: gr.Request, chat: int | None) -> Patch:
        ui = self._components
        try:
            return {ui.exported: self._chats.exported(chat, request), ui.status: status_line("")}
        except Refused as refused:
            status = self._chats.problem(refused, request)
            return {ui.exported: "", ui.status: status_line(status)}

    def make_candidates(
        self, request: gr.Request, draft: str | None, turns: tuple[Turn, ...], *settings: Any
    ) -> Iterator[Patch]:
        generation = _generation_request(self._controller.worker, settings)
        for view in self._controller.make_candidates(draft or "", turns, generation, request):
            yield self._patch(view)

    def stop(self, request: gr.Request) -> None:
        self._controller.page_jobs.stop(request)

    def list_policies(self, request: gr.Request) -> Any:
        language = self._controller.services.language(request)
        return gr.update(choices=_policy_choices(self._controller.worker, language))

    def _answer(
        self,
        turns_asked: list[Turn],
        turns_on_page: tuple[Turn, ...],
        chat: int | None,
        settings: tuple[Any, ...],
        request: gr.Request,
        *,
        go_on: bool = False,
        save_early: bool = True,
        once_taken: Patch | None = None,
        if_unanswered: Patch | None = None,
    ) -> Iterator[Patch]:
        """Answer the last of the turns that were asked for.

        Args:
            turns_asked: The conversation up to the message.
            turns_on_page: The conversation as it is on the page, which a refusal leaves as it is.
            chat: Number of the conversation.
            settings: The settings that the browser sent.
            request: The request of the page.
            go_on: True where the last answer is gone on with.
            save_early: Keep the message before it is answered, and the answer as it grows: whoever
                reloads or closes the page, or ends the server, loses no more than a moment of it.
                Otherwise the page keeps what it shows until there is some of the answer.
            once_taken: A patch for the page once the message is not refused.
            if_unanswered: A patch for the page where nothing of an answer has come.
        """
        ui = self._components
        generation = _generation_request(self._controller.worker, settings)
        first_patch, apart_notice = self._deleting("") | (once_taken or {}), ""
        saved_s: float | None = None
        for view in self._controller.answer(turns_asked, generation, request, go_on=go_on):
            if view.refused:
                yield self._patch(replace(view, turns=turns_on_page)) | (if_unanswered or {})
                return
            has_answer = view.keep or bool(view.turns[-1].reply)
            is_begun = save_early or (has_answer and not view.failed)
            if not is_begun and not view.running:
                view = replace(view, turns=turns_on_page)
                first_patch |= if_unanswered or {}
            patch = (
                self._patch(replace(view, status=f"{view.status} {apart_notice}".strip()))
                | first_patch
            )
            if not is_begun:  # nothing takes the place of what is kept yet
                patch[ui.turns] = turns_on_page
            now_s = time.monotonic()
            due = saved_s is None or (view.running and now_s - saved_s >= SAVE_EVERY_S)
            if (view.keep and is_begun) or (save_early and due):
                try:
                    with self._chats.page(request):
                        if not self._holds(view, request):
                            return
                        saved = self._saved(view.turns, chat, request, view.status)
                except Exception:
                    # The page would wait for an answer otherwise.
                    yield self._patch(replace(view, running=False)) | first_patch
                    raise
                if saved_s is not None and not view.keep:  # a name may be being typed
                    title_parts = (ui.saved, ui.title)
                    saved = {part: new for part, new in saved.items() if part not in title_parts}
                if saved.get(ui.chat_id, chat) != chat and chat is not None:
                    apart_notice = self._text(request)["chats.apart"]
                chat, saved_s = saved.get(ui.chat_id, chat), now_s
                patch |= saved
            first_patch = {}
            yield patch

    def _holds(self, view: ChatView, request: gr.Request) -> bool:
        """False once the page has left the job that answers."""
        return view.job is None or self._controller.page_jobs.holds(request, view.job)

    def _saved(
        self, turns: tuple[Turn, ...], chat: int | None, request: gr.Request, status: str = ""
    ) -> Patch:
        """Keep the conversation; the components that name it.

        Where another window has changed it meanwhile, it is kept as one of its own, and the status
        line says so after `status`.
        """
        ui = self._components
        try:
            number = self._chats.save(chat, turns, request)
        except DiskFull:
            language = self._controller.services.language(request)
            return {ui.status: status_line(translations("shell", language)["full"])}
        choices = self._chats.choices(request)
        title = next((title for title, listed in choices if listed == number), "")
        named = {
            ui.chat_id: number,
            ui.saved: gr.update(choices=choices, value=number),
            ui.title: title,
        }
        if number != chat:
            named |= self._deleting("")  # which named another conversation
        if chat is None or number in (None, chat):
            return named
        apart = self._text(request)["chats.apart"]
        return named | {ui.status: status_line(f"{status} {apart}".strip())}

    def _listed(self, request: gr.Request, chat: int | None) -> Any:
        return gr.update(choices=self._chats.choices(request), value=chat)

    def _text(self, request: gr.Request) -> dict[str, str]:
        return translations("chat", self._controller.services.language(request))

    def _patch(self, view: ChatView) -> Patch:
        ui = self._components
        idle = gr.update(interactive=not view.running)
        return {
            ui.turns: view.turns,
            ui.log: gr.update(value=messages(view.turns), feedback_value=feedback(view.turns)),
            ui.status: status_line(view.status),
            ui.stop: gr.update(interactive=view.running),
            **dict.fromkeys((ui.send, ui.make, ui.regenerate, ui.go_on), idle),
        }


def _policy_choices(worker: Worker, language: str) -> list[tuple[str, str]]:
    policies = worker.policies()
    newest = translations("chat", language)["policy.newest"].format(policy=policies[-1])
    return [(newest, NEWEST), *((policy, policy) for policy in policies)]


def _generation_request(worker: Worker, settings: tuple[Any, ...]) -> GenerationRequest:
    """The settings that a browser sent, clamped to their limits; the default for missing ones.

    The default policy is the newest, as is that of `NEWEST`.
    """
    policy, *values = settings
    system, length, seed, remember, stop_texts = values[len(SHAPING) :]
    shaping = {
        name: _clamped(value, *SHAPING[name], getattr(SamplingSettings, name))
        for name, value in zip(SHAPING, values, strict=False)
    }
    policies = worker.policies()
    sampling = SamplingSettings(
        temperature=shaping["temperature"],
        top_p=shaping["top_p"],
        top_k=int(shaping["top_k"]),
        min_p=shaping["min_p"],
        repetition_penalty=shaping["repetition_penalty"],
        stop=_stop_texts(stop_texts),
        max_new_tokens=int(_clamped(length, 1, MAX_NEW_TOKENS, _default_length(worker.settings))),
        seed=int(_clamped(seed, 0, _MAX_SEED, 0)),
        system=str(system or "").strip() if worker.settings.template == "chat" else "",
    )
    return GenerationRequest(
        policy if policy in policies else policies[-1], sampling, bool(remember)
    )


def _stop_texts(written: Any) -> tuple[str, ...]:
    """One text a line, in which a backslash and an n stand for a line break."""
    lines = str(written or "").splitlines()
    texts = [line[:MAX_STOP_CHARS].replace("\\n", "\n") for line in lines if line.strip()]
    return tuple(dict.fromkeys(texts))[:MAX_STOP_TEXTS]


def _default_length(settings: Loop) -> int:
    return min(MAX_NEW_TOKENS, settings.sampling.max_new_tokens)


def _clamped(value: Any, low: float, high: float, default: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return default
    is_nan = number != number
    return default if is_nan else min(high, max(low, number))
