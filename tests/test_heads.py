"""Scalar heads: their precision, their start, their normalisation, and their file."""

import math

import pytest
import torch

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.models.heads import CriteriaHead, ScalarHead


def test_the_head_computes_in_fp32_inside_autocast():
    """And the naive form, an fp32 linear layer, does not: 1 + 2^-9 is not a bfloat16 number."""
    hidden = torch.ones(1, 64)
    naive = torch.nn.Linear(64, 1)
    head = ScalarHead(64)
    with torch.no_grad():
        for weight in (naive.weight, head.weight):
            weight.zero_()
        naive.bias.zero_()
        naive.weight[0, 0] = head.weight[0] = 1 + 2**-9
    assert naive(hidden).item() == 1 + 2**-9
    with torch.autocast("cpu", torch.bfloat16):
        assert naive(hidden).dtype == torch.bfloat16
        assert naive(hidden).item() == 1
        assert head(hidden).dtype == torch.float32
        assert head(hidden).item() == 1 + 2**-9
        assert head(hidden.bfloat16()).item() == 1 + 2**-9
    assert head(hidden).item() == 1 + 2**-9


def test_its_gradient_is_fp32_inside_autocast():
    head = ScalarHead(2)
    with torch.autocast("cpu", torch.bfloat16):
        head(torch.tensor([[1 + 2**-9, 3.0]])).sum().backward()
    assert head.weight.grad.tolist() == [1 + 2**-9, 3]


def test_it_starts_at_variance_one_over_width_plus_one():
    head = ScalarHead(4095, seed=1).requires_grad_(False)
    assert float(head.weight.std()) == pytest.approx(1 / 64, rel=0.05)
    assert float(head.weight.mean()) == pytest.approx(0, abs=5 / 64 / math.sqrt(4095))
    assert (head.gain.item(), head.bias.item()) == (1, 0)
    assert not torch.equal(head.weight, ScalarHead(4095, seed=2).weight)
    assert torch.equal(head.weight, ScalarHead(4095, seed=1).weight)
    scores = head(torch.randn(2000, 4095, generator=torch.Generator().manual_seed(0)))
    assert float(scores.std()) == pytest.approx(1, rel=0.1)  # of states of unit rms


def test_it_scores_any_shape():
    head = ScalarHead(8)
    assert head(torch.zeros(3, 5, 8)).shape == (3, 5)
    assert head(torch.zeros(0, 8)).shape == (0,)


def test_normalising_folds_mean_0_and_std_1_in():
    head = ScalarHead(16, seed=3)
    hidden = torch.randn(500, 16, generator=torch.Generator().manual_seed(1)) * 7 + 2
    raw = head(hidden).detach()
    head.normalise(raw)
    once = head(hidden).detach()
    assert float(once.mean()) == pytest.approx(0, abs=1e-5)
    assert float(once.std(correction=0)) == pytest.approx(1, abs=1e-4)
    assert torch.equal(once.argsort(), raw.argsort())
    head.normalise(once * 1)  # again changes nothing
    assert torch.allclose(head(hidden), once, atol=1e-5)


def test_normalising_by_hand():
    """Scores 1, 3, 5, 7 have mean 4 and standard deviation sqrt 5."""
    head = ScalarHead(1)
    with torch.no_grad():
        head.weight.fill_(2)
    hidden = torch.tensor([[0.5], [1.5], [2.5], [3.5]])
    head.normalise(head(hidden))
    assert head(hidden).tolist() == pytest.approx([x / math.sqrt(5) for x in (-3, -1, 1, 3)])
    assert head.gain.item() == pytest.approx(1 / math.sqrt(5))
    assert head.bias.item() == pytest.approx(-4 / math.sqrt(5))


@pytest.mark.parametrize("scores", [[], [1.0], [2.0, 2.0], [1.0, float("nan")]])
def test_what_cannot_be_normalised_is_refused(scores):
    head = ScalarHead(4)
    with pytest.raises(ValueError, match="cannot normalise"):
        head.normalise(torch.tensor(scores))
    assert (head.gain.item(), head.bias.item()) == (1, 0)


