"""Every number of a run, as frozen dataclasses.

A field's docstring is its help text; checks name the flag as typed.

Defaults are for a 7-8B base on one 24 GB card, with their source. `quickstart.py` holds those of
the embedded base.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Gt, Interval

from alpaca_rlhf.core.bases import EMBEDDED
from alpaca_rlhf.core.sizes import MAX_CLUSTER_SHARE, batch_for
from alpaca_rlhf.settings.bounds import (
    Bounded,
    Fraction,
    LearningRate,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Seed,
    Share,
)
from alpaca_rlhf.settings.dpo import DPO
from alpaca_rlhf.settings.endpoint import Endpoint, Judge
from alpaca_rlhf.settings.group_policies import GRPO, RLOO
from alpaca_rlhf.settings.inputs import Inputs
from alpaca_rlhf.settings.judge_names import SCORERS, parse_judge
from alpaca_rlhf.settings.policies import POLICIES, REWARDED_STAGES, PolicyName, stage_of
from alpaca_rlhf.settings.ppo import PPO, OptimizerName
from alpaca_rlhf.settings.watch import Watch

RecipeName = Literal["alpaca", "self-instruct", "evol", "answers"]
"""Recipes by which a teacher is asked for tasks."""

FilterName = Literal["self-instruct", "alpaca", "strict"]
"""Sets of rules on generated rows."""

MIN_SFT_BATCH, MAX_SFT_BATCH = 8, 128
"""Bounds of an SFT batch that follows the rows."""

MIN_REWARD_BATCH, MAX_REWARD_BATCH = 4, 64
"""Bounds of a reward model's batch that follows the rankings."""

MAX_HALVINGS = 4
"""Subsets of a learning curve at most; the smallest has a sixteenth of the rankings."""

Checkpointing = Literal["auto", "on", "half", "off"] | int
"""When activations are recomputed in the backward pass; a number n is in each n-th layer."""

RECOMPUTED_EVERY: Mapping[Checkpointing, int] = {"on": 1, "half": 2, "off": 0}
"""The number of a word; 0 for no layer. `half` is from before numbers were taken."""

TrackerName = Literal["none", "tensorboard", "wandb"]
"""Trackers that get metrics beside `metrics.jsonl`."""


@dataclass(frozen=True)
class Lora(Bounded, group="--lora"):
    """Shape of all four adapters, on every linear layer (QLoRA, arXiv 2305.14314 section 4)."""

    r: PositiveInt = 16
    """Rank."""
    alpha: PositiveInt = 32
    """Scaling numerator: an adapter's output is multiplied by alpha / r."""


@dataclass(frozen=True)
class Sampling(Bounded, group="--sampling"):
    """Sampling of completions."""

    temperature: NonNegativeFloat = 1.0
    """Divides the logits; 0 is greedy, which no stage of the loop can sample at. Each has a flag of
    its own: --rank.temperature, --ppo.temperature, --best-of-k.temperature, --grpo.temperature,
    --rloo.temperature, --evaluate.temperature."""
    top_p: Share = 1.0
    """Nucleus mass; 1 keeps the whole distribution."""
    max_new_tokens: PositiveInt = 256
    """Completion tokens at most, the eos included."""
    batch_size: PositiveInt = 32
    """Completions decoded together. Never changes the result's distribution, only speed and
    memory."""
    dense_gib: NonNegativeFloat = 4.0
    """Keep a 16-bit copy of the base while sampling, and on a CPU while training, if it takes at
    most this many GiB (2 per billion weights): faster, same numbers. 0 never keeps one."""


