"""The contract of `report.json` (schema 1), and everything else that a report shows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from alpaca_rlhf.core.sizes import too_few
from alpaca_rlhf.report.duel import Duel
from alpaca_rlhf.report.formatting import count, interval, number
from alpaca_rlhf.report.policy_names import POLICIES, POLICY_NAME, policy_order
from alpaca_rlhf.report.schema_types import Count, Interval, NonNegative, Number, Round, Share
from alpaca_rlhf.settings.policies import REWARDED_STAGES

SLICES = {
    "seen_facts_train_phrasings": "Known facts, known phrasings",
    "held_out_facts": "Held-out facts",
    "trained": "Trained kinds, trained phrasings",
    "held_out_kinds": "Held-out kinds of task",
    "held_out_phrasings": "Held-out phrasings",
}
"""Parts of the evaluation prompts that have figures of their own, and their titles."""
HELD_OUT_JUDGE = "reward model trained on held-out rankings"
"""Name of the judge in reports of runs that people or a model that compares has ranked."""


def _policy_name(name: str) -> str:
    if not POLICY_NAME.fullmatch(name):
        raise ValueError("must be a policy's name")
    return name


class _Object(BaseModel):
    """Keys beyond the contract are welcome; they may hold anything that JSON can."""

    model_config = ConfigDict(extra="allow", frozen=True)


class Base(_Object):
    """The frozen base model."""

    name: str
    parameters: Count
    quantization: str


class Stage(_Object):
    """Costs of one stage of one round."""

    name: Literal[
        "generate",
        "sft",
        "sample",
        "rank",
        "reward",
        "ppo",
        "best_of_k",
        "dpo",
        "grpo",
        "rloo",
        "evaluate",
    ]
    round: Round
    seconds: NonNegative
    peak_memory_gib: NonNegative
    examples: Count
    tokens: Count
    cost_usd: NonNegative
    gpu_memory_gib: Number | None = None
    planned_memory_gib: Number | None = None


class Prompts(_Object):
    """Sizes of the splits, and how many prompts lie in two of them."""

    sft: Count
    rank: Count
    ppo: Count
    eval: Count
    overlap: Count
    eval_clusters: Count | None = None
    """Clusters of near-duplicates among the evaluation prompts."""

    @property
    def units(self) -> str:
        """Units that the intervals of policies are resampled over, independent of each other."""
        clustered = self.eval_clusters not in (None, self.eval)
        return "clusters of near-duplicate prompts" if clustered else "prompts"

    @property
    def independent(self) -> str:
        """Those units with their number."""
        n_units = self.eval if self.eval_clusters is None else self.eval_clusters
        return f"{count(n_units)} {self.units}"


class InputFile(_Object):
    """The rows of one of the user's files."""

    file: str
    rows: Count
    used: int
    left_out: dict[str, Count] = {}
    """Rows that were not used, by reason."""
    partly_left_out: dict[str, Count] = {}
    """Records that were not used, of rows that were used for others, by reason."""
    answers_left_out: dict[str, Count] = {}
    """Answers of used rows that stand in no ranking, by reason."""
    unread_columns: dict[str, Count] = {}
    """Columns that were not read, and in how many rows each stands."""


class RoundStanding(_Object):
    """Standing of a round's prompts when its rankings were taken."""

    round: int
    """From 1."""
    prompts: int
    """Prompts of the round."""
    ranked: int
    """Ranked by a person."""
    skipped: int
    """Skipped or flagged, and ranked by nobody."""
    closed: int
    """Closed or left out by an admin."""
    waiting: int
    """Not ranked, because fewer were enough."""


class PairAccuracy(_Object):
    """Held-out accuracy on one kind of pair."""

    kind: str = Field(alias="is")
    pairs: Count
    prompts: Count | None = None
    accuracy: Share
    ci95: Interval

    @property
    def too_few(self) -> bool:
        """True where there are too few pairs or prompts for an interval."""
        return too_few(self.pairs, self.prompts)


class Baseline(_Object):
    """Held-out accuracy of a rule that has learned nothing, and the reward model's lead over it."""

    kind: str = Field(alias="is")
    accuracy: Share
    ci95: Interval
    lead: Number
    lead_ci95: Interval


class BesideBaselines(_Object):
    """Accuracy of a reward model, beside that of rules which learn nothing on the same pairs."""

    baselines: list[Baseline] = []

    @property
    def best_baseline(self) -> Baseline | None:
        """The most accurate of the baselines."""
        return max(self.baselines, key=lambda baseline: baseline.accuracy, default=None)


