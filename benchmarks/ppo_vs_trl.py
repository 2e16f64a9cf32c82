"""One PPO update: the kit against TRL's PPO, on one small random LLaMA in NF4.

    pip install -c constraints.txt -e '.[bench]'         # trl==1.12.0, the last with PPO
    python benchmarks/ppo_vs_trl.py [--quick] --json benchmarks/results/ppo_vs_trl.json

Rows:

- TRL out of the box: NF4 policy with a PEFT configuration, reward and value model loaded as in
  TRL's own example (examples/scripts/ppo/ppo.py), so the whole value model is trained. But for
  one thing: with its default `bf16=True` an NF4 policy in bf16 does not run, because the norms are
  cast to fp32 and nothing turns autocast on, so it has `bf16=False`.
- TRL repaired: bf16 autocast set through ACCELERATE_MIXED_PRECISION, since `bf16=True` is ignored;
  reward and value model in PEFT on 4-bit copies of their own.
- ours, separate value: the same algorithm, policy and value are adapters of their own.
- ours, shared trunk: the value is a head on the policy's states (`--ppo.value.trunk shared`).

All sides: the same checkpoint, 16 prompts, completions forced to the same lengths (those of Alpaca,
`lengths.py`), as many epochs, one minibatch (TRL's `num_mini_batches` changes nothing), the same
micro-batch, the same LoRA. TRL's data set has many batches, because the last update of its data set
takes more optimiser steps. Neither side checkpoints activations; TRL's PPO never does, whatever its
`gradient_checkpointing` says. The learning rate is tiny, so that the policy stays the reference and
KL must be 0. CPU only.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn

from alpaca_rlhf.settings import PPO, Value
from benchmarks import measure
from benchmarks.lengths import spread
from benchmarks.little_llama import PAD, SHAPE, random_ids, write_checkpoint

PROMPTS, LONGEST = (4, 32) if measure.QUICK else (16, 256)
MICRO = 4
LENGTHS = [(p, min(c, LONGEST)) for p, c in spread(PROMPTS)]
COMMON: dict[str, Any] = {
    "updates": 1,
    "batch_size": PROMPTS,
    "minibatch_size": PROMPTS,
    "micro_batch_size": MICRO,
    "max_new_tokens": LONGEST,
    "lr": 1e-7,
}
SEPARATE = PPO(**COMMON, value=Value(trunk="separate", lr=1e-7, warmup=0))
SHARED = PPO(**COMMON, value=Value(trunk="shared", lr=1e-7, warmup=0))
EPOCHS = SEPARATE.epochs

REPAIRED, OUT_OF_THE_BOX = "TRL 1.12 repaired", "TRL 1.12 out of the box"
OURS = {"separate": "ours, separate value", "shared": "ours, shared trunk"}
DEFAULT = OURS["separate" if Value().trunk == "separate" else "shared"]
"""The row of ours that is the kit's default; `detached` costs what `shared` does."""


def prompts() -> list[list[int]]:
    """The prompts of an update."""
    return [random_ids(prompt, seed=i) for i, (prompt, _) in enumerate(LENGTHS)]


def probe_sequences() -> list[tuple[list[int], list[int]]]:
    """Prompts and completions that both sides must judge alike."""
    return [
        (random_ids(p, seed=100 + i), random_ids(c, seed=200 + i))
        for i, (p, c) in enumerate([(48, 20), (57, 40), (61, 9)])
    ]


def head_weight() -> torch.Tensor:
    """(H,) weights of the reward head on every side."""
    from alpaca_rlhf.models.heads import ScalarHead

    return ScalarHead(SHAPE.hidden, seed=0).weight.detach()


