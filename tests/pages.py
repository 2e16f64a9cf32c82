"""The pages whose commands are taken literally, and their commands as words."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
GUIDES = {page.stem: page for page in sorted((ROOT / "docs" / "guides").glob("*.md"))}
PAGES = {"README": ROOT / "README.md", **GUIDES}
"""The Chinese README has the commands of the English one."""


def commands(text: str) -> Iterator[list[str]]:
    """Lines of the indented blocks, continued lines joined, comments cut off, as words."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    block = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))
    for line in block.replace("\\\n", " ").splitlines():
        # A drawing, or the file of a server, need not be words of a shell.
        ours = re.search(r"\b(alpaca-rlhf|accelerate|python) ", line)
        words = shlex.split(line, comments=True) if ours else line.split()
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if words:
            yield words


def mentions(text: str) -> Iterator[list[str]]:
    """Commands of ours within a line, with flags of their own, as words."""
    for span in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        words = span.split()
        if words[0] == "alpaca-rlhf" and len(words) > 2:
            yield words
