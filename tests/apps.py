"""The app for tests: with tabs that stand in, in this process or in one that may be killed."""

from __future__ import annotations

import json
import logging
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import gradio as gr
import uvicorn

from alpaca_rlhf.app import environment, server, server_socket
from alpaca_rlhf.app.added_answers import AddedAnswers
from alpaca_rlhf.app.chat_tab import chat_tab
from alpaca_rlhf.app.compare_tab import compare_tab
from alpaca_rlhf.app.connections import ConnectionLimits
from alpaca_rlhf.app.data_tab import Exports, data_tab
from alpaca_rlhf.app.new_run import Offer
from alpaca_rlhf.app.new_run_page import NewRuns, RunSwitch
from alpaca_rlhf.app.page_layout import Tab
from alpaca_rlhf.app.prompt_upload import PromptUpload
from alpaca_rlhf.app.rank_tab import rank_tab
from alpaca_rlhf.app.run_choice import RunChoice
from alpaca_rlhf.app.services import Services
from alpaca_rlhf.app.tabs import AppTabs
from alpaca_rlhf.app.train_tab import TrainPage, train_tab
from alpaca_rlhf.app.training import Training, TrainingCommand
from alpaca_rlhf.app.worker import Worker
from alpaca_rlhf.core.records import Completion, Instruction
from alpaca_rlhf.preferences.assignment import Refused, Rules, Verdict
from alpaca_rlhf.preferences.store import Store
from alpaca_rlhf.serving import run_contents
from tests.browser import free_port
from tests.model_app import Echo, run_without_weights

SECRET = b"a secret of thirty-two bytes....".ljust(32)


def stand_in(services: Services) -> None:
    """The Rank tab's endpoint, as far as the load needs it, and a button."""

    def answer(sent: str, request: gr.Request) -> str:
        account, message = services.account(request), json.loads(sent)
        try:
            if message["do"] == "next":
                task = services.store.claim(account.id)
                if task is None:
                    return json.dumps({"task": None, "annotator": account.id})
                answers = [{"id": answer.id} for answer in task.completions]
                task_json = {"id": task.id, "revision": task.revision, "answers": answers}
                return json.dumps({"task": task_json, "annotator": account.id})
            tiers = tuple(tuple(tier) for tier in message["tiers"])
            verdict = Verdict(tiers, input_method=message["method"])
            saved = services.store.submit(
                account.id, message["task"], verdict, revision=message["revision"]
            )
            return json.dumps({"already": saved.already, "annotator": account.id})
        except Refused as refused:
            return json.dumps({"problem": refused.problem})

    gr.api(answer, api_name="rank", queue=False, api_visibility="private")
    note = gr.Textbox(label="Draft", elem_id="draft")
    button, name_shown = gr.Button("Say who"), gr.Textbox(label="Said", elem_id="said")

    def say(request: gr.Request) -> str:
        return services.account(request).name

    button.click(say, None, name_shown, api_name="who")
    note.submit(lambda text: text, note, name_shown, api_name="echo")


STARTED = "started.json"
"""File in the run folder that the stand-in for the training command of `all_tabs` writes."""


def all_tabs(store: Store, run: Path, switch: Callable[[RunSwitch], None]) -> AppTabs:
    """Every tab of the product on a run without weights, beside a run called `other`.

    The model is an echo, and the command of the training only notes that it was called.

    Args:
        store: The preferences.
        run: The run folder; made here.
        switch: Called with the run that the app is to go on with.
    """
    run_without_weights(run)
    other = run.parent / "other"
    other.mkdir()
    (other / "config.yaml").write_text((run / "config.yaml").read_text())
    worker = Worker(
        run, load=lambda: Echo(lambda policy, row, j: f"answer {j}"), has_gpu=lambda: False
    )
    note = f"import pathlib; pathlib.Path({str(run / STARTED)!r}).write_text('started')"
    command = TrainingCommand([sys.executable, "-c", note], "alpaca-rlhf loop --out mine")
    training = Training(run, store, command.words, allowed=True, gpu_folder=run / "card")
    page = TrainPage(training, store, command)
    new_runs = NewRuns(store, RunChoice(run), Offer(), closed=None, switch=switch)
    answers = AddedAnswers(store, worker)
    upload = PromptUpload(store, answers, lambda: (run_contents.settings_of(run), lambda row: True))
    return AppTabs(
        [
            Tab("rank", stand_in),
            Tab("chat", partial(chat_tab, worker=worker)),
            Tab("compare", partial(compare_tab, worker=worker)),
            Tab("train", partial(train_tab, page=page, new_runs=True), admin=True),
            Tab(
                "data",
                partial(data_tab, exports=exports(run / "snapshots"), upload=True),
                admin=True,
            ),
        ],
        worker,
        page,
        new_runs,
        upload,
    )


def exports(folder: Path) -> Exports:
    """Snapshots within a folder."""
    command = "alpaca-rlhf reward --inputs.rankings {}".format
    return Exports(folder, command, lambda: False)


