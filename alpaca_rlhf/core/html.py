"""The template environment of every HTML page: what people and models write is only ever text.

Autoescape turns each value that is not markup already into text, so that nothing can be injected by
forgetting to escape; a name that a template uses and nobody passed is an error.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jinja2

_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)


def printable(text: str) -> str:
    """`text` with U+FFFD for each code point that HTML forbids.

    These are control characters, lone surrogates and non-characters; a byte-level model may write
    any of them.
    """
    return _UNPRINTABLE.sub("\ufffd", text)


def environment(folder: Path) -> jinja2.Environment:
    """A Jinja2 environment for the templates in `folder`."""
    import jinja2
    from markupsafe import Markup

    def finalize(value: object) -> str:
        # Autoescape runs after this, and leaves only markup as it is.
        if isinstance(value, Markup):
            return Markup(printable(value))
        return printable(str(value))

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=finalize,
    )