@dataclass(frozen=True)
class Generate(Bounded, group="--generate"):
    """Self-instruct: the base writes new tasks after the pattern of a few seed tasks."""

    target: PositiveInt = 1000
    """Accepted rows to make."""
    recipe: RecipeName = "alpaca"
    """`alpaca`: a worksheet of seed tasks that the teacher continues. `self-instruct`: tasks
    first, after seed tasks and its own, then whether each is a classification, then several
    instances. `evol`: tasks made harder, then answered, for a teacher that follows instructions.
    `answers`: the prompts of SFT (of `checks`, or the seed tasks) answered anew until the judge is
    content, for an instruct base as its own teacher."""
    attempts: PositiveInt = 4
    """Answers to one prompt at most, with the recipe `answers`. Where every other answer is right,
    four leave out one prompt in 16."""
    min_score: Annotated[float, Interval(ge=0, le=1)] = 0.8
    """Keep an answer from this score of the judge on, with the recipe `answers`. With `checks` an
    answer that misses a constraint scores 0.5 at most; 0.8 asks that it stops and fits too."""
    edit: bool = False
    """With the recipe `answers` and the judge `checks`: ask for drafts of plain text, then choose
    and arrange their sentences so that they meet the constraints of the prompt. Prompts that differ
    in their constraints alone share a draft."""
    filters: FilterName = "alpaca"
    """Rules that rows must pass: those of the originals, or `strict`, ours. Tasks of the small
    world are recognised instead."""
    seeds: PositiveInt = 175
    """Seed tasks of the small world to draw demonstrations from (Self-Instruct, arXiv 2212.10560,
    has 175); a file given with --inputs.seeds is used whole."""
    demonstrations: PositiveInt = 3
    """Seed tasks shown in each request of the recipe `alpaca` (tatsu-lab/stanford_alpaca@761dc5b
    generate_instruction.py:111); the others show as many as their papers."""
    batch_size: PositiveInt = 32
    """Requests decoded together."""
    temperature: NonNegativeFloat = 1.0
    """Sampling temperature (stanford_alpaca@761dc5b generate_instruction.py:156)."""
    top_p: Share = 1.0
    """Nucleus mass."""
    max_new_tokens: PositiveInt = 512
    """Tokens at most per request."""
    novelty: PositiveFloat = 0.7
    """A row whose ROUGE-L with a seed task or an earlier row is above this is a duplicate; tasks of
    the small world are compared by what they ask."""
    max_requests: PositiveInt = 5000
    """Give up after this many requests."""
    adapter: str | None = None
    """An adapter folder made by this kit that writes instead of the bare base."""
    endpoint: Endpoint = field(default_factory=Endpoint)
    """A model behind HTTP that writes instead of the base."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adapter is not None and self.endpoint.url is not None:
            raise ValueError(
                "--generate.adapter: --generate.endpoint.url names the teacher already; leave one "
                "out"
            )
        if self.edit and self.recipe != "answers":
            raise ValueError(
                f"--generate.edit: only the recipe `answers` has drafts to edit, not "
                f"{self.recipe}; give --generate.edit False"
            )
        if self.recipe == "answers" and self.endpoint.url and self.endpoint.api == "completions":
            raise ValueError(
                "--generate.recipe answers needs a teacher that answers, not one that continues "
                "text; give --generate.endpoint.api chat"
            )


@dataclass(frozen=True)
class SFT(Bounded, group="--sft"):
    """Supervised fine-tuning of the sft adapter; loss on completion tokens only."""

    lr: LearningRate = 2e-4
    """Peak learning rate (artidoro/qlora@7f4e95a README, 7B)."""
    epochs: PositiveInt = 3
    """Passes over the data (stanford_alpaca@761dc5b README)."""
    batch_size: PositiveInt | None = None
    """Examples per optimiser step, here and in best-of-K. None follows the rows: the largest of 8,
    16, 32, 64 and 128 that leaves 100 steps, so that 1,000 rows in 3 epochs take 16 as QLoRA does
    (artidoro/qlora@7f4e95a scripts/finetune_guanaco_7b.sh), and 52,000 take 128
    (stanford_alpaca@761dc5b README)."""
    micro_batch_size: PositiveInt = 4
    """Examples of --sft.max-length tokens in memory at once, and as many more shorter ones as have
    no more tokens in all. Never changes the result."""
    warmup: Fraction = 0.03
    """Share of the steps over which the learning rate rises."""
    max_grad_norm: PositiveFloat = 1.0
    """Clip the gradient of a step to this norm."""
    max_length: PositiveInt = 512
    """Tokens at most, prompt and completion; longer rows are left out and counted."""
    held_out: Fraction = 0.05
    """Share of the rows kept for the evaluation loss."""
    save_every: PositiveInt = 50
    """Optimiser steps between checkpoints."""
    optimizer: OptimizerName = "adamw"
    """`adamw`; `adamw8bit` keeps its moments in 8 bit (arXiv 2110.02861), a quarter of the memory;
    `paged_adamw8bit` moves them to the host when the card is full (QLoRA section 3)."""

    eval_every: NonNegativeInt = 0
    """Optimiser steps between evaluations of the held-out loss; 0 evaluates after each epoch."""
    patience: NonNegativeInt = 0
    """Stop after this many evaluations without a better one, and keep the weights of the best
    one; 0 trains to the end and keeps the last weights."""

    def examples_per_step(self, rows: int | None = None) -> int:
        """Examples per optimiser step for so many rows; the most there can be if None."""
        if self.batch_size is not None or rows is None:
            return self.batch_size or MAX_SFT_BATCH
        return batch_for(rows, self.epochs, smallest=MIN_SFT_BATCH, largest=MAX_SFT_BATCH)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patience and not self.held_out:
            raise ValueError(
                f"--sft.patience {self.patience} needs held-out rows; raise --sft.held-out above 0"
            )


@dataclass(frozen=True)
class Rank(Bounded, group="--rank"):
    """K completions a prompt, put in order by people or by a judge."""

    prompts: PositiveInt = 500
    """Prompts of the rank split, per round."""
    at_least: PositiveInt | None = None
    """Prompts that people must have ranked, per round, before the run goes on; by default all that
    they did not skip. Prompts without a ranking are left out of training, and counted."""
    k: Annotated[
        int, Interval(ge=2, le=9), "one cannot be ranked, and ten are too many to compare"
    ] = 4
    """Completions per prompt (InstructGPT, arXiv 2203.02155 section 3.5: 4 to 9)."""
    temperature: PositiveFloat | None = None
    """Temperature of the completions to rank; None takes that of --sampling.temperature."""
    queue: Literal["random", "uncertain"] = "random"
    """Order in which people are given prompts. `uncertain` begins with those whose completions the
    reward model of the round before is least sure to put in the right order; a first round has
    none, and is in random order. It orders what the loop samples itself: `alpaca-rlhf sample --run`
    and an app that runs short of answers take prompts as they stand in the split."""
    noise: Annotated[float, Interval(ge=0, lt=0.5)] = 0.08
    """Share of the gold judge's pairwise verdicts that are flipped, in place of human error; any
    other judge is taken at its word."""
    tie_below: NonNegativeFloat = 0.03
    """Completions whose scores are closer than this share a tier."""


@dataclass(frozen=True)
class Reward(Bounded, group="--reward"):
    """The reward adapter and its scalar head, trained on all pairs of each ranking."""

    source: Literal["rankings", "judge"] = "rankings"
    """`rankings` trains a reward model on them; with `judge` the scores of --inputs.judge are the
    reward themselves (verifiable rewards): nothing is ranked, and no reward model is trained."""
    lr: LearningRate = 1e-4
    """Peak learning rate, falling linearly to 0."""
    head_lr: LearningRate = 1e-3
    """Peak learning rate of the scalar head."""
    epochs: PositiveInt = 1
    """Passes over the rankings (InstructGPT section 3.5: more than one overfits)."""
    batch_size: PositiveInt | None = None
    """Prompts (whole rankings) per optimiser step. None follows the rankings: the largest of 4, 8,
    16, 32 and 64 that leaves 100 steps, so that 6,400 and more take 64 as InstructGPT does
    (appendix C.2)."""
    micro_batch_size: PositiveInt = 2
    """Prompts in memory at once, and as many more as have no more tokens than so many of the
    longest rankings. Never changes the result."""
    warmup: Fraction = 0.03
    """Share of the steps over which the learning rate rises."""
    max_grad_norm: PositiveFloat = 1.0
    """Clip the gradient of a step to this norm."""
    max_length: PositiveInt = 512
    """Tokens at most; longer completions are left out with their ranking's pairs, and counted."""
    held_out: Annotated[Fraction, Gt(0)] = 0.2
    """Share of the prompts kept for the accuracy."""
    control: bool = False
    """Train a second reward model on shuffled verdicts, whose accuracy must be one half: it shows
    what else gives the better one away, and doubles the time of the stage."""
    curve: Annotated[int, Interval(ge=0, le=MAX_HALVINGS)] | None = None
    """Train on that many nested subsets of the rankings too, each half as large as the next: what
    they gain says what more rankings would bring. 2 takes three quarters more time. None is 2
    where people rank for the run, else 0, as for a file of rankings."""
    gate: Annotated[float, Interval(ge=0, le=1)] = 0.55
    """Refuse to train a policy on a reward model whose held-out accuracy is below this."""
    margin: NonNegativeFloat = 0.0
    """Lead that the better score must have (Llama 2, arXiv 2307.09288 section 3.2.2): this times
    tiers apart / (K - 1), or times the column `margin` of pairs from a file; 0 asks for no lead."""
    ties: Literal["drop", "soft"] = "drop"
    """`drop` learns nothing from completions of the same tier; `soft` pulls their scores together,
    with a target of one half that either wins."""
    criteria_weight: NonNegativeFloat = 0.0
    """Weight of the loss on the order that the stars of each criterion give; above 0 the score is
    the sum of one head per criterion."""
    heads: PositiveInt = 1
    """Scalar heads on the reward adapter. Several are an ensemble: each starts anew and learns from
    a bootstrap resample of the rankings; the score is their mean less --reward.pessimism."""
    pessimism: NonNegativeFloat = 0.0
    """Standard deviations of the heads' scores that are taken from their mean, so that a policy
    gains little where they disagree (arXiv 2310.02743); 0 is the mean alone."""
    save_every: PositiveInt = 20
    """Optimiser steps between checkpoints."""
    optimizer: OptimizerName = "adamw"
    """`adamw`; `adamw8bit` keeps its moments in 8 bit (arXiv 2110.02861), a quarter of the memory;
    `paged_adamw8bit` moves them to the host when the card is full (QLoRA section 3)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pessimism > 0 and self.heads == 1:
            raise ValueError(
                f"--reward.pessimism {self.pessimism:g} is of the deviation between several heads, "
                "and there is one; give --reward.heads 4, or leave it out"
            )
        if self.criteria_weight > 0 and self.heads > 1:
            raise ValueError(
                f"--reward.heads {self.heads}: --reward.criteria-weight "
                f"{self.criteria_weight:g} has a head for each criterion already; leave one out"
            )

    def rankings_per_step(self, rankings: int | None = None) -> int:
        """Rankings per optimiser step for so many of them; the most there can be if None."""
        if self.batch_size is not None or rankings is None:
            return self.batch_size or MAX_REWARD_BATCH
        return batch_for(rankings, self.epochs, smallest=MIN_REWARD_BATCH, largest=MAX_REWARD_BATCH)


@dataclass(frozen=True)
class BestOfK(Bounded, group="--best-of-k"):
    """Rejection sampling: the reward model's favourite of K becomes training data."""

    k: Annotated[int, Interval(ge=2), "with one there is nothing to choose"] = 4
    """Completions per prompt to choose from."""
    prompts: PositiveInt = 500
    """Prompts of the ppo split to sample on."""
    temperature: PositiveFloat | None = None
    """Temperature of the completions to choose from; None takes that of --sampling.temperature."""
    keep: Share = 1.0
    """Share of the winners to fine-tune on, the best-scored ones; 1 keeps the winner of every
    prompt."""
    threshold: float | None = None
    """Fine-tune on every finished completion that scores above this, not on the best of each
    prompt; SFT completions have mean 0 and standard deviation 1."""
    pool: bool = False
    """Choose among the completions of all rounds so far, scored anew by the newest reward model,
    so that earlier winners are not forgotten (Llama 2, arXiv 2307.09288 section 3.2.2)."""
    control: bool = False
    """Fine-tune a second time, on a random one of the K, as many and as long: what that gains, the
    choice has not earned."""
    lr: LearningRate = 1e-4
    """Peak learning rate of the fine-tuning on the winners, from the SFT adapter."""
    epochs: PositiveInt = 2
    """Passes over the winners."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold is not None and self.keep != 1:
            raise ValueError(
                f"--best-of-k.threshold keeps every completion above {self.threshold:g}, and "
                f"--best-of-k.keep {self.keep:g} would drop some of them; give --best-of-k.keep 1"
            )


@dataclass(frozen=True)
class Evaluate(Bounded, group="--evaluate"):
    """Every policy on prompts that no stage has seen."""

    prompts: Annotated[int, Gt(1)] = 300
    """Evaluation prompts."""
    max_cluster: Share = MAX_CLUSTER_SHARE
    """Share of the evaluation prompts that one cluster of near-duplicates may be, where prompts of
    your own are dealt; larger ones go to another split. 1 sets no bound."""
    bootstrap: PositiveInt = 2000
    """Resamples for a 95% interval, of whole clusters of near-duplicate prompts."""
    temperature: PositiveFloat | None = None
    """Temperature of the scores and of the KL from SFT; greedy answers stand beside them. None
    takes that of --sampling.temperature."""
    dev: bool = False
    """Answer the prompts of the split `dev` too, whose figures stand beside: tune on those."""
    rerank: bool = True
    """Choose among --best-of-k.k samples of SFT for each prompt too, by the reward model and by the
    judge: two arms that train nothing, for the time of that many samples."""
    shown: NonNegativeInt = 8
    """Prompts whose answers are shown side by side in the report."""
    split: Literal["eval", "dev"] = "eval"
    """`dev` is another set of prompts, for tuning: never tune on `eval`."""
    judge: str | None = None
    """The judge that compares the policies: gold, checks, reward:FOLDER, FILE.py:function or
    package.module:function. By default that of --inputs.judge; where people or `llm` rank, a second
    reward model trained on held-out rankings."""
    dev_prompts: NonNegativeInt | None = None
    """Prompts of `dev`; by default as many as --evaluate.prompts, and of your own files no more
    than the other splits leave over. 0 takes none of your own."""
    watts: NonNegativeFloat = 350.0
    """Power drawn while running, for the cost column."""
    usd_per_kwh: NonNegativeFloat = 0.30
    """Price of electricity, for the cost column."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.judge is None:
            return
        try:
            judge = parse_judge(self.judge)
        except ValueError as error:
            raise ValueError(f"--evaluate.judge {error}") from None
        if not judge.is_scorer:
            raise ValueError(
                f"--evaluate.judge {self.judge}: people and models that compare give win rates, "
                f"not scores; give {SCORERS}"
            )