def data_tab_of(folder: Path) -> Any:
    """The real Data tab, with its snapshots within a folder."""
    return partial(data_tab, exports=exports(folder / "snapshots"))


def house(store: Store, folder: Path, *, local: bool = True, real: bool = False, **options: Any):
    """The app with the real Data tab, and where `real` the real Rank tab."""
    tabs = options.pop("tabs", None) or [
        Tab("rank", rank_tab if real else stand_in),
        Tab("data", data_tab_of(folder), admin=True),
    ]
    deployment = server.Deployment(
        options.pop("run", "runs/mine"),
        folder / "snapshots",
        ["localhost", "testserver"],
        local,
        options.pop("origin", ""),
        options.pop("prefix", ""),
    )
    return server.build_app(store, options.pop("secret", SECRET), tabs, deployment, **options)


@contextmanager
def serving(app: Any, port: int | None = None) -> Iterator[str]:
    """The address of an app that is served from this process."""
    config = uvicorn.Config(
        app, port=port or free_port(), log_level="error", timeout_graceful_shutdown=1
    )
    server_ = uvicorn.Server(config)
    thread = threading.Thread(target=server_.run)
    thread.start()
    try:
        while not server_.started:
            assert thread.is_alive()
            time.sleep(0.05)
        yield f"http://127.0.0.1:{config.port}"
    finally:
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        server_.should_exit = True
        thread.join()


@contextmanager
def served_as_product(
    app: Any, limits: ConnectionLimits, *, behind_proxy: bool = False, port: int | None = None
) -> Iterator[int]:
    """The port of an app behind the product's own server, with its limits of connections."""
    servers: list[Any] = []

    class Stoppable(server._Server):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            servers.append(self)

    ready = threading.Event()
    listener = server_socket.listen("127.0.0.1", None, port or free_port())
    thread = threading.Thread(
        target=server.serve,
        args=(app, listener),
        kwargs={"behind_proxy": behind_proxy, "on_ready": ready.set, "limits": limits},
    )
    with (
        mock.patch("signal.signal"),  # only the main thread may
        mock.patch.object(server, "_Server", Stoppable),
    ):
        thread.start()
        try:
            assert ready.wait(60)
            yield listener.getsockname()[1]
        finally:
            for running in servers:
                running.should_exit = True
            thread.join(20)


HOSTILE = [
    "<img src=x onerror=window.hit=1>",
    "${window.hit=1}",
    "{{window.hit=1}} <script>window.hit=1</script>",
    "`;window.hit=1;`",
    '" onmouseover="window.hit=1',
    "=HYPERLINK(1)",
]
"""Texts that must be shown as they are wherever they stand."""


def fill(store: Store, *, people: int = 3, sets: int = 40) -> list[int]:
    """Somebody's work: hostile names, prompts and flags; overlaps enough for the agreement."""
    rows = []
    for i in range(sets):
        prompt = Instruction(f"Prompt {i}: {HOSTILE[i % len(HOSTILE)]}", source="test")
        texts = [f"{HOSTILE[(i + j) % len(HOSTILE)]} {j}" for j in range(4)]
        completions = [
            Completion(prompt.id, text, "ab12", sample=j) for j, text in enumerate(texts)
        ]
        rows.append((prompt, completions))
    store.add_sets(rows, origin="test")
    annotators = [store.add_annotator(HOSTILE[i], "long enough") for i in range(people)]
    rng = random.Random(0)
    for _ in range(2):
        for annotator in annotators:
            for at in range(sets):
                task = store.claim(annotator)
                if task is None:
                    break
                ids = [completion.id for completion in task.completions]
                if at % 9 == 8:
                    reason = HOSTILE[at % len(HOSTILE)][:32]
                    store.flag(
                        annotator, task.id, reason, "Look: " + HOSTILE[at % 5], completion=ids[0]
                    )
                    continue
                rng.shuffle(ids)
                ids = sorted(ids) if rng.random() < 0.7 else ids
                tiers = (
                    tuple((x,) for x in ids) if at % 4 else ((ids[0], ids[1]), (ids[2],), (ids[3],))
                )
                store.submit(annotator, task.id, Verdict(tiers), revision=task.revision)
    for i in range(24):
        prompt, completions = rows[0]
        sides = (("sft", completions[0].id), ("ppo", completions[1].id))
        pairing = store.battle(annotators[0], prompt.id, sides)
        left_is_ppo = pairing.left == completions[1].text
        vote = "tie" if i % 6 == 0 else "left" if left_is_ppo == (i % 3 > 0) else "right"
        store.vote(annotators[0], pairing.round, vote)
    return annotators


def main(where: str, port: int) -> None:
    """Serve in this process until it is killed."""
    environment.isolate_environment()
    rules = Rules(gold_rate=0, repeat_rate=0)
    with Store(where, rules=rules) as store:
        app = house(store, Path(os.environ["APP_FOLDER"]), real=True)
        socket = server_socket.listen("127.0.0.1", port, port)
        server.serve(app, socket, behind_proxy=False, on_ready=lambda: None)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
