"""The long proofs: `make prove`.

Writes docs/proof/*.json, with the commit and the machine they belong to.

    python -m tests.prove seeds [SEED ...]   the whole loop; 0, 1, 2 and the commit's own
    python -m tests.prove duel [SEED ...]    all five policies against each other; 0, 1, 2
    python -m tests.prove kills [N]          SIGKILL in every stage, N times: the same weights
    python -m tests.prove smollm2-kills [N]  the same on the base smollm2, with the judge `checks`
    python -m tests.prove generation [N]     the embedded base makes N tasks of its small world
    python -m tests.prove teachers [N]       N tasks by HTTP from `transformers serve`, with faults
    python -m tests.prove generate-kills [N] SIGKILL a generation N times at random: the same files
    python -m tests.prove formats [N]        import N mutated files; the memory of 1,000,000 rows
    python -m tests.prove columns [N]        read N mutated rows of the shapes of real files
    python -m tests.prove plan               planned against measured memory, every case and stage
    python -m tests.prove app [N]            SIGKILL the app N times under 50 annotators
    python -m tests.prove half-sent [N]      N half-sent requests, and the app answers all the while
    python -m tests.prove attacks            the attacker's table: what got through
    python -m tests.prove board              actions of a ranking, and the time to the next task
    python -m tests.prove people [FILE ...]  reward models on SmolLM2 from people's judgements
    python -m tests.prove                    all
"""

import hashlib
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alpaca_rlhf.core import provenance
from alpaca_rlhf.core.runs import data_path
from alpaca_rlhf.pipeline import STAGES

ROOT = Path(__file__).resolve().parent.parent
PROOF = ROOT / "docs" / "proof"
FIVE = (
    "--policies ppo best-of-k dpo grpo rloo --best-of-k.prompts 576 --best-of-k.control False "
    "--reward.control False --evaluate.rerank False"
).split()
"""The quickstart with all five policies, best-of-K on as many completions as the others, without
controls and arms that a duel does not compare."""
TIMES = {
    "seconds",
    "control_seconds",
    "second_seconds",
    "curve_seconds",
    "peak_memory_gib",
    "gpu_memory_gib",
    "cost_usd",
    "duel",
}
"""Facts that differ from run to run; a duel is read at equal times."""
SMALL = (
    "--generate.target 12 --generate.seeds 24 --generate.batch-size 16 --rank.prompts 24 "
    "--reward.gate 0.01 --ppo.updates 3 --ppo.batch-size 16 --ppo.minibatch-size 8 "
    "--ppo.save-every 1 --sft.save-every 2 --reward.save-every 2 --best-of-k.prompts 12 "
    "--evaluate.prompts 10 --evaluate.dev --generate.max-new-tokens 64 "
    "--sampling.max-new-tokens 24 --ppo.max-new-tokens 24"
).split()
REAL = (
    "--base smollm2 --template chat --inputs.judge checks --lora.r 4 --lora.alpha 8 "
    "--generate.recipe answers --generate.edit --generate.target 6 --generate.min-score 0.2 "
    "--generate.batch-size 8 --generate.max-new-tokens 24 --sampling.max-new-tokens 16 "
    "--sft.batch-size 2 --sft.epochs 2 --sft.lr 5e-4 --sft.max-length 160 --sft.save-every 1 "
    "--rank.prompts 8 --rank.k 2 --reward.batch-size 2 --reward.max-length 160 "
    "--reward.held-out 0.4 --reward.gate 0 --reward.save-every 1 --ppo.updates 2 "
    "--ppo.batch-size 4 --ppo.minibatch-size 4 --ppo.epochs 1 --ppo.value.warmup 1 "
    "--ppo.max-new-tokens 16 --ppo.lr 3e-4 --ppo.save-every 1 --best-of-k.k 2 "
    "--best-of-k.prompts 4 --evaluate.prompts 4 --evaluate.bootstrap 50 --evaluate.rerank False"
).split()
"""The smallest run of every stage on a real LLaMA, judged by rules."""


def command(out: Path, *flags: str) -> list[str]:
    """The quickstart in a folder."""
    return [sys.executable, "-m", "alpaca_rlhf", "quickstart", "--out", str(out), *flags]


def real_command(out: Path) -> list[str]:
    """The smallest run on the base smollm2 in a folder."""
    return [sys.executable, "-m", "alpaca_rlhf", "loop", "--out", str(out), *REAL]


