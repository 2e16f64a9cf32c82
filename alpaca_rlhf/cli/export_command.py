"""`alpaca-rlhf export`: an adapter, a merged model, a reward model or a GGUF of a run, checked."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alpaca_rlhf.cli.terminal import PROGRAM, Terminal, plain
from alpaca_rlhf.core import jsonl, quiet
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.shell_words import quoted
from alpaca_rlhf.serving import run_contents
from alpaca_rlhf.settings import Loop

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
    dtype: (
        Literal[
            "float32",
            "bfloat16",
            "float16",
            "q8_0",
            "q6_k",
            "q5_k_m",
            "q4_k_m",
            "q4_k_s",
            "q3_k_m",
        ]
        | None
    ) = None
    """Number format of the weights: by default bfloat16 if merged, float32 for a reward model,
    float16 as GGUF. GGUF alone knows q8_0, and the K-quants, q4_k_m and the like, which
    llama.cpp's `llama-quantize` makes, from the PATH or from --llama-cpp."""
    out: Path | None = None
    """Folder to make; by default `export/POLICY-TO` in the run folder."""
    llama_cpp: Path | None = None
    """llama.cpp's folder: its converter then makes the GGUF, of any architecture it knows."""

    def __post_init__(self) -> None:
        quantised = self.dtype is not None and self.dtype.startswith("q")
        if quantised and self.to != "gguf":
            raise ValueError(
                f"--dtype {self.dtype} belongs to --to gguf; nothing is merged into quantised "
                f"weights, so --to {self.to} takes float32, bfloat16 or float16"
            )
        if self.dtype is not None and self.to == "adapter":
            raise ValueError("--dtype: an adapter keeps its own, float32; leave it out")
        if self.llama_cpp is not None and self.to != "gguf":
            raise ValueError("--llama-cpp belongs to --to gguf")


def run(flags: Export, terminal: Terminal, command: str) -> int:
    """Export, check the export, and name the next commands.

    Returns:
        The exit code: 0, or 1 if the export does not do what was trained.

    Raises:
        UserError: Anything that the user can fix.
    """
    # 1. Choose adapter and format, and say so before torch is loaded, which takes seconds.
    settings = run_contents.settings_of(flags.run)
    policy, adapter = _chosen(flags)
    dtype = flags.dtype or _DEFAULT_DTYPES[flags.to]
    out = flags.out or flags.run / "export" / f"{policy}-{flags.to}"
    storage = "" if flags.to == "adapter" else f" in {dtype}"
    terminal.say(
        f"export: {policy} of {flags.run} ({settings.base}) as {flags.to}{storage} to {out}"
    )
    with quiet.loading(settings.base):
        from alpaca_rlhf.exporting.export_model import FAILED, export_model
        from alpaca_rlhf.exporting.request import ExportRequest
    request = ExportRequest(
        settings=settings,
        run=flags.run,
        policy=policy,
        adapter=adapter,
        target=flags.to,
        dtype=dtype,
        out=out,
        llama_cpp=flags.llama_cpp,
        command=command,
    )
    # 2. Write the export and check it against the policy in memory.
    checks = export_model(
        request,
        terminal,
        report=run_contents.report_of(flags.run),
        ledger=run_contents.ledger_of(flags.run),
        answers=_answers(flags.run),
    )
    for name, check in checks.items():
        compared = check.facts.get("compared", True)
        mark = "FAILED" if not check.passed else "ok" if compared else "--"
        terminal.say(f"  {mark:<6} {name}: {check.line}")
    # 3. A failed check is an error, though the files are there to be looked at.
    failed = [name for name, check in checks.items() if not check.passed]
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
    terminal.say_next(_next(flags, out, settings))
    return 0


def _chosen(flags: Export) -> tuple[str, Path]:
    rewards = run_contents.rewards(flags.run)
    policies = {name: path for name, path in run_contents.policies(flags.run).items() if path}
    adapters = rewards if flags.to == "reward" else policies
    kind = "reward model" if flags.to == "reward" else "trained policy"
    if not adapters:
        raise UserError(
            f"--run {flags.run}: has no {kind} yet; go on with `{PROGRAM} loop --out "
            f"{quoted(flags.run)}`"
        )
    name = list(adapters)[-1] if flags.policy is None else flags.policy.strip().replace("-", "_")
    if name not in adapters:
        raise UserError(
            f"--policy {flags.policy}: no {kind} of {flags.run}; there are {', '.join(adapters)}"
        )
    return name, adapters[name]


def _answers(run: Path) -> list[dict[str, Any]]:
    path = run / "answers.jsonl"
    if not path.is_file():
        return []
    mend = "put it back or delete it"
    lines = jsonl.lines(path, expected="an answer", mend=mend, whole=True)
    return [line.value for line in lines]


def _next(flags: Export, out: Path, settings: Loop) -> list[tuple[str, str]]:
    where, run_ = quoted(out), quoted(flags.run)
    if flags.to == "gguf":
        from alpaca_rlhf.exporting.ollama import model_name

        name = model_name(flags.run.resolve().name)
        return [(f"cd {where} && ollama create {name} -f Modelfile", "then: ollama run " + name)]
    rows = [(f"cat {where}/README.md", "how to load it, and what its licence asks")]
    if flags.to == "merged":
        rows.append((f"vllm serve {where}", "serve it"))
        policy = "" if flags.policy is None else f" --policy {quoted(flags.policy)}"
        command = f"{PROGRAM} export --run {run_}{policy} --to gguf"
        rows.append((command, "for llama.cpp and Ollama"))
    return rows
