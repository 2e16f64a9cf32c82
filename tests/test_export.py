"""Exports do what was trained: seen through plain transformers and peft, without this package."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from alpaca_rlhf.cli import main as cli
from alpaca_rlhf.settings import Loop, Lora, Sampling
from alpaca_rlhf.settings.parsing import to_yaml
from tests.conftest import TEXTS

LORA = Lora(r=4, alpha=8)
FLAVOURS = {"gqa": (2, False, None), "mha tied": (4, True, None), "llama3": (1, False, 8.0)}
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch):
    """Twelve tokens a prompt instead of 32: every export is decoded several times."""
    monkeypatch.setattr("alpaca_rlhf.exporting.parity.NEW_TOKENS", 12)


def byte_level_tokenizer():
    """Llama-3's kind: byte-level BPE, a bos and an eos token, nothing to pad with."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|begin|>", eos_token="<|end|>"
    )


def little_llama(folder: Path, kv: int, tied: bool, rope: float | None, seed: int = 0) -> None:
    """A random two-layer LLaMA, sharper than LLaMA's own initialisation, so that answers differ."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    from recipes.pretrain_cria import train_tokenizer

    tokenizer = byte_level_tokenizer() if rope else train_tokenizer(iter(TEXTS), 400)
    torch.manual_seed(seed)
    parameters = {"rope_type": "default", "rope_theta": 10000.0}
    if rope is not None:
        parameters |= {
            "rope_type": "llama3",
            "factor": rope,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=kv,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        rope_parameters=parameters,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model.generation_config = GenerationConfig(**ends)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def little_run(
    folder: Path, base: Path, template: str = "alpaca", dtype: torch.dtype | None = None
) -> Path:
    """Write a run: settings, an sft and a ppo adapter, a reward adapter with its head."""
    from alpaca_rlhf.models.adapters import Adapters
    from alpaca_rlhf.models.base import load_base
    from alpaca_rlhf.models.heads import ScalarHead

    settings = Loop(base=str(base), template=template, lora=LORA, out=folder)
    settings = replace(settings, sampling=Sampling(max_new_tokens=16))
    loaded = load_base(str(base), dtype=dtype)
    adapters = Adapters(loaded, LORA, template=template)
    head = ScalarHead(int(loaded.model.config.hidden_size), seed=3)
    head.gain.fill_(1.7)
    head.bias.fill_(-0.8)
    for seed, name in enumerate(("sft", "ppo", "reward")):
        adapters.add(name, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, p in sorted(adapters.parameters(name).items()):
                if "lora_B" in key:
                    p.copy_(torch.randn(p.shape, generator=generator) * 0.05)
        adapters.save(name, folder / name / "adapter", head if name == "reward" else None)
    (folder / "config.yaml").write_text(to_yaml(settings))
    (folder / "provenance.json").write_text('{"kind": "loop"}')
    return folder


@pytest.fixture(scope="module", params=list(FLAVOURS))
def flavour(request, tmp_path_factory) -> tuple[Path, Path]:
    """A base and a run on it."""
    top = tmp_path_factory.mktemp("flavour")
    little_llama(top / "base", *FLAVOURS[request.param])
    # as on a machine without bfloat16: what is exported elsewhere is what was trained there
    return top / "base", little_run(top / "run", top / "base", dtype=torch.float32)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> tuple[Path, Path]:
    """One base and a run, for what does not depend on the architecture."""
    top = tmp_path_factory.mktemp("plain")
    little_llama(top / "base", *FLAVOURS["gqa"])
    return top / "base", little_run(top / "run", top / "base")


def export(run: Path, out: Path, *arguments: str) -> dict:
    code = cli.main(["export", "--run", str(run), "--out", str(out), *arguments])
    result = json.loads((out / "parity.json").read_text())
    assert code == (0 if result["passed"] else 1)
    return result


def refused(capsys, *arguments: str) -> str:
    """The one line that a wrong command gets."""
    assert cli.main(["export", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


ALONE = """
import json, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "alpaca_rlhf":
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Blocked())
from transformers import AutoModelForCausalLM, AutoTokenizer
for line in sys.stdin:
    folder, said = json.loads(line)
    model = AutoModelForCausalLM.from_pretrained(folder)
    words = AutoTokenizer.from_pretrained(folder)
    out = []
    for one in said:
        ids = words.apply_chat_template(one, add_generation_prompt=True, return_tensors="pt",
                                        return_dict=False)
        made = model.generate(ids, attention_mask=ids * 0 + 1, max_new_tokens=24, do_sample=False)
        out.append(made[0, ids.shape[1]:].tolist())
    assert "alpaca_rlhf" not in sys.modules
    print(json.dumps(out), flush=True)
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Greedy token ids of a folder's model, by a process that cannot import this package."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", ALONE],
        cwd=tmp_path_factory.mktemp("alone"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )

    def answers(folder, conversations):
        process.stdin.write(json.dumps([str(folder), conversations]) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    yield answers
    process.stdin.close()
    assert process.wait(60) == 0


def test_a_merged_model_needs_nothing_of_ours(flavour, alone, tmp_path):
    """A process that cannot import this package says what the trained policy says."""
    from alpaca_rlhf.exporting.chat_template import messages
    from alpaca_rlhf.exporting.probes import PROBES
    from alpaca_rlhf.models.adapters import Adapters
    from alpaca_rlhf.models.base import load_base
    from alpaca_rlhf.models.batches import prompt_ids
    from alpaca_rlhf.models.rollout import sample

    base, run = flavour
    parity = export(run, tmp_path / "out", "--policy", "ppo", "--dtype", "float32")
    assert parity["passed"] and parity["checks"]["transformers"]["same_greedy"] >= 5
    conversations = [messages("alpaca", probe) for probe in PROBES[:5]]
    exported = alone(tmp_path / "out", conversations)
    adapters = Adapters(load_base(str(base), dtype=torch.float32), LORA, template="alpaca")
    adapters.load("ppo", run / "ppo" / "adapter")
    prompts = [prompt_ids(adapters.base, "alpaca", probe) for probe in PROBES[:5]]
    greedy = Sampling(temperature=0.0, max_new_tokens=24, batch_size=1)
    completions = sample(adapters, "ppo", prompts, list("abcde"), sampling=greedy, seed=0)
    assert exported == [list(completion.ids) for (completion,) in completions]
    assert not list((tmp_path / "out").glob("*.bin"))


def test_adapter_with_plain_peft(flavour, tmp_path):
    base, run = flavour
    parity = export(run, tmp_path / "out", "--to", "adapter", "--policy", "sft")
    assert parity["checks"]["peft"]["passed"]
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base) and config["r"] == 4


