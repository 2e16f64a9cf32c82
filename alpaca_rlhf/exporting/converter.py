"""llama.cpp's own converter, where the user has it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from alpaca_rlhf.core.errors import UserError

_SCRIPT = "convert_hf_to_gguf.py"
_TYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "q8_0": "q8_0"}


def script(llama_cpp: Path) -> Path:
    """The converter in llama.cpp's folder.

    Raises:
        UserError: It is not there.
    """
    path = llama_cpp / _SCRIPT
    if not path.is_file():
        raise UserError(f"--llama-cpp {llama_cpp}: no {_SCRIPT} there; give llama.cpp's folder")
    return path


def convert(llama_cpp: Path, merged: Path, out: Path, dtype: str) -> None:
    """Convert a merged model.

    Raises:
        UserError: The converter fails; the last line it wrote is told.
    """
    words = [str(script(llama_cpp)), str(merged), "--outfile", str(out), "--outtype", _TYPES[dtype]]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    if done.returncode or not out.is_file():
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise UserError(f"--llama-cpp {llama_cpp}: its converter failed ({said})")
