"""A CUDA card that computes nothing, on a machine without one.

Tensors on it are torch's fake ones: shapes, dtypes and devices are followed, and a mixture of
devices is refused as a card refuses it. Numbers are not computed, except those that steer a program
(token ids, masks, lengths): they are computed on the CPU beside, as long as the host could know
them; where only a card would know, a number is made up. Kernels, reads by the host, uploads and
live bytes are counted.

It changes torch for the whole process: run it in one of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import subprocess
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import bitsandbytes
import torch
from torch import Tensor
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.nn import functional
from torch.utils._foreach_utils import _foreach_supported_types as _foreach_types
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map_only

from alpaca_rlhf.core.kernels import FLASH_FROM

aten = torch.ops.aten
KNOWN_NUMEL = 2**16
"""Tensors of at most so many numbers are computed on the CPU too, where their inputs are known."""
_INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
_READ = aten._local_scalar_dense.default
_COPIES = (aten._to_copy.default, aten.copy_.default)
_LAUNCH_NOTHING = {
    _READ,
    aten.detach.default,
    aten.alias.default,
    aten.lift_fresh.default,
    aten.resize_.default,
    aten._unsafe_view.default,
    aten._reshape_alias.default,
}


class SimulatedGPU(TorchDispatchMode):
    """Counts what operators do with tensors on `cuda`; above torch's fake mode."""

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.live = 0
        self.peak = 0
        self.uploads = 0
        self.kernels: Counter[str] = Counter()
        self.reads: Counter[str] = Counter()
        self._alive: dict[int, tuple[int, weakref.ref[Any]]] = {}
        self._unknown: set[int] = set()

    def clear(self) -> None:
        """Count anew; what is alive stays."""
        self.kernels.clear()
        self.reads.clear()
        self.uploads = 0
        self.peak = self.live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # a question about a tensor, not work on it
            return func(*args, **kwargs)
        inputs = [*_tensors(args), *_tensors(tuple(kwargs.values()))]
        on_card = any(x.device.type == "cuda" for x in inputs)
        # 1. A number that the host reads.
        if func is _READ:
            self._read("item", on_card)
            value = self.known(inputs[0])
            with _disable_current_modes():
                return made_up(inputs[0].dtype) if value is None else value.item()
        # A card takes no positions from elsewhere into what lies on the host.
        if func in _INDEXING:
            kinds = {index.device.type for index in args[1] if index is not None}
            if args[0].device.type == "cpu" and "cuda" in kinds:
                raise RuntimeError(f"{func}: {args[0].device} is indexed by positions on a card")
        # 2. A result whose size the host must read first.
        if func is aten.index.Tensor and any(_is_mask(index) for index in args[1]):
            result, value = self._masked(args[0], args[1], on_card), None
        elif torch.Tag.dynamic_output_shape in func.tags and func is not aten.index.Tensor:
            value = self._computed(func, args, kwargs, inputs)
            if value is None:
                raise NotImplementedError(f"{func} of numbers that only a card would know")
            device = inputs[0].device
            result = tree_map_only(Tensor, lambda x: self._like(x, device), value)
            self._read(_name(func), on_card)
        # 3. Any other.
        else:
            workspace = self._workspace(func, args)
            result = func(*args, **kwargs)
            del workspace
            outputs = [*_tensors(result)]
            small = all(x.numel() <= KNOWN_NUMEL for x in (*inputs, *outputs))
            value = self._computed(func, args, kwargs, inputs) if small else None
        outputs = [*_tensors(result)]
        self._remember(func, args, outputs, value)
        if on_card or any(x.device.type == "cuda" for x in outputs):
            self._count(func, args, inputs, outputs)
        for tensor in (*inputs, *outputs):
            self._see(tensor)
        return result

    # --- what is counted --------------------------------------------------------------------------

    def _count(self, func: Any, args: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        name = _name(func)
        if func in _COPIES:
            source = args[1] if func is aten.copy_.default else args[0]
            target = outputs[0]
            if source.device.type == "cuda" and target.device.type == "cpu":
                self.reads["copy to the host"] += 1
            elif source.device.type == "cpu" and target.device.type == "cuda" and source.dim():
                self.uploads += 1
        if func in _LAUNCH_NOTHING or "empty" in name or _is_view(func):
            return
        if func is aten.index_put_.default and any(_is_mask(index) for index in args[1]):
            self._read("index_put with a mask", args[2].numel() != 1)
        self.kernels[name] += 1

    def _read(self, what: str, happens: bool) -> None:
        if happens:
            self.reads[what] += 1

    def _see(self, tensor: Tensor) -> None:
        """Count the storage of a tensor on the card until nothing refers to it."""
        if tensor.device.type != "cuda":
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        before = self._alive.get(key)
        if before is None:
            self.live += size
            self._alive[key] = (size, weakref.ref(storage, lambda _: self._gone(key)))
        elif before[0] != size:
            self.live += size - before[0]
            self._alive[key] = (size, before[1])
        self.peak = max(self.peak, self.live)

    def _gone(self, key: int) -> None:
        self.live -= self._alive.pop(key)[0]

    def _workspace(self, func: Any, args: Any) -> Tensor | None:
        """The dequantised weight inside a product with a 4-bit one."""
        if _name(func) != "bitsandbytes.gemm_4bit":
            return None
        weight = torch.empty(tuple(args[2]), dtype=args[0].dtype, device=args[0].device)
        self._see(weight)
        self.kernels["dequantised inside a product"] += 1
        return weight

    # --- numbers that the host can know -----------------------------------------------------------

    def known(self, tensor: Tensor) -> Tensor | None:
        """The numbers of a tensor, on the CPU, where the host can know them."""
        if not isinstance(tensor, FakeTensor):
            return tensor
        return getattr(tensor, "_known_numbers", None)

    def _computed(self, func: Any, args: Any, kwargs: Any, inputs: list[Tensor]) -> Any:
        """An operator's result for known numbers; None where one is unknown."""
        if "empty" in _name(func) or any(self.known(x) is None for x in inputs):
            return None
        args, kwargs = tree_map_only(Tensor, self.known, (args, dict(kwargs)))
        args, kwargs = tree_map_only(torch.device, lambda _: torch.device("cpu"), (args, kwargs))
        with _disable_current_modes(), torch.no_grad():
            return func(*args, **kwargs)

    def _remember(self, func: Any, args: Any, outputs: list[Tensor], value: Any) -> None:
        if value is not None:
            values = [*_tensors(value)]
            for output, numbers in zip(outputs, values, strict=True):
                if isinstance(output, FakeTensor):
                    output._known_numbers = numbers  # type: ignore[attr-defined]
            return
        for argument, given in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for x in _tensors(given):
                    x._known_numbers = None  # type: ignore[attr-defined]

    def _like(self, value: Tensor, device: torch.device) -> Tensor:
        with self.fake:
            return torch.empty_strided(
                value.shape, value.stride(), dtype=value.dtype, device=device
            )

    def _masked(self, source: Tensor, indices: Any, on_card: bool) -> Tensor:
        places: list[Tensor | None] = []
        for index in indices:
            if not _is_mask(index):
                places.append(index)
                continue
            mask = self.known(index)
            if mask is None:
                raise NotImplementedError("a mask that only a card would know")
            self._read("index with a mask", on_card)
            self.kernels["nonzero"] += on_card
            with _disable_current_modes():
                found = mask.nonzero(as_tuple=True)
            places += [self._like(x, source.device) for x in found]
        return aten.index.Tensor(source, places)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


@cache
def _name(func: Any) -> str:
    return str(func).removeprefix("aten.").removesuffix(".default")


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


@cache
def _is_view(func: Any) -> bool:
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)


