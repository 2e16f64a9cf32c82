"""llama.cpp's own quantiser, for the K-quants that no Python package can write."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.shell_words import quoted

K_QUANTS = {
    "q3_k_m": 3.9,
    "q4_k_s": 4.6,
    "q4_k_m": 4.9,
    "q5_k_m": 5.7,
    "q6_k": 6.6,
}
"""Values of `--dtype` that `llama-quantize` makes, with their bits a weight in a 7B model
(ggml-org/llama.cpp tools/quantize/README.md, rounded up)."""
INTERMEDIATE = "float16"
"""Dtype of the file that is quantised, and then deleted."""
_PROGRAM = "llama-quantize"
_PLACES = (".", "build/bin", "bin")
"""Folders of llama.cpp that may hold the program."""


def is_k_quant(dtype: str) -> bool:
    """True for a value of `--dtype` that only `llama-quantize` makes."""
    return dtype in K_QUANTS


def program(llama_cpp: Path | None, dtype: str, export: str, out: Path) -> Path:
    """Find `llama-quantize`: in llama.cpp's folder if one is given, else on the PATH.

    Args:
        llama_cpp: llama.cpp's folder.
        dtype: A K-quant.
        export: The command that exports without quantising.
        out: Folder of the export.

    Raises:
        UserError: It is not installed; the message tells the commands that do the same by hand.
    """
    for place in _PLACES if llama_cpp is not None else ():
        assert llama_cpp is not None
        path = llama_cpp / place / _PROGRAM
        if path.is_file():
            return path
    on_path = shutil.which(_PROGRAM)
    if on_path is not None:
        return Path(on_path)
    source, target = (quoted(out / f"model-{kind}.gguf") for kind in ("f16", dtype))
    raise UserError(
        f"--dtype {dtype}: is made by llama.cpp's {_PROGRAM}, which is not on the PATH (nor in "
        "--llama-cpp); install llama.cpp (brew install llama.cpp, or its releases on GitHub) and "
        f"run this again, or by hand: {export} && {_PROGRAM} {source} {target} {dtype.upper()}"
    )


def quantize(quantizer: Path, source: Path, target: Path, dtype: str) -> None:
    """Quantise a GGUF file, and delete it.

    Raises:
        UserError: The program failed; the message quotes its last line.
    """
    command = [str(quantizer), str(source), str(target), dtype.upper()]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode or not target.is_file():
        output = process.stderr.strip() or process.stdout.strip() or "no output"
        raise UserError(f"--dtype {dtype}: {quantizer} failed ({output.splitlines()[-1]})")
    source.unlink()
