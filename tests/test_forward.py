"""One forward: what it must not depend on, what it must not make, and what it must equal."""

import contextlib
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

from alpaca_rlhf.models import scoring
from alpaca_rlhf.models.batches import Example, collate, left_pad
from alpaca_rlhf.models.forward import completion_scores, token_stats, token_values
from alpaca_rlhf.models.heads import ScalarHead

EXAMPLES = [
    Example((1, 20, 30, 40), (50, 60, 2)),
    Example((1, 21), (31, 41, 51, 61, 71, 2)),
    Example((1, 22, 32, 42, 52, 62, 72, 82), (92,)),
    Example((1, 23, 33), (43, 53)),
]
LONG = [
    Example((1, *range(20, 80)), (33, 2)),
    Example((1, *range(150, 20, -1)), (34, 2)),
    Example((1, *range(200, 260)), (35,)),
]


@pytest.fixture
def adapters(tiny):
    return tiny("policy", "reward")


@pytest.fixture
def head():
    return ScalarHead(128, seed=1)


def everything(adapters, head, batch):
    """Log-probabilities, entropies, values and scores of a batch."""
    with torch.no_grad(), adapters.using("policy"):
        return (
            *token_stats(adapters, batch, head=head),
            token_values(adapters, head, batch),
            completion_scores(adapters, head, batch),
        )


def test_partners_change_nothing(adapters, head):
    """Alone, together, in another order, and beside a sequence that is far longer."""
    alone = [everything(adapters, head, collate(adapters.base, [one])) for one in EXAMPLES]
    long = Example((1, *range(20, 150)), (151, 2))
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        batch = collate(adapters.base, [*(EXAMPLES[i] for i in order), long])
        found = everything(adapters, head, batch)
        for row, i in enumerate(order):
            n = len(EXAMPLES[i].completion)
            for here, there in zip(found[:4], alone[i][:4], strict=True):
                assert torch.allclose(here[row, :n], there[0], atol=1e-5)
                assert not here[row, n:].any()
            assert torch.allclose(found[4][row], alone[i][4][0], atol=1e-5)


def test_what_stands_behind_a_mask_changes_nothing(adapters, head):
    batch = collate(adapters.base, EXAMPLES)
    filled = batch.completion_ids.where(batch.completion_mask, torch.tensor(45))
    other = replace(batch, completion_ids=filled)
    assert not torch.equal(batch.completion_ids, other.completion_ids)
    for a, b in zip(
        everything(adapters, head, batch), everything(adapters, head, other), strict=True
    ):
        assert torch.equal(a, b)


def test_packed_equals_padded(tiny, precision):
    """Against transformers' own padded forward: the same states, and gradients, of real tokens."""
    dtype, quantization, tolerance = precision
    adapters = tiny("policy", dtype=dtype, quantization=quantization)
    adapters.trainable("policy")
    examples = [EXAMPLES[0], LONG[0], *EXAMPLES[1:3], *LONG[1:], EXAMPLES[3]]
    assert len(collate(adapters.base, examples).packing.tables) == 3, "of three sizes"
    width = max(map(len, examples))
    ids = torch.full((len(examples), width), 99)
    for row, one in enumerate(examples):
        ids[row, : len(one)] = torch.tensor(one.prompt + one.completion)
    found = []
    for padded in (False, True):
        with adapters.using("policy"):
            if padded:
                states = adapters.base.model.model(input_ids=ids, use_cache=False)[0]
                states = torch.cat([states[r, : len(one)] for r, one in enumerate(examples)])
            else:
                states = adapters.hidden(collate(adapters.base, examples))
            # not their squares: normalised states all have the same sum of squares
            weights = torch.randn(states.shape[1], generator=torch.Generator().manual_seed(0))
            (states.pow(2) @ weights.to(dtype)).sum().backward()
        gradient = torch.cat(
            [p.grad.flatten() for _, p in sorted(adapters.parameters("policy").items())]
        )
        found.append((states.detach(), gradient))
        adapters.trainable("policy")
    for packed, by_hand in zip(*found, strict=True):
        assert (packed - by_hand).norm() <= tolerance * by_hand.norm()


@pytest.mark.parametrize("train", [False, True])
def test_no_sequence_sees_another(adapters, train):
    """Bit for bit: whatever its partners say, even where they overflow."""
    mode = adapters.training() if train else contextlib.nullcontext()
    changed = [EXAMPLES[0], *(replace(e, prompt=tuple(9 for _ in e.prompt)) for e in EXAMPLES[1:])]
    with torch.no_grad(), adapters.using("policy"), mode:
        before = adapters.hidden(collate(adapters.base, EXAMPLES))
        after = adapters.hidden(collate(adapters.base, changed))
        n = len(EXAMPLES[0])
        assert torch.equal(before[:n], after[:n])
        assert not torch.equal(before[n:], after[n:])
        adapters.base.model.model.embed_tokens.weight[9] = torch.inf
        broken = adapters.hidden(collate(adapters.base, changed))
        assert torch.equal(before[:n], broken[:n])
        assert broken[n:].isnan().any()


def test_decoding_with_left_padding_gives_the_same_score(adapters, head):
    """The decode loop pads on the left; the same completion must score the same."""
    packed = collate(adapters.base, EXAMPLES)
    ids, mask = left_pad(adapters.base, [one.prompt + one.completion for one in EXAMPLES])
    positions = (mask.long().cumsum(1) - 1).clamp_min(0)
    with torch.no_grad(), adapters.using("policy"):
        hidden = adapters.decode(ids, mask, positions, DynamicCache())[:, -1]
        assert torch.allclose(head(hidden), completion_scores(adapters, head, packed), atol=1e-5)


