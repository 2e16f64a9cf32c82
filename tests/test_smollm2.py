"""The whole loop on a real LLaMA, at the smallest size: skipped where it was not fetched."""

import json
import os

import pytest
import torch

from alpaca_rlhf.cli.main import main
from alpaca_rlhf.core.bases import smollm2_folder
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.models.base import load_base
from tests import published_templates
from tests.model_app import prompts

pytestmark = pytest.mark.skipif(
    not smollm2_folder().is_dir(),
    reason="needs the base smollm2, which is not on this machine: alpaca-rlhf base get smollm2",
)

SETTINGS = (
    "--base smollm2 --template chat --lora.r 4 --lora.alpha 8 "
    "--sft.batch-size 4 --sft.epochs 10 --sft.lr 3e-3 --sft.max-length 128 --sft.held-out 0 "
    "--sampling.max-new-tokens 12 --rank.prompts 4 --rank.k 2 "
    "--reward.batch-size 4 --reward.max-length 128 --reward.held-out 0.4 --reward.gate 0.01 "
    "--ppo.updates 2 --ppo.batch-size 4 --ppo.minibatch-size 4 --ppo.epochs 1 "
    "--ppo.value.warmup 1 --ppo.max-new-tokens 12 --ppo.lr 1e-3 "
    "--best-of-k.k 2 --best-of-k.prompts 4 --evaluate.prompts 4 --evaluate.bootstrap 50 "
    "--evaluate.rerank False"
).split()
QUESTIONS = (
    "Name the capital of France.",
    "Why does bread rise in a warm oven?",
    "Describe a lighthouse in one sentence.",
)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def base():
    """The base as a run loads it."""
    return load_base("smollm2")


def test_its_special_tokens_are_what_training_needs(base):
    tokens = base.tokenizer.convert_ids_to_tokens
    assert tokens(base.eos_id) == "<|im_end|>" and base.eos_id in base.stop_ids
    assert tokens(base.pad_id) == "<|endoftext|>", "padding is not what ends an answer"
    assert base.tokenizer.bos_token == "<|im_start|>" and base.context == 8192
    numbers = base.tokenizer("  1984", add_special_tokens=False)["input_ids"]
    assert tokens(numbers) == ["ĠĠ", "1", "9", "8", "4"], "as the published tokenizer cuts it"
    assert base.parameters == 134_515_008


def test_its_template_is_rendered_once(base):
    from alpaca_rlhf.models.batches import prompt_ids

    text = base.tokenizer.decode(prompt_ids(base, "chat", Instruction("Hi.")))
    assert text.startswith("<|im_start|>system\n") and text.count("<|im_start|>") == 3
    assert text.endswith("<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n")
    own = base.tokenizer.decode(prompt_ids(base, "chat", Instruction("Hi.", system="Be brief.")))
    assert own.count("<|im_start|>system\n") == 1 and "Be brief." in own


