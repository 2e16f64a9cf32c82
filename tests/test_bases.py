"""Properties of a base: its fingerprint, quantised checkpoints, and families."""

import json
import logging
import shutil

import pytest
import torch
import transformers
from bitsandbytes.nn.modules import Linear4bit
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.runs import data_path
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.base import load_base
from alpaca_rlhf.settings import Lora

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LORA = Lora(r=4, alpha=8)


def stored_in(source, folder, dtype):
    """A copy of a checkpoint in another dtype."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: tensor.to(dtype) for name, tensor in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    return folder


def codes(base):
    """Every byte of the 4-bit weights: codes, and scales."""
    weights = [m.weight for m in base.model.modules() if isinstance(m, Linear4bit)]
    assert len(weights) == 14
    return [w.data for w in weights] + [w.quant_state.absmax for w in weights]


# --- fingerprints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [torch.float16, torch.float32])
def test_a_checkpoint_is_the_same_base_on_every_machine(tiny_folder, tmp_path, stored):
    """A card with bf16, a T4 (fp16) and a CPU (fp32) quantise the numbers that are stored."""
    folder = stored_in(tiny_folder, tmp_path / "base", stored)
    bases = [load_base(str(folder), dtype=dtype) for dtype in DTYPES]
    assert len({base.fingerprint for base in bases}) == 1
    first, *others = map(codes, bases)
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))
    for base, dtype in zip(bases, DTYPES, strict=True):
        assert base.dtype == base.model.lm_head.weight.dtype == dtype
        assert base.model.model.layers[0].mlp.up_proj.weight.quant_state.dtype == dtype
    # Rounded to bf16 first, the same numbers become other codes.
    rounded = codes(load_base(str(folder), rounded_to=torch.bfloat16))
    assert not all(torch.equal(a, b) for a, b in zip(first, rounded, strict=True))


def test_exact_copies_in_a_wider_dtype_are_the_same_base(tiny_folder, tmp_path):
    half = stored_in(tiny_folder, tmp_path / "half", torch.float16)
    full = stored_in(half, tmp_path / "full", torch.float32)
    assert load_base(str(half)).fingerprint == load_base(str(full)).fingerprint
    assert load_base(str(half)).fingerprint != load_base(str(tiny_folder)).fingerprint


def test_shards_and_a_stored_tied_head_change_no_fingerprint(tiny_folder, tmp_path):
    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    for folder, size in ((whole, "1GB"), (sharded, "200KB")):
        model.save_pretrained(folder, max_shard_size=size)
        AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(folder)
    assert len(list(sharded.glob("*.safetensors"))) > 1
    assert load_base(str(whole)).fingerprint == load_base(str(sharded)).fingerprint


def test_adapters_move_between_machines(tiny_folder, tmp_path):
    folder = stored_in(tiny_folder, tmp_path / "base", torch.float16)
    there = Adapters(load_base(str(folder), dtype=torch.bfloat16), LORA, template="brief")
    there.add("policy")
    there.save("policy", tmp_path / "adapter")
    here = Adapters(load_base(str(folder), dtype=torch.float32), LORA, template="brief")
    here.load("policy", tmp_path / "adapter")
    assert here.digest("policy") == there.digest("policy")


def test_adapters_of_earlier_versions_are_taken_with_one_line(tmp_path, caplog):
    """Fingerprints that the version before gave to the embedded base, and to a float16 copy whose
    weights bf16 cannot hold, on machines with and without bf16."""
    folder = tmp_path / "fp16"
    shutil.copytree(data_path("cria"), folder)
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: (tensor.float() * 1.01).half() for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    half, embedded = load_base(str(folder)), load_base()
    assert embedded.earlier.dtype_of("aa77e9538b1f9a71") is not None
    assert half.earlier.dtype_of("f6ccb83b17a871ff") == torch.bfloat16
    assert half.earlier.dtype_of("5457c9b0e7e99371") == torch.float16
    assert half.earlier.dtype_of("aa77e9538b1f9a71") is None

    adapters = Adapters(half, LORA, template="brief")
    adapters.add("policy")
    adapters.save("policy", tmp_path / "adapter")
    path = tmp_path / "adapter" / "fingerprint.json"
    saved = json.loads(path.read_text())
    del saved["dtype"]
    with caplog.at_level(logging.WARNING, logger="alpaca_rlhf"):
        for fingerprint in ("f6ccb83b17a871ff", "5457c9b0e7e99371"):
            path.write_text(json.dumps({**saved, "base": fingerprint}))
            adapters.load("policy", tmp_path / "adapter")
    assert [record.getMessage() for record in caplog.records] == [
        f"--base {folder}: its adapters were made by an earlier version, which quantised it from "
        "bfloat16; it is the same base, and they are taken"
    ]
    path.write_text(json.dumps({**saved, "base": "aa77e9538b1f9a71"}))
    with pytest.raises(UserError, match="with base aa77e9538b1f9a71"):
        adapters.load("policy", tmp_path / "adapter")


# --- quantised checkpoints ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bnb_folder(tiny_folder, tmp_path_factory):
    """A bnb-4bit checkpoint, as unsloth publishes them."""
    folder = tmp_path_factory.mktemp("bnb") / "tiny-bnb-4bit"
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = AutoModelForCausalLM.from_pretrained(
        tiny_folder, quantization_config=nf4, dtype=torch.bfloat16
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(folder)
    return folder


def test_a_bnb_4bit_checkpoint_is_the_weights_it_was_made_of(tiny_folder, bnb_folder):
    bases = [load_base(str(bnb_folder), dtype=dtype) for dtype in DTYPES]
    assert len({base.fingerprint for base in bases}) == 1
    made_of = codes(load_base(str(tiny_folder), rounded_to=torch.bfloat16))
    for base in bases:
        assert base.parameters == load_base(str(tiny_folder)).parameters
        assert all(torch.equal(a, b) for a, b in zip(codes(base), made_of, strict=True))
        assert base.model.model.layers[0].mlp.up_proj.weight.quant_state.dtype == base.dtype
        assert base.model.lm_head.weight.dtype == base.dtype
        assert not base.model.model.layers[0].mlp.up_proj.support_avx512bf16_for_cpu


QUANTISED = [
    ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8 (bitsandbytes)"),
    ({"_load_in_8bit": True, "load_in_8bit": True}, "int8 (bitsandbytes)"),
    (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
        "FP4 (bitsandbytes)",
    ),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "FP4 (bitsandbytes)"),
    ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "GPTQ (4 bits)"),
    ({"quant_method": "awq", "bits": 4, "version": "gemm"}, "AWQ (4 bits)"),
    ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "FP8"),
    ({"quant_method": "fbgemm_fp8"}, "FP8 (FBGEMM)"),
    ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
    ({"quant_method": "hqq"}, "HQQ"),
    ({"quant_method": "eetq"}, "EETQ (int8)"),
    ({"quant_method": "aqlm", "nbits_per_codebook": 16}, "AQLM"),
    ({"quant_method": "mxfp4"}, "MXFP4"),
    ({"quant_method": "torchao", "quant_type": "int4_weight_only"}, "torchao"),
    ({"quant_method": "somethingnew"}, "somethingnew"),
]


@pytest.mark.parametrize(("settings", "name"), QUANTISED)
def test_other_quantised_checkpoints_are_refused_for_what_they_are(
    tiny_folder, tmp_path, settings, name
):
    """By loading, plan and export alike, before any weight is read."""
    from alpaca_rlhf.exporting.request import configuration
    from alpaca_rlhf.planner import shape_of

    folder = shutil.copytree(tiny_folder, tmp_path / "quantised")
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    (folder / "README.md").write_text("---\nbase_model: meta-llama/Llama-2-7b-hf\n---\n")
    for check in (load_base, shape_of, configuration):
        with pytest.raises(UserError) as caught:
            check(str(folder))
        assert str(caught.value) == (
            f"--base {folder}: its checkpoint is quantised in {name}, and of the quantised ones "
            "only bitsandbytes' NF4 (bnb-4bit) can be trained and exported; give the "
            "full-precision checkpoint, --base meta-llama/Llama-2-7b-hf"
        )


@pytest.mark.parametrize(
    ("base", "original"),
    [
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "--base Qwen/Qwen2.5-7B-Instruct"),
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", "--base Qwen/Qwen2.5-7B-Instruct"),
        ("Qwen/Qwen3-8B-FP8", "--base Qwen/Qwen3-8B"),
        ("somebody/model-int8", "--base somebody/model"),
        ("TheBloke/Llama-2-7B-GPTQ", "that it was made from"),
        ("somebody/model", "that it was made from"),
    ],
)
def test_the_full_precision_checkpoint_is_named_where_it_is_known(base, original):
    from alpaca_rlhf.models.families import check_config

    config = {"model_type": "qwen2", "quantization_config": {"quant_method": "gptq", "bits": 4}}
    with pytest.raises(UserError, match=f"give the full-precision checkpoint.* {original}$"):
        check_config(base, config)


@pytest.mark.parametrize(("dtype", "name"), [(torch.float8_e4m3fn, "FP8"), (torch.int8, "int8")])
def test_eight_bit_weights_are_seen_without_a_configuration(tiny_folder, tmp_path, dtype, name):
    folder = shutil.copytree(tiny_folder, tmp_path / "eight")
    tensors = load_file(folder / "model.safetensors")
    key = "model.layers.0.mlp.up_proj.weight"
    tensors[key] = tensors[key].to(dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"is quantised in {name}, "):
        load_base(str(folder))


# --- families -------------------------------------------------------------------------------------


def another(source, folder, name, **values):
    """A random model of another architecture with the tokenizer of a base."""
    shutil.copytree(source, folder)
    own = json.loads((folder / "config.json").read_text())
    shared = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
        "num_key_value_heads max_position_embeddings pad_token_id bos_token_id eos_token_id"
    ).split()
    config = getattr(transformers, f"{name}Config")(**{k: own[k] for k in shared} | values)
    torch.manual_seed(0)
    architecture = name.removesuffix("Text") + "ForCausalLM"
    model = getattr(transformers, architecture)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
            else:  # norms and biases that are not all alike
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.generation_config = transformers.GenerationConfig(
        pad_token_id=0, bos_token_id=1, eos_token_id=2
    )
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder)
    return str(folder)


GEMMA = {
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"],
}
TAKEN = {
    "Mistral": {"sliding_window": None},
    "Mistral with a window": {"sliding_window": 8},
    "Qwen2": {},
    "Qwen2 with a window": {
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 1,
    },
    "Qwen3": {"head_dim": 32},
    "Gemma3Text": GEMMA,
}


@pytest.fixture(scope="module")
def family(tiny_folder, tmp_path_factory):
    """Makes the base of a family that is taken, once."""
    top = tmp_path_factory.mktemp("families")

    def made(name):
        folder = top / name
        if not folder.exists():
            another(tiny_folder, folder, name.partition(" ")[0], **TAKEN[name])
        return str(folder)

    return made


@pytest.mark.parametrize("name", list(TAKEN))
def test_a_family_that_is_taken_is_computed_as_transformers_does(family, name):
    """Packed, sampled, and by the model's own forward: rows longer than the window, too.

    The packed rows begin with the same prompt, which goes through the base once.
    """
    from alpaca_rlhf.models.batches import Example, collate
    from alpaca_rlhf.models.rollout import sample
    from alpaca_rlhf.settings import Sampling

    folder = family(name)
    adapters = Adapters(load_base(folder, dtype=torch.float32), LORA, template="brief")
    adapters.add("policy")
    rows = [tuple(range(5, 5 + n)) for n in (40, 6, 23)]
    batch = collate(adapters.base, [Example(row[:3], row[3:]) for row in rows])
    plain = load_base(folder, dtype=torch.float32).model
    with torch.no_grad(), adapters.using("policy"):
        logits = adapters.logits(adapters.hidden(batch))
        assert len(logits) == 3 + 37 + 3 + 20, "the prompt, which they share, once"
        for number, row in enumerate(rows):
            expected = plain(input_ids=torch.tensor([row])).logits[0]
            positions = torch.arange(len(row))
            tokens = batch.packing.index(torch.full_like(positions, number), positions)
            assert (logits[tokens] - expected).abs().max() < 1e-3
    # Greedy, two prompts of different length at once: what the model's own forward finds likeliest.
    sampling = Sampling(temperature=0.0, max_new_tokens=16, batch_size=4)
    for (completion,), row in zip(
        sample(adapters, "policy", rows[:2], ["a", "b"], sampling=sampling, seed=0),
        rows[:2],
        strict=True,
    ):
        ids = torch.tensor([[*row, *completion.ids]])
        with torch.no_grad():
            best = plain(input_ids=ids).logits[0].argmax(-1)
        assert completion.ids == tuple(best[len(row) - 1 : -1].tolist())


@pytest.mark.parametrize("name", list(TAKEN))
def test_doctor_plan_and_training_take_the_same_families(family, name):
    from alpaca_rlhf.doctor import base_checks
    from alpaca_rlhf.planner import shape_from_config, shape_of
    from alpaca_rlhf.settings import Loop
    from alpaca_rlhf.stages.preflight import shape_of_run

    folder = family(name)
    assert not [f for f in base_checks(folder, "alpaca", LORA) if f.verdict == "bad"]
    base = load_base(folder)
    for shape in (
        shape_of(folder),
        shape_of_run(Loop(base=folder)),
        shape_from_config(folder, base.model.config.to_dict()),
    ):
        assert shape.parameters == base.parameters
        assert shape.context == base.context == 256
        assert shape.windowed == {"Mistral with a window": 2}.get(
            name, 1 if "window" in name or "Gemma" in name else 0
        )


REFUSED = [
    ("Phi3", {}, "its query, key and value matrices are fused"),
    ("Phi", {}, "LayerNorm"),
    ("Mixtral", {"num_local_experts": 2}, "mixture of experts"),
    ("Qwen3Moe", {"num_experts": 2, "head_dim": 32}, "mixture of experts"),
    ("SmolLM3", {}, "no rotary positions"),
    ("Gemma2", {"head_dim": 32}, "capped"),
    ("Gemma", {"head_dim": 32}, "first Gemma"),
    ("Granite", {"logits_scaling": 8.0}, "scaled"),
    ("Cohere", {"logit_scale": 0.0625}, "scaled"),
    ("Olmo2", {}, "after the blocks"),
    ("Nemotron", {}, "unknown here"),
    ("Llama", {"hidden_act": "gelu"}, "the activation gelu, not silu"),
    ("Gemma3Text", {"final_logit_softcapping": 30.0}, "capped"),
    ("Gemma3Text", {"use_bidirectional_attention": True}, "attend to later ones"),
]


@pytest.mark.parametrize(("name", "values", "reason"), REFUSED)
def test_other_families_are_refused_with_the_reason_by_all(
    tiny_folder, tmp_path, name, values, reason
):
    """Doctor, plan, preflight, training and exports say the same."""
    from alpaca_rlhf.doctor import base_checks
    from alpaca_rlhf.exporting.request import configuration
    from alpaca_rlhf.planner import shape_of
    from alpaca_rlhf.settings import Loop
    from alpaca_rlhf.stages.preflight import shape_of_run

    config = getattr(transformers, f"{name}Config")(**values)
    config.architectures = [f"{name}ForCausalLM"]
    folder = shutil.copytree(tiny_folder, tmp_path / "base")
    config.save_pretrained(folder)
    (finding,) = base_checks(str(folder), "alpaca", LORA)
    assert finding.verdict == "bad"
    said = {f"{finding.found}; {finding.todo}"}
    for check in (load_base, shape_of, configuration, lambda base: shape_of_run(Loop(base=base))):
        with pytest.raises(UserError) as caught:
            check(str(folder))
        said.add(str(caught.value))
    assert len(said) == 1
    assert f"{name}ForCausalLM is not taken: " in said.pop()
    assert reason in str(caught.value)
    assert str(caught.value).endswith(
        "; bases of these families are: LLaMA, Mistral, Qwen 2 and 2.5, Qwen 3 and Gemma 3 (text)"
    )


def test_an_architecture_that_transformers_does_not_know_is_refused_too(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "tomorrow", "architectures": ["TomorrowForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="TomorrowForCausalLM is not taken: its layers are unknown"):
        load_base(str(folder))


@pytest.mark.parametrize("name", ["Phi", "Cohere", "Granite"])
def test_a_base_that_computes_more_is_refused_by_its_numbers(
    tiny_folder, tmp_path, monkeypatch, name
):
    """Were one taken all the same, its forwards would leave out a bias or a scale."""
    from alpaca_rlhf.models import base as base_module

    monkeypatch.setattr(base_module, "check_config", lambda name, config: None)
    values = {"Cohere": {"logit_scale": 0.0625}, "Granite": {"logits_scaling": 8.0}, "Phi": {}}
    folder = another(tiny_folder, tmp_path / "base", name, **values[name])
    with pytest.raises(UserError, match=f"--base .*{name}.* computes more than a LLaMA"):
        Adapters(load_base(folder, dtype=torch.float32), LORA, template="brief")
