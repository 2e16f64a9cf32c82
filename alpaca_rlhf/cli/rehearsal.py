"""Dry runs: every stage of an experiment on a tiny random model of the same architecture.

Only the size differs from the real run. Prompt template, head layout, kind of tokenizer, rotary
positions and the pause for people are the same. The files are made up, and the people's verdicts
are random.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from alpaca_rlhf.cli.terminal import Terminal
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction, Ranking
from alpaca_rlhf.data import clusters, write_instructions
from alpaca_rlhf.pipeline import run_loop
from alpaca_rlhf.settings import Generate, Inputs, Judge, Loop
from alpaca_rlhf.settings.steps import suffixed
from alpaca_rlhf.smallworld import answered_task, sample_task
from alpaca_rlhf.sources.sampled import candidate_sets
from alpaca_rlhf.sources.verdicts import open_store
from alpaca_rlhf.stages import PeopleNeeded

LAYERS, HEAD_SIZE = 2, 32
"""Size of a shrunken model."""

TOKENS = 16
"""Completion tokens at most."""

STOP_LOGIT, MUTE_LOGIT = 2.0, -6.0
"""Logits of the tokens that end a completion and of those that are not printable ASCII; all others
have 0. So the random model writes readable text, and often comes to an end."""

ROWS, PROMPTS = 20, 24
"""Rows to train on, and prompts a round for all splits."""


@dataclass(frozen=True)
class Architecture:
    """Properties of a real model that its shrunken copy keeps."""

    shared_by: int
    """Query heads for each key-value head."""
    feed_forward: float
    """Size of the feed-forward layer, as a multiple of the hidden size."""
    context: int
    """Longest sequence, in tokens."""
    rope: Mapping[str, Any]
    """Rotary positions."""
    tokenizer: Literal["byte_level", "byte_fallback"]
    """The kind of tokenizer: every byte is a token, with the real one's way of writing bytes."""
    special: tuple[str, ...]
    """Special tokens; the first is bos, the second eos, and a third ends a turn of a chat."""
    unknown: str | None = None
    """The token for unknown text. None of the models has a padding token."""
    tied: bool = False
    """True if the output head is the embedding table."""
    adds_bos: bool = True
    """True if the tokenizer itself puts bos before a text."""

    @property
    def heads(self) -> int:
        """Heads of the shrunken model: every layer size is a multiple of 64, as NF4 wants."""
        return 6 if self.shared_by == 3 else 8


ARCHITECTURES = {
    # meta-llama/Llama-3.1-8B config.json and tokenizer.json
    "llama-3.1-8b": Architecture(
        shared_by=4,
        feed_forward=3.5,
        context=131072,
        rope={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        tokenizer="byte_level",
        special=("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"),
    ),
    # meta-llama/Llama-2-7b-hf config.json and tokenizer.json
    "llama-2-7b": Architecture(
        shared_by=1,
        feed_forward=2.6875,
        context=4096,
        rope={"rope_type": "default", "rope_theta": 10000.0},
        tokenizer="byte_fallback",
        special=("<s>", "</s>"),
        unknown="<unk>",
    ),
    # meta-llama/Llama-3.2-1B config.json and tokenizer.json
    "llama-3.2-1b": Architecture(
        shared_by=4,
        feed_forward=4.0,
        context=131072,
        rope={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        tokenizer="byte_level",
        special=("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"),
        tied=True,
    ),
    # HuggingFaceTB/SmolLM2-135M config.json and tokenizer.json
    "smollm2-135m": Architecture(
        shared_by=3,
        feed_forward=8 / 3,
        context=8192,
        rope={"rope_type": "default", "rope_theta": 100000.0},
        tokenizer="byte_level",
        special=("<|endoftext|>", "<|endoftext|>"),
        tied=True,
        adds_bos=False,
    ),
}
"""Models whose runs can be rehearsed."""


def shrunken(architecture: Architecture, folder: Path, seed: int = 0) -> Path:
    """Write a random model of two layers and a byte tokenizer as a checkpoint folder.

    Returns:
        The folder.
    """
    tokenizer = _tokenizer(architecture)
    stops = [tokenizer.get_vocab()[token] for token in architecture.special[1:]]
    hidden = architecture.heads * HEAD_SIZE
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=-(-round(hidden * architecture.feed_forward) // 64) * 64,
        num_hidden_layers=LAYERS,
        num_attention_heads=architecture.heads,
        num_key_value_heads=architecture.heads // architecture.shared_by,
        max_position_embeddings=architecture.context,
        rope_parameters=dict(architecture.rope),
        tie_word_embeddings=architecture.tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    texts = {i: str(tokenizer.decode([i])) for i in range(len(tokenizer))}
    mute = {
        i: MUTE_LOGIT for i, text in texts.items() if not (text.isascii() and text.isprintable())
    }
    _steer(model, mute | dict.fromkeys(stops, STOP_LOGIT))
    model.bfloat16()
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=tokenizer.bos_token_id, eos_token_id=stops if len(stops) > 1 else stops[0]
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def _steer(model: LlamaForCausalLM, logits: Mapping[int, float]) -> None:
    """Give tokens a nearly constant logit: LLaMA has no output bias, so channel 0 serves as one."""
    embeddings, head = model.model.embed_tokens.weight, model.lm_head.weight
    # 1. A constant channel, ten times as large as the others, passes the layers almost unchanged.
    embeddings[:, 0] = 0.2
    ids = torch.arange(model.config.vocab_size)[None]
    constant = model.model(input_ids=ids).last_hidden_state[..., 0].mean()
    # 2. The head reads only that channel for these tokens. A tied head must keep its 0.2 there.
    offset = 0.2 if model.config.tie_word_embeddings else 0.0
    head[:, 0] = offset
    for token, logit in logits.items():
        head[token] = 0
        head[token, 0] = offset + logit / constant


def _tokenizer(architecture: Architecture) -> PreTrainedTokenizerFast:
    unknown = [architecture.unknown] if architecture.unknown else []
    special = list(dict.fromkeys([*unknown, *architecture.special]))
    if architecture.tokenizer == "byte_level":
        bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocab = {token: i for i, token in enumerate([*bytes_, *special])}
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        bytes_ = [*(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
        vocab = {token: i for i, token in enumerate([*special, *bytes_])}
        tokenizer = Tokenizer(
            models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token=architecture.unknown)
        )
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        tokenizer.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
    tokenizer.add_special_tokens(special)
    bos, eos = architecture.special[:2]
    if architecture.adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, vocab[bos])]
        )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        unk_token=architecture.unknown,
        clean_up_tokenization_spaces=False,
    )


