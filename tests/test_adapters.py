"""The switch, and the traps that it is there for."""

import gc
import json

import pytest
import torch

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.base import Base, load_base, weights_digest
from alpaca_rlhf.models.batches import Example, collate
from alpaca_rlhf.models.forward import token_stats
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.planner import Shape
from alpaca_rlhf.settings import Lora
from benchmarks.stage_memory import write_base

EXAMPLES = [Example((1, 20, 30, 40), (50, 60, 2)), Example((1, 21), (31, 41, 51, 61, 2))]


def load(folder, **kwargs) -> Base:
    return load_base(str(folder), **kwargs)


def make(base: Base, *names: str, trained: bool = True) -> Adapters:
    adapters = Adapters(base, Lora(r=4, alpha=8), template="brief")
    for i, name in enumerate(names):
        adapters.add(name, seed=i)
        if trained:
            generator = torch.Generator().manual_seed(100 + i)
            with torch.no_grad():
                for key, p in adapters.parameters(name).items():
                    if "lora_B" in key:
                        p.copy_(torch.randn(p.shape, generator=generator) * 0.05)
    return adapters


def loss_of(adapters: Adapters) -> torch.Tensor:
    return -token_stats(adapters, collate(adapters.base, EXAMPLES)).logprobs.sum()


def grads(adapters: Adapters, name: str) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for _, p in sorted(adapters.parameters(name).items())])


@pytest.fixture
def fp32(tiny_folder) -> Base:
    return load(tiny_folder, dtype=torch.float32)


def test_a_new_adapter_changes_nothing_and_a_copy_equals_its_source(fp32):
    adapters = make(fp32, "sft", trained=False)
    with torch.no_grad():
        bare = loss_of(adapters)
        with adapters.using("sft"):
            assert loss_of(adapters) == bare
    adapters = make(load(fp32.name, dtype=torch.float32), "sft")
    adapters.add("policy", copy_of="sft")
    with torch.no_grad():
        with adapters.using("sft"):
            first = loss_of(adapters)
        with adapters.using("policy"):
            assert loss_of(adapters) == first
        assert loss_of(adapters) != first


def test_each_adapter_gets_the_gradients_it_would_get_alone(tiny_folder):
    """Two roles learn in one step, one after the other: PEFT's switch would lose some."""
    adapters = make(load(tiny_folder, dtype=torch.float32), "policy", "value")
    adapters.trainable("policy", "value")
    for name in ("policy", "value"):
        with adapters.using(name):
            loss_of(adapters).backward()
    together = {name: grads(adapters, name) for name in ("policy", "value")}
    for name in ("policy", "value"):
        adapters.trainable(name)
        with adapters.using(name):
            loss_of(adapters).backward()
        assert torch.equal(grads(adapters, name), together[name])
        assert together[name].norm() > 0


def test_pefts_own_switch_loses_the_gradient_that_ours_keeps(tiny_folder):
    """The naive form of the trap, so that the test above is known to guard something."""
    adapters = make(load(tiny_folder, dtype=torch.float32), "policy", "value")
    adapters.trainable("policy", "value")
    adapters._peft.set_adapter("policy")
    loss = loss_of(adapters)
    adapters._peft.set_adapter("value")
    loss.backward()
    assert all(p.grad is None for p in adapters.parameters("policy").values())


def test_switching_with_a_waiting_graph_raises(fp32):
    adapters = make(fp32, "policy", "value")
    adapters.trainable("policy", "value")
    with (
        pytest.raises(RuntimeError, match="still waits for its backward"),
        adapters.using("policy"),
    ):
        loss = loss_of(adapters)
        with adapters.using("value"):
            pass
    assert loss is not None
    assert adapters.active is None
    del loss


def test_leaving_with_a_waiting_graph_raises(fp32):
    adapters = make(fp32, "policy")
    adapters.trainable("policy")
    kept = []
    with pytest.raises(RuntimeError, match="still waits"), adapters.using("policy"):
        kept.append(loss_of(adapters))


def test_a_discarded_graph_does_not_block(fp32):
    adapters = make(fp32, "policy", "value")
    adapters.trainable("policy", "value")
    with adapters.using("policy"):
        loss_of(adapters)  # dropped at once
        cycle = [loss_of(adapters)]
        cycle.append(cycle)
        del cycle  # reachable only from itself
    gc.collect()
    with adapters.using("value"):
        loss_of(adapters).backward()


def test_an_error_inside_is_not_hidden_by_the_switch(fp32):
    adapters = make(fp32, "policy")
    adapters.trainable("policy")
    kept = []
    with pytest.raises(ZeroDivisionError), adapters.using("policy"):
        kept.append(loss_of(adapters))
        raise ZeroDivisionError
    assert adapters.active is None


