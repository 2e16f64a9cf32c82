"""llama.cpp's own converter, for users who have it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.exporting.gguf_file import KINDS

_SCRIPT = "convert_hf_to_gguf.py"


def script(llama_cpp: Path) -> Path:
    """Find the converter in llama.cpp's folder.

    Raises:
        UserError: The folder has no converter.
    """
    path = llama_cpp / _SCRIPT
    if not path.is_file():
        raise UserError(f"--llama-cpp {llama_cpp}: no {_SCRIPT} there; give llama.cpp's folder")
    return path


def convert(llama_cpp: Path, folder: Path, out: Path, dtype: str) -> None:
    """Convert the merged model in a folder to a GGUF file.

    Raises:
        UserError: The converter failed; the message quotes its last line.
    """
    command = [sys.executable, str(script(llama_cpp)), str(folder), "--outfile", str(out)]
    command += ["--outtype", KINDS[dtype].lower()]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode or not out.is_file():
        output = process.stderr.strip() or process.stdout.strip() or "no output"
        raise UserError(
            f"--llama-cpp {llama_cpp}: its converter failed ({output.splitlines()[-1]})"
        )
