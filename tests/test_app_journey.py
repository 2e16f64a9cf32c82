"""The loop in the browser: chat, rank, train, compare and go round again, without a terminal."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import write_instructions
from alpaca_rlhf.pipeline import run_loop
from alpaca_rlhf.settings import PPO, Evaluate, Inputs, Rank, Reward
from tests.browser import NO_CHROMIUM, browser, chromium, free_port, visit
from tests.screenshots import open_tab
from tests.test_app_rank import number, submit
from tests.test_app_train import served
from tests.whole_run import Quiet, small

PROMPTS = 10
"""Prompts that people rank in each round."""
WORDS = "apple river stone cloud horse paper green seven music winter garden copper".split()


@pytest.fixture
def sampled(tmp_path) -> Path:
    """A small run on the embedded base and files of its own, which waits for people to rank."""
    rng = random.Random(3)
    rows = [Instruction(f"{i} " + " ".join(rng.sample(WORDS, 7))) for i in range(60)]
    answered = [replace(row, output=f"Yes, {row.instruction}.") for row in rows[:20]]
    write_instructions(tmp_path / "rows.jsonl", answered)
    write_instructions(tmp_path / "prompts.jsonl", rows[20:])
    out = tmp_path / "mine"
    settings = small(
        out,
        inputs=Inputs(
            data=tmp_path / "rows.jsonl", prompts=tmp_path / "prompts.jsonl", judge="human"
        ),
        policies=("ppo",),
        rank=Rank(prompts=PROMPTS, k=3),
        reward=Reward(held_out=0.4, gate=0.0, batch_size=1),
        evaluate=Evaluate(prompts=4),
    )
    ppo: PPO = replace(settings.ppo, updates=4, batch_size=8, minibatch_size=8, micro_batch_size=8)
    run_loop(replace(settings, ppo=ppo), Quiet(), kind="loop", command="test", until="sample")
    return out


@pytest.mark.skipif(chromium() is None, reason=NO_CHROMIUM)
def test_a_person_goes_round_the_loop_twice_without_a_terminal(sampled):
    port = free_port()
    server = served(sampled, port)
    options = {
        "viewport": {"width": 1280, "height": 900},
        "locale": "en-GB",
        "reduced_motion": "reduce",
    }
    try:
        with browser() as opened, visit(opened, **options) as page:
            page.set_default_timeout(300_000)

            def enter() -> None:
                page.goto(f"http://127.0.0.1:{port}")
                page.locator("[data-account]").wait_for()

            def rank_all(n: int) -> None:
                page.locator(".rank[data-started=yes][aria-busy=false]").wait_for()
                for _ in range(n):
                    assert number(page)
                    page.locator(".card").first.focus()
                    page.keyboard.press("2")
                    submit(page)
                assert number(page) == ""

            # 1. A question in the chat becomes a task.
            enter()
            open_tab(page, "chat")
            page.locator("#chat-box textarea").fill("Name the colour of the lemon.")
            page.keyboard.press("Enter")
            page.locator("#chat-line", has_text="tokens").wait_for()
            page.locator("#chat-box textarea").fill("What does the dog say?")
            page.get_by_role("button", name="Make 4 and rank").click()
            page.locator("#chat-line", has_text="queue").wait_for()
            # 2. The tab brings people to the ranking, and back when it is enough.
            open_tab(page, "train")
            page.get_by_text(f"{PROMPTS} prompts are still to be ranked").wait_for()
            page.get_by_role("button", name="Rank now").click()
            rank_all(PROMPTS + 1)
            open_tab(page, "train")
            page.get_by_text("Enough prompts are ranked").wait_for()
            # 3. Training goes on while the server is killed; its curve moves.
            page.get_by_role("button", name="Train now").click()
            page.get_by_role("img", name="PPO: score").wait_for()
            server.kill()
            server.wait()
            server = served(sampled, port)
            enter()
            open_tab(page, "train")
            page.get_by_text("All stages are done").wait_for()
            # 4. The new policy against SFT, blind.
            open_tab(page, "compare")
            page.locator("#compare-draw").click()
            page.wait_for_function("document.querySelector('#compare-box textarea').value !== ''")
            page.locator("#compare-ask").click()
            page.locator("#compare-tie:enabled").click()
            page.locator("#compare-scores td").first.wait_for()
            # 5. The next round samples, and brings people back to the ranking.
            open_tab(page, "train")
            page.get_by_role("button", name="Next round").click()
            page.get_by_text(f"{PROMPTS} prompts are still to be ranked").wait_for()
            page.get_by_role("button", name="Rank now").click()
            rank_all(PROMPTS)
            open_tab(page, "train")
            page.get_by_role("button", name="Train now").click()
            page.get_by_text("All stages are done").wait_for()
            with page.expect_popup() as popup:
                page.get_by_role("link", name="Open the report").click()
            assert popup.value.locator("h1").count() == 1
    finally:
        server.kill()
        server.wait()
    ledger = json.loads((sampled / "ledger.json").read_text())
    assert {"rank", "ppo", "rank.2", "ppo.2", "evaluate"} <= set(ledger)
    assert {"ppo", "ppo.2"} <= set(json.loads((sampled / "report.json").read_text())["policies"])
