"""`alpaca-rlhf export`: an adapter, a merged model, a reward model or a GGUF of a run, checked."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alpaca_rlhf.cli.terminal import PROGRAM, Terminal, next_lines, plain
from alpaca_rlhf.core import quiet
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.serving import folders
from alpaca_rlhf.settings import Loop

ABOUT = "write a policy or the reward model for other programs, and check that it does the same"

_DEFAULT_DTYPES = {
    "adapter": "float32",
    "merged": "bfloat16",
    "reward": "float32",
    "gguf": "float16",
}


@dataclass(frozen=True)
class Export:
    """Flags of `alpaca-rlhf export`."""

    run: Path = Path("runs/quickstart")
    """Run folder to take base and adapters from."""
    policy: str | None = None
    """Which one: sft, best_of_k, ppo, in later rounds ppo.2 ...; by default the last. With
    --to reward: reward, reward.2 ..."""
    to: Literal["adapter", "merged", "reward", "gguf"] = "merged"
    """`adapter`: a PEFT folder. `merged`: a model for transformers, vLLM and the like. `reward`: a
    sequence classifier. `gguf`: a file for llama.cpp and Ollama."""
    dtype: Literal["float32", "bfloat16", "float16", "q8_0"] | None = None
    """What the weights are stored in: by default bfloat16 if merged, float32 for a reward
    model, float16 as GGUF, which alone knows q8_0."""
    out: Path | None = None
    """Folder to make; by default `export/POLICY-TO` in the run folder."""
    llama_cpp: Path | None = None
    """llama.cpp's folder: its converter then makes the GGUF, of any architecture it knows."""

    def __post_init__(self) -> None:
        if self.dtype == "q8_0" and self.to != "gguf":
            raise ValueError(
                f"--dtype q8_0 belongs to --to gguf; nothing is merged into quantised weights, so "
                f"--to {self.to} takes float32, bfloat16 or float16"
            )
        if self.dtype is not None and self.to == "adapter":
            raise ValueError("--dtype: an adapter keeps its own, float32; leave it out")
        if self.llama_cpp is not None and self.to != "gguf":
            raise ValueError("--llama-cpp belongs to --to gguf")


def run(asked: Export, terminal: Terminal, command: str) -> int:
    """Export, check, tell what is next.

    Returns:
        The exit code: 0, or 1 if the export does not do what was trained.

    Raises:
        UserError: Anything that the user can mend.
    """
    settings = folders.settings_of(asked.run)
    policy, adapter = _chosen(asked)
    dtype = asked.dtype or _DEFAULT_DTYPES[asked.to]
    out = asked.out or asked.run / "export" / f"{policy}-{asked.to}"
    kept = "" if asked.to == "adapter" else f" in {dtype}"
    terminal.say(f"export: {policy} of {asked.run} ({settings.base}) as {asked.to}{kept} to {out}")
    quiet.quiet(settings.base)
    from alpaca_rlhf.exporting.export_model import FAILED, export_model
    from alpaca_rlhf.exporting.request import ExportRequest

    quiet.quiet_transformers(settings.base)
    request = ExportRequest(
        settings=settings,
        run=asked.run,
        policy=policy,
        adapter=adapter,
        target=asked.to,
        dtype=dtype,
        out=out,
        llama_cpp=asked.llama_cpp,
        command=command,
    )
    found = export_model(
        request,
        terminal,
        report=folders.report_of(asked.run),
        ledger=folders.ledger_of(asked.run),
        answers=_answers(asked.run),
    )
    for name, one in found.items():
        mark = "FAILED" if not one.passed else "ok" if one.facts.get("compared", True) else "--"
        terminal.say(f"  {mark:<6} {name}: {one.line}")
    failed = [name for name, one in found.items() if not one.passed]
    if failed:
        sys.stdout.flush()
        sys.stderr.write(
            plain(
                f"error: {out} does not do what was trained ({', '.join(failed)}); do not use it: "
                f"{out / FAILED} and {out / 'parity.json'} say more"
            )
            + "\n"
        )
        return 1
    for line in next_lines(_next(asked, out, settings)):
        terminal.say(line)
    return 0


def _chosen(asked: Export) -> tuple[str, Path]:
    rewards = folders.rewards(asked.run)
    policies = {name: path for name, path in folders.policies(asked.run).items() if path}
    found = rewards if asked.to == "reward" else policies
    what = "reward model" if asked.to == "reward" else "trained policy"
    if not found:
        raise UserError(
            f"--run {asked.run}: has no {what} yet; go on with `{PROGRAM} loop --out {asked.run}`"
        )
    name = list(found)[-1] if asked.policy is None else asked.policy.strip().replace("-", "_")
    if name not in found:
        raise UserError(
            f"--policy {asked.policy}: no {what} of {asked.run}; there are {', '.join(found)}"
        )
    return name, found[name]


def _answers(run: Path) -> list[dict[str, Any]]:
    path = run / "answers.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); put it back or delete it") from None


def _next(asked: Export, out: Path, settings: Loop) -> list[tuple[str, str]]:
    where, run_ = shlex.quote(str(out)), shlex.quote(str(asked.run))
    if asked.to == "gguf":
        name = shlex.quote(asked.run.resolve().name.lower())
        return [(f"cd {where} && ollama create {name} -f Modelfile", "then: ollama run " + name)]
    rows = [(f"cat {where}/README.md", "how to load it, and what its licence asks")]
    if asked.to == "merged":
        rows.append((f"vllm serve {where}", "serve it"))
        rows.append((f"{PROGRAM} export --run {run_} --to gguf", "for llama.cpp and Ollama"))
    return rows