def made_up(dtype: torch.dtype) -> Any:
    """A number in place of one that only a card would know: finite, and no special token."""
    return True if dtype == torch.bool else 0.5 if dtype.is_floating_point else 2


# --- the process ----------------------------------------------------------------------------------


def _install_device() -> None:
    """Let autograd find a device of kind `cuda` in a build of torch that has none."""
    home = Path(torch.__file__).parent
    source = Path(__file__).with_name("no_device.cpp")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "no_device.so"
        options = ["-std=c++20", "-O0", "-shared", "-fPIC", "-w", f"-I{home / 'include'}"]
        links = [f"-L{home / 'lib'}", "-lc10", "-ltorch_cpu"]
        command = ["g++", *options, str(source), "-o", str(library), *links]
        subprocess.run(command, check=True, capture_output=True, text=True)
        ctypes.CDLL(str(library)).install()


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The kernel that a card takes: flash without a mask from sm80 on, else memory-efficient.

    With heads that share keys before sm80 it is plain products.
    """
    has_flash = torch.cuda.get_device_capability() >= FLASH_FROM
    if enable_gqa and not has_flash:
        products = aten._scaled_dot_product_attention_math
        result: Tensor = products(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=True
        )[0]
        return result
    if has_flash and attn_mask is None and query.dtype in (torch.bfloat16, torch.float16):
        flash = aten._scaled_dot_product_flash_attention
        output: Tensor = flash(query, key, value, dropout_p, is_causal, scale=scale)[0]
        return output
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        zeros = torch.zeros((), dtype=query.dtype, device=query.device)
        attn_mask = torch.where(attn_mask, zeros, float("-inf"))
    efficient = aten._scaled_dot_product_efficient_attention
    learns = query.requires_grad and torch.is_grad_enabled()
    output = efficient(query, key, value, attn_mask, learns, dropout_p, is_causal, scale=scale)[0]
    return output


class _Instances(type):
    """Lets `isinstance` take a fake tensor for bitsandbytes' parameter."""

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, FakeTensor) and hasattr(value, "bnb_quantized")


