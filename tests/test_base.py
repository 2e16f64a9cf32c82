"""Loading a base: what is refused, what is quantised and frozen, what tells bases apart."""

import json
import shutil

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertLMHeadModel

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.models import base as base_module
from alpaca_rlhf.models import fingerprint
from alpaca_rlhf.models.base import default_dtype, load_base, weights_digest


@pytest.fixture
def copy(tiny_folder, tmp_path):
    """A copy of the checkpoint, to spoil."""
    return shutil.copytree(tiny_folder, tmp_path / "copy")


def change_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_tokenizer(folder, **tokens):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for name, value in tokens.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(folder)


def refusal(name, **options):
    with pytest.raises(UserError) as caught:
        load_base(str(name), **options)
    message = str(caught.value)
    assert message.startswith("--base "), message
    assert "\n" not in message
    return message


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere", "a/b/c"])
def test_a_missing_folder_is_refused(name):
    assert "no such folder" in refusal(name)


def test_a_hub_id_is_refused_without_a_network():
    assert "nobody/nothing" in refusal("nobody/nothing")


def test_a_folder_without_a_configuration_is_refused(tmp_path):
    assert "config.json" in refusal(tmp_path)


def test_a_missing_embedded_base_names_the_command_that_makes_it(monkeypatch, tmp_path):
    monkeypatch.setattr(base_module, "data_path", lambda name: tmp_path / name)
    assert "recipes/pretrain_cria.py" in refusal("embedded")


def test_torn_weights_are_refused(copy):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refusal(copy)


def test_a_torn_configuration_is_refused(copy):
    (copy / "config.json").write_text('{"model_type": "lla')
    refusal(copy)


def test_missing_weights_are_refused(copy):
    (copy / "model.safetensors").unlink()
    refusal(copy)


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_a_checkpoint_that_lacks_a_tensor_is_refused(copy, quantization):
    """Transformers warns, and goes on with random numbers in its place."""
    tensors = load_file(copy / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert "lm_head.weight" in refusal(copy, quantization=quantization)


def test_pickled_weights_are_refused(copy):
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    refusal(copy)


def test_a_head_tied_to_the_embeddings_lacks_nothing(copy):
    tensors = load_file(copy / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    change_json(copy / "config.json", tie_word_embeddings=True)
    model = load_base(str(copy)).model
    assert torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)


def test_a_missing_or_torn_tokenizer_is_refused(copy):
    (copy / "tokenizer.json").write_text('{"version": "1.0", "model": {"vocab": {"a')
    refusal(copy)
    for file in copy.glob("tokenizer*"):
        file.unlink()
    refusal(copy)


def test_a_model_that_is_not_a_decoder_is_refused(tiny_folder, tmp_path):
    config = BertConfig(
        vocab_size=400,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        is_decoder=True,
    )
    BertLMHeadModel(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path)
    refused = refusal(tmp_path, quantization="none")
    assert "BertLMHeadModel is not taken: it is an encoder" in refused and "Qwen 3" in refused


def test_a_tokenizer_without_eos_is_refused(copy):
    change_tokenizer(copy, eos_token=None)
    assert "eos" in refusal(copy)


# --- what is quantised, frozen, upcast ------------------------------------------------------------


def test_every_linear_layer_but_the_head_is_in_double_quantised_nf4(tiny_folder):
    base = load_base(str(tiny_folder))
    linear = {n: m for n, m in base.model.named_modules() if isinstance(m, torch.nn.Linear)}
    quantised = {n for n, m in linear.items() if isinstance(m, Linear4bit)}
    assert len(quantised) == 2 * 7  # q k v o, gate up down
    assert linear.keys() - quantised == {"lm_head"}
    for name in quantised:
        state = linear[name].weight.quant_state
        assert (state.quant_type, state.nested, state.blocksize) == ("nf4", True, 64)
        assert linear[name].compute_dtype == base.dtype
        assert linear[name].support_avx512bf16_for_cpu is False


def test_a_quantised_weight_takes_what_the_paper_says(tiny_folder):
    """4 bits, 8 / 64 for its block's scale, 32 / (64 * 256) for the scale of the scales."""
    base = load_base(str(tiny_folder))
    weight = base.model.model.layers[0].mlp.gate_proj.weight
    state = weight.quant_state
    count = 128 * 192
    assert weight.numel() * 8 == 4 * count
    assert state.absmax.dtype == torch.uint8
    assert state.absmax.numel() * 8 == 8 * count / 64
    assert state.state2.absmax.numel() * 32 == 32 * count / (64 * 256) + 16  # 1.5 blocks: 2 scales


def test_nf4_keeps_each_weight_within_its_step(tiny_folder):
    original = load_file(tiny_folder / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    weight = load_base(str(tiny_folder), dtype=torch.float32).model.model.layers[1].mlp.up_proj
    back = dequantize_4bit(weight.weight, weight.weight.quant_state)
    largest = original.view(-1, 64).abs().amax(1, keepdim=True)
    error = (back.view(-1, 64) - original.view(-1, 64)).abs() / largest
    assert 0 < error.max() < 0.5 * (1 - 0.6962) + 0.02  # NF4's widest step is from -1 to -0.6962
    assert error.mean() < 0.05
    assert len((back.view(-1, 64)[0]).unique()) <= 16


def test_nothing_is_upcast(tiny_folder):
    base = load_base(str(tiny_folder), dtype=torch.bfloat16)
    census = {name: p.dtype for name, p in base.model.named_parameters()}
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert census[name] == torch.bfloat16
    assert census["model.layers.0.input_layernorm.weight"] == torch.bfloat16
    assert set(census.values()) == {torch.bfloat16, torch.uint8}


def test_bfloat16_is_the_default_where_the_processor_has_it(tiny_folder, monkeypatch):
    for native, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda n=native: n)
        assert default_dtype(torch.device("cpu")) == dtype
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation, n=native: n
        )
        card = torch.bfloat16 if native else torch.float16
        assert default_dtype(torch.device("cuda")) == card
        base = load_base(str(tiny_folder))
        assert base.dtype == dtype
        with base.autocast():
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == dtype


