"""Ollama's templates, rendered by Go's own text/template."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("ollama_template.go")


@cache
def _program() -> str:
    """The compiled program; skips where Go is absent."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("needs Go to render Ollama's templates: apt-get install golang-go")
    folder = Path(tempfile.mkdtemp(prefix="alpaca-rlhf-go-"))
    environment = os.environ | {
        "GOPATH": str(folder / "path"),
        "GOCACHE": str(folder / "cache"),
        "GOFLAGS": "-mod=mod",
        "GOPROXY": "off",
    }
    program = folder / "render"
    subprocess.run(
        [go, "build", "-o", str(program), str(PROGRAM)], env=environment, cwd=folder, check=True
    )
    return str(program)


def go_render(template: str, conversations: Sequence[list[dict[str, str]]]) -> list[str]:
    """Render conversations as Ollama does: system texts joined, and turns in a row of one role."""
    messages = [
        [{"Role": turn["role"], "Content": turn["content"]} for turn in conversation]
        for conversation in conversations
    ]
    job = json.dumps([{"Template": template, "Conversations": messages}])
    result = subprocess.run([_program()], input=job.encode(), capture_output=True, check=True)
    (texts,) = json.loads(result.stdout)
    assert len(texts) == len(conversations), texts
    return [str(text) for text in texts]


def template_of_modelfile(text: str) -> str:
    """The TEMPLATE of a Modelfile, as Ollama's reader takes it: what is not printable is left out.

    Source: ollama/ollama@00dc3af parser/parser.go.
    """
    _, _, rest = text.partition('TEMPLATE """')
    template, _, _ = rest.partition('"""')
    return "".join(c for c in template if c.isprintable() or c == "\n")


def stops_of_modelfile(text: str) -> list[str]:
    """The stops of a Modelfile, whose quotes, one or three, hold no escapes."""
    prefix = "PARAMETER stop "
    values = [line.removeprefix(prefix) for line in text.splitlines() if line.startswith(prefix)]
    quotes = [3 if value.startswith('"""') else 1 for value in values]
    return [value[n:-n] for value, n in zip(values, quotes, strict=True)]