def test_of_several_heads_their_mean_is_exported(plain, tmp_path, capsys):
    """The files are compared with the mean of the heads; a line says what the run's score lacks."""
    from alpaca_rlhf.models.heads import EnsembleHead

    run = tmp_path / "run"
    shutil.copytree(plain[1], run)
    head = EnsembleHead(128, (1, 2, 3), pessimism=2.0)
    head.normalise(head.members(torch.randn(20, 128, generator=torch.Generator().manual_seed(0))))
    head.save(run / "reward" / "adapter")
    assert export(run, tmp_path / "out", "--to", "reward")["passed"]
    line = "reward: exported is the mean of its 3 heads, one linear head, 2 times their deviation"
    assert line in " ".join(capsys.readouterr().out.split())
    (name,) = (tmp_path / "out").glob("*.safetensors")
    weight = load_file(name)["score.weight"][0]
    each = head.gain[:, None] * head.weight.detach()
    assert torch.allclose(weight, sum(each) / 3, atol=1e-6)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["score_bias"] == pytest.approx(float(sum(head.bias)) / 3, abs=1e-6)


def test_reward_model_pools_the_token_that_ours_reads(flavour, tmp_path):
    """Also where a completion was cut and rows of one batch are padded."""
    _, run = flavour
    check = export(run, tmp_path / "out", "--to", "reward")["checks"]["transformers"]
    assert check["passed"] and check["scores"] >= 14
    spread = max(check["trained"]) - min(check["trained"])
    assert check["largest_difference"] < 1e-3 < 0.1 < spread
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["score_bias"] == pytest.approx(-0.8)


@pytest.mark.parametrize("dtype", ["float32", "float16", "q8_0"])
def test_gguf_through_transformers_own_reader(flavour, tmp_path, dtype):
    _, run = flavour
    parity = export(run, tmp_path / "out", "--to", "gguf", "--policy", "sft", "--dtype", dtype)
    check = parity["checks"]["transformers"]
    assert check["passed"]
    if dtype == "float32":
        assert check["same_greedy"] + check["ties"] == check["prompts"] >= 5
        assert abs(check["perplexity_change"]) < 1e-4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bit_says_what_it_costs(plain, tmp_path, dtype):
    _, run = plain
    parity = export(run, tmp_path / "out", "--dtype", dtype)
    check = parity["checks"]["transformers"]
    assert parity["passed"] and 0 < abs(check["perplexity_change"]) < 0.05
    from safetensors import safe_open

    with safe_open(str(tmp_path / "out" / "model.safetensors"), framework="pt") as file:
        assert str(file.get_tensor("model.norm.weight").dtype) == f"torch.{dtype}"


