"""What the comparisons with TRL 1.16 share: rankings of K completions, the sides, and the table.

All of it was fixed before the first run. K = 4. The prompts and completions have the lengths of
Alpaca's (`lengths.py`); the four completions of a prompt are 0.5, 0.8, 1.2 and 1.5 times as long as
the one that Alpaca has. Two optimiser steps over all rankings, four sequences in memory at once,
the same checkpoint, LoRA at the start, AdamW and schedule. Real tokens are those of the four
sequences of every ranking, each with its prompt, times two steps: the work that is asked for,
however often a side computes a token.

TRL trains its LoRA weights, and a scalar head, in bf16; ours are fp32. Where the machine has no
bf16 the base computes in fp32, and TRL's bf16 weights, which do not go with it, are cast to fp32
too. TRL checkpoints activations unless it is told not to, so both sides are there with and without.
CPU only.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn

from benchmarks import measure
from benchmarks.lengths import spread
from benchmarks.little_llama import SHAPE, random_ids, write_checkpoint
from benchmarks.sft_vs_trainer import start

VERSION, EXTRA = "1.16.0", "bench-trl1"
K, STEPS, LR = 4, 2, 1e-4
RANKINGS = 2 if measure.QUICK else 6
TIMES_AS_LONG = (0.5, 0.8, 1.2, 1.5)
SEQUENCES_AT_ONCE = 4
LENGTHS = [
    (prompt, [max(2, round(completion * times)) for times in TIMES_AS_LONG])
    for prompt, completion in spread(RANKINGS)
]
LONGEST = max(length for _, lengths in LENGTHS for length in lengths)
PAIRS = [(i, j) for i in range(K) for j in range(i + 1, K)]
"""Of every ranking: the completions are in the order of their rank."""
TOKENS = STEPS * sum(prompt + length for prompt, lengths in LENGTHS for length in lengths)

TRL, OURS = "TRL 1.16", "ours"
CHECKPOINTED = ", checkpointed"


@dataclasses.dataclass(frozen=True)
class Ranked:
    """Four completions of a prompt, the best first; each ends with eos."""

    prompt: list[int]
    completions: list[list[int]]


def rankings() -> list[Ranked]:
    """The rankings, in no order of length that would tell the rank."""
    return [
        Ranked(
            random_ids(prompt, seed=row),
            [
                [*random_ids(lengths[(i + row) % K] - 1, seed=1000 + K * row + i), SHAPE.eos]
                for i in range(K)
            ],
        )
        for row, (prompt, lengths) in enumerate(LENGTHS)
    ]


def words(ids: Sequence[int]) -> str:
    """Text of token ids, without eos, that the checkpoint's tokenizer reads as the same ids."""
    return " ".join(f"t{i}" for i in ids if i != SHAPE.eos)


class Kit:
    """The kit: adapters on the checkpoint, and the log of a run.

    Args:
        folder: The checkpoint.
        checkpointing: Recompute activations in the backward pass.
    """

    def __init__(self, folder: str, checkpointing: bool) -> None:
        from alpaca_rlhf.models.adapters import Adapters
        from alpaca_rlhf.models.base import load_base
        from alpaca_rlhf.settings import Lora

        self.phases: dict[str, float] = {}
        self.rows: list[dict[str, Any]] = []
        self.base = load_base(folder, device="cpu")
        self.adapters = Adapters(self.base, Lora(r=SHAPE.rank), template="brief")
        self.adapters.checkpointing(checkpointing)
        self.prepare()

    def modules(self) -> list[nn.Module]:
        """The base with its adapters."""
        return [self.base.model]

    def probe(self) -> dict[str, float]:
        """Nothing: losses and gradients show the parity."""
        return {}

    def prepare(self) -> None:
        """New adapters: `sft`, and a copy to train."""
        self.adapters.add("sft")
        start(self.adapters.parameters("sft").items())
        self.adapters.add("trained", copy_of="sft")
        self.rows.clear()

    def run(self) -> dict[str, Any]:
        """Both steps."""
        with tempfile.TemporaryDirectory() as folder:
            self.train(Path(folder))
        return {
            "losses": [row["loss"] for row in self.rows],
            "gradient_norms": [row["grad_norm"] for row in self.rows],
        }

    def train(self, folder: Path) -> None:
        """Both steps, with checkpoints in a folder; logs a row each."""
        raise NotImplementedError


