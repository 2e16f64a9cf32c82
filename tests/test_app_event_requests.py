"""What no page sends to the Chat and Compare tabs: nulls, and clicks that tell nothing."""

from __future__ import annotations

from functools import partial

import pytest
from starlette.testclient import TestClient

from alpaca_rlhf.app.chat_tab import chat_tab
from alpaca_rlhf.app.compare_tab import compare_tab
from alpaca_rlhf.app.page_layout import Tab
from alpaca_rlhf.app.worker import Worker
from alpaca_rlhf.preferences.store import Store
from tests import apps
from tests.model_app import Echo, make_run

HOME = "http://testserver"
EDIT = {"index": 0, "previous_value": "a", "value": "b"}
LIKE = {"index": 0, "value": "a", "liked": True}


@pytest.fixture(scope="module")
def client(tmp_path_factory, tiny_folder):
    folder = tmp_path_factory.mktemp("hostile")
    run = make_run(folder / "run", tiny_folder)
    worker = Worker(run, load=lambda: Echo(lambda *_: "."), gpu_folder=folder / "gpu")
    tabs = [Tab("chat", partial(chat_tab, worker=worker))]
    tabs += [Tab("compare", partial(compare_tab, worker=worker))]
    with (
        Store(folder / "preferences.db", seed=0) as store,
        TestClient(apps.house(store, folder, tabs=tabs), base_url=HOME) as client,
    ):
        client.headers["origin"] = HOME
        yield client
    worker.close()


def joined(client, row, event_data, values=None):
    """Send an event with such values of its fields, or with nulls; the status of the answer."""
    data = [(values or {}).get(number) for number in row["inputs"]]
    body = {"data": data, "fn_index": row["id"], "session_hash": "abc"}
    answer = client.post("/gradio_api/queue/join", json={**body, "event_data": event_data})
    if answer.status_code == 200:
        with client.stream(
            "GET", "/gradio_api/queue/data", params={"session_hash": "abc"}
        ) as stream:
            list(stream.iter_lines())
    return answer.status_code


def page(client):
    """The events of the page, and the values that its fields begin with."""
    config = client.get("/config").json()
    values = {row["id"]: row["props"].get("value") for row in config["components"]}
    return [row for row in config["dependencies"] if row["backend_fn"]], values


@pytest.mark.parametrize("wrong", [None, {}])
def test_what_no_field_holds_is_no_traceback(client, capfd, wrong):
    """Nulls and their like in all fields of an event, then in one after the other."""
    events, values = page(client)
    tried = []
    for row in events:
        tried.append(joined(client, row, {}, dict.fromkeys(values, wrong)))
        for number in row["inputs"]:
            tried.append(joined(client, row, {}, {**values, number: wrong}))
    assert len(tried) > 60 and set(tried) == {200, 422}
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(("name", "whole"), [("edit", EDIT), ("like", LIKE)])
def test_a_click_that_tells_nothing_is_refused(client, capfd, name, whole):
    events, values = page(client)
    rows = [row for row in events if any(kind == name for _, kind in row["targets"])]
    assert len(rows) == 1
    wrong = [None, [], 5, "index", {}, {**whole, "index": None}, {**whole, "index": []}]
    wrong += [{**whole, "index": "0"}, {**whole, "index": [None]}, {**whole, "index": 0.5}]
    wrong += [{key: value for key, value in whole.items() if key != "value"}]
    assert [joined(client, rows[0], data, values) for data in wrong] == [422] * len(wrong)
    for index in (0, -1, 10**30, [0, 1]):
        assert joined(client, rows[0], {**whole, "index": index}, values) == 200
    assert "Traceback" not in capfd.readouterr().err
