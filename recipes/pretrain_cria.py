"""Make the embedded base: train a tokenizer and a baby LLaMA on the small world, write them to a folder.

    python recipes/pretrain_cria.py --out data/cria

Takes about a quarter of an hour on two CPU cores.
"""

import argparse
import itertools
import json
import time
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from alpaca_rlhf.smallworld import corpus
from alpaca_rlhf.training.pretrain import Pretrain, pretrain, token_stream, train_tokenizer

CORPUS_SEED, HELD_OUT_SEED = 1, 2


def held_out_loss(
    model: LlamaForCausalLM, stream: "itertools.chain[list[int]]", rows: int = 64
) -> float:
    """Mean loss a token on documents of another corpus seed."""
    ids = torch.tensor(
        list(itertools.islice(itertools.chain.from_iterable(stream), rows * 257))
    ).view(rows, 257)
    with torch.no_grad():
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits.float()
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("data/cria"))
    parser.add_argument("--tokens", type=int, default=Pretrain.tokens)
    args = parser.parse_args()
    settings = Pretrain(tokens=args.tokens)
    started = time.perf_counter()
    tokenizer = train_tokenizer(
        itertools.islice(corpus.tokenizer_text(CORPUS_SEED, 30_000), 40_000), 2048
    )
    torch.manual_seed(settings.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=192, intermediate_size=512, num_hidden_layers=6,
        num_attention_heads=6, num_key_value_heads=6, max_position_embeddings=512, tie_word_embeddings=True,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    history: list[dict[str, float]] = []

    def log(row: dict[str, float]) -> None:
        history.append(row)
        print(json.dumps(row), flush=True)

    stream = token_stream(tokenizer, corpus.documents(CORPUS_SEED))
    pretrain(model, stream, settings, log)
    model.eval()
    loss = held_out_loss(model, token_stream(tokenizer, corpus.documents(HELD_OUT_SEED)))
    args.out.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(
        do_sample=True, pad_token_id=0, bos_token_id=1, eos_token_id=2
    )
    model.to(torch.bfloat16).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    minutes = (time.perf_counter() - started) / 60
    size = sum(p.numel() for p in model.parameters())
    (args.out / "pretraining.json").write_text(
        json.dumps(
            {
                "parameters": size,
                "minutes": round(minutes, 1),
                "held_out_loss": loss,
                "history": history,
            }
        )
    )
    print(
        f"{size:,} parameters, held-out loss {loss:.3f}, {minutes:.1f} minutes, written to {args.out}"
    )


if __name__ == "__main__":
    main()
