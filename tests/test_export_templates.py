"""Chat templates of exports: the ids of training, and the same text in Ollama."""

import re

import pytest
import torch

from alpaca_rlhf.core.prompts import blocks
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.exporting.chat_template import jinja, messages, with_reply
from alpaca_rlhf.exporting.ollama import go_template, modelfile, template_pieces
from alpaca_rlhf.exporting.probes import PROBES, SYSTEM
from alpaca_rlhf.models.base import Base
from alpaca_rlhf.models.batches import example, prompt_ids
from tests.conftest import TEXTS
from tests.test_export import byte_level_tokenizer

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tokenizer_of(kind: str):
    """Byte fallback as in cria; LLaMA-2's with its two ways to put a blank; Llama-3's."""
    from tokenizers import normalizers, pre_tokenizers

    from recipes.pretrain_cria import train_tokenizer

    if kind == "llama3":
        return byte_level_tokenizer()
    tokenizer = train_tokenizer(iter(TEXTS), 400)
    if kind == "prepend":
        tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        tokenizer.backend_tokenizer.pre_tokenizer = None
    elif kind in ("first", "always"):
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", kind, False)
    return tokenizer


def base_of(tokenizer) -> Base:
    return Base(
        name="words",
        model=torch.nn.Module(),
        tokenizer=tokenizer,
        quantization="none",
        dtype=torch.float32,
        pad_id=0,
        eos_id=tokenizer.eos_token_id,
        stop_ids=frozenset([tokenizer.eos_token_id]),
        fingerprint="words",
    )


@pytest.mark.parametrize("template", ["alpaca", "brief"])
@pytest.mark.parametrize("kind", ["cria", "prepend", "first", "always", "llama3"])
def test_the_ids_are_those_of_training(kind, template, tmp_path):
    """Read from the disk by plain transformers: lone tasks with and without input, conversations,
    a system message; and with a reply, as the reward model reads them."""
    from alpaca_rlhf.exporting.tokenizer import compare, exported_tokenizer, read, save

    base = base_of(tokenizer_of(kind))
    before = base.tokenizer("Hello you", add_special_tokens=True)["input_ids"]
    save(exported_tokenizer(base, template), tmp_path)
    tokenizer = read(tmp_path)
    ids_compared = compare(base, template, tokenizer)
    assert (ids_compared.lone_same, ids_compared.lone) == (5, 5)
    assert (ids_compared.conversations_same, ids_compared.conversations) == (3, 3)
    assert tokenizer("Hello you", add_special_tokens=True)["input_ids"] == before
    for row in PROBES[:3]:
        training_example = example(base, template, row, "Blue 12.")
        ids = tokenizer.apply_chat_template(
            with_reply(template, row, "Blue 12."), return_dict=False
        )
        assert ids == [*training_example.prompt, *training_example.completion]


@pytest.mark.parametrize("template", ["alpaca", "brief"])
def test_the_text_is_that_of_prompts(template):
    """Stanford's words, rendered by transformers' own Jinja."""
    tokenizer = tokenizer_of("cria")
    tokenizer.chat_template = jinja(template, bos=True)
    row = Instruction("Sort.", "b, a", history=(("Hi", "Hello."),))
    first, second = blocks(template, row)
    lead = " " if template == "brief" else ""
    rendered = tokenizer.apply_chat_template(
        messages(template, row), tokenize=False, add_generation_prompt=True
    )
    assert rendered == f"<s>{first}{lead}Hello.</s>{second}"
    assert rendered.endswith("b, a\n\n### Response:")
    lone = [{"role": "user", "content": "Sort.", "input": "b, a"}]
    assert ("paired with an input" in tokenizer.apply_chat_template(lone, tokenize=False)) == (
        template == "alpaca"
    )


def test_a_tokenizers_own_template_is_left_alone():
    from alpaca_rlhf.exporting.tokenizer import exported_tokenizer, ids_of

    tokenizer = tokenizer_of("cria")
    tokenizer.chat_template = CHATML
    base = base_of(tokenizer)
    exported = exported_tokenizer(base, "chat")
    assert exported.chat_template == CHATML
    assert all(ids_of(exported, "chat", row) == prompt_ids(base, "chat", row) for row in PROBES)


