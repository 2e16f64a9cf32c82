"""Chat templates of exports: the ids of training, and the same text in Ollama."""

import re

import pytest
import torch

from alpaca_rlhf.core.prompts import blocks
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.exporting.chat_template import jinja, messages, with_reply
from alpaca_rlhf.exporting.go_template import go_string
from alpaca_rlhf.exporting.ollama import modelfile, ollama_template
from alpaca_rlhf.exporting.probes import PROBES
from alpaca_rlhf.exporting.tokenizer import conversation
from alpaca_rlhf.models.base import Base
from alpaca_rlhf.models.batches import example, prompt_ids
from tests.conftest import TEXTS
from tests.go_templates import go_render, stops_of_modelfile, template_of_modelfile
from tests.published_templates import CONVERSATIONS, dialogue, row_of
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


SHAPES = {
    # ChatML without a system line of its own, as Yi and many fine-tunes have it.
    "chatml": CHATML,
    # Mistral: no headers, and the system text in the last question.
    "mistral": (
        "{% if messages[0].role == 'system' %}{% set rules = messages[0].content + '\n\n' %}"
        "{% set messages = messages[1:] %}{% else %}{% set rules = '' %}{% endif %}{{ bos_token }}"
        "{% for m in messages %}{% if m.role == 'user' %}"
        "{{ '[INST] ' + (rules if loop.last else '') + m.content + '[/INST]' }}"
        "{% else %}{{ ' ' + m.content | trim + eos_token }}{% endif %}{% endfor %}"
    ),
    # Mistral's first: no system role at all.
    "mistral_v1": (
        "{{ bos_token }}{% for m in messages %}"
        "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles') }}"
        "{% endif %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% else %}{{ m.content + eos_token + ' ' }}{% endif %}{% endfor %}"
    ),
    # Llama-2 with white space dropped around a question and its system block together.
    "llama2_strip": (
        "{% if messages[0].role == 'system' %}{% set rules = '<<SYS>>\n' + messages[0].content + "
        "'\n<</SYS>>\n\n' %}{% set messages = messages[1:] %}{% else %}{% set rules = '' %}"
        "{% endif %}{% for m in messages %}{% if loop.first %}{% set c = rules + m.content %}"
        "{% else %}{% set c = m.content %}{% endif %}{% if m.role == 'user' %}"
        "{{ bos_token + '[INST] ' + c.strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + c.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    # Llama-3.3: a header of its own with a date, everything trimmed.
    "llama3_3": (
        "{{ bos_token + '<|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n'"
        " }}{% if messages[0].role == 'system' %}{{ messages[0].content | trim }}"
        "{% set messages = messages[1:] %}{% endif %}{{ '<|eot_id|>' }}{% for m in messages %}"
        "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + "
        "'<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    # Command-R: markers on both sides, another name for the assistant, line breaks dropped only.
    "command_r": (
        "{{ bos_token }}{% for m in messages %}{{ '<|START|><|' + {'user': 'USER', 'system': "
        "'SYSTEM', 'assistant': 'CHATBOT'}[m.role] + '|>' + m.content.strip('\n') + '<|END|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|START|><|CHATBOT|>' }}{% endif %}"
    ),
    # Vicuna: words for the speakers, a system line where none is given.
    "vicuna": (
        "{% if messages[0].role == 'system' %}{{ messages[0].content + ' ' }}"
        "{% set messages = messages[1:] %}{% else %}{{ 'A chat about \"{{ x }}\". ' }}{% endif %}"
        "{% for m in messages %}{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}"
        "{% else %}{{ 'ASSISTANT: ' + m.content.rstrip() + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    ),
    # OpenChat: a header in words, and one token at the end of every turn.
    "openchat": (
        "{{ bos_token }}{% for m in messages %}{{ 'GPT4 Correct ' + m.role.title() + ': ' + "
        "m.content + '<|end_of_turn|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'GPT4 Correct Assistant:' }}{% endif %}"
    ),
    # Granite: roles between markers, and a system text of its own.
    "granite": (
        "{% if messages[0].role == 'system' %}{% set rules = messages[0].content %}"
        "{% set messages = messages[1:] %}{% else %}{% set rules = '\u2019G\u2019.\xa0Hi' %}"
        "{% endif %}{{ '<|start_of_role|>system<|end_of_role|>' + rules + '<|end_of_text|>\n' }}"
        "{% for m in messages %}{{ '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + "
        "'<|end_of_text|>\n' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"
    ),
}
"""Templates in our words, of the shape of more models'."""


def ollama_of(template: str):
    """A tokenizer with a chat template, and the Modelfile of its export."""
    tokenizer = tokenizer_of("cria")
    tokenizer.chat_template = jinja(template, bos=True) if template in BOTH else template
    made = ollama_template(tokenizer)
    return tokenizer, made, modelfile(tokenizer, ".", [2])


BOTH = ("alpaca", "brief")


@pytest.mark.parametrize("shape", [*BOTH, *SHAPES])
def test_ollama_renders_the_same_text(shape):
    """By Go: system texts, several turns, white space, code, whatever the template's shape."""
    tokenizer, made, text = ollama_of(SHAPES.get(shape, shape))
    assert made.text is not None, made.line
    rows = [row_of(turns) for turns in CONVERSATIONS.values()]
    expected = [
        str(
            tokenizer.apply_chat_template(
                conversation(tokenizer, "chat", row), tokenize=False, add_generation_prompt=True
            )
        )
        for row in rows
    ]
    bos = "<s>" if expected[0].startswith("<s>") else ""  # Ollama puts it there itself
    rendered = go_render(template_of_modelfile(text), list(CONVERSATIONS.values()))
    assert [bos + part for part in rendered] == expected


def test_ollama_continues_a_reply_and_joins_system_texts():
    """Conversations that training never sees: a reply that has begun, a system text in between."""
    _, made, _ = ollama_of(CHATML)
    begun = dialogue("Hi.", "Hel")
    late = [*dialogue("Hi.", "Hello."), *dialogue("So?", system="Be kind.")]
    texts = go_render(made.text or "", [begun, late])
    assert texts[0].endswith("<|im_start|>assistant\nHel")
    assert texts[1].startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi.")
    assert texts[1].endswith("user\nSo?<|im_end|>\n<|im_start|>assistant\n")


def test_long_white_space_is_dropped_too():
    _, made, _ = ollama_of(SHAPES["llama3_3"])
    (text,) = go_render(made.text or "", [dialogue(f"{' ' * 9000}a{chr(0x3000) * 9000}")])
    assert "user<|end_header_id|>\n\na<|eot_id|>" in text


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ messages[0]['content'] }}{{ messages[0]['content'] }}", "shows a question twice"),
        ("{{ messages[-1]['content'] }}", "leaves a question out"),
        (
            CHATML.replace("message['content']", "message['content'] | upper"),
            "leaves a question out",
        ),
        (CHATML.replace("'\n' +", "' ' + loop.index|string + '\n' +"), "depends on where"),
        (
            "{% if messages|length > 1 %}{{ raise_exception('one turn, please') }}{% endif %}"
            + CHATML,
            r"refuses a conversation \(one turn, please\)",
        ),
        (
            CHATML.replace("message['content']", "message['content'] | replace('{', '(')"),
            "not just its turns",
        ),
        (
            CHATML.replace("message['content']", "' '.join(message['content'].split())"),
            "not just its turns",
        ),
    ],
)
def test_a_template_that_go_cannot_say_is_left_out_with_the_reason(template, reason):
    _, made, text = ollama_of(template)
    assert made.text is None and 'TEMPLATE "' not in text
    assert re.search(reason, made.line), made.line
    comment = next(line for line in text.splitlines() if line.startswith("# "))
    assert re.search(reason, comment) and "PARAMETER stop" in text