def test_the_switch_leaves_requires_grad_alone(fp32):
    adapters = make(fp32, "sft", "policy", "value")
    adapters.trainable("policy", "value")

    def learning():
        return {
            n: all(p.requires_grad for p in adapters.parameters(n).values()) for n in adapters.names
        }

    before = learning()
    assert before == {"sft": False, "policy": True, "value": True}
    for name in ("sft", "policy", None, "value"):
        with adapters.using(name), torch.no_grad():
            loss_of(adapters)
        assert learning() == before


def test_checkpointing_gives_the_same_gradients_and_knows_its_adapter(tiny_folder):
    adapters = make(load(tiny_folder, dtype=torch.float32), "policy", "value")
    adapters.trainable("policy", "value")
    with adapters.using("policy"), adapters.training():
        loss_of(adapters).backward()
    plain = grads(adapters, "policy")
    adapters.checkpointing(True)
    adapters.trainable("policy", "value")
    with adapters.using("policy"), adapters.training():
        loss_of(adapters).backward()
    assert torch.equal(grads(adapters, "policy"), plain)
    with adapters.using("policy"), adapters.training():
        loss = loss_of(adapters)
        adapters._activate("value")  # past the switch, as naive code would
        with pytest.raises(RuntimeError, match="recomputed with 'value'"):
            loss.backward()
        adapters._activate("policy")
        del loss


def test_each_nth_layer_alone_runs_twice_with_the_same_gradients(tmp_path):
    """Of seven layers: for n = 3 the first, the fourth and the seventh."""
    shape = Shape("seven layers", 64, 96, 7, 4, 2, 16, 512, 256)
    adapters = make(load(write_base(tmp_path, shape), dtype=torch.float32), "policy")
    runs = []
    for index, layer in enumerate(adapters.base.model.model.layers):
        layer.input_layernorm.register_forward_hook(lambda *_, index=index: runs.append(index))
    gradients = []
    for every, twice in [(0, []), (1, range(7)), (2, [0, 2, 4, 6]), (3, [0, 3, 6]), (5, [0, 5])]:
        adapters.checkpointing(every)
        adapters.trainable("policy")
        runs.clear()
        with adapters.using("policy"), adapters.training():
            loss_of(adapters).backward()
        assert [i for i in range(7) if runs.count(i) == 2] == list(twice)
        gradients.append(grads(adapters, "policy"))
        for parameter in adapters.parameters("policy").values():
            parameter.grad = None
    assert gradients[0].norm() > 0
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_the_same_before_and_after_a_rollout(tiny_folder, dtype):
    """On AVX512-BF16 CPUs bitsandbytes repacks weights in a forward without gradients."""
    adapters = make(load(tiny_folder, dtype=dtype), "policy")
    adapters.trainable("policy")
    with adapters.using("policy"), adapters.training():
        loss_of(adapters).backward()
    before = grads(adapters, "policy")
    adapters.trainable("policy")
    with adapters.using("policy"), torch.no_grad():
        loss_of(adapters)
    with adapters.using("policy"), adapters.training():
        loss_of(adapters).backward()
    assert torch.equal(grads(adapters, "policy"), before)


def test_lora_weights_are_fp32_and_nothing_of_the_base_is_upcast(tiny_folder):
    adapters = make(load(tiny_folder, dtype=torch.bfloat16), "policy")
    assert {p.dtype for p in adapters.parameters("policy").values()} == {torch.float32}
    frozen = {p.dtype for n, p in adapters.base.model.named_parameters() if "lora_" not in n}
    assert frozen == {torch.bfloat16, torch.uint8}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dense_gib", [0.0, 4.0])
def test_every_forward_is_in_the_precision_of_the_base(tiny_folder, dtype, dense_gib):
    """Sampling, reference and training alike, in the fp32 weights of the adapters too.

    Each pass shows a layer with its adapter; while sampling, the layer adds the adapter itself.
    """
    from alpaca_rlhf.models import rollout, scoring
    from alpaca_rlhf.settings import Sampling

    adapters = make(load(tiny_folder, dtype=dtype), "policy", "sft")
    adapters.dense_gib = dense_gib
    adapters.trainable("policy")
    seen = []
    layer = adapters.base.model.model.layers[0]
    lora = [layer.mlp.down_proj.lora_A[name] for name in ("policy", "sft")]
    for module in (layer.self_attn.o_proj, *lora):
        module.register_forward_hook(lambda _, args, out: seen.append(out.dtype))
    with adapters.using("policy"), adapters.training():
        loss_of(adapters).backward()
    for role in ("policy", "sft"):
        scoring.logprobs(adapters, role, collate(adapters.base, EXAMPLES), micro_batch_size=2)
    one = Sampling(max_new_tokens=2)
    rollout.sample(adapters, "policy", [(1, 20)], ["a"], sampling=one, seed=0)
    assert len(seen) == (1 + 2) * 2 + 2  # training, scoring by two adapters; two tokens sampled
    assert set(seen) == {dtype}


