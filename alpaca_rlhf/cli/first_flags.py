"""The flags that `COMMAND --help` shows of commands with a hundred; `--help-all` shows the rest."""

from __future__ import annotations

from collections.abc import Mapping

_BEGINNING = ("base", "template", "out")
_FILES = ("inputs.data", "inputs.prompts", "inputs.splits")
_JUDGING = ("inputs.judge", "judge.url", "judge.model")
_LENGTHS = ("sft.max_length", "sampling.max_new_tokens")
_LOOP = (
    *(*_BEGINNING, *_FILES, "inputs.seeds", "inputs.rankings", *_JUDGING),
    *("policies", "rounds", "lora.r", "sft.epochs", *_LENGTHS, "rank.prompts", "rank.k"),
    *("ppo.updates", "best_of_k.prompts", "evaluate.prompts", "seed"),
)

FIRST_FLAGS: Mapping[str, tuple[str, ...]] = {
    "quickstart": ("out", "seed", "rounds", "policies"),
    "loop": _LOOP,
    "plan": (
        *("base", "card", "rows", "prompt_tokens", "template", *_FILES, "policies"),
        *("lora.r", *_LENGTHS, "rank.prompts", "rank.k", "ppo.updates", "price_kwh", "price_hour"),
    ),
    "generate": (
        *(*_BEGINNING, "inputs.seeds", "inputs.judge", "generate.target", "generate.recipe"),
        *("generate.filters", "generate.endpoint.url", "generate.endpoint.model"),
        *("generate.endpoint.key_env", "generate.endpoint.max_usd", "generate.max_requests"),
    ),
    "sft": (
        *(*_BEGINNING, "inputs.data", "inputs.splits", "inputs.broken", "inputs.judge"),
        *("lora.r", "sft.lr", "sft.epochs", "sft.batch_size", "sft.micro_batch_size"),
        *("sft.max_length", "sft.patience"),
    ),
    "sample": (
        *(*_BEGINNING, *_FILES, "inputs.judge", "rank.prompts", "rank.k", "rank.temperature"),
        *("sampling.max_new_tokens", "sampling.batch_size"),
    ),
    "rank": (
        *("out", "annotator", *_JUDGING, "rank.at_least", "rank.queue", "rank.prompts"),
        "rank.k",
    ),
    "reward": (
        *("out", "inputs.rankings", "reward.lr", "reward.epochs", "reward.batch_size"),
        *("reward.micro_batch_size", "reward.held_out", "reward.control", "reward.gate"),
        "rank.at_least",
    ),
    "ppo": (
        *("out", "ppo.updates", "ppo.batch_size", "ppo.micro_batch_size", "ppo.lr"),
        *("ppo.kl_coef", "ppo.max_new_tokens", "ppo.missing_eos_score", "ppo.control"),
    ),
    "dpo": (
        *("out", "inputs.rankings", "dpo.loss", "dpo.beta", "dpo.lr", "dpo.epochs"),
        *("dpo.batch_size", "dpo.micro_batch_size", "dpo.label_smoothing", "dpo.sft_coef"),
    ),
    "grpo": (
        *("out", "grpo.updates", "grpo.prompts", "grpo.k", "grpo.micro_batch_size", "grpo.lr"),
        *("grpo.kl_coef", "grpo.mean", "grpo.divide_by_std"),
    ),
    "rloo": (
        *("out", "rloo.updates", "rloo.prompts", "rloo.k", "rloo.micro_batch_size", "rloo.lr"),
        *("rloo.kl_coef", "rloo.mean"),
    ),
    "best-of-k": (
        *("out", "best_of_k.prompts", "best_of_k.k", "best_of_k.keep", "best_of_k.lr"),
        *("best_of_k.epochs", "best_of_k.control", "sft.micro_batch_size"),
    ),
    "evaluate": (
        *("out", "evaluate.prompts", "evaluate.judge", "evaluate.split", "evaluate.dev"),
        *("evaluate.shown", "evaluate.watts", "sampling.batch_size"),
    ),
}
"""Dotted settings by command, in the order in which they are shown."""