class Ours:
    """The kit. Completions end where the noise of a token says so: 1.0 draws the last token, eos.

    Args:
        folder: The checkpoint.
        settings: PPO's numbers.
    """

    def __init__(self, folder: str, settings: PPO) -> None:
        from alpaca_rlhf.models import rollout, scoring
        from alpaca_rlhf.models.adapters import Adapters
        from alpaca_rlhf.models.base import load_base
        from alpaca_rlhf.models.heads import ScalarHead
        from alpaca_rlhf.settings import Lora
        from alpaca_rlhf.training import ppo
        from alpaca_rlhf.training.ppo_update import PPOUpdate

        self.settings = settings
        self.phases: dict[str, float] = {}
        self.base = load_base(folder, device="cpu")
        self.adapters = Adapters(self.base, Lora(r=SHAPE.rank), template="brief")
        self.adapters.add("sft")
        self.adapters.add("policy", copy_of="sft")
        self.adapters.add("reward", seed=1)
        self.head = ScalarHead(SHAPE.hidden, seed=0)
        forced_noise(rollout)
        for name, module, function in (
            ("rollout", ppo, "sample"),
            ("log-probabilities", scoring, "logprobs"),
            ("log-probabilities", scoring, "logprobs_and_values"),
            ("scores", scoring, "scores"),
            ("values", scoring, "values"),
            ("policy update", PPOUpdate, "policy_backward"),
            ("value update", PPOUpdate, "value_backward"),
        ):
            measure.timed(self.phases, name, module, function)

    def modules(self) -> list[nn.Module]:
        """The base with all adapters, and the head."""
        return [self.base.model, self.head]

    def probe(self) -> dict[str, float]:
        """Log-probability a token and score of fixed completions."""
        from alpaca_rlhf.models import scoring
        from alpaca_rlhf.models.batches import Example, collate

        examples = [Example(tuple(p), tuple(c)) for p, c in probe_sequences()]
        found = scoring.logprobs(
            self.adapters, "policy", collate(self.base, examples), micro_batch_size=MICRO
        )[0]
        scores = scoring.score(self.adapters, "reward", self.head, examples, batch_size=MICRO)
        tokens = sum(len(one.completion) for one in examples)
        return {"logprob": float(found.sum()) / tokens, "score": float(scores.mean())}

    def prepare(self) -> None:
        """Start from the SFT adapter."""
        self.adapters.add("policy", copy_of="sft")

    def run(self) -> dict[str, Any]:
        """One update."""
        from alpaca_rlhf.training.loop import Checkpoints
        from alpaca_rlhf.training.ppo import train_ppo
        from alpaca_rlhf.training.rollouts import RolloutPrompt

        rows: list[dict[str, Any]] = []
        with tempfile.TemporaryDirectory() as folder:
            train_ppo(
                self.adapters,
                self.head,
                [
                    RolloutPrompt(f"{i}/{length}", tuple(ids))
                    for i, (ids, (_, length)) in enumerate(zip(prompts(), LENGTHS, strict=True))
                ],
                self.settings,
                seed=0,
                rollout_batch_size=PROMPTS,
                checkpoints=Checkpoints(Path(folder)),
                log=rows.append,
            )
        return {
            "tokens": round(rows[0]["mean_tokens"] * PROMPTS),
            "policy_steps": rows[0]["policy_steps"],
            "kl": rows[0]["kl"],
            "entropy": rows[0]["entropy"],
        }


def forced_noise(rollout: Any) -> None:
    """Let the decode loop end each completion at the length that its prompt's key ends with."""
    inner: Callable[..., Any] = rollout._noise

    def noise(seed: int, key: str, sample_index: int, length: int) -> Any:
        drawn = inner(seed, key, sample_index, length)
        drawn[int(key.rsplit("/", 1)[1]) - 1 :] = 1.0
        return drawn

    rollout._noise = noise


class Prompts(torch.utils.data.Dataset[dict[str, list[int]]]):
    """Many batches of the same prompts, in order whatever index is asked for: TRL shuffles."""

    def __init__(self) -> None:
        self.asked = 0
        self.prompts = prompts()

    def __len__(self) -> int:
        return 64 * PROMPTS

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        self.asked += 1
        return {"input_ids": self.prompts[(self.asked - 1) % PROMPTS]}


