"""Names that other kits have for settings, so that a refusal can say what they are called here."""

from __future__ import annotations

from collections.abc import Collection

_NAMES = {
    "base": ("model", "model_name", "model_path", "model_name_or_path", "base_model"),
    "inputs.data": ("data", "dataset", "dataset_name", "dataset_path", "data_path", "train_file"),
    "inputs.prompts": ("prompts", "prompt_file"),
    "inputs.rankings": ("preferences", "pairs", "rankings"),
    "out": ("output", "output_dir", "output_path", "save_dir"),
    "to": ("format", "quantize", "outtype"),
    "template": ("chat_template", "prompt_template"),
    "policies": ("algorithm", "method"),
    "track": ("report_to", "logger"),
    "checkpointing": ("gradient_checkpointing",),
    "lora.r": ("lora_rank", "lora_r"),
    "sft.lr": ("learning_rate",),
    "sft.epochs": ("num_train_epochs", "num_epochs"),
    "sft.batch_size": ("train_batch_size",),
    "sft.micro_batch_size": ("per_device_train_batch_size", "per_device_batch_size"),
    "sft.max_length": ("max_seq_length", "max_seq_len", "cutoff_len", "model_max_length"),
    "sft.warmup": ("warmup_ratio",),
    "sft.save_every": ("save_steps",),
    "sft.eval_every": ("eval_steps",),
    "sft.optimizer": ("optim",),
    "grpo.k": ("num_generations",),
    "ppo.kl_coef": ("init_kl_coef",),
    "ppo.epochs": ("num_ppo_epochs",),
}
"""A setting of this kit, and its names in TRL, Axolotl, LLaMA-Factory and transformers."""

_REMARKS = {
    "the base is always in 4 bit (NF4), so no flag says so": (
        *("load_in_4bit", "load_in_8bit", "quantization", "bits", "bnb_4bit_quant_type"),
    ),
    "--sft.batch-size counts all rows of a step, --sft.micro-batch-size those in memory at once": (
        *("gradient_accumulation_steps", "accumulation_steps"),
    ),
    "--sft.warmup is a share of the steps": ("warmup_steps",),
    "the precision follows the card, so no flag sets it": ("bf16", "fp16", "dtype", "precision"),
    "the same command resumes a run": ("resume", "resume_from_checkpoint"),
    "CUDA_VISIBLE_DEVICES chooses the card": ("gpu", "gpus", "device", "device_map", "cuda"),
    "`plan` takes --card, and `loop` beside --auto": ("card",),
}
"""Remarks on names that no setting has."""


def setting_elsewhere(path: str, known: Collection[str]) -> str:
    """The setting that other kits call so; empty if there is none among those that are known."""
    for setting, names in _NAMES.items():
        if path in names and setting in known:
            return setting
    return ""


def remark_on(path: str) -> str:
    """A remark on a name of other kits that no setting has; empty if there is none."""
    return next((remark for remark, names in _REMARKS.items() if path in names), "")
