"""Make the embedded base: a tokenizer and a baby LLaMA trained on the text of the small world.

    python recipes/pretrain_cria.py --out data/cria

Takes a little more than half an hour on two CPU cores.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from alpaca_rlhf.smallworld import corpus
from alpaca_rlhf.training.pretrain import Pretrain, pretrain, token_stream, train_tokenizer

TOKENIZER_SEED, HELD_OUT_SEED = 1, 2
# Two cycles, each with a learning rate that rises and falls: first more plain documents, to learn
# the facts; then more worksheets and questions, to learn what to do with them.
CYCLES = (
    {"seed": 1, "tokens": 5_000_000, "worksheets": 0.25, "questions": 0.20},
    {"seed": 3, "tokens": 6_000_000, "worksheets": 0.45, "questions": 0.25},
)


def new_model(vocabulary: int) -> LlamaForCausalLM:
    """Three million random weights; every layer's size is a multiple of 64, as NF4 needs."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


def held_out_loss(model: LlamaForCausalLM, stream: Iterator[list[int]], rows: int = 64) -> float:
    """Mean loss a token, in nats, on documents that no cycle has seen."""
    flat = itertools.islice(itertools.chain.from_iterable(stream), rows * 257)
    ids = torch.tensor(list(flat)).view(rows, 257)
    with torch.no_grad():
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits.float()
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the tokens, to try")
    args = parser.parse_args()
    started = time.perf_counter()
    tokenizer = train_tokenizer(
        itertools.islice(corpus.tokenizer_text(TOKENIZER_SEED, 30_000), 40_000), 2048
    )
    torch.manual_seed(Pretrain.seed)
    model = new_model(len(tokenizer))
    weights: torch.nn.Module = model
    history: list[dict[str, float]] = []

    def log(row: dict[str, float]) -> None:
        history.append(row)
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()

    for cycle in CYCLES:
        weights.to(torch.bfloat16).float()  # a cycle begins with weights as they are saved
        texts = corpus.documents(
            int(cycle["seed"]), worksheets=cycle["worksheets"], questions=cycle["questions"]
        )
        settings = Pretrain(tokens=int(cycle["tokens"] * args.scale))
        pretrain(model, token_stream(tokenizer, texts), settings, log)
    weights.eval().to(torch.bfloat16).float()
    loss = held_out_loss(model, token_stream(tokenizer, corpus.documents(HELD_OUT_SEED)))
    model.generation_config = GenerationConfig.from_dict(
        {"do_sample": True, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    )
    args.out.mkdir(parents=True, exist_ok=True)
    weights.to(torch.bfloat16)
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "minutes": round((time.perf_counter() - started) / 60, 1),
        "held_out_loss": loss,
        "history": history,
    }
    (args.out / "pretraining.json").write_text(json.dumps(facts) + "\n")
    sys.stdout.write(f"held-out loss {loss:.3f} nats a token; written to {args.out}\n")


if __name__ == "__main__":
    main()
