"""A Modelfile for Ollama: the model, its template and its stops."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from alpaca_rlhf.exporting.chat_pieces import InexpressibleError, chat_pieces, exceptions
from alpaca_rlhf.exporting.go_template import go_template

_MAX_NAME = 80
"""Characters of a model's name that Ollama takes (ollama/ollama types/model/name.go)."""


def model_name(text: str) -> str:
    """A name that `ollama create` takes, near a text: lower-case letters, digits, `-`, `_`, `.`."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    name = re.sub(r"[^a-z0-9._-]+", "-", plain).strip("-._")[:_MAX_NAME].rstrip("-._")
    return name or "model"


@dataclass(frozen=True)
class OllamaTemplate:
    """A tokenizer's chat template in Ollama's language, as far as it can be said in it."""

    text: str | None
    """The template; None if there is none."""
    line: str
    """The conversations that it is exact for, or the reason for its absence, in one line."""

    @property
    def exact(self) -> bool:
        """True if it gives the chat template's text for every conversation that was tried."""
        return self.text is not None and self.line == _EXACT


_EXACT = "the Modelfile's TEMPLATE gives the text of the chat template for all kinds of turns"


def ollama_template(tokenizer: Any) -> OllamaTemplate:
    """Translate a tokenizer's chat template for Ollama."""
    try:
        pieces = chat_pieces(tokenizer)
    except InexpressibleError as reason:
        return OllamaTemplate(
            None,
            "the Modelfile has no TEMPLATE, since the chat template cannot be said in Ollama's "
            f"language: {reason}; write one before `ollama create`, or serve the model elsewhere",
        )
    different = exceptions(tokenizer, pieces)
    line = _EXACT
    if different:
        line += f", except in conversations with {', '.join(different)}"
    return OllamaTemplate(go_template(pieces), line)


def modelfile(tokenizer: Any, model: str, stop_ids: Collection[int]) -> str:
    """Write the text of a Modelfile.

    Args:
        tokenizer: The exported tokenizer.
        model: Path of the model: a GGUF file, or `.` for safetensors.
        stop_ids: Ids of the tokens that end a completion.
    """
    template = ollama_template(tokenizer)
    lines = [f"FROM {model}"]
    if not template.exact:
        lines.append(f"# {template.line[0].upper()}{template.line[1:]}.")
    if template.text is not None:
        lines.append(f'TEMPLATE """{template.text}"""')
    stops = tokenizer.convert_ids_to_tokens(sorted(stop_ids))
    lines += [f"PARAMETER stop {_quoted(str(stop))}" for stop in stops]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Quote a value of a Modelfile, in which a backslash is a backslash."""
    mark = '"""' if '"' in text else '"'
    return f"{mark}{text}{mark}"
