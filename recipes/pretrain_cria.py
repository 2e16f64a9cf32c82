"""Make the embedded base: a tokenizer and a baby LLaMA trained on the text of the small world.

    python recipes/pretrain_cria.py --out data/cria
    python recipes/pretrain_cria.py --out NEW --after OLD    only the cycles that OLD has not seen

Takes an hour on two CPU cores.
"""

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from alpaca_rlhf.smallworld import corpus

TOKENIZER_SEED, HELD_OUT_SEED = 1, 2
VOCAB_SIZE = 2048
# Three cycles, each with a learning rate that rises and falls: first more plain documents, to learn
# the facts; then more worksheets and questions, to learn what to do with them; then tasks that ask
# for the form of their answer.
CYCLES: tuple[dict[str, float], ...] = (
    {"seed": 1, "tokens": 5_000_000, "lr": 4e-3, "worksheets": 0.25, "questions": 0.20},
    {"seed": 3, "tokens": 6_000_000, "lr": 4e-3, "worksheets": 0.45, "questions": 0.25},
    {
        "seed": 4,
        "tokens": 1_500_000,
        "lr": 3e-3,
        "worksheets": 0.45,
        "questions": 0.30,
        "requests": 0.8,
    },
)
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>")
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))


@dataclass(frozen=True)
class Pretrain:
    """Hyperparameters of one cycle."""

    tokens: int = 6_000_000
    """Tokens in all."""
    batch_tokens: int = 8192
    """Tokens an optimiser step."""
    length: int = 256
    """Tokens a sequence."""
    long_length: int = 512
    """Tokens a sequence in the last part, so that the whole context is trained."""
    long_share: float = 0.15
    """Share of the tokens trained at `long_length`."""
    lr: float = 4e-3
    """Peak learning rate of the matrices (Muon, update matched to AdamW's size) and of embeddings
    and norms (AdamW)."""
    weight_decay: float = 0.05
    """Decoupled weight decay of the matrices."""
    warmup: float = 0.02
    """Share of the steps over which the rate rises; it then falls along a cosine to a twentieth."""
    seed: int = 0
    """Seed of the initial weights."""


# --- tokenizer ------------------------------------------------------------------------------------


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A LLaMA-style BPE with byte fallback: any text round-trips.

    Digits stand alone, and a newline is one token.

    Args:
        texts: Texts to learn the merges from.
        vocab_size: Size including the 3 special tokens and the 256 bytes.

    Source: the layout of meta-llama's `tokenizer.json` (BPE, byte fallback, metaspace), without its
    prefix space.
    """
    # 1. Learn the merges.
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = _pre_tokenizer()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size - len(SPECIAL_TOKENS) - len(BYTE_TOKENS),
            show_progress=False,
            min_frequency=2,
        ),
    )
    token_ids = bpe.get_vocab()
    merges = [(first, second) for first, second in json.loads(bpe.to_str())["model"]["merges"]]
    # 2. LLaMA's order of ids: special tokens, bytes, then what was learned.
    learned_tokens = sorted(token_ids, key=lambda token: token_ids[token])
    vocab = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *BYTE_TOKENS, *learned_tokens])}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, byte_fallback=True, fuse_unk=True, unk_token=None)
    )
    # 3. Text to pieces and back.
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(r" ?[A-Za-z]+| ?[0-9]| ?[^\sA-Za-z0-9]|\n| "), behavior="isolated"
            ),
            pre_tokenizers.Metaspace(prepend_scheme="never", split=False),
        ]
    )


# --- model and training ---------------------------------------------------------------------------


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


def token_stream(
    tokenizer: PreTrainedTokenizerFast, documents: Iterator[str], chunk: int = 256
) -> Iterator[list[int]]:
    """Token ids of one document after the other, each between bos and eos."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    while True:
        texts = [text for text, _ in zip(documents, range(chunk), strict=False)]
        for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
            yield [bos, *ids, eos]


