"""From *New run* to the next round in the browser, while the server is killed twice."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import write_instructions
from alpaca_rlhf.settings import Evaluate, Reward
from alpaca_rlhf.settings.parsing import to_yaml
from tests.browser import NO_CHROMIUM, browser, chromium, free_port, visit
from tests.model_app import nothing_serious
from tests.screenshots import open_tab
from tests.test_app_rank import number, submit
from tests.whole_run import small

ROOT = Path(__file__).resolve().parent.parent
LONG = 300
TO_RANK = 10
WORDS = "apple river stone cloud horse paper green seven music winter garden copper".split()
DESK = {
    "viewport": {"width": 1280, "height": 900},
    "locale": "en-GB",
    "reduced_motion": "reduce",
}


@pytest.fixture
def files(tmp_path) -> Path:
    """A recipe of the smallest numbers, and files that a person might upload."""
    rng = random.Random(3)
    rows = [Instruction(f"{i} " + " ".join(rng.sample(WORDS, 7))) for i in range(80)]
    answered = [replace(row, output=f"Yes, {row.instruction}.") for row in rows[:20]]
    write_instructions(tmp_path / "rows.jsonl", answered)
    write_instructions(tmp_path / "prompts.jsonl", rows[20:])
    recipe = small(
        tmp_path / "unused",
        policies=("ppo",),
        reward=Reward(held_out=0.4, gate=0.0, batch_size=1),
        evaluate=Evaluate(prompts=4, rerank=False),
    )
    ppo = replace(recipe.ppo, updates=3, batch_size=8, minibatch_size=8, micro_batch_size=8)
    (tmp_path / "recipe.yaml").write_text(to_yaml(replace(recipe, ppo=ppo)))
    return tmp_path


class Server:
    """`python app.py` in a folder without a run, which may be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def home(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        words = [sys.executable, str(ROOT / "app.py"), "--port", str(self.port)]
        words += ["--recipe", "recipe.yaml"]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            words, env=environment, cwd=self.folder, stdout=subprocess.DEVNULL
        )
        ends = time.monotonic() + LONG
        while True:
            assert self.process.poll() is None, "the app has ended"
            assert time.monotonic() < ends, "the app never came"
            try:
                urllib.request.urlopen(f"{self.home}/status", timeout=LONG).close()
                return
            except OSError:
                time.sleep(0.1)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@pytest.mark.skipif(chromium() is None, reason=NO_CHROMIUM)
def test_a_person_goes_from_a_new_run_to_its_next_round_without_a_terminal(files):
    server = Server(files)
    run = files / "runs" / "mine"
    try:
        server.start()
        with browser() as opened, visit(opened, **DESK) as page:
            page.set_default_timeout(LONG * 1000)

            def enter(tab: str) -> None:
                page.goto(server.home)
                page.locator("[data-account]").wait_for()
                open_tab(page, tab)

            def rank(n: int) -> None:
                # A board that was empty looks for tasks every few seconds.
                page.locator(".rank[aria-busy=false]:not([data-task='']) .card").first.wait_for()
                for _ in range(n):
                    assert number(page), "a task is left"
                    page.locator(".card").first.focus()
                    page.keyboard.press("2")
                    submit(page)

            # 1. A new run: files are uploaded, the plan is shown, and the app follows the run.
            enter("train")
            page.locator(".new-run summary").first.click()
            page.fill("#new-name", "mine")
            page.set_input_files("#new-rows", files / "rows.jsonl")
            page.get_by_text("20 of 20 rows can be used").wait_for()
            page.set_input_files("#new-prompts_file", files / "prompts.jsonl")
            page.get_by_text("60 of 60 rows can be used").wait_for()
            page.fill("#new-prompts", str(TO_RANK))
            page.fill("#new-k", "3")
            page.get_by_role("button", name="Check and plan").click()
            page.locator("[data-part=plan] table").wait_for()
            page.get_by_role("button", name="Start", exact=True).click()
            # The page comes back to this tab by itself, on the new run.
            page.get_by_text(f"{TO_RANK} prompts are still to be ranked").wait_for()
            assert page.locator(".alpaca-head .run").inner_text() == str(Path("runs/mine"))
            # 2. A question in the chat becomes a task.
            open_tab(page, "chat")
            page.locator("#chat-box textarea").fill("Name the colour of the lemon.")
            page.keyboard.press("Enter")
            page.locator("#chat-line", has_text="tokens").wait_for()
            page.locator("#chat-box textarea").fill("What does the dog say?")
            page.get_by_role("button", name="Make 4 and rank").click()
            page.locator("#chat-line", has_text="queue").wait_for()
            # 3. The server is killed between two rankings; none is lost.
            open_tab(page, "train")
            page.get_by_role("button", name="Rank now").click()
            rank(5)
            server.kill()
            server.start()
            enter("rank")
            rank(TO_RANK + 1 - 5)
            assert number(page) == "", "every task is ranked once"
            # 4. The server is killed while it trains: the training goes on, and curves move.
            open_tab(page, "train")
            page.get_by_text("Enough prompts are ranked").wait_for()
            page.get_by_role("button", name="Train now").click()
            page.get_by_text("Training: ").wait_for()
            server.kill()
            server.start()
            enter("train")
            page.get_by_role("img", name="PPO: score").wait_for()
            page.get_by_text("All stages are done").wait_for()
            nothing_serious(page, colours=True)
            # 5. The new policy against SFT, blind.
            open_tab(page, "compare")
            page.locator("#compare-draw").click()
            page.wait_for_function("document.querySelector('#compare-box textarea').value !== ''")
            page.locator("#compare-ask").click()
            page.locator("#compare-tie:enabled").click()
            page.locator("#compare-scores td").first.wait_for()
            # 6. The next round brings people back to the ranking; the report is a page.
            open_tab(page, "train")
            page.get_by_role("button", name="Next round").click()
            page.get_by_text(f"{TO_RANK} prompts are still to be ranked").wait_for()
            with page.expect_popup() as popup:
                page.get_by_role("link", name="Open the report").click()
            assert popup.value.locator("h1").count() == 1
    finally:
        server.kill()
    ledger = json.loads((run / "ledger.json").read_text())
    assert {"sft", "rank", "reward", "ppo", "sample.2"} <= set(ledger)
    assert "ppo" in json.loads((run / "report.json").read_text())["policies"]
