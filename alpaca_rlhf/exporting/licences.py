"""Duties under the licence of a base for whoever distributes a model. No legal advice: read it.

Sources: llama.com/llama2/license, llama.com/llama3/license, llama.com/llama3_1/license and on,
section 1.b: a copy of the agreement, the name, the display, the notice.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from alpaca_rlhf.core.bases import SMOLLM2, smollm2_folder

_LICENCE_FILE = re.compile(r"^(licen[cs]e|notice|use_policy)", re.IGNORECASE)


def duties(base: str) -> list[str]:
    """List the duties to meet before a model made from a base is distributed."""
    if base == "embedded":
        return ["The embedded base is this project's own, under Apache-2.0: keep that licence."]
    if base == SMOLLM2:
        return ["The base is SmolLM2-135M-Instruct by Hugging Face, under Apache-2.0: keep it."]
    name = base.lower()
    match = re.search(r"llama[-_ ]?(2|3(?:[._]\d)?)(?!\d)", name)
    if match is None:
        return [
            f"The licence of `{base}` holds for what is made from it. Read it before you pass the "
            "model on, and put a copy beside it."
        ]
    version = match[1].replace("_", ".")
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
        outputs = "Its outputs may not be used to improve another language model."
        return [copy, notice, outputs, large]
    display = "Built with Meta Llama 3" if version == "3" else "Built with Llama"
    name_start = "Llama 3" if version == "3" else "Llama"
    return [
        copy,
        notice,
        f'Display "{display}" where it is used, and let its name begin with "{name_start}".',
        large,
    ]


def copy_files(base: str, folder: Path) -> list[str]:
    """Copy the licence files of a base's folder, and return their names."""
    source = smollm2_folder() if base == SMOLLM2 else Path(base).expanduser()
    if not source.is_dir():
        return []
    names = []
    for path in sorted(source.iterdir()):
        if path.is_file() and _LICENCE_FILE.match(path.name):
            shutil.copyfile(path, folder / path.name)
            names.append(path.name)
    return names
