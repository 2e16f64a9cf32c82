"""Sampling K completions of each prompt: the kit's decode loop against transformers' `generate`.

    python benchmarks/rollout.py [--quick] --json benchmarks/results/rollout.json

One small random LLaMA in NF4 with an adapter, 16 prompts as long as Alpaca's, 4 completions each
(the K of a ranking), forced to the same lengths on both sides. `generate` gets the prompts padded
on the left and `num_return_sequences`, a key-value cache, bf16 autocast, and a stopping criterion
that ends each row at its length; nothing else is changed. The kit reads each prompt once for all
its samples and lets finished rows leave the batch. Parity: greedy completions of the same prompts,
compared token by token, in fp32, where no rounding decides. CPU only.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn

from benchmarks import measure
from benchmarks.lengths import spread
from benchmarks.little_llama import PAD, SHAPE, random_ids, write_checkpoint

K, GREEDY = 4, 24
PROMPTS, LONGEST = (4, 64) if measure.QUICK else (16, 512)
LENGTHS = [(p, min(c, LONGEST)) for p, c in spread(PROMPTS)]


def prompts() -> list[list[int]]:
    """The prompts."""
    return [random_ids(prompt, seed=i) for i, (prompt, _) in enumerate(LENGTHS)]


class Side:
    """A base with one adapter.

    Args:
        folder: The checkpoint.
        dtype: What it computes in; None is what the machine does best.
    """

    def __init__(self, folder: str, dtype: torch.dtype | None = None) -> None:
        from alpaca_rlhf.models.adapters import Adapters
        from alpaca_rlhf.models.base import load_base
        from alpaca_rlhf.settings import Lora

        self.phases: dict[str, float] = {}
        self.base = load_base(folder, device="cpu", dtype=dtype)
        self.adapters = Adapters(self.base, Lora(r=SHAPE.rank), template="brief")
        self.adapters.add("policy")

    def modules(self) -> list[nn.Module]:
        """The base with its adapter."""
        return [self.base.model]

    def probe(self) -> dict[str, float]:
        """Nothing: the tokens of greedy completions show the parity."""
        return {}

    def prepare(self) -> None:
        """Nothing changes in a run."""

    def run(self) -> dict[str, Any]:
        """K completions of each prompt."""
        return {"tokens": sum(map(len, self.sampled()))}

    def sampled(self) -> list[list[int]]:
        """K completions of each prompt, at their lengths."""
        raise NotImplementedError

    def greedy(self) -> list[list[int]]:
        """One greedy completion of each prompt."""
        raise NotImplementedError


class Ours(Side):
    """The kit's decode loop; noise of 1.0 draws the last token, eos."""

    def sampled(self) -> list[list[int]]:
        """K completions of each prompt, at their lengths."""
        from alpaca_rlhf.models import rollout
        from benchmarks.ppo_vs_trl import forced_noise

        inner = rollout._noise
        forced_noise(rollout)
        try:
            return self._draw(K, 1.0, LONGEST)
        finally:
            rollout._noise = inner

    def greedy(self) -> list[list[int]]:
        """One greedy completion of each prompt."""
        return self._draw(1, 0.0, GREEDY)

    def _draw(self, k: int, temperature: float, longest: int) -> list[list[int]]:
        from alpaca_rlhf.models import rollout
        from alpaca_rlhf.settings import Sampling

        drawn = rollout.sample(
            self.adapters,
            "policy",
            [tuple(p) for p in prompts()],
            [f"{i}/{length}" for i, (_, length) in enumerate(LENGTHS)],
            k=k,
            sampling=Sampling(
                temperature=temperature, max_new_tokens=longest, batch_size=PROMPTS * K
            ),
            seed=0,
        )
        return [list(one.ids) for own in drawn for one in own]


class Generate(Side):
    """`generate` of transformers on the same model."""

    def sampled(self) -> list[list[int]]:
        """K completions of each prompt, at their lengths."""
        return self._draw(K, LONGEST, do_sample=True, num_return_sequences=K, top_k=0)

    def greedy(self) -> list[list[int]]:
        """One greedy completion of each prompt."""
        return self._draw(1, GREEDY, do_sample=False)

    @torch.no_grad()
    def _draw(self, k: int, longest: int, **options: Any) -> list[list[int]]:
        from alpaca_rlhf.models.batches import left_pad

        ids, mask = left_pad(self.base, prompts())
        width = ids.shape[1]
        ends = [AtLength(width, k)] if k > 1 else []
        with self.adapters.using("policy"), self.base.autocast():
            out = self.base.model.generate(
                input_ids=ids,
                attention_mask=mask.long(),
                max_new_tokens=longest,
                stopping_criteria=ends,
                pad_token_id=PAD,
                **options,
            )
        return [[t for t in row if t != PAD] for row in out[:, width:].tolist()]


class AtLength:
    """A stopping criterion that ends each completion of prompt i at its own length."""

    eos_token_id = SHAPE.eos
    """Without it `generate` would not fill finished rows with pad."""

    def __init__(self, width: int, k: int) -> None:
        ends = torch.tensor([width + length for _, length in LENGTHS])
        self.ends = ends.repeat_interleave(k)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """(B,) whether each row is done."""
        return self.ends <= input_ids.shape[1]


def differing(folder: str) -> int:
    """Greedy tokens that are not the same on both sides, in fp32."""
    pairs = zip(
        Ours(folder, torch.float32).greedy(),
        Generate(folder, torch.float32).greedy(),
        strict=True,
    )
    return sum(a != b for one, other in pairs for a, b in zip(one, other, strict=True))


def main() -> None:
    """Both sides in turn; print a table, write the file."""
    given = measure.arguments(__doc__, repeats=5, quick=1)
    made_on = measure.machine()
    with tempfile.TemporaryDirectory() as scratch:
        folder = str(write_checkpoint(Path(scratch) / "llama"))
        workers = [
            measure.Worker("transformers generate", Generate, folder),
            measure.Worker("ours", Ours, folder),
        ]
        try:
            rows = measure.compare(workers, given.repeats)
        finally:
            for worker in workers:
                worker.stop()
        differ = differing(folder)
    theirs, ours = rows
    for row in rows:
        row["tokens_per_second"] = row["work"]["tokens"] / row["seconds"]["median"]
    sys.stdout.write(
        measure.table(
            [
                {
                    "": row["name"],
                    "tokens/s": f"{row['tokens_per_second']:.0f}",
                    "seconds (range)": measure.seconds(row),
                    "GFLOP": f"{row['flops'] / 1e9:.0f}",
                    "peak live MiB": f"{row['peak_live_bytes'] / 2**20:.0f}",
                    "tokens": str(row["work"]["tokens"]),
                }
                for row in rows
            ]
        )
        + "\n"
    )
    summary = {
        "speedup_vs_generate": theirs["seconds"]["median"] / ours["seconds"]["median"],
        "memory_ratio": ours["peak_live_bytes"] / theirs["peak_live_bytes"],
        "tokens_differ": differ,
    }
    for key, value in summary.items():
        sys.stdout.write(f"{key}: {value:.3f}\n")
    if given.json:
        measure.write(
            given.json,
            "rollout",
            made_on,
            rows,
            summary,
            shape=dataclasses.asdict(SHAPE),
            lengths=LENGTHS,
            k=K,
        )


if __name__ == "__main__":
    main()