def test_the_score_is_read_at_eos(adapters, head):
    with torch.no_grad(), adapters.using("reward"):
        whole = completion_scores(adapters, head, collate(adapters.base, EXAMPLES[:2]))
        cut = [replace(one, completion=one.completion[:-1]) for one in EXAMPLES[:2]]
        without = completion_scores(adapters, head, collate(adapters.base, cut))
        assert not torch.isclose(whole, without, atol=1e-3).any()
        for score, one in zip(whole, EXAMPLES, strict=False):
            ids = torch.tensor([one.prompt + one.completion])
            assert ids[0, -1] == adapters.base.eos_id
            by_hand = head(adapters.base.model.model(input_ids=ids).last_hidden_state[0, -1])
            assert torch.allclose(score, by_hand, atol=1e-5)


def test_an_empty_completion_has_a_score(adapters, head):
    with torch.no_grad(), adapters.using("reward"):
        pair = [Example((1, 20, 30), ()), EXAMPLES[0]]
        found = completion_scores(adapters, head, collate(adapters.base, pair))
        assert found.isfinite().all()


def test_logprobs_and_entropy_are_those_of_a_plain_forward(adapters):
    batch = collate(adapters.base, EXAMPLES)
    for temperature in (1.0, 0.7):
        with torch.no_grad(), adapters.using("policy"):
            ours = token_stats(adapters, batch, temperature=temperature)
            for i, one in enumerate(EXAMPLES):
                ids = torch.tensor([one.prompt + one.completion])
                logits = adapters.base.model(input_ids=ids).logits[0].double() / temperature
                plain = logits.log_softmax(-1)
                for c, token in enumerate(one.completion):
                    before = plain[len(one.prompt) + c - 1]
                    assert ours.logprobs[i, c].item() == pytest.approx(
                        before[token].item(), abs=1e-4
                    )
                    entropy = torch.distributions.Categorical(logits=before).entropy().item()
                    assert ours.entropy[i, c].item() == pytest.approx(entropy, abs=1e-4)


def test_log_probabilities_are_fp32_under_autocast(tiny, head):
    adapters = tiny("policy", dtype=torch.bfloat16)
    found = everything(adapters, head, collate(adapters.base, EXAMPLES))
    assert {t.dtype for t in found} == {torch.float32}


def test_a_value_does_not_see_its_own_token(adapters, head):
    """V of state t is read before token t: changing token t changes V from t + 1 on."""
    one = Example((1, 20, 30), (40, 50, 60, 70, 2))
    with torch.no_grad(), adapters.using("policy"):
        values = token_values(adapters, head, collate(adapters.base, [one]))[0]
        for t in range(5):
            other = list(one.completion)
            other[t] = 99
            changed = token_values(
                adapters, head, collate(adapters.base, [replace(one, completion=tuple(other))])
            )[0]
            assert torch.equal(changed[: t + 1], values[: t + 1])
            assert not torch.isclose(changed[t + 1 :], values[t + 1 :]).any()


def test_scores_and_values_never_touch_the_output_head(adapters, head):
    batch = collate(adapters.base, EXAMPLES)
    output = adapters.base.model.lm_head
    with Largest(output) as seen:
        scoring.values(adapters, "policy", head, batch, micro_batch_size=2)
        scoring.scores(adapters, "reward", head, batch, micro_batch_size=2)
        scoring.score(adapters, "reward", head, EXAMPLES, batch_size=2)
    assert seen.rows == 0
    with Largest(output) as seen:
        scoring.logprobs(adapters, "policy", batch, micro_batch_size=2)
    assert seen.rows > 0


class Largest(TorchDispatchMode):
    """Remembers the most rows of any tensor whose last axis is the vocabulary, weights aside."""

    def __init__(self, head):
        super().__init__()
        self.vocabulary, width = head.weight.shape
        self.turned, self.rows = (width, self.vocabulary), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, (tuple, list)) else [out]:
            if not isinstance(one, torch.Tensor) or one.shape == self.turned:
                continue
            if one.ndim and one.shape[-1] == self.vocabulary:
                self.rows = max(self.rows, one.numel() // self.vocabulary)
        return out


def test_no_tensor_of_batch_by_time_by_vocabulary_is_made(adapters, head):
    """Neither forward nor backward does; the plain model's forward, to check the check, does."""
    adapters.trainable("policy")
    long = [Example((1, *range(20, 80)), (90, 91, 2)), Example((1, *range(20, 60)), (90, 2))]
    batch = collate(adapters.base, long)
    output = adapters.base.model.lm_head
    with Largest(output) as seen, adapters.using("policy"), adapters.training():
        token_stats(adapters, batch).logprobs.sum().backward()
    assert seen.rows == 3 + 2
    with Largest(output) as seen, adapters.using("policy"), torch.no_grad():
        completion_scores(adapters, head, batch)
        token_values(adapters, head, batch)
    assert seen.rows == 0
    with Largest(output) as seen, torch.no_grad():
        adapters.base.model(input_ids=batch.ids[None])
    assert seen.rows == len(batch.ids)


def test_two_forwards_in_train_mode_are_the_same(adapters, head):
    """No dropout, of LoRA or of attention, even where the base was trained with it."""
    layers = [m for m in adapters.base.model.modules() if hasattr(m, "attention_dropout")]
    assert len(layers) == adapters.base.model.config.num_hidden_layers
    for layer in layers:
        layer.attention_dropout = 0.5
    batch = collate(adapters.base, EXAMPLES)
    with torch.no_grad(), adapters.using("policy"), adapters.training():
        assert torch.equal(token_values(adapters, head, batch), token_values(adapters, head, batch))
        train = token_stats(adapters, batch).logprobs
    assert not adapters.base.model.training
    with torch.no_grad(), adapters.using("policy"):
        assert torch.equal(train, token_stats(adapters, batch).logprobs)