def test_padding_is_no_token_of_text():
    from alpaca_rlhf.exporting.tokenizer import spare_pad

    llama3 = byte_level_tokenizer()
    assert spare_pad(llama3, frozenset([1])) is None
    llama3.add_special_tokens({"additional_special_tokens": ["<|reserved_0|>", "<|eot|>"]})
    reserved, eot = llama3.convert_tokens_to_ids(["<|reserved_0|>", "<|eot|>"])
    assert spare_pad(llama3, frozenset([1, eot])) == reserved
    llama3.pad_token = llama3.eos_token
    assert spare_pad(llama3, frozenset([1, eot])) == reserved
    cria = tokenizer_of("cria")
    assert spare_pad(cria, frozenset([2])) == cria.pad_token_id == 0


# --- Ollama ---------------------------------------------------------------------------------------


def go(template: str, turns: list[dict[str, str]]) -> str:
    """Render a template as Go's text/template does, for the few actions that ours have."""
    import json

    tokens = re.findall(r"\{\{- (.*?) \}\}|(\S)", re.sub(r"\{\{- \"", '{{- "', template), re.DOTALL)
    assert not any(text for _, text in tokens), "text outside of actions"
    actions = [action for action, _ in tokens]
    variables: dict[str, object] = {}
    out: list[str] = []

    def value(text: str, dot):
        if text.startswith("."):
            return dot[{".Content": "content", ".Role": "role"}[text]]
        if text.startswith("$"):
            return variables[text]
        return json.loads(text)

    def block(at: int) -> dict[str, int]:
        """Places of the else and the end of the block that opens at `at`."""
        depth, places = 0, {}
        for place in range(at, len(actions)):
            word = actions[place].split(" ")[0]
            depth += word in ("if", "range")
            if depth == 1 and word == "else":
                places["else"] = place
            if word == "end":
                depth -= 1
                if depth == 0:
                    return {**places, "end": place}
        raise AssertionError("no end")

    def run(start: int, end: int, dot) -> None:
        at = start
        while at < end:
            action = actions[at]
            if action.startswith("range "):
                places = block(at)
                for turn in turns:
                    run(at + 1, places["end"], turn)
                at = places["end"]
            elif action.startswith("if "):
                places = block(at)
                condition = action[3:]
                if condition.startswith("eq "):
                    first, second = condition[3:].split(" ", 1)
                    true = value(first, dot) == value(second, dot)
                else:
                    true = bool(value(condition, dot))
                otherwise = places.get("else", places["end"])
                run(at + 1, otherwise, dot) if true else run(otherwise + 1, places["end"], dot)
                at = places["end"]
            elif "=" in action and action.startswith("$"):
                name, _, what = action.replace(":=", "=").partition(" = ")
                variables[name] = value(what, dot)
            else:
                out.append(str(value(action, dot)))
            at += 1

    run(0, len(actions), None)
    return "".join(out)


CONVERSATIONS = [
    [{"role": "user", "content": "What is {{ 2 }}?"}],
    [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two.\n"},
        {"role": "user", "content": ' say "three"'},
    ],
]


@pytest.mark.parametrize("template", ["alpaca", "brief", "chatml"])
@pytest.mark.parametrize("system", [False, True])
def test_ollama_renders_the_same_text(template, system):
    tokenizer = tokenizer_of("cria")
    tokenizer.chat_template = CHATML if template == "chatml" else jinja(template, bos=True)
    pieces = template_pieces(tokenizer)
    assert pieces is not None
    for turns in CONVERSATIONS:
        if system:
            turns = [{"role": "system", "content": SYSTEM}, *turns]
        rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        bos = "" if template == "chatml" else "<s>"  # Ollama puts it there itself
        assert bos + go(go_template(pieces), turns) == rendered


def test_the_modelfile():
    tokenizer = tokenizer_of("cria")
    tokenizer.chat_template = jinja("brief", bos=True)
    text = modelfile(tokenizer, "./model-f16.gguf", [2])
    assert text.startswith('FROM ./model-f16.gguf\nTEMPLATE """')
    assert text.endswith('PARAMETER stop "</s>"\n')
    tokenizer.chat_template = "{{ messages[0]['content'] }}{{ messages[0]['content'] }}"
    assert 'TEMPLATE "' not in modelfile(tokenizer, ".", [2])


def test_what_ollama_could_not_say_is_left_out():
    """A template that trims what is said has no pieces that add up to the same text."""
    tokenizer = tokenizer_of("cria")
    tokenizer.chat_template = CHATML.replace("message['content']", "message['content'] | trim")
    assert template_pieces(tokenizer) is None
