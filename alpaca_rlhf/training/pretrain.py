"""Pre-training of a baby LLaMA from an endless stream of documents: tokenizer, token stream, loop.

`recipes/pretrain_cria.py` holds the numbers and makes `data/cria/` with it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

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
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<s>", "</s>")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A LLaMA-style BPE with byte fallback: any text round-trips.

    Digits stand alone, and a newline is one token.

    Args:
        texts: What to learn the merges from.
        vocab_size: Size with the 3 special tokens and the 256 bytes.

    Source: the layout of meta-llama's `tokenizer.json` (BPE, byte fallback, metaspace), without its
    prefix space.
    """
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = _pre_tokenizer()
    learner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size - len(SPECIAL) - len(BYTES), show_progress=False, min_frequency=2
        ),
    )
    learned = learner.get_vocab()
    merges = [(left, right) for left, right in _merges(learner)]
    words = sorted(learned, key=lambda token: learned[token])
    vocab = {token: i for i, token in enumerate([*SPECIAL, *BYTES, *words])}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, byte_fallback=True, fuse_unk=True, unk_token=None)
    )
    tokenizer.add_special_tokens(list(SPECIAL))
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


def _merges(tokenizer: Tokenizer) -> list[list[str]]:
    import json

    merges: list[list[str]] = json.loads(tokenizer.to_str())["model"]["merges"]
    return merges


@dataclass(frozen=True)
class Pretrain:
    """Numbers of the pre-training."""

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
    """Peak learning rate of the matrices (Muon, update matched to AdamW's size)."""
    embedding_lr: float = 4e-3
    """Peak learning rate of embeddings and norms (AdamW)."""
    weight_decay: float = 0.05
    """Decoupled weight decay of the matrices."""
    warmup: float = 0.02
    """Share of the steps over which the rate rises; it then falls along a cosine to a twentieth."""
    seed: int = 0
    """Initial weights."""


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
    """Train `model` in place (fp32 weights, bf16 autocast, compiled) on packed sequences.

    Matrices are trained with Muon (torch.optim.Muon), embeddings and norms with AdamW.
    """
    matrices = [
        p
        for n, p in model.named_parameters()
        if p.ndim == 2 and "embed" not in n and "lm_head" not in n
    ]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    optimizers = [
        torch.optim.Muon(
            matrices,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(rest, lr=settings.embedding_lr, betas=(0.9, 0.95), weight_decay=0.0),
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
    model.train()
    started, seen = time.perf_counter(), 0
    for step in range(steps):
        length = (
            settings.long_length if step >= steps * (1 - settings.long_share) else settings.length
        )
        batch = _take(buffer, stream, settings.batch_tokens // length, length)
        with torch.autocast("cpu", torch.bfloat16):
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
        seen += batch.numel()
        if step % 25 == 0 or step == steps - 1:
            rate = seen / (time.perf_counter() - started)
            log(
                {
                    "step": step,
                    "steps": steps,
                    "loss": loss.item(),
                    "tokens": seen,
                    "tokens_per_second": rate,
                }
            )


def _schedule(step: int, steps: int, warmup: float) -> float:
    rise = max(1, round(steps * warmup))
    if step < rise:
        return (step + 1) / rise
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def _take(buffer: list[int], stream: Iterator[list[int]], rows: int, length: int) -> Tensor:
    need = rows * (length + 1)
    while len(buffer) < need:
        buffer.extend(next(stream))
    batch = torch.tensor(buffer[:need]).view(rows, length + 1)
    del buffer[:need]
    return batch