def test_conversations_that_differ_are_named():
    """A template that cuts the thought out of earlier replies, as Qwen3's and DeepSeek's do."""
    cutting = CHATML.replace("message['content']", "message['content'].split('</think>')[-1]")
    _, made, text = ollama_of(cutting)
    assert made.text is not None and not made.exact
    assert "a thought, up to </think>, in an earlier reply" in made.line
    assert f"# {made.line[0].upper()}{made.line[1:]}." in text.splitlines()
    _, plain, text = ollama_of(CHATML)
    assert plain.exact and "#" not in text


def test_the_modelfile():
    tokenizer, _, _ = ollama_of("brief")
    text = modelfile(tokenizer, "./model-f16.gguf", [2])
    assert text.startswith('FROM ./model-f16.gguf\nTEMPLATE """')
    assert text.endswith('PARAMETER stop "</s>"\n')
    stops = ["<|end|>", "back\\slash", 'a "quote"']
    tokenizer.add_special_tokens({"additional_special_tokens": stops})
    ids = tokenizer.convert_tokens_to_ids(stops)
    assert stops_of_modelfile(modelfile(tokenizer, ".", ids)) == stops


def test_go_reads_what_ollama_leaves_in_a_modelfile():
    """Its reader drops characters that cannot be seen, so they are written as escapes."""
    text = 'a\u3000b\u00a0"c"\\d\n\t\x1c{{ .x }}\U0001f600\uff5c\u2581'
    template = f"{{{{- {go_string(text)} }}}}"
    assert go_render(template_of_modelfile(f'TEMPLATE """{template}"""'), [[]]) == [text]