def test_an_adapter_is_the_dense_weight_plus_its_product(tiny_folder):
    """W + alpha / r * B A, in double: the rank is 4 and alpha 8, so twice the product."""
    adapters = make(load(tiny_folder, dtype=torch.float64, quantization="none"), "policy")
    with torch.no_grad():
        with adapters.using("policy"):
            ours = loss_of(adapters)
        own = {key: p.double() for key, p in adapters.parameters("policy").items()}
        for name, module in adapters.base.model.named_modules():
            for key, b in own.items():
                if f"{name}.lora_B" == key:
                    module.base_layer.weight += 2 * b @ own[key.replace("lora_B", "lora_A")]
        dense = loss_of(adapters)
    assert sum("lora_B" in key for key in own) == 14
    assert abs(ours - dense) <= 1e-6 * abs(dense)


def test_training_leaves_the_base_bit_identical(tiny_folder):
    adapters = make(load(tiny_folder), "policy", "sft")
    base, reference = weights_digest(adapters.base), adapters.digest("sft")
    adapters.trainable("policy")
    optimizer = torch.optim.AdamW(adapters.parameters("policy").values(), lr=0.1)
    policy = adapters.digest("policy")
    with adapters.using("policy"), adapters.training():
        loss_of(adapters).backward()
    optimizer.step()
    assert weights_digest(adapters.base) == base
    assert adapters.digest("sft") == reference
    assert adapters.digest("policy") != policy


def test_a_saved_adapter_is_plain_peft(tiny_folder, tmp_path):
    from peft import PeftModel

    adapters = make(load(tiny_folder, dtype=torch.float32), "sft", "policy")
    adapters.save("policy", tmp_path / "policy")
    assert {f.name for f in (tmp_path / "policy").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "fingerprint.json",
    }
    with torch.no_grad(), adapters.using("policy"):
        ours = adapters.logits(
            adapters.hidden(collate(adapters.base, [Example((1, 20, 30), (40,))]))
        )[None]
    plain = PeftModel.from_pretrained(
        load(tiny_folder, dtype=torch.float32).model, str(tmp_path / "policy")
    )
    with torch.no_grad():
        theirs = plain(input_ids=torch.tensor([[1, 20, 30, 40]])).logits
    assert torch.equal(ours, theirs)


def test_save_and_load_give_the_same_scores_bit_for_bit(tiny_folder, tmp_path):
    from alpaca_rlhf.models.scoring import score

    adapters = make(load(tiny_folder), "reward")
    head = ScalarHead(128, seed=3)
    head.normalise(torch.tensor([1.0, 2.0, 5.0]))
    before = score(adapters, "reward", head, EXAMPLES, batch_size=2)
    adapters.save("reward", tmp_path / "reward", head)
    again = Adapters(load(tiny_folder), Lora(r=4, alpha=8), template="brief")
    again.load("reward", tmp_path / "reward")
    after = score(
        again, "reward", ScalarHead.load(tmp_path / "reward", 128), EXAMPLES, batch_size=2
    )
    assert torch.equal(before, after)


def test_adapters_of_another_base_template_or_shape_are_refused(tiny_folder, tmp_path):
    adapters = make(load(tiny_folder), "sft")
    adapters.save("sft", tmp_path / "sft")
    base = load(tiny_folder)
    with pytest.raises(UserError, match="template"):
        Adapters(base, Lora(r=4, alpha=8), template="alpaca").load("sft", tmp_path / "sft")
    with pytest.raises(UserError, match="r=4, alpha=8"):
        Adapters(base, Lora(r=8, alpha=8), template="brief").load("sft", tmp_path / "sft")
    with pytest.raises(UserError, match="base"):
        unquantised = load(tiny_folder, quantization="none")
        Adapters(unquantised, Lora(r=4, alpha=8), template="brief").load("sft", tmp_path / "sft")
    with pytest.raises(UserError, match="adapter_config"):
        Adapters(base, Lora(), template="brief").load("sft", tmp_path)


def test_saving_an_sft_adapter_that_learned_nothing_fails(tiny_folder, tmp_path):
    adapters = make(load(tiny_folder), "sft", trained=False)
    with pytest.raises(RuntimeError, match="nothing was trained"):
        adapters.save("sft", tmp_path / "sft")


@pytest.mark.parametrize(
    "values",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {"alpha_pattern": {"q_proj": 3}},
        {"rank_pattern": {"q_proj": 3}},
        {"lora_bias": True},
        {"bias": "all"},
        {"modules_to_save": ["lm_head"]},
    ],
)
def test_an_adapter_that_is_not_plain_lora_is_refused(tiny_folder, tmp_path, values):
    """It would load, and compute something else than it was trained to."""
    adapters = make(load(tiny_folder), "sft")
    adapters.save("sft", tmp_path / "sft")
    path = tmp_path / "sft" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    (name,) = values
    with pytest.raises(UserError, match=f"adapter_config.json: {name} is .*only plain LoRA"):
        adapters.load("policy", tmp_path / "sft")
