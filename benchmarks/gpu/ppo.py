"""Third call of a card's day: decoding and PPO updates of an 8B base, beside TRL's PPO.

    python benchmarks/gpu/ppo.py --json benchmarks/results/gpu_ppo.json
    python benchmarks/gpu/ppo.py --rehearse

Decoding by rows at once, then updates with each value function, completions of full length on both
sides. TRL is 1.12.0, repaired as in `benchmarks/ppo_vs_trl.py`: bf16 autocast where it is read, and
value and reward model as adapters on 4-bit copies. Its side has never run on a card.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
# As every command of the kit sets it (core/allocator.py); torch reads it when it is loaded.
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
os.environ.setdefault("ACCELERATE_MIXED_PRECISION", "bf16")  # TRL's side reads it when imported

import torch

from alpaca_rlhf.models import rollout
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.base import load_base
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.settings import PPO, Lora, Sampling, Value
from alpaca_rlhf.training.loop import Checkpoints
from alpaca_rlhf.training.ppo import train_ppo
from alpaca_rlhf.training.rollouts import RolloutPrompt
from benchmarks import little_llama
from benchmarks.gpu import card
from benchmarks.gpu.sft import TRL, trl_version
from benchmarks.stage_memory import write_base

BASE = card.BASES[1]
PROMPT = 128
LORA = Lora()


def prompts(count: int, vocabulary: int) -> list[tuple[int, ...]]:
    """Prompts of one length."""
    sizes = little_llama.Shape(vocabulary=vocabulary)
    return [tuple(little_llama.random_ids(PROMPT, number, sizes)) for number in range(count)]


def decoded(call: card.Call, adapters: Adapters, rows: int, new_tokens: int) -> dict[str, Any]:
    """Tokens a second of so many rows at once, after one run to warm up."""
    ids = prompts(rows, int(adapters.base.model.config.vocab_size))
    keys = [str(number) for number in range(rows)]
    sampling = Sampling(max_new_tokens=new_tokens, batch_size=rows)
    for _ in range(2):
        card.synchronize(call)
        with card.energy() as taken:
            start = time.perf_counter()
            rollout.sample(adapters, "policy", ids, keys, sampling=sampling, seed=0)
            card.synchronize(call)
            seconds = time.perf_counter() - start
    tokens = rows * new_tokens
    return {
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "ms_per_step": 1000 * seconds / new_tokens,
        "joules_per_token": None if taken.joules is None else taken.joules / tokens,
    }


def settings_of(call: card.Call, trunk: Any) -> PPO:
    """One update of 32 prompts; of 4 short ones in a rehearsal."""
    rows, new_tokens = (4, 8) if call.rehearsed else (32, 128)
    return PPO(
        updates=1,
        batch_size=rows,
        minibatch_size=rows,
        micro_batch_size=min(4, rows),
        epochs=2,
        max_new_tokens=new_tokens,
        lr=1e-7,
        value=Value(trunk=trunk, lr=1e-7, warmup=0),
    )


def updated(call: card.Call, adapters: Adapters, trunk: Any) -> dict[str, Any]:
    """Samples a second of an update, after one to warm up."""
    settings = settings_of(call, trunk)
    ids = prompts(settings.batch_size, int(adapters.base.model.config.vocab_size))
    head = ScalarHead(int(adapters.base.model.config.hidden_size)).to(adapters.base.device)
    for _ in range(2):
        adapters.add("policy", copy_of="sft")
        if not call.rehearsed:
            torch.cuda.reset_peak_memory_stats()
        card.synchronize(call)
        with card.energy() as taken, tempfile.TemporaryDirectory() as scratch:
            start = time.perf_counter()
            train_ppo(
                adapters,
                head,
                [RolloutPrompt(str(number), one) for number, one in enumerate(ids)],
                settings,
                seed=0,
                rollout_batch_size=settings.batch_size,
                checkpoints=Checkpoints(Path(scratch)),
                log=lambda row: None,
            )
            card.synchronize(call)
            seconds = time.perf_counter() - start
    return per_sample(call, settings.batch_size, seconds, taken)


def per_sample(call: card.Call, rows: int, seconds: float, taken: card.Energy) -> dict[str, Any]:
    """What an update took."""
    return {
        "seconds": seconds,
        "samples_per_second": rows / seconds,
        "joules_per_sample": None if taken.joules is None else taken.joules / rows,
        "allocated_gib": None if call.rehearsed else torch.cuda.max_memory_allocated() / 2**30,
    }


def theirs(call: card.Call, folder: Path) -> dict[str, Any]:
    """The same update by TRL, repaired."""
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        BitsAndBytesConfig,
    )
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    settings = settings_of(call, "separate")
    options: dict[str, Any] = {
        "dtype": torch.bfloat16,
        "device_map": {"": call.device},
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=["lm_head", "score"],
        ),
    }
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

    def lora(task: str) -> Any:
        return LoraConfig(
            r=LORA.r, lora_alpha=LORA.alpha, lora_dropout=0.0, target_modules=names, task_type=task
        )

    def scorer() -> Any:
        kind = AutoModelForSequenceClassification
        model = kind.from_pretrained(folder, num_labels=1, **options)
        return get_peft_model(model, lora("SEQ_CLS"))

    model = AutoModelForCausalLM.from_pretrained(folder, **options)
    ids = prompts(settings.batch_size, int(model.config.vocab_size))
    # Many batches: the last update of TRL's data set takes more optimiser steps.
    data = Dataset.from_list([{"input_ids": list(one)} for one in ids * 64])
    seconds = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        trainer = PPOTrainer(
            args=PPOConfig(
                output_dir=scratch,
                per_device_train_batch_size=settings.micro_batch_size,
                gradient_accumulation_steps=settings.batch_size // settings.micro_batch_size,
                num_ppo_epochs=settings.epochs,
                total_episodes=settings.batch_size,
                response_length=settings.max_new_tokens,
                temperature=1.0,
                kl_coef=settings.kl_coef,
                learning_rate=settings.lr,
                num_sample_generations=0,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                use_cpu=call.rehearsed,
                bf16=False,  # it is ignored; autocast comes from the environment
            ),
            processing_class=AutoTokenizer.from_pretrained(folder, padding_side="left"),
            model=model,
            ref_model=None,
            reward_model=scorer(),
            value_model=scorer(),
            train_dataset=data,
            eval_dataset=data,
            peft_config=lora("CAUSAL_LM"),
        )
        for _ in range(2):
            card.synchronize(call)
            with card.energy() as taken:
                start = time.perf_counter()
                trainer.train()
                card.synchronize(call)
                seconds = time.perf_counter() - start
    return per_sample(call, settings.batch_size, seconds, taken)


def main(arguments: list[str] | None = None) -> int:
    """Decoding, our updates, then TRL's."""
    call = card.begin("gpu_ppo", __doc__, arguments)
    shape = card.shape_for(call, BASE)
    with tempfile.TemporaryDirectory(dir=call.scratch) as scratch:
        folder = write_base(Path(scratch) / "base", replace(shape, name=BASE))
        base = load_base(str(folder), dtype=torch.bfloat16, device=call.device)
        base = replace(base, stop_ids=frozenset())  # every completion is as long as may be
        adapters = Adapters(base, LORA, template="brief")
        for role in ("sft", "policy", "reward"):
            adapters.add(role)
        new_tokens = 8 if call.rehearsed else 128
        for rows in (2,) if call.rehearsed else (1, 8, 32, 64):
            work = partial(decoded, call, adapters, rows, new_tokens)
            call.part(f"decode, {rows} rows", 0.0, work)
        adapters.checkpointing(not call.rehearsed)
        for trunk in ("detached", "separate"):
            call.part(f"PPO, {trunk} value", 0.0, partial(updated, call, adapters, trunk))
        if trl_version() != TRL:
            call.leave_out("PPO, TRL repaired", f"needs trl=={TRL}")
        else:
            del adapters, base, work
            call.part("PPO, TRL repaired", 120.0, partial(theirs, call, folder))
    return call.code()


if __name__ == "__main__":
    sys.exit(main())
