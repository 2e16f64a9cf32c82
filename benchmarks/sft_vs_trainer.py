"""Supervised fine-tuning: the kit against transformers' Trainer and TRL's SFTTrainer.

    pip install -c constraints.txt -e '.[bench]'         # trl==1.12.0
    python benchmarks/sft_vs_trainer.py [--quick] --json benchmarks/results/sft_vs_trainer.json

QLoRA on one small random LLaMA in NF4, 32 examples as long as Alpaca's (`lengths.py`), 4 in memory
at once, every step over all 32. So each step has the same examples on every side whatever its
order, and with the same adapter at the start, the same AdamW and the same schedule the losses of
the steps must agree: the parity column is the largest difference from the padded Trainer.

Rows:

- Trainer + PEFT, padded: a plain Trainer with a padding collator; examples in random order.
- Trainer + PEFT, length-grouped: the same with `train_sampling_strategy="group_by_length"`.
- TRL SFTTrainer: its defaults (padded, chunked loss); it trains LoRA weights in bf16.
- ours: `train_sft`.

Loss on completion tokens only and bf16 autocast on every side; no side checkpoints activations.
`prepare_model_for_kbit_training`, which would cost the Trainer fp32 copies, is left out. Tokens are
real tokens, prompt and completion, never padding. CPU only.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn

from alpaca_rlhf.settings import SFT
from benchmarks import measure
from benchmarks.lengths import spread
from benchmarks.little_llama import SHAPE, random_ids, write_checkpoint

EXAMPLES = 8 if measure.QUICK else 32
STEPS = 2
LENGTHS = spread(EXAMPLES)
TOKENS = STEPS * sum(p + c for p, c in LENGTHS)
SETTINGS = SFT(
    lr=2e-4, epochs=STEPS, batch_size=EXAMPLES, micro_batch_size=4, warmup=0.0, held_out=0.0
)

PADDED, GROUPED = "Trainer + PEFT, padded", "Trainer + PEFT, length-grouped"
TRL_ROW, OURS = "TRL SFTTrainer 1.12", "ours"


def examples() -> list[tuple[list[int], list[int]]]:
    """Prompts and completions; each completion ends with eos."""
    return [
        (random_ids(p, seed=i), [*random_ids(c - 1, seed=1000 + i), SHAPE.eos])
        for i, (p, c) in enumerate(LENGTHS)
    ]


@torch.no_grad()
def start(parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Give every side the same adapter: A drawn by the name of its layer, B zero."""
    drawn = sorted(
        (name[name.index("layers.") :].replace(".default", "").removesuffix(".weight"), p)
        for name, p in parameters
        if "lora_" in name
    )
    for i, (name, parameter) in enumerate(drawn):
        generator = torch.Generator().manual_seed(i)
        values = torch.rand(parameter.shape, generator=generator) * 2 - 1
        parameter.copy_(values * parameter.shape[1] ** -0.5 * ("lora_A" in name))


class Ours:
    """The kit.

    Args:
        folder: The checkpoint.
    """

    def __init__(self, folder: str) -> None:
        from alpaca_rlhf.models.adapters import Adapters
        from alpaca_rlhf.models.base import load_base
        from alpaca_rlhf.settings import Lora

        self.phases: dict[str, float] = {}
        self.base = load_base(folder, device="cpu")
        self.adapters = Adapters(self.base, Lora(r=SHAPE.rank), template="brief")
        self.prepare()

    def modules(self) -> list[nn.Module]:
        """The base with its adapter."""
        return [self.base.model]

    def probe(self) -> dict[str, float]:
        """Nothing: the losses show the parity."""
        return {}

    def prepare(self) -> None:
        """A new adapter."""
        self.adapters.add("sft")
        start(self.adapters.parameters("sft").items())

    def run(self) -> dict[str, Any]:
        """All steps."""
        from alpaca_rlhf.models.batches import Example
        from alpaca_rlhf.training.loop import Checkpoints
        from alpaca_rlhf.training.sft import train_sft

        rows: list[dict[str, Any]] = []
        with tempfile.TemporaryDirectory() as folder:
            train_sft(
                self.adapters,
                "sft",
                [Example(tuple(p), tuple(c)) for p, c in examples()],
                [],
                SETTINGS,
                seed=0,
                checkpoints=Checkpoints(Path(folder)),
                log=rows.append,
            )
        return {"losses": [row["loss"] for row in rows if "loss" in row]}


