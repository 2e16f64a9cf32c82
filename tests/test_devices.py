"""The device of a base: CUDA, else Apple's MPS, else the CPU. No Mac is here, so it is faked."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.doctor import machine
from alpaca_rlhf.models import base as base_module
from alpaca_rlhf.models import devices
from alpaca_rlhf.models.base import default_dtype, load_base
from alpaca_rlhf.models.devices import VARIABLE, default_device, exact_dtype, float64
from alpaca_rlhf.models.oom_retry import is_out_of_memory
from alpaca_rlhf.planner import shape_of
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.stages import forecast, preflight

PACKAGE = Path(devices.__file__).parent.parent
MPS = torch.device("mps")


@pytest.fixture
def mac(monkeypatch):
    """A Mac of macOS 14 or later, on which bitsandbytes has kernels or not."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *version: True)

    def with_kernels(there: bool) -> None:
        for module in (devices, base_module, machine):
            monkeypatch.setattr(
                module, "multiplies_in_4_bit", lambda device: there or device.type != "mps"
            )

    with_kernels(True)
    return with_kernels


def test_a_card_comes_first_then_mps_then_the_processor(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    for cuda, mps, expected in (
        (True, True, "cuda"),
        (False, True, "mps"),
        (False, False, "cpu"),
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=cuda: there)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda there=mps: there)
        assert default_device().type == expected
    monkeypatch.setenv(VARIABLE, "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert default_device().type == "cpu"


def test_a_named_device_must_be_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setenv(VARIABLE, "cuda:1")
    assert default_device() == torch.device("cuda:1")
    for name, problem in (
        ("cuda:2", "torch sees 2 of this kind here"),
        ("mps", "torch sees none of this kind here"),
        ("gpu", "is no device; give cpu, cuda, cuda:1 or mps"),
    ):
        monkeypatch.setenv(VARIABLE, name)
        with pytest.raises(UserError) as caught:
            default_device()
        assert str(caught.value).startswith(f"{VARIABLE}={name}") and problem in str(caught.value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv(VARIABLE, "cuda")
    with pytest.raises(UserError, match="none of this kind"):
        default_device()


def test_the_precision_of_a_mac(mac, monkeypatch):
    assert default_dtype(MPS) == torch.bfloat16
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *version: False)
    assert default_dtype(MPS) == torch.float32


class Loaded(Exception):
    """Ends a load before anything is put on a device that is not here."""


@pytest.mark.parametrize(("kernels", "expected"), [(True, "nf4"), (False, "none")])
def test_a_base_is_loaded_in_4_bit_where_a_mac_can_and_else_whole(
    mac, monkeypatch, caplog, kernels, expected
):
    mac(kernels)
    taken = []

    def stop(source, quantization, dtype, stored, device):
        taken.append((quantization, dtype, device.type))
        raise Loaded

    monkeypatch.setattr(base_module, "_load", stop)
    with pytest.raises(Exception, match="Loaded"):
        load_base()
    assert taken == [(expected, torch.bfloat16, "mps")]
    lines = [record.message for record in caplog.records]
    assert len(lines) == (not kernels)
    if lines:
        assert "no kernel for 4-bit weights on mps" in lines[0] and "bfloat16" in lines[0]


def test_a_kernel_is_looked_for_where_bitsandbytes_registers_it(monkeypatch):
    asked = []

    def has_kernel(name, key):
        asked.append((name, key))
        return False

    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", has_kernel)
    assert not devices.multiplies_in_4_bit(MPS)
    assert devices.multiplies_in_4_bit(torch.device("cpu"))
    assert asked == [("bitsandbytes::dequantize_4bit", "MPS")]


@pytest.mark.parametrize(("kernels", "weights"), [(True, "4-bit"), (False, "unquantised")])
def test_the_doctor_names_the_mac_and_the_way_back(mac, kernels, weights):
    mac(kernels)
    finding = machine._gpu()
    assert finding.found == f"Apple MPS, with {weights} weights" and finding.verdict == "warning"
    assert f"{VARIABLE}=cpu" in finding.todo and "never run on a Mac" in finding.todo


def test_a_plan_does_not_take_a_mac_for_a_processor_alone(mac, monkeypatch, caplog):
    settings, shape = Loop(base="llama-3.1-8b"), shape_of("llama-3.1-8b")
    preflight.check_gpu(shape, settings, [("sft", 1)])
    assert not caplog.records
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    preflight.check_gpu(shape, settings, [("sft", 1)])
    assert "no graphics card" in caplog.text


def test_sums_in_float64_leave_a_device_that_has_none():
    there = SimpleNamespace(device=MPS, cpu=lambda: torch.tensor([0.5]))
    assert float64(there).dtype == torch.float64
    assert exact_dtype(MPS) == torch.float32 and exact_dtype(torch.device("cpu")) == torch.float64


def test_no_module_asks_a_device_for_float64_itself():
    """MPS refuses it."""
    offenders = [
        f"{path.relative_to(PACKAGE)}:{number}"
        for room in ("models", "training", "stages", "doctor", "serving", "exporting")
        for path in sorted((PACKAGE / room).glob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"\.double\(\)", line) and path.name != "devices.py"
    ]
    assert not offenders


def test_a_mac_that_is_out_of_memory_goes_on_with_less():
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB)"))


def test_the_memory_of_a_stage_is_that_of_its_own_device(monkeypatch):
    """A run on the processor takes nothing of a card that is there too."""
    peaks = {0: 0, 1: 3 * 2**30}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peaks[device.index])
    assert forecast.measured_gib(torch.device("cuda:1")) == 3.0
    assert forecast.measured_gib(torch.device("cpu")) is None