class Params4bit(metaclass=_Instances):
    """In place of bitsandbytes' own, of which there is no fake: quantised when moved to CUDA."""

    def __new__(cls, data: Any = None, requires_grad: bool = False, **state: Any) -> Any:
        weight: Any = torch.empty(0) if data is None else data.detach()
        weight._is_param = True
        weight.bnb_quantized = state.get("bnb_quantized", False)
        weight.quant_state = state.get("quant_state")
        weight.module = state.get("module")
        weight.compress_statistics = state.get("compress_statistics", True)
        weight.quant_type = state.get("quant_type", "fp4")
        weight.to = partial(cls._to, weight)
        return weight

    @staticmethod
    def _to(weight: Any, *args: Any, **options: Any) -> Any:
        moved = Tensor.to(weight, *args, **options)
        if weight.bnb_quantized or moved.device.type != "cuda":
            return weight if moved is weight else Params4bit(moved, **vars(weight))
        codes, state = bitsandbytes.functional.quantize_4bit(
            moved.contiguous(),
            compress_statistics=weight.compress_statistics,
            quant_type=weight.quant_type,
        )
        quantized = Params4bit(codes, **{**vars(weight), "quant_state": state})
        quantized.bnb_quantized = True
        if weight.module is not None:
            weight.module.quant_state = state
        return quantized


def _swap(first: Any, second: Any) -> None:
    """torch's `swap_tensors`, which refuses tensors that something refers to weakly."""
    state = vars(first).copy(), vars(second).copy()
    for tensor, other in zip((first, second), reversed(state), strict=True):
        vars(tensor).clear()
        vars(tensor).update(other)
    torch._C._swap_tensor_impl(first, second)


@contextlib.contextmanager
def simulated_gpu(gib: float = 24.0) -> Iterator[SimulatedGPU]:
    """Run a block as on a machine with one card of compute capability 8.6."""
    _install_device()
    mode: Any = FakeTensorMode
    mode.avoid_device_init = True  # there is nothing to initialise
    gpu = SimulatedGPU()
    cuda: Any = torch.cuda
    total = int(gib * 2**30)
    for name, answer in {
        "is_available": True,
        "is_bf16_supported": True,
        "is_initialized": True,
        "current_device": 0,
        "device_count": 1,
        "get_device_capability": (8, 6),
        "get_device_name": "simulated",
        "synchronize": None,
        "empty_cache": None,
        "manual_seed_all": None,
        "get_rng_state": None,
        "set_rng_state": None,
    }.items():
        setattr(cuda, name, lambda *args, _answer=answer, **options: _answer)
    torch.backends.cuda.is_flash_attention_available = lambda: True
    cuda.mem_get_info = lambda *args: (total - gpu.live, total)
    cuda.memory_reserved = cuda.memory_allocated = lambda *args: gpu.live
    cuda.amp.common.amp_definitely_not_available = lambda: False
    functional.scaled_dot_product_attention = _attend  # type: ignore[assignment]
    torch.utils.swap_tensors = _swap
    _foreach_types.append(FakeTensor)
    optimizers: Any = importlib.import_module("torch.optim.optimizer")
    optimizers._foreach_supported_types.append(FakeTensor)

    def tolist(tensor: FakeTensor) -> Any:
        value = gpu.known(tensor)
        if tensor.device.type == "cuda":
            gpu.reads["tolist"] += 1
        with _disable_current_modes():
            if value is None:
                value = torch.full(tensor.shape, made_up(tensor.dtype), dtype=tensor.dtype)
            return value.tolist()

    def numpy(tensor: FakeTensor) -> Any:
        value = gpu.known(tensor)
        with _disable_current_modes():
            return (
                torch.zeros(tensor.shape, dtype=tensor.dtype) if value is None else value
            ).numpy()

    for module in (bitsandbytes.nn, bitsandbytes.nn.modules):
        module.Params4bit = Params4bit
    asarray = torch.asarray

    def of_storage(value: Any, **options: Any) -> Tensor:  # how safetensors opens a file
        with _disable_current_modes():
            return asarray(value, **options)

    torch.asarray = of_storage
    fake: Any = FakeTensor
    fake.tolist, fake.numpy = tolist, numpy
    torch.autograd.set_multithreading_enabled(False)  # type: ignore[no-untyped-call]
    with gpu.fake, gpu:
        yield gpu
