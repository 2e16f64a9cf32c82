"""Compiled regions of a base, against the same base without them."""

import shutil
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.models.batches import collate
from alpaca_rlhf.models.compiled import compile_regions
from alpaca_rlhf.models.forward import token_logprobs
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.settings.parsing import parse
from alpaca_rlhf.stages.context import Context
from tests.test_shared_prompts import GROUPS, SHARED, gradient, loss_of


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Backend:
    """A backend that runs each graph as it is, and keeps it."""

    def __init__(self):
        self.graphs = []

    def __call__(self, graph, inputs):
        self.graphs.append(graph)
        return graph.forward


@pytest.mark.parametrize("checkpointing", [0, 1])
def test_losses_and_gradients_are_those_of_the_plain_base(tiny, precision, checkpointing):
    dtype, quantization, tolerance = precision
    head, backend, results = ScalarHead(128, seed=1), Backend(), []
    for is_compiled in (False, True):
        adapters = tiny("policy", dtype=dtype, quantization=quantization)
        if is_compiled:
            # Two norms and an activation in each of two layers, and the last norm.
            assert compile_regions(adapters.base.model, backend=backend) == 7
        adapters.checkpointing(checkpointing)
        adapters.trainable("policy")
        with adapters.using("policy"), adapters.training():
            loss = loss_of(adapters, head, SHARED)
            loss.backward()
        results.append((loss.item(), gradient(adapters)))
    (loss, expected), (compiled_loss, compiled_gradient) = results
    assert compiled_loss == pytest.approx(loss, rel=10 * tolerance)
    assert (compiled_gradient - expected).norm() <= max(tolerance, 1e-7) * expected.norm()
    names = {node.target for graph in backend.graphs for node in graph.graph.nodes}
    assert {"rsqrt", torch.rsqrt} & names, "the norm was compiled"
    assert {torch.nn.functional.silu, torch._C._nn.silu} & names, "the activation was compiled"


def test_passes_without_gradients_stay_as_they_are(tiny):
    adapters = tiny("policy")
    batch = collate(adapters.base, GROUPS[0])
    with torch.no_grad(), adapters.using("policy"):
        before = token_logprobs(adapters, batch)
    backend = Backend()
    compile_regions(adapters.base.model, backend=backend)
    compiled = len(backend.graphs)
    with torch.no_grad(), adapters.using("policy"):
        assert torch.equal(token_logprobs(adapters, batch), before)
    assert len(backend.graphs) == compiled == 1, "the line that tries the compiler, and no more"


@pytest.mark.skipif(
    shutil.which("g++") is None or not Path(sysconfig.get_path("include"), "Python.h").exists(),
    reason="needs g++ and the headers of Python",
)
def test_inductor_gives_the_same(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    head, losses = ScalarHead(128, seed=1), []
    for is_compiled in (False, True):
        adapters = tiny("policy")
        if is_compiled:
            compile_regions(adapters.base.model)
        adapters.trainable("policy")
        with adapters.using("policy"), adapters.training():
            loss = loss_of(adapters, head, SHARED)
            loss.backward()
        losses.append((loss.item(), gradient(adapters)))
    (loss, expected), (compiled_loss, compiled_gradient) = losses
    assert compiled_loss == pytest.approx(loss, rel=1e-4)
    assert (compiled_gradient - expected).norm() <= 1e-4 * expected.norm()


def test_a_machine_without_a_compiler_is_told_in_one_line(tiny):
    def broken(graph, inputs):
        raise RuntimeError("No working C++ compiler found\nmore")

    adapters = tiny("policy")
    with pytest.raises(UserError, match="--compile: torch cannot compile here") as caught:
        compile_regions(adapters.base.model, backend=broken)
    assert "\n" not in str(caught.value) and "give --compile False" in str(caught.value)


@pytest.mark.parametrize("wanted", [False, True])
def test_the_flag_compiles_the_base_of_a_run(tiny_folder, tmp_path, monkeypatch, wanted):
    compiled = []
    monkeypatch.setattr("alpaca_rlhf.stages.context.compile_regions", compiled.append)
    typed = ["--base", str(tiny_folder), "--out", str(tmp_path), *["--compile"] * wanted]
    settings = parse(Loop, typed, prog="loop", description="")
    ctx = Context(settings, SimpleNamespace(path=tmp_path), None, None)
    model = ctx.adapters.base.model
    assert compiled == [model] * wanted
