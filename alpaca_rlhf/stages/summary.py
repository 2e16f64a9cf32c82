"""From what the stages left in the run folder to `report.json` and `report.html`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from alpaca_rlhf.data import answered_prompts, check_disjoint
from alpaca_rlhf.report.render import write_report
from alpaca_rlhf.report.schema import ReportData
from alpaca_rlhf.settings.parsing import to_yaml
from alpaca_rlhf.stages.context import Context, suffixed

_LABORATORY = (
    "The embedded base is a laboratory animal: a few million parameters that know one small "
    "world. It shows that every "
    "stage works and learns; it says nothing about how well a real LLaMA will do."
)
_NOISE = (
    "The rankings come from the gold judge with some verdicts turned round on purpose, standing "
    "in for people. The policies "
    "are compared by the same judge without that noise; the reward model that trained them has no "
    "say in it."
)
_HELD_OUT_JUDGE = (
    "No gold judge knows these tasks. The scores come from a second reward model, trained only on "
    "rankings that the first "
    "one has not seen; read them as what that model would prefer, and read the answers yourself."
)
_ADOPTED = (
    "SFT is somebody else's adapter. What it was trained on was not given, so that nobody can say "
    "whether prompts of this run were among it."
)


def write_summary(ctx: Context, *, command: str, stages: Sequence[Mapping[str, Any]]) -> None:
    """Write the report of a finished run, and tell where it is."""
    evaluated = ctx.run.done("evaluate")
    base = ctx.run.done("base")
    assert evaluated is not None and base is not None
    provenance = ctx.run.read_json("provenance.json")
    report = {
        "schema": 1,
        "seed": ctx.settings.seed,
        "base": {key: base[key] for key in ("parameters", "quantization")}
        | {"name": ctx.settings.base},
        "judge": "gold"
        if ctx.source.gold is not None
        else "reward model trained on held-out rankings",
        "annotator": _annotator(ctx),
        "stages": [_stage(ctx, row) for row in stages],
        "prompts": _prompts(ctx),
        "reward_models": _each_round(ctx, "reward"),
        "best_of_k": _each_round(ctx, "best_of_k"),
        "policies": evaluated["facts"]["policies"],
        "slices": evaluated["facts"]["slices"],
        "generation": (ctx.run.done("generate") or {}).get("facts", {}),
    }
    shown = ctx.run.read_jsonl("answers.jsonl")[:: max(1, _every(ctx))][
        : ctx.settings.evaluate.shown
    ]
    machine = provenance["hardware"]
    data = ReportData(
        report=report,
        metrics=ctx.run.metrics(),
        answers=shown,
        settings_yaml=to_yaml(ctx.settings),
        machine=f"{machine['cpu']}, {machine['cores']} cores, {machine['ram_gib']} GiB",
        command=command,
        next_commands=next_commands(ctx),
        caveats=_caveats(ctx),
        provenance=_flat(provenance),
    )
    write_report(ctx.run.path, data)


def next_commands(ctx: Context) -> list[str]:
    """What a person would do after the run."""
    return [
        f"alpaca-rlhf chat --run {shlex.quote(str(ctx.run.path))}",
        "alpaca-rlhf loop --help   # the same with a base of your own",
    ]


def _caveats(ctx: Context) -> list[str]:
    inputs = ctx.settings.inputs
    adopted = inputs.sft_adapter is not None and inputs.rows is None
    own = [_LABORATORY, _NOISE] if ctx.source.gold is not None else [_HELD_OUT_JUDGE]
    return [*own, *([_ADOPTED] if adopted else [])]


def _every(ctx: Context) -> int:
    """A stride through the evaluation prompts, so that all their parts are shown."""
    return ctx.settings.evaluate.prompts // max(1, ctx.settings.evaluate.shown)


def _stage(ctx: Context, row: Mapping[str, Any]) -> dict[str, Any]:
    kwh = row["seconds"] / 3600 * ctx.settings.evaluate.watts / 1000
    kept = ("name", "round", "seconds", "peak_memory_gib", "examples", "tokens")
    planned = ("planned_memory_gib", "gpu_memory_gib")
    power = kwh * ctx.settings.evaluate.usd_per_kwh
    teacher = row["facts"].get("endpoint", {}).get("usd") or 0.0
    found = {key: row[key] for key in kept} | {key: row[key] for key in planned if key in row}
    return found | {"cost_usd": power + teacher}


def _prompts(ctx: Context) -> dict[str, int]:
    splits = ctx.splits()
    counts = {
        name: sum(len(v) for k, v in splits.items() if k.split(".")[0] == name)
        for name in ("sft", "rank", "ppo", "eval")
    }
    answered = {**splits, "sft": answered_prompts(splits["sft"])}
    return counts | {"overlap": check_disjoint(answered, ctx.source.key, raise_on_leak=False)}


def _each_round(ctx: Context, stage: str) -> list[dict[str, Any]]:
    """What a stage found, round by round."""
    rounds = range(1, ctx.settings.rounds + 1)
    rows = [(r, ctx.run.done(suffixed(stage, r))) for r in rounds]
    return [{"round": r, **row["facts"]} for r, row in rows if row is not None]


def _annotator(ctx: Context) -> dict[str, float]:
    rows = [ctx.run.done(suffixed("rank", r)) for r in range(1, ctx.settings.rounds + 1)]
    facts = [row["facts"] for row in rows if row is not None]
    verdicts = sum(f["verdicts"] for f in facts)
    if not verdicts:
        return {}
    wrong = sum(f["measured_wrong_share"] * f["verdicts"] for f in facts) / verdicts
    return {"noise": ctx.settings.rank.noise, "verdicts": verdicts, "measured_wrong_share": wrong}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    out: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out |= _flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return out