def test_the_base_is_frozen_and_in_eval_mode(tiny_base):
    assert not any(p.requires_grad for p in tiny_base.model.parameters())
    assert not any(m.training for m in tiny_base.model.modules())


def test_parameters_are_counted_one_by_one(tiny_folder, tiny_base):
    stored = sum(t.numel() for t in load_file(tiny_folder / "model.safetensors").values())
    assert tiny_base.parameters == stored
    assert load_base(str(tiny_folder), quantization="none").parameters == stored
    assert tiny_base.context == 256


# --- special tokens -------------------------------------------------------------------------------


def test_pad_is_not_eos(tiny_base, copy):
    assert (tiny_base.pad_id, tiny_base.eos_id) == (0, 2)
    for pad in ("</s>", None):  # the usual advice, and LLaMA as it ships
        change_tokenizer(copy, pad_token=pad)
        base = load_base(str(copy))
        assert base.eos_id == 2
        assert base.pad_id != base.eos_id


def test_pad_is_not_eos_where_eos_is_the_first_token(copy):
    change_tokenizer(copy, pad_token=None, eos_token="<pad>")
    base = load_base(str(copy))
    assert base.eos_id == 0
    assert base.pad_id != 0


def test_no_embedding_is_added(tiny_base, tiny_folder):
    stored = load_file(tiny_folder / "model.safetensors")
    rows = tiny_base.model.get_input_embeddings().weight.shape[0]
    assert rows == stored["model.embed_tokens.weight"].shape[0]


def test_stop_ids_are_eos_and_those_of_the_generation_configuration(tiny_base, copy):
    assert tiny_base.stop_ids == {2}
    for stops, expected in (([7, 9], {2, 7, 9}), (5, {2, 5}), (None, {2})):
        change_json(copy / "generation_config.json", eos_token_id=stops)
        assert load_base(str(copy)).stop_ids == expected


# --- digest and fingerprint -----------------------------------------------------------------------


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_the_digest_sees_every_byte(tiny_folder, quantization):
    base = load_base(str(tiny_folder), quantization=quantization)
    untouched = weights_digest(base)
    assert weights_digest(load_base(str(tiny_folder), quantization=quantization)) == untouched
    seen = {untouched}
    targets = [p.data for p in base.model.parameters()]
    if quantization == "nf4":
        state = base.model.model.layers[1].mlp.down_proj.weight.quant_state
        targets += [state.absmax, state.offset, state.state2.absmax]
    for tensor in targets:
        flat = tensor.view(-1).view(torch.uint8)
        flat[-1] ^= 1  # the last byte of it
        seen.add(weights_digest(base))
    assert len(seen) == 1 + len(targets)


def test_the_fingerprint_tells_bases_apart(tiny_folder, tmp_path):
    def variant(name):
        return shutil.copytree(tiny_folder, tmp_path / name)

    prints = {
        "same": load_base(str(tiny_folder)).fingerprint,
        "quantization": load_base(str(tiny_folder), quantization="none").fingerprint,
    }
    assert load_base(str(variant("again"))).fingerprint == prints["same"]

    folder = variant("one matrix")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][-1] *= -1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    prints["one row of one matrix"] = load_base(str(folder)).fingerprint

    folder = variant("vocabulary")
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"<0x00>"', '"<0x0>"'))
    prints["vocabulary"] = load_base(str(folder)).fingerprint

    folder = variant("special")
    change_tokenizer(folder, eos_token="<s>")
    prints["eos"] = load_base(str(folder)).fingerprint

    folder = variant("chat")
    change_tokenizer(folder, chat_template="{{ messages[0].content }}")
    prints["chat template"] = load_base(str(folder)).fingerprint

    folder = variant("rope")
    found = json.loads((folder / "config.json").read_text())
    rope = found.get("rope_parameters") or {"rope_type": "default"}
    change_json(folder / "config.json", rope_parameters={**rope, "rope_theta": 500000.0})
    prints["rotary base"] = load_base(str(folder)).fingerprint

    assert len(set(prints.values())) == len(prints), prints


def test_a_base_is_loaded_with_its_vocabulary_hashed_once(tiny_folder, monkeypatch):
    """The fingerprint of earlier versions is computed when an adapter asks for it."""
    seen = []
    identity = fingerprint._identity
    monkeypatch.setattr(
        fingerprint, "_identity", lambda *parts: seen.append(parts) or identity(*parts)
    )
    base = load_base(str(tiny_folder))
    assert len(seen) == 1
    assert not base.earlier.fits("0" * 16) and len(seen) == 2
    assert not base.earlier.fits("1" * 16) and len(seen) == 2


def test_the_fingerprint_of_a_bf16_checkpoint_is_the_same_in_every_compute_dtype(
    tiny_folder, tmp_path
):
    """Trained on one card, used on another: bf16, fp16 and fp32 copies are the same base."""
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path)
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    assert len({load_base(str(tmp_path), dtype=dtype).fingerprint for dtype in dtypes}) == 1
