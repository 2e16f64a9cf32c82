"""The attention kernel for packed sequences: which is taken, and that all compute the same.

The kernel for variable lengths runs on a card alone. Here a loop over its segments stands for it,
as flash-attn documents it: the causal mask ends at the last key of each segment.
"""

from dataclasses import replace

import pytest
import torch

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.kernels import attention_kernel
from alpaca_rlhf.models import attention
from alpaca_rlhf.models.attention import Packing
from alpaca_rlhf.models.batches import Example, collate
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.planner import Device, PeakMemory, find_gpu, shape_of
from alpaca_rlhf.planner.choosing import device_of
from alpaca_rlhf.settings import Loop
from tests.test_shared_prompts import SHARED, gradient, loss_of

CPU = torch.device("cpu")


def segment_by_segment(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    scale=None,
    window_size=(-1, -1),
    enable_gqa=False,
    aligned="bottom right",
):
    """What `varlen_attn` computes, without a kernel."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    query_sizes, key_sizes = cu_seq_q.diff().tolist(), cu_seq_k.diff().tolist()
    assert (max_q, max_k) == (max(query_sizes), max(key_sizes))
    assert (sum(query_sizes), sum(key_sizes)) == (len(query), len(key))
    assert enable_gqa == (query.shape[1] != key.shape[1])
    before, after = window_size
    outputs = []
    for q, k, v in zip(
        query.split(query_sizes), key.split(key_sizes), value.split(key_sizes), strict=True
    ):
        group = q.shape[1] // k.shape[1]
        k, v = (tensor.repeat_interleave(group, 1) for tensor in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k)
        scores = scores * (q.shape[-1] ** -0.5 if scale is None else scale)
        first = len(k) - len(q) if aligned == "bottom right" else 0
        for i in range(len(q)):
            seen = torch.ones(len(k), dtype=torch.bool)
            seen[first + i + after + 1 :] = False
            if before >= 0:
                seen[: max(0, first + i - before)] = False
            scores[:, i] = scores[:, i].masked_fill(~seen, -torch.inf)
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v))
    return torch.cat(outputs)


@pytest.fixture
def varlen(monkeypatch):
    """Makes every forward take the kernel for variable lengths; counts its calls."""
    calls = []

    def counted(*tensors, **options):
        calls.append(options)
        return segment_by_segment(*tensors, **options)

    def switch_on():
        monkeypatch.setattr(attention, "packed_kernel", lambda *_: "varlen")
        monkeypatch.setattr(attention, "varlen_attn", counted)
        return calls

    return switch_on


# --- the same numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [0, 1])
def test_segments_have_the_losses_and_gradients_of_tables(tiny, precision, varlen, checkpointing):
    """Rows of three sizes, some behind a shared prompt, one of them empty."""
    dtype, quantization, tolerance = precision
    adapters = tiny("policy", dtype=dtype, quantization=quantization)
    adapters.checkpointing(checkpointing)
    head = ScalarHead(128, seed=1)
    results = []
    for kernel in ("tables", "segments"):
        calls = varlen() if kernel == "segments" else []
        adapters.trainable("policy")
        with adapters.using("policy"), adapters.training():
            loss = loss_of(adapters, head, SHARED)
            loss.backward()
        results.append((loss.item(), gradient(adapters)))
        assert bool(calls) == (kernel == "segments")
    (loss, expected), (other_loss, other) = results
    assert other_loss == pytest.approx(loss, rel=10 * tolerance)
    assert (other - expected).norm() <= max(tolerance, 1e-7) * expected.norm()


@pytest.mark.parametrize("window", [None, 3, 7, 100])
def test_windows_are_those_of_tables(varlen, window):
    """Of rows longer than the window and shorter, whole or behind a prompt of 6 tokens."""
    varlen()
    packing = Packing.of([9, 11, 6, 20, 4], CPU, [0, 6, 6, 0, 0])
    generator = torch.Generator().manual_seed(0)
    tokens = len(packing.positions)
    module = torch.nn.Module()
    module.num_key_value_groups = 2
    packed = [
        torch.randn(1, heads, tokens, 8, generator=generator, dtype=torch.float64).requires_grad_()
        for heads in (4, 2, 2)
    ]
    weights = torch.randn(1, tokens, 4, 8, generator=generator, dtype=torch.float64)
    results = []
    for kernel in ("cpu", "varlen"):
        output, _ = attention._attention(
            module, *packed, None, packing, kernel, sliding_window=window, scaling=0.3
        )
        grads = torch.autograd.grad((output * weights).sum(), packed)
        results.append([output, *grads])
    for by_table, by_segment in zip(*results, strict=True):
        assert by_table.shape == by_segment.shape
        assert torch.allclose(by_table, by_segment, rtol=1e-10, atol=1e-12)


def test_queries_stay_where_they_are():
    """By hand: a prompt of 3 tokens with completions of 2, 0 and 1, then a row of 2."""
    segments = Packing.of([5, 3, 4, 2], CPU, [0, 3, 3, 0]).segments
    assert segments.query_bounds.tolist() == [0, 5, 6, 8]
    assert segments.key_bounds.tolist() == [0, 5, 9, 11]
    assert segments.keys.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7]
    assert (segments.longest_query, segments.longest_key) == (5, 5)


def test_nothing_is_gathered_where_nothing_is_shared(tiny_base):
    segments = collate(tiny_base, [Example((1, 5), (6, 2)), Example((1, 7), (2,))]).packing.segments
    assert segments.keys is None
    assert segments.query_bounds.tolist() == segments.key_bounds.tolist() == [0, 4, 7]


def test_a_kernel_that_masks_in_another_way_is_refused(tiny, varlen, monkeypatch):
    """Aligned at the top left, a completion would see the first tokens of its prompt alone."""
    varlen()
    tiny()  # the right one is taken
    monkeypatch.setattr(
        attention,
        "varlen_attn",
        lambda *tensors, **options: segment_by_segment(*tensors, **options, aligned="top left"),
    )
    with pytest.raises(UserError, match=r"does not see the prompt .* constraints.txt"):
        tiny()


# --- which is taken -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "capability", "width", "head_size", "grouped", "kernel"),
    [
        ("cuda", (8, 0), 2, 128, True, "varlen"),
        ("cuda", (8, 6), 2, 128, False, "varlen"),
        ("cuda", (12, 0), 2, 64, True, "varlen"),
        ("cuda", (8, 6), 2, 256, True, "flash"),  # Gemma 3
        ("cuda", (8, 6), 2, 100, False, "flash"),
        ("cuda", (8, 6), 2, 512, True, "memory-efficient"),
        ("cuda", (8, 6), 4, 128, False, "memory-efficient"),
        ("cuda", (8, 6), 4, 128, True, "math"),
        ("cuda", (7, 5), 2, 128, True, "math"),
        ("cuda", (7, 5), 2, 128, False, "memory-efficient"),
        ("cuda", None, 2, 128, True, "flash"),
        ("cpu", None, 2, 128, True, "cpu"),
        ("mps", None, 2, 128, True, "cpu"),
    ],
)
def test_the_kernel_follows_card_precision_and_heads(
    kind, capability, width, head_size, grouped, kernel
):
    assert attention_kernel(kind, capability, width, head_size, grouped=grouped) == kernel


@pytest.mark.parametrize(
    ("changes", "kernel"),
    [
        ({}, "varlen"),
        ({"flash": False}, "math"),
        ({"varlen": None}, "flash"),
        ({"hip": "6.4"}, "flash"),
    ],
)
def test_the_build_of_torch_is_asked(tiny_base, monkeypatch, changes, kernel):
    is_built = changes.get("flash", True)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: is_built)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    monkeypatch.setattr(torch.version, "hip", changes.get("hip"))
    if "varlen" in changes:
        monkeypatch.setattr(attention, "varlen_attn", changes["varlen"])
    config = tiny_base.model.config
    assert attention.packed_kernel(torch.device("cuda"), torch.bfloat16, config) == kernel
    assert attention.packed_kernel(CPU, torch.bfloat16, config) == "cpu"


# --- what is planned ------------------------------------------------------------------------------


def sft_peak(base, capability, length=2048):
    settings = replace(Loop(), sft=replace(Loop().sft, max_length=length, micro_batch_size=1))
    return PeakMemory(shape_of(base), Device("cuda", 2, capability), settings).peak("sft")


def test_grouped_heads_before_sm80_are_planned_with_their_scores():
    """One row of 2,048 tokens and 32 heads: three copies of 512 MiB of scores in the backward."""
    scores = 32 * 2048**2 * 4
    more = sft_peak("llama-3-8b", (7, 5)) - sft_peak("llama-3-8b", (8, 6))
    assert 2 * scores < more < 5 * scores
    without = sft_peak("llama-2-7b", (7, 5)) - sft_peak("llama-2-7b", (8, 6))
    assert 0 <= without < scores / 4, "heads of their own need no scores"


def test_cards_are_planned_with_their_own_kernel():
    shape = shape_of("llama-3-8b")
    kernels = {name: device_of(find_gpu(name)).kernel(shape) for name in ("t4", "rtx-3090", "cpu")}
    assert kernels == {"t4": "math", "rtx-3090": "varlen", "cpu": "cpu"}
    assert device_of(find_gpu("11")).kernel(shape) == "math", "cards of that size are older"


def test_the_plan_names_the_kernel(capsys):
    from alpaca_rlhf.cli.main import main

    for card, words in (("t4", "math, plain products"), ("24", "varlen, FlashAttention on packed")):
        assert main(["plan", "--base", "llama-3-8b", "--card", card]) == 0
        assert f"attention in training: {words}" in capsys.readouterr().out
