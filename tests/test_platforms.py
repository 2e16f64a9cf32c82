"""The first rooms can be imported where the modules that only Unix has are absent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
UNIX_ONLY = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix")

PROGRAM = """
import importlib, pkgutil, sys, types
import multiprocessing, pathlib, subprocess, tempfile, psutil  # as they are on this system
for name in {unix!r}:
    sys.modules[name] = None
sys.modules["msvcrt"] = types.ModuleType("msvcrt")  # which Windows has
sys.platform = "win32"
for room in {rooms!r}:
    package = importlib.import_module("alpaca_rlhf." + room)
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
        print(module.name)
assert "torch" not in sys.modules
"""


def test_torch_free_rooms_import_without_unix_modules() -> None:
    program = PROGRAM.format(unix=UNIX_ONLY, rooms=("core", "settings"))
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert {"alpaca_rlhf.core.provenance", "alpaca_rlhf.core.locks"} <= set(ran.stdout.split())
