"""Every number of a run, as frozen dataclasses.

A field's docstring is its help text; checks name the flag as typed.

Defaults are for a 7-8B base on one 24 GB card, with their source. `quickstart.py` holds those of
the embedded base.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from alpaca_rlhf.settings.bounds import above, fraction
from alpaca_rlhf.settings.endpoint import Endpoint, Judge
from alpaca_rlhf.settings.inputs import Inputs
from alpaca_rlhf.settings.ppo import PPO, OptimizerName

RecipeName = Literal["alpaca", "self-instruct", "evol"]
"""How a teacher is asked for tasks."""

FilterName = Literal["self-instruct", "alpaca", "strict"]
"""Sets of rules on generated rows."""

TrackerName = Literal["none", "tensorboard", "wandb"]
"""Where metrics go beside `metrics.jsonl`."""


@dataclass(frozen=True)
class Lora:
    """Shape of all four adapters, on every linear layer (QLoRA, arXiv 2305.14314 section 4)."""

    r: int = 16
    """Rank."""
    alpha: int = 32
    """Scaling numerator: an adapter's output is multiplied by alpha / r."""

    def __post_init__(self) -> None:
        above("--lora.r", self.r, 0)
        above("--lora.alpha", self.alpha, 0)


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn."""

    temperature: float = 1.0
    """Divides the logits; 0 is greedy."""
    top_p: float = 1.0
    """Nucleus mass; 1 keeps the whole distribution."""
    max_new_tokens: int = 256
    """Completion tokens at most, the eos included."""
    batch_size: int = 32
    """Completions decoded together. Never changes the result's distribution, only speed and
    memory."""
    dense_gib: float = 4.0
    """While it samples, the base is there in 16 bit too if that takes at most this many GiB (2 a
    billion weights): faster, and the same completions. 0 never does it."""

    def __post_init__(self) -> None:
        above("--sampling.temperature", self.temperature, 0, equal_allowed=True)
        above("--sampling.max-new-tokens", self.max_new_tokens, 0)
        above("--sampling.batch-size", self.batch_size, 0)
        above("--sampling.dense-gib", self.dense_gib, 0, equal_allowed=True)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"--sampling.top-p must be in (0, 1], got {self.top_p:g}")


@dataclass(frozen=True)
class Generate:
    """Self-instruct: the base writes new tasks after the pattern of a few seed tasks."""

    target: int = 1000
    """Accepted rows to make."""
    recipe: RecipeName = "alpaca"
    """`alpaca`: a worksheet of seed tasks that the teacher goes on with. `self-instruct`: tasks
    first, shown its own ones too, then whether each is a classification, then several instances.
    `evol`: tasks made harder, then answered, for a teacher that follows instructions."""
    filters: FilterName = "alpaca"
    """Rules that rows must pass: those of the originals, or `strict`, ours. Tasks of the small
    world are recognised instead."""
    seeds: int = 175
    """Seed tasks of the small world to draw demonstrations from (Self-Instruct, arXiv 2212.10560,
    has 175); a file given with --inputs.seeds is used whole."""
    demonstrations: int = 3
    """Seed tasks shown in each request of the recipe `alpaca` (tatsu-lab/stanford_alpaca@761dc5b
    generate_instruction.py:111); the others show as many as their papers."""
    batch_size: int = 32
    """Requests decoded together."""
    temperature: float = 1.0
    """Sampling temperature (stanford_alpaca@761dc5b generate_instruction.py:156)."""
    top_p: float = 1.0
    """Nucleus mass."""
    max_new_tokens: int = 512
    """Tokens at most a request."""
    novelty: float = 0.7
    """A row whose ROUGE-L with a seed task or an earlier row is above this is a duplicate; tasks of
    the small world are compared by what they ask."""
    max_requests: int = 5000
    """Give up after this many requests."""
    adapter: str | None = None
    """An adapter folder made by this kit that writes instead of the bare base."""
    endpoint: Endpoint = field(default_factory=Endpoint)
    """A model behind HTTP that writes instead of the base."""

    def __post_init__(self) -> None:
        for name in (
            "target",
            "seeds",
            "demonstrations",
            "batch_size",
            "max_new_tokens",
            "max_requests",
        ):
            above(f"--generate.{name.replace('_', '-')}", getattr(self, name), 0)
        above("--generate.temperature", self.temperature, 0, equal_allowed=True)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"--generate.top-p must be in (0, 1], got {self.top_p:g}")
        above("--generate.novelty", self.novelty, 0)
        if self.adapter is not None and self.endpoint.url is not None:
            raise ValueError(
                "--generate.adapter: --generate.endpoint.url names the teacher already; leave one "
                "out"
            )


@dataclass(frozen=True)
class SFT:
    """Supervised fine-tuning of the sft adapter; loss on completion tokens only."""

    lr: float = 2e-4
    """Peak learning rate (artidoro/qlora@7f4e95a README, 7B)."""
    epochs: int = 3
    """Passes over the data (stanford_alpaca@761dc5b README)."""
    batch_size: int = 128
    """Examples an optimiser step (stanford_alpaca@761dc5b README)."""
    micro_batch_size: int = 4
    """Examples in memory at once. Never changes the result."""
    warmup: float = 0.03
    """Share of the steps over which the learning rate rises."""
    max_grad_norm: float = 1.0
    """Clip the gradient of a step to this norm."""
    max_length: int = 512
    """Tokens at most, prompt and completion; longer rows are left out and counted."""
    held_out: float = 0.05
    """Share of the rows kept for the evaluation loss."""
    save_every: int = 50
    """Optimiser steps between checkpoints."""
    optimizer: OptimizerName = "adamw"
    """`adamw`; `adamw8bit` keeps its moments in 8 bit (arXiv 2110.02861), a quarter of the memory;
    `paged_adamw8bit` moves them to the host when the card is full (QLoRA section 3)."""

    eval_every: int = 0
    """Optimiser steps between evaluations of the held-out loss; 0 evaluates after each epoch."""
    patience: int = 0
    """Stop after this many evaluations without a better one, and go on with the weights of the best
    one; 0 trains to the end and keeps the last weights."""

    def __post_init__(self) -> None:
        above("--sft.lr", self.lr, 0)
        for name in ("epochs", "batch_size", "micro_batch_size", "max_length", "save_every"):
            above(f"--sft.{name.replace('_', '-')}", getattr(self, name), 0)
        above("--sft.max-grad-norm", self.max_grad_norm, 0)
        fraction("--sft.warmup", self.warmup)
        fraction("--sft.held-out", self.held_out)
        for name in ("eval_every", "patience"):
            above(f"--sft.{name.replace('_', '-')}", getattr(self, name), 0, equal_allowed=True)
        if self.patience and not self.held_out:
            raise ValueError(
                f"--sft.patience {self.patience} needs held-out rows; raise --sft.held-out above 0"
            )


@dataclass(frozen=True)
class Rank:
    """K completions a prompt, put in order by people or by a judge."""

    prompts: int = 500
    """Prompts of the rank split, a round."""
    k: int = 4
    """Completions a prompt (InstructGPT, arXiv 2203.02155 section 3.5: 4 to 9)."""
    noise: float = 0.08
    """Share of a judge's pairwise verdicts that are turned round, standing in for human error."""
    tie_below: float = 0.03
    """Completions whose scores are closer than this share a tier."""

    def __post_init__(self) -> None:
        above("--rank.prompts", self.prompts, 0)
        if not 2 <= self.k <= 9:
            raise ValueError(
                f"--rank.k must be 2 to 9, got {self.k}: a ranking needs at least two completions"
            )
        if not 0 <= self.noise < 0.5:
            raise ValueError(f"--rank.noise must be at least 0 and below 0.5, got {self.noise:g}")
        above("--rank.tie-below", self.tie_below, 0, equal_allowed=True)