class TRL:
    """TRL's PPO. A stopping criterion ends each completion at its length.

    Args:
        folder: The checkpoint.
        repaired: Reward and value model as adapters on 4-bit copies.
    """

    def __init__(self, folder: str, repaired: bool) -> None:
        import trl.experimental.ppo.ppo_trainer as module
        from peft import LoraConfig, get_peft_model
        from transformers import (
            AutoModelForCausalLM,
            AutoModelForSequenceClassification,
            AutoTokenizer,
            BitsAndBytesConfig,
        )
        from trl.experimental.ppo import PPOConfig, PPOTrainer

        from alpaca_rlhf.models.base import default_dtype

        self.phases: dict[str, float] = {}
        dtype = default_dtype(torch.device("cpu"))
        nf4 = {
            "quantization_config": BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
                llm_int8_skip_modules=["lm_head", "score"],
            ),
            "dtype": dtype,
        }
        lora: dict[str, Any] = {
            "r": SHAPE.rank,
            "lora_alpha": 2 * SHAPE.rank,
            "lora_dropout": 0.0,
            "target_modules": [
                "q_proj",
                "k_proj",
                "v_proj",
                "o_proj",
                "gate_proj",
                "up_proj",
                "down_proj",
            ],
        }

        def scorer() -> nn.Module:
            model = AutoModelForSequenceClassification.from_pretrained(
                folder, num_labels=1, **(nf4 if repaired else {})
            )
            with torch.no_grad():
                model.score.weight.copy_(head_weight()[None])
            if repaired:
                model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", **lora))
            return model

        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.scratch = tempfile.TemporaryDirectory()
        self.trainer = PPOTrainer(
            args=PPOConfig(
                output_dir=self.scratch.name,
                per_device_train_batch_size=MICRO,
                gradient_accumulation_steps=PROMPTS // MICRO,
                num_ppo_epochs=EPOCHS,
                total_episodes=PROMPTS,
                response_length=LONGEST,
                temperature=1.0,
                kl_coef=SEPARATE.kl_coef,
                learning_rate=SEPARATE.lr,
                num_sample_generations=0,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                use_cpu=True,
                bf16=False,  # see above
            ),
            processing_class=tokenizer,
            model=AutoModelForCausalLM.from_pretrained(folder, **nf4),
            ref_model=None,
            reward_model=scorer(),
            value_model=scorer(),
            train_dataset=Prompts(),
            eval_dataset=Prompts(),
            peft_config=LoraConfig(task_type="CAUSAL_LM", **lora),
        )
        self.logged: list[dict[str, Any]] = []
        self.tokens = 0
        self.trainer.log = lambda row, *_: self.logged.append(row)
        policy = self.trainer.policy_model
        generate = policy.generate

        def generate_to_length(*args: Any, **kwargs: Any) -> Any:
            width = kwargs["input_ids"].shape[1]
            output = generate(*args, stopping_criteria=[AtLength(width)], **kwargs)
            self.tokens += int((output.sequences[:, width:] != PAD).sum())
            return output

        policy.generate = generate_to_length
        measure.timed(self.phases, "rollout", module, "batch_generation")
        for function in ("forward", "get_reward"):
            scoring_only(self.phases, module, function)

    def modules(self) -> list[nn.Module]:
        """Policy, value and reward model."""
        return [self.trainer.policy_model, self.trainer.value_model, self.trainer.reward_model]

    def probe(self) -> dict[str, float]:
        """Log-probability a token and score of fixed completions."""
        from trl.experimental.ppo.ppo_trainer import forward, get_reward, selective_log_softmax

        total, count, scores = 0.0, 0, []
        with torch.no_grad():
            for prompt, completion in probe_sequences():
                ids = torch.tensor([prompt + completion])
                logits = forward(self.trainer.policy_model, ids, PAD).logits[
                    :, len(prompt) - 1 : -1
                ]
                total += float(selective_log_softmax(logits.float(), ids[:, len(prompt) :]).sum())
                count += len(completion)
                padded = torch.nn.functional.pad(ids, (0, 1), value=PAD)
                scores.append(
                    float(get_reward(self.trainer.reward_model, padded, PAD, len(prompt))[1])
                )
        return {"logprob": total / count, "score": sum(scores) / len(scores)}

    def prepare(self) -> None:
        """Forget the last run; the learning rate is too small to have changed anything."""
        self.logged.clear()
        self.tokens = 0

    def run(self) -> dict[str, Any]:
        """One update."""
        self.trainer.train()
        row = self.logged[0]
        return {
            "tokens": self.tokens,
            "policy_steps": None,  # counted as optimizer_steps: one optimiser holds both
            "kl": row["objective/kl"],
            "entropy": row["objective/entropy"] * PROMPTS / self.tokens,
        }


class AtLength:
    """A stopping criterion that ends row i at its own length."""

    eos_token_id = SHAPE.eos
    """Without it `generate` would not fill finished rows with pad."""

    def __init__(self, width: int) -> None:
        self.ends = torch.tensor([width + length for _, length in LENGTHS])

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """(B,) whether each row is done."""
        return self.ends <= input_ids.shape[1]