def pretrain(
    model: LlamaForCausalLM,
    stream: Iterator[list[int]],
    settings: Pretrain,
    log: Callable[[dict[str, float]], None],
) -> None:
    """Train `model` in place (fp32 weights, compiled) on packed sequences.

    It computes under bf16 autocast where the processor has bf16, else in fp32.
    """
    # 1. Muon for the matrices, AdamW for embeddings and norms, one schedule for both.
    matrices = [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
    ]
    matrix_ids = {id(matrix) for matrix in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in matrix_ids]
    optimizers = [
        torch.optim.Muon(
            matrices,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(others, lr=settings.lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    steps = settings.tokens // settings.batch_tokens
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: _schedule(step, steps, settings.warmup)
        )
        for optimizer in optimizers
    ]
    buffer: list[int] = []
    forward = torch.compile(model)
    has_bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    model.train()
    start_time, tokens_seen = time.perf_counter(), 0
    for step in range(steps):
        # 2. A batch of packed sequences, longer ones towards the end.
        is_long = step >= steps * (1 - settings.long_share)
        length = settings.long_length if is_long else settings.length
        batch = _next_batch(buffer, stream, settings.batch_tokens // length, length)
        # 3. Next-token loss, and a step of both optimisers.
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bf16):
            logits = forward(input_ids=batch[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), batch[:, 1:].flatten()
        )
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        tokens_seen += batch.numel()
        # 4. Progress.
        if step % 25 == 0 or step == steps - 1:
            log(
                {
                    "step": step,
                    "steps": steps,
                    "loss": loss.item(),
                    "tokens": tokens_seen,
                    "tokens_per_second": tokens_seen / (time.perf_counter() - start_time),
                }
            )


def _schedule(step: int, steps: int, warmup: float) -> float:
    warmup_steps = max(1, round(steps * warmup))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))


def _next_batch(buffer: list[int], stream: Iterator[list[int]], rows: int, length: int) -> Tensor:
    """(rows, length + 1) token ids; whatever is left over stays in `buffer`."""
    tokens_needed = rows * (length + 1)
    while len(buffer) < tokens_needed:
        buffer.extend(next(stream))
    batch = torch.tensor(buffer[:tokens_needed]).view(rows, length + 1)
    del buffer[:tokens_needed]
    return batch


def held_out_loss(model: LlamaForCausalLM, stream: Iterator[list[int]], rows: int = 64) -> float:
    """Mean loss in nats per token, on documents that no cycle has seen."""
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
    parser.add_argument("--after", type=Path, help="folder of the base to go on from, if any")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the tokens, to try")
    args = parser.parse_args()
    if args.after is not None and not (args.after / "pretraining.json").is_file():
        parser.error(f"--after {args.after}: holds no pretraining.json of this recipe")
    start_time = time.perf_counter()
    history: list[dict[str, float]] = []
    # 1. A tokenizer and a model of random weights, or those of the earlier cycles.
    if args.after is None:
        cycles_done, minutes_before = 0, 0.0
        tokenizer = train_tokenizer(
            itertools.islice(corpus.tokenizer_text(TOKENIZER_SEED, 30_000), 40_000), VOCAB_SIZE
        )
        torch.manual_seed(Pretrain.seed)
        model = new_model(len(tokenizer))
    else:
        before = json.loads((args.after / "pretraining.json").read_text())
        # Bases of earlier versions do not say it: they had two.
        cycles_done, minutes_before = before.get("cycles", 2), before["minutes"]
        history += before["history"]
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.after)
        model = LlamaForCausalLM.from_pretrained(args.after, dtype=torch.float32)
    weights: torch.nn.Module = model

    def log(row: dict[str, float]) -> None:
        history.append(row)
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()

    # 2. The cycles; each begins with weights as they are saved, in bfloat16.
    for cycle in CYCLES[cycles_done:]:
        weights.to(torch.bfloat16).float()
        mixture = {name: cycle.get(name, 0.0) for name in ("worksheets", "questions", "requests")}
        texts = corpus.documents(int(cycle["seed"]), **mixture)
        settings = Pretrain(tokens=int(cycle["tokens"] * args.scale), lr=cycle["lr"])
        pretrain(model, token_stream(tokenizer, texts), settings, log)
    # 3. Evaluate what is saved, and save it.
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
        "cycles": len(CYCLES),
        "minutes": round(minutes_before + (time.perf_counter() - start_time) / 60, 1),
        "held_out_loss": loss,
        "history": history,
    }
    (args.out / "pretraining.json").write_text(json.dumps(facts) + "\n")
    sys.stdout.write(f"held-out loss {loss:.3f} nats a token; written to {args.out}\n")


if __name__ == "__main__":
    main()