@dataclass(frozen=True)
class Reward:
    """The reward adapter and its scalar head, trained on all pairs of each ranking."""

    lr: float = 1e-4
    """Peak learning rate, falling linearly to 0."""
    head_lr: float = 1e-3
    """Peak learning rate of the scalar head."""
    epochs: int = 1
    """Passes over the rankings (InstructGPT section 3.5: more than one overfits)."""
    batch_size: int = 16
    """Prompts (whole rankings) an optimiser step."""
    micro_batch_size: int = 2
    """Prompts in memory at once. Never changes the result."""
    warmup: float = 0.03
    """Share of the steps over which the learning rate rises."""
    max_grad_norm: float = 1.0
    """Clip the gradient of a step to this norm."""
    max_length: int = 512
    """Tokens at most; longer completions are left out with their ranking's pairs, and counted."""
    held_out: float = 0.2
    """Share of the prompts kept for the accuracy."""
    gate: float = 0.55
    """Refuse to train a policy on a reward model whose held-out accuracy is below this."""
    margin: float = 0.0
    """How far the better score must be ahead (Llama 2, arXiv 2307.09288 section 3.2.2): this times
    tiers apart / (K - 1), or times the column `margin` of pairs from a file; 0 asks for no lead."""
    ties: Literal["drop", "soft"] = "drop"
    """`drop` learns nothing from completions of one tier; `soft` draws their scores together, with
    one half as the chance that either wins."""
    criteria_weight: float = 0.0
    """Weight of the loss on the order that the stars of each criterion give; above 0 the score is
    the sum of one head a criterion."""
    save_every: int = 20
    """Optimiser steps between checkpoints."""
    optimizer: OptimizerName = "adamw"
    """`adamw`; `adamw8bit` keeps its moments in 8 bit (arXiv 2110.02861), a quarter of the memory;
    `paged_adamw8bit` moves them to the host when the card is full (QLoRA section 3)."""

    def __post_init__(self) -> None:
        for name in (
            "lr",
            "head_lr",
            "epochs",
            "batch_size",
            "micro_batch_size",
            "max_length",
            "max_grad_norm",
        ):
            above(f"--reward.{name.replace('_', '-')}", getattr(self, name), 0)
        above("--reward.save-every", self.save_every, 0)
        for name in ("margin", "criteria_weight"):
            flag = f"--reward.{name.replace('_', '-')}"
            above(flag, getattr(self, name), 0, equal_allowed=True)
        fraction("--reward.warmup", self.warmup)
        above("--reward.held-out", self.held_out, 0)
        fraction("--reward.held-out", self.held_out)


