"""A tiny random LLaMA with a real tokenizer, made once a session; and the shared real data, where it is present."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"

TEXTS = [
    "Below is an instruction that describes a task.\n\n### Instruction:\nName a colour.\n\n### Response:\nBlue.",
    "The lemon is yellow. The dog says woof. 12 + 3 = 15.\n### Input:\nred, green, blue\n",
] * 20


@pytest.fixture
def shared() -> Path:
    """The folder of real data and weights; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(
            f"needs the real data and weights in {SHARED.parent.name}/shared, which are not here"
        )
    return SHARED


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer LLaMA of 128 hidden units with a byte-fallback tokenizer, as a checkpoint folder."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    from alpaca_rlhf.training.pretrain import train_tokenizer

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = train_tokenizer(iter(TEXTS), 400)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # sharper than LLaMA's own initialisation, so that differences show
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    model.generation_config = GenerationConfig(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
