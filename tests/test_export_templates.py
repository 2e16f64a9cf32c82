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
    made = train_tokenizer(iter(TEXTS), 400)
    if kind == "prepend":
        made.backend_tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        made.backend_tokenizer.pre_tokenizer = None
    elif kind in ("first", "always"):
        made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", kind, False)
    return made


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
    words = read(tmp_path)
    found = compare(base, template, words)
    assert (found.lone_same, found.lone) == (5, 5)
    assert (found.conversations_same, found.conversations) == (2, 2)
    assert words("Hello you", add_special_tokens=True)["input_ids"] == before
    for row in PROBES[:3]:
        whole = example(base, template, row, "Blue 12.")
        ids = words.apply_chat_template(with_reply(template, row, "Blue 12."), return_dict=False)
        assert ids == [*whole.prompt, *whole.completion]


@pytest.mark.parametrize("template", ["alpaca", "brief"])
def test_the_text_is_that_of_prompts(template):
    """Stanford's words, rendered by transformers' own Jinja."""
    words = tokenizer_of("cria")
    words.chat_template = jinja(template, bos=True)
    row = Instruction("Sort.", "b, a", history=(("Hi", "Hello."),))
    first, second = blocks(template, row)
    lead = " " if template == "brief" else ""
    shown = words.apply_chat_template(
        messages(template, row), tokenize=False, add_generation_prompt=True
    )
    assert shown == f"<s>{first}{lead}Hello.</s>{second}"
    assert shown.endswith("b, a\n\n### Response:")
    lone = [{"role": "user", "content": "Sort.", "input": "b, a"}]
    assert ("paired with an input" in words.apply_chat_template(lone, tokenize=False)) == (
        template == "alpaca"
    )


def test_a_tokenizers_own_template_is_left_alone():
    from alpaca_rlhf.exporting.tokenizer import exported_tokenizer, ids_of

    words = tokenizer_of("cria")
    words.chat_template = CHATML
    base = base_of(words)
    made = exported_tokenizer(base, "chat")
    assert made.chat_template == CHATML
    assert all(ids_of(made, "chat", row) == prompt_ids(base, "chat", row) for row in PROBES)


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


def go(template: str, said: list[dict[str, str]]) -> str:
    """What Go's text/template makes of a template: the few actions that ours have."""
    import json

    tokens = re.findall(r"\{\{- (.*?) \}\}|(\S)", re.sub(r"\{\{- \"", '{{- "', template), re.DOTALL)
    assert not any(text for _, text in tokens), "text outside of actions"
    actions = [one for one, _ in tokens]
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
        depth, found = 0, {}
        for place in range(at, len(actions)):
            word = actions[place].split(" ")[0]
            depth += word in ("if", "range")
            if depth == 1 and word == "else":
                found["else"] = place
            if word == "end":
                depth -= 1
                if depth == 0:
                    return {**found, "end": place}
        raise AssertionError("no end")

    def run(start: int, end: int, dot) -> None:
        at = start
        while at < end:
            action = actions[at]
            if action.startswith("range "):
                places = block(at)
                for one in said:
                    run(at + 1, places["end"], one)
                at = places["end"]
            elif action.startswith("if "):
                places = block(at)
                asked = action[3:]
                if asked.startswith("eq "):
                    left, right = asked[3:].split(" ", 1)
                    true = value(left, dot) == value(right, dot)
                else:
                    true = bool(value(asked, dot))
                other = places.get("else", places["end"])
                run(at + 1, other, dot) if true else run(other + 1, places["end"], dot)
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
    words = tokenizer_of("cria")
    words.chat_template = CHATML if template == "chatml" else jinja(template, bos=True)
    found = template_pieces(words)
    assert found is not None
    for said in CONVERSATIONS:
        if system:
            said = [{"role": "system", "content": SYSTEM}, *said]
        shown = words.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        bos = "" if template == "chatml" else "<s>"  # Ollama puts it there itself
        assert bos + go(go_template(found), said) == shown


def test_the_modelfile():
    words = tokenizer_of("cria")
    words.chat_template = jinja("brief", bos=True)
    text = modelfile(words, "./model-f16.gguf", [2])
    assert text.startswith('FROM ./model-f16.gguf\nTEMPLATE """')
    assert text.endswith('PARAMETER stop "</s>"\n')
    words.chat_template = "{{ messages[0]['content'] }}{{ messages[0]['content'] }}"
    assert 'TEMPLATE "' not in modelfile(words, ".", [2])


def test_what_ollama_could_not_say_is_left_out():
    """A template that trims what is said has no pieces that add up to the same text."""
    words = tokenizer_of("cria")
    words.chat_template = CHATML.replace("message['content']", "message['content'] | trim")
    assert template_pieces(words) is None
