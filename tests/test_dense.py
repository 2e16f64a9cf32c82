"""Faster decoding that must say the same: layers made ready, against the layers themselves."""

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache
from transformers.models.llama import modeling_llama

from alpaca_rlhf.models import dense
from alpaca_rlhf.models.batches import left_pad
from alpaca_rlhf.models.forward import token_logprobs
from alpaca_rlhf.models.rollout import sample
from alpaca_rlhf.settings import Sampling
from tests.test_forward import EXAMPLES, collate

PROMPTS = [(1, 20, 30, 40), (1, 21), (1, 22, 32, 42, 52, 62, 72)]


def states(adapters, ready):
    """Hidden states of a prompt batch and of one decoding step after it."""
    ids, mask = left_pad(adapters.base, PROMPTS)
    positions = (mask.long().cumsum(1) - 1).clamp_min(0)
    cache = DynamicCache(config=adapters.base.model.config)

    def both():
        first = adapters.decode(ids, mask, positions, cache)
        longer = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        after = adapters.decode(torch.full((3, 1), 77), longer, positions[:, -1:] + 1, cache)
        return torch.cat([first[mask], after[:, 0]])

    if not ready:
        return both()
    with adapters.decoding():
        return both()


def test_a_copy_outlives_the_decoding_within_it(tiny, monkeypatch):
    """Of the bare base both stand on the same layers."""
    adapters = tiny(quantization="nf4")
    dequantized = []
    plain = dense.dequantize_4bit
    monkeypatch.setattr(dense, "dequantize_4bit", lambda *a: dequantized.append(1) or plain(*a))
    with adapters.using(None), adapters.dequantized():
        copies = len(dequantized)
        forwards = [vars(layer)["forward"] for layer in adapters._linear_layers()]
        with adapters.decoding():
            pass
        assert [vars(layer)["forward"] for layer in adapters._linear_layers()] == forwards
    assert copies == len(forwards) > 0
    assert not any("forward" in vars(layer) for layer in adapters._linear_layers())


@pytest.mark.parametrize("gib", [4.0, 0.0], ids=["copied", "4-bit"])
@pytest.mark.parametrize("role", ["policy", None])
@pytest.mark.parametrize(
    ("dtype", "quantization", "bound"),
    [
        (torch.float32, "nf4", 1e-5),
        (torch.bfloat16, "nf4", 2e-2),
        (torch.float64, "none", 1e-12),
    ],
)
@pytest.mark.parametrize("fuses", [False, True])
def test_the_states_are_those_of_the_layers_themselves(
    tiny, dtype, quantization, bound, role, gib, fuses, monkeypatch
):
    """As on a CPU, and with as few kernels as on a card."""
    monkeypatch.setattr(dense, "fuses", lambda device: fuses)
    bound = max(bound, 1e-6) if fuses else bound  # transformers' norms round float64 to float32
    adapters = tiny("policy", dtype=dtype, quantization=quantization)
    adapters.dense_gib = gib
    with adapters.using(role):
        expected, found = states(adapters, ready=False), states(adapters, ready=True)
    assert found.dtype == expected.dtype
    assert (found.double() - expected.double()).norm() <= bound * expected.double().norm()


