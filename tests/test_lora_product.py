"""LoRA's product as a card computes it, against PEFT's own layers; both run on a CPU here."""

import pytest
import torch
from transformers import DynamicCache

from alpaca_rlhf.models import dense
from alpaca_rlhf.models.batches import collate
from alpaca_rlhf.models.forward import token_logprobs
from alpaca_rlhf.models.heads import ScalarHead
from tests.test_shared_prompts import GROUPS, SHARED, gradient, loss_of


@pytest.fixture
def fused(monkeypatch):
    """Makes adapters whose layers have the fused product."""

    def switch_on():
        monkeypatch.setattr(dense, "fuses", lambda device: True)

    return switch_on


@pytest.mark.parametrize("checkpointing", [0, 1])
def test_losses_and_gradients_are_those_of_pefts_layers(tiny, precision, fused, checkpointing):
    dtype, quantization, tolerance = precision
    head = ScalarHead(128, seed=1)
    results = []
    for kind in ("peft", "fused"):
        if kind == "fused":
            fused()
        adapters = tiny("policy", dtype=dtype, quantization=quantization)
        assert all(("forward" in vars(layer)) == (kind == "fused") for layer in adapters._layers)
        adapters.checkpointing(checkpointing)
        adapters.trainable("policy")
        with adapters.using("policy"), adapters.training():
            loss = loss_of(adapters, head, SHARED)
            loss.backward()
        kinds = {p.grad.dtype for p in adapters.parameters("policy").values()}
        assert kinds == {p.dtype for p in adapters.parameters("policy").values()}
        results.append((loss.item(), gradient(adapters)))
    (loss, expected), (other_loss, other) = results
    assert other_loss == pytest.approx(loss, rel=10 * tolerance)
    assert (other - expected).norm() <= max(tolerance, 1e-7) * expected.norm()


def test_a_frozen_adapter_has_no_gradient_and_two_add_up(tiny, fused):
    """Each of two roles learns from its own forward, one after the other, as with PEFT."""
    results = []
    for kind in ("peft", "fused"):
        if kind == "fused":
            fused()
        adapters = tiny("sft", "policy", "reward")
        adapters.trainable("policy", "reward")
        for role in ("policy", "reward"):
            with adapters.using(role):
                token_logprobs(adapters, collate(adapters.base, GROUPS[0])).sum().backward()
        assert all(p.grad is None for p in adapters.parameters("sft").values())
        results.append(
            torch.cat(
                [
                    p.grad.flatten()
                    for role in ("policy", "reward")
                    for _, p in sorted(adapters.parameters(role).items())
                ]
            )
        )
    assert (results[1] - results[0]).norm() <= 1e-5 * results[0].norm()


def test_the_bare_base_and_every_adapter_keep_their_numbers(tiny, fused):
    roles = (None, "sft", "policy")
    states = []
    for kind in ("peft", "fused"):
        if kind == "fused":
            fused()
        adapters = tiny("sft", "policy")
        batch = collate(adapters.base, GROUPS[1])
        with torch.no_grad():
            for role in roles:
                with adapters.using(role):
                    states.append(adapters.hidden(batch))
    for role, peft, ours in zip(roles, states[:3], states[3:], strict=True):
        assert (ours - peft).norm() <= 1e-5 * peft.norm(), role
    assert torch.equal(states[0], states[3]), "without an adapter nothing is added"


@pytest.mark.parametrize("gib", [4.0, 0.0], ids=["copied", "4-bit"])
def test_a_decoding_step_adds_the_product_in_place(tiny, fused, gib):
    states = []
    for kind in ("apart", "fused"):
        if kind == "fused":
            fused()
        adapters = tiny("policy", dtype=torch.bfloat16)
        adapters.dense_gib = gib
        ids = torch.tensor([[1, 20, 30, 40], [1, 21, 31, 41]])
        cache = DynamicCache(config=adapters.base.model.config)
        with adapters.using("policy"), adapters.decoding():
            mask, positions = torch.ones_like(ids, dtype=torch.bool), torch.arange(4).expand(2, 4)
            states.append(adapters.decode(ids, mask, positions, cache).float())
    assert (states[1] - states[0]).norm() <= 2e-2 * states[0].norm()


def test_saved_files_are_pefts(tiny, fused, tmp_path):
    """The same names, and what is read back computes the same."""
    fused()
    adapters = tiny("policy")
    adapters.save("policy", tmp_path / "adapter")
    adapters.load("again", tmp_path / "adapter")
    assert adapters.digest("policy") == adapters.digest("again")
    batch = collate(adapters.base, GROUPS[0])
    with torch.no_grad():
        with adapters.using("policy"):
            expected = adapters.hidden(batch)
        with adapters.using("again"):
            assert torch.equal(adapters.hidden(batch), expected)
