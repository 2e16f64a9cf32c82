"""The firewall and the queue of an app whose run goes on: prompts of later rounds, new rows."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from alpaca_rlhf.app.chat_controller import ChatController
from alpaca_rlhf.app.compare_controller import CompareController
from alpaca_rlhf.app.language import translations
from alpaca_rlhf.app.prefetch import keep_filled
from alpaca_rlhf.app.services import Services
from alpaca_rlhf.app.worker import Worker
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import write_instructions
from alpaca_rlhf.preferences.people import Account
from alpaca_rlhf.preferences.store import Store
from alpaca_rlhf.serving import run_contents
from alpaca_rlhf.settings import PPO, BestOfK, Evaluate, Inputs, Loop, Rank
from alpaca_rlhf.settings.parsing import to_yaml
from alpaca_rlhf.sources.run_prompts import RunPrompts
from tests.model_app import prompts
from tests.test_app_prompt_upload import Answers

ANN = Account(1, "ann", "admin", "en")
TEXT = translations("chat", "en")


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "p.db", seed=0) as opened:
        opened.add_annotator("ann", "long enough", role="admin")
        yield opened


@pytest.fixture
def begun(tmp_path) -> Loop:
    """A run on the user's files, with the folder of an SFT adapter."""
    out = tmp_path / "run"
    write_instructions(tmp_path / "prompts.jsonl", prompts(60))
    return folder_of(
        Loop(
            out=out,
            rank=Rank(prompts=5),
            ppo=PPO(batch_size=5, minibatch_size=5),
            best_of_k=BestOfK(prompts=5),
            evaluate=Evaluate(prompts=5),
            inputs=Inputs(seeds=Path("shipped"), prompts=tmp_path / "prompts.jsonl", judge="human"),
        )
    )


def folder_of(settings: Loop) -> Loop:
    adapter = settings.out / "sft" / "adapter" / "adapter_config.json"
    adapter.parent.mkdir(parents=True, exist_ok=True)
    adapter.write_text("{}")
    (settings.out / "config.yaml").write_text(to_yaml(settings))
    return settings


def one_more_round(settings: Loop) -> dict[str, list[Instruction]]:
    """What `--more-rounds 1` leaves in the folder, and its splits."""
    folder_of(replace(settings, more_rounds=1))
    longer = run_contents.settings_of(settings.out)
    return RunPrompts(settings.out, longer).splits


def tabs_of(settings: Loop, store: Store) -> SimpleNamespace:
    worker = Worker(settings.out, load=Answers, has_gpu=lambda: False)
    services = Services(store, lambda request: ANN, lambda request: "en")
    return SimpleNamespace(
        worker=worker,
        chat=ChatController(services, worker),
        compare=CompareController(services, worker),
    )


def refused(app: SimpleNamespace, prompt: Instruction) -> str:
    near = Instruction(f"{prompt.instruction}?")
    return app.chat.leak_refusal(near, "refused", TEXT)


def test_prompts_of_an_added_round_are_kept_out_of_the_ranking(begun, store):
    app = tabs_of(begun, store)
    before = app.worker.prompts
    assert set(before.splits) == {"sft", "rank", "ppo", "dev", "eval"}
    assert app.worker.prompts is before, "nothing is read anew until something changes"
    splits = one_more_round(begun)
    later = next(row for row in splits["ppo.2"] if before.leak(row) is None)
    assert refused(app, later) == TEXT["refused.ppo"]
    assert refused(app, splits["rank.2"][0]) == ""


def test_rows_that_are_generated_meanwhile_are_kept_out_of_the_ranking(begun, store):
    app = tabs_of(begun, store)
    row = Instruction("Describe how a lighthouse keeper mends a broken lamp.", output="With oil.")
    assert refused(app, row) == ""
    generated = begun.out / "generate" / "rows.jsonl"
    generated.parent.mkdir()
    write_instructions(generated, [row])
    assert refused(app, row) == TEXT["refused.sft"]


def test_the_end_of_a_stage_is_enough_to_look_again(begun, store):
    app = tabs_of(begun, store)
    before = app.worker.prompts
    (begun.out / "ledger.json").write_text('{"sft": {}}')
    second = app.worker.prompts
    assert second is not before
    os.utime(begun.out / "ledger.json", ns=(1, 1))
    assert app.worker.prompts is not second


def test_the_queue_is_topped_up_with_the_prompts_of_an_added_round(begun, store):
    worker = Worker(begun.out, load=Answers, has_gpu=lambda: False)
    offered: list = []
    worker.when_idle = offered.append
    keep_filled(store, worker)
    server, stop = Answers(), SimpleNamespace(is_set=lambda: False)
    [find_work] = offered
    list(find_work()(server, stop))
    first = list(server.asked)
    assert len(first) == 5 and find_work() is None
    splits = one_more_round(begun)
    list(find_work()(server, stop))
    asked = set(server.asked[5:])
    assert {row.instruction for row in splits["rank.2"]} <= asked and find_work() is None