@dataclass(frozen=True)
class BestOfK:
    """Rejection sampling: the reward model's favourite of K becomes training data."""

    k: int = 4
    """Completions a prompt to choose from."""
    prompts: int = 500
    """Prompts of the ppo split to sample on."""
    keep: float = 1.0
    """Share of the winners to fine-tune on, the best-scored ones; 1 keeps the winner of every
    prompt."""
    threshold: float | None = None
    """Fine-tune on every finished completion that scores above this, not on the best of each
    prompt; SFT completions have mean 0 and standard deviation 1."""
    pool: bool = False
    """Choose among the completions of all rounds so far, scored anew by the newest reward model,
    so that what was won is not forgotten (Llama 2, arXiv 2307.09288 section 3.2.2)."""
    lr: float = 1e-4
    """Peak learning rate of the fine-tuning on the winners, from the SFT adapter."""
    epochs: int = 2
    """Passes over the winners."""

    def __post_init__(self) -> None:
        if self.k < 2:
            raise ValueError(
                f"--best-of-k.k must be at least 2, got {self.k}: with one there is nothing to "
                f"choose"
            )
        for name in ("prompts", "lr", "epochs"):
            above(f"--best-of-k.{name}", getattr(self, name), 0)
        if not 0 < self.keep <= 1:
            raise ValueError(f"--best-of-k.keep must be in (0, 1], got {self.keep:g}")
        if self.threshold is not None and self.keep != 1:
            raise ValueError(
                f"--best-of-k.threshold keeps every completion above {self.threshold:g}, and "
                f"--best-of-k.keep {self.keep:g} would drop some of them; give --best-of-k.keep 1"
            )