def offline() -> dict[str, str]:
    """This environment, without the hub."""
    return {**os.environ, "HF_HUB_OFFLINE": "1"}


def without_times(report: Any) -> Any:
    """A report apart from times, memory and cost."""
    if isinstance(report, dict):
        return {k: without_times(v) for k, v in report.items() if k not in TIMES}
    return [without_times(one) for one in report] if isinstance(report, list) else report


def weights(out: Path) -> dict[str, str]:
    """sha256 of every adapter and head of a run, by its path."""
    files = sorted(out.glob("*/adapter/*.safetensors"))
    return {str(f.relative_to(out)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def stamp() -> dict[str, Any]:
    """The commit, versions and machine that a proof belongs to."""
    return {
        "commit": provenance.commit(),
        "machine": provenance.hardware(),
        "versions": provenance.versions(),
    }


def checks(report: dict[str, Any]) -> dict[str, bool]:
    """The marks that every seed must reach."""
    policies = report["policies"]
    reward = report["reward_models"][0]
    (longer,) = (rule for rule in reward["baselines"] if rule["is"] == "the longer")
    best_rule = max(reward["baselines"], key=lambda rule: float(rule["accuracy"]))
    return {
        "base <= 0.05": policies["base"]["gold_score"] <= 0.05,
        "sft >= 0.45": policies["sft"]["gold_score"] >= 0.45,
        "the longer answer is right on at most 0.60": longer["accuracy"] <= 0.60,
        "reward accuracy leads the best rule by 0.10": best_rule["lead"] >= 0.10,
        "that lead's interval is above 0": best_rule["lead_ci95"][0] > 0,
        "shuffled control near 0.5": reward["shuffled_label_ci95"][0]
        <= 0.5
        <= reward["shuffled_label_ci95"][1]
        or abs(reward["shuffled_label_accuracy"] - 0.5) < 0.05,
        "best-of-k gain above 0": policies["best_of_k"]["paired_gain_ci95"][0] > 0,
        "ppo gain above 0": policies["ppo"]["paired_gain_ci95"][0] > 0,
        "best-of-k win rate > 0.5": policies["best_of_k"]["win_rate_vs_sft"] > 0.5,
        "ppo win rate > 0.5": policies["ppo"]["win_rate_vs_sft"] > 0.5,
        "greedy correctness of ppo >= sft - 0.05": policies["ppo"]["gold_parts_greedy"]["correct"]
        >= policies["sft"]["gold_parts_greedy"]["correct"] - 0.05,
        "stop rate >= 0.97": min(policies[n]["stop_rate"] for n in ("sft", "ppo", "best_of_k"))
        >= 0.97,
        "no prompt in two splits": report["prompts"]["overlap"] == 0,
    }


def prove_seeds(seeds: list[int]) -> bool:
    """Run the whole loop for every seed."""
    good = True
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            started = time.perf_counter()
            subprocess.run(command(out, "--seed", str(seed)), check=True, env=offline())
            wall = time.perf_counter() - started
            report = json.loads((out / "report.json").read_text())
        found = checks(report)
        good = good and all(found.values())
        proof = {
            **stamp(),
            "command": f"alpaca-rlhf quickstart --seed {seed}",
            "wall_seconds": wall,
            "checks": found,
        }
        write(f"quickstart-seed-{seed}.json", proof | {"report": report})
        missed = ", ".join(name for name, holds in found.items() if not holds)
        tell(f"seed {seed}: {wall:.0f} s, {f'MISSED {missed}' if missed else 'all marks reached'}")
    return good


def prove_duel(seeds: list[int]) -> bool:
    """Train all five policies for every seed that is not proven yet, and compare them.

    Those that sample draw the same number of completions. A run that was interrupted goes on, in
    runs/duel-cria; seeds that are proven stay as they are.
    """
    from alpaca_rlhf.cli import main as cli

    file = PROOF / "duel-cria.json"
    proven = json.loads(file.read_text())["seeds"] if file.exists() else {}
    for seed in (seed for seed in seeds if str(seed) not in proven):
        out = ROOT / "runs" / "duel-cria" / f"seed-{seed}"
        words = command(out, "--seed", str(seed), *FIVE)
        subprocess.run(words, check=True, env=offline())
        if cli.main(["duel", str(out)]) != 0:
            return False
        made = json.loads((out / "provenance.json").read_text())
        duel = json.loads((out / "duel.json").read_text())
        gains = {name: one["gain_ci95"][0] > 0 for name, one in duel["policies"].items()}
        stages = json.loads((out / "report.json").read_text())["stages"]
        proven[str(seed)] = {
            "commit": made["commit"],
            "machine": made["hardware"],
            "versions": made["versions"],
            "training_seconds": sum(stage["seconds"] for stage in stages),
            "gain_above_0": gains,
            "duel": duel,
        }
        typed = f"alpaca-rlhf quickstart {' '.join(FIVE)} --seed SEED --out RUN"
        proof = {"command": typed, "then": "alpaca-rlhf duel RUN", "seeds": proven}
        write("duel-cria.json", proof)
        tell(f"duel, seed {seed}: gain over SFT above 0: {gains}")
    return all(all(proven[str(seed)]["gain_above_0"].values()) for seed in seeds)


def prove_kills(rounds: int) -> bool:
    """Kill a small run in every stage at a random moment; compare with an undisturbed run."""
    return _kills("kills", rounds, lambda out: command(out, *SMALL))


def prove_smollm2_kills(rounds: int) -> bool:
    """The same with the smallest run on the base smollm2."""
    from alpaca_rlhf.core.bases import smollm2_folder

    if not smollm2_folder().is_dir():
        tell("smollm2-kills: needs the base smollm2: alpaca-rlhf base get smollm2")
        return False
    return _kills("smollm2-kills", rounds, real_command)


def _kills(part: str, rounds: int, command_for: Callable[[Path], list[str]]) -> bool:
    """Kill a run in every stage, as often as there are rounds, and write what came of it.

    Args:
        part: Name of the proof.
        rounds: Runs that are killed in every stage.
        command_for: The command that runs the loop in a folder.
    """
    from tests import forked

    def finish(words: list[str]) -> None:
        """Run to the end, and tell why if it ends otherwise."""
        ended = forked.run(*words[1:], env=offline(), timeout=None)
        if ended.returncode:
            tell(f"{part}: {ended.stderr}")
            ended.check_returncode()

    rng = random.Random(0)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        calm = Path(folder) / "calm" / "run"
        finish(command_for(calm))
        expected = without_times(json.loads((calm / "report.json").read_text()))
        expected_weights = weights(calm)
        ledger = json.loads((calm / "ledger.json").read_text())
        stages = {name: row["seconds"] for name, row in ledger.items() if "seconds" in row}
        tell(f"{part}: an undisturbed run took {sum(stages.values()):.0f} s in its stages")
        for number in range(rounds):
            out = Path(folder) / f"killed-{number}" / "run"
            words = command_for(out)
            kills = [
                kill_in(out, stage, took * rng.random(), words, start=forked.Forked)
                for stage, took in stages.items()
            ]
            finish(words)
            same = without_times(json.loads((out / "report.json").read_text())) == expected
            results.append(
                {
                    "killed_in": [s for s, k in zip(stages, kills, strict=True) if k],
                    "same_report": same,
                    "same_weights": weights(out) == expected_weights,
                }
            )
            tell(f"{part} {number}: {results[-1]}")
    proof = {
        "command": f"python -m tests.prove {part} {rounds}",
        "run": shlex.join(["alpaca-rlhf", *command_for(Path("RUN"))[3:]]),
        "seconds_of_an_undisturbed_run": stages,
        "adapters_compared": sorted(expected_weights),
        "runs": results,
    }
    write(f"{part}.json", {**stamp(), **proof})
    return all(r["same_report"] and r["same_weights"] and r["killed_in"] for r in results)


def prove_generation(target: int) -> bool:
    """The embedded base as teacher: its tasks are distinct by key, and none is another split's."""
    from alpaca_rlhf.data import kept_by_rouge, read_instructions, refilter, requests, seeds_of
    from alpaca_rlhf.serving.run_contents import settings_of
    from alpaca_rlhf.smallworld import recognise
    from alpaca_rlhf.sources import source_of

    flags = (
        f"--base embedded --template brief --generate.target {target} --generate.seeds 175 "
        "--generate.batch-size 64 --generate.temperature 0.8 --generate.max-new-tokens 96"
    )
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "run"
        words = [sys.executable, "-m", "alpaca_rlhf", "generate", *flags.split()]
        subprocess.run([*words, "--out", str(out)], check=True, env=offline())
        folder = out / "generate"
        rows = read_instructions(folder / "rows.jsonl")
        stage = json.loads((out / "ledger.json").read_text())["generate"]
        manifest = json.loads((folder / "manifest.json").read_text())
        source = source_of(settings_of(out))
        others = {source.key(row) for split in source.names() for row in source.prompts(split)}
        shown = {source.key(row) for row in seeds_of(folder)}
        said = [drop for _, one in requests(folder) for drop in one.dropped]
        again = refilter(folder, rules=(), accept=source.accept, novel=source.novelty())
        by_rouge, of = kept_by_rouge(folder)
    tasks = [recognise(row.instruction, row.input) for row in rows]
    keys = {task.key for task in tasks if task is not None}
    dropped = manifest["counts"]["dropped"]
    wrong = sum(count for rule, count in dropped.items() if rule != "surplus")
    found = {
        f"{target} tasks": len(rows) == target,
        "every one is a task of the small world": None not in tasks,
        "distinct by task key": len(keys) == len(rows),
        "none is a seed task's": not keys & shown,
        "none is another split's": not keys & others,
        "every dropped row has its nearest neighbour": all(
            drop.near and 0 < drop.score <= 1 for drop in said if drop.row is not None
        ),
        "refilter decides the same without a teacher": again.rows == rows and again.drops == said,
    }
    proof = {
        "command": f"alpaca-rlhf generate {flags}",
        "checks": found,
        "accepted": len(rows),
        "written_until_then": len(rows) + wrong,
        "acceptance": len(rows) / (len(rows) + wrong),
        "rouge_l_0.7_alone": {
            "would_have_kept": by_rouge,
            "of_rows_that_reached_novelty": of,
            "kept_by_task_key": len(rows),
        },
        "correct_by_the_gold_judge": stage["facts"]["correct"],
        "families": len({key.partition(":")[0] for key in keys}),
        "counts": manifest["counts"],
        "seconds": stage["seconds"],
        "tokens_per_second": stage["tokens"] / stage["seconds"],
        "first_tasks": [row.instruction for row in rows[:10]],
    }
    write("generation.json", {**stamp(), **proof})
    tell(f"generation: {proof['acceptance']:.0%} kept, ROUGE-L alone {by_rouge} of {of}, {found}")
    return all(found.values())


def prove_generation_kills(kills: int) -> bool:
    """Kill a generation at random moments, each recipe; compare with an undisturbed run."""
    from tests.generation import killed_runs

    seed = random.SystemRandom().randrange(2**32)
    runs = []
    for recipe in ("alpaca", "self-instruct", "evol"):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(killed_runs(Path(folder), recipe, kills, random.Random(seed)))
        tell(f"generate-kills {recipe}: {runs[-1]}")
    write(
        "generate-kills.json",
        {
            **stamp(),
            "command": f"python -m tests.prove generate-kills {kills}",
            "seed_of_the_moments": seed,
            "runs": runs,
        },
    )
    return all(one["same_files"] and one["nothing_asked_twice"] for one in runs)


def prove_teachers(target: int) -> bool:
    """`transformers serve` with the embedded base as teacher, behind a proxy that goes wrong."""
    from alpaca_rlhf.data import read_instructions, requests
    from alpaca_rlhf.smallworld import recognise
    from tests.browser import free_port
    from tests.endpoints import FAULTS, KIND, faulty

    port, rng = free_port(), random.Random(0)
    model = str(data_path("cria"))
    serve = f"transformers serve MODEL --host 127.0.0.1 --port {port} --device cpu"
    flags = (
        "--base embedded --template brief --generate.seeds 175 --generate.batch-size 16 "
        f"--generate.target {target} --generate.temperature 0.8 --generate.max-new-tokens 96 "
        "--generate.endpoint.model MODEL --generate.endpoint.api completions "
        "--generate.endpoint.concurrency 4 --generate.endpoint.timeout 20"
    )

    def choose(n: int, body: dict[str, Any], before: int) -> str | None:
        kinds = [one for one in FAULTS if one != "hang"]  # its second is no 20
        return rng.choice(kinds) if rng.random() < (0.3, 0.1, 0.0)[min(before, 2)] else None

    program = Path(sys.executable).with_name("transformers")
    words = [str(program), *serve.replace("MODEL", model).split()[1:]]
    with tempfile.TemporaryDirectory() as name, (Path(name) / "log").open("w") as log:
        server = subprocess.Popen(words, stdout=log, stderr=log, env=offline())
        try:
            wait_for(f"http://127.0.0.1:{port}/health", server)
            with faulty(f"http://127.0.0.1:{port}/v1", choose) as (proxy, made):
                out = Path(name) / "run"
                words = [sys.executable, "-m", "alpaca_rlhf", "generate", "--out", str(out)]
                words += flags.replace("MODEL", model).split()
                words += ["--generate.endpoint.url", proxy.url]
                began = time.monotonic()
                subprocess.run(words, check=True, env=offline())
                seconds = time.monotonic() - began
                asked = proxy.asked.total()
        finally:
            server.terminate()
            server.wait()
        rows = read_instructions(out / "generate" / "rows.jsonl")
        stage = json.loads((out / "ledger.json").read_text())["generate"]
        events = [one for _, one in requests(out / "generate")]
    faults = Counter(KIND.get(kind, kind) for kind in made.elements())
    account = stage["facts"]["endpoint"]
    tasks = [recognise(row.instruction, row.input) for row in rows]
    keys = {task.key for task in tasks if task is not None}
    found = {
        f"{target} tasks": len(rows) == target,
        "every one is a task of the small world": None not in tasks,
        "distinct by task key": len(keys) == len(rows),
        "each kind of fault was met": set(made) == {*FAULTS} - {"hang"},
        "the account of them is right": account["faults"] == dict(faults),
        "no request was given up": account["given_up"] == 0,
        "each request was asked once and again after each fault": asked
        == len(events) + faults.total(),
    }
    proof = {
        "command": f"python -m tests.prove teachers {target}",
        "server": serve.replace(str(port), "PORT"),
        "client": f"alpaca-rlhf generate {flags} --generate.endpoint.url URL",
        "checks": found,
        "accepted": len(rows),
        "acceptance": stage["facts"]["accepted_share"],
        "correct_by_the_gold_judge": stage["facts"]["correct"],
        "requests": len(events),
        "faults": dict(sorted(faults.items())),
        "tokens": [account["tokens_in"], account["tokens_out"]],
        "seconds": seconds,
        "first_tasks": [row.instruction for row in rows[:10]],
    }
    write("teachers.json", {**stamp(), **proof})
    tell(f"teachers: {len(rows)} tasks of {len(events)} requests, {dict(faults)}, {found}")
    return all(found.values())


def wait_for(url: str, process: subprocess.Popen[Any]) -> None:
    """Wait until a server answers."""
    import httpx

    while process.poll() is None:
        try:
            if httpx.get(url, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"the server ended with code {process.returncode}")


def prove_formats(count: int) -> bool:
    """Import mutated files, then many rows: nothing but exit 0 or 2, and bounded memory."""
    from tests.mutations import big_file, fuzz, memory_of

    seed = random.SystemRandom().randrange(2**32)
    with tempfile.TemporaryDirectory() as folder:
        found = fuzz(Path(folder), count, seed)
    tell(f"formats: {found}")
    memory = []
    for name, broken in (
        ("rows.jsonl", False),
        ("rows.json", False),
        ("rows.csv", False),
        ("rows.parquet", False),
        ("rows.jsonl", True),
    ):
        for rows in (100_000, 1_000_000):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / name
                big_file(path, rows, broken=broken)
                started = time.perf_counter()
                made = memory_of(path, Path(folder) / "out")
                made["mebibytes"] = round(path.stat().st_size / 2**20, 1)
            made["seconds"] = round(time.perf_counter() - started, 1)
            what = f"{name}, all but one broken" if broken else name
            memory.append({"file": what, "rows_in_file": rows, **made})
            tell(f"formats: {memory[-1]}")
    pairs = list(zip(memory[::2], memory[1::2], strict=True))
    growth = {one["file"]: round(ten["peak_mib"] - one["peak_mib"], 1) for one, ten in pairs}
    write(
        "formats.json",
        {
            **stamp(),
            "command": f"python -m tests.prove formats {count}",
            "seed_of_the_files": seed,
            "fuzz": found,
            "memory": memory,
            "peak_mib_of_1000000_rows_above_100000": growth,
        },
    )
    good = all(one["exit"] == 2 * ("broken" in one["file"]) for one in memory)
    return good and not found["failures"] and max(growth.values()) < 32


def prove_columns(count: int) -> bool:
    """Read mutated rows: no traceback, and each row is used, counted, or its file refused."""
    from tests.mutated_rows import fuzz

    seed = random.SystemRandom().randrange(2**32)
    with tempfile.TemporaryDirectory() as folder:
        found = fuzz(Path(folder), count, seed)
    tell(f"columns: {found}")
    command = f"python -m tests.prove columns {count}"
    write("columns.json", {**stamp(), "command": command, "seed_of_the_rows": seed, **found})
    return not found["failures"]


def prove_templates() -> bool:
    """Compare the ids of ten conversations in every stage, for twelve chat templates."""
    import pytest

    from tests.published_templates import CONVERSATIONS, TWELVE, other_templates
    from tests.template_table import in_ollama, is_good, markdown, table_row

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in TWELVE:
            try:
                rows.append(table_row(name, Path(folder) / name))
            except pytest.skip.Exception as absent:  # a file or Go
                tell(f"templates: {name} not proven: {absent}")
    tell(markdown(rows))
    others = {}
    if os.environ.get("ALPACA_RLHF_TRL_WHEEL"):
        others = {name: in_ollama(template) for name, template in other_templates().items()}
    exact = sum(other["same"] == len(CONVERSATIONS) for other in others.values())
    refused = [name for name, other in others.items() if "has no TEMPLATE" in other["told"]]
    tell(f"templates: {exact} of {len(others)} others in Ollama, refused: {', '.join(refused)}")
    proof = {
        "command": "python -m tests.prove templates",
        "what": "conversations, out of all, whose ids are those of SFT",
        "conversations": list(CONVERSATIONS),
        "rows": rows,
        "others_in_ollama": others,
    }
    write("templates.json", {**stamp(), **proof})
    told = exact + len(refused) == len(others)
    return len(rows) == len(TWELVE) and all(is_good(row) for row in rows) and told


def prove_plan() -> bool:
    """Every stage on every little LLaMA: planned within 10% of the measured live bytes."""
    from tests.planned import CASES, compared

    found, worst = [], 0.0
    for case in CASES:
        found.append(compared(case))
        errors = {name: one["error"] for name, one in found[-1]["stages"].items()}
        worst = max(worst, *map(abs, errors.values()))
        tell(f"plan, {case.name}: " + ", ".join(f"{n} {e:+.1%}" for n, e in errors.items()))
    proof = {
        **stamp(),
        "command": "python -m tests.prove plan",
        "what": "planned peak against peak live tensor bytes, on a CPU",
        "largest_error": worst,
        "cases": found,
    }
    write("plan.json", proof)
    return worst <= 0.1


def prove_app(kills: int) -> bool:
    """Kill the app's server under load, on SQLite and on PostgreSQL; compare with what was told."""
    from tests.databases import postgres
    from tests.test_app_load import ANNOTATORS, check, under_load

    runs = []
    with postgres() as server, tempfile.TemporaryDirectory() as folder:
        for name, where in (("sqlite", f"{folder}/p.db"), ("postgresql", server)):
            if where is None:
                tell("app: postgresql is not installed here: not proven on it")
                continue
            began = time.perf_counter()
            work = Path(folder) / name
            work.mkdir()
            load, places = under_load(where, work, sets=400, kills=kills, decisions=45)
            seconds = time.perf_counter() - began
            counts = check(where, load, work)
            times = sorted(load.times)
            runs.append(
                {
                    "database": name,
                    "annotators": ANNOTATORS,
                    "kills": kills,
                    "places": places,
                    "rankings_acknowledged": len(load.acknowledged),
                    "lost_doubled_or_over_assigned": 0,
                    **counts,
                    "submits_sent_again_after_a_kill": load.retried,
                    "of_these_saved_already": load.already,
                    "submit_ms_p50": round(1000 * times[len(times) // 2]),
                    "submit_ms_p99": round(1000 * times[len(times) * 99 // 100]),
                    "seconds": round(seconds, 1),
                }
            )
            tell(f"app: {runs[-1]}")
            # What is proven stays, should the other database be interrupted.
            proof = {"command": f"python -m tests.prove app {kills}", "runs": runs}
            write("app-kills.json", {**stamp(), **proof})
    return len(runs) == 2


def prove_half_sent(requests: int) -> bool:
    """Send requests to the app's server by halves; in between whole ones are answered."""
    began = time.perf_counter()
    words = ["-m", "pytest", "-q", "tests/test_app_connections.py", "-k", "lock_nobody_out"]
    environment = offline() | {"HALF_SENT": str(requests)}
    ended = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment)
    proof = {
        "command": f"python -m tests.prove half-sent {requests}",
        "half_sent_requests": requests,
        "whole_requests_answered": ended.returncode == 0,
        "seconds": round(time.perf_counter() - began, 1),
    }
    tell(f"half-sent: {proof}")
    write("half-sent.json", {**stamp(), **proof})
    return ended.returncode == 0


def prove_attacks() -> bool:
    """Try everything of the attacker's table on the app; nothing may get through."""
    from tests import attacks
    from tests.browser import NO_CHROMIUM, chromium

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        tried = attacks.quick(Path(folder))
    if chromium() is None:
        tell(f"attacks: {NO_CHROMIUM}: stored scripts are not tried")
    else:
        with tempfile.TemporaryDirectory() as folder:
            tried += attacks.in_a_browser(Path(folder))
    groups = attacks.summary(tried)
    proof = {
        "command": "python -m tests.prove attacks",
        "tried": len(tried),
        "through": sum(attack.through for attack in tried),
        "groups": groups,
        "seconds": round(time.perf_counter() - began, 1),
        "attacks": [asdict(attack) for attack in tried],
    }
    write("attacks.json", {**stamp(), **proof})
    tell(f"attacks: {proof['tried']} tried, {proof['through']} through: {groups}")
    return not proof["through"] and "stored scripts" in groups


def prove_board() -> bool:
    """Count the actions of a ranking of four, and measure how soon the next task is there."""
    from alpaca_rlhf.preferences.people import Account
    from alpaca_rlhf.preferences.store import Store
    from tests import board_actions, rank_server
    from tests.browser import NO_CHROMIUM, browser, chromium, free_port, visit
    from tests.databases import candidates

    if chromium() is None:
        tell(f"board: {NO_CHROMIUM}")
        return False
    orders, answer = board_actions.strict_orders(), "A short paragraph of an answer. " * 10
    account = Account(1, "ann", "annotator", "en")
    times = []
    with tempfile.TemporaryDirectory() as folder:
        with Store(Path(folder) / "p.db", rules=rank_server.PLAIN, seed=0) as store:
            store.add_annotator("ann", "long enough")
            store.add_sets(candidates(2 * len(orders) + 1, tag=answer), origin="proof")
            app = rank_server.app(store, lambda request: account)
            size = {"width": 1280, "height": 900}
            with (
                rank_server.serving(app, free_port()) as url,
                browser() as chromium_,
                visit(chromium_, viewport=size) as page,
            ):
                found = board_actions.shortest_actions(page)
                page.goto(url)
                page.locator(".rank[data-started=yes][aria-busy=false]").wait_for()
                for order in (*orders, *orders):
                    page.wait_for_timeout(1000)  # nobody ranks faster; the next task is fetched
                    times.append(board_actions.rank_by_keys(page, found["keys"][order]))
    keys, drags = (board_actions.mean_actions(found[kind], orders) for kind in ("keys", "drags"))
    times.sort()
    proof = {
        "command": "python -m tests.prove board",
        "what": "the fewest actions to each order of four answers, by the board's own functions; "
        "one more submits, and an order that nobody has touched is confirmed by another",
        "keys_mean_of_24_orders": round(keys, 3),
        "drags_mean_of_24_orders": round(drags, 3),
        "keys": {order: found["keys"][order] for order in sorted(found["keys"])},
        "drags": {order: len(found["drags"][order]) for order in sorted(found["drags"])},
        "submit_to_next_task_ms": {
            "n": len(times),
            "p50": round(times[len(times) // 2]),
            "p95": round(times[len(times) * 95 // 100]),
            "max": round(times[-1]),
        },
        "load_average": round(os.getloadavg()[0], 1),
    }
    write("board.json", {**stamp(), **proof})
    tell(f"board: {keys:.2f} keys, {drags:.2f} drags, {proof['submit_to_next_task_ms']} ms")
    return (
        board_actions.are_few(keys, drags) and times[len(times) // 2] < board_actions.NEXT_TASK_MS
    )


def prove_people(keys: list[str]) -> bool:
    """Train reward models on the base smollm2 from published judgements; any figures will do.

    Args:
        keys: Keys of `people_rewards.FILES`; the results of the others stay as they are.
    """
    from tests.people_rewards import line_of, trained

    data = ROOT.parent / "shared" / "data"
    if not data.is_dir():
        tell(f"people: needs the real data in {ROOT.parent.name}/shared, which is not here")
        return False
    file = PROOF / "smollm2-people.json"
    runs = json.loads(file.read_text())["runs"] if file.exists() else {}
    for key in keys:
        with tempfile.TemporaryDirectory() as folder:
            runs[key] = {**stamp(), **trained(key, data, Path(folder))}
        proof = {
            "command": "python -m tests.prove people",
            "what": "held-out accuracy and log-loss of reward models on smollm2",
            "runs": runs,
        }
        write(file.name, proof)
        tell(f"people, {key}: {line_of(runs[key])}")
    return all(runs[key]["held_out_pairs"] > 0 for key in keys)


def kill_in(
    out: Path,
    stage: str,
    seconds: float,
    words: list[str],
    *,
    start: Callable[..., Any] = subprocess.Popen,
) -> bool:
    """Run until `stage` begins, wait so many seconds, SIGKILL. False if it was done before.

    A run that is faster than the one it was timed by is killed as the next stage begins.

    Args:
        out: Folder of the run.
        stage: The stage to kill it in.
        seconds: Time from the beginning of the stage to the kill.
        words: The command line of the run.
        start: Starts it, as `subprocess.Popen` does.
    """
    ledger = out / "ledger.json"
    if ledger.exists() and stage in json.loads(ledger.read_text()):
        return False
    process = start(words, env=offline(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    timer = threading.Timer(seconds, process.kill)
    for line in process.stdout:
        began, _, _ = line.strip().partition(":")
        if began == stage:
            timer.start()
        elif timer.is_alive() and began in STAGES:
            process.kill()
    timer.cancel()
    process.stdout.close()
    return process.wait() == -signal.SIGKILL


def tell(line: str) -> None:
    """A line for the person who waits."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def write(name: str, proof: dict[str, Any]) -> None:
    """One proof, as a file."""
    PROOF.mkdir(parents=True, exist_ok=True)
    (PROOF / name).write_text(json.dumps(proof, indent=1) + "\n")


def main(words: list[str]) -> int:
    """Run the proofs that were asked for."""
    which = words[0] if words else "all"
    names = ("seeds", "duel", "kills", "smollm2-kills", "generation", "teachers", "generate-kills")
    names += ("formats", "columns", "templates", "plan", "app", "half-sent", "attacks")
    names += ("board", "people")
    if which not in ("all", *names):
        sys.exit(f"prove: {which}: give {', '.join(names)} or nothing")
    good = True
    count = int(words[1]) if len(words) > 1 and words[1].isdigit() else None
    if which in ("all", "seeds"):
        commit = provenance.commit() or "0"
        good &= prove_seeds([int(w) for w in words[1:]] or [0, 1, 2, int(commit[:6], 16)])
    if which in ("all", "duel"):
        good &= prove_duel([int(w) for w in words[1:]] or [0, 1, 2])
    if which in ("all", "kills"):
        good &= prove_kills(count or 10)
    if which in ("all", "smollm2-kills"):
        good &= prove_smollm2_kills(count or 1)
    if which in ("all", "generation"):
        good &= prove_generation(count or 400)
    if which in ("all", "teachers"):
        good &= prove_teachers(count or 60)
    if which in ("all", "generate-kills"):
        good &= prove_generation_kills(count or 20)
    if which in ("all", "formats"):
        good &= prove_formats(count or 2000)
    if which in ("all", "columns"):
        good &= prove_columns(count or 3000)
    if which in ("all", "templates"):
        good &= prove_templates()
    if which in ("all", "plan"):
        good &= prove_plan()
    if which in ("all", "app"):
        good &= prove_app(count or 5)
    if which in ("all", "half-sent"):
        good &= prove_half_sent(count or 1100)
    if which in ("all", "attacks"):
        good &= prove_attacks()
    if which in ("all", "board"):
        good &= prove_board()
    if which in ("all", "people"):
        from tests.people_rewards import FILES

        good &= prove_people(words[1:] or [*FILES])
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
