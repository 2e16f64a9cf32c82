"""Packs what a card's day must bring along, where a call carries at most 64 MiB.

    python benchmarks/gpu/carry.py carried/

One ZIP file of the libraries that torch's usual companions do not include, and one of this
repository: no byte code, no tests of the libraries, and of bitsandbytes only what three versions of
CUDA need. On the machine with the card:

    unzip -q carried/libraries.zip -d libraries && unzip -q carried/repository.zip -d kit
    cd kit && PYTHONPATH=../libraries python benchmarks/gpu/checks.py --json checks.json
"""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
CALL_BYTES = 64 * 2**20
"""Most that a call carries."""
LIBRARIES = (
    "bitsandbytes",
    "transformers",
    "peft",
    "accelerate",
    "tokenizers",
    "safetensors",
    "huggingface-hub",
)
"""Distributions, in the versions of `constraints.txt`."""
CUDA = ("126", "128", "130")
"""Versions of CUDA whose library of bitsandbytes is carried."""
_LEFT_OUT = re.compile(
    r"\.pyc$|(^|/)__pycache__/|(^|/)tests?/|^\.\./"
    rf"|libbitsandbytes_(?!cpu|cuda({'|'.join(CUDA)})\b)"
)
FOLDERS = ("alpaca_rlhf", "benchmarks", "data/cria", "tests", "pyproject.toml", "constraints.txt")
"""What is carried of this repository."""


def library_files() -> Iterator[tuple[Path, str]]:
    """Files of the installed libraries that are carried, and their names in the archive."""
    for name in LIBRARIES:
        for file in metadata.files(name) or ():
            if not _LEFT_OUT.search(file.as_posix()):
                yield Path(str(file.locate())), file.as_posix()


def repository_files() -> Iterator[tuple[Path, str]]:
    """Files of this repository that are carried: those that git keeps."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", *FOLDERS], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        yield ROOT / name, name


def pack(files: Iterator[tuple[Path, str]], out: Path) -> int:
    """Write an archive; returns its bytes."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, name in files:
            archive.write(path, name)
    return out.stat().st_size


def main(arguments: list[str]) -> int:
    """Pack both; the exit code is 1 where they are more than a call carries."""
    folder = Path(arguments[0])
    sizes = [
        pack(library_files(), folder / "libraries.zip"),
        pack(repository_files(), folder / "repository.zip"),
    ]
    sys.stdout.write(f"{sum(sizes) / 2**20:.1f} of {CALL_BYTES / 2**20:.0f} MiB\n")
    return int(sum(sizes) > CALL_BYTES)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