def test_a_float32_export_is_the_weight_and_its_product(plain, tmp_path):
    """One matrix by hand: dequantised NF4 + alpha / r * B A; nothing of the original weights."""
    from bitsandbytes.functional import dequantize_4bit

    from alpaca_rlhf.models.base import load_base

    base, run = plain
    export(run, tmp_path / "out", "--policy", "sft", "--dtype", "float32")
    name = "model.layers.1.mlp.down_proj"
    exported = load_file(tmp_path / "out" / "model.safetensors")[f"{name}.weight"]
    lora = load_file(run / "sft" / "adapter" / "adapter_model.safetensors")
    a, b = (lora[f"base_model.model.{name}.lora_{matrix}.weight"] for matrix in "AB")
    weight = load_base(str(base)).model.get_submodule(name).weight
    weight.quant_state.dtype = torch.float32
    dequantised = dequantize_4bit(weight.data, weight.quant_state)
    assert torch.allclose(exported, dequantised + 2 * b @ a, atol=1e-6)
    original = load_file(base / "model.safetensors")[f"{name}.weight"]
    assert (exported - 2 * b @ a - original).abs().max() > 1e-2


def test_large_models_are_sharded(plain, tmp_path, monkeypatch):
    from alpaca_rlhf.exporting import shards

    _, run = plain
    limit = 300_000
    monkeypatch.setattr(shards.write_shards, "__kwdefaults__", {"shard": limit})
    parity = export(run, tmp_path / "out", "--dtype", "float32")
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert parity["passed"] and len(files) > 3
    largest = 400 * 128 * 4
    assert all(file.stat().st_size < limit + largest for file in files)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {file.name for file in files}
    assert "lm_head.weight" in index["weight_map"]


@pytest.fixture
def little_memory(monkeypatch):
    """Lets memory have so many free bytes."""
    from alpaca_rlhf.exporting import placing

    def have(size):
        monkeypatch.setattr(placing, "free_bytes", lambda device: size)

    return have


@pytest.mark.parametrize("to", ["merged", "reward"])
def test_a_model_larger_than_memory_is_compared_from_the_disk(plain, tmp_path, little_memory, to):
    from transformers import PreTrainedModel

    _, run = plain
    in_memory = export(run, tmp_path / "whole", "--to", to, "--dtype", "float32")
    little_memory(500_000)
    device_maps, real = [], PreTrainedModel.eval

    def spy(model):
        device_maps.append(getattr(model, "hf_device_map", {}))
        return real(model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PreTrainedModel, "eval", spy)
        from_disk = export(run, tmp_path / "out", "--to", to, "--dtype", "float32")
    assert "disk" in {device for device_map in device_maps for device in device_map.values()}
    assert from_disk["checks"] == in_memory["checks"] and from_disk["passed"]
    assert not (tmp_path / "out" / "offload").exists()


def test_a_gguf_file_is_read_in_sixteen_bit_where_memory_asks_for_it(
    plain, tmp_path, little_memory, capsys
):
    """And where even that is too much, the file stays and says that it was not compared."""
    base, run = plain
    weights = sum(tensor.numel() for tensor in load_file(base / "model.safetensors").values())
    little_memory(weights * 3)
    parity = export(run, tmp_path / "half", "--to", "gguf", "--policy", "sft", "--dtype", "float32")
    check = parity["checks"]["transformers"]
    assert parity["passed"] and 0 < abs(check["perplexity_change"]) < 0.05
    assert check["asked"].startswith("agreement")
    capsys.readouterr()
    little_memory(weights)
    parity = export(run, tmp_path / "none", "--to", "gguf", "--policy", "sft")
    assert parity["checks"]["transformers"] == {"passed": True, "compared": False}
    assert "--     transformers: NOT COMPARED" in capsys.readouterr().out
    assert "NOT COMPARED" in (tmp_path / "none" / "README.md").read_text()


