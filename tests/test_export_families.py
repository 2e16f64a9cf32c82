"""Exports of every family that is taken, of a bnb-4bit checkpoint, and as K-quants."""

import json
import os
import shutil
import stat

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig

from alpaca_rlhf.cli import main as cli
from tests.test_export import (  # `few_tokens` is used by every test
    FLAVOURS,
    export,
    few_tokens,  # noqa: F401
    little_llama,
    little_run,
    refused,
)

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
FAMILIES = {
    "Qwen2": {"num_hidden_layers": 2},
    "Qwen3": {"num_hidden_layers": 2, "head_dim": 32},
    # six layers: five with a window, which the prompts are longer than, and one without
    "Gemma3Text": {
        "num_hidden_layers": 6,
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 16,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
}


def little(folder, name, **values):
    """A random base of a family, with the kind of tokenizer that it has."""
    from recipes.pretrain_cria import train_tokenizer
    from tests.conftest import TEXTS
    from tests.test_export import byte_level_tokenizer

    is_gemma = name.startswith("Gemma")
    tokenizer = train_tokenizer(iter(TEXTS), 400) if is_gemma else byte_level_tokenizer()
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **{**SIZES, **FAMILIES[name], **values},
    )
    model = getattr(transformers, name.removesuffix("Text") + "ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model.generation_config = GenerationConfig(**ends)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def bnb(folder, source):
    """A bnb-4bit copy of a checkpoint, as unsloth publishes them."""
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    options = {"quantization_config": nf4, "dtype": torch.bfloat16}
    AutoModelForCausalLM.from_pretrained(source, **options).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=[*FAMILIES, "bnb-4bit"])
def family_run(request, tmp_path_factory):
    """A base and a run on it."""
    top = tmp_path_factory.mktemp("family")
    if request.param == "bnb-4bit":
        little_llama(top / "full", *FLAVOURS["gqa"])
        base = bnb(top / "base", top / "full")
    else:
        base = little(top / "base", request.param)
    return base, little_run(top / "run", base, dtype=torch.float32)


@pytest.mark.parametrize("to", ["merged", "gguf", "adapter", "reward"])
def test_every_export_does_what_was_trained(family_run, tmp_path, to):
    _, run = family_run
    arguments = [] if to == "adapter" else ["--dtype", "float32"]
    parity = export(run, tmp_path / "out", "--to", to, *arguments)
    assert parity["passed"]
    checked = parity["checks"]["peft" if to == "adapter" else "transformers"]
    if to == "reward":
        assert checked["scores"] >= 5
    else:
        assert checked["same_greedy"] >= 5 and abs(checked["perplexity_change"]) < 1e-3
    if to == "merged":
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert "quantization_config" not in config


def fields(path):
    from gguf import GGUFReader

    reader = GGUFReader(str(path))
    values = {name: field.contents() for name, field in reader.fields.items()}
    return values, {tensor.name for tensor in reader.tensors}


def test_a_gguf_file_names_what_llama_cpp_reads(tmp_path):
    """Tensors that its loader reads for Gemma 3 (src/models/gemma3.cpp) and Qwen 3."""
    run = little_run(tmp_path / "run", little(tmp_path / "gemma", "Gemma3Text"))
    assert (
        cli.main(["export", "--run", str(run), "--to", "gguf", "--out", str(tmp_path / "a")]) == 0
    )
    values, tensors = fields(tmp_path / "a" / "model-f16.gguf")
    expected = {
        "general.architecture": "gemma3",
        "gemma3.attention.sliding_window": 16,
        "gemma3.attention.key_length": 32,
        "gemma3.rope.freq_base": 1e6,
        "gemma3.rope.scaling.type": "linear",
        "gemma3.rope.scaling.factor": 8.0,
        "gemma3.context_length": 512,
    }
    assert {key: values[key] for key in expected} == expected
    for name in ("attn_q_norm", "attn_k_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
        assert f"blk.5.{name}.weight" in tensors
    assert "output.weight" not in tensors  # tied

    run = little_run(tmp_path / "run3", little(tmp_path / "qwen", "Qwen3"))
    assert (
        cli.main(["export", "--run", str(run), "--to", "gguf", "--out", str(tmp_path / "b")]) == 0
    )
    values, tensors = fields(tmp_path / "b" / "model-f16.gguf")
    assert values["general.architecture"] == "qwen3" and values["qwen3.attention.key_length"] == 32
    assert {"blk.1.attn_q_norm.weight", "blk.1.attn_k_norm.weight", "output.weight"} <= tensors


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("Gemma3Text", {"query_pre_attn_scalar": 16}, "other windows, rotary bases"),
        ("Gemma3Text", {"layer_types": ["full_attention"] * 6}, "other windows, rotary bases"),
        (
            "Qwen3",
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}},
            "qwen3 with yarn rotary positions",
        ),
    ],
)
def test_what_this_writer_cannot_express_tells_the_converter(
    tmp_path, capsys, name, values, reason
):
    run = little_run(tmp_path / "run", little(tmp_path / "base", name, **values))
    capsys.readouterr()
    line = refused(capsys, "--run", str(run), "--to", "gguf", "--out", str(tmp_path / "out"))
    assert reason in line and line.endswith(
        "get llama.cpp's converter with `git clone https://github.com/ggml-org/llama.cpp` and add "
        "--llama-cpp llama.cpp"
    )