@dataclass(frozen=True)
class Evaluate:
    """Every policy on prompts that no stage has seen."""

    prompts: int = 300
    """Evaluation prompts."""
    bootstrap: int = 2000
    """Resamples of the prompts for a 95% interval."""
    shown: int = 8
    """Prompts whose answers stand side by side in the report."""
    split: Literal["eval", "dev"] = "eval"
    """`dev` is another set of prompts, for tuning: never tune on `eval`."""
    watts: float = 350.0
    """Power drawn while running, for the cost column."""
    usd_per_kwh: float = 0.30
    """Price of electricity, for the cost column."""

    def __post_init__(self) -> None:
        above("--evaluate.watts", self.watts, 0, equal_allowed=True)
        above("--evaluate.usd-per-kwh", self.usd_per_kwh, 0, equal_allowed=True)
        above("--evaluate.prompts", self.prompts, 1)
        above("--evaluate.bootstrap", self.bootstrap, 0)
        above("--evaluate.shown", self.shown, 0, equal_allowed=True)


@dataclass(frozen=True)
class Stages:
    """The settings of every stage of the loop."""

    lora: Lora = field(default_factory=Lora)
    """Adapters."""
    sampling: Sampling = field(default_factory=Sampling)
    """Sampling of completions to rank, to choose from and to evaluate."""
    generate: Generate = field(default_factory=Generate)
    """Self-instruct."""
    sft: SFT = field(default_factory=SFT)
    """Supervised fine-tuning."""
    rank: Rank = field(default_factory=Rank)
    """Completions and their order."""
    judge: Judge = field(default_factory=Judge)
    """Who ranks with --inputs.judge llm."""
    reward: Reward = field(default_factory=Reward)
    """Reward model."""
    ppo: PPO = field(default_factory=PPO)
    """PPO."""
    best_of_k: BestOfK = field(default_factory=BestOfK)
    """Best-of-K."""
    evaluate: Evaluate = field(default_factory=Evaluate)
    """Evaluation."""


@dataclass(frozen=True)
class Loop(Stages):
    """One run of the whole loop."""

    base: str = "embedded"
    """The frozen base: `embedded`, a folder, or a hub id."""
    template: Literal["brief", "alpaca", "chat"] = "alpaca"
    """Prompt template: `brief` and `alpaca` are text, `chat` is the tokenizer's own."""
    out: Path = Path("runs/loop")
    """Run folder."""
    seed: int = 0
    """Changes everything random."""
    inputs: Inputs = field(default_factory=Inputs)
    """The user's own files."""
    rounds: int = 1
    """Times that ranking, reward and policy training are done, each from the last policy."""
    track: TrackerName = "none"
    """Send metrics to `tensorboard` (files in the run folder) or `wandb` (over the network) too."""

    def __post_init__(self) -> None:
        above("--rounds", self.rounds, 0)
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"--seed must be at least 0 and below 2**32, got {self.seed}")
        if self.ppo.value.warmup >= self.ppo.updates:
            raise ValueError(
                f"--ppo.value.warmup {self.ppo.value.warmup} must be below --ppo.updates "
                f"{self.ppo.updates}: in those updates the policy does not learn"
            )
        if self.best_of_k.pool and self.rounds == 1:
            raise ValueError(
                "--best-of-k.pool chooses among the completions of all rounds, and with --rounds 1 "
                "there are no others; give more rounds or leave it out"
            )
        if (self.inputs.judge == "llm") != (self.judge.url is not None):
            raise ValueError(
                "--inputs.judge llm and --judge.url URL belong together: give both, or take the "
                "address back with --judge.url None"
            )
        if self.evaluate.split == "dev" and self.inputs.judge != "gold":
            raise ValueError("--evaluate.split dev is there only in the small world")