def test_an_export_that_does_something_else_fails(plain, tmp_path, monkeypatch, capsys):
    """A merge that forgets the scaling: exit code 1, a line that says so, a mark in the folder."""
    from alpaca_rlhf.exporting import export_model as exporting
    from alpaca_rlhf.models import merging

    def unscaled(base, adapter):
        for weight in merging.merged(base, adapter):
            make = weight.make
            yield replace(weight, make=lambda make=make: make() * 1.2)

    monkeypatch.setattr(exporting, "merged", unscaled)
    _, run = plain
    parity = export(run, tmp_path / "out", "--dtype", "float32")
    assert not parity["passed"] and not parity["checks"]["transformers"]["passed"]
    assert "does not do what was trained (transformers)" in capsys.readouterr().err
    assert "transformers" in (tmp_path / "out" / "PARITY_FAILED").read_text()
    assert "FAILED its check" in (tmp_path / "out" / "README.md").read_text()


def test_a_score_that_is_read_elsewhere_fails(plain, tmp_path, monkeypatch):
    """If a completion could end in the padding token, the classifier would read another one."""
    from alpaca_rlhf.exporting import reward_model

    def common(tokenizer, stop_ids):
        return tokenizer("Yes.", add_special_tokens=False)["input_ids"][-1]

    monkeypatch.setattr(reward_model, "spare_pad", common)
    _, run = plain
    assert not export(run, tmp_path / "out", "--to", "reward")["passed"]


@pytest.mark.parametrize("to", ["merged", "reward"])
def test_an_export_that_overflows_fails(plain, tmp_path, monkeypatch, to):
    """NaN is no number that JSON has: it is a failed check all the same, and the folder stays."""
    from alpaca_rlhf.exporting import export_model as exporting
    from alpaca_rlhf.models.merging import merged

    def overflown(base, adapter):
        for weight in merged(base, adapter):
            make = weight.make
            yield replace(weight, make=lambda make=make: make() * 1e30)

    place = exporting if to == "merged" else exporting.reward_model
    monkeypatch.setattr(place, "merged", overflown)
    _, run = plain
    parity = export(run, tmp_path / "out", "--to", to, "--dtype", "float16")
    assert not parity["passed"] and (tmp_path / "out" / "PARITY_FAILED").is_file()


def test_rotary_halves_become_neighbours(tmp_path):
    """Two heads of four rows each, by hand; keys of one head."""
    from types import SimpleNamespace

    from alpaca_rlhf.exporting.gguf_file import _in_order, _rope_factors
    from alpaca_rlhf.models.merging import Weight

    rows = torch.arange(8.0)[:, None]

    def in_order(model_type):
        config = SimpleNamespace(
            model_type=model_type, num_attention_heads=2, num_key_value_heads=1
        )
        weights = {
            name: Weight(f"a.{name}.weight", (8, 1), lambda: rows)
            for name in ("q_proj", "k_proj", "v_proj")
        }
        return {name: _in_order(weight, config)[:, 0].tolist() for name, weight in weights.items()}

    assert set(map(tuple, in_order("qwen3").values())) == {tuple(range(8))}
    turned = in_order("llama")
    assert turned["q_proj"] == [0, 2, 1, 3, 4, 6, 5, 7]
    assert turned["k_proj"] == [0, 4, 1, 5, 2, 6, 3, 7]
    assert turned["v_proj"] == [0, 1, 2, 3, 4, 5, 6, 7]
    llama31 = SimpleNamespace(
        head_dim=128,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    )
    factors = _rope_factors(llama31)
    assert factors.shape == (64,) and factors[0] == 1 and factors[-1] == 8
    assert factors[28] == 1 and factors[36] == 8 and 1 < factors[30] < factors[33] < 8


def test_gguf_holds_vocabulary_template_and_ends(plain, tmp_path):
    from gguf import GGUFReader

    base, run = plain
    export(run, tmp_path / "out", "--to", "gguf", "--dtype", "q8_0")
    fields = GGUFReader(tmp_path / "out" / "model-q8_0.gguf").fields
    assert fields["tokenizer.ggml.model"].contents() == "llama"
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    scores = fields["tokenizer.ggml.scores"].contents()
    assert tokens[:4] == ["<pad>", "<s>", "</s>", "<0x00>"] and types[:4] == [3, 3, 3, 6]
    merges = json.loads((base / "tokenizer.json").read_text())["model"]["merges"]
    first, last = ("".join(merges[i]) for i in (0, -1))
    assert scores[tokens.index(first)] == 0 > scores[tokens.index(last)]
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 2
    assert fields["tokenizer.ggml.add_bos_token"].contents() is True
    assert fields["tokenizer.ggml.add_space_prefix"].contents() is False
    assert "### Response:" in fields["tokenizer.chat_template"].contents()
    kinds = {
        t.name: t.tensor_type.name for t in GGUFReader(tmp_path / "out" / "model-q8_0.gguf").tensors
    }
    assert kinds["blk.0.attn_q.weight"] == "Q8_0" and kinds["blk.0.attn_norm.weight"] == "F32"
    assert "output.weight" in kinds