class Trainer:
    """A trainer of TRL on the checkpoint in NF4 with a new LoRA adapter.

    Args:
        folder: The checkpoint.
        checkpointing: Recompute activations in the backward pass.
    """

    def __init__(self, folder: str, checkpointing: bool) -> None:
        from alpaca_rlhf.models.base import default_dtype

        self.phases: dict[str, float] = {}
        self.folder, self.checkpointing = folder, checkpointing
        self.dtype = default_dtype(torch.device("cpu"))
        self.scratch = tempfile.TemporaryDirectory()
        self.trainer: Any = None
        self.prepare()

    def modules(self) -> list[nn.Module]:
        """The model with its adapter."""
        return [self.trainer.model]

    def probe(self) -> dict[str, float]:
        """Nothing: losses and gradients show the parity."""
        return {}

    def prepare(self) -> None:
        """A new trainer, and so a new model, adapter and optimiser."""
        self.trainer = self.made()
        if self.dtype == torch.float32:
            for parameter in self.trainer.model.parameters():
                if parameter.dtype == torch.bfloat16:
                    parameter.data = parameter.data.float()
        start(self.trainer.model.named_parameters())

    def run(self) -> dict[str, Any]:
        """Both steps."""
        self.trainer.train()
        logged = [row for row in self.trainer.state.log_history if "loss" in row]
        return {
            "losses": [row["loss"] for row in logged],
            "gradient_norms": [row["grad_norm"] for row in logged],
        }

    def made(self) -> Any:
        """The trainer."""
        raise NotImplementedError

    def load(self, kind: str, **options: Any) -> nn.Module:
        """The checkpoint in NF4, as one of transformers' automatic classes."""
        import transformers

        model: nn.Module = getattr(transformers, kind).from_pretrained(
            self.folder,
            dtype=self.dtype,
            quantization_config=transformers.BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=self.dtype,
                llm_int8_skip_modules=["lm_head", "score"],
            ),
            **options,
        )
        return model

    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder)

    def lora(self, task: str) -> Any:
        """The LoRA of every linear layer of the decoder."""
        from peft import LoraConfig

        return LoraConfig(
            r=SHAPE.rank,
            lora_alpha=2 * SHAPE.rank,
            lora_dropout=0.0,
            target_modules=[
                *(f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down"))
            ],
            task_type=task,
        )

    def arguments(self, at_once: int, of: int) -> dict[str, Any]:
        """What every trainer is configured with: `at_once` examples of `of` of a step."""
        return {
            "output_dir": self.scratch.name,
            "per_device_train_batch_size": at_once,
            "gradient_accumulation_steps": of // at_once,
            "learning_rate": LR,
            "lr_scheduler_type": "linear",
            "warmup_steps": 0,
            "adam_beta2": 0.95,
            "max_grad_norm": 1.0,
            "bf16": self.dtype == torch.bfloat16,
            "use_cpu": True,
            "logging_steps": 1,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            "gradient_checkpointing": self.checkpointing,
        }


def compare(
    name: str,
    doc: str | None,
    ours: Callable[[str, bool], Kit],
    theirs: Callable[[str, bool], Trainer],
) -> None:
    """Run all sides in turn; print a table and what it sums up to, write the file."""
    given = measure.arguments(doc, repeats=3, quick=1)
    measure.need("trl", VERSION, extra=EXTRA)
    made_on = measure.machine()
    with tempfile.TemporaryDirectory() as scratch:
        folder = str(write_checkpoint(Path(scratch) / "llama"))
        workers = [
            measure.Worker(
                side + (CHECKPOINTED if checkpointing else ""), make, folder, checkpointing
            )
            for checkpointing in (False, True)
            for side, make in ((TRL, theirs), (OURS, ours))
        ]
        try:
            rows = measure.compare(workers, given.repeats)
        finally:
            for worker in workers:
                worker.stop()
    for row in rows:
        row["tokens"] = TOKENS
        row["tokens_per_second"] = TOKENS / row["seconds"]["median"]
    sys.stdout.write(
        measure.table(
            [
                {
                    "": row["name"],
                    "s": measure.seconds(row),
                    "real tokens/s": f"{row['tokens_per_second']:,.0f}",
                    "GFLOP": f"{row['flops'] / 1e9:.0f}",
                    "peak live MiB": f"{row['peak_live_bytes'] / 2**20:.0f}",
                    "losses": " ".join(f"{loss:.4f}" for loss in row["work"]["losses"]),
                    "gradient norms": " ".join(
                        f"{norm:.3f}" for norm in row["work"]["gradient_norms"]
                    ),
                }
                for row in rows
            ]
        )
        + "\n"
    )
    by_name = {row["name"]: row for row in rows}
    summary: dict[str, float] = {}
    for suffix, key in (("", ""), (CHECKPOINTED, "_checkpointed")):
        trl, kit = by_name[TRL + suffix], by_name[OURS + suffix]
        summary |= {
            f"time_ratio{key}": kit["seconds"]["median"] / trl["seconds"]["median"],
            f"memory_ratio{key}": kit["peak_live_bytes"] / trl["peak_live_bytes"],
            f"flops_ratio{key}": kit["flops"] / trl["flops"],
            f"loss_difference{key}": _largest(kit, trl, "losses"),
            f"gradient_norm_difference{key}": _largest(kit, trl, "gradient_norms"),
        }
    for key, value in summary.items():
        sys.stdout.write(f"{key}: {value:.4f}\n")
    if given.json:
        measure.write(
            given.json,
            name,
            made_on,
            rows,
            summary,
            command=f"python benchmarks/{name}.py" + (" --quick" if measure.QUICK else ""),
            shape=dataclasses.asdict(SHAPE),
            lengths=LENGTHS,
            k=K,
            steps=STEPS,
            sequences_at_once=SEQUENCES_AT_ONCE,
            trl=VERSION,
        )


def _largest(kit: dict[str, Any], trl: dict[str, Any], key: str) -> float:
    """The largest difference between the two sides in any step."""
    return max(abs(a - b) for a, b in zip(kit["work"][key], trl["work"][key], strict=True))
