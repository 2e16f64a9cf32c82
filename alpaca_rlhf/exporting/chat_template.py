r"""Our prompt templates as chat templates (Jinja), built from the text that `prompts.py` renders.

A user's message may have a key `input` beside its `content`; a system message becomes the first
paragraph of the first instruction, as in imported conversations.
"""

from __future__ import annotations

import json
from typing import Any

from alpaca_rlhf.core.prompts import blocks, chat_messages, lead, render
from alpaca_rlhf.core.records import Instruction

Messages = list[dict[str, Any]]
"""A conversation in the form that chat templates take."""

_INSTRUCTION, _INPUT = "INSTRUCTION-HERE", "INPUT-HERE"

_JINJA = """\
{%- set ns = namespace(system='', turn=0, last=-1) -%}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}
{%- endfor -%}
BOS
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{%- if message['content'] -%}{%- set ns.system = message['content'] + '\\n\\n' -%}{%- endif -%}
{%- elif message['role'] == 'user' -%}
{%- set given = message['input'] if 'input' in message and message['input'] else '' -%}
{%- set asked = ns.system + message['content'] -%}
{%- if given and loop.index0 != ns.last -%}
{%- set asked = asked + '\\n\\n' + given -%}{%- set given = '' -%}
{%- endif -%}
{%- if ns.turn -%}{{- LATER -}}
{%- elif given -%}{{- FIRST_WITH_INPUT -}}
{%- else -%}{{- FIRST -}}
{%- endif -%}
{{- asked -}}
{%- if given -%}{{- MIDDLE + given -}}{%- endif -%}
{{- RESPONSE -}}
{%- set ns.system = '' -%}{%- set ns.turn = ns.turn + 1 -%}
{%- elif message['role'] == 'assistant' -%}
{{- LEAD + message['content'] + eos_token -}}
{%- else -%}
{{- raise_exception('roles are system, user and assistant') -}}
{%- endif -%}
{%- endfor -%}
"""


def jinja(template: str, *, bos: bool, blank: bool = False) -> str:
    """Build a chat template that renders the text of `prompts.blocks`.

    Args:
        template: `brief` or `alpaca`; `chat` is the tokenizer's own.
        bos: The tokenizer has a bos token, which then stands at the start.
        blank: Add a blank after it, for tokenizers that would otherwise have added one themselves.
    """
    # 1. Text around instruction and input, by rendering placeholders.
    first, tail = render(template, Instruction(_INSTRUCTION)).split(_INSTRUCTION)
    with_input, rest = render(template, Instruction(_INSTRUCTION, _INPUT)).split(_INSTRUCTION)
    middle, same_tail = rest.split(_INPUT)
    assert same_tail == tail
    later = blocks(template, Instruction(_INSTRUCTION, history=(("a", "b"),)))[1]
    later = later.split(_INSTRUCTION)[0]
    start = ("bos_token" if bos else "''") + (" + ' '" if blank else "")
    # 2. The template, with this text in place of its names.
    constants = {
        "FIRST_WITH_INPUT": with_input,
        "FIRST": first,
        "LATER": later,
        "MIDDLE": middle,
        "RESPONSE": tail,
        "LEAD": lead(template),
    }
    text_of_template = _JINJA.replace("BOS\n", f"{{{{- {start} -}}}}\n")
    for name, constant in constants.items():
        text_of_template = text_of_template.replace(name, json.dumps(constant))
    return text_of_template


def messages(template: str, row: Instruction) -> Messages:
    """Turn a prompt into messages; in our own templates its input is a key of its own."""
    if template == "chat":
        return list(chat_messages(row))
    conversation: Messages = list(chat_messages(row))
    if not row.input:
        return conversation
    return [*conversation[:-1], {"role": "user", "content": row.instruction, "input": row.input}]


def with_reply(template: str, row: Instruction, reply: str) -> Messages:
    """Turn a prompt and its reply into messages."""
    return [*messages(template, row), {"role": "assistant", "content": reply}]