@pytest.fixture(scope="module")
def chat(tmp_path_factory) -> tuple[Path, Path]:
    """A base with a chat template that shows no bos and goes on after the end; its run."""
    from transformers import AutoTokenizer

    from tests.test_export_templates import CHATML

    top = tmp_path_factory.mktemp("chat")
    little_llama(top / "base", *FLAVOURS["llama3"])
    tokenizer = AutoTokenizer.from_pretrained(top / "base")
    tokenizer.chat_template = CHATML.replace("<|im_end|>", "<|end|>")
    tokenizer.unk_token = "<|end|>"  # one token is everything, as in SmolLM2
    tokenizer.save_pretrained(top / "base")
    return top / "base", little_run(top / "run", top / "base", template="chat")


def test_bos_is_added_where_the_prompts_of_training_have_it(chat, plain, tmp_path):
    """llama.cpp and Ollama put it there themselves, or not."""
    from gguf import GGUFReader

    _, run = chat
    export(run, tmp_path / "gguf", "--to", "gguf")
    fields = GGUFReader(tmp_path / "gguf" / "model-f16.gguf").fields
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False
    assert fields["tokenizer.ggml.token_type"].contents()[:2] == [3, 3], "bos and eos are control"
    export(run, tmp_path / "chat")
    export(plain[1], tmp_path / "plain")
    for name, puts in (("chat", False), ("plain", True)):
        config = json.loads((tmp_path / name / "tokenizer_config.json").read_text())
        assert config["add_bos_token"] is puts


def run_with_template(top: Path, name: str) -> tuple[Path, Path]:
    """A base with a chat template of `published_templates.OURS`, and a run on it."""
    from tests.published_templates import OURS, tokenizer_with, write_checkpoint

    write_checkpoint(top / "base", tokenizer_with(OURS[name]))
    return top / "base", little_run(top / "run", top / "base", template="chat")


@pytest.fixture(scope="module")
def ends_otherwise(tmp_path_factory) -> tuple[Path, Path]:
    """ChatML on a base whose own eos is another token than the end of a turn."""
    return run_with_template(tmp_path_factory.mktemp("ends"), "like_smollm2")


@pytest.fixture(scope="module")
def with_gap(tmp_path_factory) -> tuple[Path, Path]:
    """Llama-2's template, which puts a blank before a reply."""
    return run_with_template(tmp_path_factory.mktemp("gap"), "like_llama2")