SAMPLING_SECTIONS = {
    "sample": "rank",
    "ppo": "ppo",
    "best_of_k": "best_of_k",
    "grpo": "grpo",
    "rloo": "rloo",
    "evaluate": "evaluate",
}
"""Stages of the loop that sample completions, and the section of their settings."""


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
    """The model that ranks with --inputs.judge llm."""
    reward: Reward = field(default_factory=Reward)
    """Reward model."""
    ppo: PPO = field(default_factory=PPO)
    """PPO."""
    best_of_k: BestOfK = field(default_factory=BestOfK)
    """Best-of-K."""
    dpo: DPO = field(default_factory=DPO)
    """DPO."""
    grpo: GRPO = field(default_factory=GRPO)
    """GRPO."""
    rloo: RLOO = field(default_factory=RLOO)
    """RLOO."""
    watch: Watch = field(default_factory=Watch)
    """Looks at PPO, GRPO and RLOO by a scorer that does not give the reward."""
    evaluate: Evaluate = field(default_factory=Evaluate)
    """Evaluation."""


@dataclass(frozen=True)
class Loop(Bounded, Stages):
    """One run of the whole loop."""

    base: str = EMBEDDED
    """The frozen base: `embedded`, `smollm2`, a folder, a GGUF file, or a hub id."""
    template: Literal["brief", "alpaca", "chat"] = "alpaca"
    """Prompt template: `brief` and `alpaca` are text, `chat` is the tokenizer's own. The commands
    take `chat` for a new run where the base brings one and no template is given."""
    out: Path = Path("runs/loop")
    """Run folder."""
    seed: Seed = 0
    """Changes everything random."""
    inputs: Inputs = field(default_factory=Inputs)
    """The user's own files."""
    rounds: PositiveInt = 1
    """Times that ranking, reward and policy training are done, each from the last policy."""
    more_rounds: NonNegativeInt = 0
    """Rounds added to a run after it was begun, of prompts that its rounds have left over; the
    policies are compared anew at the end."""
    policies: tuple[PolicyName, ...] = ("ppo", "best-of-k")
    """The policies to train on preferences; in later rounds the first of them answers the prompts
    that are ranked."""
    checkpointing: Checkpointing = "auto"
    """Recompute activations in the backward pass: a third more work for far less memory, and the
    same results. A number n of 2 or more does so in each n-th layer alone; `half` is 2. `auto`
    recomputes all on a graphics card; --auto recomputes as few layers as the plan says leave room
    for at least 1,024 tokens at once."""
    compile: bool = False
    """Let torch compile norms and gated activations for training: fewer kernels on a card, the same
    numbers but for rounding. It needs a C++ compiler, on a card Triton, and a minute at the first
    step."""
    track: TrackerName = "none"
    """Send metrics to `tensorboard` (files in the run folder) or `wandb` (over the network) too."""

    def temperature_of(self, stage: str) -> float:
        """Temperature at which a stage samples: `sample`, `ppo`, `evaluate` ..."""
        section = getattr(self, SAMPLING_SECTIONS[stage])
        return self.sampling.temperature if section.temperature is None else section.temperature

    def checkpoints_on(self, device_kind: str) -> int:
        """Each n-th layer that is recomputed on a device of kind `cuda` or `cpu`; 0 for none."""
        if self.checkpointing == "auto":
            return int(device_kind == "cuda")
        if isinstance(self.checkpointing, int):
            return self.checkpointing
        return RECOMPUTED_EVERY[self.checkpointing]

    @property
    def all_rounds(self) -> int:
        """The rounds that the run was begun with, and those added since."""
        return self.rounds + self.more_rounds

    @property
    def policy_stages(self) -> tuple[str, ...]:
        """The stages that train the chosen policies, in the order of a round."""
        return tuple(map(stage_of, self.policies))

    @property
    def rewarded(self) -> bool:
        """True if a chosen policy learns from a reward."""
        return not set(self.policy_stages).isdisjoint(REWARDED_STAGES)

    @property
    def queues_uncertain(self) -> bool:
        """True if a reward model orders the prompts that people rank, from the second round on."""
        by_rankings = self.rewarded and self.reward.source == "rankings"
        return self.rank.queue == "uncertain" and by_rankings

    @property
    def curve_subsets(self) -> int:
        """Subsets of the rankings that a learning curve is drawn from."""
        by_people = self.inputs.judge == "human" and self.inputs.rankings is None
        return self.reward.curve if self.reward.curve is not None else 2 if by_people else 0

    @property
    def second_reward(self) -> bool:
        """True if a second reward model is trained to look at the policies."""
        return self.watch.every > 0 and self.watch.scorer is None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.checkpointing, int) and self.checkpointing < 2:
            raise ValueError(
                f"--checkpointing {self.checkpointing}: give `on` for every layer, `off` for none, "
                "or n of 2 or more for each n-th"
            )
        if not self.policies:
            raise ValueError(f"--policies names none; give at least one of {', '.join(POLICIES)}")
        # In the order of a round, however they were typed; frozen: how dataclasses set it.
        chosen = tuple(policy for policy in POLICIES if policy in self.policies)
        object.__setattr__(self, "policies", chosen)
        if self.ppo.value.warmup >= self.ppo.updates:
            raise ValueError(
                f"--ppo.value.warmup {self.ppo.value.warmup} must be below --ppo.updates "
                f"{self.ppo.updates}: in those updates the policy does not learn"
            )
        if self.ppo.control and (self.reward.source == "judge" or not self.reward.control):
            raise ValueError(
                "--ppo.control trains against the reward model of shuffled verdicts, which "
                "--reward.control trains from rankings; give both, or leave it out"
            )
        if self.best_of_k.pool and self.all_rounds == 1:
            raise ValueError(
                "--best-of-k.pool chooses among the completions of all rounds, and with --rounds 1 "
                "there are no others; give more rounds or leave it out"
            )
        if (self.inputs.judge == "llm") != (self.judge.url is not None):
            raise ValueError(
                "--inputs.judge llm and --judge.url URL belong together: give both, or take the "
                "address back with --judge.url None"
            )
        if self.reward.source == "judge" and not self.inputs.scorer:
            raise ValueError(
                f"--reward.source judge: --inputs.judge {self.inputs.judge} compares completions "
                f"and gives no scores; give {SCORERS}"
            )
        if self.reward.source == "judge" and self.inputs.rankings is not None:
            raise ValueError(
                "--reward.source judge: a judge gives the reward, and --inputs.rankings would "
                "train a reward model; leave one out"
            )
        if self.reward.source == "judge" and "dpo" in self.policies:
            raise ValueError(
                "--policies dpo learns from rankings, and with --reward.source judge nothing is "
                "ranked; leave one out"
            )
        self._refuse_judge_of_answers()
        if self.watch.every and self.watch.scorer is None and self.reward.source == "judge":
            raise ValueError(
                f"--watch.every {self.watch.every} needs a judge that does not give the reward: "
                "with --reward.source judge there are no rankings for a second reward model; give "
                f"--watch.scorer one of {SCORERS}"
            )
        if self.watch.every and {"ppo", "grpo", "rloo"}.isdisjoint(self.policies):
            raise ValueError(
                "--watch.every looks at PPO, GRPO and RLOO, and --policies names none of them; "
                "leave it out"
            )
        if self.watch.every and self.evaluate.split == "dev":
            raise ValueError(
                "--watch.every chooses the adapter on `dev`, and --evaluate.split dev would "
                "measure it there; leave one out"
            )
        if self.watch.every and self.evaluate.dev_prompts == 0:
            raise ValueError("--watch.every needs prompts: raise --evaluate.dev-prompts")
        if self.evaluate.split == "dev" and self.evaluate.dev_prompts == 0:
            raise ValueError("--evaluate.split dev needs prompts: raise --evaluate.dev-prompts")

    def _refuse_judge_of_answers(self) -> None:
        """Refuse a judge that cannot choose among the answers that the run is to generate.

        A recipe's file may have named what is refused, so the flags that take it back are named.

        Raises:
            ValueError: The run makes rows, and its judge gives no scores or knows no constraints.
        """
        generate, judge = self.generate, self.inputs.judge
        if not self.inputs.makes_rows:
            return
        if generate.recipe == "answers" and not self.inputs.scorer:
            flags = "--generate.recipe alpaca" + (" --generate.edit False" if generate.edit else "")
            raise ValueError(
                f"--inputs.judge {judge} compares completions and cannot say which answer of "
                f"--generate.recipe answers to keep; give {flags}, or a judge that scores: "
                f"{SCORERS}"
            )
        if generate.edit and judge != "checks":
            raise ValueError(
                f"--inputs.judge {judge}: drafts are edited for the constraints of `checks` alone; "
                "give --generate.edit False"
            )
