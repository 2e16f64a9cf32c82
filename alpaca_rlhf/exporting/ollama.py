"""A Modelfile for Ollama, whose templates are in Go's language.

The text around the turns is taken from what the chat template itself renders, and the Go template
is built from it. Where the pieces do not add up to the same text again, no template is written.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_QUESTION, _REPLY, _NEXT, _SYSTEM = "QUESTION-A", "REPLY-B", "QUESTION-C", "SYSTEM-S"
_MAX_NAME = 80
"""Characters of a model's name that Ollama takes (ollama/ollama types/model/name.go)."""


def model_name(text: str) -> str:
    """A name that `ollama create` takes, near a text: lower-case letters, digits, `-`, `_`, `.`."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    name = re.sub(r"[^a-z0-9._-]+", "-", plain).strip("-._")[:_MAX_NAME].rstrip("-._")
    return name or "model"


@dataclass(frozen=True)
class Pieces:
    """The text that a chat template puts around the turns."""

    first: str
    """Before the first question."""
    prompt: str
    """After a question, where a reply begins."""
    lead: str
    """Extra text before a reply in the history."""
    between: str
    """Between a reply and the next question."""
    system: tuple[str, str] | None
    """Before a system message, and after it; None if the template supports none."""

    def render(self, turns: Sequence[dict[str, str]]) -> str:
        """Render a conversation that ends with a question."""
        text, opening, questions = "", self.first, 0
        for turn in turns:
            if turn["role"] == "system":
                assert self.system is not None
                # A system message brings the opening of the first question with it.
                opening = self.system[0] + turn["content"] + self.system[1]
            elif turn["role"] == "user":
                text += (self.between if questions else opening) + turn["content"] + self.prompt
                questions += 1
            else:
                text += self.lead + turn["content"]
        return text


def template_pieces(tokenizer: Any) -> Pieces | None:
    """Take a tokenizer's chat template apart; None if it does more than surround the turns."""
    bos = tokenizer.bos_token or ""

    def render(*texts: str, system: str | None = None) -> str:
        text = tokenizer.apply_chat_template(
            _conversation(texts, system), tokenize=False, add_generation_prompt=True
        )
        return str(text).removeprefix(bos)

    # 1. Split what the template renders at the placeholders.
    try:
        first, prompt = render(_QUESTION).split(_QUESTION)
        head, rest = render(_QUESTION, _REPLY, _NEXT).split(_QUESTION)
        before, rest = rest.split(_REPLY)
        between, tail = rest.split(_NEXT)
    except Exception:  # a placeholder appears twice or not at all, or the template raises
        return None
    if head != first or tail != prompt or not before.startswith(prompt):
        return None
    system = None
    try:
        opening, rest = render(_QUESTION, system=_SYSTEM).split(_SYSTEM)
        middle, rest = rest.split(_QUESTION)
        system = (opening, middle) if rest == prompt else None
    except Exception:
        pass
    # 2. Keep the pieces only if they render other conversations as the template does.
    result = Pieces(first, prompt, before.removeprefix(prompt), between, system)
    probes = [("One?",), ("One?", "Two.", "Three?"), ("a", " b", "c", "d\n", "e")]
    for texts in probes:
        for system_text in (None, "S") if system else (None,):
            try:
                if result.render(_conversation(texts, system_text)) != render(
                    *texts, system=system_text
                ):
                    return None
            except Exception:
                return None
    return result


def go_template(pieces: Pieces) -> str:
    """Build a template of Ollama from the pieces."""
    start = _text(pieces.first)
    keep = ""
    if pieces.system is not None:
        opening, middle = pieces.system
        # The template stores a system message, and opens the first question with it.
        keep = '{{- if eq .Role "system" }}{{- $system = .Content }}{{- end }}'
        start = (
            f"{{{{- if $system }}}}{_text(opening)}{{{{- $system }}}}{_text(middle)}"
            f"{{{{- else }}}}{start}{{{{- end }}}}"
        )
    # `range` gives no count, so `$turn` tells the first question from later ones.
    return (
        '{{- $turn := 0 }}{{- $system := "" }}'
        f"{{{{- range .Messages }}}}{keep}"
        '{{- if eq .Role "user" }}'
        f"{{{{- if $turn }}}}{_text(pieces.between)}{{{{- else }}}}{start}{{{{- end }}}}"
        f"{{{{- .Content }}}}{_text(pieces.prompt)}{{{{- $turn = 1 }}}}{{{{- end }}}}"
        f'{{{{- if eq .Role "assistant" }}}}{_text(pieces.lead)}{{{{- .Content }}}}{{{{- end }}}}'
        "{{- end }}"
    )


def modelfile(tokenizer: Any, model: str, stop_ids: Sequence[int]) -> str:
    """Write the text of a Modelfile.

    Args:
        tokenizer: The exported tokenizer.
        model: Path of the model: a GGUF file, or `.` for safetensors.
        stop_ids: Ids that end a completion.
    """
    pieces = template_pieces(tokenizer)
    lines = [f"FROM {model}"]
    if pieces is None:
        lines.append(
            "# The tokenizer's chat template does more than put text around the turns. Ollama\n"
            "# knows many such templates; if not this one, write a TEMPLATE as it documents."
        )
    else:
        lines.append(f'TEMPLATE """{go_template(pieces)}"""')
    stops = [str(stop) for stop in tokenizer.convert_ids_to_tokens(list(stop_ids))]
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    return "\n".join(lines) + "\n"


def _conversation(texts: Sequence[str], system: str | None) -> list[dict[str, str]]:
    turns = [
        {"role": "assistant" if number % 2 else "user", "content": text}
        for number, text in enumerate(texts)
    ]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


def _text(text: str) -> str:
    """Quote a text as an action of Go's templates."""
    return f"{{{{- {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""
