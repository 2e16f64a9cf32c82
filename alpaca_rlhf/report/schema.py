"""What a report is made of, and the contract of `report.json` (schema 1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from alpaca_rlhf.report.markup import POLICY_NAME, finite

STAGES = ("generate", "sft", "sample", "rank", "reward", "ppo", "best_of_k", "evaluate")
"""Names that a stage of `report.json` may have."""
SLICES = {
    "seen_facts_train_phrasings": "Known facts, known phrasings",
    "held_out_facts": "Held-out facts",
    "held_out_phrasings": "Held-out phrasings",
}
"""Parts of the evaluation prompts that are reported apart."""


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows. Only `report` is written to `report.json`."""

    report: Mapping[str, Any]
    """The content of `report.json`. Keys beyond the contract are welcome; the page reads some:
    `judge`, if it is not `gold`, `gold_score_greedy_ci95` and `kl_from_sft_k3_nats` of a policy,
    of a reward model `shuffled_label_ci95`, `accuracy_by` and the figures of its held-out pairs,
    and `best_of_k`, a round each."""
    metrics: Sequence[Mapping[str, Any]] = ()
    """Rows of `metrics.jsonl`: `stage` (`sft`, `reward`, `reward_shuffled`, `ppo` ...; `.2` is
    round 2), `step` and numbers. `generate` rows hold counts so far: `requests`, `accepted` and
    `rejected_<rule>`."""
    answers: Sequence[Mapping[str, Any]] = ()
    """`{"instruction", "input", "answers": {policy: {"text", "gold"}}}`, a prompt each; of a
    conversation `history` too, the earlier turns as pairs of what was said and the reply."""
    slices: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    """`{policy: {slice: {"gold_score", "ci95", "n"}}}`, the slices as in `SLICES`."""
    annotator: Mapping[str, float] = field(default_factory=dict)
    """`noise` (the setting), `measured_wrong_share` and `verdicts`."""
    settings_yaml: str = ""
    """The resolved settings."""
    machine: str = ""
    """Where it ran, in a few words."""
    seed: int = 0
    """The seed of the run."""
    command: str = ""
    """The command that was typed."""
    next_commands: Sequence[str] = ()
    """What to run next."""
    caveats: Sequence[str] = ()
    """What a reader should not conclude, a sentence or two each."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """Versions, commit, fingerprints: name to value."""


def validate_report(report: Mapping[str, Any]) -> None:
    """Check that `report` keeps the contract of `report.json`.

    Raises:
        ValueError: a key is missing, or its value has the wrong type, is not finite, lies outside
            its range or is an interval out of order; the message names the key.
    """
    _keys(report, "", _REPORT)
    for kind, rules in (("stages", _STAGE), ("reward_models", _REWARD)):
        for place, row in enumerate(report[kind]):
            _keys(_mapping(row, f"{kind}.{place}"), f"{kind}.{place}.", rules)
    _keys(report["base"], "base.", _BASE)
    _keys(report["prompts"], "prompts.", _PROMPTS)
    _check("sft" in report["policies"], "policies.sft", "be there", None)
    parts = set(_mapping(report["policies"]["sft"], "policies.sft").get("gold_parts", {}))
    always = ["correct"] if judged_by_gold(report) else []
    for name, policy in report["policies"].items():
        where = f"policies.{name}"
        _check(bool(POLICY_NAME.fullmatch(name)), where, "be a policy's name", name)
        _keys(_mapping(policy, where), where + ".", _POLICY)
        for key in ("gold_parts", "gold_parts_greedy"):
            rules = dict.fromkeys([*always, *sorted(parts)], _number)
            _keys(policy[key], f"{where}.{key}.", rules)
            extra = ", ".join(sorted(set(policy[key]) - parts))
            _check(not extra, f"{where}.{key}", "hold the parts that SFT's gold_parts hold", extra)
        if "gold_score_greedy_ci95" in policy:
            _interval(policy["gold_score_greedy_ci95"], where + ".gold_score_greedy_ci95")
        if "kl_from_sft_k3_nats" in policy:
            _positive(policy["kl_from_sft_k3_nats"], where + ".kl_from_sft_k3_nats")
    _list(report.get("best_of_k", []), "best_of_k")
    for place, row in enumerate(report.get("best_of_k", [])):
        _keys(_mapping(row, f"best_of_k.{place}"), f"best_of_k.{place}.", _BEST_OF_K)
    for place, row in enumerate(report["reward_models"]):
        if "shuffled_label_ci95" in row:
            _interval(row["shuffled_label_ci95"], f"reward_models.{place}.shuffled_label_ci95")
        key = f"reward_models.{place}.accuracy_by"
        for kind, parts in _mapping(row.get("accuracy_by", {}), key).items():
            _list(parts, f"{key}.{kind}")
            for number, part in enumerate(parts):
                where = f"{key}.{kind}.{number}"
                _keys(_mapping(part, where), where + ".", _KIND)
    _all_finite(report, "")


def judged_by_gold(report: Mapping[str, Any]) -> bool:
    """Whether a gold judge gave the scores: then their parts are there, `correct` among them."""
    return bool(report.get("judge", "gold") == "gold")


def _check(holds: bool, key: str, must: str, value: object) -> None:
    if not holds:
        shown = repr(value)
        raise ValueError(f"report.json: {key} must {must}, got {shown[:80]}")


def _keys(values: Mapping[str, Any], prefix: str, rules: Mapping[str, _Rule]) -> None:
    for key, rule in rules.items():
        if key not in values:
            raise ValueError(f"report.json: {prefix}{key} is missing")
        rule(values[key], prefix + key)


def _mapping(value: Any, key: str) -> Mapping[str, Any]:
    holds = isinstance(value, Mapping) and all(isinstance(one, str) for one in value)
    _check(holds, key, "be an object", value)
    mapping: Mapping[str, Any] = value
    return mapping


def _list(value: Any, key: str) -> None:
    _check(isinstance(value, list | tuple), key, "be a list", value)


def _numbers(value: Any, key: str) -> None:
    holds = isinstance(value, list | tuple) and bool(value) and all(map(finite, value))
    _check(holds, key, "be a list of finite numbers", value)


def _text(value: Any, key: str) -> None:
    _check(isinstance(value, str), key, "be text", value)


def _number(value: Any, key: str) -> None:
    _check(finite(value), key, "be a finite number", value)


def _positive(value: Any, key: str) -> None:
    _check(finite(value) and value >= 0, key, "be a finite number of at least 0", value)


def _share(value: Any, key: str) -> None:
    _check(finite(value) and 0 <= value <= 1, key, "be a number from 0 to 1", value)


def _count(value: Any, key: str) -> None:
    holds = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    _check(holds, key, "be a whole number of at least 0", value)


def _interval(value: Any, key: str) -> None:
    pair = isinstance(value, list | tuple) and len(value) == 2 and all(map(finite, value))
    _check(pair and value[0] <= value[1], key, "be two finite numbers, the lower first", value)


def _schema(value: Any, key: str) -> None:
    _check(value == 1 and not isinstance(value, bool), key, "be 1", value)


def _stage(value: Any, key: str) -> None:
    _check(value in STAGES, key, f"be one of {', '.join(STAGES)}", value)


def _round(value: Any, key: str) -> None:
    _count(value, key)
    _check(value >= 1, key, "be at least 1", value)


def _all_finite(value: Any, key: str) -> None:
    """Keys beyond the contract may hold anything JSON can: text, truth, lists, finite numbers."""
    if isinstance(value, Mapping):
        for name, one in value.items():
            _check(isinstance(name, str), f"{key}{name}", "be a text key", name)
            _all_finite(one, f"{key}{name}.")
    elif isinstance(value, list | tuple):
        for place, one in enumerate(value):
            _all_finite(one, f"{key}{place}.")
    elif isinstance(value, float):
        _check(math.isfinite(value), key.rstrip("."), "be finite", value)
    else:
        plain = value is None or isinstance(value, str | bool | int)
        _check(plain, key.rstrip("."), "be plain JSON", value)


_Rule = Callable[[Any, str], object]
_REPORT: dict[str, _Rule] = {
    "schema": _schema,
    "base": _mapping,
    "stages": _list,
    "prompts": _mapping,
    "reward_models": _list,
    "policies": _mapping,
}
_BASE: dict[str, _Rule] = {"name": _text, "parameters": _count, "quantization": _text}
_STAGE: dict[str, _Rule] = {
    "name": _stage,
    "round": _round,
    "seconds": _positive,
    "peak_memory_gib": _positive,
    "examples": _count,
    "tokens": _count,
    "cost_usd": _positive,
}
_PROMPTS: dict[str, _Rule] = dict.fromkeys(("sft", "rank", "ppo", "eval", "overlap"), _count)
_REWARD: dict[str, _Rule] = {
    "round": _round,
    "pairs": _count,
    "held_out_accuracy": _share,
    "ci95": _interval,
    "shuffled_label_accuracy": _share,
}
_KIND: dict[str, _Rule] = {"is": _text, "pairs": _count, "accuracy": _share, "ci95": _interval}
_BEST_OF_K: dict[str, _Rule] = {
    "round": _round,
    "k": _count,
    "candidates": _count,
    "finished": _count,
    "winners": _count,
    "mean_score": _number,
    "mean_best_score": _number,
    "expected_best_score": _numbers,
    "sampler_kl_bound_nats": _positive,
}
_POLICY: dict[str, _Rule] = {
    "gold_score": _number,
    "ci95": _interval,
    "gold_score_greedy": _number,
    "paired_gain_vs_sft": _number,
    "paired_gain_ci95": _interval,
    "gold_parts": _mapping,
    "gold_parts_greedy": _mapping,
    "win_rate_vs_sft": _share,
    "win_rate_ci95": _interval,
    "kl_from_sft_nats": _number,
    "stop_rate": _share,
    "mean_tokens": _positive,
}
