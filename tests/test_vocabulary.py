"""The fused output head: the numbers and gradients of the plain one, and never all logits."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from alpaca_rlhf.models import vocabulary
from alpaca_rlhf.models.vocabulary import target_logprobs


def case(n=7, width=5, words=11, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, width, generator=generator).to(dtype).requires_grad_()
    weight = (2 * torch.randn(words, width, generator=generator)).to(dtype)
    return hidden, weight, torch.randint(words, (n,), generator=generator)


@pytest.fixture(params=[1, 3, 2**24], ids=lambda rows: f"chunks of {rows} numbers")
def chunk(request, monkeypatch):
    """So small that each token is a chunk of its own, some, or all in one."""
    monkeypatch.setattr(vocabulary, "LOGITS_PER_CHUNK", request.param * 11)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_it_is_a_log_softmax(chunk, temperature):
    hidden, weight, targets = case()
    found = target_logprobs(hidden, weight, targets, temperature=temperature, entropy=True)
    plain = torch.distributions.Categorical(logits=hidden @ weight.T / temperature)
    assert torch.allclose(found.logprobs, plain.log_prob(targets), atol=1e-12)
    assert torch.allclose(found.entropy, plain.entropy(), atol=1e-12)
    assert not found.entropy.requires_grad


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_its_gradient_is_the_derivative(chunk, temperature):
    """Checked by finite differences, for a loss that weighs every token differently."""
    hidden, weight, targets = case()
    scale = torch.linspace(-2, 3, len(hidden), dtype=torch.float64)

    def loss(states):
        found = target_logprobs(states, weight, targets, temperature=temperature)
        return (found.logprobs * scale).sin()

    assert torch.autograd.gradcheck(loss, (hidden,))


def test_two_equal_words_by_hand():
    """Two words of probability one half each: log 1/2, one bit, and half their difference."""
    hidden = torch.tensor([[0.0, 0.0]], requires_grad=True)
    weight = torch.tensor([[3.0, 1.0], [1.0, 5.0]])
    found = target_logprobs(hidden, weight, torch.tensor([0]), entropy=True)
    found.logprobs.sum().backward()
    assert found.logprobs.item() == pytest.approx(-0.693147, abs=1e-6)
    assert found.entropy.item() == pytest.approx(0.693147, abs=1e-6)
    assert hidden.grad.tolist() == [[1.0, -2.0]]


def test_a_word_without_a_chance_has_a_finite_entropy():
    hidden = torch.tensor([[1.0]])
    weight = torch.tensor([[0.0], [-torch.inf]])
    found = target_logprobs(hidden, weight, torch.tensor([0]), entropy=True)
    assert found.logprobs.item() == 0
    assert found.entropy.item() == 0


def test_no_token_is_no_loss():
    hidden, weight, targets = case()
    found = target_logprobs(hidden[:0], weight, targets[:0], entropy=True)
    found.logprobs.sum().backward()
    assert found.logprobs.shape == found.entropy.shape == (0,)


def test_low_precision_states_give_float32_log_probabilities():
    """bfloat16 logits rounded once, and everything after them exact: within 1e-5 of float64's."""
    hidden, weight, targets = case(words=4000, dtype=torch.bfloat16)
    found = target_logprobs(hidden, weight, targets).logprobs
    logits = (hidden.detach() @ weight.T).double()
    assert found.dtype == torch.float32
    assert torch.allclose(
        found.double(), logits.log_softmax(-1).gather(1, targets[:, None])[:, 0], atol=1e-5
    )
    rounded = (hidden @ weight.T).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    assert not torch.allclose(found, rounded.float(), atol=1e-3), "what rounding them all would do"


@pytest.mark.parametrize(
    ("device", "dtype", "exact"),
    [
        ("cuda", torch.bfloat16, True),
        ("cuda", torch.float16, True),
        ("cuda", torch.float32, False),
        ("cuda", torch.float64, False),
        ("cpu", torch.bfloat16, False),
        ("mps", torch.float16, False),
    ],
)
def test_float32_logits_are_asked_for_where_the_device_gives_them(device, dtype, exact):
    assert vocabulary.accumulates_exactly(torch.device(device), dtype) is exact