def rehearse(settings: Loop, architecture: str, terminal: Terminal, *, command: str) -> Path:
    """Run every stage of an experiment in a temporary folder, in about a minute on a CPU.

    Args:
        settings: Settings of the experiment.
        architecture: A key of `ARCHITECTURES`.
        terminal: Terminal to write to.
        command: Command as typed, for the report.

    Returns:
        The run folder, with its report.
    """
    folder = Path(tempfile.mkdtemp(prefix="alpaca-rlhf-dry-run-"))
    small = _shrink(settings, architecture, folder)
    terminal.say(
        f"DRY RUN of {settings.base} in {folder}: a random model of {LAYERS} layers, made-up rows "
        "and random verdicts; nothing here says how well the real run will do"
    )
    for round_ in range(1, small.all_rounds + 1):
        try:
            run_loop(small, terminal, kind="dry run", command=command)
        except PeopleNeeded:
            terminal.say("  here people rank; the dry run ranks at random")
            _rank_at_random(small, round_)
    return run_loop(small, terminal, kind="dry run", command=command)


def _shrink(settings: Loop, architecture: str, folder: Path) -> Loop:
    """The same experiment with tiny numbers, on made-up files."""
    rows = _rows(ROWS + PROMPTS * settings.all_rounds, settings.seed)
    write_instructions(folder / "data.jsonl", rows[:ROWS])
    write_instructions(folder / "prompts.jsonl", rows[ROWS:])
    max_length = 2048  # every byte is a token, and no row may be too long
    return replace(
        settings,
        base=str(shrunken(ARCHITECTURES[architecture], folder / "model")),
        out=folder / "run",
        inputs=Inputs(data=folder / "data.jsonl", prompts=folder / "prompts.jsonl", judge="human"),
        judge=Judge(),
        generate=Generate(),  # the rows are made up
        template="brief" if settings.template == "chat" else settings.template,
        sampling=replace(settings.sampling, max_new_tokens=TOKENS, batch_size=16),
        sft=replace(
            settings.sft,
            epochs=1,
            batch_size=8,
            micro_batch_size=2,
            max_length=max_length,
            held_out=0.1,
        ),
        rank=replace(settings.rank, prompts=6),
        reward=replace(
            settings.reward,
            batch_size=2,
            micro_batch_size=1,
            max_length=max_length,
            held_out=0.5,
            source="rankings",  # made-up people rank
            gate=0.0,  # random verdicts teach nothing, which must not stop a dry run
        ),
        ppo=replace(
            settings.ppo,
            updates=2,
            value=replace(settings.ppo.value, warmup=min(settings.ppo.value.warmup, 1)),
            batch_size=8,
            minibatch_size=4,
            micro_batch_size=2,
            max_new_tokens=TOKENS,
        ),
        best_of_k=replace(settings.best_of_k, prompts=4, epochs=1),
        dpo=replace(
            settings.dpo, epochs=1, batch_size=2, micro_batch_size=1, max_length=max_length
        ),
        **{
            name: replace(
                getattr(settings, name),
                updates=2,
                prompts=4,
                k=2,
                minibatch_size=4,
                micro_batch_size=2,
                max_new_tokens=TOKENS,
            )
            for name in ("grpo", "rloo")
        },
        evaluate=replace(
            settings.evaluate, prompts=4, dev_prompts=None, bootstrap=200, shown=4, judge=None
        ),
    )


def _rows(n: int, seed: int) -> list[Instruction]:
    """Tasks with answers, no two of which are near-duplicates."""
    rng = random.Random(f"{seed}/rehearsal")
    tasks = [answered_task(sample_task(rng), rng) for _ in range(12 * n)]
    rows = [cluster[0] for cluster in clusters(tasks)]
    if len(rows) < n:
        raise UserError(f"--rounds: a dry run has tasks for fewer rounds ({len(rows)} of {n} rows)")
    return rows[:n]


def _rank_at_random(settings: Loop, round_: int) -> None:
    """Save a random order of each prompt's answers, where a person would rank them."""
    rng = random.Random(f"{settings.seed}/{suffixed('rank', round_)}")
    sets = candidate_sets(settings.out, suffixed("sample", round_))
    with open_store(settings.out) as store:
        store.add_sets(sets, origin="dry run")
        rankings = []
        for prompt, completions in sets:
            order = rng.sample(completions, len(completions))
            tiers = tuple((completion.id,) for completion in order)
            rankings.append(Ranking(prompt.id, tiers, "chance"))
        store.add_rankings(rankings)