class Theirs:
    """A Trainer of transformers or of TRL.

    Args:
        folder: The checkpoint.
        kind: The name of its row.
    """

    def __init__(self, folder: str, kind: str) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

        from alpaca_rlhf.models.base import default_dtype

        self.phases: dict[str, float] = {}
        self.kind = kind
        self.dtype = default_dtype(torch.device("cpu"))
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=self.dtype,
            quantization_config=BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=self.dtype,
            ),
        )
        lora = LoraConfig(
            r=SHAPE.rank,
            lora_alpha=2 * SHAPE.rank,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        self.model = get_peft_model(model, lora)
        self.scratch = tempfile.TemporaryDirectory()
        self.trainer: Any = None

    def modules(self) -> list[nn.Module]:
        """The model with its adapter."""
        return [self.model]

    def probe(self) -> dict[str, float]:
        """Nothing: the losses show the parity."""
        return {}

    def prepare(self) -> None:
        """A new trainer, and so a new optimiser, and a new adapter."""
        from datasets import Dataset
        from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

        arguments = {
            "output_dir": self.scratch.name,
            "per_device_train_batch_size": SETTINGS.micro_batch_size,
            "gradient_accumulation_steps": EXAMPLES // SETTINGS.micro_batch_size,
            "num_train_epochs": STEPS,
            "learning_rate": SETTINGS.lr,
            "lr_scheduler_type": "linear",
            "warmup_steps": 0,
            "adam_beta2": 0.95,
            "max_grad_norm": SETTINGS.max_grad_norm,
            "bf16": self.dtype == torch.bfloat16,
            "use_cpu": True,
            "logging_steps": 1,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            "gradient_checkpointing": False,
            "train_sampling_strategy": "group_by_length" if self.kind == GROUPED else "random",
        }
        rows = [{"input_ids": p + c, "labels": [-100] * len(p) + c} for p, c in examples()]
        if self.kind == TRL_ROW:
            from trl import SFTConfig, SFTTrainer

            self.trainer = SFTTrainer(
                self.model,
                args=SFTConfig(**arguments),
                train_dataset=Dataset.from_list(rows),
                processing_class=self.tokenizer,
            )
        else:
            self.trainer = Trainer(
                self.model,
                TrainingArguments(**arguments),
                train_dataset=Dataset.from_list(rows),
                data_collator=DataCollatorForSeq2Seq(self.tokenizer),
            )
        start((n, p) for n, p in self.model.named_parameters())

    def run(self) -> dict[str, Any]:
        """All steps."""
        self.trainer.train()
        logged = [row["loss"] for row in self.trainer.state.log_history if "loss" in row]
        return {"losses": logged}


def main() -> None:
    """Run all sides in turn; print a table, write the file."""
    given = measure.arguments(__doc__, repeats=5, quick=2)
    measure.need("trl", "1.12.0")
    made_on = measure.machine()
    with tempfile.TemporaryDirectory() as scratch:
        folder = str(write_checkpoint(Path(scratch) / "llama"))
        workers = [
            measure.Worker(kind, Theirs, folder, kind) for kind in (PADDED, GROUPED, TRL_ROW)
        ]
        workers.append(measure.Worker(OURS, Ours, folder))
        try:
            rows = measure.compare(workers, given.repeats)
        finally:
            for worker in workers:
                worker.stop()
    by_name = {row["name"]: row for row in rows}
    padded, ours = by_name[PADDED], by_name[OURS]
    for row in rows:
        row["tokens"] = TOKENS
        row["tokens_per_second"] = TOKENS / row["seconds"]["median"]
        row["loss_difference"] = max(
            abs(a - b) for a, b in zip(row["work"]["losses"], padded["work"]["losses"], strict=True)
        )
    report(rows)
    summary = {
        "tokens_per_second_ratio": ours["tokens_per_second"] / padded["tokens_per_second"],
        "memory_ratio": ours["peak_live_bytes"] / padded["peak_live_bytes"],
        "flops_ratio": ours["flops"] / padded["flops"],
        "loss_difference": ours["loss_difference"],
    }
    for name, key in ((GROUPED, "grouped"), (TRL_ROW, "trl")):
        other = by_name[name]
        summary[f"tokens_per_second_ratio_{key}"] = (
            ours["tokens_per_second"] / other["tokens_per_second"]
        )
        summary[f"memory_ratio_{key}"] = ours["peak_live_bytes"] / other["peak_live_bytes"]
    for key, value in summary.items():
        sys.stdout.write(f"{key}: {value:.4f}\n")
    if given.json:
        measure.write(
            given.json,
            "sft_vs_trainer",
            made_on,
            rows,
            summary,
            shape=dataclasses.asdict(SHAPE),
            lengths=LENGTHS,
            steps=STEPS,
            micro_batch_size=SETTINGS.micro_batch_size,
        )


def report(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    sys.stdout.write(
        measure.table(
            [
                {
                    "": row["name"],
                    "real tokens/s": f"{row['tokens_per_second']:.0f}",
                    "seconds (range)": measure.seconds(row),
                    "GFLOP": f"{row['flops'] / 1e9:.0f}",
                    "peak live MiB": f"{row['peak_live_bytes'] / 2**20:.0f}",
                    "resident MiB": f"{row['resident_gib'] * 1024:.0f}",
                    "steps": str(row["optimizer_steps"]),
                    "losses": " ".join(f"{loss:.4f}" for loss in row["work"]["losses"]),
                    "difference": f"{row['loss_difference']:.4f}",
                }
                for row in rows
            ]
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
