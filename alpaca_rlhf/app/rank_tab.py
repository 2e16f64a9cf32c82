"""The Rank tab: people put the answers to a prompt in order, and no order is lost.

The board uses one endpoint for everything, in JSON. Each message may be sent again after a lost
response: an action that was done already is not done twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import gradio as gr
from gradio.events import api

from alpaca_rlhf.app.board import BoardRequest, markup_tree, parse_request, rank_board
from alpaca_rlhf.app.language import label, translations
from alpaca_rlhf.app.rendering import render
from alpaca_rlhf.app.services import Services
from alpaca_rlhf.core.prompts import system_folded
from alpaca_rlhf.preferences.assignment import Refused, Task
from alpaca_rlhf.preferences.database import DiskFull
from alpaca_rlhf.preferences.store import Store

ENDPOINT = "rank"
"""Name of the endpoint among those of the app."""
POLL_EMPTY_QUEUE_S = 10.0
"""Seconds between two looks at an empty queue."""

OWN_PER_PAGE = 10
"""Own verdicts listed at once."""

Reply = dict[str, Any]


def rank_tab(
    services: Services, *, refill: str = "alpaca-rlhf sample --run RUN"
) -> Callable[[gr.Tab], None]:
    """Build the tab; call it within `gr.Blocks`.

    Args:
        services: Store, accounts and language.
        refill: The command that fills the queue, for admins who find it empty.

    Returns:
        A function of the `gr.Tab` around it: the guidelines are read anew when that opens. The
        board claims no task before it is on screen.
    """

    def endpoint(message: str, request: gr.Request) -> str:
        return json.dumps(reply(services, message, request, refill=refill))

    api(endpoint, api_name=ENDPOINT, queue=False, api_visibility="private")
    # Markdown goes into a value, which Gradio sanitises, and never into a template.
    with gr.Accordion(label("rank", "guidelines"), visible=False, elem_id="guidelines") as panel:
        markdown = gr.Markdown("", sanitize_html=True)
    # The board reads here which version is on screen; a closed panel may not be in the page.
    version = gr.HTML("", elem_id="guidelines-version", padding=False, apply_default_css=False)
    board = rank_board(ENDPOINT, poll_s=POLL_EMPTY_QUEUE_S)

    def show_guidelines(request: gr.Request) -> tuple[Any, str, str]:
        services.account(request)
        guidelines = services.store.guidelines()
        if guidelines is None:
            return gr.update(visible=False), "", render("rank_guidelines", version=0)
        text = translations("rank", services.language(request))
        title = text["guidelines.version"].format(n=guidelines.version)
        return (
            gr.update(visible=bool(guidelines.text), label=title),
            guidelines.text,
            render("rank_guidelines", version=guidelines.version),
        )

    shown = [panel, markdown, version]
    options: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    gr.on(None, show_guidelines, None, shown, **options)  # when the page opens
    board.submit(show_guidelines, None, shown, **options)  # when the board hears of a newer version

    def show_on_open(tab: gr.Tab) -> None:
        tab.select(show_guidelines, None, shown, **options)

    return show_on_open


def reply(services: Services, message: str, request: gr.Request, *, refill: str = "") -> Reply:
    """Answer one message of the board.

    Args:
        services: Store, accounts and language.
        message: The message, as the browser sent it.
        request: The request that carries it.
        refill: The command that fills the queue, for admins who find it empty.

    Returns:
        The result, or `problem` with a `message` in the language of the request.
    """
    language = services.language(request)
    text = translations("rank", language)
    try:
        account = services.account(request)
        result = _perform(services.store, account.id, parse_request(message))
        if account.role == "admin" and result.get("task", "") is None:
            result["refill"] = refill
    except gr.Error:
        return {"problem": "signed_out", "message": text["problem.signed_out"]}
    except DiskFull:
        return {"problem": "full", "message": text["problem.full"]}
    except Refused as refused:
        result = {"problem": refused.problem, "message": text[f"problem.{refused.problem}"]}
    return result | {
        "annotator": account.id,
        "language": language,
        "guideline": services.store.guideline_version(),
    }


def _perform(store: Store, annotator: int, board_request: BoardRequest) -> Reply:
    if board_request.action == "next":
        return {"task": _task_json(store.claim(annotator, holding=board_request.holding))}
    # A renewal that starts the clock of the task on screen also keeps the prefetched ones.
    if board_request.action == "renew":
        _renew_prefetched(store, annotator, board_request)
        store.renew(annotator, board_request.task, shown=board_request.on_screen)
    elif board_request.action == "submit" and board_request.verdict is not None:
        saved = store.submit(
            annotator, board_request.task, board_request.verdict, revision=board_request.revision
        )
        if not saved.counts:
            raise Refused("other_verdict", "another verdict on this task was kept before")
        return {"already": saved.already}
    elif board_request.action == "undo":
        return {"task": _task_json(store.undo(annotator, board_request.task or None))}
    elif board_request.action == "skip":
        store.skip(annotator, board_request.task, board_request.reason)
    elif board_request.action == "flag":
        store.flag(
            annotator,
            board_request.task,
            board_request.reason,
            board_request.comment,
            completion=board_request.completion,
        )
    elif board_request.action == "mine":
        page = store.own_verdicts(annotator, before=board_request.before, n=OWN_PER_PAGE)
        return {
            "verdicts": [asdict(verdict) for verdict in page],
            "more": len(page) == OWN_PER_PAGE,
        }
    elif board_request.action == "progress":
        progress = store.progress(annotator)
        return {
            "mine": progress.mine,
            "today": progress.mine_today,
            "hour": progress.mine_last_hour,
            "left": progress.mine_left,
        }
    return {}


def _renew_prefetched(store: Store, annotator: int, board_request: BoardRequest) -> None:
    """Renew the leases of prefetched tasks too; a lost one shows when its turn comes."""
    for task in board_request.holding:
        if task != board_request.task:
            try:
                store.renew(annotator, task)
            except Refused:
                continue


def _task_json(task: Task | None) -> Reply | None:
    """A task for the page, which must not tell why it is shown, or which policy wrote what."""
    if task is None:
        return None
    prompt = system_folded(task.prompt)
    return {
        "id": task.id,
        "revision": task.revision,
        "instruction": prompt.instruction,
        "input": prompt.input,
        "history": prompt.history,
        "shown": {
            "instruction": markup_tree(prompt.instruction),
            "input": markup_tree(prompt.input),
            "history": [[markup_tree(text) for text in turn] for turn in prompt.history],
        },
        "answers": [
            {
                "id": answer.id,
                "text": answer.text,
                "cut": answer.cut,
                "shown": markup_tree(answer.text),
            }
            for answer in task.completions
        ],
        "lease_s": task.lease_s,
        "tiers": task.tiers,
        "criteria": {answer_id: dict(stars) for answer_id, stars in task.criteria.items()},
        "better": {
            "text": task.better.text if task.better else "",
            "from": task.better.edited_from if task.better else "",
        },
    }
