r"""Our prompt templates as chat templates (Jinja), made of what `prompts.py` renders.

A message of the user may have a key `input` beside its `content`; a system message is the first
paragraph of the first instruction, as it is where conversations are imported.
"""

from __future__ import annotations

import json
from typing import Any

from alpaca_rlhf.core.prompts import blocks, chat_messages, lead, render
from alpaca_rlhf.core.records import Instruction

Messages = list[dict[str, Any]]
"""A conversation as a chat template takes it."""

_ASKED, _GIVEN = "ASKED-HERE", "GIVEN-HERE"

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
    """A chat template that renders what `prompts.blocks` does.

    Args:
        template: `brief` or `alpaca`; `chat` is the tokenizer's own.
        bos: Whether the tokenizer has a bos token, which then stands at the start.
        blank: Put a blank after it, for tokenizers that would else have put it there themselves.
    """
    first, tail = render(template, Instruction(_ASKED)).split(_ASKED)
    with_input, rest = render(template, Instruction(_ASKED, _GIVEN)).split(_ASKED)
    middle, same_tail = rest.split(_GIVEN)
    assert same_tail == tail
    later = blocks(template, Instruction(_ASKED, history=(("a", "b"),)))[1].split(_ASKED)[0]
    start = ("bos_token" if bos else "''") + (" + ' '" if blank else "")
    texts = {
        "FIRST_WITH_INPUT": with_input,
        "FIRST": first,
        "LATER": later,
        "MIDDLE": middle,
        "RESPONSE": tail,
        "LEAD": lead(template),
    }
    out = _JINJA.replace("BOS\n", f"{{{{- {start} -}}}}\n")
    for name, text in texts.items():
        out = out.replace(name, json.dumps(text))
    return out


def messages(template: str, row: Instruction) -> Messages:
    """A prompt as messages; where the template is ours its input stands apart."""
    if template == "chat":
        return list(chat_messages(row))
    whole: Messages = list(chat_messages(row))
    if not row.input:
        return whole
    return [*whole[:-1], {"role": "user", "content": row.instruction, "input": row.input}]


def with_reply(template: str, row: Instruction, reply: str) -> Messages:
    """A prompt and its reply as messages."""
    return [*messages(template, row), {"role": "assistant", "content": reply}]