def scoring_only(phases: dict[str, float], module: Any, function: str) -> None:
    """Time a function where it runs without gradients."""
    inner = getattr(module, function)

    def outer(*args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            return inner(*args, **kwargs)
        with measure.phase(phases, "scoring"):
            return inner(*args, **kwargs)

    setattr(module, function, outer)


def main() -> None:
    """Run all sides in turn; print a table, write the file."""
    given = measure.arguments(__doc__, repeats=5, quick=1)
    measure.need("trl", "1.12.0")
    made_on = measure.machine()
    with tempfile.TemporaryDirectory() as scratch:
        folder = str(write_checkpoint(Path(scratch) / "llama"))
        cpu = {"ACCELERATE_USE_CPU": "true", "TRL_EXPERIMENTAL_SILENCE": "1"}
        workers = [
            measure.Worker(OUT_OF_THE_BOX, TRL, folder, False, env=cpu),
            measure.Worker(
                REPAIRED, TRL, folder, True, env=cpu | {"ACCELERATE_MIXED_PRECISION": "bf16"}
            ),
            measure.Worker(OURS["separate"], Ours, folder, SEPARATE),
            measure.Worker(OURS["shared"], Ours, folder, SHARED),
        ]
        try:
            rows = measure.compare(workers, given.repeats)
        finally:
            for worker in workers:
                worker.stop()
    floors = {
        name: SHAPE.ppo_floor(LENGTHS, EPOCHS, separate_value=separate)
        for name, separate in (("separate value", True), ("value on the policy's states", False))
    }
    for row in rows:
        shared = row["name"] == OURS["shared"]
        floor = floors["value on the policy's states" if shared else "separate value"]
        row["floor_flops"] = floor
        row["flops_over_floor"] = row["flops"] / floor
    report(rows)
    by_name = {row["name"]: row for row in rows}
    best, repaired = by_name[DEFAULT], by_name[REPAIRED]
    summary = compared(best, repaired)
    for name in OURS.values():
        if name != DEFAULT:
            found = compared(by_name[name], repaired)
            summary |= {f"{key}, {name}": value for key, value in found.items()}
    for key, value in summary.items():
        sys.stdout.write(f"{key}: {value:.3f}\n")
    sys.stdout.write(f"the kit's default is the row '{DEFAULT}'\n")
    if given.json:
        measure.write(
            given.json,
            "ppo_vs_trl",
            made_on,
            rows,
            {**summary, "default": DEFAULT},
            shape=dataclasses.asdict(SHAPE),
            lengths=LENGTHS,
            epochs=EPOCHS,
            micro_batch_size=MICRO,
            floors=floors,
        )


def compared(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """Ours over theirs, below 1 is better for us; and our FLOPs over the floor."""
    return {
        "wall_ratio": ours["seconds"]["median"] / theirs["seconds"]["median"],
        "memory_ratio": ours["peak_live_bytes"] / theirs["peak_live_bytes"],
        "flops_ratio": ours["flops"] / theirs["flops"],
        "flops_over_floor": ours["flops_over_floor"],
    }


def report(rows: list[dict[str, Any]]) -> None:
    """Print the table, then each side's phases."""
    sys.stdout.write(
        measure.table(
            [
                {
                    "": row["name"],
                    "seconds (range)": measure.seconds(row),
                    "GFLOP": f"{row['flops'] / 1e9:.0f}",
                    "over floor": f"{row['flops_over_floor']:.2f}",
                    "peak live MiB": f"{row['peak_live_bytes'] / 2**20:.0f}",
                    "resident MiB": f"{row['resident_gib'] * 1024:.0f}",
                    "tokens": str(row["work"]["tokens"]),
                    "steps": str(row["optimizer_steps"]),
                    "KL": f"{row['work']['kl']:.4f}",
                    "entropy": f"{row['work']['entropy']:.3f}",
                    "probe log-prob": f"{row['probe']['logprob']:.4f}",
                    "probe score": f"{row['probe']['score']:.4f}",
                }
                for row in rows
            ]
        )
        + "\n"
    )
    for row in rows:
        known = ", ".join(f"{n} {s:.2f}" for n, s in row["phases"].items())
        rest = row["seconds"]["median"] - sum(row["phases"].values())
        sys.stdout.write(f"{row['name']}, seconds: {known}, rest {rest:.2f}\n")


if __name__ == "__main__":
    main()
