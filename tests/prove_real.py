"""The proof on a real LLaMA: `make prove-real SEED=0 PART=ppo`.

    python -m tests.prove_real --seed 0                the next part that is missing
    python -m tests.prove_real --seed 0 --part ppo     this part, and those before it
    python -m tests.prove_real --summary               what there is, and what is missing

The run is the recipe's with 300 evaluation prompts, in runs/proof/smollm2-seed-N; `--rounds 2`
proves two rounds, in a run of its own, since the prompts are dealt to all rounds at the start;
`--policies ppo best-of-k dpo rloo` trains more than those two.
A part that was interrupted goes on where it stopped. After each part docs/proof/smollm2-seed-N.json
says what is done and what it took; after the last one it holds the whole report. Seeds from 100 up
are for tuning: they are evaluated on the split `dev`, and nothing of them is kept in docs/.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alpaca_rlhf.cli.terminal import Terminal
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.pipeline import run_loop
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.settings.earlier import begun_policies
from alpaca_rlhf.settings.policies import POLICIES, PolicyName
from alpaca_rlhf.settings.steps import order
from recipes.smollm2_135m_cpu import EXPERIMENT
from tests.prove import PROOF, ROOT, stamp, tell

PARTS = {
    "sft": "sft",
    "rankings": "rank",
    "reward": "reward",
    "ppo": "ppo",
    "best-of-k": "best_of_k",
    "dpo": "dpo",
    "grpo": "grpo",
    "rloo": "rloo",
    "reward-2": "reward.2",
    "ppo-2": "ppo.2",
    "best-of-k-2": "best_of_k.2",
    "dpo-2": "dpo.2",
    "grpo-2": "grpo.2",
    "rloo-2": "rloo.2",
    "evaluate": None,
}
"""Each part and the last step that it runs; None runs to the report."""
TUNING_SEEDS = 100
"""Seeds from here on are for tuning."""
SHUFFLED_SEED = 2
"""The seed whose policy is also trained on shuffled verdicts."""


def name_of(seed: int, rounds: int) -> str:
    """Name of a seed's run folder and of its proof."""
    return f"smollm2-seed-{seed}" + (f"-rounds-{rounds}" if rounds > 1 else "")


def settings_of(
    seed: int,
    folder: Path,
    rounds: int = 1,
    policies: Sequence[PolicyName] = EXPERIMENT.policies,
) -> Loop:
    """The recipe's experiment as it is proven for a seed."""
    tuning = seed >= TUNING_SEEDS
    n_eval = 100 if tuning else 300
    return replace(
        EXPERIMENT,
        seed=seed,
        out=folder / name_of(seed, rounds),
        rounds=rounds,
        policies=tuple(policies),
        reward=replace(EXPERIMENT.reward, control=seed == SHUFFLED_SEED),
        ppo=replace(EXPERIMENT.ppo, control=seed == SHUFFLED_SEED),
        best_of_k=replace(EXPERIMENT.best_of_k, control=True),
        evaluate=replace(
            EXPERIMENT.evaluate,
            prompts=n_eval,
            split="dev" if tuning else "eval",
            dev_prompts=n_eval if tuning else EXPERIMENT.evaluate.dev_prompts,
        ),
    )


def command_of(settings: Loop) -> str:
    """The command that makes or goes on with a seed's proof."""
    arguments = []
    if settings.rounds > 1:
        arguments += ["--rounds", str(settings.rounds)]
    if settings.policies != EXPERIMENT.policies:
        arguments += ["--policies", *settings.policies]
    words = f' ARGS="{" ".join(arguments)}"' if arguments else ""
    return f"make prove-real SEED={settings.seed}{words}"


def missing_parts(settings: Loop) -> list[str]:
    """The parts of a run that are not done, in order."""
    ledger = _read(settings.out / "ledger.json")
    has_report = (settings.out / "report.json").is_file()
    entries = {None, *(step.entry for step in order(settings))}
    return [
        part
        for part, entry in PARTS.items()
        if entry in entries
        and not (has_report if entry is None else "seconds" in ledger.get(entry, {}))
    ]


def prove(settings: Loop, part: str | None) -> None:
    """Run a part, and those before it that are missing; keep what there is by then."""
    seed = settings.seed
    missing = missing_parts(settings)
    if not missing:
        tell(f"seed {seed}: every part is done")
        return
    part = part or missing[0]
    if PARTS[part] not in {None, *(step.entry for step in order(settings))}:
        raise UserError(f"--part {part}: this run has no such part; see --policies and --rounds")
    run_loop(settings, Terminal(), kind="loop", command=command_of(settings), until=PARTS[part])
    if seed < TUNING_SEEDS:
        write(settings)


def write(settings: Loop) -> None:
    """Keep what a run has so far in docs/proof/."""
    seed, rounds, out = settings.seed, settings.rounds, settings.out
    ledger = _read(out / "ledger.json")
    proof = {
        **stamp(),
        "command": command_of(settings),
        "missing": missing_parts(settings),
        "stages": {name: entry for name, entry in ledger.items() if "seconds" in entry},
        "report": _read(out / "report.json") or None,
    }
    PROOF.mkdir(parents=True, exist_ok=True)
    (PROOF / f"{name_of(seed, rounds)}.json").write_text(json.dumps(proof, indent=1) + "\n")


def summary() -> str:
    """A line for each seed: the figures of a whole report, or the parts that are missing."""
    lines = []
    for seed in range(3):
        proof = _read(PROOF / f"{name_of(seed, 1)}.json")
        if not proof:
            lines.append(f"seed {seed}: nothing yet; run: make prove-real SEED={seed}")
        elif proof["missing"]:
            lines.append(f"seed {seed}: missing {', '.join(proof['missing'])}")
        else:
            lines.append(f"seed {seed}: {_figures(proof['report'])}")
    return "\n".join(lines)


def _figures(report: dict[str, Any]) -> str:
    figures = []
    for name, policy in report["policies"].items():
        score = f"{name} {policy['gold_score']:.3f}"
        interval = policy.get("paired_gain_ci95")
        figures.append(f"{score} [{interval[0]:+.3f}, {interval[1]:+.3f}]" if interval else score)
    return ", ".join(figures)


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return {}


def main(words: list[str]) -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.prove_real",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, choices=(1, 2), default=1)
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=None)
    parser.add_argument("--part", choices=PARTS, default=None)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "proof")
    parser.add_argument("--summary", action="store_true")
    chosen = parser.parse_args(words)
    if chosen.summary:
        tell(summary())
        return 0
    try:
        settings = settings_of(
            chosen.seed, chosen.folder, chosen.rounds, chosen.policies or EXPERIMENT.policies
        )
        if chosen.policies is None:  # a run that was begun with others goes on with them
            settings = replace(settings, policies=begun_policies(settings))
        prove(settings, chosen.part)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
