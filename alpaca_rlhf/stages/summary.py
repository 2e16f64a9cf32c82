"""The report of a finished run: `report.json` and `report.html`, from what its stages recorded."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.shell_words import quoted
from alpaca_rlhf.data import answered_prompts, check_disjoint
from alpaca_rlhf.evaluation.accuracy_words import judge_in_words
from alpaca_rlhf.report.render import write_report
from alpaca_rlhf.report.schema import HELD_OUT_JUDGE, ReportData
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.settings.loop import SAMPLING_SECTIONS
from alpaca_rlhf.settings.parsing import to_yaml
from alpaca_rlhf.settings.policies import POLICY_STAGES
from alpaca_rlhf.settings.steps import suffixed
from alpaca_rlhf.stages.context import Context, second_of
from alpaca_rlhf.stages.duel import contenders, duel_of

logger = logging.getLogger(__name__)

_LABORATORY = (
    "The embedded base is a laboratory animal: a few million parameters that know one small "
    "world. It shows that every stage works and learns; it says nothing about how well a real "
    "LLaMA will do."
)
_NOISE = (
    "The rankings come from the gold judge with some verdicts turned round on purpose, standing "
    "in for people. The policies are compared by the same judge without that noise; the reward "
    "model that trained them has no say in it."
)
_HELD_OUT_CAVEAT = (
    "No gold judge knows these tasks. The scores come from a second reward model, trained only on "
    "rankings that the first one has not seen; read them as what that model would prefer, and "
    "read the answers yourself."
)
_SAME_JUDGE = (
    "The rankings come from the judge {judge}, and the same judge compares the policies; the "
    "reward model that trained them has no say in it. The scores say how well that judge is "
    "pleased, and nothing else: read the answers yourself."
)
_OTHER_JUDGE = (
    "The policies are compared by the judge {judge}, which had no say in their training. The "
    "scores say how well that judge is pleased, and nothing else: read the answers yourself."
)
_JUDGE_AS_REWARD = (
    "The reward of the policies came from the judge {judge} itself: there is no reward model "
    "here, nor a gate on its accuracy. What it rewards by mistake, the policies have learned too."
)
_SAME_RANKINGS = (
    "The second reward model that chose among the adapters of a policy, and the one that compares "
    "the policies, have learned from the same held-out rankings: what the one takes for good by "
    "mistake, the other may too."
)
_ADOPTED = (
    "SFT is somebody else's adapter. What it was trained on was not given, so that nobody can say "
    "whether prompts of this run were among it."
)
_UNTRAINED = (
    "SFT is the base as it is: no rows were given. What it was trained on is not known here, so "
    "that nobody can say whether prompts of this run were among it."
)
_STAGE_KEYS = ("name", "round", "seconds", "peak_memory_gib", "examples", "tokens")
_MEMORY_KEYS = ("planned_memory_gib", "gpu_memory_gib")


def write_summary(ctx: Context, *, command: str, stages: Sequence[Mapping[str, Any]]) -> None:
    """Write the report of a finished run; `stages` are the finished stages' ledger rows."""
    evaluated = ctx.run.done("evaluate")
    base = ctx.run.done("base")
    assert evaluated is not None and base is not None
    settings = ctx.settings.evaluate
    judge = ctx.judges.evaluates
    report = {
        "schema": 1,
        "seed": ctx.settings.seed,
        "base": {key: base[key] for key in ("parameters", "quantization")}
        | {"name": ctx.settings.base},
        "judge": HELD_OUT_JUDGE if judge is None else judge.title,
        "judge_accuracy": _accuracy_of_judge(ctx) if judge is None else None,
        "annotator": _annotator(ctx),
        "temperatures": _temperatures(ctx.settings),
        "stages": [_stage(ctx, row) for row in stages],
        "prompts": _prompts(ctx) | {"eval_clusters": evaluated["facts"].get("clusters")},
        "files": _files(ctx),
        "standings": _standings(ctx),
        "reward_models": _facts_by_round(ctx, "reward"),
        "best_of_k": _facts_by_round(ctx, "best_of_k"),
        "policies": evaluated["facts"]["policies"],
        "slices": evaluated["facts"]["slices"],
        "generation": (ctx.run.done("generate") or {}).get("facts", {}),
        "watches": _watches(ctx),
    }
    report["duel"] = _duel(ctx, str(report["judge"]))
    # A stride through the evaluation prompts, so that all their parts are shown.
    stride = max(1, settings.prompts // max(1, settings.shown))
    provenance = ctx.run.read_json("provenance.json")
    machine = provenance["hardware"]
    data = ReportData(
        report=report,
        metrics=ctx.run.metrics(),
        answers=ctx.run.read_jsonl("answers.jsonl")[::stride][: settings.shown],
        settings_yaml=to_yaml(ctx.settings),
        machine=f"{machine['cpu']}, {machine['cores']} cores, {machine['ram_gib']} GiB",
        command=command,
        next_commands=(
            f"alpaca-rlhf chat --run {quoted(ctx.run.path)}",
            "alpaca-rlhf loop --help   # the same with a base of your own",
        ),
        caveats=_caveats(ctx),
        provenance=_flat(provenance),
    )
    write_report(ctx.run.path, data)


def _temperatures(settings: Loop) -> dict[str, float]:
    """Temperature of each stage that samples, but for policies that were not chosen."""
    left_out = {*POLICY_STAGES} - {*settings.policy_stages}
    return {
        stage: settings.temperature_of(stage)
        for stage in SAMPLING_SECTIONS
        if stage not in left_out
    }


def _watches(ctx: Context) -> dict[str, Any]:
    """The looks at each policy that was watched, controls too, and their scorer."""
    watches = {
        name: row.get("facts", row).get("watch")  # a control's row is its facts
        for name, row in ctx.run.ledger().items()
    }
    return {
        name: {**watch, "scorer": _scorer(ctx, name)} for name, watch in watches.items() if watch
    }


def _scorer(ctx: Context, policy: str) -> str:
    """The scorer of a policy's looks, with its accuracy where it is a second reward model."""
    if not ctx.settings.second_reward:
        return ctx.settings.watch.scorer or ""
    _, _, number = policy.partition(".")
    second = ctx.run.done(second_of(suffixed("reward", int(number or 1))))
    assert second is not None
    return judge_in_words(second)


def _duel(ctx: Context, judge: str) -> dict[str, Any] | None:
    """The duel of the policies, where there are two that can be compared."""
    ledger = ctx.run.ledger()
    if len(contenders(ledger)) < 2:
        return None
    try:
        return duel_of(ctx.run, ledger, ctx.settings, ctx.source, judge=judge)
    except UserError as error:
        logger.warning("no duel: %s", error)
        return None


def _caveats(ctx: Context) -> list[str]:
    inputs = ctx.settings.inputs
    adopted = inputs.sft_adapter is not None and inputs.rows is None
    ranks, evaluates = ctx.judges.ranks, ctx.judges.evaluates
    caveats = [_LABORATORY] if inputs.prompts_from == "small world" else []
    if evaluates is None:
        caveats.append(_HELD_OUT_CAVEAT)
    elif ranks is evaluates and evaluates.name.kind == "gold":
        caveats.append(_NOISE)
    elif ranks is evaluates:
        caveats.append(_SAME_JUDGE.format(judge=evaluates.title))
    else:
        caveats.append(_OTHER_JUDGE.format(judge=evaluates.title))
    if evaluates is None and ctx.settings.second_reward and _watches(ctx):
        caveats.append(_SAME_RANKINGS)
    if ctx.settings.reward.source == "judge" and ranks is not None:
        caveats.append(_JUDGE_AS_REWARD.format(judge=ranks.title))
    if ctx.settings.inputs.untrained:
        caveats.append(_UNTRAINED)
    return [*caveats, _ADOPTED] if adopted else caveats


def _stage(ctx: Context, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the report's stages: costs of one, in seconds, GiB and dollars."""
    settings = ctx.settings.evaluate
    kwh = row["seconds"] / 3600 * settings.watts / 1000
    electricity = kwh * settings.usd_per_kwh
    teacher = row["facts"].get("endpoint", {}).get("usd") or 0.0
    costs = {key: row[key] for key in _STAGE_KEYS}
    memory = {key: row[key] for key in _MEMORY_KEYS if key in row}
    return costs | memory | {"cost_usd": electricity + teacher}


def _prompts(ctx: Context) -> dict[str, int]:
    """Sizes of the splits, rounds added up, and how many prompts lie in two of them."""
    splits = ctx.splits()
    counts = {
        name: sum(len(rows) for split, rows in splits.items() if split.split(".")[0] == name)
        for name in ("sft", "rank", "ppo", "eval")
    }
    answered = {**splits, "sft": answered_prompts(splits["sft"])}
    return counts | {"overlap": check_disjoint(answered, ctx.source.key, raise_on_leak=False)}


def _files(ctx: Context) -> list[dict[str, Any]]:
    """The rows of each of the user's files: used or left out, by reason.

    The stages that train have the accounts of theirs: rows that are too long, conversations that
    the chat template alters, and rankings in which nobody wins, were counted when they were
    encoded.
    """
    stages = ["sft", *(suffixed(name, ctx.settings.all_rounds) for name in ("dpo", "reward"))]
    accounts = [account.to_json() for account in ctx.source.accounts]
    for stage in stages:
        trained = ((ctx.run.done(stage) or {}).get("facts") or {}).get("rows") or {}
        account = next((each for each in accounts if each["file"] == trained.get("file")), None)
        if account is None:
            continue
        account |= {key: trained[key] for key in account if key in trained}
        if "partly_left_out" not in trained:  # of a run whose SFT counted long rows as used
            left_out = sum(account["left_out"].values())
            account["used"] = max(0, account["rows"] - left_out)
    return accounts


def _standings(ctx: Context) -> list[dict[str, Any]]:
    """Standing of each round when its rankings were taken; empty without people."""
    rows = _facts_by_round(ctx, "rank")
    return [{"round": row["round"], **row["standing"]} for row in rows if "standing" in row]


def _facts_by_round(ctx: Context, stage: str) -> list[dict[str, Any]]:
    """Facts of a stage, a row for each round that has finished it."""
    rounds = range(1, ctx.settings.all_rounds + 1)
    rows = [(round_, ctx.run.done(suffixed(stage, round_))) for round_ in rounds]
    return [{"round": round_, **row["facts"]} for round_, row in rows if row is not None]


def _annotator(ctx: Context) -> dict[str, float]:
    """Noise of the judge that ranked, as set and as measured over all rounds; empty without one."""
    facts = [row for row in _facts_by_round(ctx, "rank") if "measured_wrong_share" in row]
    verdicts = sum(row["verdicts"] for row in facts)
    if not verdicts:
        return {}
    wrong = sum(row["measured_wrong_share"] * row["verdicts"] for row in facts) / verdicts
    return {"noise": facts[0]["noise"], "verdicts": verdicts, "measured_wrong_share": wrong}


def _accuracy_of_judge(ctx: Context) -> dict[str, Any] | None:
    """Accuracy of the reward model that judges, and what it learned from; None in older runs."""
    facts = ctx.run.done("judge") or {}
    return facts if "ci95" in facts else None


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested `values` as text under dotted names."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return flat
