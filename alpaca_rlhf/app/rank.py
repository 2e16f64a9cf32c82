"""The Rank tab: people put the answers to a prompt in order, and no order is lost.

The board asks one endpoint for everything, in JSON. Each message may be sent again after a lost
answer: what was done already is not done twice.
"""

from __future__ import annotations

import json
from typing import Any

import gradio as gr
from gradio.events import api

from alpaca_rlhf.app.board import Asked, rank_board, read
from alpaca_rlhf.app.language import words
from alpaca_rlhf.app.services import Services
from alpaca_rlhf.preferences.assignment import Refused, Task
from alpaca_rlhf.preferences.database import DiskFull
from alpaca_rlhf.preferences.store import Store

ENDPOINT = "rank"
"""Name of the endpoint among those of the app."""
LOOK_AGAIN_S = 10.0
"""Seconds between two looks at an empty queue."""

Reply = dict[str, Any]


def rank_tab(services: Services, *, refill: str = "alpaca-rlhf sample --run RUN") -> gr.HTML:
    """Build the tab; call it within `gr.Blocks`.

    Args:
        services: What every tab is given.
        refill: The command that fills the queue.

    Returns:
        The board. It claims no task before it is on screen.
    """

    def answer(sent: str, request: gr.Request) -> str:
        return json.dumps(reply(services, sent, request))

    api(answer, api_name=ENDPOINT, queue=False, api_visibility="private")
    return rank_board(ENDPOINT, look_again_s=LOOK_AGAIN_S, refill=refill)


def reply(services: Services, sent: str, request: gr.Request) -> Reply:
    """Answer one message of the board.

    Args:
        services: What every tab is given.
        sent: The message, as the browser sent it.
        request: Who sends it.

    Returns:
        What was asked for, or `problem` with a `message` in the language of the request.
    """
    language = services.language(request)
    says = words("rank", language)
    try:
        account = services.account(request)
        got = _done(services.store, account.id, read(sent))
    except gr.Error:
        return {"problem": "signed_out", "message": says["problem.signed_out"]}
    except DiskFull:
        return {"problem": "full", "message": says["problem.full"]}
    except Refused as refused:
        problem = refused.problem
        got = {"problem": problem, "message": says[f"problem.{problem}"]}
    return got | {"annotator": account.id, "language": language}


def _done(store: Store, annotator: int, asked: Asked) -> Reply:
    if asked.do == "next":
        return {"task": _shown(store.claim(annotator, holding=asked.holding))}
    if asked.do == "renew":
        _keep_held(store, annotator, asked)
        store.renew(annotator, asked.task, shown=asked.shown)
    elif asked.do == "submit" and asked.verdict is not None:
        saved = store.submit(annotator, asked.task, asked.verdict, revision=asked.revision)
        return {"already": saved.already}
    elif asked.do == "undo":
        return {"task": _shown(store.undo(annotator, asked.task or None))}
    elif asked.do == "skip":
        store.skip(annotator, asked.task, asked.reason)
    elif asked.do == "flag":
        given = asked.reason, asked.words
        store.flag(annotator, asked.task, *given, completion=asked.completion)
    elif asked.do == "progress":
        now = store.progress(annotator)
        left = now.sets - now.sets_ranked
        return {
            "mine": now.mine,
            "today": now.mine_today,
            "hour": now.mine_last_hour,
            "left": left,
            "sets": now.sets,
        }
    return {}


def _keep_held(store: Store, annotator: int, asked: Asked) -> None:
    """Keep also what the page has fetched ahead; what is lost of that shows when its turn comes."""
    for one in asked.holding:
        if one != asked.task:
            try:
                store.renew(annotator, one)
            except Refused:
                continue


def _shown(task: Task | None) -> Reply | None:
    """A task as the page gets it: nothing says why it is shown, or who wrote what."""
    if task is None:
        return None
    prompt = task.prompt
    return {
        "id": task.id,
        "revision": task.revision,
        "instruction": prompt.instruction,
        "input": prompt.input,
        "history": prompt.history,
        "answers": [{"id": one.id, "text": one.text, "cut": one.cut} for one in task.completions],
        "lease_s": task.lease_s,
        "tiers": task.tiers,
        "criteria": {one: dict(stars) for one, stars in task.criteria.items()},
    }
