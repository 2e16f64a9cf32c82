"""Chat templates that open a thought before each reply: nobody learns inside it unawares."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.doctor.base import _mask
from alpaca_rlhf.models.base import load_base
from alpaca_rlhf.models.batches import example
from alpaca_rlhf.models.template_traits import template_traits
from alpaca_rlhf.pipeline import run_loop
from alpaca_rlhf.settings import SFT, Inputs, Loop, Lora, Sampling
from alpaca_rlhf.stages.open_thoughts import tell_sampled, tell_unclosed
from tests.published_templates import (
    NAMES,
    OURS,
    template_of,
    tokenizer_with,
    write_checkpoint,
    write_rows,
)
from tests.whole_run import Quiet

THINKING = OURS["like_zephyr"].replace("'<|assistant|>\n' }}", "'<|assistant|>\n<think>\n' }}")
CLOSED = "It is a colour.\n</think>\n\nBlue."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny LLaMA whose template opens a thought."""
    assert "<think>" in THINKING
    return write_checkpoint(tmp_path_factory.mktemp("thinking"), tokenizer_with(THINKING))


@pytest.mark.parametrize("name", NAMES)
def test_which_template_opens_a_thought(name):
    traits = template_traits(tokenizer_with(template_of(name)))
    assert traits.opens_thought == (name == "deepseek_r1_distill")


def test_a_thought_that_is_closed_again_is_none():
    closing = THINKING.replace("<think>\n'", "<think>\n\n</think>\n\n'")
    assert template_traits(tokenizer_with(THINKING)).opens_thought
    assert not template_traits(tokenizer_with(closing)).opens_thought


def told_by(base, template, call):
    lines = []
    call(
        SimpleNamespace(
            base=base,
            settings=SimpleNamespace(template=template),
            reporter=SimpleNamespace(say=lines.append),
        )
    )
    return lines


def test_pairs_and_samples_are_told_too(folder):
    base, row = load_base(folder), Instruction("Name a colour.")
    answers = [example(base, "chat", row, text) for text in ("Blue.", CLOSED, "Red.")]
    (line,) = told_by(base, "chat", lambda ctx: tell_unclosed(ctx, "dpo", answers, "answers"))
    assert line.startswith("dpo: 2 of 3 answers hold no </think>, and ") and "\n" not in line
    assert not told_by(base, "chat", lambda ctx: tell_unclosed(ctx, "dpo", answers[1:2], "answers"))
    (line,) = told_by(base, "chat", lambda ctx: tell_sampled(ctx, "ppo"))
    assert line.startswith("ppo: ") and "--sampling.max-new-tokens" in line
    for tell in (
        lambda ctx: tell_unclosed(ctx, "dpo", answers, "a"),
        lambda c: tell_sampled(c, "p"),
    ):
        assert not told_by(base, "alpaca", tell), "no other template opens one"


def test_doctor_warns(folder):
    base = load_base(folder)
    finding = _mask(base, "chat")
    assert finding.verdict == "warning" and "opens a thought (<think>)" in finding.found
    assert "</think>" in finding.todo and _mask(base, "alpaca").verdict == "ok"


def test_sft_says_before_the_first_step_how_many_rows_close_no_thought(folder, tmp_path):
    texts = ["Blue.", CLOSED, "Red.", "Green and grey."]
    rows = [{"instruction": f"Name colour {n}.", "output": text} for n, text in enumerate(texts)]
    data = write_rows(tmp_path / "rows.jsonl", *rows)

    class Heard(Quiet):
        def __init__(self):
            super().__init__()
            self.lines = []

        def say(self, text):
            self.lines.append(text)

        def step(self, *args):
            self.lines.append("a step")

    heard = Heard()
    settings = Loop(
        out=tmp_path / "run",
        base=folder,
        template="chat",
        lora=Lora(r=2, alpha=4),
        inputs=Inputs(data=data),
        sampling=Sampling(max_new_tokens=4),
        sft=SFT(lr=1e-3, epochs=1, batch_size=2),
    )
    run_loop(settings, heard, kind="loop", command="test", until="sft")
    told = [line for line in heard.lines if "</think>" in line]
    assert len(told) == 1 and told[0].startswith("sft: 3 of 4 rows hold no </think>")
    assert heard.lines.index(told[0]) < heard.lines.index("a step")
