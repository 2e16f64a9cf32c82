"""The contents of a run folder, for a person who comes back to it. Reads only."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alpaca_rlhf import __version__
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.provenance import commit
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.settings.parsing import parse
from alpaca_rlhf.settings.policies import POLICY_STAGES

_STAGES = ("generate", "sft", "sample", "rank", "reward", *POLICY_STAGES, "evaluate")
_POLICY_ORDER = ("sft", "best_of_k", "ppo", "dpo", "grpo", "rloo")


def holds_run(run: Path) -> bool:
    """True where a run was begun."""
    return _is_there(run / "config.yaml")


def refuse_missing(run: Path, flag: str = "--run", *, remedy: str = "") -> None:
    """Refuse a folder that holds no run, with the runs beside it that may have been meant.

    Args:
        run: The folder.
        flag: The flag that names it, as typed.
        remedy: What begins a run; by default the quickstart.

    Raises:
        UserError: There is no run.
    """
    if holds_run(run):
        return
    meant = nearest_runs(run)
    near = f"did you mean {' or '.join(map(str, meant))}? " if meant else ""
    remedy = remedy or "`alpaca-rlhf quickstart` makes one"
    raise UserError(f"{flag} {run}: holds no run; {near}{remedy}")


def nearest_runs(run: Path) -> list[Path]:
    """Up to three runs that a folder may have been mistaken for: in it, or of a similar name."""
    inside = _runs_in(run)
    if inside:
        return inside[:3]
    beside = {path.name.lower(): path for path in _runs_in(run.parent)}
    close = difflib.get_close_matches(run.name.lower(), beside, n=3)
    return [beside[name] for name in close]


def _runs_in(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if (path / "config.yaml").is_file())
    except OSError:  # not a folder, or not readable: nothing is suggested
        return []


def settings_of(run: Path) -> Loop:
    """The settings of the run in a folder, as they were when it was begun, but for where it lies.

    Raises:
        UserError: There is no run, or its settings cannot be read.
    """
    refuse_missing(run)
    # `out` is given apart: the folder may have been moved.
    flags = ["--config", str(run / "config.yaml"), f"--out={run}"]
    try:
        return parse(Loop, flags, prog="alpaca-rlhf", description="")
    except UserError as error:
        remedy = "begin another run with another --out"
        raise UserError(f"{error}{other_version(run, remedy)}") from None


def other_version(run: Path, remedy: str) -> str:
    """The rest of a refusal where a run was made by another version; else empty.

    Settings that this version does not know are most often those of a newer one.

    Args:
        run: The run folder, or one that may be none.
        remedy: What else can be done than to update.
    """
    try:
        facts = _read(run / "provenance.json")
        facts = {**facts, **facts.get("resumed", [facts])[-1]}
        theirs = _version(facts["versions"]["alpaca-rlhf"], facts.get("commit"))
    except (UserError, KeyError, TypeError, IndexError):  # nothing is known of it
        return ""
    ours = _version(__version__, commit())
    if theirs == ours:
        return ""
    return (
        f"; the run was made by another version, alpaca-rlhf {theirs}, and this is {ours}: update "
        f"this one (git pull, then the command again), or {remedy}"
    )


def _version(number: str, commit: str | None) -> str:
    commit = (commit or "").removesuffix("-dirty")
    return f"{number} (commit {commit[:8]})" if commit else number


def kind_of(run: Path) -> str:
    """The kind of the run in a folder: `quickstart`, `loop` ...

    Raises:
        UserError: Its provenance cannot be read.
    """
    return str(_read(run / "provenance.json").get("kind", "loop"))


def stages_done(run: Path) -> list[str]:
    """Names of the finished stages in their order, in later rounds with a suffix: `ppo.2` ...

    Raises:
        UserError: The ledger cannot be read.
    """
    if not _is_there(run / "ledger.json"):
        return []
    return [name for name in _read(run / "ledger.json") if name.partition(".")[0] in _STAGES]


def seconds_of(run: Path, stage: str) -> float | None:
    """Seconds that a finished stage took in its last sitting; None if it has not finished.

    Raises:
        UserError: The ledger cannot be read.
    """
    seconds = ledger_of(run).get(stage, {}).get("seconds")
    return float(seconds) if seconds is not None else None


def saw_conversations(run: Path) -> bool:
    """True where the SFT of a run has learned from conversations of several turns.

    Raises:
        UserError: The ledger cannot be read.
    """
    return bool(ledger_of(run).get("sft", {}).get("facts", {}).get("conversations"))


def policies(run: Path) -> dict[str, Path | None]:
    """Policies to talk to and their adapter folders, in the order of training; None is the base."""
    folders: dict[str, Path | None] = {"base": None}
    stages = [config.parent.parent.name for config in run.glob("*/adapter/adapter_config.json")]
    for stage in sorted(stages, key=_training_order):
        if stage.partition(".")[0] in _POLICY_ORDER:
            folders[stage] = run / stage / "adapter"
    return folders


class RunPolicies(Mapping[str, "Path | None"]):
    """The policies of a run as they are when they are asked for: training adds to them.

    Args:
        run: The run folder.
    """

    def __init__(self, run: Path) -> None:
        self._run = run

    def __getitem__(self, policy: str) -> Path | None:
        return policies(self._run)[policy]

    def __iter__(self) -> Iterator[str]:
        return iter(policies(self._run))

    def __len__(self) -> int:
        return len(policies(self._run))


def rewards(run: Path) -> dict[str, Path]:
    """Reward models and their adapter folders, in the order of training."""
    configs = run.glob("reward*/adapter/adapter_config.json")
    stages = [config.parent.parent.name for config in configs]
    rewards = [stage for stage in stages if stage.partition(".")[0] == "reward"]
    return {stage: run / stage / "adapter" for stage in sorted(rewards, key=_training_order)}


def ledger_of(run: Path) -> dict[str, Any]:
    """The finished stages and their results.

    Raises:
        UserError: The ledger cannot be read.
    """
    return _read(run / "ledger.json") if _is_there(run / "ledger.json") else {}


def report_of(run: Path) -> dict[str, Any] | None:
    """The figures of the finished report; None if there is none yet.

    Raises:
        UserError: It cannot be read.
    """
    return _read(run / "report.json") if _is_there(run / "report.json") else None


def _training_order(stage: str) -> tuple[int, int]:
    name, _, round_ = stage.partition(".")
    order = _POLICY_ORDER.index(name) if name in _POLICY_ORDER else -1
    return int(round_) if round_.isdigit() else 1, order


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        raise UserError(f"{path.parent}: cannot be read ({error.strerror})") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise UserError(f"{path}: is not JSON any more; use another folder") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: is not a file that a run writes; use another folder")
    return value


def reward_facts(run: Path) -> dict[str, Any]:
    """Facts of the newest reward model of a run; empty where there is none."""
    ledger = ledger_of(run)
    stages = [name for name in ledger if name.partition(".")[0] == "reward"]
    newest = max(stages, key=_training_order, default=None)
    facts: dict[str, Any] = {} if newest is None else ledger[newest].get("facts", {})
    return facts