def test_its_template_is_among_the_published_ones_that_are_tested(monkeypatch):
    monkeypatch.delenv("ALPACA_RLHF_SMOLLM2", raising=False)
    assert "named SmolLM" in published_templates.published.__wrapped__("smollm2")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of every stage that needs no person."""
    top = tmp_path_factory.mktemp("smollm2")
    texts = [row.instruction for row in prompts(26)]
    rows = [{"instruction": text, "output": "Yes."} for text in texts[:4]]
    pairs = [{"prompt": t, "chosen": "A fine day.", "rejected": "No."} for t in texts[4:10]]
    new = [{"instruction": text} for text in texts[10:]]
    words = ["loop", *SETTINGS, "--out", str(top / "run"), "--inputs.judge", "human"]
    words += ["--inputs.data", write(top / "rows.jsonl", rows)]
    words += ["--inputs.prompts", write(top / "prompts.jsonl", new)]
    words += ["--inputs.rankings", write(top / "pairs.jsonl", pairs)]
    assert main(words) == 0
    return top / "run"


def test_every_stage_runs_on_it(run):
    report = json.loads((run / "report.json").read_text())
    assert report["base"]["name"] == "smollm2" and report["base"]["parameters"] == 134_515_008
    assert {"base", "sft", "best_of_k", "ppo"} <= set(report["policies"])
    stages = {stage["name"]: stage for stage in report["stages"]}
    assert {"sft", "reward", "ppo", "best_of_k", "evaluate"} <= set(stages)
    assert max(stage["peak_memory_gib"] for stage in stages.values()) < 4
    assert json.loads((run / "ledger.json").read_text())["ppo"]["facts"]["kl_at_start"] == 0


@pytest.fixture(scope="module")
def exported(run):
    """The policy as a merged checkpoint and as a GGUF file, in 32 bits."""
    folders = {}
    for kind in ("merged", "gguf"):
        folders[kind] = run / "export" / kind
        words = ["export", "--run", str(run), "--policy", "ppo", "--to", kind]
        assert main([*words, "--dtype", "float32", "--out", str(folders[kind])]) == 0
    return folders


def greedy(model, tokenizer, question):
    """A greedy answer of plain transformers, by the exported chat template alone."""
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=False,
    )
    with torch.no_grad():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            pad_token_id=0,
        )
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()


def test_the_exported_policy_answers_elsewhere_as_here(run, exported):
    """Plain transformers, and a GGUF file with its own tokenizer in transformers' reader."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    for folder in exported.values():
        parity = json.loads((folder / "parity.json").read_text())
        assert parity["passed"], parity
    merged = AutoModelForCausalLM.from_pretrained(exported["merged"], dtype=torch.float32)
    (file,) = exported["gguf"].glob("*.gguf")
    read = AutoModelForCausalLM.from_pretrained(
        exported["gguf"],
        gguf_file=file.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    tokenizer = AutoTokenizer.from_pretrained(exported["merged"])
    tokenizer_of_file = AutoTokenizer.from_pretrained(exported["gguf"], gguf_file=file.name)
    file_of_prompts = write(run / "asked.jsonl", [{"prompt": question} for question in QUESTIONS])
    out = run / "answers.of.ppo.jsonl"
    words = [
        "answers",
        str(run),
        "--prompts",
        file_of_prompts,
        "--policy",
        "ppo",
        "--out",
        str(out),
    ]
    assert main(words) == 0
    here = [json.loads(line)["response"] for line in out.read_text().splitlines()]
    there = [greedy(merged, tokenizer, question) for question in QUESTIONS]
    assert there == [greedy(read, tokenizer_of_file, question) for question in QUESTIONS]
    # This kit computes in 16 bits, so one answer may part where two tokens are as good.
    assert sum(a == b for a, b in zip(here, there, strict=True)) >= 2, (here, there)


def test_an_exported_gguf_is_a_base_again(run, exported, monkeypatch, tmp_path):
    """Its special tokens, template and vocabulary come back out of the file."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (file,) = exported["gguf"].glob("*.gguf")
    again = load_base(str(file))
    assert (again.eos_id, again.pad_id, again.parameters) == (2, 0, 134_515_008)
    numbers = again.tokenizer("  1984", add_special_tokens=False)["input_ids"]
    assert again.tokenizer.convert_ids_to_tokens(numbers) == ["ĠĠ", "1", "9", "8", "4"]


@pytest.mark.parametrize("policy", ["base", "ppo"])
def test_chat_answers_with_the_base_and_a_policy(run, capsys, policy):
    words = ["chat", "--run", str(run), "--policy", policy, "--temperature", "0"]
    assert main([*words, "--max-new-tokens", "8", "--prompt", QUESTIONS[0]]) == 0
    said = capsys.readouterr().out
    assert said.strip()
    if policy == "base":
        assert "Paris" in said
    assert os.environ["HF_HUB_OFFLINE"] == "1"