@pytest.mark.parametrize("kind", ["chat", "plain", "ends_otherwise", "with_gap"])
def test_the_cards_lines_give_the_score_of_training(kind, request, tmp_path, monkeypatch):
    from alpaca_rlhf.core.records import Instruction
    from alpaca_rlhf.models.base import load_base
    from alpaca_rlhf.models.batches import example

    base, run = request.getfixturevalue(kind)
    template = "alpaca" if kind == "plain" else "chat"
    trained = example(load_base(str(base)), template, Instruction("Hi"), "Hello.")
    export(run, tmp_path / "out", "--to", "reward")
    lines = (tmp_path / "out" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict = {}
    monkeypatch.chdir(tmp_path)
    exec(lines, names)
    if "ids" in names:
        assert names["ids"][0].tolist() == [*trained.prompt, *trained.completion]
    ids = torch.tensor([[*trained.prompt, *trained.completion]])
    expected = names["model"](ids).logits[0, 0] + names["model"].config.score_bias
    assert names["score"] == expected


def test_a_gguf_file_is_compared_without_the_base_in_memory(plain, tmp_path, monkeypatch):
    import gc

    from bitsandbytes.nn import Linear4bit

    from alpaca_rlhf.exporting import placing

    def linears():
        gc.collect()
        return sum(type(instance) is Linear4bit for instance in gc.get_objects())

    before = linears()  # of bases that other tests share, or that bitsandbytes still holds

    def whole(*arguments):
        assert linears() <= before

    monkeypatch.setattr(placing, "whole", whole)
    export(plain[1], tmp_path / "out", "--to", "gguf")


def test_the_sentencepiece_model_goes_along(plain, tmp_path, capsys):
    """Without it Ollama and llama.cpp's converter would cut text into other tokens."""
    base, run = plain
    parity = export(run, tmp_path / "without")
    assert parity["checks"]["ollama"] == {"passed": True, "compared": False}
    assert "there is no Modelfile" in (tmp_path / "without" / "README.md").read_text()
    assert not (tmp_path / "without" / "Modelfile").exists()
    for name in ("base", "run"):
        shutil.copytree({"base": base, "run": run}[name], tmp_path / name)
    config = (run / "config.yaml").read_text()
    (tmp_path / "run" / "config.yaml").write_text(config.replace(str(base), str(tmp_path / "base")))
    (tmp_path / "base" / "tokenizer.model").write_bytes(b"pieces")
    parity = export(tmp_path / "run", tmp_path / "with")
    assert (tmp_path / "with" / "tokenizer.model").read_bytes() == b"pieces"
    assert (tmp_path / "with" / "Modelfile").is_file() and parity["checks"]["template"]["passed"]
    (tmp_path / "cpp").mkdir()
    (tmp_path / "cpp" / "convert_hf_to_gguf.py").write_text(CONVERTER)
    arguments = ["--run", str(run), "--to", "gguf", "--out", str(tmp_path / "out")]
    line = refused(capsys, *arguments, "--llama-cpp", str(tmp_path / "cpp"))
    assert "tokenizer.model" in line and str(base) in line and not (tmp_path / "out").exists()


def test_a_run_in_this_folder_has_a_name(plain, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(plain[1])
    export(Path(), tmp_path / "out", "--to", "gguf")
    out = capsys.readouterr().out
    assert "ollama create run -f Modelfile" in out
    assert "ok     ollama: the Modelfile's TEMPLATE gives the text of the chat template" in out


def test_terminal_and_card_say_why_a_modelfile_has_no_template(
    plain, tmp_path, monkeypatch, capsys
):
    from alpaca_rlhf.exporting import ollama

    def refuse(tokenizer):
        raise ollama.InexpressibleError("it counts the turns")

    monkeypatch.setattr(ollama, "chat_pieces", refuse)
    parity = export(plain[1], tmp_path / "out", "--to", "gguf")
    assert parity["checks"]["ollama"] == {"passed": True, "compared": False, "exact": False}
    texts = [capsys.readouterr().out]
    texts += [(tmp_path / "out" / name).read_text() for name in ("README.md", "Modelfile")]
    assert all("it counts the turns" in text for text in texts)
    assert 'TEMPLATE "' not in texts[-1]


def test_a_padding_token_without_an_embedding(tmp_path):
    """`[PAD]` added to the words alone, as many fine-tunes have it, and no architecture named."""
    from gguf import GGUFReader
    from transformers import AutoTokenizer, GenerationConfig

    from alpaca_rlhf.models.base import load_base

    base = tmp_path / "base"
    little_llama(base, *FLAVOURS["llama3"])
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(base)
    base_config = json.loads((base / "config.json").read_text())
    del base_config["architectures"]
    (base / "config.json").write_text(json.dumps(base_config))
    rows = base_config["vocab_size"]
    assert tokenizer.pad_token_id == rows and load_base(str(base)).pad_id < rows
    run = little_run(tmp_path / "run", base)
    assert export(run, tmp_path / "merged")["passed"]
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").pad_token_id < rows
    assert GenerationConfig.from_pretrained(tmp_path / "merged").pad_token_id < rows
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert export(run, tmp_path / "reward", "--to", "reward")["passed"]
    config = json.loads((tmp_path / "reward" / "config.json").read_text())
    assert config["pad_token_id"] == rows == config["vocab_size"] - 1
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert export(run, tmp_path / "gguf", "--to", "gguf")["passed"]
    fields = GGUFReader(tmp_path / "gguf" / "model-f16.gguf").fields
    assert len(fields["tokenizer.ggml.tokens"].contents()) == rows
    assert "tokenizer.ggml.padding_token_id" not in fields


CONVERTER = """
import sys
from pathlib import Path
folder, _, out, _, kind = sys.argv[1:]
assert (Path(folder) / "model.safetensors").is_file() and kind == "f16", sys.argv
sys.exit("no such model") if "fails" in __file__ else Path(out).write_bytes(b"GGUF")
"""


def test_llama_cpps_converter_where_the_user_has_it(chat, tmp_path, monkeypatch, capsys):
    """It is given a merged model, which goes away again; what it says is told."""
    from alpaca_rlhf.exporting import export_model as exporting

    _, run = chat
    for name in ("works", "fails"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "convert_hf_to_gguf.py").write_text(CONVERTER)
    arguments = ["--run", str(run), "--to", "gguf", "--out", str(tmp_path / "out")]
    line = refused(capsys, *arguments, "--llama-cpp", str(tmp_path / "fails"))
    assert "--llama-cpp" in line and "no such model" in line and not (tmp_path / "out").exists()

    class Stop(Exception):
        pass

    def seen(folder, **options):
        assert sorted(p.name for p in Path(folder).iterdir()) == ["Modelfile", "model-f16.gguf"]
        raise Stop

    monkeypatch.setattr(exporting.AutoConfig, "from_pretrained", _after_first(seen))
    with pytest.raises(Stop):
        cli.main(["export", *arguments, "--llama-cpp", str(tmp_path / "works")])
    assert "--llama-cpp" in refused(capsys, *arguments, "--llama-cpp", str(tmp_path))


def _after_first(reader):
    """`AutoConfig.from_pretrained`, until a GGUF file is asked for."""
    from transformers import AutoConfig

    real = AutoConfig.from_pretrained
    return lambda name, **options: reader(name) if "gguf_file" in options else real(name, **options)


def test_what_the_card_says(plain, tmp_path):
    base, run = plain
    export(run, tmp_path / "out", "--policy", "ppo")
    text = (tmp_path / "out" / "README.md").read_text()
    assert f"base_model: {base}" in text and "r: 4" in text and "transformers: passed" in text
    lines = text.split("```python\n")[1].split("```")[0].strip().splitlines()
    assert len(lines) == 4
    from alpaca_rlhf.exporting.licences import duties

    three = " ".join(duties("meta-llama/Llama-3.1-8B"))
    assert "Llama 3.1 Community License" in three and '"Built with Llama"' in three
    assert '"Built with Meta Llama 3"' in " ".join(duties("meta-llama/Meta-Llama-3-8B"))
    assert "another language model" in " ".join(duties("meta-llama/Llama-2-7b-hf"))
    assert "Meta" not in " ".join(duties("embedded") + duties("org/other-7b"))


def figures_of_card(target: str, policy: str, report: dict) -> str:
    from alpaca_rlhf.exporting.model_card import WrittenExport, model_card
    from alpaca_rlhf.exporting.request import ExportRequest

    folder = Path("somewhere")
    request = ExportRequest(Loop(), folder, policy, folder, target, "float32", folder)
    card = model_card(request, report, {}, WrittenExport({}, ()))
    return card.partition("## Figures")[2].partition("## Licence")[0]


def rule(name: str, accuracy: float, lead: float) -> dict:
    return {"is": name, "accuracy": accuracy, "lead": lead, "lead_ci95": [lead - 0.02, lead + 0.02]}


def test_the_card_of_a_reward_model_shows_rules_that_learn_nothing():
    model = {
        **{"round": 1, "pairs": 300, "held_out_accuracy": 0.82, "ci95": [0.78, 0.86]},
        **{"held_out_pairs": 211, "held_out_prompts": 60, "shuffled_label_accuracy": None},
        "baselines": [rule("the longer", 0.817, 0.003), rule("the shorter", 0.183, 0.637)],
    }
    text = figures_of_card("reward", "reward", {"reward_models": [model]})
    assert "| its 95% interval | 0.780 to 0.860 |" in text
    assert "accuracy of “the longer”, a rule that learns nothing | 0.817 |" in text
    assert "211 pairs of 60 prompts." in text and "it does not beat the best of them" in text
    few = model | {"held_out_pairs": 3, "held_out_prompts": 1}
    text = figures_of_card("reward", "reward", {"reward_models": [few]})
    assert "0.780" not in text and "3 pairs of 1 prompts, too few for an interval." in text


def test_the_card_of_a_reward_model_names_its_heads():
    model = {
        **{"round": 1, "pairs": 300, "held_out_accuracy": 0.82, "ci95": [0.78, 0.86]},
        **{"held_out_pairs": 211, "held_out_prompts": 60},
        **{"heads": 4, "pessimism": 1.0, "mean_accuracy": 0.831, "disagreement": 0.25},
    }
    text = figures_of_card("reward", "reward", {"reward_models": [model]})
    assert "the mean of its 4 heads, which this file gives | 0.831 |" in text
    assert "In its run it had 4 heads, which differ by 0.25" in text


def test_the_card_of_a_policy_says_how_little_its_judge_has_learned_from():
    judge = {
        **{"trained_pairs": 143, "pairs": 1612, "prompts": 570, "accuracy": 0.7},
        **{"ci95": [0.67, 0.73], "baselines": [rule("the longer", 0.7, 0.0)]},
    }
    report = {
        "policies": {"ppo": {"gold_score": 0.6, "paired_gain_ci95": [0.02, 0.18]}},
        "judge_accuracy": judge,
        "prompts": {"eval": 300, "eval_clusters": 300},
    }
    text = figures_of_card("merged", "ppo", report)
    assert "trained on 143 held-out pairs: accuracy 0.700 [0.670, 0.730] on 1,612 others" in text
    assert "the longer 0.700: it does not beat the best of them" in text
    assert "| its 95% interval | 0.020 to 0.180 |" in text
    report["prompts"]["eval_clusters"] = 5
    text = figures_of_card("merged", "ppo", report | {"judge_accuracy": judge | {"pairs": 12}})
    assert "0.020 to 0.180" not in text and "[0.670" not in text and "12 pairs of 570" in text


def test_licence_files_travel_with_the_model(plain, tmp_path):
    base, run = plain
    (base / "LICENSE.txt").write_text("the terms")
    export(run, tmp_path / "out", "--to", "reward")
    assert (tmp_path / "out" / "LICENSE.txt").read_text() == "the terms"


def test_wrong_inputs_get_one_line(plain, tmp_path, capsys, monkeypatch):
    _, run = plain
    at, out = str(run), str(tmp_path / "out")
    assert "sft, ppo" in refused(capsys, "--run", at, "--policy", "best-of-k", "--out", out)
    line = refused(capsys, "--run", at, "--policy", "reward.2", "--to", "reward", "--out", out)
    assert "there are reward" in line
    assert "holds no run" in refused(capsys, "--run", str(tmp_path), "--out", out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    line = refused(capsys, "--run", at, "--out", str(tmp_path / "full"))
    assert "--out" in line and "something is there" in line
    assert "--dtype q8_0" in refused(capsys, "--run", at, "--dtype", "q8_0", "--out", out)
    assert "--dtype" in refused(capsys, "--run", at, "--dtype", "nf4", "--out", out)
    usage = shutil.disk_usage(tmp_path)._replace(free=2**20)
    with monkeypatch.context() as patch:
        patch.setattr("alpaca_rlhf.exporting.request.shutil.disk_usage", lambda path: usage)
        line = refused(capsys, "--run", at, "--out", out)
        assert "--out" in line and "GiB left" in line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full"], "nothing is left behind"


def test_another_base_and_a_quantised_one_are_refused(plain, tmp_path, capsys):
    base, run = plain
    other_base = tmp_path / "other"
    little_llama(other_base, *FLAVOURS["gqa"], seed=9)
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    config = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(config.replace(str(base), str(other_base)))
    out = str(tmp_path / "out")
    for kind in ("merged", "adapter", "reward"):
        line = refused(capsys, "--run", str(moved), "--out", out, "--to", kind)
        assert "trained on" in line and "with base" in line
    config_of_base = json.loads((other_base / "config.json").read_text())
    config_of_base["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (other_base / "config.json").write_text(json.dumps(config_of_base))
    line = refused(capsys, "--run", str(moved), "--out", out)
    assert "is quantised in FP4 (bitsandbytes)" in line and "full-precision" in line
    assert not (tmp_path / "out").exists()


def test_a_real_little_llama(shared, tmp_path):
    """Trained by somebody else: tied, GQA, a tokenizer that puts a blank before text."""
    base = shared / "models" / "stories260k"
    run = little_run(tmp_path / "run", base, template="brief")
    for to in ("merged", "gguf"):
        parity = export(run, tmp_path / to, "--to", to, "--policy", "sft", "--dtype", "float32")
        assert parity["checks"]["transformers"]["passed"]
    template = json.loads((tmp_path / "merged" / "parity.json").read_text())["checks"]["template"]
    assert template["lone_same"] == template["lone"] == 5
    assert template["conversations_same"] == template["conversations"] == 3
    assert export(run, tmp_path / "reward", "--to", "reward")["passed"]
