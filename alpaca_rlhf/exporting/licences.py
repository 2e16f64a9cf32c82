"""What the licence of a base asks of whoever passes a model on. No legal advice: read the licence.

Sources: llama.com/llama2/license, llama.com/llama3/license, llama.com/llama3_1/license and on,
section 1.b: a copy of the agreement, the name, what is to be displayed, the notice.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from alpaca_rlhf.core.bases import EMBEDDED

_OWN = re.compile(r"^(licen[cs]e|notice|use_policy)", re.IGNORECASE)


def duties(base: str) -> list[str]:
    """What to do before a model made from a base is passed on, line by line."""
    if base == EMBEDDED:
        return ["The embedded base is this project's own, under Apache-2.0: keep that licence."]
    name = base.lower()
    found = re.search(r"llama[-_ ]?(2|3(?:[._]\d)?)(?!\d)", name)
    if found is None:
        return [
            f"The licence of `{base}` holds for what is made from it. Read it before you pass the "
            "model on, and put a copy beside it."
        ]
    version = found[1].replace("_", ".")
    copy = "Pass on a copy of its licence and of its acceptable use policy with the model."
    notice = (
        f"Keep a file `Notice` that says: Llama {version} is licensed under the Llama {version} "
        "Community License, Copyright (c) Meta Platforms, Inc. All Rights Reserved."
    )
    large = (
        "With more than 700 million monthly active users at its release, a licence of Meta's own "
        "is needed."
    )
    if version == "2":
        other = "Its outputs may not be used to improve another language model."
        return [copy, notice, other, large]
    shown = "Built with Meta Llama 3" if version == "3" else "Built with Llama"
    start = "Llama 3" if version == "3" else "Llama"
    return [
        copy,
        notice,
        f'Display "{shown}" where it is used, and let its name begin with "{start}".',
        large,
    ]


def copy_files(base: str, folder: Path) -> list[str]:
    """Copy the licence files that lie in a base's folder; their names."""
    source = Path(base).expanduser()
    if not source.is_dir():
        return []
    names = []
    for path in sorted(source.iterdir()):
        if path.is_file() and _OWN.match(path.name):
            shutil.copyfile(path, folder / path.name)
            names.append(path.name)
    return names
