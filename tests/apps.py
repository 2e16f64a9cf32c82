"""The app for tests: with tabs that stand in, in this process or in one that may be killed."""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gradio as gr

from alpaca_rlhf.preferences.assignment import Refused, Rules, Verdict
from alpaca_rlhf.preferences.store import Store
from alpaca_rlhf.ui.app import environment, listening, server
from alpaca_rlhf.ui.app.build import Tab
from alpaca_rlhf.ui.app.data import Exports, data_tab
from alpaca_rlhf.ui.app.services import Services

SECRET = b"a secret of thirty-two bytes....".ljust(32)


def stand_in(services: Services) -> None:
    """What the Rank tab's endpoint does, as far as the load needs it, and a button."""

    def answer(sent: str, request: gr.Request) -> str:
        who, asked = services.account(request), json.loads(sent)
        try:
            if asked["do"] == "next":
                task = services.store.claim(who.id)
                if task is None:
                    return json.dumps({"task": None, "annotator": who.id})
                answers = [{"id": one.id} for one in task.completions]
                shown = {"id": task.id, "revision": task.revision, "answers": answers}
                return json.dumps({"task": shown, "annotator": who.id})
            tiers = tuple(tuple(tier) for tier in asked["tiers"])
            verdict = Verdict(tiers, input_method=asked["method"])
            saved = services.store.submit(
                who.id, asked["task"], verdict, revision=asked["revision"]
            )
            return json.dumps({"already": saved.already, "annotator": who.id})
        except Refused as refused:
            return json.dumps({"problem": refused.problem})

    gr.api(answer, api_name="rank", queue=False, api_visibility="private")
    note = gr.Textbox(label="Draft", elem_id="draft")
    button, said = gr.Button("Say who"), gr.Textbox(label="Said", elem_id="said")

    def say(request: gr.Request) -> str:
        return services.account(request).name

    button.click(say, None, said, api_name="who")
    note.submit(lambda text: text, note, said, api_name="echo")


def exports(folder: Path) -> Exports:
    """Snapshots within a folder."""
    return Exports(folder, lambda one: f"alpaca-rlhf reward --inputs.rankings {one}", False)


def house(store: Store, folder: Path, *, local: bool = True, real: bool = False, **given: Any):
    """The app with the real Data tab; the Rank tab too where it is there and `real`."""
    rank = stand_in
    if real and find_spec("alpaca_rlhf.ui.app.rank") is not None:
        from alpaca_rlhf.ui.app import rank as module

        rank = module.rank_tab
    tabs = [
        Tab("rank", lambda services: (rank(services), None)[1]),
        Tab("data", partial(data_tab, exports=exports(folder / "snapshots")), admin=True),
    ]
    place = server.Place("runs/mine", folder / "snapshots", ["localhost", "testserver"], local)
    return server.make(store, given.pop("secret", SECRET), tabs, place, **given)


def main(where: str, port: int) -> None:
    """Serve in this process until it is killed."""
    environment.own_environment()
    rules = Rules(gold_rate=0, repeat_rate=0)
    with Store(where, rules=rules) as store:
        app = house(store, Path(os.environ["APP_FOLDER"]), real=True)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        socket = listening.listen("127.0.0.1", port, port)
        server.serve(app, socket, behind_proxy=False, ready=lambda: None)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