class Operators(TorchDispatchMode):
    """Counts operators, views left out."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def test_fused_decoding_takes_fewer_kernels_and_leaves_no_trace(tiny, monkeypatch):
    adapters = tiny("policy", dtype=torch.bfloat16)
    adapters.dense_gib = 4.0
    plain, counts = modeling_llama.apply_rotary_pos_emb, []
    for fuses in (False, True):
        monkeypatch.setattr(dense, "fuses", lambda device, fuses=fuses: fuses)
        with adapters.using("policy"), Operators() as operators:
            states(adapters, ready=True)
        counts.append(operators.count)
        assert modeling_llama.apply_rotary_pos_emb is plain
        norms = [m for m in adapters.base.model.modules() if type(m).__name__ == "LlamaRMSNorm"]
        assert norms and not any("forward" in vars(norm) for norm in norms)
    layers = adapters.base.model.config.num_hidden_layers
    saved_in_each = 7 * 2 + 4  # a LoRA's product is added as it is made; one rotation for two
    assert counts[0] - counts[1] >= 2 * layers * saved_in_each


@pytest.mark.parametrize("gib", [4.0, 0.0], ids=["copied", "4-bit"])
def test_a_base_without_any_adapter_is_prepared_too(tiny, gib, monkeypatch):
    adapters = tiny()
    adapters.dense_gib = gib
    expected, dequantised = states(adapters, ready=False), []

    def counted(*given):
        dequantised.append(1)
        return dequantize_4bit(*given)

    monkeypatch.setattr(dense, "dequantize_4bit", counted)
    found = states(adapters, ready=True)
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    n_layers = adapters.base.model.config.num_hidden_layers
    assert len(dequantised) == (7 * n_layers if gib else 0), "each linear layer once, for two steps"
    assert torch.equal(states(adapters, ready=False), expected), "afterwards as before"


def test_a_copy_that_is_too_large_is_not_made(tiny, monkeypatch):
    made = []

    def counted(*given):
        made.append(1)
        return dequantize_4bit(*given)

    monkeypatch.setattr(dense, "dequantize_4bit", counted)
    adapters = tiny("policy")
    layers = adapters._layers
    size = 4 * sum(layer.base_layer.weight.quant_state.shape.numel() for layer in layers)
    for limit, copies in ((size, len(layers)), (size - 1, 0)):
        made.clear()
        adapters.dense_gib = limit / 2**30
        with adapters.using("policy"), adapters.decoding():
            assert len(made) == copies


def test_the_same_completions_whatever_the_limit(tiny):
    drawn = []
    for gib in (4.0, 0.0):
        adapters = tiny("policy")
        adapters.dense_gib = gib
        drawn.append(
            sample(
                adapters,
                "policy",
                PROMPTS,
                ["a", "b", "c"],
                k=2,
                sampling=Sampling(max_new_tokens=12),
                seed=0,
            )
        )
    assert drawn[0] == drawn[1]
    assert len({one.ids for own in drawn[0] for one in own}) > 3


def test_it_leaves_no_trace(tiny):
    """After decoding, and after an error in it, gradients are what they were."""
    adapters = tiny("policy", "reward")
    adapters.trainable("policy")

    def gradient():
        adapters.trainable("policy")
        with adapters.using("policy"), adapters.training():
            token_logprobs(adapters, collate(adapters.base, EXAMPLES)).sum().backward()
        own = adapters.parameters("policy")
        return torch.cat([own[key].grad.flatten() for key in sorted(own)])

    before = gradient()
    assert before.norm() > 0
    with adapters.using("policy"):
        states(adapters, ready=True)
    with pytest.raises(ZeroDivisionError), adapters.using("policy"), adapters.decoding():
        raise ZeroDivisionError
    assert not any("forward" in vars(layer) for layer in adapters._layers)
    assert torch.equal(gradient(), before)


def test_no_switch_in_the_middle(tiny):
    """The layers are ready for one adapter: another would be ignored without a word."""
    adapters = tiny("policy", "reward")
    with adapters.using("policy"), adapters.decoding():
        with (
            pytest.raises(RuntimeError, match="in the middle of decoding"),
            adapters.using("reward"),
        ):
            pass
        for change in (
            lambda: adapters.add("policy", copy_of="reward"),
            lambda: adapters.trainable("policy"),
        ):
            with pytest.raises(RuntimeError, match="in the middle of decoding"):
                change()
    with adapters.using("reward"):
        assert adapters.active == "reward"


def test_what_was_learned_since_is_seen(tiny):
    """Nothing is kept from one rollout to the next."""
    adapters = tiny("policy")
    with adapters.using("policy"):
        before = states(adapters, ready=True)
        with torch.no_grad():
            for weight in adapters.parameters("policy").values():
                weight.mul_(2)
        assert not torch.allclose(states(adapters, ready=True), before, atol=1e-3)
        assert torch.allclose(
            states(adapters, ready=True), states(adapters, ready=False), atol=1e-4
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_on_a_copy_are_those_on_the_4_bit_weights(tiny, dtype, monkeypatch):
    adapters = tiny("policy", dtype=dtype)
    adapters.trainable("policy")
    parameters, dequantised = adapters.parameters("policy"), []

    def counted(*given):
        dequantised.append(1)
        return dequantize_4bit(*given)

    monkeypatch.setattr(dense, "dequantize_4bit", counted)

    def gradients(gib):
        adapters.dense_gib = gib
        with adapters.using("policy"), adapters.training():
            for _ in range(2):
                token_logprobs(adapters, collate(adapters.base, EXAMPLES)).sum().backward()
        grads = {name: parameter.grad for name, parameter in parameters.items()}
        for parameter in parameters.values():
            parameter.grad = None
        return grads

    expected, found = gradients(0.0), gradients(4.0)
    n_layers = adapters.base.model.config.num_hidden_layers
    assert len(dequantised) == 7 * n_layers, "each linear layer once, for two micro-batches"
    assert any(grad.norm() > 0 for grad in expected.values())
    assert all(torch.equal(found[name], expected[name]) for name in expected)