class JudgeAccuracy(BesideBaselines):
    """A reward model that judges, on pairs that it has not seen."""

    trained_pairs: Count
    pairs: Count
    prompts: Count
    accuracy: Share
    ci95: Interval

    @property
    def too_few(self) -> bool:
        """True where there are too few pairs or prompts for an interval."""
        return too_few(self.pairs, self.prompts)


class SecondReward(JudgeAccuracy):
    """A reward model that looks at policies, trained on rankings that the first has not seen."""

    used: bool
    """False where its accuracy is below `--reward.gate`, so that it looks at nothing."""


class CurvePoint(_Object):
    """Held-out accuracy of a reward model that has learned from so many rankings."""

    rankings: Count
    accuracy: Share
    ci95: Interval


class MoreRankings(_Object):
    """The gain in accuracy from half of the rankings to all of them."""

    rankings: Count
    prompts: Count | None = None
    """Held-out prompts that the gain is measured on."""
    gain: Number
    ci95: Interval
    verdict: Literal["helps", "levelled", "unclear"]


class RewardModel(BesideBaselines):
    """A reward model on pairs that it has not seen."""

    round: Round
    pairs: Count
    held_out_accuracy: Share
    ci95: Interval
    shuffled_label_accuracy: Share | None
    """None where no control was trained."""
    shuffled_label_ci95: Interval | None = None
    held_out_pairs: Count | None = None
    held_out_prompts: Count | None = None
    accuracy_by: dict[str, list[PairAccuracy]] = {}
    log_loss: Number | None = None
    calibration_error: Number | None = None
    saturated: Number | None = None
    length_correlation: Number | None = None
    length_rank_correlation: Number | None = None
    learning_curve: list[CurvePoint] = []
    """Points of nested subsets of the rankings, all of them last; empty where none was asked."""
    more_rankings: MoreRankings | None = None
    """The gain of the last doubling of the rankings."""
    second: SecondReward | None = None
    """The second reward model of the round; None where none was asked for."""
    heads: Count | None = None
    """Heads of the ensemble; None where there is one head."""
    pessimism: Number | None = None
    """Standard deviations of the heads that the score lies below their mean."""
    mean_accuracy: Share | None = None
    """Held-out accuracy of the mean of the heads."""
    disagreement: Number | None = None
    """Mean standard deviation of the heads' scores of a held-out completion."""

    @property
    def too_few(self) -> bool:
        """True where there are too few held-out pairs or prompts for an interval."""
        return too_few(self.held_out_pairs, self.held_out_prompts)


class BestOfK(_Object):
    """Candidates of a round of best-of-K, and the completions chosen among them."""

    round: Round
    k: Count
    candidates: Count
    finished: Count
    winners: Count
    mean_score: Number
    mean_best_score: Number
    expected_best_score: Annotated[list[Number], Field(min_length=1)]
    sampler_kl_bound_nats: NonNegative


class SliceScore(_Object):
    """A policy's gold score on one slice of the evaluation prompts."""

    gold_score: Number
    ci95: Interval
    n: Count
    clusters: Count | None = None
    """Clusters of near-duplicates among them, which the interval resamples."""

    @property
    def too_few(self) -> bool:
        """True where there are too few prompts, or clusters of them, for an interval."""
        return too_few(self.n, self.clusters)


class PartScore(SliceScore):
    """A policy on one part of the prompts, and its gain over SFT there."""

    gold_score_greedy: Number
    paired_gain_vs_sft: Number
    paired_gain_ci95: Interval


class Policy(_Object):
    """A policy on the evaluation prompts."""

    gold_score: Number
    ci95: Interval
    gold_score_greedy: Number
    gold_score_greedy_ci95: Interval | None = None
    paired_gain_vs_sft: Number
    paired_gain_ci95: Interval
    greedy_gain_vs_sft: Number | None = None
    greedy_gain_ci95: Interval | None = None
    gold_parts: dict[str, Number]
    gold_parts_greedy: dict[str, Number]
    win_rate_vs_sft: Share
    win_rate_ci95: Interval
    paired_gain_vs_control: Number | None = None
    paired_gain_vs_control_ci95: Interval | None = None
    proxy_score: Number | None = None
    kl_from_sft_nats: Number
    kl_from_sft_k3_nats: NonNegative | None = None
    stop_rate: Share
    mean_tokens: NonNegative
    held_out_kinds: PartScore | None = None
    held_out_phrasings: PartScore | None = None
    dev: PartScore | None = None


