"""Checks of the machine: libraries, GPU, 4-bit arithmetic, precision, memory, disk."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit
from packaging.requirements import Requirement

from alpaca_rlhf.core.files import nearest_folder
from alpaca_rlhf.doctor.finding import Finding, carried_out
from alpaca_rlhf.models.base import default_dtype
from alpaca_rlhf.models.devices import VARIABLE, default_device, multiplies_in_4_bit

_GIB = 2**30
_TOLERANCE = 0.02
"""Largest relative error of a 4-bit product against the dequantised weights' product."""


def machine_checks(out: Path) -> Iterator[Finding]:
    """Run every check that needs no base.

    Args:
        out: Folder that runs will be written to.
    """
    device = default_device()
    yield from carried_out(
        {
            "python": _python,
            "libraries": _libraries,
            "torch": _torch,
            "card": _gpu,
            "precision": partial(_precision, device),
            "4-bit arithmetic": partial(_four_bit, device),
            "memory": _memory,
            "disk": partial(_disk, out),
        }
    )


def _python() -> Finding:
    return Finding("python", f"{platform.python_version()} on {platform.system()}")


def _libraries() -> Finding:
    problems: list[str] = []
    try:
        lines = metadata.requires("alpaca-rlhf") or ()
    except metadata.PackageNotFoundError:
        todo = "install it, and what it needs with it: pip install -c constraints.txt -e ."
        return Finding("libraries", "alpaca-rlhf itself is not installed", "warning", todo)
    needs = [Requirement(line) for line in lines]
    needs = [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    for need in needs:
        try:
            version = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            problems.append(f"{need.name} is missing")
            continue
        if not need.specifier.contains(version, prereleases=True):
            problems.append(f"{need.name} {version} where {need.specifier} is needed")
    if problems:
        todo = "install them again: pip install -c constraints.txt -e ."
        return Finding("libraries", "; ".join(problems), "bad", todo)
    return Finding("libraries", f"{len(needs)} installed, in the versions needed")


def _torch() -> Finding:
    cuda, hip = torch.version.cuda, torch.version.hip
    built = f"for ROCm {hip}" if hip else f"for CUDA {cuda}" if cuda else "without CUDA"
    build = f"{torch.__version__}, built {built}"
    if cuda is None and shutil.which("nvidia-smi"):
        todo = "install the build for your card, see pytorch.org/get-started"
        return Finding("torch", f"{build}; but there is an NVIDIA driver here", "bad", todo)
    return Finding("torch", build)


def _gpu() -> Finding:
    if default_device().type == "mps":
        four_bit = "4-bit" if multiplies_in_4_bit(default_device()) else "unquantised"
        todo = f"this kit has never run on a Mac; {VARIABLE}=cpu computes on the processor"
        return Finding("card", f"Apple MPS, with {four_bit} weights", "warning", todo)
    if not torch.cuda.is_available():
        if torch.version.cuda is not None or torch.version.hip is not None:
            todo = f"see that `{_tool()}` runs, and that its driver is new enough for this build"
            return Finding("card", "none that torch can use", "bad", todo)
        todo = "a base of more than about 0.5 B weights needs one"
        return Finding("card", "none: everything runs on the CPU", "warning", todo)
    names = []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        share = f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
        names.append(f"{properties.name} (compute {properties.major}.{properties.minor}, {share})")
    free, total = torch.cuda.mem_get_info()
    if free < 0.8 * total:
        todo = f"something else holds memory of the card: see `{_tool()}`, and close it"
        return Finding("card", "; ".join(names), "warning", todo)
    return Finding("card", "; ".join(names))


def _tool() -> str:
    """The command that shows the cards that this build of torch is for."""
    return "nvidia-smi" if torch.version.hip is None else "rocm-smi"


def _precision(device: torch.device) -> Finding:
    dtype = default_dtype(device)
    name = str(dtype).removeprefix("torch.")
    if dtype == torch.bfloat16:
        return Finding("precision", f"{name}, which the {device.type} computes in itself")
    if dtype == torch.float16:
        todo = "nothing: losses are scaled; a card from 2020 on has bfloat16"
        return Finding("precision", f"{name}: the card has no bfloat16", "warning", todo)
    todo = "nothing: it is exact, and several times slower"
    return Finding("precision", f"{name}: the processor has no bfloat16", "warning", todo)


def _four_bit(device: torch.device) -> Finding:
    """Compare a QLoRA layer's product and gradient with those of its dequantised weights.

    A forward without gradients comes first, as in a run: on some processors bitsandbytes then
    packs the weights for a kernel whose backward is wrong.
    """
    dtype = default_dtype(device)
    torch.manual_seed(0)
    layer_type: Any = Linear4bit  # it has no type annotations
    layer = layer_type(256, 512, bias=False, compute_dtype=dtype, quant_type="nf4").to(device)
    layer.support_avx512bf16_for_cpu = False
    x = torch.randn(8, 256, device=device, dtype=dtype, requires_grad=True)
    # 1. The forward without gradients, then one with them.
    with torch.no_grad():
        layer(x)
    y = layer(x)
    slope = torch.randn_like(y)
    y.backward(slope)
    # 2. The same product and gradient from the dequantised weights.
    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    assert x.grad is not None
    pairs = (y.detach(), x.detach().float() @ weight.T), (x.grad, slope.float() @ weight)
    error = max(float((actual.float() - exact).norm() / exact.norm()) for actual, exact in pairs)
    version = metadata.version("bitsandbytes")
    state = f"bitsandbytes {version}: product and gradient within {error:.1e} of the reference"
    if error > _TOLERANCE:
        todo = "do not train here; reinstall bitsandbytes, and torch for this card"
        return Finding("4-bit arithmetic", state, "bad", todo)
    return Finding("4-bit arithmetic", state)


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    free, total = memory.available / _GIB, memory.total / _GIB
    state = f"{free:.1f} of {total:.1f} GiB free"
    if free < 4:
        todo = "close other programs: the quickstart takes 2 GiB, loading a 7B base 4 to 16"
        return Finding("memory", state, "warning", todo)
    return Finding("memory", state)


def _disk(out: Path) -> Finding:
    folder = nearest_folder(out)
    free = shutil.disk_usage(folder).free / _GIB
    state = f"{free:.1f} GiB free at {folder}"
    if not os.access(folder, os.W_OK):
        return Finding("disk", f"{folder} cannot be written", "bad", "give another --out")
    if free < 1:
        return Finding("disk", state, "bad", "free some, or give another --out")
    if free < 20:
        todo = "enough for adapters (under 1 GiB a run); a 7B base in 16 bit has 13 GiB"
        return Finding("disk", state, "warning", todo)
    return Finding("disk", state)