def test_an_amd_card_is_not_asked_for_float32_logits(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert not vocabulary.accumulates_exactly(torch.device("cuda"), torch.bfloat16)


def test_logits_of_such_a_device_are_not_rounded_before_the_softmax(monkeypatch):
    """At logits around 20 the rounded ones are off by percents, those of float32 by nothing."""
    hidden, weight, targets = case(n=50, width=64, words=400, dtype=torch.bfloat16)
    hidden = 1.3 * hidden.detach()
    exact = (hidden.double() @ weight.double().T).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    asked = []

    def mm(a, b, *, out_dtype):
        asked.append((a.dtype, b.dtype, out_dtype))
        return a.to(out_dtype) @ b.to(out_dtype)

    rounded = target_logprobs(hidden, weight, targets).logprobs
    monkeypatch.setattr(vocabulary, "accumulates_exactly", lambda device, dtype: True)
    monkeypatch.setattr(torch, "mm", mm)
    found = target_logprobs(hidden, weight, targets).logprobs
    assert asked == [(torch.bfloat16, torch.bfloat16, torch.float32)]
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() < 1e-4
    assert (rounded - exact).abs().max() > 0.03, "what rounding does, so the check can fail"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_on_a_cpu_the_logits_are_bit_for_bit_the_plain_product(dtype):
    hidden, weight, targets = case(n=20, words=50, dtype=dtype)
    logits = (hidden.detach() @ weight.T).to(torch.promote_types(dtype, torch.float32))
    plain = (logits - logits.logsumexp(-1, keepdim=True)).gather(1, targets[:, None])[:, 0]
    assert torch.equal(target_logprobs(hidden, weight, targets).logprobs, plain)


class Logits(TorchDispatchMode):
    """Remembers the most logits of any tensor, forward or backward."""

    def __init__(self, words):
        super().__init__()
        self.words, self.most = words, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(one, torch.Tensor) and one.ndim == 2 and one.shape[1] == self.words:
                self.most = max(self.most, one.numel())
        return out


def test_logits_are_made_a_chunk_at_a_time(monkeypatch):
    hidden, weight, targets = case(n=100)
    monkeypatch.setattr(vocabulary, "LOGITS_PER_CHUNK", 11 * 8)
    with Logits(11) as seen:
        target_logprobs(hidden, weight, targets, entropy=True).logprobs.sum().backward()
    assert seen.most == 11 * 8
    with Logits(11) as seen:
        (hidden @ weight.T).log_softmax(-1).sum().backward()
    assert seen.most == 11 * 100, "the plain way makes them all, so the check can fail"


@pytest.mark.parametrize("chance", [0.9, 0.99, 0.999, 0.99999])
def test_the_gradient_of_a_token_that_was_all_but_certain_is_not_lost_in_bf16(chance):
    """1 - p of it has to be taken before anything is rounded to 8 bits.

    PPO needs this gradient to push down what is confident and wrong.
    """
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 32, generator=generator, dtype=torch.float64).bfloat16()
    others = (weight[1:].double() @ weight[0].double() / weight[0].double().norm() ** 2).max()

    def at(scale):
        return (scale * weight[0].double()).bfloat16()

    scales = torch.linspace(0, 3, 3001, dtype=torch.float64)
    chances = [float((at(s).double() @ weight.double().T).softmax(-1)[0]) for s in scales.tolist()]
    hidden = at(float(scales[min(range(3001), key=lambda i: abs(chances[i] - chance))]))
    assert others < 1

    def gradient(states, head):
        states = states[None].clone().requires_grad_()
        target_logprobs(states, head, torch.tensor([0])).logprobs.sum().backward()
        return states.grad[0].double()

    exact = gradient(hidden.double(), weight.double())
    assert (gradient(hidden, weight) - exact).norm() < 0.06 * exact.norm()