class WatchLook(_Object):
    """A policy on the watched prompts after some updates; means over them."""

    step: Count
    watch_score: Number
    watch_reward: Number
    watch_kl: Number
    watch_tokens: NonNegative


class WatchedPolicy(_Object):
    """The looks at a policy while it trained."""

    start: WatchLook
    looks: Annotated[list[WatchLook], Field(min_length=1)]
    kept_step: Count
    stopped: bool
    words: list[str]
    scorer: str
    """The judge that looked, and did not give the reward."""

    @property
    def kept(self) -> WatchLook:
        """The look whose adapter was kept."""
        return next(look for look in self.looks if look.step == self.kept_step)


class Report(_Object):
    """The content of `report.json`."""

    version: Literal[1] = Field(alias="schema")
    seed: int = 0
    base: Base
    judge: str = "gold"
    judge_accuracy: JudgeAccuracy | None = None
    """Size and accuracy of the reward model that judges; None where none does."""
    temperatures: dict[str, NonNegative] = {}
    """Temperature at which each stage sampled; 1 where it is not said."""
    annotator: dict[str, Number] = {}
    """`noise` (the setting), `measured_wrong_share` and `verdicts`, where a judge ranked."""
    stages: list[Stage]
    prompts: Prompts
    files: list[InputFile] = []
    standings: list[RoundStanding] = []
    reward_models: list[RewardModel]
    best_of_k: list[BestOfK] = []
    policies: dict[Annotated[str, AfterValidator(_policy_name)], Policy]
    slices: dict[str, dict[str, SliceScore]] = {}
    """Policy to slice, as in `SLICES`, to score."""
    generation: dict[str, Any] = {}
    watches: dict[str, WatchedPolicy] = {}
    """Policies, and controls of PPO, that were looked at while they trained, by stage."""
    duel: Duel | None = None
    """Policies of one SFT adapter and one set of rankings against each other; None below two."""

    @property
    def judged_by_gold(self) -> bool:
        """True where a gold judge gave the scores: then they have parts, `correct` among them."""
        return self.judge == "gold"

    @property
    def judged_by_reward_model(self) -> bool:
        """True where a reward model trained on held-out rankings gave the scores."""
        return self.judge == HELD_OUT_JUDGE

    @property
    def judge_phrase(self) -> str:
        """The judge, within a sentence."""
        if self.judged_by_gold:
            return "the gold judge"
        return f"a {self.judge}" if self.judged_by_reward_model else f"the judge {self.judge}"

    @property
    def rewarded_by_judge(self) -> bool:
        """True where a judge gave the reward, and no reward model was trained."""
        rewarded = any(stage.name in REWARDED_STAGES for stage in self.stages)
        return not self.reward_models and rewarded

    @property
    def score_name(self) -> str:
        """Name of the score that policies are compared by."""
        return "Gold score" if self.judged_by_gold else "Judge's score"

    @property
    def judged_by(self) -> str:
        """The judge in words, with its size and accuracy where it is a reward model."""
        measured = self.judge_accuracy
        if measured is None:
            return self.judge_phrase
        ends = "" if measured.too_few else f" ({interval(measured.ci95)})"
        best, beside = measured.best_baseline, ""
        if best is not None:
            beside = f", where “{best.kind}” alone is right on {number(best.accuracy)}"
        return (
            f"a second reward model, trained on {count(measured.trained_pairs)} held-out pairs: "
            f"accuracy {number(measured.accuracy)}{ends} on {count(measured.pairs)} others{beside}"
        )

    @property
    def temperature(self) -> str:
        """Temperature of the evaluation's samples, e.g. `temperature 0.7`."""
        return f"temperature {self.temperatures.get('evaluate', 1.0):g}"

    @property
    def too_few(self) -> bool:
        """True where there are too few evaluation prompts, or clusters, for an interval."""
        return too_few(self.prompts.eval, self.prompts.eval_clusters)

    @property
    def ordered(self) -> list[tuple[str, Policy]]:
        """(name, policy) in the order of the loop."""
        return [(name, self.policies[name]) for name in policy_order(self.policies)]

    @property
    def trained(self) -> list[str]:
        """Policies trained on preferences, in the order of the loop."""
        return [name for name, _ in self.ordered if POLICIES[name.partition(".")[0]].trained]

    @property
    def unwatched(self) -> list[str]:
        """Policies trained in updates that nobody looked at: the last adapter of each was kept."""
        in_updates = ("ppo", "grpo", "rloo")
        trained = (name for name in self.trained if name.partition(".")[0] in in_updates)
        return [name for name in trained if name not in self.watches]

    def is_watched_alone(self, name: str) -> bool:
        """True where looks chose the adapter of a policy and not that of its control."""
        return name in self.watches and name.replace("ppo", "ppo_shuffled", 1) not in self.watches

    @property
    def unused_scorers(self) -> list[SecondReward]:
        """Second reward models that were trained to look, and were too often wrong."""
        seconds = (model.second for model in self.reward_models)
        return [second for second in seconds if second is not None and not second.used]

    @property
    def scorers(self) -> list[tuple[str, JudgeAccuracy]]:
        """Reward models that score policies and train none, each with its task."""
        scorers: list[tuple[str, JudgeAccuracy]] = []
        if self.judge_accuracy is not None:
            scorers.append(("judges all policies", self.judge_accuracy))
        for model in self.reward_models:
            if model.second is not None and model.second.used:
                scorers.append((f"looks at the policies of round {model.round}", model.second))
        return scorers

    @property
    def peak_memory_gib(self) -> float:
        """The highest of all stages."""
        return max((stage.peak_memory_gib for stage in self.stages), default=0.0)

    @model_validator(mode="after")
    def _policies_share_their_parts(self) -> Report:
        """Check that SFT is there and that every policy has the parts of the score that it has."""
        if "sft" not in self.policies:
            raise ValueError("policies.sft is missing")
        parts = set(self.policies["sft"].gold_parts)
        required = parts | ({"correct"} if self.judged_by_gold else set())
        for name, policy in self.policies.items():
            for key in ("gold_parts", "gold_parts_greedy"):
                present = set(getattr(policy, key))
                missing, surplus = sorted(required - present), sorted(present - parts)
                if missing:
                    raise ValueError(f"policies.{name}.{key}.{missing[0]} is missing")
                if surplus:
                    message = "must hold the parts that SFT's gold_parts hold"
                    raise ValueError(f"policies.{name}.{key} {message}, got {surplus[0]}")
        return self


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows. Only `report` is written to `report.json`."""

    report: Mapping[str, Any]
    """The content of `report.json`, as `Report` describes it."""
    metrics: Sequence[Mapping[str, Any]] = ()
    """Rows of `metrics.jsonl`: `stage` (`sft`, `reward`, `reward_shuffled`, `ppo` ...; `.2` is
    round 2), `step` and numbers. `generate` rows hold counts so far: `requests`, `accepted` and
    `rejected_<rule>`."""
    answers: Sequence[Mapping[str, Any]] = ()
    """`{"instruction", "input", "answers": {policy: {"text", "gold"}}}`, a prompt each; for a
    conversation also `history`, the earlier turns as (question, reply) pairs."""
    settings_yaml: str = ""
    """The resolved settings."""
    machine: str = ""
    """The machine it ran on, in a few words."""
    command: str = ""
    """The command that was typed."""
    next_commands: Sequence[str] = ()
    """Commands to run next."""
    caveats: Sequence[str] = ()
    """Conclusions that a reader should not draw, a sentence or two each."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """Versions, commit, fingerprints: name to value."""


def validate_report(report: Mapping[str, Any]) -> Report:
    """Read `report` by the contract of `report.json`.

    Raises:
        ValueError: A key is missing, or its value has the wrong type, is not finite, lies outside
            its range or is an interval out of order; the message names the key.
    """
    # 1. Check the keys of the contract: types, ranges, and what several keys promise together.
    try:
        typed = Report.model_validate(report)
    except ValidationError as error:
        raise ValueError(f"report.json: {_first_problem(error)}") from None
    # 2. Check the keys beyond it, which may hold anything that JSON can.
    for key, value in _not_json(report, ""):
        raise ValueError(f"report.json: {key} must be finite, plain JSON, got {value!r:.80}")
    return typed


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"] if part != "[key]")
    message = problem["msg"].removeprefix("Value error, ")
    if not key:  # a check over several policies names its keys itself
        return message
    if problem["type"] == "missing":
        return f"{key} is missing"
    return f"{key} {message.replace('Input should', 'must', 1)}, got {problem['input']!r:.80}"


def _not_json(value: object, key: str) -> Iterator[tuple[str, object]]:
    """(key, value) of everything in `value` that JSON cannot hold."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            if not isinstance(name, str):
                yield f"{key}{name}", name
            yield from _not_json(part, f"{key}{name}.")
    elif isinstance(value, list | tuple):
        for position, part in enumerate(value):
            yield from _not_json(part, f"{key}{position}.")
    elif not (value is None or isinstance(value, str | int | float)) or (
        isinstance(value, float) and not math.isfinite(value)
    ):
        yield key.rstrip("."), value