# --- K-quants -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory):
    top = tmp_path_factory.mktemp("plain")
    little_llama(top / "base", *FLAVOURS["gqa"])
    return little_run(top / "run", top / "base")


def quantizer(folder, body):
    """A `llama-quantize` that does as told."""
    folder.mkdir(parents=True)
    path = folder / "llama-quantize"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return folder


def test_a_k_quant_is_made_by_llama_quantize(plain_run, tmp_path, monkeypatch, capsys):
    """From the PATH or from llama.cpp's folder; the 16-bit file goes away again."""
    body = f'echo "$3" > {tmp_path}/asked; case "$1" in *model-f16.gguf) cp "$1" "$2";; esac'
    quantizer(tmp_path / "bin", body)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    out = tmp_path / "out"
    parity = export(plain_run, out, "--to", "gguf", "--dtype", "q4_k_m")
    assert parity["passed"] and parity["checks"]["transformers"]["asked"].startswith(
        "agreement 0.8"
    )
    assert (tmp_path / "asked").read_text() == "Q4_K_M\n"
    assert [path.name for path in out.glob("*.gguf")] == ["model-q4_k_m.gguf"]
    assert (out / "Modelfile").read_text().startswith("FROM ./model-q4_k_m.gguf\n")
    assert f"cd {out} && ollama create" in capsys.readouterr().out

    quantizer(tmp_path / "fails", "echo no such type >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'fails'}{os.pathsep}{os.environ['PATH']}")
    arguments = ["--run", str(plain_run), "--to", "gguf", "--out", str(tmp_path / "no")]
    line = refused(capsys, *arguments, "--dtype", "q5_k_m")
    assert "--dtype q5_k_m: " in line and "(no such type)" in line
    assert not (tmp_path / "no").exists()


def test_without_llama_quantize_the_commands_are_told(plain_run, tmp_path, monkeypatch, capsys):
    """Before anything is written; what it tells does the same by hand."""
    monkeypatch.setenv("PATH", str(tmp_path))
    out = tmp_path / "out"
    arguments = ["--run", str(plain_run), "--to", "gguf", "--out", str(out), "--dtype", "q4_k_m"]
    line = refused(capsys, *arguments)
    command = (
        f"alpaca-rlhf export --run {plain_run} --policy ppo --to gguf --dtype float16 --out {out}"
    )
    assert line.endswith(
        f"{command} && llama-quantize {out}/model-f16.gguf {out}/model-q4_k_m.gguf Q4_K_M"
    )
    assert cli.main(command.split()[1:]) == 0 and (out / "model-f16.gguf").is_file()
    shutil.rmtree(out)

    line = refused(capsys, "--run", str(plain_run), "--to", "merged", "--dtype", "q4_k_m")
    assert "--dtype q4_k_m belongs to --to gguf" in line


# --- adapters of earlier versions -----------------------------------------------------------------


def test_an_export_has_the_weights_that_an_earlier_version_trained_on(tmp_path, capsys):
    """On a bf16 card it rounded a float16 checkpoint to bf16 before it quantised it."""
    from alpaca_rlhf.exporting.loading import trained_base
    from alpaca_rlhf.exporting.request import ExportRequest
    from alpaca_rlhf.models.base import load_base
    from alpaca_rlhf.settings import Loop

    base = tmp_path / "base"
    little_llama(base, *FLAVOURS["gqa"])
    run = little_run(tmp_path / "run", base)
    adapter = run / "ppo" / "adapter"
    path = adapter / "fingerprint.json"
    saved = json.loads(path.read_text())
    earlier = load_base(str(base)).earlier._computed(torch.bfloat16)
    del saved["dtype"]
    path.write_text(json.dumps({**saved, "base": earlier}))
    settings = Loop(base=str(base), out=run)
    request = ExportRequest(settings, run, "ppo", adapter, "adapter", "float32", tmp_path / "out")
    loaded = trained_base(request)
    assert (loaded.dtype, loaded.quantized_from) == (torch.bfloat16, torch.bfloat16)
    assert export(run, tmp_path / "out", "--to", "adapter")["passed"]
    # What was computed in float32 is exported from float32, on whatever machine.
    path.write_text(json.dumps({**saved, "dtype": "float16"}))
    assert trained_base(request).dtype == torch.float16
