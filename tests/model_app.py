"""A run of the tiny LLaMA, and a small server with the tabs that talk to its model."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
import uvicorn
from fastapi import FastAPI

from alpaca_rlhf.app.language import gradio_i18n
from alpaca_rlhf.app.services import Services
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import write_instructions
from alpaca_rlhf.preferences.people import Account
from alpaca_rlhf.settings import PPO, BestOfK, Evaluate, Loop, Lora, Rank, Sampling
from alpaca_rlhf.settings import Inputs as Inputs
from alpaca_rlhf.settings.parsing import to_yaml

WORDS = "apple river stone cloud horse paper green seven music winter garden copper".split()


def prompts(n: int) -> list[Instruction]:
    """Prompts that are near no other."""
    rng = random.Random(5)
    return [
        Instruction(f"{word.capitalize()} {i}: " + " ".join(rng.sample(WORDS, 6)), source="test")
        for i, word in enumerate(rng.choices(WORDS, k=n))
    ]


def make_run(out: Path, tiny_folder: Path, stages: tuple[str, ...] = ("sft", "ppo.2")) -> Path:
    """A run folder with an adapter of each stage, each with weights of its own."""
    import torch

    from alpaca_rlhf.models.adapters import Adapters
    from alpaca_rlhf.models.base import load_base

    out.mkdir(parents=True)
    rows = [replace(row, output="Yes.") for row in prompts(44)[40:]]
    write_instructions(out.parent / "rows.jsonl", rows)
    write_instructions(out.parent / "prompts.jsonl", prompts(40))
    loop = Loop(
        base=str(tiny_folder),
        template="brief",
        out=out,
        lora=Lora(r=4, alpha=8),
        sampling=Sampling(max_new_tokens=60),
        rank=Rank(prompts=5),
        ppo=PPO(batch_size=5, minibatch_size=5),
        best_of_k=BestOfK(prompts=5),
        evaluate=Evaluate(prompts=5),
        inputs=Inputs(
            data=out.parent / "rows.jsonl", prompts=out.parent / "prompts.jsonl", judge="human"
        ),
    )
    adapters = Adapters(load_base(loop.base), loop.lora, template=loop.template)
    for number, stage in enumerate(stages):
        adapters.add("sft", seed=number)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(number)
            for parameter in adapters.parameters("sft").values():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        adapters.save("sft", out / stage / "adapter")
    (out / "config.yaml").write_text(to_yaml(loop))
    return out


def run_without_weights(out: Path) -> Path:
    """A run on the user's files with the folder of an SFT adapter, whose weights nobody reads."""
    adapter = out / "sft" / "adapter" / "adapter_config.json"
    adapter.parent.mkdir(parents=True)
    adapter.write_text("{}")
    given = prompts(44)
    rows, file = out.parent / "rows.jsonl", out.parent / "prompts.jsonl"
    write_instructions(rows, [replace(row, output="Yes.") for row in given[40:]])
    write_instructions(file, given[:40])
    loop = Loop(
        out=out,
        rank=Rank(prompts=5),
        ppo=PPO(batch_size=5, minibatch_size=5),
        best_of_k=BestOfK(prompts=5),
        evaluate=Evaluate(prompts=5),
        inputs=Inputs(data=rows, prompts=file, judge="human"),
    )
    (out / "config.yaml").write_text(to_yaml(loop))
    return out


def language(request: gr.Request) -> str:
    """As the real app does, in short."""
    accepted = request.headers.get("accept-language", "")
    return "zh-CN" if accepted.lower().startswith("zh") else "en"


def app(store: Any, account: Account, *tabs: Callable[[Services], Any]) -> FastAPI:
    """The tabs in an app, as the real server mounts them."""
    services = Services(store, lambda request: account, language)
    with gr.Blocks(analytics_enabled=False, title="Models") as blocks:
        with gr.Tabs():
            for number, tab in enumerate(tabs):
                with gr.Tab(f"Tab {number}"):
                    tab(services)
    blocks.queue(api_open=False, default_concurrency_limit=20)
    return gr.mount_gradio_app(
        FastAPI(), blocks, path="/", footer_links=[], run_history=False, i18n=gradio_i18n()
    )


@contextmanager
def serving(fastapi_app: FastAPI, port: int) -> Iterator[str]:
    """The app at work in a thread."""
    config = uvicorn.Config(fastapi_app, host="127.0.0.1", port=port, log_level="error", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


class Echo:
    """A policy_server without a model, which says what it is told to, in two steps."""

    takes_system = False

    def __init__(self, say: Callable[[str, Instruction, int], str]) -> None:
        self.say = say
        self.asked: list[tuple[str, Instruction]] = []
        self.settings: list[Any] = []

    def generate(
        self,
        policy: str,
        row: Instruction,
        sampling_settings: Any,
        stop: Any,
        *,
        key: str,
        k: int = 1,
        whole: bool = False,
        begun: str = "",
    ) -> Iterator[list[Any]]:
        from alpaca_rlhf.models.rollout import SampledCompletion
        from alpaca_rlhf.models.streaming import GenerationUpdate

        self.asked.append((policy, row))
        self.settings.append(sampling_settings)
        texts = [begun + self.say(policy, row, j) for j in range(k)]
        yield [
            GenerationUpdate(text[: len(begun) + 1], SampledCompletion((1,), False))
            for text in texts
        ]
        yield [GenerationUpdate(text, SampledCompletion((1, 2), True)) for text in texts]

    def completion(
        self,
        policy: str,
        row: Instruction,
        sampling_settings: Any,
        text: str,
        sampled: Any,
        number: int = 0,
    ) -> Any:
        from alpaca_rlhf.core.records import Completion

        return Completion(row.id, text, policy, seed=sampling_settings.seed, sample=number)


def nothing_serious(page: Any, *, colours: bool = False) -> None:
    """axe finds nothing serious. Colours are the theme's, which this server does not have."""
    from axe_playwright_python.sync_playwright import Axe

    options = {"rules": {"color-contrast": {"enabled": colours}}}
    violations = Axe().run(page, options=options).response["violations"]
    bad = [
        (violation["id"], [node["html"][:200] for node in violation["nodes"]])
        for violation in violations
        if violation["impact"] in ("serious", "critical")
    ]
    assert not bad, bad
