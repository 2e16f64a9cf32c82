"""A Modelfile for Ollama, whose templates are Go's.

The pieces of text around the turns are taken from what the chat template itself renders, and the
Go template is made of them. Where they do not add up to the same text again there is none.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_ASKED, _REPLY, _NEXT, _SYSTEM = "ASKED-A", "REPLY-B", "ASKED-C", "SYSTEM-S"


@dataclass(frozen=True)
class Pieces:
    """The text of a chat template between the turns."""

    first: str
    """Before the first question."""
    prompt: str
    """After a question: where a reply begins."""
    lead: str
    """What a reply in the history has before it besides."""
    between: str
    """After a reply and before the next question."""
    system: tuple[str, str] | None
    """Before a system message, and between it and the first question; None if there can be none."""

    def render(self, said: Sequence[dict[str, str]]) -> str:
        """A conversation that ends with a question."""
        out, start, turns = "", self.first, 0
        for one in said:
            if one["role"] == "system":
                assert self.system is not None
                start = self.system[0] + one["content"] + self.system[1]
            elif one["role"] == "user":
                out += (self.between if turns else start) + one["content"] + self.prompt
                turns += 1
            else:
                out += self.lead + one["content"]
        return out


def pieces(tokenizer: Any) -> Pieces | None:
    """The pieces of a tokenizer's chat template; None where it is more than such pieces."""
    bos = tokenizer.bos_token or ""

    def shown(*said: str, system: str | None = None) -> str:
        text = tokenizer.apply_chat_template(
            _conversation(said, system), tokenize=False, add_generation_prompt=True
        )
        return str(text).removeprefix(bos)

    try:
        first, prompt = shown(_ASKED).split(_ASKED)
        head, rest = shown(_ASKED, _REPLY, _NEXT).split(_ASKED)
        before, rest = rest.split(_REPLY)
        between, tail = rest.split(_NEXT)
    except Exception:  # the template has a text twice or not at all, or raises
        return None
    if head != first or tail != prompt or not before.startswith(prompt):
        return None
    system = None
    try:
        opening, rest = shown(_ASKED, system=_SYSTEM).split(_SYSTEM)
        middle, rest = rest.split(_ASKED)
        system = (opening, middle) if rest == prompt else None
    except Exception:
        pass
    made = Pieces(first, prompt, before.removeprefix(prompt), between, system)
    probes = [("One?",), ("One?", "Two.", "Three?"), ("a", " b", "c", "d\n", "e")]
    for said in probes:
        for own in (None, "S") if system else (None,):
            try:
                if made.render(_conversation(said, own)) != shown(*said, system=own):
                    return None
            except Exception:
                return None
    return made


def go_template(found: Pieces) -> str:
    """The pieces as a template of Ollama."""
    start = _text(found.first)
    keep = ""
    if found.system is not None:
        opening, middle = found.system
        keep = '{{- if eq .Role "system" }}{{- $system = .Content }}{{- end }}'
        start = (
            f"{{{{- if $system }}}}{_text(opening)}{{{{- $system }}}}{_text(middle)}"
            f"{{{{- else }}}}{start}{{{{- end }}}}"
        )
    return (
        '{{- $turn := 0 }}{{- $system := "" }}'
        f"{{{{- range .Messages }}}}{keep}"
        '{{- if eq .Role "user" }}'
        f"{{{{- if $turn }}}}{_text(found.between)}{{{{- else }}}}{start}{{{{- end }}}}"
        f"{{{{- .Content }}}}{_text(found.prompt)}{{{{- $turn = 1 }}}}{{{{- end }}}}"
        f'{{{{- if eq .Role "assistant" }}}}{_text(found.lead)}{{{{- .Content }}}}{{{{- end }}}}'
        "{{- end }}"
    )


def modelfile(tokenizer: Any, model: str, stop_ids: Sequence[int]) -> str:
    """A Modelfile.

    Args:
        tokenizer: With the chat template of the export.
        model: The model beside it: a GGUF file, or `.` for safetensors.
        stop_ids: What ends a completion.
    """
    found = pieces(tokenizer)
    lines = [f"FROM {model}"]
    if found is None:
        lines.append(
            "# The tokenizer's chat template is more than text around the turns. Ollama knows many "
            "of them;\n# where it does not, write a TEMPLATE after its own documentation."
        )
    else:
        lines.append(f'TEMPLATE """{go_template(found)}"""')
    stops = [str(one) for one in tokenizer.convert_ids_to_tokens(list(stop_ids))]
    lines += [f"PARAMETER stop {json.dumps(one, ensure_ascii=False)}" for one in stops]
    return "\n".join(lines) + "\n"


def _conversation(said: Sequence[str], system: str | None) -> list[dict[str, str]]:
    turns = [
        {"role": "assistant" if number % 2 else "user", "content": text}
        for number, text in enumerate(said)
    ]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


def _text(text: str) -> str:
    """Exactly this text, as an action of Go's templates."""
    return f"{{{{- {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""
