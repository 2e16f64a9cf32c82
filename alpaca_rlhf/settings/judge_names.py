"""The grammar of judges: what `--inputs.judge`, `--evaluate.judge` and `judge --by` take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

JudgeKind = Literal["human", "llm", "gold", "checks", "reward", "function"]

GRAMMAR = "human, llm, gold, checks, reward:FOLDER, FILE.py:function or package.module:function"
"""Every form of a judge's name."""
SCORERS = "gold, checks, reward:FOLDER, FILE.py:function or package.module:function"
"""The forms that name a scorer: a judge that rates one completion at a time."""

_ALIASES = {"people": "human"}
_WORDS: dict[str, JudgeKind] = {
    "human": "human",
    "llm": "llm",
    "gold": "gold",
    "checks": "checks",
}


@dataclass(frozen=True)
class JudgeName:
    """A judge's name, read by the grammar."""

    kind: JudgeKind
    """Its kind."""
    text: str
    """The name as typed, an alias in its long form."""
    place: str = ""
    """The folder of a reward model, or the file or module of a function."""
    function: str = ""
    """The name of a function within its file or module."""

    @property
    def is_scorer(self) -> bool:
        """True if it rates one completion at a time; people and `llm` compare several."""
        return self.kind not in ("human", "llm")

    @property
    def is_file(self) -> bool:
        """True if it names a function of a file, not of an importable module."""
        return self.kind == "function" and self.place.endswith(".py")

    @property
    def path(self) -> Path:
        """The folder of a reward model, or the file of a function."""
        return Path(self.place).expanduser()


def canonical(text: str) -> str:
    """A judge's name with an alias in its long form: `people` is `human`."""
    return _ALIASES.get(text, text)


def parse_judge(text: str) -> JudgeName:
    """Read a judge's name by the grammar. Nothing is opened or imported.

    Raises:
        ValueError: It has none of the forms; the message goes after the flag.
    """
    text = canonical(text)
    # 1. A word.
    if text in _WORDS:
        return JudgeName(_WORDS[text], text)
    # 2. A reward model in a folder.
    if text == "reward" or text.startswith("reward:"):
        folder = text.partition(":")[2]
        if not folder:
            raise ValueError(f"{text!r} names no folder; give reward:FOLDER, of {GRAMMAR}")
        return JudgeName("reward", text, folder)
    # 3. A function in a file, or in a module. A path may hold colons, a function's name does not.
    place, colon, function = text.rpartition(":")
    if text.endswith(".py"):
        raise ValueError(f"{text!r} names a file and no function; give {text}:FUNCTION")
    names_function = all(part.isidentifier() for part in function.split("."))
    names_module = all(part.isidentifier() for part in place.split("."))
    if colon and names_function and (place.endswith(".py") or names_module):
        return JudgeName("function", text, place, function)
    raise ValueError(f"{text!r} names no judge; give {GRAMMAR}")