def test_only_the_weight_learns():
    assert [name for name, _ in ScalarHead(4).named_parameters()] == ["weight"]


def test_saved_and_loaded_it_is_the_same(tmp_path):
    head = ScalarHead(8, seed=5)
    head.normalise(torch.tensor([1.0, 2.0, 9.0]))
    head.save(tmp_path)
    again = ScalarHead.load(tmp_path, 8)
    hidden = torch.randn(20, 8)
    assert torch.equal(head(hidden), again(hidden))
    assert again.state_dict().keys() == head.state_dict().keys()
    with pytest.raises(UserError, match="hidden size 8, this base has 16"):
        ScalarHead.load(tmp_path, 16)
    with pytest.raises(UserError, match=r"head\.safetensors"):
        ScalarHead.load(tmp_path / "nowhere", 8)


# --- criteria -------------------------------------------------------------------------------------

NAMES = ("harmlessness", "相关性", "relevance")


def normalised():
    head = CriteriaHead(8, NAMES, seed=5)
    head.normalise(torch.tensor([1.0, 2.0, 9.0]))
    return head


def test_the_score_is_the_sum_of_the_criteria():
    """Weights 2 and -3 on the hidden states (1, 4), gain 1/2 and bias 10."""
    head = CriteriaHead(2, ("a", "b"))
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, -3.0]]))
        head.gain.fill_(0.5)
        head.bias.fill_(10.0)
    hidden = torch.tensor([[1.0, 4.0], [0.0, 0.0]])
    assert head(hidden).tolist() == [5, 10]
    assert head.all_scores(hidden).tolist() == [[5, 6, -1], [10, 5, 5]]
    drawn = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    parts = normalised().all_scores(drawn)
    assert parts.shape == (20, 4)
    assert torch.allclose(parts[:, 1:].sum(1), parts[:, 0], atol=1e-5)
    assert torch.equal(parts[:, 0], normalised()(drawn))


def test_a_scalar_head_is_its_only_part():
    head, hidden = ScalarHead(8, seed=1), torch.randn(5, 8)
    assert torch.equal(head.all_scores(hidden), head(hidden)[:, None])


def test_its_score_starts_with_the_variance_of_a_scalar_head():
    for count in (1, 3):
        head = CriteriaHead(4095, [str(i) for i in range(count)], seed=1).requires_grad_(False)
        assert float(head.total.std()) == pytest.approx(1 / 64, rel=0.05)
    assert [name for name, _ in head.named_parameters()] == ["weight"]
    assert not torch.equal(head.weight[0], head.weight[1])


def test_criteria_compute_in_fp32_inside_autocast():
    head = CriteriaHead(64, ("a", "b"))
    with torch.no_grad():
        head.weight.zero_()
        head.weight[:, 0] = 1 + 2**-9
    with torch.autocast("cpu", torch.bfloat16):
        parts = head.all_scores(torch.ones(1, 64, dtype=torch.bfloat16))
    assert parts.dtype == torch.float32
    assert parts.tolist() == [[2 + 2**-8, 1 + 2**-9, 1 + 2**-9]]


def test_criteria_are_saved_with_their_names_and_load_as_a_scalar_head_too(tmp_path):
    """So whoever asks for one number a completion (PPO, best-of-K) need not know of them."""
    head, hidden = normalised(), torch.randn(20, 8)
    head.save(tmp_path)
    again = CriteriaHead.load(tmp_path, 8)
    assert again.criteria == NAMES
    assert torch.equal(again.all_scores(hidden), head.all_scores(hidden))
    plain = ScalarHead.load(tmp_path, 8)
    assert type(plain) is ScalarHead and plain.weight.shape == (8,)
    assert torch.equal(plain(hidden), head(hidden))
    with pytest.raises(UserError, match="hidden size 8, this base has 16"):
        CriteriaHead.load(tmp_path, 16)
    plain.save(tmp_path)
    with pytest.raises(UserError, match="has no criteria"):
        CriteriaHead.load(tmp_path, 8)
